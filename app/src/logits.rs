//! `tread logits`: the door through which correctness is checked from outside.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tread_core::backend::{Batch, CompileOptions, Executable, Output, Rows};

use crate::cli::LogitsArgs;
use crate::{devices, engine, load};

pub(crate) fn run(args: &LogitsArgs) -> Result<()> {
    let model = load::model(args.model.as_deref())?;
    let tokens = match (&args.tokens, &args.text) {
        (Some(tokens), _) => tokens.clone(),
        (None, text) => model.tokenizer()?.encode(text.as_deref().unwrap_or_default(), true)?,
    };
    if tokens.is_empty() {
        bail!("no tokens: give at least one");
    }
    let device = &args.device;
    let context = match device.context {
        Some(_) => engine::context_length(&model, device)?,
        None => tokens.len().min(model.config.context_length()),
    };
    if tokens.len() > context {
        bail!("{} tokens were given, but the context holds {context}", tokens.len());
    }
    let vocab = model.config.vocab_size();
    let model = Arc::new(model);
    let backend = devices::open_for(&model, device)?;
    let rows = engine::PREFILL_ROWS.min(context);
    let options = CompileOptions::single(context, rows, device.kv.into());
    let mut executable = engine::compile(&model, &*backend, options)?;
    let (logits, hidden) = every_position(&mut *executable, &tokens, args.hidden)?;
    let rows = tokens.len();
    let mut tensors = vec![("logits".to_owned(), view(&logits, rows)?)];
    for (n, state) in hidden.iter().enumerate() {
        tensors.push((format!("hidden.{n}"), view(state, rows)?));
    }
    safetensors::serialize_to_file(tensors, None, &args.out)
        .with_context(|| format!("writing {}", args.out.display()))?;
    eprintln!("{} rows of {vocab} logits in {} ({})", rows, args.out.display(), backend.device());
    Ok(())
}

/// The logits (`[tokens, vocab]`) and, if asked for, the hidden states (each `[tokens, hidden]`) of every position.
fn every_position(
    executable: &mut dyn Executable,
    tokens: &[u32],
    hidden: bool,
) -> Result<(Vec<f32>, Vec<Vec<f32>>)> {
    let (mut logits, mut states) = (vec![], vec![]);
    in_chunks(executable, tokens, hidden, &mut |output| {
        logits.extend_from_slice(output.logits);
        states.resize(output.hidden.len(), vec![]);
        for (all, rows) in states.iter_mut().zip(output.hidden) {
            all.extend_from_slice(rows);
        }
    })?;
    Ok((logits, states))
}

/// Computes `tokens` from an empty context, as many at a time as may have logits; `each` sees every chunk's.
pub(crate) fn in_chunks(
    executable: &mut dyn Executable,
    tokens: &[u32],
    hidden: bool,
    each: &mut dyn FnMut(Output<'_>),
) -> Result<()> {
    let options = *executable.options();
    let mut start = 0;
    for chunk in tokens.chunks(options.max_rows.min(options.max_outputs)) {
        let rows = Rows {
            tokens: chunk.to_vec(),
            start,
            block_table: (0..options.kv_blocks as u32).collect(),
            outputs: (0..chunk.len()).collect(),
        };
        let batch = Batch { sequences: vec![rows], hidden, ..Batch::default() };
        each(pollster::block_on(executable.step(&batch)?)?);
        start += chunk.len();
    }
    Ok(())
}

/// `values` as `[rows, ...]`.
fn view(values: &[f32], rows: usize) -> Result<TensorView<'_>> {
    Ok(TensorView::new(Dtype::F32, vec![rows, values.len() / rows], bytemuck::cast_slice(values))?)
}

//! `tread logits`: the door through which correctness is checked from outside.

use anyhow::{Context, Result};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::cli::LogitsArgs;
use crate::engine::Engine;
use crate::load;

pub(crate) fn run(args: &LogitsArgs) -> Result<()> {
    let model = load::model(args.model.as_deref())?;
    let tokens = match (&args.tokens, &args.text) {
        (Some(tokens), _) => tokens.clone(),
        (None, text) => model.tokenizer()?.encode(text.as_deref().unwrap_or_default(), true)?,
    };
    let mut device = args.device.clone();
    let fits = tokens.len().clamp(1, model.config.context_length());
    device.context.get_or_insert(u32::try_from(fits)?);
    let vocab = model.config.vocab_size();
    let mut engine = Engine::new(model, &device)?;
    let (logits, hidden) = pollster::block_on(engine.session.logits(&tokens, args.hidden))?;
    let rows = tokens.len();
    let mut tensors = vec![("logits".to_owned(), view(&logits, rows)?)];
    for (n, state) in hidden.iter().enumerate() {
        tensors.push((format!("hidden.{n}"), view(state, rows)?));
    }
    safetensors::serialize_to_file(tensors, None, &args.out)
        .with_context(|| format!("writing {}", args.out.display()))?;
    eprintln!("{} rows of {vocab} logits in {} ({})", rows, args.out.display(), engine.device);
    Ok(())
}

/// `values` as `[rows, ...]`.
fn view(values: &[f32], rows: usize) -> Result<TensorView<'_>> {
    Ok(TensorView::new(Dtype::F32, vec![rows, values.len() / rows], bytemuck::cast_slice(values))?)
}

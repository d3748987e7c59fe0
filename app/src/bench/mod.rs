//! `tread bench`: load time, prefill and decode on every back end; with `--serve`, a server under load.

mod afd;
mod client;
mod report;
mod serve;
mod server;

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tread_core::backend::{BLOCK_SIZE, Backend, Batch, CompileOptions, Executable, Rows};
use tread_core::model::Model;

use crate::cli::{BackendChoice, BenchArgs};
use crate::engine::{self, PREFILL_ROWS};
use crate::{devices, load, memory};

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    prompt_tokens: usize,
    new_tokens: usize,
    results: Vec<Figures>,
}

/// What was measured on one back end; medians.
#[derive(Serialize)]
struct Figures {
    backend: &'static str,
    device: String,
    load_s: f64,
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
    dispatches_per_token: usize,
    /// The process's peak since this back end's turn began; where a system has no way to ask for that, since its start.
    peak_rss_bytes: Option<u64>,
    device_bytes: u64,
}

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    if args.afd {
        return afd::run(args);
    }
    if args.load.serve {
        return serve::run(args);
    }
    let model = Arc::new(load::model(args.model.as_deref())?);
    let devices = match args.backend {
        BackendChoice::Auto => devices::all(args.adapter.as_ref()),
        choice => vec![devices::open(choice, args.adapter.as_ref())?],
    };
    let backends: Vec<_> = devices
        .into_iter()
        .map(|device| devices::apart(&model, device, &args.apart))
        .collect::<Result<_>>()?;
    let (prompt_tokens, new_tokens) = (args.prompt_tokens.single()?, args.new_tokens.single()?);
    let results = backends.iter().map(|b| measure(&model, &**b, args, prompt_tokens, new_tokens));
    let results = results.collect::<Result<Vec<_>>>()?;
    let report = Report { model: &model.name, prompt_tokens, new_tokens, results };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    println!(
        "{}: {prompt_tokens} prompt tokens, {new_tokens} new tokens, median of {}",
        model.name, args.repeat
    );
    println!(
        "{:<6} {:>8} {:>15} {:>14} {:>11} {:>12} {:>12}  device",
        "", "load s", "prefill tok/s", "decode tok/s", "dispatches", "peak memory", "on device"
    );
    for f in &report.results {
        println!(
            "{:<6} {:>8.2} {:>15.1} {:>14.1} {:>11} {:>12} {:>12}  {}",
            f.backend,
            f.load_s,
            f.prefill_tokens_per_s,
            f.decode_tokens_per_s,
            f.dispatches_per_token,
            f.peak_rss_bytes.map_or_else(|| "-".to_owned(), memory::text),
            memory::text(f.device_bytes),
            f.device
        );
    }
    Ok(())
}

fn measure(
    model: &Model,
    backend: &dyn Backend,
    args: &BenchArgs,
    prompt: usize,
    new: usize,
) -> Result<Figures> {
    let context = prompt + new;
    let limit = model.config.context_length();
    if context > limit {
        bail!(
            "{prompt} + {new} tokens exceed the context of {limit}: use a smaller --prompt-tokens or --new-tokens"
        );
    }
    memory::reset_peak();
    let start = Instant::now();
    let options = CompileOptions::single(context, PREFILL_ROWS.min(prompt), args.kv.into());
    let mut executable = engine::compile(model, backend, options)?;
    let load_s = start.elapsed().as_secs_f64();
    let mut run = Run { executable: &mut *executable, blocks: context.div_ceil(BLOCK_SIZE) as u32 };
    let vocab = model.config.vocab_size() as u32;
    // Spread over the vocabulary, the same every time.
    let tokens: Vec<u32> = (0..prompt as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab).collect();
    // Once to warm up: drivers finish compiling at the first use.
    run.prefill(&tokens)?;
    run.step(&[tokens[0]], prompt)?;
    let (mut prefills, mut decodes) = (vec![], vec![]);
    for _ in 0..args.repeat {
        let start = Instant::now();
        let mut token = run.prefill(&tokens)?;
        prefills.push(prompt as f64 / start.elapsed().as_secs_f64());
        let start = Instant::now();
        for i in 0..new {
            token = run.step(&[token], prompt + i)?;
        }
        decodes.push(new as f64 / start.elapsed().as_secs_f64());
    }
    let stats = executable.stats();
    Ok(Figures {
        backend: backend.name(),
        device: backend.device(),
        load_s,
        prefill_tokens_per_s: median(prefills),
        decode_tokens_per_s: median(decodes),
        dispatches_per_token: stats.dispatches,
        peak_rss_bytes: memory::peak(),
        device_bytes: stats.weight_bytes + stats.kv_bytes + stats.scratch_bytes,
    })
}

/// One sequence from position 0 on, over and over.
struct Run<'a> {
    executable: &'a mut dyn Executable,
    blocks: u32,
}

impl Run<'_> {
    /// Computes the prompt in chunks; returns the likeliest next token.
    fn prefill(&mut self, tokens: &[u32]) -> Result<u32> {
        let mut next = 0;
        for (i, chunk) in tokens.chunks(PREFILL_ROWS).enumerate() {
            next = self.step(chunk, i * PREFILL_ROWS)?;
        }
        Ok(next)
    }

    fn step(&mut self, tokens: &[u32], start: usize) -> Result<u32> {
        let block_table = (0..self.blocks).collect();
        let rows = Rows { tokens: tokens.to_vec(), start, block_table, outputs: vec![tokens.len() - 1] };
        let batch = Batch { sequences: vec![rows], ..Batch::default() };
        let output = pollster::block_on(self.executable.step(&batch)?)?;
        let best = output.logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        best.map(|(i, _)| i as u32).context("a step without logits")
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

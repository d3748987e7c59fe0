//! One answer: prompt in, text out while it is made.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use tread_core::model::Model;
use tread_core::sampling::{Sampler, SamplingParams};
use tread_core::session::{Finish, Generation};
use tread_core::text::{Detokenizer, Message, ReasoningSplitter, Split};

use crate::cli::SamplingArgs;
use crate::engine::Engine;

/// Set by Ctrl-C while an answer is made.
pub(crate) static STOP: AtomicBool = AtomicBool::new(false);

/// The sampling of a model, as the user changed it.
pub(crate) fn sampling(model: &Model, args: &SamplingArgs) -> SamplingParams {
    let base = if args.greedy { SamplingParams::greedy() } else { model.sampling.clone() };
    SamplingParams {
        temperature: args.temperature.unwrap_or(base.temperature),
        top_k: args.top_k.unwrap_or(base.top_k),
        top_p: args.top_p.unwrap_or(base.top_p),
        min_p: args.min_p.unwrap_or(base.min_p),
        repetition_penalty: args.repetition_penalty.unwrap_or(base.repetition_penalty),
        seed: args.seed.or(base.seed),
        ..base
    }
}

/// A conversation as the model's template writes it, and its tokens.
pub(crate) fn chat_prompt(model: &Model, messages: &[Message]) -> Result<(String, Vec<u32>)> {
    let text = model.template()?.render(messages, None, true)?;
    let tokens = model.tokenizer()?.encode(&text, false)?;
    Ok((text, tokens))
}

/// Says so when the model's template leaves the system prompt out, as those of models trained without one do.
pub(crate) fn note_unheard_system(model: &Model) -> Result<()> {
    let messages = [Message::new("system", "system"), Message::new("user", "user")];
    let template = model.template()?;
    if template.render(&messages, None, true)? == template.render(&messages[1..], None, true)? {
        eprintln!("note: {} knows no system prompt: its chat template leaves it out", model.name);
    }
    Ok(())
}

/// Where the text of an answer goes.
pub(crate) struct Printer {
    terminal: bool,
    reasoning: bool,
    in_reasoning: bool,
    written: bool,
}

impl Printer {
    /// To standard output; reasoning is dimmed on a terminal, and elsewhere written only if asked for.
    pub(crate) fn new(reasoning: bool) -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self { terminal, reasoning: reasoning || terminal, in_reasoning: false, written: false }
    }

    fn print(&mut self, split: &Split) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.reasoning && !split.reasoning.is_empty() {
            if self.terminal && !self.in_reasoning {
                write!(out, "\x1b[2m")?;
            }
            self.in_reasoning = true;
            write!(out, "{}", split.reasoning)?;
        }
        if !split.content.is_empty() {
            if self.in_reasoning {
                self.in_reasoning = false;
                writeln!(out, "{}\n", if self.terminal { "\x1b[0m" } else { "" })?;
            }
            write!(out, "{}", split.content)?;
            self.written = true;
        }
        out.flush()
    }

    /// Ends the line; leaves no colour behind.
    fn finish(&mut self) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.in_reasoning && self.terminal {
            write!(out, "\x1b[0m")?;
        }
        writeln!(out)?;
        out.flush()
    }
}

/// What an answer was.
pub(crate) struct Answer {
    /// The text after any reasoning.
    pub(crate) content: String,
    pub(crate) generation: Generation,
}

/// Generates and prints an answer. `prompt` is the text of `tokens`, from which it is known whether the answer starts
/// inside reasoning.
pub(crate) fn answer(
    engine: &mut Engine,
    prompt: &str,
    tokens: &[u32],
    args: &SamplingArgs,
    ignore_eos: bool,
    printer: &mut Printer,
) -> Result<Answer> {
    let mut sampler = Sampler::new(sampling(&engine.model, args))?;
    let tokenizer = engine.model.tokenizer()?;
    let stop_ids = if ignore_eos { &[][..] } else { &engine.model.stop_ids };
    // Special tokens stay in: in some vocabularies `</think>` is one.
    let mut detokenizer = Detokenizer::new(false);
    let mut splitter = ReasoningSplitter::new(prompt);
    let mut content = String::new();
    let mut failed = None;
    let mut show = |split: Split, failed: &mut Option<anyhow::Error>| {
        content.push_str(&split.content);
        if let Err(error) = printer.print(&split) {
            failed.get_or_insert_with(|| error.into());
        }
    };
    STOP.store(false, Ordering::Relaxed);
    let mut on_token = |token| {
        match detokenizer.push(tokenizer, token) {
            Ok(text) => show(splitter.push(&text), &mut failed),
            Err(error) => failed = Some(error.into()),
        }
        if failed.is_some() || STOP.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let max_tokens = args.max_tokens.unwrap_or(usize::MAX);
    let generation = pollster::block_on(engine.session.generate(
        tokens,
        &mut sampler,
        stop_ids,
        max_tokens,
        &mut on_token,
    ))?;
    show(splitter.push(&detokenizer.finish(tokenizer)?), &mut failed);
    show(splitter.finish(), &mut failed);
    if let Some(error) = failed {
        return Err(error);
    }
    printer.finish().context("writing the answer")?;
    Ok(Answer { content, generation })
}

/// `12 prompt tokens (3 cached), 40 tokens, 25.1 tok/s, first after 0.12 s, stop; cpu, CPU (2 threads)`.
pub(crate) fn statistics(generation: &Generation, engine: &Engine) -> String {
    let written = generation.tokens.len() + usize::from(generation.stop_token.is_some());
    // The first token is prefill's; the rest are decoded.
    let seconds = generation.decode_time.as_secs_f64();
    let rate = match written {
        0 | 1 => "-".to_owned(),
        n => format!("{:.1}", (n - 1) as f64 / seconds.max(1e-9)),
    };
    let finish = match generation.finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Aborted => "stopped by you",
        Finish::ContextFull => "the context is full",
    };
    format!(
        "{} prompt tokens ({} cached), {written} tokens, {rate} tok/s, first after {:.2} s, {finish}; {}",
        generation.prompt_tokens,
        generation.reused_tokens,
        generation.time_to_first_token.as_secs_f64(),
        engine.device
    )
}

//! One answer: prompt in, text out while it is made.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;

use anyhow::{Context, Result};
use tread_core::engine::{Delta, Finish, Generate};
use tread_core::model::Model;
use tread_core::sampling::SamplingParams;
use tread_core::text::{Message, ReasoningSplitter, Split};

use crate::cli::SamplingArgs;
use crate::engine::{Engine, Generation};

/// How the user wants a prompt continued.
pub(crate) fn generate(model: &Model, args: &SamplingArgs) -> Generate {
    let base = if args.greedy { SamplingParams::greedy() } else { model.sampling.clone() };
    let sampling = SamplingParams {
        temperature: args.temperature.unwrap_or(base.temperature),
        top_k: args.top_k.unwrap_or(base.top_k),
        top_p: args.top_p.unwrap_or(base.top_p),
        min_p: args.min_p.unwrap_or(base.min_p),
        repetition_penalty: args.repetition_penalty.unwrap_or(base.repetition_penalty),
        seed: args.seed.or(base.seed),
        ..base
    };
    // Special tokens stay in the text: in some vocabularies `</think>` is one.
    Generate {
        sampling,
        max_tokens: args.max_tokens.unwrap_or(usize::MAX),
        skip_special: false,
        ..Generate::default()
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
    tokens: Vec<u32>,
    generate: Generate,
    printer: &mut Printer,
) -> Result<Answer> {
    let mut splitter = ReasoningSplitter::new(prompt);
    let mut content = String::new();
    let mut failed = None;
    let mut show = |split: Split| {
        content.push_str(&split.content);
        if let Err(error) = printer.print(&split) {
            failed.get_or_insert(error);
        }
        failed.is_some()
    };
    let mut on_delta = |delta: &Delta| {
        if show(splitter.push(&delta.text)) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let generation = engine.generate(tokens, generate, &mut on_delta)?;
    show(splitter.finish());
    if let Some(error) = failed {
        return Err(error.into());
    }
    printer.finish().context("writing the answer")?;
    Ok(Answer { content, generation })
}

/// `12 prompt tokens (3 cached), 40 tokens, 25.1 tok/s, first after 0.12 s, stop; cpu, CPU (2 threads)`.
pub(crate) fn statistics(generation: &Generation, engine: &Engine) -> String {
    let written = generation.tokens.len();
    // The first token is prefill's; the rest are decoded.
    let seconds = generation.decode_time.as_secs_f64();
    let rate = match written {
        0 | 1 => "-".to_owned(),
        n => format!("{:.1}", (n - 1) as f64 / seconds.max(1e-9)),
    };
    let finish = match generation.finish {
        Some(Finish::StopToken(_) | Finish::StopString(_) | Finish::GrammarEnd) => "stop",
        Some(Finish::Length) => "length",
        Some(Finish::ContextFull) => "the context is full",
        None => "stopped by you",
    };
    format!(
        "{} prompt tokens ({} cached), {written} tokens, {rate} tok/s, first after {:.2} s, {finish}; {}",
        generation.prompt_tokens,
        generation.cached_tokens,
        generation.time_to_first_token.as_secs_f64(),
        engine.device
    )
}

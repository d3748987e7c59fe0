//! `tread run`: one prompt, one answer.

use std::io::{IsTerminal, Read};
use std::ops::ControlFlow;

use anyhow::{Context, Result, bail};
use tread_core::engine::Generate;
use tread_core::text::Message;

use crate::answer::{self, Printer};
use crate::cli::RunArgs;
use crate::engine::{Engine, Generation};
use crate::load;

pub(crate) fn run(args: &RunArgs) -> Result<()> {
    let model = load::model(args.model.as_deref())?;
    let (text, tokens) = match &args.tokens_in {
        Some(tokens) => (String::new(), tokens.clone()),
        None => {
            let prompt = prompt(args)?;
            if args.raw || model.template.is_none() {
                let tokens = model.tokenizer()?.encode(&prompt, true)?;
                (prompt, tokens)
            } else {
                if args.system.is_some() {
                    answer::note_unheard_system(&model)?;
                }
                let system = args.system.iter().map(|s| Message::new("system", s));
                let messages: Vec<_> = system.chain([Message::new("user", prompt)]).collect();
                answer::chat_prompt(&model, &messages)?
            }
        }
    };
    let mut engine = Engine::new(model, &args.device)?;
    let generate =
        Generate { ignore_eos: args.ignore_eos, ..answer::generate(&engine.model, &args.sampling) };
    let generation = if args.tokens_out {
        print_ids(&mut engine, tokens, generate)?
    } else {
        let mut printer = Printer::new(args.reasoning);
        answer::answer(&mut engine, &text, tokens, generate, &mut printer)?.generation
    };
    if args.stats {
        eprintln!("{}", answer::statistics(&generation, &engine));
    }
    Ok(())
}

/// The prompt from the command line or standard input.
fn prompt(args: &RunArgs) -> Result<String> {
    if let Some(prompt) = &args.prompt {
        return Ok(prompt.clone());
    }
    let mut input = std::io::stdin();
    if input.is_terminal() {
        bail!("no prompt: give one after the model, or pipe it in (echo \"Hello\" | tread run)");
    }
    let mut text = String::new();
    input.read_to_string(&mut text).context("reading the prompt from standard input")?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        bail!("the prompt on standard input is empty");
    }
    Ok(text.to_owned())
}

/// Generates and prints the ids in one line.
fn print_ids(engine: &mut Engine, tokens: Vec<u32>, generate: Generate) -> Result<Generation> {
    let generation = engine.generate(tokens, generate, &mut |_| ControlFlow::Continue(()))?;
    let ids: Vec<_> = generation.tokens.iter().map(u32::to_string).collect();
    println!("{}", ids.join(","));
    Ok(generation)
}

//! `tread chat`: a conversation in the terminal.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use rustyline::error::ReadlineError;
use tread_core::engine::Finish;
use tread_core::text::Message;

use crate::answer::{self, Printer};
use crate::cli::ChatArgs;
use crate::engine::{Engine, STOP};
use crate::load;

const HELP: &str = "\
/help          this list
/reset         forget the conversation
/system TEXT   set the system prompt and begin anew; without TEXT: none
/quit          leave (Ctrl-D too)
Ctrl-C stops an answer.";

pub(crate) fn run(args: &ChatArgs) -> Result<()> {
    let model = load::model(args.model.as_deref())?;
    // Before anything is loaded: a base model cannot chat.
    model.template()?;
    let mut engine = Engine::new(model, &args.device)?;
    ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed)).context("catching Ctrl-C")?;
    let mut input = Input::new()?;
    if input.interactive() {
        eprintln!("{} on {}. /help lists commands.", engine.model.name, engine.device);
    }
    let mut conversation = Conversation::new(args.system.clone());
    if conversation.system.is_some() {
        answer::note_unheard_system(&engine.model)?;
    }
    while let Some(line) = input.line()? {
        let line = line.trim();
        match line.split_once(char::is_whitespace).unwrap_or((line, "")) {
            ("", _) => {}
            ("/quit" | "/exit", _) => break,
            ("/help", _) => eprintln!("{HELP}"),
            ("/reset", _) => conversation = Conversation::new(conversation.system),
            ("/system", text) => {
                let text = text.trim();
                conversation = Conversation::new((!text.is_empty()).then(|| text.to_owned()));
                if conversation.system.is_some() {
                    answer::note_unheard_system(&engine.model)?;
                }
            }
            (command, _) if command.starts_with('/') && !command[1..].contains('/') => {
                eprintln!("there is no {command}; /help lists commands");
            }
            _ => say(&mut engine, &mut conversation, line, args)?,
        }
    }
    Ok(())
}

/// What was said so far.
struct Conversation {
    system: Option<String>,
    messages: Vec<Message>,
}

impl Conversation {
    fn new(system: Option<String>) -> Self {
        let messages = system.iter().map(|s| Message::new("system", s)).collect();
        Self { system, messages }
    }
}

/// One turn. What goes wrong in it is said, and the conversation stands as before.
fn say(engine: &mut Engine, conversation: &mut Conversation, line: &str, args: &ChatArgs) -> Result<()> {
    conversation.messages.push(Message::new("user", line));
    let mut turn = || -> Result<answer::Answer> {
        let (text, tokens) = answer::chat_prompt(&engine.model, &conversation.messages)?;
        let generate = answer::generate(&engine.model, &args.sampling);
        answer::answer(engine, &text, tokens, generate, &mut Printer::new(false))
    };
    match turn() {
        Ok(answer) => {
            conversation.messages.push(Message::new("assistant", answer.content));
            let statistics = answer::statistics(&answer.generation, engine);
            let (dim, plain) =
                if std::io::stderr().is_terminal() { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
            eprintln!("{dim}[{statistics}]{plain}");
            if answer.generation.finish == Some(Finish::ContextFull) {
                eprintln!("the context is full: /reset begins anew, --context gives more room");
            }
        }
        Err(error) if crate::is_broken_pipe(&error) => return Err(error),
        Err(error) => {
            conversation.messages.pop();
            eprintln!("error: {error:#}\n/reset begins anew");
        }
    }
    Ok(())
}

/// Lines from a person or from a pipe.
enum Input {
    Terminal { editor: Box<rustyline::DefaultEditor>, history: Option<PathBuf> },
    Pipe,
}

impl Input {
    fn new() -> Result<Self> {
        if !std::io::stdin().is_terminal() {
            return Ok(Self::Pipe);
        }
        let mut editor = rustyline::DefaultEditor::new().context("opening the line editor")?;
        let history = load::data_folder().map(|folder| folder.join("history"));
        if let Some(file) = &history {
            // No history yet is not an error.
            let _ = editor.load_history(file);
        }
        Ok(Self::Terminal { editor: Box::new(editor), history })
    }

    fn interactive(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// The next line; none at the end of input.
    fn line(&mut self) -> Result<Option<String>> {
        match self {
            Self::Pipe => {
                let mut line = String::new();
                let count = std::io::stdin().lock().read_line(&mut line).context("reading standard input")?;
                Ok((count > 0).then_some(line))
            }
            Self::Terminal { editor, history } => loop {
                match editor.readline("> ") {
                    Ok(line) => {
                        if !line.trim().is_empty() && editor.add_history_entry(&line).is_ok() {
                            save(editor, history.as_ref());
                        }
                        return Ok(Some(line));
                    }
                    // Ctrl-C clears the line.
                    Err(ReadlineError::Interrupted) => {}
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error).context("reading a line"),
                }
            },
        }
    }
}

/// Keeps the history for the next time; a chat goes on without it.
fn save(editor: &mut rustyline::DefaultEditor, history: Option<&PathBuf>) {
    let Some(file) = history else { return };
    if let Some(folder) = file.parent() {
        let _ = std::fs::create_dir_all(folder);
    }
    if let Err(error) = editor.save_history(file) {
        let _ = writeln!(std::io::stderr(), "the line history cannot be kept in {}: {error}", file.display());
    }
}

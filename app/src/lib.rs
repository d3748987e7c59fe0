//! The parts of the `tread` binary. Only the server and its pools are a library for others: their tests start them in
//! their own process.

pub mod afd;
mod answer;
pub mod attention;
mod bench;
mod catalog;
mod chart;
mod chat;
mod cli;
mod devices;
mod doctor;
mod embedded;
mod engine;
mod hub;
mod inspect;
mod load;
mod logits;
mod memory;
mod perplexity;
mod plan;
mod progress;
mod run;
pub mod serve;
mod signals;
mod simulate;
mod table;
mod worker;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

/// What the binary does.
pub fn command_line() -> ExitCode {
    // Without a subcommand: the page, by arguments that all have defaults.
    let cli = cli::Cli::parse();
    let page = || cli::Cli::parse_from(["tread", "serve", "--open"]).command;
    let Some(command) = cli.command.or_else(page) else { return ExitCode::FAILURE };
    // The server sets its own log up.
    if !matches!(command, cli::Command::Serve(_)) {
        // A worker has nobody else to tell.
        let usual = if matches!(command, cli::Command::Worker(_)) { "info" } else { "error" };
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(usual));
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    let result = match &command {
        cli::Command::Chat(args) => chat::run(args),
        cli::Command::Run(args) => run::run(args),
        cli::Command::Serve(args) => serve::run(args),
        cli::Command::Logits(args) => logits::run(args),
        cli::Command::Perplexity(args) => perplexity::run(args),
        cli::Command::Inspect(args) => inspect::run(args),
        cli::Command::Doctor => doctor::run(),
        cli::Command::Bench(args) => bench::run(args),
        cli::Command::Worker(cli::WorkerCommand::Ffn(args)) => worker::ffn(args),
        cli::Command::Worker(cli::WorkerCommand::Attention(args)) => worker::attention(args),
        cli::Command::Plan(args) => plan::run(args),
        cli::Command::Simulate(args) => simulate::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has read enough (`tread inspect ... | head`).
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

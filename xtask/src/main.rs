//! `cargo xtask`: builds and starts Tread, prepares a machine, and runs what CI runs.

mod catalog;
mod machine;
mod peers;
mod process;
mod run;
mod test;
mod wasm;
mod web;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build the page and Tread, and open it with the embedded model
    Run(run::Args),
    /// Install what the tests need and run every check and test
    Test(test::Args),
    /// Build the page into web/dist, from where the next build of Tread takes it
    Web,
    /// Compare speed with llama.cpp on the same adapter, natively or in a browser
    Peers(peers::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Run(args) => run::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Web => web::build(),
        Task::Peers(args) => peers::run(&args),
    };
    // Printed here and not by `main`'s caller, which would add a backtrace to the command that a user should run.
    if let Err(error) = result {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

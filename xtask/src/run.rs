//! `cargo xtask run`: from a checkout to the page in the browser.

use anyhow::Result;

use crate::process::cargo;
use crate::web;

/// Arguments of `cargo xtask run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Passed on to `tread serve --open`
    #[arg(last = true)]
    args: Vec<String>,
}

/// Builds the page and Tread, and becomes `tread serve --open`.
pub(crate) fn run(args: &Args) -> Result<()> {
    web::build()?;
    let mut tread = cargo(&["run", "--release", "--package", "tread", "--", "serve", "--open"])?;
    tread.args(&args.args);
    // Taking its place leaves Ctrl-C to the server, which ends in good order.
    #[cfg(unix)]
    {
        Err(std::os::unix::process::CommandExt::exec(&mut tread).into())
    }
    #[cfg(not(unix))]
    {
        crate::process::run(&mut tread)
    }
}

//! `cargo xtask run`.

use anyhow::Result;

use crate::process::cargo;

/// Arguments of `cargo xtask run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Passed on to `tread chat`
    #[arg(last = true)]
    args: Vec<String>,
}

/// Builds Tread and becomes `tread chat`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut tread = cargo(&["run", "--release", "--package", "tread", "--", "chat"])?;
    tread.args(&args.args);
    // Taking its place leaves Ctrl-C to the chat, which uses it to stop an answer.
    #[cfg(unix)]
    {
        Err(std::os::unix::process::CommandExt::exec(&mut tread).into())
    }
    #[cfg(not(unix))]
    {
        crate::process::run(&mut tread)
    }
}

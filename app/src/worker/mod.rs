//! `tread worker`: one of the processes of which a pool is made.

mod attention;
mod ffn;
mod input;
#[cfg(feature = "cluster")]
mod register;

use std::fs;
use std::future::Future;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::runtime::Runtime;

use crate::afd::transport::{Security, Served};
use crate::cli::WorkerArgs;
use crate::signals::Signals;

pub(crate) use attention::attention;
pub(crate) use ffn::ffn;

fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .thread_name("grpc")
        .build()
        .context("starting the worker's runtime")
}

/// Says who is served where, and waits until it is told to stop and all who use it have finished or gone elsewhere.
/// `leave` comes before it takes nothing new, so that nobody comes who would have to go again.
async fn run(
    args: &WorkerArgs,
    served: &Served,
    name: &str,
    security: &Security,
    orphaned: impl Future<Output = ()>,
    leave: impl Future<Output = ()>,
) -> Result<()> {
    let mut signals = Signals::new()?;
    let scheme = if security.identity.is_some() { "https" } else { "http" };
    println!("{name}: {scheme}://{}", served.address());
    let drains = tokio::select! {
        () = signals.next() => {
            tracing::info!("stopping once nobody uses this worker; a second signal stops at once");
            Ok(true)
        }
        // Somebody else has asked for it.
        () = served.asked_to_drain() => Ok(true),
        () = orphaned => Ok(false),
        why = served.failed() => Err(anyhow!(why)),
    };
    leave.await;
    if !drains? {
        return Ok(());
    }
    served.drain();
    tokio::select! {
        () = served.drained() => Ok(()),
        () = signals.next() => bail!("stopped before all who use this worker had gone"),
        () = tokio::time::sleep(args.drain_timeout) => {
            bail!("--drain-timeout is over, and not all who use this worker have gone")
        }
        why = served.failed() => bail!("{why}"),
    }
}

/// Who may call, if the worker may listen there at all.
fn security(args: &WorkerArgs) -> Result<Security> {
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    let identity = match (&args.tls_cert, &args.tls_key) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
        _ => None,
    };
    let token = args.token_file.as_deref().map(read).transpose()?.map(|token| token.trim().to_owned());
    if token.as_deref() == Some("") {
        bail!("--token-file is empty");
    }
    let security = Security { identity, token };
    security.check(args.listen)?;
    Ok(security)
}

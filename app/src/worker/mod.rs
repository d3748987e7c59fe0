//! `tread worker`: one of the processes of which a pool is made.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use tread_core::afd::Layout;

use crate::afd::host::{Host, Setup};
use crate::afd::transport::{Security, Served, serve};
use crate::afd::{shape, terms};
use crate::cli::FfnWorkerArgs;
use crate::signals::Signals;
use crate::{devices, load, progress};

/// Serves a shard of a model's FFNs until it is told to stop and all who use it have gone elsewhere.
pub(crate) fn ffn(args: &FfnWorkerArgs) -> Result<()> {
    let security = security(args)?;
    // Before the weights are read, which takes long.
    security.check(args.listen)?;
    args.transport.nixl().map_err(anyhow::Error::msg)?;
    let host = host(args)?;
    let name = args.model.as_deref().unwrap_or(crate::embedded::NAME);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .thread_name("grpc")
        .build()
        .context("starting the worker's runtime")?;
    let result = runtime.block_on(async {
        let served = serve(host.clone(), args.listen, &security, args.transport).await?;
        let scheme = if security.identity.is_some() { "https" } else { "http" };
        let welcome = host.welcome();
        println!(
            "{name}, shard {} of {} on {}: {scheme}://{}",
            welcome.shard,
            welcome.terms.shards,
            welcome.device,
            served.address()
        );
        run(args, &served).await
    });
    runtime.shutdown_background();
    result
}

async fn run(args: &FfnWorkerArgs, served: &Served) -> Result<()> {
    let mut signals = Signals::new()?;
    tokio::select! {
        () = signals.next() => {
            tracing::info!("stopping once nobody uses this worker; a second signal stops at once");
            served.drain();
        }
        // Somebody else may have asked for it.
        () = served.drained() => return Ok(()),
        () = orphaned(args.while_stdin) => return Ok(()),
        why = served.failed() => bail!("{why}"),
    }
    tokio::select! {
        () = served.drained() => Ok(()),
        () = signals.next() => bail!("stopped before all attention workers had gone elsewhere"),
        () = tokio::time::sleep(args.drain_timeout) => {
            bail!("--drain-timeout is over, and not all attention workers have gone elsewhere")
        }
        why = served.failed() => bail!("{why}"),
    }
}

/// Waits until whoever started this worker is gone.
async fn orphaned(watched: bool) {
    let (sender, ended) = tokio::sync::oneshot::channel();
    if watched {
        // A blocking task would hold the runtime's end up.
        std::thread::spawn(move || {
            // What cannot be read has ended as well.
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            let _ = sender.send(());
        });
    } else {
        std::future::pending::<()>().await;
    }
    let _ = ended.await;
}

fn host(args: &FfnWorkerArgs) -> Result<Host> {
    let model = load::model(args.model.as_deref())?;
    let (sharding, dtype) = (args.sharding.into(), args.afd_dtype.into());
    let layout = Layout::new(&shape(&model.graph, sharding, dtype), sharding, args.shard.of)?;
    let (backend, adapter) = (args.backend, args.adapter.clone());
    let bar = progress::bytes(&format!("loading {}", model.name), 0);
    let shown = bar.clone();
    let setup = Setup {
        terms: terms(&model, sharding, args.shard.of, dtype)?,
        layout: Arc::new(layout),
        shard: args.shard.shard,
        weights: model.weights,
        max_rows: args.max_rows as usize,
        slots: args.slots as usize,
        open: Box::new(move || devices::open(backend, adapter.as_ref())),
        progress: Box::new(move |done, total| {
            shown.set_length(total);
            shown.set_position(done);
        }),
    };
    let host = Host::start(setup);
    bar.finish_and_clear();
    host
}

fn security(args: &FfnWorkerArgs) -> Result<Security> {
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    let identity = match (&args.tls_cert, &args.tls_key) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
        _ => None,
    };
    let token = args.token_file.as_deref().map(read).transpose()?.map(|token| token.trim().to_owned());
    if token.as_deref() == Some("") {
        bail!("--token-file is empty");
    }
    Ok(Security { identity, token })
}

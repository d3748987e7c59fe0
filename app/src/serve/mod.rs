//! `tread serve`: the page, and the OpenAI API over HTTP.
//!
//! HTTP handlers turn JSON into native types and texts into tokens, the thread in `engine` computes, and its events
//! become JSON again. [`Server`] is the whole of it.

mod app;
mod chat;
mod completions;
mod embeddings;
mod engine;
mod error;
mod events;
mod finish;
mod http;
mod input;
mod layers;
mod logprobs;
mod metrics;
mod openapi;
mod options;
mod page;
mod params;
mod prompt;
mod record;
mod status;
mod stream;
mod telemetry;
mod tokenize;
mod usage;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use axum::Extension;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tread_core::model::Model;

use crate::afd::Members;
use crate::afd::spawn::Pools;
use crate::attention::thread::EngineThread;
use crate::attention::{AttentionWorkers, Status};
pub use crate::attention::{Limits, OpenDevice};
use crate::cli::ServeArgs;
use crate::signals::Signals;
use crate::{devices, load};
use app::{App, new_id, unix_time};
use metrics::Metrics;
pub use options::ServerOptions;

/// How often measured values are folded into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);
/// How long connections have to bring away their last words once every request is ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Runs until SIGTERM or Ctrl-C.
pub(crate) fn run(args: &ServeArgs) -> Result<()> {
    let _telemetry = telemetry::start(args.log_format, args.otlp_endpoint.as_deref())?;
    let model = load::model(args.model.as_deref())?;
    let options = ServerOptions::from_args(&model, args)?;
    if !options.address.ip().is_loopback() && options.api_keys.is_empty() {
        tracing::warn!(address = %options.address, "others can reach this server, and it asks for no --api-key");
    }
    let model = Arc::new(model);
    // Ended behind the server, which needs them to the last.
    let pools = args.afd.map(|sizes| Pools::start(args.model.as_deref(), &args.engine, sizes)).transpose()?;
    let attention = match &pools {
        Some(pools) => Some(pools.attention()),
        None => args.attention()?,
    };
    let engines = engines(&model, args, attention.as_ref());
    let options = ServerOptions { attention: workers(args, attention)?, ..options };
    let server = Server::start(Arc::clone(&model), engines, options)?;
    server.stop_on_signals()?;
    if let Some(device) = server.loaded() {
        let name = server.app.model_name();
        println!("{name} on {device}: http://{}/v1", server.address());
        if args.open {
            open_page(server.address());
        }
    }
    server.wait()
}

/// How to open the device of each engine of this process.
fn engines(model: &Arc<Model>, args: &ServeArgs, attention: Option<&Members>) -> Vec<OpenDevice> {
    let open = |place: Option<String>| -> OpenDevice {
        let (model, args) = (Arc::clone(model), args.engine.device.clone());
        Box::new(move || match &place {
            None => devices::open_for(&model, &args),
            Some(name) => devices::apart(&model, devices::open_named(name)?, &args.afd),
        })
    };
    match attention {
        None => vec![open(None)],
        Some(members) => members.devices().iter().map(|device| open(Some(device.to_string()))).collect(),
    }
}

/// The engines that are processes of their own.
fn workers(args: &ServeArgs, attention: Option<Members>) -> Result<Option<AttentionWorkers>> {
    let afd = &args.engine.device.afd;
    let Some(members) = attention.filter(Members::has_addresses) else { return Ok(None) };
    let edges = (afd.sharding.into(), afd.afd_dtype.into());
    Ok(Some(AttentionWorkers { members, grpc: devices::grpc(afd)?, edges }))
}

/// Shows the page in the user's browser; where there is none to be started, says where it is.
fn open_page(mut address: SocketAddr) {
    // Every interface is not an address; and browsers let only pages from this very machine, or over TLS, at the GPU.
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let url = format!("http://{address}/");
    // Some browsers run until their window is closed.
    std::thread::spawn(move || {
        let mut options = webbrowser::BrowserOptions::new();
        options.with_suppress_output(true);
        match webbrowser::open_browser_with_options(webbrowser::Browser::Default, &url, &options) {
            Ok(()) => tracing::info!("opened {url}"),
            Err(error) => tracing::warn!(%error, "no browser could be started; open {url}"),
        }
    });
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    app: App,
    address: SocketAddr,
    runtime: Runtime,
    engines: Vec<EngineThread>,
    http: tokio::task::JoinHandle<()>,
    stop: watch::Sender<Stop>,
}

/// How urgently a server is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    No,
    /// Once what it has is answered.
    Drain,
    /// At once.
    Now,
}

impl Server {
    /// Binds the address and begins to load the model on each of the devices, which compute different requests, and to look
    /// for attention workers, which do, too. Requests may come from now on; they wait until it is loaded.
    ///
    /// # Errors
    /// When the address cannot be bound, nothing is there that could compute, or the options contradict each other or the
    /// model.
    pub fn start(
        model: impl Into<Arc<Model>>,
        devices: Vec<OpenDevice>,
        options: ServerOptions,
    ) -> Result<Self> {
        let model = model.into();
        options.limits.check(&model)?;
        ensure!(
            !devices.is_empty() || options.attention.is_some(),
            "a server needs a device or attention workers"
        );
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("http").build()?;
        let listener = runtime
            .block_on(TcpListener::bind(options.address))
            .with_context(|| format!("listening on {}; choose another --host or --port", options.address))?;
        let address = listener.local_addr()?;
        let metrics = Metrics::new(options.model_names.first().map_or(&model.name, String::as_str))?;
        let (handle, engines) = {
            let _on_runtime = runtime.enter();
            engine::start(&model, devices, &options, &metrics)?
        };
        let app = App::new(model, options, handle, Arc::clone(&metrics));
        let (stop, stopped) = watch::channel(Stop::No);
        let router = layers::router(app.clone())?.layer(Extension(stopped.clone()));
        let http = runtime.spawn(http::serve(listener, router, app.options.client_timeout, stopped));
        runtime.spawn(async move {
            let mut tick = tokio::time::interval(UPKEEP);
            loop {
                tick.tick().await;
                metrics.upkeep();
            }
        });
        Ok(Self { app, address, runtime, engines, http, stop })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until the model is loaded, or an attention worker is there that has it, and returns the devices' names; none, if
    /// it could not be, or the server is stopped before.
    pub fn loaded(&self) -> Option<String> {
        let mut status = self.app.engine.watch();
        let mut stop = self.stop.subscribe();
        self.runtime.block_on(async {
            let status = tokio::select! {
                status = status.wait_for(|status| matches!(status, Status::Ready(_) | Status::Failed(_))) => status,
                _ = stop.wait_for(|stop| *stop > Stop::No) => return None,
            };
            match status.as_deref() {
                Ok(Status::Ready(running)) => Some(running.device.clone()),
                _ => None,
            }
        })
    }

    /// Takes no more requests; [`Server::wait`] returns when those it has are answered.
    pub fn stop(&self) {
        self.stop.send_replace(Stop::Drain);
    }

    /// Stops at SIGTERM or Ctrl-C, and without waiting for anything at the second one.
    fn stop_on_signals(&self) -> Result<()> {
        let stop = self.stop.clone();
        let signals = self.runtime.block_on(async { Signals::new() })?;
        self.runtime.spawn(async move {
            let mut signals = signals;
            signals.next().await;
            tracing::info!("stopping once every request is answered; a second signal stops at once");
            stop.send_replace(Stop::Drain);
            signals.next().await;
            stop.send_replace(Stop::Now);
        });
        Ok(())
    }

    /// Waits until the server has stopped: because it was asked to, or because its engines are lost for good.
    ///
    /// # Errors
    /// When the model cannot be loaded, the device is lost and cannot be opened again, or a second signal came before
    /// every request was answered.
    pub fn wait(self) -> Result<()> {
        let Self { app, runtime, engines, http, stop, .. } = self;
        let ended = runtime.block_on(drain(&app, http, &stop));
        let last = app.engine.status();
        app.engine.stop();
        // A model that is being loaded cannot be interrupted, and nobody waits for it.
        let mut engines = if ended.is_ok() && last != Status::Loading { engines } else { vec![] };
        let ends = engines.drain(..).map(|engine| {
            engine.join().unwrap_or_else(|_| Err(anyhow!("the engine panicked; the log says more")))
        });
        let (well, failed): (Vec<_>, Vec<_>) = ends.partition(Result::is_ok);
        runtime.shutdown_background();
        // While one is left, the server serves.
        let engine = match (failed.into_iter().next(), last) {
            (Some(failed), _) if well.is_empty() => failed,
            // Of attention workers.
            (None, Status::Failed(why)) => Err(anyhow!(why)),
            _ => Ok(()),
        };
        ended.and(engine)
    }
}

/// Waits for the end and sees to it that everybody hears the last of it.
async fn drain(app: &App, mut http: tokio::task::JoinHandle<()>, stop: &watch::Sender<Stop>) -> Result<()> {
    let mut stopped = stop.subscribe();
    let mut status = app.engine.watch();
    let over = |status: &Status| matches!(status, Status::Failed(_));
    tokio::select! {
        _ = stopped.wait_for(|stop| *stop > Stop::No) => {}
        _ = status.wait_for(over) => {}
    }
    stop.send_if_modified(|stop| std::mem::replace(stop, (*stop).max(Stop::Drain)) == Stop::No);
    tokio::select! {
        _ = &mut http => return Ok(()),
        () = tokio::time::sleep(app.options.drain_timeout) => {
            tracing::warn!("--drain-timeout is over; the rest is given up");
        }
        _ = status.wait_for(over) => {}
        _ = stopped.wait_for(|stop| *stop == Stop::Now) => bail!("stopped before every request was answered"),
    }
    app.engine.stop();
    tokio::select! {
        _ = http => {}
        () = tokio::time::sleep(LAST_WORDS) => {}
        _ = stopped.wait_for(|stop| *stop == Stop::Now) => bail!("stopped before every request was answered"),
    }
    Ok(())
}

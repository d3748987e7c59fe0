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

use anyhow::{Context, Result, anyhow, bail};
use axum::Extension;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tread_core::model::Model;

use crate::afd::spawn::Workers;
use crate::cli::{PoolSizes, ServeArgs};
use crate::signals::Signals;
use crate::{devices, load};
use app::{App, new_id, unix_time};
pub use engine::OpenDevice;
use engine::{EngineThread, Status};
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
    let mut args = args.clone();
    // Ended behind the server, which needs them to the last.
    let _workers = args.afd.map(|sizes| local_workers(&mut args, sizes)).transpose()?;
    let server = Server::start(Arc::clone(&model), engines(&model, &args), options)?;
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

/// How to open the device of each engine.
fn engines(model: &Arc<Model>, args: &ServeArgs) -> Vec<OpenDevice> {
    let open = |place: Option<&String>| -> OpenDevice {
        let (model, args, place) = (Arc::clone(model), args.device.clone(), place.cloned());
        Box::new(move || match &place {
            None => devices::open_for(&model, &args),
            Some(name) => devices::apart(&model, devices::open_named(name)?, &args.afd),
        })
    };
    match args.afd {
        Some(sizes) => (0..sizes.attention).map(|_| open(None)).collect(),
        None if args.attention.is_empty() => vec![open(None)],
        None => args.attention.iter().map(|place| open(Some(place))).collect(),
    }
}

/// Starts the FFN workers of `--afd`, and has attention find them.
fn local_workers(args: &mut ServeArgs, sizes: PoolSizes) -> Result<Workers> {
    let device = (args.device.backend, args.device.adapter.as_ref());
    let sizes = (sizes.ffn, args.step_tokens as usize);
    let workers = Workers::of_model(args.model.as_deref(), device, &args.device.afd, sizes)?;
    args.device.afd.ffn = Some(workers.members());
    Ok(workers)
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
    /// Binds the address and begins to load the model on each of the devices, which compute different requests. Requests
    /// may come from now on; they wait until it is loaded.
    ///
    /// # Errors
    /// When the address cannot be bound, or the options contradict each other or the model.
    pub fn start(
        model: impl Into<Arc<Model>>,
        devices: Vec<OpenDevice>,
        options: ServerOptions,
    ) -> Result<Self> {
        let model = model.into();
        options.check(&model)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("http").build()?;
        let listener = runtime
            .block_on(TcpListener::bind(options.address))
            .with_context(|| format!("listening on {}; choose another --host or --port", options.address))?;
        let address = listener.local_addr()?;
        let metrics = Metrics::new(options.model_names.first().map_or(&model.name, String::as_str))?;
        let (handle, engines) = engine::start(&model, devices, &options, &metrics)?;
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

    /// Waits until the model is loaded and returns the device's name; none, if it could not be, or the server is
    /// stopped before.
    pub fn loaded(&self) -> Option<String> {
        let mut status = self.app.engine.watch();
        let mut stop = self.stop.subscribe();
        self.runtime.block_on(async {
            let status = tokio::select! {
                status = status.wait_for(|status| *status != Status::Loading) => status,
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

    /// Waits until the server has stopped: because it was asked to, or because its device is lost for good.
    ///
    /// # Errors
    /// When the model cannot be loaded, the device is lost and cannot be opened again, or a second signal came before
    /// every request was answered.
    pub fn wait(self) -> Result<()> {
        let Self { app, runtime, engines, http, stop, .. } = self;
        let ended = runtime.block_on(drain(&app, http, &stop));
        // A thread that has panicked meanwhile says nothing more, but has hung up.
        let loading = app.engine.status() == Status::Loading && app.engine.watch().has_changed().is_ok();
        app.engine.stop();
        // A model that is being loaded cannot be interrupted, and nobody waits for it.
        let mut engines = if ended.is_ok() && !loading { engines } else { vec![] };
        let ends = engines.drain(..).map(|engine| {
            engine.join().unwrap_or_else(|_| Err(anyhow!("the engine panicked; the log says more")))
        });
        let (well, failed): (Vec<_>, Vec<_>) = ends.partition(Result::is_ok);
        runtime.shutdown_background();
        // While one is left, the server serves.
        let engine = if well.is_empty() { failed.into_iter().next().unwrap_or(Ok(())) } else { Ok(()) };
        ended.and(engine)
    }
}

/// Waits for the end and sees to it that everybody hears the last of it.
async fn drain(app: &App, mut http: tokio::task::JoinHandle<()>, stop: &watch::Sender<Stop>) -> Result<()> {
    let mut stopped = stop.subscribe();
    let mut status = app.engine.watch();
    let over = |status: &Status| matches!(status, Status::Failed(_));
    // Waiting ends with an error when the thread is gone, which is the end as well.
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

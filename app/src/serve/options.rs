//! How a server behaves: the limits it keeps, and whom it lets in.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use tread_core::model::Model;

use crate::afd::HOLD;
use crate::attention::{AttentionWorkers, Limits};
use crate::cli::ServeArgs;

/// The port it listens on unless told otherwise.
const DEFAULT_PORT: u16 = 8000;

/// How a server behaves. [`ServerOptions::new`] has the defaults of the command line.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where it listens; port 0 takes a free one.
    pub address: SocketAddr,
    /// Names under which clients may ask for the model; the first is reported.
    pub model_names: Vec<String>,
    /// Keys of which clients must send one; none: everybody may.
    pub api_keys: Vec<String>,
    /// Origins whose web pages may call the server; `*` is every one.
    pub cors_origins: Vec<String>,
    /// What each engine may hold.
    pub limits: Limits,
    /// Engines that are processes of their own, beside those on devices of this one.
    pub attention: Option<AttentionWorkers>,
    /// How long a request waits for an attention worker when none is there.
    pub hold: Duration,
    /// Most sequences that wait beside those that run.
    pub max_queue: usize,
    /// Most bytes of a request.
    pub max_body_bytes: usize,
    /// How long a client may keep the server waiting: for a request's head, for its body, and to take the next part of an
    /// answer.
    pub client_timeout: Duration,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// How long running and waiting requests have to finish once the server is asked to stop.
    pub drain_timeout: Duration,
}

impl ServerOptions {
    /// The defaults for a model.
    pub fn new(model: &Model) -> Self {
        Self {
            address: (IpAddr::from(Ipv4Addr::LOCALHOST), DEFAULT_PORT).into(),
            model_names: vec![default_name(&model.name)],
            api_keys: vec![],
            cors_origins: vec![],
            limits: Limits::new(model),
            attention: None,
            hold: HOLD,
            max_queue: 256,
            max_body_bytes: 8 << 20,
            client_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(600),
            drain_timeout: Duration::from_secs(60),
        }
    }

    /// What the command line asks for.
    pub(super) fn from_args(model: &Model, args: &ServeArgs) -> Result<Self> {
        let mut options = Self {
            address: (args.host, args.port.unwrap_or_else(|| default_port(args))).into(),
            api_keys: args.api_key.iter().filter(|key| !key.is_empty()).cloned().collect(),
            cors_origins: args.cors_origin.clone(),
            limits: Limits::from_args(model, &args.engine)?,
            hold: args.engine.device.afd.worker_hold,
            max_queue: args.max_queue as usize,
            max_body_bytes: usize::try_from(args.max_body_bytes)?,
            client_timeout: args.client_timeout,
            request_timeout: args.request_timeout,
            drain_timeout: args.drain_timeout,
            ..Self::new(model)
        };
        if !args.served_model_name.is_empty() {
            options.model_names.clone_from(&args.served_model_name);
        }
        Ok(options)
    }
}

/// A path is nobody's business; its last part names the model well enough.
fn default_name(name: &str) -> String {
    let path = Path::new(name);
    if !path.exists() {
        return name.to_owned();
    }
    let last = path.file_name().map_or_else(|| name.to_owned(), |last| last.to_string_lossy().into_owned());
    last.strip_suffix(".gguf").map_or(last.clone(), str::to_owned)
}

/// The usual port. One who opens the page does not type its address, so for them a free one does where that is taken.
fn default_port(args: &ServeArgs) -> u16 {
    let taken =
        || TcpListener::bind((args.host, DEFAULT_PORT)).is_err_and(|e| e.kind() == ErrorKind::AddrInUse);
    if args.open && taken() { 0 } else { DEFAULT_PORT }
}

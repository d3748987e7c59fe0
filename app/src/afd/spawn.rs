//! Workers on this machine: processes that are started, started again when they end, and ended with this one.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use tokio::sync::watch;
use tread_shaders::Selector;

use super::{Members, Place};
use crate::cli::{AfdArgs, BackendChoice, EngineArgs, PoolSizes};

/// Pause before a worker that has ended is started again.
const PAUSE: Duration = Duration::from_millis(500);

/// Both pools of a server. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Pools {
    // The first to end, as it needs the other one.
    attention: Workers,
    _ffn: Workers,
}

impl Pools {
    /// Starts both, for a model and engines of this kind; returns when all workers listen.
    ///
    /// # Errors
    /// When one of them ends before that (its own message is on standard error), or there would be shards without a worker.
    pub(crate) fn start(model: Option<&str>, engine: &EngineArgs, sizes: PoolSizes) -> Result<Self> {
        let device = (engine.device.backend, engine.device.adapter.as_ref());
        let afd = &engine.device.afd;
        let ffn = Workers::ffn(model, device, afd, (sizes.ffn, engine.step_tokens as usize))?;
        let own = [common_arguments(model, device, afd), engine_arguments(engine)].concat();
        let attention = Workers::start("attention", vec![own; sizes.attention], Some(ffn.places()))?;
        Ok(Self { attention, _ffn: ffn })
    }

    /// The attention workers that listen, now and later.
    pub(crate) fn attention(&self) -> Members {
        self.attention.members()
    }
}

/// What computes.
type Device<'a> = (BackendChoice, Option<&'a Selector>);

/// What workers of both kinds are told.
fn common_arguments(model: Option<&str>, (backend, adapter): Device<'_>, afd: &AfdArgs) -> Vec<String> {
    let mut arguments: Vec<String> = model.iter().map(|&model| model.to_owned()).collect();
    for (flag, value) in [
        ("--sharding", name(&afd.sharding)),
        ("--afd-dtype", name(&afd.afd_dtype)),
        ("--backend", name(&backend)),
    ] {
        arguments.extend([flag.to_owned(), value]);
    }
    arguments.extend(adapter.iter().flat_map(|adapter| ["--adapter".to_owned(), adapter.to_string()]));
    arguments
}

/// What makes an attention worker an engine of this kind, with the FFN workers that its standard input lists.
fn engine_arguments(engine: &EngineArgs) -> Vec<String> {
    let device = &engine.device;
    let flags = [
        ("--ffn", Some("@-".to_owned())),
        ("--kv", Some(name(&device.kv))),
        ("--context", device.context.map(|tokens| tokens.to_string())),
        ("--micro-batches", Some(device.afd.micro_batches.to_string())),
        ("--worker-hold", Some(device.afd.worker_hold.as_secs_f64().to_string())),
        ("--max-sequences", Some(engine.max_sequences.to_string())),
        ("--step-tokens", Some(engine.step_tokens.to_string())),
        ("--kv-tokens", engine.kv_tokens.map(|tokens| tokens.to_string())),
    ];
    let given = flags.into_iter().filter_map(|(flag, value)| Some([flag.to_owned(), value?])).flatten();
    given.chain(engine.no_prefix_cache.then(|| "--no-prefix-cache".to_owned())).collect()
}

/// Workers of one kind. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Workers {
    state: Arc<Mutex<State>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    /// `ffn` or `attention`.
    kind: &'static str,
    /// Where each listens; none: it does not, yet.
    addresses: Vec<Option<String>>,
    /// Those that do.
    places: watch::Sender<Vec<Place>>,
    /// A worker ends when its standard input does, so it ends with this process, however that ends.
    inputs: Vec<Option<ChildStdin>>,
    /// What each hears on it: where the workers are that it needs.
    line: String,
    stop: bool,
}

impl State {
    /// A worker listens there, or no longer.
    fn set(&mut self, index: usize, address: Option<String>) {
        self.addresses[index] = address;
        self.places.send_replace(self.addresses.iter().flatten().cloned().map(Place::Address).collect());
    }

    /// The workers that these need are there now.
    fn need(&mut self, places: &[Place]) {
        let places: Vec<_> = places.iter().map(ToString::to_string).collect();
        self.line = format!("{}\n", places.join(","));
        for input in self.inputs.iter_mut().flatten() {
            // One that has ended is started again, and told then.
            let _ = input.write_all(self.line.as_bytes());
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Workers {
    /// Starts `tread worker KIND` for each list of arguments; returns when all of them listen. They are told where those
    /// are whom they need.
    ///
    /// # Errors
    /// When one of them ends before that: its own message is on standard error.
    fn start(
        kind: &'static str,
        arguments: Vec<Vec<String>>,
        needed: Option<watch::Receiver<Vec<Place>>>,
    ) -> Result<Self> {
        let binary = std::env::current_exe().context("finding this program")?;
        let count = arguments.len();
        let inputs = std::iter::repeat_with(|| None).take(count).collect();
        let (addresses, places) = (vec![None; count], watch::Sender::default());
        let state = State { kind, addresses, places, inputs, line: String::new(), stop: false };
        let mut workers = Self { state: Arc::new(Mutex::new(state)), threads: vec![] };
        if let Some(mut needed) = needed {
            lock(&workers.state).need(&needed.borrow_and_update());
            let state = Arc::clone(&workers.state);
            // It ends with those who are needed, who end later.
            Builder::new().name("places".to_owned()).spawn(move || {
                while pollster::block_on(needed.changed()).is_ok() {
                    lock(&state).need(&needed.borrow_and_update());
                }
            })?;
        }
        // Begun one after the other, so that one that cannot be started is told of once.
        for (index, arguments) in arguments.into_iter().enumerate() {
            let first = listen(&workers.state, &binary, index, &arguments)?;
            let (state, binary) = (Arc::clone(&workers.state), binary.clone());
            let keep = move || keep(&state, &binary, index, &arguments, first);
            workers.threads.push(Builder::new().name(format!("{kind} worker {index}")).spawn(keep)?);
        }
        Ok(workers)
    }

    /// Starts so many FFN workers of a model's shards (as many, unless told otherwise) for calls of so many rows.
    ///
    /// # Errors
    /// As [`Workers::start`]; when there would be shards without a worker.
    pub(crate) fn ffn(
        model: Option<&str>,
        device: Device<'_>,
        afd: &AfdArgs,
        (count, max_rows): (usize, usize),
    ) -> Result<Self> {
        let shards = afd.shards.map_or(count, |shards| shards as usize);
        ensure!(shards <= count, "--shards {shards} is more than the {count} FFN workers");
        let common = common_arguments(model, device, afd);
        let worker = |index: usize| -> Vec<String> {
            let (shard, rows) = (format!("{}/{shards}", index % shards), max_rows.to_string());
            let own = ["--shard".to_owned(), shard, "--max-rows".to_owned(), rows];
            let transport = ["--transport".to_owned(), name(&afd.afd_transport)];
            common.iter().cloned().chain(own).chain(transport).collect()
        };
        Self::start("ffn", (0..count).map(worker).collect(), None)
    }

    /// Those that listen, now and later.
    pub(crate) fn members(&self) -> Members {
        Members::Started(self.places())
    }

    fn places(&self) -> watch::Receiver<Vec<Place>> {
        lock(&self.state).places.subscribe()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.stop = true;
        state.inputs.fill_with(|| None);
        drop(state);
        for thread in self.threads.drain(..) {
            // A thread that has panicked has nothing left to end.
            let _ = thread.join();
        }
    }
}

/// A choice as the command line has it.
fn name(choice: &impl ValueEnum) -> String {
    choice.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Waits for a worker's end, again and again.
fn keep(state: &Mutex<State>, binary: &Path, index: usize, arguments: &[String], first: Child) {
    let (kind, mut child) = (lock(state).kind, Some(first));
    while !lock(state).stop {
        match child.take().map(|mut child| child.wait()) {
            _ if lock(state).stop => return,
            Some(Ok(status)) => {
                tracing::warn!(kind, worker = index, %status, "a worker has ended and is started again")
            }
            Some(Err(error)) => {
                tracing::warn!(kind, worker = index, %error, "a worker is not to be waited for")
            }
            None => {}
        }
        lock(state).set(index, None);
        std::thread::sleep(PAUSE);
        let started = listen(state, binary, index, arguments);
        child = started
            .inspect_err(|error| tracing::error!(kind, worker = index, error = format!("{error:#}")))
            .ok();
    }
}

/// Starts a worker and waits until it listens.
fn listen(state: &Mutex<State>, binary: &Path, index: usize, arguments: &[String]) -> Result<Child> {
    let kind = lock(state).kind;
    let mut command = Command::new(binary);
    command.args(["worker", kind, "--while-stdin"]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    // Ctrl-C is for this process, which still needs its workers to finish what it has.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn().with_context(|| format!("starting an {kind} worker"))?;
    if let Some(mut input) = child.stdin.take() {
        let mut state = lock(state);
        // One that has ended already says nothing more, which is seen below.
        let _ = input.write_all(state.line.as_bytes());
        // When all are to stop, it is closed with all others.
        state.inputs[index] = Some(input).filter(|_| !state.stop);
    }
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut line).context("reading what a worker says")?;
    }
    let Some((_, address)) = line.trim().rsplit_once("://") else {
        let _ = child.kill();
        let status = child.wait().context("waiting for a worker")?;
        bail!("{kind} worker {index} has ended before it listened ({status}); its own message stands above");
    };
    tracing::info!(kind, worker = index, pid = child.id(), address, "a worker listens");
    lock(state).set(index, Some(address.to_owned()));
    Ok(child)
}

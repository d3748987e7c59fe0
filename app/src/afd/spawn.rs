//! FFN workers on this machine: processes that are started, started again when they end, and ended with this one.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use tokio::sync::watch;
use tread_shaders::Selector;

use super::{Members, Place};
use crate::cli::{AfdArgs, BackendChoice};

/// Pause before a worker that has ended is started again.
const PAUSE: Duration = Duration::from_millis(500);

/// The workers. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Workers {
    state: Arc<Mutex<State>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    /// Where each listens; none: it does not, yet.
    addresses: Vec<Option<String>>,
    /// Those that do.
    places: watch::Sender<Vec<Place>>,
    /// A worker ends when its standard input does, so it ends with this process, however that ends.
    inputs: Vec<Option<ChildStdin>>,
    stop: bool,
}

impl State {
    /// A worker listens there, or no longer.
    fn set(&mut self, index: usize, address: Option<String>) {
        self.addresses[index] = address;
        self.places.send_replace(self.addresses.iter().flatten().cloned().map(Place::Address).collect());
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Workers {
    /// Starts `tread worker ffn` for each list of arguments; returns when all of them listen.
    ///
    /// # Errors
    /// When one of them ends before that: its own message is on standard error.
    fn start(arguments: Vec<Vec<String>>) -> Result<Self> {
        let binary = std::env::current_exe().context("finding this program")?;
        let count = arguments.len();
        let inputs = std::iter::repeat_with(|| None).take(count).collect();
        let state =
            State { addresses: vec![None; count], places: watch::Sender::default(), inputs, stop: false };
        let mut workers = Self { state: Arc::new(Mutex::new(state)), threads: vec![] };
        // Begun one after the other, so that one that cannot be started is told of once.
        for (index, arguments) in arguments.into_iter().enumerate() {
            let first = listen(&workers.state, &binary, index, &arguments)?;
            let (state, binary) = (Arc::clone(&workers.state), binary.clone());
            let keep = move || keep(&state, &binary, index, &arguments, first);
            workers
                .threads
                .push(std::thread::Builder::new().name(format!("ffn worker {index}")).spawn(keep)?);
        }
        Ok(workers)
    }

    /// Starts so many workers of a model's shards (as many, unless told otherwise) for calls of so many rows.
    ///
    /// # Errors
    /// As [`Workers::start`]; when there would be shards without a worker.
    pub(crate) fn of_model(
        model: Option<&str>,
        (backend, adapter): (BackendChoice, Option<&Selector>),
        afd: &AfdArgs,
        (count, max_rows): (usize, usize),
    ) -> Result<Self> {
        let shards = afd.shards.map_or(count, |shards| shards as usize);
        ensure!(shards <= count, "--shards {shards} is more than the {count} FFN workers");
        let common = [
            ("--sharding", name(&afd.sharding)),
            ("--afd-dtype", name(&afd.afd_dtype)),
            ("--transport", name(&afd.afd_transport)),
            ("--backend", name(&backend)),
            ("--max-rows", max_rows.to_string()),
        ];
        let worker = |index: usize| {
            let mut arguments: Vec<String> = model.iter().map(|&model| model.to_owned()).collect();
            arguments.extend(["--shard".to_owned(), format!("{}/{shards}", index % shards)]);
            arguments.extend(common.iter().flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()]));
            arguments.extend(adapter.iter().flat_map(|a| ["--adapter".to_owned(), a.to_string()]));
            arguments
        };
        Self::start((0..count).map(worker).collect())
    }

    /// Those that listen, now and later.
    pub(crate) fn members(&self) -> Members {
        Members::Started(lock(&self.state).places.subscribe())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.stop = true;
        state.inputs.clear();
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
    let mut child = Some(first);
    while !lock(state).stop {
        match child.take().map(|mut child| child.wait()) {
            _ if lock(state).stop => return,
            Some(Ok(status)) => {
                tracing::warn!(worker = index, %status, "an FFN worker has ended and is started again")
            }
            Some(Err(error)) => {
                tracing::warn!(worker = index, %error, "an FFN worker is not to be waited for")
            }
            None => {}
        }
        lock(state).set(index, None);
        std::thread::sleep(PAUSE);
        let started = listen(state, binary, index, arguments);
        child =
            started.inspect_err(|error| tracing::error!(worker = index, error = format!("{error:#}"))).ok();
    }
}

/// Starts a worker and waits until it listens.
fn listen(state: &Mutex<State>, binary: &Path, index: usize, arguments: &[String]) -> Result<Child> {
    let mut command = Command::new(binary);
    command.args(["worker", "ffn", "--while-stdin"]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    // Ctrl-C is for this process, which still needs its workers to finish what it has.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn().context("starting an FFN worker")?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut line).context("reading what an FFN worker says")?;
    }
    let Some((_, address)) = line.trim().rsplit_once("://") else {
        let _ = child.kill();
        let status = child.wait().context("waiting for an FFN worker")?;
        bail!("FFN worker {index} has ended before it listened ({status}); its own message stands above");
    };
    tracing::info!(worker = index, pid = child.id(), address, "an FFN worker listens");
    let mut state = lock(state);
    state.set(index, Some(address.to_owned()));
    if state.stop {
        // Its input was closed with all others.
        drop(child.stdin.take());
    } else {
        state.inputs[index] = child.stdin.take();
    }
    Ok(child)
}

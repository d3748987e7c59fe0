//! The FFN pool over a network: calls survive the workers that they were sent to.
//!
//! `recovery` decides, `driver` does, on a thread of its own; the pipeline talks to it by channels.

mod driver;
mod links;
mod members;
mod recovery;

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tread_core::Error;
use tread_core::afd::{Answer, Call, Ffn, Layout, PoolStats};
use tread_core::backend::LocalFuture;

use super::hello::{Hello, Welcome};
use super::place::Place;
use super::transport::{ConnectError, Transport};
use driver::{Driver, Reply};
use links::Links;
pub(crate) use links::{pause, random};
pub use members::{Listed, Membership, Static};
use recovery::{Patience, Recovery};

/// Pause before members are asked again who they are.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// FFN workers behind a transport.
#[derive(Debug)]
pub struct Pool {
    posts: Option<UnboundedSender<Call>>,
    replies: UnboundedReceiver<Reply>,
    /// The step of the last call: what is heard of others is old.
    step: u64,
    workers: Arc<Workers>,
    max_rows: usize,
    thread: Option<JoinHandle<()>>,
}

/// Who is in the pool, for those outside its thread.
#[derive(Debug)]
struct Workers {
    slots: usize,
    now: Mutex<Pooled>,
}

#[derive(Clone, Debug, Default)]
struct Pooled {
    count: usize,
    weight_bytes: u64,
    missing: Vec<String>,
    why: String,
    stats: PoolStats,
}

impl Workers {
    fn set(&self, now: Pooled) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    fn get(&self) -> Pooled {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The thread's runtime: one thread is enough for what is mostly waiting.
pub(super) fn runtime() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("starting the FFN pool's runtime")
}

/// What the first of the members to answer says of itself: how many shards there are, and how FFNs are spread.
///
/// # Errors
/// When none answers for so long.
pub fn ask(members: &dyn Membership, transport: &dyn Transport, hold: Duration) -> Result<Welcome> {
    // On a thread of its own, as the caller's may have a runtime already.
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| runtime()?.block_on(ask_all(members, transport, hold)));
        asked.join().unwrap_or_else(|_| bail!("asking the FFN workers panicked"))
    })
}

async fn ask_all(members: &dyn Membership, transport: &dyn Transport, hold: Duration) -> Result<Welcome> {
    let end = Instant::now() + hold;
    let watched = members.watch()?;
    loop {
        let places: Vec<Place> = watched.borrow().clone();
        let mut why = match members.why() {
            unknown if unknown.is_empty() => "no member is known".to_owned(),
            known => known,
        };
        for place in &places {
            match transport.ask(place).await {
                Ok(welcome) => return Ok(welcome),
                Err(error @ ConnectError::Refused { .. }) => return Err(error.into()),
                Err(error) => why = error.to_string(),
            }
        }
        if Instant::now() >= end {
            bail!("no FFN worker answered in {} seconds: {why}", hold.as_secs_f64());
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

impl Pool {
    /// Connects to the members and waits until every shard has a worker. A call without one is held so long.
    ///
    /// # Errors
    /// When a member does not fit what `hello` says, or a shard has no worker in the time that calls are held.
    pub fn start(
        layout: Arc<Layout>,
        hello: Hello,
        members: Arc<dyn Membership>,
        transport: Arc<dyn Transport>,
        hold: Duration,
    ) -> Result<Self> {
        let workers = Arc::new(Workers { slots: hello.slots, now: Mutex::default() });
        let (posts, posted) = unbounded_channel();
        let (replying, replies) = unbounded_channel();
        let (ready, is_ready) = mpsc::channel();
        let runtime = runtime()?;
        let max_rows = hello.max_rows;
        let shared = Arc::clone(&workers);
        let membership = Arc::clone(&members);
        let body = move || {
            runtime.block_on(async {
                let (events_in, events) = unbounded_channel();
                let members = match members.watch() {
                    Ok(members) => members,
                    Err(error) => return drop(ready.send(Err(format!("{error:#}")))),
                };
                let shards = layout.shards.len();
                let driver = Driver {
                    layout,
                    recovery: Recovery::new(shards, Patience::holding(hold)),
                    links: Links::new(transport, hello, events_in),
                    members,
                    posts: posted,
                    events,
                    replies: replying,
                    workers: shared,
                    ready: Some(ready),
                    start: Instant::now(),
                    ways: HashMap::new(),
                    calls: BTreeMap::new(),
                    failures: BTreeMap::new(),
                };
                driver.run().await;
            });
        };
        let thread = std::thread::Builder::new().name("ffn pool".to_owned()).spawn(body)?;
        let pool = Self { posts: Some(posts), replies, step: 0, workers, max_rows, thread: Some(thread) };
        pool.wait(&is_ready, hold, &*membership)?;
        Ok(pool)
    }

    fn wait(
        &self,
        ready: &mpsc::Receiver<Result<(), String>>,
        hold: Duration,
        members: &dyn Membership,
    ) -> Result<()> {
        match ready.recv_timeout(hold) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => bail!("{why}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the FFN pool's thread has ended"),
            Err(RecvTimeoutError::Timeout) => {
                let Pooled { missing, why, .. } = self.workers.get();
                let whys: Vec<_> = [why, members.why()].into_iter().filter(|why| !why.is_empty()).collect();
                bail!(
                    "no FFN worker for {} in {} seconds{}{}",
                    missing.join(" and "),
                    hold.as_secs_f64(),
                    if whys.is_empty() { "" } else { ": " },
                    whys.join("; ")
                )
            }
        }
    }

    async fn next(&mut self) -> tread_core::Result<Answer> {
        loop {
            match self.replies.recv().await {
                // Whoever asked for it has given it up.
                Some((step, _)) if step < self.step => {}
                Some((_, reply)) => return reply,
                None => return Err(Error::Device("the FFN pool's thread has ended".to_owned())),
            }
        }
    }
}

impl Ffn for Pool {
    fn post(&mut self, call: Call) -> tread_core::Result<()> {
        if call.rows > self.max_rows {
            let message = format!("a call of {} rows to FFN workers that take {}", call.rows, self.max_rows);
            return Err(Error::Capacity(message));
        }
        self.step = call.step;
        let gone = || Error::Device("the FFN pool's thread has ended".to_owned());
        self.posts.as_ref().ok_or_else(gone)?.send(call).map_err(|_| gone())
    }

    fn answer(&mut self) -> LocalFuture<'_, tread_core::Result<Answer>> {
        Box::pin(self.next())
    }

    fn describe(&self) -> (String, u64) {
        let Pooled { count, weight_bytes, missing, .. } = self.workers.get();
        let lacking =
            if missing.is_empty() { String::new() } else { format!(", none for {}", missing.join(" and ")) };
        (format!("{count} FFN workers{lacking}"), weight_bytes)
    }

    fn stats(&self) -> PoolStats {
        self.workers.get().stats
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Its end is the end of the thread, and of all connections.
        self.posts = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

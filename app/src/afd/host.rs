//! An FFN worker as whatever carries its frames sees it: a thread with a shard on a device. It serves all who attach, each
//! as its calls come; calls that wait together and are of the same layer are computed together.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, WeakUnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tread_core::Error;
use tread_core::afd::frame::{self, Header, Kind};
use tread_core::afd::{Call, Layout, Worker};
use tread_core::backend::Backend;
use tread_core::tensor::Tensor;

use super::hello::{Hello, Terms, Welcome};
use super::life::Life;

/// What a worker is made of.
pub struct Setup {
    /// What it agrees to.
    pub terms: Terms,
    /// What all workers hold.
    pub layout: Arc<Layout>,
    /// Which part of it this one holds.
    pub shard: usize,
    /// The whole graph's weights, of which only the shard's are read.
    pub weights: Vec<Tensor>,
    /// Most rows of a call, and of calls computed together.
    pub max_rows: usize,
    /// Most calls at a time of each that attaches.
    pub slots: usize,
    /// Opens the device, on the worker's own thread.
    pub open: Box<dyn FnOnce() -> Result<Box<dyn Backend>> + Send>,
    /// Hears weight bytes done and in all.
    pub progress: Box<dyn FnMut(u64, u64) + Send>,
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup")
            .field("terms", &self.terms)
            .field("shard", &self.shard)
            .finish_non_exhaustive()
    }
}

/// A worker that runs; a clone is the same one. It ends when all are dropped and all have detached.
#[derive(Clone, Debug)]
pub struct Host {
    jobs: mpsc::Sender<Job>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// As it was in its first life.
    welcome: Welcome,
    life: Life,
    layout: Arc<Layout>,
    /// All who attached.
    peers: Mutex<Peers>,
    attached: watch::Sender<usize>,
    /// Why the thread has ended.
    ended: watch::Sender<Option<String>>,
}

#[derive(Debug, Default)]
struct Peers {
    replies: Vec<UnboundedSender<Bytes>>,
    /// No new calls are taken.
    draining: bool,
    gone: bool,
}

#[derive(Debug)]
struct Job {
    frame: Bytes,
    reply: UnboundedSender<Bytes>,
    _permit: OwnedSemaphorePermit,
}

/// One who attached: what it asks goes in here.
#[derive(Debug)]
pub struct Peer {
    host: Host,
    /// The thread has the strong one: where it ends, so do the replies.
    reply: WeakUnboundedSender<Bytes>,
    slots: Arc<Semaphore>,
}

/// A call that is understood.
struct Ready {
    header: Header,
    call: Call,
    job: Job,
}

impl Host {
    /// Opens the device, loads the shard and waits until it can be asked.
    ///
    /// # Errors
    /// When the device cannot be opened or does not take the shard.
    pub fn start(setup: Setup) -> Result<Self> {
        let (jobs, receiver) = mpsc::channel();
        let (loaded, host) = mpsc::channel();
        let sender = jobs.clone();
        drop(jobs);
        let body = move || {
            let (mut worker, shared) = match load(setup) {
                Ok(loaded) => loaded,
                Err(error) => return drop(loaded.send(Err(error))),
            };
            let host = Self { jobs: sender, shared: Arc::clone(&shared) };
            // From here on only hosts keep the thread alive.
            if loaded.send(Ok(host)).is_err() {
                return;
            }
            drop(loaded);
            let result = serve(&mut worker, &receiver, &shared);
            let why = result.map_or_else(|error| error.to_string(), |()| "stopped".to_owned());
            let mut peers = shared.peers();
            peers.gone = true;
            peers.replies.clear();
            shared.ended.send_replace(Some(why));
        };
        thread::Builder::new().name("ffn".to_owned()).spawn(body).context("starting the worker's thread")?;
        host.recv().map_err(|_| anyhow!("the worker's thread panicked while it loaded"))?
    }

    /// What it says of itself.
    pub fn welcome(&self) -> Welcome {
        Welcome { incarnation: self.shared.life.incarnation(), ..self.shared.welcome.clone() }
    }

    /// What all workers hold.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.shared.layout
    }

    /// Bytes of the largest frame either way for calls of so many rows.
    pub fn most_bytes(&self, max_rows: usize) -> usize {
        frame::most_bytes(&self.shared.layout, self.shared.welcome.shard, max_rows)
    }

    /// Says who it is to one who says what it wants.
    ///
    /// # Errors
    /// Why the two do not fit.
    pub fn meet(&self, hello: &Hello) -> Result<Welcome, String> {
        let welcome = self.welcome();
        hello.check(&welcome).map(|()| welcome)
    }

    /// Lets somebody ask, so many calls at a time; what is said to it comes from the receiver, which ends with the worker.
    pub fn attach(&self, slots: usize) -> (Peer, UnboundedReceiver<Bytes>) {
        let (reply, replies) = unbounded_channel();
        let mut peers = self.shared.peers();
        if peers.draining {
            let _ = reply.send(self.bare(Kind::Draining));
        }
        if !peers.gone {
            peers.replies.retain(|reply| !reply.is_closed());
            peers.replies.push(reply.clone());
        }
        drop(peers);
        self.shared.attached.send_modify(|count| *count += 1);
        let slots = Arc::new(Semaphore::new(slots.clamp(1, self.shared.welcome.slots)));
        (Peer { host: self.clone(), reply: reply.downgrade(), slots }, replies)
    }

    /// Takes no new calls: tells all who are attached, who then detach.
    pub fn drain(&self) {
        let mut peers = self.shared.peers();
        if !std::mem::replace(&mut peers.draining, true) {
            peers.replies.retain(|reply| reply.send(self.bare(Kind::Draining)).is_ok());
        }
    }

    /// Whether it takes no new calls.
    pub fn is_draining(&self) -> bool {
        self.shared.peers().draining
    }

    /// Says nothing from then on, unless it is told a later time, or none, or begins another life. What it would have said
    /// is held for so long.
    pub fn answer_until(&self, until: Option<Instant>) {
        self.shared.life.answer_until(until);
    }

    /// Ends this life and begins another: all who are attached are let go, with what they have asked, and may meet it anew.
    /// It says nothing until [`Host::answer_until`] lets it.
    pub fn begin_anew(&self) {
        let mut peers = self.shared.peers();
        self.shared.life.begin_anew();
        peers.replies.clear();
    }

    /// Waits until nobody is attached.
    pub async fn deserted(&self) {
        // The sender is in `self`, so this cannot fail.
        let _ = self.shared.attached.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Waits until it has ended, and says why.
    pub async fn ended(&self) -> String {
        let mut ended = self.shared.ended.subscribe();
        let why = ended.wait_for(Option::is_some).await;
        why.ok().and_then(|why| why.clone()).unwrap_or_default()
    }

    fn bare(&self, kind: Kind) -> Bytes {
        frame::bare(Header::bare(kind, self.shared.life.incarnation())).unwrap_or_default().into()
    }
}

impl Peer {
    /// Hands a frame in. Waits while as many calls as were agreed on are under way.
    pub async fn post(&self, frame: Bytes) {
        let Ok(permit) = Arc::clone(&self.slots).acquire_owned().await else { return };
        // Without the thread there will be no replies, which says enough.
        if let Some(reply) = self.reply.upgrade() {
            let _ = self.host.jobs.send(Job { frame, reply, _permit: permit });
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.host.shared.attached.send_modify(|count| *count -= 1);
    }
}

impl Shared {
    fn peers(&self) -> std::sync::MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn load(setup: Setup) -> Result<(Worker, Arc<Shared>)> {
    let Setup { terms, layout, shard, weights, max_rows, slots, open, mut progress } = setup;
    let backend = open()?;
    let worker = Worker::new(Arc::clone(&layout), shard, &weights, &*backend, max_rows, &mut progress);
    let worker = pollster::block_on(worker)?;
    let life = Life::begin();
    let welcome = Welcome {
        terms,
        shard,
        max_rows,
        slots,
        incarnation: life.incarnation(),
        device: format!("{}, {}", backend.name(), backend.device()),
        weight_bytes: worker.executable().stats().weight_bytes,
    };
    let (attached, ended) = (watch::Sender::new(0), watch::Sender::new(None));
    Ok((worker, Arc::new(Shared { welcome, life, layout, peers: Mutex::default(), attached, ended })))
}

/// Computes until nobody is left who could ask, or the device fails.
fn serve(worker: &mut Worker, jobs: &mpsc::Receiver<Job>, shared: &Shared) -> tread_core::Result<()> {
    let mut queue = VecDeque::new();
    loop {
        if queue.is_empty() {
            let Ok(job) = jobs.recv() else { return Ok(()) };
            queue.extend(understand(job, shared));
        }
        queue.extend(jobs.try_iter().filter_map(|job| understand(job, shared)));
        let group = together(&mut queue, shared.welcome.max_rows);
        let (headers, calls): (Vec<_>, Vec<_>) =
            group.into_iter().map(|r| ((r.header, r.job), r.call)).unzip();
        match pollster::block_on(worker.compute(&calls)) {
            Ok((outputs, us)) => {
                let incarnation = shared.life.may_answer();
                for (((header, job), call), outputs) in headers.into_iter().zip(&calls).zip(&outputs) {
                    // Asked in an earlier life, so nobody waits for it.
                    if header.incarnation != incarnation {
                        continue;
                    }
                    let header = Header { kind: Kind::Answer, ffn_us: us, ..header };
                    let made = frame::answer(&shared.layout, shared.welcome.shard, header, call, outputs);
                    match made {
                        Ok(frame) => drop(job.reply.send(frame.into())),
                        Err(error) => refuse(&job, header, &error),
                    }
                }
            }
            // Whoever asked hears of it by the end of the connection, and asks somebody else.
            Err(error @ Error::Device(_)) => return Err(error),
            Err(error) => headers.iter().for_each(|(header, job)| refuse(job, *header, &error)),
        }
    }
}

/// What is asked, or a refusal.
fn understand(job: Job, shared: &Shared) -> Option<Ready> {
    let Welcome { shard, max_rows, .. } = shared.welcome;
    let incarnation = shared.life.incarnation();
    let parsed = Header::read(&job.frame).and_then(|(header, payload)| {
        if header.kind != Kind::Call || header.incarnation != incarnation {
            // Whoever means an earlier life must meet this one first: the end of the connection says so.
            shared.peers().replies.retain(|reply| !reply.same_channel(&job.reply));
            return Err(Error::format("a frame", "it is no call to this worker in this life"));
        }
        Ok((header, frame::read_call(&shared.layout, shard, &header, payload, max_rows)))
    });
    match parsed {
        Ok((header, Ok(call))) => return Some(Ready { header, call, job }),
        Ok((header, Err(error))) => refuse(&job, header, &error),
        Err(error) => refuse(&job, Header::bare(Kind::Refusal, incarnation), &error),
    }
    None
}

fn refuse(job: &Job, header: Header, error: &Error) {
    tracing::warn!(%error, layer = header.layer, rows = header.rows, "a call is refused");
    if let Ok(frame) = frame::refusal(header, &error.to_string()) {
        let _ = job.reply.send(frame.into());
    }
}

/// The call that has waited longest, with others of its layer, up to so many rows.
fn together(queue: &mut VecDeque<Ready>, max_rows: usize) -> Vec<Ready> {
    let mut group: Vec<Ready> = queue.pop_front().into_iter().collect();
    let Some(layer) = group.first().map(|first| first.call.layer) else { return group };
    let mut rows: usize = group.iter().map(|ready| ready.call.rows).sum();
    let mut at = 0;
    while let Some(next) = queue.get(at) {
        if next.call.layer == layer && rows + next.call.rows <= max_rows {
            rows += next.call.rows;
            group.extend(queue.remove(at));
        } else {
            at += 1;
        }
    }
    group
}

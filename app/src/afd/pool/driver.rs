//! The pool's own task: carries out what [`Recovery`] decides, with real connections and a real clock.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;
use tread_core::Error;
use tread_core::Result as CoreResult;
use tread_core::afd::frame::{self, Header, Kind};
use tread_core::afd::{Answer, Call, Layout};

use super::links::{LinkEvent, Links, Way};
use super::recovery::{Action, CallKey, LinkId, Recovery, Verdict};
use super::{Pooled, Workers};
use crate::afd::hello::Welcome;
use crate::afd::place::Place;
use crate::afd::transport::ConnectError;

/// What the pipeline hears, and of which step.
pub(super) type Reply = (u64, CoreResult<Answer>);

pub(super) struct Driver {
    pub(super) layout: Arc<Layout>,
    pub(super) recovery: Recovery,
    pub(super) links: Links,
    pub(super) members: watch::Receiver<Vec<Place>>,
    pub(super) posts: UnboundedReceiver<Call>,
    pub(super) events: UnboundedReceiver<LinkEvent>,
    pub(super) replies: UnboundedSender<Reply>,
    pub(super) workers: Arc<Workers>,
    /// Told once, when every shard has a worker or one does not fit.
    pub(super) ready: Option<mpsc::Sender<Result<(), String>>>,
    pub(super) start: Instant,
    pub(super) ways: HashMap<LinkId, (Welcome, Way)>,
    /// Calls without an answer, with what there is of it.
    pub(super) calls: BTreeMap<CallKey, (Call, Answer)>,
    /// Why the last attempts found no worker.
    pub(super) failures: BTreeMap<String, String>,
}

impl Driver {
    /// Runs until the pipeline is dropped.
    pub(super) async fn run(mut self) {
        self.links.members(&self.members.borrow_and_update().clone());
        self.tell();
        let mut listed = true;
        loop {
            let tick = self.recovery.next_tick().map(|at| tokio::time::Instant::from_std(self.start + at));
            tokio::select! {
                post = self.posts.recv() => match post {
                    Some(call) => self.post(call),
                    None => return,
                },
                Some(event) = self.events.recv() => self.event(event),
                changed = self.members.changed(), if listed => match changed {
                    Ok(()) => self.links.members(&self.members.borrow_and_update().clone()),
                    Err(_) => listed = false,
                },
                () = tokio::time::sleep_until(tick.unwrap_or_else(tokio::time::Instant::now)), if tick.is_some() => {
                    self.recovery.tick(self.now());
                }
            }
            self.act();
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn post(&mut self, call: Call) {
        let key = CallKey::of(&Header::of_call(&call));
        let shards = self.layout.wanted(&call);
        let answer = self.layout.begin(&call);
        self.calls.retain(|old, _| old.step == key.step);
        if shards.is_empty() {
            let _ = self.replies.send((key.step, Ok(answer)));
            return;
        }
        self.calls.insert(key, (call, answer));
        self.recovery.post(self.now(), key, &shards);
    }

    fn event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up { link, welcome, way } => {
                let Welcome { shard, incarnation, slots, .. } = welcome;
                if let Some((other, _)) = self.ways.values().find(|(other, _)| other.may_differ(&welcome)) {
                    tracing::warn!(
                        shard,
                        device = welcome.device,
                        other = other.device,
                        "workers of one shard are on different back ends; tokens may depend on which of them answers"
                    );
                }
                self.ways.insert(link, (welcome, way));
                let slots = slots.min(self.workers.slots);
                self.recovery.connected(self.now(), link, shard, incarnation, slots);
                self.failures.clear();
            }
            LinkEvent::Frame { link, frame } => {
                if let Err(error) = self.frame(link, &frame) {
                    tracing::error!(%error, "an FFN worker says what makes no sense, and is let go");
                    self.close(link);
                }
            }
            LinkEvent::Down { link } => self.close(link),
            LinkEvent::Failed { error } => self.failed(&error),
        }
        self.tell();
    }

    fn failed(&mut self, error: &ConnectError) {
        let (ConnectError::Refused { place, .. } | ConnectError::Unreachable { place, .. }) = error;
        let text = error.to_string();
        let new = self.failures.insert(place.clone(), text.clone()).is_none_or(|old| old != text);
        if matches!(error, ConnectError::Refused { .. }) {
            // Whoever waits for the pool had better hear of it at once.
            match self.ready.take() {
                Some(ready) => drop(ready.send(Err(text))),
                None if new => tracing::error!("{text}"),
                None => {}
            }
        }
    }

    /// Whoever waits for the pool hears when it is complete; and all, who belongs to it.
    fn tell(&mut self) {
        let missing = self.recovery.missing();
        let mut shards: BTreeMap<usize, &Welcome> = BTreeMap::new();
        for (welcome, _) in self.ways.values() {
            shards.insert(welcome.shard, welcome);
        }
        let weight_bytes = shards.values().map(|welcome| welcome.weight_bytes).sum();
        let why = self.failures.values().cloned().collect::<Vec<_>>().join("; ");
        let missing_names = missing.iter().map(|&shard| self.recovery.name(shard)).collect();
        let (count, stats) = (self.ways.len(), self.recovery.stats());
        self.workers.set(Pooled { count, weight_bytes, missing: missing_names, why, stats });
        if missing.is_empty()
            && let Some(ready) = self.ready.take()
        {
            let _ = ready.send(Ok(()));
        }
    }

    fn close(&mut self, link: LinkId) {
        self.ways.remove(&link);
        self.recovery.closed(self.now(), link);
    }

    /// What a worker says.
    fn frame(&mut self, link: LinkId, bytes: &Bytes) -> CoreResult<()> {
        let Some((welcome, _)) = self.ways.get(&link) else { return Ok(()) };
        let shard = welcome.shard;
        let (header, payload) = Header::read(bytes)?;
        let key = CallKey::of(&header);
        match header.kind {
            Kind::Draining => self.recovery.draining(self.now(), link),
            Kind::Refusal => {
                self.recovery.refused(self.now(), link, &header, &frame::read_refusal(payload));
            }
            Kind::Answer => {
                // Read before it is taken: what cannot be read must not count as an answer.
                let outputs = match self.calls.get(&key) {
                    Some((call, _)) => frame::read_answer(&self.layout, shard, call, payload)?,
                    None => vec![],
                };
                match self.recovery.answered(self.now(), link, &header) {
                    Verdict::Taken { last, .. } => self.taken(key, shard, &outputs, header.ffn_us, last),
                    Verdict::Dropped => tracing::debug!(?key, shard, "an answer came too late"),
                }
            }
            Kind::Call => return Err(Error::format("a frame", "a worker that asks")),
        }
        Ok(())
    }

    fn taken(&mut self, key: CallKey, shard: usize, outputs: &[Vec<f32>], ffn_us: f64, last: bool) {
        if let Some((call, answer)) = self.calls.get_mut(&key) {
            self.layout.add(answer, call, shard, outputs, ffn_us);
        }
        if last && let Some((_, answer)) = self.calls.remove(&key) {
            // The pipeline may have been dropped meanwhile.
            let _ = self.replies.send((key.step, Ok(answer)));
        }
    }

    fn act(&mut self) {
        // Letting go of a worker may lead to more.
        loop {
            let actions = self.recovery.actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                self.do_it(action);
            }
        }
    }

    fn do_it(&mut self, action: Action) {
        match action {
            Action::Send { link, slot, key, epoch, incarnation } => {
                let (Some((welcome, way)), Some((call, _))) =
                    (self.ways.get_mut(&link), self.calls.get(&key))
                else {
                    return;
                };
                let header = Header { epoch, incarnation, slot: slot as u32, ..Header::of_call(call) };
                match frame::call(&self.layout, welcome.shard, header, call) {
                    Ok(frame) => way.sender.post(slot, frame.into()),
                    Err(error) => self.fail(key, error),
                }
            }
            Action::Disconnect(link) => {
                if let Some((welcome, _)) = self.ways.remove(&link) {
                    tracing::info!(
                        shard = welcome.shard,
                        incarnation = welcome.incarnation,
                        "an FFN worker has drained"
                    );
                }
                self.tell();
            }
            Action::Fail { key, why } => {
                let reasons = self.failures.values().cloned().collect::<Vec<_>>().join("; ");
                let why = if reasons.is_empty() { why } else { format!("{why}: {reasons}") };
                self.fail(key, Error::Unavailable(why));
            }
        }
    }

    /// A step without one of its answers is worth nothing.
    fn fail(&mut self, key: CallKey, error: Error) {
        self.calls.clear();
        let _ = self.replies.send((key.step, Err(error)));
    }
}

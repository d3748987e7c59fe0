//! Who is asked for what, and what becomes of it when workers come, go, or say nothing: events go in, actions come out.
//! It knows no clock and no network, so tests put it through every death without one.
//!
//! A call is kept until each of its shards has answered. FFNs keep nothing between calls and compute the same wherever
//! they run, so a part of a call may be asked of several workers; the first answer is taken and the others are dropped. A
//! slot of a worker is free again only when the worker has answered in it, or is gone: one that was given up may still
//! write there.

use std::collections::BTreeMap;
use std::time::Duration;

use tread_core::afd::PoolStats;
use tread_core::afd::frame::Header;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// A worker is suspected after so many times what its answers take on average,
    pub(crate) factor: f64,
    /// but not before this,
    pub(crate) least: Duration,
    /// and after this in any case.
    pub(crate) most: Duration,
    /// When a worker that has not answered yet is suspected.
    pub(crate) first: Duration,
    /// When a call without an answer is given up.
    pub(crate) hold: Duration,
}

impl Patience {
    /// The design's numbers, with a call held so long.
    pub(crate) fn holding(hold: Duration) -> Self {
        let [least, most, first] = [50, 500, 5000].map(Duration::from_millis);
        Self { factor: 20.0, least, most, first, hold }
    }
}

/// Weight of a new answer in a worker's average.
const EWMA: f64 = 0.2;

/// A connection to a worker; a worker that comes back has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LinkId(pub(crate) u64);

/// Which call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct CallKey {
    pub(crate) step: u64,
    pub(crate) layer: u32,
    pub(crate) micro_batch: u32,
}

impl CallKey {
    pub(crate) const fn of(header: &Header) -> Self {
        Self { step: header.step, layer: header.layer, micro_batch: header.micro_batch }
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// Post a call's frame for the link's shard.
    Send { link: LinkId, slot: usize, key: CallKey, epoch: u64, incarnation: u64 },
    /// Let a connection go: nothing is awaited of it any more, and it takes no new calls.
    Disconnect(LinkId),
    /// A call will not be answered.
    Fail { key: CallKey, why: String },
}

/// What an answer is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The first of this shard; `last` when all shards of the call have answered now.
    Taken { shard: usize, last: bool },
    /// Nobody waits for it.
    Dropped,
}

/// The state of all calls and workers.
#[derive(Debug)]
pub(crate) struct Recovery {
    patience: Patience,
    shards: usize,
    /// Counts changes of who is asked.
    epoch: u64,
    links: BTreeMap<LinkId, Link>,
    parts: BTreeMap<(CallKey, usize), Part>,
    actions: Vec<Action>,
    stats: PoolStats,
}

#[derive(Debug)]
struct Link {
    shard: usize,
    incarnation: u64,
    slots: Vec<Option<Flight>>,
    average: Option<Duration>,
    suspect: bool,
    draining: bool,
}

/// A call on its way to a worker, or an answer on its way back.
#[derive(Clone, Copy, Debug)]
struct Flight {
    key: CallKey,
    epoch: u64,
    posted: Duration,
    /// When the worker is suspected; none: it is.
    deadline: Option<Duration>,
}

/// What a call wants of a shard.
#[derive(Debug)]
struct Part {
    since: Duration,
    asked: bool,
    refused_by: Vec<LinkId>,
    refusal: String,
}

impl Recovery {
    pub(crate) fn new(shards: usize, patience: Patience) -> Self {
        Self {
            patience,
            shards,
            epoch: 0,
            links: BTreeMap::new(),
            parts: BTreeMap::new(),
            actions: vec![],
            stats: PoolStats::default(),
        }
    }

    /// How it fares.
    pub(crate) fn stats(&self) -> PoolStats {
        PoolStats { workers: self.links.len(), ..self.stats }
    }

    /// What is to be done since the last time.
    pub(crate) fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// The shards that no worker holds now.
    pub(crate) fn missing(&self) -> Vec<usize> {
        (0..self.shards)
            .filter(|&shard| !self.links.values().any(|l| l.shard == shard && !l.draining))
            .collect()
    }

    /// A worker is there.
    pub(crate) fn connected(
        &mut self,
        now: Duration,
        id: LinkId,
        shard: usize,
        incarnation: u64,
        slots: usize,
    ) {
        let slots = vec![None; slots];
        let link = Link { shard, incarnation, slots, average: None, suspect: false, draining: false };
        self.links.insert(id, link);
        self.epoch += 1;
        self.dispatch(now);
    }

    /// A worker is gone, with all that it was asked for.
    pub(crate) fn closed(&mut self, now: Duration, id: LinkId) {
        if self.links.remove(&id).is_some() {
            self.epoch += 1;
            self.dispatch(now);
        }
    }

    /// A worker takes no new calls.
    pub(crate) fn draining(&mut self, now: Duration, id: LinkId) {
        if let Some(link) = self.links.get_mut(&id) {
            link.draining = true;
            self.epoch += 1;
            self.let_go(id);
            self.dispatch(now);
        }
    }

    /// Somebody wants a call answered by these shards. What is left of earlier steps was given up.
    pub(crate) fn post(&mut self, now: Duration, key: CallKey, shards: &[usize]) {
        self.parts.retain(|(old, _), _| old.step == key.step);
        for &shard in shards {
            let part = Part { since: now, asked: false, refused_by: vec![], refusal: String::new() };
            self.parts.insert((key, shard), part);
        }
        self.dispatch(now);
    }

    /// A worker has answered.
    pub(crate) fn answered(&mut self, now: Duration, id: LinkId, header: &Header) -> Verdict {
        let Some((flight, shard)) = self.land(id, header) else {
            self.stats.dropped += 1;
            return Verdict::Dropped;
        };
        if let Some(link) = self.links.get_mut(&id) {
            let took = now.saturating_sub(flight.posted);
            link.average = Some(link.average.map_or(took, |a| a.mul_f64(1.0 - EWMA) + took.mul_f64(EWMA)));
            if std::mem::take(&mut link.suspect) {
                self.epoch += 1;
            }
        }
        let taken = self.parts.remove(&(flight.key, shard)).is_some();
        self.let_go(id);
        self.dispatch(now);
        if !taken {
            self.stats.dropped += 1;
            return Verdict::Dropped;
        }
        let last = !self.parts.keys().any(|(key, _)| *key == flight.key);
        Verdict::Taken { shard, last }
    }

    /// A worker has said why it does not answer.
    pub(crate) fn refused(&mut self, now: Duration, id: LinkId, header: &Header, why: &str) {
        let Some((flight, shard)) = self.land(id, header) else { return };
        if let Some(part) = self.parts.get_mut(&(flight.key, shard)) {
            part.refused_by.push(id);
            part.refusal = why.to_owned();
            let refused_by = &part.refused_by;
            // As long as somebody else may answer, or still does, that is waited for.
            let hope =
                |(id, l): (&LinkId, &Link)| l.shard == shard && !l.draining && !refused_by.contains(id);
            if !self.links.iter().any(hope) && self.in_flight(flight.key, shard).next().is_none() {
                self.fail(flight.key, format!("{} refuses a call: {why}", self.name(shard)));
            }
        }
        self.let_go(id);
        self.dispatch(now);
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Duration) {
        for link in self.links.values_mut() {
            for flight in link.slots.iter_mut().flatten() {
                if flight.deadline.is_some_and(|deadline| deadline <= now) {
                    flight.deadline = None;
                    if !std::mem::replace(&mut link.suspect, true) {
                        self.epoch += 1;
                    }
                }
            }
        }
        let hold = self.patience.hold;
        if let Some((&(key, shard), part)) = self.parts.iter().find(|(_, part)| part.since + hold <= now) {
            let refusal = match part.refusal.as_str() {
                "" => String::new(),
                why => format!(" ({why})"),
            };
            let name = self.name(shard);
            self.fail(
                key,
                format!("no FFN worker answered for {name} in {} seconds{refusal}", hold.as_secs_f64()),
            );
        }
        self.dispatch(now);
    }

    /// When [`Recovery::tick`] has something to do.
    pub(crate) fn next_tick(&self) -> Option<Duration> {
        let flights = self.links.values().flat_map(|link| link.slots.iter().flatten());
        let deadlines = flights.filter_map(|flight| flight.deadline);
        deadlines.chain(self.parts.values().map(|part| part.since + self.patience.hold)).min()
    }

    /// How errors name a shard.
    pub(crate) fn name(&self, shard: usize) -> String {
        format!("shard {shard} of {}", self.shards)
    }

    /// Frees the slot in which a worker has said something, if that is what the slot waits for.
    fn land(&mut self, id: LinkId, header: &Header) -> Option<(Flight, usize)> {
        let link = self.links.get_mut(&id)?;
        let place = link.slots.get_mut(header.slot as usize)?;
        let flight = (*place)?;
        let same = flight.key == CallKey::of(header)
            && flight.epoch == header.epoch
            && link.incarnation == header.incarnation;
        same.then(|| {
            *place = None;
            (flight, link.shard)
        })
    }

    /// A worker that drains and owes nothing is let go.
    fn let_go(&mut self, id: LinkId) {
        if self.links.get(&id).is_some_and(|link| link.draining && link.slots.iter().all(Option::is_none)) {
            self.links.remove(&id);
            self.epoch += 1;
            self.actions.push(Action::Disconnect(id));
        }
    }

    /// A step without one of its answers is worth nothing.
    fn fail(&mut self, key: CallKey, why: String) {
        self.parts.clear();
        self.actions.push(Action::Fail { key, why });
    }

    fn in_flight(&self, key: CallKey, shard: usize) -> impl Iterator<Item = &Flight> {
        let of_shard = self.links.values().filter(move |link| link.shard == shard);
        of_shard.flat_map(|link| link.slots.iter().flatten()).filter(move |flight| flight.key == key)
    }

    /// Sends what nobody is working at, and once more what takes too long.
    fn dispatch(&mut self, now: Duration) {
        let waiting: Vec<_> = self.parts.keys().copied().collect();
        for (key, shard) in waiting {
            if let Some((id, slot)) = self.choose(key, shard) {
                self.send(now, id, slot, key);
            }
        }
    }

    /// Who is asked for a part, and in which slot; none when all that can be done is to wait. Among workers that are not
    /// suspected the one with least to do, of those the first to come. A suspected one is better than none at first, but
    /// not a second time.
    fn choose(&self, key: CallKey, shard: usize) -> Option<(LinkId, usize)> {
        let mut flights = self.in_flight(key, shard).peekable();
        let again = flights.peek().is_some();
        if flights.any(|flight| flight.deadline.is_some()) {
            return None;
        }
        let part = self.parts.get(&(key, shard))?;
        let candidates = self.links.iter().filter_map(|(id, link)| {
            let asked = link.slots.iter().flatten().any(|flight| flight.key == key);
            let out = link.shard != shard || link.draining || asked || part.refused_by.contains(id);
            if out || (again && link.suspect) {
                return None;
            }
            let slot = link.slots.iter().position(Option::is_none)?;
            let busy = link.slots.iter().flatten().count();
            Some(((link.suspect, busy, *id), slot))
        });
        candidates.min().map(|((_, _, id), slot)| (id, slot))
    }

    fn send(&mut self, now: Duration, id: LinkId, slot: usize, key: CallKey) {
        let Patience { factor, least, most, first, .. } = self.patience;
        let (epoch, Some(link)) = (self.epoch, self.links.get_mut(&id)) else { return };
        let wait = link.average.map_or(first, |average| average.mul_f64(factor).clamp(least, most));
        // Who is suspected is not suspected again, but its answer is welcome.
        let deadline = (!link.suspect).then_some(now + wait);
        link.slots[slot] = Some(Flight { key, epoch, posted: now, deadline });
        self.stats.calls += 1;
        if let Some(part) = self.parts.get_mut(&(key, link.shard)) {
            self.stats.resent += u64::from(std::mem::replace(&mut part.asked, true));
        }
        let incarnation = link.incarnation;
        self.actions.push(Action::Send { link: id, slot, key, epoch, incarnation });
    }
}

#[cfg(test)]
mod tests;

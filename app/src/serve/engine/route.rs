//! Which engine gets a request.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::super::events::Feed;
use super::super::metrics::Metrics;
use super::front::Front;
use super::status::Board;
use crate::attention::{Order, Status};

/// Leading tokens of a prompt by which it finds the engine that may have them in its prefix cache.
const LEADING: usize = 64;

/// The engines of a server; they may come and go.
#[derive(Debug)]
pub(super) struct Engines {
    all: Mutex<All>,
    board: Arc<Board>,
    feed: Arc<Feed>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct All {
    /// By their numbers; none: that one has gone, and its number is free.
    each: Vec<Option<Arc<Front>>>,
    /// Listeners who want ops to be measured.
    measuring: usize,
    stopped: bool,
}

/// Why there is no engine for a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Nobody {
    /// One may come back.
    Yet(String),
    /// None will.
    Ever(String),
    /// The server ends.
    Stopped,
}

impl Engines {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { all: Mutex::default(), board: Arc::default(), feed: Arc::default(), metrics }
    }

    /// Another engine, that stands here.
    pub(super) fn add(&self, status: Status) -> Arc<Front> {
        let mut all = self.all();
        let free = all.each.iter().position(Option::is_none);
        let index = free.unwrap_or_else(|| {
            all.each.push(None);
            all.each.len() - 1
        });
        let (feed, metrics) = (Arc::clone(&self.feed), Arc::clone(&self.metrics));
        let front = Arc::new(Front::new(index, Arc::clone(&self.board), feed, metrics));
        front.set(status);
        all.each[index] = Some(Arc::clone(&front));
        front
    }

    /// An engine is no longer one of them.
    pub(super) fn remove(&self, front: &Front) {
        self.board.set(front.index(), None);
        self.all().each[front.index()] = None;
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.all().each.iter().flatten().count()
    }

    /// The engine for a prompt: of those that live, and are not opening their device anew if another one is not, the one
    /// that prompts with this beginning go to, unless another one has clearly less to do.
    pub(super) fn choose(&self, prompt: &[u32]) -> Result<Arc<Front>, Nobody> {
        let all = self.all();
        if all.stopped {
            return Err(Nobody::Stopped);
        }
        let each = self.board.each();
        let living = |wanted: fn(&Status) -> bool| -> Vec<&Arc<Front>> {
            let there = all.each.iter().flatten().filter(|front| front.is_connected());
            there
                .filter(|front| each.get(front.index()).and_then(Option::as_ref).is_some_and(wanted))
                .collect()
        };
        let mut candidates = living(|status| matches!(status, Status::Loading | Status::Ready(_)));
        if candidates.is_empty() {
            candidates = living(|status| *status == Status::Rebuilding);
        }
        let load = |front: &&Arc<Front>| front.load().load(Ordering::Relaxed);
        let Some(least) = candidates.iter().map(load).min() else {
            return Err(match self.board.together() {
                Status::Failed(why) => Nobody::Ever(why),
                Status::Away(why) => Nobody::Yet(why),
                _ => Nobody::Yet("no attention worker is there yet".to_owned()),
            });
        };
        let mut hasher = DefaultHasher::new();
        prompt[..prompt.len().min(LEADING)].hash(&mut hasher);
        let favourite = hasher.finish() as usize % candidates.len();
        candidates.rotate_left(favourite);
        let chosen = candidates.into_iter().find(|front| load(front) <= least + 1);
        chosen.cloned().ok_or_else(|| Nobody::Yet("all attention workers are busy".to_owned()))
    }

    /// Where all of them together stand, and its changes.
    pub(super) fn watch(&self) -> watch::Receiver<Status> {
        self.board.watch()
    }

    /// What they do, as they do it.
    pub(super) fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// One more who wants ops to be measured, or one less.
    pub(super) fn measure(&self, more: bool) {
        let mut all = self.all();
        let before = all.measuring > 0;
        all.measuring = if more { all.measuring + 1 } else { all.measuring.saturating_sub(1) };
        let now = all.measuring > 0;
        if before != now {
            all.each.iter().flatten().for_each(|front| front.send(Order::Measure(now)));
        }
    }

    /// An engine that has just come hears whether ops are to be measured.
    pub(super) fn brief(&self, front: &Front) {
        if self.all().measuring > 0 {
            front.send(Order::Measure(true));
        }
    }

    /// Ends them; requests that are not finished fail, and there will be no more.
    pub(super) fn stop(&self) {
        let mut all = self.all();
        all.stopped = true;
        all.each.iter().flatten().for_each(|front| front.stop());
        drop(all);
        self.board.touch();
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tread_core::cpu::Cpu;

    use super::super::front::Orders;
    use super::*;
    use crate::attention::Running;

    fn engines(status: &[Status]) -> Engines {
        let engines = Engines::new(Metrics::new("test").unwrap());
        for status in status {
            let front = engines.add(status.clone());
            if !matches!(status, Status::Away(_)) {
                front.connect(Orders::Here(mpsc::channel().0));
            }
        }
        engines
    }

    fn ready() -> Status {
        Status::Ready(Running::on(&Cpu::new()))
    }

    fn chosen(engines: &Engines, prompt: &[u32]) -> usize {
        engines.choose(prompt).unwrap().index()
    }

    #[test]
    fn prompts_that_begin_alike_meet_unless_another_engine_is_idle() {
        let engines = engines(&[ready(), ready(), ready()]);
        let prompt: Vec<u32> = (0..100).collect();
        let first = engines.choose(&prompt).unwrap();
        let longer = [&prompt[..], &[7; 50]].concat();
        assert_eq!(chosen(&engines, &longer), first.index());
        first.load().store(1, Ordering::Relaxed);
        assert_eq!(chosen(&engines, &prompt), first.index(), "one more is not much");
        first.load().store(2, Ordering::Relaxed);
        assert_ne!(chosen(&engines, &prompt), first.index());
        let others: Vec<usize> = (0..50).map(|token| chosen(&engines, &[token])).collect();
        assert!(
            (0..3).filter(|engine| *engine != first.index()).all(|engine| others.contains(&engine)),
            "{others:?}"
        );
    }

    #[test]
    fn engines_that_are_gone_get_nothing() {
        let gone = || Status::Failed("gone".to_owned());
        let away = || Status::Away("cut off".to_owned());
        for token in 0..10 {
            let chosen = |status: &[Status]| engines(status).choose(&[token]).map(|front| front.index());
            assert_eq!(chosen(&[gone(), ready(), gone()]), Ok(1));
            assert_eq!(chosen(&[Status::Rebuilding, gone(), ready()]), Ok(2));
            assert_eq!(chosen(&[gone(), Status::Rebuilding]), Ok(1));
            assert_eq!(chosen(&[gone(), gone()]), Err(Nobody::Ever("gone".to_owned())));
            assert_eq!(chosen(&[away(), ready(), Status::Draining]), Ok(1));
            assert_eq!(chosen(&[away(), gone()]), Err(Nobody::Yet("cut off".to_owned())));
            assert!(matches!(chosen(&[Status::Draining]), Err(Nobody::Yet(_))));
            assert!(matches!(chosen(&[]), Err(Nobody::Yet(_))));
        }
    }

    #[test]
    fn engines_come_and_go() {
        let engines = engines(&[ready(), ready()]);
        let first = engines.choose(&[1]).unwrap();
        engines.remove(&first);
        assert_eq!(engines.len(), 1);
        assert!((0..10).all(|token| chosen(&engines, &[token]) != first.index()));
        let next = engines.add(ready());
        assert_eq!(next.index(), first.index(), "its number is free");
        assert_eq!(engines.add(ready()).index(), 2);
        engines.stop();
        assert_eq!(engines.choose(&[1]).map(|_| ()), Err(Nobody::Stopped));
    }
}

//! Where each engine stands, and all of them together.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tread_core::backend::Backend;
use tread_core::graph::Side;
use tread_core::monitor::Pool;

/// Where an engine stands, or all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Status {
    /// Weights are on their way to the device.
    Loading,
    /// Steps run.
    Ready(Running),
    /// The device was lost and is opened anew.
    Rebuilding,
    /// The end.
    Failed(String),
}

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Running {
    /// The back end and its device, for people.
    pub(in super::super) device: String,
    /// Its pools.
    pub(in super::super) pools: Vec<Pool>,
}

impl Running {
    pub(super) fn on(backend: &dyn Backend) -> Self {
        Self { device: format!("{}, {}", backend.name(), backend.device()), pools: backend.pools() }
    }
}

/// The status of every engine.
#[derive(Debug)]
pub(super) struct Board {
    each: Each,
    all: watch::Sender<Status>,
}

/// The status of every engine, for those who only read.
pub(super) type Each = Arc<Mutex<Vec<Status>>>;

impl Board {
    pub(super) fn new(engines: usize) -> (Arc<Self>, watch::Receiver<Status>) {
        let (all, watcher) = watch::channel(Status::Loading);
        let each = Arc::new(Mutex::new(vec![Status::Loading; engines]));
        (Arc::new(Self { each, all }), watcher)
    }

    /// What one engine writes to. Watchers see the end of the channel once all of them are dropped.
    pub(super) fn of(self: &Arc<Self>, engine: usize) -> StatusOf {
        StatusOf { engine, board: Arc::clone(self) }
    }

    pub(super) fn each(&self) -> Each {
        Arc::clone(&self.each)
    }
}

/// One engine's place on the board.
#[derive(Debug)]
pub(super) struct StatusOf {
    engine: usize,
    board: Arc<Board>,
}

impl StatusOf {
    pub(super) fn engine(&self) -> usize {
        self.engine
    }

    pub(super) fn set(&self, status: Status) {
        let mut each = self.board.each.lock().unwrap_or_else(PoisonError::into_inner);
        each[self.engine] = status;
        self.board.all.send_replace(together(&each));
    }
}

impl Drop for StatusOf {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.set(Status::Failed("the engine has panicked; the log says more".to_owned()));
        }
    }
}

/// Requests are served while one engine can serve them; the server has failed when all have.
fn together(each: &[Status]) -> Status {
    let running: Vec<&Running> = each
        .iter()
        .filter_map(|status| match status {
            Status::Ready(running) => Some(running),
            _ => None,
        })
        .collect();
    // Whoever waits until the model is loaded waits for every engine.
    if each.contains(&Status::Loading) {
        return Status::Loading;
    }
    if let [first, others @ ..] = running.as_slice() {
        let pools = first.pools.iter().enumerate().map(|(at, pool)| {
            let devices = running.iter().filter_map(|r| r.pools.get(at)).map(|pool| pool.device.as_str());
            // Engines share the workers of one FFN pool, but not their own devices.
            let device = match pool.sides.as_slice() {
                [Side::Ffn] => pool.device.clone(),
                _ => names(&devices.collect::<Vec<_>>()),
            };
            Pool { device, ..pool.clone() }
        });
        // Engines that are cut in other ways are not to be shown in one picture.
        let alike = others.iter().all(|other| other.pools.len() == first.pools.len());
        let device = names(&running.iter().map(|r| r.device.as_str()).collect::<Vec<_>>());
        let pools = if alike { pools.collect() } else { vec![Pool::whole(device.clone())] };
        return Status::Ready(Running { device, pools });
    }
    each.iter()
        .find(|status| !matches!(status, Status::Failed(_)))
        .or(each.first())
        .cloned()
        .unwrap_or(Status::Loading)
}

/// Several devices as one.
fn names(each: &[&str]) -> String {
    match each {
        [one] => (*one).to_owned(),
        [first, others @ ..] if others.iter().all(|name| name == first) => {
            format!("{} x {first}", each.len())
        }
        _ => each.join(" + "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_what_its_engines_are_together() {
        let ready =
            |name: &str| Status::Ready(Running { device: name.to_owned(), pools: vec![Pool::whole(name)] });
        let failed = || Status::Failed("gone".to_owned());
        for (each, expected) in [
            (vec![Status::Loading, ready("a")], Status::Loading),
            (vec![ready("a"), ready("a")], ready("2 x a")),
            (vec![ready("a"), ready("b")], ready("a + b")),
            (vec![failed(), ready("b")], ready("b")),
            (vec![Status::Rebuilding, ready("b")], ready("b")),
            (vec![failed(), Status::Rebuilding], Status::Rebuilding),
            (vec![failed(), failed()], failed()),
        ] {
            assert_eq!(together(&each), expected, "{each:?}");
        }
    }

    #[test]
    fn a_thread_that_panics_says_so() {
        let (board, watcher) = Board::new(1);
        let status = board.of(0);
        drop(board);
        let thread = std::thread::spawn(move || {
            status.set(Status::Rebuilding);
            panic!("on purpose");
        });
        assert!(thread.join().is_err());
        assert!(matches!(&*watcher.borrow(), Status::Failed(reason) if reason.contains("panicked")));
        assert!(watcher.has_changed().is_err(), "the channel is closed");
    }
}

//! Where each engine stands, and all of them together.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// Where an engine stands, or all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Status {
    /// Weights are on their way to the device.
    Loading,
    /// Steps run. The text names the device.
    Ready(String),
    /// The device was lost and is opened anew.
    Rebuilding,
    /// The end.
    Failed(String),
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
    let names: Vec<&str> = each
        .iter()
        .filter_map(|status| match status {
            Status::Ready(name) => Some(name.as_str()),
            _ => None,
        })
        .collect();
    // Whoever waits until the model is loaded waits for every engine.
    if each.contains(&Status::Loading) {
        return Status::Loading;
    }
    if let [first, others @ ..] = names.as_slice() {
        return Status::Ready(match others.len() {
            0 => (*first).to_owned(),
            _ if others.iter().all(|name| name == first) => format!("{} x {first}", names.len()),
            _ => names.join(" + "),
        });
    }
    each.iter()
        .find(|status| !matches!(status, Status::Failed(_)))
        .or(each.first())
        .cloned()
        .unwrap_or(Status::Loading)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_what_its_engines_are_together() {
        let ready = |name: &str| Status::Ready(name.to_owned());
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
            status.set(Status::Ready("cpu".to_owned()));
            panic!("on purpose");
        });
        assert!(thread.join().is_err());
        assert!(matches!(&*watcher.borrow(), Status::Failed(reason) if reason.contains("panicked")));
        assert!(watcher.has_changed().is_err(), "the channel is closed");
    }
}

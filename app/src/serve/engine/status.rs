//! Where each engine stands, and all of them together.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tread_core::graph::Side;
use tread_core::monitor::Pool;

use crate::attention::{Running, Status};

/// The status of every engine.
#[derive(Debug)]
pub(super) struct Board {
    /// By their numbers; none: there is no such engine.
    each: Mutex<Vec<Option<Status>>>,
    all: watch::Sender<Status>,
}

impl Default for Board {
    fn default() -> Self {
        Self { each: Mutex::default(), all: watch::Sender::new(together(&[])) }
    }
}

impl Board {
    /// An engine stands here now, or is no longer one of them.
    pub(super) fn set(&self, engine: usize, status: Option<Status>) {
        let mut each = self.each();
        if each.len() <= engine {
            each.resize(engine + 1, None);
        }
        each[engine] = status;
        self.all.send_replace(together(&each));
    }

    /// Where each stands.
    pub(super) fn each(&self) -> MutexGuard<'_, Vec<Option<Status>>> {
        self.each.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where all of them together stand.
    pub(super) fn together(&self) -> Status {
        self.all.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Status> {
        self.all.subscribe()
    }

    /// Has whoever waits for a change look once more.
    pub(super) fn touch(&self) {
        self.all.send_modify(|_| {});
    }
}

/// Requests are served while one engine can serve them; the server has failed when all have.
fn together(each: &[Option<Status>]) -> Status {
    let each: Vec<&Status> = each.iter().flatten().collect();
    // Whoever waits until the model is loaded waits for every engine.
    if each.contains(&&Status::Loading) {
        return Status::Loading;
    }
    let running: Vec<&Running> = each
        .iter()
        .filter_map(|status| match status {
            Status::Ready(running) => Some(running),
            _ => None,
        })
        .collect();
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
    let any = |wanted: fn(&Status) -> bool| each.iter().copied().find(|status| wanted(status)).cloned();
    any(|status| *status == Status::Rebuilding)
        .or_else(|| any(|status| matches!(status, Status::Away(_))))
        .or_else(|| any(|status| *status == Status::Draining))
        .or_else(|| any(|_| true))
        .unwrap_or_else(|| Status::Away("no attention worker is listed".to_owned()))
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
        let away = || Status::Away("cut off".to_owned());
        for (each, expected) in [
            (vec![Status::Loading, ready("a")], Status::Loading),
            (vec![ready("a"), ready("a")], ready("2 x a")),
            (vec![ready("a"), ready("b")], ready("a + b")),
            (vec![failed(), ready("b")], ready("b")),
            (vec![Status::Rebuilding, ready("b")], ready("b")),
            (vec![failed(), Status::Rebuilding], Status::Rebuilding),
            (vec![away(), ready("b"), Status::Draining], ready("b")),
            (vec![failed(), Status::Draining, away()], away()),
            (vec![away(), Status::Rebuilding], Status::Rebuilding),
            (vec![Status::Draining, failed()], Status::Draining),
            (vec![failed(), failed()], failed()),
        ] {
            let each: Vec<_> = each.into_iter().map(Some).chain([None]).collect();
            assert_eq!(together(&each), expected, "{each:?}");
        }
        assert!(matches!(together(&[]), Status::Away(_)));
    }
}

//! Keeps a connection to each member: connects, hands on what comes, and connects again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::recovery::LinkId;
use crate::afd::hello::{Hello, Welcome};
use crate::afd::place::Place;
use crate::afd::transport::{ConnectError, Connection, SendFrames, Transport};

/// Pauses before a worker is looked for again: doubled from the first to the last.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// What happens on connections.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// A worker is there.
    Up { link: LinkId, welcome: Welcome, way: Way },
    /// It says something.
    Frame { link: LinkId, frame: Bytes },
    /// It is gone.
    Down { link: LinkId },
    /// There is no connection.
    Failed { error: ConnectError },
}

/// The way to a worker; dropping it ends the connection.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) sender: Box<dyn SendFrames>,
    _open: oneshot::Sender<()>,
}

/// The connections of a pool.
#[derive(Debug)]
pub(super) struct Links {
    transport: Arc<dyn Transport>,
    hello: Hello,
    events: UnboundedSender<LinkEvent>,
    ids: Arc<AtomicU64>,
    /// The task for each member.
    tasks: HashMap<Place, AbortHandle>,
}

impl Links {
    pub(super) fn new(
        transport: Arc<dyn Transport>,
        hello: Hello,
        events: UnboundedSender<LinkEvent>,
    ) -> Self {
        Self { transport, hello, events, ids: Arc::default(), tasks: HashMap::new() }
    }

    /// Begins with those that are new, and looks no more for those that are not listed any more. Their connections last as
    /// long as their workers.
    pub(super) fn members(&mut self, places: &[Place]) {
        self.tasks.retain(|place, task| {
            let stays = places.contains(place);
            if !stays {
                task.abort();
            }
            stays
        });
        for place in places {
            if !self.tasks.contains_key(place) {
                let task = tokio::spawn(tend(
                    Arc::clone(&self.transport),
                    place.clone(),
                    self.hello.clone(),
                    self.events.clone(),
                    Arc::clone(&self.ids),
                ));
                self.tasks.insert(place.clone(), task.abort_handle());
            }
        }
    }
}

/// Looks for a worker for ever. Ends when nobody hears of it any more.
async fn tend(
    transport: Arc<dyn Transport>,
    place: Place,
    hello: Hello,
    events: UnboundedSender<LinkEvent>,
    ids: Arc<AtomicU64>,
) {
    let mut failures = 0;
    loop {
        match transport.connect(&place, &hello).await {
            Ok(connection) => {
                failures = 0;
                let link = LinkId(ids.fetch_add(1, Ordering::Relaxed));
                // A task of its own: it outlives the member's place in the list.
                let receive = tokio::spawn(receive(link, place.clone(), connection, events.clone()));
                let _ = receive.await;
            }
            Err(error) => {
                failures += 1;
                tracing::debug!(%error, failures, "no FFN worker");
                if events.send(LinkEvent::Failed { error }).is_err() {
                    return;
                }
            }
        }
        if events.is_closed() {
            return;
        }
        tokio::time::sleep(pause(failures, random())).await;
    }
}

async fn receive(link: LinkId, place: Place, connection: Connection, events: UnboundedSender<LinkEvent>) {
    let Connection { welcome, carrier, sender, mut receiver } = connection;
    let Welcome { shard, incarnation, device, .. } = welcome.clone();
    tracing::info!(%place, shard, incarnation, device, carrier, "an FFN worker joins");
    let (open, mut closed) = oneshot::channel();
    if events.send(LinkEvent::Up { link, welcome, way: Way { sender, _open: open } }).is_err() {
        return;
    }
    let why = loop {
        tokio::select! {
            frame = receiver.receive() => match frame {
                Ok(frame) => if events.send(LinkEvent::Frame { link, frame }).is_err() { return },
                Err(why) => break why,
            },
            // The pool has let it go, or is no more.
            _ = &mut closed => return,
        }
    };
    tracing::warn!(%place, shard, incarnation, why, "an FFN worker is gone");
    let _ = events.send(LinkEvent::Down { link });
}

/// In 0..1.
pub(crate) fn random() -> f64 {
    f64::from(uuid::Uuid::new_v4().as_fields().0) / (f64::from(u32::MAX) + 1.0)
}

/// How long to wait after so many failures in a row; `random` in 0..1 keeps many from coming all at once.
pub(crate) fn pause(failures: u32, random: f64) -> Duration {
    let [first, last] = PAUSES;
    let doubled = first.saturating_mul(1 << failures.min(16)).min(last);
    doubled.mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit() {
        let [first, last] = PAUSES;
        for failures in 0..100 {
            for random in [0.0, 0.5, 0.999] {
                assert!((first / 2..=last).contains(&pause(failures, random)));
            }
            assert!(pause(failures, 0.3) <= pause(failures + 1, 0.3));
        }
        assert_eq!(pause(99, 1.0), last);
    }
}

//! What goes to the page.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use web_sys::DedicatedWorkerGlobalScope;
use web_time::Instant;

use super::js::scope;
use crate::protocol::{FromEngine, Stage};

/// Between two messages of progress.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

/// The page, as the worker sees it.
#[derive(Clone, Debug)]
pub(super) struct Outbox {
    scope: DedicatedWorkerGlobalScope,
    last: Rc<Cell<Option<(Stage, Instant)>>>,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self { scope: scope(), last: Rc::default() }
    }

    /// Sends a message.
    pub(super) fn send(&self, message: &FromEngine) {
        if let Ok(json) = serde_json::to_string(message) {
            // A page that is gone takes its worker with it.
            let _ = self.scope.post_message(&json.into());
        }
    }

    /// Sends how far loading is, but not too often; the first and the last of each stage always.
    pub(super) fn progress(&self, stage: Stage, done: u64, total: u64) {
        let now = Instant::now();
        let due = match self.last.get() {
            Some((last, at)) => last != stage || done >= total || now - at >= PROGRESS_PAUSE,
            None => true,
        };
        if due {
            self.last.set(Some((stage, now)));
            self.send(&FromEngine::Progress { stage, done, total });
        }
    }
}

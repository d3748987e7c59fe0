//! `GET /events`: what the engine does, as it does it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Extension;
use axum::extract::{Query, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, watch};
use tread_core::monitor::{Hello, Standing, StepEvent};

use super::engine::Measuring;
use super::stream::{KEEP_ALIVE, json};
use super::{App, Stop};
use crate::attention::Status;

/// Steps that are told in one event, so that a fast model does not send thousands of them a second.
const GATHER: Duration = Duration::from_millis(50);
/// Steps that are kept for listeners who have no time; the oldest are dropped first.
const KEPT: usize = 4096;

/// A step, and where the engine stood after it.
#[derive(Clone, Debug, Serialize)]
struct Step {
    step: StepEvent,
    standing: Standing,
}

/// Between the engines and those who listen. Nobody who listens can hold them up.
#[derive(Debug)]
pub(super) struct Feed {
    steps: broadcast::Sender<Arc<Step>>,
    /// Where all engines together stand, and each.
    standing: watch::Sender<Standing>,
    each: Mutex<Each>,
}

#[derive(Debug, Default)]
struct Each {
    /// By their numbers.
    engines: Vec<Standing>,
    /// What those counted that have gone: counters only grow.
    gone: Standing,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            steps: broadcast::Sender::new(KEPT),
            standing: watch::Sender::default(),
            each: Mutex::default(),
        }
    }
}

impl Feed {
    /// An engine made a step. Returns where all engines together stand.
    pub(super) fn step(&self, engine: usize, step: StepEvent, standing: Standing) -> Standing {
        let standing = self.standing(engine, standing);
        if self.steps.receiver_count() > 0 {
            // An error says that the last one has just gone.
            let _ = self.steps.send(Arc::new(Step { step: StepEvent { engine, ..step }, standing }));
        }
        standing
    }

    /// An engine stands here, without a step. Returns where all engines together stand.
    pub(super) fn standing(&self, engine: usize, standing: Standing) -> Standing {
        let mut each = self.each();
        if each.engines.len() <= engine {
            each.engines.resize(engine + 1, Standing::default());
        }
        each.engines[engine] = standing;
        self.together(&each)
    }

    /// An engine is gone; another one may take its number. Returns where the others stand.
    pub(super) fn ended(&self, engine: usize) -> Standing {
        let mut each = self.each();
        let last = each.engines.get_mut(engine).map(std::mem::take).unwrap_or_default();
        each.gone = [each.gone, last.counted()].into_iter().sum();
        self.together(&each)
    }

    fn each(&self) -> MutexGuard<'_, Each> {
        // Whoever has panicked left whole numbers behind.
        self.each.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn together(&self, each: &Each) -> Standing {
        let standing = each.engines.iter().chain([&each.gone]).copied().sum();
        let changed = |old: &mut Standing| std::mem::replace(old, standing) != standing;
        self.standing.send_if_modified(changed);
        standing
    }
}

/// Every step of the engine, as server-sent events, until the client goes or the server stops.
///
/// `hello` comes once the model is loaded: `{model, device, context, pools: [{name, device, sides}]}`. Then `steps`, at
/// most one every 50 ms, with the steps since the last one: `[{step, standing}, ...]`. A change without a step, and where
/// everything stands at first, is a `standing`. Who reads too slowly misses steps.
#[utoipa::path(
    get,
    path = "/events",
    tag = "Operation",
    params(("ops" = Option<u8>, Query, description = "1: about once a second, a step also says how long each op took.")),
    responses((status = 200, body = String, content_type = "text/event-stream"))
)]
pub(super) async fn events(
    State(app): State<App>,
    Query(query): Query<HashMap<String, String>>,
    Extension(stop): Extension<watch::Receiver<Stop>>,
) -> Response {
    let feed = app.engine.feed();
    let measures = query.get("ops").is_some_and(|ops| ops == "1");
    let listener = Listener {
        steps: feed.steps.subscribe(),
        standing: feed.standing.subscribe(),
        stop,
        greeted: false,
        _measuring: measures.then(|| app.engine.measure()),
        app,
    };
    let events = stream::unfold(listener, |mut listener| async move {
        let mut stop = listener.stop.clone();
        let event = tokio::select! {
            event = listener.next() => event?,
            // Else a server that stops would wait for those who listen.
            _ = stop.wait_for(|stop| *stop > Stop::No) => return None,
        };
        Some((Ok::<_, Infallible>(event), listener))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

/// One who listens.
struct Listener {
    app: App,
    steps: broadcast::Receiver<Arc<Step>>,
    standing: watch::Receiver<Standing>,
    stop: watch::Receiver<Stop>,
    greeted: bool,
    _measuring: Option<Measuring>,
}

impl Listener {
    /// The next event; none when there will be no more.
    async fn next(&mut self) -> Option<Event> {
        if !self.greeted {
            self.greeted = true;
            self.standing.mark_changed();
            return self.hello().await;
        }
        let mut steps = vec![];
        tokio::select! {
            first = self.steps.recv() => match first {
                Ok(step) => steps.push(step),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            },
            changed = self.standing.changed() => changed.ok()?,
        }
        tokio::time::sleep(GATHER).await;
        loop {
            match self.steps.try_recv() {
                Ok(step) => steps.push(step),
                Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        let standing = *self.standing.borrow_and_update();
        let Some(last) = steps.last() else {
            return Some(Event::default().event("standing").data(json(&standing)));
        };
        if last.standing != standing {
            // What has changed since the last step is told next.
            self.standing.mark_changed();
        }
        let steps: Vec<&Step> = steps.iter().map(Arc::as_ref).collect();
        Some(Event::default().event("steps").data(json(&steps)))
    }

    /// What is watched, once the model is loaded.
    async fn hello(&self) -> Option<Event> {
        let mut status = self.app.engine.watch();
        let ready = status.wait_for(|status| matches!(status, Status::Ready(_) | Status::Failed(_))).await;
        let Ok(Status::Ready(running)) = ready.as_deref() else { return None };
        let hello = Hello {
            model: self.app.model_name().to_owned(),
            device: running.device.clone(),
            context: self.app.options.limits.context_length,
            pools: running.pools.clone(),
        };
        Some(Event::default().event("hello").data(json(&hello)))
    }
}

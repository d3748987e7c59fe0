//! An answer in pieces, as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use tread_core::engine::Event;

use super::engine::{EventStream, Failure};
use super::error::ApiError;

/// How often a silent stream says that it lives.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long an answer's status waits for a first event. What the engine refuses at once then is an error with a status of
/// its own, and not a stream that begins well.
const FIRST_EVENT: Duration = Duration::from_millis(500);

/// Makes pieces of an answer, in JSON, out of events.
pub(super) trait Pieces: Send + 'static {
    /// What the stream begins with.
    fn begin(&mut self) -> Vec<String>;
    /// What an event of request `index` brings.
    fn event(&mut self, index: usize, event: Event) -> Vec<String>;
    /// What the stream ends with.
    fn end(&mut self) -> Vec<String>;
}

struct State<P> {
    events: EventStream,
    pieces: P,
    /// Requests not yet done.
    open: usize,
    ready: VecDeque<String>,
    ended: bool,
}

/// Answers with the events of `requests` requests.
pub(super) async fn answer<P: Pieces>(
    mut events: EventStream,
    requests: usize,
    mut pieces: P,
) -> Result<Response, ApiError> {
    let first = tokio::time::timeout(FIRST_EVENT, events.next()).await.ok().transpose()?;
    let ready = pieces.begin().into();
    let mut state = State { events, pieces, open: requests, ready, ended: false };
    if let Some((index, event)) = first {
        state.take(Ok((index, event)));
    }
    let stream = stream::unfold(state, |mut state| async move {
        loop {
            if let Some(data) = state.ready.pop_front() {
                return Some((Ok::<_, Infallible>(sse::Event::default().data(data)), state));
            }
            if state.ended {
                return None;
            }
            let event = state.events.next().await;
            state.take(event);
        }
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

impl<P: Pieces> State<P> {
    fn take(&mut self, event: Result<(usize, Event), Failure>) {
        let pieces = match event {
            Ok((index, event)) => {
                self.open -= usize::from(matches!(event, Event::Done));
                let mut pieces = self.pieces.event(index, event);
                if self.open == 0 {
                    pieces.extend(self.pieces.end());
                    self.ended = true;
                }
                pieces
            }
            Err(failure) => {
                self.ended = true;
                vec![json(&ApiError::from(failure))]
            }
        };
        self.ready.extend(pieces);
        if self.ended {
            self.ready.push_back("[DONE]".to_owned());
        }
    }
}

/// Our own types always have a JSON form.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

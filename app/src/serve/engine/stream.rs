//! The events of the requests of one call, from whichever engines compute them.

use std::time::Instant;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tread_core::engine::{Begun, Event, Request, RequestId, Task};

use super::handle::{EngineHandle, Slot};
use super::{Failure, Item, Ticket};

/// The events of the requests of one call. Dropping it aborts what is not finished: a client that went away costs
/// nothing from then on.
#[derive(Debug)]
pub(in super::super) struct EventStream {
    events: UnboundedReceiver<Item>,
    sender: UnboundedSender<Item>,
    handle: EngineHandle,
    requests: Vec<Underway>,
    deadline: Instant,
}

/// A request, and what was told of it.
#[derive(Debug)]
struct Underway {
    request: Request,
    /// Which engine has it, under which name.
    place: Option<(usize, RequestId)>,
    /// Its prompt is computed.
    started: bool,
    /// Continuations that are not finished.
    choices: Vec<Begun>,
}

impl EventStream {
    /// Hands the requests to engines.
    pub(super) fn begin(
        handle: EngineHandle,
        requests: Vec<Request>,
        slots: Vec<Slot>,
        deadline: Instant,
    ) -> Self {
        let (sender, events) = unbounded_channel();
        let requests = requests.into_iter().map(Underway::new).collect();
        let mut stream = Self { events, sender, handle, requests, deadline };
        for (index, slot) in slots.into_iter().enumerate() {
            if !stream.place(index, Some(slot), None) {
                let failure = Failure::Lost("no engine is left".to_owned());
                // It holds the receiver itself.
                let _ = stream.sender.send((index, Err(failure)));
            }
        }
        stream
    }

    /// The next event and the index of its request. Ask no more once every request is done.
    pub(in super::super) async fn next(&mut self) -> Result<(usize, Event), Failure> {
        loop {
            let (index, event) = match self.events.recv().await {
                Some(item) => item,
                // It holds a sender itself.
                None => return Err(Failure::Lost("the engine has ended".to_owned())),
            };
            match event {
                Ok(event) => {
                    self.requests[index].observe(&event);
                    return Ok((index, event));
                }
                Err(Failure::Lost(reason)) => {
                    let lost = self.requests[index].place.map(|(engine, _)| engine);
                    if !self.place(index, None, lost) {
                        return Err(Failure::Lost(reason));
                    }
                    tracing::warn!(reason, "a request goes on at another engine");
                }
                Err(failure) => {
                    self.requests[index].place = None;
                    return Err(failure);
                }
            }
        }
    }

    /// Hands a request, as far as it is, to an engine; false when there is none but the one that it must not be.
    fn place(&mut self, index: usize, slot: Option<Slot>, not: Option<usize>) -> bool {
        let underway = &mut self.requests[index];
        let ticket = || Ticket::new(index, self.sender.clone());
        underway.place = self.handle.place(underway.rest(), ticket, slot, self.deadline, not);
        underway.place.is_some()
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        for (engine, id) in self.requests.iter().filter_map(|r| r.place) {
            self.handle.abort(engine, id);
        }
    }
}

impl Underway {
    fn new(request: Request) -> Self {
        let n = match &request.task {
            Task::Generate(generate) => generate.n,
            Task::Embed => 0,
        };
        let choices = (0..n).map(|choice| Begun { choice, tokens: vec![] }).collect();
        Self { request, place: None, started: false, choices }
    }

    /// The request as it is to go on.
    fn rest(&self) -> Request {
        let mut request = self.request.clone();
        if let (Task::Generate(generate), true) = (&mut request.task, self.started) {
            generate.resume = Some(self.choices.clone());
        }
        request
    }

    fn observe(&mut self, event: &Event) {
        match event {
            Event::Prompt { .. } => self.started = true,
            Event::Delta(delta) if delta.finish.is_some() => {
                self.choices.retain(|begun| begun.choice != delta.choice);
            }
            Event::Delta(delta) => {
                if let Some(begun) = self.choices.iter_mut().find(|begun| begun.choice == delta.choice) {
                    begun.tokens.extend(delta.token);
                }
            }
            Event::Done | Event::Failed(_) => self.place = None,
            Event::Features(_) => {}
        }
    }
}

//! The events of a call's requests, whichever engines compute them.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout_at};
use tread_core::engine::{Begun, Event, Request, RequestId, Task};

use super::front::Front;
use super::handle::{EngineHandle, Slot};
use super::route::Nobody;
use super::{Failure, Item, Ticket};
use crate::attention::Status;

/// The events of the requests of one call. Dropping it aborts what is not finished: a client that went away costs
/// nothing from then on.
#[derive(Debug)]
pub(in super::super) struct EventStream {
    events: UnboundedReceiver<Item>,
    sender: UnboundedSender<Item>,
    handle: EngineHandle,
    requests: Vec<Underway>,
    deadline: Instant,
    /// Where the engines stand, for requests that have none.
    status: watch::Receiver<Status>,
    /// Until when these wait.
    held: Option<Instant>,
}

/// A request, and what was told of it.
#[derive(Debug)]
struct Underway {
    request: Request,
    place: Place,
    /// Its place in the server, unless an engine's thread has it.
    slot: Option<Slot>,
    /// Its prompt is computed.
    started: bool,
    /// Continuations that are not finished.
    choices: Vec<Begun>,
}

/// Where a request is.
#[derive(Debug)]
enum Place {
    /// It waits for an engine.
    Waiting,
    /// This engine has it, under this name.
    At(Arc<Front>, RequestId),
    /// It is done.
    Done,
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
        let requests = requests.into_iter().zip(slots).map(|(r, slot)| Underway::new(r, slot)).collect();
        let status = handle.watch();
        let mut stream = Self { events, sender, handle, requests, deadline, status, held: None };
        // What is wrong is told when the first event is asked for, which places once more.
        let _ = stream.place();
        stream
    }

    /// The next event and the index of its request. Ask no more once every request is done.
    pub(in super::super) async fn next(&mut self) -> Result<(usize, Event), Failure> {
        let (deadline, timeout) = (self.deadline, self.handle.request_timeout());
        timeout_at(deadline.into(), self.next_in_time()).await.unwrap_or(Err(Failure::Timeout(timeout)))
    }

    async fn next_in_time(&mut self) -> Result<(usize, Event), Failure> {
        loop {
            let waits = self.place()?;
            let item = match waits {
                None => self.events.recv().await,
                Some(why) => {
                    let held = *self.held.get_or_insert_with(|| Instant::now() + self.handle.hold());
                    tokio::select! {
                        item = self.events.recv() => item,
                        // The engines outlive their handle, which is in here.
                        _ = self.status.changed() => continue,
                        () = sleep_until(held.into()) => {
                            let seconds = self.handle.hold().as_secs_f64();
                            let why = format!("no attention worker in {seconds} seconds: {why}");
                            return Err(Failure::Unavailable(why));
                        }
                    }
                }
            };
            match item {
                Some((index, Ok(event))) => {
                    self.requests[index].observe(&event);
                    return Ok((index, event));
                }
                Some((index, Err(Failure::Lost(reason)))) => {
                    tracing::warn!(reason, "a request goes on at another engine");
                    self.requests[index].place = Place::Waiting;
                }
                Some((index, Err(failure))) => {
                    self.requests[index].place = Place::Done;
                    return Err(failure);
                }
                // It holds a sender itself.
                None => return Err(Failure::Lost("the engine has ended".to_owned())),
            }
        }
    }

    /// Hands those that wait, as far as they are, to engines. Returns why one has to wait still.
    fn place(&mut self) -> Result<Option<String>, Failure> {
        // What changes from here on is seen later.
        self.status.mark_unchanged();
        let all = self.requests.iter_mut().enumerate();
        for (index, underway) in all.filter(|(_, underway)| matches!(underway.place, Place::Waiting)) {
            let ticket = || Ticket::new(index, self.sender.clone());
            match self.handle.place(underway.rest(), ticket, &mut underway.slot) {
                Ok((engine, id)) => underway.place = Place::At(engine, id),
                Err(Nobody::Yet(why)) => return Ok(Some(why)),
                Err(Nobody::Ever(why)) => return Err(Failure::Lost(why)),
                Err(Nobody::Stopped) => return Err(Failure::Stopping),
            }
        }
        self.held = None;
        Ok(None)
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        for underway in &self.requests {
            if let Place::At(engine, id) = &underway.place {
                engine.abort(*id);
            }
        }
    }
}

impl Underway {
    fn new(request: Request, slot: Slot) -> Self {
        let n = match &request.task {
            Task::Generate(generate) => generate.n,
            Task::Embed => 0,
        };
        let choices = (0..n).map(|choice| Begun { choice, tokens: vec![] }).collect();
        Self { request, place: Place::Waiting, slot: Some(slot), started: false, choices }
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
            Event::Done | Event::Failed(_) => self.place = Place::Done,
            Event::Features(_) => {}
        }
    }
}

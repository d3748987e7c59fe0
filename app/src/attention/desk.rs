//! An attention worker's engine and those who use it: servers that come and go, each with requests of its own.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use anyhow::{Result, bail};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tread_core::engine::{Event, Request, RequestId, Task};
use tread_core::grammar::{Grammar, GrammarCompiler, GrammarSource};
use tread_core::model::Model;
use tread_core::monitor::{Standing, StepEvent};

use super::hello::{Terms, Welcome};
use super::thread::{self, Device};
use super::wire::{self, Sent};
use super::{Order, Report, Status};
use crate::afd::transport::Attended;

/// Bits of a request's name that are its server's; above them is which server it is.
const NAME_BITS: u32 = 40;

/// The engine; a clone is the same one.
#[derive(Clone, Debug)]
pub(crate) struct Desk(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    welcome: Welcome,
    model: Arc<Model>,
    grammars: Mutex<Option<GrammarCompiler>>,
    orders: mpsc::Sender<Order>,
    state: Mutex<State>,
    status: watch::Sender<Status>,
    /// How many servers are here.
    count: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct State {
    servers: HashMap<u64, Server>,
    next: u64,
    standing: Standing,
    draining: bool,
}

/// One who uses the engine.
#[derive(Debug)]
struct Server {
    reports: UnboundedSender<Bytes>,
    /// Its requests, by the engine's names.
    active: HashSet<RequestId>,
    measures: bool,
}

/// A server's seat at the desk; giving it up gives up its requests.
#[derive(Debug)]
pub(super) struct Seat {
    desk: Desk,
    server: u64,
}

impl Desk {
    /// Starts the engine and waits until it has loaded the model.
    ///
    /// # Errors
    /// When the device cannot be opened or does not take the model.
    pub(crate) fn start(device: Device, terms: Terms) -> Result<Self> {
        let (orders, receiver) = mpsc::channel();
        let incarnation = uuid::Uuid::new_v4().as_u64_pair().0;
        let desk = Self(Arc::new(Shared {
            welcome: Welcome { terms, incarnation },
            model: Arc::clone(&device.model),
            grammars: Mutex::default(),
            orders,
            state: Mutex::default(),
            status: watch::Sender::new(Status::Loading),
            count: watch::Sender::new(0),
        }));
        let hears = desk.clone();
        // It ends with the process, at the latest.
        thread::start(0, device, receiver, Box::new(move |report| hears.hear(report)))?;
        let mut status = desk.0.status.subscribe();
        let loaded = pollster::block_on(status.wait_for(|status| *status != Status::Loading));
        if let Ok(Status::Failed(why)) = loaded.as_deref() {
            bail!("{why}");
        }
        drop(loaded);
        Ok(desk)
    }

    /// What it says of itself.
    pub(crate) fn welcome(&self) -> &Welcome {
        &self.0.welcome
    }

    /// What it computes on, for people.
    pub(crate) fn device(&self) -> String {
        match &*self.0.status.borrow() {
            Status::Ready(running) => running.device.clone(),
            _ => String::new(),
        }
    }

    /// Whether it takes no new requests.
    pub(super) fn is_draining(&self) -> bool {
        self.state().draining
    }

    /// Lets a server in; what it hears, first of all where the engine stands, comes from the receiver.
    pub(super) fn attach(&self) -> (Seat, UnboundedReceiver<Bytes>) {
        let (reports, receiver) = unbounded_channel();
        let mut state = self.state();
        let status = if state.draining { Status::Draining } else { self.0.status.borrow().clone() };
        for report in [Report::Standing(state.standing), Report::Status(status)] {
            // It holds the receiver itself.
            let _ = reports.send(wire::report(&report));
        }
        let server = state.next;
        state.next += 1;
        state.servers.insert(server, Server { reports, active: HashSet::new(), measures: false });
        self.0.count.send_replace(state.servers.len());
        (Seat { desk: self.clone(), server }, receiver)
    }

    /// What the engine says goes to whom it concerns.
    fn hear(&self, report: Report) {
        let mut state = self.state();
        match report {
            Report::Event { id, event, time } => {
                let Some(server) = state.servers.get_mut(&(id.0 >> NAME_BITS)) else { return };
                if matches!(event, Event::Done | Event::Failed(_)) {
                    server.active.remove(&id);
                }
                server.send(&Report::Event { id: theirs(id), event, time });
            }
            Report::Step(step, standing) => {
                state.standing = standing;
                for (number, server) in &state.servers {
                    server.send(&Report::Step(step_for(*number, step.clone()), standing));
                }
            }
            Report::Standing(standing) => {
                state.standing = standing;
                state.tell(&Report::Standing(standing));
            }
            Report::Status(status) => {
                // Whoever waits for the end must find that everybody was told.
                if !state.draining || matches!(status, Status::Failed(_)) {
                    state.tell(&Report::Status(status.clone()));
                }
                self.0.status.send_replace(status);
            }
            Report::DeviceLost => state.tell(&Report::DeviceLost),
        }
    }

    fn give(&self, order: Order) {
        // An engine that has ended has said so.
        let _ = self.0.orders.send(order);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has steps measured while one wants that.
    fn measure(&self, state: &State) {
        self.give(Order::Measure(state.servers.values().any(|server| server.measures)));
    }

    /// Compiles a grammar; may take long.
    fn compile(&self, source: &GrammarSource) -> tread_core::Result<Grammar> {
        let compiler = {
            let mut grammars = self.0.grammars.lock().unwrap_or_else(PoisonError::into_inner);
            match &*grammars {
                Some(compiler) => compiler.clone(),
                None => grammars.insert(GrammarCompiler::new(&self.0.model)?).clone(),
            }
        };
        compiler.compile_source(source)
    }

    /// Hands a request on if nobody has given it up meanwhile.
    fn submit_if_wanted(&self, id: RequestId, request: Request) {
        let state = self.state();
        if state.servers.get(&(id.0 >> NAME_BITS)).is_some_and(|server| server.active.contains(&id)) {
            self.give(Order::Submit(id, Box::new(request)));
        }
    }
}

#[async_trait]
impl Attended for Desk {
    fn drain(&self) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.draining, true) {
            state.tell(&Report::Status(Status::Draining));
        }
    }

    async fn deserted(&self) {
        // The sender is in `self`, so this cannot fail.
        let _ = self.0.count.subscribe().wait_for(|count| *count == 0).await;
    }

    async fn ended(&self) -> String {
        let mut status = self.0.status.subscribe();
        match status.wait_for(|status| matches!(status, Status::Failed(_))).await.as_deref() {
            Ok(Status::Failed(why)) => why.clone(),
            _ => String::new(),
        }
    }
}

impl State {
    fn tell(&self, report: &Report) {
        let data = wire::report(report);
        self.servers.values().for_each(|server| drop(server.reports.send(data.clone())));
    }
}

impl Server {
    fn send(&self, report: &Report) {
        // One that has gone gives its seat up.
        let _ = self.reports.send(wire::report(report));
    }
}

impl Seat {
    /// Takes an order.
    ///
    /// # Errors
    /// When it makes no sense.
    pub(super) fn obey(&self, data: &[u8]) -> Result<(), String> {
        match wire::read_order(data)? {
            Sent::Submit { id, mut request, grammar } => {
                let id = self.ours(id)?;
                if let Some(server) = self.desk.state().servers.get_mut(&self.server) {
                    server.active.insert(id);
                }
                let Some(source) = grammar else {
                    self.desk.give(Order::Submit(id, Box::new(request)));
                    return Ok(());
                };
                let desk = self.desk.clone();
                // Nobody else is to wait for a large grammar.
                tokio::task::spawn_blocking(move || match desk.compile(&source) {
                    Ok(grammar) => {
                        if let Task::Generate(generate) = &mut request.task {
                            generate.grammar = Some(grammar);
                        }
                        desk.submit_if_wanted(id, request);
                    }
                    Err(error) => {
                        desk.hear(Report::Event { id, event: Event::Failed(error), time: None });
                    }
                });
            }
            Sent::Abort(id) => {
                let id = self.ours(id)?;
                let mut state = self.desk.state();
                if state.servers.get_mut(&self.server).is_some_and(|server| server.active.remove(&id)) {
                    self.desk.give(Order::Abort(id));
                }
            }
            Sent::Measure(measures) => {
                let mut state = self.desk.state();
                if let Some(server) = state.servers.get_mut(&self.server) {
                    server.measures = measures;
                }
                self.desk.measure(&state);
            }
        }
        Ok(())
    }

    fn ours(&self, RequestId(id): RequestId) -> Result<RequestId, String> {
        if id >> NAME_BITS != 0 {
            return Err(format!("{id} is no name for a request: it has more than {NAME_BITS} bits"));
        }
        Ok(RequestId((self.server << NAME_BITS) | id))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.desk.state();
        if let Some(server) = state.servers.remove(&self.server) {
            server.active.into_iter().for_each(|id| self.desk.give(Order::Abort(id)));
            self.desk.measure(&state);
        }
        self.desk.0.count.send_replace(state.servers.len());
    }
}

fn theirs(id: RequestId) -> RequestId {
    RequestId(id.0 & ((1 << NAME_BITS) - 1))
}

/// A step as one of the servers sees it: its own requests have its own names.
fn step_for(server: u64, mut step: StepEvent) -> StepEvent {
    for row in &mut step.rows {
        if row.request >> NAME_BITS == server {
            row.request = theirs(RequestId(row.request)).0;
        }
    }
    step
}

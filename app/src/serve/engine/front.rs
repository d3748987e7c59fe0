//! An engine as the server sees it: the requests it has, and where its reports go.

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;
use tread_core::Error;
use tread_core::engine::{Event, Request, RequestId};
use tread_core::monitor::TokenTime;

use super::super::events::Feed;
use super::super::metrics::Metrics;
use super::super::record::Record;
use super::handle::Slot;
use super::status::Board;
use super::{Failure, Ticket};
use crate::attention::{Order, Report, Status};

/// An engine.
#[derive(Debug)]
pub(super) struct Front {
    /// Which of the server's engines it is.
    index: usize,
    board: Arc<Board>,
    feed: Arc<Feed>,
    metrics: Arc<Metrics>,
    /// Sequences that it has.
    load: Arc<AtomicUsize>,
    state: Mutex<State>,
    /// It has nothing left.
    idle: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The way to it; none: it is away.
    orders: Option<Orders>,
    active: HashMap<RequestId, Active>,
}

/// The way to an engine.
#[derive(Debug)]
pub(super) enum Orders {
    /// A thread of this process.
    Here(mpsc::Sender<Order>),
    /// A worker's.
    There(UnboundedSender<Order>),
}

/// A request that the engine has.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) ticket: Ticket,
    pub(super) record: Record,
    /// In the server and in the engine; held until the request ends.
    pub(super) _slots: [Slot; 2],
}

impl Orders {
    fn send(&self, order: Order) {
        // An engine that is gone is noticed by whoever hears its reports.
        match self {
            Self::Here(orders) => drop(orders.send(order)),
            Self::There(orders) => drop(orders.send(order)),
        }
    }
}

impl Front {
    /// An engine that is away.
    pub(super) fn new(index: usize, board: Arc<Board>, feed: Arc<Feed>, metrics: Arc<Metrics>) -> Self {
        Self {
            index,
            board,
            feed,
            metrics,
            load: Arc::default(),
            state: Mutex::default(),
            idle: Notify::new(),
        }
    }

    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// The count of its sequences.
    pub(super) fn load(&self) -> &Arc<AtomicUsize> {
        &self.load
    }

    /// Whether it can be given orders.
    pub(super) fn is_connected(&self) -> bool {
        self.state().orders.is_some()
    }

    /// It is there.
    pub(super) fn connect(&self, orders: Orders) {
        self.state().orders = Some(orders);
    }

    /// It is gone, and all that it had is lost.
    pub(super) fn lose(&self, status: Status, why: &str) {
        // First, so that nobody who loses it comes back to it.
        self.set(status);
        self.state().orders = None;
        self.fail_all(|| Failure::Lost(why.to_owned()));
        self.metrics.standing(&self.feed.ended(self.index));
    }

    /// Where it stands.
    pub(super) fn set(&self, status: Status) {
        self.board.set(self.index, Some(status));
    }

    /// Gives it an order.
    pub(super) fn send(&self, order: Order) {
        if let Some(orders) = &self.state().orders {
            orders.send(order);
        }
    }

    /// Gives it a request. If it is away, the ticket says so.
    pub(super) fn submit(&self, id: RequestId, request: Request, active: Active) {
        let mut state = self.state();
        let State { orders: Some(orders), active: all } = &mut *state else { return };
        all.insert(id, active);
        orders.send(Order::Submit(id, Box::new(request)));
    }

    /// Nobody waits for a request any more.
    pub(super) fn abort(&self, id: RequestId) {
        if let Some(active) = self.remove(id) {
            self.send(Order::Abort(id));
            active.record.aborted(&self.metrics);
        }
    }

    /// Ends it; requests that are not finished fail.
    pub(super) fn stop(&self) {
        if let Some(orders) = self.state().orders.take() {
            orders.send(Order::Stop);
        }
        self.fail_all(|| Failure::Stopping);
    }

    /// Waits until it has no requests.
    pub(super) async fn deserted(&self) {
        while !self.state().active.is_empty() {
            self.idle.notified().await;
        }
    }

    /// What the engine says.
    pub(super) fn hear(&self, report: Report) {
        match report {
            Report::Status(Status::Failed(why)) => self.lose(Status::Failed(why.clone()), &why),
            Report::Status(status) => self.set(status),
            Report::Event { id, event, time } => self.deliver(id, event, time),
            Report::Step(step, standing) => {
                self.metrics.step(&step);
                self.metrics.standing(&self.feed.step(self.index, step, standing));
            }
            Report::Standing(standing) => self.metrics.standing(&self.feed.standing(self.index, standing)),
            Report::DeviceLost => self.metrics.live.device_lost.increment(1),
        }
    }

    fn deliver(&self, id: RequestId, event: Event, time: Option<TokenTime>) {
        let ends = matches!(event, Event::Done | Event::Failed(_));
        // If it is not there, nobody waits for it any more.
        if let Some(active) = self.state().active.get_mut(&id) {
            active.tell(event, time, &self.metrics);
        }
        if ends {
            self.remove(id);
        }
    }

    fn remove(&self, id: RequestId) -> Option<Active> {
        let mut state = self.state();
        let active = state.active.remove(&id);
        if state.active.is_empty() {
            self.idle.notify_one();
        }
        active
    }

    fn fail_all(&self, failure: impl Fn() -> Failure) {
        let all = std::mem::take(&mut self.state().active);
        self.idle.notify_one();
        for mut active in all.into_values() {
            active.ticket.send(Err(failure()));
            active.record.aborted(&self.metrics);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Active {
    fn tell(&mut self, event: Event, time: Option<TokenTime>, metrics: &Metrics) {
        self.record.observe(&event, time, metrics);
        self.ticket.send(match event {
            Event::Failed(Error::Unavailable(reason)) => Err(Failure::Unavailable(reason)),
            Event::Failed(error) => Err(Failure::Request(error)),
            event => Ok(event),
        });
    }
}

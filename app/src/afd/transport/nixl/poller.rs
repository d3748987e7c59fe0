//! The thread that drives all links of this process. NIXL calls nobody back: it must be asked, again and again.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use bytes::Bytes;

use super::link::Link;

/// How often links without anything to do are asked at once,
const SPINS: u32 = 100;
/// how often then after everybody else had a turn,
const YIELDS: u32 = 100;
/// and after which pauses then: doubled from the first to the last. An order ends a pause.
const PAUSES: [Duration; 2] = [Duration::from_micros(20), Duration::from_millis(1)];

enum Order {
    Add(u64, Box<Link>),
    Post(u64, usize, Bytes),
    Remove(u64),
}

/// What is posted here, the other side of a link reads. Dropping it ends the link.
#[derive(Debug)]
pub(in crate::afd::transport) struct Posts {
    link: u64,
    orders: Sender<Order>,
}

impl Posts {
    /// Puts a frame into a slot. A link that has failed is noticed where its frames arrive.
    pub(in crate::afd::transport) fn post(&self, slot: usize, frame: Bytes) {
        // The thread lasts as long as the process.
        let _ = self.orders.send(Order::Post(self.link, slot, frame));
    }
}

impl Drop for Posts {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Remove(self.link));
    }
}

/// Drives a link from now on.
///
/// # Errors
/// When the thread cannot be started.
pub(super) fn add(link: Link) -> Result<Posts, String> {
    static LINKS: AtomicU64 = AtomicU64::new(0);
    static ORDERS: OnceLock<Option<Sender<Order>>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (sender, orders) = channel();
        thread::Builder::new().name("nixl".to_owned()).spawn(move || run(&orders)).ok().map(|_| sender)
    });
    let orders = orders.clone().ok_or("the thread for NIXL could not be started")?;
    let id = LINKS.fetch_add(1, Ordering::Relaxed);
    let _ = orders.send(Order::Add(id, Box::new(link)));
    Ok(Posts { link: id, orders })
}

fn run(orders: &Receiver<Order>) {
    let mut links = BTreeMap::new();
    let mut idle = 0;
    loop {
        let first = if links.is_empty() { orders.recv().ok() } else { rest(orders, idle) };
        let mut any = first.is_some();
        for order in first.into_iter().chain(orders.try_iter()) {
            obey(&mut links, order);
        }
        let mut failed = vec![];
        for (id, link) in &mut links {
            match link.progress() {
                Ok(some) => any |= some,
                Err(why) => failed.push((*id, why)),
            }
        }
        for (id, why) in failed {
            end(links.remove(&id), Some(why));
        }
        idle = if any { 0 } else { idle.saturating_add(1) };
    }
}

/// Waits, the longer the more often nothing has happened: whoever spins on a shared processor takes from others the time
/// in which they would have answered. Returns an order that came meanwhile.
fn rest(orders: &Receiver<Order>, idle: u32) -> Option<Order> {
    if idle < SPINS {
        std::hint::spin_loop();
        return None;
    }
    let Some(pauses) = idle.checked_sub(SPINS + YIELDS) else {
        thread::yield_now();
        return None;
    };
    let [first, last] = PAUSES;
    orders.recv_timeout(first.saturating_mul(1 << pauses.min(16)).min(last)).ok()
}

fn obey(links: &mut BTreeMap<u64, Box<Link>>, order: Order) {
    match order {
        Order::Add(id, link) => drop(links.insert(id, link)),
        Order::Post(id, slot, frame) => {
            if let Some(link) = links.get_mut(&id)
                && let Err(why) = link.post(slot, &frame)
            {
                end(links.remove(&id), Some(why));
            }
        }
        Order::Remove(id) => end(links.remove(&id), None),
    }
}

/// Closing takes milliseconds, in which no other link must wait.
fn end(link: Option<Box<Link>>, why: Option<String>) {
    let Some(link) = link else { return };
    if let Some(why) = why {
        link.fail(why);
    }
    // Without a thread it is closed at once all the same.
    let _ = thread::Builder::new().name("nixl close".to_owned()).spawn(move || drop(link));
}

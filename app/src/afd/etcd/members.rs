//! Who is registered, for those who want to ask them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use tokio::sync::watch;

use super::coordinator::coordinate;
use super::follow::{Follow, Item};
use super::{ATTENTION, Etcd, PAUSE, Table, Trouble};
use crate::afd::hello::Terms;
use crate::afd::place::Place;
use crate::afd::pool::{Membership, runtime};

/// The workers of a kind that are registered in etcd. Whoever has such a thing of FFN workers is also one of those of whom one
/// is elected to write the routing table.
#[derive(Debug)]
pub struct Registered {
    etcd: Etcd,
    /// What FFN workers must agree to; none: attention workers.
    terms: Option<Terms>,
    watched: OnceLock<Watched>,
}

impl Registered {
    /// The FFN workers in the routing table. `terms` without a number of shards (0) leave that to the workers.
    pub fn ffn(etcd: Etcd, terms: Terms) -> Self {
        Self { etcd, terms: Some(terms), watched: OnceLock::new() }
    }

    /// All attention workers.
    pub fn attention(etcd: Etcd) -> Self {
        Self { etcd, terms: None, watched: OnceLock::new() }
    }
}

impl Membership for Registered {
    fn watch(&self) -> Result<watch::Receiver<Vec<Place>>> {
        let watched = match self.watched.get() {
            Some(watched) => watched,
            None => {
                let watched = Watched::start(self.etcd.clone(), self.terms.clone())?;
                self.watched.get_or_init(|| watched)
            }
        };
        Ok(watched.told.places.subscribe())
    }

    fn why(&self) -> String {
        self.watched.get().map(|watched| watched.told.why()).unwrap_or_default()
    }
}

/// A thread that watches. It has a runtime of its own, because it outlives those on which it is asked.
#[derive(Debug)]
struct Watched {
    told: Arc<Told>,
    stop: Option<watch::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What is known.
#[derive(Debug, Default)]
struct Told {
    places: watch::Sender<Vec<Place>>,
    why: Mutex<String>,
}

impl Told {
    fn why(&self) -> String {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_why(&self, why: String) {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    fn set(&self, places: &[Place]) {
        self.places.send_if_modified(|old| {
            let new = old.as_slice() != places;
            *old = places.to_vec();
            new
        });
    }
}

impl Watched {
    fn start(etcd: Etcd, terms: Option<Terms>) -> Result<Self> {
        let (told, stop) = (Arc::new(Told::default()), watch::Sender::new(()));
        let (shared, stopped) = (Arc::clone(&told), stop.subscribe());
        let runtime = runtime()?;
        let body = move || {
            runtime.block_on(async {
                match &terms {
                    Some(terms) => ffn(&etcd, terms, &shared, stopped).await,
                    None => attention(&etcd, &shared, stopped).await,
                }
            });
        };
        let thread =
            std::thread::Builder::new().name("etcd".to_owned()).spawn(body).context("starting a thread")?;
        Ok(Self { told, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A thread that has panicked has nothing left to end.
            let _ = thread.join();
        }
    }
}

async fn ffn(etcd: &Etcd, terms: &Terms, told: &Told, stop: watch::Receiver<()>) {
    let seen = AtomicU64::new(0);
    let tell = |items: &[Item]| {
        let table = items.iter().find(|item| item.key == etcd.table_key());
        match table.map(|item| serde_json::from_slice::<Table>(&item.value)) {
            Some(Ok(table)) => take(etcd, terms, &table, &seen, told),
            Some(Err(error)) => {
                told.set_why(format!("{} in {etcd} cannot be read: {error}", etcd.table_key()))
            }
            // etcd has lost its data; the last table goes on to be good.
            None => {}
        }
    };
    let key = etcd.table_key();
    tokio::select! {
        () = follow(etcd, &key, told, tell) => {}
        // Ends when it is told to.
        () = coordinate(etcd, terms, &seen, stop) => {}
    }
}

/// Goes by a table if it is a newer one.
fn take(etcd: &Etcd, terms: &Terms, table: &Table, seen: &AtomicU64, told: &Told) {
    let shards = if terms.shards == 0 { table.terms.shards } else { terms.shards };
    if let Err(why) = (Terms { shards, ..terms.clone() }).check(&table.terms) {
        let key = etcd.table_key();
        let why = format!(
            "{key} in {etcd} is for others, who have {why}; take another --etcd-prefix for this model"
        );
        tracing::error!("{why}");
        return told.set_why(why);
    }
    let last = seen.fetch_max(table.epoch, Ordering::Relaxed);
    if table.epoch < last {
        tracing::warn!(epoch = table.epoch, last, "a routing table older than the last one is not taken");
        return;
    }
    let out: Vec<_> = table.out.values().cloned().collect();
    told.set_why(out.join("; "));
    told.set(&table.places());
}

async fn attention(etcd: &Etcd, told: &Told, mut stop: watch::Receiver<()>) {
    #[derive(Deserialize)]
    struct Address {
        address: String,
    }
    let tell = |items: &[Item]| {
        let mut items: Vec<_> = items.iter().collect();
        items.sort_by_key(|item| item.created);
        let mut places = vec![];
        for Address { address } in items.iter().filter_map(|item| serde_json::from_slice(&item.value).ok()) {
            // Who was started anew is there twice until its former lease has run out.
            if !places.contains(&Place::Address(address.clone())) {
                places.push(Place::Address(address));
            }
        }
        told.set_why(String::new());
        told.set(&places);
    };
    let key = etcd.key(ATTENTION, None);
    tokio::select! {
        () = follow(etcd, &key, told, tell) => {}
        _ = stop.changed() => {}
    }
}

/// Tells of what lies in etcd for ever, whatever happens to etcd.
async fn follow(etcd: &Etcd, key: &str, told: &Told, tell: impl Fn(&[Item])) {
    let mut trouble = Trouble::default();
    loop {
        let error = match etcd.connect().await {
            Ok(client) => {
                let mut follow = Follow::new(client, key.to_owned());
                loop {
                    match follow.next().await {
                        Ok(items) => {
                            trouble.over(etcd);
                            tell(&items);
                        }
                        Err(error) => break error,
                    }
                }
            }
            Err(error) => error,
        };
        let text = etcd.trouble(&error);
        told.set_why(text.clone());
        trouble.is(format!("{text} Until it does, those who are known are asked"));
        tokio::time::sleep(PAUSE).await;
    }
}

//! The routing table: which FFN workers are asked for each shard. It is made of records and nothing else, so tests need no
//! etcd.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::follow::Item;
use crate::afd::hello::{Terms, Welcome};
use crate::afd::place::Place;

/// What an FFN worker says of itself in etcd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Where it is reached: `host:port`.
    pub address: String,
    /// What it is.
    #[serde(flatten)]
    pub worker: Welcome,
}

/// A worker in the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it is reached.
    pub address: String,
    /// In which life.
    pub incarnation: u64,
}

/// Who is asked for what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Grows with every table.
    pub epoch: u64,
    /// What its workers agree on.
    pub terms: Terms,
    /// The workers of each shard, in the order in which they came.
    pub shards: Vec<Vec<Entry>>,
    /// Who stays out, by key, and why.
    pub out: BTreeMap<String, String>,
}

impl Table {
    /// A table, still without an epoch, of all who fit what attention wants. When it leaves open how many shards there are
    /// (0), there are as many as in the table `before` if anybody holds one of those, else as the first who fits says.
    pub(super) fn of(wanted: &Terms, before: Option<&Self>, items: &[Item]) -> Self {
        let mut items: Vec<_> = items.iter().collect();
        items.sort_by_key(|item| item.created);
        let mut out = BTreeMap::new();
        let mut records: Vec<(&str, Record)> = vec![];
        for item in items {
            match serde_json::from_slice::<Record>(&item.value) {
                Ok(record) => {
                    // What listened there before is no more, even if its lease still lasts.
                    records.retain(|(_, old)| old.address != record.address);
                    records.push((&item.key, record));
                }
                Err(error) => {
                    drop(out.insert(item.key.clone(), format!("its record cannot be read: {error}")))
                }
            }
        }
        let terms = Terms { shards: shards(wanted, before, &records), ..wanted.clone() };
        let mut table = Self { epoch: 0, shards: vec![vec![]; terms.shards], terms, out };
        for (key, Record { address, worker }) in records {
            let fits = table.terms.check(&worker.terms);
            match (fits, table.shards.get_mut(worker.shard)) {
                (Ok(()), Some(shard)) => shard.push(Entry { address, incarnation: worker.incarnation }),
                (Ok(()), None) => {
                    let why =
                        format!("{address} says it holds shard {} of {}", worker.shard, table.terms.shards);
                    table.out.insert(key.to_owned(), why);
                }
                (Err(why), _) => drop(table.out.insert(key.to_owned(), format!("{address} has {why}"))),
            }
        }
        table
    }

    /// The next epoch: one more than that of the table in place, or than any that was seen. Where etcd has none, because it
    /// is new or has lost its data, epochs begin with the time in milliseconds, so that they are later than all that was
    /// forgotten: tables are not written every millisecond.
    pub(super) fn epoch_after(in_place: Option<u64>, seen: u64, now_ms: u64) -> u64 {
        in_place.unwrap_or(now_ms.saturating_sub(1)).max(seen) + 1
    }

    /// Whether they differ in their epochs only.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        Self { epoch: other.epoch, ..self.clone() } == *other
    }

    /// Where its workers are.
    pub(super) fn places(&self) -> Vec<Place> {
        self.shards.iter().flatten().map(|entry| Place::Address(entry.address.clone())).collect()
    }
}

/// How many shards there are.
fn shards(wanted: &Terms, before: Option<&Table>, records: &[(&str, Record)]) -> usize {
    let fits = |shards: usize, record: &Record| {
        Terms { shards, ..wanted.clone() }.check(&record.worker.terms).is_ok()
    };
    let held = |shards: usize| records.iter().any(|(_, record)| fits(shards, record));
    let first = records.iter().map(|(_, r)| (r.worker.terms.shards, r)).find(|(shards, r)| fits(*shards, r));
    match before.map(|table| table.terms.shards) {
        _ if wanted.shards > 0 => wanted.shards,
        Some(shards) if held(shards) => shards,
        _ => first.map_or(0, |(shards, _)| shards),
    }
}

#[cfg(test)]
mod tests;

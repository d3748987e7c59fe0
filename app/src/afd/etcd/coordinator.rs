//! The coordinator: of all processes with attention, the one that writes the routing table.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
use tokio::sync::watch;

use super::follow::{Follow, Item};
use super::{Etcd, FFN, Lease, PAUSE, REQUEST, Table, explain, within};
use crate::afd::hello::Terms;

/// Who was elected, under a lease. When the lease runs out somebody else is, and this one's tables are refused.
pub struct Leader {
    client: Client,
    table: String,
    /// What it was elected by: a key, and the revision in which that was made.
    key: Vec<u8>,
    revision: i64,
}

impl std::fmt::Debug for Leader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leader").field("revision", &self.revision).finish_non_exhaustive()
    }
}

impl Leader {
    /// Waits until it is elected.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn elected(etcd: &Etcd, lease: &Lease) -> Result<Self> {
        let mut client = lease.client.clone();
        let name = format!("{}/coordinator", etcd.prefix);
        let answer = client.campaign(name, std::process::id().to_string(), lease.id).await;
        let answer = answer.map_err(|error| explain(&error))?;
        let leader = answer.leader().context("an election without a leader")?;
        let (key, revision) = (leader.key().to_vec(), leader.rev());
        Ok(Self { client, table: etcd.table_key(), key, revision })
    }

    /// Writes a table over the one that was last written in revision `over` (0: there is none).
    ///
    /// # Errors
    /// When somebody else was elected since, or has written another table; or when etcd does not answer.
    pub async fn write(&mut self, table: &Table, over: i64) -> Result<()> {
        let request = Txn::new()
            .when([
                Compare::create_revision(self.key.as_slice(), CompareOp::Equal, self.revision),
                Compare::mod_revision(self.table.as_str(), CompareOp::Equal, over),
            ])
            .and_then([TxnOp::put(self.table.as_str(), serde_json::to_vec(table)?, None)]);
        let written = within(REQUEST, self.client.txn(request)).await?.succeeded();
        ensure!(written, "another process has become the coordinator, so the table of this one is refused");
        Ok(())
    }
}

/// Stands for election again and again, and writes tables when elected, until `stop` is closed. `seen`: the latest epoch
/// that anybody here has seen.
pub(super) async fn coordinate(etcd: &Etcd, terms: &Terms, seen: &AtomicU64, mut stop: watch::Receiver<()>) {
    loop {
        match Lease::grant(etcd).await {
            Ok(lease) => {
                let ended = tokio::select! {
                    Err(error) = rule(etcd, &lease, terms, seen) => error,
                    () = lease.kept() => anyhow::anyhow!("its lease has run out"),
                    _ = stop.changed() => return lease.revoke().await,
                };
                tracing::warn!(
                    "this process does not stand for coordinator any more: {ended:#}; it will again"
                );
                lease.revoke().await;
            }
            // Those who watch the table say so.
            Err(error) => tracing::debug!("{}", etcd.trouble(&error)),
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            _ = stop.changed() => return,
        }
    }
}

/// Writes a table whenever another one is due.
async fn rule(
    etcd: &Etcd,
    lease: &Lease,
    terms: &Terms,
    seen: &AtomicU64,
) -> Result<std::convert::Infallible> {
    let mut leader = Leader::elected(etcd, lease).await?;
    tracing::info!("this process is the coordinator: it writes {} in {etcd}", leader.table);
    let mut all = Follow::new(leader.client.clone(), format!("{}/", etcd.prefix));
    let workers = etcd.key(FFN, None);
    loop {
        let items = all.next().await?;
        let in_place = items.iter().find(|item| item.key == leader.table);
        let before = in_place.and_then(|item| serde_json::from_slice::<Table>(&item.value).ok());
        let records: Vec<Item> =
            items.iter().filter(|item| item.key.starts_with(&workers)).cloned().collect();
        let mut table = Table::of(terms, before.as_ref(), &records);
        if before.as_ref().is_some_and(|before| before.says_the_same(&table)) {
            continue;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64);
        let epoch = before.as_ref().map(|before| before.epoch);
        table.epoch = Table::epoch_after(epoch, seen.load(Ordering::Relaxed), now);
        leader.write(&table, in_place.map_or(0, |item| item.modified)).await?;
        tracing::info!(epoch = table.epoch, workers = table.places().len(), "a new routing table");
        for (key, why) in &table.out {
            if before.as_ref().is_none_or(|before| before.out.get(key) != Some(why)) {
                tracing::warn!(key, "an FFN worker stays out of the routing table: {why}");
            }
        }
    }
}

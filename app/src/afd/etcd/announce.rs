//! A worker's record in etcd, for as long as the worker lives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{Etcd, Lease, PAUSE, REQUEST, Trouble, within};

/// How long a withdrawal may take.
const WITHDRAW: Duration = Duration::from_secs(3);

/// Who is announced.
pub trait Announced: Send + Sync + 'static {
    /// The incarnation, and what others are to know: an object with an `address`, `host:port`.
    fn record(&self) -> (u64, Value);

    /// Until then it may speak under its incarnation; none: for as long as it likes.
    fn may_answer(&self, until: Option<Instant>);

    /// To others it is dead: it must not speak under its incarnation any more, and takes another one.
    fn begin_anew(&self);
}

/// An announcement. Dropping it leaves the record to its lease.
#[derive(Debug)]
pub struct Announcement {
    withdraw: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// Announces a worker of a kind: [`FFN`](super::FFN), [`ATTENTION`](super::ATTENTION). Called on a runtime. Keeps on trying
/// while etcd cannot be reached.
pub fn announce(etcd: Etcd, kind: &'static str, who: Arc<dyn Announced>) -> Announcement {
    let (withdraw, withdrawn) = oneshot::channel();
    let task = tokio::spawn(keep(etcd, kind, who, withdrawn));
    Announcement { withdraw, task }
}

impl Announcement {
    /// Takes the record away, at once if etcd can be reached. The worker may answer what it still has.
    pub async fn withdraw(self) {
        // The task ends before only when it panicked.
        let _ = self.withdraw.send(());
        let _ = tokio::time::timeout(WITHDRAW, self.task).await;
    }
}

/// Registers, renews, and registers anew when the record is gone, until the announcement is withdrawn.
async fn keep(etcd: Etcd, kind: &'static str, who: Arc<dyn Announced>, mut withdrawn: oneshot::Receiver<()>) {
    let mut trouble = Trouble::default();
    loop {
        let registered = tokio::select! {
            registered = register(&etcd, kind, &*who) => registered,
            _ = &mut withdrawn => return who.may_answer(None),
        };
        match registered {
            Ok((key, lease)) => {
                trouble.over(&etcd);
                tokio::select! {
                    () = stay(&etcd, &key, &lease, &*who, &mut trouble) => {
                        tracing::warn!(key, "the record in {etcd} is gone; this worker begins another life");
                        who.begin_anew();
                    }
                    _ = &mut withdrawn => {
                        lease.revoke().await;
                        return who.may_answer(None);
                    }
                }
            }
            Err(error) => {
                // Nobody can be told that it is dead.
                who.may_answer(None);
                trouble.is(format!("{} Until it does, nobody finds this worker", etcd.trouble(&error)));
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    _ = &mut withdrawn => return,
                }
            }
        }
    }
}

/// Makes the record, which must not be there yet.
async fn register(etcd: &Etcd, kind: &str, who: &dyn Announced) -> Result<(String, Lease)> {
    let asked = Instant::now();
    let lease = Lease::grant(etcd).await?;
    let (incarnation, record) = who.record();
    let key = etcd.key(kind, Some(incarnation));
    let put = PutOptions::new().with_lease(lease.id);
    let request = Txn::new()
        .when([Compare::create_revision(key.as_str(), CompareOp::Equal, 0)])
        .and_then([TxnOp::put(key.as_str(), record.to_string(), Some(put))]);
    if !within(REQUEST, lease.client.clone().txn(request)).await?.succeeded() {
        // This very process may have made it, and not have heard of that.
        who.begin_anew();
        lease.revoke().await;
        bail!("{key} is there already");
    }
    who.may_answer(Some(asked + lease.ttl));
    tracing::info!(key, address = record["address"].as_str(), "registered in {etcd}");
    Ok((key, lease))
}

/// Keeps the record; returns when etcd says that it is gone.
async fn stay(etcd: &Etcd, key: &str, lease: &Lease, who: &dyn Announced, trouble: &mut Trouble) {
    loop {
        tokio::time::sleep(lease.pause()).await;
        let asked = Instant::now();
        match there(key, lease).await {
            Ok(true) => {
                trouble.over(etcd);
                who.may_answer(Some(asked + lease.ttl));
            }
            Ok(false) => return,
            Err(error) => {
                // Whether the lease has run out is not known. Answers are right in any case, and all others are as much in
                // the dark.
                who.may_answer(None);
                trouble.is(format!(
                    "{} Until it does, this worker goes on with those who know it",
                    etcd.trouble(&error)
                ));
            }
        }
    }
}

/// Renews a record's lease; false: lease or record are gone.
async fn there(key: &str, lease: &Lease) -> Result<bool> {
    if !lease.renew().await? {
        return Ok(false);
    }
    let options = GetOptions::new().with_count_only();
    Ok(within(lease.pause(), lease.client.clone().get(key, Some(options))).await?.count() > 0)
}

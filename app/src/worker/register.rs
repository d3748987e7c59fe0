//! A worker's record in etcd.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::afd::etcd::{self, Announced, Announcement, Etcd, Record};
use crate::afd::host::Host;
use crate::attention::desk::Desk;
use crate::cli::{EtcdArgs, WorkerArgs};

/// Where a worker is to be registered, if anywhere.
///
/// # Errors
/// When etcd cannot be used as it is said, or the worker has no address that others could use.
pub(super) fn etcd(etcd: &EtcdArgs, args: &WorkerArgs) -> Result<Option<Etcd>> {
    let etcd = etcd.etcd()?;
    if etcd.is_some() && args.listen.ip().is_unspecified() && args.advertise.is_none() {
        bail!(
            "{} is no address that others could use: say with --advertise at which they reach this worker",
            args.listen
        );
    }
    Ok(etcd)
}

/// Registers an FFN worker that listens at an address.
pub(super) fn ffn(etcd: Etcd, args: &WorkerArgs, host: Host, listens: SocketAddr) -> Announcement {
    etcd::announce(etcd, etcd::FFN, Arc::new(Ffn { host, address: address(args, listens) }))
}

/// Registers an attention worker that listens at an address.
pub(super) fn attention(etcd: Etcd, args: &WorkerArgs, desk: Desk, listens: SocketAddr) -> Announcement {
    let life = AtomicU64::new(desk.welcome().incarnation);
    etcd::announce(etcd, etcd::ATTENTION, Arc::new(Attention { desk, address: address(args, listens), life }))
}

fn address(args: &WorkerArgs, listens: SocketAddr) -> String {
    args.advertise.clone().unwrap_or_else(|| listens.to_string())
}

struct Ffn {
    host: Host,
    address: String,
}

impl Announced for Ffn {
    fn record(&self) -> (u64, Value) {
        let record = Record { address: self.address.clone(), worker: self.host.welcome() };
        (record.worker.incarnation, json!(record))
    }

    fn may_answer(&self, until: Option<Instant>) {
        self.host.answer_until(until);
    }

    fn begin_anew(&self) {
        self.host.begin_anew();
    }
}

/// A server that has given an attention worker up has ended their connection, and with it all that the worker could say. So it
/// may speak to those who are still there even when its lease has run out.
struct Attention {
    desk: Desk,
    address: String,
    life: AtomicU64,
}

impl Announced for Attention {
    fn record(&self) -> (u64, Value) {
        let terms = &self.desk.welcome().terms;
        let record = json!({ "address": self.address, "device": self.desk.device(), "terms": terms });
        (self.life.load(Ordering::Relaxed), record)
    }

    fn may_answer(&self, _: Option<Instant>) {}

    fn begin_anew(&self) {
        self.life.store(uuid::Uuid::new_v4().as_u64_pair().0, Ordering::Relaxed);
    }
}

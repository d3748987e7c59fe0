//! An FFN worker's record in etcd.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::afd::etcd::{self, Announced, Announcement, Etcd, Record};
use crate::afd::host::Host;
use crate::cli::FfnWorkerArgs;

/// Where the worker is to be registered, if anywhere.
///
/// # Errors
/// When etcd cannot be used as it is said, or the worker has no address that others could use.
pub(super) fn etcd(args: &FfnWorkerArgs) -> Result<Option<Etcd>> {
    let etcd = args.etcd.etcd()?;
    if etcd.is_some() && args.worker.listen.ip().is_unspecified() && args.advertise.is_none() {
        bail!(
            "{} is no address that others could use: say with --advertise at which they reach this worker",
            args.worker.listen
        );
    }
    Ok(etcd)
}

/// Registers a worker that listens at an address.
pub(super) fn announce(etcd: Etcd, args: &FfnWorkerArgs, host: &Host, listens: SocketAddr) -> Announcement {
    let address = args.advertise.clone().unwrap_or_else(|| listens.to_string());
    etcd::announce(etcd, etcd::FFN, Arc::new(Ffn { host: host.clone(), address }))
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

//! A lease: what is kept under it is gone when its holder has said nothing for as long as it lasts.

use std::time::{Duration, Instant};

use anyhow::Result;
use etcd_client::Client;

use super::{Etcd, REQUEST, explain, within};

/// A lease. It ends some time after its holder does, or at once when it is revoked.
#[derive(Clone)]
pub struct Lease {
    pub(super) client: Client,
    pub(super) id: i64,
    /// For how long etcd takes its holder's word.
    pub(super) ttl: Duration,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("id", &self.id).field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

impl Lease {
    /// A new one.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn grant(etcd: &Etcd) -> Result<Self> {
        let mut client = etcd.connect().await?;
        let seconds = etcd.ttl.as_secs_f64().ceil() as i64;
        let granted = within(REQUEST, client.lease_grant(seconds, None)).await?;
        Ok(Self { client, id: granted.id(), ttl: Duration::from_secs(granted.ttl().unsigned_abs()) })
    }

    /// Pause between two renewals.
    pub(super) fn pause(&self) -> Duration {
        self.ttl / 3
    }

    /// Renews it; false: etcd has no such lease any more.
    ///
    /// # Errors
    /// When etcd does not answer, asked twice: the first time a connection may have been lost without anybody's notice.
    pub async fn renew(&self) -> Result<bool> {
        match self.ask().await {
            Err(_) => self.ask().await,
            answer => answer,
        }
    }

    async fn ask(&self) -> Result<bool> {
        let mut client = self.client.clone();
        let renewed = tokio::time::timeout(self.ttl / 6, client.lease_keep_alive(self.id)).await?;
        match renewed {
            Ok(_) => Ok(true),
            // What the library makes of a time to live of nothing.
            Err(etcd_client::Error::LeaseKeepAliveError(_)) => Ok(false),
            Err(error) => Err(explain(&error)),
        }
    }

    /// Renews it again and again; returns when it has run out, or may have.
    pub(super) async fn kept(&self) {
        let mut until = Instant::now() + self.ttl;
        while Instant::now() < until {
            tokio::time::sleep(self.pause()).await;
            let asked = Instant::now();
            match self.renew().await {
                Ok(true) => until = asked + self.ttl,
                Ok(false) => return,
                // Until it has run out it may still be renewed.
                Err(_) => {}
            }
        }
    }

    /// Ends it, with all that is kept under it.
    pub async fn revoke(mut self) {
        // When that fails it ends by itself.
        let _ = within(REQUEST, self.client.lease_revoke(self.id)).await;
    }
}

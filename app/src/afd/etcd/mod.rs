//! Membership in etcd, for clusters.
//!
//! Every worker keeps a record under a lease, `PREFIX/KIND/INCARNATION` ([`announce`]). Of the processes with attention one
//! is elected ([`Leader`]); from the records of FFN workers it makes the routing table ([`Table`]), `PREFIX/table`, which
//! all of them watch ([`Registered`]). While etcd is away everybody goes on with what they know.

mod announce;
mod coordinator;
mod follow;
mod lease;
mod members;
mod table;

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};

pub use announce::{Announced, Announcement, announce};
pub use coordinator::Leader;
pub use lease::Lease;
pub use members::Registered;
pub use table::{Entry, Record, Table};

/// How long a request may take, and a connection's beginning.
const REQUEST: Duration = Duration::from_secs(2);
/// Pause before what failed is tried again.
const PAUSE: Duration = Duration::from_millis(500);
/// How often a connection on which changes are awaited is asked whether it lives (etcd forbids more often than every 5
/// seconds), and how long it has to answer.
const KEEPALIVE: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(3)];

/// The kinds of workers, as their keys name them.
pub const FFN: &str = "ffn";
/// See [`FFN`].
pub const ATTENTION: &str = "attention";

/// Where etcd is, and which part of it is meant.
#[derive(Clone)]
pub struct Etcd {
    /// `http://host:2379` or `https://host:2379`, one for each member of etcd.
    pub endpoints: Vec<String>,
    /// What all keys begin with. One model on one cluster has a prefix of its own.
    pub prefix: String,
    /// Who signs etcd's certificates (PEM).
    pub ca: Option<String>,
    /// Certificate and key (PEM) by which etcd knows its clients.
    pub identity: Option<(String, String)>,
    /// Name and password.
    pub user: Option<(String, String)>,
    /// After how long without a word a member is taken for dead. etcd takes whole seconds and has a least one, usually 2.
    pub ttl: Duration,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd at {}", self.endpoints.join(", "))
    }
}

impl Etcd {
    /// etcd at some addresses, without encryption, and all else as usual.
    pub fn new(endpoints: Vec<String>, prefix: &str) -> Self {
        let ttl = Duration::from_secs(5);
        Self { endpoints, prefix: prefix.to_owned(), ca: None, identity: None, user: None, ttl }
    }

    /// The key of a member, or, without an incarnation, what all keys of a kind begin with.
    fn key(&self, kind: &str, incarnation: Option<u64>) -> String {
        format!("{}/{kind}/{}", self.prefix, incarnation.map(|id| id.to_string()).unwrap_or_default())
    }

    /// The key of the routing table.
    pub fn table_key(&self) -> String {
        format!("{}/table", self.prefix)
    }

    async fn connect(&self) -> Result<Client> {
        let [every, timeout] = KEEPALIVE;
        let mut options = ConnectOptions::new()
            .with_connect_timeout(REQUEST)
            .with_keep_alive(every, timeout)
            .with_keep_alive_while_idle(false)
            // A member that has lost the others must not keep us waiting.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(ca) = &self.ca {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
            if let Some((certificate, key)) = &self.identity {
                tls = tls.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(tls);
        }
        if let Some((name, password)) = &self.user {
            options = options.with_user(name, password);
        }
        within(REQUEST, Client::connect(&self.endpoints, Some(options))).await
    }

    /// What to say when something with it fails.
    fn trouble(&self, error: &anyhow::Error) -> String {
        format!("{self} does not answer ({error:#}); does it run, and is --etcd right?")
    }
}

/// A request's answer, or why there is none.
async fn within<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T> {
    let answer = tokio::time::timeout(limit, request).await;
    answer
        .with_context(|| format!("nothing in {} seconds", limit.as_secs_f64()))?
        .map_err(|error| explain(&error))
}

/// The deepest reason, which says most.
fn explain(error: &etcd_client::Error) -> anyhow::Error {
    let mut deepest: &dyn std::error::Error = match error {
        etcd_client::Error::GRpcStatus(status) if status.source().is_none() => {
            return anyhow!("{}", status.message());
        }
        etcd_client::Error::GRpcStatus(status) => status,
        etcd_client::Error::TransportError(error) => error,
        error => error,
    };
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    anyhow!("{deepest}")
}

/// Says a trouble when it begins, when it becomes another one, and when it is over.
#[derive(Debug, Default)]
struct Trouble(String);

impl Trouble {
    fn is(&mut self, text: String) {
        if self.0 != text {
            tracing::warn!("{text}");
            self.0 = text;
        }
    }

    fn over(&mut self, etcd: &Etcd) {
        if !std::mem::take(&mut self.0).is_empty() {
            tracing::info!("{etcd} answers again");
        }
    }
}

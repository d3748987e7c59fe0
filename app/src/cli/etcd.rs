//! Arguments that say where etcd is.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use super::serve::seconds;
use crate::afd::etcd::Etcd;

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Membership in etcd")]
pub(crate) struct EtcdArgs {
    /// etcd in which workers register and attention finds them, as http://etcd-0:2379,http://etcd-1:2379 [default: none].
    #[arg(long, value_name = "URLS", value_delimiter = ',', group = "pool")]
    pub(crate) etcd: Vec<String>,
    /// What all keys begin with; each model on each cluster needs one of its own.
    #[arg(long, value_name = "KEY", default_value = "/tread/default", requires = "etcd")]
    pub(crate) etcd_prefix: String,
    /// Seconds without a word after which a worker is taken off the list.
    #[arg(long, default_value = "5", value_name = "SECONDS", value_parser = seconds, requires = "etcd")]
    pub(crate) etcd_ttl: Duration,
    /// Who signs etcd's certificates (PEM); with https:// only.
    #[arg(long, value_name = "FILE", requires = "etcd")]
    pub(crate) etcd_ca: Option<PathBuf>,
    /// Certificate by which etcd knows this client (PEM).
    #[arg(long, value_name = "FILE", requires_all = ["etcd_ca", "etcd_key"])]
    pub(crate) etcd_cert: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[arg(long, value_name = "FILE", requires = "etcd_cert")]
    pub(crate) etcd_key: Option<PathBuf>,
    /// File with NAME:PASSWORD of a user of etcd.
    #[arg(long, value_name = "FILE", requires = "etcd")]
    pub(crate) etcd_user_file: Option<PathBuf>,
}

impl EtcdArgs {
    /// etcd, if there is one.
    ///
    /// # Errors
    /// When a file cannot be read, or an address does not fit the rest.
    pub(crate) fn etcd(&self) -> Result<Option<Etcd>> {
        if self.etcd.is_empty() {
            return Ok(None);
        }
        let encrypted = self.etcd_ca.is_some();
        for url in &self.etcd {
            let host = url.strip_prefix(if encrypted { "https://" } else { "http://" });
            ensure!(
                host.is_some_and(|host| !host.is_empty()),
                "--etcd {url} must begin with {}",
                if encrypted {
                    "https://, because there is an --etcd-ca"
                } else {
                    "http://, or with https:// where --etcd-ca says who signs its certificate"
                }
            );
        }
        let read =
            |path: &Path| fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
        let user = self.etcd_user_file.as_deref().map(|path| {
            let text = read(path)?;
            let (name, password) =
                text.trim().split_once(':').context("--etcd-user-file holds no NAME:PASSWORD")?;
            anyhow::Ok((name.to_owned(), password.to_owned()))
        });
        let identity = self.etcd_cert.as_deref().zip(self.etcd_key.as_deref());
        Ok(Some(Etcd {
            ca: self.etcd_ca.as_deref().map(read).transpose()?,
            identity: identity.map(|(cert, key)| anyhow::Ok((read(cert)?, read(key)?))).transpose()?,
            user: user.transpose()?,
            ttl: self.etcd_ttl,
            ..Etcd::new(self.etcd.clone(), self.etcd_prefix.trim_end_matches('/'))
        }))
    }
}

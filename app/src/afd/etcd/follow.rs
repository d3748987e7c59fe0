//! What lies in etcd, now and whenever it changes.

use anyhow::{Result, bail};
use etcd_client::{Client, GetOptions, WatchOptions, WatchStream};

use super::{REQUEST, explain, within};

/// A key and what is there.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) key: String,
    pub(super) value: Vec<u8>,
    /// The revision in which the key was made, which tells who came first,
    pub(super) created: i64,
    /// and in which it was last written.
    pub(super) modified: i64,
}

/// All keys that begin alike, or a single one.
pub(super) struct Follow {
    client: Client,
    prefix: String,
    changes: Option<WatchStream>,
}

impl Follow {
    pub(super) fn new(client: Client, prefix: String) -> Self {
        Self { client, prefix, changes: None }
    }

    /// What lies there: at the first call at once, then after the next change.
    pub(super) async fn next(&mut self) -> Result<Vec<Item>> {
        if let Some(changes) = &mut self.changes {
            changed(changes).await?;
        }
        let options = GetOptions::new().with_prefix();
        let found = within(REQUEST, self.client.get(self.prefix.as_str(), Some(options))).await?;
        if self.changes.is_none() {
            let revision = found.header().map_or(0, |header| header.revision());
            let options = WatchOptions::new().with_prefix().with_start_revision(revision + 1);
            self.changes =
                Some(within(REQUEST, self.client.watch(self.prefix.as_str(), Some(options))).await?);
        }
        let item = |kv: &etcd_client::KeyValue| Item {
            key: String::from_utf8_lossy(kv.key()).into_owned(),
            value: kv.value().to_vec(),
            created: kv.create_revision(),
            modified: kv.mod_revision(),
        };
        Ok(found.kvs().iter().map(item).collect())
    }
}

/// Waits for a change.
async fn changed(changes: &mut WatchStream) -> Result<()> {
    loop {
        match changes.message().await.map_err(|error| explain(&error))? {
            Some(response) if response.canceled() => {
                bail!("it tells of no more changes: {}", response.cancel_reason())
            }
            Some(response) if response.events().is_empty() => {}
            Some(_) => return Ok(()),
            None => bail!("it has ended the connection"),
        }
    }
}

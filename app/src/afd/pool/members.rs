//! Where a pool's workers are. Which shard each holds, it says itself.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::sync::watch;

use crate::afd::place::Place;

/// How often a file of places is read anew.
const READ_EVERY: Duration = Duration::from_millis(500);

/// Who belongs to a pool.
pub trait Membership: std::fmt::Debug + Send + Sync {
    /// The places of all members in the order in which they are to be asked, now and whenever they change. Called on a
    /// runtime, where it may start what it needs; that ends when all receivers are dropped.
    ///
    /// # Errors
    /// When nothing can be known of the members.
    fn watch(&self) -> Result<watch::Receiver<Vec<Place>>>;

    /// Why there are not more of them, where that is known; else empty.
    fn why(&self) -> String {
        String::new()
    }
}

/// Always the same.
#[derive(Clone, Debug)]
pub struct Static(pub Vec<Place>);

impl Membership for Static {
    fn watch(&self) -> Result<watch::Receiver<Vec<Place>>> {
        // Nothing changes, so the sender is not needed.
        Ok(watch::Sender::new(self.0.clone()).subscribe())
    }
}

/// Whoever has the sender changes them.
impl Membership for watch::Receiver<Vec<Place>> {
    fn watch(&self) -> Result<watch::Receiver<Vec<Place>>> {
        Ok(self.clone())
    }
}

/// The lines of a file, which may be changed at any time; `#` begins a comment.
#[derive(Clone, Debug)]
pub struct Listed(pub PathBuf);

impl Listed {
    fn read(&self) -> Result<Vec<Place>> {
        let path = self.0.display();
        let text = std::fs::read_to_string(&self.0).with_context(|| format!("reading {path}"))?;
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        let list: Vec<_> = lines.filter(|line| !line.is_empty()).map(str::to_owned).collect();
        let places = Place::list(&list).with_context(|| format!("in {path}"))?;
        if let Some(device) = places.iter().find(|place| matches!(place, Place::Device { .. })) {
            bail!("{path} names the device {device}; a file is for addresses of workers");
        }
        Ok(places)
    }
}

impl Membership for Listed {
    fn watch(&self) -> Result<watch::Receiver<Vec<Place>>> {
        let (sender, receiver) = watch::channel(self.read()?);
        let listed = self.clone();
        tokio::spawn(async move {
            while !sender.is_closed() {
                tokio::time::sleep(READ_EVERY).await;
                match listed.read() {
                    Ok(places) => drop(sender.send_if_modified(|old| {
                        let new = *old != places;
                        old.clone_from(&places);
                        new
                    })),
                    // The last list goes on to be good.
                    Err(error) => {
                        tracing::warn!(error = format!("{error:#}"), "the list of FFN workers cannot be read")
                    }
                }
            }
        });
        Ok(receiver)
    }
}

//! Attention workers elsewhere: finds those that are listed, meets them, hears them, and looks for them again.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Result;
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::watch;
use tread_core::model::Model;

use super::front::{Front, Orders};
use super::route::Engines;
use crate::afd::pool::{pause, random};
use crate::afd::transport::ConnectError;
use crate::afd::{self, Place};
use crate::attention::grpc::{Client, Connection};
use crate::attention::hello::Terms;
use crate::attention::{AttentionWorkers, Limits, Report, Status};

/// Begins to look for attention workers. To be called on a runtime.
///
/// # Errors
/// When nothing can be known of them.
pub(super) fn start(
    model: &Model,
    limits: &Limits,
    workers: &AttentionWorkers,
    engines: &Arc<Engines>,
) -> Result<()> {
    let terms = Terms::new(model, limits, workers.edges)?;
    let client = Arc::new(Client::new(workers.grpc.clone(), terms));
    let membership = workers.members.membership(None);
    let mut places = membership.watch()?;
    let is_final = matches!(workers.members, afd::Members::Places(_));
    let mut members = Members { client, engines: Arc::clone(engines), is_final, listed: HashMap::new() };
    // Whoever waits until the model is loaded waits for these.
    members.take(&places.borrow_and_update(), &Status::Loading);
    tokio::spawn(async move {
        while places.changed().await.is_ok() {
            let listed = places.borrow_and_update().clone();
            members.take(&listed, &Status::Away("it was not met yet".to_owned()));
        }
        // The list is final, but those on it are looked after.
        std::future::pending::<()>().await;
        drop((membership, members));
    });
    Ok(())
}

/// The workers that are listed.
struct Members {
    client: Arc<Client>,
    engines: Arc<Engines>,
    /// Whether the list stays as it is.
    is_final: bool,
    /// What each has for as long as it is on the list.
    listed: HashMap<Place, watch::Sender<()>>,
}

impl Members {
    /// Begins with those that are new. Those that are not listed any more get no new requests and are left when they have
    /// answered those they have.
    fn take(&mut self, listed: &[Place], new: &Status) {
        self.listed.retain(|place, _| listed.contains(place));
        for place in listed.iter().filter(|place| matches!(place, Place::Address(_))) {
            if !self.listed.contains_key(place) {
                let (listed, unlisted) = watch::channel(());
                let worker = Worker {
                    place: place.clone(),
                    client: Arc::clone(&self.client),
                    front: self.engines.add(new.clone()),
                    engines: Arc::clone(&self.engines),
                    is_final: self.is_final,
                    unlisted,
                };
                tokio::spawn(worker.tend());
                self.listed.insert(place.clone(), listed);
            }
        }
    }
}

/// One of them.
struct Worker {
    place: Place,
    client: Arc<Client>,
    front: Arc<Front>,
    engines: Arc<Engines>,
    is_final: bool,
    /// Closed when it is not listed any more.
    unlisted: watch::Receiver<()>,
}

impl Worker {
    /// Looks for it until it is not listed any more.
    async fn tend(mut self) {
        let (mut failures, mut met) = (0, false);
        loop {
            let (sender, orders) = unbounded_channel();
            let connection = tokio::select! {
                connection = self.client.connect(&self.place, orders) => connection,
                _ = self.unlisted.changed() => break,
            };
            match connection {
                Ok(connection) => {
                    (failures, met) = (0, true);
                    self.front.connect(Orders::There(sender));
                    self.engines.brief(&self.front);
                    let why = self.attend(connection).await;
                    self.front.lose(Status::Away(format!("{}: {why}", self.place)), &why);
                }
                Err(error) => {
                    failures += 1;
                    self.fail(&error, failures, met);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause(failures, random())) => {}
                _ = self.unlisted.changed() => break,
            }
        }
        tracing::info!(place = %self.place, "an attention worker is not listed any more");
        self.engines.remove(&self.front);
    }

    /// Hears what it says until it is gone or has nothing left to do here; says why.
    async fn attend(&mut self, mut connection: Connection) -> String {
        let (place, incarnation) = (&self.place, connection.welcome.incarnation);
        tracing::info!(%place, incarnation, "an attention worker joins");
        let (mut listed, mut leaving) = (true, false);
        let why = loop {
            tokio::select! {
                report = connection.receive() => match report {
                    Ok(Report::Status(Status::Failed(why))) | Err(why) => break why,
                    Ok(report) => {
                        leaving |= matches!(report, Report::Status(Status::Draining));
                        // It is not to be chosen again.
                        let keeps = matches!(report, Report::Status(_)) && !listed;
                        if !keeps {
                            self.front.hear(report);
                        }
                    }
                },
                _ = self.unlisted.changed(), if listed => {
                    (listed, leaving) = (false, true);
                    self.front.set(Status::Draining);
                }
                () = self.front.deserted(), if leaving => break "it takes no more requests".to_owned(),
            }
        };
        if leaving {
            tracing::info!(%place, incarnation, why, "an attention worker has left");
        } else {
            tracing::warn!(%place, incarnation, why, "an attention worker is gone");
        }
        why
    }

    /// It was not to be had.
    fn fail(&self, error: &ConnectError, failures: u32, met: bool) {
        // What never was is not waited for, if it is there and does not fit, and no other one can come in its place.
        let refused = self.is_final && matches!(error, ConnectError::Refused { .. });
        if failures == 1 {
            tracing::warn!(%error, "no attention worker");
        } else {
            tracing::debug!(%error, failures, "no attention worker");
        }
        let why = error.to_string();
        self.front.set(if refused && !met { Status::Failed(why) } else { Status::Away(why) });
    }
}

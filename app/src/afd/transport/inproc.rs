//! To workers in this process: channels.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{ConnectError, Connection, ReceiveFrames, SendFrames, Transport, refused, unreachable};
use crate::afd::hello::{Hello, Welcome};
use crate::afd::host::{Host, Peer};
use crate::afd::place::Place;

/// Workers in this process by their places.
#[derive(Debug, Default)]
pub struct Inproc {
    hosts: Mutex<HashMap<Place, Host>>,
}

impl Inproc {
    /// Puts a worker at a place, instead of the one that was there.
    pub fn put(&self, place: Place, host: Host) {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).insert(place, host);
    }

    /// Takes a worker away. Who is attached stays so until it detaches.
    pub fn take(&self, place: &Place) -> Option<Host> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).remove(place)
    }

    fn host(&self, place: &Place) -> Result<Host, ConnectError> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.get(place).cloned().ok_or_else(|| unreachable(place, "there is no such worker in this process"))
    }
}

#[async_trait]
impl Transport for Inproc {
    async fn ask(&self, place: &Place) -> Result<Welcome, ConnectError> {
        Ok(self.host(place)?.welcome())
    }

    async fn connect(&self, place: &Place, hello: &Hello) -> Result<Connection, ConnectError> {
        let host = self.host(place)?;
        if host.is_draining() {
            return Err(unreachable(place, "the worker is draining"));
        }
        let welcome = host.meet(hello).map_err(|why| refused(place, why))?;
        let (peer, replies) = host.attach(hello.slots.min(welcome.slots));
        let (frames, posted) = unbounded_channel();
        tokio::spawn(forward(peer, posted));
        Ok(Connection {
            welcome,
            carrier: "channels",
            sender: Box::new(Sender { frames }),
            receiver: Box::new(Receiver { replies }),
        })
    }
}

/// Hands frames in until the sender is dropped.
async fn forward(peer: Peer, mut posted: UnboundedReceiver<Bytes>) {
    while let Some(frame) = posted.recv().await {
        peer.post(frame).await;
    }
}

#[derive(Debug)]
struct Sender {
    frames: UnboundedSender<Bytes>,
}

impl SendFrames for Sender {
    fn post(&mut self, _slot: usize, frame: Bytes) {
        // The receiver will say that the worker is gone.
        let _ = self.frames.send(frame);
    }
}

#[derive(Debug)]
struct Receiver {
    replies: UnboundedReceiver<Bytes>,
}

#[async_trait]
impl ReceiveFrames for Receiver {
    async fn receive(&mut self) -> Result<Bytes, String> {
        self.replies.recv().await.ok_or_else(|| "the worker has ended".to_owned())
    }
}

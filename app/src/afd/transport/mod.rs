//! The ways to FFN workers. What a pool needs of one is small: to meet a worker, to post frames, to receive frames, and to
//! notice that the worker is gone.

mod grpc;
mod inproc;
mod nixl;

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::hello::{Hello, Welcome};
use super::place::Place;

pub(crate) use grpc::{Attended, MEET, Token, explain, listen};
pub use grpc::{Grpc, GrpcOptions, Security, Served, serve};
pub use inproc::Inproc;
pub use nixl::missing as missing_nixl;

/// What carries activations to workers at addresses. All else that is said to them goes by gRPC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Carrier {
    /// gRPC where it is encrypted, else NIXL where both sides have it, else gRPC.
    #[default]
    Auto,
    /// Runs anywhere, and is encrypted where there are certificates.
    Grpc,
    /// RDMA or shared memory. Not encrypted.
    Nixl,
}

impl Carrier {
    /// Whether this side can use NIXL, and is to.
    ///
    /// # Errors
    /// What it takes, where it must be used and is not there.
    pub fn nixl(self) -> Result<bool, String> {
        // Looking for the library loads it, which nobody who wants gRPC has asked for.
        match self {
            Self::Grpc => Ok(false),
            Self::Auto => Ok(missing_nixl().is_none()),
            Self::Nixl => missing_nixl().map_or(Ok(true), |why| Err(format!("there is no NIXL: {why}"))),
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It may be there later.
    #[error("cannot reach {place}: {why}")]
    Unreachable {
        /// Where.
        place: String,
        /// What happened.
        why: String,
    },
    /// It is there, but nothing will come of it.
    #[error("{place} does not fit: {why}")]
    Refused {
        /// Where.
        place: String,
        /// What differs.
        why: String,
    },
}

/// A way to workers. Implementations pass the suite in `app/tests/afd/conformance.rs`.
#[async_trait]
pub trait Transport: Debug + Send + Sync {
    /// Asks a worker what it is, without wanting anything.
    ///
    /// # Errors
    /// When it cannot be reached.
    async fn ask(&self, place: &Place) -> Result<Welcome, ConnectError>;

    /// Meets a worker. Dropping both ends of the connection ends it.
    ///
    /// # Errors
    /// When it cannot be reached, or is not what `hello` wants.
    async fn connect(&self, place: &Place, hello: &Hello) -> Result<Connection, ConnectError>;
}

/// A connection to one life of one worker.
#[derive(Debug)]
pub struct Connection {
    /// Who it is.
    pub welcome: Welcome,
    /// What carries activations, for people.
    pub carrier: &'static str,
    /// The way to it.
    pub sender: Box<dyn SendFrames>,
    /// The way back.
    pub receiver: Box<dyn ReceiveFrames>,
}

/// The way to a worker.
pub trait SendFrames: Debug + Send {
    /// Posts a call's frame into a slot, of which there are as many as were agreed on, and returns at once. Nothing else is
    /// posted into the slot until the worker has answered it. A worker that is gone is noticed by the receiver.
    fn post(&mut self, slot: usize, frame: Bytes);
}

/// The way back from a worker.
#[async_trait]
pub trait ReceiveFrames: Debug + Send {
    /// The next frame: an answer, a refusal, or that the worker drains.
    ///
    /// # Errors
    /// Why there will be no more.
    async fn receive(&mut self) -> Result<Bytes, String>;
}

/// Devices of this process by one way, addresses by another.
#[derive(Debug)]
pub struct Ways {
    /// To devices.
    pub devices: Arc<Inproc>,
    /// To addresses.
    pub addresses: Arc<dyn Transport>,
}

impl Ways {
    fn to(&self, place: &Place) -> &dyn Transport {
        match place {
            Place::Device { .. } => &*self.devices,
            Place::Address(_) => &*self.addresses,
        }
    }
}

#[async_trait]
impl Transport for Ways {
    async fn ask(&self, place: &Place) -> Result<Welcome, ConnectError> {
        self.to(place).ask(place).await
    }

    async fn connect(&self, place: &Place, hello: &Hello) -> Result<Connection, ConnectError> {
        self.to(place).connect(place, hello).await
    }
}

fn unreachable(place: &Place, why: impl Into<String>) -> ConnectError {
    ConnectError::Unreachable { place: place.to_string(), why: why.into() }
}

pub(crate) fn refused(place: &Place, why: impl Into<String>) -> ConnectError {
    ConnectError::Refused { place: place.to_string(), why: why.into() }
}

//! An engine on a thread of its own: orders in, reports out. Whether they come from the HTTP server of this process or, over
//! gRPC, from another one's, it does not know. `tread worker attention` is such an engine behind gRPC.

pub(crate) mod desk;
pub(crate) mod grpc;
pub(crate) mod hello;
mod limits;
pub(crate) mod thread;
mod wire;

use serde::{Deserialize, Serialize};
use tread_core::afd::Sharding;
use tread_core::backend::Backend;
use tread_core::engine::{Event, Request, RequestId};
use tread_core::graph::EdgeDType;
use tread_core::monitor::{Pool, Standing, StepEvent, TokenTime};

use crate::afd::Members;
use crate::afd::transport::GrpcOptions;
pub use grpc::drain;
pub use limits::Limits;

/// Opens the device; called again after it was lost.
pub type OpenDevice = Box<dyn FnMut() -> anyhow::Result<Box<dyn Backend>> + Send>;

/// Attention workers that are processes of their own.
#[derive(Clone, Debug)]
pub struct AttentionWorkers {
    /// Where they are.
    pub members: Members,
    /// How they are reached.
    pub grpc: GrpcOptions,
    /// How FFNs are spread, and in which type activations cross: what is rounded must not depend on who computes.
    pub edges: (Sharding, EdgeDType),
}

/// What an engine is told.
#[derive(Debug)]
pub(crate) enum Order {
    /// A request, under a name that no other one has.
    Submit(RequestId, Box<Request>),
    /// Nobody waits for this one any more.
    Abort(RequestId),
    /// Whether steps are to be measured op by op, now and then.
    Measure(bool),
    /// End.
    Stop,
}

/// What an engine tells.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Where it stands. After a failure it says no more, and its requests are lost.
    Status(Status),
    /// Something happened to a request, and how long its token, if there is one, was waited for.
    Event {
        /// Its name.
        id: RequestId,
        /// What.
        event: Event,
        /// See [`TokenTime`].
        time: Option<TokenTime>,
    },
    /// It made a step, and stands here after it.
    Step(StepEvent, Standing),
    /// It stands here, without a step.
    Standing(Standing),
    /// The device failed.
    DeviceLost,
}

/// Where an engine stands, or all of a server together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Status {
    /// Weights are on their way to the device.
    Loading,
    /// Steps run.
    Ready(Running),
    /// The device was lost and is opened anew.
    Rebuilding,
    /// It finishes what it has, and takes nothing new.
    Draining,
    /// Its worker cannot be reached now, for this reason.
    Away(String),
    /// The end.
    Failed(String),
}

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    /// The back end and its device, for people.
    pub(crate) device: String,
    /// Its pools.
    pub(crate) pools: Vec<Pool>,
}

impl Running {
    pub(crate) fn on(backend: &dyn Backend) -> Self {
        Self { device: format!("{}, {}", backend.name(), backend.device()), pools: backend.pools() }
    }
}

//! Activations by NIXL (<https://github.com/ai-dynamo/nixl>): by RDMA between hosts, by shared memory on one.
//!
//! Nobody writes into the memory of another. Who has a frame puts it into a slot of its own and notifies the other side,
//! which reads the slot. So a worker that was given up can do no harm when it goes on: whatever it reads late, it reads
//! into its own memory, and answers nobody. What is read is whole: a frame is in its slot before the notification is
//! sent, and stays there until the call is answered (see [`super::SendFrames::post`]), for an answer until the next call.
//!
//! The gRPC stream of the pair stays: it says who is gone, and carries all that is neither call nor answer.

#[cfg(all(feature = "cluster", target_os = "linux"))]
mod link;
#[cfg(all(feature = "cluster", target_os = "linux"))]
mod memory;
#[cfg(all(feature = "cluster", target_os = "linux"))]
mod poller;

#[cfg(not(all(feature = "cluster", target_os = "linux")))]
mod absent;
#[cfg(not(all(feature = "cluster", target_os = "linux")))]
use absent as link;
#[cfg(not(all(feature = "cluster", target_os = "linux")))]
use absent as poller;

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedReceiver;

pub(super) use link::Link;
pub use link::missing;
pub(super) use poller::Posts;

/// Slots that the other side reads.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    /// What NIXL must know of the agent that has them.
    pub(super) metadata: Bytes,
    /// Where they begin, one after the other.
    pub(super) address: usize,
    /// How long each is.
    pub(super) slot_bytes: usize,
}

/// Frames that come by NIXL.
#[derive(Debug)]
pub(super) struct Arrivals(Option<UnboundedReceiver<Result<Bytes, String>>>);

impl Arrivals {
    /// Without a link nothing ever comes.
    pub(super) const NONE: Self = Self(None);

    /// The next frame.
    ///
    /// # Errors
    /// Why there will be no more.
    pub(super) async fn next(&mut self) -> Result<Bytes, String> {
        match &mut self.0 {
            Some(frames) => frames.recv().await.unwrap_or_else(|| Err("the NIXL link is closed".to_owned())),
            None => std::future::pending().await,
        }
    }
}

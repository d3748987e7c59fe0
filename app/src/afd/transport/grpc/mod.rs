//! To workers anywhere: gRPC. One stream for each pair, whose end says that the other side is gone; a side that says nothing
//! at all is missed by HTTP/2's keepalive.

mod client;
mod server;

use std::time::Duration;

use tread_core::afd::Sharding;
use tread_core::graph::EdgeDType;

use super::nixl::Offer;
use crate::afd::hello::{Hello, Terms, Welcome};

pub use client::{Grpc, GrpcOptions};
pub(crate) use client::{MEET, Token, explain};
pub(crate) use server::{Attended, listen};
pub use server::{Security, Served, serve};

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::str_to_string, missing_debug_implementations)]
mod proto {
    tonic::include_proto!("tread.afd.v1");
}

/// How often a silent connection is asked whether it lives,
const KEEPALIVE: Duration = Duration::from_secs(1);
/// and how long it has to answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes that may be under way unread: a call of many rows goes out in one piece.
const WINDOW: u32 = 16 << 20;
/// Metadata of an attachment: whom it is meant for, and how many calls at a time.
const INCARNATION: &str = "incarnation";
const SLOTS: &str = "slots";
/// And that activations go by NIXL.
const NIXL: &str = "nixl";

/// Runs what takes a while where no other task waits for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}

const SHARDINGS: [Sharding; 2] = [Sharding::Layers, Sharding::Experts];
const DTYPES: [EdgeDType; 3] = [EdgeDType::F32, EdgeDType::BF16, EdgeDType::F8];

impl From<&Terms> for proto::Terms {
    fn from(terms: &Terms) -> Self {
        Self {
            protocol: terms.protocol,
            model: terms.model.clone(),
            hidden: terms.hidden as u32,
            dtype: terms.dtype.name().to_owned(),
            sharding: terms.sharding.name().to_owned(),
            shards: terms.shards as u32,
        }
    }
}

impl TryFrom<Option<proto::Terms>> for Terms {
    type Error = String;

    fn try_from(from: Option<proto::Terms>) -> Result<Self, String> {
        let proto::Terms { protocol, model, hidden, dtype, sharding, shards } =
            from.ok_or("no terms are named")?;
        let dtype_known = DTYPES.into_iter().find(|known| known.name() == dtype);
        let sharding_known = SHARDINGS.into_iter().find(|known| known.name() == sharding);
        Ok(Self {
            protocol,
            model,
            hidden: hidden as usize,
            dtype: dtype_known.ok_or_else(|| format!("there is no --afd-dtype {dtype}"))?,
            sharding: sharding_known.ok_or_else(|| format!("there is no --sharding {sharding}"))?,
            shards: shards as usize,
        })
    }
}

impl From<&Hello> for proto::HelloRequest {
    fn from(hello: &Hello) -> Self {
        Self {
            terms: Some((&hello.terms).into()),
            max_rows: hello.max_rows as u32,
            slots: hello.slots as u32,
        }
    }
}

impl From<&Welcome> for proto::HelloReply {
    fn from(welcome: &Welcome) -> Self {
        Self {
            terms: Some((&welcome.terms).into()),
            shard: welcome.shard as u32,
            max_rows: welcome.max_rows as u32,
            slots: welcome.slots as u32,
            incarnation: welcome.incarnation,
            device: welcome.device.clone(),
            weight_bytes: welcome.weight_bytes,
            // Known to who serves it.
            nixl_slot_bytes: 0,
        }
    }
}

impl TryFrom<proto::HelloRequest> for Hello {
    type Error = String;

    fn try_from(from: proto::HelloRequest) -> Result<Self, String> {
        let terms = from.terms.try_into()?;
        Ok(Self { terms, max_rows: from.max_rows as usize, slots: from.slots as usize })
    }
}

impl TryFrom<proto::HelloReply> for Welcome {
    type Error = String;

    fn try_from(from: proto::HelloReply) -> Result<Self, String> {
        Ok(Self {
            terms: from.terms.try_into()?,
            shard: from.shard as usize,
            max_rows: from.max_rows as usize,
            slots: from.slots as usize,
            incarnation: from.incarnation,
            device: from.device,
            weight_bytes: from.weight_bytes,
        })
    }
}

impl From<Offer> for proto::Frame {
    fn from(offer: Offer) -> Self {
        let Offer { metadata, address, slot_bytes } = offer;
        let nixl = proto::NixlOffer { metadata, address: address as u64, slot_bytes: slot_bytes as u64 };
        Self { nixl: Some(nixl), ..Self::default() }
    }
}

impl TryFrom<Option<proto::Frame>> for Offer {
    type Error = String;

    fn try_from(first: Option<proto::Frame>) -> Result<Self, String> {
        let offer = first.and_then(|frame| frame.nixl).ok_or("the first frame offers nothing by NIXL")?;
        let proto::NixlOffer { metadata, address, slot_bytes } = offer;
        Ok(Self { metadata, address: address as usize, slot_bytes: slot_bytes as usize })
    }
}

//! An engine over gRPC: one stream for each pair of server and worker, whose end says that the other side is gone.

mod client;
mod server;

use super::hello::{Terms, Welcome};

pub use client::drain;
pub(crate) use client::{Client, Connection};
pub(crate) use server::serve;

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::str_to_string, missing_debug_implementations)]
mod proto {
    tonic::include_proto!("tread.attention.v1");
}

/// Metadata of a stream: whom it is meant for.
const INCARNATION: &str = "incarnation";
/// The largest order or report: a long prompt with its scores, a large grammar.
const MOST_BYTES: usize = 512 << 20;

impl From<&Terms> for proto::Terms {
    fn from(terms: &Terms) -> Self {
        Self {
            protocol: terms.protocol,
            model: terms.model.clone(),
            text: terms.text.clone(),
            rounding: terms.rounding.clone(),
            context: terms.context as u64,
            max_sequences: terms.max_sequences as u64,
        }
    }
}

impl From<proto::Terms> for Terms {
    fn from(from: proto::Terms) -> Self {
        let proto::Terms { protocol, model, text, rounding, context, max_sequences } = from;
        let size = |number| usize::try_from(number).unwrap_or(usize::MAX);
        Self { protocol, model, text, rounding, context: size(context), max_sequences: size(max_sequences) }
    }
}

impl From<&Welcome> for proto::HelloReply {
    fn from(welcome: &Welcome) -> Self {
        Self { terms: Some((&welcome.terms).into()), incarnation: welcome.incarnation }
    }
}

impl From<proto::HelloReply> for Welcome {
    fn from(from: proto::HelloReply) -> Self {
        Self { terms: from.terms.unwrap_or_default().into(), incarnation: from.incarnation }
    }
}

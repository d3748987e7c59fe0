//! Orders and reports as bytes: postcard's, which keep every float as it is.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tread_core::engine::{Request, RequestId, Task};
use tread_core::grammar::{Grammar, GrammarSource};

use super::{Order, Report};

/// An order that leaves its process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Sent {
    /// See [`Order::Submit`].
    Submit {
        /// Its name.
        id: RequestId,
        /// The request without its grammar,
        request: Request,
        /// which is compiled again on the other side.
        grammar: Option<GrammarSource>,
    },
    /// See [`Order::Abort`].
    Abort(RequestId),
    /// See [`Order::Measure`].
    Measure(bool),
}

/// The bytes of an order; [`Order::Stop`] has none, as the end of the connection says it.
pub(super) fn order(order: Order) -> Option<Bytes> {
    let sent = match order {
        Order::Submit(id, request) => {
            let grammar = grammar(&request).map(|grammar| grammar.source().clone());
            Sent::Submit { id, request: *request, grammar }
        }
        Order::Abort(id) => Sent::Abort(id),
        Order::Measure(measures) => Sent::Measure(measures),
        Order::Stop => return None,
    };
    Some(bytes(&sent))
}

/// An order from its bytes.
pub(super) fn read_order(data: &[u8]) -> Result<Sent, String> {
    postcard::from_bytes(data).map_err(|error| format!("an order that is not to be read: {error}"))
}

/// The bytes of a report.
pub(super) fn report(report: &Report) -> Bytes {
    bytes(report)
}

/// A report from its bytes.
pub(super) fn read_report(data: &[u8]) -> Result<Report, String> {
    postcard::from_bytes(data).map_err(|error| format!("a report that is not to be read: {error}"))
}

fn grammar(request: &Request) -> Option<&Grammar> {
    match &request.task {
        Task::Generate(generate) => generate.grammar.as_ref(),
        Task::Embed => None,
    }
}

/// All lengths are known beforehand, so our own types always have bytes; none would be refused by the reader.
fn bytes(value: &impl Serialize) -> Bytes {
    postcard::to_stdvec(value).unwrap_or_default().into()
}

#[cfg(test)]
mod tests;

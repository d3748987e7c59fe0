//! The worker's side.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::Result;
use futures_util::{Stream, StreamExt as _};
use tokio::sync::watch;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::proto::attention_server::{Attention, AttentionServer};
use super::proto::{DrainReply, DrainRequest, HelloReply, HelloRequest, Order, Report};
use super::{INCARNATION, MOST_BYTES};
use crate::afd::transport::{Security, Served, listen};
use crate::attention::desk::Desk;
use crate::attention::hello::{PROTOCOL, Terms};

/// Serves an engine on an address.
///
/// # Errors
/// When the address cannot be had, or must not be without more security, or the certificate cannot be read.
pub(crate) async fn serve(desk: Desk, address: SocketAddr, security: &Security) -> Result<Served> {
    let asked = watch::Sender::new(false);
    let service = AttentionServer::new(Service { desk: desk.clone(), asked: asked.clone() })
        .max_decoding_message_size(MOST_BYTES)
        .max_encoding_message_size(MOST_BYTES);
    listen(service, Arc::new(desk), asked, address, security).await
}

#[derive(Debug)]
struct Service {
    desk: Desk,
    asked: watch::Sender<bool>,
}

#[tonic::async_trait]
impl Attention for Service {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let server = Terms::from(request.into_inner().terms.unwrap_or_default());
        if server.protocol != PROTOCOL {
            return Err(Status::failed_precondition(format!(
                "different versions of the protocol: the server has {}, the attention worker {PROTOCOL}",
                server.protocol
            )));
        }
        if self.desk.is_draining() {
            return Err(Status::unavailable("the worker is draining"));
        }
        let welcome = self.desk.welcome();
        server.check(&welcome.terms).map_err(Status::failed_precondition)?;
        Ok(Response::new(welcome.into()))
    }

    type ServeStream = Pin<Box<dyn Stream<Item = Result<Report, Status>> + Send>>;

    async fn serve(&self, request: Request<Streaming<Order>>) -> Result<Response<Self::ServeStream>, Status> {
        let incarnation =
            request.metadata().get(INCARNATION).and_then(|value| value.to_str().ok()?.parse().ok());
        // Between Hello and now it may have been started anew.
        if incarnation != Some(self.desk.welcome().incarnation) {
            return Err(Status::unavailable("the worker was started anew"));
        }
        let (seat, reports) = self.desk.attach();
        let mut orders = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(order)) = orders.message().await {
                if let Err(why) = seat.obey(&order.data) {
                    tracing::warn!(why, "a server is no longer listened to");
                    return;
                }
            }
        });
        let reports = UnboundedReceiverStream::new(reports).map(|data| Ok(Report { data }));
        Ok(Response::new(Box::pin(reports)))
    }

    async fn drain(&self, _: Request<DrainRequest>) -> Result<Response<DrainReply>, Status> {
        self.asked.send_replace(true);
        Ok(Response::new(DrainReply {}))
    }
}

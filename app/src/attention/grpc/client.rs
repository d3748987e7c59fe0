//! The server's side.

use tokio::sync::mpsc::UnboundedReceiver;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use super::proto::attention_client::AttentionClient;
use super::proto::{self, DrainRequest, HelloRequest};
use super::{INCARNATION, MOST_BYTES};
use crate::afd::Place;
use crate::afd::transport::{ConnectError, GrpcOptions, MEET, Token, explain, refused};
use crate::attention::hello::{Terms, Welcome};
use crate::attention::{Order, Report, wire};

type Stub = AttentionClient<InterceptedService<Channel, Token>>;

/// Meets attention workers.
#[derive(Debug)]
pub(crate) struct Client {
    grpc: GrpcOptions,
    terms: Terms,
}

/// A connection to one life of one worker; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Who it is.
    pub(crate) welcome: Welcome,
    reports: Streaming<proto::Report>,
}

impl Client {
    /// The same options and terms for all workers.
    pub(crate) fn new(grpc: GrpcOptions, terms: Terms) -> Self {
        Self { grpc, terms }
    }

    /// Meets a worker, which gets the orders.
    ///
    /// # Errors
    /// When it cannot be reached, or does not fit.
    pub(crate) async fn connect(
        &self,
        place: &Place,
        orders: UnboundedReceiver<Order>,
    ) -> Result<Connection, ConnectError> {
        let mut stub = stub(&self.grpc, place).await?;
        let mut request = Request::new(HelloRequest { terms: Some((&self.terms).into()) });
        request.set_timeout(MEET);
        let reply = stub.hello(request).await.map_err(|status| explain(place, &status))?;
        let welcome = Welcome::from(reply.into_inner());
        self.terms.check(&welcome.terms).map_err(|why| refused(place, why))?;
        let orders = UnboundedReceiverStream::new(orders).filter_map(wire::order);
        let mut request = Request::new(orders.map(|data| proto::Order { data }));
        request.metadata_mut().insert(INCARNATION, MetadataValue::from(welcome.incarnation));
        let reports = stub.serve(request).await.map_err(|status| explain(place, &status))?;
        Ok(Connection { welcome, reports: reports.into_inner() })
    }
}

impl Connection {
    /// What the engine says next.
    ///
    /// # Errors
    /// Why it will say no more.
    pub(crate) async fn receive(&mut self) -> Result<Report, String> {
        match self.reports.message().await {
            Ok(Some(report)) => wire::read_report(&report.data),
            Ok(None) => Err("the worker has ended the connection".to_owned()),
            Err(status) => Err(status.message().to_owned()),
        }
    }
}

/// Has a worker take no new requests, and end when it has answered those it has.
///
/// # Errors
/// When it cannot be reached.
pub async fn drain(place: &Place, grpc: &GrpcOptions) -> Result<(), ConnectError> {
    let mut stub = stub(grpc, place).await?;
    stub.drain(DrainRequest {}).await.map_err(|status| explain(place, &status))?;
    Ok(())
}

async fn stub(grpc: &GrpcOptions, place: &Place) -> Result<Stub, ConnectError> {
    let (channel, token) = grpc.channel(place).await?;
    Ok(AttentionClient::with_interceptor(channel, token)
        .max_decoding_message_size(MOST_BYTES)
        .max_encoding_message_size(MOST_BYTES))
}

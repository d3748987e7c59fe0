//! Attention's side.

use std::net::IpAddr;
use std::sync::Once;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use super::proto::ffn_client::FfnClient;
use super::proto::{self, DrainRequest, Frame, HelloRequest};
use super::{INCARNATION, KEEPALIVE, KEEPALIVE_TIMEOUT, NIXL, SLOTS, WINDOW, blocking};
use crate::afd::hello::{Hello, PROTOCOL, Welcome};
use crate::afd::place::Place;
use crate::afd::transport::nixl::{Arrivals, Link, Offer, Posts};
use crate::afd::transport::{
    Carrier, ConnectError, Connection, ReceiveFrames, SendFrames, Transport, missing_nixl, refused,
    unreachable,
};

/// How long a worker has to be met.
pub(crate) const MEET: Duration = Duration::from_secs(3);
/// The largest frame that is read; what a worker may send follows from its layout and is checked then.
const MOST_FRAME: usize = 512 << 20;

/// How workers are known and how we are known to them.
#[derive(Clone, Default)]
pub struct GrpcOptions {
    /// Who signs their certificates (PEM); none: connections are not encrypted.
    pub ca: Option<String>,
    /// The token that they ask for.
    pub token: Option<String>,
    /// What carries activations.
    pub carrier: Carrier,
}

impl std::fmt::Debug for GrpcOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrpcOptions")
            .field("tls", &self.ca.is_some())
            .field("carrier", &self.carrier)
            .finish_non_exhaustive()
    }
}

impl GrpcOptions {
    /// A connection to a worker of whatever kind, and what every call on it must carry.
    pub(crate) async fn channel(&self, place: &Place) -> Result<(Channel, Token), ConnectError> {
        let Place::Address(address) = place else { return Err(refused(place, "it is not an address")) };
        let Self { ca, token, .. } = self;
        if token.is_some() && ca.is_none() && !is_loopback(address) {
            let why = "the token would be sent to another host in the clear; say with --worker-ca who signs its certificate";
            return Err(refused(place, why));
        }
        let scheme = if ca.is_some() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
            .map_err(|error| refused(place, error.to_string()))?
            .connect_timeout(MEET)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW);
        if let Some(ca) = ca {
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
            endpoint = endpoint.tls_config(tls).map_err(|error| refused(place, root(&error)))?;
        }
        let channel = endpoint.connect().await.map_err(|error| unreachable(place, root(&error)))?;
        let token = match token {
            None => None,
            Some(token) => Some(bearer(token).map_err(|why| refused(place, why))?),
        };
        Ok((channel, Token(token)))
    }
}

/// Workers at addresses.
#[derive(Debug)]
pub struct Grpc {
    options: GrpcOptions,
    /// Why not all activations go by NIXL is said once.
    fallback: Once,
}

type Client = FfnClient<InterceptedService<Channel, Token>>;

impl Grpc {
    /// The same options for all workers.
    pub fn new(options: GrpcOptions) -> Self {
        Self { options, fallback: Once::new() }
    }

    async fn client(&self, place: &Place) -> Result<Client, ConnectError> {
        let (channel, token) = self.options.channel(place).await?;
        Ok(FfnClient::with_interceptor(channel, token).max_decoding_message_size(MOST_FRAME))
    }

    /// This side of a link to a worker that offers slots of so many bytes, where activations are to go by NIXL.
    async fn link(
        &self,
        place: &Place,
        slots: usize,
        slot_bytes: usize,
    ) -> Result<Option<Link>, ConnectError> {
        let open = || async {
            match (missing_nixl(), slot_bytes) {
                (Some(why), _) => Err(format!("there is no NIXL: {why}")),
                (None, 0) => Err("the worker does not offer NIXL; its log says why".to_owned()),
                (None, 1..=MOST_FRAME) => blocking(move || Link::open(slots, slot_bytes)).await,
                (None, _) => Err(format!("the worker wants slots of {slot_bytes} bytes")),
            }
        };
        match self.options.carrier {
            Carrier::Grpc => Ok(None),
            // Nobody's activations leave an encrypted way unless asked to.
            Carrier::Auto if self.options.ca.is_some() => Ok(None),
            Carrier::Nixl => open().await.map(Some).map_err(|why| refused(place, why)),
            Carrier::Auto => Ok(open()
                .await
                .inspect_err(|why| {
                    self.fallback.call_once(|| tracing::info!(%place, why, "activations go by gRPC"))
                })
                .ok()),
        }
    }

    /// Has a worker take no new calls, and end when it has answered those it has.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn drain(&self, place: &Place) -> Result<(), ConnectError> {
        let mut client = self.client(place).await?;
        client.drain(DrainRequest {}).await.map_err(|status| explain(place, &status))?;
        Ok(())
    }
}

#[async_trait]
impl Transport for Grpc {
    async fn ask(&self, place: &Place) -> Result<Welcome, ConnectError> {
        let mut client = self.client(place).await?;
        let terms = Some(proto::Terms { protocol: PROTOCOL, ..proto::Terms::default() });
        Ok(hello(&mut client, place, HelloRequest { terms, ..HelloRequest::default() }).await?.0)
    }

    async fn connect(&self, place: &Place, wanted: &Hello) -> Result<Connection, ConnectError> {
        let mut client = self.client(place).await?;
        let (welcome, slot_bytes) = hello(&mut client, place, wanted.into()).await?;
        wanted.check(&welcome).map_err(|why| refused(place, why))?;
        let slots = wanted.slots.min(welcome.slots);
        let link = self.link(place, slots, slot_bytes).await?;
        let (frames, posted) = unbounded_channel();
        let mut request = Request::new(UnboundedReceiverStream::new(posted));
        let metadata = request.metadata_mut();
        metadata.insert(INCARNATION, MetadataValue::from(welcome.incarnation));
        metadata.insert(SLOTS, MetadataValue::from(slots as u64));
        if let Some(link) = &link {
            metadata.insert(NIXL, MetadataValue::from_static("1"));
            // Its receiver is in the request.
            let _ = frames.send(link.offer().map_err(|why| unreachable(place, why))?.into());
        }
        let mut replies =
            client.attach(request).await.map_err(|status| explain(place, &status))?.into_inner();
        let (posts, arrivals) = match link {
            None => (None, Arrivals::NONE),
            Some(link) => {
                let first = replies.message().await.map_err(|status| explain(place, &status))?;
                let joined = Offer::try_from(first).and_then(|offer| link.join(&offer));
                let (posts, arrivals) = joined.map_err(|why| unreachable(place, why))?;
                (Some(posts), arrivals)
            }
        };
        let carrier = if posts.is_some() { "NIXL" } else { "gRPC" };
        let sender = Box::new(Sender { frames, posts });
        Ok(Connection { welcome, carrier, sender, receiver: Box::new(Receiver { replies, arrivals }) })
    }
}

/// Who a worker is, and how long its slots for NIXL are, if it offers any.
async fn hello(
    client: &mut Client,
    place: &Place,
    request: HelloRequest,
) -> Result<(Welcome, usize), ConnectError> {
    let mut request = Request::new(request);
    request.set_timeout(MEET);
    let reply = client.hello(request).await.map_err(|status| explain(place, &status))?.into_inner();
    let slot_bytes = reply.nixl_slot_bytes as usize;
    Ok((reply.try_into().map_err(|why: String| refused(place, why))?, slot_bytes))
}

/// What a worker's status means.
pub(crate) fn explain(place: &Place, status: &Status) -> ConnectError {
    match status.code() {
        Code::FailedPrecondition
        | Code::Unauthenticated
        | Code::PermissionDenied
        | Code::InvalidArgument
        | Code::Unimplemented => refused(place, status.message()),
        _ => unreachable(place, status.message()),
    }
}

/// The deepest reason, which says most.
fn root(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn bearer(token: &str) -> Result<MetadataValue<Ascii>, String> {
    let mut value: MetadataValue<Ascii> =
        format!("Bearer {token}").parse().map_err(|_| "the token is not plain text".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// Puts the token on every call.
#[derive(Clone, Debug)]
pub(crate) struct Token(Option<MetadataValue<Ascii>>);

impl tonic::service::Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

#[derive(Debug)]
struct Sender {
    /// Its end is the end of the connection.
    frames: UnboundedSender<Frame>,
    posts: Option<Posts>,
}

impl SendFrames for Sender {
    fn post(&mut self, slot: usize, frame: Bytes) {
        match &self.posts {
            Some(posts) => posts.post(slot, frame),
            // The receiver will say that the worker is gone.
            None => drop(self.frames.send(Frame { data: frame, nixl: None })),
        }
    }
}

#[derive(Debug)]
struct Receiver {
    replies: Streaming<Frame>,
    arrivals: Arrivals,
}

#[async_trait]
impl ReceiveFrames for Receiver {
    async fn receive(&mut self) -> Result<Bytes, String> {
        tokio::select! {
            frame = self.arrivals.next() => frame,
            reply = self.replies.message() => match reply {
                Ok(Some(frame)) => Ok(frame.data),
                Ok(None) => Err("the worker has ended the connection".to_owned()),
                Err(status) => Err(status.message().to_owned()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn this_machine_is_told_from_others() {
        for here in ["127.0.0.1:1", "localhost:4", "[::1]:80"] {
            assert!(is_loopback(here), "{here}");
        }
        for there in ["10.0.0.1:1", "node:4", "[fe80::1]:80", "127.0.0.1.example.org:1"] {
            assert!(!is_loopback(there), "{there}");
        }
    }
}

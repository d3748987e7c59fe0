//! The worker's side.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, future, stream};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{oneshot, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tread_core::afd::frame::{Header, Kind};

use super::proto::ffn_server::{Ffn, FfnServer};
use super::proto::{DrainReply, DrainRequest, Frame, HelloReply, HelloRequest};
use super::{INCARNATION, KEEPALIVE, KEEPALIVE_TIMEOUT, NIXL, SLOTS, WINDOW, blocking};
use crate::afd::hello::{Hello, PROTOCOL};
use crate::afd::host::{Host, Peer};
use crate::afd::transport::nixl::{Arrivals, Link, Offer, Posts};
use crate::afd::transport::{Carrier, missing_nixl};

/// Bytes of a frame's envelope.
const ENVELOPE: usize = 64;

/// Who may call.
#[derive(Clone, Default)]
pub struct Security {
    /// Certificate and key, PEM.
    pub identity: Option<(String, String)>,
    /// What callers must know.
    pub token: Option<String>,
}

impl std::fmt::Debug for Security {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Security").field("tls", &self.identity.is_some()).finish_non_exhaustive()
    }
}

impl Security {
    /// Whether an address may be listened on: other hosts only with encryption and a token.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self, address: SocketAddr) -> Result<()> {
        if address.ip().is_loopback() || (self.identity.is_some() && self.token.is_some()) {
            return Ok(());
        }
        bail!(
            "{address} can be reached from other hosts: give --tls-cert, --tls-key and --token-file, or listen on 127.0.0.1"
        )
    }
}

/// A worker of whatever kind, as what serves it sees it.
#[async_trait]
pub(crate) trait Attended: std::fmt::Debug + Send + Sync {
    /// Takes nothing new, and tells all who are attached, who then detach.
    fn drain(&self);

    /// Waits until nobody is attached.
    async fn deserted(&self);

    /// Waits until it has ended, and says why.
    async fn ended(&self) -> String;
}

#[async_trait]
impl Attended for Host {
    fn drain(&self) {
        Self::drain(self);
    }

    async fn deserted(&self) {
        Self::deserted(self).await;
    }

    async fn ended(&self) -> String {
        Self::ended(self).await
    }
}

/// A worker that is served.
#[derive(Debug)]
pub struct Served {
    worker: Arc<dyn Attended>,
    address: SocketAddr,
    task: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
    asked: watch::Sender<bool>,
    drain: watch::Sender<bool>,
    stop: watch::Sender<bool>,
}

/// Serves an FFN worker on an address until [`Served::drained`] or [`Served::stop`].
///
/// # Errors
/// When the address cannot be had, or must not be without more security, or the certificate cannot be read; when
/// activations must go by NIXL, which is not there.
pub async fn serve(host: Host, address: SocketAddr, security: &Security, carrier: Carrier) -> Result<Served> {
    match carrier.nixl().map_err(anyhow::Error::msg)? {
        true => tracing::info!("activations go by NIXL where attention has it"),
        false => {
            let nixl = (carrier == Carrier::Auto).then(missing_nixl).flatten();
            tracing::info!(nixl, "activations go by gRPC");
        }
    }
    let asked = watch::Sender::new(false);
    let service = FfnServer::new(FfnService { host: host.clone(), carrier, asked: asked.clone() })
        .max_decoding_message_size(host.most_bytes(host.welcome().max_rows) + ENVELOPE);
    listen(service, Arc::new(host), asked, address, security).await
}

/// Serves a worker: with encryption, token, health, and an end that waits for those who are attached. The service says
/// by `asked` that it was asked to drain.
///
/// # Errors
/// As [`serve`], but for NIXL.
pub(crate) async fn listen<S>(
    service: S,
    worker: Arc<dyn Attended>,
    asked: watch::Sender<bool>,
    address: SocketAddr,
    security: &Security,
) -> Result<Served>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    security.check(address)?;
    let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
    let address = listener.local_addr()?;
    let [drain, stop] = [(); 2].map(|()| watch::Sender::new(false));
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status(S::NAME, ServingStatus::Serving).await;
    let token = Token(security.token.as_ref().map(|token| digest(token.as_bytes())));
    let mut server = Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    if let Some((certificate, key)) = &security.identity {
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
        server = server.tls_config(tls).context("reading the certificate and its key")?;
    }
    let router = server
        .add_service(health)
        .add_service(tonic::service::interceptor::InterceptedService::new(service, token));
    let mut stopped = stop.subscribe();
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let task = tokio::spawn(router.serve_with_incoming_shutdown(incoming, async move {
        // Whoever could stop it has gone: the same.
        let _ = stopped.wait_for(|stop| *stop).await;
    }));
    tokio::spawn(watch_drain(Arc::clone(&worker), drain.subscribe(), reporter, S::NAME));
    Ok(Served { worker, address, task, asked, drain, stop })
}

/// Says to all who attend or probe that the worker takes nothing new.
async fn watch_drain(
    worker: Arc<dyn Attended>,
    mut drain: watch::Receiver<bool>,
    reporter: HealthReporter,
    name: &'static str,
) {
    if drain.wait_for(|drain| *drain).await.is_ok() {
        reporter.set_service_status("", ServingStatus::NotServing).await;
        reporter.set_service_status(name, ServingStatus::NotServing).await;
        worker.drain();
    }
}

impl Served {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no new calls.
    pub fn drain(&self) {
        self.drain.send_replace(true);
    }

    /// Waits until somebody asks over the network that it drain. It does when [`Served::drain`] is called.
    pub async fn asked_to_drain(&self) {
        // The sender is in `self`, so this cannot fail.
        let _ = self.asked.subscribe().wait_for(|asked| *asked).await;
    }

    /// Waits until it drains, and all have got their answers and gone.
    pub async fn drained(&self) {
        let mut drain = self.drain.subscribe();
        let _ = drain.wait_for(|drain| *drain).await;
        self.worker.deserted().await;
    }

    /// Waits until the worker has failed, and says why.
    pub async fn failed(&self) -> String {
        self.worker.ended().await
    }

    /// Stops at once: connections are cut.
    pub fn stop(self) {
        self.stop.send_replace(true);
        self.task.abort();
    }
}

#[derive(Debug)]
struct FfnService {
    host: Host,
    carrier: Carrier,
    asked: watch::Sender<bool>,
}

#[tonic::async_trait]
impl Ffn for FfnService {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let request = request.into_inner();
        let terms = request.terms.clone().unwrap_or_default();
        let theirs = terms.protocol;
        if theirs != PROTOCOL {
            return Err(Status::failed_precondition(format!(
                "different versions of the protocol: attention has {theirs}, the FFN worker {PROTOCOL}"
            )));
        }
        // Who only asks is told.
        if terms.model.is_empty() {
            return Ok(Response::new((&self.host.welcome()).into()));
        }
        if self.host.is_draining() {
            return Err(Status::unavailable("the worker is draining"));
        }
        let hello = Hello::try_from(request).map_err(Status::failed_precondition)?;
        let welcome = self.host.meet(&hello).map_err(Status::failed_precondition)?;
        let nixl = self.carrier.nixl().map_err(Status::internal)?;
        let nixl_slot_bytes = if nixl { self.host.most_bytes(hello.max_rows) as u64 } else { 0 };
        Ok(Response::new(HelloReply { nixl_slot_bytes, ..(&welcome).into() }))
    }

    type AttachStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let number = |key| {
            let value =
                request.metadata().get(key).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
            value.ok_or_else(|| Status::invalid_argument(format!("metadata without `{key}`")))
        };
        // Between Hello and now it may have been started anew.
        if number(INCARNATION)? != self.host.welcome().incarnation {
            return Err(Status::unavailable("the worker was started anew"));
        }
        let slots = usize::try_from(number(SLOTS)?).unwrap_or(usize::MAX).clamp(1, self.host.welcome().slots);
        let by_nixl = request.metadata().contains_key(NIXL);
        let mut frames = request.into_inner();
        let link = match (by_nixl, self.carrier) {
            (true, _) => Some(self.link(frames.message().await?, slots).await.map_err(Status::unavailable)?),
            (false, Carrier::Auto | Carrier::Grpc) => None,
            (false, Carrier::Nixl) => {
                let why = "the worker takes activations by NIXL alone (--transport nixl), and attention has no NIXL or \
                           does not want it (--afd-transport)";
                return Err(Status::failed_precondition(why));
            }
        };
        let (peer, replies) = self.host.attach(slots);
        Ok(Response::new(Box::pin(attached(peer, replies, frames, link))))
    }

    async fn drain(&self, _: Request<DrainRequest>) -> Result<Response<DrainReply>, Status> {
        self.asked.send_replace(true);
        Ok(Response::new(DrainReply {}))
    }
}

impl FfnService {
    /// This side of a link to who offers its slots in the first frame.
    async fn link(&self, first: Option<Frame>, slots: usize) -> Result<(Offer, Posts, Arrivals), String> {
        if !self.carrier.nixl()? {
            return Err("the worker does not offer NIXL".to_owned());
        }
        let theirs = Offer::try_from(first)?;
        let most = self.host.most_bytes(self.host.welcome().max_rows);
        if theirs.slot_bytes > most {
            return Err(format!("slots of {} bytes, where no frame has more than {most}", theirs.slot_bytes));
        }
        let slot_bytes = theirs.slot_bytes;
        let link = blocking(move || Link::open(slots, slot_bytes)).await?;
        let ours = link.offer()?;
        let (posts, arrivals) = link.join(&theirs)?;
        Ok((ours, posts, arrivals))
    }
}

/// Hands calls in, wherever they come, until either way has ended; returns what goes out by gRPC.
fn attached(
    peer: Peer,
    replies: UnboundedReceiver<Bytes>,
    mut frames: Streaming<Frame>,
    link: Option<(Offer, Posts, Arrivals)>,
) -> impl Stream<Item = Result<Frame, Status>> {
    let (offer, posts, mut arrivals) = match link {
        Some((offer, posts, arrivals)) => (Some(offer), Some(posts), arrivals),
        None => (None, None, Arrivals::NONE),
    };
    let (open, closed) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let _open = open;
        loop {
            let frame = tokio::select! {
                frame = frames.message() => match frame {
                    Ok(Some(frame)) => frame.data,
                    Ok(None) | Err(_) => return,
                },
                frame = arrivals.next() => match frame {
                    Ok(frame) => frame,
                    Err(why) => return tracing::debug!(why, "an attention worker is gone"),
                },
            };
            peer.post(frame).await;
        }
    });
    let replies = UnboundedReceiverStream::new(replies).filter_map(move |reply| {
        let rest = match (&posts, answered_slot(&reply)) {
            (Some(posts), Some(slot)) => {
                posts.post(slot, reply);
                None
            }
            _ => Some(Frame { data: reply, nixl: None }),
        };
        future::ready(rest)
    });
    stream::iter(offer.map(Frame::from)).chain(replies).map(Ok).take_until(closed)
}

/// Where the answer is awaited, if a frame is one.
fn answered_slot(reply: &[u8]) -> Option<usize> {
    let (header, _) = Header::read(reply).ok()?;
    (header.kind == Kind::Answer).then_some(header.slot as usize)
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Lets in who knows the token.
#[derive(Clone, Debug)]
struct Token(Option<[u8; 32]>);

impl tonic::service::Interceptor for Token {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(wanted) = &self.0 else { return Ok(request) };
        let value = request.metadata().get("authorization").map(|value| value.as_bytes());
        // Digests are compared: how long that takes says nothing about the token.
        match value.and_then(|value| value.strip_prefix(b"Bearer ")) {
            Some(token) if digest(token) == *wanted => Ok(request),
            Some(_) => Err(Status::unauthenticated("the token (--token-file) is not the worker's")),
            None => Err(Status::unauthenticated("the worker asks for a token (--token-file)")),
        }
    }
}

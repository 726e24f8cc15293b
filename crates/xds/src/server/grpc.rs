//! The gRPC shell of the control plane's side: hands each stream to the control loop.
//!
//! [`DiscoveryService`] goes into a tonic server. What happens on its streams arrives at one
//! bounded channel of [`StreamEvent`]s, in the order of each stream; the control loop keeps a
//! [`super::Stream`] for each. Sending is pull-based: a stream takes one response at a time
//! ([`Sender::is_ready`]) and reports with [`StreamEvent::Ready`] when the transport has taken it.
//! The loop then pushes what is newest, so a slow proxy costs no memory and delays nobody.
//!
//! ```text
//! proxy ── request ──► task of the stream ── StreamEvent ──► control loop
//!       ◄─ response ──                    ◄── Sender ───────
//! ```

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use leno_api::proto::envoy::config::core::v3::Node;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::transport::server::TcpConnectInfo;
use tonic::{Status, Streaming};

use crate::types::Mode;
use crate::wire::{Request, Response, ServerCodec};

/// Largest request. A delta client that resumes states a name and a version per resource.
const MAX_REQUEST_LEN: usize = 64 << 20;

/// Identifies a stream for the life of its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// What happens on streams. For each: `Connected` once, then `Request` (the first follows at
/// once) and `Ready` as they come, then `Closed` once.
#[derive(Debug)]
pub enum StreamEvent {
    /// A client has sent its first request.
    Connected(Box<Connected>),
    /// A request.
    Request {
        /// On which stream.
        id: StreamId,
        /// The request.
        request: Box<Request>,
    },
    /// The transport took the last response: there is room for another.
    Ready {
        /// On which stream.
        id: StreamId,
    },
    /// The stream has ended.
    Closed {
        /// Which stream.
        id: StreamId,
        /// Why, unless the client simply left.
        error: Option<String>,
    },
}

/// A new stream.
#[derive(Debug)]
pub struct Connected {
    /// Identifies it from now on.
    pub id: StreamId,
    /// Which variant the client speaks.
    pub mode: Mode,
    /// Who it says it is; absent if its first request did not say.
    pub node: Option<Node>,
    /// Where it comes from; absent for Unix sockets.
    pub peer: Option<SocketAddr>,
    /// Request headers, e.g. `authorization`.
    pub metadata: MetadataMap,
    /// The way back. Dropping it ends the stream.
    pub sender: Sender,
}

/// Sends responses on one stream.
#[derive(Debug)]
pub struct Sender {
    outgoing: mpsc::Sender<Result<Response, Status>>,
}

/// The stream has ended, or its last response has not been taken yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream takes no response now")]
pub struct NotReady;

impl Sender {
    /// True if a response can be sent now. False also when the stream has ended.
    pub fn is_ready(&self) -> bool {
        self.outgoing.capacity() > 0 && !self.outgoing.is_closed()
    }

    /// Sends a response. Ask [`Sender::is_ready`] before making one: a response that was made and
    /// not sent leaves the state machine wrong.
    pub fn send(&self, response: Response) -> Result<(), NotReady> {
        self.outgoing.try_send(Ok(response)).map_err(|_| NotReady)
    }

    /// Ends the stream with a status, if it can take one now; dropping the sender ends it anyway.
    pub fn close(self, status: Status) {
        // Nothing to do on failure: the stream ends when `self` is gone.
        let _ = self.outgoing.try_send(Err(status));
    }
}

/// The aggregated discovery service, for `tonic::transport::Server::add_service`.
#[derive(Clone, Debug)]
pub struct DiscoveryService {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    events: mpsc::Sender<StreamEvent>,
    next_id: AtomicU64,
}

impl DiscoveryService {
    /// A service whose streams report to `events`. When that channel is full, streams are not
    /// read from; when it is closed, they end.
    pub fn new(events: mpsc::Sender<StreamEvent>) -> Self {
        Self { shared: Arc::new(Shared { events, next_id: AtomicU64::new(1) }) }
    }
}

impl NamedService for DiscoveryService {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl<B> tower::Service<http::Request<B>> for DiscoveryService
where
    B: tonic::codegen::Body + Send + 'static,
    B::Error: Into<tonic::codegen::StdError> + Send + 'static,
    B::Data: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let path = request.uri().path();
        let Some(mode) = [Mode::Sotw, Mode::Delta].into_iter().find(|mode| mode.path() == path) else {
            let status = Status::unimplemented(format!("no such method: {path}"));
            return Box::pin(async move { Ok(status.into_http()) });
        };
        let method = Method { shared: Arc::clone(&self.shared), mode };
        Box::pin(async move {
            let codec = ServerCodec(mode);
            let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_REQUEST_LEN);
            Ok(grpc.streaming(method, request).await)
        })
    }
}

struct Method {
    shared: Arc<Shared>,
    mode: Mode,
}

impl StreamingService<Request> for Method {
    type Response = Response;
    type ResponseStream = ReceiverStream<Result<Response, Status>>;
    type Future = std::future::Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<Request>>) -> Self::Future {
        let id = StreamId(self.shared.next_id.fetch_add(1, Ordering::Relaxed));
        let peer = request.extensions().get::<TcpConnectInfo>().and_then(|info| info.remote_addr());
        let (metadata, _, requests) = request.into_parts();
        // One in the transport's hands, one on the way to it.
        let (transport, responses) = mpsc::channel(1);
        let task = StreamTask { id, mode: self.mode, events: self.shared.events.clone(), transport };
        tokio::spawn(task.run(requests, peer, metadata));
        std::future::ready(Ok(tonic::Response::new(ReceiverStream::new(responses))))
    }
}

/// Moves messages between one stream and the control loop.
struct StreamTask {
    id: StreamId,
    mode: Mode,
    events: mpsc::Sender<StreamEvent>,
    transport: mpsc::Sender<Result<Response, Status>>,
}

impl StreamTask {
    async fn run(self, mut requests: Streaming<Request>, peer: Option<SocketAddr>, metadata: MetadataMap) {
        let id = self.id;
        // A stream that ends before it says anything is never reported.
        let Ok(Some(first)) = requests.message().await else { return };
        let (outgoing, responses) = mpsc::channel(1);
        let node = match &first {
            Request::Sotw(request) => request.node.clone(),
            Request::Delta(request) => request.node.clone(),
        };
        let sender = Sender { outgoing };
        let connected = Box::new(Connected { id, mode: self.mode, node, peer, metadata, sender });
        if self.events.send(StreamEvent::Connected(connected)).await.is_err() {
            let _ = self.transport.try_send(Err(Status::unavailable("the control plane is shutting down")));
            return;
        }
        let error = self.relay(first, requests, responses).await.err().map(|status| status.to_string());
        // If the control loop is gone, nobody needs to know.
        let _ = self.events.send(StreamEvent::Closed { id, error }).await;
    }

    async fn relay(
        &self,
        first: Request,
        mut requests: Streaming<Request>,
        mut responses: mpsc::Receiver<Result<Response, Status>>,
    ) -> Result<(), Status> {
        let gone = |_| Status::unavailable("the control plane is shutting down");
        let request = Box::new(first);
        self.events.send(StreamEvent::Request { id: self.id, request }).await.map_err(gone)?;
        let mut underway: Option<Result<Response, Status>> = None;
        loop {
            tokio::select! {
                request = requests.message() => {
                    let Some(request) = request? else { return Ok(()) };
                    let request = Box::new(request);
                    self.events.send(StreamEvent::Request { id: self.id, request }).await.map_err(gone)?;
                }
                response = responses.recv(), if underway.is_none() => {
                    // The control loop dropped the sender: the stream ends.
                    let Some(response) = response else { return Ok(()) };
                    underway = Some(response);
                }
                permit = self.transport.reserve(), if underway.is_some() => {
                    let Ok(permit) = permit else { return Ok(()) };
                    match underway.take() {
                        Some(Err(status)) => {
                            permit.send(Err(status.clone()));
                            return Err(status);
                        }
                        Some(response) => permit.send(response),
                        None => {}
                    }
                    self.events.send(StreamEvent::Ready { id: self.id }).await.map_err(gone)?;
                }
                () = self.transport.closed() => return Ok(()),
            }
        }
    }
}

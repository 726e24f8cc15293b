//! The gRPC shell of the control plane's side: hands each stream to the control loop.
//!
//! [`DiscoveryService`] serves the aggregated service and those of single types, over any HTTP/2
//! server; `listen` is ours. What happens on its streams arrives at one bounded channel of
//! [`StreamEvent`]s, in the order of each stream; the control loop keeps a [`super::Stream`] for
//! each. Sending is pull-based: a stream takes one response at a time ([`Sender::is_ready`]) and
//! reports with [`StreamEvent::Ready`] when the transport has begun to write it. The loop then
//! pushes what is newest, so a slow proxy costs no memory and delays nobody.
//!
//! ```text
//! proxy ── request ──► task of the stream ── StreamEvent ──► control loop
//!       ◄─ response ── body of the answer ◄──── Sender ─────
//! ```

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use hyper::body::Frame;
use leno_api::proto::envoy::config::core::v3::Node;
use tokio::sync::mpsc;
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::transport::server::TcpConnectInfo;

use super::listen::{Peer, Refusals};
use super::requests::Requests;
use crate::types::{Mode, TypeUrl};
use crate::wire::{Pieces, Request, Response};

/// The longest node, bytes, with labels and annotations of its Pod: API servers take 256 KiB of these.
const MOST_NODE: usize = 1 << 20;

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
    /// The type that the stream is for; `None` if it is aggregated. Requests on a stream for one
    /// type may leave it out, and have it filled in.
    pub only: Option<TypeUrl>,
    /// Who it says it is; absent if its first request did not say.
    pub node: Option<Node>,
    /// Where it comes from; absent for Unix sockets.
    pub peer: Option<SocketAddr>,
    /// Who it has proven to be; `None` where nobody asks.
    pub caller: Option<super::listen::Caller>,
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

/// The discovery services. A `tower::Service` that tells streams by their paths.
#[derive(Clone, Debug)]
pub struct DiscoveryService {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    events: mpsc::Sender<StreamEvent>,
    next_id: AtomicU64,
    refusals: Arc<Refusals>,
}

impl DiscoveryService {
    /// A service whose streams report to `events`. When that channel is full, streams are not
    /// read from; when it is closed, they end.
    pub fn new(events: mpsc::Sender<StreamEvent>) -> Self {
        let refusals = Arc::default();
        Self { shared: Arc::new(Shared { events, next_id: AtomicU64::new(1), refusals }) }
    }

    /// How often somebody was refused.
    pub fn refusals(&self) -> &Arc<Refusals> {
        &self.shared.refusals
    }

    /// Begins a stream; its answer is written as the control loop has something to say.
    pub fn answer<B>(&self, request: http::Request<B>) -> http::Response<Body>
    where
        B: tonic::codegen::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<tonic::codegen::StdError> + Send + 'static,
    {
        let path = request.uri().path();
        let Some((mode, only)) = method(path) else {
            return Status::unimplemented(format!("no such method: {path}")).into_http();
        };
        let is_grpc = request.headers().get(header::CONTENT_TYPE).is_some_and(is_grpc);
        if request.method() != Method::POST || !is_grpc {
            return Status::invalid_argument("this is no gRPC request").into_http();
        }
        let id = StreamId(self.shared.next_id.fetch_add(1, Ordering::Relaxed));
        let (head, body) = request.into_parts();
        let peer = head.extensions.get::<Peer>().cloned();
        let tonics = || head.extensions.get::<TcpConnectInfo>().and_then(|info| info.remote_addr());
        let address = peer.as_ref().map_or_else(tonics, |peer| peer.address);
        let is_known = peer.as_ref().is_none_or(|peer| peer.caller.is_some());
        let requests = Requests::new(mode, Body::new(body), is_known);
        let (outgoing, responses) = mpsc::channel(1);
        // At most one response is under way, so its being taken always fits.
        let (taken, was_taken) = mpsc::channel(1);
        let (events, refusals) = (self.shared.events.clone(), Arc::clone(&self.shared.refusals));
        let task = StreamTask { id, events, was_taken, only: only.clone(), refusals };
        let connected = Connected {
            id,
            mode,
            only,
            node: None,
            peer: address,
            caller: peer.and_then(|peer| peer.caller),
            metadata: MetadataMap::from_headers(head.headers),
            sender: Sender { outgoing },
        };
        tokio::spawn(task.run(requests, connected));
        let body = Outgoing { responses, taken, pieces: None, is_over: false };
        let mut response = http::Response::new(Body::new(body));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }
}

fn is_grpc(value: &HeaderValue) -> bool {
    value.as_bytes().starts_with(b"application/grpc")
}

/// The variant that a path stands for, and the type if it is for one alone.
fn method(path: &str) -> Option<(Mode, Option<TypeUrl>)> {
    for mode in [Mode::Sotw, Mode::Delta] {
        if path == mode.path() {
            return Some((mode, None));
        }
        if let Some(known) = TypeUrl::KNOWN.into_iter().find(|known| known.path(mode) == Some(path)) {
            return Some((mode, Some(known)));
        }
    }
    None
}

impl NamedService for DiscoveryService {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl<B> tower::Service<http::Request<B>> for DiscoveryService
where
    B: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<tonic::codegen::StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        std::future::ready(Ok(self.answer(request)))
    }
}

/// The answer to a stream's request: the responses, each encoded as the transport asks for it.
struct Outgoing {
    responses: mpsc::Receiver<Result<Response, Status>>,
    taken: mpsc::Sender<()>,
    /// The response that is being written.
    pieces: Option<Pieces>,
    is_over: bool,
}

impl hyper::body::Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(piece) = self.pieces.as_mut().and_then(Pieces::take) {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            self.pieces = None;
            if self.is_over {
                return Poll::Ready(None);
            }
            let status = match ready!(self.responses.poll_recv(context)) {
                Some(Ok(response)) => {
                    self.pieces = Some(Pieces::new(response));
                    // There is room unless the task has ended, and then nobody asks.
                    let _ = self.taken.try_send(());
                    continue;
                }
                Some(Err(status)) => status,
                // The control loop has let go of the stream.
                None => Status::ok(""),
            };
            self.is_over = true;
            let mut trailers = HeaderMap::new();
            if status.add_header(&mut trailers).is_err() {
                // Its message cannot be said in a header: its code can.
                trailers.insert("grpc-status", HeaderValue::from(i32::from(status.code())));
            }
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
    }
}

/// Moves requests from one stream to the control loop, and word of what was written.
struct StreamTask {
    id: StreamId,
    events: mpsc::Sender<StreamEvent>,
    was_taken: mpsc::Receiver<()>,
    only: Option<TypeUrl>,
    refusals: Arc<Refusals>,
}

impl StreamTask {
    async fn run(mut self, mut requests: Requests, mut connected: Connected) {
        let id = self.id;
        // A stream that ends before it says anything is never reported.
        let first = match requests.next().await {
            Ok(Some(first)) => first,
            Ok(None) => return,
            Err(status) => return self.refuse(connected, status),
        };
        connected.node = match &first {
            Request::Sotw(request) => request.node.clone(),
            Request::Delta(request) => request.node.clone(),
        };
        let length = connected.node.as_ref().map_or(0, prost::Message::encoded_len);
        if length > MOST_NODE {
            let words = format!("a node of {length} bytes; {MOST_NODE} are the most");
            return self.refuse(connected, Status::invalid_argument(words));
        }
        if self.events.send(StreamEvent::Connected(Box::new(connected))).await.is_err() {
            // Its sender is gone with the event, and so the stream ends.
            return;
        }
        let error = self.relay(first, requests).await.err().map(|status| {
            if matches!(status.code(), tonic::Code::OutOfRange | tonic::Code::Internal) {
                Refusals::add(&self.refusals.messages);
            }
            status.to_string()
        });
        // If the control loop is gone, nobody needs to know.
        let _ = self.events.send(StreamEvent::Closed { id, error }).await;
    }

    /// Ends a stream that has not begun.
    fn refuse(&self, connected: Connected, status: Status) {
        // A client that has gone is no concern of anybody.
        if status.code() != tonic::Code::Cancelled && status.code() != tonic::Code::Unknown {
            Refusals::add(&self.refusals.messages);
            tracing::warn!(peer = ?connected.peer, %status, "refused a stream");
        }
        connected.sender.close(status);
    }

    async fn relay(&mut self, first: Request, mut requests: Requests) -> Result<(), Status> {
        let gone = |_| Status::unavailable("the control plane is shutting down");
        let (id, events) = (self.id, self.events.clone());
        let only = self.only.clone();
        let event = |mut request: Request| {
            if let Some(only) = &only {
                request.set_default_type(only);
            }
            StreamEvent::Request { id, request: Box::new(request) }
        };
        events.send(event(first)).await.map_err(gone)?;
        loop {
            tokio::select! {
                request = requests.next() => {
                    let Some(request) = request? else { return Ok(()) };
                    events.send(event(request)).await.map_err(gone)?;
                }
                taken = self.was_taken.recv() => {
                    // The answer is over, or its connection.
                    if taken.is_none() {
                        return Ok(());
                    }
                    events.send(StreamEvent::Ready { id }).await.map_err(gone)?;
                }
            }
        }
    }
}

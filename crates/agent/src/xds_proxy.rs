//! Passes the streams of a proxy on to the control plane.
//!
//! The proxy connects to a Unix socket and knows of no tokens. For each of its streams there is one to
//! the control plane, over a connection of its own: what ends on one side ends on the other, so that the
//! proxy begins anew, after its own waits, whoever has gone away. Messages pass as they are; of each only
//! the type is looked at. What the agent wants to know for itself it asks for on the same stream, once
//! the proxy asks for listeners, and keeps from the proxy: the table of names, and the mesh's
//! configuration.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use leno_api::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use leno_api::proto::google::rpc;
use leno_api::proto::istio::networking::nds::v1::NameTable;
use leno_xds::Mode;
use leno_xds::server::unix_authority::Mended;
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, decode_varint, skip_field};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::control_plane::ControlPlane;
use crate::metrics::Metrics;

/// The names of the mesh (NDS).
const NAME_TABLE: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";
/// The mesh's configuration for proxies.
const PROXY_CONFIG: &str = "type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";

/// What the agent wants to know for itself.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The table of names (NDS).
    pub names: Option<watch::Sender<Option<Arc<NameTable>>>>,
    /// Roots beside those of the authority, in PEM (PCDS).
    pub roots: Option<watch::Sender<String>>,
}

impl Wanted {
    fn types(&self) -> impl Iterator<Item = &'static str> {
        [self.names.is_some().then_some(NAME_TABLE), self.roots.is_some().then_some(PROXY_CONFIG)]
            .into_iter()
            .flatten()
    }

    /// Takes what has come.
    fn take(&self, type_url: &str, resource: &[u8]) -> Result<(), String> {
        if type_url == NAME_TABLE
            && let Some(names) = &self.names
        {
            let table = NameTable::decode(resource).map_err(|error| error.to_string())?;
            names.send_replace(Some(Arc::new(table)));
        } else if let Some(roots) = &self.roots {
            let config = CaCertificates::decode(resource).map_err(|error| error.to_string())?;
            let roots_now = config.pem.join("\n");
            roots.send_if_modified(|roots| {
                let is_new = *roots != roots_now;
                *roots = roots_now;
                is_new
            });
        }
        Ok(())
    }
}

/// Of `istio.mesh.v1alpha1.ProxyConfig`: `ca_certificates_pem`.
#[derive(Clone, PartialEq, Message)]
struct CaCertificates {
    #[prost(string, repeated, tag = "34")]
    pem: Vec<String>,
}

/// Passes streams on.
#[derive(Debug)]
pub struct XdsProxy {
    /// Where to.
    pub control_plane: ControlPlane,
    /// What we take out of them.
    pub wanted: Wanted,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl XdsProxy {
    /// Binds the socket that the proxy connects to, in place of one that was left behind, for ourselves alone.
    ///
    /// # Errors
    /// If that fails, or a process answers there.
    pub fn bind(path: &Path) -> std::io::Result<UnixListener> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // Whoever may speak to the control plane in the proxy's name is told the keys of its certificates.
        match leno_xds::server::listen::Socket::unix_private(path)? {
            leno_xds::server::listen::Socket::Unix(listener) => Ok(listener),
            leno_xds::server::listen::Socket::Tcp(_) => Err(std::io::ErrorKind::Unsupported.into()),
        }
    }

    /// Serves until it is dropped.
    pub async fn serve(self, listener: UnixListener) {
        let shared = Arc::new(self);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => drop(connections.spawn(connection(Arc::clone(&shared), stream))),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept the proxy");
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    }
                },
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
            }
        }
    }

    /// Opens the stream to the control plane that belongs to one of the proxy's.
    async fn relay(
        self: Arc<Self>,
        mode: Mode,
        proxy: Streaming<Bytes>,
    ) -> Result<Response<ReceiverStream<Result<Bytes, Status>>>, Status> {
        let (channel, headers) = self.control_plane.connect().await.map_err(|error| {
            self.metrics.control_plane_failures.add(1);
            tracing::warn!(error, "the control plane cannot be reached");
            Status::unavailable(error)
        })?;
        // Without a bound: both sides may be waiting to write to the other, and requests are small.
        let (asked, requests) = mpsc::unbounded_channel();
        let mut request = Request::new(UnboundedReceiverStream::new(requests));
        *request.metadata_mut() = MetadataMap::from_headers(headers);
        let (answered, answers) = mpsc::channel(1);
        let upstream = async move {
            let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(usize::MAX);
            client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let path = http::uri::PathAndQuery::from_static(mode.path());
            client.streaming(request, path, Raw).await.map(Response::into_inner)
        };
        tokio::spawn(async move {
            let ended = self.pass(mode, proxy, upstream, &asked, &answered).await;
            if let Err(status) = ended {
                tracing::debug!(%status, "the stream has ended");
                let _ = answered.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    /// Moves messages until one side has ended.
    async fn pass(
        &self,
        mode: Mode,
        mut proxy: Streaming<Bytes>,
        upstream: impl Future<Output = Result<Streaming<Bytes>, Status>>,
        asked: &mpsc::UnboundedSender<Bytes>,
        answered: &mpsc::Sender<Result<Bytes, Status>>,
    ) -> Result<(), Status> {
        let away = |status: Status| {
            self.metrics.control_plane_errors.add(1);
            tracing::warn!(code = ?status.code(), message = status.message(), "the control plane's stream has ended");
            status
        };
        let mut upstream = Upstream::Opening(Box::pin(upstream));
        let mut is_asked = false;
        loop {
            tokio::select! {
                request = proxy.message() => {
                    let Some(request) = request.inspect_err(|_| self.metrics.proxy_errors.add(1))? else {
                        return Ok(());
                    };
                    self.metrics.requests.add(1);
                    let is_for_listeners = !is_asked && type_url(request_field(mode), &request) == LISTENER;
                    let gone = |_| Status::unavailable("the control plane has gone");
                    asked.send(request).map_err(gone)?;
                    if is_for_listeners {
                        is_asked = true;
                        for wanted in self.wanted.types() {
                            asked.send(subscribe(mode, wanted)).map_err(gone)?;
                        }
                    }
                }
                answer = upstream.next(answered) => {
                    let (answer, room) = answer.map_err(away)?;
                    let Some(answer) = answer else {
                        return Err(away(Status::unavailable("the control plane has ended the stream")));
                    };
                    self.metrics.responses.add(1);
                    let known = type_url(4, &answer);
                    let Some(own) = self.wanted.types().find(|wanted| *wanted == known) else {
                        room.send(Ok(answer));
                        continue;
                    };
                    if let Some(reply) = self.take(mode, own, &answer) {
                        let _ = asked.send(reply);
                    }
                }
            }
        }
    }

    /// Takes an answer to what we have asked for, and says that it has arrived.
    fn take(&self, mode: Mode, type_url: &str, answer: &[u8]) -> Option<Bytes> {
        let told = |outcome: Result<(), String>| {
            outcome.err().map(|message| {
                tracing::warn!(type_url, message, "what has come is refused");
                rpc::Status { code: tonic::Code::Internal.into(), message, details: Vec::new() }
            })
        };
        match mode {
            Mode::Sotw => {
                let answer =
                    leno_api::proto::envoy::service::discovery::v3::DiscoveryResponse::decode(answer);
                let answer = answer.ok()?;
                let outcome =
                    answer.resources.first().map_or(Ok(()), |one| self.wanted.take(type_url, &one.value));
                let reply = DiscoveryRequest {
                    version_info: answer.version_info,
                    type_url: type_url.to_owned(),
                    response_nonce: answer.nonce,
                    error_detail: told(outcome),
                    ..DiscoveryRequest::default()
                };
                Some(reply.encode_to_vec().into())
            }
            Mode::Delta => {
                let answer =
                    leno_api::proto::envoy::service::discovery::v3::DeltaDiscoveryResponse::decode(answer);
                let answer = answer.ok()?;
                let first = answer.resources.first().and_then(|one| one.resource.as_ref());
                let outcome = first.map_or(Ok(()), |one| self.wanted.take(type_url, &one.value));
                let reply = DeltaDiscoveryRequest {
                    type_url: type_url.to_owned(),
                    response_nonce: answer.nonce,
                    error_detail: told(outcome),
                    ..DeltaDiscoveryRequest::default()
                };
                Some(reply.encode_to_vec().into())
            }
        }
    }
}

/// The control plane's side of a stream.
enum Upstream<F> {
    Opening(std::pin::Pin<Box<F>>),
    Open(Box<Streaming<Bytes>>),
}

impl<F: Future<Output = Result<Streaming<Bytes>, Status>>> Upstream<F> {
    /// The next answer, once there is room for it. May be dropped and called again.
    async fn next<'s>(
        &mut self,
        answered: &'s mpsc::Sender<Result<Bytes, Status>>,
    ) -> Result<(Option<Bytes>, mpsc::Permit<'s, Result<Bytes, Status>>), Status> {
        if let Upstream::Opening(opening) = self {
            let opened = opening.await?;
            tracing::info!("connected to the control plane");
            *self = Upstream::Open(Box::new(opened));
        }
        // The last answer must be on its way before another is read.
        let room = answered.reserve().await.map_err(|_| Status::cancelled("the proxy has gone"))?;
        match self {
            Upstream::Open(answers) => Ok((answers.message().await?, room)),
            Upstream::Opening(_) => Err(Status::internal("it is open")),
        }
    }
}

/// A connection of the proxy.
async fn connection(shared: Arc<XdsProxy>, stream: UnixStream) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(shared, request).await) }
    });
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(Mended::new(stream)), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection of the proxy has ended");
    }
}

async fn answer(shared: Arc<XdsProxy>, request: http::Request<Incoming>) -> http::Response<Body> {
    let mode = [Mode::Sotw, Mode::Delta].into_iter().find(|mode| mode.path() == request.uri().path());
    let Some(mode) = mode else {
        return Status::unimplemented(format!("no such method: {}", request.uri().path())).into_http();
    };
    // Some clients wait for headers before they ask, and the control plane waits for a request: so
    // the proxy is answered before the control plane has.
    let mut server = tonic::server::Grpc::new(Raw).max_decoding_message_size(usize::MAX);
    server.streaming(Relay { shared, mode }, request.map(Body::new)).await
}

struct Relay {
    shared: Arc<XdsProxy>,
    mode: Mode,
}

impl tonic::server::StreamingService<Bytes> for Relay {
    type Response = Bytes;
    type ResponseStream = ReceiverStream<Result<Bytes, Status>>;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<Response<Self::ResponseStream>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        Box::pin(Arc::clone(&self.shared).relay(self.mode, request.into_inner()))
    }
}

/// The first request for all of a type.
fn subscribe(mode: Mode, type_url: &str) -> Bytes {
    let type_url = type_url.to_owned();
    match mode {
        Mode::Sotw => DiscoveryRequest { type_url, ..DiscoveryRequest::default() }.encode_to_vec(),
        Mode::Delta => DeltaDiscoveryRequest { type_url, ..DeltaDiscoveryRequest::default() }.encode_to_vec(),
    }
    .into()
}

/// The number of `type_url` in requests.
fn request_field(mode: Mode) -> u32 {
    match mode {
        Mode::Sotw => 4,
        Mode::Delta => 2,
    }
}

/// A text among the fields of a message, without decoding the rest; empty if it is not there.
fn type_url(field: u32, mut message: &[u8]) -> &str {
    while message.has_remaining() {
        let Ok((number, kind)) = decode_key(&mut message) else { return "" };
        if number == field {
            let Ok(length) = decode_varint(&mut message) else { return "" };
            let bytes = usize::try_from(length).ok().and_then(|length| message.get(..length));
            return bytes.and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default();
        }
        if skip_field(kind, number, &mut message, DecodeContext::default()).is_err() {
            return "";
        }
    }
    ""
}

/// Messages as bytes.
#[derive(Clone, Copy, Debug)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        DeltaDiscoveryRequest, DiscoveryRequest, LISTENER, Message, Mode, request_field, subscribe, type_url,
    };

    #[tokio::test]
    async fn the_socket_is_ours_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("proxy/XDS");
        let _listener = super::XdsProxy::bind(&path).expect("it can be bound");
        let mode = std::fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn types_of_requests() {
        for mode in [Mode::Sotw, Mode::Delta] {
            assert_eq!(type_url(request_field(mode), &subscribe(mode, LISTENER)), LISTENER);
        }
        let full = DiscoveryRequest {
            version_info: "7".to_owned(),
            resource_names: vec!["a".to_owned()],
            type_url: LISTENER.to_owned(),
            ..DiscoveryRequest::default()
        };
        assert_eq!(type_url(4, &full.encode_to_vec()), LISTENER);
        assert_eq!(type_url(2, &DeltaDiscoveryRequest::default().encode_to_vec()), "");
        assert_eq!(type_url(4, &[0x22, 0xff, 0xff]), "");
        assert_eq!(type_url(4, &[0xff]), "");
    }
}

//! The gRPC shell of the proxy's side: keeps a stream open and moves messages between it, the
//! state machine and the proxy.
//!
//! [`run`] is one future that never gives up: when the stream ends it waits (backoff) and
//! connects again. It ends when the [`Commander`] is dropped. Commands go through an unbounded
//! channel, so that the proxy's main loop never waits for the control plane; events through a
//! bounded one, so that a busy proxy is not flooded: while it is full, nothing is read from the
//! stream, and commands are obeyed all the same.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use http::HeaderMap;
use http::uri::Uri;
use hyper_util::rt::TokioIo;
use leno_base::Name;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codec::EncodeBody;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::Service as _;

use super::{Client, Expired, Interest, Receipt, Rejection, Update};
use crate::messages::Messages;
use crate::types::{Mode, TypeUrl};
use crate::wire::{ClientCodec, Received, Request};

/// What the proxy wants done. See the methods of the same names of [`Client`].
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// [`Client::subscribe`].
    Subscribe {
        /// The type.
        type_url: TypeUrl,
        /// What of it.
        interest: Interest,
        /// `initial_fetch_timeout`.
        timeout: Option<Duration>,
    },
    /// [`Client::unsubscribe`].
    Unsubscribe {
        /// The type.
        type_url: TypeUrl,
        /// What of it.
        interest: Interest,
    },
    /// [`Client::refresh`].
    Refresh {
        /// The type.
        type_url: TypeUrl,
        /// What to send again.
        names: Vec<Name>,
    },
    /// [`Client::ack`].
    Ack(Receipt),
    /// [`Client::nack`].
    Nack(Receipt, Rejection),
    /// [`Client::pause`].
    Pause(TypeUrl),
    /// [`Client::resume`].
    Resume(TypeUrl),
}

/// What the proxy is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The server has accepted a stream (Envoy: `control_plane.connected_state` 1).
    Connected,
    /// The stream ended or could not be opened.
    Disconnected {
        /// Why.
        error: String,
        /// When it will be tried again.
        retry_in: Duration,
    },
    /// Something changed; to be answered with [`Command::Ack`] or [`Command::Nack`].
    Update(Update),
    /// A subscription had no answer in time.
    Expired(Expired),
    /// The time to live of resources is over: they are to be forgotten as if the server had
    /// removed them. There is nothing to answer.
    Outlived {
        /// The type.
        type_url: TypeUrl,
        /// What has gone.
        names: Vec<Name>,
    },
}

/// Sends commands to [`run`]. Dropping the last clone ends it.
#[derive(Clone, Debug)]
pub struct Commander {
    commands: mpsc::UnboundedSender<Command>,
}

/// Receives the commands of a [`Commander`]: give it to [`run`].
#[derive(Debug)]
pub struct Commands {
    commands: mpsc::UnboundedReceiver<Command>,
}

/// Both ends of a queue of commands.
pub fn commands() -> (Commander, Commands) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Commander { commands: sender }, Commands { commands: receiver })
}

impl Commander {
    /// Queues a command. Without effect if [`run`] has been dropped.
    pub fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// See [`Client::subscribe`].
    pub fn subscribe(&self, type_url: TypeUrl, interest: Interest, timeout: Option<Duration>) {
        self.send(Command::Subscribe { type_url, interest, timeout });
    }

    /// See [`Client::unsubscribe`].
    pub fn unsubscribe(&self, type_url: TypeUrl, interest: Interest) {
        self.send(Command::Unsubscribe { type_url, interest });
    }

    /// See [`Client::ack`].
    pub fn ack(&self, receipt: Receipt) {
        self.send(Command::Ack(receipt));
    }

    /// See [`Client::nack`].
    pub fn nack(&self, receipt: Receipt, rejection: Rejection) {
        self.send(Command::Nack(receipt, rejection));
    }
}

/// Where a control plane listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A TCP address.
    Tcp(std::net::SocketAddr),
    /// A Unix socket.
    Unix(std::path::PathBuf),
}

/// How a connection to a control plane is made.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Value of `:authority`. Envoy uses the name of the cluster unless the configuration says
    /// otherwise.
    pub authority: String,
    /// Limit for establishing the connection (Envoy: the cluster's `connect_timeout`).
    pub connect_timeout: Duration,
    /// HTTP/2 pings on an idle connection: how often, and how long to wait for the answer.
    pub keepalive: Option<(Duration, Duration)>,
}

/// Why a connection cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not a host name.
    #[error("{0:?} cannot be an HTTP authority")]
    Authority(String),
    /// The transport's error, with its causes.
    #[error("{0}")]
    Transport(String),
}

impl From<tonic::transport::Error> for ConnectError {
    fn from(error: tonic::transport::Error) -> Self {
        Self::Transport(chain(&error))
    }
}

/// Connects without TLS.
pub async fn connect(target: &Target, connection: &Connection) -> Result<Channel, ConnectError> {
    let failed = |error: std::io::Error| ConnectError::Transport(error.to_string());
    let late = || ConnectError::Transport("the connection was not established in time".to_owned());
    let limit = connection.connect_timeout;
    match target {
        Target::Tcp(address) => {
            let connecting = tokio::time::timeout(limit, tokio::net::TcpStream::connect(address));
            let stream = connecting.await.map_err(|_| late())?.map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            over(stream, connection).await
        }
        Target::Unix(path) => {
            let connecting = tokio::time::timeout(limit, tokio::net::UnixStream::connect(path));
            over(connecting.await.map_err(|_| late())?.map_err(failed)?, connection).await
        }
    }
}

/// Speaks HTTP/2 over a connection that is there, with TLS or without. When it ends, so does the
/// channel.
pub async fn over<IO>(io: IO, connection: &Connection) -> Result<Channel, ConnectError>
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let authority = format!("http://{}", connection.authority);
    let origin = authority.parse().map_err(|_| ConnectError::Authority(connection.authority.clone()))?;
    // Where it leads is settled already: the address of the endpoint is not looked at.
    let mut endpoint = Endpoint::from_static("http://control.plane").origin(origin);
    if let Some((interval, timeout)) = connection.keepalive {
        endpoint = endpoint.http2_keep_alive_interval(interval).keep_alive_timeout(timeout);
        endpoint = endpoint.keep_alive_while_idle(true);
    }
    let mut io = Some(TokioIo::new(io));
    let connector = tower::service_fn(move |_: Uri| {
        let io = io.take().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected));
        std::future::ready(io)
    });
    Ok(endpoint.connect_with_connector(connector).await?)
}

/// Keeps a stream of the method `path` ([`crate::Mode::path`], [`TypeUrl::path`]) open until the
/// [`Commander`] is dropped or nobody receives events. `connector` makes a connection, and is
/// asked anew each time. `metadata`: headers of the stream (`GrpcService.initial_metadata`).
pub async fn run<C, F, E>(
    mut connector: C,
    path: &'static str,
    metadata: HeaderMap,
    client: Client,
    commands: Commands,
    events: mpsc::Sender<Event>,
) where
    C: FnMut() -> F,
    F: Future<Output = Result<Channel, E>>,
    E: std::fmt::Display,
{
    let mut shell = Shell { client, commands: commands.commands, events, outbox: VecDeque::new() };
    loop {
        let opened = match shell.during(connector()).await {
            Err(Ended) => return,
            Ok(Ok(channel)) => shell.stream(channel, path, metadata.clone()).await,
            Ok(Err(error)) => Ok(error.to_string()),
        };
        let Ok(error) = opened else { return };
        let retry_in = shell.client.on_disconnected();
        tracing::debug!(error, ?retry_in, "xDS stream ended");
        shell.outbox.push_back(Event::Disconnected { error, retry_in });
        if shell.during(sleep(retry_in)).await.is_err() {
            return;
        }
    }
}

/// The proxy needs no stream any more.
struct Ended;

struct Shell {
    client: Client,
    commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::Sender<Event>,
    /// Events that did not fit into the channel yet.
    outbox: VecDeque<Event>,
}

impl Shell {
    /// Waits for `future` and does everything that needs no stream meanwhile.
    async fn during<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Ended> {
        let mut future = pin!(future);
        loop {
            tokio::select! {
                output = &mut future => return Ok(output),
                outcome = self.turn() => outcome?,
            }
        }
    }

    /// One stream, from opening to its end. Returns why it ended.
    async fn stream(
        &mut self,
        channel: Channel,
        path: &'static str,
        metadata: HeaderMap,
    ) -> Result<String, Ended> {
        // Small: what is not taken stays in the state machine, where it merges with what follows.
        let (requests, outgoing) = mpsc::channel(1);
        self.client.on_connected();
        // Some servers answer nothing, not even headers, before they have read a request.
        let mut opening = pin!(open(channel, path, metadata, outgoing));
        let mut incoming: Option<Messages> = None;
        let mut writable = true;
        loop {
            let room = self.outbox.is_empty();
            let asking = self.client.has_request();
            tokio::select! {
                opened = &mut opening, if incoming.is_none() => match opened {
                    Ok(responses) => {
                        incoming = Some(responses);
                        self.outbox.push_back(Event::Connected);
                    }
                    Err(status) => return Ok(describe(&status)),
                },
                received = next(self.client.mode(), incoming.as_mut()), if incoming.is_some() && room => match received {
                    Ok(Some(response)) => {
                        let now = Instant::now().into_std();
                        self.outbox.extend(self.client.on_response(now, response).map(Event::Update));
                    }
                    Ok(None) => return Ok("the server ended the stream".to_owned()),
                    Err(status) => return Ok(describe(&status)),
                },
                permit = requests.reserve(), if asking && writable => match permit {
                    Ok(permit) => {
                        if let Some(request) = self.client.next_request() {
                            permit.send(request);
                        }
                    }
                    // The transport takes no more; the reason arrives with the responses.
                    Err(_) => writable = false,
                },
                outcome = self.turn() => outcome?,
            }
        }
    }

    /// Waits for one of the things that can happen at any time, and does it.
    async fn turn(&mut self) -> Result<(), Ended> {
        let deadline = self.client.deadline();
        tokio::select! {
            command = self.commands.recv() => {
                obey(&mut self.client, command.ok_or(Ended)?);
                // All that are there: thousands of subscriptions are one request with all names, not
                // thousands of requests with all names so far.
                while let Ok(command) = self.commands.try_recv() {
                    obey(&mut self.client, command);
                }
            }
            permit = self.events.reserve(), if !self.outbox.is_empty() => {
                let permit = permit.map_err(|_| Ended)?;
                if let Some(event) = self.outbox.pop_front() {
                    permit.send(event);
                }
            }
            () = wait_until(deadline) => {
                let expired = self.client.on_deadline(Instant::now().into_std());
                self.outbox.extend(expired.into_iter().map(Event::Expired));
                let outlived = self.client.outlived(Instant::now().into_std());
                self.outbox
                    .extend(outlived.into_iter().map(|(type_url, names)| Event::Outlived { type_url, names }));
            }
        }
        Ok(())
    }
}

fn obey(client: &mut Client, command: Command) {
    match command {
        Command::Subscribe { type_url, interest, timeout } => {
            client.subscribe(Instant::now().into_std(), &type_url, &interest, timeout);
        }
        Command::Unsubscribe { type_url, interest } => client.unsubscribe(&type_url, &interest),
        Command::Refresh { type_url, names } => client.refresh(&type_url, &names),
        Command::Ack(receipt) => client.ack(&receipt),
        Command::Nack(receipt, rejection) => client.nack(&receipt, &rejection),
        Command::Pause(type_url) => client.pause(&type_url),
        Command::Resume(type_url) => client.resume(&type_url),
    }
}

/// Sends the head of a call and, when the server answers, gives what comes then.
async fn open(
    mut channel: Channel,
    path: &'static str,
    metadata: HeaderMap,
    outgoing: mpsc::Receiver<Request>,
) -> Result<Messages, Status> {
    poll_fn(|context| channel.poll_ready(context))
        .await
        .map_err(|error| Status::unavailable(chain(&error)))?;
    let requests = ReceiverStream::new(outgoing).map(Ok);
    let mut call = http::Request::new(Body::new(EncodeBody::new_client(ClientCodec, requests, None, None)));
    *call.method_mut() = http::Method::POST;
    *call.version_mut() = http::Version::HTTP_2;
    *call.uri_mut() = Uri::from_static(path);
    *call.headers_mut() = tonic::metadata::MetadataMap::from_headers(metadata).into_headers();
    // What makes it gRPC nobody else decides.
    RESERVED.iter().for_each(|name| drop(call.headers_mut().remove(*name)));
    call.headers_mut().insert(http::header::TE, http::HeaderValue::from_static("trailers"));
    let grpc = http::HeaderValue::from_static("application/grpc");
    call.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
    let answer = channel.call(call).await.map_err(|error| Status::from_error(error.into()))?;
    match Status::from_header_map(answer.headers()) {
        Some(status) if status.code() != Code::Ok => return Err(status),
        None if answer.status() != http::StatusCode::OK => return Err(of_http(answer.status())),
        _ => {}
    }
    // A whole configuration in one message has no natural limit; Envoy sets none either.
    Ok(Messages::new(answer.into_body(), usize::MAX))
}

/// Headers that gRPC has a use for itself.
const RESERVED: [&str; 5] = ["te", "content-type", "grpc-message", "grpc-status", "grpc-encoding"];

/// The status of a call that is answered without one, by gRPC's table.
fn of_http(status: http::StatusCode) -> Status {
    let code = match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    };
    Status::new(code, format!("no grpc-status, and the status of HTTP is {}", status.as_u16()))
}

async fn next(mode: Mode, incoming: Option<&mut Messages>) -> Result<Option<Received>, Status> {
    let Some(messages) = incoming else { return std::future::pending().await };
    let Some(message) = messages.next().await? else { return Ok(None) };
    Received::decode(mode, message).map(Some).map_err(|error| Status::internal(error.to_string()))
}

async fn wait_until(deadline: Option<std::time::Instant>) {
    match deadline {
        Some(deadline) => sleep_until(Instant::from_std(deadline)).await,
        None => std::future::pending().await,
    }
}

fn describe(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => format!("{:?}: {}", status.code(), chain(source)),
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// An error and its causes, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

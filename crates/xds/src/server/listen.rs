//! Where proxies connect: an HTTP/2 server over TCP or Unix sockets, with or without TLS.
//!
//! It bounds what strangers may cost (connections, time for a handshake), asks an [`Authenticator`]
//! who calls, and ends connections that have become old, so that proxies spread over the replicas
//! of a control plane; when it is to end, it ends all of them, spread over a while, and lets none
//! wait for an answer that will not come.

use std::convert::Infallible;
use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use leno_base::Rng;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tonic::Status;
use tonic::body::Body;

use super::grpc::DiscoveryService;
use super::room::Shares;
use super::unix_authority::Mended;

/// How long a stream may be kept waiting for its end when a connection has become old: what is not
/// over then is cut.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How many bytes of answers may wait inside a connection: a few frames, as what waits is not the
/// newest any more, and thousands of connections are served at once.
const SEND_BUFFER: usize = 64 * 1024;
/// How long the headers of a request may be, bytes: a token and a few certificates fit.
const MOST_HEADERS: u32 = 64 << 10;

/// A socket that proxies connect to.
#[derive(Debug)]
pub enum Socket {
    /// A TCP port.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

impl Socket {
    /// Binds a Unix socket, in place of one that a process has left behind.
    ///
    /// # Errors
    /// If that fails, or if something else is there, or a process that answers.
    pub fn unix(path: PathBuf) -> io::Result<Socket> {
        make_room(&path)?;
        Ok(Socket::Unix(UnixListener::bind(path)?))
    }

    /// The same for the owner's processes alone, at every moment: it is bound under another name and gets
    /// its own when others may not connect any more.
    ///
    /// # Errors
    /// If that fails, or if something else is there, or a process that answers.
    pub fn unix_private(path: &Path) -> io::Result<Socket> {
        use std::os::unix::fs::PermissionsExt as _;
        make_room(path)?;
        if std::fs::symlink_metadata(path).is_ok() {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        // Short: the paths of sockets are.
        let draft = path.with_file_name(format!(".{}", std::process::id()));
        make_room(&draft)?;
        let listener = UnixListener::bind(&draft)?;
        std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&draft, path)?;
        Ok(Socket::Unix(listener))
    }
}

/// Removes a socket that a process has left behind.
fn make_room(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt as _;
    if let Ok(metadata) = std::fs::symlink_metadata(path)
        && metadata.file_type().is_socket()
    {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::from(io::ErrorKind::AddrInUse));
        }
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// How connections are treated.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a client may be silent before it is asked whether it is there, and how long it has
    /// to answer.
    pub keepalive: (Duration, Duration),
    /// The most connections at a time. Others wait to be accepted.
    pub most_connections: usize,
    /// The most of one address (of IPv6: of one /64) on a port; more are closed. Behind a NAT many are one.
    pub most_connections_of_one: usize,
    /// The most streams at a time on a connection.
    pub most_streams: u32,
    /// After what time a connection is ended, on the average: up to a tenth sooner or later.
    pub most_age: Option<Duration>,
    /// How long the ends of connections are spread over when the server ends.
    pub hand_over: Duration,
    /// How long a connection may take until it has asked for something that it may ask for.
    pub most_silence: Duration,
}

impl Default for Options {
    /// 30 s and 10 s, 100,000 connections, 20,000 of one address, of 100 streams, no age, 3 s, 60 s.
    fn default() -> Self {
        Self {
            keepalive: (Duration::from_secs(30), Duration::from_secs(10)),
            most_connections: 100_000,
            most_connections_of_one: 20_000,
            most_streams: 100,
            most_age: None,
            hand_over: Duration::from_secs(3),
            most_silence: Duration::from_secs(60),
        }
    }
}

/// Who a client has proven to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Its identities, as `spiffe://cluster.local/ns/default/sa/reviews`.
    pub identities: Vec<String>,
    /// The Pod that its token was issued to, if that is known.
    pub pod: Option<Pod>,
}

/// A Pod of Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What tells it from others that have or had the same name.
    pub uid: String,
}

/// How often somebody was refused, and why.
#[derive(Debug, Default)]
pub struct Refusals {
    /// Handshakes that have failed or taken too long.
    pub handshakes: AtomicU64,
    /// Connections of callers who have all that they may have.
    pub crowds: AtomicU64,
    /// Requests of callers that have not proven who they are.
    pub callers: AtomicU64,
    /// Connections that have asked for nothing.
    pub silent: AtomicU64,
    /// Streams that sent what is too long or no request.
    pub messages: AtomicU64,
}

impl Refusals {
    /// Counts one.
    pub(super) fn add(count: &AtomicU64) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// What is known of a connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: Option<SocketAddr>,
    pub(super) caller: Option<Caller>,
}

/// What a client shows.
#[derive(Clone, Copy, Debug)]
pub struct Credentials<'c> {
    /// The identities (names of URI type) in the certificate of the connection, which is verified;
    /// empty without one.
    pub certificate: &'c [String],
    /// The headers of the request, `authorization` among them.
    pub headers: &'c http::HeaderMap,
    /// Where the connection comes from; absent for Unix sockets.
    pub address: Option<SocketAddr>,
}

/// Who a caller turns out to be.
pub type Authenticated<'c> =
    std::pin::Pin<Box<dyn Future<Output = Result<Option<Caller>, String>> + Send + 'c>>;

/// Decides who may begin a stream.
pub trait Authenticator: Debug + Send + Sync {
    /// Who it is; `None` if nobody asks.
    ///
    /// # Errors
    /// The words for who may not. They are sent to the client.
    fn authenticate<'c>(&'c self, credentials: Credentials<'c>) -> Authenticated<'c>;
}

/// Lets everybody in.
#[derive(Clone, Copy, Debug)]
pub struct Anyone;

impl Authenticator for Anyone {
    fn authenticate<'c>(&'c self, _: Credentials<'c>) -> Authenticated<'c> {
        Box::pin(std::future::ready(Ok(None)))
    }
}

/// Lets those in who show a certificate (which the TLS settings have verified).
#[derive(Clone, Copy, Debug)]
pub struct Certified;

impl Authenticator for Certified {
    fn authenticate<'c>(&'c self, credentials: Credentials<'c>) -> Authenticated<'c> {
        let caller = if credentials.certificate.is_empty() {
            Err("a client certificate is required".to_owned())
        } else {
            Ok(Some(Caller { identities: credentials.certificate.to_vec(), pod: None }))
        };
        Box::pin(std::future::ready(caller))
    }
}

/// Lets those in who send a known token as `authorization: Bearer`.
#[derive(Clone)]
pub struct Tokens(Vec<(String, Caller)>);

impl Tokens {
    /// Tokens, and who each stands for.
    pub fn new(tokens: impl IntoIterator<Item = (String, Caller)>) -> Self {
        Self(tokens.into_iter().filter(|(token, _)| !token.is_empty()).collect())
    }
}

impl Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the tokens themselves.
        f.debug_list().entries(self.0.iter().map(|(_, caller)| caller)).finish()
    }
}

impl Authenticator for Tokens {
    fn authenticate<'c>(&'c self, credentials: Credentials<'c>) -> Authenticated<'c> {
        Box::pin(std::future::ready(self.find(credentials)))
    }
}

impl Tokens {
    fn find(&self, credentials: Credentials<'_>) -> Result<Option<Caller>, String> {
        let header = credentials.headers.get(http::header::AUTHORIZATION).map(http::HeaderValue::as_bytes);
        let token = header.and_then(|header| {
            let (scheme, token) = header.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
        });
        let Some(token) = token else { return Err("a bearer token is required".to_owned()) };
        // All are compared, each in time that does not depend on where it differs.
        let mut found = None;
        for (known, caller) in &self.0 {
            if is_same_secret(known.as_bytes(), token) {
                found = Some(caller.clone());
            }
        }
        found.map(Some).ok_or_else(|| "the token is not known".to_owned())
    }
}

fn is_same_secret(known: &[u8], given: &[u8]) -> bool {
    let difference = known.iter().zip(given).fold(0, |difference, (a, b)| difference | (a ^ b));
    known.len() == given.len() && std::hint::black_box(difference) == 0
}

/// Makes a connection out of a socket's: what TLS does, for one.
pub trait Handshake: Debug + Send + Sync {
    /// The stream to speak HTTP/2 over, and the identities in the client's certificate.
    fn shake(&self, stream: Box<dyn Stream>) -> Shaken;
}

/// What comes of a handshake.
pub type Shaken = std::pin::Pin<Box<dyn Future<Output = io::Result<(Box<dyn Stream>, Vec<String>)>> + Send>>;

/// A connection's bytes.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What is served on the same port, beside discovery.
pub trait Beside: Debug + Send + Sync {
    /// Whether it answers requests for this path.
    fn answers(&self, path: &str) -> bool;

    /// Answers a request. Who calls, or why he may not, is what the authenticator says; that nobody
    /// gets what is not for everybody is up to the service.
    fn answer(
        &self,
        request: http::Request<Incoming>,
        caller: Result<Option<Caller>, String>,
    ) -> std::pin::Pin<Box<dyn Future<Output = http::Response<Body>> + Send>>;
}

/// The server.
#[derive(Clone, Debug)]
pub struct Listen {
    /// What is served.
    pub service: DiscoveryService,
    /// What else is served.
    pub beside: Option<Arc<dyn Beside>>,
    /// How connections are treated.
    pub options: Options,
    /// Who may call.
    pub authenticator: Arc<dyn Authenticator>,
    /// How a connection begins; absent in plain text.
    pub handshake: Option<Arc<dyn Handshake>>,
}

impl Listen {
    /// In plain text, for everybody.
    pub fn new(service: DiscoveryService) -> Self {
        Self {
            service,
            beside: None,
            options: Options::default(),
            authenticator: Arc::new(Anyone),
            handshake: None,
        }
    }

    /// Serves until `ended` is true, and then until all connections have ended.
    pub async fn run(self, socket: Socket, mut ended: watch::Receiver<bool>) {
        let room = Arc::new(Semaphore::new(self.options.most_connections));
        let shares = Shares::new(self.options.most_connections_of_one);
        let mut connections = JoinSet::new();
        let mut rng = Rng::from_entropy();
        loop {
            let accepted = tokio::select! {
                accepted = accept(&socket, &room) => accepted,
                // The sender being gone is an end too.
                _ = ended.wait_for(|ended| *ended) => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            };
            match accepted {
                Ok((stream, address, permit)) => {
                    // Deviation: with istiod one caller may have all connections that there can be.
                    let share = address.map(|address| shares.take(address.ip().into()));
                    if matches!(share, Some(None)) {
                        Refusals::add(&self.service.refusals().crowds);
                        continue;
                    }
                    let connection = self.clone();
                    let (ended, room, spread) = (ended.clone(), Arc::clone(&room), rng.below(1000));
                    connections.spawn(async move {
                        connection.serve(stream, address, ended, &room, spread).await;
                        drop((permit, share));
                    });
                }
                Err(error) => {
                    // Out of descriptors, say: waiting a little is all that can be done.
                    tracing::warn!(%error, "cannot accept proxies");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        while connections.join_next().await.is_some() {}
    }

    /// One connection, to its end. `spread` is a number below 1000 that says when it is ended,
    /// among others.
    async fn serve(
        &self,
        stream: Box<dyn Stream>,
        address: Option<SocketAddr>,
        mut ended: watch::Receiver<bool>,
        room: &Semaphore,
        spread: u64,
    ) {
        let (stream, certificate) = match &self.handshake {
            None => (stream, Vec::new()),
            Some(handshake) => {
                match tokio::time::timeout(self.options.keepalive.1, handshake.shake(stream)).await {
                    Ok(Ok(shaken)) => shaken,
                    Ok(Err(error)) => {
                        Refusals::add(&self.service.refusals().handshakes);
                        return tracing::info!(?address, %error, "a handshake has failed");
                    }
                    Err(_) => {
                        Refusals::add(&self.service.refusals().handshakes);
                        return tracing::info!(?address, "a handshake has taken too long");
                    }
                }
            }
        };
        let (service, authenticator) = (self.service.clone(), Arc::clone(&self.authenticator));
        let beside = self.beside.clone();
        let certificate: Arc<[String]> = certificate.into();
        let refusals = Arc::clone(self.service.refusals());
        let (asks, asked) = watch::channel(false);
        let service = service_fn(move |mut request: http::Request<Incoming>| {
            let asks = asks.clone();
            let (service, authenticator) = (service.clone(), Arc::clone(&authenticator));
            let beside = beside.clone();
            let certificate = Arc::clone(&certificate);
            async move {
                let credentials =
                    Credentials { certificate: &certificate, headers: request.headers(), address };
                let caller = authenticator.authenticate(credentials).await;
                match &caller {
                    Ok(_) => drop(asks.send_replace(true)),
                    Err(_) => Refusals::add(&service.refusals().callers),
                }
                if let Some(beside) = beside.filter(|beside| beside.answers(request.uri().path())) {
                    return Ok(beside.answer(request, caller).await);
                }
                Ok::<_, Infallible>(match caller {
                    Ok(caller) => {
                        request.extensions_mut().insert(Peer { address, caller });
                        service.answer(request)
                    }
                    Err(words) => Status::unauthenticated(words).into_http(),
                })
            }
        });
        let (interval, timeout) = self.options.keepalive;
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(interval)
            .keep_alive_timeout(timeout)
            .max_send_buf_size(SEND_BUFFER)
            .max_concurrent_streams(self.options.most_streams)
            .max_header_list_size(MOST_HEADERS)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let old = async {
            match self.options.most_age {
                // Not all at once, though they may have come so.
                Some(age) => tokio::time::sleep(age.mul_f64(0.9 + spread as f64 / 5000.0)).await,
                None => std::future::pending().await,
            }
        };
        let over = async {
            let _ = ended.wait_for(|ended| *ended).await;
            // A few proxies can come to another replica at once; many cannot.
            let count = self.options.most_connections.saturating_sub(room.available_permits());
            let time = self.options.hand_over.min(Duration::from_millis(count as u64));
            tokio::time::sleep(time.mul_f64(spread as f64 / 1000.0)).await;
        };
        // Deviation: with istiod a connection that asks for nothing stays.
        let silent = async {
            let mut asked = asked;
            let patience = self.options.most_silence;
            let has_asked = tokio::time::timeout(patience, asked.wait_for(|asked| *asked)).await.is_ok();
            // Whoever has asked goes on for as long as he likes.
            if has_asked {
                std::future::pending::<()>().await;
            }
            Refusals::add(&refusals.silent);
        };
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = silent => {
                tracing::info!(?address, "a connection has asked for nothing that it may have");
                Ok(())
            }
            () = old => {
                connection.as_mut().graceful_shutdown();
                tokio::time::timeout(LAST_WORDS, connection).await.unwrap_or(Ok(()))
            }
            // Streams of xDS never end by themselves: the client learns by the connection's end, and
            // finds another replica.
            () = over => {
                connection.as_mut().graceful_shutdown();
                tokio::time::timeout(Duration::from_millis(100), connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = result {
            tracing::debug!(?address, %error, "a connection has failed");
        }
    }
}

/// The next connection, once there is room for it.
async fn accept(
    socket: &Socket,
    room: &Arc<Semaphore>,
) -> io::Result<(Box<dyn Stream>, Option<SocketAddr>, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await.map_err(io::Error::other)?;
    Ok(match socket {
        Socket::Tcp(listener) => {
            let (stream, address) = listener.accept().await?;
            stream.set_nodelay(true)?;
            (Box::new(stream), Some(address), permit)
        }
        Socket::Unix(listener) => (Box::new(Mended::new(listener.accept().await?.0)), None, permit),
    })
}

//! Serving the admin interface: one HTTP/1.1 or HTTP/2 connection, one task.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use crate::admin::respond::{Query, Response};
use crate::admin::{Answer, Context, ENDPOINTS, help};
use crate::config::address::Address;
use crate::http::headers::{HeaderMap, Known};
use crate::telemetry::stream_info::{ConnectionInfo, Protocol, StreamInfo};

/// A listening socket.
#[derive(Debug)]
pub(crate) enum Socket {
    /// IP.
    Tcp(TcpListener),
    /// Unix.
    Unix(UnixListener),
}

/// Bytes that a form in a POST may have.
const FORM_LIMIT: usize = 64 * 1024;

/// How long the head of a request may be, in bytes, as Envoy's.
const HEAD_LIMIT: usize = 60 << 10;

/// How long to wait after the system refused to accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

impl Context {
    /// Binds the configured address and writes it to `--admin-address-path`. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// What the system says; also if no address is configured, or a name instead of an IP.
    pub(crate) fn bind(&self) -> std::io::Result<Socket> {
        let socket = self.bind_socket()?;
        if let Some(path) = &self.server.options.admin_address_path {
            let address = match (&self.address, socket.local_address()) {
                (_, Some(address)) => address.to_string(),
                (Some(Address::Pipe(path, _)), None) => path.to_string(),
                (_, None) => String::new(),
            };
            std::fs::write(path, address)?;
        }
        Ok(socket)
    }

    fn bind_socket(&self) -> std::io::Result<Socket> {
        let invalid = |text: &str| std::io::Error::new(std::io::ErrorKind::InvalidInput, text.to_owned());
        match &self.address {
            Some(Address::Ip(address)) => {
                let domain = socket2::Domain::for_address(*address);
                let socket =
                    socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
                socket.set_reuse_address(true)?;
                socket.set_nonblocking(true)?;
                socket.bind(&(*address).into())?;
                socket.listen(128)?;
                Ok(Socket::Tcp(TcpListener::from_std(socket.into())?))
            }
            Some(Address::Pipe(path, mode)) => {
                let socket = match path.strip_prefix('@') {
                    Some(name) => {
                        use std::os::linux::net::SocketAddrExt;
                        let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
                        std::os::unix::net::UnixListener::bind_addr(&address)?
                    }
                    None => {
                        // Left behind by a predecessor: binding would fail for ever.
                        let _ = std::fs::remove_file(&**path);
                        std::os::unix::net::UnixListener::bind(&**path)?
                    }
                };
                if *mode != 0 {
                    use std::os::unix::fs::PermissionsExt;
                    std::fs::set_permissions(&**path, std::fs::Permissions::from_mode(*mode))?;
                }
                socket.set_nonblocking(true)?;
                Ok(Socket::Unix(UnixListener::from_std(socket)?))
            }
            Some(Address::Name(..)) => Err(invalid("admin.address: must be an IP address")),
            None => Err(invalid("admin.address: is required")),
        }
    }
}

impl Socket {
    /// The IP address that it has; `None`: it is a Unix socket.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(_) => None,
        }
    }
}

/// Serves until the task is dropped.
pub(crate) async fn serve(socket: Socket, context: Arc<Context>) {
    const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    let local = socket.local_address().unwrap_or(NOWHERE);
    loop {
        let accepted = match &socket {
            Socket::Tcp(listener) => listener.accept().await.map(|(stream, peer)| {
                let _ = stream.set_nodelay(true);
                drop(tokio::spawn(connection(stream, peer, local, Arc::clone(&context))));
            }),
            Socket::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                drop(tokio::spawn(connection(stream, NOWHERE, local, Arc::clone(&context))));
            }),
        };
        if let Err(error) = accepted {
            tracing::warn!(target: "admin", "cannot accept: {error}");
            tokio::time::sleep(ACCEPT_RETRY).await;
        }
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    local: SocketAddr,
    context: Arc<Context>,
) {
    let service = service_fn(move |request| {
        let context = Arc::clone(&context);
        async move { exchange(request, peer, local, &context).await }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().max_buf_size(HEAD_LIMIT);
    server.http2().max_header_list_size(HEAD_LIMIT as u32);
    let served = server.serve_connection(TokioIo::new(stream), service).await;
    if let Err(error) = served {
        tracing::debug!(target: "admin", "connection ended: {error}");
    }
}

/// What listeners may lead to, as those of Istio's bootstraps do, with whatever host the caller knows the
/// proxy by.
const FOR_ALL: [&str; 3] = ["/ready", "/stats", "/stats/prometheus"];

/// One request and its answer.
async fn exchange(
    request: Request<Incoming>,
    peer: SocketAddr,
    local: SocketAddr,
    context: &Context,
) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
    let (started, wall) = (Instant::now(), SystemTime::now());
    let (head, body) = request.into_parts();
    let is_form =
        head.headers.get("content-type").is_some_and(|kind| kind == "application/x-www-form-urlencoded");
    let mut query = head.uri.query().unwrap_or_default().to_owned();
    if is_form && head.method == Method::POST {
        match Limited::new(body, FORM_LIMIT).collect().await {
            Ok(form) => query = String::from_utf8_lossy(&form.to_bytes()).into_owned(),
            Err(error) => tracing::debug!(target: "admin", "cannot read the form: {error}"),
        }
    }
    let guarded = peer.ip().is_loopback() && !FOR_ALL.contains(&head.uri.path());
    let response = if guarded && is_foreign(&head) {
        tracing::warn!(target: "admin", "refused: a page of another site asks for {}", head.uri.path());
        Response { status: 403, ..Response::text("Only requests of this machine are allowed.\n".to_owned()) }
    } else {
        answer(&head.method, head.uri.path(), &Query::parse(&query), context).await
    };
    log(context, &head, &response, peer, local, started, wall);
    let built = hyper::Response::builder()
        .status(response.status)
        .header("content-type", response.content_type)
        .header("cache-control", "no-cache, max-age=0")
        .header("x-content-type-options", "nosniff")
        .header("server", "envoy")
        .body(Full::new(response.body));
    Ok(built.unwrap_or_default())
}

/// Whether a page of the web speaks through a browser on this machine.
// Deviation: Envoy does what a page of the web makes a browser on the machine ask for; here it gets stats
// and `/ready` only.
fn is_foreign(head: &Parts) -> bool {
    let text = |name| {
        head.headers.get(name).map(|value: &hyper::header::HeaderValue| value.to_str().unwrap_or("?."))
    };
    let host = head.uri.authority().map(|authority| authority.as_str());
    leno_base::origin::is_foreign(host.or_else(|| text(hyper::header::HOST)), text(hyper::header::ORIGIN))
}

/// Finds the endpoint of a path and lets it answer.
pub(crate) async fn answer(method: &Method, path: &str, query: &Query, context: &Context) -> Response {
    let Some(endpoint) = ENDPOINTS.iter().find(|endpoint| endpoint.path == path) else {
        let text = format!("invalid path. {}", help::text());
        return Response { status: 404, ..Response::text(text) };
    };
    if endpoint.mutates && method != Method::POST {
        tracing::warn!(target: "admin", "admin path \"{path}\" mutates state, method={method} rather than POST");
        return Response {
            status: 405,
            ..Response::text(format!("Method {method} not allowed, POST required."))
        };
    }
    match &endpoint.answer {
        Answer::Now(answer) => answer(context, query),
        Answer::Asking(answer) => answer(context, query).await,
    }
}

/// `admin.access_log`.
fn log(
    context: &Context,
    head: &Parts,
    response: &Response,
    peer: SocketAddr,
    local: SocketAddr,
    started: Instant,
    wall: SystemTime,
) {
    if context.access_logs.is_empty() {
        return;
    }
    let connection = ConnectionInfo::plain(0, peer, local, started);
    let protocol = match head.version {
        hyper::Version::HTTP_10 => Protocol::Http10,
        hyper::Version::HTTP_2 => Protocol::Http2,
        _ => Protocol::Http11,
    };
    let mut info = StreamInfo::new(Rc::new(connection), Some(protocol), started, wall);
    info.response_code = response.status;
    info.response_code_details = Some("admin_filter_response".into());
    info.bytes_sent = response.body.len() as u64;
    let mut request = HeaderMap::new();
    request.append_known(Known::Method, head.method.as_str().as_bytes());
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    request.append_known(Known::Path, path.as_bytes());
    for (name, value) in &head.headers {
        let name = if *name == hyper::header::HOST { ":authority" } else { name.as_str() };
        request.append(name.as_bytes(), value.as_bytes());
    }
    let mut answered = HeaderMap::new();
    answered.set_status(response.status);
    answered.append_known(Known::ContentType, response.content_type.as_bytes());
    context.access_logs.iter().for_each(|log| log.request(&info, &request, Some(&answered), None));
}

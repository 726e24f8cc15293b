//! The servers behind the proxies, all of them: whatever address a proxy connects to, the connection
//! ends here, and what it carried is written down by the number of the row that it belongs to.
//!
//! It speaks what its client speaks: HTTP/1, HTTP/2, lines of text, each also over TLS and after a
//! PROXY protocol header. A request may say how it wants to be answered: `back-status`,
//! `back-delay` (seconds), `back-header` (`name=value`), `back-reset`, `back-until` (answer
//! with 503, or with `back-status`, before the so-manieth attempt) and `back-at` (`ADDRESS=status`:
//! only there).
//!
//! Further services are among them: `check.rs`, `collector.rs`, and keys of tokens under `/keys/`.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::check::{self, Call};
use crate::collector::{self, Span};
use crate::token;

/// The header by which a request says which row it belongs to.
pub(crate) const ROW: &str = "x-row";
/// Servers on this port speak first.
const SPEAKS_FIRST: u16 = 3306;

/// A request, or a connection of lines, as a back end saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Where it was sent.
    pub(crate) at: SocketAddr,
    /// What else there is to know, by the names of a table's columns.
    pub(crate) facts: BTreeMap<&'static str, String>,
    pub(crate) headers: HeaderMap,
}

/// All back ends.
pub(crate) struct Backend {
    seen: Mutex<HashMap<String, Vec<Seen>>>,
    spans: Mutex<Vec<Span>>,
    tls: Arc<ServerConfig>,
}

/// What a connection is, before it says anything.
#[derive(Clone)]
struct Connection {
    at: SocketAddr,
    facts: BTreeMap<&'static str, String>,
}

/// A stream of which something has been read.
struct Rewound {
    begin: Vec<u8>,
    rest: Pin<Box<dyn Duplex>>,
}

impl Backend {
    pub(crate) fn new(tls: Arc<ServerConfig>) -> Arc<Backend> {
        Arc::new(Backend { seen: Mutex::default(), spans: Mutex::default(), tls })
    }

    /// Serves what is redirected to a socket.
    pub(crate) async fn serve(self: Arc<Backend>, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(Arc::clone(&self).on_connection(stream));
        }
    }

    /// What was seen of a row.
    pub(crate) fn seen(&self, row: &str) -> Vec<Seen> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(row).cloned().unwrap_or_default()
    }

    /// The spans of a row that have arrived.
    pub(crate) fn spans(&self, row: &str) -> Vec<Span> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans.iter().filter(|span| span.get(collector::ROW) == Some(row)).cloned().collect()
    }

    /// Writes something down; gives how often that row has been seen.
    fn note(&self, row: &str, seen: Seen) -> usize {
        let mut all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let list = all.entry(row.to_owned()).or_default();
        list.push(seen);
        list.len()
    }

    async fn on_connection(self: Arc<Backend>, mut stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        // One that was not redirected was meant for where it arrived.
        let original = rustix::net::sockopt::ip_original_dst(&stream).map(SocketAddr::V4);
        let Some(at) = original.ok().or_else(|| stream.local_addr().ok()) else { return };
        if at.port() == SPEAKS_FIRST && stream.write_all(b"welcome\n").await.is_err() {
            return;
        }
        let connection = Connection { at, facts: BTreeMap::from([("tls", "none".to_owned())]) };
        // Whatever goes wrong is the client's to tell.
        let _ = self.speak(Rewound::new(stream), connection).await;
    }

    /// Calls itself for what is inside of TLS, hence the box.
    fn speak(
        self: Arc<Backend>,
        stream: Rewound,
        connection: Connection,
    ) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send>> {
        Box::pin(self.hear(stream, connection))
    }

    async fn hear(self: Arc<Backend>, mut stream: Rewound, mut connection: Connection) -> io::Result<()> {
        stream.look(4).await?;
        if stream.begin.starts_with(b"PROX") {
            let line = stream.line().await?;
            connection.facts.insert("proxied", line);
            stream.look(4).await?;
        } else if stream.begin.starts_with(b"\r\n\r\n") {
            stream.look(16).await?;
            let length = usize::from(stream.begin[14]) << 8 | usize::from(stream.begin[15]);
            stream.look(16 + length).await?;
            stream.begin.drain(..16 + length);
            connection.facts.insert("proxied", "v2".to_owned());
            stream.look(4).await?;
        }
        if stream.begin.first() == Some(&0x16) {
            let stream = TlsAcceptor::from(Arc::clone(&self.tls)).accept(stream).await?;
            let (_, session) = stream.get_ref();
            let name = session.server_name().unwrap_or("unnamed").to_owned();
            connection.facts.insert("tls", name);
            if let Some(certificate) = session.peer_certificates().and_then(|chain| chain.first()) {
                connection.facts.insert("peer", peer(certificate));
            }
            return self.speak(Rewound::new(stream), connection).await;
        }
        if stream.begin.starts_with(b"row ") {
            return self.lines(stream, connection).await;
        }
        let service = service_fn(|request| Arc::clone(&self).answer(request, connection.clone()));
        let served =
            auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        served.map_err(io::Error::other)
    }

    async fn lines(&self, mut stream: Rewound, mut connection: Connection) -> io::Result<()> {
        connection.facts.insert("protocol", "tcp".to_owned());
        loop {
            let line = stream.line().await?;
            let seen = Seen { at: connection.at, facts: connection.facts.clone(), headers: HeaderMap::new() };
            self.note(line.trim_start_matches("row "), seen);
            stream.rest.write_all(format!("hello {line}\n").as_bytes()).await?;
        }
    }

    async fn answer(
        self: Arc<Backend>,
        request: Request<Incoming>,
        connection: Connection,
    ) -> Result<Response<BoxBody<Bytes, Infallible>>, io::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        if head.uri.path() == check::PATH {
            return self.judge(&body, connection);
        }
        if head.uri.path() == "/keys/now" {
            return Ok(Response::new(Full::from(token::keys()).boxed()));
        }
        if let Some(spans) = collector::read(head.uri.path(), &body) {
            self.spans.lock().unwrap_or_else(PoisonError::into_inner).extend(spans);
        }
        let mut facts = connection.facts;
        let host = head.headers.get("host").and_then(|host| host.to_str().ok());
        let host = head.uri.authority().map(ToString::to_string).or_else(|| host.map(str::to_owned));
        facts.insert("host", host.unwrap_or_default());
        facts.insert("path", head.uri.path_and_query().map(ToString::to_string).unwrap_or_default());
        facts.insert("method", head.method.to_string());
        facts.insert("protocol", format!("{:?}", head.version).to_lowercase().replace("/2.0", "/2"));
        facts.insert("sent", String::from_utf8_lossy(&body).into_owned());
        let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
        let number = |name: &str| text(name).and_then(|value| value.parse::<f64>().ok());
        let row = text(ROW).unwrap_or_default().to_owned();
        let attempt = self.note(&row, Seen { at: connection.at, facts, headers: head.headers.clone() });
        if let Some(delay) = number("back-delay") {
            tokio::time::sleep(Duration::from_secs_f64(delay)).await;
        }
        let until = number("back-until").map(|until| until as usize);
        if until.is_none_or(|until| attempt < until) && text("back-reset").is_some() {
            return Err(io::Error::other("as it was told"));
        }
        let at = text("back-at").and_then(|at| at.split_once('='));
        let status = match at {
            Some((address, status)) if address == connection.at.ip().to_string() => Some(status),
            Some(_) => None,
            None => text("back-status"),
        };
        let status = match (until, status.and_then(|status| status.parse().ok())) {
            (None, status) => status.unwrap_or(200),
            (Some(until), status) if attempt < until && text("back-grpc-status").is_none() => {
                status.unwrap_or(503)
            }
            (Some(_), _) => 200,
        };
        let mut response = Response::new(Full::from("hello\n").boxed());
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
        for value in head.headers.get_all("back-header") {
            let pair = value.to_str().ok().and_then(|pair| pair.split_once('='));
            let Some((name, value)) = pair else { continue };
            let name = http::HeaderName::try_from(name);
            if let (Ok(name), Ok(value)) = (name, value.parse()) {
                response.headers_mut().append(name, value);
            }
        }
        let content_type = text("content-type").unwrap_or_default();
        if content_type.starts_with("application/grpc") {
            *response.body_mut() = Empty::new().boxed();
            let fails = until.is_none_or(|until| attempt < until);
            let code = text("back-grpc-status").filter(|_| fails).unwrap_or("0").parse();
            if let (Ok(kind), Ok(code)) = (content_type.parse(), code) {
                response.headers_mut().insert("content-type", kind);
                response.headers_mut().insert("grpc-status", code);
            }
        }
        Ok(response)
    }

    /// Answers who asks whether a request may pass.
    fn judge(
        &self,
        body: &[u8],
        connection: Connection,
    ) -> Result<Response<BoxBody<Bytes, Infallible>>, io::Error> {
        let call = Call::read(body).ok_or_else(|| io::Error::other("no call of this service"))?;
        let mut facts = connection.facts;
        facts.extend(call.facts());
        let row = call.header(ROW).unwrap_or_default();
        self.note(row, Seen { at: connection.at, facts, headers: call.headers() });
        let (message, trailers) = call.answer();
        let trailers = std::future::ready(Some(Ok(trailers)));
        let mut response = Response::new(Full::new(message).with_trailers(trailers).boxed());
        let kind = http::HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
        Ok(response)
    }
}

/// A connection whose kind no longer matters.
trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<S: AsyncRead + AsyncWrite + Send> Duplex for S {}

/// The first name in a certificate.
pub(crate) fn peer(certificate: &[u8]) -> String {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return "malformed".to_owned() };
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map(|names| names.value.general_names.iter());
    let name = names.into_iter().flatten().find_map(|name| match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        _ => None,
    });
    name.unwrap_or_else(|| certificate.subject().to_string())
}

impl Rewound {
    fn new(stream: impl Duplex + 'static) -> Rewound {
        Rewound { begin: Vec::new(), rest: Box::pin(stream) }
    }

    /// Reads until at least so many bytes are there to be looked at.
    async fn look(&mut self, count: usize) -> io::Result<()> {
        while self.begin.len() < count {
            if self.rest.read_buf(&mut self.begin).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Takes a line, without its end.
    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.begin.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.begin.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            self.look(self.begin.len() + 1).await?;
        }
    }
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.begin.is_empty() {
            return self.rest.as_mut().poll_read(context, buffer);
        }
        let count = self.begin.len().min(buffer.remaining());
        let taken: Vec<u8> = self.begin.drain(..count).collect();
        buffer.put_slice(&taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.rest.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.rest.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.rest.as_mut().poll_shutdown(context)
    }
}

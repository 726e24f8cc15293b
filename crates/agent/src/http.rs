//! Single requests of HTTP: to the proxy's admin interface, and to applications. Over TLS it is HTTP/2 if the
//! other side prefers it, where that is asked for ([`credulous`]).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

/// Where to.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// A host, by name or address.
    pub(crate) host: String,
    /// Its port.
    pub(crate) port: u16,
    /// The address of ours that it is to see.
    pub(crate) from: Option<IpAddr>,
    /// By TLS.
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

impl Target {
    /// One in plain text.
    pub(crate) fn new(host: impl Into<String>, port: u16) -> Target {
        Target { host: host.into(), port, from: None, tls: None }
    }

    /// As in `Host`.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') && !self.host.starts_with('[') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Connects.
    pub(crate) async fn connect(&self) -> Result<TcpStream, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", self.authority());
        let found = tokio::net::lookup_host((self.host.trim_matches(['[', ']']), self.port)).await;
        let mut last = format!("{}: it has no address", self.authority());
        for address in found.map_err(failed)? {
            match self.connect_to(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = failed(error),
            }
        }
        Err(last)
    }

    async fn connect_to(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
        if let Some(from) = self.from.filter(|from| from.is_ipv6() == address.is_ipv6()) {
            socket.bind(SocketAddr::new(from, 0))?;
        }
        socket.connect(address).await
    }
}

/// What has come back.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// How much of an answer's body is read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reads {
    /// All of it; one that has more bytes than so many is an error.
    All(usize),
    /// So many bytes, whatever follows.
    First(usize),
}

/// Sends a request (its URI is a path) and reads the answer.
pub(crate) async fn call(
    target: &Target,
    request: Request<Empty<Bytes>>,
    timeout: Duration,
    reads: Reads,
) -> Result<Answer, String> {
    let late = |_| format!("{}: no answer within {timeout:?}", target.authority());
    tokio::time::timeout(timeout, Box::pin(exchange(target, request, reads))).await.map_err(late)?
}

/// Sends one request and reads at most `most` bytes of the answer's body: the status, and the body.
///
/// # Errors
/// Why there is no answer in time.
pub async fn ask(
    method: &str,
    (host, port): (&str, u16),
    path: &str,
    timeout: Duration,
    most: usize,
) -> Result<(u16, Bytes), String> {
    let target = Target::new(host, port);
    let method = method.parse().map_err(|_| format!("{method:?} is no method"))?;
    let answer = call(&target, request(method, path, &target)?, timeout, Reads::All(most)).await?;
    Ok((answer.status.as_u16(), answer.body))
}

/// `GET`, or `POST`.
pub(crate) fn request(
    method: http::Method,
    path: &str,
    target: &Target,
) -> Result<Request<Empty<Bytes>>, String> {
    let request = Request::builder().method(method).uri(path).header(http::header::HOST, target.authority());
    request.body(Empty::new()).map_err(|error| format!("{path}: {error}"))
}

async fn exchange(target: &Target, request: Request<Empty<Bytes>>, reads: Reads) -> Result<Answer, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", target.authority());
    let stream = target.connect().await?;
    match &target.tls {
        None => http1(stream, request, reads).await.map_err(|error| failed(&error)),
        Some(config) => {
            let name = target.host.trim_matches(['[', ']']).to_owned();
            let name = ServerName::try_from(name).map_err(|error| failed(&error))?;
            let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
            let stream = stream.map_err(|error| failed(&error))?;
            let answer = if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                http2(stream, request, reads).await
            } else {
                http1(stream, request, reads).await
            };
            answer.map_err(|error| failed(&error))
        }
    }
}

async fn http1<IO>(io: IO, request: Request<Empty<Bytes>>, reads: Reads) -> Result<Answer, String>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    // It ends with whoever waits for it.
    let _connection = Aborted(connection);
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    read(response, reads).await
}

async fn http2<IO>(io: IO, request: Request<Empty<Bytes>>, reads: Reads) -> Result<Answer, String>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let _connection = Aborted(tokio::spawn(connection));
    let (mut head, body) = request.into_parts();
    // What is `Host` there is a part of the URI here.
    let authority = head.headers.remove(http::header::HOST);
    let authority = authority.and_then(|host| host.to_str().ok()?.parse::<http::uri::Authority>().ok());
    let mut uri = head.uri.into_parts();
    uri.scheme = Some(http::uri::Scheme::HTTPS);
    uri.authority = Some(authority.ok_or("its host is no authority")?);
    head.uri = http::Uri::from_parts(uri).map_err(|error| error.to_string())?;
    // Of a connection, and not allowed where many share one.
    for name in [http::header::TE, http::header::TRANSFER_ENCODING, http::header::UPGRADE] {
        head.headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection"] {
        head.headers.remove(name);
    }
    let request = Request::from_parts(head, body);
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    read(response, reads).await
}

async fn read(response: http::Response<Incoming>, reads: Reads) -> Result<Answer, String> {
    let (head, mut body) = response.into_parts();
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| error.to_string())?.into_data() else { continue };
        let length = bytes.len() + data.len();
        bytes.extend_from_slice(&data);
        match reads {
            Reads::All(most) if length > most => {
                return Err(format!("the answer has more than {most} bytes"));
            }
            Reads::First(most) if length >= most => {
                bytes.truncate(most);
                break;
            }
            _ => {}
        }
    }
    Ok(Answer { status: head.status, headers: head.headers, body: bytes.freeze() })
}

/// A task that ends when nobody needs it any more.
struct Aborted<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for Aborted<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Settings of TLS that believe everybody, as kubelet's probes do. With `h2` they prefer HTTP/2.
pub(crate) fn credulous(h2: bool) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    if h2 {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    }
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

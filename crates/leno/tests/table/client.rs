//! The clients: applications beside sidecars, and people outside of gateways.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use leno_node::Pod;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use crate::backend::{ROW, peer};
use crate::keys::Keys;
use crate::row::{Ask, End, Kind, Version};

/// Nothing is asked that takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a client is told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) end: End,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
    /// The name in the server's certificate.
    pub(crate) certificate: Option<String>,
    pub(crate) took: Duration,
    /// Why it ended without a word.
    pub(crate) error: String,
}

/// Asks once, from a pod or from outside of all.
pub(crate) async fn ask(pod: Option<&Pod>, to: SocketAddr, ask: &Ask, row: &str, keys: &Keys) -> Answer {
    let start = Instant::now();
    let mut answer = Answer::default();
    let talk = Box::pin(talk(pod, to, ask, row, keys, &mut answer));
    let error = match tokio::time::timeout(PATIENCE, talk).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("nothing in {PATIENCE:?}")),
    };
    if let Some(error) = error {
        answer.end = End::Closed;
        answer.error = error;
    }
    answer.took = start.elapsed();
    answer
}

async fn talk(
    pod: Option<&Pod>,
    to: SocketAddr,
    ask: &Ask,
    row: &str,
    keys: &Keys,
    answer: &mut Answer,
) -> io::Result<()> {
    let stream = connect(pod, to).await?;
    match ask.kind {
        Kind::Http => http(stream, ask, row, answer).await,
        Kind::Tcp => lines(stream, ask, row, answer).await,
        Kind::Https | Kind::Tls => {
            let (config, name) = tls(ask, keys).map_err(io::Error::other)?;
            let stream = TlsConnector::from(config).connect(name, stream).await?;
            let chain = stream.get_ref().1.peer_certificates();
            answer.certificate = chain.and_then(|chain| chain.first()).map(|certificate| peer(certificate));
            match ask.kind {
                Kind::Tls => lines(stream, ask, row, answer).await,
                _ => http(stream, ask, row, answer).await,
            }
        }
    }
}

/// Connects from a pod's network, where its rules decide where that ends.
pub(crate) async fn connect(pod: Option<&Pod>, to: SocketAddr) -> io::Result<TcpStream> {
    let make = || if to.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() };
    let socket = match pod {
        Some(pod) => pod.within(make).map_err(io::Error::other)??,
        None => make()?,
    };
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn tls(
    ask: &Ask,
    keys: &Keys,
) -> Result<(Arc<ClientConfig>, ServerName<'static>), Box<dyn std::error::Error + Send + Sync>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(leno_testkit::tls::Anybody));
    let mut config = match &ask.identity {
        Some(name) => {
            let (chain, key) = keys.client(name)?.into_parts();
            config.with_client_auth_cert(chain, key)?
        }
        None => config.with_no_client_auth(),
    };
    let offered = match (&ask.alpn, ask.kind, ask.version) {
        (Some(names), ..) => names.clone(),
        (None, Kind::Tls, _) => Vec::new(),
        (None, _, Version::H2) => vec!["h2".to_owned()],
        (None, ..) => vec!["http/1.1".to_owned()],
    };
    config.alpn_protocols = offered.into_iter().map(String::into_bytes).collect();
    let name = ask.sni.as_deref().unwrap_or(&ask.host);
    config.enable_sni = !name.is_empty();
    let name = if name.is_empty() { "unnamed" } else { name };
    Ok((Arc::new(config), ServerName::try_from(name.to_owned())?))
}

async fn lines<S>(stream: S, ask: &Ask, row: &str, answer: &mut Answer) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    if ask.waits {
        stream.read_line(&mut line).await?;
        if line.trim() != "welcome" {
            return Err(io::Error::other(format!("the server began with {line:?}")));
        }
        line.clear();
    }
    stream.write_all(format!("row {row}\n").as_bytes()).await?;
    stream.flush().await?;
    stream.read_line(&mut line).await?;
    if line.is_empty() {
        return Err(io::Error::other("it closed the connection"));
    }
    if line.trim() != format!("hello row {row}") {
        return Err(io::Error::other(format!("the server said {line:?}")));
    }
    answer.end = End::Words;
    Ok(())
}

async fn http<S>(stream: S, ask: &Ask, row: &str, answer: &mut Answer) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let default = if ask.kind == Kind::Https { 443 } else { 80 };
    let given = ask.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"));
    let authority = match given {
        Some((_, host)) => host.clone(),
        None if ask.port == default => ask.host.clone(),
        None => format!("{}:{}", ask.host, ask.port),
    };
    let scheme = if ask.kind == Kind::Https { "https" } else { "http" };
    let mut request = Request::builder().method(ask.method.as_str());
    request = match ask.version {
        Version::H2 => {
            request.uri(format!("{scheme}://{authority}{}", ask.path)).version(http::Version::HTTP_2)
        }
        Version::Http11 => request.uri(ask.path.as_str()).header("host", &authority),
        Version::Http10 => {
            request.uri(ask.path.as_str()).version(http::Version::HTTP_10).header("host", &authority)
        }
    };
    for (name, value) in ask.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host")) {
        request = request.header(name, value);
    }
    let request = request.header(ROW, row).body(Full::new(Bytes::from(ask.body.clone())));
    let request = request.map_err(io::Error::other)?;
    let stream = TokioIo::new(stream);
    let response = if ask.version == Version::H2 {
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(connection);
        sender.send_request(request).await
    } else {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(stream).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        sender.send_request(request).await
    };
    let (head, body) = response.map_err(io::Error::other)?.into_parts();
    answer.end = End::Status(head.status.as_u16());
    answer.headers = head.headers;
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    answer.body = String::from_utf8_lossy(&body).into_owned();
    Ok(())
}

//! Single requests of HTTP: to the proxy's admin interface, and to applications.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
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

/// Sends a request (its URI is a path) and reads at most `most` bytes of the answer's body; one that
/// has more is an error.
pub(crate) async fn call(
    target: &Target,
    request: Request<Empty<Bytes>>,
    timeout: Duration,
    most: usize,
) -> Result<Answer, String> {
    let late = |_| format!("{}: no answer within {timeout:?}", target.authority());
    tokio::time::timeout(timeout, Box::pin(exchange(target, request, most))).await.map_err(late)?
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

async fn exchange(target: &Target, request: Request<Empty<Bytes>>, most: usize) -> Result<Answer, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", target.authority());
    let stream = target.connect().await?;
    match &target.tls {
        None => over(stream, request, most).await.map_err(|error| failed(&error)),
        Some(config) => {
            let name = ServerName::try_from(target.host.clone()).map_err(|error| failed(&error))?;
            let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
            over(stream.map_err(|error| failed(&error))?, request, most).await.map_err(|error| failed(&error))
        }
    }
}

async fn over<IO>(io: IO, request: Request<Empty<Bytes>>, most: usize) -> Result<Answer, String>
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let (head, mut body) = response.into_parts();
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.map_err(|error| error.to_string())?.into_data() {
                if bytes.len() + data.len() > most {
                    return Err(format!("the answer has more than {most} bytes"));
                }
                bytes.extend_from_slice(&data);
            }
        }
        Ok(Answer { status: head.status, headers: head.headers, body: bytes.freeze() })
    };
    let answer = answer.await;
    connection.abort();
    answer
}

/// Settings of TLS that believe everybody, as kubelet's probes do.
pub(crate) fn credulous() -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
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

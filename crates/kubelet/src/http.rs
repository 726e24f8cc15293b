//! One request on one connection: for probes and hooks, and for pages of what runs here.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// The most of an answer that is read.
const LARGEST: usize = 16 << 20;

/// A GET request. Returns status and body; ends the connection.
pub async fn get(
    stream: TcpStream,
    host: &str,
    path: &str,
    headers: &[(String, String)],
    limit: Duration,
) -> anyhow::Result<(u16, Bytes)> {
    let mut request = Request::builder().method(Method::GET).uri(path);
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header("host", host);
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::<Bytes>::default())?;
    let exchange = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        read(sender.send_request(request).await?).await
    };
    tokio::time::timeout(limit, exchange).await.context("no answer in time")?
}

async fn read(response: Response<Incoming>) -> anyhow::Result<(u16, Bytes)> {
    let status = response.status().as_u16();
    match Limited::new(response.into_body(), LARGEST).collect().await {
        Ok(body) => Ok((status, body.to_bytes())),
        Err(e) => bail!("the answer broke off: {e}"),
    }
}

/// A call of `grpc.health.v1.Health/Check`; whether the service is serving.
pub async fn check_grpc_health(
    stream: TcpStream,
    authority: &str,
    service: &str,
    limit: Duration,
) -> anyhow::Result<bool> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(health_request(service)))?;
    let exchange = async {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let (_, body) = read(sender.send_request(request).await?).await?;
        anyhow::Ok(is_serving(&body))
    };
    tokio::time::timeout(limit, exchange).await.context("no answer in time")?
}

/// A message `HealthCheckRequest { service = 1 }` in gRPC's frame: a flag and the length.
fn health_request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.extend_from_slice(&[0x0a, u8::try_from(service.len().min(127)).unwrap_or(127)]);
        message.extend(service.bytes().take(127));
    }
    let mut frame = BytesMut::from(&[0][..]);
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or_default().to_be_bytes());
    frame.extend_from_slice(&message);
    frame.freeze()
}

/// Whether a framed `HealthCheckResponse { status = 1 }` says SERVING (1).
fn is_serving(body: &[u8]) -> bool {
    body.get(5..).is_some_and(|message| message.starts_with(&[0x08, 0x01]))
}

#[cfg(test)]
mod tests {
    use super::{health_request, is_serving};

    #[test]
    fn health_messages() {
        assert_eq!(&health_request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&health_request("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert!(is_serving(&[0, 0, 0, 0, 2, 8, 1]));
        assert!(!is_serving(&[0, 0, 0, 0, 2, 8, 2]));
        assert!(!is_serving(&[0, 0]));
    }
}

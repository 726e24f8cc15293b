//! Calls from one bookinfo service to another: JSON over pooled HTTP/1.1 connections.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, Parts, PathAndQuery, Scheme};
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::Value;

use crate::OutboundProxy;
use crate::proxy::Connector;

/// The most of an answer that is read, in bytes.
const LARGEST_ANSWER: usize = 1 << 20;

/// A service that another one calls: its host and port.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer(Authority);

/// A peer whose host and port make no authority.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a host and port to call")]
pub struct InvalidPeer(String);

impl Peer {
    /// The peer `host`, or `host.domain` if `domain` is not empty, at `port`.
    ///
    /// # Errors
    ///
    /// When these make no valid authority.
    pub fn new(host: &str, domain: &str, port: u16) -> Result<Peer, InvalidPeer> {
        let host = match (host.parse::<std::net::Ipv6Addr>(), domain) {
            (Ok(address), _) => format!("[{address}]"),
            (_, "") => host.to_owned(),
            (_, domain) => format!("{host}.{domain}"),
        };
        let text = format!("{host}:{port}");
        match text.parse::<Authority>() {
            Ok(authority) if !authority.host().is_empty() && !text.contains('@') => Ok(Peer(authority)),
            _ => Err(InvalidPeer(text)),
        }
    }

    fn url(&self, path: &str) -> Result<Uri, http::Error> {
        let mut parts = Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(self.0.clone());
        parts.path_and_query = Some(PathAndQuery::try_from(path)?);
        Ok(Uri::from_parts(parts)?)
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}", self.0)
    }
}

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallFailed {
    #[error("no answer within {} ms", .0.as_millis())]
    Late(Duration),
    #[error("{0}")]
    Transport(String),
    #[error("answered {0}")]
    Status(StatusCode),
    #[error("the answer makes no sense: {0}")]
    Nonsense(#[from] serde_json::Error),
}

impl CallFailed {
    /// The status that tells a client of ours what happened behind us.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            CallFailed::Late(_) => StatusCode::GATEWAY_TIMEOUT,
            CallFailed::Transport(_) | CallFailed::Nonsense(_) => StatusCode::BAD_GATEWAY,
            CallFailed::Status(status) => *status,
        }
    }
}

/// Calls peers, keeping connections for the next call. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Caller(Client<Connector, Full<Bytes>>);

impl Caller {
    pub(crate) fn new(proxy: OutboundProxy) -> Caller {
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(60))
            .build(Connector::new(proxy));
        Caller(client)
    }

    /// GETs `path` from `peer`: the JSON of an answer with status 200, within `limit` in all.
    pub(crate) async fn get(
        &self,
        peer: &Peer,
        path: &str,
        headers: HeaderMap,
        limit: Duration,
    ) -> Result<Value, CallFailed> {
        let answer = async {
            let mut request = Request::new(Full::default());
            *request.uri_mut() = peer.url(path).map_err(|error| transport(&error))?;
            *request.headers_mut() = headers;
            let response = self.0.request(request).await.map_err(|error| transport(&error))?;
            let status = response.status();
            // Read in any case, so that the connection can be used again.
            let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
            if status != StatusCode::OK {
                return Err(CallFailed::Status(status));
            }
            let body = body.map_err(|error| transport(error.as_ref()))?.to_bytes();
            Ok(serde_json::from_slice(&body)?)
        };
        tokio::time::timeout(limit, answer).await.unwrap_or(Err(CallFailed::Late(limit)))
    }
}

/// The error with its causes: hyper's own text alone says only in which step it happened.
fn transport(error: &(dyn Error + 'static)) -> CallFailed {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    CallFailed::Transport(text)
}

#[cfg(test)]
mod tests {
    use super::Peer;

    #[test]
    fn peers() {
        let cases = [
            ("details", "", Some("http://details:9080")),
            ("details", "shop.svc.cluster.local", Some("http://details.shop.svc.cluster.local:9080")),
            ("10.0.0.1", "", Some("http://10.0.0.1:9080")),
            ("::1", "", Some("http://[::1]:9080")),
            ("", "", None),
            ("user@details", "", None),
            ("de tails", "", None),
            ("details/x", "", None),
        ];
        for (host, domain, expected) in cases {
            let peer = Peer::new(host, domain, 9080).ok().map(|peer| peer.to_string());
            assert_eq!(peer.as_deref(), expected, "{host:?} {domain:?}");
        }
    }
}

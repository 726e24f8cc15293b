//! HTTP checks: one request, and a good status (HttpHealthCheck).

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioExecutor;

use crate::cluster::health::config::HttpCheck;
use crate::cluster::health::probe::{Driver, Target, USER_AGENT, absolute, connect, contains, headers, io};
use crate::cluster::health::session::{Failure, Outcome};
use crate::telemetry::stream_info::Protocol;

/// What judging an answer tells besides the outcome.
pub(in crate::cluster::health) struct Verdicts<'a> {
    /// The host asks to be left out (`x-envoy-immediate-health-check-fail`).
    pub(in crate::cluster::health) exclude: &'a (dyn Fn() + Send + Sync),
    /// The service's name was looked at (`verify_cluster`).
    pub(in crate::cluster::health) verified: &'a (dyn Fn() + Send + Sync),
    /// A number below 100 for the share of answers of which it is.
    pub(in crate::cluster::health) percentile: u64,
}

#[derive(Default)]
pub(in crate::cluster::health) struct HttpProbe {
    client: Option<Client>,
}

struct Client {
    sender: Sender,
    _driver: Driver,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl HttpProbe {
    pub(super) fn close(&mut self) {
        self.client = None;
    }

    pub(super) async fn check(
        &mut self,
        target: &Target,
        check: &HttpCheck,
        verdicts: &Verdicts<'_>,
    ) -> Outcome {
        let asked = self.ask(target, check).await;
        let Some((head, body)) = asked else {
            self.close();
            return Outcome::NETWORK;
        };
        if !target.settings.reuse {
            self.close();
        }
        judge(&head, &body, check, verdicts)
    }

    /// One exchange; `None`: there is no whole answer.
    async fn ask(&mut self, target: &Target, check: &HttpCheck) -> Option<(http::response::Parts, Bytes)> {
        if self.client.as_ref().is_some_and(Client::is_closed) {
            self.close();
        }
        if self.client.is_none() {
            self.client = Some(Client::connect(target, check.http2).await?);
        }
        let client = self.client.as_mut()?;
        let authority = target.authority(check.host.as_deref());
        let length = check.body.len().to_string();
        let mut given = Vec::with_capacity(3);
        if !check.http2 {
            given.push(("host", authority));
        }
        given.push(("user-agent", USER_AGENT));
        if !check.body.is_empty() {
            given.push(("content-length", &length));
        }
        let protocol = if check.http2 { Protocol::Http2 } else { Protocol::Http11 };
        let mut request = http::Request::new(Full::new(check.body.clone()));
        *request.method_mut() = check.method.clone();
        *request.headers_mut() = headers(target, protocol, &given, &check.headers);
        *request.uri_mut() =
            if check.http2 { absolute(target, authority, &check.path)? } else { check.path.clone() };
        let response = client.send(request).await?;
        let (head, mut body) = response.into_parts();
        let mut kept = BytesMut::new();
        let limit = if check.buffer == 0 { usize::MAX } else { usize::try_from(check.buffer).ok()? };
        while let Some(frame) = body.frame().await {
            if let (Ok(data), false) = (frame.ok()?.into_data(), check.receive.is_empty()) {
                let room = limit.saturating_sub(kept.len()).min(data.len());
                kept.extend_from_slice(data.get(..room).unwrap_or_default());
            }
        }
        Some((head, kept.freeze()))
    }
}

impl Client {
    async fn connect(target: &Target, http2: bool) -> Option<Self> {
        let socket = io(connect(target).await?);
        if http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), socket).await.ok()?;
            let driver = Driver::spawn(async move { drop(connection.await) });
            return Some(Self { sender: Sender::Http2(sender), _driver: driver });
        }
        let (sender, connection) = http1::handshake(socket).await.ok()?;
        let driver = Driver::spawn(async move { drop(connection.await) });
        Some(Self { sender: Sender::Http1(sender), _driver: driver })
    }

    fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2(sender) => sender.is_closed(),
        }
    }

    async fn send(&mut self, request: http::Request<Full<Bytes>>) -> Option<http::Response<Incoming>> {
        match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await.ok()?;
                sender.send_request(request).await.ok()
            }
            Sender::Http2(sender) => {
                sender.ready().await.ok()?;
                sender.send_request(request).await.ok()
            }
        }
    }
}

fn judge(head: &http::response::Parts, body: &[u8], check: &HttpCheck, verdicts: &Verdicts<'_>) -> Outcome {
    let status = head.status.as_u16();
    let within = |ranges: &[(u16, u16)]| ranges.iter().any(|(from, to)| (*from..*to).contains(&status));
    let failed = |retriable| Outcome::Failed { failure: Failure::Active, retriable, status };
    let received = contains(body, &check.receive);
    if !received || !within(&check.expected) {
        if head.headers.contains_key("x-envoy-immediate-health-check-fail") {
            (verdicts.exclude)();
        }
        return failed(received && within(&check.retriable));
    }
    if let Some((matcher, share)) = &check.service
        && verdicts.percentile < *share
    {
        (verdicts.verified)();
        let service = head.headers.get("x-envoy-upstream-healthchecked-cluster");
        if !matcher.matches(service.map(http::HeaderValue::as_bytes).unwrap_or_default()) {
            return failed(false);
        }
    }
    Outcome::Passed { degraded: head.headers.contains_key("x-envoy-degraded") }
}

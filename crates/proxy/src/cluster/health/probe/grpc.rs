//! gRPC checks: `grpc.health.v1.Health/Check` (GrpcHealthCheck).

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::TokioExecutor;
use prost::Message;

use crate::cluster::health::config::GrpcCheck;
use crate::cluster::health::probe::{Driver, Target, USER_AGENT, absolute, connect, headers, io};
use crate::cluster::health::session::Outcome;
use crate::telemetry::stream_info::Protocol;

/// An answer is a few bytes; what is longer is none.
const LONGEST_ANSWER: usize = 4096;

/// grpc.health.v1.HealthCheckRequest.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// grpc.health.v1.HealthCheckResponse.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    /// 1: SERVING
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

#[derive(Default)]
pub(in crate::cluster::health) struct GrpcProbe {
    client: Option<(http2::SendRequest<Full<Bytes>>, Driver)>,
}

impl GrpcProbe {
    pub(super) fn close(&mut self) {
        self.client = None;
    }

    pub(super) async fn check(&mut self, target: &Target, check: &GrpcCheck) -> Outcome {
        let Some(outcome) = self.ask(target, check).await else {
            if !target.settings.reuse || self.client.as_ref().is_some_and(|(send, _)| send.is_closed()) {
                self.close();
            }
            return Outcome::NETWORK;
        };
        if !target.settings.reuse {
            self.close();
        }
        outcome
    }

    /// One call; `None`: the connection or the stream broke.
    async fn ask(&mut self, target: &Target, check: &GrpcCheck) -> Option<Outcome> {
        if self.client.as_ref().is_some_and(|(send, _)| send.is_closed()) {
            self.close();
        }
        if self.client.is_none() {
            let socket = io(connect(target).await?);
            let (send, connection) = http2::handshake(TokioExecutor::new(), socket).await.ok()?;
            self.client = Some((send, Driver::spawn(async move { drop(connection.await) })));
        }
        let (send, _) = self.client.as_mut()?;
        let authority = target.authority(check.authority.as_deref());
        let timeout = format!("{}m", target.settings.timeout.as_millis());
        let given = [
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("grpc-timeout", timeout.as_str()),
            ("user-agent", USER_AGENT),
        ];
        let mut request = http::Request::new(Full::new(frame(&check.service)));
        *request.method_mut() = http::Method::POST;
        *request.headers_mut() = headers(target, Protocol::Http2, &given, &check.headers);
        let path = http::Uri::from_static("/grpc.health.v1.Health/Check");
        *request.uri_mut() = absolute(target, authority, &path)?;
        send.ready().await.ok()?;
        let response = send.send_request(request).await.ok()?;
        let (head, mut body) = response.into_parts();
        let is_grpc = head.headers.get("content-type").is_some_and(|kind| {
            kind == "application/grpc" || kind.as_bytes().starts_with(b"application/grpc+")
        });
        if head.status != http::StatusCode::OK || !is_grpc {
            return Some(Outcome::REFUSED);
        }
        let mut answer = BytesMut::new();
        let mut status = ok(&head.headers);
        while let Some(frame) = body.frame().await {
            match frame.ok()?.into_data() {
                Ok(data) if answer.len() + data.len() > LONGEST_ANSWER => return Some(Outcome::REFUSED),
                Ok(data) => answer.extend_from_slice(&data),
                Err(frame) => status = status.or(frame.trailers_ref().and_then(ok)),
            }
        }
        Some(match (status, serving(&answer)) {
            (Some(true), true) => Outcome::Passed { degraded: false },
            _ => Outcome::REFUSED,
        })
    }
}

/// Whether `grpc-status` is OK; `None`: there is none.
fn ok(headers: &http::HeaderMap) -> Option<bool> {
    headers.get("grpc-status").map(|status| status == "0")
}

fn frame(service: &str) -> Bytes {
    let message = HealthCheckRequest { service: service.to_owned() }.encode_to_vec();
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(&message);
    frame.freeze()
}

/// Whether these are the bytes of one message that says SERVING.
fn serving(answer: &[u8]) -> bool {
    let Some((head, message)) = answer.split_at_checked(5) else { return false };
    let [0, length @ ..] = head else { return false };
    let length = length.iter().fold(0usize, |length, byte| length << 8 | usize::from(*byte));
    length == message.len()
        && HealthCheckResponse::decode(message).is_ok_and(|response| response.status == SERVING)
}

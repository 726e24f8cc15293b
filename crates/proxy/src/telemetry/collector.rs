//! OpenTelemetry's collectors: services that take log records or metrics, each request an answer,
//! over gRPC or HTTP.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use leno_api::proto::envoy::config::core::v3 as core;

use crate::config::lower::Lower;
use crate::http::client::config::{GrpcTarget, HttpTarget, grpc, http_uri};
use crate::http::client::grpc::{Unary, unary};
use crate::http::client::{Call, Wanted, call};
use crate::http::headers::Known;
use crate::telemetry::access_log::config::formatters;
use crate::worker::Worker;

/// Calls are made in the name of the proxy.
pub(crate) const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// How long a collector may take to answer where nothing is configured.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Further headers of calls.
pub(crate) type Headers = Vec<(Box<str>, Box<str>)>;

/// A collector.
#[derive(Debug)]
pub(crate) struct Collector {
    way: Way,
    headers: Headers,
}

#[derive(Debug)]
enum Way {
    /// Calls of `Export`.
    Grpc(GrpcTarget),
    /// The same messages in POST requests.
    Http(HttpTarget),
}

impl Collector {
    /// Lowers a GrpcService.
    pub(crate) fn grpc(proto: core::GrpcService, at: &mut Lower) -> Option<Self> {
        let (target, headers) = grpc_service(proto, at)?;
        Some(Self { way: Way::Grpc(target), headers })
    }

    /// Lowers an HttpService.
    pub(crate) fn http(proto: core::HttpService, at: &mut Lower) -> Option<Self> {
        let core::HttpService { http_uri: uri, request_headers_to_add, formatters: formatter_protos } = proto;
        formatters(formatter_protos, at);
        let headers = at.each("request_headers_to_add", request_headers_to_add, |option, at| {
            let core::HeaderValueOption { header, append, append_action, keep_empty_value } = option;
            at.unsupported("append", append.is_some());
            at.unsupported("append_action", append_action != 0);
            at.unsupported("keep_empty_value", keep_empty_value);
            let core::HeaderValue { key, value, raw_value } = header.unwrap_or_default();
            let value =
                if value.is_empty() { String::from_utf8_lossy(&raw_value).into_owned() } else { value };
            at.unsupported("header.value: commands", value.contains('%'));
            Some((key.to_ascii_lowercase().into(), value.into()))
        });
        Some(Self { way: Way::Http(at.required("http_uri", uri, http_uri)?), headers })
    }

    /// Refuses one over gRPC whose cluster is not there, where all that is is known, as Envoy does.
    pub(crate) fn check(&self, at: &mut Lower) {
        if let Way::Grpc(target) = &self.way {
            check_cluster(target, at);
        }
    }

    /// Whether it speaks gRPC.
    pub(crate) fn is_grpc(&self) -> bool {
        matches!(self.way, Way::Grpc(_))
    }

    /// Has a request's message taken by the service, e.g. `...logs.v1.LogsService`; what is not taken
    /// is lost, which the log of the proxy says.
    pub(crate) async fn export(&self, worker: &Worker, service: &str, message: Vec<u8>) {
        match &self.way {
            Way::Grpc(target) => {
                let request = Unary {
                    service,
                    method: "Export",
                    authority: target.authority.as_deref(),
                    metadata: &self.headers,
                    message: message.into(),
                    timeout: Some(target.timeout.unwrap_or(PATIENCE)),
                    local: LOCAL,
                };
                if let Err(status) = unary(worker, &target.cluster, &request).await {
                    tracing::debug!(target: "grpc", ?status, service, "a collector does not take what it is sent");
                }
            }
            Way::Http(target) => {
                let mut request = Call::new("POST", &target.authority, &target.path, LOCAL);
                request.head.append_known(Known::ContentType, b"application/x-protobuf");
                for (name, value) in &self.headers {
                    request.head.append(name.as_bytes(), value.as_bytes());
                }
                request.limit(target.timeout.unwrap_or(PATIENCE));
                request.answer = Wanted::Nothing;
                request.body = vec![message.into()];
                if let Err(error) = call(worker, &target.cluster, &request).await {
                    tracing::debug!(target: "http", ?error, service, "a collector does not take what it is sent");
                }
            }
        }
    }
}

/// Lowers a service that is called for no request of anybody's: where it is, and the further headers
/// of calls to it.
pub(crate) fn grpc_service(proto: core::GrpcService, at: &mut Lower) -> Option<(GrpcTarget, Headers)> {
    let target = grpc(proto, at)?;
    let headers = target.constant_metadata();
    at.unsupported("initial_metadata: commands", headers.is_none());
    Some((target, headers?))
}

/// Refuses a service whose cluster is not there, where all that is is known.
pub(crate) fn check_cluster(target: &GrpcTarget, at: &mut Lower) {
    if at.scope().clusters.as_ref().is_some_and(|known| !known.contains(&target.cluster)) {
        at.error(format!("Unknown gRPC client cluster '{}'", target.cluster));
    }
}

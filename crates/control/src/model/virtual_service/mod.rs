//! `VirtualService`: how requests and connections to a host are routed.
//!
//! All fields of the Istio API are here, in its order; `validate.rs` says which have no effect yet.

mod validate;

use std::collections::BTreeMap;

use serde::Deserialize;

use super::duration::Span;
use super::string_match::StringMatch;

/// The `spec` of a VirtualService.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct VirtualService {
    pub(crate) hosts: Vec<String>,
    pub(crate) gateways: Vec<String>,
    pub(crate) http: Vec<HttpRoute>,
    pub(crate) tls: Vec<TlsRoute>,
    pub(crate) tcp: Vec<TcpRoute>,
    pub(crate) export_to: Vec<String>,
}

/// One HTTP rule: when it applies and what it does.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpRoute {
    pub(crate) name: String,
    pub(crate) r#match: Vec<HttpMatch>,
    pub(crate) route: Vec<HttpDestination>,
    pub(crate) redirect: Option<Redirect>,
    pub(crate) direct_response: Option<DirectResponse>,
    pub(crate) delegate: Option<Delegate>,
    pub(crate) rewrite: Option<Rewrite>,
    pub(crate) timeout: Option<Span>,
    pub(crate) retries: Option<Retries>,
    pub(crate) fault: Option<Fault>,
    pub(crate) mirror: Option<Destination>,
    pub(crate) mirrors: Vec<Mirror>,
    pub(crate) mirror_percent: Option<u32>,
    pub(crate) mirror_percentage: Option<Percent>,
    pub(crate) cors_policy: Option<CorsPolicy>,
    pub(crate) headers: Option<Headers>,
}

/// Conditions of which all must hold.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpMatch {
    pub(crate) name: String,
    pub(crate) uri: Option<StringMatch>,
    pub(crate) scheme: Option<StringMatch>,
    pub(crate) method: Option<StringMatch>,
    pub(crate) authority: Option<StringMatch>,
    pub(crate) headers: BTreeMap<String, StringMatch>,
    pub(crate) port: u32,
    pub(crate) source_labels: BTreeMap<String, String>,
    pub(crate) gateways: Vec<String>,
    pub(crate) query_params: BTreeMap<String, StringMatch>,
    pub(crate) ignore_uri_case: bool,
    pub(crate) without_headers: BTreeMap<String, StringMatch>,
    pub(crate) source_namespace: String,
    pub(crate) stat_prefix: String,
}

/// A weighted target of an HTTP rule.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpDestination {
    pub(crate) destination: Destination,
    pub(crate) weight: i32,
    pub(crate) headers: Option<Headers>,
}

/// A service, its port and its subset.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Destination {
    pub(crate) host: String,
    pub(crate) subset: String,
    pub(crate) port: Option<PortSelector>,
}

/// A port by number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PortSelector {
    pub(crate) number: u32,
}

/// 0.0 to 100.0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Percent {
    pub(crate) value: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Redirect {
    pub(crate) uri: String,
    pub(crate) authority: String,
    pub(crate) port: Option<u32>,
    pub(crate) derive_port: Option<DerivePort>,
    pub(crate) scheme: String,
    pub(crate) redirect_code: u32,
    pub(crate) prefix_rewrite: String,
}

/// Where the port of a redirect comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum DerivePort {
    FromProtocolDefault,
    FromRequestPort,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct DirectResponse {
    pub(crate) status: u32,
    pub(crate) body: Option<Body>,
}

/// A body as text or base64.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Body {
    pub(crate) string: Option<String>,
    pub(crate) bytes: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Delegate {
    pub(crate) name: String,
    pub(crate) namespace: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Rewrite {
    pub(crate) uri: String,
    pub(crate) authority: String,
    pub(crate) uri_regex_rewrite: Option<RegexRewrite>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RegexRewrite {
    pub(crate) r#match: String,
    pub(crate) rewrite: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Retries {
    pub(crate) attempts: i32,
    pub(crate) per_try_timeout: Option<Span>,
    pub(crate) retry_on: String,
    pub(crate) retry_remote_localities: Option<bool>,
    pub(crate) retry_ignore_previous_hosts: Option<bool>,
    pub(crate) backoff: Option<Span>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Fault {
    pub(crate) delay: Option<Delay>,
    pub(crate) abort: Option<Abort>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Delay {
    pub(crate) percent: i32,
    pub(crate) fixed_delay: Option<Span>,
    pub(crate) exponential_delay: Option<Span>,
    pub(crate) percentage: Option<Percent>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Abort {
    pub(crate) http_status: Option<i32>,
    pub(crate) grpc_status: Option<String>,
    pub(crate) http2_error: Option<String>,
    pub(crate) percentage: Option<Percent>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Mirror {
    pub(crate) destination: Destination,
    pub(crate) percentage: Option<Percent>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct CorsPolicy {
    pub(crate) allow_origin: Vec<String>,
    pub(crate) allow_origins: Vec<StringMatch>,
    pub(crate) allow_methods: Vec<String>,
    pub(crate) allow_headers: Vec<String>,
    pub(crate) expose_headers: Vec<String>,
    pub(crate) max_age: Option<Span>,
    pub(crate) allow_credentials: Option<bool>,
    pub(crate) unmatched_preflights: Option<UnmatchedPreflights>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum UnmatchedPreflights {
    Unspecified,
    Forward,
    Ignore,
}

/// Header changes on the way up and on the way back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Headers {
    pub(crate) request: Option<HeaderOperations>,
    pub(crate) response: Option<HeaderOperations>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HeaderOperations {
    pub(crate) set: BTreeMap<String, String>,
    pub(crate) add: BTreeMap<String, String>,
    pub(crate) remove: Vec<String>,
}

/// A rule for TLS connections that are not terminated, by SNI.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TlsRoute {
    pub(crate) r#match: Vec<TlsMatch>,
    pub(crate) route: Vec<RouteDestination>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TlsMatch {
    pub(crate) sni_hosts: Vec<String>,
    pub(crate) destination_subnets: Vec<String>,
    pub(crate) port: u32,
    pub(crate) source_labels: BTreeMap<String, String>,
    pub(crate) gateways: Vec<String>,
    pub(crate) source_namespace: String,
}

/// A rule for TCP connections.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TcpRoute {
    pub(crate) r#match: Vec<L4Match>,
    pub(crate) route: Vec<RouteDestination>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct L4Match {
    pub(crate) destination_subnets: Vec<String>,
    pub(crate) port: u32,
    pub(crate) source_subnet: String,
    pub(crate) source_labels: BTreeMap<String, String>,
    pub(crate) gateways: Vec<String>,
    pub(crate) source_namespace: String,
}

/// A weighted target of a TCP or TLS rule.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RouteDestination {
    pub(crate) destination: Destination,
    pub(crate) weight: i32,
}

/// The gateway name that stands for all sidecars.
pub(crate) const MESH: &str = "mesh";

impl VirtualService {
    /// The gateways that it applies to; by default the sidecars.
    pub(crate) fn gateways(&self) -> impl Iterator<Item = &str> {
        let mesh = self.gateways.is_empty().then_some(MESH);
        self.gateways.iter().map(String::as_str).chain(mesh)
    }

    /// Every destination that it names, with the path of each.
    pub(crate) fn destinations(&self) -> Vec<(String, &Destination)> {
        let mut found = Vec::new();
        for (i, rule) in self.http.iter().enumerate() {
            for (j, target) in rule.route.iter().enumerate() {
                found.push((format!("spec.http[{i}].route[{j}].destination"), &target.destination));
            }
            if let Some(mirror) = &rule.mirror {
                found.push((format!("spec.http[{i}].mirror"), mirror));
            }
            for (j, mirror) in rule.mirrors.iter().enumerate() {
                found.push((format!("spec.http[{i}].mirrors[{j}].destination"), &mirror.destination));
            }
        }
        for (i, rule) in self.tcp.iter().enumerate() {
            for (j, target) in rule.route.iter().enumerate() {
                found.push((format!("spec.tcp[{i}].route[{j}].destination"), &target.destination));
            }
        }
        for (i, rule) in self.tls.iter().enumerate() {
            for (j, target) in rule.route.iter().enumerate() {
                found.push((format!("spec.tls[{i}].route[{j}].destination"), &target.destination));
            }
        }
        found
    }
}

/// What `retries.retryOn` may contain besides status codes: the conditions of Envoy's router.
pub(crate) const RETRY_CONDITIONS: [&str; 19] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
    "unknown",
    "aborted",
    "data-loss",
];

/// The gRPC status codes by their names; the place is the number.
pub(crate) const GRPC_STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

//! `VirtualService`: how requests and connections to a host are routed.
//!
//! All fields of the Istio API are here, in its order; `validate.rs` has the rules.

mod validate;

use std::collections::BTreeMap;

use serde::Deserialize;

use super::duration::Span;
use super::string_match::StringMatch;

/// The `spec` of a VirtualService.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct VirtualService {
    /// Destination hostnames (FQDN, short, wildcard prefix) the rules own.
    pub(crate) hosts: Vec<String>,
    /// Gateways applying rules; `mesh` = all sidecars; default mesh.
    pub(crate) gateways: Vec<String>,
    /// Ordered HTTP route rules, first match wins.
    pub(crate) http: Vec<HttpRoute>,
    /// Ordered routes for non-terminated TLS by SNI.
    pub(crate) tls: Vec<TlsRoute>,
    /// Ordered routes for opaque TCP.
    pub(crate) tcp: Vec<TcpRoute>,
    /// Namespaces that may see this resource (., *, ~).
    pub(crate) export_to: Vec<String>,
}

/// One HTTP rule: when it applies and what it does.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpRoute {
    /// Route name for logs and EnvoyFilter match.
    pub(crate) name: String,
    /// OR-list of AND-conditions; empty = catch all.
    pub(crate) r#match: Vec<HttpMatch>,
    /// Weighted destinations.
    pub(crate) route: Vec<HttpDestination>,
    /// Answer with an HTTP redirect.
    pub(crate) redirect: Option<Redirect>,
    /// Answer with fixed status and body.
    pub(crate) direct_response: Option<DirectResponse>,
    /// Delegate rules to another VirtualService (root only).
    pub(crate) delegate: Option<Delegate>,
    /// Rewrite path or authority before forwarding.
    pub(crate) rewrite: Option<Rewrite>,
    /// Whole request timeout; default disabled (0).
    pub(crate) timeout: Option<Span>,
    /// Retry policy.
    pub(crate) retries: Option<Retries>,
    /// Inject delay/abort at client.
    pub(crate) fault: Option<Fault>,
    /// Shadow traffic to one destination.
    pub(crate) mirror: Option<Destination>,
    /// Shadow traffic to several destinations.
    pub(crate) mirrors: Vec<Mirror>,
    /// Deprecated: integer mirror percent.
    pub(crate) mirror_percent: Option<u32>,
    /// Percent of requests mirrored; default 100.
    pub(crate) mirror_percentage: Option<Percent>,
    /// CORS policy for the route.
    pub(crate) cors_policy: Option<CorsPolicy>,
    /// Header set/add/remove on request and response.
    pub(crate) headers: Option<Headers>,
}

/// Conditions of which all must hold.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpMatch {
    /// Match name appended to route name.
    pub(crate) name: String,
    /// Path match exact/prefix/regex.
    pub(crate) uri: Option<StringMatch>,
    /// URI scheme match.
    pub(crate) scheme: Option<StringMatch>,
    /// HTTP method match.
    pub(crate) method: Option<StringMatch>,
    /// Authority/host match.
    pub(crate) authority: Option<StringMatch>,
    /// Header matches; @request.auth.claims => JWT claim.
    pub(crate) headers: BTreeMap<String, StringMatch>,
    /// Listener port the request came in on.
    pub(crate) port: u32,
    /// Client workload labels (sidecar only).
    pub(crate) source_labels: BTreeMap<String, String>,
    /// Override of the top gateways list.
    pub(crate) gateways: Vec<String>,
    /// Query parameter matches.
    pub(crate) query_params: BTreeMap<String, StringMatch>,
    /// Case-insensitive exact/prefix URI.
    pub(crate) ignore_uri_case: bool,
    /// Header must NOT match.
    pub(crate) without_headers: BTreeMap<String, StringMatch>,
    /// Client namespace.
    pub(crate) source_namespace: String,
    /// Per-route stats prefix.
    pub(crate) stat_prefix: String,
}

/// A weighted target of an HTTP rule.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpDestination {
    /// Target service.
    pub(crate) destination: Destination,
    /// Share of traffic (sum relative); 0 = none.
    pub(crate) weight: i32,
    /// Per-destination header operations.
    pub(crate) headers: Option<Headers>,
}

/// A service, its port and its subset.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Destination {
    /// Service name looked up in the registry.
    pub(crate) host: String,
    /// DestinationRule subset name.
    pub(crate) subset: String,
    /// Which service port, required if several.
    pub(crate) port: Option<PortSelector>,
}

/// A port by number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PortSelector {
    /// Port number.
    pub(crate) number: u32,
}

/// 0.0 to 100.0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Percent {
    /// 0.0–100.0.
    pub(crate) value: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Redirect {
    /// Replace whole path.
    pub(crate) uri: String,
    /// Replace host.
    pub(crate) authority: String,
    /// Replace port.
    pub(crate) port: Option<u32>,
    /// FROM_PROTOCOL_DEFAULT or FROM_REQUEST_PORT.
    pub(crate) derive_port: Option<DerivePort>,
    /// Replace scheme.
    pub(crate) scheme: String,
    /// 301 default, 302/303/307/308.
    pub(crate) redirect_code: u32,
    /// Replace matched prefix.
    pub(crate) prefix_rewrite: String,
}

/// Where the port of a redirect comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum DerivePort {
    FromProtocolDefault,
    FromRequestPort,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct DirectResponse {
    /// Response code.
    pub(crate) status: u32,
    /// Response body (<=1MiB).
    pub(crate) body: Option<Body>,
}

/// A body as text or base64.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Body {
    /// Body as string.
    pub(crate) string: Option<String>,
    /// Body as bytes.
    pub(crate) bytes: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Delegate {
    /// Delegate VirtualService name.
    pub(crate) name: String,
    /// Delegate namespace; default root's.
    pub(crate) namespace: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Rewrite {
    /// Replace path or matched prefix.
    pub(crate) uri: String,
    /// Replace host header.
    pub(crate) authority: String,
    /// Regex path substitution (RE2).
    pub(crate) uri_regex_rewrite: Option<RegexRewrite>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RegexRewrite {
    /// RE2 pattern.
    pub(crate) r#match: String,
    /// Substitution with \1.
    pub(crate) rewrite: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Retries {
    /// Number of retries; 0 disables; default 2.
    pub(crate) attempts: i32,
    /// Timeout per attempt.
    pub(crate) per_try_timeout: Option<Span>,
    /// Conditions and numeric codes, comma list.
    pub(crate) retry_on: String,
    /// Let retries leave the locality.
    pub(crate) retry_remote_localities: Option<bool>,
    /// Avoid hosts already tried; default true.
    pub(crate) retry_ignore_previous_hosts: Option<bool>,
    /// Base back-off interval.
    pub(crate) backoff: Option<Span>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Fault {
    /// Delay requests.
    pub(crate) delay: Option<Delay>,
    /// Abort requests.
    pub(crate) abort: Option<Abort>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Delay {
    /// Deprecated: integer percent.
    pub(crate) percent: i32,
    /// Fixed delay >=1ms.
    pub(crate) fixed_delay: Option<Span>,
    /// Reserved, not implemented.
    pub(crate) exponential_delay: Option<Span>,
    /// Share of requests delayed.
    pub(crate) percentage: Option<Percent>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Abort {
    /// HTTP status to return.
    pub(crate) http_status: Option<i32>,
    /// GRPC status name to return.
    pub(crate) grpc_status: Option<String>,
    /// Reserved, not implemented.
    pub(crate) http2_error: Option<String>,
    /// Share of requests aborted.
    pub(crate) percentage: Option<Percent>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Mirror {
    /// Shadow destination.
    pub(crate) destination: Destination,
    /// Share mirrored.
    pub(crate) percentage: Option<Percent>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct CorsPolicy {
    /// Deprecated: exact origins.
    pub(crate) allow_origin: Vec<String>,
    /// Origin string matches.
    pub(crate) allow_origins: Vec<StringMatch>,
    /// Access-Control-Allow-Methods.
    pub(crate) allow_methods: Vec<String>,
    /// Access-Control-Allow-Headers.
    pub(crate) allow_headers: Vec<String>,
    /// Access-Control-Expose-Headers.
    pub(crate) expose_headers: Vec<String>,
    /// Access-Control-Max-Age.
    pub(crate) max_age: Option<Span>,
    /// Access-Control-Allow-Credentials.
    pub(crate) allow_credentials: Option<bool>,
    /// FORWARD (default) or IGNORE unmatched preflights.
    pub(crate) unmatched_preflights: Option<UnmatchedPreflights>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum UnmatchedPreflights {
    Unspecified,
    Forward,
    Ignore,
}

/// Header changes on the way up and on the way back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Headers {
    /// Operations before forwarding upstream.
    pub(crate) request: Option<HeaderOperations>,
    /// Operations before returning downstream.
    pub(crate) response: Option<HeaderOperations>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HeaderOperations {
    /// Overwrite header values (:authority/host => host rewrite).
    pub(crate) set: BTreeMap<String, String>,
    /// Append header values.
    pub(crate) add: BTreeMap<String, String>,
    /// Delete headers.
    pub(crate) remove: Vec<String>,
}

/// A rule for TLS connections that are not terminated, by SNI.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TlsRoute {
    /// SNI and L4 conditions (required).
    pub(crate) r#match: Vec<TlsMatch>,
    /// Weighted TCP destinations.
    pub(crate) route: Vec<RouteDestination>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TlsMatch {
    /// SNI values, wildcard prefix allowed.
    pub(crate) sni_hosts: Vec<String>,
    /// Destination CIDRs.
    pub(crate) destination_subnets: Vec<String>,
    /// Destination port.
    pub(crate) port: u32,
    /// Client workload labels.
    pub(crate) source_labels: BTreeMap<String, String>,
    /// Gateways override.
    pub(crate) gateways: Vec<String>,
    /// Client namespace.
    pub(crate) source_namespace: String,
}

/// A rule for TCP connections.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TcpRoute {
    /// L4 conditions; empty = all.
    pub(crate) r#match: Vec<L4Match>,
    /// Weighted TCP destinations.
    pub(crate) route: Vec<RouteDestination>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct L4Match {
    /// Destination CIDRs.
    pub(crate) destination_subnets: Vec<String>,
    /// Destination port.
    pub(crate) port: u32,
    /// Deprecated-in-effect source CIDR.
    pub(crate) source_subnet: String,
    /// Client workload labels.
    pub(crate) source_labels: BTreeMap<String, String>,
    /// Gateways override.
    pub(crate) gateways: Vec<String>,
    /// Client namespace.
    pub(crate) source_namespace: String,
}

/// A weighted target of a TCP or TLS rule.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RouteDestination {
    /// Target service.
    pub(crate) destination: Destination,
    /// Share of connections.
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

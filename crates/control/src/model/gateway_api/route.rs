//! Routes: HTTPRoute, GRPCRoute, TLSRoute, TCPRoute and UDPRoute.

use serde::Deserialize;

use super::filter::Filter;
use super::{DefaultScope, ParentReference, SessionPersistence};
use crate::model::duration::Span;

/// The `spec` of an HTTPRoute.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpRoute {
    /// What it attaches to.
    pub(crate) parent_refs: Vec<ParentReference>,
    /// Whether it attaches to the default gateways too.
    pub(crate) use_default_gateways: Option<DefaultScope>,
    /// Hosts, perhaps with a wildcard in front; empty for all.
    pub(crate) hostnames: Vec<String>,
    /// Rules; the most specific match of all routes wins.
    pub(crate) rules: Vec<HttpRule>,
}

/// A rule of an HTTPRoute.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpRule {
    /// Name, unique within the route.
    pub(crate) name: Option<String>,
    /// Any of these; empty for all requests.
    pub(crate) matches: Vec<HttpMatch>,
    /// What is done to requests and answers.
    pub(crate) filters: Vec<Filter>,
    /// Where requests go, by weight.
    pub(crate) backend_refs: Vec<HttpBackend>,
    /// How long an answer may take.
    pub(crate) timeouts: Option<Timeouts>,
    /// When a request is sent again.
    pub(crate) retry: Option<Retry>,
    /// How requests of one session reach the same endpoint.
    pub(crate) session_persistence: Option<SessionPersistence>,
}

/// How long an answer may take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Timeouts {
    /// With all attempts; 0 for ever.
    pub(crate) request: Option<Span>,
    /// For one attempt; 0 for ever.
    pub(crate) backend_request: Option<Span>,
}

/// When a request is sent again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Retry {
    /// After which status codes, 400 to 599.
    pub(crate) codes: Vec<u16>,
    /// How often.
    pub(crate) attempts: Option<u32>,
    /// How long to wait in between at least.
    pub(crate) backoff: Option<Span>,
}

/// Conditions of which all must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpMatch {
    /// Path; absent for the prefix `/`.
    pub(crate) path: Option<PathMatch>,
    /// Headers.
    pub(crate) headers: Vec<NamedMatch>,
    /// Query parameters.
    pub(crate) query_params: Vec<NamedMatch>,
    /// Method.
    pub(crate) method: Option<Method>,
}

/// What a path must look like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PathMatch {
    /// Absent for `PathPrefix`.
    pub(crate) r#type: Option<PathMatchType>,
    /// Absent for `/`.
    pub(crate) value: Option<String>,
}

/// How a path is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum PathMatchType {
    /// The whole path.
    Exact,
    /// Its first segments.
    PathPrefix,
    /// RE2.
    RegularExpression,
}

/// What a header or query parameter must look like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct NamedMatch {
    /// Absent for `Exact`.
    pub(crate) r#type: Option<MatchType>,
    /// Name.
    pub(crate) name: String,
    /// Value or expression.
    pub(crate) value: String,
}

/// How a value is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum MatchType {
    /// The whole value.
    Exact,
    /// RE2.
    RegularExpression,
}

/// A method of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
}

/// A weighted target of an HTTPRoute or GRPCRoute.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpBackend {
    /// API group; absent or empty for the core one.
    pub(crate) group: Option<String>,
    /// Kind; absent for Service.
    pub(crate) kind: Option<String>,
    /// Name.
    pub(crate) name: String,
    /// Namespace; absent for the route's.
    pub(crate) namespace: Option<String>,
    /// Port of the service; needed if it is a Service.
    pub(crate) port: Option<u16>,
    /// Share; absent for 1.
    pub(crate) weight: Option<u32>,
    /// What is done to requests that go there.
    pub(crate) filters: Vec<Filter>,
}

/// The `spec` of a GRPCRoute.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct GrpcRoute {
    /// What it attaches to.
    pub(crate) parent_refs: Vec<ParentReference>,
    /// Whether it attaches to the default gateways too.
    pub(crate) use_default_gateways: Option<DefaultScope>,
    /// Hosts, perhaps with a wildcard in front; empty for all.
    pub(crate) hostnames: Vec<String>,
    /// Rules; the most specific match of all routes wins.
    pub(crate) rules: Vec<GrpcRule>,
}

/// A rule of a GRPCRoute.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct GrpcRule {
    /// Name, unique within the route.
    pub(crate) name: Option<String>,
    /// Any of these; empty for all requests.
    pub(crate) matches: Vec<GrpcMatch>,
    /// What is done to requests and answers.
    pub(crate) filters: Vec<Filter>,
    /// Where requests go, by weight.
    pub(crate) backend_refs: Vec<HttpBackend>,
    /// How requests of one session reach the same endpoint.
    pub(crate) session_persistence: Option<SessionPersistence>,
}

/// Conditions of which all must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct GrpcMatch {
    /// gRPC service and method.
    pub(crate) method: Option<GrpcMethodMatch>,
    /// Headers.
    pub(crate) headers: Vec<NamedMatch>,
}

/// Which gRPC service and method.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct GrpcMethodMatch {
    /// Absent for `Exact`.
    pub(crate) r#type: Option<MatchType>,
    /// Service, as `package.Service`.
    pub(crate) service: Option<String>,
    /// Method.
    pub(crate) method: Option<String>,
}

/// The `spec` of a TLSRoute.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TlsRoute {
    /// What it attaches to.
    pub(crate) parent_refs: Vec<ParentReference>,
    /// Whether it attaches to the default gateways too.
    pub(crate) use_default_gateways: Option<DefaultScope>,
    /// SNI, perhaps with a wildcard in front.
    pub(crate) hostnames: Vec<String>,
    /// Rules, at most one.
    pub(crate) rules: Vec<StreamRule>,
}

/// The `spec` of a TCPRoute.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TcpRoute {
    /// What it attaches to.
    pub(crate) parent_refs: Vec<ParentReference>,
    /// Whether it attaches to the default gateways too.
    pub(crate) use_default_gateways: Option<DefaultScope>,
    /// Rules, at most one.
    pub(crate) rules: Vec<StreamRule>,
}

/// The `spec` of a UDPRoute, which no proxy of a mesh carries: it is read to be answered.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct UdpRoute {
    /// What it attaches to.
    pub(crate) parent_refs: Vec<ParentReference>,
    /// Whether it attaches to the default gateways too.
    pub(crate) use_default_gateways: Option<DefaultScope>,
    /// Rules, at most one.
    pub(crate) rules: Vec<StreamRule>,
}

/// A rule for connections or datagrams.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct StreamRule {
    /// Name, unique within the route.
    pub(crate) name: Option<String>,
    /// Where connections go, by weight.
    pub(crate) backend_refs: Vec<StreamBackend>,
}

/// A weighted target of connections.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct StreamBackend {
    /// API group; absent or empty for the core one.
    pub(crate) group: Option<String>,
    /// Kind; absent for Service.
    pub(crate) kind: Option<String>,
    /// Name.
    pub(crate) name: String,
    /// Namespace; absent for the route's.
    pub(crate) namespace: Option<String>,
    /// Port of the service; needed if it is a Service.
    pub(crate) port: Option<u16>,
    /// Share; absent for 1.
    pub(crate) weight: Option<u32>,
}

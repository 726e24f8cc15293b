//! What routes of the Gateway API do to requests and answers.

use serde::Deserialize;

use super::{BackendReference, Fraction, LocalObjectReference};

/// A filter of an HTTPRoute or GRPCRoute: the part that `type` names is there.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) struct Filter {
    /// Which part is meant.
    pub(crate) r#type: FilterType,
    /// Header changes on the way up.
    pub(crate) request_header_modifier: Option<HeaderChanges>,
    /// Header changes on the way back.
    pub(crate) response_header_modifier: Option<HeaderChanges>,
    /// A second service that gets the requests too.
    pub(crate) request_mirror: Option<MirrorFilter>,
    /// An answer that sends the client elsewhere.
    pub(crate) request_redirect: Option<RedirectFilter>,
    /// Changes of host and path.
    pub(crate) url_rewrite: Option<RewriteFilter>,
    /// Cross-origin resource sharing.
    pub(crate) cors: Option<CorsFilter>,
    /// A service that is asked for leave.
    pub(crate) external_auth: Option<ExternalAuthFilter>,
    /// A filter of the implementation.
    pub(crate) extension_ref: Option<LocalObjectReference>,
}

/// What a filter does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum FilterType {
    /// It changes headers on the way up.
    RequestHeaderModifier,
    /// It changes headers on the way back.
    ResponseHeaderModifier,
    /// It redirects.
    RequestRedirect,
    /// It changes host and path.
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    /// It copies requests to another service.
    RequestMirror,
    /// It answers for other origins.
    #[serde(rename = "CORS")]
    Cors,
    /// It asks for leave.
    ExternalAuth,
    /// It is one of the implementation.
    ExtensionRef,
}

/// A header with a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Header {
    /// Name.
    pub(crate) name: String,
    /// Value.
    pub(crate) value: String,
}

/// Header changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HeaderChanges {
    /// Headers whose values are replaced.
    pub(crate) set: Vec<Header>,
    /// Headers that get a further value.
    pub(crate) add: Vec<Header>,
    /// Headers that are dropped.
    pub(crate) remove: Vec<String>,
}

/// How a path is changed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) struct PathModifier {
    /// Which of the two is meant.
    pub(crate) r#type: PathModifierType,
    /// The new path.
    pub(crate) replace_full_path: Option<String>,
    /// What replaces the prefix that matched.
    pub(crate) replace_prefix_match: Option<String>,
}

/// What of a path is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum PathModifierType {
    /// All of it.
    ReplaceFullPath,
    /// The prefix that matched.
    ReplacePrefixMatch,
}

/// An answer that sends the client elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RedirectFilter {
    /// `http` or `https`; absent for the request's.
    pub(crate) scheme: Option<String>,
    /// Host; absent for the request's.
    pub(crate) hostname: Option<String>,
    /// Path; absent for the request's.
    pub(crate) path: Option<PathModifier>,
    /// Port; absent for the scheme's or the listener's.
    pub(crate) port: Option<u16>,
    /// 301, 302, 303, 307 or 308; absent for 302.
    pub(crate) status_code: Option<u16>,
}

/// Changes of host and path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RewriteFilter {
    /// New host.
    pub(crate) hostname: Option<String>,
    /// New path.
    pub(crate) path: Option<PathModifier>,
}

/// A second service that gets the requests too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct MirrorFilter {
    /// The service.
    pub(crate) backend_ref: BackendReference,
    /// Share of the requests, 0 to 100.
    pub(crate) percent: Option<u32>,
    /// Share of the requests.
    pub(crate) fraction: Option<Fraction>,
}

/// Cross-origin resource sharing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct CorsFilter {
    /// Origins, as `https://example.com`, `https://*.example.com` or `*`.
    pub(crate) allow_origins: Vec<String>,
    /// Whether requests may carry credentials.
    pub(crate) allow_credentials: Option<bool>,
    /// Methods, or `*`.
    pub(crate) allow_methods: Vec<String>,
    /// Request headers, or `*`.
    pub(crate) allow_headers: Vec<String>,
    /// Headers of answers that scripts may see, or `*`.
    pub(crate) expose_headers: Vec<String>,
    /// How long browsers keep this, seconds; absent for 5.
    pub(crate) max_age: Option<u32>,
}

/// A service that is asked for leave.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExternalAuthFilter {
    /// How it is spoken to.
    pub(crate) protocol: ExternalAuthProtocol,
    /// The service.
    pub(crate) backend_ref: BackendReference,
    /// Settings for gRPC.
    pub(crate) grpc: Option<GrpcAuth>,
    /// Settings for HTTP.
    pub(crate) http: Option<HttpAuth>,
    /// How much of the body it is shown.
    pub(crate) forward_body: Option<ForwardBody>,
}

/// How an authorizer is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum ExternalAuthProtocol {
    /// Envoy's `ext_authz`.
    Grpc,
    /// A request whose status decides.
    Http,
}

/// An authorizer spoken to by gRPC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct GrpcAuth {
    /// Request headers that it is shown.
    pub(crate) allowed_headers: Vec<String>,
}

/// An authorizer spoken to by HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpAuth {
    /// What is put in front of the path.
    pub(crate) path: String,
    /// Request headers that it is shown.
    pub(crate) allowed_headers: Vec<String>,
    /// Headers of its answer that are added to the request.
    pub(crate) allowed_response_headers: Vec<String>,
}

/// How much of a body an authorizer is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ForwardBody {
    /// Bytes; 0 for none.
    pub(crate) max_size: u32,
}

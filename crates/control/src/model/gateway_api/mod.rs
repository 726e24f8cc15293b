//! The Gateway API (gateway.networking.k8s.io): its kinds as Kubernetes has them.
//!
//! `gateway.rs` holds what listens (GatewayClass, Gateway, ListenerSet), `route.rs` the routes,
//! `filter.rs` what routes do to requests, `policy.rs` ReferenceGrant and the policies, `validate.rs` the rules. The types
//! here are those that several of them share. All fields of the standard and the experimental
//! channel are here, in the API's order; what has no effect yet is in `model/support.rs`.

pub(crate) mod filter;
pub(crate) mod gateway;
pub(crate) mod policy;
pub(crate) mod route;
mod validate;

use serde::Deserialize;

/// The API group of most kinds.
pub(crate) const GROUP: &str = "gateway.networking.k8s.io";

/// An object in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct LocalObjectReference {
    /// API group; empty for the core one.
    pub(crate) group: String,
    /// Kind.
    pub(crate) kind: String,
    /// Name.
    pub(crate) name: String,
}

/// An object, by default in the same namespace; another one needs a ReferenceGrant there.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ObjectReference {
    /// API group; empty for the core one.
    pub(crate) group: String,
    /// Kind.
    pub(crate) kind: String,
    /// Name.
    pub(crate) name: String,
    /// Namespace; absent for that of the referring object.
    pub(crate) namespace: Option<String>,
}

/// A Secret, or what else holds certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct SecretReference {
    /// API group; absent or empty for the core one.
    pub(crate) group: Option<String>,
    /// Kind; absent for Secret.
    pub(crate) kind: Option<String>,
    /// Name.
    pub(crate) name: String,
    /// Namespace; absent for that of the referring object.
    pub(crate) namespace: Option<String>,
}

/// A service to which requests are sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct BackendReference {
    /// API group; absent or empty for the core one.
    pub(crate) group: Option<String>,
    /// Kind; absent for Service.
    pub(crate) kind: Option<String>,
    /// Name.
    pub(crate) name: String,
    /// Namespace; absent for that of the referring object.
    pub(crate) namespace: Option<String>,
    /// Port of the service; needed if it is a Service.
    pub(crate) port: Option<u16>,
}

/// What a route attaches to: a Gateway, a ListenerSet or, in a mesh, a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ParentReference {
    /// API group; absent for `gateway.networking.k8s.io`, empty for the core one.
    pub(crate) group: Option<String>,
    /// Kind; absent for Gateway.
    pub(crate) kind: Option<String>,
    /// Namespace; absent for the route's.
    pub(crate) namespace: Option<String>,
    /// Name.
    pub(crate) name: String,
    /// Name of a listener, or of a Service's port; absent for all.
    pub(crate) section_name: Option<String>,
    /// Port of listeners, or of a Service; absent for all.
    pub(crate) port: Option<u16>,
}

/// Whether a Gateway takes part in the default ones, or a route attaches to those.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum DefaultScope {
    /// All routes that ask for default gateways.
    All,
    /// None.
    None,
}

/// A share, as `numerator / denominator`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Fraction {
    /// The part.
    pub(crate) numerator: u32,
    /// The whole; absent for 100.
    pub(crate) denominator: u32,
}

impl Default for Fraction {
    fn default() -> Fraction {
        Fraction { numerator: 0, denominator: 100 }
    }
}

/// How requests of one session reach the same endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct SessionPersistence {
    /// Name of the cookie or header.
    pub(crate) session_name: Option<String>,
    /// How long a session lasts at most.
    pub(crate) absolute_timeout: Option<super::duration::Span>,
    /// How long a session lasts without requests.
    pub(crate) idle_timeout: Option<super::duration::Span>,
    /// Where the session is kept; absent for a cookie.
    pub(crate) r#type: Option<SessionType>,
    /// How long the cookie lives.
    pub(crate) cookie_config: Option<CookieConfig>,
}

/// Where a session is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum SessionType {
    /// In a cookie.
    Cookie,
    /// In a header.
    Header,
}

/// How long a session's cookie lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct CookieConfig {
    /// Absent for the browser's session.
    pub(crate) lifetime_type: Option<CookieLifetime>,
}

/// When a cookie ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum CookieLifetime {
    /// After `absoluteTimeout`.
    Permanent,
    /// With the browser's session.
    Session,
}

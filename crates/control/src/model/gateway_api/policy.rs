//! ReferenceGrant, BackendTLSPolicy and XBackendTrafficPolicy.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{LocalObjectReference, SessionPersistence};
use crate::model::duration::Span;

/// The `spec` of a ReferenceGrant: who may refer to objects of its namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ReferenceGrant {
    /// Who may.
    pub(crate) from: Vec<GrantFrom>,
    /// To what.
    pub(crate) to: Vec<GrantTo>,
}

/// Objects of a kind in a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct GrantFrom {
    /// API group; empty for the core one.
    pub(crate) group: String,
    /// Kind.
    pub(crate) kind: String,
    /// Namespace.
    pub(crate) namespace: String,
}

/// Objects of a kind, or one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct GrantTo {
    /// API group; empty for the core one.
    pub(crate) group: String,
    /// Kind.
    pub(crate) kind: String,
    /// Name; absent for all.
    pub(crate) name: Option<String>,
}

/// The `spec` of a BackendTLSPolicy: how gateways speak TLS to a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct BackendTlsPolicy {
    /// The services.
    pub(crate) target_refs: Vec<TargetSection>,
    /// Whom to believe.
    pub(crate) validation: BackendValidation,
    /// Settings of the implementation.
    pub(crate) options: BTreeMap<String, String>,
}

/// An object in the same namespace, or a part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TargetSection {
    /// API group; empty for the core one.
    pub(crate) group: String,
    /// Kind.
    pub(crate) kind: String,
    /// Name.
    pub(crate) name: String,
    /// Name of a port; absent for all.
    pub(crate) section_name: Option<String>,
}

/// Whose certificates are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct BackendValidation {
    /// ConfigMaps with roots in `ca.crt`.
    pub(crate) ca_certificate_refs: Vec<LocalObjectReference>,
    /// The roots of the machine.
    #[serde(rename = "wellKnownCACertificates")]
    pub(crate) well_known_ca_certificates: Option<WellKnownCa>,
    /// SNI, and the name in the certificate.
    pub(crate) hostname: String,
    /// Names in the certificate, instead of `hostname`.
    pub(crate) subject_alt_names: Vec<SubjectAltName>,
}

/// Roots that need not be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum WellKnownCa {
    /// Those of the machine.
    System,
}

/// A name in a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) struct SubjectAltName {
    /// Which of the two is meant.
    pub(crate) r#type: SubjectAltNameType,
    /// A host name.
    #[serde(default)]
    pub(crate) hostname: String,
    /// A URI such as a SPIFFE identity.
    #[serde(default)]
    pub(crate) uri: String,
}

/// What sort of name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum SubjectAltNameType {
    /// A host name.
    Hostname,
    /// A URI.
    #[serde(rename = "URI")]
    Uri,
}

/// The `spec` of an XBackendTrafficPolicy (experimental).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct BackendTrafficPolicy {
    /// The services.
    pub(crate) target_refs: Vec<LocalObjectReference>,
    /// How many requests may be retries.
    pub(crate) retry_constraint: Option<RetryConstraint>,
    /// How requests of one session reach the same endpoint.
    pub(crate) session_persistence: Option<SessionPersistence>,
}

/// How many requests may be retries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RetryConstraint {
    /// As a share.
    pub(crate) budget: Option<Budget>,
    /// As a rate that is always allowed.
    pub(crate) min_retry_rate: Option<RequestRate>,
}

/// A share of requests over a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Budget {
    /// 0 to 100; absent for 20.
    pub(crate) percent: Option<u32>,
    /// Over which time; absent for 10s.
    pub(crate) interval: Option<Span>,
}

/// A number of requests over a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RequestRate {
    /// Requests; absent for 10.
    pub(crate) count: Option<u32>,
    /// Over which time; absent for 1s.
    pub(crate) interval: Option<Span>,
}

//! `AuthorizationPolicy`: who may do what with a workload.
//!
//! `validate.rs` has the rules.

mod validate;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::Meta;
use super::selector::{PolicyTargetReference, WorkloadSelector};

/// The annotation of policies that are only tried.
pub(crate) const DRY_RUN: &str = "istio.io/dry-run";

/// The `spec` of an AuthorizationPolicy.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct AuthorizationPolicy {
    /// Pods (by label) policy applies to.
    pub(crate) selector: Option<WorkloadSelector>,
    /// Gateway/GatewayClass/Service/ServiceEntry policy attaches to (waypoint/gateway).
    pub(crate) target_ref: Option<PolicyTargetReference>,
    /// Several targets.
    pub(crate) target_refs: Vec<PolicyTargetReference>,
    /// OR-list of rules; none = match nothing (ALLOW: deny all).
    pub(crate) rules: Vec<Rule>,
    /// ALLOW, DENY, AUDIT, CUSTOM.
    pub(crate) action: Action,
    /// Ext-authz provider for CUSTOM.
    pub(crate) provider: Option<ProviderName>,
}

/// What the annotation [`DRY_RUN`] says: whether the rules are only tried, and what they would do is
/// noted; `None` if it is not there, or says nothing that is understood.
// Deviation: istiod drops a policy whose annotation cannot be parsed, and with it what it forbids. Here
// such a policy is enforced, and a finding says so.
pub(crate) fn dry_run(meta: &Meta) -> Option<bool> {
    match meta.annotations.get(DRY_RUN)?.as_str() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Requests; all of the parts that are given must match.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Rule {
    /// OR-list of sources.
    #[serde(deserialize_with = "at_least_one")]
    pub(crate) from: Vec<From>,
    /// OR-list of operations.
    #[serde(deserialize_with = "at_least_one")]
    pub(crate) to: Vec<To>,
    /// AND-list of extra conditions.
    pub(crate) when: Vec<Condition>,
}

/// An empty list would mean anybody, which is hardly what its author wants: Istio refuses it.
fn at_least_one<'de, D: Deserializer<'de>, T: Deserialize<'de>>(list: D) -> Result<Vec<T>, D::Error> {
    let list = Vec::deserialize(list)?;
    if list.is_empty() { Err(D::Error::custom("a list that is given needs an item")) } else { Ok(list) }
}

/// Where a request comes from.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct From {
    /// Request source (ANDed fields).
    pub(crate) source: Option<Source>,
}

/// A peer; all of the fields that are given must match.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Source {
    /// MTLS peer identities (exact/prefix*/\*suffix/*).
    pub(crate) principals: Vec<String>,
    /// Negated principals.
    pub(crate) not_principals: Vec<String>,
    /// JWT iss/sub pairs.
    pub(crate) request_principals: Vec<String>,
    /// Negated requestPrincipals.
    pub(crate) not_request_principals: Vec<String>,
    /// Peer namespaces.
    pub(crate) namespaces: Vec<String>,
    /// Negated namespaces.
    pub(crate) not_namespaces: Vec<String>,
    /// Peer service accounts (ns/sa).
    pub(crate) service_accounts: Vec<String>,
    /// Negated serviceAccounts.
    pub(crate) not_service_accounts: Vec<String>,
    /// Direct peer CIDRs.
    pub(crate) ip_blocks: Vec<String>,
    /// Negated ipBlocks.
    pub(crate) not_ip_blocks: Vec<String>,
    /// Original client CIDRs (XFF/PROXY).
    pub(crate) remote_ip_blocks: Vec<String>,
    /// Negated remoteIpBlocks.
    pub(crate) not_remote_ip_blocks: Vec<String>,
    /// Peer SPIFFE trust domains.
    pub(crate) trust_domains: Vec<String>,
    /// Negated trustDomains.
    pub(crate) not_trust_domains: Vec<String>,
}

/// What a request wants.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct To {
    /// Request operation (ANDed fields).
    pub(crate) operation: Option<Operation>,
}

/// An operation; all of the fields that are given must match.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Operation {
    /// HTTP Host/:authority values.
    pub(crate) hosts: Vec<String>,
    /// Negated hosts.
    pub(crate) not_hosts: Vec<String>,
    /// Destination ports.
    pub(crate) ports: Vec<String>,
    /// Negated ports.
    pub(crate) not_ports: Vec<String>,
    /// HTTP methods.
    pub(crate) methods: Vec<String>,
    /// Negated methods.
    pub(crate) not_methods: Vec<String>,
    /// URL paths; exact, prefix*, *suffix, {*}, {**} templates.
    pub(crate) paths: Vec<String>,
    /// Negated paths.
    pub(crate) not_paths: Vec<String>,
}

/// A condition on an attribute of the request.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Condition {
    /// Request.headers[..], source.*, remote.ip, request.auth.*, destination.*, connection.sni,
    /// experimental.envoy.filters.*.
    pub(crate) key: String,
    /// Allowed values (OR).
    pub(crate) values: Vec<String>,
    /// Forbidden values.
    pub(crate) not_values: Vec<String>,
}

/// What becomes of a request that a rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Action {
    #[default]
    Allow,
    Deny,
    Audit,
    Custom,
}

/// An authorizer outside the mesh configuration, by name.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ProviderName {
    /// Name in MeshConfig.extensionProviders.
    pub(crate) name: String,
}

//! AuthorizationPolicies as the filters `rbac`: one for each action, in the order AUDIT, DENY, ALLOW.
//!
//! A policy with the annotation `istio.io/dry-run: "true"` goes into the filter's shadow rules: what it
//! would have done is counted and noted in metadata.

use std::sync::Arc;

use leno_api::proto::envoy::config::rbac::v3 as rbac;
use leno_api::proto::envoy::extensions::filters::http::rbac::v3 as http;
use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use leno_api::proto::envoy::extensions::filters::network::rbac::v3 as network;
use leno_derive::Cx;

use super::rule::{self, Use};
use super::{http_filter, network_filter};
use crate::model::authorization_policy::{AuthorizationPolicy, dry_run};
use crate::model::mesh::MeshConfig;
use crate::model::{Config, Meta};
use crate::registry::Mesh;
use crate::registry::targets::Workload;
use crate::scope::security::AuthorizationOf;
use crate::translate::listener::filters::Filled;

/// The filters' names.
pub(super) const HTTP: &str = "envoy.filters.http.rbac";
pub(super) const NETWORK: &str = "envoy.filters.network.rbac";

/// Begins the statistics of the filter for connections.
pub(super) const NETWORK_STATISTICS: &str = "tcp.";

/// Begin what shadow rules are counted and noted under.
const DRY_RUN_ALLOW: &str = "istio_dry_run_allow_";
const DRY_RUN_DENY: &str = "istio_dry_run_deny_";

/// The filters for the policies that need nobody else.
pub(super) fn filters(cx: &Cx<'_>, workload: &Workload) -> Filled {
    use rbac::rbac::Action;
    let policies = cx.get::<AuthorizationOf>(workload);
    let mesh = cx.get::<Mesh>(&());
    let mut filled = Filled::default();
    let lists =
        [(Action::Log, &policies.audit), (Action::Deny, &policies.deny), (Action::Allow, &policies.allow)];
    for (action, policies) in lists.into_iter().filter(|(_, policies)| !policies.is_empty()) {
        let (dry, wet): (Vec<_>, Vec<_>) = policies.iter().partition(|policy| is_tried(&policy.meta));
        let shadow_rules_stat_prefix = match action {
            Action::Deny if !dry.is_empty() => DRY_RUN_DENY.to_owned(),
            Action::Log if !dry.is_empty() => String::new(),
            // Istio says so even where nothing is only tried, which then means nothing.
            _ => DRY_RUN_ALLOW.to_owned(),
        };
        let rules = |policies: &[&Arc<Config<AuthorizationPolicy>>], connections: bool| {
            let list = policies.iter().map(|policy| policy.as_ref());
            (!policies.is_empty()).then(|| rules(&mesh, list, action, connections, ""))
        };
        filled.http.push(http_filter(
            HTTP,
            &http::Rbac {
                rules: rules(&wet, false),
                shadow_rules: rules(&dry, false),
                shadow_rules_stat_prefix: shadow_rules_stat_prefix.clone(),
                ..http::Rbac::default()
            },
        ));
        filled.network.push(network_filter(
            NETWORK,
            &network::Rbac {
                rules: rules(&wet, true),
                shadow_rules: rules(&dry, true),
                shadow_rules_stat_prefix,
                stat_prefix: NETWORK_STATISTICS.to_owned(),
                ..network::Rbac::default()
            },
        ));
    }
    filled
}

/// The filters of a gRPC server, see [`super::of_grpc`].
pub(super) fn of_grpc(cx: &Cx<'_>, workload: &Workload) -> Option<Vec<hcm::HttpFilter>> {
    use rbac::rbac::Action;
    let policies = cx.get::<AuthorizationOf>(workload);
    if policies.custom.iter().any(|policy| !is_tried(&policy.meta)) {
        return None;
    }
    let mesh = cx.get::<Mesh>(&());
    let lists = [
        ("envoy.filters.http.rbac.DENY", Action::Deny, &policies.deny),
        (HTTP, Action::Allow, &policies.allow),
    ];
    let filters = lists.into_iter().filter_map(|(name, action, policies)| {
        let mut wet = policies.iter().filter(|policy| !is_tried(&policy.meta)).peekable();
        wet.peek()?;
        let rules = rules(&mesh, wet.map(|policy| policy.as_ref()), action, false, "");
        Some(http_filter(name, &http::Rbac { rules: Some(rules), ..http::Rbac::default() }))
    });
    Some(filters.collect())
}

/// Whether a policy is only tried.
pub(super) fn is_tried(meta: &Meta) -> bool {
    dry_run(meta) == Some(true)
}

/// The rules of some policies, each under the name by which Istio knows it, after `prefix`.
pub(super) fn rules<'p>(
    mesh: &MeshConfig,
    policies: impl Iterator<Item = &'p Config<AuthorizationPolicy>>,
    action: rbac::rbac::Action,
    connections: bool,
    prefix: &str,
) -> rbac::Rbac {
    let trust_domains: Vec<&str> =
        std::iter::once(&mesh.trust_domain).chain(&mesh.trust_domain_aliases).map(String::as_str).collect();
    let mut message = rbac::Rbac { action: action as i32, ..rbac::Rbac::default() };
    for Config { meta, spec } in policies {
        let place = Use {
            namespace: &meta.namespace,
            trust_domains: &trust_domains,
            connections,
            allows: action == rbac::rbac::Action::Allow,
        };
        let name =
            |index: usize| format!("{prefix}ns[{}]-policy[{}]-rule[{index}]", meta.namespace, meta.name);
        if spec.rules.is_empty() {
            message.policies.insert(name(0), rule::never());
        }
        for (index, one) in spec.rules.iter().enumerate() {
            if let Some(policy) = rule::policy(one, &place) {
                message.policies.insert(name(index), policy);
            }
        }
    }
    message
}

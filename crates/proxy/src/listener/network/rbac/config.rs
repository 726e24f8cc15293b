//! Lowering of RBAC, the network filter.

use std::sync::Arc;

use leno_api::proto::envoy::config::rbac::v3 as rules;
use leno_api::proto::envoy::extensions::filters::network::rbac::v3 as proto;
use proto::rbac::EnforcementType;

use super::{NAMESPACE, NetworkRbac};
use crate::config::lower::Lower;
use crate::listener::network::NetworkFilterConfig;
use crate::matching::Place;
use crate::rbac::{Labels, from_matcher, from_rules};
use crate::telemetry::per_thread::PerThread;

/// Lowers the filter.
pub(in crate::listener::network) fn lower(
    any: &prost_types::Any,
    at: &mut Lower,
) -> Option<Arc<dyn NetworkFilterConfig>> {
    let proto::Rbac {
        rules,
        matcher,
        shadow_rules,
        shadow_matcher,
        shadow_rules_stat_prefix,
        stat_prefix,
        enforcement_type,
        delay_deny,
    } = at.unpack(any)?;
    if stat_prefix.is_empty() {
        at.error_at("stat_prefix", "value length must be at least 1 characters");
    }
    at.value::<EnforcementType>("enforcement_type", enforcement_type)?;
    let labels = |prefix: &str, kind: &str, hints| Labels {
        namespace: NAMESPACE,
        policy: format!("{prefix}{kind}_effective_policy_id"),
        result: format!("{prefix}{kind}_engine_result"),
        hints,
    };
    let place = Place { refuse, ..Place::CONNECTION };
    let mut engine = |fields: [&str; 2], rules: Option<rules::Rbac>, matcher, labels: &Labels| {
        if let Some(rules) = &rules {
            at.field(fields[0], |at| check(rules, at));
        }
        let engine = match (matcher, rules) {
            // A matcher has the rules ignored.
            (Some(matcher), _) => at.field(fields[1], |at| from_matcher(matcher, place, labels, at)),
            (None, Some(rules)) => at.field(fields[0], |at| from_rules(rules, labels, at)),
            (None, None) => None,
        };
        engine.map(Arc::new)
    };
    let enforced = engine(["rules", "matcher"], rules, matcher, &labels("", "enforced", true));
    let shadow_labels = labels(&shadow_rules_stat_prefix, "shadow", false);
    let shadow = engine(["shadow_rules", "shadow_matcher"], shadow_rules, shadow_matcher, &shadow_labels);
    let dot =
        if shadow_rules_stat_prefix.is_empty() || shadow_rules_stat_prefix.ends_with('.') { "" } else { "." };
    Some(Arc::new(NetworkRbac {
        enforced,
        shadow,
        delay: at.timeout("delay_deny", delay_deny, None),
        prefixes: [
            format!("{stat_prefix}.rbac.").into(),
            format!("{stat_prefix}.rbac.{shadow_rules_stat_prefix}{dot}").into(),
        ],
        stats: PerThread::default(),
    }))
}

/// Connections have no headers: rules may not ask for them.
fn check(rules: &rules::Rbac, at: &mut Lower) {
    let mut names: Vec<_> = rules.policies.iter().collect();
    names.sort_by_key(|(name, _)| *name);
    for (name, policy) in names {
        let asks = policy.permissions.iter().any(permission) || policy.principals.iter().any(principal);
        if asks {
            let field = format!("policies[\"{name}\"]");
            at.error_at(&field, "header rules are not supported by the RBAC network filter");
        }
    }
}

/// Whether it asks for a header.
fn permission(proto: &rules::Permission) -> bool {
    use rules::permission::Rule;
    match &proto.rule {
        Some(Rule::Header(_)) => true,
        Some(Rule::AndRules(set) | Rule::OrRules(set)) => set.rules.iter().any(permission),
        Some(Rule::NotRule(rule)) => permission(rule),
        _ => false,
    }
}

/// Likewise.
fn principal(proto: &rules::Principal) -> bool {
    use rules::principal::Identifier;
    match &proto.identifier {
        Some(Identifier::Header(_)) => true,
        Some(Identifier::AndIds(set) | Identifier::OrIds(set)) => set.ids.iter().any(principal),
        Some(Identifier::NotId(id)) => principal(id),
        _ => false,
    }
}

/// Inputs that the filter's match trees may not read: Envoy lists those that they may.
fn refuse(input: &str) -> Option<String> {
    const NETWORK: &str = "envoy.extensions.matching.common_inputs.network.v3.";
    let refused = match input.strip_prefix(NETWORK) {
        Some(name) => matches!(
            name,
            "SourceTypeInput"
                | "NetworkNamespaceInput"
                | "TransportProtocolInput"
                | "ApplicationProtocolInput"
        ),
        None => input.starts_with("envoy.type.matcher.v3."),
    };
    refused.then(|| format!("RBAC network filter cannot match 'type.googleapis.com/{input}'"))
}

//! Lowering of RBAC and RBACPerRoute.

use std::any::Any;
use std::sync::Arc;

use leno_api::proto::envoy::extensions::filters::http::rbac::v3 as proto;

use super::{NAMESPACE, Rbac, RbacFilter, RouteRbac};
use crate::config::lower::Lower;
use crate::http::filters::FilterConfig;
use crate::matching::Place;
use crate::rbac::{Labels, from_matcher, from_rules};
use crate::telemetry::per_thread::PerThread;

/// Lowers the chain's RBAC.
pub(super) fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    let proto: proto::Rbac = at.unpack(any)?;
    let dotted = |prefix: &str| -> Box<str> {
        if prefix.is_empty() || prefix.ends_with('.') { prefix.into() } else { format!("{prefix}.").into() }
    };
    let prefixes = [dotted(&proto.rules_stat_prefix), dotted(&proto.shadow_rules_stat_prefix)];
    let labels = [proto.rules_stat_prefix.as_str().into(), proto.shadow_rules_stat_prefix.as_str().into()];
    let rbac = lower_rbac(proto, at)?;
    Some(Arc::new(RbacFilter { rbac, prefixes, labels, stats: PerThread::default() }))
}

/// Lowers RBACPerRoute.
pub(super) fn lower_route(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn Any + Send + Sync>> {
    let proto::RbacPerRoute { rbac } = at.unpack(any)?;
    let Some(rbac) = rbac else { return Some(Arc::new(RouteRbac(None))) };
    let rbac = at.field("rbac", |at| lower_rbac(rbac, at))?;
    Some(Arc::new(RouteRbac(Some(rbac))))
}

fn lower_rbac(proto: proto::Rbac, at: &mut Lower) -> Option<Rbac> {
    let proto::Rbac {
        rules,
        rules_stat_prefix,
        matcher,
        shadow_rules,
        shadow_matcher,
        shadow_rules_stat_prefix,
        track_per_rule_stats,
    } = proto;
    let labels = |prefix: &str, kind: &str, hints| Labels {
        namespace: NAMESPACE,
        policy: format!("{prefix}{kind}_effective_policy_id"),
        result: format!("{prefix}{kind}_engine_result"),
        hints,
    };
    let place = Place { refuse, ..Place::REQUEST };
    let mut engine = |fields: [&str; 2], rules, matcher, labels: &Labels| match (matcher, rules) {
        // A matcher has the rules ignored.
        (Some(matcher), _) => at.field(fields[1], |at| from_matcher(matcher, place, labels, at)),
        (None, Some(rules)) => at.field(fields[0], |at| from_rules(rules, labels, at)),
        (None, None) => None,
    };
    let enforced = labels(&rules_stat_prefix, "enforced", true);
    let shadow = labels(&shadow_rules_stat_prefix, "shadow", false);
    Some(Rbac {
        enforced: engine(["rules", "matcher"], rules, matcher, &enforced),
        shadow: engine(["shadow_rules", "shadow_matcher"], shadow_rules, shadow_matcher, &shadow),
        per_rule: track_per_rule_stats,
        labelled: [!rules_stat_prefix.is_empty(), !shadow_rules_stat_prefix.is_empty()],
    })
}

/// Inputs that the filter's match trees may not read: Envoy lists those that they may.
fn refuse(input: &str) -> Option<String> {
    const NETWORK: &str = "envoy.extensions.matching.common_inputs.network.v3.";
    let refused = match input.strip_prefix(NETWORK) {
        Some(name) => matches!(name, "SourceTypeInput" | "NetworkNamespaceInput"),
        None => {
            input.starts_with("envoy.type.matcher.v3.") && !input.ends_with(".HttpRequestHeaderMatchInput")
        }
    };
    refused.then(|| format!("RBAC HTTP filter cannot match on 'type.googleapis.com/{input}'"))
}

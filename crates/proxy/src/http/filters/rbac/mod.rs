//! `envoy.filters.http.rbac`: answers 403 to requests that its policies do not allow. Shadow
//! rules are judged too, and only counted and told in dynamic metadata.
//!
//! The judging is in `crate::rbac`. Settings of the most specific level replace the chain's;
//! stats are the chain's all the same, as in Envoy.

mod config;

use crate::http::filters::{FilterConfig, Opening, Registration, RouteSettings, Step};
use crate::http::headers::HeaderMap;
use crate::http::reply::Reply;
use crate::http::stream::Stream;
use crate::matching::facts::RequestFacts;
use crate::rbac::{Engine, Outcome};
use crate::telemetry::metadata::DynamicMetadata;
use crate::telemetry::per_thread::PerThread;
use crate::telemetry::stats::{ThreadStats, stats_scope};

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: "envoy.filters.http.rbac",
    config_type: "envoy.extensions.filters.http.rbac.v3.RBAC",
    lower: config::lower,
    route_type: Some("envoy.extensions.filters.http.rbac.v3.RBACPerRoute"),
    lower_route: Some(config::lower_route),
};

/// Of dynamic metadata, whatever the filter is called.
const NAMESPACE: &str = "envoy.filters.http.rbac";

stats_scope! {
    /// `http.STAT_PREFIX.rbac.RULES_STAT_PREFIX.`
    struct RbacStats {
        counter allowed;
        counter denied;
    }
}

stats_scope! {
    /// `http.STAT_PREFIX.rbac.SHADOW_RULES_STAT_PREFIX.`
    struct ShadowStats {
        counter shadow_allowed;
        counter shadow_denied;
    }
}

/// The filter as configured in a chain.
#[derive(Debug)]
struct RbacFilter {
    rbac: Rbac,
    /// `rules_stat_prefix` and `shadow_rules_stat_prefix`, with a dot at the end if there is one.
    prefixes: [Box<str>; 2],
    /// The same as they are configured, for keys of dynamic metadata.
    labels: [Box<str>; 2],
    stats: PerThread<(RbacStats, ShadowStats)>,
}

/// RBAC, of the chain or of a route.
#[derive(Debug, Default)]
struct Rbac {
    /// `matcher`, else `rules`.
    enforced: Option<Engine>,
    /// `shadow_matcher`, else `shadow_rules`.
    shadow: Option<Engine>,
    /// `track_per_rule_stats`.
    per_rule: bool,
    /// Whether it has stat prefixes of its own, for the two.
    labelled: [bool; 2],
}

/// RBACPerRoute; `None`: the filter does nothing there.
#[derive(Debug)]
struct RouteRbac(Option<Rbac>);

impl FilterConfig for RbacFilter {
    fn on_request(
        &self,
        stream: &mut Stream,
        settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        _end: bool,
    ) -> Opening {
        let rbac = match settings.and_then(RouteSettings::first::<RouteRbac>) {
            Some(RouteRbac(Some(rbac))) => rbac,
            Some(RouteRbac(None)) => return Opening::PASS,
            None => &self.rbac,
        };
        let thread = stream.worker.stats();
        let stat_prefix = &stream.manager.stat_prefix;
        let (stats, shadow_stats) = self.stats.of(thread, || {
            let [rules, shadow] =
                self.prefixes.each_ref().map(|prefix| format!("http.{stat_prefix}.rbac.{prefix}"));
            (RbacStats::kept(thread, &rules), ShadowStats::kept(thread, &shadow))
        });
        if let Some(engine) = &rbac.shadow {
            let outcome = judge(engine, stream, head);
            let (counter, name) = if outcome.allowed {
                (shadow_stats.shadow_allowed(), "shadow_allowed")
            } else {
                (shadow_stats.shadow_denied(), "shadow_denied")
            };
            counter.inc();
            if rbac.per_rule {
                count_rule(outcome, shadow_stats.block().prefix(), name, thread);
            }
            self.note(outcome, rbac, 1, &mut stream.info.metadata);
        }
        let Some(engine) = &rbac.enforced else { return Opening::PASS };
        let outcome = judge(engine, stream, head);
        let (counter, name) =
            if outcome.allowed { (stats.allowed(), "allowed") } else { (stats.denied(), "denied") };
        counter.inc();
        if rbac.per_rule {
            count_rule(outcome, stats.block().prefix(), name, stream.worker.stats());
        }
        self.note(outcome, rbac, 0, &mut stream.info.metadata);
        if outcome.allowed {
            return Opening::PASS;
        }
        Opening::Done(Step::Reply(Reply::new(403, outcome.details(), "RBAC: access denied")))
    }
}

impl RbacFilter {
    /// Tells of an outcome. `which`: the enforced one, or that of the shadow rules.
    fn note(&self, outcome: &Outcome, rbac: &Rbac, which: usize, metadata: &mut DynamicMetadata) {
        let label = self.labels.get(which).filter(|label| !label.is_empty());
        match label {
            // A route without prefix has the chain's.
            Some(label) if !rbac.labelled.get(which).copied().unwrap_or(true) => {
                let values = metadata.values_mut(NAMESPACE);
                values.extend(
                    outcome.note.values().iter().map(|(key, value)| (format!("{label}{key}"), value.clone())),
                );
            }
            _ => metadata.merge(&outcome.note),
        }
        if let Some(hint) = &outcome.log_hint {
            metadata.merge(hint);
        }
    }
}

fn judge<'e>(engine: &'e Engine, stream: &Stream, head: &HeaderMap) -> &'e Outcome {
    let route = stream.selected.as_ref().map(|selected| &*selected.route);
    engine.judge(&RequestFacts { info: &stream.info, request: head, route })
}

/// `policy.NAME.`, below the prefix.
fn count_rule(outcome: &Outcome, prefix: &str, name: &str, thread: &ThreadStats) {
    if let Some(policy) = &outcome.policy {
        thread.count(&format!("{prefix}policy.{policy}.{name}"), 1);
    }
}

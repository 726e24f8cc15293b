//! envoy.filters.network.rbac: closes connections that its policies do not allow. Shadow rules are
//! judged too, and only counted and told in dynamic metadata.
//!
//! The judging is in `crate::rbac`.
//!
//! Deviation: connections are judged when they are there, not at their first byte, so that a
//! server that speaks first does not speak to those who are denied.
//! Deviation: with `enforcement_type: CONTINUOUS` connections are judged once too: no filter
//! that this proxy has changes the facts of a connection afterwards.

pub(super) mod config;

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::{NetworkFilter, NetworkFilterConfig, NetworkStep, Waited};
use crate::matching::facts::NetworkFacts;
use crate::rbac::Engine;
use crate::telemetry::per_thread::PerThread;
use crate::telemetry::stats::stats_scope;
use crate::telemetry::stream_info::{ConnectionInfo, DynamicMetadata};
use crate::worker::Worker;

/// Of dynamic metadata, whatever the filter is called.
const NAMESPACE: &str = "envoy.filters.network.rbac";

stats_scope! {
    /// `STAT_PREFIX.rbac.`
    struct RbacStats {
        counter allowed;
        counter denied;
    }
}

stats_scope! {
    /// `STAT_PREFIX.rbac.SHADOW_RULES_STAT_PREFIX.`
    struct ShadowStats {
        counter shadow_allowed;
        counter shadow_denied;
    }
}

/// RBAC as configured in a chain.
#[derive(Debug)]
struct NetworkRbac {
    /// `matcher`, else `rules`.
    enforced: Option<Arc<Engine>>,
    /// `shadow_matcher`, else `shadow_rules`.
    shadow: Option<Arc<Engine>>,
    /// `delay_deny`: connections that are denied are closed after so long.
    delay: Option<Duration>,
    /// Of stats and shadow stats.
    prefixes: [Box<str>; 2],
    stats: PerThread<(RbacStats, ShadowStats)>,
}

impl NetworkFilterConfig for NetworkRbac {
    fn open(&self, worker: &Rc<Worker>) -> Option<Box<dyn NetworkFilter>> {
        let thread = worker.stats();
        let (stats, shadow_stats) = self.stats.of(thread, || {
            let [rules, shadow] = &self.prefixes;
            (RbacStats::kept(thread, rules), ShadowStats::kept(thread, shadow))
        });
        Some(Box::new(Judging {
            enforced: self.enforced.clone(),
            shadow: self.shadow.clone(),
            delay: self.delay,
            stats: stats.clone(),
            shadow_stats: shadow_stats.clone(),
        }))
    }
}

/// The filter at work on one connection.
struct Judging {
    enforced: Option<Arc<Engine>>,
    shadow: Option<Arc<Engine>>,
    delay: Option<Duration>,
    stats: RbacStats,
    shadow_stats: ShadowStats,
}

impl NetworkFilter for Judging {
    fn on_new_connection(&mut self, connection: &mut ConnectionInfo) -> NetworkStep {
        if let Some(engine) = &self.shadow {
            let outcome = engine.judge(&NetworkFacts::new(connection));
            let stats = &self.shadow_stats;
            if outcome.allowed {
                stats.shadow_allowed().inc();
            } else {
                stats.shadow_denied().inc();
            }
            connection.found.metadata.merge(&outcome.note);
        }
        let Some(engine) = &self.enforced else { return NetworkStep::Continue };
        let outcome = engine.judge(&NetworkFacts::new(connection));
        if let Some(hint) = &outcome.log_hint {
            connection.found.metadata.merge(hint);
        }
        if outcome.allowed {
            self.stats.allowed().inc();
            return NetworkStep::Continue;
        }
        self.stats.denied().inc();
        let details = Cow::Owned(outcome.details());
        match self.delay {
            None => NetworkStep::Close(details),
            Some(delay) => NetworkStep::Await(Box::pin(async move {
                tokio::time::sleep(delay).await;
                Waited { metadata: DynamicMetadata::new(), outcome: Err(details) }
            })),
        }
    }
}

//! Istio's metrics: the filter `istio.stats`, one for each provider that counts.

use leno_api::proto::stats;
use leno_derive::Cx;

use super::observed;
use crate::registry::Mesh;
use crate::scope::Abilities;
use crate::scope::telemetry::{CountFor, MetricChange, ObservedOf};
use crate::translate::listener::filters::{Filled, FilterScope, Side, http_filter};
use crate::translate::listener::network_filter;

/// The filters' name.
const NAME: &str = "istio.stats";

/// The filters that count requests and connections.
pub(super) fn filled(cx: &Cx<'_>, scope: &FilterScope) -> Filled {
    let mut filled = Filled::default();
    let http = scope.abilities.has(Abilities::HTTP_STATS);
    let bytes = scope.abilities.has(Abilities::TCP_STATS);
    if !http && !bytes {
        return filled;
    }
    let mesh = cx.get::<Mesh>(&());
    for counted in &cx.get::<ObservedOf>(&observed(scope)).metrics {
        // Nobody else counts by a filter.
        if mesh.provider(&counted.provider).is_none_or(|provider| provider.prometheus.is_none()) {
            continue;
        }
        let message = config(counted, scope.side);
        if http {
            filled.http.push(http_filter(NAME, &message));
        }
        if bytes {
            filled.network.push(network_filter(NAME, &message));
        }
    }
    filled
}

fn config(counted: &CountFor, side: Side) -> stats::PluginConfig {
    stats::PluginConfig {
        // What clients outside of the mesh write there must not become a label's value, and inbound the
        // cluster tells.
        disable_host_header_fallback: matches!(side, Side::Inbound | Side::Gateway),
        tcp_reporting_duration: counted.interval.map(crate::model::duration::Span::to_proto),
        metrics: counted.changes.iter().map(change).collect(),
        ..stats::PluginConfig::default()
    }
}

fn change(change: &MetricChange) -> stats::MetricConfig {
    stats::MetricConfig {
        dimensions: change.tags.clone(),
        name: change.name.clone(),
        tags_to_remove: change.removed.clone(),
        drop: change.dropped,
        ..stats::MetricConfig::default()
    }
}

//! Applies what DestinationRules say of connections and their health to a cluster.

use leno_api::proto::envoy::config::common::matcher::v3 as matcher;
use leno_api::proto::envoy::extensions::upstreams::http::v3 as upstreams;

use super::draft::Draft;
use crate::model::destination_rule::{
    ConnectionPool, H2UpgradePolicy, HttpSettings, OutlierDetection, RetryBudget, TcpKeepalive,
};
use crate::model::duration::Span;
use crate::model::mesh::{MeshConfig, MeshH2Upgrade};
use crate::registry::protocol::Protocol;
use crate::translate::proto::{cluster, core, route, ty};

/// How long an answer to a ping of HTTP/2 may take by default; Envoy insists on a value.
const PING_TIMEOUT: prost_types::Duration = prost_types::Duration { seconds: 20, nanos: 0 };

/// How long a connection may take to come up in this mesh.
pub(super) fn connect_timeout(mesh: &MeshConfig) -> prost_types::Duration {
    mesh.connect_timeout.to_proto()
}

/// Turns a cluster for HTTP/1.1 into one for HTTP/2 where that is asked for.
pub(super) fn upgrade(draft: &mut Draft, mesh: &MeshConfig, protocol: Protocol, pool: &ConnectionPool) {
    let http = pool.http.as_ref();
    if http.is_some_and(|http| http.use_client_protocol) {
        return;
    }
    let upgrade = match http.and_then(|http| http.h2_upgrade_policy) {
        Some(H2UpgradePolicy::Upgrade) => true,
        Some(H2UpgradePolicy::DoNotUpgrade) => false,
        // Only where it is sure that it is HTTP.
        Some(H2UpgradePolicy::Default) | None => {
            mesh.h2_upgrade_policy == MeshH2Upgrade::Upgrade && protocol.is_http()
        }
    };
    if upgrade {
        draft.speak_http2();
    }
}

/// Applies limits and timeouts, or defaults where nothing is said.
pub(super) fn connection_pool(
    draft: &mut Draft,
    mesh: &MeshConfig,
    pool: &ConnectionPool,
    budget: Option<&RetryBudget>,
) {
    let tcp = pool.tcp.as_ref();
    let http = pool.http.as_ref();
    let timeout = tcp.and_then(|tcp| tcp.connect_timeout);
    draft.cluster.connect_timeout = Some(timeout.map_or_else(|| connect_timeout(mesh), Span::to_proto));
    draft.cluster.circuit_breakers = Some(circuit_breakers(pool, budget));
    let keepalives = [mesh.tcp_keepalive.as_ref(), tcp.and_then(|tcp| tcp.tcp_keepalive.as_ref())];
    for settings in keepalives.into_iter().flatten() {
        let options = draft.cluster.upstream_connection_options.get_or_insert_default();
        keepalive(options.tcp_keepalive.get_or_insert_default(), settings);
    }
    let idle_timeout = http.and_then(|http| http.idle_timeout).or(tcp.and_then(|tcp| tcp.idle_timeout));
    if let Some(timeout) = idle_timeout {
        draft.common_http().idle_timeout = Some(timeout.to_proto());
    }
    if let Some(most) = tcp.and_then(|tcp| tcp.max_connection_duration) {
        draft.common_http().max_connection_duration = Some(most.to_proto());
    }
    if let Some(http) = http {
        http_settings(draft, http);
    }
}

fn http_settings(draft: &mut Draft, http: &HttpSettings) {
    if let Some(most) = positive(http.max_requests_per_connection) {
        draft.common_http().max_requests_per_connection = Some(most);
    }
    let streams = positive(http.max_concurrent_streams);
    if (streams.is_some() || http.http2_keep_alive.is_some())
        && let Some(http2) = draft.http2()
    {
        if streams.is_some() {
            http2.max_concurrent_streams = streams;
        }
        if let Some(settings) = &http.http2_keep_alive {
            http2.connection_keepalive = Some(core::KeepaliveSettings {
                interval: settings.interval.map(Span::to_proto),
                timeout: Some(settings.timeout.map_or(PING_TIMEOUT, Span::to_proto)),
                ..core::KeepaliveSettings::default()
            });
        }
    }
    if http.use_client_protocol {
        draft.speak_as_client();
    }
}

/// The limits; what is not limited by a rule is not limited at all, which in Envoy must be said.
fn circuit_breakers(pool: &ConnectionPool, budget: Option<&RetryBudget>) -> cluster::CircuitBreakers {
    let limit = |value: i32| Some(positive(value).unwrap_or(u32::MAX));
    let http = pool.http.as_ref();
    let thresholds = cluster::circuit_breakers::Thresholds {
        max_connections: limit(pool.tcp.as_ref().map_or(0, |tcp| tcp.max_connections)),
        max_pending_requests: limit(http.map_or(0, |http| http.http1_max_pending_requests)),
        max_requests: limit(http.map_or(0, |http| http.http2_max_requests)),
        max_retries: limit(http.map_or(0, |http| http.max_retries)),
        retry_budget: budget.map(|budget| cluster::circuit_breakers::thresholds::RetryBudget {
            budget_percent: Some(ty::v3::Percent { value: budget.percent.unwrap_or(20.0) }),
            budget_interval: budget.budget_interval.map(Span::to_proto),
            min_retry_concurrency: Some(match budget.min_retry_concurrency {
                0 => 3,
                least => least,
            }),
        }),
        ..cluster::circuit_breakers::Thresholds::default()
    };
    cluster::CircuitBreakers { thresholds: vec![thresholds], ..cluster::CircuitBreakers::default() }
}

fn keepalive(message: &mut core::TcpKeepalive, settings: &TcpKeepalive) {
    let seconds = |span: Span| u32::try_from(span.0.as_secs()).unwrap_or(u32::MAX);
    if settings.probes > 0 {
        message.keepalive_probes = Some(settings.probes);
    }
    message.keepalive_time = settings.time.map(seconds).or(message.keepalive_time);
    message.keepalive_interval = settings.interval.map(seconds).or(message.keepalive_interval);
}

/// Applies the ejection of endpoints that fail. `by_readiness`: whether the service sends its
/// clients on to other places by the readiness of endpoints, so that these must never be used
/// while they are not ready.
pub(super) fn outlier_detection(draft: &mut Draft, outliers: &OutlierDetection, by_readiness: bool) {
    draft.cluster.outlier_detection = Some(outlier_message(outliers));
    // Envoy would send to ejected endpoints once half are gone; Istio only if told so.
    let percent = if by_readiness { 0.0 } else { f64::from(outliers.min_health_percent.max(0)) };
    draft.cluster.common_lb_config.get_or_insert_default().healthy_panic_threshold =
        Some(ty::v3::Percent { value: percent });
    if !outliers.outlier_detection_http_error_codes.is_empty() {
        let matcher = status_codes(&outliers.outlier_detection_http_error_codes);
        draft.http().outlier_detection =
            Some(upstreams::http_protocol_options::OutlierDetection { error_matcher: Some(matcher) });
    }
}

pub(super) fn outlier_message(outliers: &OutlierDetection) -> cluster::OutlierDetection {
    let enforcing = |limit: Option<u32>| limit.map(|limit| if limit > 0 { 100 } else { 0 });
    // The deprecated field counted gateway errors too.
    let gateway = outliers.consecutive_gateway_errors.or(positive(outliers.consecutive_errors));
    let mut message = cluster::OutlierDetection {
        interval: outliers.interval.map(Span::to_proto),
        base_ejection_time: outliers.base_ejection_time.map(Span::to_proto),
        max_ejection_percent: positive(outliers.max_ejection_percent),
        // Istio has no success-rate ejection; Envoy's is on by default.
        enforcing_success_rate: Some(0),
        consecutive_5xx: outliers.consecutive_5xx_errors,
        enforcing_consecutive_5xx: enforcing(outliers.consecutive_5xx_errors),
        consecutive_gateway_failure: gateway,
        enforcing_consecutive_gateway_failure: enforcing(gateway),
        ..cluster::OutlierDetection::default()
    };
    if outliers.split_external_local_origin_errors {
        message.split_external_local_origin_errors = true;
        if let Some(limit) = outliers.consecutive_local_origin_failures.filter(|limit| *limit > 0) {
            message.consecutive_local_origin_failure = Some(limit);
            message.enforcing_consecutive_local_origin_failure = Some(100);
        }
        message.enforcing_local_origin_success_rate = Some(0);
    }
    message
}

/// Matches responses with one of the codes.
fn status_codes(codes: &[u32]) -> matcher::MatchPredicate {
    use matcher::match_predicate::{MatchSet, Rule};
    let mut rules: Vec<matcher::MatchPredicate> = codes
        .iter()
        .map(|code| {
            let exact = ty::matcher::v3::StringMatcher {
                match_pattern: Some(ty::matcher::v3::string_matcher::MatchPattern::Exact(code.to_string())),
                ..ty::matcher::v3::StringMatcher::default()
            };
            let header = route::HeaderMatcher {
                name: ":status".to_owned(),
                header_match_specifier: Some(route::header_matcher::HeaderMatchSpecifier::StringMatch(exact)),
                ..route::HeaderMatcher::default()
            };
            let headers = matcher::HttpHeadersMatch { headers: vec![header] };
            matcher::MatchPredicate { rule: Some(Rule::HttpResponseHeadersMatch(headers)) }
        })
        .collect();
    match rules.len() {
        1 => rules.swap_remove(0),
        _ => matcher::MatchPredicate { rule: Some(Rule::OrMatch(MatchSet { rules })) },
    }
}

/// A number for which 0 means that nothing was said.
fn positive(value: i32) -> Option<u32> {
    u32::try_from(value).ok().filter(|value| *value > 0)
}

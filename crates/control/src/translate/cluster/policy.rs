//! Applies what DestinationRules say to a cluster.

use leno_api::proto::envoy::extensions::upstreams::http::v3 as upstreams;

use crate::model::destination_rule::{
    ConnectionPool, H2UpgradePolicy, HttpSettings, OutlierDetection, RetryBudget,
};
use crate::scope::policy::Effective;
use crate::translate::proto::{cluster, core, ty};
use crate::translate::resource::pack;

/// Where Envoy looks for the options of an HTTP upstream.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Which HTTP is spoken to the endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpVersion {
    /// None: bytes.
    None,
    /// HTTP/1.1.
    One,
    /// HTTP/2 from the first byte.
    Two,
    /// What the client of the proxy speaks.
    Downstream,
}

/// Applies a policy, or defaults where it is empty.
pub(crate) fn apply(message: &mut cluster::Cluster, effective: &Effective, version: HttpVersion) {
    let pool = effective.connection_pool.clone().unwrap_or_default();
    message.circuit_breakers = Some(circuit_breakers(&pool, effective.retry_budget.as_ref()));
    if let Some(tcp) = &pool.tcp {
        if let Some(timeout) = tcp.connect_timeout {
            message.connect_timeout = Some(timeout.to_proto());
        }
        if let Some(keepalive) = &tcp.tcp_keepalive {
            let seconds =
                |span: crate::model::duration::Span| u32::try_from(span.0.as_secs()).unwrap_or(u32::MAX);
            message.upstream_connection_options = Some(cluster::UpstreamConnectionOptions {
                tcp_keepalive: Some(core::TcpKeepalive {
                    keepalive_probes: (keepalive.probes > 0).then_some(keepalive.probes),
                    keepalive_time: keepalive.time.map(seconds),
                    keepalive_interval: keepalive.interval.map(seconds),
                }),
                ..cluster::UpstreamConnectionOptions::default()
            });
        }
    }
    if let Some(options) = http_options(&pool, version) {
        message.typed_extension_protocol_options.insert(HTTP_OPTIONS.to_owned(), pack(&options));
    }
    if let Some(outliers) = &effective.outlier_detection {
        message.outlier_detection = Some(outlier_detection(outliers));
        // Envoy would send to ejected endpoints once half are gone; Istio only if told so.
        let percent = f64::from(outliers.min_health_percent);
        message.common_lb_config = Some(cluster::cluster::CommonLbConfig {
            healthy_panic_threshold: Some(ty::v3::Percent { value: percent }),
            ..cluster::cluster::CommonLbConfig::default()
        });
    }
}

/// The limits; what is not limited by a rule is not limited at all, which in Envoy must be said.
fn circuit_breakers(pool: &ConnectionPool, budget: Option<&RetryBudget>) -> cluster::CircuitBreakers {
    let limit = |value: i32| Some(u32::try_from(value).ok().filter(|value| *value > 0).unwrap_or(u32::MAX));
    let http = pool.http.clone().unwrap_or_default();
    let thresholds = cluster::circuit_breakers::Thresholds {
        max_connections: limit(pool.tcp.as_ref().map_or(0, |tcp| tcp.max_connections)),
        max_pending_requests: limit(http.http1_max_pending_requests),
        max_requests: limit(http.http2_max_requests),
        max_retries: limit(http.max_retries),
        retry_budget: budget.map(|budget| cluster::circuit_breakers::thresholds::RetryBudget {
            budget_percent: Some(ty::v3::Percent { value: budget.percent.unwrap_or(20.0) }),
            min_retry_concurrency: Some(match budget.min_retry_concurrency {
                0 => 3,
                least => least,
            }),
            ..cluster::circuit_breakers::thresholds::RetryBudget::default()
        }),
        track_remaining: true,
        ..cluster::circuit_breakers::Thresholds::default()
    };
    cluster::CircuitBreakers { thresholds: vec![thresholds], ..cluster::CircuitBreakers::default() }
}

/// The options of an HTTP upstream; `None` if they are Envoy's defaults.
fn http_options(pool: &ConnectionPool, version: HttpVersion) -> Option<upstreams::HttpProtocolOptions> {
    use upstreams::http_protocol_options as options;
    if version == HttpVersion::None {
        return None;
    }
    let http = pool.http.clone().unwrap_or_default();
    let version = match http.h2_upgrade_policy {
        _ if http.use_client_protocol => HttpVersion::Downstream,
        Some(H2UpgradePolicy::Upgrade) => HttpVersion::Two,
        _ => version,
    };
    let tcp = pool.tcp.as_ref();
    let common = core::HttpProtocolOptions {
        idle_timeout: http
            .idle_timeout
            .or_else(|| tcp.and_then(|tcp| tcp.idle_timeout))
            .map(crate::model::duration::Span::to_proto),
        max_connection_duration: tcp
            .and_then(|tcp| tcp.max_connection_duration)
            .map(crate::model::duration::Span::to_proto),
        max_requests_per_connection: positive(http.max_requests_per_connection),
        ..core::HttpProtocolOptions::default()
    };
    let common = (common != core::HttpProtocolOptions::default()).then_some(common);
    let protocol = match version {
        HttpVersion::One | HttpVersion::None => {
            // HTTP/1.1 is what Envoy speaks unless told otherwise.
            common.as_ref()?;
            options::UpstreamProtocolOptions::ExplicitHttpConfig(options::ExplicitHttpConfig {
                protocol_config: Some(options::explicit_http_config::ProtocolConfig::HttpProtocolOptions(
                    core::Http1ProtocolOptions::default(),
                )),
            })
        }
        HttpVersion::Two => {
            options::UpstreamProtocolOptions::ExplicitHttpConfig(options::ExplicitHttpConfig {
                protocol_config: Some(options::explicit_http_config::ProtocolConfig::Http2ProtocolOptions(
                    http2_options(&http),
                )),
            })
        }
        HttpVersion::Downstream => {
            options::UpstreamProtocolOptions::UseDownstreamProtocolConfig(options::UseDownstreamHttpConfig {
                http_protocol_options: Some(core::Http1ProtocolOptions::default()),
                http2_protocol_options: Some(http2_options(&http)),
                ..options::UseDownstreamHttpConfig::default()
            })
        }
    };
    Some(upstreams::HttpProtocolOptions {
        common_http_protocol_options: common,
        upstream_protocol_options: Some(protocol),
        ..upstreams::HttpProtocolOptions::default()
    })
}

fn http2_options(http: &HttpSettings) -> core::Http2ProtocolOptions {
    core::Http2ProtocolOptions {
        max_concurrent_streams: positive(http.max_concurrent_streams),
        connection_keepalive: http.http2_keep_alive.as_ref().map(|keepalive| core::KeepaliveSettings {
            interval: keepalive.interval.map(crate::model::duration::Span::to_proto),
            // Envoy insists on a timeout where there is an interval.
            timeout: Some(keepalive.timeout.map_or(
                prost_types::Duration { seconds: 20, nanos: 0 },
                crate::model::duration::Span::to_proto,
            )),
            ..core::KeepaliveSettings::default()
        }),
        ..core::Http2ProtocolOptions::default()
    }
}

fn outlier_detection(outliers: &OutlierDetection) -> cluster::OutlierDetection {
    let mut message = cluster::OutlierDetection {
        interval: outliers.interval.map(crate::model::duration::Span::to_proto),
        base_ejection_time: outliers.base_ejection_time.map(crate::model::duration::Span::to_proto),
        max_ejection_percent: positive(outliers.max_ejection_percent),
        // Istio has no success-rate ejection; Envoy's is on by default.
        enforcing_success_rate: Some(0),
        consecutive_5xx: outliers.consecutive_5xx_errors,
        enforcing_consecutive_5xx: outliers
            .consecutive_5xx_errors
            .map(|limit| if limit > 0 { 100 } else { 0 }),
        split_external_local_origin_errors: outliers.split_external_local_origin_errors,
        ..cluster::OutlierDetection::default()
    };
    let gateway = outliers.consecutive_gateway_errors.or(positive(outliers.consecutive_errors));
    message.consecutive_gateway_failure = gateway;
    message.enforcing_consecutive_gateway_failure = gateway.map(|limit| if limit > 0 { 100 } else { 0 });
    if outliers.split_external_local_origin_errors
        && let Some(limit) = outliers.consecutive_local_origin_failures.filter(|limit| *limit > 0)
    {
        message.consecutive_local_origin_failure = Some(limit);
        message.enforcing_consecutive_local_origin_failure = Some(100);
        message.enforcing_local_origin_success_rate = Some(0);
    }
    message
}

fn positive(value: i32) -> Option<u32> {
    u32::try_from(value).ok().filter(|value| *value > 0)
}

//! What a DestinationRule must look like.

use std::collections::HashSet;

use super::{
    ConnectionPool, ConsistentHash, DestinationRule, LoadBalancer, OutlierDetection, RetryBudget, Simple,
    TrafficPolicy,
};
use crate::model::check::{Check, is_dns_label};
use crate::model::diagnostic::Finding;
use crate::model::duration::Span;

impl DestinationRule {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        check.at("host", |check| check.host(&self.host));
        if let Some(policy) = &self.traffic_policy {
            check.at("trafficPolicy", |check| traffic_policy(check, policy));
        }
        let mut names = HashSet::new();
        check.each("subsets", &self.subsets, |check, subset| {
            check.at("name", |check| {
                if !subset.name.split('.').all(is_dns_label) {
                    check.invalid(format!("{:?} is no subset name", subset.name));
                }
                if !names.insert(subset.name.clone()) {
                    check.invalid(format!("there is another subset {:?}", subset.name));
                }
            });
            check.at("labels", |check| check.labels(&subset.labels));
            if let Some(policy) = &subset.traffic_policy {
                check.at("trafficPolicy", |check| traffic_policy(check, policy));
            }
        });
        check.export_to(&self.export_to);
        if let Some(selector) = &self.workload_selector {
            check.at("workloadSelector", |check| {
                check.at("matchLabels", |check| check.labels(&selector.match_labels));
            });
        }
        check.into_findings()
    }
}

fn traffic_policy(check: &mut Check, policy: &TrafficPolicy) {
    port_policy(check, &policy.load_balancer, &policy.connection_pool, &policy.outlier_detection);
    let mut ports = HashSet::new();
    check.each("portLevelSettings", &policy.port_level_settings, |check, setting| {
        check.at("port", |check| match &setting.port {
            Some(port) => {
                check.at("number", |check| check.port(port.number));
                if !ports.insert(port.number) {
                    check.invalid(format!("there is another setting for port {}", port.number));
                }
            }
            None => check.invalid("a port is needed"),
        });
        port_policy(check, &setting.load_balancer, &setting.connection_pool, &setting.outlier_detection);
    });
    if let Some(budget) = &policy.retry_budget {
        check.at("retryBudget", |check| retry_budget(check, budget));
    }
}

fn port_policy(
    check: &mut Check,
    balancer: &Option<LoadBalancer>,
    pool: &Option<ConnectionPool>,
    outliers: &Option<OutlierDetection>,
) {
    if let Some(balancer) = balancer {
        check.at("loadBalancer", |check| load_balancer(check, balancer));
    }
    if let Some(pool) = pool {
        check.at("connectionPool", |check| connection_pool(check, pool));
    }
    if let Some(outliers) = outliers {
        check.at("outlierDetection", |check| outlier_detection(check, outliers));
    }
}

fn load_balancer(check: &mut Check, balancer: &LoadBalancer) {
    if balancer.simple.is_some() && balancer.consistent_hash.is_some() {
        check.invalid("only one of simple and consistentHash may be given");
    }
    if let Some(hash) = &balancer.consistent_hash {
        check.at("consistentHash", |check| consistent_hash(check, hash));
    }
    if balancer.simple == Some(Simple::LeastConn) {
        check.at("simple", |check| check.warn("deprecated", "LEAST_CONN is deprecated, use LEAST_REQUEST"));
    }
}

fn consistent_hash(check: &mut Check, hash: &ConsistentHash) {
    let keys = [
        hash.http_header_name.is_some(),
        hash.http_cookie.is_some(),
        hash.use_source_ip.is_some(),
        hash.http_query_parameter_name.is_some(),
    ];
    if keys.into_iter().filter(|given| *given).count() != 1 {
        check.invalid("one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName is needed");
    }
    if hash.ring_hash.is_some() && hash.maglev.is_some() {
        check.invalid("only one of ringHash and maglev may be given");
    }
}

fn connection_pool(check: &mut Check, pool: &ConnectionPool) {
    if let Some(tcp) = &pool.tcp {
        check.at("tcp", |check| {
            not_negative(check, "maxConnections", tcp.max_connections);
            positive(check, "connectTimeout", tcp.connect_timeout);
        });
    }
    if let Some(http) = &pool.http {
        check.at("http", |check| {
            not_negative(check, "http1MaxPendingRequests", http.http1_max_pending_requests);
            not_negative(check, "http2MaxRequests", http.http2_max_requests);
            not_negative(check, "maxRequestsPerConnection", http.max_requests_per_connection);
            not_negative(check, "maxRetries", http.max_retries);
            not_negative(check, "maxConcurrentStreams", http.max_concurrent_streams);
            if let Some(keepalive) = &http.http2_keep_alive {
                check.at("http2KeepAlive", |check| {
                    positive(check, "interval", keepalive.interval);
                    positive(check, "timeout", keepalive.timeout);
                });
            }
        });
    }
}

fn outlier_detection(check: &mut Check, outliers: &OutlierDetection) {
    not_negative(check, "consecutiveErrors", outliers.consecutive_errors);
    positive(check, "interval", outliers.interval);
    positive(check, "baseEjectionTime", outliers.base_ejection_time);
    for (field, percent) in [
        ("maxEjectionPercent", outliers.max_ejection_percent),
        ("minHealthPercent", outliers.min_health_percent),
    ] {
        if !(0..=100).contains(&percent) {
            check.at(field, |check| check.invalid(format!("{percent} is not between 0 and 100")));
        }
    }
    if outliers.consecutive_errors > 0 {
        check.at("consecutiveErrors", |check| {
            check.warn("deprecated", "is deprecated, use consecutiveGatewayErrors");
        });
    }
}

fn retry_budget(check: &mut Check, budget: &RetryBudget) {
    if let Some(percent) = budget.percent
        && !(0.0..=100.0).contains(&percent)
    {
        check.at("percent", |check| check.invalid(format!("{percent} is not between 0 and 100")));
    }
}

fn not_negative(check: &mut Check, field: &str, value: i32) {
    if value < 0 {
        check.at(field, |check| check.invalid(format!("{value} is negative")));
    }
}

fn positive(check: &mut Check, field: &str, value: Option<Span>) {
    if value.is_some_and(Span::is_zero) {
        check.at(field, |check| check.invalid("must be more than 0"));
    }
}

//! What a DestinationRule must look like.

use std::collections::HashSet;

use super::balancer::load_balancer;
use super::{
    ClientTls, ClientTlsMode, ConnectionPool, DestinationRule, LoadBalancer, OutlierDetection, RetryBudget,
    TrafficPolicy, Tunnel,
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
    port_policy(
        check,
        &policy.load_balancer,
        &policy.connection_pool,
        &policy.outlier_detection,
        &policy.tls,
    );
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
        port_policy(
            check,
            &setting.load_balancer,
            &setting.connection_pool,
            &setting.outlier_detection,
            &setting.tls,
        );
    });
    if let Some(settings) = &policy.tunnel {
        check.at("tunnel", |check| tunnel(check, settings));
        if policy.proxy_protocol.is_some() {
            check.at("proxyProtocol", |check| check.invalid("must not be given beside tunnel"));
        }
    }
    if let Some(budget) = &policy.retry_budget {
        check.at("retryBudget", |check| retry_budget(check, budget));
    }
}

fn port_policy(
    check: &mut Check,
    balancer: &Option<LoadBalancer>,
    pool: &Option<ConnectionPool>,
    outliers: &Option<OutlierDetection>,
    tls: &Option<ClientTls>,
) {
    if let Some(tls) = tls {
        check.at("tls", |check| client_tls(check, tls));
    }
    if let Some(balancer) = balancer {
        check.at("loadBalancer", |check| load_balancer(check, balancer, outliers.is_some()));
    }
    if let Some(pool) = pool {
        check.at("connectionPool", |check| connection_pool(check, pool));
    }
    if let Some(outliers) = outliers {
        check.at("outlierDetection", |check| outlier_detection(check, outliers));
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

fn tunnel(check: &mut Check, settings: &Tunnel) {
    check.at("protocol", |check| {
        if !matches!(settings.protocol.as_str(), "" | "CONNECT" | "POST") {
            check.invalid(format!("{:?} is neither CONNECT nor POST", settings.protocol));
        }
    });
    check.at("targetHost", |check| {
        check.host(&settings.target_host);
        if settings.target_host.starts_with('*') {
            check.invalid("must be a single host");
        }
    });
    check.at("targetPort", |check| check.port(settings.target_port));
}

fn client_tls(check: &mut Check, tls: &ClientTls) {
    let mode = match tls.mode {
        Some(mode @ (ClientTlsMode::Simple | ClientTlsMode::Mutual)) => mode,
        None | Some(ClientTlsMode::Disable | ClientTlsMode::IstioMutual) => return,
    };
    let given = !tls.credential_name.is_empty();
    if tls.insecure_skip_verify == Some(true) {
        let credential = given && mode == ClientTlsMode::Simple;
        if credential || !tls.ca_certificates.is_empty() || !tls.subject_alt_names.is_empty() {
            check.at("insecureSkipVerify", |check| {
                check.invalid("leaves nothing to compare: no roots and names may be given beside it");
            });
        }
    }
    let files = [&tls.client_certificate, &tls.private_key, &tls.ca_certificates, &tls.ca_crl];
    if given && files.iter().any(|path| !path.is_empty()) {
        check.at("credentialName", |check| check.invalid("files must not be given beside it"));
    }
    if mode == ClientTlsMode::Mutual && !given {
        for (field, path) in
            [("clientCertificate", &tls.client_certificate), ("privateKey", &tls.private_key)]
        {
            if path.is_empty() {
                check.at(field, |check| check.invalid("is needed, or a credentialName"));
            }
        }
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

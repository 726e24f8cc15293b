//! What a DestinationRule must look like.

use std::collections::HashSet;

use super::balancer::load_balancer;
use super::{
    ClientTls, ClientTlsMode, ConnectionPool, DestinationRule, H2UpgradePolicy, HttpSettings, LoadBalancer,
    OutlierDetection, PortPolicy, RetryBudget, TrafficPolicy, Tunnel,
};
use crate::model::check::{Check, is_dns_label};
use crate::model::diagnostic::Finding;

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
            check.selector_at("workloadSelector", "matchLabels", &selector.match_labels);
        }
        if self.workload_selector.is_some() && self.export_to.iter().any(|target| target == "*") {
            check.invalid_at("exportTo", "a rule for some workloads cannot be for other namespaces");
        }
        check.into_findings()
    }
}

fn traffic_policy(check: &mut Check, policy: &TrafficPolicy) {
    if *policy == TrafficPolicy::default() {
        check.invalid("must have a field");
    }
    port_policy(
        check,
        policy.load_balancer.as_ref(),
        policy.connection_pool.as_ref(),
        policy.outlier_detection.as_ref(),
        policy.tls.as_ref(),
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
        if (PortPolicy { port: None, ..setting.clone() }) == PortPolicy::default() {
            check.invalid("must have a field besides port");
        }
        port_policy(
            check,
            setting.load_balancer.as_ref(),
            setting.connection_pool.as_ref(),
            setting.outlier_detection.as_ref(),
            setting.tls.as_ref(),
        );
    });
    if policy.tunnel.is_some() && policy.proxy_protocol.is_some() {
        check.invalid("only one of tunnel and proxyProtocol may be given");
    }
    if let Some(tunnel) = &policy.tunnel {
        check.at("tunnel", |check| tunnel_settings(check, tunnel));
    }
    if let Some(budget) = &policy.retry_budget {
        check.at("retryBudget", |check| retry_budget(check, budget));
    }
}

fn port_policy(
    check: &mut Check,
    balancer: Option<&LoadBalancer>,
    pool: Option<&ConnectionPool>,
    outliers: Option<&OutlierDetection>,
    tls: Option<&ClientTls>,
) {
    if let Some(balancer) = balancer {
        check.at("loadBalancer", |check| load_balancer(check, balancer, outliers.is_some()));
    }
    if let Some(pool) = pool {
        check.at("connectionPool", |check| pool.check(check));
    }
    if let Some(outliers) = outliers {
        check.at("outlierDetection", |check| outliers.check(check));
    }
    if let Some(tls) = tls {
        check.at("tls", |check| tls.check(check));
    }
}

fn tunnel_settings(check: &mut Check, tunnel: &Tunnel) {
    if !matches!(tunnel.protocol.as_str(), "" | "CONNECT" | "POST") {
        check.invalid_at("protocol", format!("{:?} is neither CONNECT nor POST", tunnel.protocol));
    }
    check.at("targetHost", |check| {
        check.host(&tunnel.target_host);
        if tunnel.target_host.contains('*') {
            check.invalid("wildcards are not possible here");
        }
    });
    check.at("targetPort", |check| check.port(tunnel.target_port));
}

impl ConnectionPool {
    /// Checks the limits, wherever they stand.
    pub(crate) fn check(&self, check: &mut Check) {
        if self.tcp.is_none() && self.http.is_none() {
            check.invalid("one of tcp and http is needed");
        }
        if let Some(tcp) = &self.tcp {
            check.at("tcp", |check| {
                check.not_negative("maxConnections", tcp.max_connections);
                check.duration("connectTimeout", tcp.connect_timeout);
                check.duration("maxConnectionDuration", tcp.max_connection_duration);
                // 0 means for ever.
                check.duration("idleTimeout", tcp.idle_timeout.filter(|timeout| !timeout.is_zero()));
                if let Some(keepalive) = &tcp.tcp_keepalive {
                    check.at("tcpKeepalive", |check| {
                        check.duration("time", keepalive.time);
                        check.duration("interval", keepalive.interval);
                    });
                }
            });
        }
        if let Some(http) = &self.http {
            check.at("http", |check| http_settings(check, http));
        }
    }
}

fn http_settings(check: &mut Check, http: &HttpSettings) {
    check.not_negative("http1MaxPendingRequests", http.http1_max_pending_requests);
    check.not_negative("http2MaxRequests", http.http2_max_requests);
    check.not_negative("maxRequestsPerConnection", http.max_requests_per_connection);
    check.not_negative("maxRetries", http.max_retries);
    check.not_negative("maxConcurrentStreams", http.max_concurrent_streams);
    check.duration("idleTimeout", http.idle_timeout);
    if http.h2_upgrade_policy == Some(H2UpgradePolicy::Upgrade) && http.use_client_protocol {
        check.invalid_at("useClientProtocol", "contradicts h2UpgradePolicy UPGRADE");
    }
    if let Some(keepalive) = &http.http2_keep_alive {
        check.at("http2KeepAlive", |check| {
            for (field, value) in [("interval", keepalive.interval), ("timeout", keepalive.timeout)] {
                if value.is_none() {
                    check.invalid_at(field, "is needed");
                }
                check.duration(field, value);
            }
        });
    }
}

impl OutlierDetection {
    /// Checks the settings, wherever they stand.
    pub(crate) fn check(&self, check: &mut Check) {
        check.not_negative("consecutiveErrors", self.consecutive_errors);
        check.duration("interval", self.interval);
        check.duration("baseEjectionTime", self.base_ejection_time);
        for (field, percent) in
            [("maxEjectionPercent", self.max_ejection_percent), ("minHealthPercent", self.min_health_percent)]
        {
            if !(0..=100).contains(&percent) {
                check.invalid_at(field, format!("{percent} is not between 0 and 100"));
            }
        }
        if self.consecutive_errors > 0 {
            check.warn_at("consecutiveErrors", "deprecated", "is deprecated, use consecutiveGatewayErrors");
        }
        if !self.split_external_local_origin_errors && self.consecutive_local_origin_failures > Some(0) {
            check.invalid_at("consecutiveLocalOriginFailures", "needs splitExternalLocalOriginErrors");
        }
    }
}

impl ClientTls {
    /// Checks the settings, wherever they stand.
    pub(crate) fn check(&self, check: &mut Check) {
        let files = [
            ("clientCertificate", !self.client_certificate.is_empty()),
            ("privateKey", !self.private_key.is_empty()),
            ("caCertificates", !self.ca_certificates.is_empty()),
            ("caCrl", !self.ca_crl.is_empty()),
        ];
        let to_third_party = matches!(self.mode, Some(ClientTlsMode::Simple | ClientTlsMode::Mutual));
        if self.insecure_skip_verify == Some(true) && to_third_party {
            let by_credential = self.mode == Some(ClientTlsMode::Simple) && !self.credential_name.is_empty();
            if by_credential || !self.ca_certificates.is_empty() || !self.subject_alt_names.is_empty() {
                check.invalid_at("insecureSkipVerify", "contradicts what says whom to believe");
            }
        }
        if to_third_party && !self.credential_name.is_empty() {
            for (field, _) in files.into_iter().filter(|(_, given)| *given) {
                check.invalid_at(field, "cannot stand beside credentialName");
            }
        } else if self.mode == Some(ClientTlsMode::Mutual) {
            for (field, _) in files.into_iter().take(2).filter(|(_, given)| !*given) {
                check.invalid_at(field, "is needed for MUTUAL, or a credentialName");
            }
        }
    }
}

fn retry_budget(check: &mut Check, budget: &RetryBudget) {
    if let Some(percent) = budget.percent
        && !(0.0..=100.0).contains(&percent)
    {
        check.invalid_at("percent", format!("{percent} is not between 0 and 100"));
    }
}

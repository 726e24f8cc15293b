//! What the settings of the mesh must look like.

use std::collections::HashSet;
use std::time::Duration;

use leno_tls::TrustBundle;
use serde_json::{Map, Value};

use super::provider::{AuthzRequestBody, ExtensionProvider, Use};
use super::proxy::{ConnectionSettings, PrivateKeyProvider, ProxyConfig, Tracing};
use super::{AccessLogEncoding, MeshConfig, OutboundMode};
use crate::model::check::{Check, is_dns_label};
use crate::model::destination_rule::balancer;
use crate::model::diagnostic::Finding;

/// Istio's bounds for `connectTimeout`.
const CONNECT_TIMEOUT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(3600));

/// Curves that `tlsDefaults.ecdhCurves` may name.
const CURVES: [&str; 7] =
    ["P-224", "P-256", "P-521", "P-384", "X25519", "X25519Kyber768Draft00", "X25519MLKEM768"];

impl MeshConfig {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::default();
        self.check(&mut check);
        check.into_findings()
    }

    fn check(&self, check: &mut Check) {
        if self.access_log_encoding == AccessLogEncoding::Json
            && !self.access_log_format.is_empty()
            && serde_json::from_str::<Map<String, Value>>(&self.access_log_format).is_err()
        {
            check.invalid_at("accessLogFormat", "must be a JSON object when the encoding is JSON");
        }
        for (field, port) in [
            ("proxyListenPort", self.proxy_listen_port),
            ("proxyInboundListenPort", self.proxy_inbound_listen_port),
        ] {
            check.at(field, |check| number_of_port(check, port));
        }
        if self.proxy_http_port != 0 {
            check.at("proxyHttpPort", |check| number_of_port(check, self.proxy_http_port));
        }
        let (least, most) = CONNECT_TIMEOUT;
        if !(least..=most).contains(&self.connect_timeout.0) {
            check.invalid_at("connectTimeout", "is not between 1ms and 1h");
        }
        check.duration("connectTimeout", Some(self.connect_timeout));
        let outbound = &self.outbound_traffic_policy;
        if let Some(tls) = &outbound.tls {
            check.at("outboundTrafficPolicy", |check| {
                check.at("tls", |check| tls.check(check));
                if outbound.mode != OutboundMode::AllowAnyDynamicDns {
                    check.warn_at("tls", "no-effect", "is for the mode ALLOW_ANY_DYNAMIC_DNS alone");
                }
            });
        }
        check.at("defaultConfig", |check| self.default_config.check(check));
        if let Some(locality) = &self.locality_lb_setting {
            check.at("localityLbSetting", |check| balancer::locality(check, locality, true));
        }
        if let Some(zones) = &self.zone_aware_lb_setting {
            check.at("zoneAwareLbSetting", |check| balancer::zone_aware(check, zones, true));
        }
        check.each("serviceSettings", &self.service_settings, |check, settings| {
            check.each("hosts", &settings.hosts, |check, host| check.host(host));
        });
        check.at("trustDomain", |check| trust_domain(check, &self.trust_domain));
        check.each("trustDomainAliases", &self.trust_domain_aliases, |check, name| trust_domain(check, name));
        check.each("caCertificates", &self.ca_certificates, |check, certificate| {
            check.exactly_one(&[
                ("pem", certificate.pem.is_some()),
                ("spiffeBundleUrl", certificate.spiffe_bundle_url.is_some()),
            ]);
            if let Some(pem) = &certificate.pem
                && let Err(why) = TrustBundle::parse(pem.as_bytes())
            {
                check.at("pem", |check| check.warn("invalid-value", format!("is left out: {why}")));
            }
        });
        self.check_tls(check);
        if let Some(policy) = &self.default_traffic_policy {
            check.at("defaultTrafficPolicy", |check| {
                if let Some(pool) = &policy.connection_pool {
                    check.at("connectionPool", |check| pool.check(check));
                }
                if let Some(outliers) = &policy.outlier_detection {
                    check.at("outlierDetection", |check| outliers.check(check));
                }
            });
        }
        if let Some(retries) = &self.default_http_retry_policy {
            check.at("defaultHttpRetryPolicy", |check| retries.check(check));
        }
        let mut names = HashSet::new();
        check.each("extensionProviders", &self.extension_providers, |check, provider| {
            if provider.name.is_empty() {
                check.invalid_at("name", "must not be empty");
            } else if !names.insert(provider.name.clone()) {
                check.invalid_at("name", format!("there is another provider {:?}", provider.name));
            }
            provider.check(check);
        });
        let defaults = &self.default_providers;
        check.at("defaultProviders", |check| {
            let lists = [
                ("tracing", &defaults.tracing, Use::Tracing),
                ("metrics", &defaults.metrics, Use::Metrics),
                ("accessLogging", &defaults.access_logging, Use::Logs),
            ];
            for (field, names, wanted) in lists {
                check.each(field, names, |check, name| match self.provider(name) {
                    None => check.warn("no-effect", format!("there is no extension provider {name:?}")),
                    Some(provider) if !provider.is_for(wanted) => {
                        check.warn("no-effect", format!("the provider {name:?} is not for {wanted}"));
                    }
                    Some(_) => {}
                });
            }
        });
    }

    fn check_tls(&self, check: &mut Check) {
        if self.mesh_mtls.as_ref().is_some_and(|tls| !tls.ecdh_curves.is_empty()) {
            check.at("meshMTLS", |check| check.invalid_at("ecdhCurves", "cannot be chosen inside the mesh"));
        }
        let Some(tls) = &self.tls_defaults else { return };
        let mut seen = HashSet::new();
        check.at("tlsDefaults", |check| {
            check.each("ecdhCurves", &tls.ecdh_curves, |check, curve| {
                if !curve.is_empty() && !CURVES.contains(&curve.as_str()) {
                    check.warn("no-effect", format!("{curve:?} is not known, has no effect"));
                } else if !seen.insert(curve.clone()) {
                    check.warn("duplicate", format!("{curve:?} is there twice"));
                }
            });
        });
    }
}

fn number_of_port(check: &mut Check, port: i32) {
    check.port(u32::try_from(port).unwrap_or_default());
}

fn trust_domain(check: &mut Check, name: &str) {
    if !name.strip_suffix('.').unwrap_or(name).split('.').all(is_dns_label) {
        check.invalid(format!("{name:?} is no trust domain"));
    }
}

/// `HOST:PORT`.
fn address(check: &mut Check, field: &str, address: &str) {
    if address.is_empty() {
        return;
    }
    let good = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
    // `$(HOST_IP):8126` and the like are filled in by who starts the proxy.
    if !good && !address.contains("$(") {
        check.invalid_at(field, format!("{address:?} must be HOST:PORT"));
    }
}

impl ProxyConfig {
    /// Checks what a proxy is started with.
    pub(crate) fn check(&self, check: &mut Check) {
        check.duration("drainDuration", Some(self.drain_duration));
        if self.drain_duration.0.subsec_nanos() > 0 {
            check.invalid_at("drainDuration", "must be a number of seconds");
        }
        if self.discovery_address.is_empty() {
            check.invalid_at("discoveryAddress", "must not be empty");
        }
        address(check, "discoveryAddress", &self.discovery_address);
        address(check, "zipkinAddress", &self.zipkin_address);
        address(check, "statsdUdpAddress", &self.statsd_udp_address);
        address(check, "envoyMetricsServiceAddress", &self.envoy_metrics_service_address);
        for (field, service) in [
            ("envoyAccessLogService", &self.envoy_access_log_service),
            ("envoyMetricsService", &self.envoy_metrics_service),
        ] {
            if let Some(service) = service {
                check.at(field, |check| {
                    address(check, "address", &service.address);
                    if let Some(tls) = &service.tls_settings {
                        check.at("tlsSettings", |check| tls.check(check));
                    }
                });
            }
        }
        for (field, port) in [("proxyAdminPort", self.proxy_admin_port), ("statusPort", self.status_port)] {
            check.at(field, |check| number_of_port(check, port));
        }
        check.not_negative("concurrency", self.concurrency.unwrap_or_default());
        if let Some(tracing) = &self.tracing {
            check.at("tracing", |check| check_tracing(check, tracing));
        }
        if let Some(probe) = &self.readiness_probe {
            check.at("readinessProbe", |check| probe.check(check));
        }
        if let Some(provider) = &self.private_key_provider {
            check.at("privateKeyProvider", |check| private_key_provider(check, provider));
        }
        if let Some(settings) = &self.connection_settings {
            check.at("connectionSettings", |check| connection_settings(check, settings));
        }
        if let Some(matcher) = &self.proxy_stats_matcher {
            check.at("proxyStatsMatcher", |check| {
                check.each("inclusionRegexps", &matcher.inclusion_regexps, |check, regex| check.regex(regex));
            });
        }
    }
}

fn check_tracing(check: &mut Check, tracing: &Tracing) {
    check.at_most_one(&[
        ("zipkin", tracing.zipkin.is_some()),
        ("lightstep", tracing.lightstep.is_some()),
        ("datadog", tracing.datadog.is_some()),
        ("stackdriver", tracing.stackdriver.is_some()),
        ("openCensusAgent", tracing.open_census_agent.is_some()),
    ]);
    let addresses = [
        ("zipkin", tracing.zipkin.as_ref().map(|it| &it.address)),
        ("lightstep", tracing.lightstep.as_ref().map(|it| &it.address)),
        ("datadog", tracing.datadog.as_ref().map(|it| &it.address)),
    ];
    for (field, text) in addresses {
        if let Some(text) = text {
            check.at(field, |check| address(check, "address", text));
        }
    }
    if !(0.0..=100.0).contains(&tracing.sampling) {
        check.invalid_at("sampling", format!("{} is not between 0 and 100", tracing.sampling));
    }
    if let Some(tls) = &tracing.tls_settings {
        check.at("tlsSettings", |check| tls.check(check));
    }
    check.at("customTags", |check| {
        for (name, tag) in &tracing.custom_tags {
            check.key(name, |check| {
                check.exactly_one(&[
                    ("literal", tag.literal.is_some()),
                    ("environment", tag.environment.is_some()),
                    ("header", tag.header.is_some()),
                ]);
            });
        }
    });
}

fn private_key_provider(check: &mut Check, provider: &PrivateKeyProvider) {
    check.exactly_one(&[("cryptomb", provider.cryptomb.is_some()), ("qat", provider.qat.is_some())]);
    let delays = [
        ("cryptomb", provider.cryptomb.as_ref().map(|it| it.poll_delay)),
        ("qat", provider.qat.as_ref().map(|it| it.poll_delay)),
    ];
    for (field, delay) in delays {
        let Some(delay) = delay else { continue };
        if delay.is_none_or(|delay| delay.is_zero()) {
            check.at(field, |check| check.invalid_at("pollDelay", "must be more than 0"));
        }
    }
}

fn connection_settings(check: &mut Check, settings: &ConnectionSettings) {
    let numbers = [
        ("listenerPerConnectionBufferLimitBytes", settings.listener_per_connection_buffer_limit_bytes),
        ("clusterPerConnectionBufferLimitBytes", settings.cluster_per_connection_buffer_limit_bytes),
        ("httpMaxConcurrentStreams", settings.http_max_concurrent_streams),
        ("http2InitialStreamWindowSize", settings.http2_initial_stream_window_size),
        ("http2InitialConnectionWindowSize", settings.http2_initial_connection_window_size),
        ("listenerConnectionLimit", settings.listener_connection_limit),
        ("globalDownstreamConnectionLimit", settings.global_downstream_connection_limit),
    ];
    for (field, number) in numbers {
        check.not_negative(field, number.unwrap_or_default());
    }
}

impl ExtensionProvider {
    /// Checks a provider; a faulty one matters only to those who refer to it, so that it is a
    /// warning, as in Istio.
    fn check(&self, check: &mut Check) {
        let providers = [
            ("envoyExtAuthzHttp", self.envoy_ext_authz_http.is_some()),
            ("envoyExtAuthzGrpc", self.envoy_ext_authz_grpc.is_some()),
            ("zipkin", self.zipkin.is_some()),
            ("lightstep", self.lightstep.is_some()),
            ("datadog", self.datadog.is_some()),
            ("stackdriver", self.stackdriver.is_some()),
            ("opencensus", self.opencensus.is_some()),
            ("skywalking", self.skywalking.is_some()),
            ("opentelemetry", self.opentelemetry.is_some()),
            ("prometheus", self.prometheus.is_some()),
            ("envoyFileAccessLog", self.envoy_file_access_log.is_some()),
            ("envoyHttpAls", self.envoy_http_als.is_some()),
            ("envoyTcpAls", self.envoy_tcp_als.is_some()),
            ("envoyOtelAls", self.envoy_otel_als.is_some()),
            ("sds", self.sds.is_some()),
        ];
        match providers.iter().filter(|(_, given)| *given).count() {
            0 => check.warn("no-effect", "says not what it is"),
            1 => {}
            _ => check.invalid("only one sort of provider may be given"),
        }
        if let Some(http) = &self.envoy_ext_authz_http {
            check.at("envoyExtAuthzHttp", |check| {
                service(check, &http.service, http.port);
                status(check, &http.status_on_error);
                if !http.path_prefix.is_empty() && !http.path_prefix.starts_with('/') {
                    check.warn_at("pathPrefix", "invalid-provider", "must begin with /");
                }
                request_body(check, http.include_request_body_in_check.as_ref());
            });
        }
        if let Some(grpc) = &self.envoy_ext_authz_grpc {
            check.at("envoyExtAuthzGrpc", |check| {
                service(check, &grpc.service, grpc.port);
                status(check, &grpc.status_on_error);
                request_body(check, grpc.include_request_body_in_check.as_ref());
            });
        }
        let services = [
            ("zipkin", self.zipkin.as_ref().map(|it| (&it.service, it.port))),
            ("lightstep", self.lightstep.as_ref().map(|it| (&it.service, it.port))),
            ("datadog", self.datadog.as_ref().map(|it| (&it.service, it.port))),
            ("opencensus", self.opencensus.as_ref().map(|it| (&it.service, it.port))),
            ("skywalking", self.skywalking.as_ref().map(|it| (&it.service, it.port))),
            ("opentelemetry", self.opentelemetry.as_ref().map(|it| (&it.service, it.port))),
            ("envoyHttpAls", self.envoy_http_als.as_ref().map(|it| (&it.service, it.port))),
            ("envoyTcpAls", self.envoy_tcp_als.as_ref().map(|it| (&it.service, it.port))),
            ("envoyOtelAls", self.envoy_otel_als.as_ref().map(|it| (&it.service, it.port))),
            ("sds", self.sds.as_ref().map(|it| (&it.service, it.port))),
        ];
        for (field, given) in services {
            if let Some((name, port)) = given {
                check.at(field, |check| service(check, name, port));
            }
        }
    }
}

/// `HOST` or `NAMESPACE/HOST`, and a port.
fn service(check: &mut Check, name: &str, port: u32) {
    let host = name.split_once('/').map_or(name, |(_, host)| host);
    if host.is_empty() || host.contains('*') || !crate::model::check::is_host(host) {
        check.warn_at("service", "invalid-provider", "must be HOST or NAMESPACE/HOST");
    }
    if !(1..=65535).contains(&port) {
        check.warn_at("port", "invalid-provider", "is not between 1 and 65535");
    }
}

/// A status code as text.
fn status(check: &mut Check, code: &str) {
    if !code.is_empty() && !code.parse::<u16>().is_ok_and(|code| (100..600).contains(&code)) {
        check.warn_at("statusOnError", "invalid-provider", "is no status code");
    }
}

fn request_body(check: &mut Check, body: Option<&AuthzRequestBody>) {
    if body.is_some_and(|body| body.max_request_bytes == 0) {
        check.at("includeRequestBodyInCheck", |check| {
            check.warn_at("maxRequestBytes", "invalid-provider", "must be more than 0");
        });
    }
}

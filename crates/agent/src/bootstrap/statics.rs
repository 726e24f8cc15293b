//! The clusters and listeners that a proxy has before it has heard of anything.

use serde_json::{Value, json};

use super::{Families, Inputs};
use crate::proxy_config::{Keepalive, Remote};
use crate::sds::Sources;

const TYPE: &str = "type.googleapis.com/envoy.extensions";

pub(super) fn socket(address: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": address, "port_value": port } })
}

/// `HOST:PORT` as an address; `$(HOST_IP)` is the node's.
pub(super) fn address(text: &str, host_ip: &str) -> Option<Value> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.trim_matches(['[', ']']);
    let host = if host == "$(HOST_IP)" && !host_ip.is_empty() { host_ip } else { host };
    let port: u16 = port.parse().ok()?;
    Some(socket(host, port))
}

/// HTTP/2 from the first byte.
fn http2() -> Value {
    json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": format!("{TYPE}.upstreams.http.v3.HttpProtocolOptions"),
            "explicit_http_config": { "http2_protocol_options": {} },
        },
    })
}

fn endpoint(name: &str, address: &Value) -> Value {
    json!({
        "cluster_name": name,
        "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
    })
}

fn at_once(name: &str, timeout: &str, address: &Value) -> Value {
    json!({
        "name": name,
        "alt_stat_name": format!("{name};"),
        "type": "STATIC",
        "connect_timeout": timeout,
        "lb_policy": "ROUND_ROBIN",
        "load_assignment": endpoint(name, address),
    })
}

fn by_name(name: &str, families: &Families, address: &Value) -> Value {
    json!({
        "name": name,
        "alt_stat_name": format!("{name};"),
        "type": "STRICT_DNS",
        "respect_dns_ttl": true,
        "dns_lookup_family": families.lookup,
        "connect_timeout": "1s",
        "lb_policy": "ROUND_ROBIN",
        "load_assignment": endpoint(name, address),
    })
}

fn pipe(path: &str) -> Value {
    json!({ "pipe": { "path": path } })
}

pub(super) fn clusters(inputs: &Inputs<'_>, families: &Families) -> Result<Vec<Value>, Vec<String>> {
    let Inputs { config, environment, .. } = *inputs;
    let admin = socket(families.localhost, config.proxy_admin_port);
    let own = socket(families.localhost, config.status_port);
    let secrets = |name: &str, path: &str| {
        let mut cluster = at_once(name, "1s", &pipe(path));
        cluster["typed_extension_protocol_options"] = http2();
        cluster
    };
    let sds = secrets("sds-grpc", &inputs.secrets.workload);
    let mut xds = at_once("xds-grpc", "1s", &pipe(&format!("{}/XDS", config.config_path)));
    let most = |priority: &str| {
        json!({
            "priority": priority,
            "max_connections": 100_000,
            "max_pending_requests": 100_000,
            "max_requests": 100_000,
        })
    };
    xds["circuit_breakers"] = json!({ "thresholds": [most("DEFAULT"), most("HIGH")] });
    xds["upstream_connection_options"] = json!({ "tcp_keepalive": { "keepalive_time": 300 } });
    xds["max_requests_per_connection"] = json!(1);
    xds["typed_extension_protocol_options"] = http2();
    let mut all =
        vec![at_once("prometheus_stats", "0.250s", &admin), at_once("agent", "0.250s", &own), sds, xds];
    if let Some(path) = &inputs.secrets.files {
        all.insert(3, secrets("sds-files-grpc", path));
    }

    let mut faults = Vec::new();
    if let Some(tracing) = &config.tracing {
        let zipkin = tracing.zipkin.as_ref().map(|it| ("zipkin", it));
        let tracer = zipkin.or_else(|| tracing.datadog.as_ref().map(|it| ("datadog_agent", it)));
        if let Some((name, at)) = tracer
            && let Some(address) = address(&at.address, &environment.host_ip)
        {
            let mut cluster = by_name(name, families, &address);
            put_tls(&mut cluster, tracing.tls_settings.as_ref(), (name, false), inputs.secrets, &mut faults);
            all.push(cluster);
        }
    }
    for (name, service) in [
        ("envoy_metrics_service", &config.envoy_metrics_service),
        ("envoy_accesslog_service", &config.envoy_access_log_service),
    ] {
        let Some(service) = service else { continue };
        if let Some(address) = address(&service.address, &environment.host_ip) {
            all.push(remote(name, service, families, &address, inputs.secrets, &mut faults));
        }
    }
    if inputs.self_discovery() {
        all.push(local_cluster());
    }
    if faults.is_empty() { Ok(all) } else { Err(faults) }
}

fn remote(
    name: &str,
    service: &Remote,
    families: &Families,
    address: &Value,
    from: &Sources,
    faults: &mut Vec<String>,
) -> Value {
    let mut cluster = by_name(name, families, address);
    cluster["typed_extension_protocol_options"] = http2();
    put_tls(&mut cluster, service.tls_settings.as_ref(), (name, true), from, faults);
    if let Some(Keepalive { probes, time, interval }) = &service.tcp_keepalive {
        let mut keepalive = json!({});
        if *probes > 0 {
            keepalive["keepalive_probes"] = json!(probes);
        }
        for (name, span) in [("keepalive_time", time), ("keepalive_interval", interval)] {
            if let Some(seconds) = span.map(|span| span.as_secs()).filter(|seconds| *seconds > 0) {
                keepalive[name] = json!(seconds);
            }
        }
        cluster["upstream_connection_options"] = json!({ "tcp_keepalive": keepalive });
    }
    cluster
}

/// The proxy's own service, by which it balances with an eye to zones.
fn local_cluster() -> Value {
    json!({
        "name": "local_cluster",
        "alt_stat_name": "local_cluster;",
        "type": "EDS",
        "connect_timeout": "1s",
        "load_balancing_policy": { "policies": [{ "typed_extension_config": {
            "name": "envoy.load_balancing_policies.least_request",
            "typed_config": {
                "@type": format!("{TYPE}.load_balancing_policies.least_request.v3.LeastRequest"),
                "locality_lb_config": { "zone_aware_lb_config": { "min_cluster_size": "1" } },
            },
        } }] },
        "eds_cluster_config": {
            "eds_config": { "ads": {}, "resource_api_version": "V3" },
            "service_name": "local_cluster",
        },
    })
}

/// Where certificates come from, as references to them say it.
fn sds_config(cluster: &str) -> Value {
    json!({
        "api_config_source": {
            "api_type": "GRPC",
            "grpc_services": [{ "envoy_grpc": { "cluster_name": cluster } }],
            "set_node_on_first_message_only": true,
            "transport_api_version": "V3",
        },
        "resource_api_version": "V3",
    })
}

fn secret(name: &str, from: &Sources) -> Value {
    let is_ours = name.starts_with("file-") && from.files.is_some();
    let cluster = if is_ours { "sds-files-grpc" } else { "sds-grpc" };
    json!({ "name": name, "sds_config": sds_config(cluster) })
}

/// TLS to a service, by a DestinationRule's settings.
fn put_tls(
    cluster: &mut Value,
    settings: Option<&Value>,
    (name, h2): (&str, bool),
    from: &Sources,
    faults: &mut Vec<String>,
) {
    let Some(settings) = settings else { return };
    let text = |field: &str| settings.get(field).and_then(Value::as_str).unwrap_or_default();
    let (own, roots) = match text("mode") {
        "" | "DISABLE" => return,
        "SIMPLE" => (None, format!("file-root:{}", text("caCertificates"))),
        "MUTUAL" => {
            let own = format!("file-cert:{}~{}", text("clientCertificate"), text("privateKey"));
            (Some(own), format!("file-root:{}", text("caCertificates")))
        }
        "ISTIO_MUTUAL" => (Some("default".to_owned()), "ROOTCA".to_owned()),
        other => return faults.push(format!("tlsSettings.mode: {other} is not supported")),
    };
    let names = settings.get("subjectAltNames").and_then(Value::as_array).cloned().unwrap_or_default();
    let names: Vec<Value> = names.iter().map(|name| json!({ "exact": name })).collect();
    let mut context = json!({
        "@type": format!("{TYPE}.transport_sockets.tls.v3.UpstreamTlsContext"),
        "common_tls_context": {
            "combined_validation_context": {
                "default_validation_context": { "match_subject_alt_names": names },
                "validation_context_sds_secret_config": secret(&roots, from),
            },
        },
    });
    if let Some(own) = &own {
        context["common_tls_context"]["tls_certificate_sds_secret_configs"] = json!([secret(own, from)]);
    }
    if h2 {
        let protocols = if text("mode") == "ISTIO_MUTUAL" { json!(["istio", "h2"]) } else { json!(["h2"]) };
        context["common_tls_context"]["alpn_protocols"] = protocols;
    }
    let sni = match (text("sni"), text("mode")) {
        ("", "ISTIO_MUTUAL") => name,
        (sni, _) => sni,
    };
    if !sni.is_empty() {
        context["sni"] = json!(sni);
    }
    cluster["transport_socket"] = json!({ "name": "envoy.transport_sockets.tls", "typed_config": context });
}

pub(super) fn listeners(inputs: &Inputs<'_>, families: &Families) -> Vec<Value> {
    let Inputs { config, environment, .. } = *inputs;
    let metadata = config.proxy_metadata.get("METRICS_LOCALHOST_ACCESS_ONLY");
    let local = metadata.is_some_and(|value| value == "true");
    let at = if local { families.localhost } else { families.wildcard };
    let compresses = config.stats_compression.unwrap_or(true);
    let compressors = if compresses { compressors() } else { Vec::new() };
    let mut metrics = listener(at, environment.prometheus_port);
    let filters = [connections("stats", &[("/stats/prometheus", "prometheus_stats")], compressors)];
    metrics["filter_chains"] = json!([{ "filters": filters }]);
    let mut all = vec![metrics];
    for (port, prefix, routes) in [
        (environment.secure_metrics_port, "secure_stats", &[("/stats/prometheus", "prometheus_stats")][..]),
        (
            environment.secure_merged_metrics_port,
            "secure_merged_stats",
            &[("/stats/prometheus", "agent"), ("/metrics", "agent")],
        ),
    ] {
        if port != 0 {
            all.push(secure(
                families.wildcard,
                port,
                inputs.secrets,
                &connections(prefix, routes, Vec::new()),
            ));
        }
    }
    let mut status = listener(families.wildcard, environment.status_port);
    if environment.status_proxy_protocol {
        status["listener_filters"] = json!([{
            "name": "envoy.listener.proxy_protocol",
            "typed_config": {
                "@type": format!("{TYPE}.filters.listener.proxy_protocol.v3.ProxyProtocol"),
                "allow_requests_without_proxy_protocol": true,
            },
        }]);
    }
    let filters = [connections("agent", &[("/healthz/ready", "agent")], Vec::new())];
    status["filter_chains"] = json!([{ "filters": filters }]);
    all.push(status);
    if let Some((localhost, wildcard)) = families.other {
        let last = all.len() - 1;
        for (index, port) in [(0, environment.prometheus_port), (last, environment.status_port)] {
            let other = if index == 0 && local { localhost } else { wildcard };
            if let Some(listener) = all.get_mut(index) {
                listener["additional_addresses"] = json!([{ "address": socket(other, port) }]);
            }
        }
    }
    all
}

fn listener(address: &str, port: u16) -> Value {
    json!({
        "name": format!("{address}_{port}"),
        "address": socket(address, port),
        "ignore_global_conn_limit": true,
        "bypass_overload_manager": true,
    })
}

/// For those with a certificate of the mesh only.
fn secure(address: &str, port: u16, from: &Sources, filter: &Value) -> Value {
    let mut listener = listener(address, port);
    listener["listener_filters"] = json!([{
        "name": "envoy.filters.listener.tls_inspector",
        "typed_config": { "@type": format!("{TYPE}.filters.listener.tls_inspector.v3.TlsInspector") },
    }]);
    listener["filter_chains"] = json!([{
        "filter_chain_match": { "transport_protocol": "tls" },
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": format!("{TYPE}.transport_sockets.tls.v3.DownstreamTlsContext"),
                "require_client_certificate": true,
                "common_tls_context": {
                    "tls_certificate_sds_secret_configs": [secret("default", from)],
                    "combined_validation_context": {
                        "default_validation_context": {},
                        "validation_context_sds_secret_config": secret("ROOTCA", from),
                    },
                },
            },
        },
        "filters": [filter],
    }]);
    listener
}

fn connections(stat_prefix: &str, routes: &[(&str, &str)], mut filters: Vec<Value>) -> Value {
    let route = |(path, cluster): &(&str, &str)| json!({ "match": { "prefix": path }, "route": { "cluster": cluster } });
    filters.push(json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": format!("{TYPE}.filters.http.router.v3.Router") },
    }));
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": format!("{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "codec_type": "AUTO",
            "stat_prefix": stat_prefix,
            "route_config": { "virtual_hosts": [{
                "name": "backend",
                "domains": ["*"],
                "routes": routes.iter().map(route).collect::<Vec<_>>(),
            }] },
            "http_filters": filters,
        },
    })
}

/// Metrics are long, and compress well.
fn compressors() -> Vec<Value> {
    let one = |(name, library): (&str, &str)| {
        json!({
            "name": format!("envoy.filters.http.compressor.{name}"),
            "typed_config": {
                "@type": format!("{TYPE}.filters.http.compressor.v3.Compressor"),
                "compressor_library": {
                    "name": format!("stats_{name}"),
                    "typed_config": { "@type": format!("{TYPE}.compression.{name}.compressor.v3.{library}") },
                },
                "response_direction_config": { "common_config": { "content_type": [
                    "text/plain",
                    "application/vnd.google.protobuf",
                    "application/openmetrics-text",
                    "application/openmetrics-protobuf",
                ] } },
            },
        })
    };
    [("brotli", "Brotli"), ("zstd", "Zstd"), ("gzip", "Gzip")].map(one).into()
}

/// Where spans go.
pub(super) fn tracer(inputs: &Inputs<'_>) -> Option<Value> {
    let tracing = inputs.config.tracing.as_ref()?;
    if tracing.zipkin.is_some() {
        return Some(json!({
            "name": "envoy.tracers.zipkin",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig",
                "collector_cluster": "zipkin",
                "collector_endpoint": "/api/v2/spans",
                "collector_endpoint_version": "HTTP_JSON",
                "trace_id_128bit": true,
                "shared_span_context": false,
            },
        }));
    }
    tracing.datadog.as_ref().map(|_| {
        json!({
            "name": "envoy.tracers.datadog",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.config.trace.v3.DatadogConfig",
                "collector_cluster": "datadog_agent",
                "service_name": inputs.node.cluster(inputs.config, inputs.environment),
            },
        })
    })
}

pub(super) fn cluster_manager(inputs: &Inputs<'_>) -> Option<Value> {
    let reports = inputs.node.given("LOAD_STATS_CONFIG_JSON").and_then(Value::as_str);
    let reports = reports.and_then(|text| serde_json::from_str::<Value>(text).ok());
    if inputs.outlier_log.is_none() && reports.is_none() && !inputs.self_discovery() {
        return None;
    }
    let mut manager = json!({ "enable_deferred_cluster_creation": true });
    if inputs.self_discovery() {
        manager["local_cluster_name"] = json!("local_cluster");
    }
    if let Some(path) = inputs.outlier_log {
        manager["outlier_detection"] = json!({ "event_log_path": path });
    }
    if let Some(reports) = reports {
        manager["load_stats_config"] = reports;
    }
    Some(manager)
}

impl Inputs<'_> {
    fn self_discovery(&self) -> bool {
        self.node.given("ENABLE_SELF_DISCOVERY").and_then(Value::as_str) == Some("true")
    }
}

//! What a proxy counts, and under which labels.

use leno_base::duration::{format_proto, parse_go};
use serde_json::{Map, Value, json};

use super::Inputs;
use super::statics::address;
use crate::environment::Environment;
use crate::proxy_config::ProxyConfig;

/// Which parts of a stat's name are labels, as in Istio's bootstraps. Istio's own metrics bring theirs along.
/// Names of clusters and of HTTP servers end in a semicolon.
pub const STATS_TAGS: [(&str, &str); 16] = [
    ("cluster_name", r"^cluster(\.(.+);)"),
    ("http_conn_manager_prefix", r"^http\.(((?:[_.[:digit:]\w]*|[_\[\]aAbBcCdDeEfF[:digit:]\w\:]*));\.)"),
    ("thread_name", r"^server(\.(.+))\.watchdog"),
    ("tcp_prefix", r"^tcp\.((.*?)\.)\w+?$"),
    ("response_code", r"_rq(_(\d{3}))$"),
    ("response_code_class", r"_rq(_(\dxx))$"),
    (
        "http_conn_manager_listener_prefix",
        r"^listener(?=\.).*?\.http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)",
    ),
    ("listener_address", r"^listener\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)"),
    ("mongo_prefix", r"^mongo\.(.+?)\.(collection|cmd|cx_|op_|delays_|decoding_)(.*?)$"),
    ("cache", r"(cache\.(.+?)\.)"),
    ("component", r"(component\.(.+?)\.)"),
    ("tag", r"(tag\.(.+?);\.)"),
    ("wasm_filter", r"(wasm_filter\.(.+?)\.)"),
    ("authz_enforce_result", r"rbac(\.(allowed|denied))"),
    ("authz_dry_run_action", r"(\.istio_dry_run_(allow|deny)_)"),
    ("authz_dry_run_result", r"(\.shadow_(allowed|denied))"),
];

/// Those of them in front of the ones that are asked for.
const FIRST_TAGS: usize = 9;

/// What readiness, draining and dashboards cannot do without.
const PREFIXES: &str = "cluster_manager,listener_manager,server,cluster.xds-grpc,wasm";
const SUFFIXES: &str = "rbac.allowed,rbac.denied,shadow_allowed,shadow_denied";
const IDLE_SUFFIX: &str = "downstream_cx_active";
const EXPRESSIONS: &str = r"vhost\..*\.route\..*";

pub(super) fn config(inputs: &Inputs<'_>) -> Value {
    let Inputs { config, environment, .. } = *inputs;
    let tag = |name: &str, regex: &str| json!({ "tag_name": name, "regex": regex });
    let mut extra: Vec<&str> = Vec::new();
    let annotated = environment.annotation("sidecar.istio.io/extraStatTags").unwrap_or_default().split(',');
    for name in config.extra_stat_tags.iter().map(String::as_str).chain(annotated) {
        if !name.is_empty() && !extra.contains(&name) {
            extra.push(name);
        }
    }
    let all = STATS_TAGS.map(|(name, regex)| tag(name, regex));
    let (first, last) = all.split_at(FIRST_TAGS);
    let asked = extra.iter().map(|name| tag(name, &format!(r"({name}=\.=(.*?);\.;)")));
    let tags: Vec<Value> = first.iter().cloned().chain(asked).chain(last.iter().cloned()).collect();

    let matcher = config.proxy_stats_matcher.clone().unwrap_or_default();
    let wanted = |annotation: &str, configured: Option<Vec<String>>, always: &[&str]| -> Vec<String> {
        // An annotation is not merged with what is configured: it is there instead.
        let mut patterns = match environment.annotation(annotation).filter(|text| !text.is_empty()) {
            Some(text) => text.split(',').map(str::to_owned).collect(),
            None => configured.unwrap_or_default(),
        };
        patterns.extend(always.iter().flat_map(|list| list.split(',')).map(str::to_owned));
        let mut out = Vec::with_capacity(patterns.len());
        for pattern in patterns {
            if pattern.contains("{pod_ip}") {
                let addresses = inputs.node.addresses.iter();
                out.extend(addresses.map(|address| pattern.replace("{pod_ip}", &address.to_string())));
            } else {
                out.push(pattern);
            }
        }
        out
    };
    let prefixes = wanted("sidecar.istio.io/statsInclusionPrefixes", matcher.inclusion_prefixes, &[PREFIXES]);
    let idle: &[&str] = if environment.exit_when_idle { &[SUFFIXES, IDLE_SUFFIX] } else { &[SUFFIXES] };
    let suffixes = wanted("sidecar.istio.io/statsInclusionSuffixes", matcher.inclusion_suffixes, idle);
    let expressions =
        wanted("sidecar.istio.io/statsInclusionRegexps", matcher.inclusion_regexps, &[EXPRESSIONS]);
    let mut patterns = vec![json!({ "prefix": "reporter=" })];
    patterns.extend(prefixes.iter().map(|text| json!({ "prefix": text })));
    patterns.extend(suffixes.iter().map(|text| json!({ "suffix": text })));
    patterns.extend(expressions.iter().map(|text| json!({ "safe_regex": { "regex": text } })));
    patterns.extend(["component", "istio"].map(|text| json!({ "prefix": text })));

    let mut stats = json!({
        "use_all_default_tags": false,
        "stats_tags": tags,
        "stats_matcher": { "inclusion_list": { "patterns": patterns } },
    });
    let buckets = buckets(environment);
    if !buckets.is_empty()
        && let Some(stats) = stats.as_object_mut()
    {
        stats.insert("histogram_bucket_settings".to_owned(), json!(buckets));
    }
    stats
}

/// Buckets of histograms, by the prefix of their names.
fn buckets(environment: &Environment) -> Vec<Value> {
    const ANNOTATION: &str = "sidecar.istio.io/statsHistogramBuckets";
    let Some(text) = environment.annotation(ANNOTATION) else { return Vec::new() };
    match serde_json::from_str::<std::collections::BTreeMap<String, Vec<f64>>>(text) {
        Ok(all) => {
            let one = |(prefix, buckets)| json!({ "match": { "prefix": prefix }, "buckets": buckets });
            all.into_iter().map(one).collect()
        }
        Err(error) => {
            tracing::warn!("{ANNOTATION} has no effect: {error}");
            Vec::new()
        }
    }
}

/// How often stats are written out and forgotten.
pub(super) fn intervals(environment: &Environment, bootstrap: &mut Map<String, Value>) {
    let read = |name: &str| {
        let text = environment.annotation(name)?;
        let parsed = parse_go(text);
        if let Err(error) = &parsed {
            tracing::warn!("{name} has no effect: {text:?}: {error}");
        }
        parsed.ok()
    };
    let flush = read("sidecar.istio.io/statsFlushInterval");
    if let Some(flush) = flush {
        bootstrap.insert("stats_flush_interval".to_owned(), json!(format_proto(flush)));
    }
    const EVICTION: &str = "sidecar.istio.io/statsEvictionInterval";
    if let Some(eviction) = read(EVICTION) {
        let flush = flush.unwrap_or(std::time::Duration::from_secs(5)).as_nanos();
        if flush == 0 || !eviction.as_nanos().is_multiple_of(flush) {
            tracing::warn!("{EVICTION} has no effect: it must be a multiple of the flush interval");
        } else {
            bootstrap.insert("stats_eviction_interval".to_owned(), json!(format_proto(eviction)));
        }
    }
}

/// Where stats are sent.
pub(super) fn sinks(config: &ProxyConfig) -> Vec<Value> {
    let mut sinks = Vec::new();
    if config.envoy_metrics_service.as_ref().is_some_and(|service| !service.address.is_empty()) {
        sinks.push(json!({
            "name": "envoy.stat_sinks.metrics_service",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.config.metrics.v3.MetricsServiceConfig",
                "transport_api_version": "V3",
                "grpc_service": { "envoy_grpc": { "cluster_name": "envoy_metrics_service" } },
            },
        }));
    }
    if let Some(address) = address(&config.statsd_udp_address, "") {
        sinks.push(json!({
            "name": "envoy.stat_sinks.statsd",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.config.metrics.v3.StatsdSink",
                "address": address,
            },
        }));
    }
    sinks
}

//! The bootstrap of a proxy, as Istio's agent renders it. Pure.
//!
//! Names of clusters and listeners, tags of stats and ports are Istio's: dashboards, EnvoyFilters of
//! BOOTSTRAP and people's habits go by them. [`node`] says who the proxy is, `stats` what it counts,
//! `statics` which clusters and listeners it has from the beginning.

use std::net::IpAddr;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::environment::Environment;
use crate::proxy_config::ProxyConfig;
use crate::sds::Sources;

pub mod node;
mod statics;
mod stats;
#[cfg(test)]
mod tests;

pub use node::{ISTIO_VERSION, Node, Role};
pub use stats::STATS_TAGS;

/// Values of the runtime that every proxy has.
const RUNTIME: [(&str, Value); 5] = [
    (
        "envoy.deprecated_features:envoy.config.listener.v3.Listener.hidden_envoy_deprecated_use_original_dst",
        Value::Bool(true),
    ),
    ("envoy.reloadable_features.http_reject_path_with_fragment", Value::Bool(false)),
    ("envoy.reloadable_features.fixed_heap_use_allocated", Value::Bool(true)),
    ("envoy.reloadable_features.coalesce_lb_rebuilds_on_batch_update", Value::Bool(false)),
    ("re2.max_program_size.error_level", Value::Null),
];

/// What a bootstrap is made of.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'i> {
    /// What the proxy is started with.
    pub config: &'i ProxyConfig,
    /// What the agent is told.
    pub environment: &'i Environment,
    /// Who the proxy is.
    pub node: &'i Node,
    /// Where outlier events are written.
    pub outlier_log: Option<&'i str>,
    /// Whether the proxy's own log is JSON.
    pub json_log: bool,
    /// Where it gets secrets.
    pub secrets: &'i Sources,
}

/// Addresses by the families that the workload has.
#[derive(Clone, Copy, Debug)]
struct Families {
    localhost: &'static str,
    wildcard: &'static str,
    lookup: &'static str,
    /// The other family's, of a workload that has both: localhost and wildcard.
    other: Option<(&'static str, &'static str)>,
}

impl Families {
    fn of(addresses: &[IpAddr], dual_stack: bool) -> Families {
        const V4: (&str, &str) = ("127.0.0.1", "0.0.0.0");
        const V6: (&str, &str) = ("::1", "::");
        let v6 = addresses.iter().filter(|address| address.is_ipv6()).count();
        let make = |(localhost, wildcard), lookup, other| Families { localhost, wildcard, lookup, other };
        match v6 {
            0 => make(V4, "V4_ONLY", None),
            all if all == addresses.len() => make(V6, "V6_ONLY", None),
            _ if !dual_stack => make(V4, "V4_ONLY", None),
            _ if addresses.first().is_some_and(IpAddr::is_ipv6) => make(V6, "ALL", Some(V4)),
            _ => make(V4, "ALL", Some(V6)),
        }
    }
}

/// The address that the proxy's admin interface has, and ours for it, of a machine with these addresses, which
/// has both families if `dual_stack` and they are of both.
pub fn localhost(addresses: &[IpAddr], dual_stack: bool) -> &'static str {
    Families::of(addresses, dual_stack).localhost
}

/// Makes the bootstrap.
///
/// # Errors
/// Settings that no bootstrap can be made of.
pub fn render(inputs: &Inputs<'_>) -> Result<Value, Vec<String>> {
    let Inputs { config, environment, node, .. } = *inputs;
    let families = Families::of(&node.addresses, environment.dual_stack);
    let source = json!({ "ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3" });
    let mut bootstrap = json!({
        "node": node.to_json(inputs),
        "layered_runtime": { "layers": [
            { "name": "global config", "static_layer": runtime(config, environment) },
            { "name": "admin", "admin_layer": {} },
        ] },
        "bootstrap_extensions": [{
            "name": "envoy.bootstrap.internal_listener",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
                "buffer_size_kb": 64,
            },
        }],
        "stats_config": stats::config(inputs),
        "admin": {
            "access_log": [{
                "name": "envoy.access_loggers.file",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                    "path": "/dev/null",
                },
            }],
            "profile_path": "/var/lib/istio/data/envoy.prof",
            "address": statics::socket(families.localhost, config.proxy_admin_port),
        },
        "dynamic_resources": {
            "lds_config": source,
            "cds_config": source,
            "ads_config": {
                "api_type": if environment.delta { "DELTA_GRPC" } else { "GRPC" },
                "set_node_on_first_message_only": true,
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds-grpc" } }],
            },
        },
        "static_resources": {
            "clusters": statics::clusters(inputs, &families)?,
            "listeners": statics::listeners(inputs, &families),
        },
        "overload_manager": { "resource_monitors": [{
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                "max_active_downstream_connections": most_connections(config),
            },
        }] },
        "deferred_stat_options": { "enable_deferred_creation_stats": true },
    });
    let Some(fields) = bootstrap.as_object_mut() else { return Ok(bootstrap) };
    let format = json!({ "log_format": log_format(inputs.json_log) });
    fields.insert("application_log_config".to_owned(), format);
    stats::intervals(environment, fields);
    if let Some(tracer) = statics::tracer(inputs) {
        fields.insert("tracing".to_owned(), json!({ "http": tracer }));
    }
    let sinks = stats::sinks(config);
    if !sinks.is_empty() {
        fields.insert("stats_sinks".to_owned(), json!(sinks));
    }
    if let Some(manager) = statics::cluster_manager(inputs) {
        fields.insert("cluster_manager".to_owned(), manager);
    }
    Ok(bootstrap)
}

/// Reads a file that is to be merged over the bootstrap, as JSON text.
///
/// # Errors
/// If it cannot be read, or is no YAML.
pub fn read_override(file: &Path, host_ip: &str) -> Result<String, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    let text = std::fs::read_to_string(file).map_err(|error| failed(&error))?;
    let text = if host_ip.contains(':') {
        // Where brackets are written already, no further ones.
        text.replace("[$(HOST_IP)]", "$(HOST_IP)").replace("$(HOST_IP)", &format!("[{host_ip}]"))
    } else {
        text.replace("$(HOST_IP)", host_ip)
    };
    let documents = leno_api::yaml::parse(&text, leno_api::yaml::Dialect::Kubernetes);
    let documents = documents.map_err(|error| error.in_file(&file.display().to_string()).to_string())?;
    let node = documents.first().ok_or_else(|| failed(&"there is nothing in it"))?;
    Ok(node.to_json().to_string())
}

fn log_format(json: bool) -> Value {
    if json {
        json!({ "json_format": {
            "time": "%Y-%m-%dT%T.%fZ",
            "level": "%l",
            "scope": "envoy %n",
            "msg": "%j",
            "caller": "%g:%#",
            "thread": "%t",
        } })
    } else {
        json!({ "text_format": "%Y-%m-%dT%T.%fZ\t%l\tenvoy %n %g:%#\t%v\tthread=%t" })
    }
}

fn runtime(config: &ProxyConfig, environment: &Environment) -> Value {
    let mut values: Map<String, Value> = RUNTIME
        .into_iter()
        .map(|(name, value)| (name.to_owned(), if value.is_null() { json!("32768") } else { value }))
        .collect();
    if !environment.strips_fragments {
        // The name says the opposite of what it does, in Istio as well.
        let name = "envoy.reloadable_features.http_strip_fragment_from_path_unsafe_if_disabled";
        values.insert(name.to_owned(), json!("false"));
    }
    for (name, value) in &config.runtime_values {
        match value.as_str() {
            "" => drop(values.remove(name)),
            "true" => drop(values.insert(name.clone(), json!(true))),
            "false" => drop(values.insert(name.clone(), json!(false))),
            other => drop(values.insert(name.clone(), json!(other))),
        }
    }
    values.sort_keys();
    Value::Object(values)
}

/// The most connections of the whole proxy.
fn most_connections(config: &ProxyConfig) -> i64 {
    let settings = config.connection_settings.as_ref();
    let limit = settings.and_then(|settings| settings.global_downstream_connection_limit);
    if let Some(limit) = limit.filter(|limit| *limit > 0) {
        return limit.into();
    }
    let metadata = config.proxy_metadata.get("ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS");
    let runtime = config.runtime_values.get("overload.global_downstream_max_connections");
    let given = [metadata, runtime].into_iter().flatten().find_map(|text| text.parse().ok());
    given.unwrap_or(i64::from(i32::MAX))
}

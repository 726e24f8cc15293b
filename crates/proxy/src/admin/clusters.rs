//! `/clusters`: limits and endpoints of clusters, with their counts.

use std::fmt::Write;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::admin::json::{endpoint_address, endpoint_text, health_status, locality, object, text};
use crate::admin::respond::{Query, Response};
use crate::admin::{Answer, Asking, Context, Endpoint, HostCounts, HostTable, View};
use crate::cluster::health::{Flag, Vitals};
use crate::cluster::{Cluster, Discovery, EndpointConfig, HealthStatus, Locality};
use crate::config::re2;

/// `/clusters`
pub(super) const ENDPOINT: Endpoint = Endpoint {
    path: "/clusters",
    help: "upstream cluster status",
    parameters: &[
        ("format", "File format to use; One of (text, json)"),
        ("filter", "Regular expression (Google re2) for filtering clusters by name"),
    ],
    mutates: false,
    answer: Answer::Asking(status),
};

fn status<'a>(context: &'a Context, query: &'a Query) -> Asking<'a> {
    Box::pin(async {
        let filter = match query.find("filter").map(re2::compile).transpose() {
            Ok(filter) => filter,
            Err(error) => return Response::bad_request(format!("Invalid re2 regex: {error}\n")),
        };
        let (Some(view), Some(hosts)) = (context.view().await, context.hosts().await) else {
            return Response::gone();
        };
        let clusters = view.snapshot.clusters.values();
        let wanted = |name: &str| filter.as_ref().is_none_or(|filter| filter.is_match(name.as_bytes()));
        let mut clusters: Vec<&Arc<Cluster>> = clusters.filter(|cluster| wanted(&cluster.name)).collect();
        clusters.sort_unstable_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
        if query.find("format") == Some("json") {
            let clusters: Vec<Value> =
                clusters.iter().map(|cluster| as_json(cluster, &view, &hosts)).collect();
            return Response::json(&match clusters.is_empty() {
                true => json!({}),
                false => json!({"cluster_statuses": clusters}),
            });
        }
        let mut out = String::new();
        for cluster in clusters {
            // Writing to a String cannot fail.
            let _ = as_text(cluster, &view, &hosts, &mut out);
        }
        Response::text(out)
    })
}

/// One endpoint with its place and counts.
struct Host {
    config: EndpointConfig,
    locality: Locality,
    priority: u32,
    counts: HostCounts,
    /// Whether outlier detection leaves it out.
    ejected: bool,
    degraded: bool,
    /// What active health checks say.
    vitals: Option<Arc<Vitals>>,
    /// Of answers and of local origin, in percent.
    success_rates: [Option<f64>; 2],
}

/// The endpoints of a cluster. Those of original-destination clusters are known to the
/// workers only.
fn hosts_of(cluster: &Cluster, view: &View, hosts: &HostTable) -> Vec<Host> {
    if cluster.discovery.is_open_ended() {
        let used = hosts.0.get(&*cluster.name).into_iter().flatten();
        let mut used: Vec<Host> = used
            .map(|(address, counts)| Host {
                config: EndpointConfig::plain(address.clone()),
                locality: Locality::default(),
                priority: 0,
                counts: *counts,
                ejected: false,
                degraded: false,
                vitals: None,
                success_rates: [None; 2],
            })
            .collect();
        used.sort_by_key(|host| endpoint_text(&host.config.address));
        return used;
    }
    let localities =
        view.snapshot.endpoints.get(&cluster.name).map(|assignment| assignment.localities.as_slice());
    let localities = localities.unwrap_or_default().iter();
    let all = localities.flat_map(|place| place.endpoints.iter().map(move |endpoint| (place, endpoint)));
    all.map(|(place, endpoint)| {
        let monitor = cluster.outlier.as_ref().and_then(|detector| detector.monitor(&endpoint.address));
        Host {
            config: endpoint.clone(),
            locality: place.locality.clone(),
            priority: place.priority,
            counts: hosts.find(&cluster.name, &endpoint.address),
            ejected: monitor.as_ref().is_some_and(|monitor| monitor.is_ejected()),
            degraded: monitor.as_ref().is_some_and(|monitor| monitor.is_degraded()),
            vitals: cluster.health.as_ref().and_then(|health| health.vitals(&endpoint.address)),
            success_rates: monitor.map_or([None; 2], |monitor| monitor.success_rates()),
        }
    })
    .collect()
}

fn as_text(cluster: &Cluster, view: &View, hosts: &HostTable, out: &mut String) -> std::fmt::Result {
    let name = cluster.name.as_str();
    writeln!(out, "{name}::observability_name::{}", cluster.stat_name)?;
    if let Some(detector) = &cluster.outlier {
        let names = [
            "success_rate_average",
            "success_rate_ejection_threshold",
            "local_origin_success_rate_average",
            "local_origin_success_rate_ejection_threshold",
        ];
        for (fact, rate) in names.iter().zip(detector.averages()) {
            writeln!(out, "{name}::outlier::{fact}::{}", percent(rate))?;
        }
    }
    for (priority, limits) in ["default", "high"].iter().zip(cluster.circuit_breakers.iter()) {
        writeln!(out, "{name}::{priority}_priority::max_connections::{}", limits.max_connections)?;
        writeln!(out, "{name}::{priority}_priority::max_pending_requests::{}", limits.max_pending_requests)?;
        writeln!(out, "{name}::{priority}_priority::max_requests::{}", limits.max_requests)?;
        writeln!(out, "{name}::{priority}_priority::max_retries::{}", limits.max_retries)?;
    }
    writeln!(out, "{name}::added_via_api::{}", cluster.added_via_api)?;
    if let Discovery::Eds { service, .. } = &cluster.discovery {
        writeln!(out, "{name}::eds_service_name::{}", service.name)?;
    }
    for host in hosts_of(cluster, view, hosts) {
        let address = endpoint_text(&host.config.address);
        let counts = host.counts;
        let [success_rate, local_success_rate] = host.success_rates;
        let numbers = [
            ("cx_active", counts.cx_active),
            ("cx_connect_fail", counts.cx_connect_fail),
            ("cx_total", counts.cx_total),
            ("rq_active", counts.rq_active),
            ("rq_error", counts.rq_error),
            ("rq_success", counts.rq_success),
            ("rq_timeout", counts.rq_timeout),
            ("rq_total", counts.rq_total),
        ];
        for (stat, value) in numbers {
            writeln!(out, "{name}::{address}::{stat}::{value}")?;
        }
        let texts = [
            ("hostname", host.config.hostname.as_deref().unwrap_or_default().to_owned()),
            ("health_flags", health_flags(&host)),
            ("weight", host.config.weight.to_string()),
            ("region", host.locality.region.to_string()),
            ("zone", host.locality.zone.to_string()),
            ("sub_zone", host.locality.sub_zone.to_string()),
            ("canary", host.config.metadata.is_canary().to_string()),
            ("priority", host.priority.to_string()),
            ("success_rate", percent(success_rate)),
            ("local_origin_success_rate", percent(local_success_rate)),
        ];
        for (fact, value) in texts {
            writeln!(out, "{name}::{address}::{fact}::{value}")?;
        }
    }
    Ok(())
}

/// The names of what is wrong with a host, in Envoy's order, or `healthy`.
fn health_flags(host: &Host) -> String {
    let eds = |status| host.config.health == status;
    let flags = [
        (host.has(Flag::FAILED), "/failed_active_hc"),
        (host.ejected, "/failed_outlier_check"),
        (eds(HealthStatus::Unhealthy), "/failed_eds_health"),
        (host.has(Flag::DEGRADED), "/degraded_active_hc"),
        (host.degraded, "/degraded_outlier_detection"),
        (eds(HealthStatus::Degraded), "/degraded_eds_health"),
        (host.has(Flag::PENDING_REMOVAL), "/pending_dynamic_removal"),
        (host.has(Flag::PENDING), "/pending_active_hc"),
        (host.has(Flag::EXCLUDED), "/excluded_via_immediate_hc_fail"),
        (host.has(Flag::TIMED_OUT), "/active_hc_timeout"),
        (eds(HealthStatus::Draining), "/eds_status_draining"),
    ];
    let set: String = flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect();
    if set.is_empty() { "healthy".to_owned() } else { set }
}

impl Host {
    fn has(&self, flag: Flag) -> bool {
        self.vitals.as_ref().is_some_and(|vitals| vitals.has(flag))
    }
}

/// As C++ prints numbers (`{:g}`): six digits at most; -1 for none.
fn percent(rate: Option<f64>) -> String {
    let Some(rate) = rate else { return "-1".to_owned() };
    let digits = match rate.abs() {
        100.0.. => 3,
        10.0.. => 4,
        _ => 5,
    };
    let text = format!("{rate:.digits$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// envoy.admin.v3.ClusterStatus.
fn as_json(cluster: &Cluster, view: &View, hosts: &HostTable) -> Value {
    let statuses: Vec<Value> = hosts_of(cluster, view, hosts).iter().map(host_json).collect();
    let thresholds =
        ["DEFAULT", "HIGH"].iter().zip(cluster.circuit_breakers.iter()).map(|(priority, limits)| {
            object([
                ("priority", if *priority == "HIGH" { json!(priority) } else { Value::Null }),
                ("max_connections", limits.max_connections.into()),
                ("max_pending_requests", limits.max_pending_requests.into()),
                ("max_requests", limits.max_requests.into()),
                ("max_retries", limits.max_retries.into()),
            ])
        });
    let eds_name = match &cluster.discovery {
        Discovery::Eds { service, .. } => text(&service.name),
        _ => Value::Null,
    };
    object([
        ("name", json!(cluster.name.as_str())),
        ("added_via_api", if cluster.added_via_api { true.into() } else { Value::Null }),
        ("host_statuses", if statuses.is_empty() { Value::Null } else { statuses.into() }),
        ("circuit_breakers", json!({"thresholds": thresholds.collect::<Vec<_>>()})),
        ("observability_name", json!(cluster.stat_name.as_str())),
        ("eds_service_name", eds_name),
    ])
}

/// envoy.admin.v3.HostStatus.
fn host_json(host: &Host) -> Value {
    let counts = host.counts;
    let number = |value: u64| if value == 0 { Value::Null } else { value.to_string().into() };
    let counters = [
        ("cx_connect_fail", counts.cx_connect_fail),
        ("cx_total", counts.cx_total),
        ("rq_error", counts.rq_error),
        ("rq_success", counts.rq_success),
        ("rq_timeout", counts.rq_timeout),
        ("rq_total", counts.rq_total),
    ];
    let gauges = [("cx_active", counts.cx_active), ("rq_active", counts.rq_active)];
    let counters = counters.map(|(name, value)| object([("value", number(value)), ("name", name.into())]));
    let gauges = gauges.map(|(name, value)| {
        object([("type", "GAUGE".into()), ("value", number(value)), ("name", name.into())])
    });
    let stats: Vec<Value> = counters.into_iter().chain(gauges).collect();
    let flag = |set: bool| if set { true.into() } else { Value::Null };
    let health = object([
        ("failed_active_health_check", flag(host.has(Flag::FAILED))),
        ("failed_outlier_check", flag(host.ejected)),
        (
            "failed_eds_health",
            if host.config.health == HealthStatus::Unhealthy { true.into() } else { Value::Null },
        ),
        ("eds_health_status", health_status(host.config.health).into()),
        ("failed_active_degraded_check", flag(host.has(Flag::DEGRADED))),
        ("pending_dynamic_removal", flag(host.has(Flag::PENDING_REMOVAL))),
        ("pending_active_hc", flag(host.has(Flag::PENDING))),
        ("excluded_via_immediate_hc_fail", flag(host.has(Flag::EXCLUDED))),
        ("active_hc_timeout", flag(host.has(Flag::TIMED_OUT))),
    ]);
    let [success_rate, local_success_rate] = host.success_rates;
    // envoy.type.v3.Percent
    let rate = |rate: Option<f64>| rate.map_or(Value::Null, |value| json!({"value": value}));
    object([
        ("address", endpoint_address(&host.config.address)),
        ("stats", stats.into()),
        ("health_status", health),
        ("success_rate", rate(success_rate)),
        ("local_origin_success_rate", rate(local_success_rate)),
        ("weight", host.config.weight.into()),
        ("hostname", text(host.config.hostname.as_deref().unwrap_or_default())),
        ("priority", if host.priority == 0 { Value::Null } else { host.priority.into() }),
        ("locality", locality(&host.locality)),
    ])
}

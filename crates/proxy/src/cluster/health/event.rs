//! The health check event log: envoy.data.core.v3.HealthCheckEvent as lines of JSON.

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use crate::cluster::health::config::Check;
use crate::cluster::health::session::{Event, Failure};
use crate::cluster::{EndpointAddress, EndpointConfig, Locality};
use crate::telemetry::access_log::time::rfc3339_millis;

/// What all events of one host have in common.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// The cluster's name.
    pub(super) cluster: leno_base::Name,
    /// The host.
    pub(super) endpoint: EndpointConfig,
    /// Where it is.
    pub(super) locality: Locality,
}

/// The event as Envoy writes it: fields in the order of their numbers, defaults included.
pub(super) fn line(subject: &Subject, check: &Check, event: Event, now: SystemTime) -> Value {
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| drop(fields.insert(name.to_owned(), value));
    put("health_checker_type", check.name().into());
    put("host", address(&subject.endpoint.address));
    put("cluster_name", subject.cluster.as_str().into());
    match event {
        Event::EjectUnhealthy { failure, status } => {
            put("eject_unhealthy_event", json!({"failure_type": failure.name(), "http_status_code": status}));
        }
        Event::AddHealthy { first } => put("add_healthy_event", json!({"first_check": first})),
        _ => {}
    }
    put("timestamp", rfc3339_millis(now).into());
    match event {
        Event::Failed { failure, first, status } => put(
            "health_check_failure_event",
            json!({"failure_type": failure.name(), "first_check": first, "http_status_code": status}),
        ),
        Event::Degraded => put("degraded_healthy_host", json!({})),
        Event::NoLongerDegraded => put("no_longer_degraded_host", json!({})),
        _ => {}
    }
    if !subject.endpoint.metadata.is_empty() {
        let metadata: Map<String, Value> =
            subject.endpoint.metadata.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        put("metadata", json!({"filter_metadata": metadata, "typed_filter_metadata": {}}));
    }
    let Locality { region, zone, sub_zone } = &subject.locality;
    put("locality", json!({"region": region.as_str(), "zone": zone.as_str(), "sub_zone": sub_zone.as_str()}));
    if event == Event::Successful {
        put("successful_health_check_event", json!({}));
    }
    Value::Object(fields)
}

fn address(address: &EndpointAddress) -> Value {
    let socket = |host: String, port: u16| {
        json!({"socket_address": {
            "protocol": "TCP", "address": host, "port_value": port, "resolver_name": "",
            "ipv4_compat": false, "network_namespace_filepath": "",
        }})
    };
    match address {
        EndpointAddress::Ip(ip) => socket(ip.ip().to_string(), ip.port()),
        EndpointAddress::Name(name, port) => socket(name.to_string(), *port),
        EndpointAddress::Pipe(path) => json!({"pipe": {"path": &**path, "mode": 0}}),
        EndpointAddress::Internal(listener, id) => {
            json!({"envoy_internal_address": {"server_listener_name": &**listener, "endpoint_id": &**id}})
        }
    }
}

impl Failure {
    fn name(self) -> &'static str {
        match self {
            Failure::Active => "ACTIVE",
            Failure::Passive => "PASSIVE",
            Failure::Network => "NETWORK",
            Failure::NetworkTimeout => "NETWORK_TIMEOUT",
        }
    }
}

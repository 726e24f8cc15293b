//! Lowering of envoy.config.endpoint.v3: ClusterLoadAssignment and its endpoints.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::collections::HashMap;
use std::sync::Arc;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::config::endpoint::v3 as proto;

use crate::cluster::{
    Assignment, EndpointAddress, EndpointCheck, EndpointConfig, HealthStatus, LocalityEndpoints, Metadata,
};
use crate::config::address::{self, Address};
use crate::config::lower::Lower;
use crate::http::route::config::fraction;

/// Lowers a ClusterLoadAssignment.
pub(super) fn lower(proto: proto::ClusterLoadAssignment, at: &mut Lower) -> Option<Assignment> {
    // EDS finds assignments by this name; inside a cluster it has no meaning.
    let proto::ClusterLoadAssignment { cluster_name: _, endpoints, named_endpoints, policy } = proto;
    at.unsupported("named_endpoints", !named_endpoints.is_empty());
    let proto::cluster_load_assignment::Policy {
        drop_overloads,
        overprovisioning_factor,
        endpoint_stale_after,
        weighted_priority_health,
    } = policy.unwrap_or_default();
    let drops = at.field("policy", |at| {
        at.unsupported("endpoint_stale_after", endpoint_stale_after.is_some());
        drops(drop_overloads, at)
    });
    let localities = at.each("endpoints", endpoints, locality);
    // Priorities must follow on each other, and the weights of one must not overflow.
    let mut weights: HashMap<u32, u64> = HashMap::new();
    for locality in &localities {
        *weights.entry(locality.priority).or_default() += u64::from(locality.weight.unwrap_or(0));
        let sum: u64 = locality.endpoints.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
        if sum > u64::from(u32::MAX) {
            at.error_at(
                "endpoints",
                "the sum of weights of all endpoints in the same locality exceeds 4294967295",
            );
        }
    }
    for (priority, sum) in weights {
        if sum > u64::from(u32::MAX) {
            at.error_at(
                "endpoints",
                format!(
                    "the sum of weights of all localities at the same priority {priority} exceeds 4294967295"
                ),
            );
        }
    }
    Some(Assignment {
        localities,
        overprovisioning_factor: overprovisioning_factor.unwrap_or(140),
        weighted_priority_health,
        drops,
    })
}

/// Of a million requests, how many are to be dropped.
fn drops(protos: Vec<proto::cluster_load_assignment::policy::DropOverload>, at: &mut Lower) -> u32 {
    if protos.len() > 1 {
        let count = protos.len();
        let message =
            format!("Cluster drop_overloads config has {count} categories. Envoy only support one.");
        at.error_at("drop_overloads", message);
    }
    let shares = at.each("drop_overloads", protos, |proto, at| {
        let proto::cluster_load_assignment::policy::DropOverload { category: _, drop_percentage } = proto;
        let (numerator, denominator) = fraction(drop_percentage.unwrap_or_default(), at);
        if numerator > denominator {
            at.error("Cluster drop_overloads config is invalid. The valid range is 0~1.");
        }
        Some(u32::try_from(u64::from(numerator) * 1_000_000 / u64::from(denominator)).unwrap_or(0))
    });
    let configured = shares.first().copied().unwrap_or(0);
    // Whole percent; the smaller one counts.
    let limit = at.scope().runtime.integer("load_balancing_policy.drop_overload_limit");
    limit
        .and_then(|limit| u32::try_from(limit).ok())
        .map_or(configured, |limit| configured.min(limit.saturating_mul(10_000)))
}

fn locality(proto: proto::LocalityLbEndpoints, at: &mut Lower) -> Option<LocalityEndpoints> {
    let proto::LocalityLbEndpoints {
        locality,
        metadata,
        lb_endpoints,
        load_balancing_weight,
        priority,
        proximity,
        lb_config,
    } = proto;
    at.unsupported("metadata", metadata.is_some());
    at.unsupported("proximity", proximity.is_some());
    let mut endpoints = at.each("lb_endpoints", lb_endpoints, endpoint);
    share_metadata(&mut endpoints);
    use proto::locality_lb_endpoints::LbConfig;
    match lb_config {
        Some(LbConfig::LoadBalancerEndpoints(list)) => {
            // Replaces the older list.
            let list = list.lb_endpoints;
            endpoints = at.field("load_balancer_endpoints", |at| at.each("lb_endpoints", list, endpoint));
            share_metadata(&mut endpoints);
        }
        Some(LbConfig::LedsClusterLocalityConfig(_)) => at.unsupported("leds_cluster_locality_config", true),
        None => {}
    }
    Some(LocalityEndpoints {
        locality: address::locality(locality),
        priority,
        weight: load_balancing_weight,
        endpoints,
    })
}

/// The endpoints of a workload mostly say the same of themselves: they share it, as each would cost a
/// kilobyte and more.
fn share_metadata(endpoints: &mut [EndpointConfig]) {
    let mut last: Option<Metadata> = None;
    for endpoint in endpoints {
        match &last {
            Some(known) if *known == endpoint.metadata => endpoint.metadata = known.clone(),
            _ => last = Some(endpoint.metadata.clone()),
        }
    }
}

fn endpoint(proto: proto::LbEndpoint, at: &mut Lower) -> Option<EndpointConfig> {
    let proto::LbEndpoint { health_status, metadata, load_balancing_weight, host_identifier } = proto;
    let health = match at.value::<core::HealthStatus>("health_status", health_status)? {
        core::HealthStatus::Unknown | core::HealthStatus::Healthy => HealthStatus::Healthy,
        core::HealthStatus::Degraded => HealthStatus::Degraded,
        core::HealthStatus::Unhealthy | core::HealthStatus::Timeout => HealthStatus::Unhealthy,
        core::HealthStatus::Draining => HealthStatus::Draining,
    };
    let metadata = address::metadata("metadata", metadata, at);
    let endpoint = match host_identifier {
        Some(proto::lb_endpoint::HostIdentifier::Endpoint(endpoint)) => endpoint,
        Some(proto::lb_endpoint::HostIdentifier::EndpointName(_)) => {
            at.unsupported("endpoint_name", true);
            return None;
        }
        None => {
            at.error("endpoint is required");
            return None;
        }
    };
    at.field("endpoint", |at| {
        let proto::Endpoint {
            address,
            health_check_config,
            hostname,
            additional_addresses,
            observability_name,
        } = endpoint;
        let others = at.each("additional_addresses", additional_addresses, |other, at| {
            let proto::endpoint::AdditionalAddress { address } = other;
            match at.required("address", address, address::address)? {
                Address::Ip(address) => Some(address),
                Address::Name(host, _) => {
                    at.error_at("address", format!("malformed IP address: {host}"));
                    None
                }
                Address::Pipe(..) => {
                    at.unsupported("address.pipe", true);
                    None
                }
            }
        });
        at.unsupported("observability_name", !observability_name.is_empty());
        let address = at.required("address", address, |address, at| {
            if let Some(core::address::Address::EnvoyInternalAddress(internal)) = address.address {
                return at.field("envoy_internal_address", |at| internal_address(internal, at));
            }
            Some(match address::address(address, at)? {
                Address::Ip(address) => EndpointAddress::Ip(address),
                Address::Name(host, port) => EndpointAddress::Name(host, port),
                Address::Pipe(path, _) => EndpointAddress::Pipe(path),
            })
        })?;
        Some(EndpointConfig {
            address,
            hostname: (!hostname.is_empty()).then(|| hostname.into()),
            weight: load_balancing_weight.unwrap_or(1),
            health,
            metadata,
            others: if others.is_empty() { Arc::default() } else { others.into() },
            check: at.optional("health_check_config", health_check_config, check).and_then(unless_default),
        })
    })
}

fn internal_address(proto: core::EnvoyInternalAddress, at: &mut Lower) -> Option<EndpointAddress> {
    let core::EnvoyInternalAddress { endpoint_id, address_name_specifier } = proto;
    use core::envoy_internal_address::AddressNameSpecifier;
    match address_name_specifier {
        Some(AddressNameSpecifier::ServerListenerName(name)) => {
            Some(EndpointAddress::Internal(name.into(), endpoint_id.into()))
        }
        None => {
            at.error("server_listener_name is required");
            None
        }
    }
}

/// Ten thousand endpoints are checked as they are.
fn unless_default(check: EndpointCheck) -> Option<Arc<EndpointCheck>> {
    (check != EndpointCheck::default()).then(|| Arc::new(check))
}

fn check(proto: proto::endpoint::HealthCheckConfig, at: &mut Lower) -> Option<EndpointCheck> {
    let proto::endpoint::HealthCheckConfig { port_value, hostname, address, disable_active_health_check } =
        proto;
    let address = at.optional("address", address, |address, at| match address::address(address, at)? {
        Address::Ip(address) => Some(EndpointAddress::Ip(address)),
        Address::Pipe(path, _) => Some(EndpointAddress::Pipe(path)),
        Address::Name(host, _) => {
            at.error(format!("malformed IP address: {host}"));
            None
        }
    });
    Some(EndpointCheck {
        port: Some(at.narrow("port_value", port_value)?).filter(|port: &u16| *port != 0),
        address,
        hostname: (!hostname.is_empty()).then(|| hostname.into()),
        disabled: disable_active_health_check,
    })
}

/// Refuses host names, where nothing resolves them.
pub(super) fn refuse_names(assignment: &Assignment, at: &mut Lower) {
    refuse(assignment, at, |address| match address {
        EndpointAddress::Name(host, _) => Some(format!(
            "malformed IP address: {host}. Consider setting resolver_name or setting cluster type to 'STRICT_DNS' or 'LOGICAL_DNS'"
        )),
        _ => None,
    });
}

/// Refuses Unix sockets, which have no name to resolve.
pub(super) fn refuse_pipes(assignment: &Assignment, at: &mut Lower) {
    refuse(assignment, at, |address| match address {
        EndpointAddress::Pipe(_) => Some("Unix sockets are not supported by DNS clusters".to_owned()),
        EndpointAddress::Internal(..) => {
            Some("internal listeners are not supported by DNS clusters".to_owned())
        }
        _ => None,
    });
}

/// Refuses further addresses, where DNS finds the addresses.
pub(super) fn refuse_others(assignment: &Assignment, at: &mut Lower) {
    let mut endpoints = assignment.localities.iter().flat_map(|locality| &locality.endpoints);
    at.unsupported("additional_addresses of DNS clusters", endpoints.any(|one| !one.others.is_empty()));
}

fn refuse(assignment: &Assignment, at: &mut Lower, wrong: impl Fn(&EndpointAddress) -> Option<String>) {
    for (locality_index, locality) in assignment.localities.iter().enumerate() {
        for (index, endpoint) in locality.endpoints.iter().enumerate() {
            if let Some(message) = wrong(&endpoint.address) {
                let path = format!("endpoints[{locality_index}].lb_endpoints[{index}].endpoint.address");
                at.error_at(&path, message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use leno_api::proto::envoy::config::endpoint::v3::ClusterLoadAssignment;

    use crate::config::lower::{Lower, Scope};

    #[test]
    fn endpoints_that_say_the_same_share_it() {
        let endpoint = |port: u16, workload: &str| {
            format!(
                "{{endpoint: {{address: {{socket_address: {{address: 10.0.0.1, port_value: {port}}}}}}}, \
                 metadata: {{filter_metadata: {{istio: {{workload: {workload}}}}}}}}}"
            )
        };
        let endpoints = [endpoint(1, "a"), endpoint(2, "a"), endpoint(3, "b")].join(", ");
        let text = format!("{{cluster_name: c, endpoints: [{{lb_endpoints: [{endpoints}]}}]}}");
        let proto: ClusterLoadAssignment =
            leno_api::decode_text(&text, "assignment").unwrap_or_else(|errors| panic!("{errors}"));
        let lowered = Lower::resource_in(Scope::default(), |at| super::lower(proto, at));
        let assignment = lowered.unwrap_or_else(|rejected| panic!("{rejected}"));
        let metadata: Vec<_> =
            assignment.localities[0].endpoints.iter().map(|endpoint| &endpoint.metadata).collect();
        assert!(metadata[0].is_same(metadata[1]));
        assert_ne!(metadata[1], metadata[2]);
    }
}

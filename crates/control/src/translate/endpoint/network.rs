//! Endpoints in other networks, which are reached by these networks' gateways: mutual TLS passes
//! through them, and tells them by SNI what is meant.

use std::collections::BTreeMap;

use super::{Behind, Place, metadata};
use crate::registry::network::{NetworkGateway, Networks};
use crate::translate::proto::endpoint;
use crate::translate::resource::address;

/// Puts gateways in the place of endpoints that cannot be reached directly from the client's
/// network. `named`: whether gateways may be given by name.
pub(super) fn substitute(places: &mut [Place<'_>], networks: &Networks, client: &str, named: bool) {
    let scale = networks.scale(named);
    for place in places.iter_mut() {
        let endpoints = std::mem::take(&mut place.message.lb_endpoints);
        let behind = std::mem::take(&mut place.behind);
        let mut shares: BTreeMap<&NetworkGateway, u32> = BTreeMap::new();
        for (mut endpoint, behind) in endpoints.into_iter().zip(behind) {
            let Behind::Instance(instance) = &behind else { continue };
            let weight = endpoint.load_balancing_weight.unwrap_or(1).max(1).saturating_mul(scale);
            let gateways = networks.entrances(&instance.network, named);
            // A client that does not say where it is goes by the gateways of all who do.
            let unknown = client.is_empty() && !instance.network.is_empty() && !gateways.is_empty();
            if gateways.is_empty() || (!unknown && is_near(&instance.network, client)) {
                if !instance.address.is_empty() {
                    endpoint.load_balancing_weight = Some(weight);
                    place.message.lb_endpoints.push(endpoint);
                    place.behind.push(behind);
                }
                continue;
            }
            // Gateways tell by SNI what is meant, which only mutual TLS says.
            if speaks_mutual_tls(&endpoint) {
                let share = weight / u32::try_from(gateways.len()).unwrap_or(u32::MAX);
                for gateway in gateways {
                    let sum = shares.entry(gateway).or_default();
                    *sum = sum.saturating_add(share);
                }
            }
        }
        for (gateway, share) in shares {
            place.message.lb_endpoints.push(entrance(gateway, share));
            place.behind.push(Behind::Gateway(gateway.network.clone()));
        }
        place.weigh();
    }
}

/// Whether an endpoint can be reached directly: who does not say where it is, is everywhere.
fn is_near(endpoint: &str, client: &str) -> bool {
    endpoint.is_empty() || client.is_empty() || endpoint == client
}

fn speaks_mutual_tls(endpoint: &endpoint::LbEndpoint) -> bool {
    endpoint
        .metadata
        .as_ref()
        .is_some_and(|metadata| metadata.filter_metadata.contains_key("envoy.transport_socket_match"))
}

fn entrance(gateway: &NetworkGateway, weight: u32) -> endpoint::LbEndpoint {
    endpoint::LbEndpoint {
        load_balancing_weight: Some(weight.max(1)),
        metadata: Some(metadata(&format!(";;;;{}", gateway.cluster), true)),
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(address(&gateway.address, gateway.port)),
            ..endpoint::Endpoint::default()
        })),
        ..endpoint::LbEndpoint::default()
    }
}

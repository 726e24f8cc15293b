//! A proxy as a client: what of it makes a difference to what its workload calls.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::locality::SiteMatters;
use super::patches::Patching;
use super::telemetry::{self, SelectingPairs, is_traced};
use super::{Interception, ProxyFacts, ProxyKey, Role, SelectingLabels, sidecar};

/// The address in the place of one that makes no difference.
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// A proxy without what only matters to those who call its workload. All sidecars for which this is
/// equal share their outbound clusters, endpoints, listeners and routes, and so whatever is derived
/// of these must depend on nothing that is taken away here.
pub(crate) struct ClientOf;

impl Query for ClientOf {
    type Key = ProxyKey;
    type Value = ProxyKey;
    const NAME: &'static str = "client-of";

    fn derive(cx: &Cx<'_>, proxy: &ProxyKey) -> ProxyKey {
        let mut client = ProxyFacts::clone(proxy);
        // What these make is what counts, not what they are chosen by.
        client.patching = Patching { patches: proxy.shared_patches(cx), ..Patching::default() };
        let matters = cx.get::<SiteMatters>(&());
        let site = &mut client.site;
        if !matters.locality {
            site.locality.clear();
        }
        if !matters.node {
            site.node.clear();
        }
        if !matters.network {
            site.network.clear();
        }
        // Everything that a gateway has depends on which gateway it is, and gRPC applications ask for
        // what is theirs by the same types.
        if proxy.role == Role::Sidecar {
            let names = cx.get::<SelectingLabels>(&());
            let pairs = cx.get::<SelectingPairs>(&client.namespace);
            client
                .labels
                .retain(|name, value| names.contains(name) || pairs.contains(&(name.clone(), value.clone())));
        }
        // Only spans tell who sends a request.
        if !is_traced(cx, client.workload(), telemetry::Side::Client, &client.options.overrides) {
            client.identity = Arc::default();
        }
        if proxy.role == Role::Sidecar {
            client.sidecar = sidecar::narrowing(cx, &proxy.workload());
            if matches!(proxy.interception, Interception::Explicit { .. }) {
                client.interception = Interception::Explicit { address: NOWHERE, port: 0 };
            }
        }
        if client == **proxy { proxy.clone() } else { ProxyKey::from(client) }
    }
}

//! A sidecar's listener for what calls its workload: `virtualInbound` (15006), with a chain per
//! port of the workload that a service leads to, and chains for all other ports.
//!
//! Mutual TLS will add chains with `transport_protocol: tls` beside those here, which is why these
//! already ask for `raw_buffer`.

use leno_derive::{Cx, Query};

use super::http::{Routes, Side, connection_manager};
use super::tcp::{Upstream, plain_chain, tcp_proxy};
use super::{RAW_BUFFER, bare, inspect_http, plain_http_match};
use crate::model::mesh::MeshConfig;
use crate::registry::Mesh;
use crate::registry::protocol::Protocol;
use crate::registry::targets::{Target, Targets, Workload};
use crate::translate::name;
use crate::translate::proto::{core, listener, route, ty};
use crate::translate::resource::{Resource, pack};

/// Where captured inbound connections arrive.
const INBOUND_PORT: u16 = 15006;

/// A request that the workload has not seen may be sent again.
const RETRY_ON: &str = "reset-before-request";

/// The listener of a workload; the flag is for TPROXY, which keeps the client's address.
pub(super) struct VirtualInbound;

impl Query for VirtualInbound {
    type Key = (Workload, bool);
    type Value = Resource;
    const NAME: &'static str = "virtual-inbound";

    fn derive(cx: &Cx<'_>, (workload, transparent): &(Workload, bool)) -> Resource {
        let mesh = cx.get::<Mesh>(&());
        let targets = cx.get::<Targets>(workload);
        let mut message =
            bare(name::VIRTUAL_INBOUND, "0.0.0.0", INBOUND_PORT, core::TrafficDirection::Inbound);
        message.transparent = transparent.then_some(true);
        message.listener_filters.push(original_dst());
        // A connection made to the proxy itself would be sent to the proxy again, for ever.
        let mut black_hole = plain_chain(&mesh, "virtualInbound-blackhole", name::BLACK_HOLE_CLUSTER);
        black_hole.filter_chain_match = Some(port_match(INBOUND_PORT));
        message.filter_chains.push(black_hole);
        let mut declared = Vec::new();
        for group in targets.chunk_by(|a, b| a.target == b.target) {
            let Some(first) = group.first() else { continue };
            let protocol = first.service.port(first.port).map_or(Protocol::Auto, |port| port.protocol);
            if protocol != Protocol::Auto {
                declared.push(first.target);
            }
            add_port(&mesh, &mut message, first, protocol);
        }
        add_rest(&mesh, &mut message);
        inspect_http(&mut message, unless_declared(&declared));
        let origins = targets.iter().map(|target| target.service.id.object.clone()).collect();
        Resource::new(name::VIRTUAL_INBOUND, &message, origins)
    }
}

/// Adds the chains of one port.
fn add_port(mesh: &MeshConfig, message: &mut listener::Listener, target: &Target, protocol: Protocol) {
    let port = target.target;
    let name = name::listener("0.0.0.0", port);
    let cluster = name::inbound(port);
    if protocol.is_http_or_auto() {
        let mut found = port_match(port);
        RAW_BUFFER.clone_into(&mut found.transport_protocol);
        if protocol == Protocol::Auto {
            found.application_protocols = plain_http_match().application_protocols;
        }
        let operation = format!("{}:{}/*", target.service.id.host, target.port);
        let routes = Routes::Inline(Box::new(configuration(
            &cluster,
            &format!("inbound|http|{}", target.port),
            operation,
        )));
        message.filter_chains.push(listener::FilterChain {
            name: name.clone(),
            filter_chain_match: Some(found),
            filters: vec![connection_manager(mesh, Side::Inbound, &name, routes)],
            ..listener::FilterChain::default()
        });
    }
    if !protocol.is_http() {
        let mut found = port_match(port);
        RAW_BUFFER.clone_into(&mut found.transport_protocol);
        message.filter_chains.push(listener::FilterChain {
            name,
            filter_chain_match: Some(found),
            filters: vec![tcp_proxy(mesh, &cluster, &Upstream::Cluster(cluster.clone()))],
            ..listener::FilterChain::default()
        });
    }
}

/// Adds the chains for ports that no service leads to.
fn add_rest(mesh: &MeshConfig, message: &mut listener::Listener) {
    let cluster = name::INBOUND_PASSTHROUGH_CLUSTER;
    let routes = Routes::Inline(Box::new(configuration(cluster, "inbound|http|0", ":0/*".to_owned())));
    message.filter_chains.push(listener::FilterChain {
        name: "virtualInbound-catchall-http".to_owned(),
        filter_chain_match: Some(plain_http_match()),
        filters: vec![connection_manager(mesh, Side::Inbound, "0.0.0.0_0", routes)],
        ..listener::FilterChain::default()
    });
    let mut chain = plain_chain(mesh, name::VIRTUAL_INBOUND, cluster);
    chain.filter_chain_match = Some(listener::FilterChainMatch {
        transport_protocol: RAW_BUFFER.to_owned(),
        ..listener::FilterChainMatch::default()
    });
    message.filter_chains.push(chain);
}

/// The routes of an inbound chain: everything to the workload.
fn configuration(cluster: &str, host: &str, operation: String) -> route::RouteConfiguration {
    let action = route::RouteAction {
        timeout: Some(prost_types::Duration::default()),
        max_stream_duration: Some(route::route_action::MaxStreamDuration {
            max_stream_duration: Some(prost_types::Duration::default()),
            grpc_timeout_header_max: Some(prost_types::Duration::default()),
            ..route::route_action::MaxStreamDuration::default()
        }),
        retry_policy: (cluster != name::INBOUND_PASSTHROUGH_CLUSTER).then(|| route::RetryPolicy {
            retry_on: RETRY_ON.to_owned(),
            num_retries: Some(2),
            ..route::RetryPolicy::default()
        }),
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..route::RouteAction::default()
    };
    let message = route::Route {
        name: "default".to_owned(),
        r#match: Some(route::RouteMatch {
            path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".to_owned())),
            ..route::RouteMatch::default()
        }),
        decorator: Some(route::Decorator { operation, ..route::Decorator::default() }),
        action: Some(route::route::Action::Route(action)),
        ..route::Route::default()
    };
    route::RouteConfiguration {
        name: cluster.to_owned(),
        virtual_hosts: vec![route::VirtualHost {
            name: host.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![message],
            ..route::VirtualHost::default()
        }],
        validate_clusters: Some(false),
        ..route::RouteConfiguration::default()
    }
}

/// No looking at ports whose protocol is declared: it costs, and servers may speak first.
fn unless_declared(ports: &[u16]) -> Option<listener::ListenerFilterChainMatchPredicate> {
    use listener::listener_filter_chain_match_predicate::{MatchSet, Rule};
    let mut rules: Vec<listener::ListenerFilterChainMatchPredicate> = ports
        .iter()
        .map(|port| listener::ListenerFilterChainMatchPredicate {
            rule: Some(Rule::DestinationPortRange(ty::v3::Int32Range {
                start: i32::from(*port),
                end: i32::from(*port) + 1,
            })),
        })
        .collect();
    match rules.len() {
        0 | 1 => rules.pop(),
        _ => Some(listener::ListenerFilterChainMatchPredicate {
            rule: Some(Rule::OrMatch(MatchSet { rules })),
        }),
    }
}

fn original_dst() -> listener::ListenerFilter {
    use leno_api::proto::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
    listener::ListenerFilter {
        name: "envoy.filters.listener.original_dst".to_owned(),
        config_type: Some(listener::listener_filter::ConfigType::TypedConfig(pack(&OriginalDst::default()))),
        ..listener::ListenerFilter::default()
    }
}

fn port_match(port: u16) -> listener::FilterChainMatch {
    listener::FilterChainMatch {
        destination_port: Some(u32::from(port)),
        ..listener::FilterChainMatch::default()
    }
}

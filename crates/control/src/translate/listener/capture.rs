//! Where a sidecar gets hold of what its workload calls: the listener behind iptables, or the one
//! that the workload uses as its HTTP proxy.

use std::net::IpAddr;

use leno_api::proto::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use leno_derive::Cx;

use super::filters::{FilterScope, Side};
use super::http::{Routes, connection_manager, stat_prefix};
use super::inbound::on_ports;
use super::outbound::Ports;
use super::tcp::{to_fixed, to_nowhere};
use super::{Frame, bare, bound, encode, http_inspector, listener_filter, localhosts};
use crate::registry::protocol::Protocol;
use crate::scope::outbound::{OutboundPolicy, Unknown};
use crate::scope::{Viewer, sidecar};
use crate::translate::proto::{core, listener};
use crate::translate::resource::Resource;
use crate::translate::route::{action, any_name_routes};
use crate::translate::telemetry::{self, access_log};
use crate::translate::{any_name, name};

/// The listener that all captured outbound connections arrive at.
pub(super) fn virtual_outbound(cx: &Cx<'_>, viewer: &Viewer, transparent: bool) -> Resource {
    let frame = Frame::new(cx, &viewer.options);
    let scope = viewer.filter_scope(Side::Outbound);
    let hosts = frame.wildcards(viewer.families);
    let port = frame.outbound_port();
    let message = bare(name::VIRTUAL_OUTBOUND, hosts, port, core::TrafficDirection::Outbound);
    let mut message = bound(message);
    message.use_original_dst = Some(true);
    message.transparent = transparent.then_some(true);
    message.access_log = access_log::of_listener(cx, &scope);
    // A connection made to the proxy itself would be sent to the proxy again, for ever.
    let black_hole = listener::FilterChain {
        name: "virtualOutbound-blackhole".to_owned(),
        filter_chain_match: Some(listener::FilterChainMatch {
            destination_port: Some(u32::from(port)),
            ..listener::FilterChainMatch::default()
        }),
        filters: to_nowhere(cx, &scope),
        ..listener::FilterChain::default()
    };
    let rest = listener::FilterChain {
        name: "virtualOutbound-catchall-tcp".to_owned(),
        filters: to_unknown(cx, &frame, viewer, &scope),
        ..listener::FilterChain::default()
    };
    message.filter_chains = vec![black_hole, rest];
    if *cx.get::<OutboundPolicy>(viewer) == Unknown::ByName {
        // Deviation: Istio looks for HTTP in all connections, those to known servers that speak first
        // too, and closes those that are silent for 15 s. Here ports of the mesh's services are left
        // alone, for which the destination must be known first, and silence means that it is not HTTP.
        let ports: Vec<u32> = cx.get::<Ports>(&viewer.sight()).iter().map(|port| u32::from(*port)).collect();
        let original = "envoy.filters.listener.original_dst";
        message.listener_filters =
            vec![listener_filter(original, &OriginalDst::default(), None), http_inspector(on_ports(&ports))];
        message.continue_on_listener_filters_timeout = true;
        message.filter_chains.insert(1, by_name(cx, &frame, &scope));
    }
    let mut origins = telemetry::origins(cx, &scope);
    origins.extend(sidecar::origin(&viewer.sight()));
    encode(&frame, name::VIRTUAL_OUTBOUND, &message, origins)
}

/// The chain for requests to what is no service of the mesh, whose hosts are looked up.
fn by_name(cx: &Cx<'_>, frame: &Frame, scope: &FilterScope) -> listener::FilterChain {
    let prefix = stat_prefix(Side::Outbound, &format!("{}_{}", name::VIRTUAL_OUTBOUND, any_name::NAME));
    let routes = Routes::Inline(Box::new(any_name_routes(&frame.mesh)));
    let protocols = frame.plain_http().iter().map(|&protocol| protocol.to_owned());
    listener::FilterChain {
        name: "virtualOutbound-catchall-tcp-http".to_owned(),
        filter_chain_match: Some(listener::FilterChainMatch {
            application_protocols: protocols.collect(),
            ..listener::FilterChainMatch::default()
        }),
        filters: vec![connection_manager(cx, frame, scope, prefix, routes, Some(Protocol::Http))],
        ..listener::FilterChain::default()
    }
}

/// The listener that a workload may use as its HTTP proxy beside what is captured
/// (`proxyHttpPort`); `None` if the mesh wants none.
pub(super) fn http_proxy(cx: &Cx<'_>, viewer: &Viewer) -> Option<Resource> {
    let frame = Frame::new(cx, &viewer.options);
    let port = u16::try_from(frame.mesh.proxy_http_port).ok().filter(|port| *port != 0)?;
    Some(proxy_at(cx, viewer, localhosts(viewer.families), port))
}

/// The filters for what is no service of the mesh.
pub(super) fn to_unknown(
    cx: &Cx<'_>,
    frame: &Frame,
    viewer: &Viewer,
    scope: &FilterScope,
) -> Vec<listener::Filter> {
    let cluster = match cx.get::<OutboundPolicy>(viewer).as_ref() {
        Unknown::Pass | Unknown::ByName => name::PASSTHROUGH_CLUSTER.to_owned(),
        Unknown::Through(proxy) => action::cluster(proxy, None, 0),
        Unknown::Refuse => name::BLACK_HOLE_CLUSTER.to_owned(),
    };
    to_fixed(cx, frame, scope, &cluster, &cluster)
}

/// The listener of a sidecar that its workload uses as its HTTP proxy.
pub(super) fn explicit(cx: &Cx<'_>, viewer: &Viewer, address: IpAddr, port: u16) -> Resource {
    proxy_at(cx, viewer, &[address.to_string()], port)
}

fn proxy_at<S: AsRef<str>>(cx: &Cx<'_>, viewer: &Viewer, addresses: &[S], port: u16) -> Resource {
    let frame = Frame::new(cx, &viewer.options);
    let scope = viewer.filter_scope(Side::Outbound);
    let name = name::listener(addresses.first().map_or("", AsRef::as_ref), port);
    let mut message = bound(bare(&name, addresses, port, core::TrafficDirection::Outbound));
    let routes = Routes::Named(name::HTTP_PROXY.to_owned());
    let prefix = stat_prefix(Side::Outbound, &name);
    message.filter_chains.push(listener::FilterChain {
        filters: vec![connection_manager(cx, &frame, &scope, prefix, routes, None)],
        ..listener::FilterChain::default()
    });
    encode(&frame, &name, &message, telemetry::origins(cx, &scope))
}

//! Where a sidecar gets hold of what its workload calls: the listener behind iptables, or the one
//! that the workload uses as its HTTP proxy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use leno_derive::Cx;

use super::filters::{FilterScope, Side};
use super::http::{Routes, connection_manager, stat_prefix};
use super::tcp::{to_fixed, to_nowhere};
use super::{Frame, bare, bound};
use crate::scope::outbound::{OutboundPolicy, Unknown};
use crate::scope::{Families, Viewer, sidecar};
use crate::translate::name;
use crate::translate::proto::{core, listener};
use crate::translate::resource::Resource;
use crate::translate::route::action;
use crate::translate::telemetry::{self, access_log};

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
    let mut origins = telemetry::origins(cx, &scope);
    origins.extend(sidecar::origin(&viewer.sight()));
    Resource::new(name::VIRTUAL_OUTBOUND, &message, origins)
}

/// The listener that a workload may use as its HTTP proxy beside what is captured
/// (`proxyHttpPort`); `None` if the mesh wants none.
pub(super) fn http_proxy(cx: &Cx<'_>, viewer: &Viewer) -> Option<Resource> {
    let frame = Frame::new(cx, &viewer.options);
    let port = u16::try_from(frame.mesh.proxy_http_port).ok().filter(|port| *port != 0)?;
    let address = match viewer.families {
        Families::V6 => IpAddr::from(Ipv6Addr::LOCALHOST),
        Families::V4 | Families::Both => IpAddr::from(Ipv4Addr::LOCALHOST),
    };
    Some(explicit(cx, viewer, address, port))
}

/// The filters for what is no service of the mesh.
pub(super) fn to_unknown(
    cx: &Cx<'_>,
    frame: &Frame,
    viewer: &Viewer,
    scope: &FilterScope,
) -> Vec<listener::Filter> {
    let cluster = match cx.get::<OutboundPolicy>(viewer).as_ref() {
        Unknown::Pass => name::PASSTHROUGH_CLUSTER.to_owned(),
        Unknown::Through(proxy) => action::cluster(proxy, None, 0),
        Unknown::Refuse => name::BLACK_HOLE_CLUSTER.to_owned(),
    };
    to_fixed(cx, frame, scope, &cluster, &cluster)
}

/// The listener of a sidecar that its workload uses as its HTTP proxy.
pub(super) fn explicit(cx: &Cx<'_>, viewer: &Viewer, address: IpAddr, port: u16) -> Resource {
    let frame = Frame::new(cx, &viewer.options);
    let scope = viewer.filter_scope(Side::Outbound);
    let name = name::listener(address, port);
    let mut message = bound(bare(&name, &[address.to_string()], port, core::TrafficDirection::Outbound));
    let routes = Routes::Named(name::HTTP_PROXY.to_owned());
    let prefix = stat_prefix(Side::Outbound, &name);
    message.filter_chains.push(listener::FilterChain {
        filters: vec![connection_manager(cx, &frame, &scope, prefix, routes, None)],
        ..listener::FilterChain::default()
    });
    Resource::new(&name, &message, telemetry::origins(cx, &scope))
}

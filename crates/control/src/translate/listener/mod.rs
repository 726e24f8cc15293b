//! LDS: where each proxy listens and what it does with connections.
//!
//! - `outbound.rs`: a sidecar's listeners for what its workload calls, with `capture.rs`, the one
//!   that all of it arrives at;
//! - `inbound.rs`: the one for what calls its workload;
//! - `gateway.rs`: a gateway's ports, with `tls.rs`;
//! - `chain.rs`, `http.rs`, `tcp.rs`, `filters.rs`: what these consist of; `proxy_config.rs`: what
//!   the mesh's settings say of HTTP.

mod capture;
mod chain;
pub(crate) mod filters;
mod gateway;
pub(crate) mod grpc;
mod http;
mod inbound;
mod outbound;
mod proxy_config;
mod tcp;
mod tls;

use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::needs;
use super::patch::{self, Family, Subject};
use super::proto::{core, listener};
use super::resource::{Resource, address, pack, pipe};
use crate::model::envoy_filter::PatchContext;
use crate::model::mesh::MeshConfig;
use crate::model::switches::{SwitchInput, Switches};
use crate::scope::client::ClientOf;
use crate::scope::proxy_config::MeshOf;
use crate::scope::sidecar::UNIX;
use crate::scope::telemetry::{self, is_traced};
use crate::scope::{Abilities, Families, Identity, Interception, ProxyKey, ProxyOptions, Role};

/// Istio's ports for captured connections, if the mesh's are none.
const OUTBOUND_PORT: u16 = 15001;
const INBOUND_PORT: u16 = 15006;

/// What HTTP in plain text looks like to the http inspector.
const PLAIN_HTTP: &[&str] = &["http/1.1", "h2c"];

/// The same where HTTP/1.0 is accepted.
const PLAIN_HTTP_WITH_10: &[&str] = &["http/1.0", "http/1.1", "h2c"];

/// The transport of a connection that is not TLS.
const RAW_BUFFER: &str = "raw_buffer";

/// How much the TLS inspector reads at first, bytes; Istio's.
const TLS_INSPECTOR_BUFFER: u32 = 512;

/// All listeners of a proxy.
#[cfg(test)] // proxies are told of the two parts one by one
pub(crate) struct Listeners;

#[cfg(test)]
impl Query for Listeners {
    type Key = ProxyKey;
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "listeners";

    fn derive(cx: &Cx<'_>, proxy: &ProxyKey) -> Vec<Arc<Resource>> {
        let mut listeners = cx.get::<SharedListeners>(&cx.get::<ClientOf>(proxy)).as_ref().clone();
        // Those that iptables lead to come first.
        let at = usize::from(proxy.captures());
        listeners.splice(at..at, cx.get::<OwnListeners>(proxy).iter().cloned());
        listeners
    }
}

/// The listeners that a proxy has as a client, see [`crate::scope::client::ClientOf`]; all of a
/// gateway. A root.
pub(crate) struct SharedListeners;

impl Query for SharedListeners {
    type Key = ProxyKey;
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "shared-listeners";

    fn derive(cx: &Cx<'_>, client: &ProxyKey) -> Vec<Arc<Resource>> {
        let context = client.client_context();
        let patches = &client.patching.patches;
        patch::all(cx, patches, Family::Listener, context, shared(cx, client), |_| Subject::of(context))
    }
}

/// The listeners of a client before EnvoyFilters.
pub(super) fn shared(cx: &Cx<'_>, client: &ProxyKey) -> Vec<Arc<Resource>> {
    match (client.role, client.interception) {
        (Role::Router, interception) => {
            // Where gateways share one network they keep to their own addresses.
            let own = match interception {
                Interception::Explicit { address, .. } => Some(address),
                Interception::Redirect | Interception::Tproxy => None,
            };
            let key = (client.listening(cx), client.workload(), own);
            cx.get::<gateway::GatewayListeners>(&key).as_ref().clone()
        }
        // These ask for each by its name, see `grpc.rs`.
        (Role::Grpc, _) => Vec::new(),
        (Role::Sidecar, Interception::Explicit { .. }) => {
            let viewer = client.listening(cx);
            // Without a Sidecar the workload has only the HTTP proxy.
            if viewer.sidecar.is_none() {
                return Vec::new();
            }
            cx.get::<outbound::OutboundListeners>(&viewer).as_ref().clone()
        }
        (Role::Sidecar, Interception::Redirect | Interception::Tproxy) => {
            let transparent = client.interception == Interception::Tproxy;
            let viewer = client.listening(cx);
            let mut listeners = vec![Arc::new(capture::virtual_outbound(cx, &viewer, transparent))];
            listeners.extend(capture::http_proxy(cx, &viewer).map(Arc::new));
            listeners.extend(cx.get::<outbound::OutboundListeners>(&viewer).iter().cloned());
            listeners
        }
    }
}

/// The listeners of a sidecar alone: for what calls its workload, or at an address of its own. A root.
pub(crate) struct OwnListeners;

impl Query for OwnListeners {
    type Key = ProxyKey;
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "own-listeners";

    fn derive(cx: &Cx<'_>, proxy: &ProxyKey) -> Vec<Arc<Resource>> {
        let explicit = explicit(cx, proxy).and_then(|listener| {
            let (patches, subject) = (proxy.shared_patches(cx), Subject::of(proxy.client_context()));
            patch::one(cx, &patches, Family::Listener, subject, listener)
        });
        let (patches, context) = (proxy.own_patches(cx), PatchContext::SidecarInbound);
        let (family, subject) = (Family::ListenerWithRoutes, |_: &Resource| Subject::of(context));
        let own = patch::all(cx, &patches, family, context, own(cx, proxy), subject);
        explicit.into_iter().chain(own).collect()
    }
}

/// The listener that a workload uses as its HTTP proxy, if nothing is captured. It is outbound, though
/// its address makes it the proxy's own; before EnvoyFilters.
pub(super) fn explicit(cx: &Cx<'_>, proxy: &ProxyKey) -> Option<Arc<Resource>> {
    match (proxy.role, proxy.interception) {
        (Role::Sidecar, Interception::Explicit { address, port }) => {
            let viewer = cx.get::<ClientOf>(proxy).listening(cx);
            Some(Arc::new(capture::explicit(cx, &viewer, address, port)))
        }
        (Role::Router | Role::Sidecar | Role::Grpc, _) => None,
    }
}

/// A sidecar's listeners for what calls its workload, before EnvoyFilters.
pub(super) fn own(cx: &Cx<'_>, proxy: &ProxyKey) -> Vec<Arc<Resource>> {
    match proxy.role {
        Role::Router | Role::Grpc => Vec::new(),
        Role::Sidecar => cx.get::<inbound::InboundListeners>(&inbound_key(cx, proxy)).as_ref().clone(),
    }
}

/// What a proxy's listeners for what calls its workload depend on.
fn inbound_key(cx: &Cx<'_>, proxy: &ProxyKey) -> inbound::InboundKey {
    inbound::InboundKey {
        workload: proxy.workload(),
        captures: proxy.captures(),
        address: proxy.address(),
        transparent: proxy.interception == Interception::Tproxy,
        families: proxy.families,
        options: proxy.options.clone(),
        certificates: proxy.site.certificates,
        identity: inbound_identity(cx, proxy),
    }
}

/// Who a proxy is to those who look at what it reports of requests to its workload; unknown if it
/// reports nothing.
fn inbound_identity(cx: &Cx<'_>, proxy: &ProxyKey) -> Arc<Identity> {
    match is_traced(cx, proxy.workload(), telemetry::Side::Server, &proxy.options.overrides) {
        true => Arc::clone(&proxy.identity),
        false => Arc::default(),
    }
}

/// What all listeners of a proxy are made with.
pub(super) struct Frame {
    mesh: Arc<MeshConfig>,
    switches: Switches,
    options: ProxyOptions,
}

impl Frame {
    fn new(cx: &Cx<'_>, options: &ProxyOptions) -> Frame {
        let switches =
            cx.input::<SwitchInput>(&()).map_or_else(Switches::default, |found| found.as_ref().clone());
        Frame { mesh: cx.get::<MeshOf>(&options.overrides), switches, options: options.clone() }
    }

    /// Where captured outbound connections arrive.
    fn outbound_port(&self) -> u16 {
        u16::try_from(self.mesh.proxy_listen_port).unwrap_or(OUTBOUND_PORT)
    }

    /// Where captured inbound connections arrive.
    fn inbound_port(&self) -> u16 {
        u16::try_from(self.mesh.proxy_inbound_listen_port).unwrap_or(INBOUND_PORT)
    }

    /// What the http inspector must find for a connection to count as HTTP.
    fn plain_http(&self) -> &'static [&'static str] {
        if self.switches.http10 { PLAIN_HTTP_WITH_10 } else { PLAIN_HTTP }
    }

    /// The addresses that stand for all, the main one first, where connections arrive from outside or
    /// by iptables: of both families only with `ISTIO_DUAL_STACK`.
    fn wildcards(&self, families: Families) -> &'static [&'static str] {
        match families {
            Families::Both if !self.switches.dual_stack => wildcards(Families::V4),
            families => wildcards(families),
        }
    }
}

/// The addresses that stand for all, the main one first.
fn wildcards(families: Families) -> &'static [&'static str] {
    match families {
        Families::V4 => &["0.0.0.0"],
        Families::V6 => &["::"],
        Families::Both => &["0.0.0.0", "::"],
    }
}

/// The addresses at which a workload reaches its own proxy, the main one first.
fn localhosts(families: Families) -> &'static [&'static str] {
    match families {
        Families::V4 => &["127.0.0.1"],
        Families::V6 => &["::1"],
        Families::Both => &["127.0.0.1", "::1"],
    }
}

/// The finished listener.
fn encode(
    frame: &Frame,
    name: &str,
    message: &listener::Listener,
    origins: Vec<crate::model::ObjectRef>,
) -> Resource {
    let mut resource = Resource::new(name, message, origins);
    if frame.options.abilities.has(Abilities::ON_DEMAND) {
        resource.needs = needs::of_listener(message);
    }
    resource
}

/// A listener without filter chains, at one or several addresses of which the first gives the name
/// if there is no other.
fn bare<S: AsRef<str>>(
    name: &str,
    hosts: &[S],
    port: u16,
    direction: core::TrafficDirection,
) -> listener::Listener {
    let mut addresses = hosts.iter().map(|host| match host.as_ref().strip_prefix(UNIX) {
        Some(path) => pipe(path),
        None => address(host.as_ref(), port),
    });
    listener::Listener {
        name: name.to_owned(),
        address: addresses.next(),
        additional_addresses: addresses
            .map(|address| listener::AdditionalAddress {
                address: Some(address),
                ..listener::AdditionalAddress::default()
            })
            .collect(),
        traffic_direction: direction as i32,
        ..listener::Listener::default()
    }
}

/// A listener of the operating system's: it takes one connection at a time, so that the workers
/// share them.
fn bound(message: listener::Listener) -> listener::Listener {
    listener::Listener { max_connections_to_accept_per_socket_event: Some(1), ..message }
}

/// The listener filter that tells HTTP from other protocols by the first bytes.
fn http_inspector(disabled: Option<listener::ListenerFilterChainMatchPredicate>) -> listener::ListenerFilter {
    use leno_api::proto::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
    listener_filter("envoy.filters.listener.http_inspector", &HttpInspector::default(), disabled)
}

/// The listener filter that finds TLS, the server name asked for and the protocols offered.
fn tls_inspector() -> listener::ListenerFilter {
    use leno_api::proto::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
    let config =
        TlsInspector { initial_read_buffer_size: Some(TLS_INSPECTOR_BUFFER), ..TlsInspector::default() };
    listener_filter("envoy.filters.listener.tls_inspector", &config, None)
}

fn listener_filter<T: prost::Message + prost::Name>(
    name: &str,
    config: &T,
    disabled: Option<listener::ListenerFilterChainMatchPredicate>,
) -> listener::ListenerFilter {
    listener::ListenerFilter {
        name: name.to_owned(),
        filter_disabled: disabled,
        config_type: Some(listener::listener_filter::ConfigType::TypedConfig(pack(config))),
    }
}

/// A network filter with its configuration.
pub(crate) fn network_filter<T: prost::Message + prost::Name>(name: &str, config: &T) -> listener::Filter {
    listener::Filter {
        name: name.to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(pack(config))),
    }
}

//! LDS: where each proxy listens and what it does with connections.
//!
//! - `outbound.rs`: a sidecar's listeners for what its workload calls;
//! - `inbound.rs`: the one for what calls its workload;
//! - `gateway.rs`: a gateway's ports;
//! - `http.rs`, `tcp.rs`, `access_log.rs`: the filters that these consist of.

mod access_log;
mod gateway;
mod http;
mod inbound;
mod outbound;
mod tcp;

use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::proto::{core, listener};
use super::resource::{Resource, address, pack};
use crate::scope::{Interception, ProxyKey, Role};

/// What HTTP in plain text looks like to the http inspector.
const PLAIN_HTTP: [&str; 3] = ["http/1.0", "http/1.1", "h2c"];

/// The transport of a connection that is not TLS.
const RAW_BUFFER: &str = "raw_buffer";

/// All listeners of a proxy. A root.
pub(crate) struct Listeners;

impl Query for Listeners {
    type Key = ProxyKey;
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "listeners";

    fn derive(cx: &Cx<'_>, proxy: &ProxyKey) -> Vec<Arc<Resource>> {
        match (proxy.role, proxy.interception) {
            (Role::Router, interception) => {
                // Where gateways share one network they keep to their own addresses.
                let own = match interception {
                    Interception::Explicit { address, .. } => Some(address),
                    Interception::Redirect | Interception::Tproxy => None,
                };
                let key = (proxy.viewer(cx), proxy.workload(), own);
                cx.get::<gateway::GatewayListeners>(&key).as_ref().clone()
            }
            (Role::Sidecar, Interception::Explicit { address, port }) => {
                vec![Arc::new(outbound::explicit(cx, address, port))]
            }
            (Role::Sidecar, Interception::Redirect | Interception::Tproxy) => {
                let transparent = proxy.interception == Interception::Tproxy;
                let inbound = cx.get::<inbound::VirtualInbound>(&(proxy.workload(), transparent));
                let mut listeners = vec![Arc::new(outbound::virtual_outbound(cx)), inbound];
                listeners.extend(cx.get::<outbound::OutboundListeners>(&proxy.viewer(cx)).iter().cloned());
                listeners
            }
        }
    }
}

/// A listener without filter chains.
fn bare(name: &str, host: &str, port: u16, direction: core::TrafficDirection) -> listener::Listener {
    listener::Listener {
        name: name.to_owned(),
        address: Some(address(host, port)),
        traffic_direction: direction as i32,
        ..listener::Listener::default()
    }
}

/// A listener that is reached from `virtualOutbound` only.
fn captured(name: &str, host: &str, port: u16) -> listener::Listener {
    listener::Listener {
        bind_to_port: Some(false),
        ..bare(name, host, port, core::TrafficDirection::Outbound)
    }
}

/// Makes a listener tell HTTP from other protocols by the first bytes, waiting as long as it takes.
fn inspect_http(
    message: &mut listener::Listener,
    disabled: Option<listener::ListenerFilterChainMatchPredicate>,
) {
    use leno_api::proto::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
    message.listener_filters.push(listener::ListenerFilter {
        name: "envoy.filters.listener.http_inspector".to_owned(),
        filter_disabled: disabled,
        config_type: Some(listener::listener_filter::ConfigType::TypedConfig(
            pack(&HttpInspector::default()),
        )),
    });
    message.listener_filters_timeout = Some(prost_types::Duration::default());
    message.continue_on_listener_filters_timeout = true;
}

/// The condition of a chain for plain HTTP among other protocols.
fn plain_http_match() -> listener::FilterChainMatch {
    listener::FilterChainMatch {
        transport_protocol: RAW_BUFFER.to_owned(),
        application_protocols: PLAIN_HTTP.iter().map(|&protocol| protocol.to_owned()).collect(),
        ..listener::FilterChainMatch::default()
    }
}

/// A network filter with its configuration.
fn filter<T: prost::Message + prost::Name>(name: &str, config: &T) -> listener::Filter {
    listener::Filter {
        name: name.to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(pack(config))),
    }
}

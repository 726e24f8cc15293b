//! Which part of a resource a patch is for. What a patch does not say is met by everything.

use crate::model::envoy_filter::{
    FilterChainMatch, FilterMatch, ListenerMatch, RouteAction, RouteConfigurationMatch, VirtualHostMatch,
};
use crate::translate::name::{self, VIRTUAL_INBOUND, VIRTUAL_OUTBOUND};
use crate::translate::proto::{cluster, core, listener, route};

use super::Subject;
use super::run::Step;
use crate::model::envoy_filter::PatchContext;

impl Step<'_> {
    fn listener(&self) -> Option<&ListenerMatch> {
        self.found?.listener.as_ref()
    }

    fn chain(&self) -> Option<&FilterChainMatch> {
        self.listener()?.filter_chain.as_ref()
    }

    /// The network filter that it names.
    pub(super) fn network_filter(&self) -> Option<&FilterMatch> {
        self.chain()?.filter.as_ref()
    }

    /// The HTTP filter that it names.
    pub(super) fn http_filter(&self) -> Option<&str> {
        self.network_filter()?.sub_filter.as_ref().map(|filter| filter.name.as_str())
    }

    /// The listener filter that it names.
    pub(super) fn listener_filter(&self) -> Option<&str> {
        self.listener().map(|found| found.listener_filter.as_str()).filter(|name| !name.is_empty())
    }

    fn routes(&self) -> Option<&RouteConfigurationMatch> {
        self.found?.route_configuration.as_ref()
    }

    fn virtual_host(&self) -> Option<&VirtualHostMatch> {
        self.routes()?.vhost.as_ref()
    }

    /// Whether it is for a listener, which is patched itself if `whole`.
    pub(super) fn meets_listener(&self, message: &listener::Listener, whole: bool) -> bool {
        let Some(found) = self.listener() else { return true };
        if !found.name.is_empty() && found.name != message.name {
            return false;
        }
        // The ports of these are told by their chains.
        if !whole && is_virtual(message) {
            return true;
        }
        found.port_number == 0 || port_of(message.address.as_ref()) == Some(found.port_number)
    }

    /// Whether it is for a chain of a listener that it is for.
    pub(super) fn meets_chain(&self, message: &listener::Listener, chain: &listener::FilterChain) -> bool {
        let Some(found) = self.listener() else { return true };
        let conditions = chain.filter_chain_match.as_ref();
        let port = conditions.and_then(|conditions| conditions.destination_port).unwrap_or(0);
        if is_virtual(message) && found.port_number != 0 && found.port_number != port {
            return false;
        }
        let Some(found) = &found.filter_chain else { return true };
        let names = conditions.map(|conditions| conditions.server_names.as_slice()).unwrap_or_default();
        let protocols = conditions.map(|conditions| conditions.application_protocols.as_slice());
        let protocols = protocols.unwrap_or_default();
        let transport = conditions.map_or("", |conditions| conditions.transport_protocol.as_str());
        let mut offered = found.application_protocols.split(',');
        (found.name.is_empty() || found.name == chain.name)
            && (found.sni.is_empty() || names.contains(&found.sni))
            && (found.transport_protocol.is_empty() || found.transport_protocol == transport)
            && (found.application_protocols.is_empty()
                || offered.all(|wanted| protocols.iter().any(|protocol| protocol == wanted)))
            && (found.destination_port == 0 || found.destination_port == port)
    }

    /// Whether it is for a network filter of a chain that it is for.
    pub(super) fn meets_filter(&self, filter: &listener::Filter) -> bool {
        self.network_filter().is_none_or(|found| found.name == filter.name)
    }

    /// Whether it is for a route configuration.
    pub(super) fn meets_routes(&self, subject: &Subject, message: &route::RouteConfiguration) -> bool {
        let Some(found) = self.routes() else { return true };
        if !found.name.is_empty() && found.name != message.name {
            return false;
        }
        let number = found.port_number;
        if subject.context != PatchContext::Gateway {
            return number == 0 || number == port_of_routes(&message.name);
        }
        let parts = GatewayName::parse(&message.name);
        (found.port_name.is_empty() || found.port_name == parts.port_name)
            && (found.gateway.is_empty() || found.gateway == parts.gateway)
            && (number == 0
                || subject.ports.iter().any(|port| u32::from(*port) == number)
                || (subject.ports.is_empty() && number == parts.port))
    }

    /// Whether it is for a virtual host of a route configuration that it is for.
    pub(super) fn meets_host(&self, host: &route::VirtualHost) -> bool {
        self.virtual_host().is_none_or(|found| {
            (found.name.is_empty() || found.name == host.name)
                && (found.domain_name.is_empty() || host.domains.contains(&found.domain_name))
        })
    }

    /// Whether it names a route.
    pub(super) fn names_route(&self) -> bool {
        self.virtual_host().is_some_and(|found| found.route.is_some())
    }

    /// Whether it is for a route of a virtual host that it is for.
    pub(super) fn meets_route(&self, message: &route::Route) -> bool {
        use route::route::Action;
        let Some(found) = self.virtual_host().and_then(|found| found.route.as_ref()) else { return true };
        let action = match (&message.action, found.action) {
            (_, RouteAction::Any) => true,
            (Some(Action::Route(_)), wanted) => wanted == RouteAction::Route,
            (Some(Action::Redirect(_)), wanted) => wanted == RouteAction::Redirect,
            (Some(Action::DirectResponse(_)), wanted) => wanted == RouteAction::DirectResponse,
            (Some(_) | None, _) => true,
        };
        action && (found.name.is_empty() || found.name == message.name)
    }

    /// Whether it is for a cluster.
    pub(super) fn meets_cluster(&self, subject: &Subject, message: &cluster::Cluster) -> bool {
        let Some(found) = self.found.and_then(|found| found.cluster.as_ref()) else { return true };
        if !found.name.is_empty() {
            return found.name == message.name;
        }
        let name = &message.name;
        let outbound = name::parse_outbound(name).or_else(|| name::parse_outbound_sni(name));
        let (port, subset, host) = match outbound {
            Some(parts) => (u32::from(parts.port), parts.subset, parts.host),
            None => (port_of_inbound(name), "", ""),
        };
        let is_service = |wanted: &String| match subject.hosts.is_empty() {
            true => host == wanted,
            false => subject.hosts.contains(wanted),
        };
        (found.subset.is_empty() || found.subset == subset)
            && (found.service.is_empty() || is_service(&found.service))
            && (found.port_number == 0 || found.port_number == port)
    }
}

/// Whether a listener is one of the two that all captured connections arrive at.
fn is_virtual(message: &listener::Listener) -> bool {
    message.name == VIRTUAL_INBOUND || message.name == VIRTUAL_OUTBOUND
}

fn port_of(address: Option<&core::Address>) -> Option<u32> {
    match address?.address.as_ref()? {
        core::address::Address::SocketAddress(address) => match address.port_specifier.as_ref()? {
            core::socket_address::PortSpecifier::PortValue(port) => Some(*port),
            core::socket_address::PortSpecifier::NamedPort(_) => None,
        },
        _ => None,
    }
}

/// The port of a sidecar's route configuration: `9080` or `inbound|9080||`. As in Istio, those of one
/// service on a port have none.
fn port_of_routes(name: &str) -> u32 {
    name.parse().unwrap_or_else(|_| port_of_inbound(name))
}

fn port_of_inbound(name: &str) -> u32 {
    let rest = name.strip_prefix("inbound|").and_then(|rest| rest.split('|').next());
    rest.and_then(|port| port.parse().ok()).unwrap_or(0)
}

/// What the name of a gateway's route configuration says: `http.8080`, or
/// `https.443.PORT_NAME.NAME.NAMESPACE`.
#[derive(Debug, Default, PartialEq)]
struct GatewayName {
    port: u32,
    port_name: String,
    /// `namespace/name`.
    gateway: String,
}

impl GatewayName {
    fn parse(name: &str) -> GatewayName {
        let parts: Vec<&str> = name.split('.').collect();
        match parts.as_slice() {
            ["http", port, ..] => GatewayName { port: port.parse().unwrap_or(0), ..GatewayName::default() },
            ["https", port, port_name, name, namespace] => GatewayName {
                port: port.parse().unwrap_or(0),
                port_name: (*port_name).to_owned(),
                gateway: format!("{namespace}/{name}"),
            },
            _ => GatewayName::default(),
        }
    }
}

//! The names of resources, exactly as Istio spells them: people, dashboards and EnvoyFilters know
//! them by heart.

use std::fmt;
use std::net::IpAddr;

use crate::registry::Service;

/// Where unknown destinations go when they may pass.
pub(crate) const PASSTHROUGH_CLUSTER: &str = "PassthroughCluster";
/// Where connections go that must not.
pub(crate) const BLACK_HOLE_CLUSTER: &str = "BlackHoleCluster";
/// Where connections to undeclared ports of the workload go.
pub(crate) const INBOUND_PASSTHROUGH_CLUSTER: &str = "InboundPassthroughCluster";
/// The listener that all captured outbound connections arrive at.
pub(crate) const VIRTUAL_OUTBOUND: &str = "virtualOutbound";
/// The listener that all captured inbound connections arrive at.
pub(crate) const VIRTUAL_INBOUND: &str = "virtualInbound";
/// The route configuration of the explicit HTTP proxy.
pub(crate) const HTTP_PROXY: &str = "http_proxy";

/// The name of an outbound cluster: `outbound|9080|v1|reviews.default.svc.cluster.local`.
pub(crate) fn outbound(port: u16, subset: &str, host: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

/// The name of an inbound cluster: `inbound|9080||`.
pub(crate) fn inbound(port: u16) -> String {
    format!("inbound|{port}||")
}

/// The name of the cache of names below a host.
pub(crate) fn dns_cache(host: &str) -> String {
    format!("{host}_dfp_dns_cache")
}

/// What a mesh's pattern for names in statistics can mention, see [`Counted::name`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counted<'n> {
    pub(crate) host: &'n str,
    /// The name and the namespace of a Service of Kubernetes; others go by their host.
    pub(crate) kubernetes: Option<(&'n str, &'n str)>,
    /// The number and the name of the service's port.
    pub(crate) port: (u16, &'n str),
    pub(crate) subset: &'n str,
    /// The workload's port; where there is none the pattern's mention of it stays as it is.
    pub(crate) target: Option<u16>,
}

impl<'n> Counted<'n> {
    /// A port of a service.
    pub(crate) fn service(service: &'n Service, port: (u16, &'n str)) -> Counted<'n> {
        let kubernetes = service.is_kubernetes().then(|| (service.name.as_str(), service.namespace()));
        Counted { host: &service.id.host, kubernetes, port, ..Counted::default() }
    }

    /// The name in statistics by a mesh's pattern, such as `%SERVICE%_%SERVICE_PORT%`.
    pub(crate) fn name(&self, pattern: &str) -> String {
        let (short, name) = match self.kubernetes {
            Some((name, namespace)) => (format!("{name}.{namespace}"), name),
            None => (self.host.to_owned(), self.host),
        };
        let named = pattern
            .replace("%SERVICE%", &short)
            .replace("%SERVICE_NAME%", name)
            .replace("%SERVICE_FQDN%", self.host)
            .replace("%SUBSET_NAME%", self.subset);
        let named = match self.target {
            Some(target) => named.replace("%TARGET_PORT%", &target.to_string()),
            None => named,
        };
        named.replace("%SERVICE_PORT%", &self.port.0.to_string()).replace("%SERVICE_PORT_NAME%", self.port.1)
    }
}

/// What an outbound cluster's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outbound<'n> {
    pub(crate) port: u16,
    /// Empty for the whole service.
    pub(crate) subset: &'n str,
    pub(crate) host: &'n str,
}

/// Takes an outbound cluster's name apart.
pub(crate) fn parse_outbound(name: &str) -> Option<Outbound<'_>> {
    let mut parts = name.strip_prefix("outbound|")?.splitn(3, '|');
    let (port, subset, host) = (parts.next()?, parts.next()?, parts.next()?);
    Some(Outbound { port: port.parse().ok()?, subset, host })
}

/// Takes the name apart that [`outbound_sni`] gives.
pub(crate) fn parse_outbound_sni(name: &str) -> Option<Outbound<'_>> {
    let mut parts = name.strip_prefix("outbound_.")?.splitn(3, "_.");
    let (port, subset, host) = (parts.next()?, parts.next()?, parts.next()?);
    Some(Outbound { port: port.parse().ok()?, subset, host })
}

/// The name of a listener: `0.0.0.0_9080`.
pub(crate) fn listener(address: impl fmt::Display, port: u16) -> String {
    format!("{address}_{port}")
}

/// The name of a gateway's route configuration for plain HTTP: `http.8080`, or with the address
/// where it does not listen on all.
pub(crate) fn gateway_route(port: u16, bind: &str) -> String {
    if bind.is_empty() { format!("http.{port}") } else { format!("http.{port}.{bind}") }
}

/// The name of a gateway's route configuration for HTTP over TLS, of which each server has its own.
pub(crate) fn gateway_tls_route(
    port: u16,
    port_name: &str,
    name: &str,
    namespace: &str,
    bind: &str,
) -> String {
    let bind = if bind.is_empty() { String::new() } else { format!(".{bind}") };
    format!("https.{port}.{port_name}.{name}.{namespace}{bind}")
}

/// The SNI by which a gateway with AUTO_PASSTHROUGH finds a cluster, and the cluster's name:
/// `outbound_.9080_.v1_.reviews.default.svc.cluster.local`.
pub(crate) fn outbound_sni(port: u16, subset: &str, host: &str) -> String {
    format!("outbound_.{port}_.{subset}_.{host}")
}

/// The name of a virtual host: `reviews.default.svc.cluster.local:9080`.
pub(crate) fn virtual_host(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        _ => format!("{host}:{port}"),
    }
}

/// Where in Kubernetes' API an Istio object is, as Istio notes it in metadata.
pub(crate) fn config_path(kind: &str, namespace: &str, name: &str) -> String {
    format!("/apis/networking.istio.io/v1/namespaces/{namespace}/{kind}/{name}")
}

#[cfg(test)]
mod tests {
    use super::{
        Outbound, gateway_route, gateway_tls_route, inbound, listener, outbound, outbound_sni,
        parse_outbound, parse_outbound_sni, virtual_host,
    };

    #[test]
    fn names_are_istios() {
        assert_eq!(outbound(9080, "", "a.b.svc.cluster.local"), "outbound|9080||a.b.svc.cluster.local");
        assert_eq!(outbound(9080, "v1", "a.b"), "outbound|9080|v1|a.b");
        assert_eq!(inbound(9080), "inbound|9080||");
        assert_eq!(listener("0.0.0.0", 9080), "0.0.0.0_9080");
        assert_eq!(gateway_route(8080, ""), "http.8080");
        assert_eq!(gateway_route(8080, "10.0.0.1"), "http.8080.10.0.0.1");
        assert_eq!(gateway_tls_route(443, "https", "web", "a", ""), "https.443.https.web.a");
        assert_eq!(gateway_tls_route(443, "https", "web", "a", "10.0.0.1"), "https.443.https.web.a.10.0.0.1");
        assert_eq!(outbound_sni(80, "v1", "a.b"), "outbound_.80_.v1_.a.b");
        assert_eq!(virtual_host("a.b", 80), "a.b:80");
        assert_eq!(virtual_host("2001:db8::1", 80), "[2001:db8::1]:80");
    }

    #[test]
    fn outbound_names_come_apart() {
        let parsed = Some(Outbound { port: 80, subset: "v1", host: "a.b" });
        assert_eq!(parse_outbound("outbound|80|v1|a.b"), parsed);
        assert_eq!(parse_outbound_sni("outbound_.80_.v1_.a.b"), parsed);
        assert_eq!(parse_outbound_sni("outbound_.80_._.a.b").map(|name| name.subset), Some(""));
        assert_eq!(parse_outbound("outbound|80||a.b").map(|name| name.subset), Some(""));
        for bad in ["outbound|x||a", "outbound|80|a", "inbound|80||", "outbound|70000||a", ""] {
            assert_eq!(parse_outbound(bad), None, "{bad}");
        }
    }
}

//! What a Sidecar says of what comes in: where a workload takes connections, and how many.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use leno_derive::{Cx, Query};

use super::{UNIX, of_workload};
use crate::model::Key;
use crate::model::destination_rule::ConnectionPool;
use crate::model::sidecar::{CaptureMode, IngressListener};
use crate::registry::protocol::Protocol;
use crate::registry::targets::Workload;
use crate::scope::Families;

/// What the Sidecar of a workload says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ingress {
    /// The Sidecar.
    pub(crate) sidecar: Key,
    /// The namespace of the workload.
    pub(crate) namespace: String,
    /// Where it takes connections; if empty, on the ports that services lead to.
    pub(crate) listeners: Vec<IngressListener>,
    /// How many it takes on any port.
    pool: Option<ConnectionPool>,
}

/// Finds it.
pub(crate) struct IngressOf;

impl Query for IngressOf {
    type Key = Workload;
    type Value = Option<Ingress>;
    const NAME: &'static str = "ingress-of";

    fn derive(cx: &Cx<'_>, workload: &Workload) -> Option<Ingress> {
        let sidecar = of_workload(cx, workload)?;
        let (listeners, pool) = (&sidecar.spec.ingress, &sidecar.spec.inbound_connection_pool);
        (!listeners.is_empty() || pool.is_some()).then(|| Ingress {
            sidecar: sidecar.meta.key(),
            namespace: workload.namespace.clone(),
            listeners: listeners.clone(),
            pool: pool.clone(),
        })
    }
}

/// Where connections go that have been taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// Where they were meant to go.
    Destination,
    /// Where they were meant to go, at another port.
    DestinationPort(u16),
    Address(IpAddr, u16),
    /// A socket of the file system.
    Path(String),
}

impl Ingress {
    /// What the workload takes on a port.
    pub(crate) fn pool(&self, port: u16) -> Option<&ConnectionPool> {
        let own = self.listeners.iter().find(|listener| listener.number() == Some(port));
        own.and_then(|listener| listener.connection_pool.as_ref()).or(self.pool.as_ref())
    }

    /// The name by which traces and telemetry call the workload where no service leads to it.
    pub(crate) fn host(&self) -> String {
        format!("{}.{}", self.sidecar.name, self.namespace)
    }
}

impl IngressListener {
    /// Its port.
    pub(crate) fn number(&self) -> Option<u16> {
        self.port.as_ref().and_then(|port| u16::try_from(port.number).ok()).filter(|number| *number != 0)
    }

    /// What is spoken there, inside of TLS if that is ended.
    pub(crate) fn protocol(&self) -> Protocol {
        let name = self.port.as_ref().map_or("", |port| port.protocol.as_str());
        match Protocol::of_name(name) {
            Protocol::Tls if self.tls.is_some() && name.eq_ignore_ascii_case("HTTPS") => Protocol::Http,
            Protocol::Tls if self.tls.is_some() => Protocol::Tcp,
            protocol => protocol,
        }
    }

    /// Whether it is a listener of the operating system's; `captures`: whether the proxy gets its
    /// connections by iptables.
    pub(crate) fn is_bound(&self, captures: bool) -> bool {
        match self.capture_mode {
            CaptureMode::None => true,
            CaptureMode::Default => !captures,
            CaptureMode::Iptables => false,
        }
    }

    /// Where its connections go. `own` is the workload's address, where it is known.
    // Deviation: istiod writes the address of each replica where `0.0.0.0` asks for it. Connections that
    // were captured have been sent to that address, so the port is all that is changed, and replicas
    // share their configuration. Of a replica with IPv6 only it writes 127.0.0.1, where nobody listens.
    pub(crate) fn endpoint(&self, families: Families, captures: bool, own: Option<IpAddr>) -> Endpoint {
        if let Some(path) = self.default_endpoint.strip_prefix(UNIX) {
            return Endpoint::Path(path.to_owned());
        }
        let parsed = self.default_endpoint.rsplit_once(':');
        let Some((host, port)) = parsed.and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)))
        else {
            return Endpoint::Destination;
        };
        let host = host.trim_matches(['[', ']']);
        if host.parse::<IpAddr>().is_ok_and(|host| host.is_loopback()) {
            return Endpoint::Address(loopback(families, host.contains(':')), port);
        }
        match own {
            Some(own) => Endpoint::Address(own, port),
            None if self.is_bound(captures) => {
                Endpoint::Address(loopback(families, host.contains(':')), port)
            }
            None => Endpoint::DestinationPort(port),
        }
    }
}

/// The workload's own address for itself; of both kinds the wanted one.
fn loopback(families: Families, prefers_v6: bool) -> IpAddr {
    let v6 = families == Families::V6 || (prefers_v6 && families == Families::Both);
    if v6 { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) }
}

#[cfg(test)]
mod tests {
    use super::{Endpoint, IngressListener};
    use crate::model::sidecar::CaptureMode;
    use crate::scope::Families;

    #[test]
    fn endpoints_are_where_they_say() {
        let check = |text: &str, families: Families, captures: bool, own: Option<&str>, expected: &str| {
            let listener =
                IngressListener { default_endpoint: text.to_owned(), ..IngressListener::default() };
            let own = own.map(|own| own.parse().unwrap());
            let found = match listener.endpoint(families, captures, own) {
                Endpoint::Destination => "destination".to_owned(),
                Endpoint::DestinationPort(port) => format!("destination:{port}"),
                Endpoint::Address(host, port) => std::net::SocketAddr::new(host, port).to_string(),
                Endpoint::Path(path) => path,
            };
            assert_eq!(found, expected, "{text}");
        };
        check("", Families::V4, true, None, "destination");
        check("127.0.0.1:80", Families::V4, true, None, "127.0.0.1:80");
        check("127.0.0.1:80", Families::V6, true, None, "[::1]:80");
        check("[::1]:80", Families::V4, true, None, "127.0.0.1:80");
        check("[::1]:80", Families::Both, true, None, "[::1]:80");
        check("0.0.0.0:80", Families::V4, true, None, "destination:80");
        check(":80", Families::V4, true, None, "destination:80");
        check("0.0.0.0:80", Families::V4, false, Some("10.0.0.1"), "10.0.0.1:80");
        check("[::]:80", Families::V6, false, Some("2001:db8::1"), "[2001:db8::1]:80");
        check("unix:///run/x", Families::V4, true, None, "/run/x");
        // Who binds without iptables does not know what was wanted.
        let bound = IngressListener {
            default_endpoint: "0.0.0.0:80".to_owned(),
            capture_mode: CaptureMode::None,
            ..IngressListener::default()
        };
        let expected = Endpoint::Address(std::net::Ipv4Addr::LOCALHOST.into(), 80);
        assert_eq!(bound.endpoint(Families::V4, true, None), expected);
    }
}

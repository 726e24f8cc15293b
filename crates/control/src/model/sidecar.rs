//! `Sidecar`: what the proxies of a workload listen on, and which services they know.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use serde::Deserialize;

use super::check::Check;
use super::destination_rule::ConnectionPool;
use super::diagnostic::Finding;
use super::gateway::ServerTls;
use super::selector::WorkloadLabels;
use super::virtual_service::Destination;

/// The `spec` of a Sidecar.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Sidecar {
    /// Pods it applies to; none = namespace default.
    pub(crate) workload_selector: Option<WorkloadLabels>,
    /// Explicit inbound listeners.
    pub(crate) ingress: Vec<IngressListener>,
    /// Explicit outbound scope.
    pub(crate) egress: Vec<EgressListener>,
    /// Inbound pool settings.
    pub(crate) inbound_connection_pool: Option<ConnectionPool>,
    /// Unknown destination policy.
    pub(crate) outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

/// Where a workload takes connections.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct IngressListener {
    /// Port to accept on.
    pub(crate) port: Option<SidecarPort>,
    /// IP to bind.
    pub(crate) bind: String,
    /// DEFAULT/IPTABLES/NONE.
    pub(crate) capture_mode: CaptureMode,
    /// 127.0.0.1:p, 0.0.0.0:p or unix://.
    pub(crate) default_endpoint: String,
    /// Terminate custom TLS (PeerAuth DISABLE).
    pub(crate) tls: Option<ServerTls>,
    /// Pool for this port.
    pub(crate) connection_pool: Option<ConnectionPool>,
}

/// A port of a listener.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct SidecarPort {
    /// Port number.
    pub(crate) number: u32,
    /// Protocol (adds HTTP_PROXY use).
    pub(crate) protocol: String,
    /// Name.
    pub(crate) name: String,
    /// Deprecated.
    pub(crate) target_port: u32,
}

/// How traffic gets to a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum CaptureMode {
    #[default]
    Default,
    Iptables,
    None,
}

/// Through what a workload reaches others, and which of them it sees.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct EgressListener {
    /// Port to accept on; none = all.
    pub(crate) port: Option<SidecarPort>,
    /// IP or unix socket.
    pub(crate) bind: String,
    /// DEFAULT/IPTABLES/NONE.
    pub(crate) capture_mode: CaptureMode,
    /// Ns/host list imported (./*, ~/*).
    pub(crate) hosts: Vec<String>,
}

/// What becomes of traffic to destinations that the mesh does not know.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct OutboundTrafficPolicy {
    /// REGISTRY_ONLY or ALLOW_ANY.
    pub(crate) mode: OutboundMode,
    /// Send unknown traffic to this service.
    pub(crate) egress_proxy: Option<Destination>,
}

/// Whether unknown destinations may be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum OutboundMode {
    #[default]
    RegistryOnly,
    AllowAny,
}

/// Hosts at which a workload's own endpoints may be.
const LOCAL_HOSTS: [&str; 5] = ["", "127.0.0.1", "0.0.0.0", "::1", "::"];

impl Sidecar {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        check.selector("workloadSelector", self.workload_selector.as_ref().map(|selector| &selector.labels));
        if self.egress.is_empty()
            && self.ingress.is_empty()
            && self.outbound_traffic_policy.is_none()
            && self.inbound_connection_pool.is_none()
        {
            check.invalid(
                "is empty: one of ingress, egress, inboundConnectionPool and outboundTrafficPolicy is needed",
            );
        }
        let mut ports = HashSet::new();
        check.each("ingress", &self.ingress, |check, listener| ingress(check, listener, &mut ports));
        if let Some(pool) = &self.inbound_connection_pool {
            check.at("inboundConnectionPool", |check| pool.check(check));
        }
        self.check_egress(&mut check);
        if let Some(policy) = &self.outbound_traffic_policy
            && let Some(proxy) = &policy.egress_proxy
        {
            check.at("outboundTrafficPolicy", |check| {
                check.at("egressProxy", |check| {
                    if policy.mode != OutboundMode::AllowAny {
                        check.invalid("needs the mode ALLOW_ANY");
                    }
                    proxy.check(check);
                    if proxy.port.is_none() {
                        check.invalid_at("port", "is needed");
                    }
                });
            });
        }
        check.into_findings()
    }

    fn check_egress(&self, check: &mut Check) {
        let (mut ports, mut sockets) = (HashSet::new(), HashSet::new());
        let last = self.egress.len().saturating_sub(1);
        check.at("egress", |check| {
            for (index, listener) in self.egress.iter().enumerate() {
                check.item(index, |check| {
                    match &listener.port {
                        None if index < last => {
                            check.invalid("only the last listener may be without a port");
                        }
                        None => {}
                        Some(port) => {
                            egress_port(check, listener, port);
                            let fresh = match port.number {
                                0 => sockets.insert(listener.bind.as_str()),
                                number => ports.insert(number),
                            };
                            if !fresh {
                                check.invalid_at("port", "there is another listener like this");
                            }
                        }
                    }
                    egress_hosts(check, &listener.hosts);
                });
            }
        });
    }
}

fn port_fields(check: &mut Check, port: &SidecarPort) {
    check.at("port", |check| {
        if !port.name.is_empty() {
            check.at("name", |check| check.port_name(&port.name));
        }
        check.at("protocol", |check| check.protocol(&port.protocol));
        if port.target_port != 0 {
            check.invalid_at("targetPort", "has no effect in Sidecars");
        }
    });
}

fn bind_address(check: &mut Check, bind: &str) {
    if !bind.is_empty() && bind.parse::<IpAddr>().is_err() {
        check.invalid_at("bind", format!("{bind:?} is no address"));
    }
}

fn ingress(check: &mut Check, listener: &IngressListener, ports: &mut HashSet<u32>) {
    let Some(port) = &listener.port else { return check.invalid_at("port", "is needed") };
    port_fields(check, port);
    check.at("port", |check| {
        check.at("number", |check| {
            check.port(port.number);
            if !ports.insert(port.number) {
                check.invalid(format!("there is another listener with port {}", port.number));
            }
        });
    });
    bind_address(check, &listener.bind);
    if !listener.default_endpoint.is_empty() {
        check.at("defaultEndpoint", |check| default_endpoint(check, &listener.default_endpoint));
        let own = ["0.0.0.0:", "[::]:", ":"].iter().any(|all| listener.default_endpoint.starts_with(all));
        if own && listener.capture_mode == CaptureMode::None {
            let effect = "where connections are captured otherwise, the proxy does not know the workload's \
                          address and uses 127.0.0.1";
            check.warn_at("defaultEndpoint", "unsupported", effect);
        }
    }
    if let Some(tls) = &listener.tls {
        check.at("tls", |check| tls.check_inbound(check, &port.protocol));
    }
    if let Some(pool) = &listener.connection_pool {
        check.at("connectionPool", |check| {
            pool.check(check);
            let protocol = port.protocol.to_ascii_uppercase();
            let is_http = matches!(protocol.as_str(), "HTTP" | "HTTP2" | "HTTP_PROXY" | "GRPC" | "GRPC-WEB");
            if pool.http.is_some() && !is_http {
                check.warn_at("http", "no-effect", "the port's protocol is not HTTP");
            }
        });
    }
}

/// `127.0.0.1:PORT`, `:PORT`, `[::1]:PORT` or `unix://PATH`.
fn default_endpoint(check: &mut Check, endpoint: &str) {
    if let Some(path) = endpoint.strip_prefix("unix://") {
        return check.unix_path(path);
    }
    let good = endpoint.rsplit_once(':').is_some_and(|(host, port)| {
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        LOCAL_HOSTS.contains(&host) && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if !good {
        check.invalid(format!(
            "{endpoint:?} is none of 127.0.0.1:PORT, 0.0.0.0:PORT, [::1]:PORT, [::]:PORT and unix://PATH"
        ));
    }
}

fn egress_port(check: &mut Check, listener: &EgressListener, port: &SidecarPort) {
    port_fields(check, port);
    if port.number != 0 {
        check.at("port", |check| check.at("number", |check| check.port(port.number)));
        return bind_address(check, &listener.bind);
    }
    match listener.bind.strip_prefix("unix://") {
        Some(path) => check.at("bind", |check| check.unix_path(path)),
        None => check.invalid_at("bind", "port 0 needs a socket of the file system, unix://PATH"),
    }
    if listener.capture_mode == CaptureMode::Iptables {
        check.invalid_at("captureMode", "a socket of the file system cannot be captured");
    }
}

fn egress_hosts(check: &mut Check, hosts: &[String]) {
    if hosts.is_empty() {
        check.invalid_at("hosts", "at least one host is needed");
    }
    let mut seen: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    check.each("hosts", hosts, |check, host| check.scoped_host(host, false));
    check.at("hosts", |check| {
        for (index, text) in hosts.iter().enumerate() {
            let Some((namespace, host)) = text.split_once('/').filter(|_| !text.starts_with('~')) else {
                continue;
            };
            let known = seen.entry(namespace).or_default();
            if known.contains("*") || !known.insert(host) || (host == "*" && known.len() > 1) {
                check.item(index, |check| check.warn("duplicate", format!("{text:?} overlaps with others")));
            }
        }
        if seen.len() > 1 && seen.get("*").is_some_and(|hosts| hosts.contains("*")) {
            check.warn("duplicate", "*/* stands for all hosts, so the others have no effect");
        }
    });
}

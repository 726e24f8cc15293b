//! Which connections of a workload go through its proxy, as Istio's `istio-iptables` decides it.
//!
//! [`Redirect`] says what is wanted. [`Redirect::steps`] (in `steps`) is the rules, a pure function: the same rules
//! in the same order as Istio's. [`Redirect::rules`] are these as tables of nf_tables. Who puts them into the kernel,
//! and takes them away: [`crate::intercept`].
//!
//! One difference: where only one user exists (user namespaces) a proxy cannot be told from applications by
//! its user, so it may be told by a socket mark instead.

mod steps;

use std::net::{IpAddr, Ipv4Addr};

use leno_base::Cidr;

pub use self::steps::Step;
use crate::rules::{Family, Interface, Ruleset};

/// What is to be redirected. The defaults are those of Istio's injection, with the proxy known by user and group
/// 1337.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// Where the proxy takes connections to the pod (`PROXY_INBOUND_PORT`, 15006).
    pub inbound_port: u16,
    /// Where the proxy takes connections from the pod (`PROXY_PORT`, 15001).
    pub outbound_port: u16,
    /// The port of HBONE tunnels, which are never redirected (`INBOUND_TUNNEL_PORT`, 15008).
    pub tunnel_port: u16,
    /// The proxy's users: what a process of theirs sends is the proxy's.
    pub proxy_uids: Vec<u32>,
    /// The proxy's groups, likewise.
    pub proxy_gids: Vec<u32>,
    /// The `SO_MARK` of the proxy's sockets, likewise. Setting it takes `CAP_NET_ADMIN` (or `CAP_NET_RAW`).
    pub proxy_mark: Option<u32>,
    /// How connections come to the proxy's inbound port.
    pub mode: InboundMode,
    /// `traffic.sidecar.istio.io/includeInboundPorts`.
    pub include_inbound_ports: Ports,
    /// `traffic.sidecar.istio.io/excludeInboundPorts`; as in Istio it counts only where all are included.
    pub exclude_inbound_ports: Vec<u16>,
    /// `traffic.sidecar.istio.io/includeOutboundPorts`: redirected whatever the address.
    pub include_outbound_ports: Vec<u16>,
    /// `traffic.sidecar.istio.io/excludeOutboundPorts`, of TCP and of UDP (names).
    pub exclude_outbound_ports: Vec<u16>,
    /// `traffic.sidecar.istio.io/includeOutboundIPRanges`.
    pub include_outbound_cidrs: Cidrs,
    /// `traffic.sidecar.istio.io/excludeOutboundIPRanges`; it wins over the included ones.
    pub exclude_outbound_cidrs: Vec<Cidr>,
    /// `traffic.sidecar.istio.io/excludeInterfaces`: nothing that comes or goes through them is redirected.
    pub exclude_interfaces: Vec<Interface>,
    /// `istio.io/reroute-virtual-interfaces`: what comes in through them (from virtual machines) is outbound.
    pub reroute_interfaces: Vec<Interface>,
    /// `ISTIO_OUTBOUND_OWNER_GROUPS`, `ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE`: whose connections are redirected.
    pub owner_groups: Groups,
    /// Which questions for names go to the agent, on [`Redirect::DNS_PORT`].
    pub dns: Dns,
    /// Whether packets that belong to no connection are dropped, instead of being answered with a reset
    /// (`INVALID_DROP`).
    pub drop_invalid: bool,
    /// The addresses of loopback that are the application's own (`ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR`).
    pub loopback: Cidr,
    /// Whether there are rules for IPv6 too.
    pub ipv6: bool,
}

/// How inbound connections come to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InboundMode {
    /// Their destination is changed (`REDIRECT`); the proxy asks for the original one.
    Redirect,
    /// They stay as they are (`TPROXY`): the proxy has a transparent socket, and can have the client's address
    /// when it connects to the application.
    Tproxy {
        /// The mark of packets that stay on this machine (1337).
        mark: u32,
        /// The table of routes by which they do (133).
        table: u32,
    },
}

/// A set of ports as Istio's annotations give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// `*`
    All,
    /// A list, which may be empty.
    Only(Vec<u16>),
}

/// A set of address ranges as Istio's annotations give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cidrs {
    /// `*`
    All,
    /// A list, which may be empty.
    Only(Vec<Cidr>),
}

/// Groups of processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Groups {
    /// All but these.
    AllBut(Vec<u32>),
    /// These only.
    Only(Vec<u32>),
}

/// Which questions for names are redirected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dns {
    /// None.
    None,
    /// Those to these servers, which are those of `/etc/resolv.conf`.
    Servers(Vec<IpAddr>),
    /// All on port 53.
    All,
}

impl Default for Redirect {
    fn default() -> Redirect {
        Redirect {
            inbound_port: 15006,
            outbound_port: 15001,
            tunnel_port: 15008,
            proxy_uids: vec![1337],
            proxy_gids: vec![1337],
            proxy_mark: None,
            mode: InboundMode::Redirect,
            include_inbound_ports: Ports::All,
            exclude_inbound_ports: vec![15090, 15021, 15020, 22],
            include_outbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            include_outbound_cidrs: Cidrs::All,
            exclude_outbound_cidrs: Vec::new(),
            exclude_interfaces: Vec::new(),
            reroute_interfaces: Vec::new(),
            owner_groups: Groups::AllBut(Vec::new()),
            dns: Dns::None,
            drop_invalid: false,
            loopback: Cidr::host(Ipv4Addr::LOCALHOST.into()),
            ipv6: false,
        }
    }
}

impl Redirect {
    /// Where the agent answers for names.
    pub const DNS_PORT: u16 = 15053;

    /// Istio's defaults for a proxy that is known by the mark 1337 of its sockets.
    pub fn by_mark() -> Redirect {
        Redirect {
            proxy_uids: Vec::new(),
            proxy_gids: Vec::new(),
            proxy_mark: Some(1337),
            ..Redirect::default()
        }
    }

    /// The families that there are rules for.
    pub fn families(&self) -> &'static [Family] {
        if self.ipv6 { &Family::ALL } else { &[Family::V4] }
    }

    /// The mark and the table of routes of TPROXY, if anything comes in that way.
    pub fn tproxy(&self) -> Option<(u32, u32)> {
        match (self.mode, &self.include_inbound_ports) {
            (InboundMode::Tproxy { mark, table }, Ports::All) => Some((mark, table)),
            (InboundMode::Tproxy { mark, table }, Ports::Only(ports)) if !ports.is_empty() => {
                Some((mark, table))
            }
            _ => None,
        }
    }

    /// The rules as tables.
    pub fn rules(&self) -> Ruleset {
        let tables = self.families().iter().flat_map(|&family| Step::tables(family, &self.steps(family)));
        Ruleset { tables: tables.collect() }
    }
}

#[cfg(test)]
mod tests;

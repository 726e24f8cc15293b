//! How this machine is used: network namespaces, or loopback addresses where it has none. Says for
//! both where everything listens.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use leno_node::Mode;

use super::address::Addresses;
use super::plan::{Given, PodPlan};

/// How replicas are kept apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Each in a network namespace, with its traffic redirected.
    Namespaces {
        /// Who owns the namespaces.
        mode: Mode,
        /// How a proxy is told from applications.
        owner: Owner,
    },
    /// Each on a loopback address, with `http_proxy`.
    Loopback {
        /// Ports of the control plane on 127.0.0.1: xDS, and debug pages.
        ports: [u16; 2],
    },
}

/// How redirection tells a proxy from applications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// It runs as user 1337, as Istio has it.
    User,
    /// Its sockets carry the mark 1337.
    Mark,
}

/// The user, group and mark of proxies.
pub(crate) const PROXY_ID: u32 = 1337;
/// The port of a proxy's admin interface.
pub(crate) const ADMIN_PORT: u16 = 15000;
/// The port where a proxy says that it is ready.
pub(crate) const STATUS_PORT: u16 = 15021;
/// The port of a proxy's metrics.
pub(crate) const METRICS_PORT: u16 = 15090;
/// The port of a sidecar's HTTP proxy, where traffic is not redirected.
pub(crate) const HTTP_PROXY_PORT: u16 = 15080;

const NODE: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);

impl Layout {
    /// The ranges of addresses.
    pub(crate) fn ranges(&self) -> Given {
        let pods = match self {
            Layout::Namespaces { .. } => Addresses::new(10, 244),
            Layout::Loopback { .. } => Addresses::new(127, 244),
        };
        Given { pods, services: Addresses::new(10, 96) }
    }

    /// The address that pods reach the node by.
    pub(crate) fn node(&self) -> Ipv4Addr {
        match self {
            Layout::Namespaces { .. } => NODE,
            Layout::Loopback { .. } => Ipv4Addr::LOCALHOST,
        }
    }

    /// Where the control plane serves xDS and debug pages.
    pub(crate) fn control_plane(&self) -> [SocketAddr; 2] {
        let ports = match self {
            Layout::Namespaces { .. } => [15010, 15014],
            Layout::Loopback { ports } => *ports,
        };
        ports.map(|port| SocketAddr::new(IpAddr::V4(self.node()), port))
    }

    /// Where a pod's proxy has its admin interface; in a namespace, one that only the pod sees.
    pub(crate) fn admin(&self, pod: &PodPlan) -> SocketAddr {
        let address = match self {
            Layout::Namespaces { .. } => Ipv4Addr::LOCALHOST,
            Layout::Loopback { .. } => pod.address,
        };
        SocketAddr::new(IpAddr::V4(address), ADMIN_PORT)
    }

    /// The address that a pod's proxy has its own ports on.
    pub(crate) fn own_address(&self, pod: &PodPlan) -> Ipv4Addr {
        match self {
            Layout::Namespaces { .. } => Ipv4Addr::UNSPECIFIED,
            Layout::Loopback { .. } => pod.address,
        }
    }

    pub(crate) fn is_loopback(&self) -> bool {
        matches!(self, Layout::Loopback { .. })
    }

    /// Whether containers can have users, and files of their own.
    pub(crate) fn mounts(&self) -> bool {
        matches!(self, Layout::Namespaces { mode: Mode::Root, .. })
    }

    /// Whether a proxy must mark its sockets.
    pub(crate) fn marks(&self) -> bool {
        matches!(self, Layout::Namespaces { owner: Owner::Mark, .. })
    }
}

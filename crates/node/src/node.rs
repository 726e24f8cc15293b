//! The inner process becomes a node: mounts and the node's end of the network. Pods: [`crate::pod`].

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::netdevice;

use crate::control::Publisher;
use crate::error::{During, NodeError};
use crate::link::{self, Via};
use crate::net::Ipv4Net;
use crate::netlink::Socket;
use crate::nft;
use crate::outer::VARIABLE;
use crate::reaper;
use crate::rules::Family;
use crate::services::{self, Service};
use crate::support::Mode;
use crate::sys;

/// Under /proc/sys/net/ipv4. A new network namespace takes over what the host was set to, which need not suit it.
const SETTINGS: [(&str, &str); 7] = [
    ("ip_forward", "1"),
    // A pod that reaches itself through a service would be sent redirects, which are of no use to it, and which
    // count against the "unreachable" that ends a hopeless attempt to connect at once.
    ("conf/all/send_redirects", "0"),
    ("conf/default/send_redirects", "0"),
    // The node's address is on loopback, and pods ask for it on their links.
    ("conf/all/arp_ignore", "0"),
    ("conf/default/arp_ignore", "0"),
    ("conf/all/rp_filter", "0"),
    ("conf/default/rp_filter", "0"),
];
const SERVICES_TABLE: u8 = 100;
pub(crate) const LOOPBACK: u32 = 1; // the index of `lo` in every network namespace

/// The addresses of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// The node's own address: the pods' default gateway, and where they reach servers in the inner process.
    pub address: Ipv4Addr,
    /// The prefix length of the network that pods are in.
    pub prefix: u8,
    /// The addresses of services. No link has them; see [`Node::services`].
    pub services: Ipv4Net,
}

impl Default for Network {
    /// 10.244.0.1/16, with services in 10.96.0.0/16
    fn default() -> Network {
        Network {
            address: Ipv4Addr::new(10, 244, 0, 1),
            prefix: 16,
            services: Ipv4Net { address: Ipv4Addr::new(10, 96, 0, 0), prefix: 16 },
        }
    }
}

impl Network {
    /// The prefix that all pods are in.
    pub fn net(&self) -> Ipv4Net {
        Ipv4Net { address: self.address, prefix: self.prefix }
    }
}

/// The node that the inner process is. Clones are the same node.
#[derive(Clone, Debug)]
pub struct Node {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    network: Network,
    mode: Mode,
    publisher: Publisher,
    links: AtomicU32,
}

impl Node {
    /// Whether this process was started by [`crate::Outer::start`].
    pub fn is_inner() -> bool {
        std::env::var_os(VARIABLE).is_some()
    }

    /// Makes this process, which [`crate::Outer::start`] started, a node: private mounts with a /proc of its
    /// own, loopback up with the node's address, IPv4 forwarding on. From now on orphans
    /// are buried, and the process ends when the outer one does.
    ///
    /// Call it once, first thing. It blocks for some milliseconds and needs no runtime. Do not start children
    /// other than by [`crate::Process`] afterwards: their exit status may be taken by the burial of orphans.
    ///
    /// # Errors
    ///
    /// The step that failed; the outer process learns it, too.
    pub fn enter(network: Network) -> Result<Node, NodeError> {
        let (publisher, mode) = control_socket().during(|| "not started as the inner process".into())?;
        let result = Node::set_up(network, mode, publisher.clone());
        publisher.entered(result.as_ref().map(|_| ())).during(|| "the outer process is gone".into())?;
        result
    }

    /// How the node's namespaces are owned.
    pub fn mode(&self) -> Mode {
        self.shared.mode
    }

    /// The node's addresses.
    pub fn network(&self) -> Network {
        self.shared.network
    }

    /// The way to the ports of the host.
    pub fn publisher(&self) -> Publisher {
        self.shared.publisher.clone()
    }

    /// Makes services reachable at their own addresses, from all pods and from the node, as kube-proxy does it:
    /// each connection to a service goes to one of its endpoints, at random, and comes from its client's
    /// address. Replaces all services of before, as a whole; connections that exist stay where they are.
    ///
    /// Connections that a pod redirects to its proxy do not get here.
    ///
    /// # Errors
    ///
    /// The kernel's refusal; then the services of before stay.
    pub fn services(&self, services: &[Service]) -> Result<(), NodeError> {
        let request = nft::replace(&[Family::V4], &services::rules(services));
        Socket::netfilter()
            .and_then(|socket| socket.transact(&request))
            .during(|| "cannot install the services".into())
    }

    /// A name for another link of the node.
    pub(crate) fn next_link(&self) -> String {
        format!("leno{}", self.shared.links.fetch_add(1, Ordering::Relaxed))
    }

    fn set_up(network: Network, mode: Mode, publisher: Publisher) -> Result<Node, NodeError> {
        if !rustix::process::getpid().is_init() {
            return Err(NodeError::new(
                "not started as the inner process",
                io::Error::other("it is not the first process of its namespace"),
            ));
        }
        if network.prefix > 30 {
            let why = format!("{}/{} has no room for pods", network.address, network.prefix);
            return Err(NodeError::new("bad network", io::Error::new(io::ErrorKind::InvalidInput, why)));
        }
        sys::make_mounts_private().during(|| "cannot make mounts private".into())?;
        sys::mount_proc().during(|| "cannot mount /proc".into())?;
        reaper::bury_orphans().during(|| "cannot start the thread that buries orphans".into())?;

        let route = Socket::route().during(|| "cannot open a netlink socket".into())?;
        route.transact(&link::set_up(LOOPBACK)).during(|| "cannot bring loopback up".into())?;
        // On loopback: each pod has a link of its own to the node, and the node answers there for all its addresses.
        route
            .transact(&link::add_address(LOOPBACK, network.address, 32))
            .during(|| format!("cannot give the node {}", network.address))?;
        // Without any route to a service a process on the node would fail before its connection is forwarded to
        // an endpoint. Pods' packets do not take this one: unless forwarded, they are answered "unreachable".
        let via = Via::Link { source: Some(network.address) };
        route
            .transact(&link::add_route(SERVICES_TABLE, network.services, LOOPBACK, &via))
            .and_then(|()| route.transact(&link::add_output_table(SERVICES_TABLE)))
            .during(|| format!("cannot route the node's own connections to {}", network.services))?;
        for (setting, value) in SETTINGS {
            std::fs::write(format!("/proc/sys/net/ipv4/{setting}"), value)
                .during(|| format!("cannot set net/ipv4/{setting} to {value}"))?;
        }

        let links = AtomicU32::new(1);
        Ok(Node { shared: Arc::new(Shared { network, mode, publisher, links }) })
    }
}

/// The index of a link of the calling thread's network namespace.
pub(crate) fn index_of(name: &str) -> io::Result<u32> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    Ok(netdevice::name_to_index(socket, name)?)
}

fn control_socket() -> io::Result<(Publisher, Mode)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let malformed = || io::Error::other(format!("{VARIABLE} is missing or malformed"));
    let value = std::env::var(VARIABLE).map_err(|_| malformed())?;
    let (number, mode) = value.split_once(':').ok_or_else(malformed)?;
    let number: RawFd = number.parse().map_err(|_| malformed())?;
    let mode = match mode {
        "root" => Mode::Root,
        "user" => Mode::User,
        _ => return Err(malformed()),
    };
    if number <= 2 || !sys::is_open(number) {
        return Err(malformed());
    }
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(io::Error::other("the node has been entered before"));
    }
    // SAFETY: the outer process left this file open for this purpose, and only the first caller gets here.
    #[allow(unsafe_code)]
    let socket = unsafe { sys::inherited(number)? };

    // The kernel kills this process with its parent. This is for the moment before it was told to, and for a
    // parent that has merely closed its end.
    let watched = socket.try_clone()?;
    thread::Builder::new().name("outer-gone".into()).spawn(move || {
        loop {
            let mut files = [PollFd::from_borrowed_fd(watched.as_fd(), PollFlags::empty())];
            match rustix::event::poll(&mut files, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            if files.iter().any(|file| file.revents().intersects(PollFlags::HUP | PollFlags::ERR)) {
                std::process::exit(0);
            }
        }
    })?;
    Ok((Publisher::new(socket), mode))
}

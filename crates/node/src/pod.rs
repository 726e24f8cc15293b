//! A pod: network, mount and UTS namespaces that several processes share, linked to the node point to point.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use crate::error::{During, NodeError};
use crate::intercept::{self, Choice, Options};
use crate::link::{self, MAIN_TABLE, Peer, Via};
use crate::net::Ipv4Net;
use crate::netlink::Socket;
use crate::nft;
use crate::node::{self, LOOPBACK, Node};
use crate::redirect::Redirect;
use crate::rules::{Family, Ruleset};
use crate::sys::{self, Namespaces};

const LINK: &str = "eth0";
const EVERYWHERE: Ipv4Net = Ipv4Net { address: Ipv4Addr::UNSPECIFIED, prefix: 0 };
const LONGEST_HOST_NAME: usize = 63;

/// What a pod is to be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// The pod's name: its host name (cut at 63 bytes), and its name in errors.
    pub name: String,
    /// Its address, inside the node's [`crate::Network`].
    pub address: Ipv4Addr,
    /// A file that the pod sees as /etc/hosts. Rewrite it *in place* (truncate and write, not rename) and the
    /// pod sees the change. `None`: the machine's.
    pub hosts: Option<PathBuf>,
    /// A file that the pod sees as /etc/resolv.conf, as for `hosts`. A machine without that file (or with a
    /// dangling link) has nothing to put it on; then it is left out with a warning.
    pub resolv_conf: Option<PathBuf>,
}

/// A pod. Clones are the same pod; dropping the last removes it.
#[derive(Clone, Debug)]
pub struct Pod {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    address: Ipv4Addr,
    namespaces: Arc<Namespaces>,
    link: String,
    removed: AtomicBool,
}

impl Pod {
    /// Creates the namespaces and the network: `eth0` with the address, loopback, a default route to the node
    /// (so that addresses that nobody has, as those of services, leave through it and can be redirected), and
    /// ports below 1024 open to all users. Blocks for some milliseconds. Nothing runs in it yet.
    ///
    /// # Errors
    ///
    /// The step that failed; what it had made is gone again.
    pub fn create(node: &Node, spec: &PodSpec) -> Result<Pod, NodeError> {
        let failed = |what: &str| format!("pod {}: {what}", spec.name);
        let network = node.network();
        if !network.net().contains(spec.address) || spec.address == network.address {
            let why = format!("{} is not a free address of the network {}", spec.address, network.net());
            return Err(NodeError::new(
                failed("bad address"),
                io::Error::new(io::ErrorKind::InvalidInput, why),
            ));
        }
        let namespaces =
            sys::on_thread(|| make_namespaces(spec)).during(|| failed("cannot start a thread"))??;

        let link = node.next_link();
        let peer = Peer { name: LINK, namespace: Some(namespaces.net.as_raw_fd()) };
        Socket::route()
            .and_then(|socket| socket.transact(&link::add_veth(&link, &peer)))
            .during(|| failed("cannot link it to the node"))?;
        let pod = Pod {
            shared: Arc::new(Shared {
                name: spec.name.clone(),
                address: spec.address,
                namespaces: Arc::new(namespaces),
                link,
                removed: AtomicBool::new(false),
            }),
        };
        pod.within(|| configure_links(spec.address, &network))?
            .during(|| failed("cannot configure its network"))?;
        route_to_pod(&pod.shared.link, spec.address, network.address)
            .during(|| failed("cannot route to it"))?;
        Ok(pod)
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The pod's address.
    pub fn address(&self) -> Ipv4Addr {
        self.shared.address
    }

    /// Sends connections through the pod's proxy from now on; replaces earlier rules, as a whole. Connections
    /// that exist stay as they are.
    ///
    /// # Errors
    ///
    /// The kernel's refusal; then the earlier rules stay in force.
    pub fn redirect(&self, redirect: &Redirect) -> Result<(), NodeError> {
        self.within(|| {
            intercept::apply(redirect, &Options { backend: Choice::Nftables, ..Options::default() })
        })?
        .map(drop)
        .map_err(io::Error::other)
        .during(|| format!("pod {}: cannot install redirection rules", self.name()))
    }

    /// The same with rules of the caller's own making.
    ///
    /// # Errors
    ///
    /// The kernel's refusal; then the earlier rules stay in force.
    pub fn install(&self, rules: &Ruleset) -> Result<(), NodeError> {
        let request = nft::replace(&[Family::V4], rules);
        self.within(|| Socket::netfilter()?.transact(&request))?
            .during(|| format!("pod {}: cannot install rules", self.name()))
    }

    /// Removes the redirection.
    pub fn remove_redirect(&self, redirect: &Redirect) -> Result<(), NodeError> {
        self.within(|| intercept::remove(redirect, Choice::Nftables))?
            .map_err(io::Error::other)
            .during(|| format!("pod {}: cannot remove redirection rules", self.name()))
    }

    /// Runs a closure on a thread of its own inside the pod's network namespace and returns its result: sockets
    /// that it creates belong to the pod, also after they are returned. Files are those of the node.
    ///
    /// # Errors
    ///
    /// When the thread cannot start or join the namespace. A panic inside is passed on.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NodeError> {
        let step = || format!("pod {}: cannot enter its network", self.name());
        sys::on_thread(|| self.shared.namespaces.join_network().map(|()| work())).during(step)?.during(step)
    }

    /// Cuts the pod off and lets go of its namespaces, which end with the last process in them: stop those
    /// before. Other clones of this pod are of no use afterwards.
    pub fn remove(self) {
        self.shared.cut_off();
    }

    pub(crate) fn namespaces(&self) -> Arc<Namespaces> {
        self.shared.namespaces.clone()
    }
}

impl Shared {
    fn cut_off(&self) {
        if self.removed.swap(true, Ordering::SeqCst) {
            return;
        }
        let deleted = Socket::route().and_then(|socket| socket.transact(&link::delete(&self.link)));
        if let Err(e) = deleted
            && e != Errno::NODEV
        {
            tracing::warn!(pod = self.name, "cannot delete its link {}: {e}", self.link);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.cut_off();
    }
}

/// Makes the calling thread's new namespaces ready, all but the link to the node.
fn make_namespaces(spec: &PodSpec) -> Result<Namespaces, NodeError> {
    let failed = |what: &str| format!("pod {}: {what}", spec.name);
    let namespaces = Namespaces::unshare().during(|| failed("cannot create namespaces"))?;
    sys::make_mounts_private().during(|| failed("cannot make mounts private"))?;
    if let Some(hosts) = &spec.hosts {
        rustix::mount::mount_bind(hosts, "/etc/hosts")
            .during(|| failed(&format!("cannot mount {} on /etc/hosts", hosts.display())))?;
    }
    if let Some(file) = &spec.resolv_conf {
        mount_resolv_conf(spec, file)?;
    }
    let name = spec.name.as_bytes();
    rustix::system::sethostname(name.get(..LONGEST_HOST_NAME).unwrap_or(name))
        .during(|| failed("cannot set its host name"))?;
    // Containers may bind port 80 as any user, as under Docker and containerd.
    if let Err(e) = std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0") {
        tracing::warn!(pod = spec.name, "ports below 1024 stay with root: {e}");
    }
    Ok(namespaces)
}

fn mount_resolv_conf(spec: &PodSpec, file: &Path) -> Result<(), NodeError> {
    const TARGET: &str = "/etc/resolv.conf";
    let step = || format!("pod {}: cannot mount {} on {TARGET}", spec.name, file.display());
    std::fs::metadata(file).during(step)?;
    if std::fs::metadata(TARGET).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        tracing::warn!(pod = spec.name, "this machine has no {TARGET}, so neither has the pod");
        return Ok(());
    }
    rustix::mount::mount_bind(file, TARGET).during(step)
}

/// Inside the pod's network namespace, once `eth0` is there. All but the pod itself is behind the node, so that
/// the node sees both directions of each connection, which services need ([`crate::services`]).
fn configure_links(address: Ipv4Addr, network: &node::Network) -> io::Result<()> {
    let route = Socket::route()?;
    route.transact(&link::set_up(LOOPBACK))?;
    let eth0 = node::index_of(LINK)?;
    route.transact(&link::add_address(eth0, address, 32))?;
    route.transact(&link::set_up(eth0))?;
    route.transact(&link::add_route(
        MAIN_TABLE,
        Ipv4Net::host(network.address),
        eth0,
        &Via::Link { source: None },
    ))?;
    route.transact(&link::add_route(MAIN_TABLE, EVERYWHERE, eth0, &Via::Gateway(network.address)))?;
    Ok(())
}

/// On the node.
fn route_to_pod(link: &str, pod: Ipv4Addr, node: Ipv4Addr) -> io::Result<()> {
    let via = Via::Link { source: Some(node) };
    Ok(Socket::route()?.transact(&link::add_route(
        MAIN_TABLE,
        Ipv4Net::host(pod),
        node::index_of(link)?,
        &via,
    ))?)
}

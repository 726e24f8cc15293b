//! Links, addresses and routes as rtnetlink requests: rtnetlink(7). Pure; [`crate::netlink::Socket`] sends.

use std::net::Ipv4Addr;
use std::os::fd::RawFd;

use crate::netlink::{Message, Request};

/// `linux/veth.h`: the peer's `ifinfomsg` and attributes follow.
const VETH_INFO_PEER: u16 = 1;

const DO: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
const CREATE: u16 = DO | (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;

/// Adds a bridge that is up. Its hardware address is given, because a bridge without one takes the lowest of
/// its ports', which changes as pods come and go and leaves stale neighbour entries in the others.
pub(crate) fn add_bridge(name: &str, hardware: [u8; 6]) -> Request {
    let mut message = link_message(libc::RTM_NEWLINK, CREATE, 0, true);
    message.text(libc::IFLA_IFNAME, name).attr(libc::IFLA_ADDRESS, &hardware);
    message.nest(libc::IFLA_LINKINFO, |m| {
        m.text(libc::IFLA_INFO_KIND, "bridge");
    });
    Request::of(&message)
}

/// The other end of a veth pair.
pub(crate) struct Peer<'a> {
    /// Its name there.
    pub(crate) name: &'a str,
    /// The network namespace it goes to; `None`: the same.
    pub(crate) namespace: Option<RawFd>,
    /// Its hardware address; `None`: a random one.
    pub(crate) hardware: Option<[u8; 6]>,
}

/// Adds a veth pair: this end is `name`, up, and a port of the bridge with index `bridge` if there is one; the
/// other is down.
pub(crate) fn add_veth(name: &str, bridge: Option<u32>, peer: &Peer<'_>) -> Request {
    let mut message = link_message(libc::RTM_NEWLINK, CREATE, 0, true);
    message.text(libc::IFLA_IFNAME, name);
    if let Some(bridge) = bridge {
        message.attr(libc::IFLA_MASTER, &bridge.to_ne_bytes());
    }
    message.nest(libc::IFLA_LINKINFO, |m| {
        m.text(libc::IFLA_INFO_KIND, "veth").nest(libc::IFLA_INFO_DATA, |m| {
            m.nest(VETH_INFO_PEER, |m| {
                m.raw(&link_header(0, false)).text(libc::IFLA_IFNAME, peer.name);
                if let Some(fd) = peer.namespace {
                    m.attr(libc::IFLA_NET_NS_FD, &fd.to_ne_bytes());
                }
                if let Some(hardware) = peer.hardware {
                    m.attr(libc::IFLA_ADDRESS, &hardware);
                }
            });
        });
    });
    Request::of(&message)
}

/// A locally administered hardware address made of an IPv4 address, so that whoever gets that address again is
/// reached at once, without waiting for others' neighbour entries to age.
pub(crate) fn hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [2, 0, a, b, c, d]
}

/// Brings the link with an index up.
pub(crate) fn set_up(index: u32) -> Request {
    Request::of(&link_message(libc::RTM_NEWLINK, DO, index, true))
}

/// Deletes a link by name; of a veth pair, both ends.
pub(crate) fn delete(name: &str) -> Request {
    let mut message = link_message(libc::RTM_DELLINK, DO, 0, false);
    message.text(libc::IFLA_IFNAME, name);
    Request::of(&message)
}

/// Gives a link an address; the kernel adds the route to the prefix.
pub(crate) fn add_address(index: u32, address: Ipv4Addr, prefix: u8) -> Request {
    // struct ifaddrmsg: family, prefix length, flags, scope (0: everywhere), index u32
    let mut header = vec![libc::AF_INET as u8, prefix, 0, 0];
    header.extend_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(libc::RTM_NEWADDR, CREATE, &header);
    message.attr(libc::IFA_LOCAL, &address.octets()).attr(libc::IFA_ADDRESS, &address.octets());
    Request::of(&message)
}

/// Adds a default route.
pub(crate) fn add_default_route(index: u32, gateway: Ipv4Addr) -> Request {
    let header = [
        libc::AF_INET as u8, // struct rtmsg: family
        0,                   // destination length: everything
        0,                   // source length
        0,                   // type of service
        libc::RT_TABLE_MAIN,
        libc::RTPROT_BOOT,
        libc::RT_SCOPE_UNIVERSE,
        libc::RTN_UNICAST,
        0, // flags, four bytes
        0,
        0,
        0,
    ];
    let mut message = Message::new(libc::RTM_NEWROUTE, CREATE, &header);
    message.attr(libc::RTA_GATEWAY, &gateway.octets()).attr(libc::RTA_OIF, &index.to_ne_bytes());
    Request::of(&message)
}

fn link_message(kind: u16, flags: u16, index: u32, up: bool) -> Message {
    Message::new(kind, flags, &link_header(index, up))
}

/// struct ifinfomsg: family, padding, type u16, index i32, flags u32, mask of the flags to change u32.
fn link_header(index: u32, up: bool) -> [u8; 16] {
    let flag = if up { libc::IFF_UP as u32 } else { 0 };
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flag.to_ne_bytes());
    header[12..16].copy_from_slice(&flag.to_ne_bytes());
    header
}

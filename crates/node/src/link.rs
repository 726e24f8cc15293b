//! Links, addresses and routes as rtnetlink requests: rtnetlink(7). Pure; [`crate::netlink::Socket`] sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;

use crate::net::Ipv4Net;
use crate::netlink::{Message, Request, attributes};
use crate::rules::Family;

/// `linux/veth.h`: the peer's `ifinfomsg` and attributes follow.
const VETH_INFO_PEER: u16 = 1;
/// `linux/fib_rules.h`.
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
/// Between the table of local addresses (0) and the main one (32766).
const MARK_PRIORITY: u32 = 32765;
const TO_TABLE: u8 = 1;

const DO: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
const CREATE: u16 = DO | (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;

/// The other end of a veth pair.
pub(crate) struct Peer<'a> {
    /// Its name there.
    pub(crate) name: &'a str,
    /// The network namespace it goes to; `None`: the same.
    pub(crate) namespace: Option<RawFd>,
}

/// Adds a veth pair: this end is `name`, and up; the other is down.
pub(crate) fn add_veth(name: &str, peer: &Peer<'_>) -> Request {
    let mut message = link_message(libc::RTM_NEWLINK, CREATE, 0, true);
    message.text(libc::IFLA_IFNAME, name);
    message.nest(libc::IFLA_LINKINFO, |m| {
        m.text(libc::IFLA_INFO_KIND, "veth").nest(libc::IFLA_INFO_DATA, |m| {
            m.nest(VETH_INFO_PEER, |m| {
                m.raw(&link_header(0, false)).text(libc::IFLA_IFNAME, peer.name);
                if let Some(fd) = peer.namespace {
                    m.attr(libc::IFLA_NET_NS_FD, &fd.to_ne_bytes());
                }
            });
        });
    });
    Request::of(&message)
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

/// Gives a link an address; the kernel adds the route to the prefix, if it is shorter than 32.
pub(crate) fn add_address(index: u32, address: Ipv4Addr, prefix: u8) -> Request {
    // struct ifaddrmsg: family, prefix length, flags, scope (0: everywhere), index u32
    let mut header = vec![libc::AF_INET as u8, prefix, 0, 0];
    header.extend_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(libc::RTM_NEWADDR, CREATE, &header);
    message.attr(libc::IFA_LOCAL, &address.octets()).attr(libc::IFA_ADDRESS, &address.octets());
    Request::of(&message)
}

/// Where a route leads.
pub(crate) enum Via {
    /// To what is at the other end of the link, from this address of ours if it is given.
    Link { source: Option<Ipv4Addr> },
    /// To a gateway at the other end of the link.
    Gateway(Ipv4Addr),
}

/// The table of routes that everything looks up.
pub(crate) const MAIN_TABLE: u8 = libc::RT_TABLE_MAIN;

/// Adds a route to a prefix through the link with an index.
pub(crate) fn add_route(table: u8, to: Ipv4Net, index: u32, via: &Via) -> Request {
    let scope = match via {
        Via::Link { .. } => libc::RT_SCOPE_LINK,
        Via::Gateway(_) => libc::RT_SCOPE_UNIVERSE,
    };
    let header = [
        libc::AF_INET as u8, // struct rtmsg: family
        to.prefix,           // destination length
        0,                   // source length
        0,                   // type of service
        table,
        libc::RTPROT_BOOT,
        scope,
        libc::RTN_UNICAST,
        0, // flags, four bytes
        0,
        0,
        0,
    ];
    let mut message = Message::new(libc::RTM_NEWROUTE, CREATE, &header);
    message.attr(libc::RTA_OIF, &index.to_ne_bytes());
    if to.prefix > 0 {
        message.attr(libc::RTA_DST, &to.network().octets());
    }
    match via {
        Via::Link { source: None } => {}
        Via::Link { source: Some(source) } => {
            message.attr(libc::RTA_PREFSRC, &source.octets());
        }
        Via::Gateway(gateway) => {
            message.attr(libc::RTA_GATEWAY, &gateway.octets());
        }
    }
    Request::of(&message)
}

/// Makes packets of this machine's own processes look up another table before the main one.
pub(crate) fn add_output_table(table: u8) -> Request {
    // struct fib_rule_hdr: family, destination and source length, type of service, table, two reserved, action
    let header = [libc::AF_INET as u8, 0, 0, 0, table, 0, 0, TO_TABLE, 0, 0, 0, 0];
    let mut message = Message::new(libc::RTM_NEWRULE, CREATE, &header);
    // Packets that come in "from loopback" are those that start here.
    message.text(FRA_IIFNAME, "lo").attr(FRA_PRIORITY, &u32::from(table).to_ne_bytes());
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

/// Whether something is added or taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It must not be there yet: `EEXIST`.
    Add,
    /// It must be there: `ENOENT`, `ESRCH`, `EADDRNOTAVAIL`.
    Remove,
}

impl Change {
    /// The types of messages come in fours: new, delete, get, set.
    fn message(self, new: u16, header: &[u8]) -> Message {
        match self {
            Change::Add => Message::new(new, CREATE, header),
            Change::Remove => Message::new(new + 1, DO, header),
        }
    }
}

fn number(family: Family) -> u8 {
    match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    }
}

/// Lets packets with a mark look up a table of routes.
pub(crate) fn mark_rule(change: Change, family: Family, mark: u32, table: u32) -> Request {
    // struct fib_rule_hdr, as above; the table is an attribute
    let header = [number(family), 0, 0, 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0];
    let mut message = change.message(libc::RTM_NEWRULE, &header);
    message.attr(FRA_FWMARK, &mark.to_ne_bytes()).attr(FRA_TABLE, &table.to_ne_bytes());
    // With a priority of its own the kernel sees that a rule is there already.
    message.attr(FRA_PRIORITY, &MARK_PRIORITY.to_ne_bytes());
    Request::of(&message)
}

/// In a table of routes, leads everything to this machine itself.
pub(crate) fn local_route(change: Change, family: Family, table: u32, loopback: u32) -> Request {
    let header = [
        number(family),
        0,
        0,
        0,
        0, // the table is an attribute
        libc::RTPROT_BOOT,
        libc::RT_SCOPE_HOST,
        libc::RTN_LOCAL,
        0,
        0,
        0,
        0,
    ];
    let mut message = change.message(libc::RTM_NEWROUTE, &header);
    message.attr(libc::RTA_OIF, &loopback.to_ne_bytes()).attr(libc::RTA_TABLE, &table.to_ne_bytes());
    Request::of(&message)
}

/// Gives a link an IPv6 address of its own, or takes it away.
pub(crate) fn host_address(change: Change, index: u32, address: Ipv6Addr) -> Request {
    let mut header = vec![libc::AF_INET6 as u8, 128, 0, 0];
    header.extend_from_slice(&index.to_ne_bytes());
    let mut message = change.message(libc::RTM_NEWADDR, &header);
    message.attr(libc::IFA_LOCAL, &address.octets()).attr(libc::IFA_ADDRESS, &address.octets());
    Request::of(&message)
}

/// Asks for the addresses of all links.
pub(crate) fn list_addresses() -> Request {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    Request::of(&Message::new(libc::RTM_GETADDR, flags, &[0; 8]))
}

/// The address that an entry of the list tells of.
pub(crate) fn listed_address(entry: &[u8]) -> Option<IpAddr> {
    let family = i32::from(*entry.first()?);
    let find = |kind| attributes(entry.get(8..)?).find(|a| a.kind == kind).map(|a| a.value);
    // Of IPv4 "address" may be the other end of the link.
    let value = find(libc::IFA_LOCAL).or_else(|| find(libc::IFA_ADDRESS))?;
    match family {
        libc::AF_INET => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        libc::AF_INET6 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    }
}

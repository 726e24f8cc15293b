//! The addresses of the machine's interfaces, as the kernel lists them by netlink (rtnetlink(7)).
//!
//! Which interface an address belongs to is in no file below `/proc`: routes do not tell it where an
//! address has a network of its own, as the Pods of some clusters have.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

/// `struct nlmsghdr`: length u32, type u16, flags u16, sequence u32, port u32.
const HEADER: usize = 16;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `RTM_NEWLINK`, `RTM_GETLINK`, and how long `struct ifinfomsg` is.
const LINK: (u16, u16, usize) = (16, 18, 16);
/// `RTM_NEWADDR`, `RTM_GETADDR`, and how long `struct ifaddrmsg` is.
const ADDRESS: (u16, u16, usize) = (20, 22, 8);
/// `IFF_UP` and `IFF_LOOPBACK`.
const UP: u32 = 1;
const LOOPBACK: u32 = 8;
/// `IFLA_IFNAME`, `IFA_ADDRESS`, `IFA_LOCAL`.
const NAME_OF_LINK: u16 = 3;
const PEER: u16 = 1;
const LOCAL: u16 = 2;
/// How long the kernel has to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The addresses in the order of the kernel, v4 first, without those of interfaces that are down, loopback and
/// link-local ones, and all of some interfaces.
pub fn addresses(excluded: &[&str]) -> Vec<IpAddr> {
    let listed = dump(LINK).and_then(|links| Ok((links, dump(ADDRESS)?)));
    match listed {
        Ok((links, addresses)) => chosen(&links, &addresses, excluded),
        Err(error) => {
            tracing::warn!(%error, "the kernel does not list the machine's addresses");
            Vec::new()
        }
    }
}

fn chosen(links: &[Vec<u8>], addresses: &[Vec<u8>], excluded: &[&str]) -> Vec<IpAddr> {
    let links: BTreeMap<u32, Link> = links.iter().filter_map(|body| link(body)).collect();
    let all = || addresses.iter().filter_map(|body| address(body));
    let is_excluded = |index| links.get(&index).is_some_and(|link| excluded.contains(&link.name.as_str()));
    // Wherever else they are.
    let not: Vec<IpAddr> =
        all().filter(|(index, _)| is_excluded(*index)).map(|(_, address)| address).collect();
    let mut found: Vec<IpAddr> = all()
        .filter(|(index, _)| links.get(index).is_none_or(|link| link.flags & (UP | LOOPBACK) == UP))
        .map(|(_, address)| address)
        .filter(|address| !not.contains(address) && is_private(*address))
        .collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found
}

/// Whether others know the machine by it.
fn is_private(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(address.is_loopback() || address.is_unspecified() || is_link_local)
}

/// An interface.
#[derive(Debug)]
struct Link {
    name: String,
    /// `IFF_*`.
    flags: u32,
}

/// Of `struct ifinfomsg` and what follows it: an interface by its number.
fn link(body: &[u8]) -> Option<(u32, Link)> {
    let (index, flags) = (number(body, 4)?, number(body, 8)?);
    let name = attribute(body.get(LINK.2..)?, NAME_OF_LINK)?;
    let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
    Some((index, Link { name, flags }))
}

/// Of `struct ifaddrmsg` and what follows it: the number of the interface, and the address.
fn address(body: &[u8]) -> Option<(u32, IpAddr)> {
    let index = number(body, 4)?;
    let attributes = body.get(ADDRESS.2..)?;
    // Where the link has two ends the address is that of the other one.
    let bytes = attribute(attributes, LOCAL).or_else(|| attribute(attributes, PEER))?;
    let address = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    Some((index, address.to_canonical()))
}

/// An attribute among those that follow a header: length u16, type u16, value, padded to four.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(short(bytes, 0)?);
        let value = bytes.get(4..length)?;
        if short(bytes, 2)? == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Everything that the kernel has of a kind, each without its first header.
fn dump((answer, question, fixed): (u16, u16, usize)) -> Result<Vec<Vec<u8>>, Errno> {
    // Protocol 0 is that of routing.
    let kind = SocketType::RAW;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    let length = HEADER + fixed;
    let mut request = u32::try_from(length).unwrap_or(0).to_ne_bytes().to_vec();
    request.extend_from_slice(&question.to_ne_bytes());
    request.extend_from_slice(&DUMP.to_ne_bytes());
    request.resize(length, 0);
    rustix::net::send(&socket, &request, SendFlags::empty())?;
    let mut found = Vec::new();
    // What the kernel sends at a time fits.
    let mut buffer = vec![0; 64 << 10];
    loop {
        let (received, _) = match rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty()) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        let mut rest = buffer.get(..received).unwrap_or_default();
        while let (Some(length), Some(kind)) = (number(rest, 0), short(rest, 4)) {
            let length = length as usize;
            let body = rest.get(HEADER..length).ok_or(Errno::BADMSG)?;
            match kind {
                DONE => return Ok(found),
                ERROR => {
                    let code = number(body, 0).unwrap_or(0).cast_signed();
                    return Err(Errno::from_raw_os_error(code.saturating_neg()));
                }
                kind if kind == answer => found.push(body.to_vec()),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LOCAL, LOOPBACK, NAME_OF_LINK, PEER, UP, chosen, dump, link};

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).expect("short");
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn interface(index: u32, name: &str, flags: u32) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes[4..8].copy_from_slice(&index.to_ne_bytes());
        bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend(attribute(1, &[1, 2, 3, 4, 5, 6]));
        bytes.extend(attribute(NAME_OF_LINK, format!("{name}\0").as_bytes()));
        bytes
    }

    fn address(index: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        bytes.extend(index.to_ne_bytes());
        bytes.extend(attributes.iter().flat_map(|(kind, value)| attribute(*kind, value)));
        bytes
    }

    #[test]
    fn interfaces_are_excluded_by_their_addresses() {
        let links = [
            interface(1, "lo", UP | LOOPBACK),
            interface(2, "eth0", UP),
            interface(3, "eth1", UP),
            interface(4, "eth2", 0),
        ];
        let six = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
        let addresses = [
            address(2, &[(PEER, &six)]),
            address(1, &[(PEER, &[127, 0, 0, 1]), (LOCAL, &[127, 0, 0, 1])]),
            // Both in one network, and one with a network of its own, whatever routes say.
            address(2, &[(PEER, &[10, 0, 0, 7]), (LOCAL, &[10, 0, 0, 7])]),
            address(3, &[(PEER, &[10, 0, 0, 8]), (LOCAL, &[10, 0, 0, 8])]),
            // The end of a tunnel: the other one's address is not ours.
            address(2, &[(PEER, &[10, 9, 0, 1]), (LOCAL, &[10, 9, 0, 2])]),
            address(4, &[(PEER, &[10, 0, 1, 1]), (LOCAL, &[10, 0, 1, 1])]),
            address(2, &[(PEER, &[169, 254, 0, 1])]),
            vec![1, 2, 3],
        ];
        let found = |excluded: &[&str]| -> Vec<String> {
            chosen(&links, &addresses, excluded).iter().map(ToString::to_string).collect()
        };
        assert_eq!(found(&[]), ["10.0.0.7", "10.0.0.8", "10.9.0.2", "fd00::7"]);
        assert_eq!(found(&["eth1"]), ["10.0.0.7", "10.9.0.2", "fd00::7"]);
        assert_eq!(found(&["eth0"]), ["10.0.0.8"]);
    }

    #[test]
    fn the_kernel_lists_loopback() {
        let links = dump(super::LINK).expect("it answers");
        let links: Vec<_> = links.iter().filter_map(|body| link(body)).collect();
        assert!(links.iter().any(|(_, link)| link.name == "lo" && link.flags & LOOPBACK != 0), "{links:?}");
        // What there is of others is no matter of ours, but it must not be an error.
        dump(super::ADDRESS).expect("it answers");
    }
}

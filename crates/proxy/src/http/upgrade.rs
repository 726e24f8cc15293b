//! Which upgrades (`upgrade: websocket`, CONNECT) pass. The bytes behind one are body to both
//! codecs; see `codec::h1::server` and `codec::h2` for how each version says it.

use std::net::{IpAddr, SocketAddr};

use crate::http::config::{ConnectConfig, HttpConnectionManager, ProxyProtocol, UpgradeType};
use crate::http::headers::{HeaderMap, Known};
use crate::http::route::Forward;

/// The upgrade that a request asks for, if any; `CONNECT` counts as one.
#[inline]
pub(crate) fn requested(head: &HeaderMap) -> Option<&[u8]> {
    if head.method() == b"CONNECT" { Some(b"connect") } else { head.get(Known::Upgrade) }
}

/// How a CONNECT (or POST) ends here; `None`: it is forwarded as such.
pub(crate) fn terminated(head: &HeaderMap, route: &Forward) -> Option<ConnectConfig> {
    let upgrade = route.upgrades.iter().find(|upgrade| upgrade.connect.is_some() && upgrade.enabled)?;
    let config = upgrade.connect?;
    match head.method() {
        b"CONNECT" => Some(config),
        b"POST" if config.allow_post => Some(config),
        _ => None,
    }
}

/// The PROXY protocol's announcement of who is behind a connection.
pub(crate) fn proxy_header(version: ProxyProtocol, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    match version {
        ProxyProtocol::V1 => {
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            let (source, target) = (from.ip(), to.ip());
            format!("PROXY {family} {source} {target} {} {}\r\n", from.port(), to.port()).into_bytes()
        }
        ProxyProtocol::V2 => {
            let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
            // Version 2, PROXY.
            bytes.push(0x21);
            let (family, addresses) = match (from.ip(), to.ip()) {
                (IpAddr::V4(from), IpAddr::V4(to)) => (0x11, [from.octets(), to.octets()].concat()),
                (from, to) => {
                    let six = |ip: IpAddr| match ip {
                        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                        IpAddr::V6(ip) => ip.octets(),
                    };
                    (0x21, [six(from), six(to)].concat())
                }
            };
            bytes.push(family);
            bytes.extend_from_slice(&(addresses.len() as u16 + 4).to_be_bytes());
            bytes.extend_from_slice(&addresses);
            bytes.extend_from_slice(&from.port().to_be_bytes());
            bytes.extend_from_slice(&to.port().to_be_bytes());
            bytes
        }
    }
}

/// Whether the route, else the connection manager, lets this upgrade pass.
pub(crate) fn allowed(kind: &[u8], manager: &HttpConnectionManager, route: Option<&Forward>) -> bool {
    let find = |upgrades: &[UpgradeType]| {
        let entry = upgrades.iter().find(|entry| kind.eq_ignore_ascii_case(entry.name.as_bytes()));
        entry.map(|entry| entry.enabled)
    };
    route.and_then(|route| find(&route.upgrades)).or_else(|| find(&manager.upgrades)).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::{ProxyProtocol, proxy_header};

    #[test]
    fn the_proxy_protocol_announces_both_ends() {
        let at = |address: &str| address.parse().expect("an address");
        let text = proxy_header(ProxyProtocol::V1, at("1.2.3.4:5"), at("6.7.8.9:10"));
        assert_eq!(String::from_utf8_lossy(&text), "PROXY TCP4 1.2.3.4 6.7.8.9 5 10\r\n");
        let bytes = proxy_header(ProxyProtocol::V2, at("1.2.3.4:5"), at("6.7.8.9:10"));
        assert_eq!(bytes.get(12..), Some(&[0x21, 0x11, 0, 12, 1, 2, 3, 4, 6, 7, 8, 9, 0, 5, 0, 10][..]));
        let bytes = proxy_header(ProxyProtocol::V2, at("[::1]:5"), at("6.7.8.9:10"));
        assert_eq!(bytes.get(13..16), Some(&[0x21, 0, 36][..]));
        assert_eq!(bytes.len(), 16 + 36);
    }
}

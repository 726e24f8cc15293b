//! Writing a header in front of an upstream connection's bytes.

use std::net::{IpAddr, SocketAddr};

use super::{Origin, Tlv, UpstreamHeader, Version};

/// The bytes that a connection begins with. `origin` is what is known of the downstream
/// connection; without, it is one of our own (version 2 says so, version 1 names its own
/// addresses `local` and `remote`).
pub(crate) fn header(
    settings: &UpstreamHeader,
    origin: Option<&Origin>,
    local: SocketAddr,
    remote: SocketAddr,
) -> Vec<u8> {
    match (settings.version, origin) {
        (Version::V1, Some(origin)) => line(origin.source, origin.destination),
        (Version::V1, None) => line(local, remote),
        (Version::V2, Some(origin)) => binary(settings, origin),
        (Version::V2, None) => start(0x20, 0, 0),
    }
}

fn line(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (source, destination) = same_family(source, destination);
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (source.ip(), destination.ip());
    format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
}

fn binary(settings: &UpstreamHeader, origin: &Origin) -> Vec<u8> {
    let (source, destination) = same_family(origin.source, origin.destination);
    // Configured values first; what came with the connection does not replace them.
    let added = &settings.added;
    let passed = origin.tlvs.iter().filter(|tlv| settings.pass_through.passes(tlv.kind));
    let passed = passed.filter(|tlv| added.iter().all(|added| added.kind != tlv.kind));
    let mut tlvs = Vec::new();
    let size = if source.is_ipv4() { 12 } else { 36 };
    for Tlv { kind, value } in added.iter().chain(passed) {
        let Ok(length) = u16::try_from(value.len()) else { continue };
        // What does not fit into the length of a header is left out.
        if tlvs.len() + 3 + value.len() + size > usize::from(u16::MAX) {
            continue;
        }
        tlvs.push(*kind);
        tlvs.extend_from_slice(&length.to_be_bytes());
        tlvs.extend_from_slice(value);
    }
    let length = u16::try_from(size + tlvs.len()).unwrap_or(u16::MAX);
    let mut bytes = start(0x21, if source.is_ipv4() { 0x11 } else { 0x21 }, length);
    for ip in [source.ip(), destination.ip()] {
        match ip {
            IpAddr::V4(ip) => bytes.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => bytes.extend_from_slice(&ip.octets()),
        }
    }
    bytes.extend_from_slice(&source.port().to_be_bytes());
    bytes.extend_from_slice(&destination.port().to_be_bytes());
    bytes.extend_from_slice(&tlvs);
    bytes
}

fn start(command: u8, family: u8, length: u16) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    bytes.extend_from_slice(&[command, family]);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}

/// Both as v6 if one is: a header has one family.
fn same_family(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    if source.is_ipv4() == destination.is_ipv4() {
        return (source, destination);
    }
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    (mapped(source), mapped(destination))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use expect_test::{Expect, expect};

    use super::header;
    use crate::proxy_protocol::{Origin, PassThrough, Tlv, UpstreamHeader, Version};

    fn tlv(kind: u8, value: &'static str) -> Tlv {
        Tlv { kind, value: Bytes::from_static(value.as_bytes()) }
    }

    fn check(version: Version, source: Option<&str>, expected: &Expect) {
        let settings = UpstreamHeader {
            version,
            pass_through: PassThrough::Some(vec![1, 0xe0, 0xee]),
            added: vec![tlv(0xee, "own")],
        };
        let address = |text: &str| text.parse().unwrap_or_else(|_| panic!("{text}"));
        let origin = source.map(|source| Origin {
            source: address(source),
            destination: address("5.6.7.8:2222"),
            tlvs: vec![tlv(0xee, "not"), tlv(2, "not"), tlv(0xe0, "abc")],
        });
        let bytes = header(&settings, origin.as_ref(), address("127.0.0.1:1"), address("127.0.0.2:2"));
        expected.assert_eq(&bytes.escape_ascii().to_string());
        let read = crate::proxy_protocol::read::read(&bytes);
        let crate::proxy_protocol::read::Reading::Header(read) = read else { panic!("{read:?}") };
        assert_eq!(read.length, bytes.len());
    }

    #[test]
    fn both_versions() {
        check(Version::V1, Some("1.2.3.4:1111"), &expect![[r#"PROXY TCP4 1.2.3.4 5.6.7.8 1111 2222\r\n"#]]);
        check(
            Version::V1,
            Some("[1::2]:1111"),
            &expect![[r#"PROXY TCP6 1::2 ::ffff:5.6.7.8 1111 2222\r\n"#]],
        );
        check(Version::V1, None, &expect![[r#"PROXY TCP4 127.0.0.1 127.0.0.2 1 2\r\n"#]]);
        check(
            Version::V2,
            Some("1.2.3.4:1111"),
            &expect![[
                r#"\r\n\r\n\x00\r\nQUIT\n!\x11\x00\x18\x01\x02\x03\x04\x05\x06\x07\x08\x04W\x08\xae\xee\x00\x03own\xe0\x00\x03abc"#
            ]],
        );
        check(Version::V2, None, &expect![[r#"\r\n\r\n\x00\r\nQUIT\n \x00\x00\x00"#]]);
    }
}

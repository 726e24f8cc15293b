//! Reading a header: a pure function of the bytes so far. What Envoy 1.40 takes is taken, what
//! it refuses is refused (tested against it, see `tests`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;

use super::{Tlv, Version};

/// The beginning of version 1.
const V1: &[u8] = b"PROXY ";
/// The beginning of version 2.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, with its end: one byte more than its specification has, as Envoy.
const V1_LIMIT: usize = 108;

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Cannot tell yet.
    NeedMore,
    /// No header at all.
    Absent,
    /// A line of version 1 that does not end in time.
    Endless,
    /// A header that breaks the rules of its version.
    Invalid(Version),
    /// A header.
    Header(Header),
}

/// A header that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Its version.
    pub(crate) version: Version,
    /// Bytes that it takes.
    pub(crate) length: usize,
    /// Source and destination; `None`: those of the socket.
    pub(crate) addresses: Option<(SocketAddr, SocketAddr)>,
    /// Further values, in order; only where there are addresses.
    pub(crate) tlvs: Vec<Tlv>,
}

/// The version whose header the bytes begin with, or may begin with once there are more.
pub(crate) fn version(bytes: &[u8]) -> Option<Version> {
    let may_be = |prefix: &[u8]| {
        let common = prefix.len().min(bytes.len());
        bytes.get(..common) == prefix.get(..common)
    };
    if may_be(V2) {
        Some(Version::V2)
    } else if may_be(V1) {
        Some(Version::V1)
    } else {
        None
    }
}

/// The version whose header the bytes begin with for certain.
pub(crate) fn begun(bytes: &[u8]) -> Option<Version> {
    version(bytes).filter(|version| match version {
        Version::V1 => bytes.len() >= V1.len(),
        Version::V2 => bytes.len() >= V2.len(),
    })
}

/// Reads a header off the front of `bytes`.
///
// Deviation: a line of version 1 may hold neither NUL, nor the scope of an address, nor a space at
// its end; Envoy reads such lines as if they did not.
pub(crate) fn read(bytes: &[u8]) -> Reading {
    match version(bytes) {
        None => Reading::Absent,
        Some(Version::V1) => read_v1(bytes),
        Some(Version::V2) => read_v2(bytes),
    }
}

fn read_v1(bytes: &[u8]) -> Reading {
    let seen = bytes.get(..V1_LIMIT).unwrap_or(bytes);
    let Some(end) = seen.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < V1_LIMIT { Reading::NeedMore } else { Reading::Endless };
    };
    let line = seen.get(..end).and_then(|line| std::str::from_utf8(line).ok());
    let Some(addresses) = line.and_then(line_addresses) else { return Reading::Invalid(Version::V1) };
    Reading::Header(Header { version: Version::V1, length: end + 2, addresses, tlvs: Vec::new() })
}

/// The addresses of a line of version 1; `Some(None)`: it says that they are not known.
#[allow(clippy::option_option, reason = "the outer one is whether the line is valid")]
fn line_addresses(line: &str) -> Option<Option<(SocketAddr, SocketAddr)>> {
    let mut words = line.split(' ');
    words.next();
    let v6 = match words.next()? {
        "UNKNOWN" => return Some(None),
        "TCP4" => false,
        "TCP6" => true,
        _ => return None,
    };
    let mut ip = || -> Option<IpAddr> {
        let text = words.next()?;
        let ip: IpAddr =
            if v6 { text.parse::<Ipv6Addr>().ok()?.into() } else { text.parse::<Ipv4Addr>().ok()?.into() };
        is_host(ip).then_some(ip)
    };
    let (source, destination) = (ip()?, ip()?);
    let mut port = || words.next()?.parse::<u16>().ok();
    let (source_port, destination_port) = (port()?, port()?);
    if words.next().is_some() {
        return None;
    }
    Some(Some((SocketAddr::new(source, source_port), SocketAddr::new(destination, destination_port))))
}

/// Whether one host can have the address.
fn is_host(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !ip.is_multicast() && !ip.is_unspecified() && !broadcast
}

fn read_v2(bytes: &[u8]) -> Reading {
    let Some((head, rest)) = bytes.split_at_checked(V2.len() + 4) else { return Reading::NeedMore };
    let &[.., version_command, family, high, low] = head else { return Reading::NeedMore };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if version_command >> 4 != 2 {
        return Reading::Invalid(Version::V2);
    }
    let local = match version_command & 15 {
        0 => true,
        1 => false,
        _ => return Reading::Invalid(Version::V2),
    };
    // Stream and datagram, v4 and v6; of a connection of the proxy itself nothing is read.
    let size = match (local, family) {
        (true, _) => 0,
        (false, 0x11 | 0x12) => 12,
        (false, 0x21 | 0x22) => 36,
        _ => return Reading::Invalid(Version::V2),
    };
    if length < size {
        return Reading::Invalid(Version::V2);
    }
    let Some(body) = rest.get(..length) else { return Reading::NeedMore };
    let whole = |addresses, tlvs| {
        Reading::Header(Header { version: Version::V2, length: head.len() + length, addresses, tlvs })
    };
    if local {
        return whole(None, Vec::new());
    }
    let (addresses, tlvs) = body.split_at(size);
    match (binary_addresses(addresses), read_tlvs(tlvs)) {
        (Some(addresses), Some(tlvs)) => whole(Some(addresses), tlvs),
        _ => Reading::Invalid(Version::V2),
    }
}

fn binary_addresses(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let half = (bytes.len() - 4) / 2;
    let ip = |bytes: &[u8]| -> Option<IpAddr> {
        let ip = match <[u8; 4]>::try_from(bytes) {
            Ok(v4) => IpAddr::from(v4),
            Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        };
        is_host(ip).then_some(ip)
    };
    let (source, rest) = bytes.split_at_checked(half)?;
    let (destination, ports) = rest.split_at_checked(half)?;
    let &[a, b, c, d] = ports else { return None };
    let source = SocketAddr::new(ip(source)?, u16::from_be_bytes([a, b]));
    Some((source, SocketAddr::new(ip(destination)?, u16::from_be_bytes([c, d]))))
}

fn read_tlvs(mut bytes: &[u8]) -> Option<Vec<Tlv>> {
    let mut tlvs = Vec::new();
    while !bytes.is_empty() {
        let (&[kind, high, low], rest) = bytes.split_first_chunk::<3>()?;
        let (value, rest) = rest.split_at_checked(u16::from_be_bytes([high, low]).into())?;
        tlvs.push(Tlv { kind, value: Bytes::copy_from_slice(value) });
        bytes = rest;
    }
    Some(tlvs)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::{Reading, read};

    fn check(bytes: &[u8], expected: &Expect) {
        let shown = match read(bytes) {
            Reading::Header(header) => {
                let addresses =
                    header.addresses.map(|(source, destination)| format!("{source} {destination}"));
                let tlvs: Vec<_> =
                    header.tlvs.iter().map(|tlv| format!("{:x}={:?}", tlv.kind, tlv.value)).collect();
                format!("{} {} {}", header.length, addresses.as_deref().unwrap_or("-"), tlvs.join(","))
            }
            other => format!("{other:?}"),
        };
        expected.assert_eq(&shown);
        // Whatever it is, no beginning of it may be taken for something else.
        if !matches!(read(bytes), Reading::Invalid(_) | Reading::Absent) {
            for end in 0..bytes.len().min(200) {
                let part = read(&bytes[..end]);
                assert!(part == Reading::NeedMore || part == read(bytes), "{end}: {part:?}");
            }
        }
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = super::V2.to_vec();
        bytes.extend_from_slice(&[command, family]);
        bytes.extend_from_slice(&(body.len() as u16).to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    const V4: &[u8] = &[1, 2, 3, 4, 5, 6, 7, 8, 0x04, 0x57, 0x08, 0xae];

    // The verdicts are those of Envoy 1.40.
    #[test]
    fn lines_of_version_1() {
        check(
            b"PROXY TCP4 1.2.3.4 253.253.253.253 65535 1234\r\n",
            &expect!["47 1.2.3.4:65535 253.253.253.253:1234 "],
        );
        check(
            b"PROXY TCP6 1:2:3::4 5:6::7:8 65535 1234\r\nmore",
            &expect!["41 [1:2:3::4]:65535 [5:6::7:8]:1234 "],
        );
        check(
            b"PROXY TCP6 ::ffff:1.2.3.4 ::ffff:5.6.7.8 1 2\r\n",
            &expect!["46 [::ffff:1.2.3.4]:1 [::ffff:5.6.7.8]:2 "],
        );
        check(b"PROXY UNKNOWN\r\n", &expect!["15 - "]);
        check(b"PROXY UNKNOWN ffff:ffff::1 x 1 2\r\n", &expect!["34 - "]);
        check(b"PROXY TCP4 1.2.3.4 5.6.7.8 0 0\r\n", &expect!["32 1.2.3.4:0 5.6.7.8:0 "]);
        check(b"PROXY TCP4 1.2.3.4 5.6.7.8 +1 02\r\n", &expect!["34 1.2.3.4:1 5.6.7.8:2 "]);
        for line in [
            "TCP4 1.2.3.4 5.6.7.8 65536 1",
            "TCP4 1::1 5.6.7.8 1 2",
            "TCP4 1.2.3.4 5.6.7.8 1 2 3",
            "UDP4 1.2.3.4 5.6.7.8 1 2",
            "TCP4 224.0.0.1 5.6.7.8 1 2",
            "TCP4 0.0.0.0 5.6.7.8 1 2",
            "TCP4  1.2.3.4 5.6.7.8 1 2",
            "TCP4 1.2.3.4 5.6.7.8 1",
        ] {
            check(format!("PROXY {line}\r\n").as_bytes(), &expect!["Invalid(V1)"]);
        }
        check(format!("PROXY UNKNOWN {}\r\n", "x".repeat(100)).as_bytes(), &expect!["Endless"]);
        check(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n", &expect!["NeedMore"]);
        check(b"GET / HTTP/1.1\r\n", &expect!["Absent"]);
        check(b"PROXIES", &expect!["Absent"]);
    }

    #[test]
    fn headers_of_version_2() {
        check(&v2(0x21, 0x11, V4), &expect!["28 1.2.3.4:1111 5.6.7.8:2222 "]);
        check(&v2(0x21, 0x12, V4), &expect!["28 1.2.3.4:1111 5.6.7.8:2222 "]);
        let mut v6 = [0; 36];
        (v6[1], v6[15], v6[17], v6[33], v6[35]) = (1, 2, 5, 8, 2);
        check(&v2(0x21, 0x21, &v6), &expect!["52 [1::2]:8 [5::]:2 "]);
        check(&v2(0x20, 0x00, b""), &expect!["16 - "]);
        check(&v2(0x20, 0x11, V4), &expect!["28 - "]);
        let with = |tlvs: &[u8]| [V4, tlvs].concat();
        check(
            &v2(0x21, 0x11, &with(b"\xe0\0\x03abc\xe1\0\x01\xff")),
            &expect![[r#"38 1.2.3.4:1111 5.6.7.8:2222 e0=b"abc",e1=b"\xff""#]],
        );
        for (command, family, body) in [
            (0x21, 0x31, vec![0; 216]),
            (0x21, 0x00, Vec::new()),
            (0x21, 0x11, V4[..8].to_vec()),
            (0x22, 0x11, V4.to_vec()),
            (0x11, 0x11, V4.to_vec()),
            (0x21, 0x11, with(b"\xe0\0\x09ab")),
        ] {
            check(&v2(command, family, &body), &expect!["Invalid(V2)"]);
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80), prefix in 0..3usize) {
            let start: &[u8] = [&b""[..], super::V1, super::V2][prefix];
            if let Reading::Header(header) = read(&[start, &bytes].concat()) {
                proptest::prop_assert!(header.length <= start.len() + bytes.len());
            }
        }
    }
}

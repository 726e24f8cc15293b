//! PROXY protocol headers of all kinds, in and out: what the server behind gets, what the log
//! says, and what is counted. The server tells all bytes that it got up to `END`.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};

use serde_json::{Value, json};

use crate::support::Proxy;
use crate::{bootstrap, cluster, connect, listener, read_all, serve, stats};

/// The signature of version 2.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Listeners: what the filter is configured with, and the version of the header that the cluster
/// behind sends (0: none).
fn variants() -> Vec<(&'static str, Value, u8)> {
    let rules = json!([
        {"tlv_type": 0xE0, "on_tlv_present": {"key": "own"}},
        {"tlv_type": 0x02, "on_tlv_present": {"metadata_namespace": "ns", "key": "authority"}},
    ]);
    let all = json!({"match_type": "INCLUDE_ALL"});
    vec![
        ("required", json!({"rules": rules, "stat_prefix": "required"}), 0),
        ("required-v1", json!({"stat_prefix": "required-v1"}), 1),
        ("required-v2", json!({"stat_prefix": "required-v2", "pass_through_tlvs": all}), 2),
        (
            "optional",
            json!({"stat_prefix": "optional", "allow_requests_without_proxy_protocol": true, "rules": rules}),
            1,
        ),
        (
            "optional-v2",
            json!({
                "stat_prefix": "optional-v2", "allow_requests_without_proxy_protocol": true,
                "pass_through_tlvs": {"match_type": "INCLUDE", "tlv_type": [0xE1]},
            }),
            2,
        ),
        ("state", json!({"stat_prefix": "state", "rules": [rules[0]], "tlv_location": "FILTER_STATE"}), 0),
        ("only-v1", json!({"stat_prefix": "only-v1", "disallowed_versions": ["V2"]}), 0),
        (
            "only-v2",
            json!({"stat_prefix": "only-v2", "disallowed_versions": ["V1"], "allow_requests_without_proxy_protocol": true}),
            0,
        ),
    ]
}

/// A header of version 2.
fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend([command, family]);
    bytes.extend(u16::try_from(body.len()).expect("short").to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

const FOUR: &[u8] = &[1, 2, 3, 4, 5, 6, 7, 8, 0x10, 0x00, 0x00, 0x50];
const SIX: &[u8] = &[
    0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 2, 0x10, 0x00, 0x00, 0x50,
];

fn with(addresses: &[u8], tlvs: &[(u8, &[u8])]) -> Vec<u8> {
    let mut body = addresses.to_vec();
    for (kind, value) in tlvs {
        body.push(*kind);
        body.extend(u16::try_from(value.len()).expect("short").to_be_bytes());
        body.extend_from_slice(value);
    }
    body
}

/// Headers, by name. Those that begin with `cut` end there, without what else is to come.
fn headers() -> Vec<(String, Vec<u8>)> {
    let lines = [
        ("v1 TCP4", "PROXY TCP4 1.2.3.4 5.6.7.8 4096 80\r\n"),
        ("v1 TCP6", "PROXY TCP6 2001:db8::1 2001:db8::2 4096 80\r\n"),
        ("v1 TCP6 long", "PROXY TCP6 2001:0db8:0000:0000:0000:0000:0000:0001 ::2 4096 80\r\n"),
        ("v1 TCP6 mapped", "PROXY TCP6 ::ffff:1.2.3.4 ::ffff:5.6.7.8 4096 80\r\n"),
        ("v1 unknown", "PROXY UNKNOWN\r\n"),
        ("v1 unknown with addresses", "PROXY UNKNOWN 1.2.3.4 5.6.7.8 4096 80\r\n"),
        ("v1 unknown with anything", "PROXY UNKNOWN what ever\r\n"),
        ("v1 unknown glued", "PROXY UNKNOWNX\r\n"),
        ("v1 no ports", "PROXY TCP4 1.2.3.4 5.6.7.8\r\n"),
        ("v1 one port", "PROXY TCP4 1.2.3.4 5.6.7.8 4096\r\n"),
        ("v1 nothing", "PROXY\r\n"),
        ("v1 only a space", "PROXY \r\n"),
        ("v1 more words", "PROXY TCP4 1.2.3.4 5.6.7.8 4096 80 more\r\n"),
        ("v1 space at the end", "PROXY TCP4 9.9.9.9 5.6.7.8 4096 80 \r\n"),
        ("v1 two spaces", "PROXY  TCP4 1.2.3.4 5.6.7.8 4096 80\r\n"),
        ("v1 two spaces within", "PROXY TCP4 1.2.3.4  5.6.7.8 4096 80\r\n"),
        ("v1 tabs", "PROXY\tTCP4\t1.2.3.4\t5.6.7.8\t4096\t80\r\n"),
        ("v1 lower case", "proxy TCP4 1.2.3.4 5.6.7.8 4096 80\r\n"),
        ("v1 lower family", "PROXY tcp4 1.2.3.4 5.6.7.8 4096 80\r\n"),
        ("v1 UDP4", "PROXY UDP4 1.2.3.4 5.6.7.8 4096 80\r\n"),
        ("v1 wrong family", "PROXY TCP4 2001:db8::1 2001:db8::2 4096 80\r\n"),
        ("v1 other wrong family", "PROXY TCP6 1.2.3.4 5.6.7.8 4096 80\r\n"),
        ("v1 mixed families", "PROXY TCP4 1.2.3.4 2001:db8::2 4096 80\r\n"),
        ("v1 no address", "PROXY TCP4 1.2.3 5.6.7.8 4096 80\r\n"),
        ("v1 leading zeros", "PROXY TCP4 01.2.3.4 5.6.7.8 4096 80\r\n"),
        ("v1 address too large", "PROXY TCP4 256.2.3.4 5.6.7.8 4096 80\r\n"),
        ("v1 port 65536", "PROXY TCP4 1.2.3.4 5.6.7.8 65536 80\r\n"),
        ("v1 port 65535", "PROXY TCP4 1.2.3.4 5.6.7.8 65535 80\r\n"),
        ("v1 port 0", "PROXY TCP4 1.2.3.4 5.6.7.8 0 80\r\n"),
        ("v1 negative port", "PROXY TCP4 1.2.3.4 5.6.7.8 -1 80\r\n"),
        ("v1 signed port", "PROXY TCP4 1.2.3.4 5.6.7.8 +1 80\r\n"),
        ("v1 port with zeros", "PROXY TCP4 1.2.3.4 5.6.7.8 04096 80\r\n"),
        ("v1 port in hex", "PROXY TCP4 1.2.3.4 5.6.7.8 0x10 80\r\n"),
        ("v1 name", "PROXY TCP4 localhost 5.6.7.8 4096 80\r\n"),
        ("v1 broadcast", "PROXY TCP4 255.255.255.255 5.6.7.8 4096 80\r\n"),
        ("v1 any address", "PROXY TCP4 0.0.0.0 5.6.7.8 4096 80\r\n"),
        ("v1 multicast", "PROXY TCP4 224.0.0.1 5.6.7.8 4096 80\r\n"),
        ("v1 scope", "PROXY TCP6 fe80::1%lo 2001:db8::2 4096 80\r\n"),
        ("v1 NUL", "PROXY TCP4 9.9.9.9\0 5.6.7.8 4096 80\r\n"),
        ("v1 CR within", "PROXY TCP4 1.2.3.4\r 5.6.7.8 4096 80\r\n"),
        ("v1 LF within", "PROXY TCP4 1.2.3.4\n 5.6.7.8 4096 80\r\n"),
        ("v1 only LF", "PROXY TCP4 1.2.3.4 5.6.7.8 4096 80\n"),
        ("v1 twice", "PROXY TCP4 1.2.3.4 5.6.7.8 4096 80\r\nPROXY TCP4 4.3.2.1 8.7.6.5 1 2\r\n"),
        ("none", ""),
        ("none, short", "P"),
        ("none, like it", "PROXIED connection\r\n"),
        ("none, like version 2", "\r\n\r\n\0\r\nQUIX\n some more bytes here"),
        ("cut v1", "PROXY TCP4 1.2.3.4 5.6.7"),
        ("cut v1 word", "PRO"),
        ("cut nothing", ""),
    ];
    let mut headers: Vec<(String, Vec<u8>)> =
        lines.iter().map(|(name, line)| ((*name).to_owned(), line.as_bytes().to_vec())).collect();
    // 107 bytes are the longest line.
    for length in [106, 107, 108, 300] {
        let mut line = b"PROXY UNKNOWN ".to_vec();
        line.resize(length - 2, b'x');
        line.extend_from_slice(b"\r\n");
        headers.push((format!("v1 of {length} bytes"), line));
    }
    let tlvs: &[(u8, &[u8])] =
        &[(0xE0, b"mine"), (0x02, b"a.test"), (0xE1, &[0xff, b'x', 0]), (0x04, b""), (0xE0, b"again")];
    let crc = |value: [u8; 4]| v2(0x21, 0x11, &with(FOUR, &[(0x03, &value)]));
    let binary = [
        ("v2 TCP4", v2(0x21, 0x11, FOUR)),
        ("v2 TCP6", v2(0x21, 0x21, SIX)),
        ("v2 local", v2(0x20, 0x00, &[])),
        ("v2 local with addresses", v2(0x20, 0x11, FOUR)),
        ("v2 local with anything", v2(0x20, 0x11, b"x")),
        ("v2 unspecified", v2(0x21, 0x00, &[])),
        ("v2 unspecified with bytes", v2(0x21, 0x00, b"xyz")),
        ("v2 TCP over nothing", v2(0x21, 0x01, FOUR)),
        ("v2 IPv4 without protocol", v2(0x21, 0x10, FOUR)),
        ("v2 UDP4", v2(0x21, 0x12, FOUR)),
        ("v2 UDP6", v2(0x21, 0x22, SIX)),
        ("v2 Unix", v2(0x21, 0x31, &[b'/'; 216])),
        ("v2 unknown family", v2(0x21, 0x41, FOUR)),
        ("v2 unknown protocol", v2(0x21, 0x13, FOUR)),
        ("v2 version 1", v2(0x11, 0x11, FOUR)),
        ("v2 version 3", v2(0x31, 0x11, FOUR)),
        ("v2 version 0", v2(0x01, 0x11, FOUR)),
        ("v2 command 2", v2(0x22, 0x11, FOUR)),
        ("v2 too short for IPv4", v2(0x21, 0x11, &FOUR[..11])),
        ("v2 too short for IPv6", v2(0x21, 0x21, FOUR)),
        ("v2 empty", v2(0x21, 0x11, &[])),
        (
            "v2 IPv4 in IPv6",
            v2(
                0x21,
                0x21,
                &with(
                    &[&[0; 10][..], &[255, 255], &FOUR[..4], &[0; 10], &[255, 255], &FOUR[4..]].concat(),
                    &[],
                ),
            ),
        ),
        ("v2 port 0", v2(0x21, 0x11, &[1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0])),
        ("v2 any address", v2(0x21, 0x11, &[0, 0, 0, 0, 5, 6, 7, 8, 1, 0, 0, 80])),
        ("v2 multicast", v2(0x21, 0x11, &[224, 0, 0, 1, 5, 6, 7, 8, 1, 0, 0, 80])),
        ("v2 values", v2(0x21, 0x11, &with(FOUR, tlvs))),
        ("v2 values on IPv6", v2(0x21, 0x21, &with(SIX, tlvs))),
        ("v2 values of local", v2(0x20, 0x11, &with(FOUR, tlvs))),
        ("v2 long value", v2(0x21, 0x11, &with(FOUR, &[(0xE0, &[b'y'; 3000])]))),
        ("v2 very long value", v2(0x21, 0x11, &with(FOUR, &[(0xE0, &[b'y'; 65000])]))),
        ("v2 checksum", crc([1, 2, 3, 4])),
        ("v2 value cut off", v2(0x21, 0x11, &[FOUR, &[0xE0, 0, 9, b'x']].concat())),
        ("v2 value without length", v2(0x21, 0x11, &[FOUR, &[0xE0, 0]].concat())),
        ("v2 one byte too many", v2(0x21, 0x11, &[FOUR, &[0xE0]].concat())),
        ("v2 twice", [v2(0x21, 0x11, FOUR), v2(0x21, 0x11, FOUR)].concat()),
        ("v2, then v1", [v2(0x21, 0x11, FOUR), b"PROXY UNKNOWN\r\n".to_vec()].concat()),
        ("cut v2", v2(0x21, 0x11, FOUR)[..20].to_vec()),
        ("cut v2 signature", SIGNATURE[..8].to_vec()),
    ];
    headers.extend(binary.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)));
    headers
}

/// Envoy 1.40 ends with a crash when it passes such an address on in version 2.
const CRASHES: (&str, &str) = ("v1 scope", "-v2");

/// What we do otherwise, on purpose.
const DEVIATIONS: &[(&str, &str)] = &[
    ("v1 space at the end", "not as the specification has it"),
    ("v1 scope", "likewise"),
    ("v1 NUL", "likewise"),
];

/// Answers with everything that came, up to and with `END`.
fn echo(mut stream: TcpStream) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while !bytes.ends_with(b"END") {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
        }
    }
    let _ = stream.write_all(describe(&bytes).as_bytes());
    let _ = stream.shutdown(Shutdown::Write);
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

/// Bytes for people; ports on this machine differ from run to run.
fn describe(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = bytes;
    if let Some(body) = bytes.strip_prefix(SIGNATURE)
        && let [command, family, high, low, after @ ..] = body
    {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
        let mut header = after[..length].to_vec();
        if let Some(ports) = header.get_mut(8..12).filter(|_| after.starts_with(&[127, 0, 0, 1])) {
            ports.fill(0);
        }
        let shown: String = header.iter().take(80).map(|byte| format!("{byte:02x}")).collect();
        let _ = write!(text, "[v2 {command:x} {family:x} {length}: {shown}] ");
        rest = &after[length..];
    }
    let shown = rest.escape_ascii().to_string();
    match shown.strip_prefix("PROXY TCP4 127.0.0.1 127.0.0.1 ").and_then(|ports| ports.find("\\r\\n")) {
        Some(length) => {
            let after = shown.get(31 + length..).unwrap_or_default();
            let _ = write!(text, "PROXY TCP4 127.0.0.1 127.0.0.1 PORTS{after}");
        }
        None => text += shown.get(..300).unwrap_or(&shown),
    }
    text
}

fn config(folder: &std::path::Path, listeners: &[(&str, Value, u8)], server: std::net::SocketAddr) -> String {
    let mut made = Vec::new();
    let mut clusters = Vec::new();
    for (name, origin, version) in listeners {
        let format = format!(
            "{name} %DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT% \
             %DYNAMIC_METADATA(envoy.filters.listener.proxy_protocol)% %DYNAMIC_METADATA(ns)% %FILTER_STATE(envoy.network.proxy_protocol.tlv)% %RESPONSE_FLAGS%\n"
        );
        let log = json!([{"name": "file", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": folder.join("access.log").display().to_string(),
            "log_format": {"text_format_source": {"inline_string": format}},
        }}]);
        let chain = json!({"filters": [{"name": "tcp", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": name, "cluster": name, "access_log": log,
        }}]});
        made.push(listener(name, json!({"filter_chains": [chain]}), origin.clone()));
        let mut cluster = cluster(name, server);
        if *version > 0 {
            let mut settings = json!({"version": format!("V{version}")});
            if *version == 2 {
                settings["pass_through_tlvs"] = json!({"match_type": "INCLUDE_ALL"});
            }
            cluster["transport_socket"] = json!({"name": "proxy", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
                "config": settings,
                "transport_socket": {"name": "raw", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
                }},
            }});
        }
        clusters.push(cluster);
    }
    bootstrap(&made, &clusters)
}

/// The log's line with ports of this machine taken out.
fn without_ports(line: &str) -> String {
    let words =
        line.split(' ').map(|word| if word.starts_with("127.0.0.1:") { "127.0.0.1:PORT" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn headers_are_taken_alike() {
    let Some(envoy) = leno_testkit::envoy::binary() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (headers, variants) = (headers(), variants());
    let server = serve(echo);
    let run = |name: &'static str, binary| {
        let proxy = Proxy::start(name, folder.path(), binary, |folder| config(folder, &variants, server));
        let mut results = Vec::new();
        let mut counted = String::new();
        // What comes after the counts are read.
        let differs =
            |header: &str| header.starts_with("cut") || DEVIATIONS.iter().any(|(name, _)| *name == header);
        let ordered = headers.iter().filter(|(header, _)| !differs(header));
        let ordered: Vec<_> = ordered.chain(headers.iter().filter(|(header, _)| differs(header))).collect();
        for (variant, ..) in &variants {
            let port = proxy.port(variant);
            for (header, bytes) in &ordered {
                if differs(header) && counted.lines().all(|line| !line.contains(variant)) {
                    let wanted = |name: &str| name.starts_with(&format!("proxy_proto.{variant}."));
                    counted += &(stats(&proxy, wanted).join("\n") + "\n");
                }
                if header == CRASHES.0 && variant.ends_with(CRASHES.1) {
                    continue;
                }
                let mut stream = connect(port, Ipv4Addr::LOCALHOST.into());
                if header.starts_with("cut") {
                    let _ = stream.write_all(bytes);
                    let _ = stream.shutdown(Shutdown::Write);
                } else {
                    let _ = stream.write_all(&[bytes, &b"some more data\nEND"[..]].concat());
                }
                results.push((format!("{variant}: {header}"), read_all(&mut stream)));
            }
        }
        let folder = proxy.stop();
        let log = std::fs::read_to_string(folder.join("access.log")).unwrap_or_default();
        let same = |line: &&str| !line.contains(" 9.9.9.9:") && !line.contains("[fe80:");
        (results, counted, log.lines().filter(same).map(without_ports).collect::<Vec<_>>().join("\n"))
    };
    let [(ours, our_stats, our_log), (envoys, envoys_stats, envoys_log)] = std::thread::scope(|scope| {
        let sides = [("ours", None), ("envoy", Some(envoy.as_path()))];
        let sides = sides.map(|(name, binary)| scope.spawn(move || run(name, binary)));
        sides.map(|side| side.join().expect("it ran"))
    });
    let mut failures = String::new();
    let mut passed = 0;
    for ((name, ours), (_, envoys)) in ours.iter().zip(&envoys) {
        passed += usize::from(!envoys.is_empty());
        let known = DEVIATIONS.iter().find(|(header, _)| name.ends_with(header));
        if ours != envoys && known.is_none() {
            let _ = writeln!(failures, "{name}:\n  ours:  {ours:?}\n  Envoy: {envoys:?}");
        }
    }
    println!("{} connections with {} headers, {passed} let pass", ours.len(), headers.len());
    for (own, other) in [(&our_stats, &envoys_stats), (&our_log, &envoys_log)] {
        let count = |text: &str, line: &str| text.lines().filter(|other| *other == line).count();
        for line in own.lines().filter(|line| count(own, line) != count(other, line)) {
            let _ = writeln!(failures, "+{line}");
        }
        for line in other.lines().filter(|line| count(own, line) != count(other, line)) {
            let _ = writeln!(failures, "-{line}");
        }
    }
    assert!(failures.is_empty(), "{failures}");
    assert!(passed > 60, "{passed}");
}

//! Which filter chain gets a connection, and what a PROXY protocol header is taken for: ours and
//! the real Envoy, side by side.
//!
//! Listeners have chains with random criteria, or a random `filter_chain_matcher`; behind each
//! chain is a server that tells the chain's name. Connections come from many addresses (as PROXY
//! protocol headers say, and as sockets do) and begin in many ways. `CHAINS_SEED` and
//! `CHAINS_LISTENERS` make other runs. What becomes of headers themselves is in `chains/origin.rs`.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use leno_base::Rng;
use serde_json::{Map, Value, json};

mod chains {
    pub(crate) mod origin;
    pub(crate) mod trees;
}
mod support;

use support::{PATIENCE, Proxy};

/// Chains have these names, and so have clusters.
const NAMES: [&str; 10] = ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8", "default"];
const PORTS: [u16; 4] = [80, 443, 8080, 9090];
const DESTINATIONS: [&str; 7] = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.3/32",
    "127.0.0.0/8",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "10.1.2.0/23",
];
const NAMES_OF_SERVERS: [&str; 7] =
    ["a.test", "*.a.test", "b.a.test", "*.test", "*.b.a.test", "X.org", "*.org"];
const APPLICATIONS: [&str; 5] = ["h2", "http/1.1", "other", "http/1.0", "h2c"];
const DIRECT: [&str; 4] = ["127.0.0.0/8", "127.0.0.5/32", "127.0.1.0/24", "::1/128"];
const SOURCES: [&str; 6] =
    ["192.168.0.0/16", "192.168.1.0/24", "192.168.1.7/32", "127.0.0.0/8", "2001:db8::/32", "10.0.0.0/8"];
const SOURCE_PORTS: [u16; 3] = [1000, 2000, 3000];
const SOURCE_TYPES: [&str; 3] = ["ANY", "SAME_IP_OR_LOOPBACK", "EXTERNAL"];

/// One of these.
pub(crate) fn one<'a, T>(of: &'a [T], random: &mut Rng) -> &'a T {
    let index = usize::try_from(random.next_u64() % of.len() as u64).expect("few");
    of.get(index).expect("within")
}

/// True once in so many times.
pub(crate) fn once_in(count: u64, random: &mut Rng) -> bool {
    random.next_u64().is_multiple_of(count)
}

/// None of these mostly, else one or two.
fn some<T: Clone + PartialEq>(of: &[T], random: &mut Rng) -> Vec<T> {
    let mut chosen = Vec::new();
    if once_in(3, random) {
        chosen.push(one(of, random).clone());
        if once_in(3, random) {
            chosen.push(one(of, random).clone());
        }
    }
    chosen.dedup();
    chosen
}

fn cidr(text: &str) -> Value {
    let (address, length) = text.split_once('/').expect("a range");
    json!({"address_prefix": address, "prefix_len": length.parse::<u32>().expect("a length")})
}

/// Criteria of a chain, and every combination of values that they stand for.
fn criteria(random: &mut Rng) -> (Value, Vec<String>) {
    let port = if once_in(4, random) { Some(*one(&PORTS, random)) } else { None };
    let destinations = some(&DESTINATIONS, random);
    let names = some(&NAMES_OF_SERVERS, random);
    let transport = *one(&["", "", "", "tls", "raw_buffer"], random);
    let applications = some(&APPLICATIONS, random);
    let direct = if once_in(3, random) { some(&DIRECT, random) } else { Vec::new() };
    let kind = if once_in(4, random) { *one(&SOURCE_TYPES, random) } else { "ANY" };
    let sources = some(&SOURCES, random);
    let ports = some(&SOURCE_PORTS, random);
    let ranges = |texts: &[&str]| texts.iter().map(|text| cidr(text)).collect::<Vec<_>>();
    let mut value = json!({
        "prefix_ranges": ranges(&destinations), "server_names": names, "transport_protocol": transport,
        "application_protocols": applications, "direct_source_prefix_ranges": ranges(&direct),
        "source_type": kind, "source_prefix_ranges": ranges(&sources), "source_ports": ports,
    });
    if let (Some(port), Some(object)) = (port, value.as_object_mut()) {
        object.insert("destination_port".to_owned(), json!(port));
    }
    // Envoy refuses two chains that have one combination in common.
    let text = |values: Vec<String>| if values.is_empty() { vec![String::new()] } else { values };
    let texts = |values: &[&str]| text(values.iter().map(|value| value.to_ascii_lowercase()).collect());
    let lists = [
        text(port.iter().map(u16::to_string).collect()),
        texts(&destinations),
        texts(&names),
        vec![transport.to_owned()],
        texts(&applications),
        texts(&direct),
        vec![kind.to_owned()],
        texts(&sources),
        text(ports.iter().map(u16::to_string).collect()),
    ];
    let mut combinations = vec![String::new()];
    for list in lists {
        combinations = combinations
            .iter()
            .flat_map(|head| list.iter().map(move |tail| format!("{head}|{tail}")))
            .collect();
    }
    (value, combinations)
}

/// A chain whose server is the cluster with this name.
fn chain(name: &str, criteria: Option<Value>) -> Value {
    let mut chain = json!({"name": name, "filters": [{"name": "tcp", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "tcp", "cluster": name,
    }}]});
    if let (Some(criteria), Some(object)) = (criteria, chain.as_object_mut()) {
        object.insert("filter_chain_match".to_owned(), criteria);
    }
    chain
}

/// A listener of this machine with what finds out how connections begin.
pub(crate) fn listener(name: &str, more: Value, origin: Value) -> Value {
    let inspector = |name: &str, kind: &str| {
        json!({"name": name, "typed_config": {
            "@type": format!("type.googleapis.com/envoy.extensions.filters.listener.{name}.v3.{kind}"),
        }})
    };
    let mut proxy_protocol = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
    });
    if let (Some(object), Value::Object(origin)) = (proxy_protocol.as_object_mut(), origin) {
        object.extend(origin);
    }
    let mut listener = json!({
        "name": name, "stat_prefix": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "listener_filters_timeout": "1s",
        "listener_filters": [
            {"name": "proxy_protocol", "typed_config": proxy_protocol},
            inspector("tls_inspector", "TlsInspector"), inspector("http_inspector", "HttpInspector"),
        ],
    });
    if let (Some(object), Value::Object(more)) = (listener.as_object_mut(), more) {
        object.extend(more);
    }
    listener
}

/// A listener with random chains.
fn by_criteria(name: &str, random: &mut Rng) -> Value {
    let mut taken = HashSet::new();
    let mut chains = Vec::new();
    let wanted = usize::try_from(2 + random.next_u64() % 8).expect("few");
    while chains.len() < wanted.min(NAMES.len() - 1) {
        let (value, combinations) = criteria(random);
        if combinations.iter().any(|combination| taken.contains(combination)) {
            continue;
        }
        taken.extend(combinations);
        chains.push(chain(NAMES[chains.len()], Some(value)));
    }
    let mut more = json!({"filter_chains": chains});
    if once_in(2, random) {
        more["default_filter_chain"] = chain("default", None);
    }
    listener(name, more, json!({"allow_requests_without_proxy_protocol": true}))
}

/// A listener with a random matcher.
fn by_tree(name: &str, random: &mut Rng) -> Value {
    let chains: Vec<Value> = NAMES[..9].iter().map(|name| chain(name, None)).collect();
    let mut more = json!({"filter_chains": chains, "filter_chain_matcher": trees::matcher(3, random)});
    if once_in(2, random) {
        more["default_filter_chain"] = chain("default", None);
    }
    listener(name, more, json!({"allow_requests_without_proxy_protocol": true}))
}

use chains::trees;

/// A static cluster of one endpoint.
pub(crate) fn cluster(name: &str, to: SocketAddr) -> Value {
    json!({"name": name, "connect_timeout": "5s", "load_assignment": {"cluster_name": name, "endpoints": [
        {"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": to.port()}}}}]},
    ]}})
}

/// A whole configuration.
pub(crate) fn bootstrap(listeners: &[Value], clusters: &[Value]) -> String {
    json!({
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
    .to_string()
}

/// Serves each connection in a thread of its own; they end with the test's process.
pub(crate) fn serve(handle: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = server.local_addr().expect("an address");
    let handle = Arc::new(handle);
    std::thread::spawn(move || {
        for stream in server.incoming().flatten() {
            let handle = Arc::clone(&handle);
            std::thread::spawn(move || handle(stream));
        }
    });
    address
}

/// A server that tells its name and waits for the end.
fn namer(name: &'static str) -> SocketAddr {
    serve(move |mut stream| {
        let _ = stream.write_all(name.as_bytes());
        let _ = stream.shutdown(Shutdown::Write);
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    })
}

/// How a connection comes.
struct Probe {
    from: Ipv4Addr,
    bytes: Vec<u8>,
    text: String,
}

/// A ClientHello.
fn hello(name: Option<&str>, protocols: &[&str]) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().expect("versions");
    let mut config = builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    config.enable_sni = name.is_some();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let name = name.unwrap_or("unused.test").to_owned().try_into().expect("a name");
    let mut session = rustls::ClientConnection::new(Arc::new(config), name).expect("a session");
    let mut bytes = Vec::new();
    session.write_tls(&mut bytes).expect("written");
    bytes
}

fn probe(random: &mut Rng) -> Probe {
    let from = *one(&[Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 5), Ipv4Addr::new(127, 0, 1, 9)], random);
    let mut bytes = Vec::new();
    let mut text = format!("from {from}");
    if !once_in(6, random) {
        let six = once_in(4, random);
        let (family, destinations, sources): (&str, &[&str], &[&str]) = if six {
            ("TCP6", &["2001:db8:1::1", "2001:db8:2::1", "3000::1"], &["2001:db8:1::1", "3000::1", "::1"])
        } else {
            (
                "TCP4",
                &["10.1.2.3", "10.1.9.9", "10.9.9.9", "11.0.0.1", "127.0.0.1"],
                &["192.168.1.7", "192.168.1.8", "192.168.9.9", "1.1.1.1", "127.0.0.1", "10.1.2.3"],
            )
        };
        let (source, destination) = (one(sources, random), one(destinations, random));
        let (source_port, port) = (one(&[1000, 2000, 3000, 4000], random), one(&PORTS, random));
        let header = format!("PROXY {family} {source} {destination} {source_port} {port}\r\n");
        bytes.extend_from_slice(header.as_bytes());
        let _ = write!(text, ", {}", header.trim_end());
    }
    let begins = match random.next_u64() % 8 {
        0 => "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        1 => "GET / HTTP/1.0\r\n\r\n",
        2 => "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        3 => "anything\r\nelse\r\n",
        _ => "",
    };
    if begins.is_empty() {
        let names = [
            None,
            Some("a.test"),
            Some("b.a.test"),
            Some("c.b.a.test"),
            Some("q.test"),
            Some("x.org"),
            Some("y.org"),
        ];
        let name = *one(&names, random);
        let lists: [&[&str]; 5] = [&[], &["h2", "http/1.1"], &["other"], &["http/1.1"], &["none", "other"]];
        let protocols = one(&lists, random);
        bytes.extend(hello(name, protocols));
        let _ = write!(text, ", TLS to {name:?} with {protocols:?}");
    } else {
        bytes.extend_from_slice(begins.as_bytes());
        let _ = write!(text, ", {begins:?}");
    }
    Probe { from, bytes, text }
}

/// Connects from an address of this machine.
pub(crate) fn connect(to: SocketAddr, from: IpAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((from, 0)).into()).expect("an address");
    socket.connect(&to.into()).expect("the proxy listens");
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_nodelay(true).expect("an option");
    stream
}

/// All that comes, up to the end or a reset.
pub(crate) fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let ended = stream.read_to_end(&mut bytes);
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
        text += " (and no end)";
    }
    text
}

/// Stats of ours and Envoy's that are to be the same.
pub(crate) fn stats(proxy: &Proxy, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let text = proxy.admin("GET", "/stats?usedonly");
    let mut lines: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    lines.retain(|line| line.split_once(": ").is_some_and(|(name, value)| wanted(name) && value != "0"));
    lines.sort();
    lines
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn the_same_chain_serves() {
    let Some(envoy) = leno_testkit::envoy::binary() else { return };
    let seed = number("CHAINS_SEED").unwrap_or(1);
    let count = number("CHAINS_LISTENERS").unwrap_or(60);
    let mut random = Rng::new(seed);
    let listeners: Vec<Value> = (0..count)
        .map(|index| {
            let name = format!("l{index}");
            if index % 3 == 2 { by_tree(&name, &mut random) } else { by_criteria(&name, &mut random) }
        })
        .collect();
    let probes: Vec<Vec<Probe>> =
        listeners.iter().map(|_| (0..40).map(|_| probe(&mut random)).collect()).collect();
    let clusters: Vec<Value> = NAMES.iter().map(|name| cluster(name, namer(name))).collect();
    let config = bootstrap(&listeners, &clusters);
    let folder = tempfile::tempdir().expect("a folder");
    let run = |name: &'static str, binary| {
        let proxy = Proxy::start(name, folder.path(), binary, |_| config.clone());
        let ports = proxy.ports();
        let answers: Vec<Vec<String>> = probes
            .iter()
            .enumerate()
            .map(|(index, probes)| {
                let port = *ports.get(&format!("l{index}")).expect("it listens");
                let ask = |probe: &Probe| {
                    let mut stream = connect(port, probe.from.into());
                    let _ = stream.write_all(&probe.bytes);
                    read_all(&mut stream)
                };
                probes.iter().map(ask).collect()
            })
            .collect();
        let counted = |name: &str| {
            name.ends_with("no_filter_chain_match")
                || name.starts_with("proxy_proto.")
                || name.starts_with("tls_inspector.") && !name.ends_with("bytes_processed")
                || name.starts_with("http_inspector.")
                || name.starts_with("tcp.tcp.downstream_cx_total")
        };
        let stats = stats(&proxy, counted);
        proxy.stop();
        (answers, stats)
    };
    let [(ours, our_stats), (envoys, envoys_stats)] = std::thread::scope(|scope| {
        let sides = [("ours", None), ("envoy", Some(envoy.as_path()))];
        let sides = sides.map(|(name, binary)| scope.spawn(move || run(name, binary)));
        sides.map(|side| side.join().expect("it ran"))
    });
    let mut failures = String::new();
    let mut chosen = Map::new();
    for (index, (ours, envoys)) in ours.iter().zip(&envoys).enumerate() {
        for ((ours, envoys), probe) in ours.iter().zip(envoys).zip(&probes[index]) {
            let times = chosen.entry(envoys.as_str()).or_insert(json!(0));
            *times = json!(times.as_u64().unwrap_or(0) + 1);
            if ours != envoys {
                let _ = writeln!(
                    failures,
                    "{}: {ours:?} instead of {envoys:?}\n  {}",
                    probe.text, listeners[index]
                );
            }
        }
    }
    println!("{} listeners, {} connections, served by {chosen:?}", listeners.len(), 40 * listeners.len());
    assert!(failures.is_empty(), "{failures}");
    assert_eq!(our_stats, envoys_stats);
    assert!(chosen.len() > 8, "all chains were chosen now and then: {chosen:?}");
}

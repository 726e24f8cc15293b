//! The TCP proxy, ours and the real Envoy's side by side: what client and server receive, and what
//! the access log tells, must be the same. Plain sessions carry enough to be spliced; tunnels go
//! through an HTTP/1 server that is a script, or through the same proxy's own HTTP/2 listener.
//!
//! `TCP=name` runs the cases whose names contain that, and prints both sides.

use std::fmt::Write as _;
use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

mod support;

use support::{PATIENCE, Proxy, Wire, dead_port, wait};

/// Bytes of a large transfer.
const MANY: usize = 4 << 20;

/// One session.
struct Case {
    name: &'static str,
    /// Further YAML of the TcpProxy.
    proxy: &'static str,
    server: Server,
    /// What the client does; gives what it saw.
    client: fn(Wire) -> String,
    /// Bytes on the wire to upstream are the same too: not those of tunnels, which Envoy counts twice,
    /// nor where HTTP/2 packs heads.
    wire: bool,
}

/// What the TcpProxy's cluster is.
#[derive(Clone, Copy)]
enum Server {
    /// A server that does this; gives what it saw.
    Script(fn(Wire) -> String),
    /// The proxy's own HTTP/2 listener, which forwards to an echo.
    Own,
    /// Nobody listens.
    Nobody,
}

/// A body that is no repetition of a page.
fn pattern(salt: usize) -> Vec<u8> {
    (0..MANY).map(|at| (at * 7 + at / 251 + salt) as u8).collect()
}

/// Length and a sum of what was seen, for messages of a readable size.
fn digest(bytes: &[u8]) -> String {
    let sum = bytes.iter().fold(17u64, |sum, byte| sum.wrapping_mul(1099511628211) ^ u64::from(*byte));
    format!("{} bytes, {sum:x}\n", bytes.len())
}

fn shown(bytes: &[u8]) -> String {
    format!("{}\n", bytes.escape_ascii())
}

/// All that comes until the end.
fn rest(wire: &mut Wire) -> Vec<u8> {
    while wire.fill() {}
    std::mem::take(&mut wire.input)
}

/// Sends and receives much at the same time; `first` ends first.
fn exchange(mut wire: Wire, salt: usize, first: bool) -> String {
    let mut out = wire.stream.try_clone().expect("a second handle");
    let sending = std::thread::spawn(move || {
        out.write_all(&pattern(salt)).expect("sent");
        out
    });
    let seen = wire.exactly(MANY);
    let out = sending.join().expect("it ends");
    if first {
        out.shutdown(Shutdown::Write).expect("ended");
        return digest(&[seen, rest(&mut wire)].concat());
    }
    let more = rest(&mut wire);
    (&out).write_all(b"last words").expect("sent");
    digest(&[seen, more].concat())
}

/// `ping`, its answer, and the end.
fn ping(mut wire: Wire) -> String {
    let _ = wire.stream.write_all(b"ping");
    let mut seen = shown(&wire.exactly(4));
    let _ = wire.stream.write_all(b"more");
    seen += &shown(&wire.exactly(4));
    let _ = wire.stream.shutdown(Shutdown::Write);
    seen + &shown(&rest(&mut wire))
}

/// Waits for the end.
fn wait_for_end(mut wire: Wire) -> String {
    shown(&rest(&mut wire))
}

/// Answers a request's head, then sends back in upper case what comes.
fn answer(mut wire: Wire, head: &str) -> String {
    let mut seen = shown(&wire.until(b"\r\n\r\n"));
    wire.stream.write_all(head.as_bytes()).expect("sent");
    while !wire.input.is_empty() || wire.fill() {
        let bytes = std::mem::take(&mut wire.input);
        seen += &bytes.escape_ascii().to_string();
        let _ = wire.stream.write_all(&bytes.to_ascii_uppercase());
    }
    seen.push('\n');
    seen
}

/// As [`answer`], and ends as soon as the chunks end.
fn answer_chunks(mut wire: Wire) -> String {
    let mut seen = shown(&wire.until(b"\r\n\r\n"));
    wire.stream.write_all(b"HTTP/1.1 200 OK\r\nx-up: 1\r\n\r\n").expect("sent");
    for _ in 0..2 {
        seen += &shown(&wire.until(b"4\r\n"));
        let chunk = wire.exactly(6);
        seen += &shown(&chunk);
        wire.stream.write_all(&chunk[..4]).expect("sent");
    }
    seen += &shown(&wire.until(b"0\r\n\r\n"));
    seen
}

/// Refuses a request as often as it comes.
fn refuse(mut wire: Wire) -> String {
    let seen = shown(&wire.until(b"\r\n\r\n"));
    let _ = wire.stream.write_all(b"HTTP/1.1 503 No\r\nx-up: 2\r\ncontent-length: 2\r\n\r\nno");
    seen + &shown(&rest(&mut wire))
}

const fn case(name: &'static str, proxy: &'static str, server: Server, client: fn(Wire) -> String) -> Case {
    Case { name, proxy, server, client, wire: true }
}

const CONNECT: &str = "tunneling_config: {hostname: 'host.test:443', propagate_response_headers: true, headers_to_add: \
                       [{header: {key: X-From, value: '%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%'}}, {header: {key: a, value: b}}]}";
const POST: &str = "tunneling_config: {hostname: 'host.test:443', use_post: true, post_path: /p, propagate_response_headers: true}";

fn cases() -> Vec<Case> {
    use Server::{Nobody, Own, Script};
    vec![
        case("large", "", Script(|wire| exchange(wire, 1, false)), |wire| exchange(wire, 2, true)),
        case("large_server_first", "", Script(|wire| exchange(wire, 1, true)), |wire| {
            exchange(wire, 2, false)
        }),
        case(
            "half_closed",
            "",
            Script(|mut wire| {
                let seen = shown(&rest(&mut wire));
                let _ = wire.stream.write_all(b"late");
                seen
            }),
            |mut wire| {
                wire.stream.write_all(b"all").expect("sent");
                wire.stream.shutdown(Shutdown::Write).expect("ended");
                shown(&rest(&mut wire))
            },
        ),
        case("idle", "idle_timeout: 0.1s", Script(wait_for_end), wait_for_end),
        Case {
            wire: false,
            ..case(
                "connect",
                CONNECT,
                Script(|wire| answer(wire, "HTTP/1.1 200 OK\r\nX-Up: 1\r\ncontent-length: 0\r\n\r\n")),
                ping,
            )
        },
        Case {
            wire: false,
            ..case("connect_204", CONNECT, Script(|wire| answer(wire, "HTTP/1.1 204 X\r\n\r\n")), ping)
        },
        Case {
            wire: false,
            ..case(
                "connect_interim",
                CONNECT,
                Script(|wire| answer(wire, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")),
                ping,
            )
        },
        Case {
            wire: false,
            ..case(
                "connect_early_bytes",
                CONNECT,
                Script(|wire| answer(wire, "HTTP/1.1 200 OK\r\n\r\nhell")),
                |mut wire| shown(&wire.exactly(4)) + &ping(wire),
            )
        },
        case("connect_refused", CONNECT, Script(refuse), wait_for_end),
        case(
            "connect_refused_twice",
            "max_connect_attempts: 2, tunneling_config: {hostname: 'a:1'}",
            Script(refuse),
            wait_for_end,
        ),
        Case {
            wire: false,
            ..case(
                "connect_host_of_command",
                "tunneling_config: {hostname: '%UPSTREAM_HOST%|%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%:1'}",
                Script(|wire| answer(wire, "HTTP/1.1 200 OK\r\n\r\n")),
                ping,
            )
        },
        Case {
            wire: false,
            ..case(
                "connect_server_ends",
                CONNECT,
                Script(|mut wire| {
                    let seen = shown(&wire.until(b"\r\n\r\n"));
                    wire.stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nbye").expect("sent");
                    wire.stream.shutdown(Shutdown::Write).expect("ended");
                    seen + &shown(&rest(&mut wire))
                }),
                wait_for_end,
            )
        },
        case("connect_nobody", CONNECT, Nobody, wait_for_end),
        case("nobody", "max_connect_attempts: 2", Nobody, wait_for_end),
        Case { wire: false, ..case("post", POST, Script(answer_chunks), ping) },
        case("post_refused", POST, Script(refuse), wait_for_end),
        Case { wire: false, ..case("http2_connect", CONNECT, Own, ping) },
        Case { wire: false, ..case("http2_post", POST, Own, ping) },
        Case {
            wire: false,
            ..case("http2_refused", "tunneling_config: {hostname: 'refused:1'}", Own, wait_for_end)
        },
    ]
}

/// A server of one case: where, and what each of its sessions saw.
fn serve(script: fn(Wire) -> String) -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    let (tell, told) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let tell = tell.clone();
            std::thread::spawn(move || tell.send(script(Wire::new(stream))));
        }
    });
    (address, told)
}

fn echo(mut wire: Wire) -> String {
    while !wire.input.is_empty() || wire.fill() {
        let bytes = std::mem::take(&mut wire.input);
        let _ = wire.stream.write_all(&bytes.to_ascii_uppercase());
    }
    let _ = wire.stream.write_all(b"bye");
    String::new()
}

fn address(at: SocketAddr) -> String {
    format!("{{socket_address: {{address: {}, port_value: {}}}}}", at.ip(), at.port())
}

fn log(folder: &Path, case: &Case) -> String {
    let wire = if case.wire { " wire %UPSTREAM_WIRE_BYTES_SENT% %UPSTREAM_WIRE_BYTES_RECEIVED%" } else { "" };
    let headers = if !matches!(case.server, Server::Own) {
        "%FILTER_STATE(envoy.tcp_proxy.propagate_response_headers)%"
    } else {
        "-"
    };
    format!(
        "[{{name: f, typed_config: {{'@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, \
         path: '{}', log_format: {{text_format_source: {{inline_string: \"%UPSTREAM_CLUSTER% %RESPONSE_FLAGS% sent %BYTES_SENT% \
         received %BYTES_RECEIVED%{wire} failure %UPSTREAM_TRANSPORT_FAILURE_REASON% attempts %UPSTREAM_REQUEST_ATTEMPT_COUNT% \
         headers {headers}\\n\"}}}}}}}}]",
        folder.join(case.name).display()
    )
}

fn bootstrap(folder: &Path, cases: &[Case], servers: &[Option<SocketAddr>], echo: SocketAddr) -> String {
    let own = format!("{{pipe: {{path: '{}'}}}}", folder.join("own").display());
    let mut listeners = format!(
        "  - {{name: own, address: {}, filter_chains: [{{filters: [{{name: h, typed_config: {{'@type': type.googleapis.com/envoy.\
         extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: own, http2_protocol_options: \
         {{allow_connect: true}}, http_filters: [{{name: r, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.\
         router.v3.Router}}}}], route_config: {{virtual_hosts: [{{name: refused, domains: ['refused:1'], routes: [{{match: {{connect_matcher: \
         {{}}}}, direct_response: {{status: 403}}}}]}}, {{name: v, domains: ['*'], routes: [{{match: {{connect_matcher: {{}}}}, route: \
         {{cluster: echo, upgrade_configs: [{{upgrade_type: CONNECT, connect_config: {{}}}}]}}}}, {{match: {{prefix: /}}, route: \
         {{cluster: echo, upgrade_configs: [{{upgrade_type: CONNECT, connect_config: {{allow_post: true}}}}]}}}}]}}]}}}}}}]}}]}}\n",
        own
    );
    let mut clusters = String::new();
    let mut cluster = |name: &str, at: &str, more: &str| {
        let _ = writeln!(
            clusters,
            "  - {{name: {name}, connect_timeout: 5s, type: STATIC, {more} load_assignment: {{cluster_name: {name}, endpoints: \
             [{{lb_endpoints: [{{endpoint: {{address: {at}}}}}]}}]}}}}"
        );
    };
    cluster("echo", &address(echo), "");
    for (case, server) in cases.iter().zip(servers) {
        let http2 = "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': \
                     type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: \
                     {http2_protocol_options: {}}}},";
        let at = server.map_or_else(|| own.clone(), address);
        cluster(case.name, &at, if matches!(case.server, Server::Own) { http2 } else { "" });
        let more = if case.proxy.is_empty() { String::new() } else { format!(", {}", case.proxy) };
        let _ = writeln!(
            listeners,
            "  - {{name: {}, address: {}, filter_chains: [{{filters: [{{name: t, typed_config: {{'@type': type.googleapis.com/envoy.\
             extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: {}, access_log: {}{more}}}}}]}}]}}",
            case.name,
            address((Ipv4Addr::LOCALHOST, 0).into()),
            case.name,
            log(folder, case)
        );
    }
    format!(
        "admin: {{address: {}}}\nstatic_resources:\n  listeners:\n{listeners}  clusters:\n{clusters}",
        address((Ipv4Addr::LOCALHOST, 0).into())
    )
}

/// What came of all cases with one proxy, in their order: client, server, log.
fn run(name: &'static str, envoy: Option<&Path>, cases: &[Case], folder: &Path) -> Vec<[String; 3]> {
    let (_kept, dead) = dead_port();
    let (echo, _) = serve(echo);
    let mut told = Vec::new();
    let mut servers = Vec::new();
    for case in cases {
        let (address, seen) = match case.server {
            Server::Script(script) => {
                let (address, seen) = serve(script);
                (Some(address), Some(seen))
            }
            Server::Own => (None, None),
            Server::Nobody => (Some(dead), None),
        };
        servers.push(address);
        told.push(seen);
    }
    let proxy = Proxy::start(name, folder, envoy, |folder| bootstrap(folder, cases, &servers, echo));
    // The listener that tunnels go to must be there.
    let own = folder.join(name).join("own");
    assert!(wait(|| UnixStream::connect(&own).ok()).is_some(), "{name}: its own listener");
    let clients: Vec<_> = cases
        .iter()
        .map(|case| {
            let (wire, client) = (Wire::connect(proxy.port(case.name)), case.client);
            std::thread::spawn(move || client(wire))
        })
        .collect();
    let mut outcomes = Vec::new();
    for ((case, client), seen) in cases.iter().zip(clients).zip(told) {
        let client = client.join().unwrap_or_else(|_| panic!("{name}: {}", case.name));
        let mut server = String::new();
        if let Some(seen) = seen {
            server =
                seen.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{name}: {}: no session", case.name));
        }
        outcomes.push([client, server, String::new()]);
    }
    let at = folder.join(name);
    for (case, outcome) in cases.iter().zip(&mut outcomes) {
        let line = wait(|| std::fs::read_to_string(at.join(case.name)).ok().filter(|text| !text.is_empty()));
        outcome[2] = line.unwrap_or_else(|| "no log".to_owned());
    }
    proxy.stop();
    outcomes
}

#[test]
fn sessions_are_those_of_envoy() {
    let Some(envoy) = leno_testkit::envoy::binary() else {
        println!("skipped: no Envoy");
        return;
    };
    let wanted = std::env::var("TCP").ok();
    let mut cases = cases();
    cases.retain(|case| wanted.as_ref().is_none_or(|wanted| case.name.contains(wanted.as_str())));
    let folder = tempfile::tempdir().expect("a folder");
    let theirs = run("envoy", Some(&envoy), &cases, folder.path());
    let ours = run("leno", None, &cases, folder.path());
    let mut wrong = String::new();
    for ((case, ours), theirs) in cases.iter().zip(&ours).zip(&theirs) {
        let told = format!("== {}\nours\n{}\nEnvoy's\n{}\n", case.name, ours.concat(), theirs.concat());
        if wanted.is_some() {
            println!("{told}");
        }
        if ours != theirs {
            wrong += &told;
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

//! Our proxy and the real Envoy, side by side: the same configuration, the same bytes from the
//! client, the same answers of the server behind. What the client gets, what the server gets and
//! what the access log says must be the same.
//!
//! The configuration is `differential/bootstrap.yaml` and `differential/routes.yaml`, the
//! conversations are `differential/cases.txt`; its head says how to write one. Headers are
//! compared without their order, and without what differs from run to run ([`normalise`]).
//! `DIFFERENTIAL=name` runs the cases whose names contain that, and prints both sides.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

mod differential {
    mod clusters;
    mod http2;
    mod overload;
}
mod support;

use support::{Proxy, Wire, dead_port};

/// One step of a conversation, from the client's side.
#[derive(Debug)]
enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Reads a response head and its body; to a HEAD request if so.
    Answer,
    /// Reads this many bytes.
    Bytes(usize),
    /// Ends the client's direction.
    End,
}

/// A conversation.
#[derive(Debug, Default)]
struct Case {
    name: String,
    listener: String,
    steps: Vec<Step>,
    answers: Vec<Vec<u8>>,
    /// Why both sides differ, if they do on purpose.
    deviation: Option<String>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential")
}

fn file(name: &str) -> String {
    let path = folder().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `X-A: LARGE` and `MANY` stand for more than a head may have.
fn expand(line: &str) -> Option<Vec<u8>> {
    match line {
        "X-A: LARGE" => Some(format!("X-A: {}\r\n", "a".repeat(61 * 1024)).into_bytes()),
        "MANY\\" => Some((0..120).map(|index| format!("x-{index}: a\r\n")).collect::<String>().into_bytes()),
        _ => None,
    }
}

/// `\r`, `\n`, `\\`, `\0` as in Rust; a line that ends in `\` is not ended.
fn unescape(line: &str) -> Vec<u8> {
    if let Some(expanded) = expand(line) {
        return expanded;
    }
    let (line, ended) = match line.strip_suffix('\\') {
        Some(rest) if !rest.ends_with('\\') => (rest, false),
        _ => (line, true),
    };
    let mut bytes = Vec::new();
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        if char != '\\' {
            bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        bytes.push(match chars.next() {
            Some('n') => b'\n',
            Some('r') => b'\r',
            Some('0') => 0,
            Some('t') => b'\t',
            Some('\\') => b'\\',
            other => panic!("{line}: unknown escape {other:?}"),
        });
    }
    if ended {
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

fn cases() -> Vec<Case> {
    let only = std::env::var("DIFFERENTIAL").unwrap_or_default();
    let mut cases: Vec<Case> = Vec::new();
    for line in file("cases.txt").lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (sign, rest) = line.split_at(1);
        let rest = rest.strip_prefix(' ').unwrap_or(rest);
        if sign == "=" {
            let (listener, name) = rest.split_once(' ').expect("= LISTENER NAME");
            cases.push(Case { name: name.into(), listener: listener.into(), ..Case::default() });
            continue;
        }
        let case = cases.last_mut().expect("a case begins with =");
        match sign {
            ">" => match case.steps.last_mut() {
                Some(Step::Send(bytes)) => bytes.extend(unescape(rest)),
                _ => case.steps.push(Step::Send(unescape(rest))),
            },
            "?" if rest.is_empty() => case.steps.push(Step::Answer),
            "?" => case.steps.push(Step::Bytes(rest.parse().expect("? BYTES"))),
            "x" => case.steps.push(Step::End),
            "<" => match rest.strip_prefix("<< ").or((rest == "<<").then_some("")) {
                Some(first) => case.answers.push(unescape(first)),
                None if case.answers.is_empty() => case.answers.push(unescape(rest)),
                None => case.answers.last_mut().expect("there is one").extend(unescape(rest)),
            },
            "!" => case.deviation = Some(rest.into()),
            _ => panic!("{line}: begins with none of = > ? x < !"),
        }
    }
    for case in &mut cases {
        if !case.steps.iter().any(|step| matches!(step, Step::Answer | Step::Bytes(_))) {
            case.steps.push(Step::Answer);
        }
    }
    // Every status that there is.
    for status in 200..600 {
        let head = format!("GET /status/{status} HTTP/1.1\r\nHost: a.test\r\n\r\n");
        cases.push(Case {
            name: format!("status {status}"),
            listener: "main".into(),
            steps: vec![Step::Send(head.into()), Step::Answer],
            answers: vec![format!("HTTP/1.1 {status} Mine\r\ncontent-length: 0\r\n\r\n").into()],
            deviation: None,
        });
    }
    cases.retain(|case| case.name.contains(&only));
    cases
}

/// What the server behind a proxy answers, and what it was asked.
#[derive(Default)]
struct Script {
    /// Counts the cases.
    case: usize,
    answers: VecDeque<Vec<u8>>,
    asked: Vec<String>,
}

/// A server whose answers are scripted.
struct Backend {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
}

impl Backend {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let script = Arc::new(Mutex::new(Script::default()));
        let shared = Arc::clone(&script);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let script = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &script));
            }
        });
        Self { address, script }
    }

    fn begin(&self, case: &Case) {
        let mut script = self.script.lock().unwrap_or_else(PoisonError::into_inner);
        script.answers = case.answers.clone().into();
        script.asked.clear();
        script.case += 1;
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.script.lock().unwrap_or_else(PoisonError::into_inner).asked)
    }
}

/// A body behind this head, with the head's normalised text in front.
fn message(wire: &mut Wire, head: &[u8], bodiless: bool, until_close: bool) -> String {
    let head = String::from_utf8_lossy(head);
    let mut lines = head.trim_end().split("\r\n");
    let first = lines.next().unwrap_or_default().to_owned();
    let mut fields: Vec<String> = lines.map(normalise).collect();
    let value = |name: &str| {
        fields.iter().find_map(|field| {
            let (field, value) = field.split_once(": ")?;
            field.eq_ignore_ascii_case(name).then(|| value.to_owned())
        })
    };
    let mut body = String::new();
    if bodiless {
    } else if value("transfer-encoding").is_some() {
        loop {
            let size = wire.until(b"\r\n");
            let size = String::from_utf8_lossy(&size);
            let Ok(size) = usize::from_str_radix(size.trim(), 16) else { break };
            if size == 0 {
                let mut trailers = Vec::new();
                loop {
                    let line = wire.until(b"\r\n");
                    if line.len() <= 2 {
                        break;
                    }
                    trailers.push(String::from_utf8_lossy(&line).into_owned());
                }
                trailers.sort();
                body += &trailers.concat();
                break;
            }
            let data = wire.exactly(size + 2);
            body += String::from_utf8_lossy(&data).trim_end();
        }
    } else if let Some(length) = value("content-length") {
        let data = wire.exactly(length.parse().unwrap_or(0));
        body += &String::from_utf8_lossy(&data);
    } else if until_close {
        while wire.fill() {}
        body += &String::from_utf8_lossy(&std::mem::take(&mut wire.input));
    }
    fields.sort();
    let mut text = normalise(&first);
    for field in fields {
        text.push('\n');
        text += &field;
    }
    if !body.is_empty() {
        text.push('\n');
        text += &normalise(&body);
    }
    text
}

/// Answers as the script says, `early` without waiting for the request's body. `hang` says nothing, `close` nothing either but closes; a last
/// line `close` closes behind the answer.
fn serve(stream: TcpStream, script: &Mutex<Script>) {
    let mut wire = Wire::new(stream);
    loop {
        let head = wire.until(b"\r\n\r\n");
        if head.is_empty() {
            return;
        }
        let lock = || script.lock().unwrap_or_else(PoisonError::into_inner);
        let (case, early) = {
            let script = lock();
            (script.case, script.answers.front().is_some_and(|answer| answer.starts_with(b"early\r\n")))
        };
        let request = message(&mut wire, &head, early, false);
        let answer = {
            let mut script = lock();
            if script.case != case {
                // The rest of a request that was given up.
                return;
            }
            script.asked.push(request);
            script.answers.pop_front()
        };
        let answer = answer.unwrap_or_else(|| b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec());
        let answer = answer.strip_prefix(b"early\r\n").unwrap_or(&answer);
        if answer == b"hang\r\n" {
            while wire.fill() {}
            return;
        }
        let (answer, close) = match answer.strip_suffix(b"close\r\n") {
            Some(answer) => (answer, true),
            None => (answer, false),
        };
        if wire.stream.write_all(answer).is_err() || close {
            return;
        }
        if answer.starts_with(b"HTTP/1.1 101") {
            // An echo.
            loop {
                let input = std::mem::take(&mut wire.input);
                if wire.stream.write_all(&input).is_err() || !wire.fill() {
                    return;
                }
            }
        }
    }
}

/// Takes out what differs between two runs: dates, identifiers, times, ports.
fn normalise(text: &str) -> String {
    if let Some(from) = text.strip_prefix("PROXY ") {
        let words: Vec<&str> = from.split(' ').take(3).collect();
        return format!("PROXY {} PORT PORT", words.join(" "));
    }
    let (name, value) = text.split_once(": ").unwrap_or_default();
    match name.to_ascii_lowercase().as_str() {
        "date" => return format!("{name}: D"),
        "x-envoy-upstream-service-time" => return format!("{name}: N"),
        // What is left of the default when a request is tried again.
        "x-envoy-expected-rq-timeout-ms" if value.starts_with("14") || value.starts_with("13") => {
            return format!("{name}: 15000");
        }
        _ => {}
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(char) = rest.chars().next() {
        let uuid = rest.get(..36).is_some_and(|word| {
            word.char_indices().all(|(index, char)| match index {
                8 | 13 | 18 | 23 => char == '-',
                _ => char.is_ascii_hexdigit(),
            })
        });
        let (taken, written) = if uuid {
            (36, "UUID")
        } else if let Some(port) = rest.strip_prefix("127.0.0.1:") {
            let digits = port.bytes().take_while(u8::is_ascii_digit).count();
            (rest.len() - port.len() + digits, "127.0.0.1:PORT")
        } else {
            (char.len_utf8(), &rest[..char.len_utf8()])
        };
        out += written;
        rest = &rest[taken..];
    }
    out
}

/// A proxy that runs, and the server behind it.
struct Side {
    proxy: Proxy,
    backend: Backend,
}

/// Listeners and what is special about their connection managers.
const LISTENERS: &[(&str, &str)] = &[
    ("main", ""),
    ("edge", "use_remote_address: true"),
    ("hops", "{use_remote_address: true, xff_num_trusted_hops: 1}"),
    ("http10", "http_protocol_options: {accept_http_10: true, default_host_for_http_10: ten.test}"),
    (
        "keepid",
        "{use_remote_address: true, preserve_external_request_id: true, always_set_request_id_in_response: true}",
    ),
    ("upgrade", "upgrade_configs: [{upgrade_type: websocket}]"),
    ("trailers", "http_protocol_options: {enable_trailers: true}"),
    ("continue", "proxy_100_continue: true"),
    (
        "strict",
        "{normalize_path: true, merge_slashes: true, strip_any_host_port: true, path_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT}",
    ),
    ("inside", "internal_address_config: {cidr_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}"),
    (
        "quiet",
        "http_filters: [{name: router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, suppress_envoy_headers: true, dynamic_stats: false}}]\ninternal_address_config: {cidr_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}",
    ),
    (
        "header",
        "{internal_address_config: {cidr_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}, original_ip_detection_extensions: [{name: h, typed_config: {'@type': type.googleapis.com/envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig, header_name: X-Real, allow_extension_to_set_address_as_trusted: true, reject_with_status: {code: 401}}}]}",
    ),
    (
        "detected",
        "{internal_address_config: {cidr_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}, original_ip_detection_extensions: [{name: h, typed_config: {'@type': type.googleapis.com/envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig, header_name: X-Real}}, {name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.http.original_ip_detection.xff.v3.XffConfig, xff_num_trusted_hops: 1, skip_xff_append: false}}]}",
    ),
    (
        "networks",
        "{internal_address_config: {cidr_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}, original_ip_detection_extensions: [{name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.http.original_ip_detection.xff.v3.XffConfig, xff_trusted_cidrs: {cidrs: [{address_prefix: 127.0.0.0, prefix_len: 8}, {address_prefix: 10.0.0.0, prefix_len: 8}]}}}]}",
    ),
    (
        "early",
        "{internal_address_config: {cidr_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}, early_header_mutation_extensions: [{name: m, typed_config: {'@type': type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation, mutations: [{remove: x-gone}, {append: {header: {key: x-early, value: '%REQ(X-TWO)% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %REQ(X-REQUEST-ID)%'}}}, {append: {header: {key: x-forwarded-for, value: 10.0.0.7}}}]}}]}",
    ),
    (
        "logs",
        "access_log_options: {flush_access_log_on_new_request: true, flush_log_on_tunnel_successfully_established: true}",
    ),
    (
        "cased",
        "http_protocol_options: {header_key_format: {stateful_formatter: {name: p, typed_config: {'@type': type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig, formatter_type_on_envoy_headers: PROPER_CASE}}}}",
    ),
    ("proper", "http_protocol_options: {header_key_format: {proper_case_words: {}}}"),
    ("errors", "stream_error_on_invalid_http_message: true"),
    (
        "checked",
        "http_filters: [{name: router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, strict_check_headers: [x-envoy-max-retries, x-envoy-retry-on, x-envoy-retry-grpc-on, x-envoy-upstream-rq-timeout-ms]}}]\ninternal_address_config: {cidr_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}",
    ),
    (
        "replies",
        r#"local_reply_config:
  mappers:
  - filter: {status_code_filter: {comparison: {op: EQ, value: {default_value: 418, runtime_key: none}}}}
    status_code: 419
    body: {inline_string: "mapped body"}
    headers_to_add: [{header: {key: x-mapped, value: "%RESPONSE_CODE% %REQ(X-TWO)%"}}]
  - filter: {response_flag_filter: {flags: [NR]}}
    body_format_override: {json_format: {status: "%RESPONSE_CODE%", path: "%REQ(:PATH)%", body: "%LOCAL_REPLY_BODY%"}}
  - filter: {header_filter: {header: {name: x-html}}}
    body_format_override: {text_format_source: {inline_string: "<b>%LOCAL_REPLY_BODY%</b>"}, content_type: "text/html; charset=UTF-8"}
  body_format: {text_format_source: {inline_string: "%RESPONSE_CODE%:%RESPONSE_FLAGS%:%LOCAL_REPLY_BODY%"}}"#,
    ),
    (
        "named",
        "{server_name: mine, server_header_transformation: APPEND_IF_ABSENT, via: here, generate_request_id: false}",
    ),
    ("filters", include_str!("differential/filters.yaml")),
    ("status", "{proxy_status_config: {}, stream_idle_timeout: 0.4s}"),
    (
        "coded",
        "{server_name: mine, proxy_status_config: {set_recommended_response_code: true, use_node_id: true, remove_response_flags: true}}",
    ),
    ("bare", "{server_name: mine, proxy_status_config: {literal_proxy_name: literal, remove_details: true}}"),
    (
        "ignored",
        "{upgrade_configs: [{upgrade_type: websocket}], http_protocol_options: {ignore_http_11_upgrade: [{prefix: TLS/}, {exact: Foo}]}}",
    ),
    (
        "scoped",
        r#"scoped_routes:
  name: s
  scope_key_builder: {fragments: [{header_value_extractor: {name: X-K, element_separator: ";", index: 1}}]}
  rds_config_source: {ads: {}}
  scoped_route_configurations_list:
    scoped_route_configurations:
    - {name: one, key: {fragments: [{string_key: b}]}, route_configuration: {name: one, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: one}}}]}]}}
    - {name: two, key: {fragments: [{string_key: c=d}]}, route_configuration: {name: two, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: two}}}]}]}}"#,
    ),
    (
        "scoped_twice",
        r#"scoped_routes:
  name: s
  scope_key_builder:
    fragments:
    - {header_value_extractor: {name: X-K, element_separator: ";", element: {separator: "=", key: vip}}}
    - {header_value_extractor: {name: X-L, index: 0}}
  rds_config_source: {ads: {}}
  scoped_route_configurations_list:
    scoped_route_configurations:
    - {name: one, key: {fragments: [{string_key: "1"}, {string_key: why}]}, route_configuration: {name: one, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: one}}}]}]}}
    - {name: two, key: {fragments: [{string_key: ""}, {string_key: why}]}, route_configuration: {name: two, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: two}}}]}]}}"#,
    ),
    ("proxied", "{forward_proto_config: {https_destination_ports: [443], http_destination_ports: [80]}}"),
    (
        "proxied_edge",
        "{use_remote_address: true, forward_proto_config: {https_destination_ports: [443], http_destination_ports: [80]}}",
    ),
];

/// In front of listeners whose names begin with `proxied`.
const PROXY_PROTOCOL: &str = "\n    listener_filters: [{name: p, typed_config: {'@type': \
    type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol, \
    allow_requests_without_proxy_protocol: true}}]";

/// The bootstrap file for a proxy in `folder`.
fn bootstrap(folder: &Path, backend: SocketAddr, dead: SocketAddr) -> String {
    let routes: Value = yaml(&file("routes.yaml"));
    let mut text = file("bootstrap.yaml")
        .replace("BACKEND_PORT", &backend.port().to_string())
        .replace("DEAD_PORT", &dead.port().to_string());
    let log = folder.join("access.log");
    let manager = file("manager.yaml").replace("LOG_FILE", &log.display().to_string());
    for (name, options) in LISTENERS {
        let mut manager = yaml(&manager);
        let object = manager.as_object_mut().expect("an object");
        object.insert("route_config".into(), routes.clone());
        if let Value::Object(options) = yaml(options) {
            object.extend(options);
        }
        if object.contains_key("scoped_routes") {
            object.remove("route_config");
        }
        let _ = write!(
            text,
            "\n  - name: {name}\n    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}{}\n    \
             filter_chains: [{{filters: [{{name: hcm, typed_config: {manager}}}]}}]\n",
            if name.starts_with("proxied") { PROXY_PROTOCOL } else { "" }
        );
    }
    text
}

fn yaml(text: &str) -> Value {
    let documents = leno_api::yaml::parse(text, leno_api::yaml::Dialect::Envoy).expect("valid YAML");
    documents.first().map(leno_api::yaml::Node::to_json).unwrap_or_default()
}

impl Side {
    fn start(name: &'static str, folder: &Path, dead: SocketAddr, envoy: Option<&Path>) -> Self {
        let backend = Backend::start();
        let proxy = Proxy::start(name, folder, envoy, |folder| bootstrap(folder, backend.address, dead));
        Self { proxy, backend }
    }

    /// What comes of each case; the last is the access log.
    fn run(&self, cases: &[Case]) -> Vec<String> {
        let ports: Vec<(&str, SocketAddr)> =
            LISTENERS.iter().map(|(name, _)| (*name, self.proxy.port(name))).collect();
        let (_, main) = ports.first().expect("there are listeners");
        let mut mark = Wire::connect(*main);
        let mut results = Vec::new();
        for case in cases {
            let listener = ports.iter().find(|(name, _)| *name == case.listener);
            let (_, port) = listener.unwrap_or_else(|| panic!("no listener {}", case.listener));
            self.backend.begin(case);
            let mut text = converse(*port, case);
            for request in self.backend.asked() {
                text += &format!("\n--- the server gets\n{request}");
            }
            results.push(text);
            self.backend.begin(&Case::default());
            // Marks the end of the case in the access log.
            let _ = mark.stream.write_all(b"HEAD /mark HTTP/1.1\r\nHost: a.test\r\n\r\n");
            assert!(mark.until(b"\r\n\r\n").starts_with(b"HTTP/1.1 200"), "{}: no end", case.name);
        }
        results
    }

    /// Counters of the router that all cases together leave behind.
    fn router_stats(&self) -> String {
        let text = self.proxy.admin("GET", "/stats?usedonly");
        let wanted = |line: &&str| {
            // Others differ by the cases that differ on purpose.
            let scope = line.starts_with("vhost.") || line.starts_with("cluster.limited.");
            let router = line.contains("retry") || line.contains("internal") || line.contains("per_try");
            (router || scope && line.contains("rq_"))
                && !line.contains("P0(")
                && !line.contains("No recorded")
                && !line.contains("circuit_breakers")
                && !line.contains("pending")
                && !line.ends_with(": 0")
        };
        text.lines().filter(wanted).fold(String::new(), |mut out, line| {
            out.push_str(line);
            out.push('\n');
            out
        })
    }

    /// Ends the proxy; gives the lines of its access logs, by case. When the client goes away it
    /// is a matter of chance which comes first, a request's line or its attempt's.
    fn stop(self) -> Vec<String> {
        let folder = self.proxy.stop();
        let text = std::fs::read_to_string(folder.join("access.log")).unwrap_or_default();
        let mut cases = vec![Vec::new()];
        for line in text.lines() {
            if line.contains("path=/mark ") {
                cases.push(Vec::new());
            } else if let Some(case) = cases.last_mut() {
                case.push(normalise(line).replace(' ', "\n"));
            }
        }
        let said = |lines: &mut Vec<String>| {
            lines.sort();
            lines.iter().fold(String::new(), |text, line| text + "\n--- the log says\n" + line)
        };
        cases.iter_mut().map(said).collect()
    }
}

/// Has the client's side of the conversation; in the end, says whether the connection is open.
fn converse(port: SocketAddr, case: &Case) -> String {
    let mut wire = Wire::connect(port);
    let mut text = String::new();
    let mut to_head = false;
    let mut open = true;
    for step in &case.steps {
        match step {
            Step::Send(bytes) => {
                to_head = bytes.starts_with(b"HEAD ") || bytes.starts_with(b"CONNECT ");
                if wire.stream.write_all(bytes).is_err() {
                    text += "--- cannot be sent\n";
                }
            }
            Step::End => {
                let _ = wire.stream.shutdown(Shutdown::Write);
                while wire.fill() {}
                open = false;
            }
            Step::Bytes(count) => {
                let bytes = wire.exactly(*count);
                let _ =
                    writeln!(text, "--- the client gets {count} bytes\n{}", String::from_utf8_lossy(&bytes));
            }
            Step::Answer => {
                let head = wire.until(b"\r\n\r\n");
                let status = head.get(9..12).unwrap_or_default();
                let bodiless = to_head || status.starts_with(b"1") || status == b"204" || status == b"304";
                let message = message(&mut wire, &head, bodiless, true);
                let _ = writeln!(text, "--- the client gets\n{message}");
            }
        }
    }
    if open {
        let _ = wire.stream.write_all(b"HEAD /open HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
        let rest = wire.until(b"\r\n\r\n");
        let rest = String::from_utf8_lossy(&rest);
        let state = if rest.is_empty() { "closed" } else { rest.split("\r\n").next().unwrap_or_default() };
        let _ = write!(text, "--- then\n{state}");
    }
    text
}

#[test]
fn same_as_envoy() {
    let Some(envoy) = leno_testkit::envoy::binary() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (_socket, refused) = dead_port();
    let cases = cases();
    let both = std::thread::scope(|scope| {
        let sides = [("ours", None), ("envoy", Some(envoy.as_path()))].map(|(name, binary)| {
            let (folder, cases) = (folder.path(), &cases);
            scope.spawn(move || {
                let side = Side::start(name, folder, refused, binary);
                let mut results = side.run(cases);
                results.push(side.router_stats());
                let logs = side.stop();
                assert_eq!(logs.len(), cases.len() + 1, "{name}: lines of the access log");
                for (result, log) in results.iter_mut().zip(logs) {
                    *result += &log;
                }
                results
            })
        });
        sides.map(|side| side.join().expect("it ran"))
    });
    let [ours, envoys] = both;
    let mut failures = String::new();
    let mut failed = 0;
    let verbose = std::env::var_os("DIFFERENTIAL").is_some();
    let (stats, envoys_stats) = (ours.last().cloned(), envoys.last().cloned());
    if stats != envoys_stats {
        failed += 1;
        let [ours, envoys] =
            [stats, envoys_stats].map(|stats| format!("--- stats\n{}", stats.unwrap_or_default()));
        let _ = writeln!(failures, "\n=== stats of the router\n{}", difference(&ours, &envoys));
    }
    for ((case, ours), envoys) in cases.iter().zip(&ours).zip(&envoys) {
        let name = &case.name;
        if verbose {
            println!("=== {name}: ours\n{ours}\n=== {name}: Envoy\n{envoys}\n");
        }
        match &case.deviation {
            None if ours != envoys => {
                failed += 1;
                let _ = writeln!(failures, "\n=== {name}\n{}", difference(ours, envoys));
            }
            Some(deviation) if ours == envoys => {
                failed += 1;
                let _ = writeln!(failures, "\n=== {name}: no deviation any more ({deviation})");
            }
            _ => {}
        }
    }
    assert!(failed == 0, "{failed} of {} cases differ (- Envoy, + ours)\n{failures}", cases.len());
}

/// Lines that only one side has, below the part that they are in.
fn difference(ours: &str, envoys: &str) -> String {
    let parts = |text: &str| -> Vec<(String, Vec<String>)> {
        let mut parts: Vec<(String, Vec<String>)> = Vec::new();
        for line in text.lines() {
            match parts.last_mut() {
                Some((_, lines)) if !line.starts_with("---") => lines.push(line.to_owned()),
                _ => parts.push((line.to_owned(), Vec::new())),
            }
        }
        parts
    };
    let (ours, envoys) = (parts(ours), parts(envoys));
    let mut out = String::new();
    for index in 0..ours.len().max(envoys.len()) {
        let (ours, envoys) = (ours.get(index), envoys.get(index));
        if ours == envoys {
            continue;
        }
        let none = (String::new(), Vec::new());
        let (ours, envoys) = (ours.unwrap_or(&none), envoys.unwrap_or(&none));
        let title = if ours.0 == envoys.0 { ours.0.clone() } else { format!("{} / {}", envoys.0, ours.0) };
        let _ = writeln!(out, "{title}");
        for line in envoys.1.iter().filter(|line| !ours.1.contains(line)) {
            let _ = writeln!(out, "-{line}");
        }
        for line in ours.1.iter().filter(|line| !envoys.1.contains(line)) {
            let _ = writeln!(out, "+{line}");
        }
    }
    out
}

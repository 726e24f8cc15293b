//! Network filters, ours beside the real Envoy's: what a client gets back, what the access log
//! says, what is counted.
//!
//! Each row is a listener with filters in front of `echo`. A client says `hello` and reads it back,
//! or the end, as often as the row says.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

mod support;

use support::{Proxy, Wire};

/// A listener.
struct Row {
    name: &'static str,
    /// Listener filters, and network filters in front of `echo`, as YAML in flow style.
    listener_filters: &'static str,
    filters: &'static str,
    /// Connections that are made, one after the other.
    connections: usize,
}

const fn row(name: &'static str, filters: &'static str) -> Row {
    Row { name, listener_filters: "", filters, connections: 1 }
}

const ANY: &str = "permissions: [{any: true}], principals: [{any: true}]";

fn rows() -> Vec<Row> {
    vec![
        row("denied", "RBAC{stat_prefix: denied, rules: {action: DENY, policies: {p: {ANY}}}}"),
        row("allowed", "RBAC{stat_prefix: allowed, rules: {policies: {p: {ANY}}}}"),
        row("nobody", "RBAC{stat_prefix: nobody, rules: {policies: {}}}"),
        row("no_rules", "RBAC{stat_prefix: no_rules}"),
        row(
            "shadow",
            "RBAC{stat_prefix: shadow, shadow_rules_stat_prefix: sh_, rules: {policies: {p: {ANY}}}, shadow_rules: {action: DENY, policies: {q: {ANY}}}}",
        ),
        row(
            "shadow_only",
            "RBAC{stat_prefix: shadow_only, shadow_rules: {policies: {'a b': {permissions: [{destination_port: 1}], principals: [{any: true}]}}}}",
        ),
        row("log", "RBAC{stat_prefix: log, rules: {action: LOG, policies: {p: {ANY}}}}"),
        row(
            "log_nothing",
            "RBAC{stat_prefix: log_nothing, rules: {action: LOG, policies: {p: {permissions: [{any: true}], principals: [{not_id: {any: true}}]}}}}",
        ),
        row(
            "by_address",
            "RBAC{stat_prefix: by_address, rules: {policies: {p: {permissions: [{any: true}], principals: [{direct_remote_ip: {address_prefix: 127.0.0.0, prefix_len: 8}}]}}}}",
        ),
        row(
            "by_name",
            "RBAC{stat_prefix: by_name, rules: {policies: {p: {permissions: [{requested_server_name: {exact: a}}], principals: [{any: true}]}}}}",
        ),
        row(
            "by_path",
            "RBAC{stat_prefix: by_path, rules: {policies: {p: {permissions: [{url_path: {path: {prefix: /}}}], principals: [{any: true}]}}}}",
        ),
        row(
            "authenticated",
            "RBAC{stat_prefix: authenticated, rules: {policies: {p: {permissions: [{any: true}], principals: [{authenticated: {}}]}}}}",
        ),
        row(
            "late",
            "RBAC{stat_prefix: late, delay_deny: 0.05s, rules: {action: DENY, policies: {'a policy': {ANY}}}}",
        ),
        row(
            "tree",
            "RBAC{stat_prefix: tree, matcher: {matcher_tree: {input: INPUT(network.v3.SourceIPInput), exact_match_map: {map: {127.0.0.1: {action: {name: a, typed_config: {'@type': type.googleapis.com/envoy.config.rbac.v3.Action, name: local, action: DENY}}}}}}}}",
        ),
        row(
            "tree_of_names",
            "RBAC{stat_prefix: tree_of_names, matcher: {matcher_list: {matchers: [{predicate: {single_predicate: {input: INPUT(ssl.v3.UriSanInput), value_match: {prefix: spiffe}}}, on_match: {action: {name: a, typed_config: {'@type': type.googleapis.com/envoy.config.rbac.v3.Action, name: names}}}}]}}}",
        ),
        Row {
            connections: 3,
            ..row("rate", "RATE{stat_prefix: rate, token_bucket: {max_tokens: 2, fill_interval: 1000s}}")
        },
        Row {
            connections: 3,
            ..row(
                "rate_off",
                "RATE{stat_prefix: rate_off, runtime_enabled: {default_value: false, runtime_key: a}, token_bucket: {max_tokens: 2, fill_interval: 1000s}}",
            )
        },
        Row {
            connections: 3,
            listener_filters: "[{name: l, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.local_ratelimit.v3.LocalRateLimit, stat_prefix: sockets, token_bucket: {max_tokens: 2, fill_interval: 1000s}}}]",
            ..row("sockets", "")
        },
        row(
            "state",
            "STATE{on_new_connection: [{object_key: my.key, factory_key: envoy.string, format_string: {text_format_source: {inline_string: 'from %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%'}}}]}",
        ),
        row(
            "state_later",
            "STATE{on_downstream_data: [{object_key: my.key, factory_key: envoy.string, format_string: {text_format_source: {inline_string: 'data'}}}], on_downstream_tls_handshake: [{object_key: my.key, factory_key: envoy.string, format_string: {text_format_source: {inline_string: 'tls'}}}]}",
        ),
        row(
            "authz",
            "AUTHZ{stat_prefix: authz, transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: nobody}}}",
        ),
        row(
            "authz_lenient",
            "AUTHZ{stat_prefix: lenient, transport_api_version: V3, failure_mode_allow: true, grpc_service: {envoy_grpc: {cluster_name: nobody}}}",
        ),
        row(
            "limit_off",
            "LIMIT{stat_prefix: limit_off, max_connections: 1, runtime_enabled: {default_value: false, runtime_key: a}}",
        ),
    ]
}

/// The short names in rows, written out.
fn filter(text: &str) -> String {
    let kinds = [
        ("RBAC{", "rbac.v3.RBAC"),
        ("RATE{", "local_ratelimit.v3.LocalRateLimit"),
        ("STATE{", "set_filter_state.v3.Config"),
        ("AUTHZ{", "ext_authz.v3.ExtAuthz"),
        ("LIMIT{", "connection_limit.v3.ConnectionLimit"),
    ];
    let Some((start, kind)) = kinds.iter().find(|(start, _)| text.starts_with(start)) else {
        return String::new();
    };
    let rest = text.strip_prefix(start).expect("it starts so").replace("ANY", ANY);
    let mut rest = rest.as_str();
    let mut body = String::new();
    while let Some((before, input)) = rest.split_once("INPUT(") {
        let (name, behind) = input.split_once(')').expect("a closed input");
        let _ = write!(
            body,
            "{before}{{name: i, typed_config: {{'@type': type.googleapis.com/envoy.extensions.matching.common_inputs.{name}}}}}"
        );
        rest = behind;
    }
    body.push_str(rest);
    format!(
        "      - {{name: f, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.{kind}, {body}}}\n"
    )
}

fn bootstrap(folder: &Path) -> String {
    let mut text = "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}\nstatic_resources:\n  clusters: [{name: nobody}]\n  listeners:\n"
        .to_owned();
    for Row { name, listener_filters, filters, .. } in rows() {
        let _ = writeln!(
            text,
            "  - name: {name}\n    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}"
        );
        if !listener_filters.is_empty() {
            let _ = writeln!(text, "    listener_filters: {listener_filters}");
        }
        let log = folder.join("log");
        let _ = writeln!(
            text,
            "    access_log: [{{name: f, typed_config: {{'@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: '{}', log_format: {{text_format_source: {{inline_string: \"{name} %CONNECTION_TERMINATION_DETAILS% %DYNAMIC_METADATA(envoy.filters.network.rbac)% %DYNAMIC_METADATA(envoy.common)% %FILTER_STATE(my.key:PLAIN)%\\n\"}}}}}}}}]",
            log.display()
        );
        text.push_str("    filter_chains:\n    - filters:\n");
        text.push_str(&filter(filters));
        text.push_str("      - {name: echo, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo}}\n");
    }
    text
}

/// What all rows come to with one proxy.
fn ask(name: &'static str, folder: &Path, envoy: Option<&Path>) -> String {
    let proxy = Proxy::start(name, folder, envoy, bootstrap);
    let mut told = String::new();
    for Row { name, connections, .. } in rows() {
        for _ in 0..connections {
            let mut wire = Wire::connect(proxy.port(name));
            // The proxy may have closed it by now.
            let _ = wire.stream.write_all(b"hello");
            let came = wire.exactly(5);
            let _ = writeln!(told, "{name}: {:?}", String::from_utf8_lossy(&came));
        }
    }
    let stats = proxy.admin("GET", "/stats?usedonly&filter=rbac|rate_limit|connection_limit|ext_authz");
    let mut stats: Vec<&str> =
        stats.lines().filter(|line| line.contains(": ") && line.contains('.')).collect();
    stats.retain(|line| !line.starts_with("listener.") && !line.ends_with(": 0"));
    stats.sort_unstable();
    stats.iter().for_each(|line| told.push_str(&format!("{line}\n")));
    let folder = proxy.stop();
    let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
    let mut lines: Vec<&str> = log.lines().collect();
    // Connections that were closed late end later.
    lines.sort_unstable();
    lines.iter().for_each(|line| told.push_str(&format!("log {line}\n")));
    told
}

#[test]
fn same_as_envoy() {
    let Some(envoy) = leno_testkit::envoy::binary() else {
        println!("skipped: there is no Envoy to compare with");
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let ours = ask("ours", folder.path(), None);
    let theirs = ask("envoy", folder.path(), Some(&envoy));
    assert!(ours.contains("denied: \"\"\n") && ours.contains("allowed: \"hello\"\n"), "{ours}");
    similar(&ours, &theirs);
}

/// Compares line by line, to show what differs.
fn similar(ours: &str, theirs: &str) {
    let missing = |of: &str, from: &str, sign: char| -> String {
        of.lines()
            .filter(|line| !from.lines().any(|other| other == *line))
            .map(|line| format!("{sign} {line}\n"))
            .collect()
    };
    let difference = missing(ours, theirs, '+') + &missing(theirs, ours, '-');
    assert!(difference.is_empty(), "+ ours, - Envoy's:\n{difference}");
    assert_eq!(ours, theirs);
}

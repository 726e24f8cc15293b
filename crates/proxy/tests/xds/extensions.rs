//! Filters whose configuration comes by ECDS, compared with the real Envoy: what they do, what is
//! refused, what is counted and shown, while the connections of a listener stay.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use leno_api::any::pack;
use leno_api::proto::envoy::config::common::mutation_rules::v3::HeaderMutation as Change;
use leno_api::proto::envoy::config::common::mutation_rules::v3::header_mutation::Action;
use leno_api::proto::envoy::config::core::v3::{HeaderValue, HeaderValueOption, TypedExtensionConfig};
use leno_api::proto::envoy::config::listener::v3::Listener;
use leno_api::proto::envoy::extensions::filters::http::header_mutation::v3::{HeaderMutation, Mutations};
use leno_base::Name;
use leno_xds::{Mode, Resource, TypeUrl};
use prost::Message as _;
use tokio::task::block_in_place;

use super::proxies::{self, Wire, wait};
use super::sources::{Tested, pretty, put};
use super::{Server, ads, rejected, resource};

const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters.http";

/// A configuration of header_mutation that adds `x-NAME: VALUE` to responses.
fn says(name: &str, value: &str) -> String {
    format!(
        "{{'@type': {FILTERS}.header_mutation.v3.HeaderMutation, mutations: {{response_mutations: [{{append: {{header: \
         {{key: x-{name}, value: '{value}'}}}}}}]}}}}"
    )
}

/// One of buffer.
fn buffers(bytes: u32) -> String {
    format!("{{'@type': {FILTERS}.buffer.v3.Buffer, max_request_bytes: {bytes}}}")
}

fn extension(name: &str, config: &str) -> Resource {
    resource::<TypedExtensionConfig>(name, &format!("{{name: {name}, typed_config: {config}}}"))
}

/// One that adds a header without a name.
fn broken(name: &str) -> Resource {
    let header = HeaderValueOption { header: Some(HeaderValue::default()), ..HeaderValueOption::default() };
    let change = Change { action: Some(Action::Append(header)) };
    let mutations = Mutations { response_mutations: vec![change], ..Mutations::default() };
    let config = pack(&HeaderMutation { mutations: Some(mutations), ..HeaderMutation::default() });
    let extension = TypedExtensionConfig { name: name.to_owned(), typed_config: Some(config) };
    Resource::hashed(Name::new(name), extension.encode_to_vec().into())
}

/// A filter that takes a configuration of header_mutation from this source.
fn filter(name: &str, source: &str, more: &str) -> String {
    format!(
        "{{name: {name}, {more} config_discovery: {{config_source: {source}, type_urls: [{FILTERS}.header_mutation.v3.\
         HeaderMutation]}}}},"
    )
}

/// The same with a default configuration.
fn filter_or(name: &str, source: &str, kind: &str, default: &str, more: &str) -> String {
    format!(
        "{{name: {name}, config_discovery: {{config_source: {source}, type_urls: ['{FILTERS}.{kind}'], default_config: \
         {default}, {more}}}}},"
    )
}

/// A listener with these filters, all of whose requests are answered at once.
fn listener(name: &str, log: &Path, filters: &str) -> Resource {
    let log = log.display();
    let text = format!(
        "{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: \
         [{{filters: [{{name: hcm, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.\
         http_connection_manager.v3.HttpConnectionManager, stat_prefix: {name}, access_log: [{{name: file, typed_config: \
         {{'@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: '{log}', log_format: \
         {{text_format_source: {{inline_string: \"%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%|\\n\"}}}}}}}}], \
         route_config: {{name: r, virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{path: /own}}, \
         direct_response: {{status: 200}}, typed_per_filter_config: {{one: {{'@type': {FILTERS}.header_mutation.v3.\
         HeaderMutationPerRoute, mutations: {{response_mutations: [{{append: {{header: {{key: x-route, value: '1'}}}}}}]}}}}, \
         dark: {{'@type': {FILTERS}.header_mutation.v3.HeaderMutationPerRoute}}}}}}, \
         {{match: {{prefix: /}}, direct_response: {{status: 200}}}}]}}]}}, http_filters: [{filters} {{name: router, \
         typed_config: {{'@type': {FILTERS}.router.v3.Router}}}}]}}}}]}}]}}"
    );
    resource::<Listener>(name, &text)
}

/// A connection that stays.
struct Kept(Wire);

impl Kept {
    fn new(proxy: &Tested, listener: &str) -> Self {
        Self(Wire::connect(proxy.0.port(listener)))
    }

    /// What is answered: the status, and what filters said.
    fn ask(&mut self, path: &str) -> String {
        let Self(wire) = self;
        write!(wire.stream, "GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").expect("sent");
        let head = String::from_utf8_lossy(&wire.until(b"\r\n\r\n")).into_owned();
        assert!(!head.is_empty(), "the connection was closed");
        wire.body(&head);
        let mut lines = head.lines();
        let status = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned();
        let mut said: Vec<&str> = lines.filter(|line| line.starts_with("x-")).collect();
        said.sort_unstable();
        format!("{status} {}", said.join(" "))
    }

    /// Asks until this is answered.
    fn until(&mut self, path: &str, expected: &str) {
        let mut last = String::new();
        let found = wait(|| {
            last = self.ask(path);
            (last == expected).then_some(())
        });
        assert!(found.is_some(), "never {expected}, but {last}");
    }
}

/// What is counted of the subscriptions and of listeners, apart from times and versions.
fn counts(proxy: &Tested) -> String {
    let mut text = String::new();
    for line in proxy.0.admin("GET", "/stats").lines() {
        let Some((name, value)) = line.split_once(": ") else { continue };
        let stat = name.rsplit('.').next().unwrap_or_default();
        let left_out = ["version", "version_text", "update_time", "update_duration", "identifier"];
        let of_listeners =
            ["listener_manager.listener_modified", "listener_manager.total_listeners_draining"];
        if of_listeners.contains(&name)
            || name.starts_with("extension_config_discovery.") && !left_out.contains(&stat)
        {
            let _ = writeln!(text, "{name} {value}");
        }
    }
    text
}

/// The page without times.
fn dump(proxy: &Tested, path: &str) -> String {
    let page = proxy.0.admin("GET", path);
    let body = page.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    let mut lines: Vec<&str> = body.lines().filter(|line| !line.contains("last_updated")).collect();
    // The end of a chunked body.
    lines.retain(|line| u64::from_str_radix(line.trim(), 16).is_err() && !line.trim().is_empty());
    lines.iter().map(|line| line.trim().trim_end_matches(',')).collect::<Vec<_>>().join("\n")
}

/// The configurations that there are.
fn set(server: &Server, extensions: &[(&str, &str)]) {
    let resources = extensions.iter().map(|(name, config)| extension(name, config));
    server.control.set(TypeUrl::ExtensionConfig, resources.collect());
}

async fn nacked(server: &mut Server) -> String {
    rejected(server, &TypeUrl::ExtensionConfig).await
}

/// Everything by the aggregated stream; what was seen, step by step, and what a refusal said.
#[allow(clippy::too_many_lines, reason = "a story is told from its beginning to its end")]
async fn story(mode: Mode, name: &'static str, envoy: Option<&Path>, folder: &Path) -> (Vec<String>, String) {
    let mut server = Server::start(([127, 0, 0, 1], 0).into()).await;
    let log = folder.join(name).join("log");
    let ads = "{ads: {}, resource_api_version: V3}";
    let without_warming = "apply_default_config_without_warming: true";
    let first = filter("one", ads, "")
        + &filter("dark", ads, "disabled: true,")
        + &filter_or(
            "two",
            ads,
            "header_mutation.v3.HeaderMutation",
            &says("two", "default"),
            without_warming,
        );
    let dark = says("dark", "1");
    server.control.set(TypeUrl::Listener, vec![listener("l", &log, &first)]);
    set(&server, &[("one", &says("one", "1")), ("dark", &dark)]);
    let proxy = block_in_place(|| {
        Tested(proxies::Proxy::start(name, folder, envoy, |_| {
            ads::bootstrap(mode, &["lds"], server.address, "")
        }))
    });
    let mut seen = Vec::new();

    // It warms with what it waits for; the default one serves what does not wait.
    let mut client = block_in_place(|| Kept::new(&proxy, "l"));
    seen.push(block_in_place(|| client.ask("/")));
    // A route's settings find the filter by its name; so they let one run that is off.
    seen.push(block_in_place(|| client.ask("/own")));
    if mode == Mode::Delta {
        // That there is no `two` nobody waits for.
        proxy.until_stat("extension_config_discovery.http_filter.two.config_reload", 1);
    }
    seen.push(counts(&proxy));

    // Another configuration comes under the connection.
    set(&server, &[("one", &says("one", "2")), ("dark", &dark), ("two", &says("two", "2"))]);
    block_in_place(|| client.until("/", "200 x-one: 2 x-two: 2"));
    let reloads = if mode == Mode::Delta { 2 } else { 1 };
    proxy.until_stat("extension_config_discovery.http_filter.two.config_reload", reloads);
    seen.push(dump(&proxy, "/config_dump?resource=ecds_filters&name_regex=one"));
    seen.push(dump(&proxy, "/config_dump?resource=ecds_filters&name_regex=none"));
    seen.push(counts(&proxy));

    // One of another type, and one that is wrong, leave what there was.
    set(&server, &[("one", &buffers(10)), ("dark", &dark), ("two", &says("two", "2"))]);
    let refusal = nacked(&mut server).await;
    assert!(refusal.contains("envoy.extensions.filters.http.buffer.v3.Buffer but expect "), "{refusal}");
    let mut all = vec![broken("one")];
    all.extend([("dark", &dark), ("two", &says("two", "2"))].map(|(name, config)| extension(name, config)));
    server.control.set(TypeUrl::ExtensionConfig, all);
    let invalid = nacked(&mut server).await;
    seen.push(block_in_place(|| client.ask("/")));
    proxy.until_stat("extension_config_discovery.http_filter.one.config_fail", 2);

    // What is good again is taken again.
    set(&server, &[("one", &says("one", "3")), ("dark", &dark), ("two", &says("two", "3"))]);
    block_in_place(|| client.until("/", "200 x-one: 3 x-two: 3"));
    // What is not there any more is missed, or the default one is back.
    if mode == Mode::Delta {
        set(&server, &[("dark", &dark)]);
        block_in_place(|| client.until("/", "500 x-two: default"));
        proxy.until_stat("extension_config_discovery.http_filter.one.config_reload", 4);
        proxy.until_stat("extension_config_discovery.http_filter.two.config_reload", 4);
        seen.push(dump(&proxy, "/config_dump?resource=ecds_filters"));
        seen.push(counts(&proxy));
        let logged = block_in_place(|| {
            wait(|| {
                let text = std::fs::read_to_string(&log).ok()?;
                text.lines().find(|line| line.starts_with("500")).map(str::to_owned)
            })
        });
        seen.push(logged.expect("a line of the log"));
        set(&server, &[("one", &says("one", "4")), ("dark", &dark)]);
        block_in_place(|| client.until("/", "200 x-one: 4 x-two: default"));
    }

    // One that never comes is waited for, for its time; with delta, where it is said that there is
    // none, for ever.
    let late = filter("late", "{ads: {}, initial_fetch_timeout: 0s}", "");
    let never = filter("never", "{ads: {}, initial_fetch_timeout: 0.2s}", "")
        + &filter("never_either", "{ads: {}, initial_fetch_timeout: 0.1s}", "");
    let mut all = vec![listener("l", &log, &first), listener("w", &log, &late)];
    if mode == Mode::Sotw {
        all.push(listener("v", &log, &never));
        server.control.set(TypeUrl::Listener, all.clone());
        proxy.until_stat("listener_manager.total_listeners_active", 2);
        seen.push(block_in_place(|| Kept::new(&proxy, "v").ask("/")));
    } else {
        server.control.set(TypeUrl::Listener, all.clone());
        proxy.until_stat("extension_config_discovery.http_filter.late.update_success", 1);
        proxy.until_stat("listener_manager.total_listeners_warming", 1);
    }
    let waiting = dump(&proxy, "/init_dump");
    assert!(waiting.contains("shared target FilterConfigSubscription init late"), "{name}: {waiting}");
    set(&server, &[("one", &says("one", "5")), ("dark", &dark), ("late", &says("late", "1"))]);
    proxy.until_stat("listener_manager.total_listeners_active", all.len() as u64);
    seen.push(block_in_place(|| Kept::new(&proxy, "w").ask("/")));
    block_in_place(|| {
        client.until(
            "/",
            if mode == Mode::Delta { "200 x-one: 5 x-two: default" } else { "200 x-one: 5 x-two: 3" },
        );
    });
    seen.push(counts(&proxy));

    // A listener that comes later has what is there; but not if it is of a type that it does not take.
    let second = filter("two", ads, "") + &filter_or("one", ads, "buffer.v3.Buffer", &buffers(1000), "");
    all.push(listener("m", &log, &second));
    server.control.set(TypeUrl::Listener, all.clone());
    proxy.until_stat("listener_manager.total_listeners_active", all.len() as u64);
    seen.push(block_in_place(|| Kept::new(&proxy, "m").ask("/")));
    proxy.until_stat("extension_config_discovery.http_filter.one.config_conflict", 1);

    // Subscriptions end with the last listener that has them.
    drop(client);
    server.control.set(TypeUrl::Listener, vec![listener("w", &log, &late)]);
    proxy.until_stat("listener_manager.total_listeners_active", 1);
    if envoy.is_none() {
        let counted = counts(&proxy);
        assert!(!counted.contains(".one.") && counted.contains(".late."), "{counted}");
        assert!(!dump(&proxy, "/config_dump?resource=ecds_filters").contains("x-one"));
    }
    block_in_place(|| proxy.0.stop());
    seen.push(refusal.lines().next().unwrap_or_default().to_owned());
    (seen, invalid)
}

async fn by_streams(mode: Mode) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut all = Vec::new();
    for (name, envoy) in Tested::kinds() {
        let (mut seen, invalid) = story(mode, name, envoy.as_deref(), folder.path()).await;
        assert!(invalid.contains("value length must be at least 1 characters"), "{invalid}");
        // Envoy says no name where it refuses a resource of SotW.
        let refusal = seen.pop().unwrap_or_default();
        assert!(refusal.contains("header_mutation.v3.HeaderMutation."), "{refusal}");
        all.push(seen);
    }
    if let [ours, theirs] = &all[..] {
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(theirs) {
            pretty(&comparable(mode, theirs), &comparable(mode, ours));
        }
    }
}

/// Without what Envoy counts of resources that came with one that is refused; with delta it counts two
/// attempts of that one.
fn comparable(mode: Mode, text: &str) -> String {
    let beside = [".dark.", ".two."];
    let refused = [".config_fail ", ".update_attempt ", ".update_rejected "];
    let left_out = |line: &str| {
        mode == Mode::Delta && line.contains(".one.update_attempt ")
            || beside.iter().any(|name| line.contains(name)) && refused.iter().any(|stat| line.contains(stat))
    };
    text.lines().filter(|line| !left_out(line)).map(|line| format!("{line}\n")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn state_of_the_world() {
    by_streams(Mode::Sotw).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delta() {
    by_streams(Mode::Delta).await;
}

/// A static listener, with filters from a stream of their own and from a file.
async fn own(mode: Mode, name: &'static str, envoy: Option<&Path>, folder: &Path) -> Vec<String> {
    let server = Server::start(([127, 0, 0, 1], 0).into()).await;
    server.control.set(TypeUrl::ExtensionConfig, vec![extension("own", &says("own", "1"))]);
    let files = folder.join(name).join("files");
    std::fs::create_dir_all(&files).expect("a folder");
    let file = |version: u32, resources: &[String]| {
        let mut text = format!("version_info: '{version}'\nresources:\n");
        for resource in resources {
            let _ = writeln!(text, "- {resource}");
        }
        put(&files, "file.yaml", &text);
    };
    let typed = |name: &str, config: &str| {
        format!(
            "{{'@type': type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig, name: {name}, typed_config: {config}}}"
        )
    };
    file(1, &[typed("file", &says("file", "1"))]);
    let api_type = if mode == Mode::Delta { "DELTA_GRPC" } else { "GRPC" };
    let stream = format!(
        "{{resource_api_version: V3, api_config_source: {{api_type: {api_type}, transport_api_version: V3, grpc_services: \
         [{{envoy_grpc: {{cluster_name: xds}}}}]}}}}"
    );
    let path = format!("{{path_config_source: {{path: '{}'}}}}", files.join("file.yaml").display());
    let filters = filter("own", &stream, "") + &filter("file", &path, "");
    let proxy = block_in_place(|| {
        Tested(proxies::Proxy::start(name, folder, envoy, |_| {
            format!(
                r#"
node: {{id: proxy, cluster: test}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
static_resources:
  listeners:
  - name: l
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: h
          upgrade_configs: [{{upgrade_type: websocket, filters: [{filters} {{name: router, typed_config: {{"@type": {FILTERS}.router.v3.Router}}}}]}}]
          route_config: {{virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200}}}}]}}]}}
          http_filters: [{filters} {{name: router, typed_config: {{"@type": {FILTERS}.router.v3.Router}}}}]
{}"#,
                ads::cluster(server.address, "")
            )
        }))
    });
    let mut seen = Vec::new();
    let mut client = block_in_place(|| Kept::new(&proxy, "l"));
    seen.push(block_in_place(|| client.ask("/")));
    proxy.until_stat("extension_config_discovery.http_filter.own.control_plane.connected_state", 1);
    seen.push(counts(&proxy));
    server.control.set(TypeUrl::ExtensionConfig, vec![extension("own", &says("own", "2"))]);
    file(2, &[typed("file", &says("file", "2"))]);
    block_in_place(|| client.until("/", "200 x-file: 2 x-own: 2"));
    seen.push(counts(&proxy));
    // What a file cannot have.
    let rejected = "extension_config_discovery.http_filter.file.update_rejected";
    file(3, &[typed("file", &buffers(1))]);
    proxy.until_stat(rejected, 1);
    file(4, &[]);
    proxy.until_stat(rejected, 2);
    file(5, &[typed("file", &says("file", "3")), typed("other", &says("other", "3"))]);
    proxy.until_stat(rejected, 3);
    file(6, &[typed("other", &says("other", "3"))]);
    proxy.until_stat(rejected, 4);
    put(&files, "file.yaml", "resources: [");
    proxy.until_stat("extension_config_discovery.http_filter.file.update_failure", 1);
    seen.push(counts(&proxy));
    seen.push(block_in_place(|| client.ask("/")));
    // The same again is no news.
    file(7, &[typed("file", &says("file", "2"))]);
    proxy.until_stat("extension_config_discovery.http_filter.file.update_success", 3);
    seen.push(counts(&proxy));
    seen.push(dump(&proxy, "/config_dump?resource=ecds_filters&name_regex=file"));
    block_in_place(|| proxy.0.stop());
    seen
}

async fn by_own_sources(mode: Mode) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut all = Vec::new();
    for (name, envoy) in Tested::kinds() {
        all.push(own(mode, name, envoy.as_deref(), folder.path()).await);
    }
    if let [ours, theirs] = &all[..] {
        for (ours, theirs) in ours.iter().zip(theirs) {
            pretty(theirs, ours);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn own_stream_and_file_sotw() {
    by_own_sources(Mode::Sotw).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn own_stream_and_file_delta() {
    by_own_sources(Mode::Delta).await;
}

//! Resources from files and from streams of their own, compared with the real Envoy: what is in
//! force, and what is counted.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use leno_api::proto::envoy::config::cluster::v3::Cluster;
use leno_api::proto::envoy::config::listener::v3::Listener;
use leno_xds::{Mode, TypeUrl};
use tokio::task::spawn_blocking;

use super::proxies::{self, wait};
use super::{Server, ads, endpoints, resource, routes};

/// A proxy of either kind under test.
pub(super) struct Tested(pub(super) proxies::Proxy);

impl Tested {
    /// Ours, and the real one if it is there.
    pub(super) fn kinds() -> Vec<(&'static str, Option<std::path::PathBuf>)> {
        let envoy = leno_testkit::envoy::binary();
        if envoy.is_none() {
            println!("skipped: there is no Envoy to compare with");
        }
        let envoy = envoy.map(|path| ("envoy", Some(path)));
        std::iter::once(("ours", None)).chain(envoy).collect()
    }

    fn get(&self, listener: &str) -> (u16, String) {
        use std::io::{Read, Write};
        let mut stream = proxies::Wire::connect(self.0.port(listener)).stream;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").expect("sent");
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    /// Waits for an answer.
    fn until_get(&self, listener: &str, expected: (u16, &str)) {
        let answered = wait(|| {
            let (status, body) = self.get(listener);
            ((status, body.as_str()) == expected).then_some(())
        });
        assert!(answered.is_some(), "{}: never {expected:?}, but {:?}", self.0.name, self.get(listener));
    }

    /// The value of a stat.
    fn stat(&self, name: &str) -> Option<u64> {
        let page = self.0.admin("GET", "/stats");
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))?;
        value.trim().parse().ok()
    }

    pub(super) fn until_stat(&self, name: &str, value: u64) {
        let reached = wait(|| (self.stat(name) == Some(value)).then_some(()));
        assert!(reached.is_some(), "{}: {name} is {:?}, not {value}", self.0.name, self.stat(name));
    }

    /// What subscriptions count, apart from times and versions.
    pub(super) fn counts(&self) -> String {
        let page = self.0.admin("GET", "/stats");
        let scopes = ["cluster_manager.cds.", "listener_manager.lds.", "cluster.a.", "http.h.rds.", "sds."];
        let stats = [
            "init_fetch_timeout",
            "update_attempt",
            "update_empty",
            "update_failure",
            "update_rejected",
            "update_success",
            "config_reload",
            "key_rotation_failed",
            "connected_state",
        ];
        let mut text = String::new();
        for line in page.lines() {
            let Some((name, value)) = line.split_once(": ") else { continue };
            if scopes.iter().any(|scope| name.starts_with(scope))
                && stats.iter().any(|stat| name.ends_with(&format!(".{stat}")))
            {
                let _ = writeln!(text, "{name} {value}");
            }
        }
        text
    }
}

/// Replaces a file in one step.
pub(super) fn put(folder: &Path, name: &str, text: &str) {
    let temporary = folder.join("temporary");
    std::fs::write(&temporary, text).expect("written");
    std::fs::rename(temporary, folder.join(name)).expect("moved");
}

fn response(version: u32, resource: &str) -> String {
    format!("version_info: '{version}'\nresources:\n{resource}")
}

fn cluster(source: &str, timeout: u32) -> String {
    format!(
        "- {{'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, name: a, type: EDS, connect_timeout: \
         {timeout}s, eds_cluster_config: {{service_name: s, eds_config: {source}}}}}\n"
    )
}

fn listener(name: &str, source: &str) -> String {
    format!(
        "- {{'@type': type.googleapis.com/envoy.config.listener.v3.Listener, name: {name}, address: {{socket_address: \
         {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{{filters: [{{name: hcm, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: h, rds: {{route_config_name: r, config_source: {source}}}, http_filters: [{{name: router, \
         typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}\n"
    )
}

fn assignment(name: &str, address: SocketAddr) -> String {
    format!(
        "- {{'@type': type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: {name}, endpoints: \
         [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}]}}]}}\n",
        address.ip(),
        address.port()
    )
}

fn table(name: &str, action: &str) -> String {
    format!(
        "- {{'@type': type.googleapis.com/envoy.config.route.v3.RouteConfiguration, name: {name}, virtual_hosts: \
         [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, {action}}}]}}]}}\n"
    )
}

/// Everything from files; what was counted after each step.
fn files(name: &'static str, envoy: Option<&Path>, folder: &Path, upstreams: [SocketAddr; 2]) -> Vec<String> {
    let own = folder.join(name).join("resources");
    let watched = own.join("watched");
    std::fs::create_dir_all(&watched).expect("a folder");
    let path = |file: &str| own.join(file).display().to_string();
    let source = |file: &str| format!("{{path_config_source: {{path: '{}'}}}}", path(file));
    put(&own, "eds.yaml", &response(1, &assignment("s", upstreams[0])));
    put(&own, "rds.json", r#"{"version_info": "1", "resources": []}"#);
    put(&own, "rds.json", &to_json(&response(1, &table("r", "route: {cluster: a}"))));
    put(&own, "cds.yaml", &response(1, &cluster(&source("eds.yaml"), 1)));
    put(&own, "lds.yaml", &response(1, &listener("l", &source("rds.json"))));
    let lds = format!(
        "{{path_config_source: {{path: '{}', watched_directory: {{path: '{}'}}}}}}",
        path("lds.yaml"),
        watched.display()
    );
    let proxy = Tested(proxies::Proxy::start(name, folder, envoy, |_| {
        format!(
            "node: {{id: proxy, cluster: test}}\nadmin: {{address: {{socket_address: {{address: 127.0.0.1, \
             port_value: 0}}}}}}\ndynamic_resources:\n  cds_config: {}\n  lds_config: {lds}\n",
            source("cds.yaml")
        )
    }));
    let mut counts = Vec::new();
    proxy.until_get("l", (200, "one"));
    counts.push(proxy.counts());

    // Endpoints and routes are replaced.
    put(&own, "eds.yaml", &response(2, &assignment("s", upstreams[1])));
    proxy.until_get("l", (200, "two"));
    let here = "direct_response: {status: 203, body: {inline_string: here}}";
    put(&own, "rds.json", &to_json(&response(2, &table("r", here))));
    proxy.until_get("l", (203, "here"));
    counts.push(proxy.counts());

    // What cannot be read, is another's, or is wrong, leaves what there was.
    put(&own, "eds.yaml", "resources: [");
    proxy.until_stat("cluster.a.update_failure", 1);
    put(&own, "eds.yaml", &response(3, &assignment("other", upstreams[0])));
    proxy.until_stat("cluster.a.update_rejected", 1);
    put(&own, "eds.yaml", &response(3, &(assignment("s", upstreams[0]) + &assignment("t", upstreams[0]))));
    proxy.until_stat("cluster.a.update_rejected", 2);
    put(&own, "eds.yaml", &response(3, ""));
    proxy.until_stat("cluster.a.update_empty", 1);
    // Nothing at all is not the same as no resources.
    put(&own, "cds.yaml", "# cut off\n");
    proxy.until_stat("cluster_manager.cds.update_failure", 1);
    put(&own, "rds.json", &to_json(&response(3, &table("other", here))));
    proxy.until_stat("http.h.rds.r.update_rejected", 1);
    put(&own, "rds.json", &to_json(&response(3, &assignment("r", upstreams[0]))));
    proxy.until_stat("http.h.rds.r.update_rejected", 2);
    put(&own, "cds.yaml", &response(3, &cluster(&source("eds.yaml"), 0)));
    proxy.until_stat("cluster_manager.cds.update_rejected", 1);
    proxy.until_get("l", (203, "here"));
    counts.push(proxy.counts());

    // A listener's file matters when something moves into the watched folder.
    put(&own, "lds.yaml", &response(4, &listener("m", &source("rds.json"))));
    put(&own, "eds.yaml", &response(4, &assignment("s", upstreams[0])));
    proxy.until_stat("cluster.a.update_success", proxy.stat("cluster.a.update_success").unwrap_or(0).max(4));
    put(&watched, "anything", "");
    proxy.until_stat("listener_manager.lds.update_success", 2);
    proxy.until_get("m", (203, "here"));
    // Clusters go with their file's content.
    put(&own, "cds.yaml", &response(5, ""));
    proxy.until_stat("cluster_manager.cds.update_success", 2);
    proxy.until_stat("cluster_manager.active_clusters", 0);
    // Envoy lets go of its counts a little later.
    let gone = wait(|| proxy.stat("cluster.a.update_success").is_none().then_some(()));
    assert!(gone.is_some(), "{}: a cluster that is gone is counted", proxy.0.name);
    counts.push(proxy.counts());
    proxy.0.stop();
    counts
}

/// YAML of the kind above as JSON.
fn to_json(yaml: &str) -> String {
    let document = leno_api::yaml::parse(yaml, leno_api::yaml::Dialect::Envoy).expect("YAML");
    document.first().expect("a document").to_json().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn from_files() {
    let one = super::Scripted::start(|_| super::Action::ok("one")).await.expect("an upstream");
    let two = super::Scripted::start(|_| super::Action::ok("two")).await.expect("an upstream");
    let upstreams = [one.address, two.address];
    let folder = tempfile::tempdir().expect("a folder");
    let mut all = Vec::new();
    for (name, envoy) in Tested::kinds() {
        let path = folder.path().to_owned();
        let counts = spawn_blocking(move || files(name, envoy.as_deref(), &path, upstreams)).await;
        all.push(counts.expect("no panic"));
    }
    if let [ours, theirs] = &all[..] {
        for (ours, theirs) in ours.iter().zip(theirs) {
            pretty(theirs, ours);
        }
    }
}

/// They must be the same.
pub(super) fn pretty(theirs: &str, ours: &str) {
    let lines = |text: &str, other: &str| {
        text.lines()
            .filter(|line| !other.lines().any(|known| known == *line))
            .map(|line| format!("  {line}\n"))
            .collect::<String>()
    };
    assert!(theirs == ours, "only Envoy:\n{}only ours:\n{}", lines(theirs, ours), lines(ours, theirs));
}

/// A resource without the type that it has in a file.
fn bare(item: &str) -> String {
    let (_, rest) = item.split_once(", ").expect("a type, then fields");
    format!("{{{}", rest.trim())
}

/// The bootstrap of a proxy that has everything by streams of their own, to `address`.
fn streams_bootstrap(mode: Mode, address: SocketAddr, transport: &str) -> (String, String) {
    let api_type = if mode == Mode::Delta { "DELTA_GRPC" } else { "GRPC" };
    let source = format!(
        "{{initial_fetch_timeout: 20s, resource_api_version: V3, api_config_source: {{api_type: {api_type}, \
         transport_api_version: V3, set_node_on_first_message_only: true, grpc_services: [{{envoy_grpc: {{cluster_name: \
         xds}}, initial_metadata: [{{key: x-token, value: secret}}], timeout: 1s}}]}}}}"
    );
    let bootstrap = format!(
        "node: {{id: proxy, cluster: test}}\n\
         admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n\
         dynamic_resources: {{cds_config: {source}, lds_config: {source}}}\nstatic_resources:\n{}",
        ads::cluster(address, transport)
    );
    (bootstrap, source)
}

/// Streams of their own for clusters, endpoints, listeners and routes, through a proxy that asks
/// for a certificate (mutual TLS).
async fn streams(mode: Mode) {
    let upstream = super::Scripted::start(|_| super::Action::ok("up")).await.expect("an upstream");
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(([127, 0, 0, 1], 0).into()).await;
    let pki = super::secrets::pki(folder.path());
    let (xds, path) = (server.address, folder.path().to_owned());
    let front = spawn_blocking(move || proxies::Proxy::start("front", &path, None, |_| pki.front(xds)));
    let front = front.await.expect("a proxy in front of the control plane");
    let address = front.port("front");
    let transport = super::secrets::pki(folder.path()).client();
    let (bootstrap, source) = streams_bootstrap(mode, address, &transport);
    server.control.set(TypeUrl::Cluster, vec![resource::<Cluster>("a", &bare(&cluster(&source, 1)))]);
    server.control.set(TypeUrl::Endpoint, vec![endpoints("s", upstream.address)]);
    server.control.set(TypeUrl::Listener, vec![resource::<Listener>("l", &bare(&listener("l", &source)))]);
    server.control.set(TypeUrl::Route, vec![routes("route: {cluster: a}")]);
    let mut all = Vec::new();
    for (name, envoy) in Tested::kinds() {
        let (path, bootstrap) = (folder.path().to_owned(), bootstrap.clone());
        let counts = spawn_blocking(move || {
            let proxy = Tested(proxies::Proxy::start(name, &path, envoy.as_deref(), |_| bootstrap));
            proxy.until_get("l", (200, "up"));
            for scope in ["cluster_manager.cds", "listener_manager.lds", "cluster.a", "http.h.rds.r"] {
                proxy.until_stat(&format!("{scope}.control_plane.connected_state"), 1);
            }
            let counts = proxy.counts();
            proxy.0.stop();
            counts
        });
        all.push(counts.await.expect("no panic"));
        let seen = server.seen_metadata();
        assert!(seen.len() >= 4 && seen.iter().all(|token| token == "secret"), "{name}: {seen:?}");
    }
    if let [ours, theirs] = &all[..] {
        pretty(theirs, ours);
    }
    spawn_blocking(move || front.stop()).await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn from_streams_sotw() {
    streams(Mode::Sotw).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_streams_delta() {
    streams(Mode::Delta).await;
}

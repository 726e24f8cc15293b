//! Virtual hosts that come one by one (VHDS), compared with the real Envoy: what is asked of the
//! control plane, when requests for unknown hosts go on and how, what updates and reconnects do.
//!
//! The control plane is one of HTTP/2 (h2) that answers as the name of the host says, as the tests'
//! own server knows nothing of aliases.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use leno_api::proto::envoy::config::cluster::v3::Cluster;
use leno_api::proto::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use leno_api::proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use leno_xds::Mode;
use prost::{Message, Name as _};
use tokio::sync::mpsc;

use super::ads;
use super::proxies::{self, exchange, wait};
use super::sources::Tested;

/// The control plane.
#[derive(Clone)]
struct Control {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// What was asked about virtual hosts.
    asked: Vec<String>,
    /// Hosts that are not answered yet.
    held: bool,
    /// The ways to the proxy, by whether the stream is for virtual hosts alone; dropping one ends its
    /// stream.
    streams: BTreeMap<bool, mpsc::UnboundedSender<DeltaDiscoveryResponse>>,
    /// Nonces so far.
    sent: u64,
    /// The RDS resource.
    table: RouteConfiguration,
}

impl Control {
    fn start(table: RouteConfiguration) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        listener.set_nonblocking(true).expect("an option");
        let control = Self { address, state: Arc::new(Mutex::new(State { table, ..State::default() })) };
        let serving = control.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            tokio::task::LocalSet::new().block_on(&runtime.expect("a runtime"), async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::task::spawn_local(serve(stream, serving.clone()));
                }
            });
        });
        control
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was asked since the last call, without the rest of acknowledgements.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state().asked)
    }

    /// Waits until something was asked.
    fn until_asked(&self, name: &str, expected: &str) {
        let mut seen = Vec::new();
        let found = wait(|| {
            seen.extend(self.asked());
            // Whether what is new was asked before or after is not decided.
            seen.iter().any(|asked| asked.replace(" +r/c.com", "") == expected).then_some(())
        });
        assert!(found.is_some(), "{name}: {expected:?} never comes, but {seen:?}");
    }

    fn push(&self, added: Vec<Resource>, removed: &[&str]) {
        self.state().send(VirtualHost::type_url(), added, removed);
    }

    /// Changes the RDS resource, and sends it.
    fn change(&self, change: impl FnOnce(&mut RouteConfiguration)) {
        let mut state = self.state();
        change(&mut state.table);
        state.send_table();
    }
}

impl State {
    fn send(&mut self, type_url: String, resources: Vec<Resource>, removed: &[&str]) {
        self.sent += 1;
        let response = DeltaDiscoveryResponse {
            system_version_info: self.sent.to_string(),
            resources,
            type_url,
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
            nonce: self.sent.to_string(),
            ..DeltaDiscoveryResponse::default()
        };
        let own = self.streams.get(&true).filter(|_| response.type_url == VirtualHost::type_url());
        if let Some(stream) = own.or(self.streams.get(&false)) {
            let _ = stream.send(response);
        }
    }

    fn send_table(&mut self) {
        let resource = packed("r", self.sent, &self.table);
        self.send(RouteConfiguration::type_url(), vec![resource], &[]);
    }

    fn on_request(&mut self, request: &DeltaDiscoveryRequest) {
        let mut subscribed = request.resource_names_subscribe.clone();
        subscribed.sort();
        let is_first = request.response_nonce.is_empty();
        if request.type_url == RouteConfiguration::type_url() {
            if !subscribed.is_empty() && request.initial_resource_versions.is_empty() {
                self.send_table();
            }
            return;
        }
        if request.type_url == Cluster::type_url() {
            if !subscribed.is_empty() {
                self.asked.push(format!("clusters +{}", subscribed.join(" +")));
                let names: Vec<&str> = subscribed.iter().map(String::as_str).collect();
                self.send(Cluster::type_url(), Vec::new(), &names);
            }
            return;
        }
        let mut said = String::new();
        if is_first || !subscribed.is_empty() {
            let _ = write!(said, "+{}", subscribed.join(" +"));
        }
        for gone in &request.resource_names_unsubscribe {
            let _ = write!(said, " -{gone}");
        }
        let held: BTreeMap<&String, &String> = request.initial_resource_versions.iter().collect();
        for (name, _) in held.iter().filter(|(_, version)| !version.is_empty()) {
            let _ = write!(said, " has {name}");
        }
        if let Some(error) = &request.error_detail {
            let _ = write!(said, "refused: {}", error.message);
        }
        if !said.is_empty() {
            self.asked.push(said);
        }
        if subscribed.is_empty() && is_first {
            // The first answer, which the table waits for.
            self.send(VirtualHost::type_url(), vec![host("r/first", &["first.com"], "first")], &[]);
        }
        for name in subscribed.iter().filter(|name| !held.contains_key(name)) {
            if !(self.held && name.contains("late")) {
                self.answer(name);
            }
        }
    }

    fn answer(&mut self, name: &str) {
        let Some((_, asked)) = name.split_once('/') else { return };
        let none = Resource { name: name.to_owned(), aliases: vec![name.to_owned()], ..Resource::default() };
        let resource = match asked.split('.').next().unwrap_or_default() {
            "none" | "static" => none,
            "alias" => Resource {
                aliases: vec![name.to_owned()],
                ..host("r/wide", &["*.example.com", asked], "by an alias")
            },
            "elsewhere" => host(name, &["somewhere.else"], "elsewhere"),
            "cluster" => packed(name, 1, &to_cluster(name, asked, "")),
            "plain" => packed(name, 1, &to_cluster(name, asked, PLAIN)),
            _ => host(name, &[asked], asked),
        };
        self.send(VirtualHost::type_url(), vec![resource], &[]);
    }
}

fn packed<T: Message + prost::Name>(name: &str, version: u64, message: &T) -> Resource {
    Resource {
        name: name.to_owned(),
        version: version.to_string(),
        resource: Some(prost_types::Any { type_url: T::type_url(), value: message.encode_to_vec() }),
        ..Resource::default()
    }
}

/// A virtual host that answers requests below `/` with this, but not those below `/nowhere`.
fn host(name: &str, domains: &[&str], body: &str) -> Resource {
    packed(name, 1, &virtual_host(name, domains, body))
}

fn virtual_host(name: &str, domains: &[&str], body: &str) -> VirtualHost {
    let domains: Vec<String> = domains.iter().map(|domain| format!("'{domain}'")).collect();
    let text = format!(
        "{{name: {name}, domains: [{}], routes: [{{match: {{safe_regex: {{regex: '/[^n].*|/'}}}}, \
         direct_response: {{status: 200, body: {{inline_string: '{body}'}}}}}}]}}",
        domains.join(", ")
    );
    leno_api::decode_text(&text, name).unwrap_or_else(|errors| panic!("{errors}"))
}

/// One that sends requests to a cluster that there is not.
fn to_cluster(name: &str, domain: &str, more: &str) -> VirtualHost {
    let text = format!(
        "{{name: {name}, domains: [{domain}], routes: [{{match: {{prefix: /}}, route: {{cluster: unknown}}}}]{more}}}"
    );
    leno_api::decode_text(&text, name).unwrap_or_else(|errors| panic!("{errors}"))
}

/// Settings of a virtual host: no cluster is asked for.
const PLAIN: &str = ", typed_per_filter_config: {envoy.filters.http.on_demand: {'@type': \
     type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.PerRouteConfig}}";

async fn serve(stream: tokio::net::TcpStream, control: Control) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let mut ended = None;
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            // The stream is cut off with its connection.
            () = async { match &mut ended { Some(ended) => wait_for(ended).await, None => std::future::pending().await } } => return,
        };
        let Some(Ok((request, mut respond))) = accepted else { return };
        let (end, has_ended) = tokio::sync::oneshot::channel::<()>();
        ended = Some(has_ended);
        let (responses, mut outgoing) = mpsc::unbounded_channel::<DeltaDiscoveryResponse>();
        let is_own = request.uri().path().ends_with("VirtualHostDiscoveryService/DeltaVirtualHosts");
        control.state().streams.insert(is_own, responses);
        let head = http::Response::builder().header("content-type", "application/grpc").body(());
        let Ok(mut stream) = respond.send_response(head.expect("a head"), false) else { return };
        tokio::task::spawn_local(async move {
            let _end = end;
            while let Some(response) = outgoing.recv().await {
                let message = response.encode_to_vec();
                let length = u32::try_from(message.len()).expect("a small message");
                let framed = [&[0], &length.to_be_bytes()[..], &message].concat();
                if stream.send_data(framed.into(), false).is_err() {
                    return;
                }
            }
        });
        let control = control.clone();
        tokio::task::spawn_local(async move {
            let mut body = request.into_body();
            let mut left = Vec::new();
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
                left.extend_from_slice(&data);
                while let Some(length) = left.get(1..5) {
                    let length = 5 + u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
                    if left.len() < length {
                        break;
                    }
                    let message: Vec<u8> = left.drain(..length).skip(5).collect();
                    let request = DeltaDiscoveryRequest::decode(message.as_slice()).expect("a request");
                    control.state().on_request(&request);
                }
            }
        });
    }
}

async fn wait_for(ended: &mut tokio::sync::oneshot::Receiver<()>) {
    let _ = ended.await;
}

fn bootstrap(control: SocketAddr) -> String {
    let (patient, impatient) =
        (listener("http", "on_demand", "30s"), listener("impatient", "on_demand", "0.2s"));
    ads::bootstrap(Mode::Delta, &[], control, &format!("  listeners:\n{patient}{impatient}"))
}

fn listener(name: &str, filter: &str, patience: &str) -> String {
    format!(
        r#"  - name: {name}
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: h
          stream_idle_timeout: {patience}
          delayed_close_timeout: 0s
          rds: {{route_config_name: r, config_source: {{ads: {{}}, resource_api_version: V3}}}}
          http_filters:
          - name: envoy.filters.http.{filter}
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.{filter}.v3.OnDemand, odcds: {{source: {{ads: {{}}, resource_api_version: V3}}}}}}
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"#
    )
}

/// What a request gets: the status, and the body if it is not one of the proxy's own.
fn get(proxy: &proxies::Proxy, host: &str, path: &str) -> String {
    ask(proxy.port("http"), host, path, "")
}

fn ask(listener: SocketAddr, host: &str, path: &str, body: &str) -> String {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    let text = exchange(listener, &head);
    let status = text.split(' ').nth(1).unwrap_or_default().to_owned();
    match text.split_once("\r\n\r\n").filter(|_| status == "200") {
        Some((_, body)) => format!("{status} {body}"),
        None => status,
    }
}

/// The same for both.
fn story(proxy: &Tested, control: &Control) {
    let Tested(running) = proxy;
    let name = running.name;
    let is = |host: &str, path: &str, expected: &str, asked: &[&str]| {
        assert_eq!(get(running, host, path), expected, "{name}: {host}{path}");
        assert_eq!(control.asked(), asked, "{name}: {host}{path}");
    };
    let until = |host: &str, expected: &str| {
        let reached = wait(|| (get(running, host, "/") == expected).then_some(()));
        assert!(reached.is_some(), "{name}: {host} never {expected:?}, but {}", get(running, host, "/"));
    };
    // Everything at first: no names.
    is("static.com", "/", "200 static", &["+"]);
    is("first.com", "/", "200 first", &[]);
    // Each host is asked for once, by the name that was asked for.
    is("a.com", "/", "200 a.com", &["+r/a.com"]);
    is("a.com", "/", "200 a.com", &[]);
    is("A.com:8080", "/", "200 a.com:8080", &["+r/a.com:8080"]);
    is("alias.com", "/", "200 by an alias", &["+r/alias.com"]);
    is("some.example.com", "/", "200 by an alias", &[]);
    // What there is not, and what came but does not match.
    is("none.com", "/", "404", &["+r/none.com"]);
    is("none.com", "/", "404", &[]);
    is("b.com", "/nowhere", "404", &["+r/b.com"]);
    is("b.com", "/nowhere", "404", &[]);
    is("b.com", "/", "200 b.com", &[]);
    is("elsewhere.com", "/", "404", &["+r/elsewhere.com"]);
    is("elsewhere.com", "/", "404", &[]);
    is("static.com", "/nowhere", "404", &["+r/static.com"]);

    // The route that was found may lead to a cluster that is to be asked for too.
    is("cluster.com", "/", "503", &["+r/cluster.com", "clusters +unknown"]);
    is("plain.com", "/", "503", &["+r/plain.com"]);

    // Many wait for the same; what they have sent so far is kept. One goes away.
    control.state().held = true;
    let address = running.port("http");
    let large = "x".repeat(100_000);
    let waiting: Vec<_> = ["", "with a body", &large]
        .map(|body| {
            let body = body.to_owned();
            std::thread::spawn(move || ask(address, "late.com", "/", &body))
        })
        .into();
    control.until_asked(name, "+r/late.com");
    let mut gone = proxies::Wire::connect(address);
    std::io::Write::write_all(&mut gone.stream, b"GET / HTTP/1.1\r\nhost: late.com\r\n\r\n").expect("sent");
    drop(gone);
    // There is a limit to waiting: that of the stream.
    assert_eq!(ask(running.port("impatient"), "late.com", "/", ""), "504", "{name}");
    assert_eq!(control.asked(), [""; 0], "{name}");
    control.state().answer("r/late.com");
    for waiting in waiting {
        assert_eq!(waiting.join().expect("no panic"), "200 late.com", "{name}");
    }
    is("late.com", "/", "200 late.com", &[]);
    control.state().held = false;

    // They change, go, and come back; further ones come unasked, others are not for this table.
    control.push(vec![host("r/a.com", &["a.com", "also.a.com"], "changed")], &[]);
    until("a.com", "200 changed");
    is("also.a.com", "/", "200 changed", &[]);
    control
        .push(vec![host("r/pushed", &["pushed.com"], "pushed"), host("q/b", &["q.com"], "q")], &["r/a.com"]);
    until("a.com", "404");
    is("pushed.com", "/", "200 pushed", &[]);
    is("q.com", "/", "200 q.com", &["+r/q.com"]);
    control.push(vec![host("r/a.com", &["a.com"], "back")], &[]);
    until("a.com", "200 back");

    // RDS changes, and they stay.
    control.change(|table| table.virtual_hosts = vec![virtual_host("static", &["static.com"], "new")]);
    until("static.com", "200 new");
    is("a.com", "/", "200 back", &[]);
    control.change(|table| table.request_headers_to_remove = vec!["x".into()]);
    control.push(Vec::new(), &["r/q.com"]);
    until("q.com", "404");
    is("pushed.com", "/", "200 pushed", &[]);
    // A domain that both have.
    control.change(|table| table.virtual_hosts.push(virtual_host("taken", &["pushed.com"], "taken")));
    control.change(|table| drop(table.virtual_hosts.pop()));
    control.push(vec![host("r/taken", &["static.com"], "taken")], &[]);
    let mut refused = Vec::new();
    wait(|| {
        refused.extend(control.asked());
        (!refused.is_empty()).then_some(())
    });
    let message =
        "Only unique values for domains are permitted. Duplicate entry of domain static.com in route r";
    assert!(refused.iter().all(|refused| refused.contains(message)), "{name}: {refused:?}");
    is("static.com", "/", "200 new", &[]);
    is("pushed.com", "/", "200 pushed", &[]);

    // Where they are shown.
    let dump = running.admin("GET", "/config_dump?resource=dynamic_route_configs");
    let names: Vec<&str> = dump
        .lines()
        .filter_map(|line| line.strip_prefix("      \"name\": \"")?.strip_suffix("\","))
        .collect();
    assert_eq!(
        names,
        [
            "static",
            "r/a.com",
            "r/a.com:8080",
            "r/b.com",
            "r/cluster.com",
            "r/elsewhere.com",
            "r/first",
            "r/late.com",
            "r/plain.com",
            "r/pushed",
            "r/wide"
        ],
        "{name}: {dump}"
    );

    // The control plane goes away: who asks for something new waits, all else goes on.
    control.state().streams.clear();
    let waiting = std::thread::spawn(move || ask(address, "c.com", "/", ""));
    assert_eq!(get(running, "a.com", "/"), "200 back", "{name}");
    control.until_asked(
        name,
        "+* +r/a.com +r/a.com:8080 +r/alias.com +r/b.com +r/cluster.com +r/elsewhere.com +r/late.com +r/none.com +r/plain.com \
         +r/q.com +r/static.com has q/b has r/a.com has r/a.com:8080 has r/b.com has r/cluster.com has r/elsewhere.com has r/first \
         has r/late.com has r/plain.com has r/pushed has r/wide",
    );
    assert_eq!(waiting.join().expect("no panic"), "200 c.com", "{name}");
    assert_eq!(get(running, "a.com", "/"), "200 back", "{name}");
    for (stat, value) in [("init_fetch_timeout", 0), ("update_empty", 0), ("update_rejected", 1)] {
        proxy.until_stat(&format!("http.h.rds.vhds.r.{stat}"), value);
    }
}

fn compare(source: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, envoy) in Tested::kinds() {
        let text = format!("{{name: r, vhds: {{config_source: {source}}}}}");
        let table = RouteConfiguration {
            virtual_hosts: vec![virtual_host("static", &["static.com"], "static")],
            ..leno_api::decode_text(&text, "table").unwrap_or_else(|errors| panic!("{errors}"))
        };
        let control = Control::start(table);
        let bootstrap = bootstrap(control.address);
        let proxy = Tested(proxies::Proxy::start(name, folder.path(), envoy.as_deref(), |_| bootstrap));
        story(&proxy, &control);
        proxy.0.stop();
    }
}

#[test]
fn from_the_aggregated_stream() {
    compare("{ads: {}, resource_api_version: V3, initial_fetch_timeout: 20s}");
}

#[test]
fn from_a_stream_of_their_own() {
    compare(
        "{resource_api_version: V3, initial_fetch_timeout: 20s, api_config_source: {api_type: DELTA_GRPC, \
         transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: xds}}]}}",
    );
}

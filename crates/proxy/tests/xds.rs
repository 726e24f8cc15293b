//! A whole proxy under a control plane of a few lines, over both variants of the protocol.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use leno_api::proto::envoy::config::cluster::v3::Cluster;
use leno_api::proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use leno_api::proto::envoy::config::listener::v3::Listener;
use leno_api::proto::envoy::config::route::v3::RouteConfiguration;
use leno_base::Name;
use leno_proxy::{Options, RunError};
use leno_testkit::http::{Action, Client, Scripted};
use leno_xds::server::Event;
use leno_xds::server::grpc::DiscoveryService;
use leno_xds::{Mode, Resource, TypeUrl};
use prost::Message;
use support::{ControlPlane, Seen};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::codegen::Service;
use tonic::server::NamedService;

#[path = "support/ads.rs"]
mod ads;
#[path = "xds/extensions.rs"]
mod extensions;
#[path = "xds/on_demand.rs"]
mod on_demand;
#[path = "support/mod.rs"]
mod proxies;
#[path = "xds/secrets.rs"]
mod secrets;
#[path = "xds/sources.rs"]
mod sources;
#[allow(dead_code, reason = "shared with the tests of the protocol, which use all of it")]
#[path = "../../xds/tests/support/mod.rs"]
mod support;
#[path = "xds/virtual_hosts.rs"]
mod virtual_hosts;

const PATIENCE: Duration = Duration::from_secs(60);

/// A control plane on a socket.
struct Server {
    control: ControlPlane,
    serving: JoinHandle<()>,
    address: SocketAddr,
    tokens: Tokens,
}

impl Server {
    async fn start(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        Self::serve(address, TcpListenerStream::new(listener))
    }

    /// The same on a Unix socket.
    async fn start_unix(path: &Path) -> Self {
        let listener = tokio::net::UnixListener::bind(path).expect("a socket");
        Self::serve(([127, 0, 0, 1], 0).into(), UnixListenerStream::new(listener))
    }

    fn serve<S, IO>(address: SocketAddr, incoming: S) -> Self
    where
        S: tokio_stream::Stream<Item = std::io::Result<IO>> + Send + 'static,
        IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + tonic::transport::server::Connected,
        IO: Send + Unpin + 'static,
    {
        let (control, service) = ControlPlane::start();
        let tokens = Arc::default();
        let inner = || (service.clone(), Arc::clone(&tokens));
        let server = tonic::transport::Server::builder()
            .add_service(service.clone())
            .add_service(SecretDiscovery(inner()))
            .add_service(ClusterDiscovery(inner()))
            .add_service(EndpointDiscovery(inner()))
            .add_service(ListenerDiscovery(inner()))
            .add_service(RouteDiscovery(inner()))
            .add_service(ExtensionDiscovery(inner()));
        let serving = tokio::spawn(async move {
            server.serve_with_incoming(incoming).await.expect("it serves");
        });
        Self { control, serving, address, tokens }
    }

    /// What streams for a single type said by `x-token`, since the last call.
    fn seen_metadata(&self) -> Vec<String> {
        std::mem::take(&mut *self.tokens.lock().expect("no panic"))
    }

    /// Ends it, streams included; the address is free again.
    async fn stop(self) -> SocketAddr {
        self.serving.abort();
        let _ = self.serving.await;
        self.address
    }
}

/// What streams said of themselves.
type Tokens = Arc<std::sync::Mutex<Vec<String>>>;

/// The same service under the name of that for one type alone.
macro_rules! service {
    ($service:ident, $type_url:ident, $name:literal) => {
        #[derive(Clone)]
        struct $service((DiscoveryService, Tokens));

        impl NamedService for $service {
            const NAME: &'static str = $name;
        }

        impl Service<http::Request<tonic::body::Body>> for $service {
            type Response = http::Response<tonic::body::Body>;
            type Error = std::convert::Infallible;
            type Future = <DiscoveryService as Service<http::Request<tonic::body::Body>>>::Future;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, mut request: http::Request<tonic::body::Body>) -> Self::Future {
                let token = request.headers().get("x-token").and_then(|token| token.to_str().ok());
                self.0.1.lock().expect("no panic").push(token.unwrap_or_default().to_owned());
                let mut modes = [Mode::Sotw, Mode::Delta].into_iter();
                let mode = modes.find(|mode| TypeUrl::$type_url.path(*mode) == Some(request.uri().path()));
                *request.uri_mut() = http::Uri::from_static(mode.expect("a method of the service").path());
                self.0.0.call(request)
            }
        }
    };
}

service!(SecretDiscovery, Secret, "envoy.service.secret.v3.SecretDiscoveryService");
service!(ClusterDiscovery, Cluster, "envoy.service.cluster.v3.ClusterDiscoveryService");
service!(EndpointDiscovery, Endpoint, "envoy.service.endpoint.v3.EndpointDiscoveryService");
service!(ListenerDiscovery, Listener, "envoy.service.listener.v3.ListenerDiscoveryService");
service!(ExtensionDiscovery, ExtensionConfig, "envoy.service.extension.v3.ExtensionConfigDiscoveryService");
service!(RouteDiscovery, Route, "envoy.service.route.v3.RouteDiscoveryService");

/// A proxy in a thread of its own.
struct Proxy {
    admin: SocketAddr,
    thread: std::thread::JoinHandle<Result<(), RunError>>,
    _folder: tempfile::TempDir,
}

impl Proxy {
    async fn start(mode: Mode, control_plane: SocketAddr) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let admin_path = folder.path().join("admin");
        let options = Options {
            config_yaml: Some(ads::bootstrap(mode, &["cds", "lds"], control_plane, "")),
            concurrency: Some(1),
            admin_address_path: Some(admin_path.clone()),
            log_level: "error".into(),
            ..Options::default()
        };
        let thread = std::thread::spawn(move || leno_proxy::run(options));
        let admin = tokio::time::timeout(PATIENCE, address_in(&admin_path)).await.expect("an admin address");
        Self { admin, thread, _folder: folder }
    }

    /// The body of an admin page.
    async fn page(&self, request: &str) -> String {
        let mut client = Client::connect(self.admin).await.expect("the admin interface");
        let answer = client.call(&format!("{request} HTTP/1.1\r\nhost: admin\r\n\r\n")).await;
        answer.expect("an answer").1
    }

    /// Where a listener listens, as soon as it does.
    async fn listening(&self, listener: &str) -> SocketAddr {
        let prefix = format!("{listener}::");
        let search = async {
            loop {
                let page = self.page("GET /listeners").await;
                if let Some(address) = page.lines().find_map(|line| line.strip_prefix(&prefix)) {
                    return address.trim().parse().expect("an address");
                }
            }
        };
        tokio::time::timeout(PATIENCE, search).await.expect("the listener is in force")
    }

    async fn stat(&self, name: &str) -> String {
        let page = self.page(&format!("GET /stats?filter=^{name}$")).await;
        page.trim().rsplit(' ').next().unwrap_or_default().to_owned()
    }

    async fn stop(self) {
        self.page("POST /quitquitquit").await;
        let ended = tokio::task::spawn_blocking(|| self.thread.join());
        let ended = tokio::time::timeout(PATIENCE, ended).await.expect("it ends");
        ended.expect("a thread").expect("no panic").expect("no error");
    }
}

async fn address_in(path: &Path) -> SocketAddr {
    loop {
        if let Some(address) = std::fs::read_to_string(path).ok().and_then(|text| text.parse().ok()) {
            return address;
        }
        tokio::task::yield_now().await;
    }
}

fn resource<T: Message + prost::Name + Default>(name: &str, text: &str) -> Resource {
    let message: T = leno_api::decode_text(text, name).unwrap_or_else(|errors| panic!("{errors}"));
    Resource::hashed(Name::new(name), Bytes::from(message.encode_to_vec()))
}

fn cluster(name: &str) -> Resource {
    resource::<Cluster>(
        name,
        &format!(
            "{{name: {name}, type: EDS, connect_timeout: 1s, eds_cluster_config: {{eds_config: {{ads: {{}}}}}}}}"
        ),
    )
}

fn endpoints(cluster: &str, address: SocketAddr) -> Resource {
    let (ip, port) = (address.ip(), address.port());
    let text = format!(
        "{{cluster_name: {cluster}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: \
         {{address: {ip}, port_value: {port}}}}}}}}}]}}]}}"
    );
    resource::<ClusterLoadAssignment>(cluster, &text)
}

fn listener(name: &str, port: u16, more: &str) -> Resource {
    let text = format!(
        "{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, filter_chains: \
         [{{{more} filters: [{{name: hcm, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.\
         network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: {name}, rds: {{route_config_name: r, \
         config_source: {{ads: {{}}}}}}, http_filters: [{{name: router, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}"
    );
    resource::<Listener>(name, &text)
}

fn routes(action: &str) -> Resource {
    routes_for("prefix: /", action)
}

fn routes_for(criteria: &str, action: &str) -> Resource {
    let text = format!(
        "{{name: r, virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{{criteria}}}, {action}}}]}}]}}"
    );
    resource::<RouteConfiguration>("r", &text)
}

const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";

/// A connection to a listener in force.
async fn connected(address: SocketAddr) -> Client {
    Client::connect(address).await.expect("it listens")
}

/// Asks on one connection until the answer is this; the connection must not close meanwhile.
async fn until_answered(client: &mut Client, expected: (u16, &str)) {
    let asking = async {
        loop {
            let (status, body) = client.call(GET).await.expect("the connection stays");
            if (status, body.as_str()) == expected {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("never {expected:?}"));
}

async fn rejected(server: &mut Server, kind: &TypeUrl) -> String {
    let seen = server.control.wait_for(
        "rejection",
        |seen| matches!(seen, Seen::Event(Event::Nack { type_url, .. }) if type_url == kind),
    );
    match seen.await {
        Seen::Event(Event::Nack { message, .. }) => message,
        other => panic!("{other:?}"),
    }
}

async fn story(mode: Mode) {
    let one = Scripted::start(|_| Action::ok("one")).await.expect("an upstream");
    let two = Scripted::start(|_| Action::ok("two")).await.expect("an upstream");
    let mut server = Server::start(([127, 0, 0, 1], 0).into()).await;
    let proxy = Proxy::start(mode, server.address).await;
    assert_eq!(proxy.page("GET /ready").await.trim(), "PRE_INITIALIZING");

    // From nothing to traffic.
    server.control.set(TypeUrl::Cluster, vec![cluster("a")]);
    server.control.set(TypeUrl::Endpoint, vec![endpoints("a", one.address)]);
    server.control.set(TypeUrl::Listener, vec![listener("l", 0, "")]);
    server.control.set(TypeUrl::Route, vec![routes("route: {cluster: a}")]);
    let address = proxy.listening("l").await;
    assert_eq!(proxy.page("GET /ready").await.trim(), "LIVE");
    let mut client = connected(address).await;
    until_answered(&mut client, (200, "one")).await;

    // Routes and endpoints change under a connection that stays.
    server
        .control
        .set(TypeUrl::Route, vec![routes("direct_response: {status: 203, body: {inline_string: here}}")]);
    until_answered(&mut client, (203, "here")).await;
    server.control.set(TypeUrl::Endpoint, vec![endpoints("a", two.address)]);
    server.control.set(TypeUrl::Route, vec![routes("route: {cluster: a}")]);
    until_answered(&mut client, (200, "two")).await;
    assert_eq!(proxy.stat("cluster.a.membership_total").await, "1");
    assert_eq!(proxy.stat("cluster.a.membership_change").await, "2");

    // Bad resources are refused, the others of the same update are in force.
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let bad_match = "filter_chain_match: {server_names: ['*.*.bad']},";
    server.control.set(
        TypeUrl::Listener,
        vec![
            listener("l", 0, ""),
            listener("m", 0, ""),
            listener("taken", port, ""),
            listener("bad", 0, bad_match),
        ],
    );
    let message = rejected(&mut server, &TypeUrl::Listener).await;
    assert!(
        message.contains(&format!("taken: cannot bind '127.0.0.1:{port}': Address already in use")),
        "{message}"
    );
    assert!(message.contains("bad: filter_chains[0].filter_chain_match"), "{message}");
    let second = proxy.listening("m").await;
    until_answered(&mut connected(second).await, (200, "two")).await;
    server.control.set(TypeUrl::Listener, vec![listener("l", 0, ""), listener("m", 0, "")]);
    server.control.set(TypeUrl::Route, vec![routes_for("safe_regex: {regex: '('}", "route: {cluster: a}")]);
    let message = rejected(&mut server, &TypeUrl::Route).await;
    assert!(message.starts_with("r: virtual_hosts[0].routes[0].match.safe_regex"), "{message}");
    until_answered(&mut client, (200, "two")).await;
    assert_eq!(proxy.stat("listener_manager.lds.update_rejected").await, "1");

    // The control plane goes away and comes back, knowing nothing of the proxy.
    let control_plane = server.stop().await;
    until_answered(&mut client, (200, "two")).await;
    let modified = proxy.stat("cluster_manager.cluster_modified").await;
    let mut server = Server::start(control_plane).await;
    server.control.set(TypeUrl::Cluster, vec![cluster("a")]);
    server.control.set(TypeUrl::Endpoint, vec![endpoints("a", two.address)]);
    server.control.set(TypeUrl::Route, vec![routes("route: {cluster: a}")]);
    server.control.set(TypeUrl::Listener, vec![listener("l", 0, ""), listener("m", 0, "")]);
    server.control.wait_for("stream", |seen| matches!(seen, Seen::Connected(node) if node == "proxy")).await;
    until_answered(&mut client, (200, "two")).await;
    server
        .control
        .set(TypeUrl::Route, vec![routes("direct_response: {status: 200, body: {inline_string: back}}")]);
    until_answered(&mut client, (200, "back")).await;
    assert_eq!(proxy.stat("cluster_manager.cluster_modified").await, modified, "nothing was made anew");
    assert_eq!(proxy.listening("l").await, address);

    // A removed listener: nobody comes in, who is in finishes.
    server.control.set(TypeUrl::Listener, vec![listener("m", 0, "")]);
    let gone = async { while TcpStream::connect(address).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, gone).await.expect("nobody listens");
    assert!(client.call(GET).await.is_none_or(|(status, _)| status == 200));
    until_answered(&mut connected(second).await, (200, "back")).await;
    assert_eq!(proxy.stat("listener_manager.listener_removed").await, "1");
    proxy.stop().await;
}

#[tokio::test]
async fn state_of_the_world() {
    story(Mode::Sotw).await;
}

#[tokio::test]
async fn delta() {
    story(Mode::Delta).await;
}

#[tokio::test]
async fn an_admin_address_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let config_yaml =
        Some(format!("admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}"));
    let options =
        Options { config_yaml, concurrency: Some(1), log_level: "error".into(), ..Options::default() };
    let error = tokio::task::spawn_blocking(|| leno_proxy::run(options)).await.expect("no panic");
    let error = error.expect_err("it cannot start").to_string();
    assert_eq!(error, format!("admin: cannot bind '127.0.0.1:{port}': Address already in use"));
}

//! A real Envoy under our server, in both variants: first configuration, changes, a cluster that
//! warms again, a rejection, a lost stream.
//!
//! Where there is no Envoy, the tests say that they are skipped.

mod support;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use leno_api::proto::envoy::config::cluster::v3 as cluster;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::config::endpoint::v3 as endpoint;
use leno_api::proto::envoy::config::listener::v3 as listener;
use leno_api::proto::envoy::config::route::v3 as route;
use leno_api::proto::envoy::extensions::filters::http::router::v3::Router;
use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use leno_base::Name;
use leno_xds::server::Event;
use leno_xds::{Mode, Resource, TypeUrl};
use prost::Message;
use prost_types::Any;
use support::{ControlPlane, Seen};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio_stream::wrappers::TcpListenerStream;

fn address(address: SocketAddr) -> core::Address {
    let socket = core::SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(address.port().into())),
        ..Default::default()
    };
    core::Address { address: Some(core::address::Address::SocketAddress(socket)) }
}

fn ads() -> core::ConfigSource {
    core::ConfigSource {
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(Default::default())),
        ..Default::default()
    }
}

fn resource(name: &str, message: &impl Message) -> Resource {
    Resource::hashed(Name::new(name), message.encode_to_vec().into())
}

fn a_cluster(name: &str, connect_timeout: Duration) -> Resource {
    let message = cluster::Cluster {
        name: name.into(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::Eds.into(),
        )),
        eds_cluster_config: Some(cluster::cluster::EdsClusterConfig {
            eds_config: Some(ads()),
            ..Default::default()
        }),
        connect_timeout: Some(connect_timeout.try_into().unwrap()),
        ..Default::default()
    };
    resource(name, &message)
}

fn an_assignment(name: &str, upstream: SocketAddr) -> Resource {
    let host = endpoint::Endpoint { address: Some(address(upstream)), ..Default::default() };
    let host = endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(host)),
        ..Default::default()
    };
    let message = endpoint::ClusterLoadAssignment {
        cluster_name: name.into(),
        endpoints: vec![endpoint::LocalityLbEndpoints { lb_endpoints: vec![host], ..Default::default() }],
        ..Default::default()
    };
    resource(name, &message)
}

fn a_listener(name: &str, routes: &str) -> Resource {
    let router = hcm::HttpFilter {
        name: "envoy.filters.http.router".into(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(
            Any::from_msg(&Router::default()).unwrap(),
        )),
        ..Default::default()
    };
    let manager = hcm::HttpConnectionManager {
        stat_prefix: "test".into(),
        http_filters: vec![router],
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
            config_source: Some(ads()),
            route_config_name: routes.into(),
        })),
        ..Default::default()
    };
    let filter = listener::Filter {
        name: "envoy.filters.network.http_connection_manager".into(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(Any::from_msg(&manager).unwrap())),
    };
    let message = listener::Listener {
        name: name.into(),
        address: Some(address("127.0.0.1:0".parse().unwrap())),
        filter_chains: vec![listener::FilterChain { filters: vec![filter], ..Default::default() }],
        ..Default::default()
    };
    resource(name, &message)
}

fn routes(name: &str, action: route::route::Action) -> Resource {
    let all = route::RouteMatch {
        path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".into())),
        ..Default::default()
    };
    let host = route::VirtualHost {
        name: "all".into(),
        domains: vec!["*".into()],
        routes: vec![route::Route { r#match: Some(all), action: Some(action), ..Default::default() }],
        ..Default::default()
    };
    let message =
        route::RouteConfiguration { name: name.into(), virtual_hosts: vec![host], ..Default::default() };
    resource(name, &message)
}

fn to_cluster(name: &str) -> route::route::Action {
    route::route::Action::Route(route::RouteAction {
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(name.into())),
        ..Default::default()
    })
}

fn reply(status: u32) -> route::route::Action {
    route::route::Action::DirectResponse(route::DirectResponseAction { status, ..Default::default() })
}

/// A running Envoy; killed when dropped.
struct Envoy {
    _process: Child,
    admin_path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Envoy {
    fn start(binary: &Path, mode: Mode, control_plane: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("envoy.yaml");
        let admin_path = folder.path().join("admin");
        std::fs::write(&config, bootstrap(mode, control_plane)).unwrap();
        let process = Command::new(binary)
            .arg("-c")
            .arg(&config)
            .arg("--admin-address-path")
            .arg(&admin_path)
            .args(["--concurrency", "1", "--disable-hot-restart", "-l", "warning"])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("Envoy starts");
        Self { _process: process, admin_path, _folder: folder }
    }

    /// The body of an answer of the admin endpoint.
    async fn admin(&self, path: &str) -> String {
        let admin = read(&self.admin_path).trim().parse().expect("an address");
        ask(admin, path).await.expect("the admin endpoint answers").1
    }

    /// Polls the admin endpoint until it says what is wanted.
    async fn admin_says(&self, path: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut last = String::new();
        // Well below the 15 s after which Envoy gives up waiting for a resource.
        for _ in 0..200 {
            last = self.admin(path).await;
            if wanted(&last) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{path} says {last}");
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("Envoy wrote it before it asked for configuration")
}

fn bootstrap(mode: Mode, control_plane: SocketAddr) -> String {
    let api_type = match mode {
        Mode::Sotw => "GRPC",
        Mode::Delta => "DELTA_GRPC",
    };
    let (ip, port) = (control_plane.ip(), control_plane.port());
    format!(
        r#"
node: {{id: envoy-1, cluster: test}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
dynamic_resources:
  ads_config:
    api_type: {api_type}
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]
  cds_config: {{ads: {{}}, resource_api_version: V3}}
  lds_config: {{ads: {{}}, resource_api_version: V3}}
static_resources:
  clusters:
  - name: xds
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: xds
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}]}}]
"#
    )
}

/// Status and body of a GET.
async fn ask(server: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut connection = TcpStream::connect(server).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    Ok((status, body))
}

/// A server that answers every request with 207.
async fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                while connection.read(&mut request).await.is_ok_and(|length| length > 0) {
                    let answer = b"HTTP/1.1 207 Multi-Status\r\ncontent-length: 0\r\n\r\n";
                    connection.write_all(answer).await.unwrap();
                }
            });
        }
    });
    address
}

async fn story(mode: Mode) {
    let Some(binary) = leno_testkit::envoy::binary() else { return };
    let upstream = upstream().await;
    let (mut control, service) = ControlPlane::start();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = socket.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(socket)));

    let second = Duration::from_secs(1);
    control.set(TypeUrl::Cluster, vec![a_cluster("one", second), a_cluster("two", second)]);
    control.set(TypeUrl::Endpoint, vec![an_assignment("one", upstream), an_assignment("two", upstream)]);
    control.set(TypeUrl::Listener, vec![a_listener("in", "main")]);
    control.set(TypeUrl::Route, vec![routes("main", to_cluster("one"))]);

    // From nothing to traffic.
    let envoy = Envoy::start(&binary, mode, target);
    let connected = control.wait_for("stream", |seen| matches!(seen, Seen::Connected(_))).await;
    assert!(matches!(connected, Seen::Connected(node) if node == "envoy-1"));
    for type_url in [TypeUrl::Cluster, TypeUrl::Endpoint, TypeUrl::Listener, TypeUrl::Route] {
        control.wait_for_ack(&type_url).await;
    }
    let listeners = envoy.admin_says("/listeners", |text| text.contains("in::127.0.0.1:")).await;
    let address = listeners.split("in::").nth(1).and_then(|text| text.split_whitespace().next());
    let proxy: SocketAddr =
        address.and_then(|address| address.parse().ok()).expect("the address of the listener");
    envoy.admin_says("/ready", |text| text.contains("LIVE")).await;
    assert_eq!(ask(proxy, "/").await.unwrap().0, 207);

    // A route changes. Workers learn of it after the acknowledgement.
    control.set(TypeUrl::Route, vec![routes("main", reply(418))]);
    control.wait_for_ack(&TypeUrl::Route).await;
    let mut status = 0;
    for _ in 0..100 {
        status = ask(proxy, "/").await.unwrap().0;
        if status == 418 {
            break;
        }
    }
    assert_eq!(status, 418);

    // A cluster changes while its endpoints do not: it has to warm with the same endpoints.
    control.set(TypeUrl::Cluster, vec![a_cluster("one", 2 * second), a_cluster("two", second)]);
    control.wait_for_ack(&TypeUrl::Cluster).await;
    let stats = "/stats?filter=^cluster_manager.(warming_clusters|cluster_modified)$";
    envoy
        .admin_says(stats, |text| {
            text.contains("warming_clusters: 0") && text.contains("cluster_modified: 1")
        })
        .await;
    let membership = "/stats?filter=^cluster.one.(membership_healthy|init_fetch_timeout)$";
    let membership = envoy.admin(membership).await;
    assert!(membership.contains("init_fetch_timeout: 0"), "Envoy had to wait for endpoints: {membership}");
    assert!(membership.contains("membership_healthy: 1"), "{membership}");
    control.set(TypeUrl::Route, vec![routes("main", to_cluster("one"))]);
    control.wait_for_ack(&TypeUrl::Route).await;

    // Something that Envoy cannot take is reported, and what was there goes on.
    let broken = resource("broken", &listener::Listener { name: "broken".into(), ..Default::default() });
    control.set(TypeUrl::Listener, vec![a_listener("in", "main"), broken]);
    let rejected = |seen: &Seen| matches!(seen, Seen::Event(Event::Nack { type_url: TypeUrl::Listener, message, .. }) if message.contains("broken"));
    control.wait_for("rejection", rejected).await;
    control.set(TypeUrl::Listener, vec![a_listener("in", "main")]);
    control.wait_for_ack(&TypeUrl::Listener).await;

    // The stream breaks. In delta Envoy says what it has, and gets nothing of it again.
    control.close_streams();
    control.wait_for("new stream", |seen| matches!(seen, Seen::Connected(_))).await;
    let resent = control.wait_for("clusters", |seen| matches!(seen, Seen::Sent(TypeUrl::Cluster, ..))).await;
    let Seen::Sent(_, names, removed) = resent else { unreachable!("asked for") };
    let expected = if mode == Mode::Sotw { 2 } else { 0 };
    assert_eq!((names.len(), removed.len()), (expected, 0), "{names:?} {removed:?}");

    // Removal.
    control.set(TypeUrl::Cluster, vec![a_cluster("one", 2 * second)]);
    envoy.admin_says("/stats?filter=^cluster_manager.cluster_removed$", |text| text.contains(": 1")).await;
    assert_eq!(ask(proxy, "/").await.unwrap().0, 207);
}

#[tokio::test]
async fn envoy_sotw() {
    story(Mode::Sotw).await;
}

#[tokio::test]
async fn envoy_delta() {
    story(Mode::Delta).await;
}

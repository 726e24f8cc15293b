//! The two gRPC shells against each other, over TCP and Unix sockets.

#[allow(dead_code)] // each test file uses a part of it
mod support;

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use leno_api::proto::envoy::config::core::v3::Node;
use leno_base::{Name, Rng};
use leno_xds::client::grpc::{self, Commander, Connection, Event, Target};
use leno_xds::client::{Client, Config, Interest, Rejection, Update};
use leno_xds::server::Event as ServerEvent;
use leno_xds::server::grpc::DiscoveryService;
use leno_xds::{Mode, Resource, TypeUrl};
use support::{ControlPlane, Seen};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};

fn resource(name: &str, content: &str) -> Resource {
    let mut body = vec![0x0a, u8::try_from(name.len()).unwrap()];
    body.extend_from_slice(name.as_bytes());
    body.extend_from_slice(&[0x12, u8::try_from(content.len()).unwrap()]);
    body.extend_from_slice(content.as_bytes());
    Resource::hashed(Name::new(name), Bytes::from(body))
}

struct Proxy {
    commander: Commander,
    events: mpsc::Receiver<Event>,
}

impl Proxy {
    fn start(mode: Mode, target: Target) -> Self {
        let node = Node { id: "sidecar~1".into(), ..Node::default() };
        let mut config = Config::new(mode, node);
        config.backoff_base = Duration::from_millis(1);
        config.backoff_max = Duration::from_millis(20);
        let client = Client::new(config, Rng::new(1));
        let (commander, commands) = grpc::commands();
        let (sender, events) = mpsc::channel(1);
        let connection = Connection {
            authority: "xds-grpc".into(),
            connect_timeout: Duration::from_secs(5),
            keepalive: Some((Duration::from_secs(30), Duration::from_secs(10))),
        };
        let connector = move || {
            let (target, connection) = (target.clone(), connection.clone());
            async move { grpc::connect(&target, &connection).await }
        };
        tokio::spawn(grpc::run(connector, mode.path(), http::HeaderMap::new(), client, commands, sender));
        Self { commander, events }
    }

    async fn event(&mut self) -> Event {
        let event = tokio::time::timeout(Duration::from_secs(60), self.events.recv()).await;
        event.expect("an event in time").expect("the shell runs")
    }

    async fn update(&mut self) -> Update {
        loop {
            if let Event::Update(update) = self.event().await {
                return update;
            }
        }
    }

    async fn disconnected(&mut self) -> String {
        loop {
            if let Event::Disconnected { error, .. } = self.event().await {
                return error;
            }
        }
    }
}

async fn serve_tcp(service: DiscoveryService) -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    Target::Tcp(address)
}

fn names(update: &Update) -> Vec<&str> {
    update.added.iter().map(|resource| resource.name.as_str()).collect()
}

async fn story(mode: Mode, mut control: ControlPlane, target: Target) {
    control.set(TypeUrl::Cluster, vec![resource("a", "1"), resource("b", "1")]);
    let mut proxy = Proxy::start(mode, target);
    proxy.commander.subscribe(TypeUrl::Cluster, Interest::Wildcard, None);
    assert_eq!(proxy.event().await, Event::Connected);
    let update = proxy.update().await;
    assert_eq!(names(&update), ["a", "b"]);
    assert_eq!(update.added[0].body, resource("a", "1").body);
    proxy.commander.ack(update.receipt);
    let connected = control.wait_for("stream", |seen| matches!(seen, Seen::Connected(_))).await;
    assert!(matches!(connected, Seen::Connected(node) if node == "sidecar~1"));
    control.wait_for_ack(&TypeUrl::Cluster).await;

    control.set(TypeUrl::Cluster, vec![resource("a", "2"), resource("c", "1")]);
    let update = proxy.update().await;
    assert_eq!(names(&update), ["a", "c"]);
    assert_eq!(update.removed, ["b"].map(Name::from));
    proxy.commander.nack(update.receipt, Rejection::whole("not today"));
    control
        .wait_for("rejection", |seen| match seen {
            Seen::Event(ServerEvent::Nack { message, .. }) => message == "not today",
            _ => false,
        })
        .await;

    // The stream breaks, and everything is as it was. What was rejected comes again.
    control.close_streams();
    proxy.disconnected().await;
    let update = proxy.update().await;
    assert_eq!(names(&update), ["a", "c"]);
    proxy.commander.ack(update.receipt);
    control.wait_for_ack(&TypeUrl::Cluster).await;

    // A message larger than tonic's default limit of 4 MB.
    let big = Resource::hashed(Name::new("big"), {
        let mut body = b"\x0a\x03big\x12".to_vec();
        prost::encoding::encode_varint(6 << 20, &mut body);
        body.resize(body.len() + (6 << 20), b'x');
        body.into()
    });
    control.set(TypeUrl::Route, vec![big.clone()]);
    proxy.commander.subscribe(TypeUrl::Route, Interest::name("big"), None);
    let update = proxy.update().await;
    assert_eq!(update.added[0].body, big.body);

    // Dropping the commander ends the shell, and with it the stream.
    drop(proxy.commander);
    assert_eq!(proxy.events.recv().await, None);
    control.wait_for("end", |seen| matches!(seen, Seen::Closed)).await;
}

#[tokio::test]
async fn sotw_over_tcp() {
    let (control, service) = ControlPlane::start();
    let target = serve_tcp(service).await;
    story(Mode::Sotw, control, target).await;
}

#[tokio::test]
async fn delta_over_a_unix_socket() {
    let (control, service) = ControlPlane::start();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("XDS");
    let listener = UnixListener::bind(&path).unwrap();
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    story(Mode::Delta, control, Target::Unix(path)).await;
}

#[tokio::test]
async fn without_a_server_the_proxy_is_told_and_commands_are_kept() {
    let address = (Ipv4Addr::LOCALHOST, leno_testkit::ports::free()).into();
    let mut proxy = Proxy::start(Mode::Sotw, Target::Tcp(address));
    let timeout = Some(Duration::from_millis(1));
    proxy.commander.subscribe(TypeUrl::Listener, Interest::Wildcard, timeout);
    let (mut refused, mut expired) = (false, false);
    while !(refused && expired) {
        match proxy.event().await {
            Event::Disconnected { error, .. } => {
                assert!(error.contains("refused"), "{error}");
                refused = true;
            }
            Event::Expired(subscription) => {
                assert_eq!(subscription.interest, Interest::Wildcard);
                expired = true;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_method_that_the_server_does_not_have_is_an_error() {
    let (_control, service) = ControlPlane::start();
    let Target::Tcp(address) = serve_tcp(service).await else { unreachable!("it is TCP") };
    let (commander, commands) = grpc::commands();
    let (sender, mut events) = mpsc::channel(1);
    let client = Client::new(Config::new(Mode::Sotw, Node::default()), Rng::new(1));
    let connector = move || async move {
        let uri = format!("http://{address}");
        Ok::<_, Infallible>(tonic::transport::Endpoint::from_shared(uri).unwrap().connect().await.unwrap())
    };
    let path = TypeUrl::Secret.path(Mode::Sotw).unwrap();
    tokio::spawn(grpc::run(connector, path, http::HeaderMap::new(), client, commands, sender));
    commander.subscribe(TypeUrl::Secret, Interest::name("default"), None);
    let event = tokio::time::timeout(Duration::from_secs(60), events.recv()).await.unwrap();
    let Some(Event::Disconnected { error, .. }) = event else { panic!("{event:?}") };
    assert!(error.starts_with("Unimplemented"), "{error}");
}

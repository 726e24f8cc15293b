//! The server that proxies connect to: who is let in, and when connections end.

#[allow(dead_code)] // each test file uses a part of it
mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use leno_api::proto::envoy::config::core::v3::Node;
use leno_base::{Name, Rng};
use leno_xds::client::grpc::{self, Commander, Connection, Event, Target};
use leno_xds::client::{Client, Config, Interest};
use leno_xds::server::listen::{Caller, Certified, Listen, Socket, Tokens};
use leno_xds::{Mode, Resource, TypeUrl};
use support::{ControlPlane, Seen};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Nothing here takes long; what does is a bug.
const LIMIT: Duration = Duration::from_secs(60);

struct Server {
    control: ControlPlane,
    target: Target,
    end: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// A server with one cluster, `a`.
async fn serve(change: impl FnOnce(&mut Listen)) -> Server {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::Tcp(socket.local_addr().unwrap());
    serve_at(Socket::Tcp(socket), target, change)
}

fn serve_at(socket: Socket, target: Target, change: impl FnOnce(&mut Listen)) -> Server {
    let (control, service) = ControlPlane::start();
    let resource = Resource::hashed(Name::new("a"), Bytes::from_static(b"\x0a\x01a"));
    control.set(TypeUrl::Cluster, vec![resource]);
    let mut listen = Listen::new(service);
    change(&mut listen);
    let (end, ended) = watch::channel(false);
    let task = tokio::spawn(listen.run(socket, ended));
    Server { control, target, end, task }
}

struct Proxy {
    commander: Commander,
    events: mpsc::Receiver<Event>,
}

impl Proxy {
    /// Asks for all clusters by a method.
    fn start(target: &Target, mode: Mode, path: &'static str, headers: HeaderMap) -> Self {
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
        let target = target.clone();
        let connector = move || {
            let (target, connection) = (target.clone(), connection.clone());
            async move { grpc::connect(&target, &connection).await }
        };
        tokio::spawn(grpc::run(connector, path, headers, client, commands, sender));
        commander.subscribe(TypeUrl::Cluster, Interest::Wildcard, None);
        Self { commander, events }
    }

    /// The next update, or the words at the end of the connection.
    async fn next(&mut self) -> Result<Vec<String>, String> {
        loop {
            let event = tokio::time::timeout(LIMIT, self.events.recv()).await.expect("an event in time");
            match event.expect("the shell runs") {
                Event::Update(update) => {
                    self.commander.ack(update.receipt);
                    return Ok(update.added.iter().map(|resource| resource.name.to_string()).collect());
                }
                Event::Disconnected { error, .. } => return Err(error),
                _ => {}
            }
        }
    }
}

fn bearer(token: &str) -> HeaderMap {
    let value = format!("Bearer {token}").parse().unwrap();
    HeaderMap::from_iter([(http::header::AUTHORIZATION, value)])
}

#[tokio::test]
async fn streams_for_one_type_and_aggregated_ones_are_served_side_by_side() {
    let mut server = serve(|_| {}).await;
    for mode in [Mode::Sotw, Mode::Delta] {
        for path in [mode.path(), TypeUrl::Cluster.path(mode).unwrap()] {
            let mut proxy = Proxy::start(&server.target, mode, path, HeaderMap::new());
            assert_eq!(proxy.next().await, Ok(vec!["a".to_owned()]));
            server.control.wait_for_ack(&TypeUrl::Cluster).await;
        }
    }
    let mut lost = Proxy::start(&server.target, Mode::Sotw, "/x.Y/Z", HeaderMap::new());
    let error = lost.next().await.unwrap_err();
    assert!(error.starts_with("Unimplemented"), "{error}");
}

#[tokio::test]
async fn callers_show_who_they_are() {
    let caller = Caller { identities: vec!["spiffe://cluster.local/ns/a/sa/b".to_owned()], pod: None };
    let tokens = Tokens::new([("secret".to_owned(), caller), (String::new(), Caller::default())]);
    assert!(!format!("{tokens:?}").contains("secret"));
    let server = serve(|listen| listen.authenticator = Arc::new(tokens)).await;
    let path = Mode::Delta.path();
    let mut known = Proxy::start(&server.target, Mode::Delta, path, bearer("secret"));
    assert_eq!(known.next().await, Ok(vec!["a".to_owned()]));
    for headers in [HeaderMap::new(), bearer(""), bearer("secre"), bearer("secrets")] {
        let mut stranger = Proxy::start(&server.target, Mode::Delta, path, headers);
        let error = stranger.next().await.unwrap_err();
        assert!(error.starts_with("Unauthenticated"), "{error}");
    }
    let server = serve(|listen| listen.authenticator = Arc::new(Certified)).await;
    let mut stranger = Proxy::start(&server.target, Mode::Delta, path, HeaderMap::new());
    assert!(stranger.next().await.unwrap_err().contains("a client certificate is required"));
}

#[tokio::test]
async fn old_connections_end_and_are_made_again() {
    let server = serve(|listen| listen.options.most_age = Some(Duration::from_millis(20))).await;
    let mut proxy = Proxy::start(&server.target, Mode::Sotw, Mode::Sotw.path(), HeaderMap::new());
    assert_eq!(proxy.next().await, Ok(vec!["a".to_owned()]));
    assert!(proxy.next().await.is_err());
    while proxy.next().await.is_err() {}
}

#[tokio::test]
async fn when_the_server_ends_everybody_is_sent_away() {
    let mut server = serve(|_| {}).await;
    let mut proxy = Proxy::start(&server.target, Mode::Delta, Mode::Delta.path(), HeaderMap::new());
    assert_eq!(proxy.next().await, Ok(vec!["a".to_owned()]));
    server.end.send(true).unwrap();
    assert!(proxy.next().await.is_err());
    server.control.wait_for("end", |seen| matches!(seen, Seen::Closed)).await;
    tokio::time::timeout(LIMIT, server.task).await.expect("it ends").unwrap();
}

#[tokio::test]
async fn one_address_leaves_room_for_others() {
    use tokio::io::AsyncReadExt as _;
    let mut refusals = None;
    let server = serve(|listen| {
        listen.options.most_connections_of_one = 1;
        refusals = Some(Arc::clone(listen.service.refusals()));
    });
    let server = server.await;
    let path = Mode::Sotw.path();
    let mut first = Proxy::start(&server.target, Mode::Sotw, path, HeaderMap::new());
    assert_eq!(first.next().await, Ok(vec!["a".to_owned()]));
    let Target::Tcp(at) = server.target else { panic!("it is a port") };
    let connect = async |from: &str| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
        socket.connect(at).await.unwrap()
    };
    let read = async |mut stream: tokio::net::TcpStream| {
        tokio::time::timeout(LIMIT, stream.read(&mut [0; 64])).await.expect("an answer")
    };
    let refused = read(connect("127.0.0.1").await).await;
    assert!(matches!(refused, Ok(0) | Err(_)), "{refused:?}");
    let crowds = &refusals.expect("those of the server").crowds;
    assert_eq!(crowds.load(std::sync::atomic::Ordering::Relaxed), 1);
    // HTTP/2 begins with what the server says.
    assert!(matches!(read(connect("127.0.0.2").await).await, Ok(1..)));
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let server = serve(|listen| listen.options.most_connections = 1).await;
    let path = Mode::Sotw.path();
    let mut first = Proxy::start(&server.target, Mode::Sotw, path, HeaderMap::new());
    assert_eq!(first.next().await, Ok(vec!["a".to_owned()]));
    let mut second = Proxy::start(&server.target, Mode::Sotw, path, HeaderMap::new());
    drop(first);
    // It is served when there is room, whether it has waited or tried again.
    while second.next().await.is_err() {}
}

/// Clients of gRPC's C++ library have the socket's path, escaped, as the authority.
#[tokio::test]
async fn a_path_as_the_authority_is_taken_on_unix_sockets() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let _server = serve_at(Socket::unix(path.clone()).unwrap(), Target::Unix(path.clone()), |_| {});
    let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/nobody/answers"),
        (":authority", "tmp%2Fsocket"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut block = Vec::new();
    for (name, value) in fields {
        // Literals that are not indexed and not coded.
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.bytes());
        }
    }
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    sent.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    // HEADERS, with the ends of the headers and of the stream.
    sent.extend([0, 0, u8::try_from(block.len()).unwrap(), 1, 0x5, 0, 0, 0, 1]);
    sent.extend(block);
    stream.write_all(&sent).await.unwrap();
    // The first frame of the stream: HEADERS, and no RST_STREAM.
    let kind = loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.unwrap();
        if head[8] == 1 {
            break head[3];
        }
    };
    assert_eq!(kind, 1);
}

#[tokio::test]
async fn a_unix_socket_takes_the_place_of_one_left_behind_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("xds.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let socket = Socket::unix(path.clone()).unwrap();
    let server = serve_at(socket, Target::Unix(path.clone()), |_| {});
    let mut proxy = Proxy::start(&server.target, Mode::Delta, Mode::Delta.path(), HeaderMap::new());
    assert_eq!(proxy.next().await, Ok(vec!["a".to_owned()]));
    assert_eq!(Socket::unix(path).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(Socket::unix(file.clone()).is_err());
    assert_eq!(std::fs::read(file).unwrap(), b"x");
}

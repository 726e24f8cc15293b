//! The echo service and its client, over real connections.

mod support;

use std::time::Duration;

use expect_test::expect;
use futures_util::{StreamExt, stream};
use leno_samples::grpc::client::{self, Options, StreamKind};
use leno_samples::grpc::echo::echo_client::EchoClient;
use leno_samples::grpc::echo::{EchoRequest, WatchRequest};
use leno_samples::grpc::health::HealthCheckRequest;
use leno_samples::grpc::health::health_client::HealthClient;
use leno_samples::grpc::server;
use leno_samples::{OutboundProxy, Shutdown};
use support::{Nobody, Running};
use tokio::net::TcpListener;
use tonic::transport::Endpoint;
use tonic::{Code, transport::Channel};

async fn start_echo(hostname: &str) -> Running {
    let config = server::Config { hostname: hostname.to_owned(), version: "v7".to_owned() };
    Running::start(|listener, shutdown| server::serve(listener, config, shutdown)).await
}

async fn connect(echo: &Running) -> Channel {
    Endpoint::from_shared(echo.url("")).unwrap().connect().await.unwrap()
}

#[tokio::test]
async fn unary_and_streams() {
    let echo = start_echo("echo-a").await;
    let mut client = EchoClient::new(connect(&echo).await);
    let reply = client.echo(EchoRequest { message: "hello".to_owned() }).await.unwrap().into_inner();
    expect![[r#"
        EchoReply {
            message: "hello",
            hostname: "echo-a",
            version: "v7",
        }
    "#]]
    .assert_debug_eq(&reply);

    let request = WatchRequest { message: "again".to_owned(), interval_ms: 10, count: 3 };
    let replies = client.watch(request).await.unwrap().into_inner();
    let messages: Vec<_> = replies.map(|reply| reply.unwrap().message).collect().await;
    assert_eq!(messages, ["again"; 3]);

    let said = ["one", "two", "three"].map(|message| EchoRequest { message: message.to_owned() });
    let replies = client.chat(stream::iter(said)).await.unwrap().into_inner();
    let messages: Vec<_> = replies.map(|reply| reply.unwrap().message).collect().await;
    assert_eq!(messages, ["one", "two", "three"]);
}

#[tokio::test]
async fn health() {
    let echo = start_echo("echo-a").await;
    let mut client = HealthClient::new(connect(&echo).await);
    let ask = |service: &str| HealthCheckRequest { service: service.to_owned() };
    for service in ["", "leno.samples.echo.v1.Echo"] {
        let state = client.check(ask(service)).await.unwrap().into_inner();
        expect!["HealthCheckResponse { status: Serving }"].assert_eq(&format!("{state:?}"));
    }
    assert_eq!(client.check(ask("billing")).await.unwrap_err().code(), Code::NotFound);

    let mut unknown = client.watch(ask("billing")).await.unwrap().into_inner();
    let state = unknown.message().await.unwrap().unwrap();
    expect!["HealthCheckResponse { status: ServiceUnknown }"].assert_eq(&format!("{state:?}"));

    let mut states = client.watch(ask("")).await.unwrap().into_inner();
    let state = states.message().await.unwrap().unwrap();
    expect!["HealthCheckResponse { status: Serving }"].assert_eq(&format!("{state:?}"));
    let (_, rest) = tokio::join!(echo.stop(), states.collect::<Vec<_>>());
    expect!["[Ok(HealthCheckResponse { status: NotServing })]"].assert_eq(&format!("{rest:?}"));
}

#[tokio::test]
async fn a_server_that_ends_ends_its_streams_in_good_order() {
    let echo = start_echo("echo-a").await;
    let mut client = EchoClient::new(connect(&echo).await);
    let mut watch = client.watch(WatchRequest::default()).await.unwrap().into_inner();
    let mut chat = client
        .chat(stream::iter([EchoRequest::default()]).chain(stream::pending()))
        .await
        .unwrap()
        .into_inner();
    assert!(watch.message().await.unwrap().is_some() && chat.message().await.unwrap().is_some());
    let ended = async { (watch.message().await, chat.message().await) };
    let (_, (watched, chatted)) =
        tokio::time::timeout(Duration::from_secs(5), async { tokio::join!(echo.stop(), ended) })
            .await
            .unwrap();
    assert!(watched.unwrap().is_none() && chatted.unwrap().is_none());
}

fn options(address: &str) -> Options {
    Options {
        address: address.parse().unwrap(),
        rps: 500.0,
        requests: Some(30),
        stream: StreamKind::None,
        timeout: Duration::from_secs(5),
        wait: Duration::from_secs(10),
    }
}

#[tokio::test]
async fn the_client_counts_by_replica() {
    let echo = start_echo("echo-a").await;
    let (_trigger, shutdown) = Shutdown::channel();
    let totals =
        client::run(&options(&echo.url("")), OutboundProxy::default(), |_| {}, shutdown).await.unwrap();
    expect![[
        r#"{"calls":30,"errors":0,"replicas":{"echo-a":30},"stream":{"opened":0,"messages":0,"broken":0}}"#
    ]]
    .assert_eq(&serde_json::to_string(&totals).unwrap());
    assert_eq!(totals.to_string(), "30 calls, echo-a 30, errors 0");
}

#[tokio::test]
async fn the_client_keeps_its_stream_open_and_says_so_each_second() {
    for kind in [StreamKind::Chat, StreamKind::Watch] {
        let echo = start_echo("echo-a").await;
        let (trigger, shutdown) = Shutdown::channel();
        let (mut trigger, mut lines) = (Some(trigger), Vec::new());
        let options = Options { requests: None, stream: kind, ..options(&echo.url("")) };
        // Runs until it printed the calls of a second.
        let say = |line: &str| {
            if line.contains(" calls, ") {
                trigger.take();
            }
            lines.push(line.to_owned());
        };
        let totals = client::run(&options, OutboundProxy::default(), say, shutdown).await.unwrap();
        assert_eq!((totals.errors, totals.stream.opened, totals.stream.broken), (0, 1, 0), "{lines:?}");
        assert!(totals.stream.messages >= 1 && totals.calls > 1);
        assert_eq!(lines[0], "127.0.0.1: stream open on echo-a");
        let (start, end) = lines[1].split_once(" calls, echo-a ").unwrap();
        assert_eq!(end.strip_suffix(", errors 0"), start.strip_prefix("127.0.0.1: "), "{lines:?}");
    }
}

#[tokio::test]
async fn the_client_reopens_its_stream_and_counts_failed_calls() {
    // Held by the test while no server uses it, so that the port stays ours.
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let address = format!("http://{}", socket.local_addr().unwrap());
    let serve = |hostname: &str| {
        let listener = TcpListener::from_std(socket.try_clone().unwrap()).unwrap();
        let config = server::Config { hostname: hostname.to_owned(), version: "v7".to_owned() };
        let (trigger, shutdown) = Shutdown::channel();
        (trigger, tokio::spawn(server::serve(listener, config, shutdown)))
    };

    let (trigger, shutdown) = Shutdown::channel();
    let (said, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let options = Options {
        requests: None,
        stream: StreamKind::Chat,
        timeout: Duration::from_millis(200),
        ..options(&address)
    };
    // Once the story is told, nobody listens to the lines any more.
    let say = move |line: &str| said.send(line.to_owned()).unwrap_or_default();
    let client = client::run(&options, OutboundProxy::default(), say, shutdown);
    let story = async {
        let mut until = async |part: &str| while !lines.recv().await.unwrap().contains(part) {};
        let (first, served) = serve("echo-a");
        until("stream open on echo-a").await;
        first.fire();
        served.await.unwrap().unwrap();
        until("call failed: ").await;
        let (second, served) = serve("echo-b");
        until("stream open on echo-b").await;
        trigger.fire();
        second.fire();
        served.await.unwrap().unwrap();
    };
    let (totals, ()) = tokio::join!(client, story);
    let totals = totals.unwrap();
    assert!(totals.errors > 0 && totals.stream.opened >= 2, "{totals:?}");
    let answered: u64 = totals.replicas.values().sum();
    assert_eq!(totals.calls, answered + totals.errors);
}

#[tokio::test]
async fn the_client_goes_through_the_proxy() {
    // The echo server itself plays the proxy: what arrives there was sent to it.
    let echo = start_echo("echo-proxy").await;
    let (_trigger, shutdown) = Shutdown::channel();
    let proxy = OutboundProxy::new(Some(&echo.url("")), None).unwrap();
    let totals = client::run(&options("http://echo.invalid:7070"), proxy, |_| {}, shutdown).await.unwrap();
    assert_eq!(totals.to_string(), "30 calls, echo-proxy 30, errors 0");
}

#[tokio::test]
async fn the_client_gives_up_where_nothing_answers() {
    let away = Nobody::here();
    let nobody = away.peer.to_string();
    let run = async |address: &str| {
        let options = Options { wait: Duration::from_millis(300), ..options(address) };
        let (_trigger, shutdown) = Shutdown::channel();
        client::run(&options, OutboundProxy::default(), |_| {}, shutdown).await.unwrap_err().to_string()
    };
    let refused = run(&nobody).await;
    assert!(refused.starts_with(&format!("{nobody}/ did not answer within 0.3 s: Unavailable")), "{refused}");
    expect!["https://echo:7070/: only http:// addresses with a host can be called"]
        .assert_eq(&run("https://echo:7070").await);
}

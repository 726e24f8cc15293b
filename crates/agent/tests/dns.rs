//! The DNS proxy over its sockets, with a server of the machine behind it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use leno_agent::dns::{Place, Resolver, Upstream, bind, follow, serve};
use leno_api::proto::istio::networking::nds::v1::NameTable;
use leno_api::proto::istio::networking::nds::v1::name_table::NameInfo;
use leno_base::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;

const LIMIT: Duration = Duration::from_secs(60);

/// A server that knows one address for every name.
async fn server() -> SocketAddr {
    let stream = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = stream.local_addr().expect("an address");
    let datagrams = UdpSocket::bind(address).await.expect("the same port");
    let answer = |query: &[u8]| {
        let query = Message::from_vec(query).expect("a query");
        let mut answer = Message::response(query.metadata.id, OpCode::Query);
        let name = query.queries[0].name().clone();
        answer.add_queries(query.queries);
        answer.add_answer(Record::from_rdata(name, 5, RData::A(A([203, 0, 113, 7].into()))));
        answer.to_vec().expect("an answer")
    };
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            tokio::select! {
                got = datagrams.recv_from(&mut buffer) => {
                    let (length, peer) = got.expect("a query");
                    datagrams.send_to(&answer(&buffer[..length]), peer).await.expect("it is sent");
                }
                got = stream.accept() => {
                    let (mut stream, _) = got.expect("a connection");
                    let answered = exchange_on(&mut stream, None).await;
                    let answer = answer(&answered);
                    stream.write_u16(u16::try_from(answer.len()).expect("short")).await.expect("it is sent");
                    stream.write_all(&answer).await.expect("it is sent");
                }
            }
        }
    });
    address
}

/// Sends a message and reads one; or only reads one.
async fn exchange_on(stream: &mut TcpStream, message: Option<&[u8]>) -> Vec<u8> {
    if let Some(message) = message {
        stream.write_u16(u16::try_from(message.len()).expect("short")).await.expect("it is sent");
        stream.write_all(message).await.expect("it is sent");
    }
    let length = stream.read_u16().await.expect("a length");
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await.expect("a message");
    bytes
}

struct Running {
    address: SocketAddr,
    names: watch::Sender<Option<Arc<NameTable>>>,
    table: watch::Receiver<Option<Arc<leno_agent::dns::Table>>>,
    metrics: Arc<leno_agent::metrics::Metrics>,
}

impl Running {
    async fn start(servers: Vec<SocketAddr>) -> Running {
        let sockets = bind("127.0.0.1:0", &servers).await.expect("sockets");
        let address = sockets.addresses()[0];
        let (names, told) = watch::channel(None);
        let (say, table) = watch::channel(None);
        let place = Place::new("shop", "shop.svc.cluster.local", Some("shop.svc.cluster.local"));
        tokio::spawn(follow(told, place, say));
        let metrics = Arc::<leno_agent::metrics::Metrics>::default();
        let resolver = Resolver {
            table: table.clone(),
            upstream: Upstream::new(servers, Duration::from_secs(20), false, Rng::new(7)),
            answers_at_once: false,
            metrics: Arc::clone(&metrics),
        };
        tokio::spawn(serve(sockets, Arc::new(resolver)));
        Running { address, names, table, metrics }
    }

    async fn tell(&mut self, names: &[(&str, Vec<String>)]) {
        let info = |(name, ips): &(&str, Vec<String>)| {
            let info = NameInfo { ips: ips.clone(), registry: "External".to_owned(), ..NameInfo::default() };
            ((*name).to_owned(), info)
        };
        let table: BTreeMap<String, NameInfo> = names.iter().map(info).collect();
        self.names.send_replace(Some(Arc::new(NameTable { table })));
        self.table.changed().await.expect("it is taken");
    }

    async fn ask(&self, query: &[u8], by_stream: bool) -> Message {
        let asking = async {
            if by_stream {
                let mut stream = TcpStream::connect(self.address).await.expect("it accepts");
                exchange_on(&mut stream, Some(query)).await
            } else {
                let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
                socket.send_to(query, self.address).await.expect("it is sent");
                let mut answer = vec![0; 65_535];
                let length = socket.recv(&mut answer).await.expect("an answer");
                answer.truncate(length);
                answer
            }
        };
        let bytes = tokio::time::timeout(LIMIT, asking).await.expect("an answer in time");
        Message::from_vec(&bytes).expect("an answer")
    }
}

/// Servers that say nothing take no names of the mesh down with them.
#[tokio::test]
async fn names_of_the_mesh_do_not_wait_for_others() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let mut running = Running::start(vec![silent.local_addr().expect("an address")]).await;
    running.tell(&[("api.example.com", vec!["240.240.0.1".to_owned()])]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let others = query("far.example.com", RecordType::A, None);
    // One is refused in the end, when as many are asked for as may be.
    let mut answer = vec![0; 512];
    let refused = async {
        loop {
            socket.send_to(&others, running.address).await.expect("it is sent");
            tokio::task::yield_now().await;
            if let Ok(length) = socket.try_recv(&mut answer) {
                break Message::from_vec(&answer[..length]).expect("an answer");
            }
        }
    };
    let refused = tokio::time::timeout(Duration::from_secs(15), refused)
        .await
        .expect("before the servers' time is over");
    assert_eq!(refused.metadata.response_code, ResponseCode::ServFail);
    assert!(running.metrics.dns_upstream_requests.value() >= 1000);
    assert!(running.metrics.dns_crowded.value() >= 1);
    let known = running.ask(&query("api.example.com", RecordType::A, None), false).await;
    assert_eq!(told(&known), "NoError, api.example.com. 30 240.240.0.1");
}

/// Lookups of IPv6 are redirected too, whatever servers there are.
#[tokio::test]
async fn localhost_is_of_both_families() {
    if UdpSocket::bind("[::1]:0").await.is_err() {
        return eprintln!("skipped: there is no IPv6");
    }
    let server = server().await;
    for servers in [&[server][..], &[], &["[fd00::53]:53".parse().expect("an address")]] {
        let sockets = bind("localhost:0", servers).await.expect("sockets");
        let families: Vec<bool> = sockets.addresses().iter().map(SocketAddr::is_ipv6).collect();
        assert_eq!(families, [false, true], "{servers:?}");
    }
    // What is taken by somebody is missed only if it is needed.
    let taken = TcpListener::bind("[::1]:0").await.expect("a port");
    let address = format!("localhost:{}", taken.local_addr().expect("an address").port());
    if TcpListener::bind(("127.0.0.1", taken.local_addr().expect("an address").port())).await.is_ok() {
        let found = bind(&address, &[server]).await.expect("sockets").addresses();
        assert!(found.len() == 1 && found[0].is_ipv4(), "{found:?}");
        assert!(bind(&address, &["[fd00::53]:53".parse().expect("an address")]).await.is_err());
    }
}

fn query(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().expect("a query")
}

fn told(answer: &Message) -> String {
    let mut words = vec![format!("{:?}", answer.metadata.response_code)];
    let records =
        answer.answers.iter().map(|record| format!("{} {} {}", record.name, record.ttl, record.data));
    words.extend(records);
    words.join(", ")
}

#[tokio::test]
async fn names_of_the_mesh_and_others() {
    let mut running = Running::start(vec![server().await]).await;
    let before = running.ask(&query("api.example.com.", RecordType::A, None), false).await;
    assert_eq!(before.metadata.response_code, ResponseCode::ServFail, "names have not come yet");
    let ips = |list: &[&str]| list.iter().map(|ip| (*ip).to_owned()).collect::<Vec<_>>();
    running
        .tell(&[("api.example.com", ips(&["240.240.0.1"])), ("*.wild.example.com", ips(&["fd00::2"]))])
        .await;
    for (name, kind, expected) in [
        ("API.example.com.", RecordType::A, "NoError, API.example.com. 30 240.240.0.1"),
        ("api.example.com.", RecordType::AAAA, "NoError"),
        ("a.wild.example.com.", RecordType::AAAA, "NoError, a.wild.example.com. 30 fd00::2"),
        (
            "api.example.com.shop.svc.cluster.local.",
            RecordType::A,
            "NoError, api.example.com.shop.svc.cluster.local. 30 api.example.com., api.example.com. 30 240.240.0.1",
        ),
        ("www.example.org.", RecordType::A, "NoError, www.example.org. 5 203.0.113.7"),
        ("api.example.com.", RecordType::TXT, "NoError, api.example.com. 5 203.0.113.7"),
    ] {
        for by_stream in [false, true] {
            let answer = running.ask(&query(name, kind, None), by_stream).await;
            assert_eq!(told(&answer), expected, "{name} {kind}, by stream: {by_stream}");
            assert_eq!(answer.metadata.id, 4711);
            assert_eq!(answer.metadata.authoritative, !expected.contains(" 5 "), "{name} {kind}");
        }
    }
    assert_eq!(running.metrics.dns_requests.value(), 13);
    assert_eq!(running.metrics.dns_upstream_requests.value(), 4);
    let text = running.metrics.text(0);
    for line in [
        "istio_agent_dns_requests_total 13\n",
        "istio_agent_dns_upstream_requests_total 4\n",
        "istio_agent_dns_upstream_failures_total 0\n",
        "istio_agent_dns_refused_total{reason=\"malformed\"} 0\n",
        "istio_agent_dns_upstream_request_duration_seconds_bucket{le=\"+Inf\"} 4\n",
        "istio_agent_dns_upstream_request_duration_seconds_count 4\n",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[tokio::test]
async fn what_does_not_fit_is_cut_off() {
    let mut running = Running::start(vec![server().await]).await;
    let many: Vec<String> = (0..100u8).map(|last| IpAddr::from([10, 0, 0, last]).to_string()).collect();
    running.tell(&[("many.example.com", many)]).await;
    let name = "many.example.com.";
    let short = running.ask(&query(name, RecordType::A, None), false).await;
    assert!(short.metadata.truncation && (1..40).contains(&short.answers.len()), "{}", short.answers.len());
    let longer = running.ask(&query(name, RecordType::A, Some(4096)), false).await;
    assert!(!longer.metadata.truncation && longer.answers.len() == 100);
    let stream = running.ask(&query(name, RecordType::A, None), true).await;
    assert!(!stream.metadata.truncation && stream.answers.len() == 100);
}

#[tokio::test]
async fn without_servers() {
    let mut running = Running::start(Vec::new()).await;
    running.tell(&[("api.example.com", vec!["240.240.0.1".to_owned()])]).await;
    let answer = running.ask(&query("www.example.org.", RecordType::A, None), false).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(running.metrics.dns_upstream_failures.value(), 1);
}

/// What is no query is passed over, and connections that say nothing, or read nothing, make room.
#[tokio::test]
async fn strangers_take_nothing_from_others() {
    let mut running = Running::start(vec![server().await]).await;
    running.tell(&[("api.example.com", vec!["240.240.0.1".to_owned()])]).await;
    let known = query("api.example.com", RecordType::A, None);
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    // A header that promises much, a name that points at itself, an answer, and noise.
    let mut promises = known[..12].to_vec();
    promises[4..12].fill(0xff);
    let mut points = known[..12].to_vec();
    points.extend_from_slice(b"\xc0\x0c\x00\x01\x00\x01");
    let mut answer = known.clone();
    answer[2] |= 0x80;
    let mut rng = Rng::new(3);
    let noise = (0..500).map(|_| {
        let length = usize::try_from(rng.below(600)).expect("short");
        (0..length).map(|_| rng.below(256) as u8).collect::<Vec<u8>>()
    });
    let noise: Vec<Vec<u8>> = noise.collect();
    for bytes in [promises, points, answer, Vec::new(), vec![0; 60_000]].into_iter().chain(noise) {
        socket.send_to(&bytes, running.address).await.expect("it is sent");
    }
    // Silent ones, ones that stop within a message, and ones that never read.
    let mut held = Vec::new();
    for index in 0..600 {
        let mut stream = TcpStream::connect(running.address).await.expect("it accepts");
        match index % 3 {
            0 => {}
            1 => stream.write_all(b"\xff\xffhalf").await.expect("it is sent"),
            _ => {
                let length = u16::try_from(known.len()).expect("short").to_be_bytes();
                // It may have had to go for others.
                let _ = stream.write_all(&[&length[..], &known].concat().repeat(20)).await;
            }
        }
        held.push(stream);
    }
    for by_stream in [false, true] {
        let found = running.ask(&known, by_stream).await;
        assert_eq!(told(&found), "NoError, api.example.com. 30 240.240.0.1");
    }
    drop(held);
    assert!(running.metrics.dns_malformed.value() >= 4);
}

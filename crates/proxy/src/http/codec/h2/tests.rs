//! Two sessions without sockets between them, and one against raw frames.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use proptest::prelude::{ProptestConfig, proptest};

use super::client::H2Client;
use super::fuzz::{default_settings, session};
use super::server::H2Server;
use super::session::{Role, Session};
use crate::cluster::{Http2Settings, KeepaliveSettings};
use crate::http::codec::h1::client::Answer;
use crate::http::codec::{DownstreamError, Frame, ResetReason};
use crate::http::headers::HeaderMap;

fn settings() -> Http2Settings {
    let settings = default_settings().expect("defaults");
    Http2Settings { stream_window: 65_535, connection_window: 100_000, ..settings }
}

/// A client and a server.
struct Pair {
    client: Rc<RefCell<Session>>,
    server: Rc<RefCell<Session>>,
    now: Instant,
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn message(fields: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        map.append(name.as_bytes(), value.as_bytes());
    }
    map
}

fn request() -> HeaderMap {
    message(&[(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "h")])
}

impl Pair {
    fn new(client: Http2Settings, server: Http2Settings) -> Self {
        let pair = Self {
            client: Rc::new(RefCell::new(session(Role::Client, client))),
            server: Rc::new(RefCell::new(session(Role::Server, server))),
            now: Instant::now(),
        };
        pair.shuttle();
        pair
    }

    /// Carries bytes to and fro until there are none. Gives how many went to the client.
    fn shuttle(&self) -> usize {
        let mut buffer = Vec::new();
        let mut carried = 0;
        loop {
            let mut quiet = true;
            while self.client.borrow_mut().take_output(&mut buffer) {
                self.server.borrow_mut().receive(&mut BytesMut::from(&buffer[..]), self.now);
                buffer.clear();
                quiet = false;
            }
            while self.server.borrow_mut().take_output(&mut buffer) {
                carried += buffer.len();
                self.client.borrow_mut().receive(&mut BytesMut::from(&buffer[..]), self.now);
                buffer.clear();
                quiet = false;
            }
            if quiet {
                return carried;
            }
        }
    }

    fn open(&self, end: bool) -> H2Client {
        H2Client::open(&self.client, &request(), end, self.now).expect("a stream")
    }

    fn accept(&self) -> H2Server {
        self.shuttle();
        let accepted = self.server.borrow_mut().accept().expect("a request");
        H2Server::new(&self.server, accepted).0
    }
}

fn respond(server: &mut H2Server, end: bool) {
    server.send_head(&message(&[(":status", "200")]), end);
}

fn head(client: &mut H2Client) -> Result<u16, ResetReason> {
    let mut map = HeaderMap::new();
    match client.poll_head(&mut cx(), &mut map) {
        Poll::Ready(Ok(_)) => Ok(map.status()),
        Poll::Ready(Err(reason)) => Err(reason),
        Poll::Pending => panic!("no response yet"),
    }
}

/// Reads all that is there: the bytes, and whether that was the end.
fn read(client: &mut H2Client) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    loop {
        match client.poll_frame(&mut cx()) {
            Poll::Ready(Ok(Frame::Data { data, end })) => {
                all.extend_from_slice(&data);
                if end {
                    return (all, true);
                }
            }
            Poll::Ready(Ok(_)) => return (all, true),
            Poll::Ready(Err(_)) | Poll::Pending => return (all, false),
        }
    }
}

#[test]
fn a_slow_reader_makes_nothing_grow() {
    let pair = Pair::new(settings(), settings());
    let mut clients: Vec<H2Client> = (0..4).map(|_| pair.open(true)).collect();
    let mut servers: Vec<H2Server> = (0..4).map(|_| pair.accept()).collect();
    let piece = Bytes::from_static(&[7; 10_000]);
    let mut sent = 0;
    for server in &mut servers {
        respond(server, false);
        for _ in 0..1000 {
            if server.poll_room(&mut cx()).is_pending() {
                break;
            }
            server.send_data(piece.clone(), false);
            sent += piece.len();
            pair.shuttle();
        }
        assert!(server.poll_flush(&mut cx()).is_pending());
    }
    // The connection's window, and in each stream what may wait there.
    assert!(sent <= 100_000 + 4 * (64 * 1024 + piece.len()), "{sent}");
    // Reading moves all of them, and no byte is lost.
    let mut got = 0;
    while got < sent {
        let before = got;
        for client in &mut clients {
            let mut map = HeaderMap::new();
            let _ = client.poll_head(&mut cx(), &mut map);
            got += read(client).0.len();
            pair.shuttle();
        }
        assert!(got > before, "stuck at {got} of {sent}");
    }
    assert!(servers.iter_mut().all(|server| server.poll_flush(&mut cx()).is_ready()));
}

#[test]
fn streams_that_wait_take_turns() {
    let pair = Pair::new(settings(), settings());
    let mut first = pair.open(true);
    let mut second = pair.open(true);
    let mut servers = [pair.accept(), pair.accept()];
    for server in &mut servers {
        respond(server, false);
        server.send_data(Bytes::from(vec![1; 90_000]), true);
    }
    pair.shuttle();
    assert_eq!((head(&mut first), head(&mut second)), (Ok(200), Ok(200)));
    let (one, two) = (read(&mut first).0.len(), read(&mut second).0.len());
    assert!(one > 30_000 && two > 30_000, "{one} {two}");
}

#[test]
fn trailers_wait_behind_the_body() {
    let pair = Pair::new(settings(), settings());
    let mut client = pair.open(true);
    let mut server = pair.accept();
    respond(&mut server, false);
    server.send_data(Bytes::from(vec![1; 200_000]), false);
    server.send_trailers(&message(&[("grpc-status", "0")]));
    let mut length = 0;
    pair.shuttle();
    assert_eq!(head(&mut client), Ok(200));
    let trailers = loop {
        pair.shuttle();
        match client.poll_frame(&mut cx()) {
            Poll::Ready(Ok(Frame::Data { data, end })) => {
                assert!(!end);
                length += data.len();
            }
            Poll::Ready(Ok(Frame::Trailers(trailers))) => break trailers,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((length, trailers.find("grpc-status")), (200_000, Some(&b"0"[..])));
}

#[test]
fn both_sides_count_the_same_bytes() {
    let pair = Pair::new(settings(), settings());
    let mut client = pair.open(false);
    client.send_data(Bytes::from_static(b"abc"), true);
    let mut server = pair.accept();
    assert!(server.poll_frame(&mut cx()).is_ready());
    respond(&mut server, false);
    server.send_data(Bytes::from_static(b"hello"), true);
    pair.shuttle();
    let (received, sent) = server.wire_bytes();
    assert_eq!(client.wire_bytes(), (sent, received));
    // The head's frame, then the body's.
    assert_eq!(sent, 9 + 1 + 9 + 5);
}

#[test]
fn heads_longer_than_a_frame_are_continued() {
    let pair = Pair::new(settings(), settings());
    let long = "v".repeat(50_000);
    let mut map = request();
    map.append(b"x-long", long.as_bytes());
    let _client = H2Client::open(&pair.client, &map, true, pair.now).expect("a stream");
    pair.shuttle();
    let accepted = pair.server.borrow_mut().accept().expect("a request");
    assert_eq!(accepted.head.find("x-long"), Some(long.as_bytes()));
}

#[test]
fn streams_above_the_limit_are_refused() {
    let pair = Pair::new(settings(), Http2Settings { max_concurrent_streams: 2, ..settings() });
    assert_eq!(pair.client.borrow().peer_max_streams(), 2);
    let mut clients: Vec<H2Client> = (0..3).map(|_| pair.open(true)).collect();
    let mut servers = [pair.accept(), pair.accept()];
    assert!(pair.server.borrow_mut().accept().is_none());
    assert_eq!(head(&mut clients[2]), Err(ResetReason::RemoteRefused));
    respond(&mut servers[0], true);
    pair.shuttle();
    let _fourth = pair.open(true);
    pair.accept();
}

#[test]
fn goodbyes_spare_the_streams_that_were_seen() {
    let pair = Pair::new(settings(), settings());
    let mut seen = pair.open(true);
    let mut server = pair.accept();
    pair.server.borrow_mut().shutdown_notice();
    // On its way while the notice is.
    let _late = pair.open(true);
    pair.accept();
    assert!(pair.server.borrow().notice_seen());
    assert!(!pair.client.borrow().takes_streams());
    let refused = H2Client::open(&pair.client, &request(), true, pair.now).map(|_| ());
    assert_eq!(refused, Err(ResetReason::ConnectionTermination));
    pair.server.borrow_mut().goaway();
    assert!(!pair.server.borrow().is_finished());
    respond(&mut server, true);
    pair.shuttle();
    assert_eq!(head(&mut seen), Ok(200));
    drop(server);
    assert!(pair.server.borrow().is_finished());
}

#[test]
fn streams_above_the_last_one_were_never_looked_at() {
    let pair = Pair::new(settings(), settings());
    let mut first = pair.open(true);
    let _server = pair.accept();
    pair.server.borrow_mut().goaway();
    let mut second = pair.open(true);
    pair.shuttle();
    assert_eq!(head(&mut second), Err(ResetReason::RemoteRefused));
    assert!(first.poll_head(&mut cx(), &mut HeaderMap::new()).is_pending());
    pair.client.borrow_mut().lost();
    assert_eq!(head(&mut first), Err(ResetReason::ConnectionTermination));
}

#[test]
fn an_early_answer_is_read_to_its_end() {
    let pair = Pair::new(settings(), settings());
    let mut client = pair.open(false);
    client.send_data(Bytes::from(vec![1; 200_000]), false);
    let mut server = pair.accept();
    respond(&mut server, false);
    server.send_data(Bytes::from_static(b"no"), true);
    drop(server);
    pair.shuttle();
    assert_eq!(head(&mut client), Ok(200));
    assert_eq!(read(&mut client), (b"no".to_vec(), true));
    // The rest of the request has no place to go, and nobody waits for it.
    assert!(client.poll_room(&mut cx()).is_ready());
    drop(client);
    pair.shuttle();
    assert_eq!((pair.client.borrow().streams(), pair.server.borrow().streams()), (0, 0));
}

#[test]
fn a_handle_that_is_dropped_resets_its_stream_and_gives_its_window_back() {
    let pair = Pair::new(settings(), settings());
    for _ in 0..10 {
        let mut client = pair.open(true);
        let mut server = pair.accept();
        respond(&mut server, false);
        server.send_data(Bytes::from(vec![1; 60_000]), false);
        pair.shuttle();
        assert_eq!(head(&mut client), Ok(200));
        drop(client);
        pair.shuttle();
        assert_eq!(server.poll_closed(&mut cx()), Poll::Ready(DownstreamError::Reset));
    }
}

#[test]
fn an_extended_connect_reads_as_an_upgrade() {
    let pair = Pair::new(settings(), Http2Settings { allow_connect: true, ..settings() });
    let mut map = request();
    map.append(b"upgrade", b"websocket");
    let mut client = H2Client::open(&pair.client, &map, true, pair.now).expect("a stream");
    pair.shuttle();
    let accepted = pair.server.borrow_mut().accept().expect("a request");
    let (mut server, head) = H2Server::new(&pair.server, accepted);
    assert_eq!((head.method(), head.find("upgrade")), (&b"GET"[..], Some(&b"websocket"[..])));
    assert!(!server.request_complete(), "the tunnel is open");
    server.send_head(&message(&[(":status", "101")]), false);
    pair.shuttle();
    let mut response = HeaderMap::new();
    let answer = client.poll_head(&mut cx(), &mut response);
    assert!(matches!(answer, Poll::Ready(Ok(Answer::Final { end: false }))));
    assert_eq!(response.status(), 101);
}

#[test]
fn interim_answers_come_before_the_final_one() {
    let pair = Pair::new(settings(), settings());
    let mut client = pair.open(true);
    let mut server = pair.accept();
    server.send_informational(&message(&[(":status", "103"), ("link", "</a>")]));
    respond(&mut server, true);
    pair.shuttle();
    assert_eq!((head(&mut client), head(&mut client)), (Ok(103), Ok(200)));
}

#[test]
fn an_answer_to_head_has_a_length_and_no_body() {
    let pair = Pair::new(settings(), settings());
    let map = message(&[(":method", "HEAD"), (":scheme", "http"), (":path", "/"), (":authority", "h")]);
    let mut client = H2Client::open(&pair.client, &map, true, pair.now).expect("a stream");
    let mut server = pair.accept();
    server.send_head(&message(&[(":status", "200"), ("content-length", "7")]), true);
    pair.shuttle();
    assert_eq!(head(&mut client), Ok(200));
    let mut other = pair.open(true);
    let mut server = pair.accept();
    server.send_head(&message(&[(":status", "200"), ("content-length", "7")]), true);
    pair.shuttle();
    assert_eq!(head(&mut other), Err(ResetReason::ProtocolError));
}

#[test]
fn a_peer_that_answers_no_ping_is_gone() {
    let second = Duration::from_secs(1);
    let keepalive =
        KeepaliveSettings { interval: Some(second), timeout: second, jitter: 0.0, idle_interval: None };
    let mut pair = Pair::new(Http2Settings { keepalive: Some(keepalive), ..settings() }, settings());
    let due = pair.client.borrow().keepalive_deadline().expect("a ping is due");
    assert!(pair.client.borrow_mut().keep_alive(due));
    pair.now = due;
    pair.shuttle();
    let next = pair.client.borrow().keepalive_deadline().expect("the next one");
    assert_eq!(next, due + second, "the ping was answered");
    assert!(pair.client.borrow_mut().keep_alive(next));
    assert!(!pair.client.borrow_mut().keep_alive(next + second));
}

#[test]
fn resets_without_end_end_the_connection() {
    let pair = Pair::new(settings(), settings());
    for number in 0..250 {
        assert!(!pair.server.borrow().is_finished(), "{number}");
        let client = pair.open(true);
        let server = pair.accept();
        drop(client);
        pair.shuttle();
        drop(server);
    }
    assert!(pair.server.borrow().is_rapidly_reset());
    assert!(pair.client.borrow().is_finished() || !pair.client.borrow().takes_streams());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_byte_arrives_in_order(
        window in 65_535u32..200_000,
        pieces in proptest::collection::vec((0usize..3, 0usize..70_000, 0usize..4), 1..40),
    ) {
        let client = Http2Settings { stream_window: window, connection_window: window + 5_000, ..settings() };
        let pair = Pair::new(client, settings());
        let mut clients: Vec<H2Client> = (0..3).map(|_| pair.open(true)).collect();
        let mut servers: Vec<H2Server> = (0..3).map(|_| pair.accept()).collect();
        let mut sent = [0usize; 3];
        let mut got = [0usize; 3];
        let check = |client: &mut H2Client, got: &mut usize| {
            let mut map = HeaderMap::new();
            let _ = client.poll_head(&mut cx(), &mut map);
            let (bytes, end) = read(client);
            for byte in bytes {
                assert_eq!(byte, (*got % 251) as u8);
                *got += 1;
            }
            end
        };
        for server in &mut servers {
            respond(server, false);
        }
        for (stream, length, reads) in pieces {
            if servers[stream].poll_room(&mut cx()).is_ready() {
                let bytes: Vec<u8> = (sent[stream]..sent[stream] + length).map(|at| (at % 251) as u8).collect();
                servers[stream].send_data(bytes.into(), false);
                sent[stream] += length;
            }
            pair.shuttle();
            if let Some(client) = clients.get_mut(reads) {
                check(client, &mut got[reads]);
            }
        }
        for server in &mut servers {
            server.send_data(Bytes::new(), true);
        }
        let mut ended = [false; 3];
        for _ in 0..100 {
            pair.shuttle();
            for stream in 0..3 {
                ended[stream] = ended[stream] || check(&mut clients[stream], &mut got[stream]);
            }
        }
        assert_eq!((got, ended), (sent, [true; 3]));
    }
}

//! The back end: HTTP/1.1, HTTP/2 without TLS and an echo, on one thread of its own.
//!
//! | request               | answer                                                        |
//! |-----------------------|---------------------------------------------------------------|
//! | HTTP/1 `GET /b/N`     | N bytes of the pattern, with content-length                   |
//! | HTTP/1 `GET /b/N?c`   | the same in chunks of 1000 bytes                              |
//! | HTTP/1 `GET /heads`   | the request's own head, as it was received                    |
//! | HTTP/1, other methods | the request's body, sent back                                 |
//! | HTTP/2, no body       | 1 KiB of the pattern                                          |
//! | HTTP/2 with a body    | the body, piece by piece as it comes, then `grpc-status: 0`   |
//! | bytes (TCP)           | the same bytes                                                |
//!
//! It trusts its peer, the proxy under test: it is no server for other uses.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;

use crate::poll::Poller;
use crate::wire::http1::{self, Parsed};
use crate::wire::http2::{Block, End, Endpoint, Event};
use crate::wire::pattern;
use crate::wire::stream::Stream;

/// The body of HTTP/2 answers.
pub(crate) const BODY: usize = 1024;
/// Chunks of `?c` answers: small and odd, so that they straddle reads.
const CHUNK: usize = 1000;
/// How often the thread looks whether it should end.
const TICK: Duration = Duration::from_millis(50);

/// A back end that runs; it ends when this is dropped.
pub(crate) struct Backend {
    /// HTTP/1.1, on several ports: endpoints of one cluster.
    pub(crate) http1: Vec<u16>,
    /// HTTP/2 with prior knowledge.
    pub(crate) http2: u16,
    /// The echo.
    pub(crate) echo: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Http1,
    Http2,
    Echo,
}

impl Backend {
    /// Starts it on the cores of the calling thread.
    pub(crate) fn start(http1_ports: usize) -> Result<Self> {
        let mut kinds = vec![Speaks::Http1; http1_ports];
        kinds.extend([Speaks::Http2, Speaks::Echo]);
        let mut listeners = Vec::new();
        for speaks in kinds {
            let socket =
                rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)?;
            rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
            // More than any case opens at once.
            rustix::net::listen(&socket, 4096)?;
            let listener = TcpListener::from(socket);
            listener.set_nonblocking(true)?;
            listeners.push((speaks, listener));
        }
        let port = |listener: &(Speaks, TcpListener)| listener.1.local_addr().map(|address| address.port());
        let ports: Vec<u16> = listeners.iter().map(port).collect::<io::Result<_>>()?;
        let (http1, rest) = ports.split_at(http1_ports);
        let (http2, echo) = (rest[0], rest[1]);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("backend".to_owned()).spawn(move || {
            if let Err(error) = serve(&listeners, &stopped) {
                eprintln!("back end: {error}");
            }
        })?;
        Ok(Self { http1: http1.to_vec(), http2, echo, stop, thread: Some(thread) })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One connection from the proxy.
struct Peer {
    stream: Stream,
    protocol: Protocol,
    watches_writable: bool,
}

enum Protocol {
    Http1 {
        /// `100 Continue` was sent for the request at the start of the input.
        continued: bool,
    },
    Http2(Box<Endpoint>),
    Echo,
}

/// What does not change from connection to connection.
struct Answers {
    canned: HashMap<Vec<u8>, Rc<[u8]>>,
    head: Block,
    echo_head: Block,
    body: Vec<u8>,
}

fn serve(listeners: &[(Speaks, TcpListener)], stop: &AtomicBool) -> Result<()> {
    let mut poller = Poller::new()?;
    for (token, (_, listener)) in listeners.iter().enumerate() {
        poller.add(listener, token)?;
    }
    let length = BODY.to_string();
    let mut answers = Answers {
        canned: HashMap::new(),
        // :status 200 is entry 8.
        head: Block::new(
            &[8],
            &[
                ("content-type", "text/plain"),
                ("content-length", &length),
                ("date", "Sat, 21 Nov 2026 00:00:00 GMT"),
            ],
        ),
        echo_head: Block::unindexed(&[8], &[("content-type", "application/grpc")]),
        body: pattern(BODY),
    };
    let mut peers: Vec<Option<Peer>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut ready = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        poller.wait(TICK, &mut ready)?;
        for token in ready.drain(..) {
            if let Some((speaks, listener)) = listeners.get(token) {
                while let Some(peer) = accept(*speaks, listener)? {
                    let slot = free.pop().unwrap_or_else(|| {
                        peers.push(None);
                        peers.len() - 1
                    });
                    poller.add(&peer.stream.socket, listeners.len() + slot)?;
                    peers[slot] = Some(peer);
                }
                continue;
            }
            let slot = token - listeners.len();
            let Some(Some(peer)) = peers.get_mut(slot) else { continue };
            // A connection that fails is a connection that ends: the load generator sees it.
            if !peer.attend(&mut answers, &poller, token).unwrap_or(false) {
                peers[slot] = None;
                free.push(slot);
            }
        }
    }
    Ok(())
}

fn accept(speaks: Speaks, listener: &TcpListener) -> Result<Option<Peer>> {
    let socket = match listener.accept() {
        Ok((socket, _)) => socket,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut stream = Stream::new(socket, None)?;
    let protocol = match speaks {
        Speaks::Http1 => Protocol::Http1 { continued: false },
        Speaks::Http2 => Protocol::Http2(Box::new(Endpoint::new(true, &mut stream.output))),
        Speaks::Echo => Protocol::Echo,
    };
    Ok(Some(Peer { stream, protocol, watches_writable: false }))
}

impl Peer {
    /// Reads what came and answers it. Whether the connection lives on.
    fn attend(&mut self, answers: &mut Answers, poller: &Poller, token: usize) -> Result<bool> {
        let open = self.stream.fill()? != Some(0);
        match &mut self.protocol {
            Protocol::Http1 { continued } => while http1(&mut self.stream, answers, continued)? {},
            Protocol::Http2(endpoint) => http2(endpoint, &mut self.stream, answers)?,
            Protocol::Echo => {
                let Stream { input, output, .. } = &mut self.stream;
                output.append(input);
            }
        }
        let waits = self.stream.flush()?;
        if waits != self.watches_writable {
            poller.watch_writable(&self.stream.socket, token, waits)?;
            self.watches_writable = waits;
        }
        Ok(open)
    }
}

/// Answers the request at the start of the input, if it is complete.
fn http1(stream: &mut Stream, answers: &mut Answers, continued: &mut bool) -> Result<bool> {
    let Some(end) = http1::head_end(&stream.input) else { return Ok(false) };
    let head = stream.input.get(..end).unwrap_or_default();
    let mut words = head.split(|byte| *byte == b' ');
    let is_get = words.next() == Some(b"GET");
    let path = words.next().unwrap_or(b"/");
    if is_get && path != b"/heads" {
        if !answers.canned.contains_key(path) {
            let answer = canned(&String::from_utf8_lossy(path)).into();
            answers.canned.insert(path.to_vec(), answer);
        }
        if let Some(answer) = answers.canned.get(path) {
            stream.output.extend_from_slice(answer);
        }
        stream.input.drain(..end);
        return Ok(true);
    }
    if is_get {
        let body = head.to_vec();
        stream.output.extend_from_slice(&answer("", &body));
        stream.input.drain(..end);
        return Ok(true);
    }
    match http1::parse(&stream.input) {
        Parsed::Complete { size, body, .. } => {
            stream.output.extend_from_slice(&answer("", &body));
            stream.input.drain(..size);
            *continued = false;
            Ok(true)
        }
        Parsed::Partial => {
            if !*continued && http1::field(head, "expect").is_some() {
                stream.output.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                *continued = true;
            }
            Ok(false)
        }
        Parsed::Invalid => anyhow::bail!("a malformed request body"),
    }
}

/// The answer to `GET path`, made once and sent again as it is.
fn canned(path: &str) -> Vec<u8> {
    let size =
        path.strip_prefix("/b/").and_then(|rest| rest.split('?').next()).and_then(|size| size.parse().ok());
    let body = pattern(size.unwrap_or(BODY));
    let date = "date: Sat, 21 Nov 2026 00:00:00 GMT\r\n";
    if !path.ends_with("?c") {
        return answer(&format!("content-type: text/plain\r\n{date}"), &body);
    }
    let mut bytes =
        b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for chunk in body.chunks(CHUNK) {
        bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

/// A 200 with these header lines, content-length and body.
fn answer(lines: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut bytes = format!("HTTP/1.1 200 OK\r\n{lines}content-length: {length}\r\n\r\n").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

fn http2(endpoint: &mut Endpoint, stream: &mut Stream, answers: &Answers) -> Result<()> {
    let Stream { input, output, .. } = stream;
    let taken = endpoint.receive(input, output, |endpoint, out, event| match event {
        Event::Head { stream, end: true, .. } => {
            endpoint.head(out, stream, &answers.head, false);
            endpoint.data(out, stream, &answers.body, Some(End::Data));
        }
        Event::Head { stream, end: false, .. } => endpoint.head(out, stream, &answers.echo_head, false),
        Event::Data { stream, data, end } => endpoint.data(out, stream, data, end.then_some(End::Trailers)),
        Event::Reset { .. } | Event::GoAway => {}
    });
    let taken = taken.map_err(anyhow::Error::msg)?;
    input.drain(..taken);
    Ok(())
}

//! The load generator: one thread, many connections, each with one or more *slots* that carry one
//! request at a time (HTTP/2: one a stream).
//!
//! Closed loop: a slot asks again as soon as it has its answer. Open loop (`rate`): requests are
//! due at fixed times whatever the proxy does, and latency counts from when one was due, so the
//! time that it waited for a free slot counts too (no coordinated omission).

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustls::ClientConfig;

use crate::histogram::Histogram;
use crate::poll::Poller;
use crate::wire::http1;
use crate::wire::http2::{Block, Endpoint, Event};
use crate::wire::stream::Stream;
use crate::wire::tls;

/// Longest wait for an event, so that the end is noticed.
const MAX_WAIT: Duration = Duration::from_millis(20);

/// How much longer a run goes on that has no answer at all yet (debug builds on a busy machine).
const MAX_EXTRA: Duration = Duration::from_secs(10);

/// What to ask, and how.
#[derive(Clone)]
pub(crate) struct Plan {
    /// The proxy.
    pub(crate) target: SocketAddr,
    /// What is spoken.
    pub(crate) speaks: Speaks,
    /// Connections.
    pub(crate) connections: usize,
    /// Slots of each connection (HTTP/2 streams).
    pub(crate) slots: usize,
    /// With TLS.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// Every request on a new connection.
    pub(crate) fresh: bool,
    /// Bytes of each answer's body.
    pub(crate) body: usize,
}

/// What is spoken, with what is sent.
#[derive(Clone)]
pub(crate) enum Speaks {
    /// Requests in HTTP/1.1, in turn.
    Http1(Vec<Vec<u8>>),
    /// This header block.
    Http2(Block),
    /// Streams that stay open; each message comes back before the next one is sent.
    Grpc {
        /// Opens a stream.
        open: Block,
        /// A message with its prefix.
        message: Vec<u8>,
    },
    /// Bytes that come back.
    Echo(Vec<u8>),
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Latency of each request that was answered.
    pub(crate) latency: Histogram,
    /// Wrong answers and lost connections.
    pub(crate) errors: u64,
    /// What the first of them was.
    pub(crate) problem: Option<String>,
    /// Bytes of bodies.
    pub(crate) bytes: u64,
    /// Time that it took.
    pub(crate) elapsed: Duration,
}

impl Outcome {
    fn error(&mut self, problem: impl Into<String>) {
        self.errors += 1;
        self.problem.get_or_insert_with(|| problem.into());
    }
}

/// One connection to the proxy.
struct Client {
    stream: Stream,
    protocol: Protocol,
    /// When the request of each slot was due; `None`: it has none.
    due: Vec<Option<Instant>>,
    watches_writable: bool,
    /// Something was written that is not flushed.
    dirty: bool,
}

enum Protocol {
    Http1 { head: Option<(bool, usize, usize)> },
    Http2(Box<Http2>),
    Echo { received: usize },
}

struct Http2 {
    endpoint: Endpoint,
    /// Slots of the streams from `first` on: (slot, status was 200, bytes so far).
    streams: VecDeque<Option<(usize, bool, usize)>>,
    first: u32,
    /// gRPC: the stream of each slot.
    open: Vec<u32>,
}

/// A run of load.
pub(crate) struct Load {
    plan: Plan,
    poller: Poller,
    clients: Vec<Client>,
    /// Free slots, in open loop: (connection, slot).
    idle: VecDeque<(usize, usize)>,
    /// Due times of requests that wait for a slot.
    backlog: VecDeque<Instant>,
    next_request: usize,
    outcome: Outcome,
    done: Vec<(usize, Result<(), &'static str>)>,
}

impl Load {
    /// Opens all connections. TLS handshakes run with the first requests.
    pub(crate) fn open(plan: Plan) -> Result<Self> {
        let mut load = Self {
            poller: Poller::new()?,
            clients: Vec::with_capacity(plan.connections),
            idle: VecDeque::new(),
            backlog: VecDeque::new(),
            next_request: 0,
            outcome: Outcome::default(),
            done: Vec::new(),
            plan,
        };
        for index in 0..load.plan.connections {
            let client = load.connect(index)?;
            load.clients.push(client);
        }
        Ok(load)
    }

    fn connect(&self, index: usize) -> Result<Client> {
        let socket = TcpStream::connect(self.plan.target).context("connecting to the proxy")?;
        if self.plan.fresh {
            // Closing must not leave thousands of sockets in TIME_WAIT.
            rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
        }
        let session = self.plan.tls.as_ref().map(tls::session).transpose()?;
        let mut stream = Stream::new(socket, session)?;
        self.poller.add(&stream.socket, index)?;
        let protocol = match &self.plan.speaks {
            Speaks::Http1(_) => Protocol::Http1 { head: None },
            Speaks::Echo(_) => Protocol::Echo { received: 0 },
            Speaks::Http2(_) => Protocol::Http2(Box::new(Http2::new(&mut stream.output))),
            Speaks::Grpc { open, .. } => {
                let mut http2 = Http2::new(&mut stream.output);
                for slot in 0..self.plan.slots {
                    let id = http2.endpoint.open(&mut stream.output, open, false);
                    http2.open.push(id);
                    http2.streams.push_back(Some((slot, false, 0)));
                }
                Protocol::Http2(Box::new(http2))
            }
        };
        let mut client = Client {
            stream,
            protocol,
            due: vec![None; self.plan.slots],
            watches_writable: false,
            dirty: true,
        };
        client.flush(&self.poller, index)?;
        Ok(client)
    }

    /// Asks for `duration`, or until there is an answer; requests under way at the end are not counted. `rate`: requests a
    /// second; `None` for as many as possible.
    pub(crate) fn run(mut self, duration: Duration, rate: Option<f64>) -> Result<(Outcome, Self)> {
        let start = Instant::now();
        let end = start + duration;
        self.outcome = Outcome::default();
        self.idle.clear();
        self.backlog.clear();
        let mut scheduled: u64 = 0;
        // Slots that are still busy from an earlier run come back as they are answered.
        for index in 0..self.clients.len() {
            for slot in 0..self.plan.slots {
                if self.clients[index].due[slot].is_none() {
                    self.next(index, slot, rate, Instant::now());
                }
            }
            self.clients[index].flush(&self.poller, index)?;
        }
        let mut ready = Vec::new();
        loop {
            let now = Instant::now();
            let nothing_yet = self.outcome.latency.total() == 0 && self.outcome.errors == 0;
            if now >= end && (!nothing_yet || now >= end + MAX_EXTRA) {
                break;
            }
            let wait = match rate {
                Some(rate) => self.send_due(start, rate, now, &mut scheduled)?,
                None => MAX_WAIT,
            };
            self.poller.wait(wait, &mut ready)?;
            for index in ready.drain(..) {
                self.attend(index, rate)?;
            }
        }
        self.outcome.elapsed = start.elapsed();
        let outcome = std::mem::take(&mut self.outcome);
        Ok((outcome, self))
    }

    /// Sends what has become due, as far as slots are free. Gives the time until the next is due.
    fn send_due(&mut self, start: Instant, rate: f64, now: Instant, scheduled: &mut u64) -> Result<Duration> {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let wait = loop {
            let due = start + Duration::from_secs_f64(*scheduled as f64 / rate);
            if due > now {
                break due - now;
            }
            *scheduled += 1;
            self.backlog.push_back(due);
        };
        while !self.backlog.is_empty() {
            let Some((index, slot)) = self.idle.pop_front() else { break };
            self.next(index, slot, Some(rate), now);
            self.clients[index].flush(&self.poller, index)?;
        }
        Ok(wait.min(MAX_WAIT))
    }

    /// Gives a slot its next request, or leaves it idle.
    fn next(&mut self, index: usize, slot: usize, rate: Option<f64>, now: Instant) {
        let due = if rate.is_some() { self.backlog.pop_front() } else { Some(now) };
        let Some(due) = due else {
            self.idle.push_back((index, slot));
            return;
        };
        let client = &mut self.clients[index];
        client.due[slot] = Some(due);
        client.dirty = true;
        let output = &mut client.stream.output;
        match (&self.plan.speaks, &mut client.protocol) {
            (Speaks::Http1(requests), _) => {
                let request = requests.get(self.next_request % requests.len());
                self.next_request = self.next_request.wrapping_add(1);
                output.extend_from_slice(request.map(Vec::as_slice).unwrap_or_default());
            }
            (Speaks::Http2(block), Protocol::Http2(http2)) => {
                http2.endpoint.open(output, block, true);
                http2.streams.push_back(Some((slot, false, 0)));
            }
            (Speaks::Grpc { message, .. }, Protocol::Http2(http2)) => {
                let stream = http2.open[slot];
                http2.endpoint.data(output, stream, message, None);
            }
            (Speaks::Echo(bytes), Protocol::Echo { received }) => {
                *received = 0;
                output.extend_from_slice(bytes);
            }
            _ => {}
        }
    }

    fn attend(&mut self, index: usize, rate: Option<f64>) -> Result<()> {
        let mut done = std::mem::take(&mut self.done);
        let client = &mut self.clients[index];
        let closed = match client.stream.fill() {
            Ok(Some(0)) => Some("the proxy closed the connection".to_owned()),
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        };
        let grpc = matches!(self.plan.speaks, Speaks::Grpc { .. });
        let broken = client.receive(self.plan.body, grpc, &mut done, &mut self.outcome.bytes).err();
        let mut renew = false;
        let now = Instant::now();
        for (slot, answer) in done.drain(..) {
            let Some(due) = self.clients[index].due.get_mut(slot).and_then(Option::take) else { continue };
            match answer {
                Ok(()) => self.outcome.latency.record(now.duration_since(due)),
                Err(problem) => self.outcome.error(problem),
            }
            if self.plan.fresh {
                renew = true;
            } else {
                self.next(index, slot, rate, now);
            }
        }
        self.done = done;
        if renew {
            self.clients[index] = self.connect(index)?;
            self.next(index, 0, rate, Instant::now());
        } else if let Some(problem) = broken.or(closed) {
            // Every request that was under way is lost.
            let lost = self.clients[index].due.iter().filter(|due| due.is_some()).count();
            for _ in 0..lost {
                self.outcome.error(problem.as_str());
            }
            self.clients[index] = self.connect(index)?;
            self.idle.retain(|(connection, _)| *connection != index);
            for slot in 0..self.plan.slots {
                self.next(index, slot, rate, Instant::now());
            }
        }
        self.clients[index].flush(&self.poller, index)
    }
}

impl Http2 {
    fn new(output: &mut Vec<u8>) -> Self {
        Self { endpoint: Endpoint::new(false, output), streams: VecDeque::new(), first: 1, open: Vec::new() }
    }
}

impl Client {
    fn flush(&mut self, poller: &Poller, token: usize) -> Result<()> {
        if !self.dirty && !self.watches_writable && self.stream.output.is_empty() {
            return Ok(());
        }
        self.dirty = false;
        // A failure shows when the answer is read.
        let waits = self.stream.flush().unwrap_or(false);
        if waits != self.watches_writable {
            poller.watch_writable(&self.stream.socket, token, waits)?;
            self.watches_writable = waits;
        }
        Ok(())
    }

    /// Reads the answers that are complete.
    fn receive(
        &mut self,
        body: usize,
        grpc: bool,
        done: &mut Vec<(usize, Result<(), &'static str>)>,
        bytes: &mut u64,
    ) -> Result<(), String> {
        let input = &mut self.stream.input;
        match &mut self.protocol {
            Protocol::Http1 { head } => {
                if head.is_none()
                    && let Some(end) = http1::head_end(input)
                {
                    let text = input.get(..end).unwrap_or_default();
                    *head = Some((
                        text.starts_with(b"HTTP/1.1 200 "),
                        http1::content_length(text).unwrap_or(0),
                        0,
                    ));
                    input.drain(..end);
                }
                let Some((ok, length, received)) = head else { return Ok(()) };
                *received += input.len();
                *bytes += input.len() as u64;
                input.clear();
                if received < length {
                    return Ok(());
                }
                let answer = match (*ok, *received == *length && *length == body) {
                    (false, _) => Err("the status is not 200"),
                    (true, false) => Err("the length of the body is wrong"),
                    (true, true) => Ok(()),
                };
                *head = None;
                done.push((0, answer));
            }
            Protocol::Echo { received } => {
                *received += input.len();
                *bytes += input.len() as u64;
                input.clear();
                if *received >= body {
                    done.push((0, if *received == body { Ok(()) } else { Err("too many bytes come back") }));
                }
            }
            Protocol::Http2(http2) => {
                self.dirty = true;
                let Http2 { endpoint, streams, first, .. } = &mut **http2;
                let mut goaway = false;
                let taken = endpoint.receive(input, &mut self.stream.output, |_, _, event| {
                    let (stream, ended) = match event {
                        Event::Head { stream, ok, end } => {
                            if let Some((_, status, _)) = find(streams, *first, stream) {
                                // Trailers do not change it.
                                *status |= ok;
                            }
                            (stream, end.then_some(!grpc))
                        }
                        Event::Data { stream, data, end } => {
                            *bytes += data.len() as u64;
                            if let Some((slot, ok, received)) = find(streams, *first, stream) {
                                *received += data.len();
                                while grpc && *received >= body {
                                    *received -= body;
                                    done.push((
                                        *slot,
                                        if *ok { Ok(()) } else { Err("the status is not 200") },
                                    ));
                                }
                            }
                            (stream, end.then_some(!grpc))
                        }
                        Event::Reset { stream } => (stream, Some(false)),
                        Event::GoAway => {
                            goaway = true;
                            return;
                        }
                    };
                    let Some(complete) = ended else { return };
                    let at = usize::try_from(stream.saturating_sub(*first) / 2).unwrap_or(usize::MAX);
                    if let Some((slot, ok, received)) = streams.get_mut(at).and_then(Option::take) {
                        done.push((
                            slot,
                            match (complete, ok, received == body) {
                                (false, ..) => Err("the stream was reset or ended"),
                                (true, false, _) => Err("the status is not 200"),
                                (true, true, false) => Err("the length of the body is wrong"),
                                (true, true, true) => Ok(()),
                            },
                        ));
                    }
                    while let Some(None) = streams.front() {
                        streams.pop_front();
                        *first += 2;
                    }
                })?;
                input.drain(..taken);
                if goaway {
                    return Err("the proxy sent GOAWAY".to_owned());
                }
            }
        }
        Ok(())
    }
}

fn find(
    streams: &mut VecDeque<Option<(usize, bool, usize)>>,
    first: u32,
    stream: u32,
) -> Option<&mut (usize, bool, usize)> {
    streams.get_mut(usize::try_from(stream.checked_sub(first)? / 2).ok()?)?.as_mut()
}

//! Does a proxy answer rightly? Asked before it is timed; a wrong answer refuses it.
//!
//! Every body is compared byte by byte with what the back end is known to send, or with what was
//! sent to it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustls::StreamOwned;

use crate::backend::BODY;
use crate::cases::{Case, Size, Traffic};
use crate::config;
use crate::peers::Running;
use crate::wire::http1::{self, Parsed};
use crate::wire::http2::{Block, End, Endpoint, Event};
use crate::wire::pattern;
use crate::wire::tls::{self, ClientOptions};

const PATIENCE: Duration = Duration::from_secs(20);

/// Sizes around those of usual buffers, in bytes.
const SIZES: &[usize] = &[0, 1, 1024, 10_240, 65_535, 65_536, 1_048_576, 5_000_000];
const CHUNKED: &[usize] = &[0, 1024, 1_000_000];
const POSTS: &[usize] = &[300, 3_000_000];

trait Wire: Read + Write {}
impl<T: Read + Write> Wire for T {}

/// One connection to the proxy, blocking.
struct Client {
    stream: Box<dyn Wire>,
    input: Vec<u8>,
}

/// An answer: its head and its body.
struct Answer {
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Client {
    fn open(proxy: &Running, tls: Option<(&Path, ClientOptions)>) -> Result<Self> {
        let socket = TcpStream::connect(proxy.address)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_nodelay(true)?;
        let stream: Box<dyn Wire> = match tls {
            None => Box::new(socket),
            Some((folder, options)) => match tls::session(&tls::client(folder, options)?)? {
                rustls::Connection::Client(session) => Box::new(StreamOwned::new(session, socket)),
                rustls::Connection::Server(_) => bail!("a client's session"),
            },
        };
        Ok(Self { stream, input: Vec::new() })
    }

    fn fill(&mut self) -> Result<()> {
        let mut buffer = [0; 64 * 1024];
        let count = self.stream.read(&mut buffer).context("no answer")?;
        ensure!(count > 0, "the connection is closed before the answer");
        self.input.extend_from_slice(buffer.get(..count).unwrap_or_default());
        Ok(())
    }

    fn answer(&mut self) -> Result<Answer> {
        loop {
            // Parsing a large body anew with each piece would take long: only when it may be there.
            let enough = http1::head_end(&self.input).is_some_and(|end| {
                let length = self.input.get(..end).and_then(http1::content_length);
                length.is_none_or(|length| self.input.len() >= end + length)
            });
            if enough {
                match http1::parse(&self.input) {
                    Parsed::Complete { size, head, body } => {
                        let head = self.input.get(..head).unwrap_or_default().to_vec();
                        self.input.drain(..size);
                        if !head.starts_with(b"HTTP/1.1 100 ") {
                            return Ok(Answer { head, body });
                        }
                        continue;
                    }
                    Parsed::Invalid => bail!("the answer's framing is wrong"),
                    Parsed::Partial => {}
                }
            }
            self.fill()?;
        }
    }

    fn get(&mut self, host: &str, path: &str) -> Result<Answer> {
        self.stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nx-probe: kept\r\n\r\n").as_bytes())?;
        self.stream.flush()?;
        self.answer().with_context(|| format!("GET {path} for {host}"))
    }
}

impl Answer {
    fn status(&self) -> String {
        String::from_utf8_lossy(self.head.get(9..12).unwrap_or_default()).into_owned()
    }

    fn expect(&self, what: &str, body: &[u8]) -> Result<()> {
        ensure!(self.head.starts_with(b"HTTP/1.1 200 "), "{what}: status {}", self.status());
        same(what, &self.body, body)
    }
}

fn same(what: &str, body: &[u8], expected: &[u8]) -> Result<()> {
    if body == expected {
        return Ok(());
    }
    ensure!(body.len() == expected.len(), "{what}: {} bytes instead of {}", body.len(), expected.len());
    let first = body.iter().zip(expected).position(|(got, wanted)| got != wanted).unwrap_or(0);
    bail!("{what}: the body differs from byte {first} on");
}

/// How clients of a case speak TLS.
pub(crate) fn tls_options(case: &Case, resume: bool) -> Option<ClientOptions> {
    let alpn = if case.traffic == Traffic::Http1 { "http/1.1" } else { "h2" };
    case.config.mtls.then_some(ClientOptions { certificate: true, alpn, resume })
}

/// Fails at the first wrong answer.
pub(crate) fn check(case: &Case, size: usize, proxy: &Running, folder: &Path) -> Result<()> {
    if let Some(options) = tls_options(case, true) {
        let bare = ClientOptions { certificate: false, ..options };
        // TLS 1.3 tells only behind the handshake.
        let refused = Client::open(proxy, Some((folder, bare)))
            .and_then(|mut client| client.get("localhost", "/b/1"))
            .is_err();
        ensure!(refused, "serves a client that has no certificate");
    }
    let tls = tls_options(case, true).map(|options| (folder, options));
    match case.traffic {
        Traffic::Tcp => echo(proxy),
        Traffic::Http2 | Traffic::Grpc => http2(Client::open(proxy, tls)?, case.traffic),
        Traffic::Http1 if case.size == Size::Clusters || case.size == Size::Hosts => {
            routes(case, size, &mut Client::open(proxy, tls)?)
        }
        Traffic::Http1 => http1(&mut Client::open(proxy, tls)?),
    }
}

fn http1(client: &mut Client) -> Result<()> {
    let hosts = [
        "svc-0.default.svc.cluster.local",
        "SVC-49.default.svc.cluster.local",
        "svc-7.default.svc.cluster.local",
        "unknown.example",
    ];
    for size in SIZES {
        let path = format!("/b/{size}");
        client.get(hosts[0], &path)?.expect(&path, &pattern(*size))?;
    }
    for size in CHUNKED {
        let path = format!("/b/{size}?c");
        client.get(hosts[0], &path)?.expect(&path, &pattern(*size))?;
    }
    for host in hosts {
        client.get(host, "/b/64")?.expect(&format!("host {host}"), &pattern(64))?;
    }
    for size in POSTS {
        posts(client, &pattern(*size))?;
    }
    let three: String = [5, 6, 7].map(|size| format!("GET /b/{size} HTTP/1.1\r\nhost: a\r\n\r\n")).concat();
    client.stream.write_all(three.as_bytes())?;
    client.stream.flush()?;
    for size in [5, 6, 7] {
        client.answer()?.expect("pipelined", &pattern(size))?;
    }
    headers(client)
}

/// By length, in chunks, and after `100 Continue`.
fn posts(client: &mut Client, body: &[u8]) -> Result<()> {
    let length = body.len();
    let head = |framing: &str| format!("POST /echo HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n");
    client.stream.write_all(head(&format!("content-length: {length}")).as_bytes())?;
    client.stream.write_all(body)?;
    client.stream.flush()?;
    client.answer()?.expect(&format!("POST of {length} bytes"), body)?;
    client.stream.write_all(head("transfer-encoding: chunked").as_bytes())?;
    for chunk in body.chunks(7000) {
        client.stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes())?;
        client.stream.write_all(chunk)?;
        client.stream.write_all(b"\r\n")?;
    }
    client.stream.write_all(b"0\r\n\r\n")?;
    client.stream.flush()?;
    client.answer()?.expect(&format!("POST of {length} bytes in chunks"), body)?;
    client.stream.write_all(head(&format!("content-length: {length}\r\nexpect: 100-continue")).as_bytes())?;
    client.stream.flush()?;
    client.fill().context("POST that expects 100")?;
    ensure!(client.input.starts_with(b"HTTP/1.1 100 "), "POST that expects 100: nothing says to continue");
    client.stream.write_all(body)?;
    client.stream.flush()?;
    client.answer()?.expect(&format!("POST of {length} bytes after 100"), body)
}

/// What Envoy adds for the back end and for the client.
fn headers(client: &mut Client) -> Result<()> {
    let answer = client.get("a", "/heads")?;
    let seen = &answer.body;
    ensure!(http1::field(seen, "x-probe") == Some(b"kept"), "a request header did not reach the back end");
    for name in ["x-forwarded-for", "x-forwarded-proto", "x-request-id", "x-envoy-expected-rq-timeout-ms"] {
        ensure!(http1::field(seen, name).is_some(), "the back end gets no {name}");
    }
    for name in ["date", "server", "x-envoy-upstream-service-time"] {
        ensure!(http1::field(&answer.head, name).is_some(), "the client gets no {name}");
    }
    Ok(())
}

/// The first, a middle and the last virtual host by all their domains; 404 for others.
fn routes(case: &Case, size: usize, client: &mut Client) -> Result<()> {
    for index in [0, size / 2, size - 1] {
        if case.size == Size::Clusters {
            for domain in config::domains(index) {
                client.get(&domain, "/b/64")?.expect(&domain, &pattern(64))?;
            }
        } else {
            let host = &config::hosts(case, size)[index];
            client.get(host, "/b/64")?.expect(host, &pattern(64))?;
        }
    }
    if case.size == Size::Clusters {
        for host in ["unknown.example", &config::domains(size)[0]] {
            let status = client.get(host, "/b/64")?.status();
            ensure!(status == "404", "host {host}: status {status}, not 404");
        }
    }
    Ok(())
}

/// What comes back is what was sent.
fn echo(proxy: &Running) -> Result<()> {
    for size in [1, 1024, 65_536, 3_000_000] {
        let socket = TcpStream::connect(proxy.address)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let sent = pattern(size);
        let mut received = vec![0; size];
        std::thread::scope(|scope| -> Result<()> {
            let writing = scope.spawn(|| (&socket).write_all(&sent));
            (&socket).read_exact(&mut received)?;
            writing.join().map_err(|_| anyhow::anyhow!("writing failed"))??;
            Ok(())
        })
        .with_context(|| format!("echo of {size} bytes"))?;
        same(&format!("echo of {size} bytes"), &received, &sent)?;
    }
    Ok(())
}

/// The header block of requests.
pub(crate) fn request_block(host: &str, grpc: bool) -> Block {
    if grpc {
        // :method POST, :scheme http
        return Block::new(
            &[3, 6],
            &[
                (":path", "/bench.Echo/Stream"),
                (":authority", host),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
                ("user-agent", "bench/1.0"),
            ],
        );
    }
    // :method GET, :scheme http
    Block::new(
        &[2, 6],
        &[
            (":path", "/b/1024"),
            (":authority", host),
            ("user-agent", "bench/1.0"),
            ("accept", "*/*"),
            ("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124"),
        ],
    )
}

/// Whole bodies and streams, one after the other and at once.
fn http2(mut client: Client, traffic: Traffic) -> Result<()> {
    let mut out = Vec::new();
    let mut endpoint = Endpoint::new(false, &mut out);
    let get = request_block("svc-7.default.svc.cluster.local", false);
    let wanted = pattern(BODY);
    if traffic == Traffic::Http2 {
        for round in [1, 1, 100] {
            let streams: Vec<u32> = (0..round).map(|_| endpoint.open(&mut out, &get, true)).collect();
            for body in exchange(&mut client, &mut endpoint, &mut out, &streams)? {
                same("GET over HTTP/2", &body, &wanted)?;
            }
        }
    }
    let post = Block::unindexed(
        &[3, 6],
        &[
            (":path", "/bench.Echo/Stream"),
            (":authority", "a"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ],
    );
    for size in [5, 300, 100_000, 3_000_000] {
        let sent = pattern(size);
        let stream = endpoint.open(&mut out, &post, false);
        endpoint.data(&mut out, stream, &sent, Some(End::Data));
        for body in exchange(&mut client, &mut endpoint, &mut out, &[stream])? {
            same(&format!("POST of {size} bytes over HTTP/2"), &body, &sent)?;
        }
    }
    Ok(())
}

/// Waits for the answers to these streams; gives their bodies.
fn exchange(
    client: &mut Client,
    endpoint: &mut Endpoint,
    out: &mut Vec<u8>,
    streams: &[u32],
) -> Result<Vec<Vec<u8>>> {
    let mut bodies = vec![Vec::new(); streams.len()];
    let mut fine = vec![false; streams.len()];
    let mut open = streams.len();
    while open > 0 {
        client.stream.write_all(out)?;
        client.stream.flush()?;
        out.clear();
        client.fill().context("HTTP/2")?;
        let mut problem = None;
        let place = |stream: u32| streams.iter().position(|id| *id == stream);
        let taken = endpoint.receive(&client.input, out, |_, _, event| match event {
            Event::Head { stream, ok, end } => {
                if let Some(at) = place(stream) {
                    fine[at] |= ok;
                    open -= usize::from(end);
                }
            }
            Event::Data { stream, data, end } => {
                if let Some(at) = place(stream) {
                    bodies[at].extend_from_slice(data);
                    open -= usize::from(end);
                }
            }
            Event::Reset { stream } => problem = Some(format!("stream {stream} was reset")),
            Event::GoAway => problem = Some("GOAWAY".to_owned()),
        });
        client.input.drain(..taken.map_err(anyhow::Error::msg)?);
        if let Some(problem) = problem {
            bail!("HTTP/2: {problem}");
        }
    }
    ensure!(fine.iter().all(|fine| *fine), "HTTP/2: the status is not 200");
    Ok(bodies)
}

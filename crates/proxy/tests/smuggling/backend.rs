//! Servers that read what a proxy forwards: a strict one, and one as lax as any that is found in
//! the field. Both write down every request that they read.

use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// The header that only the proxy adds.
const MARK: &str = "x-forwarded-by-proxy: yes";

/// A request as a server read it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The proxy forwarded it as a request.
    pub(crate) marked: bool,
    /// Requests that are named in its head and in its body, as far as that is read.
    pub(crate) ids: Vec<String>,
    /// What a strict reader finds wrong with it.
    pub(crate) malformed: Option<&'static str>,
    /// For people.
    pub(crate) text: String,
}

/// A server that runs.
pub(crate) struct Backend {
    pub(crate) port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Backend {
    pub(crate) async fn start(strict: bool) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let reader = Reader { stream, input: Vec::new(), strict };
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let _ = reader.serve(&shared).await;
                });
            }
        });
        Self { port, seen }
    }

    /// What was read since the last time.
    pub(crate) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Reader {
    stream: TcpStream,
    input: Vec<u8>,
    strict: bool,
}

/// How a body is framed.
#[derive(Clone, Copy, Debug)]
enum Framing {
    Length(usize),
    Chunked,
}

impl Reader {
    async fn serve(mut self, seen: &Mutex<Vec<Seen>>) -> io::Result<()> {
        loop {
            let head = self.head().await?;
            let lines = if self.strict { strict_lines(&head) } else { Ok(lax_lines(&head)) };
            let text = String::from_utf8_lossy(&head).into_owned();
            let mut one = Seen {
                marked: text.to_ascii_lowercase().contains(MARK),
                ids: ids(&head),
                malformed: None,
                text: head.escape_ascii().to_string(),
            };
            let framing = match lines {
                Ok(lines) if self.strict => strict_framing(&lines),
                Ok(lines) => Ok(lax_framing(&lines)),
                Err(reason) => Err(reason),
            };
            let name = one.ids.first().cloned().unwrap_or_default();
            // Written down before the body: that may never end.
            one.malformed = framing.err();
            let place = {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.push(one);
                seen.len() - 1
            };
            let Ok(framing) = framing else {
                return self
                    .stream
                    .write_all(b"HTTP/1.1 400 Bad\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                    .await;
            };
            let body = match framing {
                Framing::Length(length) => self.exactly(length).await?,
                Framing::Chunked => match self.chunks().await? {
                    Ok(body) => body,
                    Err(reason) => {
                        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                        if let Some(one) = seen.get_mut(place) {
                            one.malformed = Some(reason);
                        }
                        return Ok(());
                    }
                },
            };
            // Requests of another case in the body are as wrong as in the head; `b` of the same
            // case belongs there often enough, and was not forwarded as a request.
            let tag = name.trim_end_matches(['a', 'b']).to_owned();
            let foreign: Vec<String> =
                ids(&body).into_iter().filter(|id| id.trim_end_matches(['a', 'b']) != tag).collect();
            if !foreign.is_empty() {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(one) = seen.get_mut(place) {
                    one.ids.extend(foreign);
                }
            }
            let answer = format!("HTTP/1.1 200 OK\r\nx-seen: {name}\r\ncontent-length: 0\r\n\r\n");
            self.stream.write_all(answer.as_bytes()).await?;
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        if self.stream.read_buf(&mut self.input).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    async fn until(&mut self, find: impl Fn(&[u8]) -> Option<usize>) -> io::Result<Vec<u8>> {
        loop {
            if let Some(end) = find(&self.input) {
                return Ok(self.input.drain(..end).collect());
            }
            self.fill().await?;
        }
    }

    async fn head(&mut self) -> io::Result<Vec<u8>> {
        let strict = self.strict;
        self.until(move |input| {
            let crlf = position(input, b"\r\n\r\n").map(|at| at + 4);
            if strict {
                return crlf;
            }
            // An empty line, however it ends.
            let bare = [&b"\n\n"[..], b"\n\r\n"]
                .into_iter()
                .filter_map(|end| Some(position(input, end)? + end.len()));
            bare.chain(crlf).min()
        })
        .await
    }

    async fn exactly(&mut self, count: usize) -> io::Result<Vec<u8>> {
        self.until(move |input| (input.len() >= count).then_some(count)).await
    }

    async fn chunks(&mut self) -> io::Result<Result<Vec<u8>, &'static str>> {
        let mut body = Vec::new();
        loop {
            let line = self.until(|input| Some(position(input, b"\n")? + 1)).await?;
            let size = if self.strict { strict_size(&line) } else { Some(lax_size(&line)) };
            let Some(size) = size else { return Ok(Err("chunk size")) };
            if size == 0 {
                // Trailers, up to an empty line.
                loop {
                    let line = self.until(|input| Some(position(input, b"\n")? + 1)).await?;
                    if self.strict && !line.ends_with(b"\r\n") {
                        return Ok(Err("trailer"));
                    }
                    if line.trim_ascii().is_empty() {
                        return Ok(Ok(body));
                    }
                }
            }
            body.extend(self.exactly(size).await?);
            let end = if self.strict {
                self.exactly(2).await?
            } else {
                self.until(|input| Some(position(input, b"\n")? + 1)).await?
            };
            if self.strict && end != b"\r\n" {
                return Ok(Err("end of a chunk"));
            }
        }
    }
}

fn position(input: &[u8], what: &[u8]) -> Option<usize> {
    input.windows(what.len()).position(|window| window == what)
}

/// All `case<digits>a` and `case<digits>b` between hyphens: `/-case12a-`.
fn ids(text: &[u8]) -> Vec<String> {
    let mut found: Vec<String> = String::from_utf8_lossy(text)
        .split('-')
        .filter(|word| {
            let digits = word.strip_prefix("case").and_then(|rest| rest.strip_suffix(['a', 'b']));
            digits
                .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
        })
        .map(str::to_owned)
        .collect();
    found.dedup();
    found
}

/// Header lines as (lower-case name, value).
fn strict_lines(head: &[u8]) -> Result<Vec<(String, String)>, &'static str> {
    let text = std::str::from_utf8(head.strip_suffix(b"\r\n\r\n").unwrap_or(head)).map(str::to_owned);
    // Other bytes than ASCII are allowed in values.
    let text = text.unwrap_or_else(|_| head.iter().map(|byte| char::from(*byte)).collect());
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    if text.replace("\r\n", "").contains(['\r', '\n', '\0']) {
        return Err("CR, LF or NUL in the head");
    }
    let words: Vec<&str> = first.split(' ').collect();
    match words.as_slice() {
        [method, target, "HTTP/1.1"]
            if !method.is_empty()
                && !target.is_empty()
                && target.bytes().all(|byte| byte > b' ' && byte != 0x7f) => {}
        _ => return Err("request line"),
    }
    let mut fields = Vec::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let Some((name, value)) = line.split_once(':') else { return Err("no colon") };
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(token) {
            return Err("header name");
        }
        fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    if fields.iter().filter(|(name, _)| name == "host").count() != 1 {
        return Err("host");
    }
    Ok(fields)
}

fn strict_framing(fields: &[(String, String)]) -> Result<Framing, &'static str> {
    let values = |wanted: &str| -> Vec<&str> {
        fields.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.as_str()).collect()
    };
    match (values("content-length").as_slice(), values("transfer-encoding").as_slice()) {
        ([], []) => Ok(Framing::Length(0)),
        ([length], []) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
            length.parse().map(Framing::Length).map_err(|_| "content-length")
        }
        ([], ["chunked"]) => Ok(Framing::Chunked),
        ([_, ..], [_, ..]) => Err("content-length and transfer-encoding"),
        ([..], []) => Err("content-length"),
        _ => Err("transfer-encoding"),
    }
}

fn strict_size(line: &[u8]) -> Option<usize> {
    let digits = std::str::from_utf8(line.strip_suffix(b"\r\n")?).ok()?;
    let fine = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    usize::from_str_radix(digits, 16).ok().filter(|_| fine)
}

/// Lines end with LF, go on where the next begins with a space, and names may have spaces around.
fn lax_lines(head: &[u8]) -> Vec<(String, String)> {
    let text: String = head.iter().map(|byte| char::from(*byte)).collect();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.split('\n').skip(1) {
        let line = line.trim_end_matches('\r');
        if let (true, Some((_, value))) = (line.starts_with([' ', '\t']), fields.last_mut()) {
            value.push_str(line.trim());
        } else if let Some((name, value)) = line.split_once(':') {
            let name = name.trim().to_ascii_lowercase();
            fields.push((name, value.trim().to_owned()));
        }
    }
    fields
}

/// The last content-length wins, over transfer-encoding too; that counts only if it is exactly
/// `chunked`.
fn lax_framing(fields: &[(String, String)]) -> Framing {
    let last = |wanted: &str| fields.iter().rev().find(|(name, _)| name == wanted).map(|(_, value)| value);
    if let Some(length) = last("content-length") {
        let digits: String =
            length.trim_start_matches('+').chars().take_while(char::is_ascii_digit).collect();
        return Framing::Length(digits.parse().unwrap_or(0));
    }
    if last("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        Framing::Chunked
    } else {
        Framing::Length(0)
    }
}

fn lax_size(line: &[u8]) -> usize {
    let text = String::from_utf8_lossy(line);
    let text = text.trim().trim_start_matches("0x");
    let digits: String = text.chars().take_while(char::is_ascii_hexdigit).collect();
    usize::from_str_radix(&digits, 16).unwrap_or(0)
}

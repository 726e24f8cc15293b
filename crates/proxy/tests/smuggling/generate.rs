//! Ambiguous requests from a seed: an ordinary request, changed in one to three ways.

use std::fmt;

use leno_base::Rng;

/// Bytes to send, and what they were made of.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Names its requests: `case<number>a` and `case<number>b`.
    pub(crate) number: usize,
    /// What was changed.
    pub(crate) changes: Vec<String>,
    /// What the client sends.
    pub(crate) bytes: Vec<u8>,
}

impl Case {
    /// The beginning of its requests' ids.
    pub(crate) fn tag(&self) -> String {
        format!("case{}", self.number)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes.get(..1500).unwrap_or(&self.bytes);
        write!(f, "case {} [{}] {}", self.number, self.changes.join("; "), bytes.escape_ascii())
    }
}

/// A request in parts, so that each can be made wrong.
struct Request {
    before: Vec<u8>,
    method: Vec<u8>,
    target: Vec<u8>,
    version: Vec<u8>,
    /// Whole lines without their ends.
    lines: Vec<Vec<u8>>,
    /// Ends the head's lines.
    end: &'static [u8],
    body: Body,
}

enum Body {
    None,
    Length(Vec<u8>),
    /// Chunks: size line and data, each with its end; then the last chunk and the trailers.
    Chunked(Vec<(Vec<u8>, Vec<u8>)>, Vec<u8>),
}

/// The cases of a seed.
pub(crate) fn cases(seed: u64, count: usize) -> Vec<Case> {
    let mut random = Random(Rng::new(seed));
    (0..count).map(|number| case(number, &mut random)).collect()
}

struct Random(Rng);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.0.next_u64() % bound.max(1) as u64).unwrap_or(0)
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

fn case(number: usize, random: &mut Random) -> Case {
    let hidden = format!("GET /-case{number}b- HTTP/1.1\r\nHost: b.test\r\nX-Id: -case{number}b-\r\n\r\n")
        .into_bytes();
    let content = if random.below(2) == 0 { hidden.clone() } else { b"hello".to_vec() };
    let body = match random.below(3) {
        0 => Body::None,
        1 => Body::Length(content),
        _ => {
            let half = content.len() / 2;
            let chunk =
                |data: &[u8]| (format!("{:x}\r\n", data.len()).into_bytes(), [data, b"\r\n"].concat());
            Body::Chunked(vec![chunk(&content[..half]), chunk(&content[half..])], b"0\r\n\r\n".to_vec())
        }
    };
    let mut request = Request {
        before: Vec::new(),
        method: if matches!(body, Body::None) { b"GET".to_vec() } else { b"POST".to_vec() },
        target: format!("/-case{number}a-").into_bytes(),
        version: b"HTTP/1.1".to_vec(),
        lines: vec![b"Host: a.test".to_vec(), format!("X-Id: -case{number}a-").into_bytes()],
        end: b"\r\n",
        body,
    };
    match &request.body {
        Body::None => {}
        Body::Length(content) => {
            request.lines.push(format!("Content-Length: {}", content.len()).into_bytes());
        }
        Body::Chunked(..) => request.lines.push(b"Transfer-Encoding: chunked".to_vec()),
    }
    let mut changes = Vec::new();
    for _ in 0..=random.below(3) {
        let change = random.one(CHANGES);
        changes.push(change(&mut request, random));
    }
    let mut bytes = request.before;
    for part in [&request.method[..], b" ", &request.target, b" ", &request.version, request.end] {
        bytes.extend_from_slice(part);
    }
    for line in &request.lines {
        bytes.extend_from_slice(line);
        bytes.extend_from_slice(request.end);
    }
    bytes.extend_from_slice(request.end);
    match request.body {
        Body::None => {}
        Body::Length(content) => bytes.extend(content),
        Body::Chunked(chunks, last) => {
            bytes.extend(chunks.into_iter().flat_map(|(size, data)| [size, data]).flatten());
            bytes.extend(last);
        }
    }
    bytes.extend_from_slice(&hidden);
    if random.below(12) == 0 {
        changes.push(garble(&mut bytes, random));
    }
    Case { number, changes, bytes }
}

/// Changes one byte anywhere.
fn garble(bytes: &mut Vec<u8>, random: &mut Random) -> String {
    let at = random.below(bytes.len());
    // Ids must stay whole: they say what was forwarded.
    let (before, behind) = bytes.split_at(at);
    let in_word = |byte: &&u8| byte.is_ascii_alphanumeric() || **byte == b'-';
    let word: Vec<u8> = before.iter().rev().take_while(in_word).copied().collect();
    let word: Vec<u8> = word.into_iter().rev().chain(behind.iter().take_while(in_word).copied()).collect();
    if word.windows(5).any(|window| window == b"-case") {
        return "not garbled".into();
    }
    let byte = random.one(b"\0\t\n\r \x0b\x0c\"'(),/:;<=>?@[\\]{}\x7f\x80\xa0\xff0aA");
    match random.below(3) {
        0 => bytes[at] = byte,
        1 => bytes.insert(at, byte),
        _ => drop(bytes.remove(at)),
    }
    format!("garbled at {at}")
}

/// A kind of change; says what it did.
type Change = fn(&mut Request, &mut Random) -> String;

const CHANGES: &[Change] = &[
    both_lengths,
    transfer_encoding,
    content_length,
    two_lengths,
    line_ends,
    folding,
    chunk_size,
    chunk_data,
    trailers,
    method,
    target,
    version,
    header_name,
    header_value,
    host,
    hop_by_hop,
    before,
    order,
];

fn text(bytes: &[u8]) -> String {
    let short = bytes.get(..60).unwrap_or(bytes);
    short.escape_ascii().to_string()
}

fn add(request: &mut Request, line: &[u8], random: &mut Random) -> String {
    let at = random.below(request.lines.len() + 1);
    request.lines.insert(at, line.to_vec());
    text(line)
}

fn both_lengths(request: &mut Request, random: &mut Random) -> String {
    let length = random.one(&["0", "1", "4", "5", "6", "50", "100000"]);
    let first = add(request, format!("Content-Length: {length}").as_bytes(), random);
    let second =
        random.one(&["Transfer-Encoding: chunked", "transfer-encoding: identity", "Transfer-Encoding: gzip"]);
    format!("both lengths: {first}, {}", add(request, second.as_bytes(), random))
}

fn transfer_encoding(request: &mut Request, random: &mut Random) -> String {
    let line = random.one::<&[u8]>(&[
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: identity, chunked",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked,",
        b"Transfer-Encoding: ,chunked",
        b"Transfer-Encoding: \x0bchunked",
        b"Transfer-Encoding: chunked\x0b",
        b"Transfer-Encoding:\tchunked\t",
        b"Transfer-Encoding:chunked",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding\t: chunked",
        b" Transfer-Encoding: chunked",
        b"Transfer_Encoding: chunked",
        b"Transfer-Encoding: CHUNKED",
        b"Transfer-Encoding: Chunked",
        b"Transfer-Encoding: \"chunked\"",
        b"Transfer-Encoding: 'chunked'",
        b"Transfer-Encoding: chunked;q=1",
        b"Transfer-Encoding: chun\x00ked",
        b"Transfer-Encoding: chunked\x00",
        b"Transfer-Encoding: ch\xc5\xabnked",
        b"Transfer-Encoding:",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        b"X: y\rTransfer-Encoding: chunked",
        b"X: y\nTransfer-Encoding: chunked",
        b"TE: chunked",
    ]);
    // In the place of the right one, or beside it.
    if random.below(2) == 0 {
        request.lines.retain(|line| !line.to_ascii_lowercase().starts_with(b"transfer-encoding"));
    }
    format!("transfer-encoding: {}", add(request, line, random))
}

const LENGTHS: &[&[u8]] = &[
    b"+5",
    b"-1",
    b"05",
    b"5 ",
    b" 5",
    b"5\t",
    b"5,5",
    b"5, 5",
    b"5,6",
    b"0x5",
    b"5;",
    b"5.0",
    b"1e1",
    b"5 5",
    b"",
    b"a",
    b"5\x00",
    b"\xd9\xa5",
    b"18446744073709551616",
    b"18446744073709551621",
    b"9223372036854775808",
    b"4294967301",
    b"\"5\"",
    b"5\x0b",
    b"0",
    b"00",
    b"5\r\n 0",
];

fn content_length(request: &mut Request, random: &mut Random) -> String {
    let value = random.one(LENGTHS);
    request.lines.retain(|line| !line.starts_with(b"Content-Length"));
    let name = random.one::<&[u8]>(&[
        b"Content-Length: ",
        b"content-length:",
        b"Content-Length : ",
        b"Content_Length: ",
    ]);
    format!("length: {}", add(request, &[name, value].concat(), random))
}

fn two_lengths(request: &mut Request, random: &mut Random) -> String {
    let (first, second) = (random.one(&["0", "5", "6", "75"]), random.one(&["0", "5", "6", "75"]));
    request.lines.retain(|line| !line.starts_with(b"Content-Length"));
    add(request, format!("Content-Length: {first}").as_bytes(), random);
    add(request, format!("content-length: {second}").as_bytes(), random);
    format!("two lengths: {first} {second}")
}

fn line_ends(request: &mut Request, random: &mut Random) -> String {
    if random.below(3) == 0 {
        request.end = random.one::<&[u8]>(&[b"\n", b"\r", b"\r\r\n", b"\n\r"]);
        return format!("line ends: {}", text(request.end));
    }
    let at = random.below(request.lines.len());
    let joined =
        random.one::<&[u8]>(&[b"\n", b"\r", b"\r\r\n", b"\n\n", b"\r\n\r", b"\x85", b"\xe2\x80\xa8"]);
    request.lines[at].extend_from_slice(&[joined, b"X-More: 1"].concat());
    format!("line end inside: {}", text(joined))
}

fn folding(request: &mut Request, random: &mut Random) -> String {
    let at = random.below(request.lines.len());
    let line = &mut request.lines[at];
    let fold = random.one::<&[u8]>(&[b"\r\n ", b"\r\n\t", b"\n ", b"\r\n \r\n "]);
    let place = line.iter().position(|byte| *byte == b':').map_or(line.len(), |at| at + 1);
    line.splice(place..place, fold.iter().copied());
    format!("folded: {}", text(line))
}

fn chunk_size(request: &mut Request, random: &mut Random) -> String {
    let Body::Chunked(chunks, last) = &mut request.body else { return "no chunks".into() };
    let which = random.below(chunks.len() + 1);
    let line = match chunks.get_mut(which) {
        Some((line, _)) => line,
        None => last,
    };
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let size = line[..digits].to_vec();
    let rest = line[digits..].to_vec();
    let rest = rest.strip_prefix(b"\r\n").unwrap_or(&rest).to_vec();
    let (before, behind) = random.one::<(&[u8], &[u8])>(&[
        (b"", b";ext\r\n"),
        (b"", b";a=b;c=\"d\"\r\n"),
        (b"", b";a=\"\r\n\"\r\n"),
        (b"", b" ;a\r\n"),
        (b"", b"\t\r\n"),
        (b"", b" \r\n"),
        (b"", b";\r\n"),
        (b"", b";a\n"),
        (b"", b";a\rb\r\n"),
        (b"", b";\x00\r\n"),
        (b"", b"\n"),
        (b"", b"\r"),
        (b"", b"\r\r\n"),
        (b"", b",1\r\n"),
        (b"", b"h\r\n"),
        (b"", b".0\r\n"),
        (b"0x", b"\r\n"),
        (b"+", b"\r\n"),
        (b"-", b"\r\n"),
        (b" ", b"\r\n"),
        (b"0", b"\r\n"),
        (b"000000000000000000000", b"\r\n"),
        (b"10000000000000000", b"\r\n"),
        (b"ffffffffffffffff", b"\r\n"),
        (b"\x00", b"\r\n"),
        (b"\r\n", b"\r\n"),
        (b"_", b"\r\n"),
    ]);
    *line = [before, &size, behind, &rest].concat();
    format!("chunk size: {}", text(line))
}

fn chunk_data(request: &mut Request, random: &mut Random) -> String {
    let Body::Chunked(chunks, last) = &mut request.body else { return "no chunks".into() };
    let at = random.below(chunks.len());
    let (_, data) = &mut chunks[at];
    data.truncate(data.len().saturating_sub(2));
    match random.below(6) {
        0 => data.extend_from_slice(b"\n"),
        1 => {}
        2 => data.extend_from_slice(b"x\r\n"),
        3 => data.extend_from_slice(b"\r\r"),
        4 => data.extend_from_slice(b"\r\n\r\n"),
        _ => {
            data.extend_from_slice(b"\r\n");
            last.truncate(last.len() - 2);
        }
    }
    format!("chunk end: {}", text(data))
}

fn trailers(request: &mut Request, random: &mut Random) -> String {
    let Body::Chunked(_, last) = &mut request.body else { return "no chunks".into() };
    let line = random.one::<&[u8]>(&[
        b"X: y\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Host: c.test\r\n",
        b"x-forwarded-by-someone: 1\r\n",
        b"X y: z\r\n",
        b"nocolon\r\n",
        b": empty\r\n",
        b"X: y\n",
        b"X: y\r\n folded\r\n",
        b"X: \x00\r\n",
        b" X: y\r\n",
    ]);
    *last = [b"0\r\n", line, b"\r\n"].concat();
    format!("trailers: {}", text(line))
}

fn method(request: &mut Request, random: &mut Random) -> String {
    request.method = random
        .one::<&[u8]>(&[
            b"get",
            b"GETX",
            b"G ET",
            b"GE\x00T",
            b"G(ET",
            b"",
            b"\tGET",
            b"HEAD",
            b"PUT",
            b"DELETE",
            b"OPTIONS",
            b"TRACE",
            b"CONNECT",
            b"PATCH",
            b"PRI",
            b"PROPFIND",
            b"GET\t",
            b"GET ",
            b"M-SEARCH",
            b"\xc7ET",
            b"GET\r\nX: y",
        ])
        .to_vec();
    format!("method: {}", text(&request.method))
}

fn target(request: &mut Request, random: &mut Random) -> String {
    let own = request.target.clone();
    let (before, behind) = random.one::<(&[u8], &[u8])>(&[
        (b"http://evil.test", b""),
        (b"http://", b""),
        (b"HTTP://evil.test:80", b"?x"),
        (b"https://evil.test", b""),
        (b"ftp://evil.test", b""),
        (b"http://user@evil.test", b""),
        (b"//evil.test", b""),
        (b"/", b""),
        (b"", b" HTTP/1.1\r\nX: y"),
        (b"", b" x"),
        (b"", b"\tx"),
        (b"", b"%00"),
        (b"", b"%0d%0a"),
        (b"", b"\x00"),
        (b"", b"\x7f"),
        (b"", b"\x80"),
        (b"", b"\xc3\xa9"),
        (b"", b"#frag"),
        (b"", b"?a=b c"),
        (b"", b"\\..\\x"),
        (b"", b"/../../x"),
        (b"", b"\x0b"),
        (b" ", b""),
        (b"*", b""),
        (b"?", b""),
        (b"a.test:80", b""),
        (b"\\", b""),
    ]);
    request.target = [before, &own, behind].concat();
    format!("target: {}", text(&request.target))
}

fn version(request: &mut Request, random: &mut Random) -> String {
    request.version = random
        .one::<&[u8]>(&[
            b"HTTP/1.0",
            b"HTTP/1.2",
            b"HTTP/2.0",
            b"HTTP/0.9",
            b"http/1.1",
            b"HTTP/1.1 ",
            b"HTTP/1.10",
            b"HTTP/01.1",
            b"HTTP/1",
            b"HTTP/1.",
            b"",
            b"HTTP/1.1\t",
            b"HTTP/1.1x",
            b"HTTP /1.1",
            b"ICY/1.1",
            b" HTTP/1.1",
            b"HTTP/1.1\x00",
            b"HTTP/9.9",
        ])
        .to_vec();
    format!("version: {}", text(&request.version))
}

fn header_name(request: &mut Request, random: &mut Random) -> String {
    let line = random.one::<&[u8]>(&[
        b"X Y: z",
        b"X\x00: y",
        b"X\x00Y: z",
        b"X@: y",
        b": y",
        b"nocolon",
        b"X : y",
        b"X\t: y",
        b"(x): y",
        b"X\xff: y",
        b" X: y",
        b"\tX: y",
        b"X\x7f: y",
        b"X[]: y",
        b"Content-Length\x00: 5",
        b"Content-Length\xa0: 5",
        b"\x00Content-Length: 5",
        b"Host\x00: z",
        b"X\"Y: z",
        b"X,Y: z",
        b"X/Y: z",
        b"X=Y: z",
        b"{x}: y",
        b"X\r: y",
        b"",
        b":",
        b"::",
        b"x-_y: z",
        b"Content-Length\r: 5",
    ]);
    format!("name: {}", add(request, line, random))
}

fn header_value(request: &mut Request, random: &mut Random) -> String {
    match random.below(12) {
        0 => {
            add(request, &[b"X-Large: ".to_vec(), vec![b'a'; 70 * 1024]].concat(), random);
            return "value: huge".into();
        }
        1 => {
            request.lines.extend((0..150).map(|index| format!("x-{index}: y").into_bytes()));
            return "values: many".into();
        }
        _ => {}
    }
    let line = random.one::<&[u8]>(&[
        b"X: \x00",
        b"X: a\x00b",
        b"X: a\rb",
        b"X: \r",
        b"X: a\x0bb",
        b"X: a\x7fb",
        b"X: \x80\xff",
        b"X: \x01",
        b"X: \x1b[0m",
        b"X:",
        b"X:\t\t",
        b"X: a\tb",
        b"X: \xe2\x80\xa8",
        b"X: a\x0c",
        b"Cookie: a=b; c\x00=d",
        b"X: \x08\x08",
    ]);
    format!("value: {}", add(request, line, random))
}

fn host(request: &mut Request, random: &mut Random) -> String {
    let line = random.one::<&[u8]>(&[
        b"Host: b.test",
        b"Host: a.test",
        b"host: a.test, b.test",
        b"Host:",
        b"Host: a test",
        b"Host: a.test/x",
        b"Host: a@b",
        b"Host: [::1]:80",
        b"Host: a.test:99999",
        b"Host: a.test:x",
        b"Host: a\x00b",
        b"Host: \xff",
        b"Host: a?b",
        b"Host: a#b",
        b"Host : a.test",
        b"Host: a.test\r\n b.test",
        b"Host: a\\b",
        b"Host: <x>",
    ]);
    if random.below(2) == 0 {
        request.lines.retain(|line| !line.starts_with(b"Host"));
    }
    if random.below(8) == 0 {
        return "host: none".into();
    }
    format!("host: {}", add(request, line, random))
}

fn hop_by_hop(request: &mut Request, random: &mut Random) -> String {
    let line = random.one::<&[u8]>(&[
        b"Connection: content-length",
        b"Connection: transfer-encoding",
        b"Connection: host",
        b"Connection: x-forwarded-for",
        b"Connection: x-forwarded-proto",
        b"Connection: :authority",
        b"Connection: te",
        b"Connection: x-id, close",
        b"Connection: x-forwarded-by-proxy",
        b"Connection: keep-alive, content-length, transfer-encoding",
        b"Connection: \x00",
        b"Connection: close, ,,",
        b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
        b"Upgrade: websocket\r\nConnection: upgrade",
        b"Upgrade: websocket",
        b"Expect: 100-continue",
        b"Expect: 200-ok",
        b"Expect: 100-continue, x",
        b"Proxy-Connection: close",
        b"Keep-Alive: timeout=1, max=1",
        b"TE: trailers, chunked",
        b"Trailer: content-length",
        b"Content-Encoding: chunked",
        b"X-Forwarded-By-Proxy: no",
        b"x-http-method-override: PUT",
    ]);
    format!("hop by hop: {}", add(request, line, random))
}

fn before(request: &mut Request, random: &mut Random) -> String {
    request.before = random
        .one::<&[u8]>(&[
            b"\r\n",
            b"\n",
            b"\r",
            b"\r\n\r\n\r\n",
            b" ",
            b"\t",
            b"\x00",
            b"\xef\xbb\xbf",
            b"0\r\n\r\n",
            b"x\r\n",
        ])
        .to_vec();
    format!("before: {}", text(&request.before))
}

fn order(request: &mut Request, random: &mut Random) -> String {
    let at = random.below(request.lines.len());
    let line = request.lines.remove(at);
    request.lines.insert(0, line);
    "another order".into()
}

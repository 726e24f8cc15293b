//! What runs in pods and beside the mesh: applications that say who asks them, servers that speak first, one for names.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use super::net::Namespace;

/// Serves connections of both families in a namespace, each on a thread of its own.
pub(crate) fn accept(
    namespace: &Namespace,
    port: u16,
    serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + Copy + 'static,
) {
    let listener = namespace.within(|| TcpListener::bind(("::", port))).expect("free");
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || serve(stream));
        }
    });
}

/// Who is at the other end.
fn peer(stream: &TcpStream) -> IpAddr {
    stream.peer_addr().map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.ip().to_canonical())
}

/// HTTP/1.1: answers with the client's address, the head of the request and the length of its body.
pub(crate) fn http(mut stream: TcpStream) -> io::Result<()> {
    let from = peer(&stream);
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let lower = head.to_ascii_lowercase();
        let length = lower.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        let length: u64 = match length {
            Some(length) => io::copy(&mut (&mut reader).take(length), &mut io::sink())?,
            None if lower.contains("transfer-encoding: chunked") => chunks(&mut reader)?,
            None => 0,
        };
        let body = format!("from {from}\nbody {length}\n{head}");
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
        if lower.contains("connection: close") {
            return Ok(());
        }
    }
}

fn chunks(reader: &mut impl io::BufRead) -> io::Result<u64> {
    let mut all = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let length = u64::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        all += io::copy(&mut reader.take(length + 2), &mut io::sink())?.saturating_sub(2);
        if length == 0 {
            return Ok(all);
        }
    }
}

/// Speaks first, and then says what it is told.
pub(crate) fn greet(stream: TcpStream) -> io::Result<()> {
    greet_as(stream, "welcome")
}

pub(crate) fn greet_as(mut stream: TcpStream, word: &str) -> io::Result<()> {
    let from = peer(&stream);
    writeln!(stream, "{word} {from}")?;
    let mut echo = stream.try_clone()?;
    io::copy(&mut stream, &mut echo).map(drop)
}

/// Speaks when the client has said all that it has to say.
pub(crate) fn count(mut stream: TcpStream) -> io::Result<()> {
    let from = peer(&stream);
    let length = io::copy(&mut stream, &mut io::sink())?;
    writeln!(stream, "{length} bytes from {from}")
}

/// As MySQL's server begins: a greeting, which the client answers, and OK. Packets have a length of three bytes and a
/// number (MySQL's manual, "Connection Phase").
pub(crate) fn mysql(mut stream: TcpStream) -> io::Result<()> {
    let from = peer(&stream);
    let mut greeting = vec![10];
    greeting.extend(format!("8.0.36-{from}\0").bytes());
    greeting.extend([1, 0, 0, 0]);
    greeting.extend(b"challeng\0");
    greeting.extend([0xff, 0xf7, 8, 2, 0, 0xff, 0xc1, 21]);
    greeting.extend([0; 10]);
    greeting.extend(b"challenge-12\0mysql_native_password\0");
    packet(&mut stream, 0, &greeting)?;
    let mut reader = stream.try_clone()?;
    let mut header = [0; 4];
    reader.read_exact(&mut header)?;
    let length = u32::from_le_bytes([header[0], header[1], header[2], 0]);
    io::copy(&mut (&mut reader).take(length.into()), &mut io::sink())?;
    packet(&mut stream, 2, &[0, 0, 0, 2, 0, 0, 0])?;
    io::copy(&mut reader, &mut io::sink()).map(drop)
}

fn packet(stream: &mut TcpStream, number: u8, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).expect("short").to_le_bytes();
    stream.write_all(&[length[0], length[1], length[2], number])?;
    stream.write_all(payload)
}

/// Sends datagrams back.
pub(crate) fn echo(namespace: &Namespace, address: &str) {
    let socket = datagrams(namespace, address);
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], peer);
        }
    });
}

fn datagrams(namespace: &Namespace, address: &str) -> UdpSocket {
    let address: SocketAddr = address.parse().expect("an address");
    namespace.within(|| UdpSocket::bind(address)).expect("free")
}

/// The name that [`names`] knows.
pub(crate) const OUTSIDE: &str = "outside.test";

/// A DNS server that knows one name, of these addresses.
pub(crate) fn names(namespace: &Namespace, at: &str, v4: &str, v6: &str) {
    let socket = datagrams(namespace, at);
    let (v4, v6): (Ipv4Addr, Ipv6Addr) = (v4.parse().expect("an address"), v6.parse().expect("an address"));
    thread::spawn(move || {
        let mut query = [0; 2048];
        while let Ok((length, peer)) = socket.recv_from(&mut query) {
            if let Some(answer) = answer(&query[..length], v4, v6) {
                let _ = socket.send_to(&answer, peer);
            }
        }
    });
}

/// RFC 1035, section 4: the question again, and an address if it is that name's.
fn answer(query: &[u8], v4: Ipv4Addr, v6: Ipv6Addr) -> Option<Vec<u8>> {
    let mut name = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        name.push(String::from_utf8_lossy(query.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    let is_known = name.join(".") == OUTSIDE;
    let data = match kind {
        1 if is_known => v4.octets().to_vec(),
        28 if is_known => v6.octets().to_vec(),
        _ => Vec::new(),
    };
    let mut answer = query.get(..2)?.to_vec();
    answer.extend([0x81, if is_known { 0x80 } else { 0x83 }, 0, 1, 0, u8::from(!data.is_empty())]);
    answer.extend([0, 0, 0, 0]);
    answer.extend(query.get(12..at + 4)?);
    if !data.is_empty() {
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 30, 0, u8::try_from(data.len()).expect("short")]);
        answer.extend(data);
    }
    Some(answer)
}

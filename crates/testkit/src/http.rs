//! Raw HTTP/1 peers with scripted behaviour: what a well-behaved library would never send.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What a scripted upstream does with one request.
#[derive(Clone, Debug)]
pub enum Action {
    /// Sends these bytes and waits for the next request.
    Send(Vec<u8>),
    /// Sends these bytes and closes.
    SendAndClose(Vec<u8>),
    /// Says nothing, and keeps the connection.
    Hang,
}

impl Action {
    /// An ordinary answer with a body.
    pub fn ok(body: &str) -> Self {
        Action::status(200, body)
    }

    /// An ordinary answer with this status and body.
    pub fn status(status: u16, body: &str) -> Self {
        Action::Send(
            format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes(),
        )
    }
}

/// A request as a scripted upstream saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which connection it came by, from 0.
    pub connection: usize,
    /// Which request of the upstream's life it is, from 0.
    pub number: usize,
    /// The head, CRLFs included.
    pub head: String,
    /// The body, chunks undone.
    pub body: Vec<u8>,
}

impl Seen {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let line = self
            .head
            .lines()
            .find(|line| line.split(':').next().is_some_and(|n| n.eq_ignore_ascii_case(name)))?;
        line.split_once(':').map(|(_, value)| value.trim())
    }
}

/// An HTTP/1 upstream that follows a script.
#[derive(Clone, Debug)]
pub struct Scripted {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Scripted {
    /// Listens on a port of its own; `script` says what is done with each request.
    ///
    /// # Errors
    /// If the system gives no port.
    pub async fn start(script: impl Fn(&Seen) -> Action + Send + Sync + 'static) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let upstream = Self { address: listener.local_addr()?, seen: Arc::default() };
        let script: Arc<Script> = Arc::new(script);
        let seen = Arc::clone(&upstream.seen);
        tokio::spawn(async move {
            for connection in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                tokio::spawn(follow(stream, connection, Arc::clone(&script), Arc::clone(&seen)));
            }
        });
        Ok(upstream)
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

type Script = dyn Fn(&Seen) -> Action + Send + Sync;

async fn follow(mut stream: TcpStream, connection: usize, script: Arc<Script>, seen: Arc<Mutex<Vec<Seen>>>) {
    let mut buffer = Vec::new();
    while let Some((head, body)) = read_message(&mut stream, &mut buffer).await {
        let request = {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let request = Seen { connection, number: seen.len(), head, body };
            seen.push(request.clone());
            request
        };
        match script(&request) {
            Action::Send(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Action::SendAndClose(bytes) => {
                let _ = stream.write_all(&bytes).await;
                return;
            }
            Action::Hang => {}
        }
    }
}

/// Reads one message: head and body. `None`: the peer has closed before it was complete. For a
/// response without length the body is what has come so far.
pub async fn read_message(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(buffer.get(..end)?).into_owned();
    buffer.drain(..end);
    let field = |name: &str| {
        let lower = head.to_ascii_lowercase();
        lower.lines().find_map(|line| line.strip_prefix(name).map(|value| value.trim().to_owned()))
    };
    let mut body = Vec::new();
    if field("transfer-encoding:").as_deref() == Some("chunked") {
        loop {
            let line = read_line(stream, buffer).await?;
            let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
            fill(stream, buffer, if size == 0 { 0 } else { size + 2 }).await?;
            if size == 0 {
                while !read_line(stream, buffer).await?.is_empty() {}
                break;
            }
            body.extend(buffer.drain(..size));
            buffer.drain(..2);
        }
    } else if let Some(length) = field("content-length:").and_then(|value| value.parse().ok()) {
        fill(stream, buffer, length).await?;
        body.extend(buffer.drain(..length));
    }
    Some((head, body))
}

async fn read_line(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(at) = buffer.windows(2).position(|window| window == b"\r\n") {
            let line = String::from_utf8_lossy(buffer.get(..at)?).into_owned();
            buffer.drain(..at + 2);
            return Some(line);
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

async fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>, length: usize) -> Option<()> {
    while buffer.len() < length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    Some(())
}

/// A raw HTTP/1 client.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// As connecting fails.
    pub async fn connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// If the peer is gone.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await
    }

    /// The next message: head and body.
    pub async fn message(&mut self) -> Option<(String, Vec<u8>)> {
        read_message(&mut self.stream, &mut self.buffer).await
    }

    /// The status and the body of the next message.
    pub async fn answer(&mut self) -> Option<(u16, String)> {
        let (head, body) = self.message().await?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// All bytes until the peer closes.
    pub async fn rest(&mut self) -> Vec<u8> {
        while matches!(self.stream.read_buf(&mut self.buffer).await, Ok(count) if count > 0) {}
        std::mem::take(&mut self.buffer)
    }

    /// Sends a request and gives status and body of its answer.
    pub async fn call(&mut self, request: &str) -> Option<(u16, String)> {
        self.send(request).await.ok()?;
        self.answer().await
    }
}

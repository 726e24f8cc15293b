//! TCP checks: a connection, and perhaps bytes that must come back (TcpHealthCheck).

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::cluster::EndpointAddress;
use crate::cluster::health::config::{ProxyProtocol, TcpCheck};
use crate::cluster::health::probe::{Target, connect, contains};
use crate::cluster::health::session::Outcome;
use crate::io::Socket;

/// Bytes looked at for what is expected; what comes before them is forgotten.
const WINDOW: usize = 64 * 1024;

#[derive(Default)]
pub(in crate::cluster::health) struct TcpProbe {
    socket: Option<Socket>,
    received: BytesMut,
}

impl TcpProbe {
    pub(super) fn close(&mut self) {
        self.socket = None;
        self.received.clear();
    }

    pub(super) async fn check(&mut self, target: &Target, check: &TcpCheck) -> Outcome {
        if self.socket.is_none() {
            self.received.clear();
            self.socket = connect(target).await;
        }
        let Some(socket) = &mut self.socket else { return Outcome::NETWORK };
        if check.receive.is_empty() {
            // That there is a connection is all that was asked.
            self.close();
            return Outcome::Passed { degraded: false };
        }
        let mut bytes =
            check.proxy_protocol.map(|version| header(version, socket, target)).unwrap_or_default();
        bytes.extend_from_slice(&check.send);
        if socket.write_all(&bytes).await.is_err() {
            self.close();
            return Outcome::NETWORK;
        }
        loop {
            if self.received.len() > WINDOW {
                let excess = self.received.len() - WINDOW;
                drop(self.received.split_to(excess));
            }
            match socket.read_buf(&mut self.received).await {
                Ok(0) | Err(_) => {
                    self.close();
                    return Outcome::NETWORK;
                }
                Ok(_) if contains(&self.received, &check.receive) => break,
                Ok(_) => {}
            }
        }
        self.received.clear();
        if !target.settings.reuse {
            self.close();
        }
        Outcome::Passed { degraded: false }
    }

    /// Waits for the end of a kept connection; what else comes is kept for the next check.
    pub(super) async fn broken(&mut self) {
        let Some(socket) = &mut self.socket else { return std::future::pending().await };
        while self.received.len() <= WINDOW {
            if matches!(socket.read_buf(&mut self.received).await, Ok(0) | Err(_)) {
                self.close();
                return;
            }
        }
        std::future::pending::<()>().await;
    }
}

/// The PROXY protocol's header (haproxy's proxy-protocol.txt, 2.1 and 2.2).
fn header(version: ProxyProtocol, socket: &Socket, target: &Target) -> Vec<u8> {
    match version {
        ProxyProtocol::V1 => {
            let (Some(from), EndpointAddress::Ip(to)) = (socket.local_address(), &target.address) else {
                return b"PROXY UNKNOWN\r\n".to_vec();
            };
            let family = if to.is_ipv4() { "TCP4" } else { "TCP6" };
            let (source, destination) = (from.ip(), to.ip());
            format!("PROXY {family} {source} {destination} {} {}\r\n", from.port(), to.port()).into_bytes()
        }
        // LOCAL: the connection is the proxy's own.
        ProxyProtocol::V2 => b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec(),
    }
}

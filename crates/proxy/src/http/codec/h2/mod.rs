//! HTTP/2, our own codec on byte buffers (RFC 9113, RFC 7541, RFC 8441).
//!
//! A connection is a [`Session`](session::Session) without a socket, a [`Link`](link::Link) that
//! joins it to one, and a driver: `http::connection::h2` downstream, `cluster::pool::h2`
//! upstream. A stream is a place in the session and a handle (`server`, `client`): no task, no
//! channel, and no allocation beyond its header block.
//!
//! Flow control goes end to end: a stream is read only while the other side has room, window is
//! given back when a piece is read, and what cannot be sent waits in bounded queues.
//!
//! Upgrades: an extended CONNECT (RFC 8441) reads as a GET with `upgrade`, and a response 101
//! is written as 200 to it; upstream the other way round.
//!
//! Reading order: this file, `session`, `receive`, `send`, `server` and `client`, `link`,
//! `message`, `hpack`, `frame`, `streams`, `flood`, `keepalive`.

use crate::cluster::Http2Settings;
use crate::http::codec::buffer;
use crate::http::codec::h2::frame::setting;

pub(crate) mod client;
mod flood;
pub(crate) mod frame;
pub(crate) mod fuzz;
pub(crate) mod hpack;
mod keepalive;
pub(crate) mod link;
pub(crate) mod message;
mod receive;
mod send;
pub(crate) mod server;
pub(crate) mod session;
pub(crate) mod stats;
mod streams;

#[cfg(test)]
mod tests;

pub(crate) use client::H2Client;
pub(crate) use server::H2Server;

/// The preface that an HTTP/2 client sends first (RFC 9113 section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The largest flow-control window, and the largest stream (RFC 9113 section 6.9.1).
const LARGEST_WINDOW: i64 = 0x7fff_ffff;

impl Http2Settings {
    /// The SETTINGS that we send.
    fn parameters(&self, client: bool) -> Vec<(u16, u32)> {
        let mut parameters = Vec::with_capacity(6 + self.custom.len());
        parameters.push((setting::HEADER_TABLE_SIZE, self.hpack_table_size));
        if client {
            parameters.push((setting::ENABLE_PUSH, 0));
        } else if self.allow_connect {
            parameters.push((setting::ENABLE_CONNECT_PROTOCOL, 1));
        }
        parameters.push((setting::MAX_CONCURRENT_STREAMS, self.max_concurrent_streams));
        parameters.push((setting::INITIAL_WINDOW_SIZE, self.stream_window));
        parameters.extend_from_slice(&self.custom);
        parameters
    }

    /// The largest frame that the peer may send.
    fn max_frame(&self) -> usize {
        let custom = self.custom.iter().find(|(identifier, _)| *identifier == setting::MAX_FRAME_SIZE);
        custom.map_or(frame::DEFAULT_MAX_FRAME, |(_, value)| *value as usize)
    }
}

/// An empty buffer for output.
fn take_output_buffer() -> Vec<u8> {
    buffer::take_write_buffer()
}

/// Gives an empty buffer back to the worker.
fn give_output_buffer(out: &mut Vec<u8>) {
    if out.is_empty() && out.capacity() > 0 {
        buffer::give_write_buffer(std::mem::take(out));
    }
}

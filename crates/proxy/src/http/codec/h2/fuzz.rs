//! What `crate::fuzzing` runs of this codec, on bytes that a peer may send.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::client::H2Client;
use super::frame::{FrameHead, HEAD};
use super::hpack::decoder::Decoder;
use super::hpack::encoder::Encoder;
use super::message::HeadRules;
use super::server::H2Server;
use super::session::{Role, Rules, Session};
use super::stats::Http2Stats;
use crate::cluster::Http2Settings;
use crate::config::lower::Lower;
use crate::http::config::lower::http2_options;
use crate::http::headers::HeaderMap;
use crate::telemetry::stats::ThreadStats;

/// Envoy's defaults.
pub(crate) fn default_settings() -> Option<Http2Settings> {
    Lower::resource(|at| http2_options(None, at)).ok()
}

/// A session without a connection.
pub(crate) fn session(role: Role, settings: Http2Settings) -> Session {
    let heads = HeadRules {
        max_bytes: 60 * 1024,
        max_fields: 100,
        ascii_only: false,
        extended_connect: settings.allow_connect,
    };
    let stream_errors = settings.stream_errors.unwrap_or(false);
    let stats = Http2Stats::new(&ThreadStats::default(), "http2.");
    Session::new(role, Rules { settings, heads, stream_errors }, stats, Instant::now(), 1)
}

/// Header blocks, one after the other, each behind its length: what is read is written and read
/// again as the same.
pub(crate) fn hpack(mut bytes: &[u8]) {
    let mut decoder = Decoder::default();
    let mut again = Decoder::default();
    let mut encoder = Encoder::new(4096, bytes.len().is_multiple_of(2));
    while let Some((length, rest)) = bytes.split_first() {
        let (block, rest) = rest.split_at_checked(usize::from(*length)).unwrap_or((rest, &[]));
        bytes = rest;
        let mut fields = Vec::new();
        let mut written = Vec::new();
        encoder.begin(&mut written);
        let decoded = decoder.decode(block, |field| {
            fields.push((field.name.to_vec(), field.value.to_vec()));
            encoder.field(&mut written, field.known, field.name, field.value);
        });
        if decoded.is_err() {
            return;
        }
        let mut read = Vec::new();
        let outcome = again.decode(&written, |field| read.push((field.name.to_vec(), field.value.to_vec())));
        assert!(outcome.is_ok() && read == fields, "what was written reads as something else");
    }
}

/// All that a session has to write, which must be whole frames.
fn output(session: &Rc<RefCell<Session>>, preface: usize) -> Vec<u8> {
    let mut all = Vec::new();
    let mut piece = Vec::new();
    while session.borrow_mut().take_output(&mut piece) {
        all.append(&mut piece);
    }
    let mut rest = all.get(preface..).unwrap_or_default();
    while !rest.is_empty() {
        let head = FrameHead::parse(rest);
        let behind = head.and_then(|head| rest.get(HEAD + head.len..));
        assert!(behind.is_some(), "half a frame was written");
        rest = behind.unwrap_or_default();
    }
    all
}

/// Bytes from a client: what comes in pieces is taken as what comes at once, and whatever streams
/// do with it, nothing breaks.
pub(crate) fn server(bytes: &[u8]) {
    let Some(mut settings) = default_settings() else { return };
    settings.allow_connect = bytes.len().is_multiple_of(2);
    settings.stream_errors = Some(bytes.len().is_multiple_of(3));
    let now = Instant::now();
    let whole = Rc::new(RefCell::new(session(Role::Server, settings.clone())));
    let pieces = Rc::new(RefCell::new(session(Role::Server, settings)));
    whole.borrow_mut().receive(&mut BytesMut::from(bytes), now);
    let mut input = BytesMut::new();
    for piece in bytes.chunks(7) {
        input.extend_from_slice(piece);
        pieces.borrow_mut().receive(&mut input, now);
    }
    assert_eq!(output(&whole, 0), output(&pieces, 0), "what comes in pieces is taken otherwise");
    let mut cx = Context::from_waker(Waker::noop());
    let mut head = HeaderMap::new();
    head.set_status(200);
    let mut streams = Vec::new();
    loop {
        let Some(accepted) = whole.borrow_mut().accept() else { break };
        let (mut stream, request) = H2Server::new(&whole, accepted);
        assert!(!request.method().is_empty(), "a request without a method");
        while let Poll::Ready(Ok(frame)) = stream.poll_frame(&mut cx) {
            if frame.is_last() {
                break;
            }
        }
        stream.send_head(&head, false);
        stream.send_data(Bytes::from_static(&[7; 100_000]), streams.len().is_multiple_of(2));
        let _ = (stream.poll_closed(&mut cx), stream.poll_flush(&mut cx), stream.poll_room(&mut cx));
        streams.push(stream);
    }
    output(&whole, 0);
    drop(streams);
    output(&whole, 0);
    whole.borrow_mut().lost();
    assert_eq!(whole.borrow().streams(), 0, "a stream that nobody holds is kept");
}

/// Bytes from a server, which a few requests wait for.
pub(crate) fn client(bytes: &[u8]) {
    let Some(settings) = default_settings() else { return };
    let now = Instant::now();
    let session = Rc::new(RefCell::new(session(Role::Client, settings)));
    let mut cx = Context::from_waker(Waker::noop());
    let mut head = HeaderMap::new();
    for (name, value) in [(":method", "GET"), (":path", "/"), (":authority", "h"), (":scheme", "http")] {
        head.append(name.as_bytes(), value.as_bytes());
    }
    let mut streams: Vec<H2Client> =
        (0..3).filter_map(|number| H2Client::open(&session, &head, number > 0, now).ok()).collect();
    output(&session, super::PREFACE.len());
    session.borrow_mut().receive(&mut BytesMut::from(bytes), now);
    for stream in &mut streams {
        stream.send_data(Bytes::from_static(&[7; 100_000]), true);
        let mut response = HeaderMap::new();
        while let Poll::Ready(Ok(_)) = stream.poll_head(&mut cx, &mut response) {}
        while let Poll::Ready(Ok(frame)) = stream.poll_frame(&mut cx) {
            if frame.is_last() {
                break;
            }
        }
    }
    output(&session, 0);
    drop(streams);
    session.borrow_mut().lost();
    assert_eq!(session.borrow().streams(), 0, "a stream that nobody holds is kept");
}

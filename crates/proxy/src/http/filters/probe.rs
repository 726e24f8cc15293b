//! A filter for tests of the seam: its configuration, a StringValue, says what it does.
//!
//! What waits does so until the test opens the gate of its thread.

use std::cell::Cell;
use std::sync::Arc;

use bytes::Bytes;

use crate::config::lower::Lower;
use crate::http::filters::{
    FilterConfig, HttpStreamFilter, Opening, Outcome, Registration, RouteSettings, Step,
};
use crate::http::headers::{HeaderMap, Known};
use crate::http::reply::Reply;
use crate::http::stream::Stream;

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: "probe",
    config_type: "google.protobuf.StringValue",
    lower,
    route_type: None,
    lower_route: None,
};

thread_local! {
    static OPEN: Cell<bool> = const { Cell::new(false) };
}

/// Lets everything go on that waits in this thread, or comes to.
pub(crate) fn open_gate() {
    OPEN.set(true);
}

async fn gate() -> Outcome {
    while !OPEN.get() {
        tokio::task::yield_now().await;
    }
    Outcome::Continue
}

#[derive(Debug)]
struct Probe(String);

impl FilterConfig for Probe {
    fn on_request(
        &self,
        _stream: &mut Stream,
        _settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        _end: bool,
    ) -> Opening {
        match self.0.split_once(' ') {
            Some(("pass", _)) => return Opening::PASS,
            Some(("head", _)) => {
                return Opening::Head(["x-first", "x-second"].map(|name| head.find(name).is_some()));
            }
            _ => {}
        }
        Opening::Open(Box::new(Probing { what: self.0.clone(), body: Vec::new(), asked: false }))
    }

    fn on_response_head(
        &self,
        _stream: &mut Stream,
        _settings: Option<&RouteSettings>,
        noted: [bool; 2],
        head: &mut HeaderMap,
    ) {
        head.append(b"x-marked", format!("{} {noted:?}", self.0).as_bytes());
    }
}

struct Probing {
    what: String,
    /// All of the body, if it is kept here.
    body: Vec<u8>,
    /// Whether the hook that waited was called again.
    asked: bool,
}

impl Probing {
    fn upper(&mut self, data: &mut Bytes, end: bool) -> Step {
        self.body.extend(data.to_ascii_uppercase());
        *data = Bytes::new();
        if !end {
            return Step::Hold;
        }
        *data = std::mem::take(&mut self.body).into();
        Step::Continue
    }
}

impl HttpStreamFilter for Probing {
    fn on_request(&mut self, _stream: &mut Stream, head: &mut HeaderMap, _end: bool) -> Step {
        match self.what.as_str() {
            "upper request" => Step::Hold,
            "wait for head" => Step::wait(gate()),
            "buffer" => Step::wait_buffering(gate()),
            "ask" if !self.asked => {
                self.asked = true;
                Step::wait(async {
                    tokio::task::yield_now().await;
                    Outcome::Again
                })
            }
            "ask" => {
                head.set_named("x-asked", b"1");
                Step::Continue
            }
            _ => Step::Continue,
        }
    }

    fn on_request_data(&mut self, stream: &mut Stream, data: &mut Bytes, end: bool) -> Step {
        match self.what.as_str() {
            "upper request" => {
                let step = self.upper(data, end);
                stream.request.set(Known::ContentLength, data.len().to_string().as_bytes());
                step
            }
            "wait for data" if data.starts_with(b"wait") => Step::wait(gate()),
            "refuse data" => Step::Reply(Reply::new(403, "probe", "no data")),
            // Whole lines only: the rest waits for the next piece.
            "lines" if !end && !data.ends_with(b"\n") => Step::Hold,
            _ => Step::Continue,
        }
    }

    fn on_request_trailers(
        &mut self,
        _stream: &mut Stream,
        trailers: &mut HeaderMap,
        data: &mut Bytes,
    ) -> Step {
        if self.what == "lines" {
            *data = Bytes::from_static(b"before the trailers\n");
            trailers.set_named("x-more", b"1");
        }
        Step::Continue
    }

    fn on_informational(&mut self, _stream: &mut Stream, head: &mut HeaderMap) {
        if self.what == "mark" {
            head.set_named("x-marked", b"1");
        }
    }

    fn on_response(&mut self, _stream: &mut Stream, head: &mut HeaderMap, end: bool) -> Step {
        match self.what.as_str() {
            "upper response" if !end => {
                head.remove(Known::ContentLength);
                Step::Hold
            }
            "mark" => {
                head.set_named("x-marked", b"1");
                Step::Continue
            }
            "wait for response" => Step::wait(gate()),
            "refuse response" => Step::Reply(Reply::new(403, "probe", "no response")),
            _ => Step::Continue,
        }
    }

    fn on_response_data(&mut self, stream: &mut Stream, data: &mut Bytes, end: bool) -> Step {
        match self.what.as_str() {
            "upper response" => {
                let step = self.upper(data, end);
                if end {
                    stream.response.set(Known::ContentLength, data.len().to_string().as_bytes());
                }
                step
            }
            "keep response" if !end => Step::Hold,
            "wait for data" if data.starts_with(b"wait") => Step::wait(gate()),
            "refuse response data" => Step::Reply(Reply::new(403, "probe", "no data")),
            _ => Step::Continue,
        }
    }
}

fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    let text: String = at.unpack(any)?;
    Some(Arc::new(Probe(text)))
}

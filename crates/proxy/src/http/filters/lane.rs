//! One direction of a stream on its way through the filters that want to see it.
//!
//! What comes in waits in a queue, each part with the number of filters that it has passed; the
//! part that is furthest ahead is at the front. [`Lane::advance`] moves parts until nothing is
//! left to move or a hook waits. Then the lane is blocked, and the other direction is not: the
//! two lanes of a stream know nothing of each other.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use smallvec::SmallVec;

use super::{ChainedFilter, HttpStreamFilter, Outcome, RouteSettings, Step, Waiting};
use crate::http::codec::Frame;
use crate::http::reply::Reply;
use crate::http::route::Selected;
use crate::http::stream::{Ended, Stream};

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Up, first filter first.
    Request,
    /// Down, last filter first.
    Response,
}

/// A part of a message.
#[derive(Debug)]
pub(crate) enum Part {
    /// The head of a response, which is in `Stream::response` as long as it is on its way.
    Head {
        /// Whether the message ends here.
        end: bool,
    },
    /// What follows a head.
    Frame(Frame),
}

impl Part {
    fn is_last(&self) -> bool {
        match self {
            Part::Head { end } => *end,
            Part::Frame(frame) => frame.is_last(),
        }
    }

    fn is_nothing(&self) -> bool {
        matches!(self, Part::Frame(frame) if frame.is_nothing())
    }

    fn len(&self) -> usize {
        match self {
            Part::Frame(Frame::Data { data, .. }) => data.len(),
            Part::Head { .. } | Part::Frame(_) => 0,
        }
    }
}

/// A filter that sees a stream.
pub(super) struct Live {
    /// Its place in the chain.
    pub(super) index: usize,
    /// `None`: the hooks of its configuration are called.
    pub(super) filter: Option<Box<dyn HttpStreamFilter>>,
    /// It wants to see the response's head only, and has noted this.
    head: Option<[bool; 2]>,
    /// What it holds of the request, and of the response.
    request: Kept,
    response: Kept,
}

impl Live {
    pub(super) fn new(index: usize, filter: Option<Box<dyn HttpStreamFilter>>) -> Self {
        Self { index, filter, head: None, request: Kept::default(), response: Kept::default() }
    }

    /// A filter that said `Opening::Head`.
    pub(super) fn of_head(index: usize, noted: [bool; 2]) -> Self {
        Self { head: Some(noted), ..Self::new(index, None) }
    }

    /// Whether it holds the request's head.
    pub(super) fn holds_request(&self) -> bool {
        self.request.holding
    }

    /// It holds the request's head from now on.
    pub(super) fn hold_request(&mut self) {
        self.request.holding = true;
    }

    /// The hook for this part. `ahead`: data that trailers are to follow.
    fn visit(
        &mut self,
        direction: Direction,
        part: &mut Part,
        ahead: &mut Bytes,
        stream: &mut Stream,
        filters: &[ChainedFilter],
    ) -> Step {
        let Some(filter) = &mut self.filter else {
            let Some(configured) = filters.get(self.index) else { return Step::Continue };
            return match self.head {
                None => watch(configured, direction, part, ahead, stream),
                Some(noted) => show_head(configured, noted, part, stream),
            };
        };
        match part {
            Part::Head { end } => {
                let mut head = std::mem::take(&mut stream.response);
                let step = filter.on_response(stream, &mut head, *end);
                stream.response = head;
                step
            }
            Part::Frame(Frame::Data { data, end }) => match direction {
                Direction::Request => filter.on_request_data(stream, data, *end),
                Direction::Response => filter.on_response_data(stream, data, *end),
            },
            Part::Frame(Frame::End) => {
                let mut data = Bytes::new();
                let step = match direction {
                    Direction::Request => filter.on_request_data(stream, &mut data, true),
                    Direction::Response => filter.on_response_data(stream, &mut data, true),
                };
                if !data.is_empty() {
                    *part = Part::Frame(Frame::Data { data, end: true });
                }
                step
            }
            Part::Frame(Frame::Trailers(trailers)) => match direction {
                Direction::Request => filter.on_request_trailers(stream, trailers, ahead),
                Direction::Response => filter.on_response_trailers(stream, trailers, ahead),
            },
        }
    }
}

/// The hook of a filter that said `Opening::Head`.
fn show_head(configured: &ChainedFilter, noted: [bool; 2], part: &Part, stream: &mut Stream) -> Step {
    if let Part::Head { .. } = part {
        let settings = settings(configured, stream).unwrap_or_default();
        let mut head = std::mem::take(&mut stream.response);
        configured.config.on_response_head(stream, settings.as_deref(), noted, &mut head);
        stream.response = head;
    }
    Step::Continue
}

/// The hook of a filter without an object for the stream.
fn watch(
    configured: &ChainedFilter,
    direction: Direction,
    part: &mut Part,
    ahead: &mut Bytes,
    stream: &mut Stream,
) -> Step {
    let settings = settings(configured, stream).unwrap_or_default();
    let (config, settings) = (&configured.config, settings.as_deref());
    match part {
        Part::Head { end } => {
            let mut head = std::mem::take(&mut stream.response);
            let step = config.on_response(stream, settings, &mut head, *end);
            stream.response = head;
            step
        }
        Part::Frame(Frame::Trailers(trailers)) => match direction {
            Direction::Request => config.on_request_trailers(stream, settings, trailers, ahead),
            Direction::Response => config.on_response_trailers(stream, settings, trailers, ahead),
        },
        Part::Frame(Frame::Data { .. } | Frame::End) => Step::Continue,
    }
}

/// The per-route settings of a filter; `Err`: it is disabled for the stream.
pub(super) fn settings(
    configured: &ChainedFilter,
    stream: &Stream,
) -> Result<Option<Arc<RouteSettings>>, Disabled> {
    settings_of(configured, stream.selected.as_deref()).map(|settings| settings.cloned())
}

/// The same, of the route that was selected.
pub(super) fn settings_of<'s>(
    configured: &ChainedFilter,
    selected: Option<&'s Selected>,
) -> Result<Option<&'s Arc<RouteSettings>>, Disabled> {
    let settings = selected.and_then(|selected| selected.overrides().find(configured.id));
    let disabled = settings.map_or(configured.disabled, |settings| settings.disabled);
    if disabled { Err(Disabled) } else { Ok(settings) }
}

/// A filter does not run for a stream.
pub(super) struct Disabled;

/// Parts of a message that a filter keeps back.
#[derive(Debug, Default)]
struct Kept {
    /// Whether the filter holds.
    holding: bool,
    parts: Vec<Part>,
    /// Bytes of the body among them.
    length: usize,
}

impl Kept {
    /// Keeps a part, within the stream's limit.
    fn keep(&mut self, part: Part, direction: Direction, stream: &Stream) -> Result<(), Ended> {
        self.length += part.len();
        if !part.is_nothing() {
            self.parts.push(part);
        }
        limit(self.length, direction, stream)
    }
}

/// Refuses to keep so many bytes of a body if they are too many.
fn limit(length: usize, direction: Direction, stream: &Stream) -> Result<(), Ended> {
    match direction {
        Direction::Request if length > stream.request_buffer_limit => Err(stream.request_too_large().into()),
        Direction::Response if length > stream.response_buffer_limit => {
            stream.stats.rs_too_large().inc();
            Err(Reply::new(500, "response_payload_too_large", "Internal Server Error").into())
        }
        Direction::Request | Direction::Response => Ok(()),
    }
}

/// See the module.
pub(super) struct Lane {
    direction: Direction,
    /// Parts that are on their way, with the number of live filters that they have passed.
    queue: VecDeque<(Part, usize)>,
    /// What has passed all.
    ready: VecDeque<Part>,
    /// The hook that waits.
    awaited: Option<Awaited>,
    /// Bytes of the body that came while a hook waits.
    buffered: usize,
    /// The message came in to its end.
    complete: bool,
}

/// A hook that waits for I/O or time.
struct Awaited {
    part: Part,
    passed: usize,
    /// Data that the part, trailers, is to follow.
    ahead: Bytes,
    until: Waiting,
    /// What comes meanwhile is buffered.
    buffers: bool,
}

impl Lane {
    pub(super) fn new(direction: Direction) -> Self {
        Self {
            direction,
            queue: VecDeque::new(),
            ready: VecDeque::new(),
            awaited: None,
            buffered: 0,
            complete: false,
        }
    }

    /// Whether there is nothing in it, apart from what filters hold.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.ready.is_empty() && self.awaited.is_none()
    }

    /// Whether the next part may be brought.
    pub(super) fn takes_more(&self) -> bool {
        !self.complete
            && match &self.awaited {
                None => self.queue.is_empty() && self.ready.is_empty(),
                Some(awaited) => awaited.buffers,
            }
    }

    /// Whether a hook waits, so that nothing may be brought.
    pub(super) fn is_blocked(&self) -> bool {
        self.complete || self.awaited.as_ref().is_some_and(|awaited| !awaited.buffers)
    }

    /// Whether the message came in to its end.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Brings the next part.
    pub(super) fn push(&mut self, part: Part, stream: &Stream) -> Result<(), Ended> {
        self.complete |= part.is_last();
        if self.awaited.is_some() {
            self.buffer(part, stream)
        } else {
            self.queue.push_back((part, 0));
            Ok(())
        }
    }

    /// Brings a part that waits for a hook's outcome.
    pub(super) fn buffer(&mut self, part: Part, stream: &Stream) -> Result<(), Ended> {
        self.complete |= part.is_last();
        self.buffered += part.len();
        self.queue.push_back((part, 0));
        limit(self.buffered, self.direction, stream)
    }

    /// What has passed all filters but is not gone yet has one more in front of it, behind
    /// `passed` others.
    pub(super) fn lengthen(&mut self, passed: usize) {
        while let Some(part) = self.ready.pop_back() {
            self.queue.push_front((part, passed));
        }
    }

    /// The next part that has passed all filters.
    pub(super) fn pop(&mut self) -> Option<Part> {
        self.ready.pop_front()
    }

    /// Whether a part has passed all filters.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Moves everything as far as it goes. `Err`: the stream ends here.
    pub(super) fn advance(
        &mut self,
        live: &mut SmallVec<[Live; 4]>,
        filters: &[ChainedFilter],
        stream: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Result<(), Ended> {
        let count = live.len();
        'parts: loop {
            let (mut part, mut passed, mut ahead, mut outcome) = match self.awaited.take() {
                Some(mut awaited) => match Pin::new(&mut awaited.until).poll(cx) {
                    Poll::Pending => {
                        self.awaited = Some(awaited);
                        return Ok(());
                    }
                    Poll::Ready(outcome) => {
                        self.buffered = 0;
                        (awaited.part, awaited.passed, awaited.ahead, Some(outcome))
                    }
                },
                None => match self.queue.pop_front() {
                    Some((part, passed)) => (part, passed, Bytes::new(), None),
                    None => return Ok(()),
                },
            };
            while passed < count {
                let place = match self.direction {
                    Direction::Request => passed,
                    Direction::Response => count - passed - 1,
                };
                let Some(filter) = live.get_mut(place) else { break };
                let step = match outcome.take() {
                    Some(Outcome::Continue) => Step::Continue,
                    Some(Outcome::Reply(reply)) => Step::Reply(reply),
                    Some(Outcome::Again) | None => {
                        filter.visit(self.direction, &mut part, &mut ahead, stream, filters)
                    }
                };
                let holds = match step {
                    Step::Continue => false,
                    // At the end there is nothing left to wait for.
                    Step::Hold => !part.is_last(),
                    Step::Reply(reply) => return Err(reply.into()),
                    Step::Await(until) => {
                        self.awaited = Some(Awaited { part, passed, ahead, until, buffers: false });
                        continue 'parts;
                    }
                    Step::AwaitBuffering(until) => {
                        self.awaited = Some(Awaited { part, passed, ahead, until, buffers: true });
                        continue 'parts;
                    }
                };
                let kept = match self.direction {
                    Direction::Request => &mut filter.request,
                    Direction::Response => &mut filter.response,
                };
                kept.holding = holds;
                if holds {
                    kept.keep(part, self.direction, stream)?;
                    continue 'parts;
                }
                passed += 1;
                if !kept.parts.is_empty() || !ahead.is_empty() {
                    // What was kept goes first.
                    kept.length = 0;
                    self.queue.push_front((part, passed));
                    if !ahead.is_empty() {
                        let data = Part::Frame(Frame::Data { data: ahead, end: false });
                        self.queue.push_front((data, passed));
                    }
                    for kept in kept.parts.drain(..).rev() {
                        self.queue.push_front((kept, passed));
                    }
                    continue 'parts;
                }
            }
            if !part.is_nothing() {
                self.ready.push_back(part);
            }
        }
    }
}

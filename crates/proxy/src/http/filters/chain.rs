//! How the hooks of a chain are called: order, holding back, limits, answers of our own.
//!
//! The request's head goes through all filters before the request is forwarded. A filter that
//! holds it has the body read here ([`Chain::on_request`]); what passed all filters by then
//! waits in `ready` for the forwarder. Once forwarding has begun, each frame goes through on its
//! own, and a filter may keep pieces of the body back.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::{ChainedFilter, HttpStreamFilter, Opening, Outcome, RouteSettings, Step};
use crate::http::codec::Frame;
use crate::http::headers::HeaderMap;
use crate::http::reply::Reply;
use crate::http::stream::{Ended, Stream};

/// The filters of one stream that want to see more of it, in the order of the chain.
#[derive(Default)]
pub(crate) struct Chain {
    live: SmallVec<[Live; 4]>,
    /// Filters of the chain up to here have seen the request.
    seen: usize,
    /// Frames of the request that have passed the live filters up to `passed`.
    ready: VecDeque<Frame>,
    passed: usize,
    /// The live filter that holds the response's head, and whether it is a whole response.
    head_holder: Option<usize>,
    /// The filter that answered in place of a response: it is not asked about its answer.
    answered: Option<usize>,
}

/// A filter that sees a stream.
struct Live {
    /// Its place in the chain.
    index: usize,
    /// `None`: the hooks of its configuration are called.
    filter: Option<Box<dyn HttpStreamFilter>>,
    /// Pieces of the request's body that it keeps, and those of the response's.
    request: Kept,
    response: Kept,
}

/// Pieces of a body that are kept back.
#[derive(Default)]
struct Kept {
    /// Whether the filter holds.
    holding: bool,
    pieces: Vec<Bytes>,
    length: usize,
}

/// What may go down to the client.
#[derive(Default)]
pub(crate) struct Released {
    /// The response's head, if it was held until now.
    pub(crate) head: Option<HeaderMap>,
    /// What follows, in order.
    pub(crate) frames: SmallVec<[Frame; 1]>,
}

/// What a step may wait for besides its own outcome: the stream knows deadlines and whether
/// the client is still there.
pub(crate) trait Attend {
    /// Waits for an awaited step.
    #[allow(clippy::type_complexity, reason = "a type alias would hide what is awaited")]
    fn attend(
        &mut self,
        stream: &mut Stream,
        step: Pin<Box<dyn Future<Output = Outcome>>>,
    ) -> impl Future<Output = Result<Outcome, Ended>>;

    /// The next frame of the request.
    fn next_frame(&mut self, stream: &mut Stream) -> impl Future<Output = Result<Frame, Ended>>;
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Go,
    Hold,
    Again,
}

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Request,
    Response,
}

impl Chain {
    /// Whether no filter wants to see more.
    pub(crate) fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// The request's head, first filter first; with the body as long as a filter holds it.
    /// `Err`: the stream ends here.
    pub(crate) async fn on_request(
        &mut self,
        stream: &mut Stream,
        head: &mut HeaderMap,
        end: bool,
        attend: &mut impl Attend,
    ) -> Result<(), Ended> {
        if stream.manager.filters.is_empty() {
            return Ok(());
        }
        let manager = Arc::clone(&stream.manager);
        for (index, configured) in manager.filters.iter().enumerate() {
            self.seen = index + 1;
            let Ok(settings) = settings(configured, stream) else { continue };
            let flow = self.open(configured, settings.as_deref(), index, stream, head, end, attend).await?;
            if flow == Flow::Hold && !end {
                stream.request = std::mem::take(head);
                let gathered = Box::pin(self.gather(stream, attend)).await;
                *head = std::mem::take(&mut stream.request);
                gathered?;
            }
        }
        if !self.ready.is_empty() {
            stream.request = std::mem::take(head);
            let passed = Box::pin(self.pass_ready(stream, self.live.len(), attend)).await;
            *head = std::mem::take(&mut stream.request);
            passed?;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "they are those of the hook")]
    async fn open(
        &mut self,
        configured: &ChainedFilter,
        settings: Option<&RouteSettings>,
        index: usize,
        stream: &mut Stream,
        head: &mut HeaderMap,
        end: bool,
        attend: &mut impl Attend,
    ) -> Result<Flow, Ended> {
        loop {
            let opening = configured.config.on_request(stream, settings, head, end);
            let (mut step, filter) = match opening {
                Opening::Done(Step::Continue | Step::Hold) => return Ok(Flow::Go),
                Opening::Done(step) => match settle(step, stream, attend).await? {
                    Flow::Again => continue,
                    Flow::Go | Flow::Hold => return Ok(Flow::Go),
                },
                Opening::Watch(step) => (step, None),
                Opening::Open(mut filter) => (filter.on_request(stream, head, end), Some(filter)),
            };
            let watches = filter.is_none();
            let place = self.live.len();
            let (request, response) = (Kept::default(), Kept::default());
            self.live.push(Live { index, filter, request, response });
            loop {
                let flow = settle(step, stream, attend).await?;
                let live = self.live.get_mut(place);
                match (flow, live.and_then(|live| live.filter.as_mut())) {
                    (Flow::Again, Some(filter)) => step = filter.on_request(stream, head, end),
                    // A configuration's hook that said `Watch` has nothing to be asked again for.
                    (Flow::Again | Flow::Go, _) => return Ok(Flow::Go),
                    (Flow::Hold, _) if watches => return Ok(Flow::Go),
                    (Flow::Hold, _) => {
                        if let Some(live) = self.live.get_mut(place) {
                            live.request.holding = true;
                        }
                        return Ok(Flow::Hold);
                    }
                }
            }
        }
    }

    /// Reads the body until the last live filter lets the head go.
    async fn gather(&mut self, stream: &mut Stream, attend: &mut impl Attend) -> Result<(), Ended> {
        let end = self.live.len();
        self.pass_ready(stream, end, attend).await?;
        while self.live.last().is_some_and(|live| live.request.holding) {
            let frame = attend.next_frame(stream).await?;
            let mut out = SmallVec::new();
            self.pass(Direction::Request, frame, 0, end, stream, attend, &mut out).await?;
            self.ready.extend(out);
        }
        Ok(())
    }

    /// Has the frames that are there pass the filters up to `end`.
    async fn pass_ready(
        &mut self,
        stream: &mut Stream,
        end: usize,
        attend: &mut impl Attend,
    ) -> Result<(), Ended> {
        let from = std::mem::replace(&mut self.passed, end);
        for frame in std::mem::take(&mut self.ready) {
            let mut out = SmallVec::new();
            self.pass(Direction::Request, frame, from, end, stream, attend, &mut out).await?;
            self.ready.extend(out);
        }
        Ok(())
    }

    /// Whether a part of the request waits that has passed all filters.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next part of the request that has passed all filters before it was forwarded.
    pub(crate) fn take_ready(&mut self) -> Option<Frame> {
        self.ready.pop_front()
    }

    /// A frame of the request; gives what goes up.
    pub(crate) async fn on_request_frame(
        &mut self,
        stream: &mut Stream,
        frame: Frame,
        attend: &mut impl Attend,
    ) -> Result<SmallVec<[Frame; 1]>, Ended> {
        let mut out = SmallVec::new();
        let end = self.live.len();
        self.pass(Direction::Request, frame, 0, end, stream, attend, &mut out).await?;
        Ok(out)
    }

    /// The response's head, last filter first; `None`: a filter holds it, it comes later.
    pub(crate) async fn on_response(
        &mut self,
        stream: &mut Stream,
        head: HeaderMap,
        end: bool,
        attend: &mut impl Attend,
    ) -> Result<Option<HeaderMap>, Ended> {
        let from = self.live.len();
        self.response_head(stream, head, end, from, attend).await
    }

    /// The head's way through the live filters below `from`.
    async fn response_head(
        &mut self,
        stream: &mut Stream,
        mut head: HeaderMap,
        end: bool,
        from: usize,
        attend: &mut impl Attend,
    ) -> Result<Option<HeaderMap>, Ended> {
        let manager = Arc::clone(&stream.manager);
        for (place, live) in self.live.iter_mut().enumerate().take(from).rev() {
            loop {
                let step = match (&mut live.filter, manager.filters.get(live.index)) {
                    (Some(filter), _) => filter.on_response(stream, &mut head, end),
                    (None, Some(configured)) => {
                        let settings = settings(configured, stream).unwrap_or_default();
                        configured.config.on_response(stream, settings.as_deref(), &mut head, end)
                    }
                    (None, None) => Step::Continue,
                };
                if matches!(step, Step::Reply(_)) {
                    self.answered = Some(live.index);
                }
                match settle(step, stream, attend).await? {
                    Flow::Again => {}
                    Flow::Hold if !end => {
                        live.response.holding = true;
                        self.head_holder = Some(place);
                        stream.response = head;
                        return Ok(None);
                    }
                    Flow::Go | Flow::Hold => break,
                }
            }
        }
        Ok(Some(head))
    }

    /// A frame of the response; gives what goes down.
    pub(crate) async fn on_response_frame(
        &mut self,
        stream: &mut Stream,
        frame: Frame,
        attend: &mut impl Attend,
    ) -> Result<Released, Ended> {
        let mut released = Released::default();
        let Some(holder) = self.head_holder else {
            let from = self.live.len();
            self.pass(Direction::Response, frame, from, 0, stream, attend, &mut released.frames).await?;
            return Ok(released);
        };
        // The filters in front of the holder have not seen the head yet.
        let from = self.live.len();
        let mut frames: SmallVec<[Frame; 1]> = SmallVec::new();
        self.pass(Direction::Response, frame, from, holder, stream, attend, &mut frames).await?;
        if self.live.get(holder).is_some_and(|live| live.response.holding) {
            return Ok(released);
        }
        self.head_holder = None;
        let head = std::mem::take(&mut stream.response);
        released.head = Box::pin(self.response_head(stream, head, false, holder, attend)).await?;
        if released.head.is_none() {
            for frame in frames {
                let more = Box::pin(self.on_response_frame(stream, frame, attend)).await?;
                released.head = more.head.or(released.head);
                released.frames.extend(more.frames);
            }
            return Ok(released);
        }
        for frame in frames {
            self.pass(Direction::Response, frame, holder, 0, stream, attend, &mut released.frames).await?;
        }
        Ok(released)
    }

    /// A frame's way through the live filters: requests from `from` up to below `to`, responses
    /// from below `from` down to `to`. What passes all of them goes to `out`.
    #[allow(clippy::too_many_arguments, reason = "one loop for both directions")]
    async fn pass(
        &mut self,
        direction: Direction,
        frame: Frame,
        from: usize,
        to: usize,
        stream: &mut Stream,
        attend: &mut impl Attend,
        out: &mut SmallVec<[Frame; 1]>,
    ) -> Result<(), Ended> {
        // Frames that wait in front of a filter, with its distance from `from`.
        let mut work: VecDeque<(Frame, usize)> = VecDeque::new();
        let mut next = Some((frame, 0));
        let count = from.abs_diff(to);
        while let Some((mut frame, mut step)) = next.take().or_else(|| work.pop_front()) {
            let passed = loop {
                if step == count {
                    break Some(frame);
                }
                let place = match direction {
                    Direction::Request => from + step,
                    Direction::Response => from - step - 1,
                };
                step += 1;
                let Some(live) = self.live.get_mut(place) else { continue };
                let (flow, ahead) = visit(live, direction, &mut frame, stream, attend).await?;
                let kept = match direction {
                    Direction::Request => &mut live.request,
                    Direction::Response => &mut live.response,
                };
                if flow == Flow::Hold && !frame.is_last() {
                    kept.holding = true;
                    kept.keep(frame, direction, stream)?;
                    break None;
                }
                kept.holding = false;
                if !kept.pieces.is_empty() || !ahead.is_empty() {
                    // What was kept goes first.
                    kept.length = 0;
                    let pieces = std::mem::take(&mut kept.pieces).into_iter();
                    work.push_front((frame, step));
                    let ahead = Some(ahead).filter(|data| !data.is_empty());
                    for data in pieces.chain(ahead).rev() {
                        work.push_front((Frame::Data { data, end: false }, step));
                    }
                    break None;
                }
            };
            out.extend(passed.filter(|frame| !frame.is_nothing()));
        }
        Ok(())
    }

    /// The head and body of an answer that the proxy makes itself: filters may change them, not
    /// replace them. Filters that have not seen the request are asked too.
    pub(crate) fn on_reply(&mut self, stream: &mut Stream, head: &mut HeaderMap, body: &mut Bytes) {
        let manager = Arc::clone(&stream.manager);
        let end = body.is_empty();
        for (index, configured) in manager.filters.iter().enumerate().rev() {
            if self.answered == Some(index) {
                continue;
            }
            let live = self.live.iter_mut().find(|live| live.index == index);
            match live {
                Some(Live { filter: Some(filter), .. }) => drop(filter.on_response(stream, head, end)),
                None if index < self.seen => {}
                _ => {
                    if let Ok(settings) = settings(configured, stream) {
                        drop(configured.config.on_response(stream, settings.as_deref(), head, end));
                    }
                }
            }
        }
        if !end {
            for live in self.live.iter_mut().rev().filter(|live| self.answered != Some(live.index)) {
                if let Some(filter) = &mut live.filter {
                    drop(filter.on_response_data(stream, body, true));
                }
            }
        }
    }

    /// The stream has ended.
    pub(crate) fn on_finish(&mut self, info: &crate::telemetry::stream_info::StreamInfo) {
        for filter in self.live.iter_mut().filter_map(|live| live.filter.as_mut()) {
            filter.on_finish(info);
        }
    }
}

impl Kept {
    /// Keeps a piece of a body, within the stream's limit.
    fn keep(&mut self, frame: Frame, direction: Direction, stream: &Stream) -> Result<(), Ended> {
        let Frame::Data { data, .. } = frame else { return Ok(()) };
        self.length += data.len();
        if !data.is_empty() {
            self.pieces.push(data);
        }
        match direction {
            Direction::Request if self.length > stream.request_buffer_limit => {
                Err(stream.request_too_large().into())
            }
            Direction::Response if self.length > stream.response_buffer_limit => {
                stream.stats.rs_too_large().inc();
                Err(Reply::new(500, "response_payload_too_large", "Internal Server Error").into())
            }
            Direction::Request | Direction::Response => Ok(()),
        }
    }
}

/// One filter's data or trailers hook. Gives data that trailers are to follow.
async fn visit(
    live: &mut Live,
    direction: Direction,
    frame: &mut Frame,
    stream: &mut Stream,
    attend: &mut impl Attend,
) -> Result<(Flow, Bytes), Ended> {
    let manager = live.filter.is_none().then(|| Arc::clone(&stream.manager));
    let configured = manager.as_ref().and_then(|manager| manager.filters.get(live.index));
    let mut ahead = Bytes::new();
    loop {
        let step = match (&mut *frame, &mut live.filter) {
            (Frame::Data { data, end }, Some(filter)) => match direction {
                Direction::Request => filter.on_request_data(stream, data, *end),
                Direction::Response => filter.on_response_data(stream, data, *end),
            },
            (Frame::End, Some(filter)) => {
                let mut data = Bytes::new();
                let step = match direction {
                    Direction::Request => filter.on_request_data(stream, &mut data, true),
                    Direction::Response => filter.on_response_data(stream, &mut data, true),
                };
                if !data.is_empty() {
                    *frame = Frame::Data { data, end: true };
                }
                step
            }
            (Frame::Trailers(trailers), Some(filter)) => match direction {
                Direction::Request => filter.on_request_trailers(stream, trailers, &mut ahead),
                Direction::Response => filter.on_response_trailers(stream, trailers, &mut ahead),
            },
            (Frame::Trailers(trailers), None) => match configured {
                Some(configured) => {
                    let settings = settings(configured, stream).unwrap_or_default();
                    let (config, settings) = (&configured.config, settings.as_deref());
                    match direction {
                        Direction::Request => {
                            config.on_request_trailers(stream, settings, trailers, &mut ahead)
                        }
                        Direction::Response => {
                            config.on_response_trailers(stream, settings, trailers, &mut ahead)
                        }
                    }
                }
                None => Step::Continue,
            },
            (Frame::Data { .. } | Frame::End, None) => Step::Continue,
        };
        match settle(step, stream, attend).await? {
            Flow::Again => {}
            flow => return Ok((flow, ahead)),
        }
    }
}

/// The per-route settings of a filter; `Err`: it is disabled for the stream.
fn settings(configured: &ChainedFilter, stream: &Stream) -> Result<Option<Arc<RouteSettings>>, Disabled> {
    let settings = stream.overrides().and_then(|overrides| overrides.find(configured.id));
    let disabled = settings.map_or(configured.disabled, |settings| settings.disabled);
    if disabled { Err(Disabled) } else { Ok(settings.cloned()) }
}

/// A filter does not run for a stream.
struct Disabled;

async fn settle(step: Step, stream: &mut Stream, attend: &mut impl Attend) -> Result<Flow, Ended> {
    let outcome = match step {
        Step::Continue => return Ok(Flow::Go),
        Step::Hold => return Ok(Flow::Hold),
        Step::Reply(reply) => Outcome::Reply(reply),
        Step::Await(step) => attend.attend(stream, step).await?,
    };
    match outcome {
        Outcome::Continue => Ok(Flow::Go),
        Outcome::Again => Ok(Flow::Again),
        Outcome::Reply(reply) => Err(Ended::Reply(Box::new(reply))),
    }
}

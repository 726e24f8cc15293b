//! How the hooks of a chain are called: order, holding back, limits, answers of our own.
//!
//! The request's head goes through all filters before the request is forwarded
//! ([`Chain::on_request`]); as long as a filter holds it, the body is read here. From then on
//! whoever moves the messages brings part after part to the two lanes (`lane`) and takes what has
//! passed all filters; a hook that waits blocks its lane, and nothing else.
//!
//! A chain of which no filter wants to see more than the head is empty: the forwarder asks once
//! per event ([`Chain::is_empty`]), and then does without it.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use smallvec::SmallVec;

use super::lane::{Direction, Lane, Live, Part, settings, settings_of};
use super::{ChainedFilter, Opening, Outcome, RouteSettings, Step, Waiting};
use crate::cluster::pool::via::AlpnOverrides;
use crate::http::codec::Frame;
use crate::http::config::HttpConnectionManager;
use crate::http::headers::HeaderMap;
use crate::http::stream::{Ended, Stream};
use crate::telemetry::stream_info::StreamInfo;

/// The filters of one stream that want to see more of it, in the order of the chain.
#[derive(Default)]
pub(crate) struct Chain {
    /// `None`: there are none, and nothing waits for them.
    open: Option<Box<Open>>,
    /// As long as there are none: the places of those that want to see the response's head.
    heads: u64,
    /// What those have noted: a bit of each in either word, at its place.
    notes: [u64; 2],
    /// Filters of the chain up to here have seen the request.
    seen: usize,
    /// A filter has held the request up: it has waited for something, or for the body.
    waited: bool,
    /// A response has begun its way through the filters.
    responding: bool,
    /// The upgrade whose own filters these are (`HttpConnectionManager::upgrade_filters`).
    upgrade: Option<usize>,
}

struct Open {
    live: SmallVec<[Live; 4]>,
    request: Lane,
    response: Lane,
}

impl Open {
    fn new() -> Self {
        Self {
            live: SmallVec::new(),
            request: Lane::new(Direction::Request),
            response: Lane::new(Direction::Response),
        }
    }
}

/// What a waiting hook of a request's head waits with: the stream knows deadlines and whether
/// the client is still there.
pub(crate) trait Attend {
    /// The next frame of the request, or why there will be none.
    fn poll_frame(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<Result<Frame, Ended>>;

    /// Ready when the client is gone or a deadline has passed.
    fn poll_ended(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<Ended>;
}

/// Places in a chain that fit into a word; filters behind them are kept in a list.
const PLACES: usize = 64;

/// The places that are in a word, first to last.
fn places(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let place = (word != 0).then(|| word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(place)
    })
}

/// What the filter at this place has noted.
fn note(notes: [u64; 2], place: usize) -> [bool; 2] {
    notes.map(|word| word >> place & 1 != 0)
}

/// What became of a step of a request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Go,
    Hold,
    Again,
}

impl Chain {
    /// Whether no filter wants to see more.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_none()
    }

    /// The request asks for this upgrade, and may: its own filters are run, if it has some.
    pub(crate) fn choose(&mut self, upgrade: &[u8], manager: &HttpConnectionManager) {
        let mut all = manager.upgrade_filters.iter();
        self.upgrade = all.position(|(name, _)| name.as_bytes().eq_ignore_ascii_case(upgrade));
    }

    /// The filters that it runs.
    fn filters<'m>(&self, manager: &'m HttpConnectionManager) -> &'m [ChainedFilter] {
        filters(manager, self.upgrade)
    }

    /// Whether it has no filter at all.
    pub(crate) fn has_none(&self, manager: &HttpConnectionManager) -> bool {
        self.filters(manager).is_empty()
    }

    /// Whether a filter has held the request up since it came.
    pub(crate) fn has_waited(&self) -> bool {
        self.waited
    }

    /// What connections for the request offer by ALPN, if a filter that runs for it says so.
    pub(crate) fn alpn<'s>(&self, stream: &'s Stream) -> Option<&'s AlpnOverrides> {
        let manager: &HttpConnectionManager = &stream.manager;
        let filter = match self.upgrade {
            None => manager.filters.get(manager.alpn?)?,
            Some(_) => self.filters(manager).iter().rfind(|filter| filter.config.alpn().is_some())?,
        };
        settings_of(filter, stream.selected.as_deref()).ok()?;
        filter.config.alpn()
    }

    /// The filters that want to see more, with those before that want to see the response's head.
    fn opened(&mut self) -> &mut Open {
        let (heads, notes) = (std::mem::take(&mut self.heads), self.notes);
        self.open.get_or_insert_with(|| {
            let mut open = Open::new();
            open.live.extend(places(heads).map(|place| Live::of_head(place, note(notes, place))));
            Box::new(open)
        })
    }

    /// The response's head, if no filter wants to see more than that: last filter first.
    #[inline]
    pub(crate) fn on_response_head(&self, stream: &mut Stream, head: &mut HeaderMap) {
        if self.heads != 0 {
            self.show_head(stream, head);
        }
    }

    fn show_head(&self, stream: &mut Stream, head: &mut HeaderMap) {
        let (manager, selected) = (stream.manager.clone(), stream.selected.clone());
        for (place, filter) in self.filters(&manager).iter().enumerate().take(PLACES).rev() {
            if self.heads >> place & 1 != 0
                && let Ok(settings) = settings_of(filter, selected.as_deref())
            {
                let settings = settings.map(|settings| &**settings);
                filter.config.on_response_head(stream, settings, note(self.notes, place), head);
            }
        }
    }

    /// Whether a response has begun its way through the filters: an answer of our own in its
    /// place is shown to none of them, as in Envoy.
    pub(crate) fn is_responding(&self) -> bool {
        self.responding
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
        if self.filters(&stream.manager).is_empty() {
            return Ok(());
        }
        let manager = stream.manager.clone();
        for (index, configured) in self.filters(&manager).iter().enumerate() {
            self.seen = index + 1;
            let selected = stream.selected.clone();
            let Ok(settings) = settings_of(configured, selected.as_deref()) else { continue };
            let settings = settings.map(|settings| &**settings);
            let opening = configured.config.on_request(stream, settings, head, end);
            // Most want nothing more. For them there is no future to be made.
            if let Opening::Done(Step::Continue | Step::Hold) = opening {
                continue;
            }
            if let Opening::Head(noted) = opening
                && self.open.is_none()
                && index < PLACES
            {
                self.heads |= 1 << index;
                for (word, bit) in self.notes.iter_mut().zip(noted) {
                    *word |= u64::from(bit) << index;
                }
                continue;
            }
            let opened = self.open(opening, configured, settings, index, stream, head, end, attend);
            let flow = pin!(opened).await?;
            if flow == Flow::Hold && !end {
                stream.request = std::mem::take(head);
                let gathered = Box::pin(self.gather(stream, &manager, attend)).await;
                *head = std::mem::take(&mut stream.request);
                gathered?;
            }
        }
        Ok(())
    }

    /// Goes on with what a filter made of the request's head.
    #[allow(clippy::too_many_arguments, reason = "they are those of the hook")]
    async fn open(
        &mut self,
        mut opening: Opening,
        configured: &ChainedFilter,
        settings: Option<&RouteSettings>,
        index: usize,
        stream: &mut Stream,
        head: &mut HeaderMap,
        end: bool,
        attend: &mut impl Attend,
    ) -> Result<Flow, Ended> {
        loop {
            let (mut step, filter) = match opening {
                Opening::Head(noted) => {
                    let open = self.opened();
                    open.request.lengthen(open.live.len());
                    open.live.push(Live::of_head(index, noted));
                    return Ok(Flow::Go);
                }
                Opening::Done(Step::Continue | Step::Hold) => return Ok(Flow::Go),
                Opening::Done(step) => match self.settle(step, stream, end, attend).await? {
                    Flow::Again => {
                        opening = configured.config.on_request(stream, settings, head, end);
                        continue;
                    }
                    Flow::Go | Flow::Hold => return Ok(Flow::Go),
                },
                Opening::Watch(step) => (step, None),
                Opening::Open(mut filter) => (filter.on_request(stream, head, end), Some(filter)),
            };
            let watches = filter.is_none();
            let open = self.opened();
            let place = open.live.len();
            open.request.lengthen(place);
            open.live.push(Live::new(index, filter));
            loop {
                let flow = self.settle(step, stream, end, attend).await?;
                let live = self.open.as_mut().and_then(|open| open.live.get_mut(place));
                match (flow, live) {
                    (Flow::Again, Some(Live { filter: Some(filter), .. })) => {
                        step = filter.on_request(stream, head, end);
                    }
                    (Flow::Hold, Some(live)) if !watches => {
                        live.hold_request();
                        return Ok(Flow::Hold);
                    }
                    // A configuration's hook that said `Watch` has nothing to be asked again for.
                    _ => return Ok(Flow::Go),
                }
            }
        }
    }

    /// What becomes of a step of a request's head.
    async fn settle(
        &mut self,
        step: Step,
        stream: &mut Stream,
        end: bool,
        attend: &mut impl Attend,
    ) -> Result<Flow, Ended> {
        let outcome = match step {
            Step::Continue => return Ok(Flow::Go),
            Step::Hold => return Ok(Flow::Hold),
            Step::Reply(reply) => Outcome::Reply(reply),
            Step::Await(until) => self.wait(until, false, stream, attend).await?,
            Step::AwaitBuffering(until) => self.wait(until, !end, stream, attend).await?,
        };
        match outcome {
            Outcome::Continue => Ok(Flow::Go),
            Outcome::Again => Ok(Flow::Again),
            Outcome::Reply(reply) => Err(reply.into()),
        }
    }

    /// Waits for a hook of the request's head; `buffers`: the body is read meanwhile.
    async fn wait(
        &mut self,
        mut until: Waiting,
        buffers: bool,
        stream: &mut Stream,
        attend: &mut impl Attend,
    ) -> Result<Outcome, Ended> {
        self.waited = true;
        poll_fn(|cx| {
            if let Poll::Ready(outcome) = Pin::new(&mut until).poll(cx) {
                return Poll::Ready(Ok(outcome));
            }
            while buffers && !self.open.as_ref().is_some_and(|open| open.request.is_complete()) {
                let Poll::Ready(frame) = attend.poll_frame(cx, stream) else { return Poll::Pending };
                let open = self.opened();
                let buffered = frame.and_then(|frame| open.request.buffer(Part::Frame(frame), stream));
                if let Err(ended) = buffered {
                    return Poll::Ready(Err(ended));
                }
            }
            attend.poll_ended(cx, stream).map(Err)
        })
        .await
    }

    /// Reads the body until the last live filter lets the head go.
    async fn gather(
        &mut self,
        stream: &mut Stream,
        manager: &HttpConnectionManager,
        attend: &mut impl Attend,
    ) -> Result<(), Ended> {
        self.waited = true;
        let filters = filters(manager, self.upgrade);
        let Some(open) = &mut self.open else { return Ok(()) };
        let Open { live, request, .. } = &mut **open;
        poll_fn(|cx| {
            loop {
                if let Err(ended) = request.advance(live, filters, stream, cx) {
                    return Poll::Ready(Err(ended));
                }
                let held = live.last().is_some_and(Live::holds_request);
                if !held || request.is_complete() && request.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                // What has passed all filters so far has others in front of it, later.
                if request.is_blocked() {
                    return attend.poll_ended(cx, stream).map(Err);
                }
                let Poll::Ready(frame) = attend.poll_frame(cx, stream) else { return Poll::Pending };
                let pushed = frame.and_then(|frame| request.push(Part::Frame(frame), stream));
                if let Err(ended) = pushed {
                    return Poll::Ready(Err(ended));
                }
            }
        })
        .await
    }

    /// Has all of a request's body pass the filters, before it is forwarded; gives its data.
    pub(crate) async fn pass_body(
        &mut self,
        stream: &mut Stream,
        attend: &mut impl Attend,
    ) -> Result<VecDeque<Bytes>, Ended> {
        let mut body = VecDeque::new();
        poll_fn(|cx| {
            loop {
                match self.poll_request(cx, stream) {
                    Poll::Ready(Err(ended)) => return Poll::Ready(Err(ended)),
                    Poll::Ready(Ok(frame)) => {
                        let last = frame.is_last();
                        if let Frame::Data { data, .. } = frame {
                            body.push_back(data);
                        }
                        if last {
                            return Poll::Ready(Ok(()));
                        }
                        continue;
                    }
                    Poll::Pending => {}
                }
                if !self.takes_request() {
                    return attend.poll_ended(cx, stream).map(Err);
                }
                let Poll::Ready(frame) = attend.poll_frame(cx, stream) else { return Poll::Pending };
                let pushed = frame.and_then(|frame| self.push_request(frame, stream));
                if let Err(ended) = pushed {
                    return Poll::Ready(Err(ended));
                }
            }
        })
        .await?;
        Ok(body)
    }

    /// Whether a part of the request is on its way through the filters.
    pub(crate) fn has_request(&self) -> bool {
        self.open.as_ref().is_some_and(|open| !open.request.is_empty())
    }

    /// Whether the next frame of the request may be brought: no hook waits, or one lets it be
    /// buffered.
    pub(crate) fn takes_request(&self) -> bool {
        self.open.as_ref().is_none_or(|open| open.request.takes_more())
    }

    /// Brings a frame of the request.
    pub(crate) fn push_request(&mut self, frame: Frame, stream: &Stream) -> Result<(), Ended> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.request.push(Part::Frame(frame), stream)
    }

    /// Moves the request on; says whether there is something to take.
    pub(crate) fn advance_request(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
    ) -> Result<bool, Ended> {
        let upgrade = self.upgrade;
        let Some(open) = &mut self.open else { return Ok(false) };
        if !open.request.is_empty() {
            let manager = stream.manager.clone();
            open.request.advance(&mut open.live, filters(&manager, upgrade), stream, cx)?;
        }
        Ok(open.request.has_ready())
    }

    /// The next frame of the request that has passed all filters.
    pub(crate) fn take_request(&mut self) -> Option<Frame> {
        match self.open.as_mut()?.request.pop()? {
            Part::Frame(frame) => Some(frame),
            // There are none of requests.
            Part::Head { .. } => None,
        }
    }

    fn poll_request(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<Result<Frame, Ended>> {
        match self.advance_request(cx, stream) {
            Err(ended) => Poll::Ready(Err(ended)),
            Ok(_) => self.take_request().map_or(Poll::Pending, |frame| Poll::Ready(Ok(frame))),
        }
    }

    /// An interim response.
    pub(crate) fn on_informational(&mut self, stream: &mut Stream, head: &mut HeaderMap) {
        let live = self.open.iter_mut().flat_map(|open| open.live.iter_mut().rev());
        for filter in live.filter_map(|live| live.filter.as_mut()) {
            filter.on_informational(stream, head);
        }
    }

    /// Brings the response's head.
    pub(crate) fn push_response(&mut self, head: HeaderMap, end: bool, stream: &mut Stream) {
        self.responding = true;
        stream.response = head;
        if let Some(open) = &mut self.open {
            // A head has no length: there is no limit to exceed.
            let _: Result<(), Ended> = open.response.push(Part::Head { end }, stream);
        }
    }

    /// Whether the next frame of the response may be brought.
    pub(crate) fn takes_response(&self) -> bool {
        self.open.as_ref().is_none_or(|open| open.response.takes_more())
    }

    /// Brings a frame of the response.
    pub(crate) fn push_response_frame(&mut self, frame: Frame, stream: &Stream) -> Result<(), Ended> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.response.push(Part::Frame(frame), stream)
    }

    /// Moves the response on; says whether there is something to take.
    pub(crate) fn advance_response(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
    ) -> Result<bool, Ended> {
        let upgrade = self.upgrade;
        let Some(open) = &mut self.open else { return Ok(false) };
        if !open.response.is_empty() {
            let manager = stream.manager.clone();
            open.response.advance(&mut open.live, filters(&manager, upgrade), stream, cx)?;
        }
        Ok(open.response.has_ready())
    }

    /// The next part of the response that has passed all filters.
    pub(crate) fn take_response(&mut self) -> Option<Part> {
        self.open.as_mut()?.response.pop()
    }

    /// Brings an answer that the proxy makes itself. All filters see it, those too that have not
    /// seen the request; not those that wanted to see no more of it than its head.
    pub(crate) fn push_reply(&mut self, head: HeaderMap, body: Bytes, stream: &mut Stream) {
        let manager = stream.manager.clone();
        self.opened();
        for (index, configured) in self.filters(&manager).iter().enumerate().skip(self.seen) {
            if settings(configured, stream).is_ok() {
                self.opened().live.push(Live::new(index, None));
            }
        }
        // As an answer of our own has no limit, there is none to exceed.
        self.push_response(head, body.is_empty(), stream);
        if !body.is_empty() {
            let _: Result<(), Ended> =
                self.push_response_frame(Frame::Data { data: body, end: true }, stream);
        }
    }

    /// The stream has ended.
    pub(crate) fn on_finish(&mut self, info: &StreamInfo) {
        let live = self.open.iter_mut().flat_map(|open| &mut open.live);
        for filter in live.filter_map(|live| live.filter.as_mut()) {
            filter.on_finish(info);
        }
    }
}

/// The filters of the connection manager, or of one of its upgrades.
fn filters(manager: &HttpConnectionManager, upgrade: Option<usize>) -> &[ChainedFilter] {
    let own = upgrade.and_then(|index| manager.upgrade_filters.get(index));
    own.map_or(&manager.filters, |(_, filters)| filters)
}

//! `envoy.filters.http.compressor`: compresses responses for clients that accept it, and requests if
//! it is told to.
//!
//! Compressors of one chain choose together, by the client's `accept-encoding`, which of them it is
//! (`negotiate`); as each sees the same facts, each comes to the same choice by itself.

mod config;
mod negotiate;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;

use self::negotiate::{Because, Candidate, Choice};
use crate::compression::{Encoder, Failed, Library};
use crate::http::filters::{
    ChainedFilter, FilterConfig, HttpStreamFilter, Opening, Registration, RouteSettings, Step, lane,
};
use crate::http::headers::{HeaderMap, Known};
use crate::http::reply::Reply;
use crate::http::route::matcher::StringMatcher;
use crate::http::stream::Stream;
use crate::http::upgrade;
use crate::telemetry::per_thread::PerThread;
use crate::telemetry::stats::{ThreadStats, stats_scope};

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: "envoy.filters.http.compressor",
    config_type: "envoy.extensions.filters.http.compressor.v3.Compressor",
    lower: config::lower,
    route_type: Some("envoy.extensions.filters.http.compressor.v3.CompressorPerRoute"),
    lower_route: Some(config::lower_route),
};

const CONTENT_ENCODING: &str = "content-encoding";
const STATUS: &str = "x-envoy-compression-status";

stats_scope! {
    /// `http.STAT_PREFIX.compressor.NAME.LIBRARY.`, with `request.` or `response.` behind it.
    struct DirectionStats {
        counter compressed;
        counter content_length_too_small;
        counter not_compressed;
        counter total_compressed_bytes;
        counter total_uncompressed_bytes;
    }
}

stats_scope! {
    /// `http.STAT_PREFIX.compressor.NAME.LIBRARY.`: of responses.
    struct ChoiceStats {
        counter header_compressor_overshadowed;
        counter header_compressor_used;
        counter header_identity;
        counter header_not_valid;
        counter header_wildcard;
        counter no_accept_header;
        counter not_compressed_etag;
    }
}

/// What it counts on one worker.
#[derive(Debug)]
struct Stats {
    request: DirectionStats,
    response: DirectionStats,
    choice: ChoiceStats,
}

/// The filter as configured in a chain.
#[derive(Debug)]
struct Filter(Arc<Compressor>);

/// Compressor.
#[derive(Debug)]
pub(crate) struct Compressor {
    /// `compressor_library.name`, for stats.
    name: Box<str>,
    library: Arc<Library>,
    /// `None`: requests are not compressed.
    request: Option<Direction>,
    response: Direction,
    /// Whether the stats of responses are behind `response.`: `response_direction_config` is there.
    apart: bool,
    etags: Etags,
    /// `remove_accept_encoding_header`.
    hides: bool,
    /// `uncompressible_response_codes`.
    codes: Vec<u16>,
    /// `status_header_enabled`.
    tells: bool,
    /// `choose_first`.
    first: bool,
    stats: PerThread<Stats>,
}

/// CommonDirectionConfig.
#[derive(Debug)]
struct Direction {
    enabled: bool,
    /// `min_content_length`, in bytes.
    shortest: u64,
    types: Types,
}

/// Which content types.
#[derive(Debug)]
enum Types {
    /// These, whatever their case.
    Of(Vec<Box<str>>),
    Matching(Vec<StringMatcher>),
}

/// What becomes of a strong `etag`, as the compressed response has other bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Etags {
    Remove,
    /// `weaken_etag_on_compress`.
    Weaken,
    /// `disable_on_etag_header`: a response with any is not compressed.
    Leave,
}

/// CompressorPerRoute.
#[derive(Debug, Default)]
struct RouteCompressor {
    /// Whether responses are compressed.
    enabled: Option<bool>,
    hides: Option<bool>,
    library: Option<Arc<Library>>,
}

impl Compressor {
    fn stats(&self, thread: &ThreadStats, manager: &str) -> &Stats {
        self.stats.of(thread, || {
            let prefix = format!("http.{manager}.compressor.{}.{}.", self.name, self.library.stat_name());
            let response = if self.apart { format!("{prefix}response.") } else { prefix.clone() };
            Stats {
                request: DirectionStats::kept(thread, &format!("{prefix}request.")),
                response: DirectionStats::kept(thread, &response),
                choice: ChoiceStats::kept(thread, &prefix),
            }
        })
    }

    /// The library for a route.
    fn library<'c>(&'c self, route: Option<&'c RouteCompressor>) -> &'c Arc<Library> {
        route.and_then(|route| route.library.as_ref()).unwrap_or(&self.library)
    }

    /// Whether responses are compressed for a route.
    fn is_enabled(&self, route: Option<&RouteCompressor>) -> bool {
        route.and_then(|route| route.enabled).unwrap_or(self.response.enabled)
    }
}

impl Direction {
    /// Whether a message is long enough, as far as it says; counts it if not.
    fn is_long_enough(&self, head: &HeaderMap, stats: &DirectionStats) -> bool {
        let Some(length) = head.get(Known::ContentLength) else { return true };
        let length = std::str::from_utf8(length).ok().and_then(|text| text.parse::<u64>().ok());
        let enough = length.is_some_and(|length| length >= self.shortest);
        if !enough {
            stats.content_length_too_small().inc();
        }
        enough
    }

    /// Whether the content type is one of those; a message without one is.
    fn takes(&self, head: &HeaderMap) -> bool {
        let Some(value) = head.get(Known::ContentType) else { return true };
        let value = value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        match &self.types {
            Types::Of(types) => types.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(value)),
            Types::Matching(matchers) => matchers.iter().any(|matcher| matcher.matches(value)),
        }
    }
}

/// Whether a list of tokens in lines of this name has one, whatever its case.
fn has_token(head: &HeaderMap, name: &str, wanted: impl Fn(&[u8]) -> bool) -> bool {
    head.find_all(name)
        .flat_map(|line| line.split(|byte| *byte == b','))
        .any(|token| wanted(token.trim_ascii()))
}

/// Whether nobody has forbidden to change it on its way.
fn may_change(head: &HeaderMap) -> bool {
    !has_token(head, "cache-control", |token| token.eq_ignore_ascii_case(b"no-transform"))
}

/// Whether it is a whole resource as it is.
fn is_plain(head: &HeaderMap) -> bool {
    // Deviation: a part of a resource is never compressed, as its range would be one of other bytes;
    // Envoy compresses it unless `uncompressible_response_codes` has 206.
    head.find(CONTENT_ENCODING).is_none() && head.find("content-range").is_none()
}

/// Whether the message was encoded on its way here already.
fn is_transfer_encoded(head: &HeaderMap, library: &Library) -> bool {
    let known = ["gzip", "br", "deflate", "compress", "zstd", library.encoding()];
    has_token(head, "transfer-encoding", |token| {
        known.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(token))
    })
}

impl FilterConfig for Filter {
    fn on_request(
        &self,
        stream: &mut Stream,
        settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        end: bool,
    ) -> Opening {
        let Filter(compressor) = self;
        let route = settings.and_then(RouteSettings::first::<RouteCompressor>);
        // Several lines are one list.
        let lines: Vec<&[u8]> = head.find_all("accept-encoding").collect();
        let accepted = (!lines.is_empty()).then(|| lines.join(&b','));
        if compressor.is_enabled(route) && route.and_then(|route| route.hides).unwrap_or(compressor.hides) {
            head.remove(Known::AcceptEncoding);
        }
        let stats = compressor.stats(stream.worker.stats(), &stream.manager.stat_prefix);
        let library = compressor.library(route);
        let compresses = |direction: &Direction| {
            !end && direction.enabled
                && upgrade::requested(head).is_none()
                && direction.is_long_enough(head, &stats.request)
                && direction.takes(head)
                && head.find(CONTENT_ENCODING).is_none()
                && !is_transfer_encoded(head, library)
        };
        let encoder = compressor.request.as_ref().is_some_and(compresses).then(|| library.encoder());
        let request = match encoder {
            Some(Ok(encoder)) => {
                head.remove(Known::ContentLength);
                head.append(CONTENT_ENCODING.as_bytes(), library.encoding().as_bytes());
                stats.request.compressed().inc();
                Some(encoder)
            }
            Some(Err(Failed)) | None => {
                stats.request.not_compressed().inc();
                None
            }
        };
        let compressor = Arc::clone(compressor);
        Opening::Open(Box::new(Compressing { compressor, accepted, request, response: None }))
    }

    /// An answer of our own to a request that came not so far: what the client accepts is not known
    /// here, as in Envoy.
    fn on_response(
        &self,
        stream: &mut Stream,
        _settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        end: bool,
    ) -> Step {
        self.0.judge(stream, None, head, end);
        Step::Continue
    }

    fn compressor(&self) -> Option<&Arc<Compressor>> {
        Some(&self.0)
    }
}

impl Compressor {
    /// The chain that it is in, with its own place.
    fn chain<'s>(self: &Arc<Self>, stream: &'s Stream) -> Option<(&'s [ChainedFilter], &'s ChainedFilter)> {
        let own = |filter: &&ChainedFilter| {
            filter.config.compressor().is_some_and(|compressor| Arc::ptr_eq(compressor, self))
        };
        let upgrades = stream.manager.upgrade_filters.iter().map(|(_, filters)| &filters[..]);
        let mut chains = std::iter::once(&stream.manager.filters[..]).chain(upgrades);
        chains.find_map(|chain| Some((chain, chain.iter().find(own)?)))
    }

    /// Whether a response is compressed: the encoder then, and the head says so.
    fn judge(
        self: &Arc<Self>,
        stream: &Stream,
        accepted: Option<&[u8]>,
        head: &mut HeaderMap,
        end: bool,
    ) -> Option<Encoder> {
        let (chain, place) = self.chain(stream)?;
        let selected = stream.selected.as_deref();
        let route_of = |filter: &ChainedFilter| {
            let settings = lane::settings_of(filter, selected).ok().flatten().cloned();
            settings.filter(|settings| settings.first::<RouteCompressor>().is_some())
        };
        let settings = route_of(place);
        let route = settings.as_deref().and_then(RouteSettings::first::<RouteCompressor>);
        let stats = self.stats(stream.worker.stats(), &stream.manager.stat_prefix);
        let library = self.library(route);
        let status = head.status();
        let tunnel = status == 101
            || head.contains(Known::Upgrade)
            || stream.request.method() == b"CONNECT" && status / 100 == 2;
        let candidate = !tunnel && self.is_enabled(route);
        // Who might compress counts what the client accepts. Where the reasons are told, everything else
        // is asked first.
        let (compressible, asks) = if self.tells {
            let compressible = candidate && self.is_compressible_or_tells(head, end, library, stats);
            (compressible, compressible)
        } else {
            let long = self.is_enabled(route) && self.response.is_long_enough(head, &stats.response);
            let compressible = candidate && long && self.is_compressible(head, stats);
            (compressible, long)
        };
        let asks = asks && !end;
        let chosen = asks && {
            let candidates = chain.iter().filter_map(|filter| {
                let compressor = filter.config.compressor()?;
                lane::settings_of(filter, selected).ok()?;
                compressor.response.takes(head).then(|| {
                    let settings = route_of(filter);
                    let route = settings.as_deref().and_then(RouteSettings::first::<RouteCompressor>);
                    Candidate { encoding: compressor.library(route).encoding(), first: compressor.first }
                })
            });
            stats.choice.count(accepted.map(|accepted| negotiate::choose(accepted, candidates)), library)
        };
        let encoder = (chosen && compressible && !is_transfer_encoded(head, library))
            .then(|| library.encoder().ok())
            .flatten();
        if compressible {
            vary(head);
        }
        if encoder.is_none() {
            stats.response.not_compressed().inc();
            return None;
        }
        if self.tells {
            let length = head.get_str(Known::ContentLength).unwrap_or_default();
            let told = format!("{};Compressed;OriginalLength={length}", library.encoding());
            head.append(STATUS.as_bytes(), told.as_bytes());
        }
        self.adapt_etag(head);
        head.remove(Known::ContentLength);
        head.append(CONTENT_ENCODING.as_bytes(), library.encoding().as_bytes());
        stats.response.compressed().inc();
        encoder
    }

    /// Whether a response that is long enough could be compressed for some client.
    fn is_compressible(&self, head: &HeaderMap, stats: &Stats) -> bool {
        if !self.response.takes(head) || !may_change(head) {
            return false;
        }
        let etag = self.allows_etag(head);
        if !etag {
            stats.choice.not_compressed_etag().inc();
        }
        etag && is_plain(head) && !self.codes.contains(&head.status())
    }

    /// The same of any response; the head says why not, unless it is one that is never compressed.
    fn is_compressible_or_tells(
        &self,
        head: &mut HeaderMap,
        end: bool,
        library: &Library,
        stats: &Stats,
    ) -> bool {
        if !may_change(head) || !is_plain(head) {
            return false;
        }
        let reason = if !self.response.is_long_enough(head, &stats.response) {
            "ContentLengthTooSmall"
        } else if !self.response.takes(head) {
            "ContentTypeNotAllowed"
        } else if !self.allows_etag(head) {
            "EtagNotAllowed"
        } else if self.codes.contains(&head.status()) {
            "StatusCodeNotAllowed"
        } else {
            return true;
        };
        if !end {
            // As in Envoy a length counts twice here, and an etag only here.
            match reason {
                "ContentLengthTooSmall" => stats.response.content_length_too_small().inc(),
                "EtagNotAllowed" => stats.choice.not_compressed_etag().inc(),
                _ => {}
            }
            head.append(STATUS.as_bytes(), format!("{};{reason}", library.encoding()).as_bytes());
        }
        false
    }

    fn allows_etag(&self, head: &HeaderMap) -> bool {
        self.etags != Etags::Leave || head.find("etag").is_none()
    }

    /// Takes away or weakens an `etag` that promises the very bytes.
    fn adapt_etag(&self, head: &mut HeaderMap) {
        let Some(etag) = head.find("etag") else { return };
        if matches!(etag, [b'w' | b'W', b'/', ..]) {
            return;
        }
        match self.etags {
            Etags::Weaken => {
                let weak = [b"W/", etag].concat();
                head.set_named("etag", &weak);
            }
            Etags::Remove | Etags::Leave => {
                head.remove_named("etag");
            }
        }
    }
}

impl ChoiceStats {
    /// Counts a choice; says whether it fell on this library.
    fn count(&self, choice: Option<Choice>, library: &Library) -> bool {
        let Some(Choice { encoding, because }) = choice else {
            self.no_accept_header().inc();
            return false;
        };
        let own = encoding == Some(library.encoding());
        match because {
            Because::Named if own => self.header_compressor_used().inc(),
            Because::Named => self.header_compressor_overshadowed().inc(),
            Because::Wildcard => self.header_wildcard().inc(),
            Because::Identity => self.header_identity().inc(),
            Because::NotValid => self.header_not_valid().inc(),
        }
        own
    }
}

/// Says that other clients may get it in another encoding.
fn vary(head: &mut HeaderMap) {
    if has_token(head, "vary", |token| token == b"Accept-Encoding") {
        return;
    }
    let mut lines: Vec<&[u8]> = head.find_all("vary").collect();
    lines.push(b"Accept-Encoding");
    let all = lines.join(&b", "[..]);
    head.set_named("vary", &all);
}

/// The filter at work on one request.
struct Compressing {
    compressor: Arc<Compressor>,
    /// The client's `accept-encoding`.
    accepted: Option<Vec<u8>>,
    /// What encodes the request, and the response.
    request: Option<Encoder>,
    response: Option<Encoder>,
}

/// Has a piece encoded, and counts it.
fn encode(encoder: &mut Encoder, stats: &DirectionStats, data: &mut Bytes, end: bool) -> Step {
    stats.total_uncompressed_bytes().add(data.len() as u64);
    match encoder.encode(data, end) {
        Ok(encoded) => {
            stats.total_compressed_bytes().add(encoded.len() as u64);
            *data = encoded;
            Step::Continue
        }
        Err(Failed) => Step::Reply(Reply::new(500, "compression_failed", "")),
    }
}

impl Compressing {
    fn on_part(&mut self, request: bool, stream: &Stream, data: &mut Bytes, end: bool) -> Step {
        let encoder = if request { &mut self.request } else { &mut self.response };
        let Some(encoder) = encoder else { return Step::Continue };
        let stats = self.compressor.stats(stream.worker.stats(), &stream.manager.stat_prefix);
        encode(encoder, if request { &stats.request } else { &stats.response }, data, end)
    }
}

impl HttpStreamFilter for Compressing {
    fn on_request_data(&mut self, stream: &mut Stream, data: &mut Bytes, end: bool) -> Step {
        self.on_part(true, stream, data, end)
    }

    fn on_request_trailers(
        &mut self,
        stream: &mut Stream,
        _trailers: &mut HeaderMap,
        data: &mut Bytes,
    ) -> Step {
        self.on_part(true, stream, data, true)
    }

    fn on_response(&mut self, stream: &mut Stream, head: &mut HeaderMap, end: bool) -> Step {
        self.response = self.compressor.judge(stream, self.accepted.as_deref(), head, end);
        Step::Continue
    }

    fn on_response_data(&mut self, stream: &mut Stream, data: &mut Bytes, end: bool) -> Step {
        self.on_part(false, stream, data, end)
    }

    fn on_response_trailers(
        &mut self,
        stream: &mut Stream,
        _trailers: &mut HeaderMap,
        data: &mut Bytes,
    ) -> Step {
        self.on_part(false, stream, data, true)
    }
}

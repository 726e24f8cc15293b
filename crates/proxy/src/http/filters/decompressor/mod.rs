//! `envoy.filters.http.decompressor`: decodes requests and responses that are encoded as its library
//! knows, and says to servers that they may be.

mod config;

use std::sync::Arc;

use bytes::Bytes;

use crate::compression::decoder::{Decoder, DecoderLibrary, Fault};
use crate::http::filters::{FilterConfig, HttpStreamFilter, Opening, Registration, RouteSettings, Step};
use crate::http::headers::{HeaderMap, Known};
use crate::http::stream::Stream;
use crate::telemetry::per_thread::PerThread;
use crate::telemetry::stats::{ThreadStats, stats_scope};

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: "envoy.filters.http.decompressor",
    config_type: "envoy.extensions.filters.http.decompressor.v3.Decompressor",
    lower: config::lower,
    route_type: None,
    lower_route: None,
};

const CONTENT_ENCODING: &str = "content-encoding";

stats_scope! {
    /// `http.STAT_PREFIX.decompressor.NAME.LIBRARY.`, with `request.` or `response.` behind it.
    struct DirectionStats {
        counter decompressed;
        counter not_decompressed;
        counter total_compressed_bytes;
        counter total_uncompressed_bytes;
    }
}

stats_scope! {
    /// `http.STAT_PREFIX.decompressor.NAME.gzip.decompressor_library.`
    struct ZlibStats {
        counter zlib_buf_error;
        counter zlib_data_error;
        counter zlib_errno;
        counter zlib_mem_error;
        counter zlib_stream_error;
        counter zlib_version_error;
    }
}

stats_scope! {
    /// The same of `brotli.`
    struct BrotliStats {
        counter brotli_error;
        counter brotli_redundant_input;
    }
}

stats_scope! {
    /// The same of `zstd.`
    struct ZstdStats {
        counter zstd_checksum_wrong_error;
        counter zstd_dictionary_error;
        counter zstd_generic_error;
        counter zstd_memory_error;
    }
}

/// What it counts on one worker.
#[derive(Debug)]
struct Stats {
    request: DirectionStats,
    response: DirectionStats,
    faults: String,
}

/// The filter as configured in a chain.
#[derive(Debug)]
struct Filter(Arc<Decompressor>);

/// Decompressor.
#[derive(Debug)]
struct Decompressor {
    /// `decompressor_library.name`, for stats.
    name: Box<str>,
    library: DecoderLibrary,
    request: Direction,
    response: Direction,
    /// `advertise_accept_encoding`.
    advertises: bool,
    stats: PerThread<Stats>,
}

/// CommonDirectionConfig.
#[derive(Debug)]
struct Direction {
    enabled: bool,
    /// `ignore_no_transform_header`.
    always: bool,
}

impl Decompressor {
    fn stats(&self, thread: &ThreadStats, prefix: &str) -> &Stats {
        self.stats.of(thread, || {
            let prefix = format!("http.{prefix}.decompressor.{}.{}.", self.name, self.library.stat_name());
            Stats {
                request: DirectionStats::kept(thread, &format!("{prefix}request.")),
                response: DirectionStats::kept(thread, &format!("{prefix}response.")),
                faults: format!("{prefix}decompressor_library."),
            }
        })
    }

    /// Whether a message is decoded: the decoder then, and the head says so.
    fn judge(&self, of: &Direction, head: &mut HeaderMap, stats: &DirectionStats) -> Option<Decoder> {
        let rest = (of.enabled && (of.always || may_change(head))).then(|| self.rest(head)).flatten();
        let Some(rest) = rest else {
            stats.not_decompressed().inc();
            return None;
        };
        stats.decompressed().inc();
        head.remove(Known::ContentLength);
        if rest.is_empty() {
            head.remove_named(CONTENT_ENCODING);
        } else {
            head.set_named(CONTENT_ENCODING, &rest);
        }
        Some(self.library.decoder())
    }

    /// What is left of `content-encoding` when its first one is undone; none if that is another.
    fn rest(&self, head: &HeaderMap) -> Option<Vec<u8>> {
        let lines: Vec<&[u8]> = head.find_all(CONTENT_ENCODING).collect();
        let all = lines.join(&b',');
        let end = all.iter().position(|byte| *byte == b',');
        let (first, rest) = all.split_at(end.unwrap_or(all.len()));
        let own = first.trim_ascii().eq_ignore_ascii_case(self.library.encoding().as_bytes());
        own.then(|| rest.strip_prefix(b",").unwrap_or(rest).trim_ascii().to_vec())
    }

    /// Says to the server that its answer may be encoded: last, and whatever was said of that before.
    fn advertise(&self, head: &mut HeaderMap) {
        let own = self.library.encoding().as_bytes();
        let lines: Vec<&[u8]> = head.find_all("accept-encoding").collect();
        let all = lines.join(&b',');
        let mut tokens: Vec<&[u8]> = all.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).collect();
        tokens.retain(|token| {
            !token.is_empty() && token.split(|byte| *byte == b';').next().is_none_or(|name| name != own)
        });
        tokens.push(own);
        head.set(Known::AcceptEncoding, &tokens.join(&b','));
    }
}

/// Whether nobody has forbidden to change it on its way.
fn may_change(head: &HeaderMap) -> bool {
    let tokens = head.find_all("cache-control").flat_map(|line| line.split(|byte| *byte == b','));
    !tokens.map(<[u8]>::trim_ascii).any(|token| token.eq_ignore_ascii_case(b"no-transform"))
}

impl FilterConfig for Filter {
    fn on_request(
        &self,
        stream: &mut Stream,
        _settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        end: bool,
    ) -> Opening {
        let Filter(decompressor) = self;
        if decompressor.response.enabled && decompressor.advertises {
            decompressor.advertise(head);
        }
        let stats = decompressor.stats(stream.worker.stats(), &stream.manager.stat_prefix);
        let request =
            if end { None } else { decompressor.judge(&decompressor.request, head, &stats.request) };
        let decompressor = Arc::clone(decompressor);
        let request = request.map(Decoding::new);
        Opening::Open(Box::new(Decompressing { decompressor, request, response: None }))
    }

    /// An answer of our own to a request that came not so far; its body is never encoded.
    fn on_response(
        &self,
        stream: &mut Stream,
        _settings: Option<&RouteSettings>,
        _head: &mut HeaderMap,
        end: bool,
    ) -> Step {
        if !end {
            let stats = self.0.stats(stream.worker.stats(), &stream.manager.stat_prefix);
            stats.response.not_decompressed().inc();
        }
        Step::Continue
    }
}

/// A message that is decoded.
struct Decoding {
    decoder: Decoder,
    compressed: u64,
    uncompressed: u64,
}

impl Decoding {
    fn new(decoder: Decoder) -> Self {
        Self { decoder, compressed: 0, uncompressed: 0 }
    }
}

/// The filter at work on one request.
struct Decompressing {
    decompressor: Arc<Decompressor>,
    request: Option<Decoding>,
    response: Option<Decoding>,
}

impl Decompressing {
    fn on_part(&mut self, request: bool, stream: &Stream, data: &mut Bytes) {
        let decoding = if request { &mut self.request } else { &mut self.response };
        let Some(decoding) = decoding else { return };
        let thread = stream.worker.stats();
        let stats = self.decompressor.stats(thread, &stream.manager.stat_prefix);
        let (decoded, fault) = decoding.decoder.decode(data);
        if let Some(fault) = fault {
            count(fault, thread, &stats.faults);
        }
        let (compressed, uncompressed) = (data.len() as u64, decoded.len() as u64);
        decoding.compressed += compressed;
        decoding.uncompressed += uncompressed;
        let stats = if request { &stats.request } else { &stats.response };
        stats.total_compressed_bytes().add(compressed);
        stats.total_uncompressed_bytes().add(uncompressed);
        *data = decoded;
    }

    /// Says how long a message was and has become.
    ///
    /// Deviation: this is in trailers that a message has anyway; Envoy adds some to those that have none.
    fn on_trailers(&self, request: bool, trailers: &mut HeaderMap) {
        let decoding = if request { &self.request } else { &self.response };
        let Some(decoding) = decoding else { return };
        for (what, bytes) in [("compressed", decoding.compressed), ("uncompressed", decoding.uncompressed)] {
            let name = format!("x-envoy-decompressor-{}-{what}-bytes", self.decompressor.name);
            trailers.append(name.to_ascii_lowercase().as_bytes(), bytes.to_string().as_bytes());
        }
    }
}

fn count(fault: Fault, thread: &ThreadStats, prefix: &str) {
    let zlib = || ZlibStats::kept(thread, prefix);
    let zstd = || ZstdStats::kept(thread, prefix);
    match fault {
        Fault::Brotli => BrotliStats::kept(thread, prefix).brotli_error().inc(),
        Fault::ZlibData => zlib().zlib_data_error().inc(),
        Fault::ZlibMemory => zlib().zlib_mem_error().inc(),
        Fault::ZlibStream => zlib().zlib_stream_error().inc(),
        Fault::ZstdChecksum => zstd().zstd_checksum_wrong_error().inc(),
        Fault::ZstdDictionary => zstd().zstd_dictionary_error().inc(),
        Fault::ZstdGeneric => zstd().zstd_generic_error().inc(),
        Fault::ZstdMemory => zstd().zstd_memory_error().inc(),
    }
}

impl HttpStreamFilter for Decompressing {
    fn on_request_data(&mut self, stream: &mut Stream, data: &mut Bytes, _end: bool) -> Step {
        self.on_part(true, stream, data);
        Step::Continue
    }

    fn on_request_trailers(
        &mut self,
        _stream: &mut Stream,
        trailers: &mut HeaderMap,
        _data: &mut Bytes,
    ) -> Step {
        self.on_trailers(true, trailers);
        Step::Continue
    }

    fn on_response(&mut self, stream: &mut Stream, head: &mut HeaderMap, end: bool) -> Step {
        if !end {
            let stats = self.decompressor.stats(stream.worker.stats(), &stream.manager.stat_prefix);
            let decoder = self.decompressor.judge(&self.decompressor.response, head, &stats.response);
            self.response = decoder.map(Decoding::new);
        }
        Step::Continue
    }

    fn on_response_data(&mut self, stream: &mut Stream, data: &mut Bytes, _end: bool) -> Step {
        self.on_part(false, stream, data);
        Step::Continue
    }

    fn on_response_trailers(
        &mut self,
        _stream: &mut Stream,
        trailers: &mut HeaderMap,
        _data: &mut Bytes,
    ) -> Step {
        self.on_trailers(false, trailers);
        Step::Continue
    }
}

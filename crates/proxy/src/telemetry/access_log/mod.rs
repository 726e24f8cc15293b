//! Access logs: which streams are logged, how a line looks, where it goes.
//!
//! Reading order: this file (the types and the entries), `format` (format strings), `command`
//! (what they yield), `sink` (files), `service` (what goes to services), `config` (lowering).

pub(crate) mod command;
pub(crate) mod config;
pub(crate) mod format;
pub(crate) mod grpc;
pub(crate) mod service;
pub(crate) mod sink;
#[cfg(test)]
mod tests;
pub(crate) mod time;

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use leno_base::rng::Rng;
use serde_json::Value as Json;

use crate::http::headers::{HeaderMap, Known};
use crate::http::route::matcher::HeaderMatcher;
use crate::matching::cel::Condition;
use crate::matching::facts::LogFacts;
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::access_log::format::{Format, Piece};
use crate::telemetry::access_log::service::{Sender, ServiceLog};
use crate::telemetry::access_log::sink::LogFile;
use crate::telemetry::stream_info::{ResponseFlags, StreamInfo};
use crate::telemetry::trace::sampling::Reason;

/// One access log (envoy.config.accesslog.v3.AccessLog), lowered.
#[derive(Debug)]
pub(crate) struct AccessLog {
    /// Which streams are logged; `None`: all.
    pub(crate) filter: Option<Filter>,
    /// What is written, and where it goes.
    pub(crate) output: Output,
}

/// What is written, and where it goes.
#[derive(Debug)]
pub(crate) enum Output {
    /// Lines.
    Lines(Lines),
    /// Entries, to a service.
    Service(ServiceLog),
}

/// Lines of a file, or the like.
#[derive(Debug)]
pub(crate) struct Lines {
    /// How a line looks.
    pub(crate) format: LogFormat,
    /// Where it goes.
    sink: Sink,
    /// The sink at work, since the first line: lowering opens nothing.
    file: OnceLock<Arc<LogFile>>,
}

impl Lines {
    /// Nothing is opened before the first line.
    pub(crate) fn new(format: LogFormat, sink: Sink) -> Self {
        Self { format, sink, file: OnceLock::new() }
    }
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Sink {
    /// Appended to a file.
    File(Arc<str>),
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a line looks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LogFormat {
    /// Text; a missing value is `-`, or nothing with `omit_empty`.
    Text {
        /// The format, its line break included.
        format: Format,
        /// `omit_empty_values`.
        omit_empty: bool,
    },
    /// One JSON object a line.
    Json {
        /// The object's template.
        template: JsonTemplate,
        /// `omit_empty_values`: leave out what is missing instead of writing null.
        omit_empty: bool,
    },
}

/// A JSON value with format strings in place of texts. A text that is exactly one command
/// keeps the command's type (number, object); all else is text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum JsonTemplate {
    /// Formatted.
    Format(Format),
    /// Fixed: number, boolean or null.
    Fixed(serde_json::Value),
    /// In the order of writing.
    Object(Vec<(Box<str>, JsonTemplate)>),
    /// A list.
    List(Vec<JsonTemplate>),
}

/// AccessLogFilter, lowered.
#[derive(Clone, Debug)]
pub(crate) enum Filter {
    /// `status_code_filter`; no response counts as 0.
    Status(Comparison),
    /// `duration_filter`, milliseconds.
    Duration(Comparison),
    /// `not_health_check_filter`.
    NotHealthCheck,
    /// `traceable_filter`: those that the service wants to be traced, as in Envoy.
    Traceable,
    /// `runtime_filter`: numerator and denominator of the share that is logged; by hash of the
    /// request id unless the flag says independently.
    Sampled {
        /// Numerator.
        numerator: u32,
        /// Denominator.
        denominator: u32,
        /// `use_independent_randomness`.
        independent: bool,
    },
    /// All of them.
    And(Vec<Filter>),
    /// Any of them.
    Or(Vec<Filter>),
    /// A request header matches.
    Header(HeaderMatcher),
    /// Any of these flags is set; `None`: any flag at all.
    Flags(Option<ResponseFlags>),
    /// gRPC status codes; the flag excludes instead of including them.
    GrpcStatus(Vec<i32>, bool),
    /// `log_type_filter`; the flag excludes instead of including them.
    Types(Vec<LogType>, bool),
    /// A condition in CEL (envoy.access_loggers.extension_filters.cel).
    Cel(Arc<Condition>),
}

/// Why a line is written: envoy.data.accesslog.v3.AccessLogType.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogType {
    /// Not said, e.g. a listener's log.
    NotSet = 0,
    /// A TCP session got its upstream connection.
    TcpUpstreamConnected = 1,
    /// A TCP session goes on.
    TcpPeriodic = 2,
    /// A TCP session ended.
    TcpConnectionEnd = 3,
    /// A request came.
    DownstreamStart = 4,
    /// A request goes on.
    DownstreamPeriodic = 5,
    /// A request ended.
    DownstreamEnd = 6,
    /// A request got its upstream connection.
    UpstreamPoolReady = 7,
    /// An attempt goes on.
    UpstreamPeriodic = 8,
    /// An attempt ended.
    UpstreamEnd = 9,
    /// A tunnel was set up.
    DownstreamTunnelSuccessfullyEstablished = 10,
    /// A UDP tunnel got its upstream connection.
    UdpTunnelUpstreamConnected = 11,
    /// A UDP session goes on.
    UdpPeriodic = 12,
    /// A UDP session ended.
    UdpSessionEnd = 13,
    /// A TCP session began.
    TcpConnectionStart = 14,
}

/// A comparison with a fixed number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Comparison {
    /// How.
    pub(crate) op: ComparisonOp,
    /// With what.
    pub(crate) value: u64,
}

/// How a number is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ComparisonOp {
    /// ==
    Equal,
    /// !=
    NotEqual,
    /// >=
    AtLeast,
    /// <=
    AtMost,
}

impl Comparison {
    /// Whether a number passes.
    pub(crate) fn holds(self, number: u64) -> bool {
        match self.op {
            ComparisonOp::Equal => number == self.value,
            ComparisonOp::NotEqual => number != self.value,
            ComparisonOp::AtLeast => number >= self.value,
            ComparisonOp::AtMost => number <= self.value,
        }
    }
}

impl LogType {
    const ALL: [LogType; 15] = [
        LogType::NotSet,
        LogType::TcpUpstreamConnected,
        LogType::TcpPeriodic,
        LogType::TcpConnectionEnd,
        LogType::DownstreamStart,
        LogType::DownstreamPeriodic,
        LogType::DownstreamEnd,
        LogType::UpstreamPoolReady,
        LogType::UpstreamPeriodic,
        LogType::UpstreamEnd,
        LogType::DownstreamTunnelSuccessfullyEstablished,
        LogType::UdpTunnelUpstreamConnected,
        LogType::UdpPeriodic,
        LogType::UdpSessionEnd,
        LogType::TcpConnectionStart,
    ];

    /// The type with this number in the API.
    pub(crate) fn from_number(number: i32) -> Option<Self> {
        usize::try_from(number).ok().and_then(|number| Self::ALL.get(number)).copied()
    }

    /// `%ACCESS_LOG_TYPE%`.
    pub(crate) fn text(self) -> &'static str {
        match self {
            LogType::NotSet => "NotSet",
            LogType::TcpUpstreamConnected => "TcpUpstreamConnected",
            LogType::TcpPeriodic => "TcpPeriodic",
            LogType::TcpConnectionEnd => "TcpConnectionEnd",
            LogType::DownstreamStart => "DownstreamStart",
            LogType::DownstreamPeriodic => "DownstreamPeriodic",
            LogType::DownstreamEnd => "DownstreamEnd",
            LogType::UpstreamPoolReady => "UpstreamPoolReady",
            LogType::UpstreamPeriodic => "UpstreamPeriodic",
            LogType::UpstreamEnd => "UpstreamEnd",
            LogType::DownstreamTunnelSuccessfullyEstablished => "DownstreamTunnelSuccessfullyEstablished",
            LogType::UdpTunnelUpstreamConnected => "UdpTunnelUpstreamConnected",
            LogType::UdpPeriodic => "UdpPeriodic",
            LogType::UdpSessionEnd => "UdpSessionEnd",
            LogType::TcpConnectionStart => "TcpConnectionStart",
        }
    }
}

impl AccessLog {
    /// What sends its entries beside requests, if they go to a service.
    pub(crate) fn sender(&self) -> Option<Arc<Sender>> {
        match &self.output {
            Output::Lines(_) => None,
            Output::Service(log) => Some(Arc::clone(log.sender())),
        }
    }

    /// Logs a TCP session or a connection at its end.
    pub(crate) fn connection(&self, info: &StreamInfo) {
        let cx = FormatContext::new(info);
        self.log(&FormatContext { log_type: LogType::TcpConnectionEnd, end: Some(Instant::now()), ..cx });
    }

    /// Logs a request at its end.
    pub(crate) fn request(
        &self,
        info: &StreamInfo,
        request: &HeaderMap,
        response: Option<&HeaderMap>,
        trailers: Option<&HeaderMap>,
    ) {
        let request = Some(request);
        let cx = FormatContext { request, response, trailers, ..FormatContext::new(info) };
        self.log(&FormatContext { log_type: LogType::DownstreamEnd, end: Some(Instant::now()), ..cx });
    }

    /// Writes a line, if the filter lets it pass.
    pub(crate) fn log(&self, cx: &FormatContext<'_>) {
        thread_local! {
            static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        if self.filter.as_ref().is_some_and(|filter| !filter.passes(cx)) {
            return;
        }
        match &self.output {
            Output::Lines(Lines { format, sink, file }) => LINE.with_borrow_mut(|line| {
                line.clear();
                format.format(cx, line);
                file.get_or_init(|| sink::open(sink)).write(line);
            }),
            Output::Service(log) => log.log(cx),
        }
    }
}

impl LogFormat {
    /// Appends a line.
    pub(crate) fn format(&self, cx: &FormatContext<'_>, out: &mut Vec<u8>) {
        match self {
            LogFormat::Text { format, omit_empty } => {
                format.format(cx, if *omit_empty { "" } else { "-" }, out);
            }
            LogFormat::Json { template, omit_empty } => {
                let value = template.value(cx, *omit_empty).unwrap_or(Json::Null);
                out.extend_from_slice(value.to_string().as_bytes());
                out.push(b'\n');
            }
        }
    }
}

impl JsonTemplate {
    /// The value for a stream; `None`: it is empty and to be left out.
    fn value(&self, cx: &FormatContext<'_>, omit_empty: bool) -> Option<Json> {
        let value = match self {
            JsonTemplate::Fixed(value) => value.clone(),
            JsonTemplate::Format(format) => match format.0.as_slice() {
                [Piece::Command(command)] => command.operator.value(cx).into_json(command.max_length),
                _ => {
                    let mut text = Vec::new();
                    format.format(cx, if omit_empty { "" } else { "-" }, &mut text);
                    Json::String(String::from_utf8_lossy(&text).into_owned())
                }
            },
            JsonTemplate::Object(fields) => {
                let fields = fields
                    .iter()
                    .filter_map(|(key, field)| Some((key.to_string(), field.value(cx, omit_empty)?)));
                Json::Object(fields.collect())
            }
            JsonTemplate::List(items) => items.iter().filter_map(|item| item.value(cx, omit_empty)).collect(),
        };
        (!omit_empty || !value.is_null()).then_some(value)
    }
}

impl Filter {
    /// Whether a line is written.
    pub(crate) fn passes(&self, cx: &FormatContext<'_>) -> bool {
        match self {
            Filter::Status(comparison) => comparison.holds(u64::from(cx.info.response_code)),
            Filter::Duration(comparison) => {
                // What has not ended has no duration yet.
                let Some(end) = cx.end else { return false };
                let millis = end.saturating_duration_since(cx.info.started).as_millis();
                comparison.holds(u64::try_from(millis).unwrap_or(u64::MAX))
            }
            Filter::NotHealthCheck => !cx.info.health_check,
            Filter::Traceable => !cx.info.health_check && cx.info.trace.reason == Reason::ServiceForced,
            Filter::Sampled { numerator, denominator, independent } => {
                let id = if *independent { None } else { cx.request.and_then(request_number) };
                id.unwrap_or_else(random) % u64::from(*denominator).max(1) < u64::from(*numerator)
            }
            Filter::And(filters) => filters.iter().all(|filter| filter.passes(cx)),
            Filter::Or(filters) => filters.iter().any(|filter| filter.passes(cx)),
            Filter::Header(matcher) => cx.request.is_some_and(|request| matcher.matches(request)),
            Filter::Flags(None) => !cx.info.flags.is_empty(),
            Filter::Flags(Some(flags)) => cx.info.flags.intersects(*flags),
            Filter::GrpcStatus(statuses, exclude) => {
                // Without a gRPC status a stream counts as Unknown.
                let status = grpc::status(cx).unwrap_or(2);
                statuses.iter().any(|listed| i64::from(*listed) == i64::from(status)) != *exclude
            }
            Filter::Types(types, exclude) => types.contains(&cx.log_type) != *exclude,
            Filter::Cel(condition) => condition.holds(&LogFacts { context: *cx, node: None }),
        }
    }
}

/// The number that a request id stands for: its first eight hexadecimal digits.
fn request_number(request: &HeaderMap) -> Option<u64> {
    u64::from_str_radix(request.get_str(Known::XRequestId)?.get(..8)?, 16).ok()
}

fn random() -> u64 {
    thread_local! {
        static RANDOM: RefCell<Rng> = RefCell::new(Rng::from_entropy());
    }
    RANDOM.with_borrow_mut(Rng::next_u64)
}

/// Opens all files anew (SIGUSR1).
pub(crate) fn reopen() {
    sink::reopen();
}

/// Sets how often files are written, and how many bytes do not wait that long.
pub(crate) fn configure(interval: Duration, min_size: usize) {
    sink::configure(interval, min_size);
}

/// Writes all that waits, before the process ends.
pub(crate) fn flush() {
    sink::flush();
}

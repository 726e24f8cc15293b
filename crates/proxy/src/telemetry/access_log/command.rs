//! What each command of a format string yields for a stream.
//!
//! Commands are resolved once, when a format is parsed ([`resolve`]): arguments are split,
//! time formats parsed, constants looked up. To add one: a line in [`FACTS`] if it takes no
//! argument, else a variant of [`Operator`].

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use leno_base::Name;
use leno_base::rng::Rng;
use leno_tls::{Certificate, PeerCertificates};
use serde_json::Value as Json;

use crate::cluster::Metadata;
use crate::config::lower::Lower;
use crate::http::headers::{HeaderMap, Known};
use crate::http::route::matcher::query_value;
use crate::http::route::mutation::Substitution;
use crate::matching::cel::{self, Expression};
use crate::matching::facts::LogFacts;
use crate::telemetry::access_log::LogType;
use crate::telemetry::access_log::format::Command;
use crate::telemetry::access_log::grpc;
use crate::telemetry::access_log::time::TimeFormat;
use crate::telemetry::stream_info::{ClusterFacts, Protocol, ResponseFlags, StreamInfo};
use crate::telemetry::trace::context::hex;
use crate::telemetry::workload::{DOWNSTREAM_PEER, UPSTREAM_PEER};
use crate::tls::TlsInfo;

/// What a format string is applied to.
#[derive(Clone, Copy)]
pub(crate) struct FormatContext<'a> {
    /// The stream or session.
    pub(crate) info: &'a StreamInfo,
    /// The request's headers.
    pub(crate) request: Option<&'a HeaderMap>,
    /// The response's headers.
    pub(crate) response: Option<&'a HeaderMap>,
    /// The response's trailers.
    pub(crate) trailers: Option<&'a HeaderMap>,
    /// Why a line is written.
    pub(crate) log_type: LogType,
    /// When the stream ended; `None`: it has not.
    pub(crate) end: Option<Instant>,
    /// The body of an answer of ours, for the formats that make one of it.
    pub(crate) local_reply_body: Option<&'a [u8]>,
}

/// A command's value.
#[derive(Debug, PartialEq)]
pub(crate) enum Value<'a> {
    /// There is none: `-` in text, null in JSON.
    Absent,
    /// Text, as a rule UTF-8.
    Text(Cow<'a, [u8]>),
    /// A number.
    Number(u64),
    /// Structured; as text it is JSON.
    Json(Json),
}

/// A fact that needs no argument.
type Fact = for<'a> fn(&FormatContext<'a>) -> Value<'a>;

/// A resolved command.
#[derive(Clone)]
pub(crate) enum Operator {
    /// A fact of the stream.
    Fact(Fact),
    /// `ENVIRONMENT`, `HOSTNAME`: known beforehand.
    Constant(Option<Box<str>>),
    /// `REQ`, `RESP`, `TRAILER`: the header, and the one to take if that is absent.
    Header(Block, Box<str>, Option<Box<str>>),
    /// `REQ_WITHOUT_QUERY`: the same of the request, up to the query.
    WithoutQuery(Box<str>, Option<Box<str>>),
    /// `CEL`.
    Cel(Arc<Expression>),
    /// `START_TIME`.
    StartTime(TimeFormat),
    /// `EMIT_TIME`.
    EmitTime(TimeFormat),
    /// `DOWNSTREAM_PEER_CERT_V_START` and the like: whose certificate, its end instead of its start.
    Validity(Side, bool, TimeFormat),
    /// `PATH`: with query; which header.
    Path(bool, PathSource),
    /// `QUERY_PARAM`.
    QueryParameter(Box<str>),
    /// `DYNAMIC_METADATA`, `CLUSTER_METADATA`, `UPSTREAM_METADATA`, `METADATA`.
    Metadata(MetadataOf, Box<str>, Vec<Box<str>>),
    /// `FILTER_STATE`: key; plain text instead of JSON.
    FilterState(Box<str>, bool),
    /// `FILTER_STATE` with `FIELD`: key, field.
    FilterStateField(Box<str>, Box<str>),
    /// `GRPC_STATUS`.
    GrpcStatus(grpc::Style),
    /// `COMMON_DURATION`: from, to, nanoseconds per unit.
    Between(Point, Point, u64),
    /// `RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)`.
    DetailsAsTheyAre,
}

/// Which header block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// The request's head.
    Request,
    /// The response's head.
    Response,
    /// The response's trailers.
    Trailers,
}

/// Which path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PathSource {
    /// `x-envoy-original-path`, else `:path`.
    OriginalOrPath,
    /// `:path`.
    Path,
    /// `x-envoy-original-path`.
    Original,
}

/// Whose metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetadataOf {
    /// The stream's.
    Stream,
    /// The upstream cluster's.
    Cluster,
    /// The chosen endpoint's.
    Host,
}

/// A moment of a stream.
pub(crate) type Point = fn(&StreamInfo) -> Option<Instant>;

fn text(value: &str) -> Value<'_> {
    Value::Text(Cow::Borrowed(value.as_bytes()))
}

fn owned<'a>(value: String) -> Value<'a> {
    Value::Text(Cow::Owned(value.into_bytes()))
}

fn maybe(value: Option<&str>) -> Value<'_> {
    value.map_or(Value::Absent, text)
}

fn cluster_name<'a>(cx: &FormatContext<'a>, name: fn(&ClusterFacts) -> &Name) -> Value<'a> {
    maybe(cx.info.upstream.cluster.as_deref().map(|facts| &**name(facts)))
}

fn address<'a>(address: Option<SocketAddr>) -> Value<'a> {
    address.map_or(Value::Absent, |address| owned(address.to_string()))
}

fn ip<'a>(address: Option<SocketAddr>) -> Value<'a> {
    address.map_or(Value::Absent, |address| owned(address.ip().to_string()))
}

fn port<'a>(address: Option<SocketAddr>) -> Value<'a> {
    address.map_or(Value::Absent, |address| Value::Number(u64::from(address.port())))
}

fn millis<'a>(from: Option<Instant>, to: Option<Instant>) -> Value<'a> {
    let (Some(from), Some(to)) = (from, to) else { return Value::Absent };
    let millis = to.saturating_duration_since(from).as_millis();
    Value::Number(u64::try_from(millis).unwrap_or(u64::MAX))
}

fn size<'a>(headers: Option<&HeaderMap>) -> Value<'a> {
    Value::Number(headers.map_or(0, HeaderMap::byte_size) as u64)
}

/// Facts that rustls does not tell: session identifiers.
const NOT_TOLD: Fact = |_| Value::Absent;

/// A text; absent if it is empty, as Envoy has it of what certificates say.
fn said<'a>(text: String) -> Value<'a> {
    if text.is_empty() { Value::Absent } else { owned(text) }
}

fn joined<'a, 'i>(names: impl Iterator<Item = &'i str>) -> Value<'a> {
    said(names.collect::<Vec<_>>().join(","))
}

type Side = for<'a> fn(&'a StreamInfo) -> Option<&'a TlsInfo>;

fn downstream(info: &StreamInfo) -> Option<&TlsInfo> {
    info.connection.tls.as_deref()
}

fn upstream(info: &StreamInfo) -> Option<&TlsInfo> {
    info.upstream.tls.as_deref()
}

/// What the peer's certificate says.
fn peer<'a>(cx: &FormatContext<'a>, side: Side, tell: fn(&Certificate) -> Value<'a>) -> Value<'a> {
    let own = side(cx.info).and_then(|tls| tls.peer.as_ref()?.own());
    own.map_or(Value::Absent, tell)
}

/// What is told of the certificates that the peer has shown.
fn shown<'a>(cx: &FormatContext<'a>, side: Side, tell: fn(&PeerCertificates) -> String) -> Value<'a> {
    side(cx.info).and_then(|tls| tls.peer.as_ref()).map_or(Value::Absent, |peer| said(tell(peer)))
}

/// What our own certificate says.
fn local<'a>(cx: &FormatContext<'a>, side: Side, tell: fn(&Certificate) -> Value<'a>) -> Value<'a> {
    let own = side(cx.info).and_then(|tls| tls.local.as_ref());
    own.map_or(Value::Absent, |own| tell(own.certificate()))
}

fn cipher<'a>(cx: &FormatContext<'a>, side: Side) -> Value<'a> {
    maybe(side(cx.info).and_then(|tls| tls.cipher).map(leno_tls::cipher_name))
}

fn group<'a>(cx: &FormatContext<'a>, side: Side) -> Value<'a> {
    maybe(side(cx.info).and_then(|tls| tls.group).map(leno_tls::group_name))
}

fn version<'a>(cx: &FormatContext<'a>, side: Side) -> Value<'a> {
    maybe(side(cx.info).and_then(|tls| tls.version).map(leno_tls::version_name))
}

/// Names of one kind, joined by commas.
fn dns(certificate: &Certificate) -> Value<'static> {
    joined(certificate.dns_names())
}

fn uris(certificate: &Certificate) -> Value<'static> {
    joined(certificate.uris())
}

fn addresses(certificate: &Certificate) -> Value<'static> {
    said(certificate.addresses().map(|address| address.to_string()).collect::<Vec<_>>().join(","))
}

fn emails(certificate: &Certificate) -> Value<'static> {
    joined(certificate.emails())
}

fn other_names(certificate: &Certificate) -> Value<'static> {
    joined(certificate.other_names())
}

fn subject(certificate: &Certificate) -> Value<'static> {
    said(certificate.subject_text())
}

fn issuer(certificate: &Certificate) -> Value<'static> {
    said(certificate.issuer_text())
}

/// Commands without argument, in alphabetic order.
pub(crate) const FACTS: &[(&str, Fact)] = &[
    ("ACCESS_LOG_TYPE", |cx| text(cx.log_type.text())),
    ("BYTES_RECEIVED", |cx| Value::Number(cx.info.bytes_received)),
    ("BYTES_SENT", |cx| Value::Number(cx.info.bytes_sent)),
    ("CONNECTION_ID", |cx| Value::Number(cx.info.connection.id)),
    ("CONNECTION_TERMINATION_DETAILS", |cx| maybe(cx.info.termination_details.as_deref())),
    ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS", |cx| address(Some(cx.info.connection.direct_local))),
    ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT", |cx| ip(Some(cx.info.connection.direct_local))),
    ("DOWNSTREAM_DIRECT_LOCAL_PORT", |cx| port(Some(cx.info.connection.direct_local))),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", |cx| address(Some(cx.info.connection.direct_remote))),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", |cx| ip(Some(cx.info.connection.direct_remote))),
    ("DOWNSTREAM_DIRECT_REMOTE_PORT", |cx| port(Some(cx.info.connection.direct_remote))),
    ("DOWNSTREAM_HEADER_BYTES_RECEIVED", |cx| Value::Number(cx.info.request_head.fields)),
    ("DOWNSTREAM_HEADER_BYTES_SENT", |cx| Value::Number(cx.info.response_head.fields)),
    ("DOWNSTREAM_LOCAL_ADDRESS", |cx| address(Some(cx.info.connection.local))),
    ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", |cx| ip(Some(cx.info.connection.local))),
    ("DOWNSTREAM_LOCAL_DNS_SAN", |cx| local(cx, downstream, dns)),
    ("DOWNSTREAM_LOCAL_EMAIL_SAN", |cx| local(cx, downstream, emails)),
    ("DOWNSTREAM_LOCAL_IP_SAN", |cx| local(cx, downstream, addresses)),
    ("DOWNSTREAM_LOCAL_OTHERNAME_SAN", |cx| local(cx, downstream, other_names)),
    ("DOWNSTREAM_LOCAL_PORT", |cx| port(Some(cx.info.connection.local))),
    ("DOWNSTREAM_LOCAL_SUBJECT", |cx| local(cx, downstream, subject)),
    ("DOWNSTREAM_LOCAL_URI_SAN", |cx| local(cx, downstream, uris)),
    ("DOWNSTREAM_PEER_CERT", |cx| shown(cx, downstream, PeerCertificates::pem)),
    ("DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1", |cx| {
        shown(cx, downstream, |peer| peer.each(PeerCertificates::sha1_of))
    }),
    ("DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256", |cx| {
        shown(cx, downstream, |peer| peer.each(PeerCertificates::sha256_of))
    }),
    ("DOWNSTREAM_PEER_CHAIN_SERIALS", |cx| {
        shown(cx, downstream, |peer| peer.each(PeerCertificates::serial_of))
    }),
    ("DOWNSTREAM_PEER_DNS_SAN", |cx| peer(cx, downstream, dns)),
    ("DOWNSTREAM_PEER_EMAIL_SAN", |cx| peer(cx, downstream, emails)),
    ("DOWNSTREAM_PEER_FINGERPRINT_1", |cx| shown(cx, downstream, PeerCertificates::sha1)),
    ("DOWNSTREAM_PEER_FINGERPRINT_256", |cx| shown(cx, downstream, PeerCertificates::sha256)),
    ("DOWNSTREAM_PEER_IP_SAN", |cx| peer(cx, downstream, addresses)),
    ("DOWNSTREAM_PEER_ISSUER", |cx| peer(cx, downstream, issuer)),
    ("DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256", |cx| {
        shown(cx, downstream, |peer| peer.of_issuer(PeerCertificates::sha256_of))
    }),
    ("DOWNSTREAM_PEER_ISSUER_SERIAL", |cx| {
        shown(cx, downstream, |peer| peer.of_issuer(PeerCertificates::serial_of))
    }),
    ("DOWNSTREAM_PEER_OTHERNAME_SAN", |cx| peer(cx, downstream, other_names)),
    ("DOWNSTREAM_PEER_SERIAL", |cx| peer(cx, downstream, |own| said(own.serial()))),
    ("DOWNSTREAM_PEER_SUBJECT", |cx| peer(cx, downstream, subject)),
    ("DOWNSTREAM_PEER_URI_SAN", |cx| peer(cx, downstream, uris)),
    ("DOWNSTREAM_REMOTE_ADDRESS", |cx| address(Some(cx.info.connection.remote))),
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", |cx| ip(Some(cx.info.connection.remote))),
    ("DOWNSTREAM_REMOTE_PORT", |cx| port(Some(cx.info.connection.remote))),
    ("DOWNSTREAM_TLS_CIPHER", |cx| cipher(cx, downstream)),
    ("DOWNSTREAM_TLS_GROUP", |cx| group(cx, downstream)),
    ("DOWNSTREAM_TLS_SESSION_ID", NOT_TOLD),
    ("DOWNSTREAM_TLS_VERSION", |cx| version(cx, downstream)),
    ("DOWNSTREAM_TRANSPORT_FAILURE_REASON", |cx| {
        let reason = cx.info.connection.transport_failure.as_deref();
        reason.map_or(Value::Absent, |reason| owned(reason.replace(' ', "_")))
    }),
    ("DOWNSTREAM_WIRE_BYTES_RECEIVED", |cx| Value::Number(cx.info.wire_bytes().0)),
    ("DOWNSTREAM_WIRE_BYTES_SENT", |cx| Value::Number(cx.info.wire_bytes().1)),
    ("DURATION", |cx| millis(Some(cx.info.started), cx.end)),
    ("GRPC_STATUS_NUMBER", |cx| {
        grpc::status(cx).map_or(Value::Absent, |status| Value::Number(u64::from(status)))
    }),
    // Only the formats of `local_reply_config` have it; elsewhere it is empty, as in Envoy.
    ("LOCAL_REPLY_BODY", |cx| Value::Text(Cow::Borrowed(cx.local_reply_body.unwrap_or_default()))),
    ("PROTOCOL", |cx| maybe(cx.info.protocol.map(Protocol::text))),
    ("QUERY_PARAMS", query_parameters),
    ("REQUESTED_SERVER_NAME", |cx| maybe(cx.info.connection.server_name.as_deref())),
    ("REQUEST_DURATION", |cx| millis(Some(cx.info.started), cx.info.request_complete)),
    ("REQUEST_HEADERS_BYTES", |cx| size(cx.request)),
    ("REQUEST_TX_DURATION", |cx| millis(Some(cx.info.started), cx.info.upstream.last_tx)),
    ("RESPONSE_CODE", |cx| Value::Number(u64::from(cx.info.response_code))),
    ("RESPONSE_CODE_DETAILS", response_code_details),
    ("RESPONSE_DURATION", |cx| millis(Some(cx.info.started), cx.info.upstream.first_rx)),
    ("RESPONSE_FLAGS", |cx| flags(cx.info, |short, _| short)),
    ("RESPONSE_FLAGS_LONG", |cx| flags(cx.info, |_, long| long)),
    ("RESPONSE_HEADERS_BYTES", |cx| size(cx.response)),
    ("RESPONSE_TRAILERS_BYTES", |cx| size(cx.trailers)),
    ("RESPONSE_TX_DURATION", |cx| millis(cx.info.upstream.first_rx, cx.info.last_downstream_tx)),
    ("ROUTE_NAME", |cx| maybe(cx.info.route_name())),
    ("SPAN_ID", |cx| match cx.info.trace.span.as_deref() {
        Some((span, true)) => Value::Text(Cow::Owned(hex::<16>(span.span.into()).to_vec())),
        // Zipkin's spans do not say, as in Envoy.
        Some((_, false)) | None => Value::Absent,
    }),
    ("STREAM_ID", |cx| maybe(cx.info.request_id.as_deref())),
    ("TRACE_ID", |cx| match cx.info.trace.span.as_deref() {
        Some((span, wide)) => Value::Text(Cow::Owned(span.trace_text(*wide).bytes().to_vec())),
        None => Value::Absent,
    }),
    ("UNIQUE_ID", |_| owned(random_uuid())),
    ("UPSTREAM_CLUSTER", |cx| cluster_name(cx, |facts| &facts.stat_name)),
    ("UPSTREAM_CLUSTER_RAW", |cx| cluster_name(cx, |facts| &facts.name)),
    ("UPSTREAM_CONNECTION_ID", |cx| cx.info.upstream.connection_id.map_or(Value::Absent, Value::Number)),
    ("UPSTREAM_CONNECTION_POOL_READY_DURATION", |cx| {
        millis(Some(cx.info.started), cx.info.upstream.ready_at)
    }),
    ("UPSTREAM_HOST", |cx| address(cx.info.upstream.host)),
    ("UPSTREAM_HOST_NAME", |cx| upstream_host_name(cx, true)),
    ("UPSTREAM_HOST_NAME_WITHOUT_PORT", |cx| upstream_host_name(cx, false)),
    ("UPSTREAM_LOCAL_ADDRESS", |cx| address(cx.info.upstream.local)),
    ("UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", |cx| ip(cx.info.upstream.local)),
    ("UPSTREAM_LOCAL_PORT", |cx| port(cx.info.upstream.local)),
    ("UPSTREAM_PEER_CERT", |cx| shown(cx, upstream, PeerCertificates::pem)),
    ("UPSTREAM_LOCAL_DNS_SAN", |cx| local(cx, upstream, dns)),
    ("UPSTREAM_LOCAL_IP_SAN", |cx| local(cx, upstream, addresses)),
    ("UPSTREAM_LOCAL_URI_SAN", |cx| local(cx, upstream, uris)),
    ("UPSTREAM_PEER_DNS_SAN", |cx| peer(cx, upstream, dns)),
    ("UPSTREAM_PEER_IP_SAN", |cx| peer(cx, upstream, addresses)),
    ("UPSTREAM_PEER_ISSUER", |cx| peer(cx, upstream, issuer)),
    ("UPSTREAM_PEER_SUBJECT", |cx| peer(cx, upstream, subject)),
    ("UPSTREAM_PEER_URI_SAN", |cx| peer(cx, upstream, uris)),
    ("UPSTREAM_PROTOCOL", |cx| maybe(cx.info.upstream.protocol.map(Protocol::text))),
    ("UPSTREAM_REMOTE_ADDRESS", |cx| address(cx.info.upstream.host)),
    ("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", |cx| ip(cx.info.upstream.host)),
    ("UPSTREAM_REMOTE_PORT", |cx| port(cx.info.upstream.host)),
    ("UPSTREAM_REQUEST_ATTEMPT_COUNT", |cx| Value::Number(u64::from(cx.info.upstream.attempts))),
    ("UPSTREAM_TLS_CIPHER", |cx| cipher(cx, upstream)),
    ("UPSTREAM_TLS_GROUP", |cx| group(cx, upstream)),
    ("UPSTREAM_TLS_SESSION_ID", NOT_TOLD),
    ("UPSTREAM_TLS_VERSION", |cx| version(cx, upstream)),
    ("UPSTREAM_TRANSPORT_FAILURE_REASON", |cx| maybe(cx.info.upstream.transport_failure.as_deref())),
    ("UPSTREAM_WIRE_BYTES_RECEIVED", |cx| Value::Number(cx.info.upstream.wire_bytes_received)),
    ("UPSTREAM_WIRE_BYTES_SENT", |cx| Value::Number(cx.info.upstream.wire_bytes_sent)),
    ("VIRTUAL_CLUSTER_NAME", |cx| maybe(cx.info.virtual_cluster.as_deref())),
];

/// Resolves a command that is known by name and whose argument is there if it must be.
///
/// # Errors
/// Arguments that mean nothing, and commands that Envoy has and this proxy has not.
pub(crate) fn resolve(name: &'static str, argument: Option<&str>) -> Result<Operator, String> {
    match (name, argument) {
        ("ENVIRONMENT", Some(name)) => Ok(Operator::Constant(std::env::var(name).ok().map(Into::into))),
        ("HOSTNAME", _) => {
            let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
            Ok(Operator::Constant(Some(name.into())))
        }
        ("REQ", Some(names)) => Ok(header(Block::Request, names)),
        ("REQ_WITHOUT_QUERY", Some(names)) => match header(Block::Request, names) {
            Operator::Header(_, name, alternative) => Ok(Operator::WithoutQuery(name, alternative)),
            other => Ok(other),
        },
        ("CEL", Some(expression)) => {
            let parsed = cel::parse(expression)?;
            let lowered = Lower::resource(|at| cel::expression(parsed, at));
            lowered.map(|lowered| Operator::Cel(Arc::new(lowered))).map_err(|error| error.to_string())
        }
        ("RESP", Some(names)) => Ok(header(Block::Response, names)),
        ("TRAILER", Some(names)) => Ok(header(Block::Trailers, names)),
        ("START_TIME", format) => Ok(Operator::StartTime(time_format(format)?)),
        ("EMIT_TIME", format) => Ok(Operator::EmitTime(time_format(format)?)),
        ("DOWNSTREAM_PEER_CERT_V_START", format) => {
            Ok(Operator::Validity(downstream, false, time_format(format)?))
        }
        ("DOWNSTREAM_PEER_CERT_V_END", format) => {
            Ok(Operator::Validity(downstream, true, time_format(format)?))
        }
        ("UPSTREAM_PEER_CERT_V_START", format) => {
            Ok(Operator::Validity(upstream, false, time_format(format)?))
        }
        ("UPSTREAM_PEER_CERT_V_END", format) => Ok(Operator::Validity(upstream, true, time_format(format)?)),
        ("PATH", options) => path(options.unwrap_or_default()),
        ("QUERY_PARAM", Some(name)) => Ok(Operator::QueryParameter(name.into())),
        ("DYNAMIC_METADATA", Some(path)) => metadata(MetadataOf::Stream, path),
        ("CLUSTER_METADATA", Some(path)) => metadata(MetadataOf::Cluster, path),
        ("UPSTREAM_METADATA", Some(path)) => metadata(MetadataOf::Host, path),
        ("METADATA", Some(path)) => match path.split_once(':').unwrap_or((path, "")) {
            ("DYNAMIC", path) => metadata(MetadataOf::Stream, path),
            ("CLUSTER", path) => metadata(MetadataOf::Cluster, path),
            ("UPSTREAM_HOST", path) => metadata(MetadataOf::Host, path),
            (of, _) => Err(format!("METADATA({of}) is not supported yet")),
        },
        ("FILTER_STATE", Some(argument)) => match argument.split_once(':').unwrap_or((argument, "TYPED")) {
            (key, "PLAIN") => Ok(Operator::FilterState(state_key(key), true)),
            (key, "TYPED") => Ok(Operator::FilterState(state_key(key), false)),
            (key, kind) => match kind.split_once(':') {
                Some(("FIELD", field)) => Ok(Operator::FilterStateField(state_key(key), field.into())),
                _ => Err(format!("FILTER_STATE: serialization '{kind}' is not supported yet")),
            },
        },
        ("GRPC_STATUS", style) => Ok(Operator::GrpcStatus(grpc::Style::parse(style.unwrap_or_default())?)),
        ("COMMON_DURATION", Some(argument)) => between(argument),
        ("RESPONSE_CODE_DETAILS", Some("ALLOW_WHITESPACES")) => Ok(Operator::DetailsAsTheyAre),
        ("RESPONSE_CODE_DETAILS", Some(other)) => {
            Err(format!("RESPONSE_CODE_DETAILS: invalid argument '{other}'"))
        }
        (name, argument) => match FACTS.iter().find(|(fact, _)| *fact == name) {
            Some((_, fact)) if argument.is_none() => Ok(Operator::Fact(*fact)),
            Some(_) => Err(format!("{name}: its argument is not supported yet")),
            None => Err(format!("{name} is not supported yet")),
        },
    }
}

fn header(block: Block, names: &str) -> Operator {
    let (first, alternative) =
        names.split_once('?').map_or((names, None), |(first, other)| (first, Some(other)));
    let lower = |name: &str| name.to_ascii_lowercase().into_boxed_str();
    Operator::Header(block, lower(first), alternative.map(lower))
}

fn time_format(format: Option<&str>) -> Result<TimeFormat, String> {
    match format {
        None | Some("") => Ok(TimeFormat::rfc3339_millis()),
        Some(format) => TimeFormat::parse(format),
    }
}

fn path(options: &str) -> Result<Operator, String> {
    let mut options = options.split(':');
    let with_query = match options.next().unwrap_or_default() {
        "" | "WQ" => true,
        "NQ" => false,
        other => return Err(format!("Invalid PATH option: '{other}', only 'WQ'/'NQ' are allowed")),
    };
    let source = match options.next().unwrap_or_default() {
        "" | "ORIG_OR_PATH" => PathSource::OriginalOrPath,
        "PATH" => PathSource::Path,
        "ORIG" => PathSource::Original,
        other => {
            return Err(format!(
                "Invalid PATH option: '{other}', only 'ORIG'/'PATH'/'ORIG_OR_PATH' are allowed"
            ));
        }
    };
    match options.next() {
        None => Ok(Operator::Path(with_query, source)),
        Some(_) => Err("PATH: too many options".to_owned()),
    }
}

fn metadata(of: MetadataOf, path: &str) -> Result<Operator, String> {
    let mut parts = path.split(':');
    let namespace = parts.next().filter(|namespace| !namespace.is_empty());
    let namespace = namespace.ok_or("metadata: a filter namespace is required")?;
    Ok(Operator::Metadata(of, namespace.into(), parts.map(Into::into).collect()))
}

fn between(argument: &str) -> Result<Operator, String> {
    let mut parts = argument.split(':');
    let from = point(parts.next().unwrap_or_default())?;
    let to =
        point(parts.next().ok_or_else(|| format!("Invalid common duration configuration: {argument}."))?)?;
    let unit = match parts.next() {
        None | Some("ms") => 1_000_000,
        Some("us") => 1000,
        Some("ns") => 1,
        Some(other) => return Err(format!("Invalid common duration precision: {other}.")),
    };
    match parts.next() {
        None => Ok(Operator::Between(from, to, unit)),
        Some(_) => Err(format!("Invalid common duration configuration: {argument}.")),
    }
}

fn point(name: &str) -> Result<Point, String> {
    Ok(match name {
        "DS_RX_BEG" => |info| Some(info.started),
        "DS_RX_END" => |info| info.request_complete,
        "US_TX_BEG" => |info| info.upstream.first_tx,
        "US_TX_END" => |info| info.upstream.last_tx,
        "US_RX_BEG" => |info| info.upstream.first_rx,
        "US_RX_END" => |info| info.upstream.last_rx,
        "DS_TX_BEG" => |info| info.first_downstream_tx,
        "DS_TX_END" => |info| info.last_downstream_tx,
        "US_CX_BEG" | "US_CX_END" | "US_HS_END" | "US_RX_BODY_BEG" => {
            return Err(format!("COMMON_DURATION({name}) is not supported yet"));
        }
        other => return Err(format!("Invalid common duration time point: {other}.")),
    })
}

impl Operator {
    /// The value for a stream.
    pub(crate) fn value<'a>(&'a self, cx: &FormatContext<'a>) -> Value<'a> {
        match self {
            Operator::Fact(fact) => fact(cx),
            Operator::Constant(value) => maybe(value.as_deref()),
            Operator::Header(block, name, alternative) => {
                let headers = match block {
                    Block::Request => cx.request,
                    Block::Response => cx.response,
                    Block::Trailers => cx.trailers,
                };
                let Some(headers) = headers else { return Value::Absent };
                // The first value only, as Envoy does.
                let alternative = || alternative.as_deref().and_then(|name| headers.find(name));
                let found = headers.find(name).or_else(alternative);
                found.map_or(Value::Absent, |value| Value::Text(Cow::Borrowed(value)))
            }
            Operator::WithoutQuery(name, alternative) => {
                let Some(headers) = cx.request else { return Value::Absent };
                let alternative = || alternative.as_deref().and_then(|name| headers.find(name));
                let found = headers.find(name).or_else(alternative);
                let end = |value: &[u8]| value.iter().position(|byte| *byte == b'?').unwrap_or(value.len());
                let found = found.map(|value| value.get(..end(value)).unwrap_or(value));
                found.map_or(Value::Absent, |value| Value::Text(Cow::Borrowed(value)))
            }
            Operator::Cel(expression) => {
                let value = expression.text(&LogFacts { context: *cx, node: None });
                value.map_or(Value::Absent, owned)
            }
            Operator::StartTime(format) => owned(format.format(cx.info.start_time)),
            Operator::EmitTime(format) => owned(format.format(SystemTime::now())),
            Operator::Validity(side, end, format) => {
                let own = side(cx.info).and_then(|tls| tls.peer.as_ref()?.own());
                let Some((start, expiry)) = own.map(Certificate::validity) else { return Value::Absent };
                let seconds = u64::try_from(if *end { expiry } else { start }).unwrap_or(0);
                owned(format.format(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds)))
            }
            Operator::Path(with_query, source) => {
                let Some(path) = cx.request.and_then(|request| source.find(request)) else {
                    return Value::Absent;
                };
                let end = if *with_query { None } else { path.iter().position(|byte| *byte == b'?') };
                Value::Text(Cow::Borrowed(&path[..end.unwrap_or(path.len())]))
            }
            Operator::QueryParameter(name) => {
                let value = query(cx).and_then(|query| query_value(query, name.as_bytes()));
                value.map_or(Value::Absent, |value| Value::Text(Cow::Borrowed(value)))
            }
            Operator::Metadata(of, namespace, keys) => find_metadata(cx, *of, namespace, keys),
            Operator::FilterState(key, plain) => match cx.info.filter_state.get(key) {
                Some(state) if *plain => text(&state.text),
                Some(state) => {
                    let typed = state.typed.clone();
                    Value::Json(typed.unwrap_or_else(|| Json::String(state.text.clone())))
                }
                None => Value::Absent,
            },
            Operator::FilterStateField(key, field) => {
                let state = cx.info.filter_state.get(key);
                let value = state.and_then(|state| state.peer.as_ref()?.field(field));
                maybe(value.filter(|value| !value.is_empty()))
            }
            Operator::GrpcStatus(style) => {
                grpc::status(cx).map_or(Value::Absent, |status| style.value(status))
            }
            Operator::Between(from, to, unit) => match (from(cx.info), to(cx.info)) {
                (Some(from), Some(to)) if to >= from => {
                    let nanos = u64::try_from((to - from).as_nanos()).unwrap_or(u64::MAX);
                    Value::Number(nanos / unit)
                }
                _ => Value::Absent,
            },
            Operator::DetailsAsTheyAre => maybe(cx.info.response_code_details.as_deref()),
        }
    }
}

/// The key of an object. Istio's proxy keeps the facts of peers twice; here they are once.
fn state_key(key: &str) -> Box<str> {
    match key {
        "downstream_peer_obj" => DOWNSTREAM_PEER.into(),
        "upstream_peer_obj" => UPSTREAM_PEER.into(),
        key => key.into(),
    }
}

impl PathSource {
    fn find(self, request: &HeaderMap) -> Option<&[u8]> {
        match self {
            PathSource::OriginalOrPath => {
                request.get(Known::EnvoyOriginalPath).or_else(|| request.get(Known::Path))
            }
            PathSource::Path => request.get(Known::Path),
            PathSource::Original => request.get(Known::EnvoyOriginalPath),
        }
    }
}

fn query<'a>(cx: &FormatContext<'a>) -> Option<&'a [u8]> {
    let path = cx.request?.get(Known::Path)?;
    let start = path.iter().position(|byte| *byte == b'?')?;
    let query = &path[start + 1..];
    Some(query.split(|byte| *byte == b'#').next().unwrap_or(query))
}

fn query_parameters<'a>(cx: &FormatContext<'a>) -> Value<'a> {
    query(cx).map_or(Value::Absent, |query| Value::Text(Cow::Borrowed(query)))
}

fn response_code_details<'a>(cx: &FormatContext<'a>) -> Value<'a> {
    match cx.info.response_code_details.as_deref() {
        Some(details) if details.contains(char::is_whitespace) => {
            owned(details.replace(char::is_whitespace, "_"))
        }
        details => maybe(details),
    }
}

fn flags<'a>(info: &StreamInfo, name: fn(&'static str, &'static str) -> &'static str) -> Value<'a> {
    let out = flag_names(info, name);
    if out.is_empty() { text("-") } else { owned(out) }
}

/// What `%RESPONSE_FLAGS%` shows; empty for none.
pub(crate) fn short_flags(info: &StreamInfo) -> String {
    flag_names(info, |short, _| short)
}

fn flag_names(info: &StreamInfo, name: fn(&'static str, &'static str) -> &'static str) -> String {
    let mut out = String::new();
    let mut add = |short, long| {
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(name(short, long));
    };
    // Envoy prints flags as they were set: sessions without HTTP run out of attempts only after the
    // failure of the last.
    let session = info.protocol.is_none();
    let late = |flag| session && flag == ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED;
    let set = || ResponseFlags::ALL.iter().filter(|(flag, ..)| info.flags.intersects(*flag));
    for (_, short, long) in set().filter(|(flag, ..)| !late(*flag)) {
        add(short, long);
    }
    for (_, short, long) in set().filter(|(flag, ..)| late(*flag)) {
        add(short, long);
    }
    out
}

fn upstream_host_name<'a>(cx: &FormatContext<'a>, with_port: bool) -> Value<'a> {
    let upstream = &cx.info.upstream;
    let hostname = upstream.endpoint.as_ref().and_then(|endpoint| endpoint.hostname.as_deref());
    match hostname.filter(|name| !name.is_empty()) {
        Some(name) if with_port => text(name),
        Some(name) => match name.rsplit_once(':') {
            Some((host, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
                text(host)
            }
            _ => text(name),
        },
        None if with_port => address(upstream.host),
        None => ip(upstream.host),
    }
}

fn find_metadata<'a>(
    cx: &FormatContext<'a>,
    of: MetadataOf,
    namespace: &str,
    keys: &[Box<str>],
) -> Value<'a> {
    fn below<'v>(root: Option<&'v Json>, keys: &[Box<str>]) -> Option<&'v Json> {
        keys.iter().try_fold(root?, |value, key| value.get(&**key))
    }
    fn shared<'v>(metadata: Option<&'v Metadata>, namespace: &str) -> Option<&'v Json> {
        metadata?.get(namespace)
    }
    let found = match of {
        MetadataOf::Stream => match keys.split_first() {
            Some(_) => crate::matching::value::find_path(&cx.info.metadata, namespace, keys).cloned(),
            None => cx.info.metadata.get(namespace).map(|map| Json::Object(map.clone())),
        },
        MetadataOf::Cluster => {
            let metadata = cx.info.upstream.cluster.as_ref().map(|facts| &facts.metadata);
            below(shared(metadata, namespace), keys).cloned()
        }
        MetadataOf::Host => {
            let metadata = cx.info.upstream.endpoint.as_ref().map(|endpoint| &endpoint.metadata);
            below(shared(metadata, namespace), keys).cloned()
        }
    };
    match found {
        None | Some(Json::Null) => Value::Absent,
        Some(Json::String(value)) => owned(value),
        Some(mut value) => {
            value.sort_all_objects();
            Value::Json(value)
        }
    }
}

/// A random (version 4) UUID.
fn random_uuid() -> String {
    thread_local! {
        static RANDOM: RefCell<Rng> = RefCell::new(Rng::from_entropy());
    }
    let (high, low) = RANDOM.with_borrow_mut(|random| (random.next_u64(), random.next_u64()));
    let high = high & 0xffff_ffff_ffff_0fff | 0x4000;
    let low = low & 0x3fff_ffff_ffff_ffff | 0x8000_0000_0000_0000;
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

impl Value<'_> {
    /// Appends the value as text, at most `max` bytes; nothing if it is absent. Says whether
    /// it was there.
    pub(crate) fn append(&self, max: Option<usize>, out: &mut Vec<u8>) -> bool {
        let mut push =
            |bytes: &[u8]| out.extend_from_slice(&bytes[..max.unwrap_or(bytes.len()).min(bytes.len())]);
        match self {
            Value::Absent => return false,
            Value::Text(text) => push(text),
            Value::Number(number) => {
                let mut text = String::new();
                let _ = write!(text, "{number}");
                push(text.as_bytes());
            }
            Value::Json(json) => push(json.to_string().as_bytes()),
        }
        true
    }

    /// The value in JSON, texts at most `max` bytes long; null if it is absent.
    pub(crate) fn into_json(self, max: Option<usize>) -> Json {
        match self {
            Value::Absent => Json::Null,
            Value::Text(text) => {
                let text = &text[..max.unwrap_or(text.len()).min(text.len())];
                Json::String(String::from_utf8_lossy(text).into_owned())
            }
            Value::Number(number) => number.into(),
            Value::Json(json) => json,
        }
    }
}

impl<'a> FormatContext<'a> {
    /// The context of a stream that goes on, without headers.
    pub(crate) fn new(info: &'a StreamInfo) -> Self {
        Self {
            info,
            request: None,
            response: None,
            trailers: None,
            log_type: LogType::NotSet,
            end: None,
            local_reply_body: None,
        }
    }
}

/// Header values: `headers` are the request's while `request` is `None`, else the response's.
impl Substitution for FormatContext<'_> {
    fn substitute(&self, command: &Command, headers: &HeaderMap, out: &mut Vec<u8>) {
        let mut cx = *self;
        match cx.request {
            None => cx.request = Some(headers),
            Some(_) => cx.response = Some(headers),
        }
        command.operator.value(&cx).append(command.max_length, out);
    }
}

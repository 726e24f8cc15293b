//! What spans say: Envoy's tags of requests and attempts, and those that are configured.

use std::borrow::Cow;
use std::ops::Range;
use std::time::{Instant, SystemTime};

use serde_json::Value as Json;

use crate::cluster::Metadata;
use crate::http::headers::{HeaderMap, Known};
use crate::matching::value::find_path;
use crate::telemetry::access_log::command::{FormatContext, short_flags};
use crate::telemetry::access_log::format::Format;
use crate::telemetry::stream_info::{Protocol, StreamInfo};
use crate::telemetry::trace::{RouteTracing, Tracing};

/// The tags of a span while it is made. All are in one text, which is kept from span to span.
#[derive(Debug, Default)]
pub(crate) struct Tags {
    text: String,
    tags: Vec<(Range<usize>, Range<usize>)>,
}

impl Tags {
    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.tags.clear();
    }

    /// Adds a tag that is not there yet.
    pub(crate) fn add(&mut self, name: &str, value: &str) {
        let (name, value) = (self.push(name), self.push(value));
        self.tags.push((name, value));
    }

    /// Adds a tag, or replaces the one of its name.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        let value = self.push(value);
        let place = self.tags.iter().position(|(range, _)| self.text.get(range.clone()) == Some(name));
        match place.and_then(|place| self.tags.get_mut(place)) {
            Some(tag) => tag.1 = value,
            None => {
                let name = self.push(name);
                self.tags.push((name, value));
            }
        }
    }

    /// Adds a tag with what came from outside.
    fn add_bytes(&mut self, name: &str, value: &[u8]) {
        match std::str::from_utf8(value) {
            Ok(value) => self.add(name, value),
            Err(_) => self.add(name, &String::from_utf8_lossy(value)),
        }
    }

    /// The value of a tag.
    pub(crate) fn find(&self, name: &str) -> Option<&str> {
        self.iter().find(|(candidate, _)| *candidate == name).map(|(_, value)| value)
    }

    /// All of them, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let text = |range: &Range<usize>| self.text.get(range.clone()).unwrap_or_default();
        self.tags.iter().map(move |(name, value)| (text(name), text(value)))
    }

    fn push(&mut self, text: &str) -> Range<usize> {
        let start = self.text.len();
        self.text.push_str(text);
        start..self.text.len()
    }
}

/// CustomTag, lowered.
#[derive(Debug)]
pub(crate) struct CustomTag {
    /// `tag`
    pub(crate) name: Box<str>,
    /// Its value.
    pub(crate) value: TagValue,
}

/// The value of a configured tag; there is no tag without one.
#[derive(Debug)]
pub(crate) enum TagValue {
    /// `literal`, or `environment` as it is: empty if there is none.
    Literal(Box<str>),
    /// `request_header`: its lower-case name, and the value of those without.
    Header(Box<str>, Box<str>),
    /// `metadata`: whose, its namespace, where in it, and the value of those without.
    Metadata(MetadataOf, Box<str>, Vec<Box<str>>, Box<str>),
    /// `value`
    Format(Format),
}

/// MetadataKind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetadataOf {
    /// The request's dynamic metadata.
    Request,
    /// The route's.
    Route,
    /// The upstream cluster's.
    Cluster,
    /// The endpoint's.
    Host,
}

/// What configured tags are made of.
pub(crate) struct TagContext<'a> {
    /// Of the request, or of the attempt.
    pub(crate) format: FormatContext<'a>,
    /// The route's metadata.
    pub(crate) route: Option<&'a Metadata>,
}

impl TagValue {
    fn text<'a>(&'a self, cx: &TagContext<'a>) -> Cow<'a, str> {
        match self {
            TagValue::Literal(text) => Cow::Borrowed(text),
            TagValue::Header(name, default) => match cx.format.request.and_then(|head| head.find(name)) {
                Some(value) => String::from_utf8_lossy(value),
                None => Cow::Borrowed(default),
            },
            TagValue::Metadata(of, namespace, path, default) => {
                let info = cx.format.info;
                let of_map = |metadata: &'a Metadata| {
                    path.iter().try_fold(metadata.get(&**namespace)?, |value, key| value.get(&**key))
                };
                let value = match of {
                    MetadataOf::Request => find_path(&info.metadata, namespace, path),
                    MetadataOf::Route => cx.route.and_then(of_map),
                    MetadataOf::Cluster => {
                        info.upstream.cluster.as_ref().and_then(|facts| of_map(&facts.metadata))
                    }
                    MetadataOf::Host => {
                        info.upstream.endpoint.as_ref().and_then(|host| of_map(&host.metadata))
                    }
                };
                match value {
                    None | Some(Json::Null) => Cow::Borrowed(default),
                    Some(Json::String(text)) => Cow::Borrowed(text),
                    Some(Json::Number(number)) => Cow::Owned(whole(number)),
                    Some(value) => Cow::Owned(value.to_string()),
                }
            }
            TagValue::Format(format) => {
                let mut text = Vec::new();
                format.format(&cx.format, "", &mut text);
                Cow::Owned(String::from_utf8_lossy(&text).into_owned())
            }
        }
    }
}

/// A number of a message, all of which are floating: without a fraction if it has none.
fn whole(number: &serde_json::Number) -> String {
    match number.as_f64() {
        Some(float) if float.fract() == 0.0 && float.abs() < 9e15 => (float as i64).to_string(),
        _ => number.to_string(),
    }
}

/// Adds the tags of a request.
pub(crate) fn of_request(tracing: &Tracing, cx: &FormatContext<'_>, tags: &mut Tags) {
    let info = cx.info;
    tags.add("node_id", &tracing.node);
    tags.add("zone", &tracing.zone);
    if let Some(head) = cx.request {
        if let Some(id) = head.get(Known::XRequestId) {
            tags.add_bytes("guid:x-request-id", id);
        }
        tags.add_bytes("http.url", &url(head, tracing.max_path));
        tags.add_bytes("http.method", head.method());
        let or_dash = |name| head.get(name).unwrap_or(b"-");
        tags.add_bytes("downstream_cluster", or_dash(Known::EnvoyDownstreamServiceCluster));
        tags.add_bytes("user_agent", or_dash(Known::UserAgent));
        tags.add("http.protocol", info.protocol.map_or("-", Protocol::text));
        tags.add("peer.address", &info.connection.direct_remote.ip().to_string());
        if let Some(id) = head.get(Known::XClientTraceId) {
            tags.add_bytes("guid:x-client-trace-id", id);
        }
        if head.is_grpc() {
            tags.add_bytes("grpc.path", head.path());
            tags.add_bytes("grpc.authority", head.authority());
            tags.add_bytes("grpc.content_type", head.get(Known::ContentType).unwrap_or_default());
            if let Some(timeout) = head.get(Known::GrpcTimeout) {
                tags.add_bytes("grpc.timeout", timeout);
            }
        }
    }
    tags.add("request_size", &info.bytes_received.to_string());
    tags.add("response_size", &info.bytes_sent.to_string());
    common(info, tags);
    for block in [cx.response, cx.trailers].into_iter().flatten() {
        grpc_status(block, tags);
    }
}

/// Adds the tags of an attempt, or of a call of our own.
pub(crate) fn of_attempt(info: &StreamInfo, tags: &mut Tags) {
    tags.add("http.protocol", info.protocol.map_or("-", Protocol::text));
    if let Some(host) = info.upstream.host {
        let host = host.to_string();
        tags.add("upstream_address", &host);
        tags.add("peer.address", &host);
    }
    common(info, tags);
}

/// Adds the configured tags: the route's, and those of the connection manager that it does not have.
pub(crate) fn custom(tracing: &Tracing, route: Option<&RouteTracing>, cx: &TagContext<'_>, tags: &mut Tags) {
    let own = route.map_or(&[][..], |route| &route.custom_tags);
    let others = tracing.custom_tags.iter().filter(|tag| own.iter().all(|own| own.name != tag.name));
    for tag in own.iter().chain(others) {
        let text = tag.value.text(cx);
        if !text.is_empty() {
            tags.set(&tag.name, &text);
        }
    }
}

fn common(info: &StreamInfo, tags: &mut Tags) {
    tags.add("component", "proxy");
    if let Some(cluster) = &info.upstream.cluster {
        tags.add("upstream_cluster", &cluster.name);
        tags.add("upstream_cluster.name", &cluster.stat_name);
    }
    tags.add("http.status_code", &info.response_code.to_string());
    let flags = short_flags(info);
    tags.add("response_flags", if flags.is_empty() { "-" } else { &flags });
    if info.response_code == 0 || info.response_code / 100 == 5 {
        tags.set("error", "true");
    }
}

/// Adds what a response's head or trailers say of a gRPC call.
pub(crate) fn grpc_status(block: &HeaderMap, tags: &mut Tags) {
    let Some(status) = block.get_str(Known::GrpcStatus) else { return };
    tags.set("grpc.status_code", status);
    if let Some(message) = block.get(Known::GrpcMessage) {
        tags.set("grpc.message", &String::from_utf8_lossy(message));
    }
    if status.parse().is_ok_and(is_server_error) {
        tags.set("error", "true");
    }
}

/// Whether a gRPC status says that the service has failed, not its client.
pub(crate) fn is_server_error(status: u64) -> bool {
    matches!(status, 2 | 4 | 12..=15)
}

/// What was asked for, as it came; the path no longer than allowed.
fn url(head: &HeaderMap, max_path: usize) -> Vec<u8> {
    let path = head.get(Known::EnvoyOriginalPath).unwrap_or(head.path());
    let path = path.get(..max_path).unwrap_or(path);
    [head.get(Known::XForwardedProto).unwrap_or_default(), b"://", head.authority(), path].concat()
}

/// What happened when; `downstream`: with what the client sent and got.
pub(crate) fn events(info: &StreamInfo, downstream: bool) -> Vec<(SystemTime, &'static str)> {
    let upstream = &info.upstream;
    let down = |at| if downstream { at } else { None };
    let points = [
        (down(info.request_complete), "last_downstream_rx_byte_received"),
        (upstream.first_tx, "first_upstream_tx_byte_sent"),
        (upstream.last_tx, "last_upstream_tx_byte_sent"),
        (upstream.first_rx, "first_upstream_rx_byte_received"),
        (upstream.last_rx, "last_upstream_rx_byte_received"),
        (down(info.first_downstream_tx), "first_downstream_tx_byte_sent"),
        (down(info.last_downstream_tx), "last_downstream_tx_byte_sent"),
    ];
    let happened = points.into_iter().filter_map(|(at, name)| Some((wall(info, at?), name)));
    happened.collect()
}

/// A moment on the clock of the wall.
pub(crate) fn wall(info: &StreamInfo, at: Instant) -> SystemTime {
    match at.checked_duration_since(info.started) {
        Some(after) => info.start_time + after,
        // It can be before by as much as reading two clocks takes.
        None => info.start_time.checked_sub(info.started - at).unwrap_or(SystemTime::UNIX_EPOCH),
    }
}

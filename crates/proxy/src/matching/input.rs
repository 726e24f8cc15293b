//! Inputs of matchers: named facts, and how they read as values.

use std::borrow::Cow;
use std::io::Write as _;
use std::net::IpAddr;

use leno_api::proto::envoy::extensions::matching::common_inputs::environment_variable::v3 as environment;
use leno_api::proto::envoy::extensions::matching::common_inputs::network::v3 as network;
use leno_api::proto::envoy::r#type::matcher::v3 as http;
use leno_api::proto::xds::core::v3::TypedExtensionConfig;
use leno_base::Name;
use serde_json::Value as Json;

use super::facts::{Facts, PeerName};
use super::lower::Place;
use super::value::find_path;
use crate::config::lower::Lower;
use crate::http::headers::{HeaderMap, Known};
use crate::http::route::matcher::{header_name, joined, query_value};
use crate::io::is_localhost;
use crate::telemetry::stream_info::FilterState;

/// An input.
#[derive(Clone, Debug)]
pub(super) enum Input {
    DestinationIp,
    DestinationPort,
    SourceIp,
    SourcePort,
    DirectSourceIp,
    /// `local` if both ends are on one machine.
    SourceType,
    ServerName,
    TransportProtocol,
    /// Quoted and joined by commas: `'h2','http/1.1'`.
    ApplicationProtocol,
    /// The object's text.
    FilterState(Box<str>),
    /// Namespace and path; only for the metadata matcher.
    DynamicMetadata(Box<str>, Vec<Box<str>>),
    /// Names of the peer's certificate, joined by commas.
    Peer(PeerName),
    RequestHeader(Name),
    ResponseHeader(Name),
    ResponseTrailer(Name),
    /// Decoded.
    QueryParameter(Box<str>),
    StatusCode,
    /// `2xx` and so on.
    StatusClass,
    /// An environment variable.
    Constant(Option<Box<str>>),
}

/// An input's value.
#[derive(Debug)]
pub(super) enum Value<'a> {
    /// There is none.
    Absent,
    Text(Cow<'a, [u8]>),
    /// A port or a status: its text is the number.
    Port(u16),
    Ip(IpAddr),
    /// Metadata; `None`: nothing lies at the path.
    Json(Option<&'a Json>),
}

impl Value<'_> {
    /// Reads the value's text; `None`: there is none.
    pub(super) fn with_text<R>(&self, read: impl FnOnce(Option<&[u8]>) -> R) -> R {
        // An IPv6 address has at most 45 characters.
        let mut short = [0; 48];
        let mut rest = &mut short[..];
        let written = match self {
            Value::Absent | Value::Json(_) => return read(None),
            Value::Text(text) => return read(Some(text)),
            Value::Port(number) => write!(rest, "{number}"),
            Value::Ip(ip) => write!(rest, "{ip}"),
        };
        let length = 48 - rest.len();
        read(written.ok().and(short.get(..length)))
    }

    /// The value as an IP address.
    pub(super) fn ip(&self) -> Option<IpAddr> {
        match self {
            Value::Ip(ip) => Some(*ip),
            Value::Text(text) => std::str::from_utf8(text).ok()?.parse().ok(),
            Value::Absent | Value::Port(_) | Value::Json(_) => None,
        }
    }
}

impl Input {
    /// Whether it yields text; only metadata does not.
    pub(super) fn is_text(&self) -> bool {
        !matches!(self, Input::DynamicMetadata(..))
    }

    /// Its value.
    pub(super) fn value<'f>(&'f self, facts: &'f impl Facts) -> Value<'f> {
        let ip = |address: Option<std::net::SocketAddr>| address.map_or(Value::Absent, |a| Value::Ip(a.ip()));
        let port =
            |address: Option<std::net::SocketAddr>| address.map_or(Value::Absent, |a| Value::Port(a.port()));
        match self {
            Input::DestinationIp => ip(facts.destination()),
            Input::DestinationPort => port(facts.destination()),
            Input::SourceIp => ip(facts.source()),
            Input::SourcePort => port(facts.source()),
            Input::DirectSourceIp => ip(facts.direct_source()),
            Input::SourceType => {
                let local = match (facts.source(), facts.destination()) {
                    (Some(source), Some(destination)) => {
                        source.ip() == destination.ip() || is_localhost(source.ip())
                    }
                    _ => false,
                };
                if local { text("local") } else { Value::Absent }
            }
            Input::ServerName => text(facts.server_name()),
            Input::TransportProtocol => text(facts.transport()),
            Input::ApplicationProtocol => quoted(facts.application_protocols()),
            Input::FilterState(key) => {
                facts.filter_state(key).map_or(Value::Absent, |FilterState { text, .. }| {
                    Value::Text(Cow::Borrowed(text.as_bytes()))
                })
            }
            Input::DynamicMetadata(namespace, path) => {
                Value::Json(facts.metadata().and_then(|metadata| find_path(metadata, namespace, path)))
            }
            Input::Peer(kind) => {
                let mut names = String::new();
                facts.find_peer_name(*kind, &mut |name| {
                    if !names.is_empty() {
                        names.push(',');
                    }
                    names.push_str(name);
                    false
                });
                if names.is_empty() { Value::Absent } else { Value::Text(Cow::Owned(names.into_bytes())) }
            }
            Input::RequestHeader(name) => header(facts.request(), name),
            Input::ResponseHeader(name) => header(facts.response(), name),
            Input::ResponseTrailer(name) => header(facts.response_trailers(), name),
            Input::QueryParameter(name) => query(facts.request(), name),
            Input::StatusCode => facts.response().map_or(Value::Absent, |head| Value::Port(head.status())),
            Input::StatusClass => facts.response().map_or(Value::Absent, |head| {
                Value::Text(Cow::Owned(format!("{}xx", head.status() / 100).into_bytes()))
            }),
            Input::Constant(value) => value.as_deref().map_or(Value::Absent, text),
        }
    }
}

/// Empty means absent.
fn text(text: &str) -> Value<'_> {
    if text.is_empty() { Value::Absent } else { Value::Text(Cow::Borrowed(text.as_bytes())) }
}

fn quoted(protocols: &[Box<str>]) -> Value<'_> {
    if protocols.is_empty() {
        return Value::Absent;
    }
    let quoted: Vec<String> = protocols.iter().map(|protocol| format!("'{protocol}'")).collect();
    Value::Text(Cow::Owned(quoted.join(",").into_bytes()))
}

fn header<'f>(headers: Option<&'f HeaderMap>, name: &str) -> Value<'f> {
    let Some(headers) = headers else { return Value::Absent };
    let mut values = headers.find_all(name);
    match values.next() {
        Some(first) => Value::Text(joined(first, values)),
        None => Value::Absent,
    }
}

fn query<'f>(request: Option<&'f HeaderMap>, name: &str) -> Value<'f> {
    let path = request.and_then(|request| request.get(Known::Path)).unwrap_or_default();
    let Some(start) = memchr::memchr(b'?', path) else { return Value::Absent };
    let query = path.get(start + 1..).unwrap_or_default();
    let query = query.split(|byte| *byte == b'#').next().unwrap_or(query);
    query_value(query, name.as_bytes()).map_or(Value::Absent, |value| Value::Text(percent_decode(value)))
}

/// Undoes percent-encoding.
pub(crate) fn percent_decode(value: &[u8]) -> Cow<'_, [u8]> {
    if !value.contains(&b'%') {
        return Cow::Borrowed(value);
    }
    let digit =
        |byte: Option<&u8>| char::from(*byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut decoded = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((first, behind)) = rest.split_first() {
        match (digit(behind.first()), digit(behind.get(1))) {
            (Some(high), Some(low)) if *first == b'%' => {
                decoded.push(high << 4 | low);
                rest = behind.get(2..).unwrap_or_default();
            }
            _ => {
                decoded.push(*first);
                rest = behind;
            }
        }
    }
    Cow::Owned(decoded)
}

/// Lowers an input.
pub(super) fn input(proto: TypedExtensionConfig, place: Place, at: &mut Lower) -> Option<Input> {
    let TypedExtensionConfig { name, typed_config } = proto;
    let Some(any) = typed_config else {
        at.error_at("typed_config", "value is required");
        return None;
    };
    at.field("typed_config", |at| {
        let any = at.extension(any)?;
        let type_name = leno_api::any::type_name(&any.type_url).to_owned();
        if let Some(reason) = (place.refuse)(&type_name) {
            at.error(reason);
            return None;
        }
        known(&type_name, &any, place, at).unwrap_or_else(|| {
            at.unsupported_extension(&name, &any.type_url);
            None
        })
    })
}

/// The outer `None`: no input of this type.
#[allow(clippy::option_option, reason = "unknown types are told apart from refused ones")]
fn known(type_name: &str, any: &prost_types::Any, place: Place, at: &mut Lower) -> Option<Option<Input>> {
    const COMMON: &str = "envoy.extensions.matching.common_inputs.";
    let only_http = |input: Option<Input>, at: &mut Lower| {
        if place.http {
            return input;
        }
        at.error("is no input of a connection");
        None
    };
    if let Some(name) = type_name.strip_prefix(COMMON) {
        return Some(match name {
            "network.v3.DestinationIPInput" => Some(Input::DestinationIp),
            "network.v3.DestinationPortInput" => Some(Input::DestinationPort),
            "network.v3.SourceIPInput" => Some(Input::SourceIp),
            "network.v3.SourcePortInput" => Some(Input::SourcePort),
            "network.v3.DirectSourceIPInput" => Some(Input::DirectSourceIp),
            "network.v3.SourceTypeInput" => Some(Input::SourceType),
            "network.v3.ServerNameInput" => Some(Input::ServerName),
            "network.v3.TransportProtocolInput" if !place.http => Some(Input::TransportProtocol),
            "network.v3.ApplicationProtocolInput" if !place.http => Some(Input::ApplicationProtocol),
            "network.v3.FilterStateInput" => {
                at.unpack::<network::FilterStateInput>(any).map(|network::FilterStateInput { key, field }| {
                    at.unsupported("field", !field.is_empty());
                    Input::FilterState(key.into())
                })
            }
            "network.v3.DynamicMetadataInput" => {
                at.unpack(any).map(|network::DynamicMetadataInput { filter, path }| {
                    use network::dynamic_metadata_input::path_segment::Segment;
                    let keys = path.into_iter().filter_map(|segment| segment.segment);
                    Input::DynamicMetadata(filter.into(), keys.map(|Segment::Key(key)| key.into()).collect())
                })
            }
            "ssl.v3.UriSanInput" => Some(Input::Peer(PeerName::Uri)),
            "ssl.v3.DnsSanInput" => Some(Input::Peer(PeerName::Dns)),
            "ssl.v3.SubjectInput" => Some(Input::Peer(PeerName::Subject)),
            "environment_variable.v3.Config" => at.unpack(any).map(|environment::Config { name }| {
                Input::Constant(std::env::var(name).ok().map(Into::into))
            }),
            _ => return None,
        });
    }
    Some(match type_name.strip_prefix("envoy.type.matcher.v3.")? {
        "HttpRequestHeaderMatchInput" => {
            let input = at.unpack(any).map(|http::HttpRequestHeaderMatchInput { header_name: name }| {
                Input::RequestHeader(header_name(&name))
            });
            only_http(input, at)
        }
        "HttpResponseHeaderMatchInput" => {
            let input = at.unpack(any).map(|http::HttpResponseHeaderMatchInput { header_name: name }| {
                Input::ResponseHeader(header_name(&name))
            });
            only_http(input, at)
        }
        "HttpResponseTrailerMatchInput" => {
            let input = at.unpack(any).map(|http::HttpResponseTrailerMatchInput { header_name: name }| {
                Input::ResponseTrailer(header_name(&name))
            });
            only_http(input, at)
        }
        "HttpRequestQueryParamMatchInput" => {
            let input = at.unpack(any).map(|http::HttpRequestQueryParamMatchInput { query_param }| {
                Input::QueryParameter(query_param.into())
            });
            only_http(input, at)
        }
        "HttpResponseStatusCodeMatchInput" => only_http(Some(Input::StatusCode), at),
        "HttpResponseStatusCodeClassMatchInput" => only_http(Some(Input::StatusClass), at),
        _ => return None,
    })
}

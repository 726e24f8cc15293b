//! The question: envoy.service.auth.v3.CheckRequest.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::service::auth::v3 as auth;
use leno_tls::{AltName, Certificate};
use prost::Message;
use serde_json::{Map, Value};

use super::Settings;
use crate::config::lower::Lower;
use crate::http::headers::{HeaderMap, Known};
use crate::http::route::matcher::StringMatcher;
use crate::http::stream::Stream;
use crate::matching::facts::{Facts, RequestFacts};
use crate::telemetry::stream_info::ConnectionInfo;
use crate::tls::TlsInfo;

/// Says whether the body that goes along is only the beginning of it.
pub(super) const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

/// What of a body goes along.
#[derive(Debug, Default)]
pub(super) struct Content {
    pieces: Vec<Bytes>,
    length: usize,
}

impl Content {
    /// Another piece.
    pub(super) fn push(&mut self, piece: &Bytes) {
        self.length += piece.len();
        self.pieces.push(piece.clone());
    }

    /// Its bytes so far.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// So many bytes of it at most, and whether there is more.
    pub(super) fn up_to(&self, max: usize) -> (Bytes, bool) {
        if let [only] = self.pieces.as_slice() {
            return (only.slice(..only.len().min(max)), only.len() > max);
        }
        let mut body = BytesMut::with_capacity(self.length.min(max));
        for piece in &self.pieces {
            let left = max - body.len();
            body.extend_from_slice(piece.get(..left).unwrap_or(piece));
        }
        (body.freeze(), self.length > max)
    }
}

/// What is asked for one request.
pub(super) struct Question<'a> {
    pub(super) settings: Wanted<'a>,
    pub(super) extensions: &'a [(Box<str>, Box<str>)],
    /// The body, and how much of it is sent at most.
    pub(super) content: Option<(&'a Content, usize)>,
}

/// What the service is told.
pub(super) struct Wanted<'a> {
    pub(super) settings: &'a Settings,
}

impl<'a> Wanted<'a> {
    /// As configured.
    pub(super) fn of(settings: &'a Settings) -> Self {
        Self { settings }
    }

    /// Whether the service is told this header.
    pub(super) fn tells(&self, name: &str, always: &[&str]) -> bool {
        let any =
            |matchers: &[StringMatcher]| matchers.iter().any(|matcher| matcher.matches(name.as_bytes()));
        name != PARTIAL_BODY
            && !any(&self.settings.disallowed_headers)
            && self
                .settings
                .allowed_headers
                .as_ref()
                .is_none_or(|allowed| any(allowed) || always.contains(&name))
    }
}

impl Question<'_> {
    /// The question as a message.
    pub(super) fn message(&self, stream: &Stream, head: &HeaderMap) -> Bytes {
        let settings = self.settings.settings;
        let connection = &stream.info.connection;
        let route = stream.selected.as_ref().map(|selected| &*selected.route);
        let facts = RequestFacts { info: &stream.info, request: head, route };
        let text = |known| sanitized(head.get(known).unwrap_or_default());
        let service = text(Known::EnvoyDownstreamServiceCluster);
        let remote = facts.connection_source().unwrap_or(connection.remote);
        let tls = connection.tls.as_deref();
        let mut http = auth::attribute_context::HttpRequest {
            id: stream.random.to_string(),
            method: text(Known::Method),
            path: text(Known::Path),
            host: text(Known::Authority),
            scheme: text(Known::Scheme),
            size: i64::try_from(stream.info.bytes_received).unwrap_or(i64::MAX),
            protocol: stream.info.protocol.map_or_else(String::new, |protocol| protocol.text().to_owned()),
            ..Default::default()
        };
        let headers = head.iter().map(|(name, value)| (sanitized(name), value));
        let headers = headers.filter(|(name, _)| self.settings.tells(name, &[]));
        let partial = self.content.map(|(content, max)| {
            let (body, partial) = content.up_to(max);
            if settings.pack_as_bytes {
                http.raw_body = body;
            } else {
                http.body = sanitized(&body);
            }
            if partial { "true" } else { "false" }
        });
        if settings.raw_headers {
            let header = |key: String, value: &[u8]| core::HeaderValue {
                key,
                value: String::new(),
                raw_value: Bytes::copy_from_slice(value),
            };
            let partial = partial.map(|partial| header(PARTIAL_BODY.to_owned(), partial.as_bytes()));
            let headers = headers.map(|(name, value)| header(name, value)).chain(partial).collect();
            http.header_map = Some(core::HeaderMap { headers });
        } else {
            for (name, value) in headers {
                let value = sanitized(value);
                let known = http.headers.entry(name).or_default();
                if !known.is_empty() {
                    known.push(',');
                }
                known.push_str(&value);
            }
            if let Some(partial) = partial {
                http.headers.insert(PARTIAL_BODY.to_owned(), partial.to_owned());
            }
        }
        let mut destination = peer(connection.local, tls, true, false);
        destination.labels = settings.labels.iter().map(owned).collect();
        let mut source = peer(remote, tls, false, settings.include_certificate);
        source.service = service;
        let metadata = settings.namespaces.iter().filter_map(|name| {
            let request = stream.info.metadata.get(name);
            Some((name.to_string(), structure(request.or_else(|| connection.found.metadata.get(name))?)))
        });
        let route_metadata = route.and_then(|route| route.metadata.as_ref());
        let route_metadata = settings.route_namespaces.iter().filter_map(|name| {
            Some((name.to_string(), structure(route_metadata?.get(&**name)?.as_object()?)))
        });
        let request = auth::attribute_context::Request {
            time: Some(timestamp(stream.info.start_time)),
            http: Some(http),
        };
        let attributes = auth::AttributeContext {
            source: Some(source),
            destination: Some(destination),
            request: Some(request),
            context_extensions: self.extensions.iter().map(owned).collect(),
            metadata_context: Some(metadata_of(metadata.collect())),
            route_metadata_context: Some(metadata_of(route_metadata.collect())),
            tls_session: settings.include_tls_session.then(|| session(connection)),
        };
        auth::CheckRequest { attributes: Some(attributes) }.encode_to_vec().into()
    }
}

/// The question for a connection.
pub(crate) fn connection_message(
    connection: &ConnectionInfo,
    labels: &[(Box<str>, Box<str>)],
    namespaces: &[Box<str>],
    include: [bool; 2],
) -> Bytes {
    let [certificate, tls_session] = include;
    let tls = connection.tls.as_deref();
    let mut destination = peer(connection.local, tls, true, false);
    destination.service = connection.server_name.as_deref().unwrap_or_default().to_owned();
    destination.labels = labels.iter().map(owned).collect();
    let metadata = namespaces
        .iter()
        .filter_map(|name| Some((name.to_string(), structure(connection.found.metadata.get(name)?))));
    let attributes = auth::AttributeContext {
        source: Some(peer(connection.remote, tls, false, certificate)),
        destination: Some(destination),
        metadata_context: Some(metadata_of(metadata.collect())),
        tls_session: tls_session.then(|| session(connection)),
        ..Default::default()
    };
    auth::CheckRequest { attributes: Some(attributes) }.encode_to_vec().into()
}

/// The labels of this proxy, out of `node.metadata`.
pub(crate) fn labels(key: &str, at: &Lower) -> Vec<(Box<str>, Box<str>)> {
    let labels = at.scope().node_metadata.get(key).and_then(Value::as_object);
    let text = |value: &Value| value.as_str().unwrap_or_default().into();
    labels.into_iter().flatten().map(|(key, value)| (key.as_str().into(), text(value))).collect()
}

fn owned((key, value): &(Box<str>, Box<str>)) -> (String, String) {
    (key.to_string(), value.to_string())
}

fn session(connection: &ConnectionInfo) -> auth::attribute_context::TlsSession {
    let sni = connection.server_name.as_deref().unwrap_or_default().to_owned();
    auth::attribute_context::TlsSession { sni }
}

fn metadata_of(filter_metadata: BTreeMap<String, prost_types::Struct>) -> core::Metadata {
    core::Metadata { filter_metadata, typed_filter_metadata: BTreeMap::new() }
}

/// One end of the connection. `local`: ours.
fn peer(
    address: SocketAddr,
    tls: Option<&TlsInfo>,
    local: bool,
    certificate: bool,
) -> auth::attribute_context::Peer {
    let socket = core::SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(address.port().into())),
        ..Default::default()
    };
    let address = core::Address { address: Some(core::address::Address::SocketAddress(socket)) };
    let shown = tls.and_then(|tls| tls.peer.as_ref()).filter(|_| !local);
    let principal = match (tls, local) {
        (Some(tls), true) => {
            tls.local.as_ref().map(|identity| own_principal(identity.certificate())).unwrap_or_default()
        }
        _ => shown.and_then(|peer| peer.own()).map(own_principal).unwrap_or_default(),
    };
    auth::attribute_context::Peer {
        address: Some(address),
        principal,
        certificate: shown.filter(|_| certificate).map_or_else(String::new, |peer| peer.pem()),
        ..Default::default()
    }
}

/// The first URI, else the first DNS name of a certificate.
fn principal(certificate: &Certificate) -> Option<String> {
    let names = certificate.alt_names();
    let uri = names.iter().find(|name| matches!(name, AltName::Uri(_)));
    uri.or_else(|| names.iter().find(|name| matches!(name, AltName::Dns(_)))).and_then(AltName::text)
}

/// The same, else its subject.
fn own_principal(certificate: &Certificate) -> String {
    principal(certificate).unwrap_or_else(|| certificate.subject_text())
}

fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    prost_types::Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}

/// Text; bytes that are none become `!`.
fn sanitized(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '!'));
    }
    text
}

/// An object as a Struct.
fn structure(object: &Map<String, Value>) -> prost_types::Struct {
    prost_types::Struct { fields: object.iter().map(|(key, field)| (key.clone(), value(field))).collect() }
}

fn value(json: &Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match json {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(list) => {
            Kind::ListValue(prost_types::ListValue { values: list.iter().map(value).collect() })
        }
        Value::Object(object) => Kind::StructValue(structure(object)),
    };
    prost_types::Value { kind: Some(kind) }
}

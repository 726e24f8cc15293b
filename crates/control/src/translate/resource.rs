//! An encoded resource, and small pieces that many resources contain.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bytes::Bytes;
use leno_api::any;
use prost::{Message, Name};
use prost_types::value::Kind;
use prost_types::{Any, Struct, Value};

use super::proto::core;
use crate::model::ObjectRef;

/// One resource as it goes over the wire, shared by all proxies that get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    /// Name, version (a hash of the bytes) and bytes.
    pub(crate) wire: leno_xds::Resource,
    /// The objects that it was made of, to be blamed when a proxy refuses it.
    pub(crate) origins: Vec<ObjectRef>,
    /// For a cluster: whether it is of no use before its endpoints have been asked for and sent.
    pub(crate) needs_endpoints: bool,
    /// For a route configuration or virtual host: the clusters that it leads to, sorted.
    pub(crate) clusters: Vec<leno_base::Name>,
    /// Clusters that must be there before it is used, even at proxies that ask for clusters when they
    /// send something there: mirrors, and what filters, loggers and tracers talk to; sorted.
    pub(crate) needs: Vec<leno_base::Name>,
    /// For a virtual host: whether it is for one host that somebody has asked for, of which there can be
    /// as many as requests make up.
    pub(crate) is_made_up: bool,
}

impl Resource {
    /// Encodes a message.
    pub(crate) fn new<T: Message>(name: &str, message: &T, mut origins: Vec<ObjectRef>) -> Resource {
        origins.sort();
        origins.dedup();
        let body = Bytes::from(message.encode_to_vec());
        Resource {
            wire: leno_xds::Resource::hashed(leno_base::Name::new(name), body),
            origins,
            needs_endpoints: false,
            clusters: Vec::new(),
            needs: Vec::new(),
            is_made_up: false,
        }
    }

    /// Its name among the resources of its type.
    pub(crate) fn name(&self) -> &str {
        &self.wire.name
    }
}

/// "From the stream on which this came", waiting as long as it takes.
pub(crate) fn ads() -> core::ConfigSource {
    core::ConfigSource {
        initial_fetch_timeout: Some(prost_types::Duration::default()),
        resource_api_version: core::ApiVersion::V3 as i32,
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource::default(),
        )),
        ..core::ConfigSource::default()
    }
}

/// A TCP address.
pub(crate) fn address(host: &str, port: u16) -> core::Address {
    core::Address { address: Some(core::address::Address::SocketAddress(socket_address(host, port))) }
}

/// The address of a Unix socket.
pub(crate) fn pipe(path: &str) -> core::Address {
    core::Address {
        address: Some(core::address::Address::Pipe(core::Pipe {
            path: path.to_owned(),
            ..core::Pipe::default()
        })),
    }
}

/// A TCP address, unwrapped.
pub(crate) fn socket_address(host: &str, port: u16) -> core::SocketAddress {
    core::SocketAddress {
        address: host.to_owned(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(u32::from(port))),
        ..core::SocketAddress::default()
    }
}

/// A range of addresses from text such as `10.0.0.0/8` or `10.0.0.1`.
pub(crate) fn cidr(text: &str) -> Option<core::CidrRange> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address.parse::<IpAddr>().ok()?, Some(length.parse::<u32>().ok()?)),
        None => (text.parse::<IpAddr>().ok()?, None),
    };
    let length = length.unwrap_or(if address.is_ipv4() { 32 } else { 128 });
    Some(core::CidrRange { address_prefix: address.to_string(), prefix_len: Some(length) })
}

/// Metadata under `istio`, as telemetry and people look for it.
pub(crate) fn istio_metadata(fields: impl IntoIterator<Item = (&'static str, Value)>) -> core::Metadata {
    metadata_of([("istio", object(fields))])
}

/// Metadata under several names, each a structure.
pub(crate) fn metadata_of(namespaces: impl IntoIterator<Item = (&'static str, Value)>) -> core::Metadata {
    let namespaces =
        namespaces.into_iter().filter_map(|(name, value)| Some((name.to_owned(), structure(value)?)));
    core::Metadata { filter_metadata: namespaces.collect(), ..core::Metadata::default() }
}

/// A text value.
pub(crate) fn text(value: impl Into<String>) -> Value {
    Value { kind: Some(Kind::StringValue(value.into())) }
}

/// A truth value.
pub(crate) fn truth(value: bool) -> Value {
    Value { kind: Some(Kind::BoolValue(value)) }
}

/// A list value.
pub(crate) fn list(values: Vec<Value>) -> Value {
    Value { kind: Some(Kind::ListValue(prost_types::ListValue { values })) }
}

/// A structure value.
pub(crate) fn object(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let fields: BTreeMap<String, Value> =
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Value { kind: Some(Kind::StructValue(Struct { fields })) }
}

/// The fields of a structure value.
pub(crate) fn structure(value: Value) -> Option<Struct> {
    match value.kind {
        Some(Kind::StructValue(fields)) => Some(fields),
        _ => None,
    }
}

/// A JSON value as protobuf's `Value`.
pub(crate) fn from_json(json: &serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(*value),
        serde_json::Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        serde_json::Value::String(value) => Kind::StringValue(value.clone()),
        serde_json::Value::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.iter().map(from_json).collect() })
        }
        serde_json::Value::Object(fields) => Kind::StructValue(Struct {
            fields: fields.iter().map(|(name, value)| (name.clone(), from_json(value))).collect(),
        }),
    };
    Value { kind: Some(kind) }
}

/// A message in an `Any`.
pub(crate) fn pack<T: Message + Name>(message: &T) -> Any {
    any::pack(message)
}

//! JSON of parts that several endpoints show, in the shape of the API's messages.

use leno_api::encode::{self, Style};
use prost::Message;
use serde_json::{Map, Value, json};

use crate::cluster::{EndpointAddress, HealthStatus, Locality};
use crate::listener::ListenAddress;

/// How messages are shown: secrets hidden.
const STYLE: Style = Style { redact: true, json_names: false, defaults: false };

/// An object without the fields that are null.
pub(super) fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(fields.map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Text, or null if it is empty.
pub(super) fn text(value: &str) -> Value {
    if value.is_empty() { Value::Null } else { value.into() }
}

/// A packed message with its `@type`.
pub(super) fn any(message: &prost_types::Any) -> Value {
    let encoded = encode::to_value("google.protobuf.Any", &message.encode_to_vec(), STYLE);
    encoded.unwrap_or_else(|error| json!({"@type": message.type_url, "error": error.to_string()}))
}

/// A message in wire form with its `@type`.
pub(super) fn packed<T: prost::Name>(wire: &[u8]) -> Value {
    any(&prost_types::Any { type_url: T::type_url(), value: wire.to_vec() })
}

/// The same without its `@type`.
pub(super) fn unpacked<T: prost::Name>(wire: &[u8]) -> Value {
    let mut value = packed::<T>(wire);
    if let Some(fields) = value.as_object_mut() {
        fields.shift_remove("@type");
    }
    value
}

/// envoy.config.core.v3.Address of a listener.
pub(super) fn listen_address(address: &ListenAddress) -> Value {
    match address {
        ListenAddress::Ip(address) => socket_address(&address.ip().to_string(), address.port()),
        ListenAddress::Pipe(path, mode) => {
            let mode = if *mode == 0 { Value::Null } else { json!(mode) };
            json!({"pipe": object([("path", json!(&**path)), ("mode", mode)])})
        }
    }
}

/// envoy.config.core.v3.Address of an endpoint.
pub(super) fn endpoint_address(address: &EndpointAddress) -> Value {
    match address {
        EndpointAddress::Ip(address) => socket_address(&address.ip().to_string(), address.port()),
        EndpointAddress::Name(name, port) => socket_address(name, *port),
        EndpointAddress::Pipe(path) => json!({"pipe": {"path": &**path}}),
        EndpointAddress::Internal(listener, id) => {
            json!({"envoy_internal_address": {"server_listener_name": &**listener, "endpoint_id": &**id}})
        }
    }
}

/// An endpoint's address as text.
pub(super) fn endpoint_text(address: &EndpointAddress) -> String {
    address.to_string()
}

fn socket_address(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

/// envoy.config.core.v3.Locality.
pub(super) fn locality(locality: &Locality) -> Value {
    object([
        ("region", text(&locality.region)),
        ("zone", text(&locality.zone)),
        ("sub_zone", text(&locality.sub_zone)),
    ])
}

/// envoy.config.core.v3.HealthStatus.
pub(super) fn health_status(health: HealthStatus) -> &'static str {
    match health {
        HealthStatus::Healthy => "HEALTHY",
        HealthStatus::Degraded => "DEGRADED",
        HealthStatus::Unhealthy => "UNHEALTHY",
        HealthStatus::Draining => "DRAINING",
    }
}

/// Keeps what a field mask names (`a.b,c`); lists are looked through, `@type` stays. `None`:
/// a path begins with a field that is not one of `fields`.
pub(super) fn masked(value: &Value, mask: &str, fields: &[&str]) -> Option<Value> {
    let paths: Vec<&str> = mask.split(',').map(str::trim).filter(|path| !path.is_empty()).collect();
    let known = |path: &&str| fields.contains(&path.split('.').next().unwrap_or_default());
    paths.iter().all(known).then(|| keep(value, &paths))
}

fn keep(value: &Value, paths: &[&str]) -> Value {
    if paths.contains(&"") {
        return value.clone();
    }
    match value {
        Value::Array(items) => items.iter().map(|item| keep(item, paths)).collect(),
        Value::Object(fields) => {
            let kept = fields.iter().filter_map(|(name, field)| {
                if name == "@type" {
                    return Some((name.clone(), field.clone()));
                }
                let below = paths.iter().filter_map(|path| match path.split_once('.') {
                    Some((first, rest)) => (first == name).then_some(rest),
                    None => (*path == name).then_some(""),
                });
                let below: Vec<&str> = below.collect();
                (!below.is_empty()).then(|| (name.clone(), keep(field, &below)))
            });
            Value::Object(kept.collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

//! One message merged into another of its type, in wire form, as Istio merges what users write into
//! what it made: protobuf's merge (fields that are set replace, messages merge, lists are appended to,
//! values of maps are replaced), but for the types of `google.protobuf` with a JSON form of their own
//! (durations, wrappers, structures, `Any`), which are replaced as a whole: nobody who writes `5s`
//! means to add seconds to the nanoseconds that are there, and protobuf has no way to write `false`
//! over a wrapped `true`.
//!
//! Driven by the schema, so that it works for types that have no Rust type here.

use std::borrow::Cow;

use crate::any::type_name;
use crate::schema::{Field, Kind, Message};
use crate::typed_struct;
use crate::wire::{Fields, MAX_DEPTH, Raw, Reader, Set, join_message, put_bytes, put_tag, put_varint};
use prost_types::Any;

/// What becomes of lists that both messages have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lists {
    /// The new elements follow the old ones.
    #[default]
    Append,
    /// The new elements take the place of the old ones.
    Replace,
}

/// Why two messages cannot be merged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// The schema does not have the type.
    #[error("the type {0:?} is not known")]
    UnknownType(String),
    /// The bytes are not such a message.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// Two `Any`s hold messages of different types.
    #[error("{patch} cannot be merged into {target}")]
    Types {
        /// Full name of what would be changed.
        target: String,
        /// Full name of what it would be changed by.
        patch: String,
    },
    /// A `TypedStruct` does not fit the type that it names.
    #[error("{0}")]
    TypedStruct(String),
}

/// Merges `patch` into `target`, both messages of the type given by its full name.
///
/// # Errors
/// If the type is unknown, or one of the two is not of it.
pub fn merge(type_name: &str, target: &[u8], patch: &[u8], lists: Lists) -> Result<Vec<u8>, MergeError> {
    let message = Message::find(type_name).ok_or_else(|| MergeError::UnknownType(type_name.to_owned()))?;
    let mut out = Vec::with_capacity(target.len() + patch.len());
    merge_into(message, target, patch, lists, &mut out, 0)?;
    Ok(out)
}

/// Merges the content of two `Any`s of one type. A `TypedStruct` counts as the type that it names.
///
/// # Errors
/// If the types differ or are unknown, or one of the two is not of its type.
pub fn merge_any(target: &Any, patch: &Any, lists: Lists) -> Result<Any, MergeError> {
    let resolve =
        |any: &Any| typed_struct::resolve(any).map_err(|errors| MergeError::TypedStruct(errors.to_string()));
    let (target, patch) = (resolve(target)?, resolve(patch)?);
    let (to, from) = (type_name(&target.type_url), type_name(&patch.type_url));
    if to != from {
        return Err(MergeError::Types { target: to.to_owned(), patch: from.to_owned() });
    }
    let value = merge(to, &target.value, &patch.value, lists)?;
    Ok(Any { type_url: target.type_url, value })
}

fn merge_into(
    message: Message,
    target: &[u8],
    patch: &[u8],
    lists: Lists,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), MergeError> {
    let malformed = || MergeError::Malformed(message.full_name());
    if depth > MAX_DEPTH {
        return Err(malformed());
    }
    let old = Fields::read(message, target).map_err(|_| malformed())?;
    let new = Fields::read(message, patch).map_err(|_| malformed())?;
    for sets in old.by_field() {
        let Some(field) = sets.first().map(|set| set.field) else { continue };
        let more = new.by_field().find(|sets| sets.first().is_some_and(|set| set.field == field));
        let Some(more) = more else {
            // Another field of its oneof takes its place.
            let is_replaced = field
                .oneof()
                .is_some_and(|oneof| new.known.iter().any(|set| set.field.oneof() == Some(oneof)));
            if !is_replaced {
                put_all(out, sets);
            }
            continue;
        };
        match field.kind() {
            Kind::Message(entry) if field.is_map() => {
                let keys: Vec<Cow<'_, [u8]>> = more.iter().filter_map(|set| key(entry, set)).collect();
                let kept: Vec<Set<'_>> = sets
                    .iter()
                    .filter(|set| key(entry, set).is_none_or(|key| !keys.contains(&key)))
                    .copied()
                    .collect();
                put_all(out, &kept);
                put_all(out, more);
            }
            _ if field.is_repeated() => {
                if lists == Lists::Append {
                    put_all(out, sets);
                }
                put_all(out, more);
            }
            Kind::Message(inner) if !is_whole(inner) => {
                let old = join_message(sets).map_err(|_| malformed())?;
                let new = join_message(more).map_err(|_| malformed())?;
                let mut merged = Vec::with_capacity(old.len() + new.len());
                merge_into(inner, &old, &new, lists, &mut merged, depth + 1)?;
                put_bytes(out, field.number(), &merged);
            }
            _ => put_all(out, more),
        }
    }
    for sets in new.by_field() {
        let Some(field) = sets.first().map(|set| set.field) else { continue };
        if !old.known.iter().any(|set| set.field == field) {
            put_all(out, sets);
        }
    }
    // What the schema does not know is kept, in order.
    put_unknown(message, target, out).ok_or_else(malformed)?;
    put_unknown(message, patch, out).ok_or_else(malformed)
}

/// Whether a message is one value to those who write it, and not merged.
fn is_whole(message: Message) -> bool {
    let name = message.full_name().strip_prefix("google.protobuf.").unwrap_or_default();
    matches!(name, "Any" | "Duration" | "Timestamp" | "FieldMask")
        || name.ends_with("Value") && name != "Value" && name != "ListValue"
}

/// The key of a map's entry in wire form; empty for the default.
fn key<'w>(entry: Message, set: &Set<'w>) -> Option<Cow<'w, [u8]>> {
    let wire = set.raw.bytes().ok()?;
    let fields = Fields::read(entry, wire).ok()?;
    let last = fields.known.iter().rev().find(|set| set.field.number() == 1);
    Some(match last.map(|set| set.raw) {
        None => Cow::Borrowed(&[]),
        Some(Raw::Bytes(bytes)) => Cow::Borrowed(bytes),
        Some(Raw::Varint(value) | Raw::Fixed64(value)) => Cow::Owned(trimmed(value)),
        Some(Raw::Fixed32(value)) => Cow::Owned(trimmed(u64::from(value))),
    })
}

/// A number without leading zeros, so that zero looks as if it was not set.
fn trimmed(value: u64) -> Vec<u8> {
    value.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect()
}

fn put_all(out: &mut Vec<u8>, sets: &[Set<'_>]) {
    for set in sets {
        put(out, set.field, set.raw);
    }
}

fn put(out: &mut Vec<u8>, field: Field, raw: Raw<'_>) {
    put_raw(out, field.number(), raw);
}

fn put_raw(out: &mut Vec<u8>, number: u32, raw: Raw<'_>) {
    match raw {
        Raw::Varint(value) => {
            put_tag(out, number, 0);
            put_varint(out, value);
        }
        Raw::Fixed64(value) => {
            put_tag(out, number, 1);
            out.extend_from_slice(&value.to_le_bytes());
        }
        Raw::Fixed32(value) => {
            put_tag(out, number, 5);
            out.extend_from_slice(&value.to_le_bytes());
        }
        Raw::Bytes(bytes) => put_bytes(out, number, bytes),
    }
}

fn put_unknown(message: Message, wire: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut reader = Reader(wire);
    while let Some((number, raw)) = reader.next().ok()? {
        if message.field(number).is_none() {
            put_raw(out, number, raw);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use prost_types::Any;

    use super::{Lists, merge, merge_any};
    use crate::decode::fragment;
    use crate::encode::{self, Style};
    use crate::yaml::{Dialect, parse};

    fn wire(type_name: &str, text: &str) -> Vec<u8> {
        let documents = parse(text, Dialect::Kubernetes).unwrap();
        let read = fragment(type_name, &documents[0]);
        assert!(read.errors.is_empty(), "{:?}", read.errors);
        read.wire.to_vec()
    }

    #[expect(clippy::needless_pass_by_value, reason = "reads better at the many calls")]
    fn check(type_name: &str, target: &str, patch: &str, lists: Lists, expected: Expect) {
        let merged = merge(type_name, &wire(type_name, target), &wire(type_name, patch), lists).unwrap();
        let value = encode::to_value(type_name, &merged, Style::default()).unwrap();
        expected.assert_eq(&encode::yaml_text(&value));
    }

    const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

    #[test]
    fn messages_merge_and_lists_grow() {
        check(
            CLUSTER,
            "{name: a, connect_timeout: 1.5s, circuit_breakers: {thresholds: [{max_retries: 1}]}, common_lb_config: {healthy_panic_threshold: {value: 1}, update_merge_window: 1s}}",
            "{connect_timeout: 2s, circuit_breakers: {thresholds: [{max_retries: 2}]}, common_lb_config: {healthy_panic_threshold: {value: 3}}}",
            Lists::Append,
            expect![[r#"
                name: a
                connect_timeout: 2s
                circuit_breakers:
                  thresholds:
                  - max_retries: 1
                  - max_retries: 2
                common_lb_config:
                  healthy_panic_threshold:
                    value: 3
                  update_merge_window: 1s
            "#]],
        );
        check(
            CLUSTER,
            "{circuit_breakers: {thresholds: [{max_retries: 1}]}, health_checks: [{timeout: 1s}]}",
            "{circuit_breakers: {thresholds: [{max_retries: 2}]}}",
            Lists::Replace,
            expect![[r#"
                health_checks:
                - timeout: 1s
                circuit_breakers:
                  thresholds:
                  - max_retries: 2
            "#]],
        );
    }

    #[test]
    fn oneofs_maps_and_wrappers_are_replaced() {
        check(
            CLUSTER,
            "{type: EDS, metadata: {filter_metadata: {a: {x: 1}, b: {x: 1}}}, respect_dns_ttl: true, track_timeout_budgets: true}",
            "{cluster_type: {name: c}, metadata: {filter_metadata: {b: {y: 2}}}}",
            Lists::Append,
            expect![[r#"
                metadata:
                  filter_metadata:
                    a:
                      x: 1
                    b:
                      "y": 2
                cluster_type:
                  name: c
                respect_dns_ttl: true
                track_timeout_budgets: true
            "#]],
        );
        check(
            "envoy.config.route.v3.RouteConfiguration",
            "{validate_clusters: true, max_direct_response_body_size_bytes: 10}",
            "{validate_clusters: false}",
            Lists::Append,
            expect![[r#"
                validate_clusters: false
                max_direct_response_body_size_bytes: 10
            "#]],
        );
    }

    #[test]
    fn any_of_one_type_merge() {
        let any = |text: &str| -> Any {
            let wire = wire("google.protobuf.Any", text);
            prost::Message::decode(wire.as_slice()).unwrap()
        };
        let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
        let target = any(&format!("{{'@type': {router}, start_child_span: true}}"));
        let patch = any(&format!(
            "{{'@type': type.googleapis.com/udpa.type.v1.TypedStruct, type_url: {router}, value: {{suppress_envoy_headers: true}}}}"
        ));
        let merged = merge_any(&target, &patch, Lists::Append).unwrap();
        let value = encode::value(&merged, Style::default());
        expect![[r#"{"@type":"type.googleapis.com/envoy.extensions.filters.http.router.v3.Router","start_child_span":true,"suppress_envoy_headers":true}"#]]
            .assert_eq(&value.to_string());
        let other = any("{'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}");
        expect!["envoy.extensions.filters.http.cors.v3.Cors cannot be merged into envoy.extensions.filters.http.router.v3.Router"]
            .assert_eq(&merge_any(&target, &other, Lists::Append).unwrap_err().to_string());
    }

    #[test]
    fn bad_bytes_are_refused() {
        assert!(merge(CLUSTER, &[0xff], &[], Lists::Append).is_err());
        assert!(merge(CLUSTER, &[], &[0x0a, 0x05], Lists::Append).is_err());
        assert!(merge("no.Such", &[], &[], Lists::Append).is_err());
    }
}

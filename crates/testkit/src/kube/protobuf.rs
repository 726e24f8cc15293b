//! Bodies in Kubernetes' protobuf, which `kubectl create` sends for a few kinds: read into JSON by
//! a table of their fields. What is not in the table is refused by name.

use serde_json::{Map, Value, json};

use super::status::Failure;

/// What the bytes begin with.
const MAGIC: &[u8] = b"k8s\0";

enum Type {
    Text,
    Number,
    Flag,
    Message(&'static [Field]),
    TextMap,
    BytesMap,
}

/// Number, name, type, and whether it occurs several times.
struct Field(u64, &'static str, Type, bool);

const fn one(number: u64, name: &'static str, kind: Type) -> Field {
    Field(number, name, kind, false)
}

const fn many(number: u64, name: &'static str, kind: Type) -> Field {
    Field(number, name, kind, true)
}

const OWNER: &[Field] = &[
    one(1, "kind", Type::Text),
    one(3, "name", Type::Text),
    one(4, "uid", Type::Text),
    one(5, "apiVersion", Type::Text),
    one(6, "controller", Type::Flag),
    one(7, "blockOwnerDeletion", Type::Flag),
];
const METADATA: &[Field] = &[
    one(1, "name", Type::Text),
    one(2, "generateName", Type::Text),
    one(3, "namespace", Type::Text),
    one(5, "uid", Type::Text),
    one(6, "resourceVersion", Type::Text),
    one(11, "labels", Type::TextMap),
    one(12, "annotations", Type::TextMap),
    many(13, "ownerReferences", Type::Message(OWNER)),
    many(14, "finalizers", Type::Text),
];
const NAMED: &[Field] = &[one(1, "metadata", Type::Message(METADATA))];
const CONFIG_MAP: &[Field] = &[
    one(1, "metadata", Type::Message(METADATA)),
    one(2, "data", Type::TextMap),
    one(3, "binaryData", Type::BytesMap),
    one(4, "immutable", Type::Flag),
];
const SECRET: &[Field] = &[
    one(1, "metadata", Type::Message(METADATA)),
    one(2, "data", Type::BytesMap),
    one(3, "type", Type::Text),
    one(4, "stringData", Type::TextMap),
    one(5, "immutable", Type::Flag),
];
const BOUND: &[Field] = &[
    one(1, "kind", Type::Text),
    one(2, "apiVersion", Type::Text),
    one(3, "name", Type::Text),
    one(4, "uid", Type::Text),
];
const TOKEN_SPEC: &[Field] = &[
    many(1, "audiences", Type::Text),
    one(3, "boundObjectRef", Type::Message(BOUND)),
    one(4, "expirationSeconds", Type::Number),
];
const TOKEN_REQUEST: &[Field] =
    &[one(1, "metadata", Type::Message(METADATA)), one(2, "spec", Type::Message(TOKEN_SPEC))];
const RESOURCE: &[Field] = &[
    one(1, "namespace", Type::Text),
    one(2, "verb", Type::Text),
    one(3, "group", Type::Text),
    one(4, "version", Type::Text),
    one(5, "resource", Type::Text),
    one(6, "subresource", Type::Text),
    one(7, "name", Type::Text),
];
const NON_RESOURCE: &[Field] = &[one(1, "path", Type::Text), one(2, "verb", Type::Text)];
const ACCESS_SPEC: &[Field] = &[
    one(1, "resourceAttributes", Type::Message(RESOURCE)),
    one(2, "nonResourceAttributes", Type::Message(NON_RESOURCE)),
];
const ACCESS_REVIEW: &[Field] =
    &[one(1, "metadata", Type::Message(METADATA)), one(2, "spec", Type::Message(ACCESS_SPEC))];
const PRECONDITIONS: &[Field] = &[one(1, "uid", Type::Text), one(2, "resourceVersion", Type::Text)];
const DELETE_OPTIONS: &[Field] = &[
    one(1, "gracePeriodSeconds", Type::Number),
    one(2, "preconditions", Type::Message(PRECONDITIONS)),
    one(3, "orphanDependents", Type::Flag),
    one(4, "propagationPolicy", Type::Text),
    many(5, "dryRun", Type::Text),
];
const TYPE_META: &[Field] = &[one(1, "apiVersion", Type::Text), one(2, "kind", Type::Text)];

const KINDS: &[(&str, &[Field])] = &[
    ("Namespace", NAMED),
    ("ServiceAccount", NAMED),
    ("ConfigMap", CONFIG_MAP),
    ("Secret", SECRET),
    ("TokenRequest", TOKEN_REQUEST),
    ("SelfSubjectAccessReview", ACCESS_REVIEW),
    ("SelfSubjectReview", NAMED),
    ("SelfSubjectRulesReview", NAMED),
    ("DeleteOptions", DELETE_OPTIONS),
];

/// The object that a body holds.
///
/// # Errors
/// 415 if its kind is not in the table, 400 if it cannot be read.
pub(super) fn read(body: &[u8]) -> Result<Value, Failure> {
    let broken = || Failure::bad_request("the body is not Kubernetes' protobuf");
    let mut rest = body.strip_prefix(MAGIC).ok_or_else(broken)?;
    let (mut head, mut raw): (Value, &[u8]) = (Value::Null, &[]);
    while let Some((number, wire)) = next(&mut rest).ok_or_else(broken)? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => head = message(bytes, TYPE_META).ok_or_else(broken)?,
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let kind = head.get("kind").and_then(Value::as_str).unwrap_or_default();
    let Some((_, fields)) = KINDS.iter().find(|(known, _)| *known == kind) else {
        let message =
            format!("the body of the request was in an unknown format: {kind} is not read from protobuf");
        return Err(Failure::new(415, "UnsupportedMediaType", message));
    };
    let mut object = message(raw, fields).ok_or_else(broken)?;
    if let (Some(object), Some(head)) = (object.as_object_mut(), head.as_object()) {
        object.extend(head.clone());
    }
    Ok(object)
}

enum Wire<'b> {
    Number(u64),
    Bytes(&'b [u8]),
    Other,
}

/// The next field: `Some(None)` at the end, `None` if it is broken.
#[expect(clippy::option_option, reason = "an end is no fault")]
fn next<'b>(rest: &mut &'b [u8]) -> Option<Option<(u64, Wire<'b>)>> {
    if rest.is_empty() {
        return Some(None);
    }
    let tag = varint(rest)?;
    let wire = match tag & 7 {
        0 => Wire::Number(varint(rest)?),
        1 => {
            *rest = rest.get(8..)?;
            Wire::Other
        }
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            let bytes = rest.get(..length)?;
            *rest = rest.get(length..)?;
            Wire::Bytes(bytes)
        }
        5 => {
            *rest = rest.get(4..)?;
            Wire::Other
        }
        _ => return None,
    };
    Some(Some((tag >> 3, wire)))
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn message(mut rest: &[u8], fields: &[Field]) -> Option<Value> {
    let mut object = Map::new();
    while let Some((number, wire)) = next(&mut rest)? {
        let Some(Field(_, name, kind, repeated)) = fields.iter().find(|field| field.0 == number) else {
            continue;
        };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let value = match (kind, wire) {
            (Type::Text, Wire::Bytes(bytes)) => Value::from(text(bytes)?),
            (Type::Number, Wire::Number(number)) => Value::from(number),
            (Type::Flag, Wire::Number(number)) => Value::from(number != 0),
            (Type::Message(fields), Wire::Bytes(bytes)) => message(bytes, fields)?,
            (Type::TextMap | Type::BytesMap, Wire::Bytes(mut bytes)) => {
                let (mut key, mut value): (&[u8], &[u8]) = (&[], &[]);
                while let Some((number, wire)) = next(&mut bytes)? {
                    match (number, wire) {
                        (1, Wire::Bytes(bytes)) => key = bytes,
                        (2, Wire::Bytes(bytes)) => value = bytes,
                        _ => return None,
                    }
                }
                let value = if matches!(kind, Type::TextMap) {
                    text(value)?
                } else {
                    leno_base::base64::encode(value)
                };
                let map = object.entry(*name).or_insert_with(|| json!({}));
                map.as_object_mut()?.insert(text(key)?, Value::from(value));
                continue;
            }
            _ => return None,
        };
        if *repeated {
            object.entry(*name).or_insert_with(|| json!([])).as_array_mut()?.push(value);
        } else if value != "" {
            object.insert((*name).to_owned(), value);
        }
    }
    Some(Value::from(object))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::read;

    #[test]
    fn a_namespace() {
        let mut raw = vec![0x0a, 3 + 8, 0x0a, 1, b'n', 0x5a, 6, 0x0a, 1, b'k', 0x12, 1, b'v'];
        let mut body = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09Namespace\x12".to_vec();
        body.push(u8::try_from(raw.len()).unwrap());
        body.append(&mut raw);
        assert_eq!(
            read(&body).unwrap(),
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "n", "labels": { "k": "v" } } })
        );
        assert!(read(b"k8s\0\x0a").is_err());
        assert_eq!(read(b"k8s\0\x0a\x05\x12\x03Pod").unwrap_err().code, 415);
    }
}

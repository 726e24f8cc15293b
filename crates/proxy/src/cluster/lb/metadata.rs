//! What a route, a TCP proxy or a request's dynamic metadata wants of an endpoint's metadata:
//! the values in the namespace `envoy.lb`, by which subsets are found.

use std::collections::BTreeMap;

use serde_json::Value;
use twox_hash::XxHash64;

use crate::cluster::Metadata;

/// The namespace that balancers read.
pub(crate) const NAMESPACE: &str = "envoy.lb";

/// Criteria in the order of their names, with a fingerprint by which subsets are found without
/// comparing values one by one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct MetadataMatch {
    criteria: BTreeMap<String, Value>,
    fingerprint: u64,
}

impl MetadataMatch {
    /// The criteria of `filter_metadata` on top of those of the level above; `None`: nobody says
    /// anything to balancers.
    pub(crate) fn merge(above: Option<&Self>, metadata: &Metadata) -> Option<Box<Self>> {
        let own = metadata.get(NAMESPACE).and_then(Value::as_object);
        Some(Box::new(match (above, own) {
            (Some(above), Some(own)) => above.merged(own),
            (Some(above), None) => above.clone(),
            (None, own) => Self::from_object(own?),
        }))
    }

    /// The criteria that an object spells out.
    pub(crate) fn from_object(object: &serde_json::Map<String, Value>) -> Self {
        Self::from_criteria(object.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    fn from_criteria(criteria: BTreeMap<String, Value>) -> Self {
        let fingerprint = fingerprint(criteria.iter().map(|(name, value)| (name.as_str(), value)));
        Self { criteria, fingerprint }
    }

    /// These criteria with others on top, which win.
    pub(crate) fn merged(&self, over: &serde_json::Map<String, Value>) -> Self {
        let mut criteria = self.criteria.clone();
        criteria.extend(over.iter().map(|(name, value)| (name.clone(), value.clone())));
        Self::from_criteria(criteria)
    }

    /// The same without all whose names `keep` does not want.
    pub(crate) fn filtered(&self, keep: impl Fn(&str) -> bool) -> Self {
        let kept = self.criteria.iter().filter(|(name, _)| keep(name));
        Self::from_criteria(kept.map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    /// One of them.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.criteria.get(name)
    }

    /// All names, in order.
    pub(crate) fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.criteria.keys().map(String::as_str)
    }

    /// All of them, in the order of their names.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.criteria.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Equal for equal criteria.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

/// A hash of names and values in this order; the order of an object's keys does not matter.
pub(crate) fn fingerprint<'a>(criteria: impl Iterator<Item = (&'a str, &'a Value)>) -> u64 {
    criteria.fold(0, |seed, (name, value)| value_hash(value, XxHash64::oneshot(seed, name.as_bytes())))
}

fn value_hash(value: &Value, seed: u64) -> u64 {
    let tagged = |tag: u64, bytes: &[u8]| XxHash64::oneshot(seed.rotate_left(8) ^ tag, bytes);
    match value {
        Value::Null => tagged(1, b""),
        Value::Bool(value) => tagged(2, &[u8::from(*value)]),
        Value::Number(number) => tagged(3, &number.as_f64().unwrap_or_default().to_bits().to_le_bytes()),
        Value::String(text) => tagged(4, text.as_bytes()),
        Value::Array(items) => items.iter().fold(tagged(5, b""), |seed, item| value_hash(item, seed)),
        Value::Object(fields) => {
            let fields: BTreeMap<_, _> = fields.iter().collect();
            fields.into_iter().fold(tagged(6, b""), |seed, (name, value)| {
                value_hash(value, XxHash64::oneshot(seed, name.as_bytes()))
            })
        }
    }
}

/// Whether an endpoint's metadata has all of these; with `list_as_any` a list has each of its
/// items.
pub(crate) fn has_all<'a>(
    metadata: &Metadata,
    wanted: impl IntoIterator<Item = (&'a String, &'a Value)>,
    list_as_any: bool,
) -> bool {
    let own = metadata.get(NAMESPACE).and_then(Value::as_object);
    wanted.into_iter().all(|(name, value)| match own.and_then(|own| own.get(name)) {
        Some(Value::Array(items)) if list_as_any => items.contains(value),
        Some(found) => found == value,
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::MetadataMatch;

    fn criteria(value: &serde_json::Value) -> MetadataMatch {
        MetadataMatch::from_object(value.as_object().unwrap())
    }

    #[test]
    fn equal_criteria_have_equal_fingerprints() {
        let one = criteria(&json!({"a": 1, "b": {"x": [1, 2], "y": null}}));
        let same = criteria(&json!({"b": {"y": null, "x": [1, 2]}, "a": 1}));
        assert_eq!(one.fingerprint(), same.fingerprint());
        for other in [json!({"a": "1", "b": {"x": [1, 2], "y": null}}), json!({"a": 1}), json!({"a": true})] {
            assert_ne!(one.fingerprint(), criteria(&other).fingerprint(), "{other}");
        }
    }

    #[test]
    fn what_is_merged_wins() {
        let route = criteria(&json!({"stage": "prod", "version": "1"}));
        let merged = route.merged(json!({"version": "2", "extra": true}).as_object().unwrap());
        assert_eq!(merged, criteria(&json!({"stage": "prod", "version": "2", "extra": true})));
        assert_eq!(merged.filtered(|name| name == "stage"), criteria(&json!({"stage": "prod"})));
    }
}

//! The layered runtime: values that override configured ones by key.
//!
//! Fields with a `runtime_key` read it when they are lowered: layers are static here, so that
//! the data path need not ask. Later layers win, as in Envoy.

use std::collections::BTreeMap;

use leno_api::proto::envoy::config::core::v3::RuntimeFeatureFlag;
use serde_json::Value;

use crate::config::lower::Lower;

/// What all layers together say, flattened to dotted keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Runtime(BTreeMap<String, Value>);

impl Runtime {
    /// Adds a layer on top.
    pub(crate) fn add_layer(&mut self, layer: Value) {
        let mut path = String::new();
        self.flatten(&mut path, layer);
    }

    fn flatten(&mut self, path: &mut String, value: Value) {
        match value {
            // A fraction is a value, all other objects are folders.
            Value::Object(map) if !(map.contains_key("numerator") || map.contains_key("denominator")) => {
                for (key, value) in map {
                    let length = path.len();
                    if length > 0 {
                        path.push('.');
                    }
                    path.push_str(&key);
                    self.flatten(path, value);
                    path.truncate(length);
                }
            }
            value => {
                self.0.insert(path.clone(), value);
            }
        }
    }

    /// The value of a key.
    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// The whole number of a key, if it is one.
    pub(crate) fn integer(&self, key: &str) -> Option<u64> {
        match self.value(key)? {
            Value::Number(number) => {
                number.as_u64().or_else(|| number.as_f64().filter(|f| *f >= 0.0).map(|f| f as u64))
            }
            Value::String(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// The number of a key, if it is one.
    pub(crate) fn number(&self, key: &str) -> Option<f64> {
        match self.value(key)? {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// The fraction of a key as (numerator, denominator); a whole number counts percents.
    pub(crate) fn fraction(&self, key: &str) -> Option<(u32, u32)> {
        if let Some(Value::Object(map)) = self.value(key) {
            let numerator = map.get("numerator").and_then(Value::as_f64).unwrap_or(0.0) as u32;
            let denominator = match map.get("denominator").and_then(Value::as_str) {
                Some("TEN_THOUSAND") => 10_000,
                Some("MILLION") => 1_000_000,
                _ => 100,
            };
            return Some((numerator, denominator));
        }
        self.integer(key).map(|percent| (u32::try_from(percent).unwrap_or(u32::MAX), 100))
    }

    /// All keys and values.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }
}

/// Lowers a `RuntimeFeatureFlag`; on where there is none.
pub(crate) fn flag(proto: Option<RuntimeFeatureFlag>, at: &Lower) -> bool {
    let Some(RuntimeFeatureFlag { default_value, runtime_key }) = proto else { return true };
    match at.scope().runtime.value(&runtime_key) {
        Some(Value::Bool(on)) => *on,
        Some(Value::String(text)) if text == "true" || text == "false" => text == "true",
        _ => default_value.unwrap_or(false),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Runtime;

    #[test]
    fn later_layers_win_and_folders_are_flattened() {
        let mut runtime = Runtime::default();
        runtime.add_layer(json!({"overload": {"limit": 5, "on": true}, "a.b": "7"}));
        runtime.add_layer(json!({"overload.limit": 6, "share": {"numerator": 3, "denominator": "MILLION"}}));
        assert_eq!(runtime.integer("overload.limit"), Some(6));
        assert_eq!(runtime.value("overload.on"), Some(&json!(true)));
        assert_eq!(runtime.integer("a.b"), Some(7));
        assert_eq!(runtime.fraction("share"), Some((3, 1_000_000)));
        assert_eq!(runtime.fraction("overload.limit"), Some((6, 100)));
        assert_eq!(runtime.number("absent"), None);
    }
}

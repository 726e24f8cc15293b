//! Dynamic metadata of a stream: what filters say of it to those behind them, to routes,
//! balancers and access logs (`%DYNAMIC_METADATA(...)%`).
//!
//! A filter that says the same of many requests makes its namespace once, when it is lowered,
//! and shares it: saying it costs a counter. It is copied only to be changed or merged.

use std::sync::Arc;

use serde_json::{Map, Value};
use smallvec::SmallVec;

/// One namespace, by and large the name of a filter, and its values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Namespace {
    name: Box<str>,
    values: Map<String, Value>,
}

impl Namespace {
    /// A namespace to be shared.
    pub(crate) fn new(name: &str, values: Map<String, Value>) -> Arc<Namespace> {
        Arc::new(Namespace { name: name.into(), values })
    }

    /// Its values.
    pub(crate) fn values(&self) -> &Map<String, Value> {
        &self.values
    }
}

/// All namespaces of a stream; each is there once.
#[derive(Clone, Debug, Default)]
pub(crate) struct DynamicMetadata(SmallVec<[Arc<Namespace>; 2]>);

impl DynamicMetadata {
    /// Nothing said yet.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The values of a namespace.
    pub(crate) fn get(&self, name: &str) -> Option<&Map<String, Value>> {
        self.0.iter().find(|namespace| *namespace.name == *name).map(|namespace| &namespace.values)
    }

    /// The values of a namespace, to be changed; it is made if it is not there.
    pub(crate) fn values_mut(&mut self, name: &str) -> &mut Map<String, Value> {
        let place = self.0.iter().position(|namespace| *namespace.name == *name);
        let place = place.unwrap_or_else(|| {
            self.0.push(Namespace::new(name, Map::new()));
            self.0.len() - 1
        });
        &mut Arc::make_mut(&mut self.0[place]).values
    }

    /// Says these values too; those of keys that are there are replaced.
    pub(crate) fn merge(&mut self, said: &Arc<Namespace>) {
        match self.0.iter_mut().find(|namespace| namespace.name == said.name) {
            None => self.0.push(Arc::clone(said)),
            Some(namespace) if namespace.values.keys().all(|key| said.values.contains_key(key)) => {
                *namespace = Arc::clone(said);
            }
            Some(namespace) => {
                let values = said.values.iter().map(|(key, value)| (key.clone(), value.clone()));
                Arc::make_mut(namespace).values.extend(values);
            }
        }
    }

    /// Nothing is said any more.
    #[cfg(test)]
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// All namespaces, to be said elsewhere too.
    pub(crate) fn shared(&self) -> impl Iterator<Item = &Arc<Namespace>> {
        self.0.iter()
    }

    /// All namespaces, in the order in which they were made.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Map<String, Value>)> {
        self.0.iter().map(|namespace| (&*namespace.name, &namespace.values))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::{DynamicMetadata, Namespace};

    fn map(value: &Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn merging_replaces_values_and_leaves_what_is_shared() {
        let (first, second) =
            (Namespace::new("n", map(&json!({"a": 1, "b": 1}))), Namespace::new("n", map(&json!({"b": 2}))));
        let mut metadata = DynamicMetadata::new();
        metadata.merge(&second);
        metadata.merge(&first);
        metadata.merge(&second);
        metadata.values_mut("m").insert("c".into(), json!(3));
        assert_eq!(metadata.get("n"), Some(&map(&json!({"a": 1, "b": 2}))));
        assert_eq!(metadata.get("m"), Some(&map(&json!({"c": 3}))));
        assert_eq!(first.values().len() + second.values().len(), 3);
        assert_eq!(metadata.get("x"), None);
    }
}

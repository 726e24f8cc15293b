//! `envoy.filters.http.set_metadata`: says static dynamic metadata of every request.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::sync::Arc;

use leno_api::proto::envoy::extensions::filters::http::set_metadata::v3 as proto;
use serde_json::{Map, Value};

use crate::config::address::object;
use crate::config::lower::Lower;
use crate::http::filters::{FilterConfig, Opening, Registration, RouteSettings};
use crate::http::headers::HeaderMap;
use crate::http::stream::Stream;
use crate::telemetry::metadata::Namespace;
use crate::telemetry::per_thread::PerThread;
use crate::telemetry::stats::stats_scope;

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: "envoy.filters.http.set_metadata",
    config_type: "envoy.extensions.filters.http.set_metadata.v3.Config",
    lower,
    route_type: Some("envoy.extensions.filters.http.set_metadata.v3.Config"),
    lower_route: Some(lower_route),
};

stats_scope! {
    /// `http.STAT_PREFIX.set_metadata.`
    struct SetMetadataStats {
        counter overwrite_denied;
    }
}

/// Config.
#[derive(Debug)]
struct SetMetadata {
    entries: Vec<Entry>,
    stats: PerThread<SetMetadataStats>,
}

/// Config of a route, which takes the place of the chain's.
#[derive(Debug)]
struct RouteEntries(Vec<Entry>);

/// Metadata.
#[derive(Debug)]
struct Entry {
    /// `metadata_namespace`.
    namespace: Box<str>,
    /// `allow_overwrite`: merged into what is there.
    overwrite: bool,
    /// `value`.
    said: Arc<Namespace>,
}

impl FilterConfig for SetMetadata {
    fn on_request(
        &self,
        stream: &mut Stream,
        settings: Option<&RouteSettings>,
        _head: &mut HeaderMap,
        _end: bool,
    ) -> Opening {
        let metadata = &mut stream.info.metadata;
        let route = settings.and_then(RouteSettings::first::<RouteEntries>);
        let entries = route.map_or(&self.entries, |RouteEntries(entries)| entries);
        for Entry { namespace, overwrite, said } in entries {
            if metadata.get(namespace).is_none() {
                metadata.merge(said);
            } else if *overwrite {
                merge(metadata.values_mut(namespace), said.values());
            } else {
                let thread = stream.worker.stats();
                let make = || {
                    let prefix = format!("http.{}.set_metadata.", stream.manager.stat_prefix);
                    SetMetadataStats::kept(thread, &prefix)
                };
                self.stats.of(thread, make).overwrite_denied().inc();
            }
        }
        Opening::PASS
    }
}

/// Lists are joined, objects merged, all else is replaced.
fn merge(into: &mut Map<String, Value>, from: &Map<String, Value>) {
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (Some(Value::Array(into)), Value::Array(from)) => into.extend(from.iter().cloned()),
            (Some(Value::Object(into)), Value::Object(from)) => merge(into, from),
            (Some(into), value) => *into = value.clone(),
            (None, value) => {
                into.insert(key.clone(), value.clone());
            }
        }
    }
}

fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    Some(Arc::new(SetMetadata { entries: lower_entries(any, at)?, stats: PerThread::default() }))
}

fn lower_route(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn std::any::Any + Send + Sync>> {
    Some(Arc::new(RouteEntries(lower_entries(any, at)?)))
}

fn lower_entries(any: &prost_types::Any, at: &mut Lower) -> Option<Vec<Entry>> {
    let proto::Config { metadata_namespace, value, metadata } = at.unpack(any)?;
    let entry = |namespace: String, overwrite, value: Option<prost_types::Struct>| {
        let values = match value.map(object) {
            Some(Value::Object(values)) => values,
            _ => Map::new(),
        };
        Entry { said: Namespace::new(&namespace, values), namespace: namespace.into(), overwrite }
    };
    let mut entries = Vec::new();
    if !metadata_namespace.is_empty() {
        entries.push(entry(metadata_namespace, true, value));
    }
    entries.extend(at.each("metadata", metadata, |proto, at| {
        let proto::Metadata { metadata_namespace, allow_overwrite, value, typed_value } = proto;
        at.unsupported("typed_value", typed_value.is_some());
        // Without a value there is nothing to say.
        value.map(|value| entry(metadata_namespace, allow_overwrite, Some(value)))
    }));
    Some(entries)
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::merge;

    fn map(value: &Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn values_are_merged_as_envoy_does() {
        let mut values = map(&json!({"a": 1, "l": ["x"], "s": {"q": "w", "n": {"a": 1}}}));
        merge(&mut values, &map(&json!({"a": "3", "l": ["z"], "s": {"r": "t", "n": {"b": 2}}, "m": "5"})));
        let merged =
            json!({"a": "3", "l": ["x", "z"], "s": {"q": "w", "r": "t", "n": {"a": 1, "b": 2}}, "m": "5"});
        assert_eq!(Value::Object(values), merged);
    }
}

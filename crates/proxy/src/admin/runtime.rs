//! `/runtime`: runtime values by layer.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::admin::respond::{Query, Response};
use crate::admin::{Answer, Context, Endpoint};
use crate::config::runtime::Runtime;

/// `/runtime`
pub(super) const ENDPOINT: Endpoint = Endpoint {
    path: "/runtime",
    help: "print runtime values",
    parameters: &[],
    mutates: false,
    answer: Answer::Now(|context, _: &Query| show(context)),
};

fn show(context: &Context) -> Response {
    let layers = &context.server.runtime_layers;
    let flat: Vec<Runtime> = layers
        .iter()
        .map(|(_, values)| {
            let mut runtime = Runtime::default();
            runtime.add_layer(values.clone());
            runtime
        })
        .collect();
    let mut entries: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (index, layer) in flat.iter().enumerate() {
        for (key, value) in layer.iter() {
            let values = entries.entry(key).or_insert_with(|| vec![String::new(); layers.len()]);
            if let Some(slot) = values.get_mut(index) {
                *slot = text(value);
            }
        }
    }
    let entries: Map<String, Value> = entries
        .into_iter()
        .map(|(key, values)| {
            let last = values.iter().rev().find(|value| !value.is_empty()).cloned().unwrap_or_default();
            (key.to_owned(), json!({"final_value": last, "layer_values": values}))
        })
        .collect();
    let names: Vec<&str> = layers.iter().map(|(name, _)| name.as_str()).collect();
    Response::json(&json!({"layers": names, "entries": entries}))
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

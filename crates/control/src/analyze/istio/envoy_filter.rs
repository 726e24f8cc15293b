//! EnvoyFilters: operations that do nothing, or that depend on what other filters do.

use leno_derive::Cx;
use serde_json::Value;

use crate::analyze::message::Message;
use crate::analyze::raw::{all, at, list, text};

/// IST0151 to IST0155.
pub(super) fn patches(cx: &Cx<'_>, out: &mut Vec<Message>) {
    // The names of filters that patches for some version of the proxy are about.
    let mut versioned: Vec<String> = Vec::new();
    for filter in all(cx, "EnvoyFilter") {
        let prioritised = filter.at("/spec/priority").as_i64().unwrap_or(0) != 0;
        for (index, patch) in list(filter.at("/spec/configPatches")).iter().enumerate() {
            let name = name_of(patch);
            let (applies, operation) = (text(patch, "/applyTo"), text(patch, "/patch/operation"));
            let on_routes = matches!(applies, "ROUTE_CONFIGURATION" | "HTTP_ROUTE");
            let replaceable = matches!(applies, "NETWORK_FILTER" | "HTTP_FILTER" | "VIRTUAL_HOST");
            let relative = if prioritised {
                None
            } else if versioned.contains(&name) {
                let words = "This EnvoyFilter has no priority, a relative patch operation and a proxyVersion: it \
                             may not be applied during an upgrade. Use INSERT_FIRST or ADD, or set a priority.";
                Some(("IST0155", words))
            } else {
                let words = "This EnvoyFilter has no priority and a relative patch operation: it may not be \
                             applied. Use INSERT_FIRST or ADD, or set a priority.";
                Some(("IST0151", words))
            };
            let found = match operation {
                "ADD" if on_routes => {
                    let words = "The ADD operation will be ignored when applyTo is set to ROUTE_CONFIGURATION, or \
                                 HTTP_ROUTE.";
                    Some(("IST0153", words))
                }
                "REMOVE" if on_routes => {
                    let words = "The REMOVE operation will be ignored when applyTo is set to ROUTE_CONFIGURATION, \
                                 or HTTP_ROUTE.";
                    Some(("IST0154", words))
                }
                "REPLACE" if !replaceable => Some((
                    "IST0152",
                    "The REPLACE operation is only valid for HTTP_FILTER and NETWORK_FILTER.",
                )),
                "REMOVE" | "REPLACE" | "INSERT_BEFORE" | "INSERT_AFTER" => relative,
                _ => None,
            };
            if let Some((code, words)) = found {
                let path = format!("spec.configPatches[{index}]");
                out.push(Message::new(code, &filter.key, words.to_owned()).at(path));
            }
            if !text(patch, "/match/proxy/proxyVersion").is_empty() {
                versioned.push(name);
            }
        }
    }
}

/// The name of what a patch brings, or else of the filter that it is about.
fn name_of(patch: &Value) -> String {
    let value = at(patch, "/patch/value");
    match (value.is_object(), text(value, "/name")) {
        (false, _) => String::new(),
        (true, "") => text(patch, "/match/listener/filterChain/filter/name").to_owned(),
        (true, name) => name.to_owned(),
    }
}

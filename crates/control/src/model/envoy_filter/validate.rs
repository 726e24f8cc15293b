//! What an EnvoyFilter must look like. Values of patches are compared with the messages of Envoy's
//! API that they are for: what a message does not have is a warning (the proxy may be newer than
//! this control plane), what cannot be read is an error. Envoy's own constraints are not asked for,
//! as a value may be a part that is merged.

use leno_api::schema::{Field, Kind, Message};
use leno_api::yaml::{Entry, Kind as ScalarKind, Node, Value};

use super::{ApplyTo, ConfigPatch, EnvoyFilter, ListenerMatch, ObjectMatch, Operation, PatchContext};
use crate::model::check::Check;
use crate::model::diagnostic::Finding;

/// Istio's limit for `proxyVersion`, bytes; a longer one is passed over.
const LONGEST_VERSION: usize = 1024;

/// The filter of whose HTTP filters a sub-filter is one, by its name and its old one.
const CONNECTION_MANAGERS: [&str; 2] =
    ["envoy.filters.network.http_connection_manager", "envoy.http_connection_manager"];

/// The key of an `Any` that names its type.
const TYPE_KEY: &str = "@type";

/// Types that hold a message by the name of its type.
const TYPED_STRUCTS: [&str; 2] = ["xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"];

impl EnvoyFilter {
    /// Everything that is wrong with it; `spec` is the node that it was read from.
    pub(crate) fn validate(&self, spec: &Node<'_>) -> Vec<Finding> {
        let mut check = Check::spec();
        check.selector("workloadSelector", self.workload_selector.as_ref().map(|selector| &selector.labels));
        check.target(None, None, &self.target_refs);
        check.at_most_one(&[
            ("workloadSelector", self.workload_selector.is_some()),
            ("targetRefs", !self.target_refs.is_empty()),
        ]);
        let patches = spec.find("configPatches").map(Node::items).unwrap_or_default();
        check.at("configPatches", |check| {
            for (index, patch) in self.config_patches.iter().enumerate() {
                let value = patches
                    .get(index)
                    .and_then(|node| node.find("patch"))
                    .and_then(|node| node.find("value"));
                check.item(index, |check| config_patch(check, patch, value));
            }
        });
        check.into_findings()
    }
}

fn config_patch(check: &mut Check, patch: &ConfigPatch, value: Option<&Node<'_>>) {
    // As in Istio, patches for waypoints are looked at by who applies them.
    if patch.r#match.as_ref().is_some_and(|matcher| matcher.context == PatchContext::Waypoint) {
        return;
    }
    if patch.apply_to == ApplyTo::Invalid {
        check.invalid_at("applyTo", "is needed");
    }
    if let Some(matcher) = &patch.r#match {
        check.at("match", |check| object_match(check, matcher, patch.apply_to));
    }
    let Some(change) = &patch.patch else { return check.invalid_at("patch", "is needed") };
    check.at("patch", |check| {
        if change.operation == Operation::Invalid {
            check.invalid_at("operation", "is needed");
        }
        match (value.filter(|value| !value.is_null()), message_of(patch.apply_to)) {
            (None, _) if change.operation != Operation::Remove => check.invalid_at("value", "is needed"),
            (Some(value), Some(message)) => {
                check.at("value", |check| fields(check, message, value, false));
            }
            (None, _) | (Some(_), None) => {}
        }
    });
}

/// The message that values of patches are for.
fn message_of(apply_to: ApplyTo) -> Option<Message> {
    Message::find(match apply_to {
        ApplyTo::Invalid => return None,
        ApplyTo::Listener => "envoy.config.listener.v3.Listener",
        ApplyTo::FilterChain => "envoy.config.listener.v3.FilterChain",
        ApplyTo::NetworkFilter => "envoy.config.listener.v3.Filter",
        ApplyTo::HttpFilter => "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
        ApplyTo::RouteConfiguration => "envoy.config.route.v3.RouteConfiguration",
        ApplyTo::VirtualHost => "envoy.config.route.v3.VirtualHost",
        ApplyTo::HttpRoute => "envoy.config.route.v3.Route",
        ApplyTo::Cluster => "envoy.config.cluster.v3.Cluster",
        ApplyTo::ExtensionConfig => "envoy.config.core.v3.TypedExtensionConfig",
        ApplyTo::Bootstrap => "envoy.config.bootstrap.v3.Bootstrap",
        ApplyTo::ListenerFilter => "envoy.config.listener.v3.ListenerFilter",
    })
}

fn object_match(check: &mut Check, matcher: &ObjectMatch, apply_to: ApplyTo) {
    if let Some(proxy) = &matcher.proxy {
        check.at("proxy", |check| {
            check.at("proxyVersion", |check| {
                if proxy.proxy_version.len() > LONGEST_VERSION {
                    check.warn("no-effect", format!("is longer than {LONGEST_VERSION} bytes, has no effect"));
                } else {
                    check.regex(&proxy.proxy_version);
                }
            });
        });
    }
    let objects = [
        ("listener", matcher.listener.is_some()),
        ("routeConfiguration", matcher.route_configuration.is_some()),
        ("cluster", matcher.cluster.is_some()),
        ("waypoint", matcher.waypoint.is_some()),
    ];
    check.at_most_one(&objects);
    let fitting = match apply_to {
        ApplyTo::Listener
        | ApplyTo::FilterChain
        | ApplyTo::NetworkFilter
        | ApplyTo::HttpFilter
        | ApplyTo::ListenerFilter => "listener",
        ApplyTo::RouteConfiguration | ApplyTo::VirtualHost | ApplyTo::HttpRoute => "routeConfiguration",
        ApplyTo::Cluster => "cluster",
        ApplyTo::Invalid | ApplyTo::ExtensionConfig | ApplyTo::Bootstrap => return,
    };
    for (field, _) in objects.into_iter().filter(|(field, given)| *given && *field != fitting) {
        check.invalid_at(field, format!("what is patched is found by {fitting}"));
    }
    if let Some(listener) = &matcher.listener {
        check.at("listener", |check| listener_match(check, listener, apply_to));
    }
}

fn listener_match(check: &mut Check, matcher: &ListenerMatch, apply_to: ApplyTo) {
    let Some(filter) = matcher.filter_chain.as_ref().and_then(|chain| chain.filter.as_ref()) else { return };
    check.at("filterChain", |check| {
        check.at("filter", |check| {
            if matches!(apply_to, ApplyTo::Listener | ApplyTo::FilterChain) {
                check.warn("no-effect", "has no effect on listeners and filter chains");
            }
            if filter.name.is_empty() {
                check.invalid_at("name", "is needed");
            }
            let Some(sub_filter) = &filter.sub_filter else { return };
            check.at("subFilter", |check| {
                if apply_to != ApplyTo::HttpFilter {
                    check.invalid("is for applyTo HTTP_FILTER only");
                } else if !CONNECTION_MANAGERS.contains(&filter.name.as_str()) {
                    check.invalid(format!("is one of the filter {}", CONNECTION_MANAGERS[0]));
                }
                if sub_filter.name.is_empty() {
                    check.invalid_at("name", "is needed");
                }
            });
        });
    });
}

/// Compares a value with a message; in an `Any` its `@type` is passed over.
fn fields(check: &mut Check, message: Message, node: &Node<'_>, in_any: bool) {
    if message.full_name() == "google.protobuf.Any" {
        return any(check, node);
    }
    // Durations, wrappers, structs: these have forms of their own, which Envoy reads.
    if message.full_name().starts_with("google.protobuf.") || node.is_null() {
        return;
    }
    let Value::Mapping(entries) = &node.value else {
        return check.invalid(format!(
            "expected a mapping ({}), found {}",
            message.full_name(),
            node.describe()
        ));
    };
    for entry in entries.iter().filter(|entry| !in_any || entry.key != TYPE_KEY) {
        match message.field_by_name(&entry.key) {
            None => check.key(&entry.key, |check| {
                check.warn("unknown-field", format!("{} has no such field", message.full_name()));
            }),
            Some(field) => check.key(&entry.key, |check| field_value(check, field, entry)),
        }
    }
}

fn field_value(check: &mut Check, field: Field, entry: &Entry<'_>) {
    match &entry.value.value {
        _ if entry.value.is_null() => {}
        Value::Mapping(entries) if field.is_map() => {
            let Kind::Message(pair) = field.kind() else { return };
            let Some(value) = pair.field_by_name("value") else { return };
            for entry in entries {
                check.key(&entry.key, |check| single_value(check, value.kind(), &entry.value));
            }
        }
        Value::Sequence(items) if field.is_repeated() => {
            for (index, item) in items.iter().enumerate() {
                check.item(index, |check| single_value(check, field.kind(), item));
            }
        }
        _ if field.is_map() => check.invalid(format!("expected a mapping, found {}", entry.value.describe())),
        _ if field.is_repeated() => {
            check.invalid(format!("expected a list, found {}", entry.value.describe()));
        }
        _ => single_value(check, field.kind(), &entry.value),
    }
}

fn single_value(check: &mut Check, kind: Kind, node: &Node<'_>) {
    let mut wrong = |wanted: &str| check.invalid(format!("expected {wanted}, found {}", node.describe()));
    match (kind, &node.value) {
        (Kind::Message(message), _) => fields(check, message, node, false),
        (_, Value::Mapping(_) | Value::Sequence(_)) => wrong("a single value"),
        (Kind::Enum(values), Value::Scalar(scalar))
            if scalar.kind == ScalarKind::String
                && !values.values().any(|value| value.name() == scalar.text) =>
        {
            check.invalid(format!("{:?} is no value of {}", scalar.text, values.full_name()));
        }
        (Kind::Enum(_), Value::Scalar(scalar)) if scalar.kind == ScalarKind::String => {}
        (Kind::Enum(_), Value::Scalar(scalar)) if scalar.integer().is_none() => wrong("the name of a value"),
        (Kind::Bool, Value::Scalar(scalar)) if !matches!(scalar.kind, ScalarKind::Bool(_)) => {
            wrong("true or false");
        }
        (Kind::String | Kind::Bytes, Value::Scalar(scalar)) if scalar.kind != ScalarKind::String => {
            wrong("a text");
        }
        (Kind::Enum(_) | Kind::Bool | Kind::String | Kind::Bytes, _) => {}
        (_, Value::Scalar(scalar)) if scalar.float().is_none() && scalar.text.parse::<f64>().is_err() => {
            wrong("a number");
        }
        _ => {}
    }
}

fn any(check: &mut Check, node: &Node<'_>) {
    let Some(url) = node.find(TYPE_KEY).and_then(Node::as_str) else {
        if !node.entries().is_empty() {
            check.invalid(format!("{TYPE_KEY} is needed"));
        }
        return;
    };
    let name = url.rsplit('/').next().unwrap_or(url);
    match Message::find(name) {
        Some(_) if TYPED_STRUCTS.contains(&name) => {}
        Some(message) => fields(check, message, node, true),
        None => {
            let hint = if name.contains(".v2.") { "; use the v3 API" } else { "" };
            check.key(TYPE_KEY, |check| check.invalid(format!("the type {name:?} is not known{hint}")));
        }
    }
}

//! What an EnvoyFilter must look like. Values of patches are read as the messages of Envoy's API that
//! they are for: what a message does not have is a warning (the proxy may be newer than this control
//! plane), what cannot be read is an error. Envoy's own constraints are not asked for, as a value may
//! be a part that is merged.

use leno_api::decode::{Fragment, fragment};
use leno_api::yaml::Node;
use regex::Regex;

use super::{
    ApplyTo, ConfigPatch, EnvoyFilter, ListenerMatch, ObjectMatch, Operation, PatchContext, VersionPattern,
};
use crate::model::check::Check;
use crate::model::diagnostic::Finding;

/// Istio's limit for `proxyVersion`, bytes; a longer one is passed over.
const LONGEST_VERSION: usize = 1024;

/// The filter of whose HTTP filters a sub-filter is one, by its name and its old one.
const CONNECTION_MANAGERS: [&str; 2] =
    ["envoy.filters.network.http_connection_manager", "envoy.http_connection_manager"];

impl EnvoyFilter {
    /// Reads the values of the patches and compiles patterns. Gives everything that is wrong; `spec` is
    /// the node that it was read from.
    pub(crate) fn prepare(&mut self, spec: &Node<'_>) -> Vec<Finding> {
        let mut check = Check::spec();
        check.selector("workloadSelector", self.workload_selector.as_ref().map(|selector| &selector.labels));
        check.target(None, None, &self.target_refs);
        check.at_most_one(&[
            ("workloadSelector", self.workload_selector.is_some()),
            ("targetRefs", !self.target_refs.is_empty()),
        ]);
        let patches = spec.find("configPatches").map(Node::items).unwrap_or_default();
        check.at("configPatches", |check| {
            for (index, patch) in self.config_patches.iter_mut().enumerate() {
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

fn config_patch(check: &mut Check, patch: &mut ConfigPatch, value: Option<&Node<'_>>) {
    // As in Istio, patches for waypoints are looked at by who applies them.
    if patch.r#match.as_ref().is_some_and(|matcher| matcher.context == PatchContext::Waypoint) {
        return;
    }
    if patch.apply_to == ApplyTo::Invalid {
        check.invalid_at("applyTo", "is needed");
    }
    if let Some(matcher) = &mut patch.r#match {
        check.at("match", |check| object_match(check, matcher, patch.apply_to));
    }
    let names_filter = patch.r#match.as_ref().is_some_and(|matcher| matcher.names_filter(patch.apply_to));
    let Some(change) = &mut patch.patch else { return check.invalid_at("patch", "is needed") };
    check.at("patch", |check| {
        check.at("operation", |check| operation(check, patch.apply_to, change.operation, names_filter));
        match (value.filter(|value| !value.is_null()), message_of(patch.apply_to)) {
            (None, _) if change.operation != Operation::Remove => check.invalid_at("value", "is needed"),
            (Some(value), Some(message)) => {
                check.at("value", |check| {
                    let Fragment { wire, errors, unknown } = fragment(message, value);
                    check.faults(errors, unknown);
                    change.wire = wire;
                });
            }
            (None, _) | (Some(_), None) => {}
        }
    });
}

/// Not everything can be done with everything.
fn operation(check: &mut Check, apply_to: ApplyTo, operation: Operation, names_filter: bool) {
    use ApplyTo::{
        Bootstrap, Cluster, ExtensionConfig, FilterChain, HttpFilter, HttpRoute, Invalid, Listener,
        ListenerFilter, NetworkFilter, RouteConfiguration, VirtualHost,
    };
    let is_filter = matches!(apply_to, ListenerFilter | NetworkFilter | HttpFilter);
    let has_effect = match operation {
        Operation::Invalid => return check.invalid("is needed"),
        Operation::Merge | Operation::MergeAndReplaceList => apply_to != ExtensionConfig,
        // An insertion into what has no order is an addition.
        Operation::Add | Operation::InsertBefore | Operation::InsertAfter | Operation::InsertFirst => {
            apply_to != RouteConfiguration
        }
        Operation::Remove => {
            matches!(apply_to, Listener | FilterChain | VirtualHost | HttpRoute | Cluster) || is_filter
        }
        Operation::Replace => apply_to == VirtualHost || is_filter,
    };
    if matches!(apply_to, Invalid | Bootstrap) {
        return;
    }
    if !has_effect {
        check.warn("no-effect", "has no effect on what is patched, as in Istio");
    } else if is_filter && !names_filter && matches!(operation, Operation::Remove | Operation::Replace) {
        check.warn("no-effect", "has no effect without a match that names the filter, as in Istio");
    }
}

/// The message that values of patches are for.
fn message_of(apply_to: ApplyTo) -> Option<&'static str> {
    Some(match apply_to {
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

impl ObjectMatch {
    /// Whether it names a filter of the kind that is patched.
    fn names_filter(&self, apply_to: ApplyTo) -> bool {
        let Some(listener) = &self.listener else { return false };
        let filter = listener.filter_chain.as_ref().and_then(|chain| chain.filter.as_ref());
        match apply_to {
            ApplyTo::ListenerFilter => !listener.listener_filter.is_empty(),
            ApplyTo::HttpFilter => filter.is_some_and(|filter| filter.sub_filter.is_some()),
            _ => filter.is_some(),
        }
    }
}

fn object_match(check: &mut Check, matcher: &mut ObjectMatch, apply_to: ApplyTo) {
    if let Some(proxy) = &mut matcher.proxy {
        check.at("proxy", |check| {
            check.at("proxyVersion", |check| {
                if proxy.proxy_version.len() > LONGEST_VERSION {
                    proxy.version = VersionPattern::None;
                    check.warn(
                        "no-effect",
                        format!("is longer than {LONGEST_VERSION} bytes, so no proxy has it"),
                    );
                } else if !proxy.proxy_version.is_empty() {
                    check.regex(&proxy.proxy_version);
                    proxy.version = Regex::new(&proxy.proxy_version)
                        .map_or(VersionPattern::None, VersionPattern::Pattern);
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
    if !matcher.port_name.is_empty() {
        check.at("portName", |check| check.warn("no-effect", "has no effect, as in Istio"));
    }
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

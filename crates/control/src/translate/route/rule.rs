//! The HTTP rules of a VirtualService as Envoy routes.

use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::{action, filter, hash, matcher, notes_host};
use crate::model::selector::selects;
use crate::model::virtual_service::{Destination, HttpMatch, HttpRoute};
use crate::scope::proxy_config::MeshOf;
use crate::scope::rules::{self, Rule, RuleId, Semantics};
use crate::scope::{Viewer, sidecar};
use crate::translate::name;
use crate::translate::proto::route;
use crate::translate::resource::{istio_metadata, text};

/// Where routes are wanted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) viewer: Viewer,
    /// `mesh`, or `namespace/name` of a gateway.
    pub(crate) gateway: String,
    /// The port that requests come in on, as its author numbers it.
    pub(crate) port: u16,
    /// Whether they come over TLS that ends there.
    pub(crate) tls: bool,
}

impl Place {
    /// Whether a condition is for this place at all. As in Istio, one that names gateways does not
    /// look at the client.
    fn admits(&self, conditions: &HttpMatch) -> bool {
        if conditions.port != 0 && conditions.port != u32::from(self.port) {
            return false;
        }
        if !conditions.gateways.is_empty() {
            return conditions.gateways.contains(&self.gateway);
        }
        selects(&conditions.source_labels, &self.viewer.labels)
            && (conditions.source_namespace.is_empty()
                || conditions.source_namespace == self.viewer.namespace)
    }
}

/// The routes of a VirtualService at a place, up to the first that catches all. Shared by all
/// virtual hosts that have them.
pub(crate) struct RuleRoutes;

impl Query for RuleRoutes {
    type Key = (RuleId, Place);
    type Value = Vec<route::Route>;
    const NAME: &'static str = "rule-routes";

    fn derive(cx: &Cx<'_>, (id, place): &(RuleId, Place)) -> Vec<route::Route> {
        rules::find(cx, id).map_or_else(Vec::new, |rule| http_routes(cx, &rule, place))
    }
}

/// Those routes by the rule itself.
pub(crate) fn routes_of(cx: &Cx<'_>, rule: &Rule, place: &Place) -> Arc<Vec<route::Route>> {
    cx.get::<RuleRoutes>(&(rule.id.clone(), place.clone()))
}

fn http_routes(cx: &Cx<'_>, rule: &Rule, place: &Place) -> Vec<route::Route> {
    let mut routes = Vec::new();
    for http in &rule.spec.http {
        let conditions: Vec<Option<&HttpMatch>> = if http.r#match.is_empty() {
            vec![None]
        } else {
            http.r#match.iter().filter(|conditions| place.admits(conditions)).map(Some).collect()
        };
        for conditions in conditions {
            let Some(message) = http_route(cx, rule, http, conditions, place) else { continue };
            let last = message.r#match.as_ref().is_some_and(matcher::is_catch_all);
            routes.push(message);
            if last {
                return routes;
            }
        }
    }
    routes
}

fn http_route(
    cx: &Cx<'_>,
    rule: &Rule,
    http: &HttpRoute,
    conditions: Option<&HttpMatch>,
    place: &Place,
) -> Option<route::Route> {
    let meta = &rule.meta;
    let path = name::config_path("virtual-service", &meta.namespace, &meta.name);
    let mut message = route::Route {
        name: http.name.clone(),
        r#match: Some(matcher::route_match(conditions, rule.semantics)),
        metadata: Some(istio_metadata([("config", text(path))])),
        typed_per_filter_config: filter::settings(http),
        ..route::Route::default()
    };
    if let Some(conditions) = conditions {
        if !conditions.name.is_empty() {
            message.name = format!("{}.{}", message.name, conditions.name);
        }
        message.stat_prefix.clone_from(&conditions.stat_prefix);
    }
    if let Some(headers) = &http.headers {
        action::change_headers(headers, &mut message);
    }
    let action = if let Some(redirect) = &http.redirect {
        route::route::Action::Redirect(action::redirect(redirect, place.port, place.tls))
    } else if let Some(response) = &http.direct_response {
        route::route::Action::DirectResponse(action::direct_response(response))
    } else if http.route.is_empty() {
        // Nothing to do with the request, which validation has reported.
        return None;
    } else {
        let sight = place.viewer.sight();
        let target_of = |destination: &Destination| {
            let service = sidecar::visible_host(cx, &sight, &destination.host);
            let service = service.as_deref();
            action::Target {
                cluster: action::cluster(destination, service, place.port),
                hash: service
                    .and_then(|service| hash::of_destination(cx, &place.viewer, service, destination)),
            }
        };
        let mesh = cx.get::<MeshOf>(&place.viewer.options.overrides);
        let retries = mesh.default_http_retry_policy.as_ref();
        let mut action = action::rule_forward(http, &mut message, retries, target_of);
        if rule.semantics == Semantics::GatewayApi {
            action::answer_missing(&mut action, message.r#match.as_ref());
        }
        action.append_x_forwarded_host = http.rewrite.is_some() && notes_host(&mesh);
        route::route::Action::Route(action)
    };
    message.action = Some(action);
    let operation = operation(&message, &meta.name, place.port);
    message.decorator = Some(route::Decorator { operation, ..route::Decorator::default() });
    Some(message)
}

/// What a trace calls the request: the destination, or where there are several the rule, and the
/// path that was matched.
pub(crate) fn operation(message: &route::Route, rule: &str, port: u16) -> String {
    use route::route_match::PathSpecifier;
    let path = match message.r#match.as_ref().and_then(|found| found.path_specifier.as_ref()) {
        Some(PathSpecifier::Prefix(prefix)) => format!("{prefix}*"),
        Some(PathSpecifier::Path(path)) => path.clone(),
        Some(PathSpecifier::SafeRegex(pattern)) => pattern.regex.clone(),
        _ => "/*".to_owned(),
    };
    if let Some(route::route::Action::Route(action)) = &message.action
        && let Some(route::route_action::ClusterSpecifier::Cluster(cluster)) = &action.cluster_specifier
        && let Some(parsed) = name::parse_outbound(cluster)
    {
        return format!("{}:{}{path}", parsed.host, parsed.port);
    }
    format!("{rule}:{port}{path}")
}

//! What of a request decides on its endpoint: `consistentHash` of the DestinationRule of where it
//! goes, which Envoy wants on the route.

use leno_derive::Cx;

use crate::model::destination_rule::{ConsistentHash, TrafficPolicy};
use crate::model::duration::Span;
use crate::model::virtual_service::Destination;
use crate::registry::Service;
use crate::scope::Viewer;
use crate::scope::policy::MergedPolicy;
use crate::translate::cluster::policies;
use crate::translate::proto::route;

/// The policy for a destination that a rule names: of its subset before the service's, of the port
/// that the rule names before the general one.
pub(super) fn of_destination(
    cx: &Cx<'_>,
    viewer: &Viewer,
    service: &Service,
    destination: &Destination,
) -> Option<route::route_action::HashPolicy> {
    let merged = cx.get::<MergedPolicy>(&policies(cx, viewer, service));
    let number = destination.port.as_ref().map(|port| port.number);
    let at_port = |policy: &TrafficPolicy| {
        let found = policy
            .port_level_settings
            .iter()
            .find(|setting| number.is_some() && setting.port.as_ref().map(|port| port.number) == number);
        found.and_then(|setting| setting.load_balancer.as_ref()?.consistent_hash.clone())
    };
    let general = |policy: &TrafficPolicy| policy.load_balancer.as_ref()?.consistent_hash.clone();
    let subset = merged.subset(&destination.subset).and_then(|subset| subset.traffic_policy.as_ref());
    let found = subset
        .and_then(at_port)
        .or_else(|| subset.and_then(general))
        .or_else(|| at_port(&merged.traffic_policy))
        .or_else(|| general(&merged.traffic_policy))?;
    policy(&found)
}

/// The policy for a port of a service that no rule speaks of.
pub(super) fn of_service(
    cx: &Cx<'_>,
    viewer: &Viewer,
    service: &Service,
    port: u16,
) -> Option<route::route_action::HashPolicy> {
    let merged = cx.get::<MergedPolicy>(&policies(cx, viewer, service));
    let own = merged
        .traffic_policy
        .port_level_settings
        .iter()
        .find(|setting| setting.port.as_ref().is_some_and(|own| own.number == u32::from(port)))
        .and_then(|setting| setting.load_balancer.as_ref()?.consistent_hash.as_ref());
    let general = || merged.traffic_policy.load_balancer.as_ref()?.consistent_hash.as_ref();
    policy(own.or_else(general)?)
}

fn policy(hash: &ConsistentHash) -> Option<route::route_action::HashPolicy> {
    use route::route_action::hash_policy::{
        ConnectionProperties, Cookie, CookieAttribute, Header, PolicySpecifier, QueryParameter,
    };
    let specifier = if let Some(name) = &hash.http_header_name {
        PolicySpecifier::Header(Header { header_name: name.clone(), ..Header::default() })
    } else if let Some(cookie) = &hash.http_cookie {
        let attributes = cookie.attributes.iter().map(|attribute| CookieAttribute {
            name: attribute.name.clone(),
            value: attribute.value.clone(),
        });
        PolicySpecifier::Cookie(Cookie {
            name: cookie.name.clone(),
            ttl: cookie.ttl.map(Span::to_proto),
            path: cookie.path.clone(),
            attributes: attributes.collect(),
        })
    } else if let Some(source_ip) = hash.use_source_ip {
        PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip })
    } else {
        let name = hash.http_query_parameter_name.clone()?;
        PolicySpecifier::QueryParameter(QueryParameter { name })
    };
    Some(route::route_action::HashPolicy { policy_specifier: Some(specifier), ..Default::default() })
}

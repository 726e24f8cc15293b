//! What becomes of a request that a rule matches: forwarding, redirect, direct response.

use leno_base::base64;

use crate::model::duration::Span;
use crate::model::virtual_service::{
    DerivePort, Destination, DirectResponse, HeaderOperations, Headers, HttpRoute, Percent, Redirect, Retries,
};
use crate::registry::{Service, alias};
use crate::translate::name;
use crate::translate::proto::{core, route, ty};

use super::matcher::regex;
use super::{filter, retry};

/// The cluster, which does not exist, of what cannot be had.
const UNKNOWN_SERVICE: &str = "UnknownService";

/// The cluster that a destination stands for: its port, else the only one of the service, else the
/// one that the request came in on.
// Deviation: for sidecars istiod looks at the port that the request came in on before the only port of
// the service, though its documentation says otherwise, and names a cluster that does not exist.
pub(crate) fn cluster(destination: &Destination, service: Option<&Service>, port: u16) -> String {
    if destination.host.is_empty() {
        // A backend that must not be had.
        return UNKNOWN_SERVICE.to_owned();
    }
    let only = service.and_then(|service| match service.ports.as_slice() {
        [port] => Some(port.number),
        _ => None,
    });
    let given = destination.port.as_ref().and_then(|port| u16::try_from(port.number).ok());
    let host = service.map_or(destination.host.as_str(), alias::concrete);
    name::outbound(given.or(only).unwrap_or(port), &destination.subset, host)
}

/// The default route to a cluster, without any rule.
pub(super) fn forward(
    cluster: String,
    retries: Option<&Retries>,
    hash: Option<route::route_action::HashPolicy>,
) -> route::RouteAction {
    route::RouteAction {
        retry_policy: retry::outbound(retries, false),
        hash_policy: hash.into_iter().collect(),
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(cluster)),
        ..unlimited()
    }
}

/// A route to a cluster without retries, as to the passthrough cluster and the workload itself.
#[allow(deprecated)] // Istio's configuration, read by people, has it
pub(crate) fn unlimited() -> route::RouteAction {
    route::RouteAction {
        timeout: Some(prost_types::Duration::default()),
        max_grpc_timeout: Some(prost_types::Duration::default()),
        ..route::RouteAction::default()
    }
}

/// What forwarding needs to know of a destination.
pub(super) struct Target {
    pub(super) cluster: String,
    pub(super) hash: Option<route::route_action::HashPolicy>,
}

/// Forwarding as a rule asks for; `target_of` looks destinations up, `retries` are the mesh's. Sets
/// header changes on `message`.
#[allow(deprecated)] // max_grpc_timeout, see above
pub(super) fn rule_forward(
    rule: &HttpRoute,
    message: &mut route::Route,
    retries: Option<&Retries>,
    target_of: impl Fn(&Destination) -> Target,
) -> route::RouteAction {
    let timeout = rule.timeout.map_or_else(prost_types::Duration::default, Span::to_proto);
    let mut action = route::RouteAction {
        timeout: Some(timeout),
        max_grpc_timeout: Some(timeout),
        ..route::RouteAction::default()
    };
    if let Some(rewrite) = &rule.rewrite {
        if let Some(pattern) = &rewrite.uri_regex_rewrite {
            action.regex_rewrite = Some(ty::matcher::v3::RegexMatchAndSubstitute {
                pattern: Some(regex(&pattern.r#match)),
                substitution: pattern.rewrite.clone(),
            });
        } else {
            action.prefix_rewrite.clone_from(&rewrite.uri);
        }
    }
    let authority =
        rule.rewrite.as_ref().map(|rewrite| rewrite.authority.clone()).filter(|name| !name.is_empty());
    let mut host = authority.or_else(|| rule.headers.as_ref().and_then(host_in));
    let mut hashed = false;
    if let [only] = rule.route.as_slice() {
        if let Some(headers) = &only.headers {
            change_headers(headers, message);
            host = host.or_else(|| host_in(headers));
        }
        let target = target_of(&only.destination);
        hashed = target.hash.is_some();
        action.hash_policy.extend(target.hash);
        action.cluster_specifier = Some(route::route_action::ClusterSpecifier::Cluster(target.cluster));
    } else {
        let mut clusters = Vec::new();
        for part in &rule.route {
            // Istio leaves out what has no weight if there is something else.
            let Some(weight) = u32::try_from(part.weight).ok().filter(|weight| *weight > 0) else { continue };
            let target = target_of(&part.destination);
            action.hash_policy.extend(target.hash);
            let mut cluster = route::weighted_cluster::ClusterWeight {
                name: target.cluster,
                weight: Some(weight),
                ..route::weighted_cluster::ClusterWeight::default()
            };
            if let Some(headers) = &part.headers {
                change_weighted_headers(headers, &mut cluster);
            }
            clusters.push(cluster);
        }
        let clusters = route::WeightedCluster { clusters, ..route::WeightedCluster::default() };
        action.cluster_specifier = Some(route::route_action::ClusterSpecifier::WeightedClusters(clusters));
    }
    action.retry_policy = retry::outbound(rule.retries.as_ref().or(retries), hashed);
    action.host_rewrite_specifier = host.map(route::route_action::HostRewriteSpecifier::HostRewriteLiteral);
    action.request_mirror_policies = mirrors(rule, |destination| target_of(destination).cluster);
    action
}

/// What the Gateway API wants of forwarding: what cannot be had answers 500, and a prefix that is
/// taken away leaves a path behind.
pub(super) fn answer_missing(action: &mut route::RouteAction, found: Option<&route::RouteMatch>) {
    use route::route_action::ClusterNotFoundResponseCode;
    action.cluster_not_found_response_code = ClusterNotFoundResponseCode::InternalServerError as i32;
    let path = found.and_then(|found| found.path_specifier.as_ref());
    if action.prefix_rewrite == "/"
        && let Some(route::route_match::PathSpecifier::PathSeparatedPrefix(prefix)) = path
    {
        action.prefix_rewrite = String::new();
        action.regex_rewrite = Some(ty::matcher::v3::RegexMatchAndSubstitute {
            pattern: Some(regex(&format!("^{}(/?)(.*)", ::regex::escape(prefix)))),
            substitution: r"/\2".to_owned(),
        });
    }
}

fn mirrors(
    rule: &HttpRoute,
    cluster_of: impl Fn(&Destination) -> String,
) -> Vec<route::route_action::RequestMirrorPolicy> {
    let whole = |percent: u32| ty::v3::FractionalPercent {
        numerator: percent,
        denominator: ty::v3::fractional_percent::DenominatorType::Hundred as i32,
    };
    let share = |percentage: Option<Percent>| percentage.map(filter::fraction);
    let general = share(rule.mirror_percentage).or(rule.mirror_percent.map(whole));
    let single = rule.mirror.iter().map(|destination| (destination, general));
    let several = rule.mirrors.iter().map(|mirror| (&mirror.destination, share(mirror.percentage)));
    single
        .chain(several)
        .filter_map(|(destination, fraction)| {
            let fraction = fraction.unwrap_or_else(|| whole(100));
            (fraction.numerator > 0).then(|| route::route_action::RequestMirrorPolicy {
                cluster: cluster_of(destination),
                runtime_fraction: Some(core::RuntimeFractionalPercent {
                    default_value: Some(fraction),
                    ..core::RuntimeFractionalPercent::default()
                }),
                trace_sampled: Some(false),
                disable_shadow_host_suffix_append: true,
                ..route::route_action::RequestMirrorPolicy::default()
            })
        })
        .collect()
}

/// A redirect; `port` is the one that the request came in on, perhaps over TLS.
pub(super) fn redirect(redirect: &Redirect, port: u16, tls: bool) -> route::RedirectAction {
    use route::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
    let code = match redirect.redirect_code {
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::MovedPermanently,
    };
    let path = if !redirect.uri.is_empty() {
        Some(PathRewriteSpecifier::PathRedirect(redirect.uri.clone()))
    } else if !redirect.prefix_rewrite.is_empty() {
        Some(PathRewriteSpecifier::PrefixRewrite(redirect.prefix_rewrite.clone()))
    } else {
        None
    };
    let port = match (redirect.port, redirect.derive_port) {
        (Some(port), _) => port,
        (None, Some(DerivePort::FromRequestPort)) => u32::from(port),
        (None, Some(DerivePort::FromProtocolDefault) | None) => 0,
    };
    // The port that goes without saying is left out of the Location header.
    let scheme = match redirect.scheme.as_str() {
        "" if tls => "https",
        "" => "http",
        scheme => scheme,
    };
    let implied = matches!((scheme, port), ("https", 443) | ("http", 80));
    route::RedirectAction {
        host_redirect: redirect.authority.clone(),
        port_redirect: if implied { 0 } else { port },
        response_code: code as i32,
        scheme_rewrite_specifier: (!redirect.scheme.is_empty())
            .then(|| SchemeRewriteSpecifier::SchemeRedirect(redirect.scheme.clone())),
        path_rewrite_specifier: path,
        ..route::RedirectAction::default()
    }
}

/// A fixed response.
pub(super) fn direct_response(response: &DirectResponse) -> route::DirectResponseAction {
    use core::data_source::Specifier;
    let body = response.body.as_ref().and_then(|body| match (&body.string, &body.bytes) {
        (Some(text), _) => Some(Specifier::InlineString(text.clone())),
        (None, Some(bytes)) => {
            base64::decode_json(bytes.as_bytes()).map(|bytes| Specifier::InlineBytes(bytes.into()))
        }
        (None, None) => None,
    });
    route::DirectResponseAction {
        status: response.status,
        body: body
            .map(|specifier| core::DataSource { specifier: Some(specifier), ..core::DataSource::default() }),
        ..route::DirectResponseAction::default()
    }
}

/// Adds a rule's header changes to a route.
pub(super) fn change_headers(headers: &Headers, message: &mut route::Route) {
    if let Some(request) = &headers.request {
        message.request_headers_to_add.extend(additions(request));
        message.request_headers_to_remove.extend(removals(request));
    }
    if let Some(response) = &headers.response {
        message.response_headers_to_add.extend(additions(response));
        message.response_headers_to_remove.extend(removals(response));
    }
}

fn change_weighted_headers(headers: &Headers, cluster: &mut route::weighted_cluster::ClusterWeight) {
    if let Some(request) = &headers.request {
        cluster.request_headers_to_add = additions(request);
        cluster.request_headers_to_remove = removals(request).collect();
    }
    if let Some(response) = &headers.response {
        cluster.response_headers_to_add = additions(response);
        cluster.response_headers_to_remove = removals(response).collect();
    }
    cluster.host_rewrite_specifier = host_in(headers)
        .map(route::weighted_cluster::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral);
}

fn additions(operations: &HeaderOperations) -> Vec<core::HeaderValueOption> {
    use core::header_value_option::HeaderAppendAction;
    let option = |action: HeaderAppendAction| {
        move |(name, value): (&String, &String)| core::HeaderValueOption {
            header: Some(core::HeaderValue {
                key: name.clone(),
                value: value.clone(),
                ..core::HeaderValue::default()
            }),
            append_action: action as i32,
            ..core::HeaderValueOption::default()
        }
    };
    let set = operations.set.iter().filter(|(name, _)| !is_internal(name));
    let set = set.map(option(HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = operations.add.iter().filter(|(name, _)| !is_internal(name));
    set.chain(add.map(option(HeaderAppendAction::AppendIfExistsOrAdd))).collect()
}

fn removals(operations: &HeaderOperations) -> impl Iterator<Item = String> + '_ {
    operations.remove.iter().filter(|name| !is_internal(name)).cloned()
}

/// The host that a rule sets by way of a header; to set it counts more than to add it.
fn host_in(headers: &Headers) -> Option<String> {
    let request = headers.request.as_ref()?;
    let found =
        request.set.iter().chain(&request.add).find(|(name, value)| is_host(name) && !value.is_empty());
    found.map(|(_, value)| value.clone())
}

fn is_host(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

/// What Envoy does not let header rules change.
fn is_internal(name: &str) -> bool {
    name.starts_with(':') || name.eq_ignore_ascii_case("host")
}

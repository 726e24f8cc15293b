//! What becomes of a request that a rule matches: forwarding, redirect, direct response.

use leno_base::base64;

use crate::model::duration::Span;
use crate::model::virtual_service::{
    DerivePort, Destination, DirectResponse, HeaderOperations, Headers, HttpRoute, Percent, Redirect, Retries,
};
use crate::registry::Service;
use crate::translate::name;
use crate::translate::proto::{core, route, ty};
use crate::translate::resource::pack;

use super::matcher::regex;

/// The retries that Istio gives to every route: those that cannot harm, as the server has not
/// begun, and 503, which proxies answer themselves.
const RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
const RETRY_CODES: [u32; 1] = [503];
const RETRIES: u32 = 2;

/// How many times another host is looked for when a retry would go to one that failed.
const OTHER_HOST_ATTEMPTS: i64 = 5;

/// The cluster that a destination stands for: its port, else the only one of the service, else the
/// one that the request came in on.
pub(crate) fn cluster(destination: &Destination, service: Option<&Service>, port: u16) -> String {
    let only = service.and_then(|service| match service.ports.as_slice() {
        [port] => Some(port.number),
        _ => None,
    });
    let given = destination.port.as_ref().and_then(|port| u16::try_from(port.number).ok());
    name::outbound(given.or(only).unwrap_or(port), &destination.subset, &destination.host)
}

/// The default route to a cluster, without any rule.
pub(crate) fn forward(cluster: String) -> route::RouteAction {
    route::RouteAction {
        timeout: Some(prost_types::Duration::default()),
        retry_policy: Some(retry_policy(None)),
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

/// Forwarding as a rule asks for; `cluster_of` names clusters. Sets header changes on `message`.
#[allow(deprecated)] // max_grpc_timeout, see above
pub(crate) fn rule_forward(
    rule: &HttpRoute,
    message: &mut route::Route,
    cluster_of: impl Fn(&Destination) -> String,
) -> route::RouteAction {
    let timeout = rule.timeout.map_or_else(prost_types::Duration::default, Span::to_proto);
    let mut action = route::RouteAction {
        timeout: Some(timeout),
        max_grpc_timeout: Some(timeout),
        retry_policy: match &rule.retries {
            Some(retries) if retries.attempts == 0 => None,
            retries => Some(retry_policy(retries.as_ref())),
        },
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
    if let [only] = rule.route.as_slice() {
        if let Some(headers) = &only.headers {
            change_headers(headers, message);
            host = host.or_else(|| host_in(headers));
        }
        let cluster = cluster_of(&only.destination);
        action.cluster_specifier = Some(route::route_action::ClusterSpecifier::Cluster(cluster));
    } else {
        let clusters = rule.route.iter().filter_map(|target| {
            let weight = u32::try_from(target.weight).ok().filter(|weight| *weight > 0)?;
            let mut cluster = route::weighted_cluster::ClusterWeight {
                name: cluster_of(&target.destination),
                weight: Some(weight),
                ..route::weighted_cluster::ClusterWeight::default()
            };
            if let Some(headers) = &target.headers {
                change_weighted_headers(headers, &mut cluster);
            }
            Some(cluster)
        });
        let clusters =
            route::WeightedCluster { clusters: clusters.collect(), ..route::WeightedCluster::default() };
        action.cluster_specifier = Some(route::route_action::ClusterSpecifier::WeightedClusters(clusters));
    }
    action.host_rewrite_specifier = host.map(route::route_action::HostRewriteSpecifier::HostRewriteLiteral);
    action.request_mirror_policies = mirrors(rule, cluster_of);
    action
}

fn mirrors(
    rule: &HttpRoute,
    cluster_of: impl Fn(&Destination) -> String,
) -> Vec<route::route_action::RequestMirrorPolicy> {
    let general =
        rule.mirror_percentage.or(rule.mirror_percent.map(|percent| Percent { value: f64::from(percent) }));
    let single = rule.mirror.iter().map(|destination| (destination, general));
    let several = rule.mirrors.iter().map(|mirror| (&mirror.destination, mirror.percentage));
    single
        .chain(several)
        .filter_map(|(destination, percent)| {
            let percent = percent.map_or(100.0, |percent| percent.value);
            (percent > 0.0).then(|| route::route_action::RequestMirrorPolicy {
                cluster: cluster_of(destination),
                runtime_fraction: Some(core::RuntimeFractionalPercent {
                    default_value: Some(ty::v3::FractionalPercent {
                        // 0 to 100 with four decimals; validated, so it fits.
                        numerator: (percent * 10_000.0).round() as u32,
                        denominator: ty::v3::fractional_percent::DenominatorType::Million as i32,
                    }),
                    ..core::RuntimeFractionalPercent::default()
                }),
                ..route::route_action::RequestMirrorPolicy::default()
            })
        })
        .collect()
}

/// The retries that a rule asks for, or else the default.
fn retry_policy(retries: Option<&Retries>) -> route::RetryPolicy {
    let mut policy = route::RetryPolicy {
        retry_on: RETRY_ON.to_owned(),
        num_retries: Some(RETRIES),
        retriable_status_codes: RETRY_CODES.to_vec(),
        ..route::RetryPolicy::default()
    };
    if let Some(retries) = retries {
        policy.num_retries = Some(u32::try_from(retries.attempts).unwrap_or(0));
        policy.per_try_timeout = retries.per_try_timeout.map(Span::to_proto);
        policy.retry_back_off = retries.backoff.map(|base| route::retry_policy::RetryBackOff {
            base_interval: Some(base.to_proto()),
            ..route::retry_policy::RetryBackOff::default()
        });
        if !retries.retry_on.is_empty() {
            (policy.retry_on, policy.retriable_status_codes) = retry_on(&retries.retry_on);
        }
    }
    if retries.is_none_or(|retries| retries.retry_ignore_previous_hosts != Some(false)) {
        let predicate = leno_api::proto::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate::default();
        policy.retry_host_predicate = vec![route::retry_policy::RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
            config_type: Some(route::retry_policy::retry_host_predicate::ConfigType::TypedConfig(pack(
                &predicate,
            ))),
        }];
        policy.host_selection_retry_max_attempts = OTHER_HOST_ATTEMPTS;
    }
    policy
}

/// Istio allows status codes among the conditions; Envoy wants them apart.
fn retry_on(text: &str) -> (String, Vec<u32>) {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let (codes, mut conditions): (Vec<&str>, Vec<&str>) = parts.partition(|part| part.parse::<u32>().is_ok());
    let codes: Vec<u32> = codes.iter().filter_map(|code| code.parse().ok()).collect();
    if !codes.is_empty() && !conditions.contains(&"retriable-status-codes") {
        conditions.push("retriable-status-codes");
    }
    (conditions.join(","), codes)
}

/// A redirect; `port` is the one that the request came in on.
pub(crate) fn redirect(redirect: &Redirect, port: u16) -> route::RedirectAction {
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
    let implied = matches!((redirect.scheme.as_str(), port), ("https", 443) | ("http", 80));
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
pub(crate) fn direct_response(response: &DirectResponse) -> route::DirectResponseAction {
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
pub(crate) fn change_headers(headers: &Headers, message: &mut route::Route) {
    if let Some(request) = &headers.request {
        message.request_headers_to_add.extend(additions(request));
        message.request_headers_to_remove.extend(request.remove.iter().cloned());
    }
    if let Some(response) = &headers.response {
        message.response_headers_to_add.extend(additions(response));
        message.response_headers_to_remove.extend(response.remove.iter().cloned());
    }
}

fn change_weighted_headers(headers: &Headers, cluster: &mut route::weighted_cluster::ClusterWeight) {
    if let Some(request) = &headers.request {
        cluster.request_headers_to_add = additions(request);
        cluster.request_headers_to_remove.clone_from(&request.remove);
    }
    if let Some(response) = &headers.response {
        cluster.response_headers_to_add = additions(response);
        cluster.response_headers_to_remove.clone_from(&response.remove);
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
    let set = operations.set.iter().filter(|(name, _)| !is_host(name));
    let set = set.map(option(HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = operations.add.iter().filter(|(name, _)| !is_host(name));
    set.chain(add.map(option(HeaderAppendAction::AppendIfExistsOrAdd))).collect()
}

/// The host that a rule sets by way of a header.
fn host_in(headers: &Headers) -> Option<String> {
    let request = headers.request.as_ref()?;
    let found = request.set.iter().find(|(name, _)| is_host(name));
    found.map(|(_, value)| value.clone())
}

fn is_host(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

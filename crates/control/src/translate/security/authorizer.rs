//! AuthorizationPolicies with the action CUSTOM: a provider of the MeshConfig is asked.
//!
//! A first filter, `rbac` with shadow rules only, notes in metadata which rule fits; a second one,
//! `ext_authz`, asks the provider if that is one of these. Where the provider cannot be used, what
//! the rules fit is refused.
//!
//! Deviation: istiod puts CUSTOM policies with `istio.io/dry-run` into the enforced rules of the first
//! filter, which then refuses what they fit. Here they have no effect.

use std::collections::BTreeMap;

use leno_api::proto::envoy::config::rbac::v3 as rbac;
use leno_api::proto::envoy::extensions::filters::http::ext_authz::v3 as http;
use leno_api::proto::envoy::extensions::filters::http::rbac::v3 as http_rbac;
use leno_api::proto::envoy::extensions::filters::network::ext_authz::v3 as network;
use leno_api::proto::envoy::extensions::filters::network::rbac::v3 as network_rbac;
use leno_derive::{Cx, Query};

use super::authorization::{self, is_tried, rules};
use super::{http_filter, matcher, network_filter};
use crate::model::Config;
use crate::model::authorization_policy::AuthorizationPolicy;
use crate::model::duration::Span;
use crate::model::mesh::provider::{AuthzRequestBody, GrpcAuthz, HttpAuthz};
use crate::model::switches::SwitchInput;
use crate::registry::Mesh;
use crate::registry::targets::Workload;
use crate::scope::security::AuthorizationOf;
use crate::scope::sidecar::Sight;
use crate::translate::listener::filters::Filled;
use crate::translate::proto::{core, ty};
use crate::translate::provider::{self, Service};
use ty::matcher::v3::{ListStringMatcher, MetadataMatcher, StringMatcher};

/// The filters' names.
const HTTP: &str = "envoy.filters.http.ext_authz";
const NETWORK: &str = "envoy.filters.network.ext_authz";

/// Begins the names of rules of the action CUSTOM, by which the second filter knows them.
const RULE: &str = "istio-ext-authz";

/// Ends the names of those whose provider cannot be used.
const BAD_RULE: &str = "-deny-due-to-bad-CUSTOM-action";

/// Begins what the first filter notes, and the key of the rule's name.
const SHADOW: &str = "istio_ext_authz_";
const SHADOW_RULE: &str = "istio_ext_authz_shadow_effective_policy_id";

/// How long a provider may take if it does not say.
const TIMEOUT: prost_types::Duration = prost_types::Duration { seconds: 600, nanos: 0 };

/// The longest name of a provider.
const LONGEST_NAME: usize = 63;

/// A provider that can be asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Authorizer {
    cluster: String,
    host: String,
    status_on_error: Option<ty::v3::HttpStatus>,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Http(HttpAuthz),
    Grpc(GrpcAuthz),
}

/// The provider with a name, for workloads that see so much; or why it cannot be used.
pub(crate) struct AuthorizerOf;

impl Query for AuthorizerOf {
    type Key = (Sight, String);
    type Value = Result<Authorizer, String>;
    const NAME: &'static str = "authorizer-of";

    fn derive(cx: &Cx<'_>, (sight, wanted): &(Sight, String)) -> Result<Authorizer, String> {
        let mesh = cx.get::<Mesh>(&());
        let mut named = mesh.extension_providers.iter().filter(|provider| provider.name == *wanted);
        let Some(provider) = named.next() else {
            return Err(format!("the mesh has no extension provider {wanted:?}"));
        };
        if named.next().is_some() {
            return Err(format!("the mesh has several extension providers {wanted:?}"));
        }
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if wanted.len() > LONGEST_NAME
            || !wanted.bytes().all(good)
            || wanted.starts_with('-')
            || wanted.ends_with('-')
        {
            return Err(format!(
                "the name of the extension provider {wanted:?} must be at most {LONGEST_NAME} lower case letters, digits and hyphens"
            ));
        }
        match (&provider.envoy_ext_authz_http, &provider.envoy_ext_authz_grpc) {
            (Some(http), None) => {
                check_http(http)?;
                let Service { host, cluster } = provider::find(cx, sight, &http.service, http.port)?;
                let status_on_error = status(&http.status_on_error)?;
                check_body(http.include_request_body_in_check.as_ref())?;
                Ok(Authorizer { cluster, host, status_on_error, kind: Kind::Http(http.clone()) })
            }
            (None, Some(grpc)) => {
                let Service { host, cluster } = provider::find(cx, sight, &grpc.service, grpc.port)?;
                let status_on_error = status(&grpc.status_on_error)?;
                check_body(grpc.include_request_body_in_check.as_ref())?;
                Ok(Authorizer { cluster, host, status_on_error, kind: Kind::Grpc(grpc.clone()) })
            }
            _ => Err(format!(
                "the extension provider {wanted:?} is neither envoyExtAuthzHttp nor envoyExtAuthzGrpc"
            )),
        }
    }
}

/// The filters that ask providers.
pub(super) fn filters(cx: &Cx<'_>, workload: &Workload, sight: &Sight) -> Filled {
    let policies = cx.get::<AuthorizationOf>(workload);
    let mut providers: BTreeMap<&str, Vec<&Config<AuthorizationPolicy>>> = BTreeMap::new();
    for policy in policies.custom.iter().filter(|policy| !is_tried(&policy.meta)) {
        let name = policy.spec.provider.as_ref().map_or("", |provider| &provider.name);
        providers.entry(name).or_default().push(policy);
    }
    let several = cx.input::<SwitchInput>(&()).is_some_and(|switches| switches.multiple_authorizers);
    let too_many = providers.len() > 1 && !several;
    let mesh = cx.get::<Mesh>(&());
    let mut filled = Filled::default();
    for (name, policies) in providers {
        let prefix = format!("{RULE}-{name}");
        let rules = |connections| {
            let list = policies.iter().copied();
            rules(&mesh, list, rbac::rbac::Action::Deny, connections, &format!("{prefix}-"))
        };
        let key = (sight.clone(), name.to_owned());
        let found = if too_many { None } else { Some(cx.get::<AuthorizerOf>(&key)) };
        match found.as_deref() {
            Some(Ok(authorizer)) => ask(&mut filled, authorizer, &prefix, rules),
            _ => refuse(&mut filled, rules),
        }
    }
    filled
}

/// Asks a provider about what rules fit.
fn ask(filled: &mut Filled, authorizer: &Authorizer, prefix: &str, rules: impl Fn(bool) -> rbac::Rbac) {
    filled.http.push(http_filter(
        authorization::HTTP,
        &http_rbac::Rbac {
            shadow_rules: Some(rules(false)),
            shadow_rules_stat_prefix: SHADOW.to_owned(),
            ..http_rbac::Rbac::default()
        },
    ));
    let mut message = authorizer.http();
    message.filter_enabled_metadata = Some(noted(authorization::HTTP, prefix));
    filled.http.push(http_filter(HTTP, &message));
    // What speaks HTTP only knows nothing of connections.
    let Some(mut message) = authorizer.network() else { return };
    filled.network.push(network_filter(
        authorization::NETWORK,
        &network_rbac::Rbac {
            shadow_rules: Some(rules(true)),
            shadow_rules_stat_prefix: SHADOW.to_owned(),
            stat_prefix: authorization::NETWORK_STATISTICS.to_owned(),
            ..network_rbac::Rbac::default()
        },
    ));
    message.filter_enabled_metadata = Some(noted(authorization::NETWORK, prefix));
    filled.network.push(network_filter(NETWORK, &message));
}

/// Refuses what rules fit.
fn refuse(filled: &mut Filled, rules: impl Fn(bool) -> rbac::Rbac) {
    let bad = |connections| {
        let mut rules = rules(connections);
        let policies = std::mem::take(&mut rules.policies);
        rules.policies =
            policies.into_iter().map(|(name, policy)| (format!("{name}{BAD_RULE}"), policy)).collect();
        Some(rules)
    };
    filled.http.push(http_filter(
        authorization::HTTP,
        &http_rbac::Rbac { rules: bad(false), ..http_rbac::Rbac::default() },
    ));
    filled.network.push(network_filter(
        authorization::NETWORK,
        &network_rbac::Rbac {
            rules: bad(true),
            stat_prefix: authorization::NETWORK_STATISTICS.to_owned(),
            ..network_rbac::Rbac::default()
        },
    ));
}

/// That a filter has noted a rule whose name begins so.
fn noted(filter: &str, prefix: &str) -> MetadataMatcher {
    matcher::metadata(filter, &[SHADOW_RULE], matcher::text(matcher::prefix(prefix)))
}

impl Authorizer {
    fn http(&self) -> http::ExtAuthz {
        let common = http::ExtAuthz {
            transport_api_version: core::ApiVersion::V3 as i32,
            status_on_error: self.status_on_error,
            ..http::ExtAuthz::default()
        };
        match &self.kind {
            Kind::Http(settings) => http::ExtAuthz {
                failure_mode_allow: settings.fail_open,
                clear_route_cache: settings.clear_route_cache,
                with_request_body: settings.include_request_body_in_check.as_ref().map(body),
                allowed_headers: headers(match settings.include_request_headers_in_check.as_slice() {
                    [] => &settings.include_headers_in_check,
                    given => given,
                }),
                services: Some(http::ext_authz::Services::HttpService(self.http_service(settings))),
                ..common
            },
            Kind::Grpc(settings) => http::ExtAuthz {
                failure_mode_allow: settings.fail_open,
                clear_route_cache: settings.clear_route_cache,
                with_request_body: settings.include_request_body_in_check.as_ref().map(body),
                services: Some(http::ext_authz::Services::GrpcService(self.grpc_service(settings))),
                ..common
            },
        }
    }

    fn http_service(&self, settings: &HttpAuthz) -> http::HttpService {
        let add = settings.include_additional_headers_in_check.iter();
        let add: Vec<core::HeaderValue> = add
            .map(|(key, value)| core::HeaderValue {
                key: key.clone(),
                value: value.clone(),
                ..core::HeaderValue::default()
            })
            .collect();
        let lists = [
            &settings.headers_to_upstream_on_allow,
            &settings.headers_to_downstream_on_deny,
            &settings.headers_to_downstream_on_allow,
        ];
        let answers = lists.into_iter().any(|list| !list.is_empty());
        http::HttpService {
            server_uri: Some(core::HttpUri {
                // Envoy wants one, and does not look at it.
                uri: format!("http://{}", self.host),
                timeout: Some(settings.timeout.map_or(TIMEOUT, Span::to_proto)),
                http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster(self.cluster.clone())),
            }),
            path_prefix: settings.path_prefix.clone(),
            authorization_request: (!add.is_empty()).then(|| http::AuthorizationRequest {
                headers_to_add: add,
                ..http::AuthorizationRequest::default()
            }),
            authorization_response: answers.then(|| http::AuthorizationResponse {
                allowed_upstream_headers: headers(&settings.headers_to_upstream_on_allow),
                allowed_client_headers: headers(&settings.headers_to_downstream_on_deny),
                allowed_client_headers_on_success: headers(&settings.headers_to_downstream_on_allow),
                ..http::AuthorizationResponse::default()
            }),
            ..http::HttpService::default()
        }
    }

    fn grpc_service(&self, settings: &GrpcAuthz) -> core::GrpcService {
        core::GrpcService {
            timeout: Some(settings.timeout.map_or(TIMEOUT, Span::to_proto)),
            target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(
                core::grpc_service::EnvoyGrpc {
                    cluster_name: self.cluster.clone(),
                    authority: self.host.clone(),
                    ..core::grpc_service::EnvoyGrpc::default()
                },
            )),
            ..core::GrpcService::default()
        }
    }

    /// The filter for connections, which only gRPC can be asked about.
    fn network(&self) -> Option<network::ExtAuthz> {
        let Kind::Grpc(settings) = &self.kind else { return None };
        Some(network::ExtAuthz {
            stat_prefix: authorization::NETWORK_STATISTICS.to_owned(),
            grpc_service: Some(self.grpc_service(settings)),
            failure_mode_allow: settings.fail_open,
            transport_api_version: core::ApiVersion::V3 as i32,
            ..network::ExtAuthz::default()
        })
    }
}

/// Headers as a provider names them: exact, `prefix*` or `*suffix`; none for an empty list.
fn headers(names: &[String]) -> Option<ListStringMatcher> {
    let one = |name: &String| StringMatcher { ignore_case: true, ..matcher::string(name) };
    (!names.is_empty()).then(|| ListStringMatcher { patterns: names.iter().map(one).collect() })
}

fn body(settings: &AuthzRequestBody) -> http::BufferSettings {
    http::BufferSettings {
        max_request_bytes: settings.max_request_bytes,
        allow_partial_message: settings.allow_partial_message,
        pack_as_bytes: settings.pack_as_bytes,
    }
}

fn status(text: &str) -> Result<Option<ty::v3::HttpStatus>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let code = text.parse::<i32>().ok().and_then(|code| ty::v3::StatusCode::try_from(code).ok());
    let code = code.filter(|code| *code != ty::v3::StatusCode::Empty);
    code.map(|code| Some(ty::v3::HttpStatus { code: code as i32 }))
        .ok_or_else(|| format!("the provider's statusOnError {text:?} is no HTTP status that Envoy knows"))
}

fn check_body(settings: Option<&AuthzRequestBody>) -> Result<(), String> {
    match settings {
        Some(settings) if settings.max_request_bytes == 0 => {
            Err("the provider's includeRequestBodyInCheck needs maxRequestBytes".to_owned())
        }
        _ => Ok(()),
    }
}

fn check_http(settings: &HttpAuthz) -> Result<(), String> {
    if !settings.path_prefix.is_empty() && !settings.path_prefix.starts_with('/') {
        return Err(format!("the provider's pathPrefix {:?} must begin with /", settings.path_prefix));
    }
    let lists = [
        ("includeRequestHeadersInCheck", &settings.include_request_headers_in_check),
        ("includeHeadersInCheck", &settings.include_headers_in_check),
        ("headersToUpstreamOnAllow", &settings.headers_to_upstream_on_allow),
        ("headersToDownstreamOnDeny", &settings.headers_to_downstream_on_deny),
        ("headersToDownstreamOnAllow", &settings.headers_to_downstream_on_allow),
    ];
    for (field, list) in lists {
        if list.iter().any(|name| name == "*" || name.is_empty()) {
            return Err(format!("the provider's {field} must name headers, prefix* or *suffix"));
        }
    }
    Ok(())
}

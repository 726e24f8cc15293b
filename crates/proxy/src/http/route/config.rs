//! Lowering of envoy.config.route.v3: RouteConfiguration, VirtualHost, Route and its actions.
//!
//! `RouteTable::lower` works on the wire form, so that virtual hosts that an update did not
//! change are not even decoded again.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::config::route::v3 as proto;
use leno_api::proto::envoy::r#type::v3 as types;
use leno_base::Name;
use proto::route_action::{ClusterSpecifier, HostRewriteSpecifier};
use proto::route_match::PathSpecifier;

use crate::cluster::lb::metadata::MetadataMatch;
use crate::config::address;
use crate::config::lower::Lower;
use crate::http::config::{ConnectConfig, ProxyProtocol, UpgradeType};
use crate::http::filters::RouteOverrides;
use crate::http::route::hash_policy::HashPolicies;
use crate::http::route::matcher::{self, header_name};
use crate::http::route::mutation::{self, HeaderMutations};
use crate::http::route::table::{Condition, Entry, Host, More, PathRule};
use crate::http::route::{
    Action, BodyFormat, ClusterChoice, Forward, HostRewrite, Mirror, PathRewrite, Redirect, RequireTls,
    RetryPolicy, Route, RouteTable, VirtualCluster, VirtualHost, WeightedCluster, WeightedTarget, filters,
    policy, rate_limit,
};
use crate::matching::{self, Place, value};
use crate::telemetry::access_log::LogFormat;
use crate::telemetry::access_log::config::substitution_format;
use crate::telemetry::access_log::format::Format;
use crate::telemetry::trace;

/// Envoy's route timeout where none is given.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// What a table says of all its virtual hosts.
#[derive(Debug)]
pub(super) struct TableSettings {
    pub(super) request_headers: Arc<HeaderMutations>,
    pub(super) response_headers: Arc<HeaderMutations>,
    pub(super) mirrors: Vec<Arc<Mirror>>,
    pub(super) overrides: RouteOverrides,
    pub(super) most_specific_wins: bool,
    pub(super) max_direct_response: usize,
}

/// What a virtual host says of all its routes.
struct HostSettings {
    request_headers: Arc<HeaderMutations>,
    response_headers: Arc<HeaderMutations>,
    mirrors: Vec<Arc<Mirror>>,
    overrides: RouteOverrides,
    retry: Option<Arc<RetryPolicy>>,
    hedge_on_per_try_timeout: bool,
    buffer_limit: Option<u64>,
    name: String,
}

/// Lowers one virtual host.
pub(super) fn virtual_host(proto: proto::VirtualHost, table: &TableSettings, at: &mut Lower) -> Option<Host> {
    let proto::VirtualHost {
        name,
        domains,
        routes,
        matcher,
        require_tls,
        virtual_clusters,
        rate_limits,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        cors,
        typed_per_filter_config,
        include_request_attempt_count,
        include_attempt_count_in_response,
        retry_policy,
        retry_policy_typed_config,
        hedge_policy,
        include_is_timeout_retry_header,
        per_request_buffer_limit_bytes,
        request_body_buffer_limit,
        request_mirror_policies,
        metadata,
        route_specifiers,
    } = proto;
    let rate_limits = at.each("rate_limits", rate_limits, rate_limit::lower);
    at.unsupported("cors", cors.is_some());
    at.unsupported("retry_policy_typed_config", retry_policy_typed_config.is_some());
    at.unsupported("route_specifiers", !route_specifiers.is_empty());
    use proto::virtual_host::TlsRequirementType as Tls;
    let require_tls = match at.value::<Tls>("require_tls", require_tls)? {
        Tls::None => RequireTls::None,
        Tls::ExternalOnly => RequireTls::ExternalOnly,
        Tls::All => RequireTls::All,
    };
    let settings = HostSettings {
        request_headers: Arc::new(mutation::lower(
            "request",
            request_headers_to_add,
            request_headers_to_remove,
            at,
        )),
        response_headers: Arc::new(mutation::lower(
            "response",
            response_headers_to_add,
            response_headers_to_remove,
            at,
        )),
        mirrors: mirrors(request_mirror_policies, &table.mirrors, at),
        overrides: filters::overrides(&table.overrides, typed_per_filter_config, at),
        retry: at.optional("retry_policy", retry_policy, policy::retry),
        hedge_on_per_try_timeout: hedge_policy.is_some_and(hedge),
        name: name.clone(),
        buffer_limit: buffer_limit(per_request_buffer_limit_bytes, request_body_buffer_limit, at),
    };
    if matcher.is_some() && !routes.is_empty() {
        at.error("cannot set both matcher and routes on virtual host");
    }
    let entries = at.each("routes", routes, |proto, at| route(proto, table, &settings, at));
    let matcher = at.optional("matcher", matcher, |proto, at| {
        matching::lower(proto, Place::REQUEST, at, &mut |action, at| {
            at.required("typed_config", action.typed_config, |any, at| {
                let any = at.extension(any)?;
                if leno_api::any::is::<proto::RouteList>(&any) {
                    let proto::RouteList { routes } = at.unpack(&any)?;
                    return Some(at.each("routes", routes, |proto, at| route(proto, table, &settings, at)));
                }
                Some(vec![route(at.unpack(&any)?, table, &settings, at)?])
            })
        })
    });
    // As that of the table.
    address::metadata("metadata", metadata, at);
    let virtual_host = VirtualHost {
        rate_limits,
        name: name.into(),
        require_tls,
        include_request_attempt_count,
        include_attempt_count_in_response,
        include_is_timeout_retry: include_is_timeout_retry_header,
        virtual_clusters: lower_virtual_clusters(&settings.name, virtual_clusters, at),
    };
    // Not by `collect`, which would keep the larger allocation of the strings.
    let mut names = Vec::with_capacity(domains.len());
    names.extend(domains.into_iter().map(|mut domain| {
        domain.make_ascii_lowercase();
        Name::from(domain)
    }));
    let domains = names.into_boxed_slice();
    Some(Host { virtual_host: Arc::new(virtual_host), domains, entries, matcher: matcher.map(Box::new) })
}

/// Whether a HedgePolicy sends further requests. Envoy reads nothing else of it.
fn hedge(proto: proto::HedgePolicy) -> bool {
    let proto::HedgePolicy { initial_requests: _, additional_request_chance: _, hedge_on_per_try_timeout } =
        proto;
    hedge_on_per_try_timeout
}

fn lower_virtual_clusters(
    host: &str,
    protos: Vec<proto::VirtualCluster>,
    at: &mut Lower,
) -> Vec<VirtualCluster> {
    let scope = |name: &str| Name::from(format!("vhost.{host}.vcluster.{name}."));
    let mut clusters = at.each("virtual_clusters", protos, |proto, at| {
        let proto::VirtualCluster { headers, name } = proto;
        if headers.is_empty() {
            at.error("virtual clusters must define 'headers'");
        }
        let headers = at.each("headers", headers, matcher::header);
        Some(VirtualCluster { scope: scope(&name), name: Some(name.into()), headers })
    });
    if !clusters.is_empty() {
        clusters.push(VirtualCluster { name: None, headers: Vec::new(), scope: scope("other") });
    }
    clusters
}

/// Lowers mirror policies; an empty list leaves those of the level above.
pub(super) fn mirrors(
    protos: Vec<proto::route_action::RequestMirrorPolicy>,
    above: &[Arc<Mirror>],
    at: &mut Lower,
) -> Vec<Arc<Mirror>> {
    if protos.is_empty() {
        above.to_vec()
    } else {
        at.each("request_mirror_policies", protos, policy::mirror)
    }
}

fn buffer_limit(old: Option<u32>, new: Option<u64>, at: &mut Lower) -> Option<u64> {
    if old.is_some() && new.is_some() {
        at.error("only one of per_request_buffer_limit_bytes and request_body_buffer_limit can be set");
    }
    new.or(old.map(u64::from))
}

fn route(proto: proto::Route, table: &TableSettings, host: &HostSettings, at: &mut Lower) -> Option<Entry> {
    let proto::Route {
        name,
        r#match,
        metadata,
        decorator,
        typed_per_filter_config,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        tracing,
        per_request_buffer_limit_bytes,
        stat_prefix,
        request_body_buffer_limit,
        route_specifiers,
        action,
    } = proto;
    let tracing = at.optional("tracing", tracing, trace::config::route);
    at.unsupported("route_specifiers", !route_specifiers.is_empty());
    let matched = at.required("match", r#match, route_match);
    let path = matched.as_ref().map(|matched| &matched.path);
    let overrides = filters::overrides(&host.overrides, typed_per_filter_config, at);
    let action = match action {
        Some(proto::route::Action::Route(action)) => at
            .field("route", |at| forward(action, path, host, &overrides, at))
            .map(|action| Action::Forward(Box::new(action))),
        Some(proto::route::Action::Redirect(action)) => {
            at.field("redirect", |at| redirect(action, path, at)).map(Action::Redirect)
        }
        Some(proto::route::Action::DirectResponse(action)) => {
            at.field("direct_response", |at| direct_response(action, table.max_direct_response, at))
        }
        Some(proto::route::Action::NonForwardingAction(proto::NonForwardingAction {})) => {
            Some(Action::NonForwarding)
        }
        Some(proto::route::Action::FilterAction(_)) => {
            at.unsupported("filter_action", true);
            None
        }
        None => {
            at.error("one of route, redirect, direct_response and non_forwarding_action is required");
            None
        }
    };
    let own_request = mutation::lower("request", request_headers_to_add, request_headers_to_remove, at);
    let own_response = mutation::lower("response", response_headers_to_add, response_headers_to_remove, at);
    // Most specific first, so that the least specific has the last word, unless it is to be the
    // other way round.
    let order = |own, host: &Arc<HeaderMutations>, table_level: &Arc<HeaderMutations>| {
        let mut levels = vec![Arc::new(own), Arc::clone(host), Arc::clone(table_level)];
        if table.most_specific_wins {
            levels.reverse();
        }
        levels.retain(|level| !level.is_empty());
        levels
    };
    let decorator = decorator.and_then(trace::config::decorator);
    let metadata = metadata.map(|metadata| address::metadata("metadata", Some(metadata), at));
    let stat_scope =
        (!stat_prefix.is_empty()).then(|| format!("vhost.{}.route.{stat_prefix}.", host.name).into());
    let own_limit = buffer_limit(per_request_buffer_limit_bytes, request_body_buffer_limit, at);
    let route = Route {
        name: name.into(),
        request_headers: order(own_request, &host.request_headers, &table.request_headers),
        response_headers: order(own_response, &host.response_headers, &table.response_headers),
        overrides,
        buffer_limit: own_limit.or(host.buffer_limit),
        metadata,
        stat_scope,
        tracing,
        decorator,
        action: action?,
    };
    Some(Entry { condition: matched?, route: Arc::new(route) })
}

/// Lowers a RouteMatch for others than routes.
pub(crate) fn condition(proto: proto::RouteMatch, at: &mut Lower) -> Option<Condition> {
    route_match(proto, at)
}

fn route_match(proto: proto::RouteMatch, at: &mut Lower) -> Option<Condition> {
    let proto::RouteMatch {
        case_sensitive,
        runtime_fraction: fraction,
        headers,
        query_parameters,
        cookies,
        grpc,
        tls_context,
        dynamic_metadata,
        filter_state,
        path_specifier,
    } = proto;
    at.unsupported("tls_context", tls_context.is_some());
    let ignore_case = case_sensitive == Some(false);
    let path = match path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => PathRule::Prefix(prefix.into(), ignore_case),
        Some(PathSpecifier::Path(path)) => PathRule::Path(path.into(), ignore_case),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
            PathRule::SeparatedPrefix(prefix.into(), ignore_case)
        }
        Some(PathSpecifier::SafeRegex(pattern)) => {
            PathRule::Regex(at.field("safe_regex", |at| matcher::full_regex(pattern, at))?)
        }
        Some(PathSpecifier::ConnectMatcher(proto::route_match::ConnectMatcher {})) => PathRule::Connect,
        Some(PathSpecifier::PathMatchPolicy(policy)) => {
            let type_url = policy.typed_config.map(|any| any.type_url).unwrap_or_default();
            at.field("path_match_policy", |at| at.unsupported_extension(&policy.name, &type_url));
            return None;
        }
        None => {
            at.error("a path specifier is required");
            return None;
        }
    };
    let fraction = match fraction {
        Some(fraction) => Some(at.field("runtime_fraction", |at| runtime_fraction(fraction, at))?),
        None => None,
    };
    let more = More {
        headers: at.each("headers", headers, matcher::header),
        query: at.each("query_parameters", query_parameters, matcher::query),
        cookies: at.each("cookies", cookies, matcher::cookie_matcher),
        grpc: grpc.is_some(),
        fraction,
        metadata: at.each("dynamic_metadata", dynamic_metadata, value::metadata),
        filter_state: at.each("filter_state", filter_state, value::filter_state),
    };
    Some(Condition { path, more: (!more.is_empty()).then(|| Box::new(more)) })
}

fn forward(
    proto: proto::RouteAction,
    path: Option<&PathRule>,
    host: &HostSettings,
    overrides: &RouteOverrides,
    at: &mut Lower,
) -> Option<Forward> {
    let proto::RouteAction {
        cluster_not_found_response_code,
        metadata_match,
        prefix_rewrite,
        regex_rewrite,
        path_rewrite_policy,
        path_rewrite,
        append_x_forwarded_host,
        timeout,
        idle_timeout,
        flush_timeout,
        early_data_policy,
        retry_policy,
        retry_policy_typed_config,
        request_mirror_policies,
        priority,
        rate_limits,
        include_vh_rate_limits,
        hash_policy,
        cors,
        max_grpc_timeout,
        grpc_timeout_offset,
        upgrade_configs,
        internal_redirect_policy,
        internal_redirect_action,
        max_internal_redirects,
        hedge_policy,
        max_stream_duration,
        cluster_specifier,
        host_rewrite_specifier,
    } = proto;
    at.unsupported("path_rewrite_policy", path_rewrite_policy.is_some());
    at.unsupported("early_data_policy", early_data_policy.is_some());
    at.unsupported("retry_policy_typed_config", retry_policy_typed_config.is_some());
    let rate_limits = at.each("rate_limits", rate_limits, rate_limit::lower);
    at.unsupported("cors", cors.is_some());
    let redirects = policy::internal_redirects(
        internal_redirect_policy,
        internal_redirect_action,
        max_internal_redirects,
        at,
    );
    let hedge_on_per_try_timeout = hedge_policy.map_or(host.hedge_on_per_try_timeout, hedge);
    let metadata_match = policy::metadata_match(metadata_match, at);
    use proto::route_action::ClusterNotFoundResponseCode as NotFound;
    let not_found = at.value::<NotFound>("cluster_not_found_response_code", cluster_not_found_response_code);
    let cluster_not_found_status = match not_found? {
        NotFound::ServiceUnavailable => 503,
        NotFound::NotFound => 404,
        NotFound::InternalServerError => 500,
    };
    let cluster = match cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => Some(ClusterChoice::Name(at.cluster_name(name))),
        Some(ClusterSpecifier::ClusterHeader(name)) => Some(ClusterChoice::Header(header_name(&name))),
        Some(ClusterSpecifier::WeightedClusters(weighted)) => at.field("weighted_clusters", |at| {
            weighted_clusters(weighted, overrides, metadata_match.as_deref(), at)
        }),
        Some(ClusterSpecifier::ClusterSpecifierPlugin(_)) => {
            at.unsupported("cluster_specifier_plugin", true);
            None
        }
        Some(ClusterSpecifier::InlineClusterSpecifierPlugin(_)) => {
            at.unsupported("inline_cluster_specifier_plugin", true);
            None
        }
        None => {
            at.error("a cluster specifier is required");
            None
        }
    };
    if !prefix_rewrite.is_empty() && regex_rewrite.is_some() {
        at.error("cannot specify both prefix_rewrite and regex_rewrite");
    }
    let path_rewrite = match regex_rewrite {
        Some(rewrite) => {
            let (pattern, with) = at.field("regex_rewrite", |at| matcher::substitution(rewrite, at))?;
            PathRewrite::Regex { pattern, with }
        }
        None if !path_rewrite.is_empty() => PathRewrite::Format(format("path_rewrite", &path_rewrite, at)?),
        None => prefix_rewrite_of(prefix_rewrite, path),
    };
    let limited = max_stream_duration.is_some();
    let (max_stream, grpc_max, grpc_offset) = match max_stream_duration {
        Some(proto) => at.field("max_stream_duration", |at| {
            let proto::route_action::MaxStreamDuration {
                max_stream_duration,
                grpc_timeout_header_max,
                grpc_timeout_header_offset,
            } = proto;
            (
                switchable("max_stream_duration", max_stream_duration, at),
                switchable("grpc_timeout_header_max", grpc_timeout_header_max, at),
                at.duration("grpc_timeout_header_offset", grpc_timeout_header_offset),
            )
        }),
        None => (None, None, None),
    };
    let (old_grpc_max, old_grpc_offset) = (
        switchable("max_grpc_timeout", max_grpc_timeout, at),
        at.duration("grpc_timeout_offset", grpc_timeout_offset),
    );
    let mut retry = at.optional("retry_policy", retry_policy, policy::retry);
    if retry.is_none() {
        retry.clone_from(&host.retry);
    }
    let hash = HashPolicies::lower("hash_policy", hash_policy, at);
    Some(Forward {
        rate_limits,
        include_host_rate_limits: include_vh_rate_limits.unwrap_or(false),
        cluster: cluster?,
        cluster_not_found_status,
        path_rewrite,
        host_rewrite: host_rewrite(host_rewrite_specifier, at)?,
        append_forwarded_host: append_x_forwarded_host,
        // A limit of the stream's duration stands in for it, as in Envoy.
        timeout: at.timeout("timeout", timeout, Some(DEFAULT_TIMEOUT)).filter(|_| !limited),
        max_grpc_timeout: old_grpc_max.filter(|_| !limited),
        grpc_timeout_offset: old_grpc_offset.unwrap_or_default(),
        idle_timeout: switchable("idle_timeout", idle_timeout, at),
        flush_timeout: switchable("flush_timeout", flush_timeout, at),
        max_stream_duration: max_stream,
        grpc_timeout_max: grpc_max,
        grpc_header_offset: grpc_offset.unwrap_or_default(),
        hash,
        metadata_match,
        retry,
        redirects,
        hedge_on_per_try_timeout,
        mirrors: mirrors(request_mirror_policies, &host.mirrors, at),
        high_priority: at.value::<core::RoutingPriority>("priority", priority)?
            == core::RoutingPriority::High,
        upgrades: upgrades(upgrade_configs, at),
    })
}

fn upgrades(protos: Vec<proto::route_action::UpgradeConfig>, at: &mut Lower) -> Vec<UpgradeType> {
    let mut seen: Vec<UpgradeType> = Vec::new();
    at.each("upgrade_configs", protos, |proto, at| {
        let proto::route_action::UpgradeConfig { upgrade_type, enabled, connect_config } = proto;
        let name = upgrade_type.to_ascii_lowercase();
        let connect = at.optional("connect_config", connect_config, |config, at| {
            if name != "connect" {
                at.error(format!("non-CONNECT upgrade type {upgrade_type} has ConnectConfig"));
                return None;
            }
            let proto::route_action::upgrade_config::ConnectConfig { proxy_protocol_config, allow_post } =
                config;
            let proxy_protocol = at.optional("proxy_protocol_config", proxy_protocol_config, proxy_protocol);
            Some(ConnectConfig { proxy_protocol, allow_post })
        });
        if seen.iter().any(|other| *other.name == name) {
            at.error(format!("duplicate upgrade {name}"));
        }
        let upgrade = UpgradeType { name: name.into(), enabled: enabled.unwrap_or(true), connect };
        seen.push(upgrade.clone());
        Some(upgrade)
    })
}

fn proxy_protocol(proto: core::ProxyProtocolConfig, at: &mut Lower) -> Option<ProxyProtocol> {
    let core::ProxyProtocolConfig { version, pass_through_tlvs, added_tlvs } = proto;
    at.unsupported("pass_through_tlvs", pass_through_tlvs.is_some());
    at.unsupported("added_tlvs", !added_tlvs.is_empty());
    use core::proxy_protocol_config::Version;
    Some(match at.value::<Version>("version", version)? {
        Version::V1 => ProxyProtocol::V1,
        Version::V2 => ProxyProtocol::V2,
    })
}

/// A duration that, if it is zero, switches off what a level above sets.
fn switchable(field: &str, value: Option<prost_types::Duration>, at: &mut Lower) -> Option<Option<Duration>> {
    at.duration(field, value).map(|duration| (!duration.is_zero()).then_some(duration))
}

/// What `prefix_rewrite` replaces depends on what the route matches.
fn prefix_rewrite_of(with: String, path: Option<&PathRule>) -> PathRewrite {
    if with.is_empty() {
        return PathRewrite::None;
    }
    let matched = match path {
        Some(PathRule::Prefix(text, _) | PathRule::Path(text, _) | PathRule::SeparatedPrefix(text, _)) => {
            text.len()
        }
        Some(PathRule::Regex(_) | PathRule::Connect) | None => usize::MAX,
    };
    PathRewrite::Prefix { matched, with: with.into() }
}

fn host_rewrite(proto: Option<HostRewriteSpecifier>, at: &mut Lower) -> Option<HostRewrite> {
    Some(match proto {
        None | Some(HostRewriteSpecifier::AutoHostRewrite(false)) => HostRewrite::None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(text)) if text.is_empty() => HostRewrite::None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(text)) => HostRewrite::Literal(text.into()),
        Some(HostRewriteSpecifier::AutoHostRewrite(true)) => HostRewrite::Auto,
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => HostRewrite::Header(header_name(&name)),
        Some(HostRewriteSpecifier::HostRewritePathRegex(rewrite)) => {
            let (pattern, with) =
                at.field("host_rewrite_path_regex", |at| matcher::substitution(rewrite, at))?;
            HostRewrite::PathRegex { pattern, with }
        }
        Some(HostRewriteSpecifier::HostRewrite(text)) if text.is_empty() => HostRewrite::None,
        Some(HostRewriteSpecifier::HostRewrite(text)) => {
            HostRewrite::Format(format("host_rewrite", &text, at)?)
        }
    })
}

fn weighted_clusters(
    proto: proto::WeightedCluster,
    above: &RouteOverrides,
    metadata_above: Option<&MetadataMatch>,
    at: &mut Lower,
) -> Option<ClusterChoice> {
    let proto::WeightedCluster { clusters, total_weight, runtime_key_prefix, random_value_specifier } = proto;
    use proto::weighted_cluster::RandomValueSpecifier as Random;
    let random_header = match random_value_specifier {
        Some(Random::HeaderName(name)) if !name.is_empty() => Some(header_name(&name)),
        Some(Random::UseHashPolicy(true)) => {
            at.unsupported("use_hash_policy", true);
            None
        }
        Some(Random::HeaderName(_) | Random::UseHashPolicy(false)) | None => None,
    };
    let configured: u64 = clusters.iter().map(|cluster| u64::from(cluster.weight.unwrap_or(0))).sum();
    if configured == 0 {
        at.error("sum of weights in the weighted_cluster must be greater than 0");
    } else if configured > u64::from(u32::MAX) {
        at.error(format!("the sum of weights of all weighted clusters exceeds {}", u32::MAX));
    }
    // Deprecated: weights are relative to their sum, whatever this says.
    let _ = total_weight;
    let clusters = at.each("clusters", clusters, |proto, at| {
        let proto::weighted_cluster::ClusterWeight {
            name,
            cluster_header,
            weight,
            metadata_match,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            typed_per_filter_config,
            host_rewrite_specifier,
        } = proto;
        if name.is_empty() == cluster_header.is_empty() {
            at.error("one and only one of name and cluster_header must be specified");
        }
        let metadata = address::metadata("metadata_match", metadata_match, at);
        let metadata_match = MetadataMatch::merge(metadata_above, &metadata);
        use proto::weighted_cluster::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral;
        let host_rewrite =
            host_rewrite_specifier.map(|HostRewriteLiteral(text)| text).filter(|text| !text.is_empty());
        let mut weight = u64::from(weight.unwrap_or(0));
        if !runtime_key_prefix.is_empty() {
            weight = at.scope().runtime.integer(&format!("{runtime_key_prefix}.{name}")).unwrap_or(weight);
        }
        let request = mutation::lower("request", request_headers_to_add, request_headers_to_remove, at);
        let response = mutation::lower("response", response_headers_to_add, response_headers_to_remove, at);
        let cluster = if name.is_empty() {
            WeightedTarget::Header(header_name(&cluster_header))
        } else {
            WeightedTarget::Name(name.into())
        };
        Some(WeightedCluster {
            cluster,
            weight,
            metadata_match,
            request_headers: Arc::new(request),
            response_headers: Arc::new(response),
            host_rewrite: host_rewrite.map(Into::into),
            overrides: filters::overrides(above, typed_per_filter_config, at),
        })
    });
    let total = clusters.iter().map(|cluster| cluster.weight).sum::<u64>().max(1);
    Some(ClusterChoice::Weighted { clusters, total, random_header })
}

fn redirect(proto: proto::RedirectAction, path: Option<&PathRule>, at: &mut Lower) -> Option<Redirect> {
    let proto::RedirectAction {
        host_redirect,
        port_redirect,
        response_code,
        strip_query,
        scheme_rewrite_specifier,
        path_rewrite_specifier,
    } = proto;
    use proto::redirect_action::{
        PathRewriteSpecifier, RedirectResponseCode as Code, SchemeRewriteSpecifier,
    };
    let scheme = match scheme_rewrite_specifier {
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) if !scheme.is_empty() => Some(scheme.into()),
        _ => None,
    };
    let mut redirect_path = None;
    let mut rewrite = PathRewrite::None;
    match path_rewrite_specifier {
        Some(PathRewriteSpecifier::PathRedirect(path)) if !path.is_empty() => {
            redirect_path = Some(path.into());
        }
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
            rewrite = prefix_rewrite_of(prefix, path);
        }
        Some(PathRewriteSpecifier::RegexRewrite(regex)) => {
            let (pattern, with) = at.field("regex_rewrite", |at| matcher::substitution(regex, at))?;
            rewrite = PathRewrite::Regex { pattern, with };
        }
        Some(PathRewriteSpecifier::PathRewrite(text)) if !text.is_empty() => {
            rewrite = PathRewrite::Format(format("path_rewrite", &text, at)?);
        }
        Some(PathRewriteSpecifier::PathRedirect(_) | PathRewriteSpecifier::PathRewrite(_)) | None => {}
    }
    let status = match at.value::<Code>("response_code", response_code)? {
        Code::MovedPermanently => 301,
        Code::Found => 302,
        Code::SeeOther => 303,
        Code::TemporaryRedirect => 307,
        Code::PermanentRedirect => 308,
    };
    Some(Redirect {
        scheme,
        host: (!host_redirect.is_empty()).then(|| host_redirect.into()),
        port: match port_redirect {
            0 => None,
            port => match u16::try_from(port) {
                Ok(port) => Some(port),
                Err(_) => {
                    at.error_at("port_redirect", "a port above 65535 is not supported yet");
                    None
                }
            },
        },
        path: redirect_path,
        rewrite,
        status,
        strip_query,
    })
}

fn direct_response(proto: proto::DirectResponseAction, limit: usize, at: &mut Lower) -> Option<Action> {
    let proto::DirectResponseAction { status, body, body_format } = proto;
    let format = at.optional("body_format", body_format, body_format_string);
    let body = match body {
        Some(body) => at.field("body", |at| address::data_source(body, at))?,
        None => Bytes::new(),
    };
    if body.len() > limit {
        at.error_at("body", format!("response body size is {} bytes; maximum is {limit}", body.len()));
    }
    Some(Action::Direct { status: at.narrow("status", status)?, body, format: format.map(Box::new) })
}

fn format(field: &str, text: &str, at: &mut Lower) -> Option<Format> {
    match Format::parse(text) {
        Ok(format) => Some(format),
        Err(error) => {
            at.error_at(field, error);
            None
        }
    }
}

/// Lowers the SubstitutionFormatString of a body.
pub(crate) fn body_format_string(
    proto: core::SubstitutionFormatString,
    at: &mut Lower,
) -> Option<BodyFormat> {
    let content_type = proto.content_type.clone();
    let format = substitution_format(proto, at)?;
    let default = match &format {
        LogFormat::Text { .. } => "text/plain",
        LogFormat::Json { .. } => "application/json",
    };
    let content_type = if content_type.is_empty() { default.into() } else { content_type.into() };
    Some(BodyFormat { format, content_type })
}

/// Lowers a FractionalPercent to (numerator, denominator).
pub(crate) fn fraction(proto: types::FractionalPercent, at: &mut Lower) -> (u32, u32) {
    let types::FractionalPercent { numerator, denominator } = proto;
    use types::fractional_percent::DenominatorType as Denominator;
    let denominator = match at.value::<Denominator>("denominator", denominator) {
        Some(Denominator::TenThousand) => 10_000,
        Some(Denominator::Million) => 1_000_000,
        Some(Denominator::Hundred) | None => 100,
    };
    (numerator, denominator)
}

/// Lowers a RuntimeFractionalPercent to (numerator, denominator).
pub(crate) fn runtime_fraction(proto: core::RuntimeFractionalPercent, at: &mut Lower) -> Option<(u32, u32)> {
    let core::RuntimeFractionalPercent { default_value, runtime_key } = proto;
    let configured = at.required("default_value", default_value, |value, at| Some(fraction(value, at)))?;
    Some(at.scope().runtime.fraction(&runtime_key).unwrap_or(configured))
}

/// All clusters that an action names, with the path of the field that does and Envoy's word
/// for what they are.
pub(super) fn cluster_references(action: &Action) -> Vec<(String, &'static str, &Name)> {
    let Action::Forward(forward) = action else { return Vec::new() };
    let mut names = Vec::new();
    match &forward.cluster {
        ClusterChoice::Name(name) => names.push(("route.cluster".to_owned(), "cluster", name)),
        ClusterChoice::Weighted { clusters, .. } => {
            names.extend(clusters.iter().enumerate().filter_map(|(index, cluster)| {
                let WeightedTarget::Name(name) = &cluster.cluster else { return None };
                Some((format!("route.weighted_clusters.clusters[{index}].name"), "weighted cluster", name))
            }));
        }
        ClusterChoice::Header(_) => {}
    }
    for (index, mirror) in forward.mirrors.iter().enumerate() {
        if let ClusterChoice::Name(name) = &mirror.cluster {
            names.push((format!("route.request_mirror_policies[{index}].cluster"), "shadow cluster", name));
        }
    }
    names
}

/// Lowers a route table from its wire form, as RDS brings it.
pub(crate) fn lower(
    source: &prost_types::Any,
    previous: Option<&RouteTable>,
    at: &mut Lower,
) -> Option<RouteTable> {
    RouteTable::lower(source, previous, false, at)
}

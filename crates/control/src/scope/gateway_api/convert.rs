//! Rules of routes as those of VirtualServices.
//!
//! Each match becomes a rule of its own, so that the rules of several routes can be put in the order
//! of precedence that the Gateway API wants. `enforce` says that references to other namespaces need
//! a grant, as for routes of gateways.

use std::collections::BTreeMap;
use std::time::Duration;

use leno_derive::Cx;

use super::backend;
use crate::model::Config;
use crate::model::duration::Span;
use crate::model::gateway_api::filter::{
    CorsFilter, Filter, FilterType, Header, HeaderChanges, MirrorFilter, PathModifierType, RedirectFilter,
    RewriteFilter,
};
use crate::model::gateway_api::route::{
    GrpcMatch, GrpcRoute, HttpBackend, HttpMatch, HttpRoute, MatchType, Method, NamedMatch, PathMatchType,
    Retry, StreamBackend, StreamRule, TcpRoute, Timeouts, TlsRoute,
};
use crate::model::string_match::StringMatch;
use crate::model::virtual_service as istio;

/// What is retried where a route asks for retries at all.
const RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled";

/// How often, if it does not say.
const ATTEMPTS: u32 = 2;

/// What stands for any origin: a scheme, a host and perhaps a port.
const ANY_ORIGIN: &str = r"^[a-zA-Z][a-zA-Z0-9+.-]*://[^/\s?#]+$";

/// Where connections go that nobody is to get.
const NOWHERE: &str = "internal.cluster.local";

/// The rules of an HTTPRoute; none if one of them makes no sense.
pub(super) fn http(cx: &Cx<'_>, route: &Config<HttpRoute>, enforce: bool) -> Vec<istio::HttpRoute> {
    let namespace = &route.meta.namespace;
    let mut rules = Vec::new();
    for (index, rule) in route.spec.rules.iter().enumerate() {
        let mut out = istio::HttpRoute {
            name: rule.name.clone().unwrap_or_else(|| format!("{namespace}.{}.{index}", route.meta.name)),
            retries: rule.retry.as_ref().map(retries),
            ..istio::HttpRoute::default()
        };
        if apply_filters(cx, &mut out, "HTTPRoute", namespace, &rule.filters, enforce).is_none() {
            return Vec::new();
        }
        if let Some(found) = &rule.timeouts {
            timeouts(&mut out, found);
        }
        if targets(cx, &mut out, "HTTPRoute", namespace, &rule.backend_refs, enforce).is_none() {
            return Vec::new();
        }
        if rule.matches.is_empty() {
            rules.push(out);
        } else {
            rules.extend(rule.matches.iter().map(|found| with_match(&out, http_match(found))));
        }
    }
    rules
}

/// The rules of a GRPCRoute; none if one of them makes no sense.
pub(super) fn grpc(cx: &Cx<'_>, route: &Config<GrpcRoute>, enforce: bool) -> Vec<istio::HttpRoute> {
    let namespace = &route.meta.namespace;
    let mut rules = Vec::new();
    for (index, rule) in route.spec.rules.iter().enumerate() {
        let mut out = istio::HttpRoute {
            name: rule.name.clone().unwrap_or_else(|| format!("{namespace}.{}.{index}", route.meta.name)),
            ..istio::HttpRoute::default()
        };
        if apply_filters(cx, &mut out, "GRPCRoute", namespace, &rule.filters, enforce).is_none()
            || targets(cx, &mut out, "GRPCRoute", namespace, &rule.backend_refs, enforce).is_none()
        {
            return Vec::new();
        }
        if rule.matches.is_empty() {
            rules.push(out);
        } else {
            rules.extend(rule.matches.iter().map(|found| with_match(&out, grpc_match(found))));
        }
    }
    rules
}

/// The rules of a TCPRoute.
pub(super) fn tcp(cx: &Cx<'_>, route: &Config<TcpRoute>, enforce: bool) -> Vec<istio::TcpRoute> {
    let rules = route.spec.rules.iter();
    let rule = |rule: &StreamRule| {
        let route = stream_targets(cx, "TCPRoute", &route.meta.namespace, rule, enforce)?;
        Some(istio::TcpRoute { route, ..istio::TcpRoute::default() })
    };
    rules.filter_map(rule).collect()
}

/// The rules of a TLSRoute for a host.
pub(super) fn tls(cx: &Cx<'_>, route: &Config<TlsRoute>, host: &str, enforce: bool) -> Vec<istio::TlsRoute> {
    let rules = route.spec.rules.iter();
    let rule = |rule: &StreamRule| {
        let route = stream_targets(cx, "TLSRoute", &route.meta.namespace, rule, enforce)?;
        let found = istio::TlsMatch { sni_hosts: vec![host.to_owned()], ..istio::TlsMatch::default() };
        Some(istio::TlsRoute { r#match: vec![found], route })
    };
    rules.filter_map(rule).collect()
}

fn with_match(rule: &istio::HttpRoute, found: istio::HttpMatch) -> istio::HttpRoute {
    istio::HttpRoute { r#match: vec![found], ..rule.clone() }
}

fn exact(text: &str) -> StringMatch {
    StringMatch { exact: Some(text.to_owned()), ..StringMatch::default() }
}

fn prefix(text: &str) -> StringMatch {
    StringMatch { prefix: Some(text.to_owned()), ..StringMatch::default() }
}

fn regex(text: impl Into<String>) -> StringMatch {
    StringMatch { regex: Some(text.into()), ..StringMatch::default() }
}

fn named(matches: &[NamedMatch]) -> BTreeMap<String, StringMatch> {
    let mut found = BTreeMap::new();
    for matcher in matches {
        let value = match matcher.r#type {
            None | Some(MatchType::Exact) => exact(&matcher.value),
            Some(MatchType::RegularExpression) => regex(&matcher.value),
        };
        // Of entries with one name the first counts.
        found.entry(matcher.name.clone()).or_insert(value);
    }
    found
}

fn http_match(found: &HttpMatch) -> istio::HttpMatch {
    let path = found.path.clone().unwrap_or_default();
    let value = path.value.as_deref().unwrap_or("/");
    let uri = match path.r#type {
        None | Some(PathMatchType::PathPrefix) if value == "/" => prefix("/"),
        None | Some(PathMatchType::PathPrefix) => prefix(value.strip_suffix('/').unwrap_or(value)),
        Some(PathMatchType::Exact) => exact(value),
        Some(PathMatchType::RegularExpression) => regex(value),
    };
    istio::HttpMatch {
        uri: Some(uri),
        method: found.method.map(|method| exact(method_name(method))),
        headers: named(&found.headers),
        query_params: named(&found.query_params),
        ..istio::HttpMatch::default()
    }
}

fn method_name(method: Method) -> &'static str {
    match method {
        Method::Get => "GET",
        Method::Head => "HEAD",
        Method::Post => "POST",
        Method::Put => "PUT",
        Method::Delete => "DELETE",
        Method::Connect => "CONNECT",
        Method::Options => "OPTIONS",
        Method::Trace => "TRACE",
        Method::Patch => "PATCH",
    }
}

/// gRPC's paths are `/service/method`.
fn grpc_match(found: &GrpcMatch) -> istio::HttpMatch {
    let uri = found.method.as_ref().and_then(|matcher| {
        let is_regex = matcher.r#type == Some(MatchType::RegularExpression);
        match (matcher.service.as_deref(), matcher.method.as_deref()) {
            (Some(service), Some(method)) if is_regex => Some(regex(format!("/{service}/{method}"))),
            (Some(service), Some(method)) => Some(exact(&format!("/{service}/{method}"))),
            (Some(service), None) if is_regex => Some(regex(format!("/{service}/.+"))),
            (Some(service), None) => Some(prefix(&format!("/{service}/"))),
            (None, Some(method)) => Some(regex(format!("/[^/]+/{method}"))),
            (None, None) => None,
        }
    });
    istio::HttpMatch { uri, headers: named(&found.headers), ..istio::HttpMatch::default() }
}

/// Applies a rule's filters; `None` if one of them cannot be had, and with it the route.
fn apply_filters(
    cx: &Cx<'_>,
    out: &mut istio::HttpRoute,
    kind: &str,
    namespace: &str,
    filters: &[Filter],
    enforce: bool,
) -> Option<()> {
    for filter in filters {
        match filter.r#type {
            FilterType::RequestHeaderModifier => {
                out.headers.get_or_insert_default().request =
                    filter.request_header_modifier.as_ref().map(headers);
            }
            FilterType::ResponseHeaderModifier => {
                out.headers.get_or_insert_default().response =
                    filter.response_header_modifier.as_ref().map(headers);
            }
            FilterType::RequestRedirect => out.redirect = filter.request_redirect.as_ref().map(redirect),
            FilterType::UrlRewrite => out.rewrite = filter.url_rewrite.as_ref().and_then(rewrite),
            FilterType::RequestMirror => {
                let mirror = filter.request_mirror.as_ref();
                out.mirrors.extend(mirror.and_then(|found| mirror_to(cx, kind, namespace, found, enforce)));
            }
            FilterType::Cors => out.cors_policy = filter.cors.as_ref().map(cors),
            FilterType::ExternalAuth | FilterType::ExtensionRef => return None,
        }
    }
    Some(())
}

fn headers(changes: &HeaderChanges) -> istio::HeaderOperations {
    let map = |headers: &[Header]| {
        let mut map = BTreeMap::new();
        for header in headers {
            map.entry(header.name.to_ascii_lowercase()).or_insert_with(|| header.value.clone());
        }
        map
    };
    istio::HeaderOperations { set: map(&changes.set), add: map(&changes.add), remove: changes.remove.clone() }
}

fn redirect(found: &RedirectFilter) -> istio::Redirect {
    let mut out = istio::Redirect {
        redirect_code: found.status_code.map_or(302, u32::from),
        authority: found.hostname.clone().unwrap_or_default(),
        scheme: found.scheme.clone().unwrap_or_default(),
        port: found.port.map(u32::from),
        ..istio::Redirect::default()
    };
    if out.port.is_none() {
        // The port of the request stays, unless the scheme says otherwise.
        out.derive_port = Some(match found.scheme {
            Some(_) => istio::DerivePort::FromProtocolDefault,
            None => istio::DerivePort::FromRequestPort,
        });
    }
    if let Some(path) = &found.path {
        match path.r#type {
            PathModifierType::ReplaceFullPath => out.uri = path.replace_full_path.clone().unwrap_or_default(),
            PathModifierType::ReplacePrefixMatch => {
                out.prefix_rewrite = path.replace_prefix_match.clone().unwrap_or_default();
            }
        }
    }
    out
}

fn rewrite(found: &RewriteFilter) -> Option<istio::Rewrite> {
    let mut out =
        istio::Rewrite { authority: found.hostname.clone().unwrap_or_default(), ..istio::Rewrite::default() };
    if let Some(path) = &found.path {
        match path.r#type {
            PathModifierType::ReplaceFullPath => {
                out.uri_regex_rewrite = Some(istio::RegexRewrite {
                    r#match: "/.*".to_owned(),
                    rewrite: path.replace_full_path.clone().unwrap_or_default(),
                });
            }
            PathModifierType::ReplacePrefixMatch => {
                let value = path.replace_prefix_match.as_deref().unwrap_or_default();
                let value = value.strip_suffix('/').unwrap_or(value);
                // `/` takes the prefix away.
                out.uri = if value.is_empty() { "/".to_owned() } else { value.to_owned() };
            }
        }
    }
    (out != istio::Rewrite::default()).then_some(out)
}

/// A mirror; `None` if it cannot be had, as mirrored requests are nobody's.
fn mirror_to(
    cx: &Cx<'_>,
    kind: &str,
    namespace: &str,
    found: &MirrorFilter,
    enforce: bool,
) -> Option<istio::Mirror> {
    let target = StreamBackend {
        group: found.backend_ref.group.clone(),
        kind: found.backend_ref.kind.clone(),
        name: found.backend_ref.name.clone(),
        namespace: found.backend_ref.namespace.clone(),
        port: found.backend_ref.port,
        weight: None,
    };
    let destination = backend::destination(cx, kind, namespace, &target, enforce)?;
    let fraction = found
        .fraction
        .map(|fraction| 100.0 * f64::from(fraction.numerator) / f64::from(fraction.denominator.max(1)));
    let percentage = fraction.or(found.percent.map(f64::from)).map(|value| istio::Percent { value });
    (!destination.host.is_empty()).then_some(istio::Mirror { destination, percentage })
}

fn cors(found: &CorsFilter) -> istio::CorsPolicy {
    let origin = |origin: &String| match origin.split_once('*') {
        None => exact(origin),
        Some(("", "")) => regex(ANY_ORIGIN),
        Some((start, "")) => prefix(start),
        Some(_) => regex(format!("^{}$", regex::escape(origin).replace(r"\*", ".*"))),
    };
    istio::CorsPolicy {
        allow_origins: found.allow_origins.iter().map(origin).collect(),
        allow_methods: found.allow_methods.clone(),
        allow_headers: found.allow_headers.clone(),
        expose_headers: found.expose_headers.clone(),
        max_age: found.max_age.filter(|age| *age > 0).map(|age| Span(Duration::from_secs(u64::from(age)))),
        allow_credentials: found.allow_credentials.filter(|allowed| *allowed),
        unmatched_preflights: Some(istio::UnmatchedPreflights::Ignore),
        ..istio::CorsPolicy::default()
    }
}

fn retries(found: &Retry) -> istio::Retries {
    let attempts = found.attempts.unwrap_or(ATTEMPTS);
    let codes = found.codes.iter().map(|code| format!(",{code}"));
    let retry_on = format!("{RETRY_ON}{}", codes.collect::<String>());
    istio::Retries {
        attempts: i32::try_from(attempts).unwrap_or(i32::MAX),
        retry_on: if attempts == 0 { String::new() } else { retry_on },
        backoff: found.backoff,
        ..istio::Retries::default()
    }
}

fn timeouts(out: &mut istio::HttpRoute, found: &Timeouts) {
    let given = |span: Option<Span>| span.filter(|span| !span.is_zero());
    out.timeout = given(found.request);
    if let Some(each) = given(found.backend_request) {
        match &mut out.retries {
            Some(retries) => retries.per_try_timeout = Some(each),
            None => out.timeout = Some(each),
        }
    }
}

/// Sets where requests go; `None` if the rule makes no sense. Without any backend that has weight
/// requests get 500; where an HTTPRoute names none, 404.
fn targets(
    cx: &Cx<'_>,
    out: &mut istio::HttpRoute,
    kind: &str,
    namespace: &str,
    backends: &[HttpBackend],
    enforce: bool,
) -> Option<()> {
    if out.redirect.is_some() {
        return Some(());
    }
    let weighted: Vec<&HttpBackend> = backends.iter().filter(|backend| backend.weight != Some(0)).collect();
    if weighted.is_empty() {
        let status = if backends.is_empty() && kind == "HTTPRoute" { 404 } else { 500 };
        out.direct_response = Some(istio::DirectResponse { status, body: None });
        return Some(());
    }
    for backend in &weighted {
        let target = StreamBackend {
            group: backend.group.clone(),
            kind: backend.kind.clone(),
            name: backend.name.clone(),
            namespace: backend.namespace.clone(),
            port: backend.port,
            weight: backend.weight,
        };
        let mut headers_of = istio::Headers::default();
        for filter in &backend.filters {
            match filter.r#type {
                FilterType::RequestHeaderModifier => {
                    headers_of.request = filter.request_header_modifier.as_ref().map(headers);
                }
                FilterType::ResponseHeaderModifier => {
                    headers_of.response = filter.response_header_modifier.as_ref().map(headers);
                }
                _ => return None,
            }
        }
        let given = headers_of.request.is_some() || headers_of.response.is_some();
        out.route.push(istio::HttpDestination {
            destination: backend::destination(cx, kind, namespace, &target, enforce)?,
            weight: if weighted.len() == 1 { 0 } else { weight(backend.weight) },
            headers: given.then_some(headers_of),
        });
    }
    Some(())
}

/// Where connections go; `None` if the rule makes no sense.
fn stream_targets(
    cx: &Cx<'_>,
    kind: &str,
    namespace: &str,
    rule: &StreamRule,
    enforce: bool,
) -> Option<Vec<istio::RouteDestination>> {
    let backends = rule.backend_refs.iter();
    let weighted: Vec<&StreamBackend> = backends.filter(|backend| backend.weight != Some(0)).collect();
    if weighted.is_empty() {
        return Some(vec![istio::RouteDestination {
            destination: istio::Destination {
                host: NOWHERE.to_owned(),
                subset: "zero-weight".to_owned(),
                port: Some(istio::PortSelector { number: 65535 }),
            },
            weight: 0,
        }]);
    }
    let alone = weighted.len() == 1;
    let target = |backend: &&StreamBackend| {
        Some(istio::RouteDestination {
            destination: backend::destination(cx, kind, namespace, backend, enforce)?,
            weight: if alone { 0 } else { weight(backend.weight) },
        })
    };
    weighted.iter().map(target).collect()
}

fn weight(given: Option<u32>) -> i32 {
    i32::try_from(given.unwrap_or(1)).unwrap_or(i32::MAX)
}

//! What objects of the Gateway API must look like: the rules of its CRDs, for objects that no API
//! server has seen. Faults for which the API has conditions in the status (listeners in conflict,
//! certificates or ports that are missing) are left to these, so that the rest of the object works.

use std::collections::HashSet;

use super::filter::{Filter, FilterType, PathModifier, PathModifierType};
use super::gateway::{Gateway, GatewayClass, Listener, ListenerSet, TlsMode};
use super::policy::{BackendTlsPolicy, BackendTrafficPolicy, ReferenceGrant, SubjectAltNameType};
use super::route::{
    GrpcMatch, GrpcRoute, HttpBackend, HttpMatch, HttpRoute, MatchType, NamedMatch, PathMatchType,
    StreamBackend, StreamRule, TcpRoute, TlsRoute, UdpRoute,
};
use super::{BackendReference, ParentReference};
use crate::model::check::{Check, is_header_name, is_host};
use crate::model::diagnostic::Finding;

/// The most that a weight may be.
const MOST_WEIGHT: u32 = 1_000_000;

impl GatewayClass {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        if !self.controller_name.contains('/') {
            check.invalid_at("controllerName", format!("{:?} must be DOMAIN/PATH", self.controller_name));
        }
        check.into_findings()
    }
}

impl Gateway {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        if self.gateway_class_name.is_empty() {
            check.invalid_at("gatewayClassName", "must not be empty");
        }
        if self.listeners.is_empty() && self.allowed_listeners.is_none() {
            check.invalid_at("listeners", "at least one listener is needed");
        }
        listeners(&mut check, &self.listeners);
        check.into_findings()
    }
}

impl ListenerSet {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        if self.parent_ref.name.is_empty() {
            check.at("parentRef", |check| check.invalid_at("name", "must not be empty"));
        }
        if self.listeners.is_empty() {
            check.invalid_at("listeners", "at least one listener is needed");
        }
        listeners(&mut check, &self.listeners);
        check.into_findings()
    }
}

fn listeners(check: &mut Check, listeners: &[Listener]) {
    let mut names = HashSet::new();
    check.each("listeners", listeners, |check, listener| {
        if listener.name.is_empty() {
            check.invalid_at("name", "must not be empty");
        } else if !names.insert(listener.name.clone()) {
            check.invalid_at("name", format!("there is another listener {:?}", listener.name));
        }
        check.at("port", |check| check.port(u32::from(listener.port)));
        if let Some(hostname) = &listener.hostname {
            check.at("hostname", |check| hostname_with_wildcard(check, hostname));
        }
        let (has_tls, has_names) = match listener.protocol.as_str() {
            "" => return check.invalid_at("protocol", "must not be empty"),
            "HTTP" => (false, true),
            "HTTPS" | "TLS" => (true, true),
            "TCP" | "UDP" => (false, false),
            _ => return,
        };
        if !has_names && listener.hostname.as_ref().is_some_and(|name| !name.is_empty()) {
            check.invalid_at("hostname", format!("{} knows no host names", listener.protocol));
        }
        let Some(tls) = &listener.tls else {
            if has_tls {
                check.invalid_at("tls", format!("is needed for {}", listener.protocol));
            }
            return;
        };
        check.at("tls", |check| {
            if !has_tls {
                check.invalid(format!("is not possible with {}", listener.protocol));
            }
            if listener.protocol == "HTTPS" && tls.mode == Some(TlsMode::Passthrough) {
                check.invalid_at("mode", "HTTPS cannot be passed through, use TLS");
            }
        });
    });
}

fn hostname_with_wildcard(check: &mut Check, hostname: &str) {
    if hostname == "*" || hostname.starts_with("*-") {
        check.invalid(format!("{hostname:?}: a wildcard must be the first part of a longer name"));
    } else if !hostname.is_empty() {
        check.host(hostname);
        if hostname.parse::<std::net::IpAddr>().is_ok() {
            check.invalid("an address is no host name");
        }
    }
}

fn precise_hostname(check: &mut Check, hostname: &str) {
    if hostname.contains('*') || !is_host(hostname) {
        check.invalid(format!("{hostname:?} is no DNS name"));
    }
}

fn parents(check: &mut Check, parents: &[ParentReference]) {
    let mut seen = HashSet::new();
    check.each("parentRefs", parents, |check, parent| {
        if parent.name.is_empty() {
            check.invalid_at("name", "must not be empty");
        }
        if !seen.insert(parent.clone()) {
            check.invalid("is there twice");
        }
    });
}

impl HttpRoute {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        parents(&mut check, &self.parent_refs);
        check.each("hostnames", &self.hostnames, |check, name| hostname_with_wildcard(check, name));
        check.each("rules", &self.rules, |check, rule| {
            check.each("matches", &rule.matches, http_match);
            filters(check, &rule.filters, &rule.matches, false);
            let redirects = rule.filters.iter().any(|filter| filter.r#type == FilterType::RequestRedirect);
            if redirects && !rule.backend_refs.is_empty() {
                check.invalid_at("backendRefs", "a rule that redirects has no backends");
            }
            backends(check, &rule.backend_refs, false);
            if let Some(timeouts) = &rule.timeouts
                && let (Some(request), Some(backend)) = (timeouts.request, timeouts.backend_request)
                && !request.is_zero()
                && backend > request
            {
                check.at("timeouts", |check| {
                    check.invalid_at("backendRequest", "is longer than request");
                });
            }
            if let Some(retry) = &rule.retry {
                check.at("retry", |check| {
                    check.each("codes", &retry.codes, |check, code| {
                        if !(400..=599).contains(code) {
                            check.invalid(format!("{code} is not between 400 and 599"));
                        }
                    });
                });
            }
        });
        check.into_findings()
    }
}

impl GrpcRoute {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        parents(&mut check, &self.parent_refs);
        check.each("hostnames", &self.hostnames, |check, name| hostname_with_wildcard(check, name));
        check.each("rules", &self.rules, |check, rule| {
            check.each("matches", &rule.matches, grpc_match);
            filters(check, &rule.filters, &[], true);
            backends(check, &rule.backend_refs, true);
        });
        check.into_findings()
    }
}

impl TlsRoute {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        if self.hostnames.is_empty() {
            check.invalid_at("hostnames", "at least one is needed");
        }
        check.each("hostnames", &self.hostnames, |check, name| hostname_with_wildcard(check, name));
        stream_route(&mut check, &self.parent_refs, &self.rules);
        check.into_findings()
    }
}

impl TcpRoute {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        stream_route(&mut check, &self.parent_refs, &self.rules);
        check.into_findings()
    }
}

impl UdpRoute {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        stream_route(&mut check, &self.parent_refs, &self.rules);
        check.into_findings()
    }
}

fn stream_route(check: &mut Check, parent_refs: &[ParentReference], rules: &[StreamRule]) {
    parents(check, parent_refs);
    if rules.len() != 1 {
        check.invalid_at("rules", "exactly one rule is needed");
    }
    check.each("rules", rules, |check, rule| {
        if rule.backend_refs.is_empty() {
            check.invalid_at("backendRefs", "at least one is needed");
        }
        check.each("backendRefs", &rule.backend_refs, |check, backend: &StreamBackend| {
            backend_fields(check, &backend.name, backend.port);
            weight(check, backend.weight);
        });
    });
}

fn http_match(check: &mut Check, matcher: &HttpMatch) {
    if let Some(path) = &matcher.path {
        let value = path.value.as_deref().unwrap_or("/");
        check.at("path", |check| match path.r#type {
            Some(PathMatchType::RegularExpression) => check.at("value", |check| check.regex(value)),
            None | Some(PathMatchType::Exact | PathMatchType::PathPrefix) => {
                let odd = ["//", "/./", "/../", "%2f", "%2F", "#"].iter().any(|odd| value.contains(odd));
                if !value.starts_with('/') || odd || value.ends_with("/..") || value.ends_with("/.") {
                    check.invalid_at("value", format!("{value:?} is no path in its normal form"));
                }
            }
        });
    }
    named_matches(check, "headers", &matcher.headers);
    named_matches(check, "queryParams", &matcher.query_params);
}

fn grpc_match(check: &mut Check, matcher: &GrpcMatch) {
    if let Some(method) = &matcher.method {
        check.at("method", |check| {
            if method.service.is_none() && method.method.is_none() {
                check.invalid("one of service and method is needed");
            }
            for (field, text) in [("service", &method.service), ("method", &method.method)] {
                let Some(text) = text else { continue };
                check.at(field, |check| match method.r#type {
                    Some(MatchType::RegularExpression) => check.regex(text),
                    None | Some(MatchType::Exact) if text.contains('/') || text.is_empty() => {
                        check.invalid(format!("{text:?} is no name"));
                    }
                    None | Some(MatchType::Exact) => {}
                });
            }
        });
    }
    named_matches(check, "headers", &matcher.headers);
}

fn named_matches(check: &mut Check, field: &str, matches: &[NamedMatch]) {
    let mut names = HashSet::new();
    check.each(field, matches, |check, matcher| {
        if !is_header_name(&matcher.name) {
            check.invalid_at("name", format!("{:?} is no name", matcher.name));
        } else if !names.insert(matcher.name.to_ascii_lowercase()) {
            check.warn_at("name", "no-effect", "only the first match with this name counts");
        }
        if matcher.r#type == Some(MatchType::RegularExpression) {
            check.at("value", |check| check.regex(&matcher.value));
        }
    });
}

fn backends(check: &mut Check, backends: &[HttpBackend], is_grpc: bool) {
    check.each("backendRefs", backends, |check, backend| {
        backend_fields(check, &backend.name, backend.port);
        weight(check, backend.weight);
        filters(check, &backend.filters, &[], is_grpc);
    });
}

fn weight(check: &mut Check, weight: Option<u32>) {
    if weight > Some(MOST_WEIGHT) {
        check.invalid_at("weight", format!("is more than {MOST_WEIGHT}"));
    }
}

fn backend_reference(check: &mut Check, backend: &BackendReference) {
    backend_fields(check, &backend.name, backend.port);
}

fn backend_fields(check: &mut Check, name: &str, port: Option<u16>) {
    if name.is_empty() {
        check.invalid_at("name", "must not be empty");
    }
    if port == Some(0) {
        check.invalid_at("port", "port 0 is not between 1 and 65535");
    }
}

/// Checks filters; `matches` are those of the rule in which they stand.
fn filters(check: &mut Check, filters: &[Filter], matches: &[HttpMatch], is_grpc: bool) {
    let mut seen = HashSet::new();
    check.each("filters", filters, |check, filter| {
        let parts = [
            (
                "requestHeaderModifier",
                FilterType::RequestHeaderModifier,
                filter.request_header_modifier.is_some(),
            ),
            (
                "responseHeaderModifier",
                FilterType::ResponseHeaderModifier,
                filter.response_header_modifier.is_some(),
            ),
            ("requestMirror", FilterType::RequestMirror, filter.request_mirror.is_some()),
            ("requestRedirect", FilterType::RequestRedirect, filter.request_redirect.is_some()),
            ("urlRewrite", FilterType::UrlRewrite, filter.url_rewrite.is_some()),
            ("cors", FilterType::Cors, filter.cors.is_some()),
            ("externalAuth", FilterType::ExternalAuth, filter.external_auth.is_some()),
            ("extensionRef", FilterType::ExtensionRef, filter.extension_ref.is_some()),
        ];
        for (field, part, given) in parts {
            if given && part != filter.r#type {
                check.invalid_at(field, "is not what type says");
            } else if !given && part == filter.r#type {
                check.invalid_at(field, "is needed for this type");
            }
        }
        if is_grpc
            && matches!(
                filter.r#type,
                FilterType::RequestRedirect
                    | FilterType::UrlRewrite
                    | FilterType::Cors
                    | FilterType::ExternalAuth
            )
        {
            check.invalid_at("type", "is not possible in a GRPCRoute");
        }
        let repeatable = matches!(filter.r#type, FilterType::RequestMirror | FilterType::ExtensionRef);
        if !seen.insert(filter.r#type) && !repeatable {
            check.invalid_at("type", "there is another filter of this type");
        }
        filter_parts(check, filter, matches);
    });
    if seen.contains(&FilterType::RequestRedirect) && seen.contains(&FilterType::UrlRewrite) {
        check.invalid_at("filters", "only one of RequestRedirect and URLRewrite may be given");
    }
}

fn filter_parts(check: &mut Check, filter: &Filter, matches: &[HttpMatch]) {
    if let Some(mirror) = &filter.request_mirror {
        check.at("requestMirror", |check| {
            check.at("backendRef", |check| backend_reference(check, &mirror.backend_ref));
            check.at_most_one(&[
                ("percent", mirror.percent.is_some()),
                ("fraction", mirror.fraction.is_some()),
            ]);
            if mirror.percent > Some(100) {
                check.invalid_at("percent", "is more than 100");
            }
            if mirror.fraction.is_some_and(|it| it.denominator == 0 || it.numerator > it.denominator) {
                check.invalid_at("fraction", "is more than 1");
            }
        });
    }
    if let Some(redirect) = &filter.request_redirect {
        check.at("requestRedirect", |check| {
            if redirect.scheme.as_deref().is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
                check.invalid_at("scheme", "is neither http nor https");
            }
            if redirect.status_code.is_some_and(|code| !matches!(code, 301 | 302 | 303 | 307 | 308)) {
                check.invalid_at("statusCode", "is none of 301, 302, 303, 307, 308");
            }
            if let Some(hostname) = &redirect.hostname {
                check.at("hostname", |check| precise_hostname(check, hostname));
            }
            path_modifier(check, redirect.path.as_ref(), matches);
        });
    }
    if let Some(rewrite) = &filter.url_rewrite {
        check.at("urlRewrite", |check| {
            if let Some(hostname) = &rewrite.hostname {
                check.at("hostname", |check| precise_hostname(check, hostname));
            }
            path_modifier(check, rewrite.path.as_ref(), matches);
        });
    }
    if let Some(auth) = &filter.external_auth {
        check.at("externalAuth", |check| {
            check.at("backendRef", |check| backend_reference(check, &auth.backend_ref));
        });
    }
}

fn path_modifier(check: &mut Check, path: Option<&PathModifier>, matches: &[HttpMatch]) {
    let Some(path) = path else { return };
    check.at("path", |check| {
        let parts = [
            ("replaceFullPath", PathModifierType::ReplaceFullPath, path.replace_full_path.is_some()),
            ("replacePrefixMatch", PathModifierType::ReplacePrefixMatch, path.replace_prefix_match.is_some()),
        ];
        for (field, part, given) in parts {
            if given != (part == path.r#type) {
                check.invalid_at(
                    field,
                    if given { "is not what type says" } else { "is needed for this type" },
                );
            }
        }
        let by_prefix = |matcher: &HttpMatch| {
            matcher
                .path
                .as_ref()
                .is_none_or(|path| matches!(path.r#type, None | Some(PathMatchType::PathPrefix)))
        };
        if path.r#type == PathModifierType::ReplacePrefixMatch && !matches.iter().all(by_prefix) {
            check.invalid("replacing a prefix needs matches of the path by prefix");
        }
    });
}

impl ReferenceGrant {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        if self.from.is_empty() {
            check.invalid_at("from", "must not be empty");
        }
        if self.to.is_empty() {
            check.invalid_at("to", "must not be empty");
        }
        check.each("from", &self.from, |check, from| {
            if from.kind.is_empty() || from.namespace.is_empty() {
                check.invalid("kind and namespace are needed");
            }
        });
        check.each("to", &self.to, |check, to| {
            if to.kind.is_empty() {
                check.invalid_at("kind", "must not be empty");
            }
        });
        check.into_findings()
    }
}

impl BackendTlsPolicy {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        if self.target_refs.is_empty() {
            check.invalid_at("targetRefs", "must not be empty");
        }
        check.at("validation", |check| {
            check.exactly_one(&[
                ("caCertificateRefs", !self.validation.ca_certificate_refs.is_empty()),
                ("wellKnownCACertificates", self.validation.well_known_ca_certificates.is_some()),
            ]);
            check.at("hostname", |check| precise_hostname(check, &self.validation.hostname));
            check.each("subjectAltNames", &self.validation.subject_alt_names, |check, name| {
                let (wanted, other) = match name.r#type {
                    SubjectAltNameType::Hostname => (("hostname", &name.hostname), ("uri", &name.uri)),
                    SubjectAltNameType::Uri => (("uri", &name.uri), ("hostname", &name.hostname)),
                };
                if wanted.1.is_empty() {
                    check.invalid_at(wanted.0, "is needed for this type");
                }
                if !other.1.is_empty() {
                    check.invalid_at(other.0, "is not what type says");
                }
            });
        });
        check.into_findings()
    }
}

impl BackendTrafficPolicy {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        if self.target_refs.is_empty() {
            check.invalid_at("targetRefs", "must not be empty");
        }
        let percent = self.retry_constraint.as_ref().and_then(|retry| retry.budget.as_ref()?.percent);
        if percent > Some(100) {
            check.at("retryConstraint", |check| {
                check.at("budget", |check| check.invalid_at("percent", "is more than 100"));
            });
        }
        check.into_findings()
    }
}

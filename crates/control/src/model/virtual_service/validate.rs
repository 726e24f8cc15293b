//! What a VirtualService must look like.

use std::collections::{HashMap, HashSet};

use super::{
    Destination, Fault, GRPC_STATUSES, HeaderOperations, Headers, HttpMatch, HttpRoute, L4Match, MESH,
    Percent, Redirect, Retries, RouteDestination, TlsMatch, VirtualService,
};
use crate::model::check::{Check, JWT_CLAIMS, is_cidr_or_address, is_dns_label, is_header_name};
use crate::model::diagnostic::Finding;

/// Istio's limit for the body of a direct response, bytes.
const MOST_BODY: usize = 1 << 20;
/// From which size on such a body is worth a warning, bytes.
const LARGE_BODY: usize = 100 << 10;

/// How long a host may be.
const LONGEST_HOST: usize = 253;

/// Methods that `corsPolicy.allowMethods` may name.
const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*"];

/// Codes that a redirect may answer with; 0 stands for the default.
const REDIRECT_CODES: [u32; 6] = [0, 301, 302, 303, 307, 308];

impl VirtualService {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        if self.hosts.is_empty() {
            self.validate_delegate(&mut check);
        }
        check.each("hosts", &self.hosts, |check, host| check.host(host));
        let to_mesh = self.gateways().any(|gateway| gateway == MESH);
        if to_mesh && let Some(index) = self.hosts.iter().position(|host| host == "*") {
            check.at("hosts", |check| {
                check.item(index, |check| check.invalid("a full wildcard * needs a gateway, not the mesh"));
            });
        }
        self.validate_overlaps(&mut check);
        check.each("gateways", &self.gateways, gateway_name);
        if self.http.is_empty() && self.tcp.is_empty() && self.tls.is_empty() {
            check.invalid("http, tcp or tls must have a rule");
        }
        check.export_to(&self.export_to);
        let only_mesh = self.gateways().all(|gateway| gateway == MESH);
        check.each("http", &self.http, |check, rule| http_route(check, rule, only_mesh));
        let hosts = Hosts::new(&self.hosts);
        check.each("tls", &self.tls, |check, rule| {
            if rule.r#match.is_empty() {
                check.invalid_at("match", "a match is needed");
            }
            check.each("match", &rule.r#match, |check, matcher| tls_match(check, matcher, &hosts));
            l4_destinations(check, &rule.route);
        });
        check.each("tcp", &self.tcp, |check, rule| {
            check.each("match", &rule.r#match, l4_match);
            l4_destinations(check, &rule.route);
        });
        check.into_findings()
    }

    /// One without hosts can only be the delegate of another.
    fn validate_delegate(&self, check: &mut Check) {
        let impossible = [
            ("gateways", !self.gateways.is_empty()),
            ("tls", !self.tls.is_empty()),
            ("tcp", !self.tcp.is_empty()),
        ];
        for (field, _) in impossible.into_iter().filter(|(_, given)| *given) {
            check.invalid_at(field, "without hosts it is a delegate, which has http only");
        }
        check.each("http", &self.http, |check, rule| {
            if rule.delegate.is_some() {
                check.invalid_at("delegate", "a delegate cannot delegate");
            }
        });
    }

    /// No host is another's wildcard, or is there twice.
    fn validate_overlaps(&self, check: &mut Check) {
        let wildcards: HashSet<&str> = self.hosts.iter().filter_map(|host| host.strip_prefix('*')).collect();
        let mut before = Hosts::default();
        // Under each wildcard the first host of before that is within.
        let mut within: HashMap<&str, usize> = HashMap::new();
        check.at("hosts", |check| {
            for (index, host) in self.hosts.iter().enumerate() {
                let below = host.strip_prefix('*').and_then(|suffix| within.get(suffix).copied());
                let other = [before.covering(host), below].into_iter().flatten().min();
                if let Some(other) = other.and_then(|other| self.hosts.get(other)) {
                    check.item(index, |check| check.invalid(format!("{host:?} overlaps with {other:?}")));
                }
                before.add(host, index);
                for suffix in suffixes(host).filter(|suffix| wildcards.contains(suffix)) {
                    within.entry(suffix).or_insert(index);
                }
            }
        });
    }
}

fn tls_match(check: &mut Check, matcher: &TlsMatch, hosts: &Hosts<'_>) {
    if matcher.sni_hosts.is_empty() {
        check.invalid_at("sniHosts", "at least one host is needed");
    }
    check.each("sniHosts", &matcher.sni_hosts, |check, host| {
        if host.parse::<std::net::IpAddr>().is_ok() {
            return check.warn("no-effect", "clients do not send addresses as SNI");
        }
        // Between gateways, SNI names a cluster instead.
        if !host.starts_with("outbound_") {
            check.host(host);
        }
        if hosts.covering(host).is_none() {
            check.invalid(format!("{host:?} is within none of the hosts of the VirtualService"));
        }
    });
    subnets(check, &matcher.destination_subnets);
    if matcher.port != 0 {
        check.at("port", |check| check.port(matcher.port));
    }
    check.at("sourceLabels", |check| check.labels(&matcher.source_labels));
    check.each("gateways", &matcher.gateways, gateway_name);
}

/// Hosts that others may be within. There can be very many, as those who are looked for among them can.
#[derive(Default)]
struct Hosts<'h> {
    /// Where each is first.
    exact: HashMap<&'h str, usize>,
    /// The same of wildcards, without their star.
    wild: HashMap<&'h str, usize>,
}

impl<'h> Hosts<'h> {
    fn new(hosts: &'h [String]) -> Hosts<'h> {
        let mut all = Hosts::default();
        hosts.iter().enumerate().for_each(|(index, host)| all.add(host, index));
        all
    }

    fn add(&mut self, host: &'h str, index: usize) {
        self.exact.entry(host).or_insert(index);
        if let Some(suffix) = host.strip_prefix('*') {
            self.wild.entry(suffix).or_insert(index);
        }
    }

    /// The first that a host, or a wildcard, is within.
    fn covering(&self, host: &str) -> Option<usize> {
        let wild = suffixes(host).filter_map(|suffix| self.wild.get(suffix).copied());
        wild.chain(self.exact.get(host).copied()).min()
    }
}

/// What may stand behind the star of a wildcard that a host is within. What is too long is no host.
fn suffixes(host: &str) -> impl Iterator<Item = &str> {
    let host = host.strip_prefix('*').unwrap_or(host);
    let host = if host.len() > LONGEST_HOST { "" } else { host };
    let parts = host.match_indices(['.', '-']).map(|(at, _)| at).filter(|at| *at > 0);
    let starts = std::iter::once(0).chain(parts).filter_map(|at| host.get(at..));
    starts.chain((!host.is_empty()).then_some(""))
}

/// `NAMESPACE/NAME`, or the name alone, or `mesh`.
fn gateway_name(check: &mut Check, name: &String) {
    match name.split_once('/') {
        Some((namespace, name)) if !is_dns_label(namespace) || !is_dns_label(name) => {
            check.invalid(format!("{namespace}/{name} is no gateway: use NAMESPACE/NAME"));
        }
        Some(_) => {}
        None if name.is_empty() || !name.split('.').all(is_dns_label) => {
            check.invalid(format!("{name:?} is no gateway: use NAME, NAMESPACE/NAME or mesh"));
        }
        None if name.contains('.') => {
            check.warn("deprecated", format!("{name:?} is an old form, use NAMESPACE/NAME"));
        }
        None => {}
    }
}

fn subnets(check: &mut Check, subnets: &[String]) {
    check.each("destinationSubnets", subnets, |check, subnet| {
        if !is_cidr_or_address(subnet) {
            check.invalid(format!("{subnet:?} is neither an address nor a CIDR range"));
        }
    });
}

fn http_route(check: &mut Check, rule: &HttpRoute, only_mesh: bool) {
    let actions = [rule.redirect.is_some(), rule.direct_response.is_some(), rule.delegate.is_some()];
    let actions = actions.into_iter().filter(|given| *given).count() + usize::from(!rule.route.is_empty());
    if actions == 0 {
        check.invalid("one of route, redirect and directResponse is needed");
    } else if actions > 1 {
        check.invalid("only one of route, redirect, directResponse and delegate may be given");
    }
    check.each("match", &rule.r#match, |check, matcher| http_match(check, matcher, only_mesh));
    check.each("route", &rule.route, |check, target| {
        check.at("destination", |check| destination(check, &target.destination));
        weight(check, target.weight);
        if let Some(headers) = &target.headers {
            check.at("headers", |check| header_changes(check, headers));
        }
    });
    total_weight(check, rule.route.iter().map(|target| target.weight));
    if let Some(redirect) = &rule.redirect {
        check.at("redirect", |check| redirect_action(check, redirect, &rule.r#match));
    }
    if let Some(response) = &rule.direct_response {
        check.at("directResponse", |check| {
            if !(200..600).contains(&response.status) {
                check.at("status", |check| {
                    check.invalid(format!("{} is no status from 200 to 599", response.status));
                });
            }
            let Some(body) = &response.body else { return };
            check.at("body", |check| {
                if body.string.is_some() && body.bytes.is_some() {
                    check.invalid("only one of string and bytes may be given");
                }
                if let Some(bytes) = &body.bytes
                    && leno_base::base64::decode_json(bytes.as_bytes()).is_none()
                {
                    check.at("bytes", |check| check.invalid("not base64"));
                }
                let length = body.string.as_deref().or(body.bytes.as_deref()).map_or(0, str::len);
                if length > MOST_BODY {
                    check.invalid(format!("{length} bytes are more than {MOST_BODY}"));
                } else if length > LARGE_BODY {
                    check.warn("large-body", format!("{length} bytes are sent to every proxy"));
                }
            });
        });
    }
    if let Some(rewrite) = &rule.rewrite {
        check.at("rewrite", |check| {
            if let Some(regex) = &rewrite.uri_regex_rewrite {
                if !rewrite.uri.is_empty() {
                    check.invalid("only one of uri and uriRegexRewrite may be given");
                }
                check.at("uriRegexRewrite", |check| {
                    if regex.r#match.is_empty() {
                        check.at("match", |check| check.invalid("must not be empty"));
                    }
                    if regex.rewrite.is_empty() {
                        check.invalid_at("rewrite", "must not be empty");
                    }
                    check.at("match", |check| check.regex(&regex.r#match));
                });
            } else if rewrite.uri.is_empty() && rewrite.authority.is_empty() {
                check.invalid("one of uri, uriRegexRewrite and authority is needed");
            }
        });
    }
    if rule.redirect.is_some() || rule.direct_response.is_some() {
        for (field, given) in [("rewrite", rule.rewrite.is_some()), ("fault", rule.fault.is_some())] {
            if given {
                check.invalid_at(field, "is for requests that are forwarded");
            }
        }
    }
    check.duration("timeout", rule.timeout.filter(|timeout| !timeout.is_zero()));
    authority_set_once(check, rule);
    if let Some(retries) = &rule.retries {
        check.at("retries", |check| retry_policy(check, retries));
    }
    if let Some(mirror) = &rule.mirror {
        check.at("mirror", |check| destination(check, mirror));
    }
    if rule.mirror.is_some() && !rule.mirrors.is_empty() {
        check.at("mirrors", |check| check.invalid("only one of mirror and mirrors may be given"));
    }
    check.each("mirrors", &rule.mirrors, |check, mirror| {
        check.at("destination", |check| destination(check, &mirror.destination));
        percent(check, mirror.percentage);
    });
    if rule.mirror_percent.is_some() {
        check.warn_at("mirrorPercent", "deprecated", "is deprecated, use mirrorPercentage");
    }
    if let Some(percent) = rule.mirror_percent
        && percent > 100
    {
        check.at("mirrorPercent", |check| check.invalid(format!("{percent} is more than 100")));
    }
    check.at("mirrorPercentage", |check| percent_value(check, rule.mirror_percentage));
    if let Some(headers) = &rule.headers {
        check.at("headers", |check| header_changes(check, headers));
    }
    if let Some(injected) = &rule.fault {
        check.at("fault", |check| fault(check, injected));
    }
    if let Some(policy) = &rule.cors_policy {
        check.at("corsPolicy", |check| {
            check.each("allowOrigins", &policy.allow_origins, |check, origin| {
                check.string_match(origin);
                let texts = [&origin.exact, &origin.prefix, &origin.regex];
                if origin.is_present_match() || texts.into_iter().flatten().all(String::is_empty) {
                    check.invalid("an origin needs one of exact, prefix and regex");
                }
            });
            check.each("allowMethods", &policy.allow_methods, |check, method| {
                if !METHODS.contains(&method.as_str()) {
                    check.invalid(format!("{method:?} is none of {}", METHODS.join(", ")));
                }
            });
            for (field, names) in
                [("allowHeaders", &policy.allow_headers), ("exposeHeaders", &policy.expose_headers)]
            {
                check.each(field, names, |check, name| {
                    if name != "*" && !is_header_name(name) {
                        check.invalid(format!("{name:?} is no header name"));
                    }
                });
            }
            check.duration("maxAge", policy.max_age.filter(|age| !age.is_zero()));
            if policy.max_age.is_some_and(|age| age.0.subsec_nanos() > 0) {
                check.invalid_at("maxAge", "must be a number of seconds");
            }
        });
    }
}

/// The host of forwarded requests is set in one place only.
fn authority_set_once(check: &mut Check, rule: &HttpRoute) {
    let is_authority = |name: &&String| matches!(name.to_ascii_lowercase().as_str(), "host" | ":authority");
    let request = rule.headers.as_ref().and_then(|headers| headers.request.as_ref());
    let in_headers = request
        .map_or(0, |request| request.set.keys().chain(request.add.keys()).filter(is_authority).count());
    let in_rewrite = usize::from(rule.rewrite.as_ref().is_some_and(|rewrite| !rewrite.authority.is_empty()));
    if in_headers + in_rewrite > 1 {
        check.at("headers", |check| check.invalid_at("request", "the authority is set more than once"));
    }
}

fn fault(check: &mut Check, injected: &Fault) {
    if injected.delay.is_none() && injected.abort.is_none() {
        check.invalid("one of delay and abort is needed");
    }
    if let Some(delay) = &injected.delay {
        check.at("delay", |check| {
            if delay.exponential_delay.is_some() {
                check.invalid_at("exponentialDelay", "exists in name only, use fixedDelay");
            } else if delay.fixed_delay.is_none() {
                check.invalid_at("fixedDelay", "is needed");
            }
            check.duration("fixedDelay", delay.fixed_delay);
            if delay.percent != 0 {
                check.warn_at("percent", "deprecated", "is deprecated, use percentage");
            }
            if !(0..=100).contains(&delay.percent) {
                check.at("percent", |check| {
                    check.invalid(format!("{} is not between 0 and 100", delay.percent));
                });
            }
            percent(check, delay.percentage);
            if delay.percentage.is_none() && delay.percent == 0 {
                check.warn("no-effect", "without percentage no request is delayed");
            }
        });
    }
    if let Some(abort) = &injected.abort {
        check.at("abort", |check| {
            if abort.http2_error.is_some() {
                return check.invalid_at("http2Error", "exists in name only, use httpStatus");
            }
            match (abort.http_status, &abort.grpc_status) {
                (Some(status), None) if (200..600).contains(&status) => {}
                (Some(status), None) => {
                    check.at("httpStatus", |check| {
                        check.invalid(format!("{status} is no status from 200 to 599"));
                    });
                }
                (None, Some(name)) if GRPC_STATUSES.contains(&name.as_str()) => {}
                (None, Some(name)) => {
                    check.at("grpcStatus", |check| check.invalid(format!("{name:?} is no gRPC status")));
                }
                (None, None) => {
                    check.warn("no-effect", "without httpStatus or grpcStatus nothing is aborted");
                }
                (Some(_), Some(_)) => check.invalid("only one of httpStatus and grpcStatus may be given"),
            }
            percent(check, abort.percentage);
            if abort.percentage.is_none() {
                check.warn("no-effect", "without percentage no request is aborted");
            }
        });
    }
}

fn http_match(check: &mut Check, matcher: &HttpMatch, only_mesh: bool) {
    let parts = [
        ("uri", &matcher.uri),
        ("scheme", &matcher.scheme),
        ("method", &matcher.method),
        ("authority", &matcher.authority),
    ];
    for (field, part) in parts {
        if let Some(part) = part {
            check.at(field, |check| check.string_match(part));
            if field != "uri" {
                check.at(field, |check| check.not_empty_match(part));
            }
        }
    }
    for (field, matches) in [("headers", &matcher.headers), ("withoutHeaders", &matcher.without_headers)] {
        check.header_matches(field, matches);
        if only_mesh {
            check.at(field, |check| {
                for name in matches.keys().filter(|name| name.starts_with(JWT_CLAIMS)) {
                    check.key(name, |check| check.invalid("claims of tokens are known at gateways only"));
                }
            });
        }
    }
    check.at("queryParams", |check| {
        for (name, part) in &matcher.query_params {
            check.key(name, |check| {
                check.string_match(part);
                check.not_empty_match(part);
            });
        }
    });
    if !matcher.source_namespace.is_empty() && !is_dns_label(&matcher.source_namespace) {
        check.invalid_at("sourceNamespace", format!("{:?} is no namespace", matcher.source_namespace));
    }
    if matcher.port != 0 {
        check.at("port", |check| check.port(matcher.port));
    }
    check.at("sourceLabels", |check| check.labels(&matcher.source_labels));
    check.each("gateways", &matcher.gateways, gateway_name);
}

fn l4_match(check: &mut Check, matcher: &L4Match) {
    subnets(check, &matcher.destination_subnets);
    if matcher.port != 0 {
        check.at("port", |check| check.port(matcher.port));
    }
    check.at("sourceLabels", |check| check.labels(&matcher.source_labels));
    check.each("gateways", &matcher.gateways, gateway_name);
}

fn l4_destinations(check: &mut Check, targets: &[RouteDestination]) {
    if targets.is_empty() {
        check.at("route", |check| check.invalid("a route is needed"));
    }
    check.each("route", targets, |check, target| {
        check.at("destination", |check| destination(check, &target.destination));
        weight(check, target.weight);
    });
    total_weight(check, targets.iter().map(|target| target.weight));
}

fn destination(check: &mut Check, destination: &Destination) {
    destination.check(check);
}

impl Destination {
    /// Checks a destination, wherever it stands.
    pub(crate) fn check(&self, check: &mut Check) {
        check.at("host", |check| {
            check.host(&self.host);
            if self.host == "*" {
                check.invalid("a destination cannot be *");
            }
        });
        if !self.subset.is_empty() && !self.subset.split('.').all(is_dns_label) {
            check.invalid_at("subset", format!("{:?} is no subset name", self.subset));
        }
        if let Some(port) = &self.port {
            check.at("port", |check| check.at("number", |check| check.port(port.number)));
        }
    }
}

fn weight(check: &mut Check, weight: i32) {
    if weight < 0 {
        check.at("weight", |check| check.invalid(format!("{weight} is negative")));
    }
}

fn total_weight(check: &mut Check, weights: impl ExactSizeIterator<Item = i32>) {
    let several = weights.len() > 1;
    let total: i64 = weights.map(|weight| i64::from(weight.max(0))).sum();
    if several && total == 0 {
        check.at("route", |check| check.invalid("the weights of several destinations must not all be 0"));
    } else if total > i64::from(u32::MAX) {
        check.at("route", |check| check.invalid("the weights add up to more than 4294967295"));
    }
}

fn redirect_action(check: &mut Check, redirect: &Redirect, matches: &[HttpMatch]) {
    if *redirect == (Redirect { redirect_code: redirect.redirect_code, ..Redirect::default() }) {
        check.invalid("one of uri, prefixRewrite, authority, scheme and port is needed");
    }
    if !REDIRECT_CODES.contains(&redirect.redirect_code) {
        let message = format!("{} is none of 301, 302, 303, 307, 308", redirect.redirect_code);
        check.invalid_at("redirectCode", message);
    }
    if redirect.port.is_some() && redirect.derive_port.is_some() {
        check.invalid_at("derivePort", "only one of port and derivePort may be given");
    }
    if let Some(port) = redirect.port {
        check.at("port", |check| check.port(port));
    }
    if !redirect.uri.is_empty() && !redirect.prefix_rewrite.is_empty() {
        check.invalid_at("prefixRewrite", "only one of uri and prefixRewrite may be given");
    }
    let by_prefix = |matcher: &HttpMatch| matcher.uri.as_ref().is_none_or(|uri| uri.prefix.is_some());
    if !redirect.prefix_rewrite.is_empty() && !matches.iter().all(by_prefix) {
        check.invalid_at("prefixRewrite", "needs matches of the URI by prefix");
    }
    if !matches!(redirect.scheme.as_str(), "" | "http" | "https") {
        check.invalid_at("scheme", format!("{:?} is neither http nor https", redirect.scheme));
    }
}

fn retry_policy(check: &mut Check, retries: &Retries) {
    retries.check(check);
}

impl Retries {
    /// Checks a policy, wherever it stands.
    pub(crate) fn check(&self, check: &mut Check) {
        check.not_negative("attempts", self.attempts);
        if self.attempts == 0 && (self.per_try_timeout.is_some() || !self.retry_on.is_empty()) {
            check.warn_at(
                "attempts",
                "no-effect",
                "0 attempts disable retries; the other fields have no effect",
            );
        }
        check.duration("perTryTimeout", self.per_try_timeout.filter(|timeout| !timeout.is_zero()));
        check.duration("backoff", self.backoff);
        check.at("retryOn", |check| {
            let conditions = self.retry_on.split(',').map(str::trim);
            for condition in conditions.filter(|condition| !condition.is_empty()) {
                let good = condition.parse::<u16>().is_ok_and(|code| (100..600).contains(&code))
                    || super::RETRY_CONDITIONS.contains(&condition);
                if !good {
                    check.invalid(format!("{condition:?} is no retry condition"));
                }
            }
        });
    }
}

fn percent(check: &mut Check, value: Option<Percent>) {
    check.at("percentage", |check| percent_value(check, value));
}

fn percent_value(check: &mut Check, value: Option<Percent>) {
    if let Some(Percent { value }) = value
        && !(0.0..=100.0).contains(&value)
    {
        check.at("value", |check| check.invalid(format!("{value} is not between 0 and 100")));
    }
}

fn header_changes(check: &mut Check, headers: &Headers) {
    for (field, operations) in [("request", &headers.request), ("response", &headers.response)] {
        if let Some(operations) = operations {
            check.at(field, |check| header_operations(check, operations, field == "request"));
        }
    }
}

/// On the way up, the authority can be set too.
fn header_operations(check: &mut Check, operations: &HeaderOperations, is_request: bool) {
    let is_special = |name: &str| name.starts_with(':') || name.eq_ignore_ascii_case("host");
    for (field, map) in [("set", &operations.set), ("add", &operations.add)] {
        check.at(field, |check| {
            for (name, value) in map {
                check.key(name, |check| {
                    let is_authority = matches!(name.to_ascii_lowercase().as_str(), "host" | ":authority");
                    if is_special(name) && !(is_request && is_authority) {
                        check.invalid(format!("{name:?} is no header that can be set"));
                    } else if !is_header_name(name.trim_start_matches(':')) {
                        check.invalid(format!("{name:?} is no header name"));
                    }
                    if value.bytes().any(|byte| byte < b' ' && byte != b'\t' || byte == 0x7f) {
                        check.invalid("the value contains control characters");
                    }
                });
            }
        });
    }
    check.each("remove", &operations.remove, |check, name| {
        if is_special(name) || !is_header_name(name) {
            check.invalid(format!("{name:?} is no header that can be removed"));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::Hosts;

    #[test]
    fn which_host_is_within_which() {
        let hosts = ["a.b", "*.c", "*.d.c", "*-x.e"].map(str::to_owned);
        let all = Hosts::new(&hosts);
        for (host, expected) in [
            ("a.b", Some(0)),
            ("x.a.b", None),
            ("*.a.b", None),
            ("c", None),
            ("x.c", Some(1)),
            ("*.c", Some(1)),
            ("*.x.c", Some(1)),
            ("x.d.c", Some(1)),
            ("xc", None),
            ("y-x.e", Some(3)),
            ("y.x.e", None),
            ("*", None),
        ] {
            assert_eq!(all.covering(host), expected, "{host}");
        }
        let any = ["*".to_owned()];
        assert_eq!(Hosts::new(&any).covering("a"), Some(0));
        assert_eq!(Hosts::new(&any).covering(&"a.".repeat(1 << 20)), Some(0));
    }
}

//! What a VirtualService must look like.

use super::{
    Destination, Fault, GRPC_STATUSES, HeaderOperations, Headers, HttpMatch, HttpRoute, L4Match, Percent,
    Redirect, Retries, RouteDestination, TlsMatch, VirtualService,
};
use crate::model::check::{Check, is_cidr_or_address, is_header_name};
use crate::model::diagnostic::Finding;

/// Istio's limit for the body of a direct response, bytes.
const MOST_BODY: usize = 1 << 20;

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
        check.each("gateways", &self.gateways, gateway_name);
        if self.http.is_empty() && self.tcp.is_empty() && self.tls.is_empty() {
            check.invalid("http, tcp or tls must have a rule");
        }
        check.export_to(&self.export_to);
        check.each("http", &self.http, http_route);
        check.each("tcp", &self.tcp, |check, rule| {
            check.each("match", &rule.r#match, l4_match);
            l4_destinations(check, &rule.route);
        });
        check.each("tls", &self.tls, |check, rule| {
            if rule.r#match.is_empty() {
                check.at("match", |check| check.invalid("a match with sniHosts is needed"));
            }
            check.each("match", &rule.r#match, |check, found| tls_match(check, found, &self.hosts));
            l4_destinations(check, &rule.route);
        });
        check.into_findings()
    }

    /// Without hosts it is a delegate: it has HTTP rules only, and cannot delegate further.
    fn validate_delegate(&self, check: &mut Check) {
        let needed = "at least one host is needed; without, it is a delegate, which has http only";
        if !self.gateways.is_empty() || !self.tls.is_empty() || !self.tcp.is_empty() {
            check.at("hosts", |check| check.invalid(needed));
        }
        check.each("http", &self.http, |check, rule| {
            if rule.delegate.is_some() {
                check.at("delegate", |check| check.invalid("a delegate cannot delegate"));
            }
        });
    }
}

fn tls_match(check: &mut Check, matcher: &TlsMatch, hosts: &[String]) {
    if matcher.sni_hosts.is_empty() {
        check.at("sniHosts", |check| check.invalid("at least one is needed"));
    }
    check.each("sniHosts", &matcher.sni_hosts, |check, name| {
        check.host(name);
        let within =
            |host: &String| name == host || host.strip_prefix('*').is_some_and(|end| name.ends_with(end));
        // Short names are completed later, so only what is complete can be compared.
        if name.contains('.') && hosts.iter().all(|host| host.contains('.') && !within(host)) {
            check.warn("no-effect", format!("{name:?} is within none of the hosts"));
        }
    });
    check.each("destinationSubnets", &matcher.destination_subnets, |check, subnet| {
        if !is_cidr_or_address(subnet) {
            check.invalid(format!("{subnet:?} is neither an address nor a CIDR range"));
        }
    });
    if matcher.port != 0 {
        check.at("port", |check| check.port(matcher.port));
    }
    check.at("sourceLabels", |check| check.labels(&matcher.source_labels));
    check.each("gateways", &matcher.gateways, gateway_name);
}

fn gateway_name(check: &mut Check, name: &String) {
    if name.is_empty() || name.split('/').count() > 2 {
        check.invalid(format!("{name:?} is no gateway: use NAME, NAMESPACE/NAME or mesh"));
    }
}

fn http_route(check: &mut Check, rule: &HttpRoute) {
    let actions = [rule.redirect.is_some(), rule.direct_response.is_some(), rule.delegate.is_some()];
    let actions = actions.into_iter().filter(|given| *given).count() + usize::from(!rule.route.is_empty());
    if actions == 0 {
        check.invalid("one of route, redirect and directResponse is needed");
    } else if actions > 1 {
        check.invalid("only one of route, redirect, directResponse and delegate may be given");
    }
    check.each("match", &rule.r#match, http_match);
    check.each("route", &rule.route, |check, target| {
        check.at("destination", |check| destination(check, &target.destination));
        weight(check, target.weight);
        if let Some(headers) = &target.headers {
            check.at("headers", |check| header_changes(check, headers));
        }
    });
    total_weight(check, rule.route.iter().map(|target| target.weight));
    if let Some(redirect) = &rule.redirect {
        check.at("redirect", |check| redirect_action(check, redirect));
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
                    check.at("match", |check| check.regex(&regex.r#match));
                });
            } else if rewrite.uri.is_empty() && rewrite.authority.is_empty() {
                check.invalid("one of uri, uriRegexRewrite and authority is needed");
            }
        });
    }
    if rule.rewrite.is_some() && rule.redirect.is_some() {
        check.at("rewrite", |check| check.invalid("a redirect cannot have a rewrite"));
    }
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
                if origin.is_present_match() {
                    check.invalid("an origin needs one of exact, prefix and regex");
                }
            });
        });
    }
}

fn fault(check: &mut Check, injected: &Fault) {
    if injected.delay.is_none() && injected.abort.is_none() {
        check.invalid("one of delay and abort is needed");
    }
    if let Some(delay) = &injected.delay {
        check.at("delay", |check| {
            if delay.fixed_delay.is_none_or(|delay| delay.0.as_millis() == 0) {
                check.at("fixedDelay", |check| check.invalid("must be 1ms or more"));
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
                _ => check.invalid("one of httpStatus and grpcStatus is needed"),
            }
            percent(check, abort.percentage);
            if abort.percentage.is_none() {
                check.warn("no-effect", "without percentage no request is aborted");
            }
        });
    }
}

fn http_match(check: &mut Check, matcher: &HttpMatch) {
    let parts = [
        ("uri", &matcher.uri),
        ("scheme", &matcher.scheme),
        ("method", &matcher.method),
        ("authority", &matcher.authority),
    ];
    for (field, part) in parts {
        if let Some(part) = part {
            check.at(field, |check| check.string_match(part));
        }
    }
    check.header_matches("headers", &matcher.headers);
    check.header_matches("withoutHeaders", &matcher.without_headers);
    check.at("queryParams", |check| {
        for (name, part) in &matcher.query_params {
            check.key(name, |check| check.string_match(part));
        }
    });
    if matcher.port != 0 {
        check.at("port", |check| check.port(matcher.port));
    }
    check.at("sourceLabels", |check| check.labels(&matcher.source_labels));
    check.each("gateways", &matcher.gateways, gateway_name);
}

fn l4_match(check: &mut Check, matcher: &L4Match) {
    check.each("destinationSubnets", &matcher.destination_subnets, |check, subnet| {
        if !is_cidr_or_address(subnet) {
            check.invalid(format!("{subnet:?} is neither an address nor a CIDR range"));
        }
    });
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
    check.at("host", |check| {
        check.host(&destination.host);
        if destination.host == "*" {
            check.invalid("a destination cannot be *");
        }
    });
    if let Some(port) = &destination.port {
        check.at("port", |check| check.at("number", |check| check.port(port.number)));
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

fn redirect_action(check: &mut Check, redirect: &Redirect) {
    if !REDIRECT_CODES.contains(&redirect.redirect_code) {
        let message = format!("{} is none of 301, 302, 303, 307, 308", redirect.redirect_code);
        check.at("redirectCode", |check| check.invalid(message));
    }
    if redirect.port.is_some() && redirect.derive_port.is_some() {
        check.at("derivePort", |check| check.invalid("only one of port and derivePort may be given"));
    }
    if let Some(port) = redirect.port {
        check.at("port", |check| check.port(port));
    }
    if !redirect.uri.is_empty() && !redirect.prefix_rewrite.is_empty() {
        check.at("prefixRewrite", |check| check.invalid("only one of uri and prefixRewrite may be given"));
    }
    if !matches!(redirect.scheme.as_str(), "" | "http" | "https") {
        check.at("scheme", |check| check.invalid(format!("{:?} is neither http nor https", redirect.scheme)));
    }
}

fn retry_policy(check: &mut Check, retries: &Retries) {
    if retries.attempts < 0 {
        check.at("attempts", |check| check.invalid(format!("{} is negative", retries.attempts)));
    }
    if retries.attempts == 0 && (retries.per_try_timeout.is_some() || !retries.retry_on.is_empty()) {
        check.at("attempts", |check| {
            check.warn("no-effect", "0 attempts disable retries; the other fields have no effect");
        });
    }
    if retries.backoff.is_some_and(|backoff| backoff.is_zero()) {
        check.at("backoff", |check| check.invalid("must be more than 0"));
    }
    check.at("retryOn", |check| {
        for condition in retries.retry_on.split(',').map(str::trim).filter(|condition| !condition.is_empty())
        {
            let good = condition.parse::<u16>().is_ok_and(|code| (100..600).contains(&code))
                || super::RETRY_CONDITIONS.contains(&condition);
            if !good {
                check.invalid(format!("{condition:?} is no retry condition"));
            }
        }
    });
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
            check.at(field, |check| header_operations(check, operations));
        }
    }
}

fn header_operations(check: &mut Check, operations: &HeaderOperations) {
    for (field, map) in [("set", &operations.set), ("add", &operations.add)] {
        check.at(field, |check| {
            for name in map.keys() {
                if !is_header_name(name.trim_start_matches(':')) {
                    check.key(name, |check| check.invalid(format!("{name:?} is no header name")));
                }
            }
        });
    }
    check.each("remove", &operations.remove, |check, name| {
        if !is_header_name(name) {
            check.invalid(format!("{name:?} is no header that can be removed"));
        }
    });
}

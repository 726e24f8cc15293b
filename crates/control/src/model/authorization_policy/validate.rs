//! What an AuthorizationPolicy must look like.

use super::{Action, AuthorizationPolicy, Condition, Operation, Rule, Source};
use crate::model::check::{Check, is_cidr_or_address};
use crate::model::diagnostic::Finding;

/// Istio's limit for a list of service accounts.
const MOST_ACCOUNTS: usize = 16;
/// Istio's limit for `namespace/serviceAccount`, bytes.
const LONGEST_ACCOUNT: usize = 320;

/// Keys of conditions that are of the peer's certificate, or of a token.
const IDENTITY_KEYS: [&str; 4] =
    ["source.namespace", "source.serviceAccount", "source.trustDomain", "source.principal"];

impl AuthorizationPolicy {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        check.target(self.selector.as_ref(), self.target_ref.as_ref(), &self.target_refs);
        if matches!(self.action, Action::Deny | Action::Custom) && self.rules.is_empty() {
            check.invalid_at("rules", "without rules it is for no request; the rule {} is for every request");
        }
        if self.action == Action::Custom {
            if self.provider.as_ref().is_none_or(|provider| provider.name.is_empty()) {
                check.at("provider", |check| check.invalid_at("name", "is needed for the action CUSTOM"));
            }
        } else if self.provider.is_some() {
            check.invalid_at("provider", "is for the action CUSTOM only");
        }
        check.each("rules", &self.rules, |check, rule| rule_parts(check, rule, self.action));
        check.into_findings()
    }
}

fn rule_parts(check: &mut Check, rule: &Rule, action: Action) {
    check.each("from", &rule.from, |check, from| {
        check.at("source", |check| match &from.source {
            None => check.invalid("is needed"),
            Some(found) => source(check, found, action),
        });
    });
    check.each("to", &rule.to, |check, to| {
        check.at("operation", |check| match &to.operation {
            None => check.invalid("is needed"),
            Some(found) => operation(check, found),
        });
    });
    check.each("when", &rule.when, |check, when| condition(check, when, action));
    if action == Action::Deny {
        let sources = || rule.from.iter().filter_map(|from| from.source.as_ref());
        let operations = || rule.to.iter().filter_map(|to| to.operation.as_ref());
        let to_ports = operations().any(|to| !to.ports.is_empty() || !to.not_ports.is_empty());
        let only_http = if operations().next().is_some() {
            !to_ports
        } else {
            sources().next().is_some() && !sources().any(is_known_of_tcp)
        };
        if only_http {
            check.warn(
                "denies-tcp",
                "has attributes of HTTP only, so it denies all traffic to TCP ports; name the ports that are meant",
            );
        }
    }
}

/// Whether some of a source is known of plain TCP connections too.
fn is_known_of_tcp(source: &Source) -> bool {
    [
        &source.principals,
        &source.not_principals,
        &source.namespaces,
        &source.not_namespaces,
        &source.service_accounts,
        &source.not_service_accounts,
        &source.ip_blocks,
        &source.not_ip_blocks,
        &source.remote_ip_blocks,
        &source.not_remote_ip_blocks,
    ]
    .into_iter()
    .any(|values| !values.is_empty())
}

fn source(check: &mut Check, source: &Source, action: Action) {
    let identities = [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
    ];
    let addresses = [
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ];
    if identities.iter().chain(&addresses).all(|(_, values)| values.is_empty()) {
        check.invalid("must not be empty");
    }
    for (field, values) in identities {
        if action == Action::Custom && !values.is_empty() {
            check.invalid_at(field, "is not possible with the action CUSTOM");
        }
        match field {
            "serviceAccounts" | "notServiceAccounts" => service_accounts(check, field, values),
            "trustDomains" | "notTrustDomains" => trust_domains(check, field, values),
            _ => check.not_empty(field, values),
        }
    }
    for (field, values) in addresses {
        ip_blocks(check, field, values);
    }
    let by_account = !source.service_accounts.is_empty() || !source.not_service_accounts.is_empty();
    let by_other = [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
    if by_account && by_other.into_iter().any(|values| !values.is_empty()) {
        check.invalid("serviceAccounts cannot stand beside namespaces or principals");
    }
}

fn service_accounts(check: &mut Check, field: &str, values: &[String]) {
    if values.len() > MOST_ACCOUNTS {
        check.invalid_at(field, format!("more than {MOST_ACCOUNTS} values"));
    }
    check.each(field, values, |check, value| {
        let parts: Vec<&str> = value.split('/').collect();
        if value.contains('*') {
            check.invalid("wildcards are not possible here");
        } else if parts.len() > 2 || parts.iter().any(|part| part.is_empty()) {
            check.invalid(format!("{value:?} must be SERVICEACCOUNT or NAMESPACE/SERVICEACCOUNT"));
        } else if value.len() > LONGEST_ACCOUNT {
            check.invalid(format!("is longer than {LONGEST_ACCOUNT} bytes"));
        }
    });
}

fn trust_domains(check: &mut Check, field: &str, values: &[String]) {
    wildcards(check, field, values);
    check.each(field, values, |check, value| {
        if value.contains('/') {
            check.invalid(format!("{value:?} is no trust domain: it contains '/'"));
        }
    });
}

/// Values with one wildcard at most, in front or at the end.
fn wildcards(check: &mut Check, field: &str, values: &[String]) {
    check.each(field, values, |check, value| {
        let inner = value.strip_prefix('*').or_else(|| value.strip_suffix('*')).unwrap_or(value);
        if value.is_empty() {
            check.invalid("must not be empty");
        } else if inner.contains('*') {
            check.invalid(format!("{value:?}: one wildcard is possible, in front or at the end"));
        }
    });
}

fn ip_blocks(check: &mut Check, field: &str, values: &[String]) {
    check.each(field, values, |check, value| {
        if !is_cidr_or_address(value) {
            check.invalid(format!("{value:?} is neither an address nor a CIDR range"));
        }
    });
}

fn ports(check: &mut Check, field: &str, values: &[String]) {
    check.each(field, values, |check, value| {
        if value.parse::<u16>().is_err() {
            check.invalid(format!("{value:?} is no port"));
        }
    });
}

fn operation(check: &mut Check, operation: &Operation) {
    let texts = [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ];
    let none = operation.ports.is_empty() && operation.not_ports.is_empty();
    if none && texts.iter().all(|(_, values)| values.is_empty()) {
        check.invalid("must not be empty");
    }
    ports(check, "ports", &operation.ports);
    ports(check, "notPorts", &operation.not_ports);
    for (field, values) in texts {
        check.not_empty(field, values);
        if matches!(field, "paths" | "notPaths") {
            check.each(field, values, |check, path| path_template(check, path));
        }
    }
}

/// A path may hold `{*}` for one segment and, as the last of them, `{**}` for any number.
fn path_template(check: &mut Check, path: &str) {
    let is_template = path.contains("{*}") || path.contains("{**}");
    let mut rest_matched = false;
    for segment in path.trim_matches('/').split('/') {
        match segment {
            "{*}" | "{**}" if rest_matched => {
                return check.invalid(format!("{path:?}: {{**}} must be the last of the templates"));
            }
            "{*}" => {}
            "{**}" => rest_matched = true,
            _ if segment.contains(['{', '}']) => {
                return check.invalid(format!("{path:?}: {{*}} and {{**}} must be whole segments"));
            }
            _ if is_template && !segment.bytes().all(is_path_byte) => {
                return check.invalid(format!("{path:?}: {segment:?} cannot stand in a template"));
            }
            _ => {}
        }
    }
}

/// Whether a byte may stand in a path as it is (RFC 3986, pchar), `*` apart, which templates give
/// a meaning of its own.
fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&byte)
}

fn condition(check: &mut Check, condition: &Condition, action: Action) {
    let key = condition.key.as_str();
    if key.is_empty() {
        return check.invalid_at("key", "must not be empty");
    }
    if action == Action::Custom && (IDENTITY_KEYS.contains(&key) || key.starts_with("request.auth.")) {
        check.invalid_at("key", format!("{key} is not possible with the action CUSTOM"));
    }
    if condition.values.is_empty() && condition.not_values.is_empty() {
        check.invalid("one of values and notValues is needed");
    }
    check.not_empty("values", &condition.values);
    check.not_empty("notValues", &condition.not_values);
    let values = [("values", &condition.values), ("notValues", &condition.not_values)];
    let each = |check: &mut Check, rule: fn(&mut Check, &str, &[String])| {
        for (field, values) in values {
            rule(check, field, values);
        }
    };
    match key {
        "source.ip" | "remote.ip" | "destination.ip" => each(check, ip_blocks),
        "destination.port" => each(check, ports),
        "source.serviceAccount" => each(check, service_accounts),
        "source.trustDomain" => each(check, wildcards),
        "source.namespace"
        | "source.principal"
        | "request.auth.principal"
        | "request.auth.audiences"
        | "request.auth.presenter"
        | "connection.sni" => {}
        _ if ["request.headers", "request.auth.claims", "experimental.envoy.filters."]
            .iter()
            .any(|prefix| key.starts_with(prefix)) =>
        {
            let good =
                key.ends_with(']') && key.find('[').is_some_and(|open| open > 0 && open + 2 < key.len());
            if !good {
                check.invalid_at("key", format!("{key:?} must look like a[b]"));
            }
        }
        "destination.namespace" => check.invalid_at("key", "the policy's own namespace says this"),
        _ if key.starts_with("destination.labels") => check.invalid_at("key", "use the selector instead"),
        _ => check.invalid_at("key", format!("{key:?} is not known")),
    }
}

//! Collects findings while an object is walked, and knows the rules that several kinds share.
//!
//! A walk reads like the object: `check.at("http", |check| ...)` and `check.item(0, |check| ...)`
//! keep the path; every fault is collected, none ends the walk.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use super::diagnostic::{Finding, Severity};
use super::duration::Span;
use super::selector::{PolicyTargetReference, WorkloadSelector};
use super::string_match::StringMatch;

/// The protocols that ports may have.
const PROTOCOLS: [&str; 14] = [
    "HTTP",
    "HTTP2",
    "HTTPS",
    "HTTP_PROXY",
    "GRPC",
    "GRPC-WEB",
    "TCP",
    "TLS",
    "UDP",
    "MONGO",
    "REDIS",
    "MYSQL",
    "HBONE",
    "DOUBLE-HBONE",
];

/// How keys of header matches begin that mean claims of a token.
pub(crate) const JWT_CLAIMS: &str = "@request.auth.claims";

/// Istio's limit for regular expressions, bytes.
const LONGEST_REGEX: usize = 1024;

/// The collector: where the walk is, and what it found.
#[derive(Debug, Default)]
pub(crate) struct Check {
    path: String,
    findings: Vec<Finding>,
}

impl Check {
    /// A walk that begins at the object's `spec`.
    pub(crate) fn spec() -> Check {
        Check { path: "spec".to_owned(), findings: Vec::new() }
    }

    /// What was found.
    pub(crate) fn into_findings(self) -> Vec<Finding> {
        self.findings
    }

    /// Walks into a field.
    pub(crate) fn at<R>(&mut self, field: &str, walk: impl FnOnce(&mut Check) -> R) -> R {
        let length = self.path.len();
        if !self.path.is_empty() {
            self.path.push('.');
        }
        self.path.push_str(field);
        let result = walk(self);
        self.path.truncate(length);
        result
    }

    /// Walks into an element of a list.
    pub(crate) fn item<R>(&mut self, index: usize, walk: impl FnOnce(&mut Check) -> R) -> R {
        let length = self.path.len();
        self.path.push_str(&format!("[{index}]"));
        let result = walk(self);
        self.path.truncate(length);
        result
    }

    /// Walks into a value of a map.
    pub(crate) fn key<R>(&mut self, key: &str, walk: impl FnOnce(&mut Check) -> R) -> R {
        let length = self.path.len();
        if key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-') {
            self.path.push('.');
            self.path.push_str(key);
        } else {
            self.path.push_str(&format!("[{key:?}]"));
        }
        let result = walk(self);
        self.path.truncate(length);
        result
    }

    /// Walks into every element of a list field.
    pub(crate) fn each<T>(&mut self, field: &str, items: &[T], mut walk: impl FnMut(&mut Check, &T)) {
        self.at(field, |check| {
            for (index, item) in items.iter().enumerate() {
                check.item(index, |check| walk(check, item));
            }
        });
    }

    /// The object cannot be used because of this.
    pub(crate) fn error(&mut self, code: &'static str, message: impl Into<String>) {
        self.push(Severity::Error, code, message.into());
    }

    /// The object can be used, but its author should know.
    pub(crate) fn warn(&mut self, code: &'static str, message: impl Into<String>) {
        self.push(Severity::Warning, code, message.into());
    }

    /// What is wrong with a message below the present field, and which of its fields are not known.
    pub(crate) fn faults(&mut self, errors: Vec<leno_api::Error>, unknown: Vec<leno_api::Error>) {
        let errors = errors.into_iter().map(|error| (Severity::Error, "invalid-value", error));
        let unknown = unknown.into_iter().map(|error| (Severity::Warning, "unknown-field", error));
        for (severity, code, error) in errors.chain(unknown) {
            let dot = if error.path.is_empty() || error.path.starts_with('[') { "" } else { "." };
            let message = match &error.suggestion {
                Some(suggestion) => format!("{}, did you mean '{suggestion}'?", error.message),
                None => error.message,
            };
            let path = format!("{}{dot}{}", self.path, error.path);
            self.findings.push(Finding { severity, code, path, message });
        }
    }

    /// A value that is not allowed.
    pub(crate) fn invalid(&mut self, message: impl Into<String>) {
        self.error("invalid-value", message);
    }

    /// Reports a field that has no effect where it stands, or one that is going away.
    pub(crate) fn warn_at(&mut self, field: &str, code: &'static str, message: &str) {
        self.at(field, |check| check.warn(code, message));
    }

    /// Reports a value that is not allowed.
    pub(crate) fn invalid_at(&mut self, field: &str, message: impl Into<String>) {
        self.at(field, |check| check.invalid(message));
    }

    /// Of some fields at most one may be given.
    pub(crate) fn at_most_one(&mut self, fields: &[(&str, bool)]) {
        if fields.iter().filter(|(_, given)| *given).count() > 1 {
            self.invalid(format!("only one of {} may be given", listed(fields)));
        }
    }

    /// Of some fields one must be given.
    pub(crate) fn exactly_one(&mut self, fields: &[(&str, bool)]) {
        match fields.iter().filter(|(_, given)| *given).count() {
            0 => self.invalid(format!("one of {} is needed", listed(fields))),
            1 => {}
            _ => self.invalid(format!("only one of {} may be given", listed(fields))),
        }
    }

    fn push(&mut self, severity: Severity, code: &'static str, message: String) {
        self.findings.push(Finding { severity, code, path: self.path.clone(), message });
    }

    /// A port number that is given must be 1 to 65535.
    pub(crate) fn port(&mut self, number: u32) {
        if !(1..=65535).contains(&number) {
            self.invalid(format!("port {number} is not between 1 and 65535"));
        }
    }

    /// The name of a port is one label of a DNS name.
    pub(crate) fn port_name(&mut self, name: &str) {
        if name.is_empty() {
            self.invalid("must not be empty");
        } else if !is_dns_label(name) {
            self.invalid(format!("{name:?} is no port name: use letters, digits and -"));
        }
    }

    /// A protocol is one that Istio knows; without one it is found out.
    pub(crate) fn protocol(&mut self, name: &str) {
        if !name.is_empty() && !PROTOCOLS.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            self.invalid(format!("{name:?} is none of {}", PROTOCOLS.join(", ")));
        }
    }

    /// A duration that is given is a positive number of milliseconds.
    pub(crate) fn duration(&mut self, field: &str, value: Option<Span>) {
        let Some(Span(value)) = value else { return };
        if value.as_millis() == 0 {
            self.invalid_at(field, "must be 1ms or more");
        } else if value.subsec_nanos() % 1_000_000 != 0 {
            self.invalid_at(field, "must be a multiple of 1ms");
        }
    }

    /// A number that must not be negative.
    pub(crate) fn not_negative(&mut self, field: &str, value: i32) {
        if value < 0 {
            self.invalid_at(field, format!("{value} is negative"));
        }
    }

    /// Values of a list are not empty.
    pub(crate) fn not_empty(&mut self, field: &str, values: &[String]) {
        self.each(field, values, |check, value| {
            if value.is_empty() {
                check.invalid("must not be empty");
            }
        });
    }

    /// A socket of the file system, without `unix://`.
    pub(crate) fn unix_path(&mut self, path: &str) {
        if !path.starts_with('@') && (!path.starts_with('/') || path.ends_with('/')) {
            self.invalid(format!("{path:?} is no absolute path of a file"));
        }
    }

    /// A selector of workloads: labels without wildcards, at least one.
    pub(crate) fn selector(&mut self, field: &str, labels: Option<&BTreeMap<String, String>>) {
        let Some(labels) = labels else { return };
        let inner = if field == "workloadSelector" { "labels" } else { "matchLabels" };
        self.selector_at(field, inner, labels);
    }

    /// [`Check::selector`] where the field of the labels must be named.
    pub(crate) fn selector_at(&mut self, field: &str, inner: &str, labels: &BTreeMap<String, String>) {
        self.at(field, |check| {
            if labels.is_empty() {
                check.warn("no-effect", "without labels it selects all workloads of the namespace");
            }
            check.at(inner, |check| {
                for (name, value) in labels {
                    if name.contains('*') || value.contains('*') {
                        check.key(name, |check| check.invalid("wildcards are not possible here"));
                    }
                }
                check.labels(labels);
            });
        });
    }

    /// What a policy attaches to: workloads by labels, or objects by name, but not both.
    pub(crate) fn target(
        &mut self,
        selector: Option<&WorkloadSelector>,
        target_ref: Option<&PolicyTargetReference>,
        target_refs: &[PolicyTargetReference],
    ) {
        self.at_most_one(&[
            ("selector", selector.is_some()),
            ("targetRef", target_ref.is_some()),
            ("targetRefs", !target_refs.is_empty()),
        ]);
        self.selector("selector", selector.map(|selector| &selector.match_labels));
        if let Some(target) = target_ref {
            self.at("targetRef", |check| check.target_reference(target));
        }
        self.each("targetRefs", target_refs, Check::target_reference);
    }

    fn target_reference(&mut self, target: &PolicyTargetReference) {
        if target.name.is_empty() {
            self.invalid_at("name", "must not be empty");
        }
        if !target.namespace.is_empty() {
            self.invalid_at("namespace", "objects of other namespaces cannot be referred to");
        }
        let known = matches!(
            (target.group.as_str(), target.kind.as_str()),
            ("" | "core", "Service")
                | ("networking.istio.io", "ServiceEntry")
                | ("gateway.networking.k8s.io", "Gateway" | "GatewayClass")
        );
        if !known {
            self.invalid_at(
                "kind",
                format!(
                    "{}/{} is none of core/Service, networking.istio.io/ServiceEntry, \
                     gateway.networking.k8s.io/Gateway, gateway.networking.k8s.io/GatewayClass",
                    target.group, target.kind
                ),
            );
        }
    }

    /// `namespace/host`, as Sidecars and Gateways name hosts; in Gateways the namespace may be
    /// missing, in Sidecars `~` in front of it leaves hosts out.
    pub(crate) fn scoped_host(&mut self, text: &str, is_gateway: bool) {
        let (namespace, host) = match text.split_once('/') {
            Some((namespace, host)) => (Some(namespace), host),
            None => (None, text),
        };
        match namespace {
            None if is_gateway => {}
            None => {
                return self.invalid(format!("{text:?} must be NAMESPACE/HOST, with * or . for NAMESPACE"));
            }
            Some(namespace) => {
                let name = if is_gateway { namespace } else { namespace.trim_start_matches('~') };
                let rest = !is_gateway && name.is_empty() && !namespace.is_empty();
                if !rest && !matches!(name, "*" | ".") && !is_dns_label(name) {
                    self.invalid("the part before / must be a namespace, '.' or '*'");
                }
            }
        }
        if host != "*" && !host.contains('.') && host.parse::<IpAddr>().is_err() {
            self.invalid(format!("{host:?} is a short name; use a fully qualified one"));
        } else if host.contains('*') && host != "*" && !host.starts_with("*.") {
            self.invalid(format!("{host:?}: a wildcard must be the whole first part"));
        } else {
            self.host(host);
        }
    }

    /// A regular expression must compile.
    pub(crate) fn regex(&mut self, pattern: &str) {
        if pattern.len() > LONGEST_REGEX {
            return self.error("invalid-regex", format!("is longer than {LONGEST_REGEX} bytes"));
        }
        if let Err(error) = regex::Regex::new(pattern) {
            let reason = error.to_string();
            // The error shows the pattern with a marker over several lines; the last line says why.
            let reason = reason.lines().last().unwrap_or("invalid").trim_start_matches("error: ").to_owned();
            self.error("invalid-regex", format!("regular expression {pattern:?}: {reason}"));
        }
    }

    /// A string match has at most one kind, and its regular expression compiles.
    pub(crate) fn string_match(&mut self, matcher: &StringMatch) {
        let given = [&matcher.exact, &matcher.prefix, &matcher.regex].into_iter().flatten().count();
        if given > 1 {
            self.invalid("only one of exact, prefix and regex may be given");
        }
        if let Some(pattern) = &matcher.regex
            && pattern != "*"
        {
            self.at("regex", |check| check.regex(pattern));
        }
    }

    /// A prefix or regular expression that must not be empty.
    pub(crate) fn not_empty_match(&mut self, matcher: &StringMatch) {
        for (field, text) in [("prefix", &matcher.prefix), ("regex", &matcher.regex)] {
            if text.as_ref().is_some_and(String::is_empty) {
                self.invalid_at(field, "must not be empty");
            }
        }
    }

    /// A map of string matches keyed by header or parameter names.
    pub(crate) fn header_matches(&mut self, field: &str, matches: &BTreeMap<String, StringMatch>) {
        self.at(field, |check| {
            for (name, matcher) in matches {
                check.key(name, |check| {
                    if name.to_ascii_lowercase().starts_with(JWT_CLAIMS) {
                        if claim(name).is_none() {
                            check.invalid(format!(
                                "{name:?} names no claim: use {JWT_CLAIMS}.NAME or {JWT_CLAIMS}[NAME]"
                            ));
                        }
                    } else if !is_header_name(name.trim_start_matches(':')) {
                        check.invalid(format!("{name:?} is no header name"));
                    }
                    check.string_match(matcher);
                    check.not_empty_match(matcher);
                });
            }
        });
    }

    /// A host name: a DNS name, a wildcard `*` or `*.suffix`, a short name, or an IP address.
    pub(crate) fn host(&mut self, host: &str) {
        if host.is_empty() {
            self.invalid("must not be empty");
        } else if !is_host(host) {
            self.invalid(format!("{host:?} is neither a DNS name nor a wildcard such as *.example.com"));
        }
    }

    /// `exportTo`: `.`, `*`, `~` or a namespace.
    pub(crate) fn export_to(&mut self, targets: &[String]) {
        let mut seen = HashSet::new();
        if targets.len() > 1
            && let Some(alone) = targets.iter().find(|target| matches!(target.as_str(), "*" | "~"))
        {
            self.invalid_at("exportTo", format!("{alone:?} cannot stand beside others"));
        }
        self.each("exportTo", targets, |check, target| {
            if !seen.insert(target.clone()) {
                check.invalid(format!("{target:?} is there twice"));
            }
            if !matches!(target.as_str(), "." | "*" | "~") && !is_dns_label(target) {
                check.invalid(format!("{target:?} is no namespace, '.', '*' or '~'"));
            }
        });
    }

    /// Labels: keys and values as Kubernetes allows them.
    pub(crate) fn labels(&mut self, labels: &BTreeMap<String, String>) {
        for (name, value) in labels {
            self.key(name, |check| {
                if name.is_empty() {
                    check.invalid("a label must have a name");
                }
                let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
                if value.len() > 63 || !value.bytes().all(good) {
                    check.invalid(format!("{value:?} is no label value"));
                }
            });
        }
    }
}

/// Names as `a, b and c`.
fn listed(fields: &[(&str, bool)]) -> String {
    let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    match names.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => String::new(),
    }
}

/// Whether a name may be a header's (RFC 9110 token).
pub(crate) fn is_header_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Whether a name is one label of a DNS name (RFC 1123).
pub(crate) fn is_dns_label(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 63
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Whether a name is a subdomain as Kubernetes has it (RFC 1123), which most objects and signers are called by: lower
/// case letters, digits, and `.` and `-` between them.
pub(crate) fn is_subdomain(name: &str) -> bool {
    let is_end = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_label = |label: &str| {
        label.bytes().all(|byte| is_end(byte) || byte == b'-')
            && label.bytes().next().is_some_and(is_end)
            && label.bytes().next_back().is_some_and(is_end)
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

/// Whether a text can stand where Istio wants a host.
pub(crate) fn is_host(host: &str) -> bool {
    if host == "*" || host.parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = host.strip_prefix("*.").or_else(|| host.strip_prefix("*-")).unwrap_or(host);
    let name = name.strip_suffix('.').unwrap_or(name);
    // Underscores occur in real SRV-like names, which Istio tolerates too.
    name.len() <= 253 && name.split('.').all(|label| is_dns_label(&label.replace('_', "x")))
}

/// Whether a text is an address or an address with a prefix length.
pub(crate) fn is_cidr_or_address(text: &str) -> bool {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let most = if address.is_ipv4() { 32 } else { 128 };
    length.is_none_or(|length| length.parse::<u8>().is_ok_and(|length| length <= most))
}

/// The claim of a JWT that a header's name stands for: `@request.auth.claims.a.b` or
/// `@request.auth.claims[a][b]`, outermost name first.
pub(crate) fn claim(name: &str) -> Option<Vec<&str>> {
    let (prefix, rest) = name.split_at_checked(JWT_CLAIMS.len())?;
    if !prefix.eq_ignore_ascii_case(JWT_CLAIMS) {
        return None;
    }
    if let Some(path) = rest.strip_prefix('.').filter(|path| !path.is_empty()) {
        return Some(path.split('.').collect());
    }
    let path = rest.strip_prefix('[')?.strip_suffix(']').filter(|path| !path.is_empty())?;
    Some(path.split("][").collect())
}

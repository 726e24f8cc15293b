//! Collects findings while an object is walked, and knows the rules that several kinds share.
//!
//! A walk reads like the object: `check.at("http", |check| ...)` and `check.item(0, |check| ...)`
//! keep the path; every fault is collected, none ends the walk.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::diagnostic::{Finding, Severity};
use super::string_match::StringMatch;

/// Begins the name of what looks like a header and is a claim of a JWT.
const CLAIMS: &str = "@request.auth.claims";

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

    /// A value that is not allowed.
    pub(crate) fn invalid(&mut self, message: impl Into<String>) {
        self.error("invalid-value", message);
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

    /// A regular expression must compile.
    pub(crate) fn regex(&mut self, pattern: &str) {
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

    /// A map of string matches keyed by header or parameter names.
    pub(crate) fn header_matches(&mut self, field: &str, matches: &BTreeMap<String, StringMatch>) {
        self.at(field, |check| {
            for (name, matcher) in matches {
                check.key(name, |check| {
                    if name.to_ascii_lowercase().starts_with(CLAIMS) {
                        if crate::translate::route::matcher::claim(name).is_none() {
                            check.invalid(format!(
                                "{name:?} names no claim: use {CLAIMS}.NAME or {CLAIMS}[NAME]"
                            ));
                        }
                    } else if !is_header_name(name.trim_start_matches(':')) {
                        check.invalid(format!("{name:?} is no header name"));
                    }
                    check.string_match(matcher);
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
        self.each("exportTo", targets, |check, target| {
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

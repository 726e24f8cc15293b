//! Names: how they are compared (SAN matchers, host names) and constrained (RFC 5280 section
//! 4.2.1.10), and how they are printed (RFC 2253).

use std::net::IpAddr;

use regex::bytes::Regex;

use crate::certificate::{AltName, Certificate, Constraint, NameConstraints};
use crate::der::Reader;

/// Compares a text (envoy.type.matcher.v3.StringMatcher).
#[derive(Clone, Debug)]
pub enum TextMatcher {
    /// All of it; true: in whatever case.
    Exact(String, bool),
    /// How it begins.
    Prefix(String, bool),
    /// How it ends.
    Suffix(String, bool),
    /// What is in it.
    Contains(String, bool),
    /// All of it, by an expression.
    Regex(Regex),
}

impl TextMatcher {
    /// Whether the text is one that is meant.
    pub fn matches(&self, text: &str) -> bool {
        let compare = |pattern: &str, ignore_case: bool, how: fn(&str, &str) -> bool| {
            if ignore_case {
                how(&text.to_ascii_lowercase(), &pattern.to_ascii_lowercase())
            } else {
                how(text, pattern)
            }
        };
        match self {
            TextMatcher::Exact(pattern, ignore_case) => compare(pattern, *ignore_case, |a, b| a == b),
            TextMatcher::Prefix(pattern, ignore_case) => {
                compare(pattern, *ignore_case, |a, b| a.starts_with(b))
            }
            TextMatcher::Suffix(pattern, ignore_case) => {
                compare(pattern, *ignore_case, |a, b| a.ends_with(b))
            }
            TextMatcher::Contains(pattern, ignore_case) => {
                compare(pattern, *ignore_case, |a, b| a.contains(b))
            }
            TextMatcher::Regex(regex) => regex
                .find(text.as_bytes())
                .is_some_and(|found| found.start() == 0 && found.end() == text.len()),
        }
    }
}

/// Which kind of subject alternative name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameKind {
    /// DNS names.
    Dns,
    /// URIs.
    Uri,
    /// E-mail addresses.
    Email,
    /// IP addresses, compared as text.
    Ip,
    /// Other names of the type with this OID.
    Other(String),
}

/// Compares subject alternative names of one kind
/// (envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher).
#[derive(Clone, Debug)]
pub struct NameMatcher {
    /// Which names.
    pub kind: NameKind,
    /// How.
    pub matcher: TextMatcher,
}

impl NameMatcher {
    /// Whether one of the certificate's names is one that is meant.
    pub(crate) fn matches(&self, certificate: &Certificate) -> bool {
        certificate.alt_names.iter().any(|name| match (&self.kind, name) {
            // An exact DNS name is a host's: the certificate may have a wildcard for it.
            (NameKind::Dns, AltName::Dns(name)) => match &self.matcher {
                TextMatcher::Exact(wanted, _) => host_matches(wanted, name),
                matcher => matcher.matches(name),
            },
            (NameKind::Uri, AltName::Uri(name)) | (NameKind::Email, AltName::Email(name)) => {
                self.matcher.matches(name)
            }
            (NameKind::Ip, AltName::Ip(address)) => self.matcher.matches(&address.to_string()),
            (NameKind::Other(wanted), AltName::Other(oid, value)) => {
                wanted == oid && self.matcher.matches(value)
            }
            _ => false,
        })
    }
}

/// Whether one of the certificate's names is exactly this host, address or URI.
pub(crate) fn names_host(certificate: &Certificate, host: &str) -> bool {
    let address: Option<IpAddr> = host.parse().ok();
    certificate.alt_names.iter().any(|name| match name {
        AltName::Dns(name) => host_matches(host, name),
        AltName::Uri(name) | AltName::Email(name) => name == host,
        AltName::Ip(ip) => address == Some(*ip),
        _ => false,
    })
}

/// Whether a host is meant by a DNS name of a certificate, whose first label may be `*` or have
/// one `*` in it (RFC 6125 section 6.4.3).
pub(crate) fn host_matches(host: &str, pattern: &str) -> bool {
    if host.eq_ignore_ascii_case(pattern) {
        return true;
    }
    let (Some((host_label, host_rest)), Some((label, rest))) =
        (host.split_once('.'), pattern.split_once('.'))
    else {
        return false;
    };
    let Some((before, after)) = label.split_once('*') else { return false };
    if after.contains('*') || rest.contains('*') || rest.is_empty() || !host_rest.eq_ignore_ascii_case(rest) {
        return false;
    }
    // A wildcard does not reach into an internationalised label.
    if label != "*" && host_label.get(..4).is_some_and(|prefix| prefix.eq_ignore_ascii_case("xn--")) {
        return false;
    }
    let host_label = host_label.to_ascii_lowercase();
    host_label.len() >= before.len() + after.len()
        && !host_label.is_empty()
        && host_label.starts_with(&before.to_ascii_lowercase())
        && host_label.ends_with(&after.to_ascii_lowercase())
}

/// Why a certificate's names are not within a CA's constraints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// None of the permitted subtrees has it.
    NotPermitted,
    /// An excluded subtree has it.
    Excluded,
    /// A constraint of a kind that is not known applies.
    Unsupported,
}

impl NameConstraints {
    /// Checks all names of a certificate.
    pub(crate) fn check(&self, certificate: &Certificate) -> Result<(), Violation> {
        if self.permitted.iter().chain(&self.excluded).any(|constraint| *constraint == Constraint::Unknown) {
            return Err(Violation::Unsupported);
        }
        for name in &certificate.alt_names {
            self.check_name(name)?;
        }
        // An empty subject has nothing to constrain.
        if certificate.subject.len() > 2 {
            self.check_name(&AltName::Directory(certificate.subject.clone()))?;
        }
        Ok(())
    }

    fn check_name(&self, name: &AltName) -> Result<(), Violation> {
        // A URI without a host name cannot be shown to lie within or without (RFC 5280).
        if let AltName::Uri(uri) = name
            && uri_host(uri).is_none()
            && self.permitted.iter().chain(&self.excluded).any(|it| matches!(it, Constraint::Uri(_)))
        {
            return Err(Violation::NotPermitted);
        }
        if self.excluded.iter().any(|constraint| constraint.covers(name) == Some(true)) {
            return Err(Violation::Excluded);
        }
        let mut of_kind = self.permitted.iter().filter_map(|constraint| constraint.covers(name)).peekable();
        if of_kind.peek().is_some() && !of_kind.any(|covers| covers) {
            return Err(Violation::NotPermitted);
        }
        Ok(())
    }
}

impl Constraint {
    /// Whether the name lies in the subtree; `None`: it is of another kind.
    fn covers(&self, name: &AltName) -> Option<bool> {
        match (self, name) {
            (Constraint::Dns(base), AltName::Dns(name)) => {
                // A wildcard stands for names below its own domain.
                Some(in_domain(name.strip_prefix("*.").unwrap_or(name), base, true))
            }
            (Constraint::Uri(base), AltName::Uri(name)) => {
                Some(uri_host(name).is_some_and(|host| in_domain(host, base, false)))
            }
            (Constraint::Email(base), AltName::Email(name)) => {
                let Some((local, host)) = name.rsplit_once('@') else { return Some(false) };
                Some(match base.rsplit_once('@') {
                    Some((base_local, base_host)) => {
                        (base_local.is_empty() || base_local == local) && base_host.eq_ignore_ascii_case(host)
                    }
                    None => in_domain(host, base, false),
                })
            }
            (Constraint::Ip(base), AltName::Ip(address)) => {
                let octets = match address {
                    IpAddr::V4(address) => address.octets().to_vec(),
                    IpAddr::V6(address) => address.octets().to_vec(),
                };
                let (network, mask) = base.split_at_checked(base.len() / 2)?;
                let same = |((octet, network), mask): ((&u8, &u8), &u8)| octet & mask == network & mask;
                Some(network.len() == octets.len() && octets.iter().zip(network).zip(mask).all(same))
            }
            (Constraint::Directory(base), AltName::Directory(name)) => Some(directory_within(name, base)),
            _ => None,
        }
    }
}

/// Whether a host lies in a domain. A domain with a dot in front means hosts below it; one
/// without is the host itself, and for DNS names what is below it too.
fn in_domain(host: &str, base: &str, below: bool) -> bool {
    if base.is_empty() {
        return true;
    }
    let host = host.to_ascii_lowercase();
    let base = base.to_ascii_lowercase();
    if base.starts_with('.') {
        return host.ends_with(&base) && host.len() > base.len();
    }
    host == base || (below && host.strip_suffix(&base).is_some_and(|rest| rest.ends_with('.')))
}

/// The host of a URI with an authority; constraints apply to no others (RFC 5280: such a URI
/// is not within any subtree).
fn uri_host(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = host.split(':').next()?;
    (!host.is_empty() && !host.starts_with('[')).then_some(host)
}

/// Whether a Name begins with all relative names of another one.
fn directory_within(name: &[u8], base: &[u8]) -> bool {
    let (Some(mut name), Some(mut base)) = (Reader::new(name).sequence(), Reader::new(base).sequence())
    else {
        return false;
    };
    loop {
        let Some(wanted) = base.next() else { return true };
        if name.next().is_none_or(|part| part.whole != wanted.whole) {
            return false;
        }
    }
}

/// The short names that RFC 2253 output of OpenSSL has.
const SHORT_NAMES: &[(&str, &str)] = &[
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.13", "description"),
    ("2.5.4.15", "businessCategory"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.41", "name"),
    ("2.5.4.42", "GN"),
    ("2.5.4.43", "initials"),
    ("2.5.4.44", "generationQualifier"),
    ("2.5.4.45", "x500UniqueIdentifier"),
    ("2.5.4.46", "dnQualifier"),
    ("2.5.4.97", "organizationIdentifier"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
    ("1.2.840.113549.1.9.2", "unstructuredName"),
    ("1.3.6.1.4.1.311.60.2.1.1", "jurisdictionL"),
    ("1.3.6.1.4.1.311.60.2.1.2", "jurisdictionST"),
    ("1.3.6.1.4.1.311.60.2.1.3", "jurisdictionC"),
];

/// A Name (DER) in the form of RFC 2253: last relative name first.
pub(crate) fn rfc2253(name: &[u8]) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut names = Reader::new(name).sequence();
    while let Some(set) = names.as_mut().and_then(Reader::next) {
        let mut values = Reader::new(set.content);
        let mut relative = Vec::new();
        while let Some(mut pair) = values.sequence() {
            let (Some(oid), Some(value)) = (pair.next(), pair.next()) else { break };
            let oid = oid_text(oid.content);
            match SHORT_NAMES.iter().find(|(known, _)| *known == oid) {
                Some((_, short)) => match crate::der::text(value) {
                    Some(value) => relative.push(format!("{short}={}", escape(&value))),
                    None => relative.push(format!("{short}=#{}", hex(value.whole))),
                },
                // Values of unknown types are dumped.
                None => relative.push(format!("{oid}=#{}", hex(value.whole).to_uppercase())),
            }
        }
        relative.reverse();
        parts.push(relative.join("+"));
    }
    parts.reverse();
    parts.join(",")
}

fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let last = value.len().saturating_sub(1);
    for (at, byte) in value.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => {
                out.push('\\');
                out.push(char::from(byte));
            }
            b'#' if at == 0 => out.push_str("\\#"),
            b' ' if at == 0 || at == last => out.push_str("\\ "),
            0..0x20 | 0x7f.. => out.push_str(&format!("\\{byte:02X}")),
            byte => out.push(char::from(byte)),
        }
    }
    out
}

fn oid_text(content: &[u8]) -> String {
    let mut numbers: Vec<u64> = Vec::new();
    let mut value = 0_u64;
    for octet in content {
        value = value << 7 | u64::from(octet & 0x7f);
        if octet & 0x80 == 0 {
            if numbers.is_empty() {
                let first = (value / 40).min(2);
                numbers.push(first);
                value -= first * 40;
            }
            numbers.push(value);
            value = 0;
        }
    }
    let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
    numbers.join(".")
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::{TextMatcher, escape, host_matches, in_domain, uri_host};

    #[test]
    fn hosts_and_wildcards() {
        let yes = [
            ("a.example", "A.Example"),
            ("a.example.com", "*.example.com"),
            ("abc.example.com", "a*.example.com"),
            ("abc.example.com", "a*c.example.com"),
            ("abc.example.com", "*c.example.com"),
        ];
        for (host, pattern) in yes {
            assert!(host_matches(host, pattern), "{host} {pattern}");
        }
        let no = [
            ("example.com", "*.example.com"),
            ("a.b.example.com", "*.example.com"),
            ("a.example.com", "*.*.com"),
            ("a.example.com", "a.*.com"),
            ("a", "*"),
            ("ac.example.com", "a*cc.example.com"),
            ("xn--abc.example.com", "x*.example.com"),
        ];
        for (host, pattern) in no {
            assert!(!host_matches(host, pattern), "{host} {pattern}");
        }
    }

    #[test]
    fn domains_of_constraints() {
        assert!(in_domain("a.example.com", "example.com", true));
        assert!(!in_domain("a.example.com", "example.com", false));
        assert!(in_domain("a.example.com", ".example.com", false));
        assert!(!in_domain("example.com", ".example.com", true));
        assert!(!in_domain("badexample.com", "example.com", true));
        assert_eq!(uri_host("spiffe://td.example/ns/a"), Some("td.example"));
        assert_eq!(uri_host("urn:uuid:1"), None);
        assert_eq!(uri_host("http://u@h.example:80/x"), Some("h.example"));
    }

    #[test]
    fn a_regex_must_match_all() {
        let matcher = TextMatcher::Regex(regex::bytes::Regex::new("a.c").unwrap());
        assert!(matcher.matches("abc"));
        assert!(!matcher.matches("abcd"));
    }

    #[test]
    fn escaping_follows_openssl() {
        expect![[r#"\#a\, b\"\C3\A4\ "#]].assert_eq(&escape("#a, b\"\u{e4} "));
    }
}

//! One rule of an AuthorizationPolicy as a policy of Envoy's `rbac`.
//!
//! Conditions on where a request goes become permissions, those on where it comes from principals. A
//! condition that cannot be looked at, as one on requests where there are only connections, makes an
//! ALLOW rule void, and is left out of others: in both cases less is let through.

use leno_api::proto::envoy::config::rbac::v3 as rbac;
use leno_api::proto::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use rbac::permission::Rule as Permit;
use rbac::principal::Identifier;

use super::matcher;
use crate::model::authorization_policy::{Operation, Rule, Source};
// The trust domain that is so called stands for whichever the mesh has.
use crate::model::identity::{SPIFFE, TRUST_DOMAIN};
use crate::translate::proto::{core, ty};
use crate::translate::resource::{cidr, pack};
use ty::matcher::v3::{MetadataMatcher, StringMatcher, ValueMatcher};

/// The filter that leaves the claims of a token in metadata, and their key there.
pub(super) const TOKEN_FILTER: &str = "envoy.filters.http.jwt_authn";
pub(super) const TOKEN_PAYLOAD: &str = "payload";

/// A condition on where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What<'r> {
    Host,
    Method,
    Path,
    Port,
    Address,
    ServerName,
    /// `envoy.filters.FILTER[KEY]`.
    Metadata(&'r str),
}

/// A condition on where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who<'r> {
    Principal,
    RequestPrincipal,
    ServiceAccount,
    TrustDomain,
    Namespace,
    /// The client, whoever forwarded its request.
    Client,
    /// The peer of the connection.
    Address,
    Audience,
    Presenter,
    /// `[NAME]`.
    Header(&'r str),
    /// `[NAME]`, or `[NAME][NAME]` of a claim inside of another.
    Claim(&'r str),
}

/// An attribute that a condition is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attribute<'r> {
    What(What<'r>),
    Who(Who<'r>),
}

/// Where a rule is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Use<'u> {
    /// The namespace of its policy.
    pub(super) namespace: &'u str,
    /// The mesh's trust domain and its other names.
    pub(super) trust_domains: &'u [&'u str],
    /// Whether it is for connections, of which no request is seen.
    pub(super) connections: bool,
    /// Whether it lets something through.
    pub(super) allows: bool,
}

/// One thing to look at, with what it should be and what it should not be.
struct Test<T> {
    about: T,
    values: Vec<String>,
    not_values: Vec<String>,
}

impl<T> Test<T> {
    fn new(about: T, values: &[String], not_values: &[String]) -> Option<Test<T>> {
        let asks = !values.is_empty() || !not_values.is_empty();
        asks.then(|| Test { about, values: values.to_vec(), not_values: not_values.to_vec() })
    }
}

/// The policy for a rule; `None` if the rule can say nothing here.
pub(super) fn policy(rule: &Rule, place: &Use<'_>) -> Option<rbac::Policy> {
    let mut what = Vec::new();
    let mut who = Vec::new();
    for condition in &rule.when {
        let (values, not_values) = (&condition.values, &condition.not_values);
        match attribute(&condition.key)? {
            Attribute::What(about) => what.extend(Test::new(about, values, not_values)),
            Attribute::Who(about) => who.extend(Test::new(about, values, not_values)),
        }
    }
    let operations: Vec<Option<&Operation>> = match rule.to.as_slice() {
        [] => vec![None],
        to => to.iter().map(|to| to.operation.as_ref()).collect(),
    };
    let sources: Vec<Option<&Source>> = match rule.from.as_slice() {
        [] => vec![None],
        from => from.iter().map(|from| from.source.as_ref()).collect(),
    };
    let mut permissions = Vec::new();
    for operation in operations {
        let own = operation.map(whats).unwrap_or_default();
        permissions.push(place.permission(own.iter().chain(&what))?);
    }
    let mut principals = Vec::new();
    for source in sources {
        let own = source.map(whos).unwrap_or_default();
        principals.push(place.principal(own.iter().chain(&who))?);
    }
    Some(rbac::Policy { permissions, principals, ..rbac::Policy::default() })
}

/// A policy that fits nothing.
pub(super) fn never() -> rbac::Policy {
    rbac::Policy {
        permissions: vec![not_rule(permission(Permit::Any(true)))],
        principals: vec![not_id(principal(Identifier::Any(true)))],
        ..rbac::Policy::default()
    }
}

fn whats(operation: &Operation) -> Vec<Test<What<'static>>> {
    let Operation { hosts, not_hosts, ports, not_ports, methods, not_methods, paths, not_paths } = operation;
    let all = [
        Test::new(What::Host, hosts, not_hosts),
        Test::new(What::Method, methods, not_methods),
        Test::new(What::Path, paths, not_paths),
        Test::new(What::Port, ports, not_ports),
    ];
    all.into_iter().flatten().collect()
}

fn whos(source: &Source) -> Vec<Test<Who<'static>>> {
    let Source {
        principals,
        not_principals,
        request_principals,
        not_request_principals,
        namespaces,
        not_namespaces,
        service_accounts,
        not_service_accounts,
        ip_blocks,
        not_ip_blocks,
        remote_ip_blocks,
        not_remote_ip_blocks,
        trust_domains,
        not_trust_domains,
    } = source;
    let all = [
        Test::new(Who::Principal, principals, not_principals),
        Test::new(Who::RequestPrincipal, request_principals, not_request_principals),
        Test::new(Who::ServiceAccount, service_accounts, not_service_accounts),
        Test::new(Who::TrustDomain, trust_domains, not_trust_domains),
        Test::new(Who::Namespace, namespaces, not_namespaces),
        Test::new(Who::Client, remote_ip_blocks, not_remote_ip_blocks),
        Test::new(Who::Address, ip_blocks, not_ip_blocks),
    ];
    all.into_iter().flatten().collect()
}

/// What the key of a condition means.
fn attribute(key: &str) -> Option<Attribute<'_>> {
    if let Some(name) = key.strip_prefix("request.headers") {
        return Some(Attribute::Who(Who::Header(name)));
    }
    if let Some(path) = key.strip_prefix("request.auth.claims") {
        return Some(Attribute::Who(Who::Claim(path)));
    }
    if let Some(name) = key.strip_prefix("experimental.").filter(|name| name.starts_with("envoy.filters.")) {
        return Some(Attribute::What(What::Metadata(name)));
    }
    Some(match key {
        "destination.ip" => Attribute::What(What::Address),
        "destination.port" => Attribute::What(What::Port),
        "connection.sni" => Attribute::What(What::ServerName),
        "source.ip" => Attribute::Who(Who::Address),
        "remote.ip" => Attribute::Who(Who::Client),
        "source.namespace" => Attribute::Who(Who::Namespace),
        "source.trustDomain" => Attribute::Who(Who::TrustDomain),
        "source.serviceAccount" => Attribute::Who(Who::ServiceAccount),
        "source.principal" => Attribute::Who(Who::Principal),
        "request.auth.principal" => Attribute::Who(Who::RequestPrincipal),
        "request.auth.audiences" => Attribute::Who(Who::Audience),
        "request.auth.presenter" => Attribute::Who(Who::Presenter),
        _ => return None,
    })
}

impl Use<'_> {
    /// All of some conditions on where a request goes.
    fn permission<'t>(&self, tests: impl Iterator<Item = &'t Test<What<'t>>>) -> Option<rbac::Permission> {
        let mut all = Vec::new();
        for test in tests {
            for (values, negated) in [(&test.values, false), (&test.not_values, true)] {
                if values.is_empty() {
                    continue;
                }
                match self.one_operation(test.about, values) {
                    Some(found) if negated => all.push(not_rule(found)),
                    Some(found) => all.push(found),
                    None if self.allows => return None,
                    None => {}
                }
            }
        }
        if all.is_empty() {
            all.push(permission(Permit::Any(true)));
        }
        Some(permission(Permit::AndRules(rbac::permission::Set { rules: all })))
    }

    /// All of some conditions on where a request comes from.
    fn principal<'t>(&self, tests: impl Iterator<Item = &'t Test<Who<'t>>>) -> Option<rbac::Principal> {
        let mut all = Vec::new();
        for test in tests {
            for (values, negated) in [(&test.values, false), (&test.not_values, true)] {
                if values.is_empty() {
                    continue;
                }
                match self.one_source(test.about, values) {
                    Some(found) if negated => all.push(not_id(found)),
                    Some(found) => all.push(found),
                    None if self.allows => return None,
                    None => {}
                }
            }
        }
        if all.is_empty() {
            all.push(principal(Identifier::Any(true)));
        }
        Some(principal(Identifier::AndIds(rbac::principal::Set { ids: all })))
    }

    /// That an attribute has one of some values; `None` if it cannot be looked at here.
    fn one_operation(&self, about: What<'_>, values: &[String]) -> Option<rbac::Permission> {
        if self.connections && matches!(about, What::Host | What::Method | What::Path) {
            return None;
        }
        let one = |value: &String| -> Option<Permit> {
            Some(match about {
                What::Host => Permit::Header(matcher::header(":authority", value, true)),
                What::Method => Permit::Header(matcher::header(":method", value, false)),
                What::Path => path(value),
                What::Port => Permit::DestinationPort(u32::from(value.parse::<u16>().ok()?)),
                What::Address => Permit::DestinationIp(cidr(value)?),
                What::ServerName => Permit::RequestedServerName(matcher::string(value)),
                What::Metadata(_) => return None,
            })
        };
        if let What::Metadata(key) = about {
            let (filter, name) = key.strip_suffix(']').unwrap_or(key).split_once('[')?;
            let values = values.iter().map(|value| metadata_value(value)).collect();
            return Some(permission(metadata(matcher::metadata(filter, &[name], matcher::one_of(values)))));
        }
        let rules: Option<Vec<rbac::Permission>> =
            values.iter().map(|value| one(value).map(permission)).collect();
        Some(permission(Permit::OrRules(rbac::permission::Set { rules: rules? })))
    }

    /// That an attribute has one of some values; `None` if it cannot be looked at here.
    fn one_source(&self, about: Who<'_>, values: &[String]) -> Option<rbac::Principal> {
        let of_requests = matches!(
            about,
            Who::RequestPrincipal | Who::Audience | Who::Presenter | Who::Header(_) | Who::Claim(_)
        );
        if self.connections && of_requests {
            return None;
        }
        let ids: Vec<Identifier> = match about {
            Who::Principal => {
                let names = values.iter().flat_map(|value| self.principals(value));
                names.map(|name| authenticated(matcher::string_after(SPIFFE, &name))).collect()
            }
            Who::TrustDomain => {
                self.trust_domains(values).iter().map(|domain| authenticated(trust_domain(domain))).collect()
            }
            Who::ServiceAccount => {
                values.iter().map(|account| authenticated(self.service_account(account))).collect()
            }
            Who::Namespace => values.iter().map(|name| authenticated(namespace(name))).collect(),
            Who::Client => {
                values.iter().map(|block| cidr(block).map(Identifier::RemoteIp)).collect::<Option<_>>()?
            }
            Who::Address => values
                .iter()
                .map(|block| cidr(block).map(Identifier::DirectRemoteIp))
                .collect::<Option<_>>()?,
            Who::Header(name) => {
                let name = name.strip_prefix('[')?.strip_suffix(']')?;
                values.iter().map(|value| Identifier::Header(matcher::header(name, value, false))).collect()
            }
            // These look at all values at once.
            Who::Audience => return Some(claim(&["aud"], values)),
            Who::Presenter => return Some(claim(&["azp"], values)),
            Who::Claim(path) => return Some(claim(&brackets(path)?, values)),
            Who::RequestPrincipal => {
                let mut all: Vec<rbac::Principal> =
                    values.iter().map(|value| request_principal(value)).collect();
                return Some(match all.len() {
                    1 => all.remove(0),
                    _ => principal(Identifier::OrIds(rbac::principal::Set { ids: all })),
                });
            }
        };
        let ids = ids.into_iter().map(principal).collect();
        Some(principal(Identifier::OrIds(rbac::principal::Set { ids })))
    }

    /// A principal under all names of the mesh's trust domain, if it is one of these that it has.
    fn principals(&self, name: &str) -> Vec<String> {
        let parts: Vec<&str> = name.split('/').collect();
        let [domain, rest @ ..] = parts.as_slice() else { return vec![name.to_owned()] };
        if rest.len() != 4 || *domain == "*" {
            return vec![name.to_owned()];
        }
        let known = self
            .trust_domains
            .iter()
            .any(|own| own == domain || *own == "*" || alike(domain, own) || alike(own, domain));
        if !known && *domain != TRUST_DOMAIN {
            return vec![name.to_owned()];
        }
        let mut all: Vec<String> = Vec::new();
        for own in self.trust_domains {
            let name = match domain.strip_prefix('*') {
                // It covers this one as it is.
                Some(suffix) if own.ends_with(suffix) => name.to_owned(),
                _ => format!("{own}/{}", rest.join("/")),
            };
            if !all.contains(&name) {
                all.push(name);
            }
        }
        all
    }

    /// Trust domains with the other names of the mesh's, if that is among them.
    fn trust_domains(&self, domains: &[String]) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for domain in domains {
            let names = match self.trust_domains.contains(&domain.as_str()) {
                true => self.trust_domains.iter().map(|own| (*own).to_owned()).collect(),
                false => vec![domain.clone()],
            };
            for name in names {
                if !all.contains(&name) {
                    all.push(name);
                }
            }
        }
        all
    }

    /// `NAMESPACE/NAME` or `NAME`, of the policy's namespace, in any trust domain.
    fn service_account(&self, account: &str) -> StringMatcher {
        let (namespace, name) = account.split_once('/').unwrap_or((self.namespace, account));
        let (namespace, name) = (matcher::quote(namespace), matcher::quote(name));
        matcher::regex(format!("spiffe://.+/ns/{namespace}/(.+/|)sa/{name}(/.+)?"))
    }
}

/// Whether a text fits a pattern `prefix*` or `*suffix`.
fn alike(text: &str, pattern: &str) -> bool {
    pattern.strip_suffix('*').is_some_and(|prefix| text.starts_with(prefix))
        || pattern.strip_prefix('*').is_some_and(|suffix| text.ends_with(suffix))
}

fn namespace(name: &str) -> StringMatcher {
    let parts: Vec<String> = name.split('*').map(matcher::quote).collect();
    matcher::regex(format!(".*/ns/{}/.*", parts.join(".*")))
}

fn trust_domain(domain: &str) -> StringMatcher {
    match domain.split_once('*') {
        None => matcher::prefix(&format!("{SPIFFE}{domain}/")),
        Some(("", "")) => matcher::prefix(SPIFFE),
        Some((begin, end)) => {
            matcher::regex(format!("{SPIFFE}{}[^/]*{}/.*", matcher::quote(begin), matcher::quote(end)))
        }
    }
}

/// A path, or a template with `{*}` for one segment and `{**}` for any number.
fn path(path: &str) -> Permit {
    use ty::matcher::v3::{PathMatcher, path_matcher};
    if path.contains("{*}") || path.contains("{**}") {
        let template =
            UriTemplateMatchConfig { path_template: path.replace("{*}", "*").replace("{**}", "**") };
        return Permit::UriTemplate(core::TypedExtensionConfig {
            name: "uri-template".to_owned(),
            typed_config: Some(pack(&template)),
        });
    }
    Permit::UrlPath(PathMatcher { rule: Some(path_matcher::Rule::Path(matcher::string(path))) })
}

/// A value of metadata: a text, or `[text]` for a list that contains it.
fn metadata_value(value: &str) -> ValueMatcher {
    match value.starts_with('[') && value.ends_with(']') {
        true => matcher::element(matcher::text(matcher::string(value.trim_matches(['[', ']'])))),
        false => matcher::text(matcher::string(value)),
    }
}

/// `ISSUER/SUBJECT`, as a policy writes texts.
fn request_principal(value: &str) -> rbac::Principal {
    // The issuer may be a URL.
    let parts = value.rsplit_once('/');
    let (issuer, subject) = if value == "*" {
        (matcher::anything(), matcher::anything())
    } else if let Some(end) = value.strip_prefix('*') {
        match parts {
            Some(("*", subject)) => (matcher::anything(), matcher::exact(subject)),
            Some((issuer, subject)) => {
                (matcher::suffix(issuer.strip_prefix('*').unwrap_or(issuer)), matcher::exact(subject))
            }
            None => (matcher::anything(), matcher::suffix(end)),
        }
    } else if let Some(begin) = value.strip_suffix('*') {
        match parts {
            Some((issuer, "*")) => (matcher::exact(issuer), matcher::anything()),
            Some((issuer, subject)) => {
                (matcher::exact(issuer), matcher::prefix(subject.strip_suffix('*').unwrap_or(subject)))
            }
            None => (matcher::prefix(begin), matcher::anything()),
        }
    } else {
        let (issuer, subject) = parts.unwrap_or((value, ""));
        (matcher::exact(issuer), matcher::exact(subject))
    };
    let of = |claim: &str, value| {
        principal(in_metadata(matcher::metadata(TOKEN_FILTER, &[TOKEN_PAYLOAD, claim], matcher::text(value))))
    };
    let ids = vec![of("iss", issuer), of("sub", subject)];
    principal(Identifier::AndIds(rbac::principal::Set { ids }))
}

/// A claim of a token that is one of some texts, or a list that contains one.
fn claim(path: &[&str], values: &[String]) -> rbac::Principal {
    let value = matcher::one_of(values.iter().map(|value| matcher::text(matcher::string(value))).collect());
    let path: Vec<&str> = std::iter::once(TOKEN_PAYLOAD).chain(path.iter().copied()).collect();
    let value = matcher::one_of(vec![matcher::element(value.clone()), value]);
    principal(in_metadata(matcher::metadata(TOKEN_FILTER, &path, value)))
}

/// The names in `[a][b]`. Where brackets do not pair so, all between the outermost is one name.
fn brackets(text: &str) -> Option<Vec<&str>> {
    let whole = text.strip_prefix('[')?.strip_suffix(']')?;
    let parts: Vec<&str> = whole.split("][").collect();
    let pair = parts.iter().all(|part| !part.contains(['[', ']']));
    Some(if pair { parts } else { vec![whole] })
}

#[expect(deprecated, reason = "Istio's configuration, which people and patches read, has this field")]
fn metadata(found: MetadataMatcher) -> Permit {
    Permit::Metadata(found)
}

#[expect(deprecated, reason = "Istio's configuration, which people and patches read, has this field")]
fn in_metadata(found: MetadataMatcher) -> Identifier {
    Identifier::Metadata(found)
}

fn authenticated(name: StringMatcher) -> Identifier {
    Identifier::Authenticated(rbac::principal::Authenticated { principal_name: Some(name) })
}

fn permission(rule: Permit) -> rbac::Permission {
    rbac::Permission { rule: Some(rule) }
}

fn principal(identifier: Identifier) -> rbac::Principal {
    rbac::Principal { identifier: Some(identifier) }
}

fn not_rule(rule: rbac::Permission) -> rbac::Permission {
    permission(Permit::NotRule(Box::new(rule)))
}

fn not_id(id: rbac::Principal) -> rbac::Principal {
    principal(Identifier::NotId(Box::new(id)))
}

#[cfg(test)]
mod tests {
    use super::{Use, brackets, namespace, policy, trust_domain};
    use crate::model::authorization_policy::{Condition, Rule};
    use crate::translate::proto::ty::matcher::v3::{StringMatcher, string_matcher::MatchPattern};

    const PLACE: Use<'_> =
        Use { namespace: "own", trust_domains: &["td", "old-td", "other"], connections: false, allows: true };

    #[track_caller]
    fn check(name: &str, expected: &[&str]) {
        assert_eq!(PLACE.principals(name), expected, "{name}");
    }

    #[test]
    fn principals_have_all_names_of_the_trust_domain() {
        check("td/ns/a/sa/b", &["td/ns/a/sa/b", "old-td/ns/a/sa/b", "other/ns/a/sa/b"]);
        check("other/ns/a/sa/b", &["td/ns/a/sa/b", "old-td/ns/a/sa/b", "other/ns/a/sa/b"]);
        check("cluster.local/ns/a/sa/b", &["td/ns/a/sa/b", "old-td/ns/a/sa/b", "other/ns/a/sa/b"]);
        check("foreign/ns/a/sa/b", &["foreign/ns/a/sa/b"]);
        check("*td/ns/a/sa/b", &["*td/ns/a/sa/b", "other/ns/a/sa/b"]);
        check("*/ns/a/sa/b", &["*/ns/a/sa/b"]);
        check("*", &["*"]);
        check("*/sa/b", &["*/sa/b"]);
    }

    #[test]
    fn trust_domains_have_all_names() {
        let domains = ["x".to_owned(), "td".to_owned(), "other".to_owned()];
        assert_eq!(PLACE.trust_domains(&domains), ["x", "td", "old-td", "other"]);
    }

    #[test]
    fn identities_are_matched_whole() {
        let regex = |matcher: StringMatcher| match matcher.match_pattern {
            Some(MatchPattern::SafeRegex(found)) => found.regex,
            Some(MatchPattern::Prefix(found)) => format!("^{found}"),
            other => panic!("{other:?}"),
        };
        assert_eq!(regex(namespace("a.b")), r".*/ns/a\.b/.*");
        assert_eq!(regex(namespace("a*")), ".*/ns/a.*/.*");
        assert_eq!(regex(trust_domain("*")), "^spiffe://");
        assert_eq!(regex(trust_domain("a.b")), "^spiffe://a.b/");
        assert_eq!(regex(trust_domain("*.b")), r"spiffe://[^/]*\.b/.*");
        assert_eq!(regex(PLACE.service_account("x")), "spiffe://.+/ns/own/(.+/|)sa/x(/.+)?");
        assert_eq!(regex(PLACE.service_account("n/x.y")), r"spiffe://.+/ns/n/(.+/|)sa/x\.y(/.+)?");
    }

    #[test]
    fn claims_may_be_nested() {
        assert_eq!(brackets("[a]"), Some(vec!["a"]));
        assert_eq!(brackets("[a][b-c]"), Some(vec!["a", "b-c"]));
        assert_eq!(brackets("[a[b]"), Some(vec!["a[b"]));
        assert_eq!(brackets("a"), None);
    }

    #[test]
    fn what_is_not_known_makes_no_policy() {
        let when = vec![Condition { key: "nonsense".to_owned(), ..Condition::default() }];
        assert_eq!(policy(&Rule { when, ..Rule::default() }, &PLACE), None);
    }
}

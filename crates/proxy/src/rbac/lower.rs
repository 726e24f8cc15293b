//! Lowering of envoy.config.rbac.v3.RBAC and of match trees with its actions.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::collections::HashSet;
use std::fmt::Write as _;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::config::rbac::v3 as proto;
use leno_api::proto::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use leno_api::proto::envoy::extensions::rbac::matchers::upstream_ip_port::v3::UpstreamIpPortMatcher;
use leno_api::proto::envoy::extensions::rbac::principals::mtls_authenticated::v3 as mtls;
use leno_api::proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use leno_api::proto::envoy::r#type::matcher::v3::{PathMatcher, path_matcher};
use leno_api::proto::envoy::r#type::v3 as types;
use leno_api::proto::xds::r#type::matcher::v3 as xds;
use leno_base::{CidrSet, Name};
use proto::permission::Rule as Permission;
use proto::principal::Identifier;
use proto::rbac::Action;
use serde_json::{Map, Value};

use super::{Decide, Engine, Outcome, Policy, Rule, Texts, Which, ranges};
use crate::config::address::cidr;
use crate::config::lower::Lower;
use crate::config::re2;
use crate::http::route::matcher::{StringMatcher, header, string};
use crate::matching::cel::{self, Condition};
use crate::matching::facts::PeerName;
use crate::matching::{self, Place, value};
use crate::telemetry::metadata::Namespace;

/// How judgements are named in dynamic metadata.
#[derive(Clone, Debug)]
pub(crate) struct Labels {
    /// The filter's namespace.
    pub(crate) namespace: &'static str,
    /// Key of the policy's name.
    pub(crate) policy: String,
    /// Key of `allowed` or `denied`.
    pub(crate) result: String,
    /// Whether the action LOG tells access logs: shadow rules do not.
    pub(crate) hints: bool,
}

impl Labels {
    fn outcome(&self, policy: Option<Name>, action: Action, matched: bool) -> Outcome {
        let allowed = match action {
            Action::Allow => matched,
            Action::Deny => !matched,
            Action::Log => true,
        };
        let mut values = Map::new();
        if let Some(policy) = &policy {
            values.insert(self.policy.clone(), policy.as_str().into());
        }
        values.insert(self.result.clone(), if allowed { "allowed" } else { "denied" }.into());
        let log_hint = (self.hints && action == Action::Log).then(|| {
            let hint = [("access_log_hint".to_owned(), Value::Bool(matched))];
            Namespace::new("envoy.common", hint.into_iter().collect())
        });
        Outcome { policy, allowed, note: Namespace::new(self.namespace, values), log_hint }
    }
}

/// Lowers an RBAC.
pub(crate) fn from_rules(rules: proto::Rbac, labels: &Labels, at: &mut Lower) -> Option<Engine> {
    let proto::Rbac { action, policies, audit_logging_options } = rules;
    if let Some(proto::rbac::AuditLoggingOptions { audit_condition, logger_configs }) = audit_logging_options
    {
        at.field("audit_logging_options", |at| {
            // Without loggers, or never, nothing is audited.
            at.unsupported("logger_configs", !logger_configs.is_empty() && audit_condition != 0);
        });
    }
    let action = at.value::<Action>("action", action)?;
    let mut named: Vec<_> = policies.into_iter().collect();
    named.sort_by(|(a, _), (b, _)| a.cmp(b));
    let policies = named.into_iter().filter_map(|(name, policy)| {
        let (parts, condition) = at.field(&format!("policies[\"{name}\"]"), |at| parts(policy, at))?;
        Some(Policy { parts, condition, outcome: labels.outcome(Some(name.into()), action, true) })
    });
    let policies = policies.collect();
    Some(Engine { decide: Decide::Policies(policies), otherwise: labels.outcome(None, action, false) })
}

/// Lowers a match tree; what it does not match is denied.
pub(crate) fn from_matcher(
    tree: xds::Matcher,
    place: Place,
    labels: &Labels,
    at: &mut Lower,
) -> Option<Engine> {
    let tree = matching::lower(tree, place, at, &mut |action, at| {
        at.required("typed_config", action.typed_config, |any, at| {
            let any = at.extension(any)?;
            let proto::Action { name, action } = at.unpack(&any)?;
            let action = at.value::<Action>("action", action)?;
            // The action itself says what is done where it is reached.
            Some(labels.outcome(Some(name.into()), action, true))
        })
    })?;
    Some(Engine { decide: Decide::Matcher(tree), otherwise: labels.outcome(None, Action::Allow, false) })
}

fn parts(policy: proto::Policy, at: &mut Lower) -> Option<([Rule; 2], Option<Condition>)> {
    let proto::Policy { permissions, principals, condition, checked_condition, cel_config } = policy;
    let condition = condition.map(|expr| ("condition", expr));
    let condition = condition.or_else(|| {
        // Whether types fit was checked by whoever made it; here they are looked at anyway.
        let checked = checked_condition?;
        Some(("checked_condition.expr", checked.expr.unwrap_or_default()))
    });
    let condition = match condition {
        Some((field, expr)) => Some(at.field(field, |at| cel::lower(expr, cel_config, at))?),
        None => None,
    };
    if permissions.is_empty() {
        at.error_at("permissions", "value must contain at least 1 item(s)");
    }
    if principals.is_empty() {
        at.error_at("principals", "value must contain at least 1 item(s)");
    }
    let permissions = or(at.each("permissions", permissions, permission));
    let principals = or(at.each("principals", principals, principal));
    let mut parts = [permissions, principals];
    parts.sort_by_key(Rule::cost);
    Some((parts, condition))
}

fn permission(proto: proto::Permission, at: &mut Lower) -> Option<Rule> {
    let set = |field: &str, set: proto::permission::Set, at: &mut Lower| {
        let proto::permission::Set { rules } = set;
        at.field(field, |at| at.each("rules", rules, permission))
    };
    Some(match proto.rule {
        Some(Permission::AndRules(rules)) => and(set("and_rules", rules, at)),
        Some(Permission::OrRules(rules)) => or(set("or_rules", rules, at)),
        Some(Permission::Any(any)) => only_true("any", any, at)?,
        Some(Permission::Header(proto)) => Rule::Header(at.field("header", |at| header(proto, at))?),
        Some(Permission::UrlPath(path)) => at.field("url_path", |at| url_path(path, at))?,
        Some(Permission::DestinationIp(range)) => ip("destination_ip", Which::Destination, range, at)?,
        Some(Permission::DestinationPort(port)) => {
            if port > 65535 {
                at.error_at("destination_port", "value must be less than or equal to 65535");
            }
            Rule::Port(port, port.saturating_add(1))
        }
        Some(Permission::DestinationPortRange(types::Int32Range { start, end })) => {
            let bounds = (u32::try_from(start), u32::try_from(end));
            let (Ok(start), Ok(end)) = bounds else {
                at.error_at(
                    "destination_port_range",
                    format!("range start {start} or end {end} is out of bounds"),
                );
                return None;
            };
            if start >= end {
                at.error_at(
                    "destination_port_range",
                    format!("range start {start} cannot be greater or equal than range end {end}"),
                );
            }
            if start > 65535 || end > 65536 {
                at.error_at("destination_port_range", format!("range {start} to {end} is out of bounds"));
            }
            Rule::Port(start, end)
        }
        Some(Permission::Metadata(matcher)) => {
            Rule::Metadata(at.field("metadata", |at| value::metadata(matcher, at))?)
        }
        Some(Permission::NotRule(rule)) => {
            Rule::Not(Box::new(at.field("not_rule", |at| permission(*rule, at))?))
        }
        Some(Permission::RequestedServerName(name)) => {
            Rule::ServerName(at.field("requested_server_name", |at| texts(string(name, at)?))?)
        }
        Some(Permission::Matcher(extension)) => at.field("matcher", |at| upstream(extension, at))?,
        Some(Permission::UriTemplate(extension)) => {
            at.field("uri_template", |at| uri_template(extension, at))?
        }
        Some(Permission::SourcedMetadata(sourced)) => {
            at.field("sourced_metadata", |at| sourced_metadata(sourced, at))?
        }
        None => {
            at.error("a rule is required");
            return None;
        }
    })
}

fn principal(proto: proto::Principal, at: &mut Lower) -> Option<Rule> {
    let set = |field: &str, set: proto::principal::Set, at: &mut Lower| {
        let proto::principal::Set { ids } = set;
        at.field(field, |at| at.each("ids", ids, principal))
    };
    Some(match proto.identifier {
        Some(Identifier::AndIds(ids)) => and(set("and_ids", ids, at)),
        Some(Identifier::OrIds(ids)) => or(set("or_ids", ids, at)),
        Some(Identifier::Any(any)) => only_true("any", any, at)?,
        Some(Identifier::Authenticated(proto::principal::Authenticated { principal_name })) => {
            match principal_name {
                None => Rule::Certificate,
                Some(name) => at.field("authenticated.principal_name", |at| {
                    Some(Rule::Principal(texts(string(name, at)?)?))
                })?,
            }
        }
        Some(Identifier::SourceIp(range)) => ip("source_ip", Which::Connection, range, at)?,
        Some(Identifier::DirectRemoteIp(range)) => ip("direct_remote_ip", Which::Direct, range, at)?,
        Some(Identifier::RemoteIp(range)) => ip("remote_ip", Which::Remote, range, at)?,
        Some(Identifier::Header(proto)) => Rule::Header(at.field("header", |at| header(proto, at))?),
        Some(Identifier::UrlPath(path)) => at.field("url_path", |at| url_path(path, at))?,
        Some(Identifier::Metadata(matcher)) => {
            Rule::Metadata(at.field("metadata", |at| value::metadata(matcher, at))?)
        }
        Some(Identifier::FilterState(matcher)) => {
            Rule::FilterState(at.field("filter_state", |at| value::filter_state(matcher, at))?)
        }
        Some(Identifier::NotId(id)) => Rule::Not(Box::new(at.field("not_id", |at| principal(*id, at))?)),
        Some(Identifier::SourcedMetadata(sourced)) => {
            at.field("sourced_metadata", |at| sourced_metadata(sourced, at))?
        }
        Some(Identifier::Custom(extension)) => at.field("custom", |at| custom(extension, at))?,
        None => {
            at.error("an identifier is required");
            return None;
        }
    })
}

fn only_true(field: &str, any: bool, at: &mut Lower) -> Option<Rule> {
    if !any {
        at.error_at(field, "value must equal true");
    }
    Some(Rule::Any)
}

/// All of them; the cheap ones first.
fn and(rules: Vec<Rule>) -> Rule {
    let mut flat = Vec::new();
    for rule in rules {
        match rule {
            Rule::And(more) => flat.extend(more),
            Rule::Any => {}
            rule => flat.push(rule),
        }
    }
    flat.sort_by_key(Rule::cost);
    match flat.len() {
        0 => Rule::Any,
        1 => flat.pop().unwrap_or(Rule::Any),
        _ => Rule::And(flat),
    }
}

/// Any of them: alternatives of one kind are merged.
fn or(rules: Vec<Rule>) -> Rule {
    let mut flat: Vec<Rule> = Vec::new();
    for rule in rules {
        match rule {
            Rule::Or(more) => more.into_iter().for_each(|rule| add(&mut flat, rule)),
            rule => add(&mut flat, rule),
        }
    }
    if flat.iter().any(|rule| matches!(rule, Rule::Any)) {
        return Rule::Any;
    }
    flat.sort_by_key(Rule::cost);
    match flat.len() {
        1 => flat.pop().unwrap_or(Rule::Any),
        // None at all: nothing holds.
        _ => Rule::Or(flat),
    }
}

/// Adds an alternative, to one of its kind if there is one.
fn add(alternatives: &mut Vec<Rule>, rule: Rule) {
    for other in alternatives.iter_mut() {
        match (other, &rule) {
            (Rule::Path(into), Rule::Path(_))
            | (Rule::ServerName(into), Rule::ServerName(_))
            | (Rule::Principal(into), Rule::Principal(_)) => {
                if let Rule::Path(texts) | Rule::ServerName(texts) | Rule::Principal(texts) = rule {
                    into.exact.extend(texts.exact);
                    into.others.extend(texts.others);
                }
                return;
            }
            (Rule::Ip(which, into), Rule::Ip(of, ranges)) if which == of => {
                for range in ranges.iter() {
                    into.insert(*range);
                }
                return;
            }
            _ => {}
        }
    }
    alternatives.push(rule);
}

fn texts(matcher: StringMatcher) -> Option<Texts> {
    Some(match matcher {
        StringMatcher::Exact(text, false) => {
            Texts { exact: HashSet::from([Box::from(text.as_bytes())]), others: Vec::new() }
        }
        matcher => Texts { exact: HashSet::new(), others: vec![matcher] },
    })
}

fn url_path(proto: PathMatcher, at: &mut Lower) -> Option<Rule> {
    let PathMatcher { rule } = proto;
    let path = rule.map(|path_matcher::Rule::Path(path)| path);
    at.required("path", path, |path, at| Some(Rule::Path(texts(string(path, at)?)?)))
}

fn ip(field: &str, which: Which, range: core::CidrRange, at: &mut Lower) -> Option<Rule> {
    Some(Rule::Ip(which, ranges(at.field(field, |at| cidr(range, at)))))
}

fn sourced_metadata(proto: proto::SourcedMetadata, at: &mut Lower) -> Option<Rule> {
    let proto::SourcedMetadata { metadata_matcher, metadata_source } = proto;
    let matcher = at.required("metadata_matcher", metadata_matcher, value::metadata);
    Some(match at.value::<proto::MetadataSource>("metadata_source", metadata_source)? {
        proto::MetadataSource::Dynamic => Rule::Metadata(matcher?),
        proto::MetadataSource::Route => Rule::RouteMetadata(matcher?),
    })
}

fn upstream(proto: core::TypedExtensionConfig, at: &mut Lower) -> Option<Rule> {
    let core::TypedExtensionConfig { name, typed_config } = proto;
    at.required("typed_config", typed_config, |any, at| {
        let any = at.extension(any)?;
        if !leno_api::any::is::<UpstreamIpPortMatcher>(&any) {
            at.unsupported_extension(&name, &any.type_url);
            return None;
        }
        let UpstreamIpPortMatcher { upstream_ip, upstream_port_range } = at.unpack(&any)?;
        if upstream_ip.is_none() && upstream_port_range.is_none() {
            at.error(
                "Invalid UpstreamIpPortMatcher configuration - missing `upstream_ip` and/or `upstream_port_range`",
            );
        }
        let ip: Option<CidrSet> = at.optional("upstream_ip", upstream_ip, cidr).map(|range| ranges([range]));
        let ports = upstream_port_range.map(|types::Int64Range { start, end }| (start, end));
        Some(Rule::Upstream(ip, ports))
    })
}

fn custom(proto: core::TypedExtensionConfig, at: &mut Lower) -> Option<Rule> {
    let core::TypedExtensionConfig { name, typed_config } = proto;
    at.required("typed_config", typed_config, |any, at| {
        let any = at.extension(any)?;
        if !leno_api::any::is::<mtls::Config>(&any) {
            at.unsupported_extension(&name, &any.type_url);
            return None;
        }
        let mtls::Config { san_matcher, any_validated_client_certificate } = at.unpack(&any)?;
        let Some(san) = san_matcher else {
            if !any_validated_client_certificate {
                at.error("envoy.rbac.principals.mtls_authenticated did not have any configured validation");
            }
            return Some(Rule::Verified(None));
        };
        at.field("san_matcher", |at| {
            let tls::SubjectAltNameMatcher { san_type, matcher, oid: _ } = san;
            use tls::subject_alt_name_matcher::SanType;
            let kind = match at.value::<SanType>("san_type", san_type)? {
                SanType::Uri => PeerName::Uri,
                SanType::Dns => PeerName::Dns,
                SanType::Unspecified => {
                    at.error_at("san_type", "value must not be SAN_TYPE_UNSPECIFIED");
                    return None;
                }
                SanType::Email | SanType::IpAddress | SanType::OtherName => {
                    at.unsupported("san_type", true);
                    return None;
                }
            };
            let matcher = at.required("matcher", matcher, string)?;
            Some(Rule::Verified(Some((kind, matcher))))
        })
    })
}

fn uri_template(proto: core::TypedExtensionConfig, at: &mut Lower) -> Option<Rule> {
    let core::TypedExtensionConfig { name, typed_config } = proto;
    at.required("typed_config", typed_config, |any, at| {
        let any = at.extension(any)?;
        if !leno_api::any::is::<UriTemplateMatchConfig>(&any) {
            at.unsupported_extension(&name, &any.type_url);
            return None;
        }
        let UriTemplateMatchConfig { path_template } = at.unpack(&any)?;
        let compiled = template(&path_template).and_then(|pattern| re2::compile_full(&pattern));
        match compiled {
            Ok(regex) => Some(Rule::Template(regex)),
            Err(error) => {
                at.error_at("path_template", error);
                None
            }
        }
    })
}

/// What `*` stands for: one segment or more of it.
const SEGMENT: &str = r"[a-zA-Z0-9\-._~%!$&'()*+,;:@=]+";
/// What `**` stands for.
const REST: &str = r"[a-zA-Z0-9\-._~%!$&'()*+,;:@=/]*";

/// The regular expression of a path template.
pub(super) fn template(template: &str) -> Result<String, String> {
    let mut pattern = String::new();
    let mut rest = template.strip_prefix('/').ok_or("a path template begins with '/'")?;
    pattern.push('/');
    let mut names = HashSet::new();
    let mut ended = false;
    while let Some(next) = rest.chars().next() {
        let literal_behind_rest = matches!(next, '*' | '{' | '/');
        if ended && literal_behind_rest {
            return Err("'**' must be the last operator of a path template".to_owned());
        }
        if let Some(behind) = rest.strip_prefix("**") {
            pattern.push_str(REST);
            ended = true;
            rest = behind;
        } else if let Some(behind) = rest.strip_prefix('*') {
            pattern.push_str(SEGMENT);
            rest = behind;
        } else if let Some(inside) = rest.strip_prefix('{') {
            let (variable, behind) = inside.split_once('}').ok_or("a variable is not closed")?;
            let (name, of) = variable.split_once('=').unwrap_or((variable, "*"));
            let valid = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                && name.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
            if !valid || name.len() > 16 {
                return Err(format!("invalid variable name '{name}'"));
            }
            if !names.insert(name.to_owned()) {
                return Err(format!("variable '{name}' is there twice"));
            }
            if names.len() > 5 {
                return Err("more than 5 variables".to_owned());
            }
            let inner = self::template(&format!("/{of}"))?;
            ended = of.ends_with("**");
            let _ = write!(pattern, "(?:{})", inner.strip_prefix('/').unwrap_or_default());
            rest = behind;
        } else {
            let plain = next.is_ascii_alphanumeric() || "-._~%!$&'()+,;:@=/".contains(next);
            if !plain {
                return Err(format!("'{next}' is not allowed in a path template"));
            }
            if ".$()+".contains(next) {
                pattern.push('\\');
            }
            pattern.push(next);
            rest = rest.get(next.len_utf8()..).unwrap_or_default();
        }
    }
    Ok(pattern)
}

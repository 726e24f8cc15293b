//! Lowering of JwtAuthentication and PerRouteConfig.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::filters::http::jwt_authn::v3 as proto;
use leno_base::Name;
use leno_tls::jwt::KeySet;
use proto::jwt_provider::JwksSourceSpecifier;
use proto::jwt_requirement::RequiresType;
use proto::requirement_rule::RequirementType;

use super::local::Identity;
use super::locations::Locations;
use super::remote::{Ahead, Published, RemoteKeys, Retries};
use super::verify::{Audiences, ClaimPath, Keys, Provider, Requirement};
use super::{JwtAuthn, RouteRequirement, Rule, Settings, StateRules};
use crate::config::address;
use crate::config::filter_id::FilterId;
use crate::config::lower::Lower;
use crate::http::client;
use crate::http::filters::FilterConfig;
use crate::http::headers::Known;
use crate::http::route::config::condition;
use crate::http::route::matcher::{self, header_name};
use crate::http::route::policy::retry_on;

/// What keys are good for where nothing is configured.
const LIFETIME: Duration = Duration::from_secs(600);
/// Seconds that clocks may differ where nothing is configured.
const CLOCK_SKEW: u64 = 60;
/// Defaults of `jwt_cache_config`: tokens, and bytes of the longest.
const CACHE: (usize, usize) = (100, 4096);
/// What a retry policy without `retry_on` reacts to.
const RETRY_ON: &str = "5xx,gateway-error,connect-failure,reset";
/// Says that a token that was extracted was not verified.
const VERIFIED: &str = "x-jwt-signature-verified";

/// Providers as they are configured, in the order of their names.
struct Names<'p>(&'p BTreeMap<String, proto::JwtProvider>);

/// Lowers JwtAuthentication.
pub(super) fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    let proto::JwtAuthentication {
        providers,
        rules,
        filter_state_rules,
        bypass_cors_preflight,
        requirement_map,
        strip_failure_response,
        stat_prefix,
    } = at.unpack(any)?;
    let stat_prefix: Box<str> = match stat_prefix.is_empty() || stat_prefix.ends_with('.') {
        true => stat_prefix.into(),
        false => format!("{stat_prefix}.").into(),
    };
    let known = Names(&providers);
    let lowered = providers.iter().map(|(name, proto)| {
        at.field(&format!("providers[\"{name}\"]"), |at| provider(name, proto.clone(), &stat_prefix, at))
    });
    let providers: Vec<Option<Provider>> = lowered.collect();
    let mut reserved: Vec<Name> = Vec::new();
    for provider in providers.iter().flatten() {
        reserved.extend(provider.claim_headers.iter().map(|(name, _)| name.clone()));
        reserved.extend(provider.payload_header.iter().map(|(name, _)| name.clone()));
    }
    let named = requirements("requirement_map", requirement_map, &known, at);
    let names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(",");
    let rules = at.each("rules", rules, |rule, at| {
        let proto::RequirementRule { r#match, requirement_type } = rule;
        let condition = at.required("match", r#match, condition)?;
        let rule = match requirement_type {
            None => None,
            Some(RequirementType::Requires(proto)) => {
                Some(Arc::new(at.field("requires", |at| known.rule(proto, at))?))
            }
            Some(RequirementType::RequirementName(wanted)) => {
                let found = named.iter().find(|(name, _)| *name == wanted);
                if found.is_none() {
                    at.error_at(
                        "requirement_name",
                        format!("wrong requirement_name: {wanted}. It should be one of [{names}]"),
                    );
                }
                Some(Arc::clone(&found?.1))
            }
        };
        Some((condition, rule))
    });
    let state = filter_state_rules.map(|proto| {
        at.field("filter_state_rules", |at| {
            let proto::FilterStateRule { name, requires } = proto;
            let rules = requirements("requires", requires, &known, at);
            StateRules { key: name.into(), rules: rules.into_iter().collect() }
        })
    });
    let remote = providers.iter().flatten().filter_map(|provider| match &provider.keys {
        Keys::Remote(remote) => Some(Arc::clone(remote)),
        Keys::Local(_) | Keys::None => None,
    });
    let remote = remote.collect();
    let settings = Settings {
        rules,
        named: named.into_iter().map(|(name, rule)| (FilterId::of(&name), rule)).collect(),
        names: names.into(),
        state,
        bypass_cors_preflight,
        strip_failure_response,
        stat_prefix,
        reserved,
        providers: providers.into_iter().collect::<Option<_>>()?,
    };
    Some(Arc::new(JwtAuthn { settings: Arc::new(settings), remote, stats: Default::default() }))
}

/// Lowers PerRouteConfig.
pub(super) fn lower_route(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn Any + Send + Sync>> {
    use proto::per_route_config::RequirementSpecifier as Specifier;
    let proto::PerRouteConfig { requirement_specifier } = at.unpack(any)?;
    Some(Arc::new(match requirement_specifier {
        Some(Specifier::Disabled(disabled)) => {
            if !disabled {
                at.error_at("disabled", "value must equal true");
            }
            RouteRequirement::Disabled
        }
        Some(Specifier::RequirementName(name)) => RouteRequirement::Named(FilterId::of(&name), name.into()),
        None => {
            at.error("one of disabled and requirement_name is required");
            return None;
        }
    }))
}

fn requirements(
    field: &str,
    protos: BTreeMap<String, proto::JwtRequirement>,
    known: &Names<'_>,
    at: &mut Lower,
) -> Vec<(String, Arc<Rule>)> {
    let mut rules = Vec::new();
    for (name, proto) in protos {
        let rule = at.field(&format!("{field}[\"{name}\"]"), |at| known.rule(proto, at));
        rules.extend(rule.map(|rule| (name, Arc::new(rule))));
    }
    rules
}

impl Names<'_> {
    fn rule(&self, proto: proto::JwtRequirement, at: &mut Lower) -> Option<Rule> {
        let mut used = Vec::new();
        let requirement = self.requirement(proto, &[], &mut used, at)?;
        let is_remote = |index: &usize| {
            let provider = self.0.values().nth(*index);
            provider.is_some_and(|provider| {
                matches!(provider.jwks_source_specifier, Some(JwksSourceSpecifier::RemoteJwks(_)))
            })
        };
        used.sort_unstable();
        used.dedup();
        used.retain(is_remote);
        Some(Rule { requirement, remote: used })
    }

    /// `siblings`: the providers that stand beside it; `used`: those that it may ask for keys.
    fn requirement(
        &self,
        proto: proto::JwtRequirement,
        siblings: &[usize],
        used: &mut Vec<usize>,
        at: &mut Lower,
    ) -> Option<Requirement> {
        let proto::JwtRequirement { requires_type } = proto;
        Some(match requires_type {
            None => Requirement::Nothing,
            Some(RequiresType::ProviderName(name)) => {
                at.field("provider_name", |at| self.provider(&name, &[], used, at))?
            }
            Some(RequiresType::ProviderAndAudiences(proto)) => {
                let proto::ProviderWithAudiences { provider_name, audiences } = proto;
                at.field("provider_and_audiences.provider_name", |at| {
                    self.provider(&provider_name, &audiences, used, at)
                })?
            }
            Some(RequiresType::RequiresAll(proto::JwtRequirementAndList { requirements })) => {
                at.field("requires_all", |at| {
                    at_least_two(&requirements, at);
                    let each = |proto, at: &mut Lower| self.requirement(proto, &[], used, at);
                    Requirement::All(at.each("requirements", requirements, each))
                })
            }
            Some(RequiresType::RequiresAny(proto::JwtRequirementOrList { requirements })) => {
                at.field("requires_any", |at| {
                    at_least_two(&requirements, at);
                    self.any(requirements, used, at)
                })
            }
            Some(RequiresType::AllowMissing(())) => Requirement::AllowMissing(self.locations(siblings, used)),
            Some(RequiresType::AllowMissingOrFailed(())) => {
                Requirement::AllowFailed(self.locations(siblings, used), None)
            }
            Some(RequiresType::ExtractOnlyWithoutValidation(proto)) => {
                let proto::ExtractOnlyWithoutValidation { verification_status_header } = proto;
                let name = match verification_status_header.is_empty() {
                    true => Name::new(VERIFIED),
                    false => header_name(&verification_status_header),
                };
                Requirement::AllowFailed(self.locations(siblings, used), Some(name))
            }
        })
    }

    fn any(&self, protos: Vec<proto::JwtRequirement>, used: &mut Vec<usize>, at: &mut Lower) -> Requirement {
        let siblings: Vec<usize> = protos
            .iter()
            .filter_map(|proto| match &proto.requires_type {
                Some(RequiresType::ProviderName(name)) => self.index(name),
                Some(RequiresType::ProviderAndAudiences(both)) => self.index(&both.provider_name),
                _ => None,
            })
            .collect();
        let (mut or_missing, mut or_failed) = (false, None);
        let any = at.each("requirements", protos, |proto, at| match proto.requires_type {
            // It stands for all of them together, and is asked last.
            Some(RequiresType::AllowMissing(())) => {
                or_missing = true;
                None
            }
            Some(RequiresType::AllowMissingOrFailed(())) => {
                or_failed = self.requirement(proto, &siblings, used, at);
                None
            }
            _ => self.requirement(proto, &siblings, used, at),
        });
        let or_missing = or_missing && or_failed.is_none();
        Requirement::Any(any.into_iter().chain(or_failed).collect(), or_missing)
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.0.keys().position(|known| known == name)
    }

    fn provider(
        &self,
        name: &str,
        audiences: &[String],
        used: &mut Vec<usize>,
        at: &mut Lower,
    ) -> Option<Requirement> {
        let Some(index) = self.index(name) else {
            at.error(format!("required provider ['{name}'] is not configured"));
            return None;
        };
        used.push(index);
        let mut locations = Locations::default();
        if let Some(proto) = self.0.get(name) {
            add(proto, &mut locations);
        }
        let audiences = (!audiences.is_empty()).then(|| Audiences::new(audiences));
        Some(Requirement::Provider { index, locations, audiences })
    }

    /// Where these providers' tokens are; without any, those of all.
    fn locations(&self, providers: &[usize], used: &mut Vec<usize>) -> Locations {
        let mut locations = Locations::default();
        for (index, proto) in self.0.values().enumerate() {
            if providers.is_empty() || providers.contains(&index) {
                add(proto, &mut locations);
            }
        }
        // Whoever has issued a token that is found there may be asked.
        used.extend(0..self.0.len());
        locations
    }
}

fn at_least_two(requirements: &[proto::JwtRequirement], at: &mut Lower) {
    if requirements.len() < 2 {
        at.error_at("requirements", "value must contain at least 2 item(s)");
    }
}

/// Adds where a provider's tokens are.
fn add(proto: &proto::JwtProvider, locations: &mut Locations) {
    let issuer = &proto.issuer;
    for header in &proto.from_headers {
        locations.add_header(header_name(&header.name), &header.value_prefix, issuer);
    }
    for name in &proto.from_params {
        locations.add_parameter(name, issuer);
    }
    for name in &proto.from_cookies {
        locations.add_cookie(name, issuer);
    }
    if proto.from_headers.is_empty() && proto.from_params.is_empty() && proto.from_cookies.is_empty() {
        locations.add_header(Name::new(Known::Authorization.text()), "Bearer ", issuer);
        locations.add_parameter("access_token", issuer);
    }
    if !proto.forward_payload_header.is_empty() {
        locations.reserve(header_name(&proto.forward_payload_header));
    }
    for claim in &proto.claim_to_headers {
        locations.reserve(header_name(&claim.header_name));
    }
}

fn provider(name: &str, proto: proto::JwtProvider, stat_prefix: &str, at: &mut Lower) -> Option<Provider> {
    let proto::JwtProvider {
        issuer,
        audiences,
        subjects,
        require_expiration,
        max_lifetime,
        forward,
        // Read where requirements are made.
        from_headers: _,
        from_params: _,
        from_cookies: _,
        forward_payload_header,
        pad_forward_payload_header,
        payload_in_metadata,
        normalize_payload_in_metadata,
        header_in_metadata,
        failed_status_in_metadata,
        clock_skew_seconds,
        jwt_cache_config,
        claim_to_headers,
        clear_route_cache,
        jwks_source_specifier,
    } = proto;
    let subjects = match subjects {
        Some(proto) => Some(at.field("subjects", |at| matcher::string(proto, at))?),
        None => None,
    };
    let max_lifetime = at.duration("max_lifetime", max_lifetime);
    let keys = match jwks_source_specifier {
        Some(JwksSourceSpecifier::LocalJwks(source)) => at.field("local_jwks", |at| {
            let text = address::data_source(source, at)?;
            if text.is_empty() {
                return Some(Keys::None);
            }
            match KeySet::parse(&text) {
                Ok(keys) => Some(Keys::Local(Arc::new(keys))),
                Err(why) => {
                    at.error(format!("provider '{name}' has invalid local jwks: {why}"));
                    None
                }
            }
        })?,
        Some(JwksSourceSpecifier::RemoteJwks(proto)) => {
            at.field("remote_jwks", |at| remote(proto, stat_prefix, at)).map(Keys::Remote)?
        }
        None => {
            at.error("one of remote_jwks and local_jwks is required");
            return None;
        }
    };
    let claim_headers = at.each("claim_to_headers", claim_to_headers, |proto, at| {
        let proto::JwtClaimToHeader { header_name: header, claim_name, claim_path } = proto;
        let path: Vec<Box<str>> = match (claim_name.is_empty(), claim_path.is_empty()) {
            (false, true) => claim_name.split('.').map(Into::into).collect(),
            (true, false) => claim_path.into_iter().map(|segment| segment.key.into()).collect(),
            _ => {
                at.error("exactly one of claim_name and claim_path must be set");
                return None;
            }
        };
        Some((header_name(&header), ClaimPath(path)))
    });
    let lists = normalize_payload_in_metadata.unwrap_or_default().space_delimited_claims;
    let text = |text: String| (!text.is_empty()).then(|| text.into());
    Some(Provider {
        identity: Identity::default(),
        issuer: issuer.into(),
        audiences: Audiences::new(&audiences),
        subjects,
        lifetime: max_lifetime.or(require_expiration.then_some(Duration::MAX)),
        keys,
        forward,
        payload_header: (!forward_payload_header.is_empty())
            .then(|| (header_name(&forward_payload_header), pad_forward_payload_header)),
        claim_headers,
        payload_metadata: text(payload_in_metadata),
        header_metadata: text(header_in_metadata),
        failure_metadata: text(failed_status_in_metadata),
        lists: lists.into_iter().map(Into::into).collect(),
        clock_skew: if clock_skew_seconds == 0 { CLOCK_SKEW } else { clock_skew_seconds.into() },
        cache: jwt_cache_config.map(|proto::JwtCacheConfig { jwt_cache_size, jwt_max_token_size }| {
            let or = |value: u32, default: usize| if value == 0 { default } else { value as usize };
            (or(jwt_cache_size, CACHE.0), or(jwt_max_token_size, CACHE.1))
        }),
        clear_route_cache,
    })
}

fn remote(proto: proto::RemoteJwks, stat_prefix: &str, at: &mut Lower) -> Option<Arc<RemoteKeys>> {
    let proto::RemoteJwks { http_uri, cache_duration, async_fetch, retry_policy } = proto;
    let target = at.required("http_uri", http_uri, client::config::http_uri)?;
    let lifetime = at.duration("cache_duration", cache_duration).unwrap_or(LIFETIME);
    let ahead = async_fetch.map(|proto| {
        let proto::JwksAsyncFetch { fast_listener, failed_refetch_duration } = proto;
        let after_failure = at.duration("async_fetch.failed_refetch_duration", failed_refetch_duration);
        Ahead { fast_listener, after_failure: after_failure.unwrap_or(Duration::from_secs(1)) }
    });
    let retries = at.optional("retry_policy", retry_policy, retries);
    Some(Arc::new(RemoteKeys {
        target,
        // Whole seconds, as Envoy counts; never none, for each request would have them fetched.
        lifetime: Duration::from_secs(lifetime.as_secs().max(1)),
        retries,
        ahead,
        stat_prefix: stat_prefix.into(),
        published: Published::default(),
        fetching: Default::default(),
        begun: Default::default(),
    }))
}

fn retries(proto: core::RetryPolicy, at: &mut Lower) -> Option<Retries> {
    let core::RetryPolicy {
        retry_back_off,
        num_retries,
        retry_on: on,
        retry_priority,
        retry_host_predicate,
        host_selection_retry_max_attempts,
    } = proto;
    at.unsupported("retry_priority", retry_priority.is_some());
    at.unsupported("retry_host_predicate", !retry_host_predicate.is_empty());
    at.unsupported("host_selection_retry_max_attempts", host_selection_retry_max_attempts != 0);
    let (mut base, mut max) = (Duration::from_secs(1), Duration::from_secs(10));
    if let Some(core::BackoffStrategy { base_interval, max_interval }) = retry_back_off {
        base = at.duration("retry_back_off.base_interval", base_interval).unwrap_or(base);
        max = at.duration("retry_back_off.max_interval", max_interval).unwrap_or(base * 10);
        if max < base {
            at.error_at("retry_back_off", "max_interval must be greater than or equal to the base_interval");
        }
    }
    let on = retry_on(if on.is_empty() { RETRY_ON } else { &on });
    Some(Retries { count: num_retries.unwrap_or(1), on, back_off: (base, max) })
}

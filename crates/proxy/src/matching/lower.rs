//! Lowering of `xds.type.matcher.v3.Matcher`.

use std::collections::HashMap;

use leno_api::proto::envoy::extensions::matching::input_matchers as matchers;
use leno_api::proto::envoy::r#type::matcher::v3 as strings;
use leno_api::proto::xds::core::v3::TypedExtensionConfig;
use leno_api::proto::xds::r#type::matcher::v3 as proto;
use leno_base::CidrMap;
use proto::matcher::matcher_list::predicate::{MatchType, PredicateList, SinglePredicate, single_predicate};
use proto::matcher::matcher_tree::{MatchMap, TreeType};

use super::input::{Input, input};
use super::value::{range, value};
use super::{Domains, Matcher, Node, OnMatch, Predicate, Prefixes, RangeEntry, Ranges, Test, Then};
use crate::config::address;
use crate::config::lower::Lower;
use crate::http::route::config::runtime_fraction;
use crate::http::route::matcher::{StringMatcher, string};

/// What the place of a matcher lets it read and do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// There are HTTP messages, not only a connection.
    pub(crate) http: bool,
    /// `keep_matching` is allowed.
    pub(crate) keep_matching: bool,
    /// Why an input of this type (full name) is refused here.
    pub(crate) refuse: fn(&str) -> Option<String>,
}

impl Place {
    /// Connections, e.g. when their filter chain is chosen.
    pub(crate) const CONNECTION: Place = Place { http: false, keep_matching: false, refuse: |_| None };
    /// Requests.
    pub(crate) const REQUEST: Place = Place { http: true, keep_matching: false, refuse: |_| None };
}

/// Lowers a matcher; `action` lowers its leaves.
pub(crate) fn lower<A>(
    proto: proto::Matcher,
    place: Place,
    at: &mut Lower,
    action: &mut dyn FnMut(TypedExtensionConfig, &mut Lower) -> Option<A>,
) -> Option<Matcher<A>> {
    Tree { place, action }.matcher(proto, at)
}

struct Tree<'c, A> {
    place: Place,
    #[allow(clippy::type_complexity, reason = "a type alias would hide what an action is made of")]
    action: &'c mut dyn FnMut(TypedExtensionConfig, &mut Lower) -> Option<A>,
}

impl<A> Tree<'_, A> {
    fn matcher(&mut self, proto: proto::Matcher, at: &mut Lower) -> Option<Matcher<A>> {
        let proto::Matcher { on_no_match, matcher_type } = proto;
        let node = match matcher_type {
            Some(proto::matcher::MatcherType::MatcherList(proto::matcher::MatcherList { matchers })) => {
                let entries = at.field("matcher_list", |at| {
                    at.each("matchers", matchers, |entry, at| {
                        let proto::matcher::matcher_list::FieldMatcher { predicate, on_match } = entry;
                        let predicate =
                            at.required("predicate", predicate, |proto, at| self.predicate(proto, at));
                        let on_match =
                            at.required("on_match", on_match, |proto, at| self.on_match(proto, at));
                        Some((predicate?, on_match?))
                    })
                });
                Some(Node::List(entries))
            }
            Some(proto::matcher::MatcherType::MatcherTree(tree)) => {
                at.field("matcher_tree", |at| self.tree(tree, at))
            }
            None => Some(Node::Empty),
        };
        let otherwise =
            at.optional("on_no_match", on_no_match, |proto, at| self.on_match(*proto, at).map(Box::new));
        Some(Matcher { node: node?, otherwise })
    }

    fn on_match(&mut self, proto: proto::matcher::OnMatch, at: &mut Lower) -> Option<OnMatch<A>> {
        let proto::matcher::OnMatch { keep_matching, on_match } = proto;
        if keep_matching && !self.place.keep_matching {
            at.error_at("keep_matching", "keep_matching is not supported in this context");
        }
        use proto::matcher::on_match::OnMatch as Kind;
        let then = match on_match {
            Some(Kind::Matcher(matcher)) => {
                Then::Matcher(Box::new(at.field("matcher", |at| self.matcher(*matcher, at))?))
            }
            Some(Kind::Action(action)) => Then::Action(at.field("action", |at| (self.action)(action, at))?),
            None => {
                at.error("one of matcher and action is required");
                return None;
            }
        };
        Some(OnMatch { then, keep_matching })
    }

    fn tree(&mut self, proto: proto::matcher::MatcherTree, at: &mut Lower) -> Option<Node<A>> {
        let proto::matcher::MatcherTree { input: from, tree_type } = proto;
        let place = self.place;
        let from = at.required("input", from, |proto, at| input(proto, place, at));
        if from.as_ref().is_some_and(|from| !from.is_text()) {
            at.error("Unsupported data input type: currently only string type is supported in map matcher");
        }
        Some(match tree_type {
            Some(TreeType::ExactMatchMap(map)) => {
                let map = at.field("exact_match_map", |at| self.map(map, at));
                Node::Exact(from?, map)
            }
            Some(TreeType::PrefixMatchMap(map)) => {
                let map = at.field("prefix_match_map", |at| self.map(map, at));
                let mut lengths: Vec<usize> = map.keys().map(|prefix| prefix.len()).collect();
                lengths.sort_unstable_by(|a, b| b.cmp(a));
                lengths.dedup();
                Node::Prefix(from?, Prefixes { lengths, map })
            }
            Some(TreeType::CustomMatch(custom)) => {
                at.field("custom_match", |at| self.custom(custom, from, at))?
            }
            None => {
                at.error("one of exact_match_map, prefix_match_map and custom_match is required");
                return None;
            }
        })
    }

    fn map(&mut self, proto: MatchMap, at: &mut Lower) -> HashMap<Box<[u8]>, OnMatch<A>> {
        let MatchMap { map } = proto;
        // In a fixed order, for the errors.
        let mut entries: Vec<_> = map.into_iter().collect();
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        let lowered = entries.into_iter().filter_map(|(key, on_match)| {
            let on_match = at.field(&format!("map[\"{key}\"]"), |at| self.on_match(on_match, at))?;
            Some((key.into_bytes().into(), on_match))
        });
        lowered.collect()
    }

    fn custom(
        &mut self,
        proto: TypedExtensionConfig,
        from: Option<Input>,
        at: &mut Lower,
    ) -> Option<Node<A>> {
        let TypedExtensionConfig { name, typed_config } = proto;
        at.required("typed_config", typed_config, |any, at| {
            let any = at.extension(any)?;
            match leno_api::any::type_name(&any.type_url) {
                "xds.type.matcher.v3.IPMatcher" => {
                    let ranges = self.ranges(at.unpack(&any)?, at);
                    Some(Node::Ip(from?, ranges))
                }
                "xds.type.matcher.v3.ServerNameMatcher" => {
                    let domains = self.domains(at.unpack(&any)?, at);
                    Some(Node::ServerName(from?, domains))
                }
                _ => {
                    at.unsupported_extension(&name, &any.type_url);
                    None
                }
            }
        })
    }

    fn ranges(&mut self, proto: proto::IpMatcher, at: &mut Lower) -> Ranges<A> {
        let proto::IpMatcher { range_matchers } = proto;
        let mut lowered = Ranges { ranges: CidrMap::default(), entries: Vec::new() };
        at.each("range_matchers", range_matchers, |proto, at| -> Option<()> {
            let proto::ip_matcher::IpRangeMatcher { ranges, on_match, exclusive } = proto;
            let ranges = at.each("ranges", ranges, range);
            let on_match = at.required("on_match", on_match, |proto, at| self.on_match(proto, at))?;
            let index = lowered.entries.len();
            lowered.entries.push(RangeEntry { on_match, exclusive });
            for range in ranges {
                match lowered.ranges.find_mut(&range) {
                    Some(indexes) => indexes.push(index),
                    None => drop(lowered.ranges.insert(range, vec![index])),
                }
            }
            None
        });
        lowered
    }

    fn domains(&mut self, proto: proto::ServerNameMatcher, at: &mut Lower) -> Domains<A> {
        let proto::ServerNameMatcher { domain_matchers } = proto;
        let mut lowered = Domains { names: HashMap::new(), any: None, entries: Vec::new() };
        at.each("domain_matchers", domain_matchers, |proto, at| -> Option<()> {
            let proto::server_name_matcher::DomainMatcher { domains, on_match } = proto;
            let on_match = at.required("on_match", on_match, |proto, at| self.on_match(proto, at))?;
            let index = lowered.entries.len();
            lowered.entries.push(on_match);
            at.each("domains", domains, |domain, at| -> Option<()> {
                let lower = domain.to_ascii_lowercase();
                let name = lower.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(&lower);
                let taken = if lower == "*" {
                    lowered.any.replace(index).is_some()
                } else if name.contains('*') || name.is_empty() {
                    at.error(format!("invalid domain '{domain}': only '*' or '*.suffix' may be wild"));
                    false
                } else {
                    lowered.names.insert(name.as_bytes().into(), index).is_some()
                };
                if taken {
                    at.error(format!("duplicate domain '{domain}'"));
                }
                None
            });
            None
        });
        lowered
    }

    fn predicate(
        &mut self,
        proto: proto::matcher::matcher_list::Predicate,
        at: &mut Lower,
    ) -> Option<Predicate> {
        let proto::matcher::matcher_list::Predicate { match_type } = proto;
        let place = self.place;
        match match_type {
            Some(MatchType::SinglePredicate(SinglePredicate { input: from, matcher })) => {
                at.field("single_predicate", |at| {
                    let from = at.required("input", from, |proto, at| input(proto, place, at));
                    let test = test(matcher, from.as_ref(), at);
                    Some(Predicate::Single(from?, test?))
                })
            }
            Some(MatchType::OrMatcher(list)) => {
                Some(Predicate::Or(at.field("or_matcher", |at| self.predicates(list, at))))
            }
            Some(MatchType::AndMatcher(list)) => {
                Some(Predicate::And(at.field("and_matcher", |at| self.predicates(list, at))))
            }
            Some(MatchType::NotMatcher(predicate)) => {
                let inner = at.field("not_matcher", |at| self.predicate(*predicate, at))?;
                Some(Predicate::Not(Box::new(inner)))
            }
            None => {
                at.error("a predicate is required");
                None
            }
        }
    }

    fn predicates(&mut self, proto: PredicateList, at: &mut Lower) -> Vec<Predicate> {
        let PredicateList { predicate } = proto;
        at.each("predicate", predicate, |proto, at| self.predicate(proto, at))
    }
}

fn test(proto: Option<single_predicate::Matcher>, from: Option<&Input>, at: &mut Lower) -> Option<Test> {
    let text = from.is_none_or(Input::is_text);
    let test = match proto {
        Some(single_predicate::Matcher::ValueMatch(proto)) => {
            Test::Text(at.field("value_match", |at| xds_string(proto, at))?)
        }
        Some(single_predicate::Matcher::CustomMatch(custom)) => {
            at.field("custom_match", |at| custom_test(custom, at))?
        }
        None => {
            at.error("one of value_match and custom_match is required");
            return None;
        }
    };
    // Metadata are no text: a text matcher accepts them as an input, but matches none.
    if from.is_some() && text && matches!(test, Test::Metadata(..)) {
        at.error("Unsupported data input type for this matcher");
    }
    Some(test)
}

fn custom_test(proto: TypedExtensionConfig, at: &mut Lower) -> Option<Test> {
    let TypedExtensionConfig { name, typed_config } = proto;
    at.required("typed_config", typed_config, |any, at| {
        let any = at.extension(any)?;
        let type_name = leno_api::any::type_name(&any.type_url);
        match type_name.strip_prefix("envoy.extensions.matching.input_matchers.") {
            Some("ip.v3.Ip") => {
                // Its one counter says how often an address could not be read; ours always can be.
                let matchers::ip::v3::Ip { cidr_ranges, stat_prefix: _ } = at.unpack(&any)?;
                Some(Test::Ip(address::cidrs("cidr_ranges", cidr_ranges, at)))
            }
            Some("runtime_fraction.v3.RuntimeFraction") => {
                let matchers::runtime_fraction::v3::RuntimeFraction { runtime_fraction: share, seed } =
                    at.unpack(&any)?;
                let share = at.required("runtime_fraction", share, runtime_fraction)?;
                Some(Test::Fraction(share, seed))
            }
            Some("consistent_hashing.v3.ConsistentHashing") => {
                let matchers::consistent_hashing::v3::ConsistentHashing { threshold, modulo, seed } =
                    at.unpack(&any)?;
                if threshold > modulo {
                    at.error(format!("threshold cannot be greater than modulo: {threshold} > {modulo}"));
                }
                Some(Test::Hash { threshold: threshold.into(), modulo: modulo.into(), seed })
            }
            Some("metadata.v3.Metadata") => {
                let matchers::metadata::v3::Metadata { value: wanted, invert } = at.unpack(&any)?;
                Some(Test::Metadata(at.required("value", wanted, value)?, invert))
            }
            _ => {
                at.unsupported_extension(&name, &any.type_url);
                None
            }
        }
    })
}

/// Lowers xds.type.matcher.v3.StringMatcher, which reads as Envoy's own.
fn xds_string(matcher: proto::StringMatcher, at: &mut Lower) -> Option<StringMatcher> {
    let proto::StringMatcher { ignore_case, match_pattern } = matcher;
    use proto::string_matcher::MatchPattern as From;
    use strings::string_matcher::MatchPattern as To;
    let match_pattern = match match_pattern {
        None => None,
        Some(From::Exact(text)) => Some(To::Exact(text)),
        Some(From::Prefix(text)) => Some(To::Prefix(text)),
        Some(From::Suffix(text)) => Some(To::Suffix(text)),
        Some(From::Contains(text)) => Some(To::Contains(text)),
        Some(From::SafeRegex(proto::RegexMatcher { regex, engine_type: _ })) => {
            Some(To::SafeRegex(strings::RegexMatcher { regex, ..Default::default() }))
        }
        Some(From::Custom(TypedExtensionConfig { name, typed_config })) => {
            let type_url = typed_config.map(|any| any.type_url).unwrap_or_default();
            at.field("custom", |at| at.unsupported_extension(&name, &type_url));
            return None;
        }
    };
    string(strings::StringMatcher { ignore_case, match_pattern }, at)
}

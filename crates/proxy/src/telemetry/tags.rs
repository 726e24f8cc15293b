//! `stats_config`: which stats are shown, and which parts of their names are labels.
//!
//! A stat's name carries variable parts, e.g. `cluster.NAME.upstream_rq_200`. Rules take them
//! out and make tags of them: Envoy's default rules, and those of the bootstrap. Each rule
//! looks at the whole name; what it matches is removed when all have looked.

use std::sync::LazyLock;

use leno_api::proto::envoy::config::metrics::v3 as metrics;
use regex::bytes::Regex;

use crate::config::lower::Lower;
use crate::config::re2;
use crate::http::route::matcher::{self, StringMatcher};

/// StatsConfig, lowered.
#[derive(Clone, Debug)]
pub(crate) struct StatsConfig {
    rules: Vec<Rule>,
    /// `fixed_value` tags: they are on all stats.
    fixed: Vec<(String, String)>,
    matcher: Selection,
    /// `histogram_bucket_settings`: the first that matches a name gives its bounds.
    buckets: Vec<(StringMatcher, Vec<f64>)>,
}

/// A rule that takes a tag out of names.
#[derive(Clone, Debug)]
struct Rule {
    tag: String,
    /// Group 1 is removed from the name, group 2 (else 1) is the tag's value.
    pattern: Regex,
    /// Names begin with this, up to a dot: all others need not be looked at.
    first: Option<String>,
    /// Names contain this.
    part: Option<&'static str>,
    /// Whether it is one of Envoy's.
    is_default: bool,
}

/// `stats_matcher`.
#[derive(Clone, Debug)]
enum Selection {
    All,
    Nothing,
    Including(Vec<StringMatcher>),
    Excluding(Vec<StringMatcher>),
}

/// A name without its variable parts, and those.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tagged {
    /// What is left of the name.
    pub(crate) name: String,
    /// Tag and value, in the order of the rules.
    pub(crate) tags: Vec<(String, String)>,
}

/// Envoy's default rules as far as there are such stats here: tag, a part that names have,
/// pattern.
const DEFAULTS: &[(&str, Option<&str>, &str)] = &[
    ("envoy.response_code", Some("_rq_"), r"_rq(_(\d{3}))$"),
    ("envoy.response_code_class", Some("_rq_"), r"_rq_((\d))xx$"),
    ("envoy.grpc_bridge_method", Some(".grpc."), r"^cluster\..*?\.grpc\..*?\.((.*?)\.)\w+?$"),
    ("envoy.grpc_bridge_service", Some(".grpc."), r"^cluster\..*?\.grpc\.((.*?)\.)"),
    ("envoy.route", Some(".route."), r"^vhost\..*?\.route\.((.*?)\.)"),
    ("envoy.virtual_cluster", Some(".vcluster."), r"^vhost\..*?\.vcluster\.((.*?)\.)"),
    ("envoy.virtual_host", None, r"^vhost\.((.*?)\.)"),
    ("envoy.rds_route_config", Some(".rds."), r"^http\..*?\.rds\.((.*?)\.)\w+?$"),
    ("envoy.http_user_agent", Some(".user_agent."), r"^http\..*?\.user_agent\.((.*?)\.)"),
    ("envoy.http_conn_manager_prefix", None, r"^http\.((.*?)\.)"),
    ("envoy.http_conn_manager_prefix", Some(".http."), r"^listener\..*?\.http\.((.*?)\.)"),
    ("envoy.worker_id", Some(".worker_"), r"^(?:listener|server)\..*?worker_((\d+)\.)"),
    ("envoy.worker_id", None, r"^server\.worker_((\d+)\.)"),
    ("envoy.listener_address", None, r"^listener\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)"),
    ("envoy.tcp_prefix", None, r"^tcp\.((.*?)\.)\w+?$"),
    ("envoy.connection_limit_prefix", None, r"^connection_limit\.((.*?)\.)"),
    ("envoy.local_network_ratelimit_prefix", None, r"^local_rate_limit\.((.*?)\.)"),
    (
        "envoy.local_http_ratelimit_prefix",
        Some(".http_local_rate_limit."),
        r"^((.*?)\.)http_local_rate_limit\.",
    ),
    ("envoy.cluster_name", None, r"^cluster\.((.*?)\.)"),
];

static DEFAULT_RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let rules = DEFAULTS.iter().filter_map(|(tag, part, pattern)| {
        let pattern_regex = re2::compile(pattern).ok()?;
        let first = first_token(pattern);
        Some(Rule { tag: (*tag).to_owned(), pattern: pattern_regex, first, part: *part, is_default: true })
    });
    rules.collect()
});

/// The literal token that a pattern begins with, if all names that it matches begin with it.
fn first_token(pattern: &str) -> Option<String> {
    let (token, _) = pattern.strip_prefix('^')?.split_once(r"\.")?;
    let literal = token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    (literal && !token.is_empty()).then(|| token.to_owned())
}

impl Default for StatsConfig {
    fn default() -> Self {
        Self { rules: DEFAULT_RULES.clone(), fixed: Vec::new(), matcher: Selection::All, buckets: Vec::new() }
    }
}

impl StatsConfig {
    /// Lowers `stats_config`.
    pub(crate) fn lower(proto: metrics::StatsConfig, at: &mut Lower) -> Option<Self> {
        let metrics::StatsConfig {
            stats_tags,
            use_all_default_tags,
            stats_matcher,
            histogram_bucket_settings,
            allow_default_tag_overrides,
        } = proto;
        let mut config = Self::default();
        if use_all_default_tags == Some(false) {
            config.rules.clear();
        }
        let overrides = allow_default_tag_overrides == Some(true);
        at.each("stats_tags", stats_tags, |specifier, at| config.add_tag(specifier, overrides, at));
        let matcher = stats_matcher.and_then(|matcher| matcher.stats_matcher);
        config.matcher = match matcher {
            None => Selection::All,
            Some(metrics::stats_matcher::StatsMatcher::RejectAll(reject)) => {
                if reject {
                    Selection::Nothing
                } else {
                    Selection::All
                }
            }
            Some(metrics::stats_matcher::StatsMatcher::ExclusionList(list)) => {
                Selection::Excluding(at.field("stats_matcher.exclusion_list", |at| {
                    at.each("patterns", list.patterns, matcher::string)
                }))
            }
            Some(metrics::stats_matcher::StatsMatcher::InclusionList(list)) => {
                Selection::Including(at.field("stats_matcher.inclusion_list", |at| {
                    at.each("patterns", list.patterns, matcher::string)
                }))
            }
        };
        config.buckets = at.each("histogram_bucket_settings", histogram_bucket_settings, |settings, at| {
            let metrics::HistogramBucketSettings { r#match, mut buckets, bins } = settings;
            at.unsupported("bins", bins.is_some());
            let names = at.required("match", r#match, matcher::string)?;
            buckets.sort_by(f64::total_cmp);
            Some((names, buckets))
        });
        Some(config)
    }

    fn add_tag(&mut self, specifier: metrics::TagSpecifier, overrides: bool, at: &mut Lower) -> Option<()> {
        let metrics::TagSpecifier { tag_name: tag, tag_value } = specifier;
        if tag.is_empty() {
            at.error_at("tag_name", "tag_name cannot be empty");
        }
        match tag_value {
            Some(metrics::tag_specifier::TagValue::FixedValue(value)) => self.fixed.push((tag, value)),
            Some(metrics::tag_specifier::TagValue::Regex(text)) if !text.is_empty() => {
                // Envoy reads these as C++ does, which knows to look ahead; bootstraps of Istio's do.
                let known = text.replace(r"(?=\.).*?", r"(?:\..*?)?");
                match re2::compile(&known) {
                    Ok(pattern) if pattern.captures_len() > 1 => {
                        // Else the default rules of the same tag come first, as rules are in order.
                        if overrides {
                            self.rules.retain(|rule| !(rule.is_default && rule.tag == tag));
                        }
                        self.rules.push(Rule {
                            tag,
                            pattern,
                            first: first_token(&text),
                            part: None,
                            is_default: false,
                        });
                    }
                    Ok(_) => at.error_at("regex", "must have a capture group"),
                    Err(error) => at.error_at("regex", error),
                }
            }
            _ => {
                let named = DEFAULT_RULES.iter().filter(|rule| rule.tag == tag);
                let before = self.rules.len();
                if !self.rules.iter().any(|rule| rule.tag == tag) {
                    self.rules.extend(named.cloned());
                    if self.rules.len() == before {
                        at.error(format!(
                            "No regex specified for tag specifier and no default regex for name: '{tag}'"
                        ));
                    }
                }
            }
        }
        None
    }

    /// Whether a stat is shown at all.
    pub(crate) fn shows(&self, name: &str) -> bool {
        let any = |list: &[StringMatcher]| list.iter().any(|matcher| matcher.matches(name.as_bytes()));
        match &self.matcher {
            Selection::All => true,
            Selection::Nothing => false,
            Selection::Including(list) => any(list),
            Selection::Excluding(list) => !any(list),
        }
    }

    /// The bounds of a histogram; `None`: the usual ones.
    pub(crate) fn bounds(&self, name: &str) -> Option<&[f64]> {
        let found = self.buckets.iter().find(|(matcher, _)| matcher.matches(name.as_bytes()));
        found.map(|(_, bounds)| bounds.as_slice())
    }

    /// Takes the tags out of a name.
    pub(crate) fn tag(&self, name: &str) -> Tagged {
        let mut tags: Vec<(String, String)> = Vec::new();
        let mut removed: Vec<std::ops::Range<usize>> = Vec::new();
        let token = name.split('.').next().unwrap_or_default();
        for rule in &self.rules {
            let applies = rule.first.as_deref().is_none_or(|first| first == token)
                && rule.part.is_none_or(|part| name.contains(part))
                && !tags.iter().any(|(tag, _)| *tag == rule.tag);
            if !applies {
                continue;
            }
            let Some(found) = rule.pattern.captures(name.as_bytes()) else { continue };
            let Some(whole) = found.get(1) else { continue };
            let value = found.get(2).unwrap_or(whole);
            tags.push((rule.tag.clone(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
            removed.push(whole.range());
        }
        tags.extend(self.fixed.iter().cloned());
        let kept = name.char_indices().filter(|(at, _)| !removed.iter().any(|range| range.contains(at)));
        Tagged { name: kept.map(|(_, c)| c).collect(), tags }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use leno_api::proto::envoy::config::metrics::v3 as metrics;
    use leno_api::proto::envoy::r#type::matcher::v3 as matcher;

    use super::StatsConfig;
    use crate::config::lower::Lower;

    fn check(config: &StatsConfig, names: &[&str], expected: &Expect) {
        let lines = names.iter().map(|name| {
            let tagged = config.tag(name);
            let tags: Vec<_> = tagged.tags.iter().map(|(tag, value)| format!("{tag}={value}")).collect();
            format!("{} {}\n", tagged.name, tags.join(" "))
        });
        expected.assert_eq(&lines.collect::<String>());
    }

    #[test]
    fn default_tags() {
        assert_eq!(super::DEFAULT_RULES.len(), super::DEFAULTS.len());
        check(
            &StatsConfig::default(),
            &[
                "cluster.c1.upstream_rq_200",
                "cluster.c1.upstream_rq_2xx",
                "cluster.c1.circuit_breakers.default.cx_open",
                "http.ingress_http.downstream_rq_2xx",
                "listener.127.0.0.1_80.http.ingress.downstream_rq_5xx",
                "listener.127.0.0.1_80.worker_3.downstream_cx_total",
                "listener.[__1]_80.downstream_cx_total",
                "listener.named.downstream_cx_total",
                "tcp.out.downstream_cx_total",
                "server.worker_0.watchdog_miss",
                "http.in.rds.routes.update_success",
                "server.live",
            ],
            &expect![[r#"
                cluster.upstream_rq envoy.response_code=200 envoy.cluster_name=c1
                cluster.upstream_rq_xx envoy.response_code_class=2 envoy.cluster_name=c1
                cluster.circuit_breakers.default.cx_open envoy.cluster_name=c1
                http.downstream_rq_xx envoy.response_code_class=2 envoy.http_conn_manager_prefix=ingress_http
                listener.http.downstream_rq_xx envoy.response_code_class=5 envoy.http_conn_manager_prefix=ingress envoy.listener_address=127.0.0.1_80
                listener.worker_downstream_cx_total envoy.worker_id=3 envoy.listener_address=127.0.0.1_80
                listener.downstream_cx_total envoy.listener_address=[__1]_80
                listener.named.downstream_cx_total 
                tcp.downstream_cx_total envoy.tcp_prefix=out
                server.worker_watchdog_miss envoy.worker_id=0
                http.rds.update_success envoy.rds_route_config=routes envoy.http_conn_manager_prefix=in
                server.live 
            "#]],
        );
    }

    fn tag(name: &str, value: Option<metrics::tag_specifier::TagValue>) -> metrics::TagSpecifier {
        metrics::TagSpecifier { tag_name: name.into(), tag_value: value }
    }

    #[test]
    fn configured_tags_and_matcher() {
        use metrics::tag_specifier::TagValue;
        let prefix = matcher::string_matcher::MatchPattern::Prefix("cluster.".into());
        let pattern = matcher::StringMatcher { match_pattern: Some(prefix), ..Default::default() };
        let patterns = matcher::ListStringMatcher { patterns: vec![pattern] };
        let proto = metrics::StatsConfig {
            stats_tags: vec![
                tag(
                    "cluster_name",
                    Some(TagValue::Regex(r"^cluster\.((.+?(\..+?\.svc\.cluster\.local)?)\.)".into())),
                ),
                tag("envoy.tcp_prefix", None),
                tag("in", Some(TagValue::Regex(r"^listener(?=\.).*?\.http\.((\w+)\.)".into()))),
                tag("zone", Some(TagValue::FixedValue("z".into()))),
            ],
            use_all_default_tags: Some(false),
            stats_matcher: Some(metrics::StatsMatcher {
                stats_matcher: Some(metrics::stats_matcher::StatsMatcher::InclusionList(patterns)),
            }),
            ..metrics::StatsConfig::default()
        };
        let config = Lower::resource(|at| StatsConfig::lower(proto, at)).unwrap();
        check(
            &config,
            &[
                "cluster.outbound|80||a.b.svc.cluster.local.upstream_rq_200",
                "tcp.x.total",
                "http.a.b",
                "listener.1_2.http.a.b",
                "listener.http.a.b",
            ],
            &expect![[r#"
                cluster.upstream_rq_200 cluster_name=outbound|80||a.b.svc.cluster.local zone=z
                tcp.total envoy.tcp_prefix=x zone=z
                http.a.b zone=z
                listener.1_2.http.b in=a zone=z
                listener.http.b in=a zone=z
            "#]],
        );
        assert!(config.shows("cluster.a.b") && !config.shows("http.a.b"));
        let refused = metrics::StatsConfig { stats_tags: vec![tag("none", None)], ..Default::default() };
        let refused = Lower::resource(|at| StatsConfig::lower(refused, at)).unwrap_err();
        expect!["stats_tags[0]: No regex specified for tag specifier and no default regex for name: 'none'"]
            .assert_eq(&refused.to_string());
    }
}

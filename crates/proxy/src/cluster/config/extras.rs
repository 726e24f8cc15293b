//! Lowering of what few clusters have.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::sync::Arc;

use leno_api::proto::envoy::config::cluster::v3 as proto;
use leno_api::proto::envoy::config::common::matcher::v3 as matcher;
use leno_api::proto::envoy::extensions::upstreams::http::v3::http_protocol_options::OutlierDetection;

use crate::cluster::extras::AnswerMatch;
use crate::cluster::pool::preconnect::Preconnect;
use crate::config::lower::Lower;
use crate::http::route::matcher::header;
use crate::listener::network::metadata_exchange::{self, MetadataExchange};
use crate::matching::value::metadata;

/// Lowers PreconnectPolicy; `None`: it asks for nothing.
pub(super) fn preconnect(proto: proto::cluster::PreconnectPolicy, at: &mut Lower) -> Option<Preconnect> {
    let proto::cluster::PreconnectPolicy {
        per_upstream_preconnect_ratio,
        predictive_preconnect_ratio,
        preconnect_enabled_metadata,
    } = proto;
    let endpoints = at.optional("preconnect_enabled_metadata", preconnect_enabled_metadata, metadata);
    let per_upstream = per_upstream_preconnect_ratio.unwrap_or(1.0);
    let predictive = predictive_preconnect_ratio.unwrap_or(1.0);
    (per_upstream > 1.0 || predictive > 1.0).then_some(Preconnect { per_upstream, predictive, endpoints })
}

/// Lowers TrackClusterStats: (timeout_budgets, request_response_sizes).
pub(super) fn tracked(proto: Option<proto::TrackClusterStats>, at: &mut Lower) -> (bool, bool) {
    let Some(proto::TrackClusterStats { timeout_budgets, request_response_sizes, per_endpoint_stats }) =
        proto
    else {
        return (false, false);
    };
    at.unsupported("track_cluster_stats.per_endpoint_stats", per_endpoint_stats);
    (timeout_budgets, request_response_sizes)
}

/// Lowers `HttpProtocolOptions.outlier_detection`.
pub(super) fn errors(proto: OutlierDetection, at: &mut Lower) -> Option<AnswerMatch> {
    let OutlierDetection { error_matcher } = proto;
    at.required("error_matcher", error_matcher, predicate)
}

fn predicate(proto: matcher::MatchPredicate, at: &mut Lower) -> Option<AnswerMatch> {
    use matcher::match_predicate::{MatchSet, Rule};
    let matcher::MatchPredicate { rule } = proto;
    let set = |field: &str, MatchSet { rules }, at: &mut Lower| {
        at.field(field, |at| at.each("rules", rules, predicate))
    };
    Some(match rule {
        Some(Rule::OrMatch(rules)) => AnswerMatch::Or(set("or_match", rules, at)),
        Some(Rule::AndMatch(rules)) => AnswerMatch::And(set("and_match", rules, at)),
        Some(Rule::NotMatch(rule)) => {
            AnswerMatch::Not(Box::new(at.field("not_match", |at| predicate(*rule, at))?))
        }
        Some(Rule::AnyMatch(_)) => AnswerMatch::Any,
        Some(Rule::HttpResponseHeadersMatch(matcher::HttpHeadersMatch { headers })) => {
            let headers = at.field("http_response_headers_match", |at| at.each("headers", headers, header));
            AnswerMatch::Headers(headers)
        }
        // Envoy takes them, and looks at nothing but the response's head.
        Some(
            Rule::HttpRequestHeadersMatch(_)
            | Rule::HttpRequestTrailersMatch(_)
            | Rule::HttpResponseTrailersMatch(_)
            | Rule::HttpRequestGenericBodyMatch(_)
            | Rule::HttpResponseGenericBodyMatch(_),
        ) => AnswerMatch::Never,
        None => {
            at.error("a rule is required");
            return None;
        }
    })
}

/// Lowers `filters`, of which there is one kind. It concerns TCP sessions: HTTP connections do not
/// agree upon its protocol.
pub(super) fn filters(protos: Vec<proto::Filter>, at: &mut Lower) -> Option<Arc<MetadataExchange>> {
    let all = at.each("filters", protos, |filter, at| {
        let proto::Filter { name, typed_config, config_discovery } = filter;
        at.unsupported("config_discovery", config_discovery.is_some());
        at.required("typed_config", typed_config, |any, at| {
            let any = at.extension(any)?;
            if leno_api::any::type_name(&any.type_url) != "envoy.tcp.metadataexchange.config.MetadataExchange"
            {
                at.unsupported_extension(&name, &any.type_url);
                return None;
            }
            at.shared(any, |any, at| metadata_exchange::config(&any, at))
        })
    });
    at.unsupported("filters: more than one", all.len() > 1);
    all.into_iter().next()
}

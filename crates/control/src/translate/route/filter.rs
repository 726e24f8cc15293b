//! What a rule asks of HTTP filters: faults and CORS, as settings of the filters for one route.

use std::collections::BTreeMap;

use leno_api::proto::envoy::extensions::filters::common::fault::v3 as common;
use leno_api::proto::envoy::extensions::filters::http::cors::v3::CorsPolicy as CorsMessage;
use leno_api::proto::envoy::extensions::filters::http::fault::v3 as fault;
use prost_types::Any;

use super::matcher;
use crate::model::duration::Span;
use crate::model::string_match::StringMatch;
use crate::model::virtual_service::{
    CorsPolicy, Fault, GRPC_STATUSES, HttpRoute, Percent, UnmatchedPreflights,
};
use crate::translate::proto::{core, ty};
use crate::translate::resource::pack;

const FAULT: &str = "envoy.filters.http.fault";
const CORS: &str = "envoy.filters.http.cors";

/// The settings of filters for the routes of a rule.
pub(super) fn settings(rule: &HttpRoute) -> BTreeMap<String, Any> {
    let mut entries = BTreeMap::new();
    if let Some(policy) = &rule.cors_policy {
        entries.insert(CORS.to_owned(), pack(&cors(policy)));
    }
    if let Some(message) = rule.fault.as_ref().and_then(inject) {
        entries.insert(FAULT.to_owned(), pack(&message));
    }
    entries
}

/// The faults of a rule; `None` if it has only such as Envoy does not know.
fn inject(injected: &Fault) -> Option<fault::HttpFault> {
    let delay = injected.delay.as_ref().and_then(|delay| {
        Some(common::FaultDelay {
            percentage: Some(share(delay.percentage, delay.percent)),
            fault_delay_secifier: Some(common::fault_delay::FaultDelaySecifier::FixedDelay(
                delay.fixed_delay?.to_proto(),
            )),
        })
    });
    let abort = injected.abort.as_ref().and_then(|abort| {
        let status = abort.http_status.and_then(|status| u32::try_from(status).ok());
        let code = abort.grpc_status.as_ref().and_then(|name| grpc_code(name));
        let error = status
            .map(fault::fault_abort::ErrorType::HttpStatus)
            .or(code.map(fault::fault_abort::ErrorType::GrpcStatus))?;
        Some(fault::FaultAbort {
            percentage: Some(share(abort.percentage, 0)),
            error_type: Some(error),
            ..fault::FaultAbort::default()
        })
    });
    if delay.is_none() && abort.is_none() {
        return None;
    }
    Some(fault::HttpFault { delay, abort, ..fault::HttpFault::default() })
}

/// Of how many requests; none, if nothing is said.
fn share(percentage: Option<Percent>, percent: i32) -> ty::v3::FractionalPercent {
    use ty::v3::fractional_percent::DenominatorType;
    percentage.map_or_else(
        || ty::v3::FractionalPercent {
            numerator: u32::try_from(percent).unwrap_or(0),
            denominator: DenominatorType::Hundred as i32,
        },
        fraction,
    )
}

/// A percentage with four decimals, of which Envoy has no more.
pub(super) fn fraction(percentage: Percent) -> ty::v3::FractionalPercent {
    ty::v3::FractionalPercent {
        // Validated to be 0 to 100, so it fits.
        numerator: (percentage.value * 10_000.0).round() as u32,
        denominator: ty::v3::fractional_percent::DenominatorType::Million as i32,
    }
}

/// The number of a gRPC status.
fn grpc_code(name: &str) -> Option<u32> {
    let position = GRPC_STATUSES.iter().position(|known| *known == name)?;
    u32::try_from(position).ok()
}

fn cors(policy: &CorsPolicy) -> CorsMessage {
    let exact = |origin: &String| StringMatch { exact: Some(origin.clone()), ..StringMatch::default() };
    let old: Vec<StringMatch> = policy.allow_origin.iter().map(exact).collect();
    let origins = if policy.allow_origins.is_empty() { &old } else { &policy.allow_origins };
    let seconds = |age: Span| age.0.as_secs().to_string();
    CorsMessage {
        allow_origin_string_match: origins.iter().filter_map(matcher::string).collect(),
        allow_methods: policy.allow_methods.join(","),
        allow_headers: policy.allow_headers.join(","),
        expose_headers: policy.expose_headers.join(","),
        max_age: policy.max_age.map(seconds).unwrap_or_default(),
        allow_credentials: policy.allow_credentials,
        filter_enabled: Some(core::RuntimeFractionalPercent {
            default_value: Some(ty::v3::FractionalPercent { numerator: 100, denominator: 0 }),
            ..core::RuntimeFractionalPercent::default()
        }),
        forward_not_matching_preflights: Some(
            policy.unmatched_preflights != Some(UnmatchedPreflights::Ignore),
        ),
        ..CorsMessage::default()
    }
}

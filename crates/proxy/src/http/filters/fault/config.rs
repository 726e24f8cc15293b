//! Lowering of HTTPFault, of the chain and of routes alike.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use leno_api::proto::envoy::extensions::filters::common::fault::v3 as common;
use leno_api::proto::envoy::extensions::filters::http::fault::v3 as proto;
use leno_api::proto::envoy::r#type::v3::FractionalPercent;
use leno_base::Name;

use super::{Abort, AbortStatus, Delay, Fault, FaultFilter, FaultSettings, RateLimit, Share};
use crate::config::address::object;
use crate::config::lower::Lower;
use crate::http::filters::FilterConfig;
use crate::http::route::config::fraction;
use crate::http::route::matcher::header;
use crate::telemetry::per_thread::PerThread;

/// Lowers the chain's HTTPFault.
pub(super) fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    let fault = lower_fault(any, at)?;
    Some(Arc::new(FaultFilter {
        name: at.scope().filter_name.clone(),
        fault: Arc::new(fault),
        active: Arc::default(),
        stats: PerThread::default(),
    }))
}

/// Lowers a route's HTTPFault.
pub(super) fn lower_route(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn Any + Send + Sync>> {
    Some(Arc::new(FaultSettings(Arc::new(lower_fault(any, at)?))))
}

fn lower_fault(any: &prost_types::Any, at: &mut Lower) -> Option<Fault> {
    let proto::HttpFault {
        delay,
        abort,
        upstream_cluster,
        headers,
        downstream_nodes,
        max_active_faults,
        response_rate_limit,
        delay_percent_runtime,
        abort_percent_runtime,
        delay_duration_runtime,
        abort_http_status_runtime,
        max_active_faults_runtime,
        response_rate_limit_percent_runtime,
        abort_grpc_status_runtime,
        disable_downstream_cluster_stats,
        filter_metadata,
    } = at.unpack(any)?;
    let runtime = Arc::clone(&at.scope().runtime);
    let key = |configured: String, default: &'static str| {
        if configured.is_empty() { default.into() } else { configured }
    };
    let share = |configured: String, default| runtime.fraction(&key(configured, default));
    let number = |configured: String, default| runtime.integer(&key(configured, default));
    let delay_share = share(delay_percent_runtime, "fault.http.delay.fixed_delay_percent");
    let abort_share = share(abort_percent_runtime, "fault.http.abort.abort_percent");
    let rate_share = share(response_rate_limit_percent_runtime, "fault.http.rate_limit.response_percent");
    let delay_ms = number(delay_duration_runtime, "fault.http.delay.fixed_duration_ms");
    let http_status = number(abort_http_status_runtime, "fault.http.abort.http_status");
    let grpc_status = number(abort_grpc_status_runtime, "fault.http.abort.grpc_status");
    let max_active = number(max_active_faults_runtime, "fault.http.max_active_faults");

    Some(Fault {
        delay: at.optional("delay", delay, |proto, at| lower_delay(proto, delay_share, delay_ms, at)),
        abort: at.optional("abort", abort, |proto, at| {
            lower_abort(proto, abort_share, http_status, grpc_status, at)
        }),
        rate_limit: at.optional("response_rate_limit", response_rate_limit, |proto, at| {
            lower_rate_limit(proto, rate_share, at)
        }),
        upstream_cluster: (!upstream_cluster.is_empty()).then(|| Name::from(upstream_cluster)),
        headers: at.each("headers", headers, header),
        nodes: downstream_nodes.into_iter().map(Into::into).collect(),
        max_active: max_active.or(max_active_faults.map(u64::from)).unwrap_or(u64::MAX),
        cluster_stats: !disable_downstream_cluster_stats,
        metadata: match filter_metadata.map(object) {
            Some(serde_json::Value::Object(map)) => map,
            _ => serde_json::Map::new(),
        },
        runtime,
    })
}

fn lower_delay(
    proto: common::FaultDelay,
    runtime_share: Option<(u32, u32)>,
    runtime_ms: Option<u64>,
    at: &mut Lower,
) -> Option<Delay> {
    let common::FaultDelay { percentage, fault_delay_secifier } = proto;
    use common::fault_delay::FaultDelaySecifier as Specifier;
    let (duration, header) = match fault_delay_secifier {
        Some(Specifier::FixedDelay(fixed)) => {
            let fixed = at.duration("fixed_delay", Some(fixed))?;
            if fixed.is_zero() {
                at.error_at("fixed_delay", "value must be greater than 0s");
            }
            // Milliseconds are the unit, as in Envoy.
            (Some(Duration::from_millis(u64::try_from(fixed.as_millis()).unwrap_or(u64::MAX))), None)
        }
        Some(Specifier::HeaderDelay(common::fault_delay::HeaderDelay {})) => {
            (None, Some("x-envoy-fault-delay-request-percentage"))
        }
        None => {
            at.error_at("fault_delay_secifier", "value is required");
            return None;
        }
    };
    let share = lower_share(percentage, header, runtime_share, at);
    Some(Delay { share, duration, runtime: runtime_ms.map(Duration::from_millis) })
}

fn lower_abort(
    proto: proto::FaultAbort,
    runtime_share: Option<(u32, u32)>,
    runtime_http: Option<u64>,
    runtime_grpc: Option<u64>,
    at: &mut Lower,
) -> Option<Abort> {
    let proto::FaultAbort { percentage, response_body, error_type } = proto;
    use proto::fault_abort::{ErrorType, HeaderAbort};
    let (status, header) = match error_type {
        Some(ErrorType::HttpStatus(status)) => {
            if !(200..600).contains(&status) {
                at.error_at("http_status", "value must be inside range [200, 600)");
            }
            (AbortStatus::Http(at.narrow("http_status", status)?), None)
        }
        Some(ErrorType::GrpcStatus(status)) => (AbortStatus::Grpc(status), None),
        Some(ErrorType::HeaderAbort(HeaderAbort {})) => {
            (AbortStatus::Header, Some("x-envoy-fault-abort-request-percentage"))
        }
        None => {
            at.error_at("error_type", "value is required");
            return None;
        }
    };
    let body = match response_body {
        text if text.is_empty() => Bytes::from_static(b"fault filter abort"),
        text => Bytes::from(text),
    };
    Some(Abort {
        share: lower_share(percentage, header, runtime_share, at),
        status,
        runtime_http,
        runtime_grpc,
        body,
    })
}

fn lower_rate_limit(
    proto: common::FaultRateLimit,
    runtime_share: Option<(u32, u32)>,
    at: &mut Lower,
) -> Option<RateLimit> {
    let common::FaultRateLimit { percentage, limit_type } = proto;
    use common::fault_rate_limit::{FixedLimit, HeaderLimit, LimitType};
    let (kib_per_second, header) = match limit_type {
        Some(LimitType::FixedLimit(FixedLimit { limit_kbps })) => {
            if limit_kbps == 0 {
                at.error_at("fixed_limit.limit_kbps", "value must be greater than or equal to 1");
            }
            (Some(limit_kbps), None)
        }
        Some(LimitType::HeaderLimit(HeaderLimit {})) => {
            (None, Some("x-envoy-fault-throughput-response-percentage"))
        }
        None => {
            at.error_at("limit_type", "value is required");
            return None;
        }
    };
    Some(RateLimit { share: lower_share(percentage, header, runtime_share, at), kib_per_second })
}

/// A share that is not given is 0, as in Envoy.
fn lower_share(
    proto: Option<FractionalPercent>,
    header: Option<&'static str>,
    runtime: Option<(u32, u32)>,
    at: &mut Lower,
) -> Share {
    let configured = proto.map_or((0, 100), |proto| at.field("percentage", |at| fraction(proto, at)));
    Share { configured, header, runtime }
}

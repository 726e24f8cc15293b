//! Retries as Istio gives them to every route, and as rules and the mesh's settings change them.

use leno_api::proto::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use leno_api::proto::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;

use crate::model::duration::Span;
use crate::model::virtual_service::Retries;
use crate::translate::proto::route;
use crate::translate::resource::pack;

/// What cannot harm, as the server has not begun.
const RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
const RETRIES: u32 = 2;

/// How many times another host is looked for when a retry would go to one that failed.
const OTHER_HOST_ATTEMPTS: i64 = 5;

/// After how many failed attempts the priorities that they used are left out.
const PRIORITY_UPDATES: i32 = 2;

/// Retries inside a workload's own proxy: a request that the workload has not seen may be sent again.
const INBOUND_RETRY_ON: &str = "reset-before-request";

/// The retries of an outbound route; `None` if they are turned off. `hashed` is for routes to a
/// cluster whose endpoint is chosen by a hash: another endpoint would not be the right one.
pub(super) fn outbound(retries: Option<&Retries>, hashed: bool) -> Option<route::RetryPolicy> {
    let mut policy = route::RetryPolicy {
        retry_on: RETRY_ON.to_owned(),
        num_retries: Some(RETRIES),
        host_selection_retry_max_attempts: OTHER_HOST_ATTEMPTS,
        ..route::RetryPolicy::default()
    };
    let mut other_hosts = !hashed;
    if let Some(retries) = retries {
        let attempts = u32::try_from(retries.attempts).ok().filter(|attempts| *attempts > 0)?;
        policy.num_retries = Some(attempts);
        if !retries.retry_on.is_empty() {
            (policy.retry_on, policy.retriable_status_codes) = conditions(&retries.retry_on);
        }
        policy.retry_back_off = retries.backoff.map(|base| route::retry_policy::RetryBackOff {
            base_interval: Some(base.to_proto()),
            ..route::retry_policy::RetryBackOff::default()
        });
        policy.per_try_timeout = retries.per_try_timeout.map(Span::to_proto);
        other_hosts = retries.retry_ignore_previous_hosts.unwrap_or(other_hosts);
        if retries.retry_remote_localities == Some(true) {
            policy.retry_priority = Some(previous_priorities());
        }
    }
    if other_hosts {
        policy.retry_host_predicate = vec![previous_hosts()];
    }
    Some(policy)
}

/// The retries of an inbound route.
pub(crate) fn inbound() -> route::RetryPolicy {
    route::RetryPolicy {
        retry_on: INBOUND_RETRY_ON.to_owned(),
        num_retries: Some(RETRIES),
        ..route::RetryPolicy::default()
    }
}

/// Istio allows status codes among the conditions; Envoy wants them apart.
fn conditions(text: &str) -> (String, Vec<u32>) {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let (codes, mut conditions): (Vec<&str>, Vec<&str>) = parts.partition(|part| part.parse::<u32>().is_ok());
    let codes: Vec<u32> = codes.iter().filter_map(|code| code.parse().ok()).collect();
    if !codes.is_empty() && !conditions.contains(&"retriable-status-codes") {
        conditions.push("retriable-status-codes");
    }
    (conditions.join(","), codes)
}

fn previous_hosts() -> route::retry_policy::RetryHostPredicate {
    use route::retry_policy::retry_host_predicate::ConfigType;
    route::retry_policy::RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(ConfigType::TypedConfig(pack(&PreviousHostsPredicate::default()))),
    }
}

fn previous_priorities() -> route::retry_policy::RetryPriority {
    use route::retry_policy::retry_priority::ConfigType;
    let config = PreviousPrioritiesConfig { update_frequency: PRIORITY_UPDATES };
    route::retry_policy::RetryPriority {
        name: "envoy.retry_priorities.previous_priorities".to_owned(),
        config_type: Some(ConfigType::TypedConfig(pack(&config))),
    }
}

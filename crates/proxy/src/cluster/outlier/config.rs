//! Lowering of envoy.config.cluster.v3.OutlierDetection.

use std::time::Duration;

use leno_api::proto::envoy::config::cluster::v3 as proto;

use crate::cluster::outlier::judge::Cause;
use crate::cluster::outlier::{Origin, Streak};
use crate::config::lower::Lower;

/// A detector's settings. Percentages are 0 to 100.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// `interval`, 10 s by default.
    pub(super) interval: Duration,
    /// `base_ejection_time`, 30 s by default.
    pub(super) base_ejection_time: Duration,
    /// `max_ejection_time`, 300 s or the base by default, whichever is longer.
    pub(super) max_ejection_time: Duration,
    /// `max_ejection_time_jitter`, none by default.
    pub(super) jitter: Duration,
    /// `max_ejection_percent`, 10 by default.
    pub(super) max_ejection_percent: u32,
    /// `always_eject_one_host`.
    pub(super) always_eject_one: bool,
    /// `successful_active_health_check_uneject_host`, true by default.
    pub(super) uneject_on_passed_check: bool,
    /// `detect_degraded_hosts`.
    pub(super) detect_degraded: bool,
    /// `split_external_local_origin_errors`.
    pub(super) split_local_origin: bool,
    /// `consecutive_5xx`, 5 by default.
    consecutive_5xx: u32,
    /// `consecutive_gateway_failure`, 5 by default.
    consecutive_gateway_failure: u32,
    /// `consecutive_local_origin_failure`, 5 by default.
    consecutive_local_origin_failure: u32,
    /// `enforcing_*`, in the order of [`Cause`].
    enforcing: [u32; 7],
    /// `success_rate_minimum_hosts`, 5 by default.
    pub(super) success_rate_hosts: u32,
    /// `success_rate_request_volume`, 100 by default.
    pub(super) success_rate_volume: u32,
    /// `success_rate_stdev_factor`, thousandths; 1900 by default.
    pub(super) stdev_factor: u32,
    /// `failure_percentage_threshold`, 85 by default.
    pub(super) failure_threshold: u32,
    /// `failure_percentage_minimum_hosts`, 5 by default.
    pub(super) failure_hosts: u32,
    /// `failure_percentage_request_volume`, 50 by default.
    pub(super) failure_volume: u32,
}

impl Settings {
    /// How many failures in a row are too many.
    pub(super) fn limit(&self, streak: Streak) -> u32 {
        match streak {
            Streak::ServerErrors => self.consecutive_5xx,
            Streak::GatewayFailures => self.consecutive_gateway_failure,
            Streak::LocalOrigin => self.consecutive_local_origin_failure,
        }
    }

    /// In how many of 100 cases a host is ejected for it.
    pub(super) fn enforcing(&self, cause: Cause) -> u32 {
        let [errors, gateway, local, rate, local_rate, failures, local_failures] = self.enforcing;
        match cause {
            Cause::Streak(Streak::ServerErrors) => errors,
            Cause::Streak(Streak::GatewayFailures) => gateway,
            Cause::Streak(Streak::LocalOrigin) => local,
            Cause::SuccessRate(Origin::External) => rate,
            Cause::SuccessRate(Origin::Local) => local_rate,
            Cause::FailurePercentage(Origin::External) => failures,
            Cause::FailurePercentage(Origin::Local) => local_failures,
        }
    }
}

/// Lowers a cluster's settings.
pub(crate) fn lower(proto: proto::OutlierDetection, at: &mut Lower) -> Option<Settings> {
    let proto::OutlierDetection {
        consecutive_5xx,
        interval,
        base_ejection_time,
        max_ejection_percent,
        enforcing_consecutive_5xx,
        enforcing_success_rate,
        success_rate_minimum_hosts,
        success_rate_request_volume,
        success_rate_stdev_factor,
        consecutive_gateway_failure,
        enforcing_consecutive_gateway_failure,
        split_external_local_origin_errors,
        consecutive_local_origin_failure,
        enforcing_consecutive_local_origin_failure,
        enforcing_local_origin_success_rate,
        failure_percentage_threshold,
        enforcing_failure_percentage,
        enforcing_failure_percentage_local_origin,
        failure_percentage_minimum_hosts,
        failure_percentage_request_volume,
        max_ejection_time,
        max_ejection_time_jitter,
        successful_active_health_check_uneject_host,
        monitors,
        always_eject_one_host,
        detect_degraded_hosts,
    } = proto;
    at.unsupported("monitors", !monitors.is_empty());
    let interval = at.duration("interval", interval).unwrap_or(Duration::from_secs(10));
    let base = at.duration("base_ejection_time", base_ejection_time).unwrap_or(Duration::from_secs(30));
    let max =
        at.duration("max_ejection_time", max_ejection_time).unwrap_or(base.max(Duration::from_secs(300)));
    if max < base {
        at.error("outlier detector's max_ejection_time cannot be smaller than base_ejection_time");
        return None;
    }
    Some(Settings {
        // Rates of an interval of less than a millisecond mean nothing, as Envoy's clock has it.
        interval: interval.max(Duration::from_millis(1)),
        base_ejection_time: base,
        max_ejection_time: max,
        jitter: at.duration("max_ejection_time_jitter", max_ejection_time_jitter).unwrap_or_default(),
        max_ejection_percent: max_ejection_percent.unwrap_or(10),
        always_eject_one: always_eject_one_host.unwrap_or(false),
        uneject_on_passed_check: successful_active_health_check_uneject_host.unwrap_or(true),
        detect_degraded: detect_degraded_hosts == Some(true),
        split_local_origin: split_external_local_origin_errors,
        consecutive_5xx: consecutive_5xx.unwrap_or(5),
        consecutive_gateway_failure: consecutive_gateway_failure.unwrap_or(5),
        consecutive_local_origin_failure: consecutive_local_origin_failure.unwrap_or(5),
        enforcing: [
            enforcing_consecutive_5xx.unwrap_or(100),
            enforcing_consecutive_gateway_failure.unwrap_or(0),
            enforcing_consecutive_local_origin_failure.unwrap_or(100),
            enforcing_success_rate.unwrap_or(100),
            enforcing_local_origin_success_rate.unwrap_or(100),
            enforcing_failure_percentage.unwrap_or(0),
            enforcing_failure_percentage_local_origin.unwrap_or(0),
        ],
        success_rate_hosts: success_rate_minimum_hosts.unwrap_or(5),
        success_rate_volume: success_rate_request_volume.unwrap_or(100),
        stdev_factor: success_rate_stdev_factor.unwrap_or(1900),
        failure_threshold: failure_percentage_threshold.unwrap_or(85),
        failure_hosts: failure_percentage_minimum_hosts.unwrap_or(5),
        failure_volume: failure_percentage_request_volume.unwrap_or(50),
    })
}

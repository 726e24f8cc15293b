//! The main thread's task for one cluster's detector, and the log of its verdicts.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use leno_base::rng::Rng;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};

use crate::cluster::Cluster;
use crate::cluster::outlier::judge::{Action, Cause, Judge, OutlierStats, Verdict};
use crate::cluster::outlier::{Origin, Streak};
use crate::telemetry::access_log::sink::LogFile;
use crate::telemetry::access_log::time::rfc3339_millis;
use crate::telemetry::stats::ThreadStats;

/// Ends when dropped.
pub(crate) struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Watches a cluster until the task is dropped; `changed` is called when hosts were ejected or
/// let in. `None`: there is no detector, or it is watched already.
pub(crate) fn start(
    cluster: &Cluster,
    thread: &ThreadStats,
    log: Option<Arc<LogFile>>,
    changed: impl Fn() + Send + 'static,
) -> Option<Task> {
    let detector = Arc::clone(cluster.outlier.as_ref()?);
    let mut inbox = detector.inbox.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()?;
    let stats = OutlierStats::new(thread, &format!("cluster.{}.outlier_detection.", cluster.stat_name));
    let interval = detector.settings.interval;
    let mut judge = Judge::new(Arc::clone(&detector), stats, Rng::from_entropy());
    let name = cluster.name.clone();
    Some(Task(tokio::spawn(async move {
        let mut beat = tokio::time::interval_at(Instant::now() + interval, interval);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let verdicts = tokio::select! {
                notice = inbox.recv() => match notice {
                    Some(notice) => judge.notice(&notice, Instant::now().into_std()),
                    // The detector holds the other end, and this task holds the detector.
                    None => return,
                },
                _ = beat.tick() => judge.interval(Instant::now().into_std()),
            };
            if let Some(log) = &log {
                let now = SystemTime::now();
                let told = |verdict: &&Verdict| !matches!(verdict.action, Action::Degrade(_));
                verdicts
                    .iter()
                    .filter(told)
                    .for_each(|verdict| log.write(format!("{}\n", event(&name, verdict, now)).as_bytes()));
            }
            for verdict in &verdicts {
                tracing::debug!(target: "upstream", cluster = %name, host = %verdict.address, ?verdict.action, "outlier");
            }
            if verdicts.iter().any(Verdict::changes) {
                changed();
            }
        }
    })))
}

impl Verdict {
    /// Whether there is another set of hosts to choose from now.
    fn changes(&self) -> bool {
        !matches!(self.action, Action::Eject { enforced: false, .. })
    }
}

/// envoy.data.cluster.v3.OutlierDetectionEvent.
pub(super) fn event(cluster: &str, verdict: &Verdict, now: SystemTime) -> Value {
    let (kind, action, enforced) = match &verdict.action {
        Action::Eject { cause, enforced, .. } => (cause.name(), "EJECT", *enforced),
        // Degradation is not logged.
        Action::Uneject | Action::Degrade(_) => ("CONSECUTIVE_5XX", "UNEJECT", false),
    };
    let mut fields = serde_json::Map::new();
    let mut put = |name: &str, value: Value| drop(fields.insert(name.to_owned(), value));
    put("type", kind.into());
    put("timestamp", rfc3339_millis(now).into());
    if let Some(since) = verdict.since {
        put("secs_since_last_action", seconds(since).into());
    }
    put("cluster_name", cluster.into());
    put("upstream_url", verdict.address.to_string().into());
    put("action", action.into());
    put("num_ejections", verdict.ejections.into());
    put("enforced", enforced.into());
    if let Action::Eject { cause, evidence, .. } = &verdict.action {
        // Whole percents, as the message has them.
        let (host, mean, threshold) = (evidence.host as u32, evidence.mean as u32, evidence.threshold as u32);
        let (name, reason) = match cause {
            Cause::Streak(_) => ("eject_consecutive_event", json!({})),
            Cause::SuccessRate(_) => (
                "eject_success_rate_event",
                json!({
                    "host_success_rate": host,
                    "cluster_average_success_rate": mean,
                    "cluster_success_rate_ejection_threshold": threshold,
                }),
            ),
            Cause::FailurePercentage(_) => {
                ("eject_failure_percentage_event", json!({"host_success_rate": host}))
            }
        };
        put(name, reason);
    }
    Value::Object(fields)
}

/// 64-bit numbers are strings in protobuf's JSON.
fn seconds(duration: Duration) -> String {
    duration.as_secs().to_string()
}

impl Cause {
    /// envoy.data.cluster.v3.OutlierEjectionType.
    fn name(self) -> &'static str {
        match self {
            Cause::Streak(Streak::ServerErrors) => "CONSECUTIVE_5XX",
            Cause::Streak(Streak::GatewayFailures) => "CONSECUTIVE_GATEWAY_FAILURE",
            Cause::Streak(Streak::LocalOrigin) => "CONSECUTIVE_LOCAL_ORIGIN_FAILURE",
            Cause::SuccessRate(Origin::External) => "SUCCESS_RATE",
            Cause::SuccessRate(Origin::Local) => "SUCCESS_RATE_LOCAL_ORIGIN",
            Cause::FailurePercentage(Origin::External) => "FAILURE_PERCENTAGE",
            Cause::FailurePercentage(Origin::Local) => "FAILURE_PERCENTAGE_LOCAL_ORIGIN",
        }
    }
}

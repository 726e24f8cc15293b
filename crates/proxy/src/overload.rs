//! The overload manager: the main thread samples how loaded resources are (`monitor`), what
//! follows from it (`Plan::levels`) is told to the workers when it changes, and they act on it.
//!
//! A worker reads `Overload`, which is all zeros in good times: `is_calm` is one load. Next:
//! `config` lowers, `monitor` samples.

use std::cell::Cell;
use std::time::Duration;

use leno_base::Name;
use tokio::sync::Notify;

use crate::telemetry::stats::ThreadStats;

pub(crate) mod config;
pub(crate) mod monitor;

/// `overload_manager`, lowered.
#[derive(Debug)]
pub(crate) struct Plan {
    /// `refresh_interval`, 1 s by default.
    pub(crate) refresh: Duration,
    /// `resource_monitors`, but for connections, which are counted as they come.
    pub(crate) monitors: Vec<(Name, monitor::Kind)>,
    /// `max_active_downstream_connections`.
    pub(crate) max_connections: Option<u64>,
    /// `actions` and `loadshed_points` with what triggers each.
    pub(crate) reactions: Vec<(Reaction, Vec<Trigger>)>,
    /// `typed_config` of `reduce_timeouts`.
    pub(crate) timers: [Option<TimerScale>; TIMERS],
}

/// What makes something happen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Trigger {
    /// Index of the monitor.
    monitor: usize,
    /// Nothing happens up to this pressure...
    from: f64,
    /// ... and everything from this one on.
    to: f64,
}

impl Trigger {
    /// How much is to happen: 0 to 1.
    fn level(&self, pressure: f64) -> f64 {
        if pressure >= self.to {
            1.0
        } else if pressure <= self.from {
            0.0
        } else {
            (pressure - self.from) / (self.to - self.from)
        }
    }
}

/// Overload actions and load shed points that this proxy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Reaction {
    /// Requests are answered with 503.
    StopAcceptingRequests,
    /// Responses end their connections.
    DisableHttpKeepalive,
    /// Nothing is accepted any more.
    StopAcceptingConnections,
    /// What is accepted is closed.
    RejectIncomingConnections,
    // Deviation: Envoy's allocator is asked to give free memory back; ours does so by itself.
    /// Nothing more than its stats.
    ShrinkHeap,
    /// Idle connections have less time.
    ReduceTimeouts,
    /// Load shed point: as `RejectIncomingConnections`.
    ShedAccept,
    /// Load shed point: as `StopAcceptingRequests`.
    ShedRequest,
    /// Load shed point: a connection is closed when its first byte comes.
    ShedCodec,
    /// Load shed point: an HTTP/1 request is answered with 500, and its connection closed.
    ShedHttp1,
    /// Load shed point: connections on which something comes end when it is convenient.
    GoAway,
    /// Load shed point: connections on which something comes end at once.
    GoAwayAndClose,
    /// Load shed point: a request is answered with 503 before any filter sees it.
    ShedFilters,
    /// Load shed point: no connection is made for a request.
    ShedUpstream,
    /// Load shed point: a TCP session ends before it has an endpoint.
    ShedTcp,
}

/// How many of them there are.
const REACTIONS: usize = 15;

impl Reaction {
    /// All, in the order of their numbers, with the names that configuration and stats use.
    const ALL: [(Reaction, &'static str); REACTIONS] = [
        (Reaction::StopAcceptingRequests, "envoy.overload_actions.stop_accepting_requests"),
        (Reaction::DisableHttpKeepalive, "envoy.overload_actions.disable_http_keepalive"),
        (Reaction::StopAcceptingConnections, "envoy.overload_actions.stop_accepting_connections"),
        (Reaction::RejectIncomingConnections, "envoy.overload_actions.reject_incoming_connections"),
        (Reaction::ShrinkHeap, "envoy.overload_actions.shrink_heap"),
        (Reaction::ReduceTimeouts, "envoy.overload_actions.reduce_timeouts"),
        (Reaction::ShedAccept, "envoy.load_shed_points.tcp_listener_accept"),
        (Reaction::ShedRequest, "envoy.load_shed_points.http_connection_manager_decode_headers"),
        (Reaction::ShedCodec, "envoy.load_shed_points.hcm_ondata_creating_codec"),
        (Reaction::ShedHttp1, "envoy.load_shed_points.http1_server_abort_dispatch"),
        (Reaction::GoAway, "envoy.load_shed_points.http2_server_go_away_on_dispatch"),
        (Reaction::GoAwayAndClose, "envoy.load_shed_points.http2_server_go_away_and_close_on_dispatch"),
        (Reaction::ShedFilters, "envoy.load_shed_points.http_downstream_filter_check"),
        (Reaction::ShedUpstream, "envoy.load_shed_points.connection_pool_new_connection"),
        (Reaction::ShedTcp, "envoy.load_shed_points.tcp_proxy_upstream_connect"),
    ];

    /// The name that configuration and stats use.
    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(reaction, _)| *reaction == self).map_or("", |(_, name)| name)
    }

    /// Whether it is a load shed point.
    pub(crate) fn is_shed_point(self) -> bool {
        self.name().starts_with("envoy.load_shed_points.")
    }
}

/// Timers that `reduce_timeouts` can shorten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Timed {
    /// `HTTP_DOWNSTREAM_CONNECTION_IDLE`
    ConnectionIdle,
    /// `HTTP_DOWNSTREAM_STREAM_IDLE`
    StreamIdle,
    /// `TRANSPORT_SOCKET_CONNECT`
    TransportConnect,
    /// `HTTP_DOWNSTREAM_CONNECTION_MAX`
    ConnectionMax,
    /// `HTTP_DOWNSTREAM_STREAM_FLUSH`
    StreamFlush,
}

/// How many of them there are.
const TIMERS: usize = 5;

/// How short a timer may become.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum TimerScale {
    /// `min_timeout`
    Least(Duration),
    /// `min_scale`, 0 to 1.
    Share(f64),
}

/// How much of each reaction is called for, 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Levels {
    reactions: [f64; REACTIONS],
    timers: [Option<TimerScale>; TIMERS],
}

impl Levels {
    /// How much of this one is called for.
    pub(crate) fn of(&self, reaction: Reaction) -> f64 {
        self.reactions.get(reaction as usize).copied().unwrap_or(0.0)
    }
}

impl Plan {
    /// What follows from these pressures, one for each monitor.
    pub(crate) fn levels(&self, pressures: &[f64]) -> Levels {
        let mut levels = Levels { timers: self.timers, ..Levels::default() };
        for (reaction, triggers) in &self.reactions {
            let level = triggers
                .iter()
                .map(|trigger| trigger.level(pressures.get(trigger.monitor).copied().unwrap_or(0.0)));
            if let Some(kept) = levels.reactions.get_mut(*reaction as usize) {
                *kept = level.fold(0.0, f64::max);
            }
        }
        levels
    }
}

/// A worker's view of how overloaded the proxy is.
#[derive(Debug, Default)]
pub(crate) struct Overload {
    busy: Cell<bool>,
    levels: Cell<Levels>,
    changed: Notify,
}

impl Overload {
    /// Takes over what the main thread found.
    pub(crate) fn set(&self, levels: Levels) {
        self.busy.set(levels.reactions.iter().any(|level| *level > 0.0));
        self.levels.set(levels);
        self.changed.notify_waiters();
    }

    /// Whether nothing is called for.
    pub(crate) fn is_calm(&self) -> bool {
        !self.busy.get()
    }

    /// Whether this is called for now, given a random number: it is so for a share of cases.
    pub(crate) fn calls_for(&self, reaction: Reaction, random: impl FnOnce() -> u64) -> bool {
        if self.is_calm() {
            return false;
        }
        let level = self.levels.get().of(reaction);
        level >= 1.0 || (level > 0.0 && (random() >> 11) as f64 / ((1u64 << 53) as f64) < level)
    }

    /// The same for a load shed point, which counts.
    pub(crate) fn sheds(&self, point: Reaction, thread: &ThreadStats, random: impl FnOnce() -> u64) -> bool {
        let shed = self.calls_for(point, random);
        if shed {
            let prefix = format!("overload.{}.", point.name());
            monitor::ShedStats::kept(thread, &prefix).shed_load_count().inc();
        }
        shed
    }

    /// Completes when everything of this is no longer called for.
    pub(crate) async fn until_over(&self, reaction: Reaction) {
        loop {
            // Registered before looking, so that a change in between is not missed.
            let changed = self.changed.notified();
            if self.levels.get().of(reaction) < 1.0 {
                return;
            }
            changed.await;
        }
    }

    /// A timeout as it is now.
    pub(crate) fn scaled(&self, timer: Timed, limit: Duration) -> Duration {
        if self.is_calm() {
            return limit;
        }
        let levels = self.levels.get();
        let least = match levels.timers.get(timer as usize).copied().flatten() {
            None => return limit,
            Some(TimerScale::Least(least)) => least.min(limit),
            Some(TimerScale::Share(share)) => limit.mul_f64(share),
        };
        limit - (limit - least).mul_f64(levels.of(Reaction::ReduceTimeouts))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Overload, Plan, Reaction, Timed};
    use crate::config::lower::Lower;

    fn plan(text: &str) -> Plan {
        let proto = leno_api::decode_text(text, "overload").unwrap_or_else(|errors| panic!("{errors}"));
        Lower::resource(|at| Plan::lower(proto, at)).unwrap_or_else(|why| panic!("{why}"))
    }

    const INJECTED: &str = "resource_monitors: [{name: a, typed_config: {'@type': \
        type.googleapis.com/envoy.extensions.resource_monitors.injected_resource.v3.InjectedResourceConfig, filename: f}}]";

    #[test]
    fn pressure_becomes_levels() {
        let plan = plan(&format!(
            "{INJECTED}\nactions:\n- name: envoy.overload_actions.stop_accepting_requests\n  triggers: [{{name: a, threshold: {{value: 0.8}}}}]\n\
             - name: envoy.overload_actions.reduce_timeouts\n  triggers: [{{name: a, scaled: {{scaling_threshold: 0.5, saturation_threshold: 0.9}}}}]\n  \
             typed_config: {{'@type': type.googleapis.com/envoy.config.overload.v3.ScaleTimersOverloadActionConfig, timer_scale_factors: \
             [{{timer: HTTP_DOWNSTREAM_CONNECTION_IDLE, min_timeout: 2s}}, {{timer: HTTP_DOWNSTREAM_STREAM_IDLE, min_scale: {{value: 50}}}}]}}\n\
             loadshed_points: [{{name: envoy.load_shed_points.tcp_listener_accept, triggers: [{{name: a, threshold: {{value: 0.7}}}}]}}]"
        ));
        let overload = Overload::default();
        let at = |pressure: f64| {
            overload.set(plan.levels(&[pressure]));
            let calls = |reaction| overload.calls_for(reaction, || u64::MAX);
            let scaled = |timer| overload.scaled(timer, Duration::from_secs(10)).as_secs_f64();
            (
                [
                    calls(Reaction::StopAcceptingRequests),
                    calls(Reaction::ShedAccept),
                    calls(Reaction::ShrinkHeap),
                ],
                [scaled(Timed::ConnectionIdle), scaled(Timed::StreamIdle), scaled(Timed::ConnectionMax)],
            )
        };
        assert_eq!(at(0.5), ([false, false, false], [10.0, 10.0, 10.0]));
        assert!(overload.is_calm());
        assert_eq!(at(0.7), ([false, true, false], [6.0, 7.5, 10.0]));
        assert_eq!(at(0.9), ([true, true, false], [2.0, 5.0, 10.0]));
        assert!(!overload.is_calm());
        // Half of the cases.
        overload.set(plan.levels(&[0.7]));
        assert!(overload.calls_for(Reaction::ReduceTimeouts, || 1 << 62));
        assert!(!overload.calls_for(Reaction::ReduceTimeouts, || 3 << 62));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            (
                "resource_monitors: [{name: a}]",
                "resource_monitors[0].typed_config: resource monitor 'a' must have a typed config",
            ),
            (
                "actions: [{name: envoy.overload_actions.nothing, triggers: [{name: a, threshold: {value: 1}}]}]",
                "actions[0].name: Unknown Overload Manager Action 'envoy.overload_actions.nothing'",
            ),
            (
                "actions: [{name: envoy.overload_actions.shrink_heap, triggers: [{name: b, threshold: {value: 1}}]}]",
                "actions[0].triggers[0].name: Unknown trigger resource b for overload action envoy.overload_actions.shrink_heap",
            ),
            (
                "actions: [{name: envoy.overload_actions.reset_high_memory_stream, triggers: [{name: a, threshold: {value: 1}}]}]",
                "actions[0].name: overload action 'envoy.overload_actions.reset_high_memory_stream' is not supported yet",
            ),
        ] {
            let text =
                if text.starts_with("resource") { text.to_owned() } else { format!("{INJECTED}\n{text}") };
            let proto = leno_api::decode_text(&text, "overload").unwrap_or_else(|errors| panic!("{errors}"));
            let refused = Lower::resource(|at| Plan::lower(proto, at)).expect_err(&text);
            assert!(refused.to_string().contains(expected), "{refused}");
        }
    }
}

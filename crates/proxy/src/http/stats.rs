//! `http.STAT_PREFIX.` stats, one block per worker and prefix.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use leno_base::Name;

use crate::cluster::stats::{AnswerStats, RouteStats};
use crate::telemetry::stats::{ThreadStats, stats_scope};

stats_scope! {
    /// `http.STAT_PREFIX.`
    pub(crate) struct HttpStats {
        gauge downstream_cx_active;
        counter downstream_cx_delayed_close_timeout;
        counter downstream_cx_destroy;
        counter downstream_cx_destroy_active_rq;
        counter downstream_cx_destroy_local;
        counter downstream_cx_destroy_local_active_rq;
        counter downstream_cx_destroy_remote;
        counter downstream_cx_destroy_remote_active_rq;
        counter downstream_cx_drain_close;
        gauge downstream_cx_http1_active;
        counter downstream_cx_http1_soft_drain;
        counter downstream_cx_http1_total;
        gauge downstream_cx_http2_active;
        counter downstream_cx_http2_total;
        counter downstream_cx_idle_timeout;
        counter downstream_cx_max_duration_reached;
        counter downstream_cx_max_requests_reached;
        counter downstream_cx_overload_disable_keepalive;
        counter downstream_cx_protocol_error;
        counter downstream_cx_rx_bytes_total;
        gauge downstream_cx_ssl_active;
        counter downstream_cx_ssl_total;
        counter downstream_cx_total;
        counter downstream_cx_tx_bytes_total;
        gauge downstream_cx_upgrades_active;
        counter downstream_cx_upgrades_total;
        counter downstream_flow_control_paused_reading_total;
        counter downstream_flow_control_resumed_reading_total;
        counter downstream_rq_1xx;
        counter downstream_rq_2xx;
        counter downstream_rq_3xx;
        counter downstream_rq_4xx;
        counter downstream_rq_5xx;
        gauge downstream_rq_active;
        counter downstream_rq_completed;
        counter downstream_rq_failed_path_normalization;
        counter downstream_rq_header_timeout;
        counter downstream_rq_http1_total;
        counter downstream_rq_http2_total;
        counter downstream_rq_idle_timeout;
        counter downstream_rq_max_duration_reached;
        counter downstream_rq_non_relative_path;
        counter downstream_rq_overload_close;
        counter downstream_rq_redirected_with_normalized_path;
        counter downstream_rq_response_before_rq_complete;
        counter downstream_rq_rx_reset;
        counter downstream_rq_timeout;
        counter downstream_rq_too_large;
        counter downstream_rq_too_many_premature_resets;
        counter downstream_rq_total;
        counter downstream_rq_tx_reset;
        counter downstream_rq_ws_on_non_ws_route;
        counter no_cluster;
        counter no_route;
        counter passthrough_internal_redirect_bad_location;
        counter passthrough_internal_redirect_no_route;
        counter passthrough_internal_redirect_predicate;
        counter passthrough_internal_redirect_too_many_redirects;
        counter passthrough_internal_redirect_unsafe_scheme;
        counter rq_direct_response;
        counter rq_overload_local_reply;
        counter rq_redirect;
        counter rq_reset_after_downstream_response_started;
        counter rq_total;
        counter rs_too_large;
        histogram downstream_cx_length_ms;
        histogram downstream_rq_time;
    }
}

impl HttpStats {
    /// Counts a response to downstream.
    pub(crate) fn count_response(&self, status: u16) {
        self.downstream_rq_completed().inc();
        match status / 100 {
            1 => self.downstream_rq_1xx().inc(),
            2 => self.downstream_rq_2xx().inc(),
            3 => self.downstream_rq_3xx().inc(),
            4 => self.downstream_rq_4xx().inc(),
            5 => self.downstream_rq_5xx().inc(),
            _ => {}
        }
    }
}

/// The worker's scopes of routes, virtual clusters and `x-envoy-upstream-alt-stat-name`, by
/// prefix.
#[derive(Debug, Default)]
pub(crate) struct RouteScopes {
    routes: RefCell<HashMap<Name, Rc<RouteStats>>>,
    answers: RefCell<HashMap<Name, Rc<AnswerStats>>>,
}

impl RouteScopes {
    /// The scope with this prefix.
    pub(crate) fn route(&self, thread: &ThreadStats, prefix: &Name) -> Rc<RouteStats> {
        if let Some(stats) = self.routes.borrow().get(&**prefix) {
            return Rc::clone(stats);
        }
        let stats = Rc::new(RouteStats::new(thread, prefix));
        self.routes.borrow_mut().insert(prefix.clone(), Rc::clone(&stats));
        stats
    }

    /// The scope with this prefix.
    pub(crate) fn answers(&self, thread: &ThreadStats, prefix: Name) -> Rc<AnswerStats> {
        if let Some(stats) = self.answers.borrow().get(&*prefix) {
            return Rc::clone(stats);
        }
        let stats = Rc::new(AnswerStats::new(thread, &prefix));
        self.answers.borrow_mut().insert(prefix, Rc::clone(&stats));
        stats
    }
}

/// The worker's HTTP scopes by `stat_prefix`, kept so that counts outlive connections.
#[derive(Debug, Default)]
pub(crate) struct HttpScopes(RefCell<HashMap<Name, Rc<HttpStats>>>);

impl HttpScopes {
    /// The scope of this prefix.
    pub(crate) fn scope(&self, thread: &ThreadStats, stat_prefix: &Name) -> Rc<HttpStats> {
        if let Some(stats) = self.0.borrow().get(&**stat_prefix) {
            return Rc::clone(stats);
        }
        let stats = Rc::new(HttpStats::new(thread, &format!("http.{stat_prefix}.")));
        self.0.borrow_mut().insert(stat_prefix.clone(), Rc::clone(&stats));
        stats
    }
}

//! Where a request's answers, retries and times are counted besides its cluster: in its virtual
//! cluster and its route, if they are configured to, by who asked (`internal.`, `external.`,
//! `canary.`), and as the request itself says (`x-envoy-upstream-alt-stat-name`).

use std::rc::Rc;
use std::time::Duration;

use leno_base::Name;

use crate::cluster::stats::{AnswerStats, RouteStats};
use crate::cluster::worker_cluster::{Asker, Host, WorkerCluster};
use crate::http::headers::{HeaderMap, Known};
use crate::http::route::Selected;
use crate::http::stream::Stream;

/// The scopes of one request.
#[derive(Debug)]
pub(crate) struct Scopes {
    virtual_cluster: Option<Rc<RouteStats>>,
    route: Option<Rc<RouteStats>>,
    /// `cluster.NAME.ALT.`
    alternative: Option<Name>,
    internal: bool,
    /// Answers are counted: `dynamic_stats`, and it is no health check.
    answers: bool,
    /// `suppress_grpc_request_failure_code_stats`: answers count, their codes do not.
    codes: bool,
}

impl Scopes {
    /// Reads the request's head, and takes out the header that is for stats alone.
    pub(crate) fn new(
        stream: &mut Stream,
        selected: &Selected,
        cluster: &WorkerCluster,
        head: &mut HeaderMap,
    ) -> Self {
        let virtual_cluster = selected.virtual_host.virtual_cluster(head).map(|found| {
            stream.info.virtual_cluster.clone_from(&found.name);
            stream.worker.route_stats(&found.scope)
        });
        let route = selected.route.stat_scope.as_ref().map(|scope| stream.worker.route_stats(scope));
        let alternative = head
            .get_str(Known::EnvoyUpstreamAltStatName)
            .map(|name| Name::from(format!("cluster.{}.{name}.", cluster.config.stat_name)));
        if alternative.is_some() {
            head.remove(Known::EnvoyUpstreamAltStatName);
        }
        let config = &stream.manager.router;
        Self {
            virtual_cluster,
            route,
            alternative,
            internal: head.get(Known::EnvoyInternal) == Some(b"true"),
            answers: config.dynamic_stats && !stream.info.health_check,
            codes: !(config.suppress_grpc_code_stats && stream.is_grpc()),
        }
    }

    /// The virtual cluster's stats and the route's, as far as there are some.
    pub(crate) fn each(&self, mut count: impl FnMut(&RouteStats)) {
        self.virtual_cluster.iter().chain(&self.route).for_each(|stats| count(stats));
    }

    /// Counts an answer, upstream's or ours in its place.
    pub(crate) fn count_response(
        &self,
        stream: &Stream,
        cluster: &WorkerCluster,
        host: Option<&Host>,
        head: Option<&HeaderMap>,
        status: u16,
    ) {
        if !self.answers {
            return;
        }
        cluster.stats.count_response(status, self.codes);
        let thread = stream.worker.stats();
        if is_canary(host, head) {
            cluster.answers(thread, Asker::Canary).count_response(status, self.codes);
        }
        cluster.answers(thread, self.asker()).count_response(status, self.codes);
        self.each(|stats| stats.count_response(status, self.codes));
        self.each_alternative(stream, is_canary(host, head), |stats| {
            stats.count_response(status, self.codes);
        });
    }

    /// Counts an answer that is not taken: the request is tried again.
    pub(crate) fn count_retried(&self, stream: &Stream, cluster: &WorkerCluster, status: u16) {
        cluster.answers(stream.worker.stats(), Asker::Retry).count_response(status, self.codes);
    }

    /// The scopes that the request itself named; few do.
    fn each_alternative(&self, stream: &Stream, canary: bool, mut count: impl FnMut(&AnswerStats)) {
        let Some(scope) = &self.alternative else { return };
        count(&stream.worker.answer_stats(scope.clone()));
        for asker in [Some(self.asker()), canary.then_some(Asker::Canary)].into_iter().flatten() {
            count(&stream.worker.answer_stats(format!("{scope}{}.", asker.text()).into()));
        }
    }

    /// Records how long a complete answer took.
    pub(crate) fn record_time(
        &self,
        stream: &Stream,
        cluster: &WorkerCluster,
        host: Option<&Host>,
        head: &HeaderMap,
        time: Duration,
    ) {
        if !self.answers {
            return;
        }
        cluster.stats.upstream_rq_time().record_ms(time);
        let thread = stream.worker.stats();
        if is_canary(host, Some(head)) {
            cluster.answers(thread, Asker::Canary).upstream_rq_time().record_ms(time);
        }
        cluster.answers(thread, self.asker()).upstream_rq_time().record_ms(time);
        self.each(|stats| stats.upstream_rq_time().record_ms(time));
        self.each_alternative(stream, is_canary(host, Some(head)), |stats| {
            stats.upstream_rq_time().record_ms(time);
        });
    }

    fn asker(&self) -> Asker {
        if self.internal { Asker::Internal } else { Asker::External }
    }
}

/// Whether an answer comes from a canary: it says so, or its endpoint's metadata does.
fn is_canary(host: Option<&Host>, head: Option<&HeaderMap>) -> bool {
    head.is_some_and(|head| head.get(Known::EnvoyUpstreamCanary) == Some(b"true"))
        || host.is_some_and(Host::is_canary)
}

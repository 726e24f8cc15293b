//! Requests of the proxy's own: what filters ask of services (Envoy's AsyncClient), and mirrored
//! copies.
//!
//! A call goes to a cluster like a forwarded request does: through its balancer, pools, circuit
//! breakers and outlier detection. It counts there as a request from inside (`internal.`), and
//! below `http.async-client.` like Envoy's. Messages are whole in both directions. A call is a
//! plain future: dropping it ends the exchange, and with it the stream to the endpoint.
//!
//! A call of which no byte can have been processed is made once more, as forwarded requests are.
//! Reading order: this file, `grpc` (unary calls on top of it), `stream` (messages as they come).

use std::cell::Cell;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use crate::cluster::aggregate::Picked;
use crate::cluster::outlier::Report;
use crate::cluster::worker_cluster::{Asker, Host, WorkerCluster};
use crate::cluster::{PickContext, pool};
use crate::http::codec::h1::client::Answer as Head;
use crate::http::codec::side::{Untouched, Upstream};
use crate::http::codec::{Frame, ResetReason};
use crate::http::forward::active::Active;
use crate::http::headers::{HeaderMap, Known};
use crate::http::normalize::{append_list, own_address};
use crate::http::stream::now;
use crate::telemetry::stats::stats_scope;
use crate::worker::Worker;

pub(crate) mod config;
pub(crate) mod grpc;
pub(crate) mod stream;

stats_scope! {
    /// `http.async-client.`
    struct ClientStats {
        counter no_cluster;
        counter no_route;
        counter rq_direct_response;
        counter rq_redirect;
        counter rq_reset_after_downstream_response_started;
        counter rq_total;
    }
}

/// A request to be made.
#[derive(Debug)]
pub(crate) struct Call {
    /// Its head, with the pseudo-headers.
    pub(crate) head: HeaderMap,
    /// Its body, in pieces.
    pub(crate) body: Vec<Bytes>,
    /// How long all of it may take, connecting included; `None`: for ever.
    pub(crate) timeout: Option<Duration>,
    /// What is kept of the answer's body.
    pub(crate) answer: Wanted,
    /// Who was asked, the last time.
    pub(crate) host: Cell<Option<SocketAddr>>,
}

/// What is kept of an answer's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Nothing: it is read and dropped.
    Nothing,
    /// All of it, up to so many bytes; more is an error.
    All(usize),
}

/// What came back, whatever its status.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The head.
    pub(crate) head: HeaderMap,
    /// The whole body.
    pub(crate) body: Bytes,
    /// The trailers.
    pub(crate) trailers: Option<Box<HeaderMap>>,
}

/// Why nothing came back, or not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallError {
    /// There is no cluster of that name.
    NoCluster,
    /// The cluster has no host to offer.
    NoHost,
    /// The exchange failed before it was answered.
    Failed(ResetReason),
    /// The answer was broken off.
    BrokenOff(ResetReason),
    /// It took too long.
    Timeout,
    /// The answer is longer than allowed.
    TooLong,
}

impl CallError {
    /// The status that the router of Envoy's client gives in place of an answer.
    pub(crate) fn status(self) -> u16 {
        match self {
            CallError::Timeout => 504,
            CallError::Failed(ResetReason::ProtocolError) => 502,
            CallError::NoCluster | CallError::NoHost | CallError::Failed(_) | CallError::BrokenOff(_) => 503,
            CallError::TooLong => 500,
        }
    }
}

impl Call {
    /// A call without body, from inside, in the name of a client that is connected to the `local`
    /// address: `x-envoy-internal` and `x-forwarded-for` say so, as in Envoy.
    pub(crate) fn new(method: &str, authority: &str, path: &str, local: IpAddr) -> Self {
        let mut head = HeaderMap::new();
        head.append_known(Known::Method, method.as_bytes());
        head.append_known(Known::Scheme, b"http");
        head.append_known(Known::Authority, authority.as_bytes());
        head.append_known(Known::Path, path.as_bytes());
        announce(&mut head, local);
        Self { head, body: Vec::new(), timeout: None, answer: Wanted::All(1 << 20), host: Cell::default() }
    }
}

impl Call {
    /// Limits how long it may take, and tells the service so, as Envoy does.
    pub(crate) fn limit(&mut self, timeout: Duration) {
        self.timeout = Some(timeout);
        let millis = timeout.as_millis().to_string();
        self.head.set(Known::EnvoyExpectedRqTimeoutMs, millis.as_bytes());
    }
}

/// Says that a request comes from inside, and through this proxy.
pub(crate) fn announce(head: &mut HeaderMap, local: IpAddr) {
    head.set(Known::EnvoyInternal, b"true");
    append_list(head, Known::XForwardedFor, own_address(local).to_string().as_bytes(), b",");
}

/// Calls a cluster by name.
///
/// # Errors
/// Whatever happens but an answer; a status of 500 is one.
pub(crate) async fn call(worker: &Worker, cluster: &str, call: &Call) -> Result<Answer, CallError> {
    let stats = ClientStats::kept(worker.stats(), "http.async-client.");
    stats.rq_total().inc();
    let Some(cluster) = worker.cluster(cluster) else {
        stats.no_cluster().inc();
        return Err(CallError::NoCluster);
    };
    send(worker, &cluster, call).await
}

/// The same with the cluster at hand, not counted below `http.async-client.`.
///
/// # Errors
/// As `call`.
pub(crate) async fn send(
    worker: &Worker,
    cluster: &Rc<WorkerCluster>,
    call: &Call,
) -> Result<Answer, CallError> {
    let started = now();
    let exchange = exchange(worker, cluster, call);
    let outcome = match call.timeout {
        None => exchange.await,
        Some(limit) => match tokio::time::timeout(limit, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => {
                cluster.stats.upstream_rq_timeout().inc();
                Err(CallError::Timeout)
            }
        },
    };
    count(worker, cluster, &outcome, started);
    outcome
}

/// Counts what came of a call.
fn count(worker: &Worker, cluster: &WorkerCluster, outcome: &Result<Answer, CallError>, started: Instant) {
    let status = match outcome {
        Ok(answer) => answer.head.status(),
        Err(error) => error.status(),
    };
    let inside = cluster.answers(worker.stats(), Asker::Internal);
    cluster.stats.count_response(status, true);
    inside.count_response(status, true);
    if outcome.is_ok() {
        let time = now().saturating_duration_since(started);
        cluster.stats.upstream_rq_time().record_ms(time);
        inside.upstream_rq_time().record_ms(time);
    }
}

/// One attempt, or two if the first cannot have reached anybody.
async fn exchange(worker: &Worker, cluster: &Rc<WorkerCluster>, call: &Call) -> Result<Answer, CallError> {
    let mut fresh = false;
    loop {
        let context = PickContext { headers: Some(&call.head), ..PickContext::default() };
        let Some(Picked { cluster: member, host, .. }) = worker.pick(cluster, &context) else {
            cluster.stats.upstream_cx_none_healthy().inc();
            return Err(CallError::NoHost);
        };
        call.host.set(host.address);
        match attempt(&member, &host, call, fresh).await {
            Err(Broken { untouched: true, .. }) if !fresh => fresh = true,
            Err(Broken { error, .. }) => return Err(error),
            Ok(answer) => return Ok(answer),
        }
    }
}

/// An attempt that failed.
struct Broken {
    error: CallError,
    /// Nothing of the call can have been processed.
    untouched: bool,
}

impl Broken {
    fn after(error: CallError) -> Self {
        Self { error, untouched: false }
    }
}

async fn attempt(
    cluster: &Rc<WorkerCluster>,
    host: &Rc<Host>,
    call: &Call,
    fresh: bool,
) -> Result<Answer, Broken> {
    let grpc = call.head.is_grpc();
    let acquired = if fresh {
        pool::wait(cluster, host, grpc, false, true).await
    } else {
        pool::acquire(cluster, host, grpc, false).await
    };
    let mut up = match acquired {
        Ok(upstream) => upstream,
        Err(failure) => {
            if failure.reason != ResetReason::Overflow {
                host.report(Report::Failed);
            }
            return Err(Broken::after(CallError::Failed(failure.reason)));
        }
    };
    host.report(Report::Connected);
    let Some(active) = Active::new(cluster, host, false) else {
        cluster.stats.upstream_rq_active_overflow().inc();
        return Err(Broken::after(CallError::Failed(ResetReason::Overflow)));
    };
    if let Err(reason) = up.send_head(&call.head, call.body.is_empty()) {
        // The connection ended while nobody looked.
        return Err(Broken { error: CallError::Failed(reason), untouched: true });
    }
    let last = call.body.len();
    for (index, piece) in call.body.iter().enumerate() {
        up.send_data(piece.clone(), index + 1 == last);
    }
    let (head, end) = match read_head(&mut up).await {
        Ok(read) => read,
        Err(reason) => {
            let untouched =
                if reason == ResetReason::RemoteRefused { Untouched::Surely } else { up.untouched() };
            let untouched = match untouched {
                Untouched::Surely => true,
                Untouched::Likely => matches!(call.head.method(), b"GET" | b"HEAD" | b"OPTIONS"),
                Untouched::No => false,
            };
            up.reset();
            if fresh || !untouched {
                host.report(Report::Failed);
                active.failed();
            }
            return Err(Broken { error: CallError::Failed(reason), untouched });
        }
    };
    host.report(Report::answer(&head, grpc));
    let read = if end { Ok((Bytes::new(), None)) } else { read_rest(&mut up, call.answer).await };
    match read {
        Ok((body, trailers)) => {
            active.answered(head.status());
            Ok(Answer { head, body, trailers })
        }
        Err(error) => {
            up.reset();
            if matches!(error, CallError::BrokenOff(_)) {
                host.report(Report::Failed);
                active.failed();
            }
            Err(Broken::after(error))
        }
    }
}

/// Writes the request and reads the final response's head.
async fn read_head(up: &mut Upstream) -> Result<(HeaderMap, bool), ResetReason> {
    let mut head = HeaderMap::new();
    loop {
        let answer = poll_fn(|cx| {
            let _ = up.poll_flush(cx);
            up.poll_head(cx, &mut head)
        });
        match answer.await? {
            Head::Interim => {}
            Head::Final { end } => return Ok((head, end)),
        }
    }
}

/// Reads the rest of a response.
async fn read_rest(up: &mut Upstream, wanted: Wanted) -> Result<(Bytes, Option<Box<HeaderMap>>), CallError> {
    let mut body = BytesMut::new();
    loop {
        let frame = poll_fn(|cx| {
            let _ = up.poll_flush(cx);
            up.poll_frame(cx)
        });
        match frame.await.map_err(CallError::BrokenOff)? {
            Frame::Data { data, end } => {
                match wanted {
                    Wanted::Nothing => {}
                    Wanted::All(limit) if body.len() + data.len() > limit => return Err(CallError::TooLong),
                    Wanted::All(_) => body.extend_from_slice(&data),
                }
                if end {
                    return Ok((body.freeze(), None));
                }
            }
            Frame::Trailers(trailers) => return Ok((body.freeze(), Some(trailers))),
            Frame::End => return Ok((body.freeze(), None)),
        }
    }
}

//! Keys that a service publishes (`remote_jwks`).
//!
//! All workers share what one of them has fetched, and requests that need the same keys wait for
//! the same fetch (in Envoy each worker fetches for itself). With `async_fetch` the keys are
//! fetched before the first request asks, and again before they are too old: that goes on beside
//! requests on one worker (`Background`), and listeners wait for its first attempt unless
//! `fast_listener` says otherwise.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use leno_base::backoff::Backoff;
use leno_base::rng::Rng;
use leno_tls::jwt::KeySet;
use tokio::sync::watch;

use super::JwtStats;
use crate::http::client::config::HttpTarget;
use crate::http::client::{Answer, Call, CallError, Wanted, call, send};
use crate::http::codec::ResetReason;
use crate::http::filters::Background;
use crate::http::headers::Known;
use crate::http::route::RetryOn;
use crate::http::stream::now;
use crate::worker::Worker;

/// Longest set that is read.
const LIMIT: usize = 1 << 20;

/// How long before keys are too old they are fetched again.
const AHEAD: Duration = Duration::from_secs(5);

/// RemoteJwks.
#[derive(Debug)]
pub(super) struct RemoteKeys {
    /// `http_uri`; its timeout is for all of a fetch, retries included.
    pub(super) target: HttpTarget,
    /// `cache_duration`
    pub(super) lifetime: Duration,
    pub(super) retries: Option<Retries>,
    /// `async_fetch`
    pub(super) ahead: Option<Ahead>,
    /// The filter's own part of the stats' names, with a dot if there is one.
    pub(super) stat_prefix: Box<str>,
    pub(super) published: Published,
    /// Somebody fetches on demand.
    pub(super) fetching: AtomicBool,
    /// The work beside requests has begun.
    pub(super) begun: AtomicBool,
}

/// `retry_policy`
#[derive(Debug)]
pub(super) struct Retries {
    pub(super) count: u32,
    pub(super) on: RetryOn,
    /// First and longest wait.
    pub(super) back_off: (Duration, Duration),
}

/// `async_fetch`
#[derive(Debug)]
pub(super) struct Ahead {
    /// Listeners do not wait for the first attempt.
    pub(super) fast_listener: bool,
    /// `failed_refetch_duration`
    pub(super) after_failure: Duration,
}

/// The newest keys.
#[derive(Debug)]
pub(super) struct Published {
    state: watch::Sender<State>,
    /// Counts changes of the keys.
    version: AtomicU64,
}

#[derive(Clone, Debug, Default)]
struct State {
    keys: Option<Arc<KeySet>>,
    /// `None`: they are renewed before they are too old.
    until: Option<Instant>,
    /// Fetches that have ended.
    attempts: u64,
    /// Whether the last of them failed.
    failed: bool,
}

impl Default for Published {
    fn default() -> Self {
        Self { state: watch::Sender::default(), version: AtomicU64::new(0) }
    }
}

impl Published {
    /// Changes whenever the keys do.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The keys, and until when they are good.
    pub(super) fn keys(&self) -> (Option<Arc<KeySet>>, Option<Instant>) {
        let state = self.state.borrow();
        (state.keys.clone(), state.until)
    }

    /// A fetch has ended.
    fn settle(&self, outcome: Result<KeySet, String>, until: Option<Instant>) {
        self.state.send_modify(|state| {
            state.attempts += 1;
            state.failed = outcome.is_err();
            if let Ok(keys) = outcome {
                state.keys = Some(Arc::new(keys));
                state.until = until;
                self.version.fetch_add(1, Ordering::Release);
            }
        });
    }
}

impl RemoteKeys {
    /// Has the keys fetched; says whether they came.
    pub(super) fn fetch(
        self: &Arc<Self>,
        worker: &Rc<Worker>,
        stats: &JwtStats,
        local: IpAddr,
    ) -> impl Future<Output = bool> + 'static {
        let mut ended = self.published.state.subscribe();
        let seen = ended.borrow_and_update().attempts;
        if !self.fetching.swap(true, Ordering::AcqRel) {
            // Apart from the request, which may go away while others wait for the same.
            let (keys, worker, stats) = (Arc::clone(self), Rc::clone(worker), stats.clone());
            tokio::task::spawn_local(async move {
                let outcome = keys.fetch_set(&worker, &stats, local).await;
                let until = now() + keys.lifetime;
                keys.fetching.store(false, Ordering::Release);
                keys.published.settle(outcome, Some(until));
            });
        }
        async move { ended.wait_for(|state| state.attempts > seen).await.is_ok_and(|state| !state.failed) }
    }

    /// One fetch, with its retries.
    async fn fetch_set(&self, worker: &Worker, stats: &JwtStats, local: IpAddr) -> Result<KeySet, String> {
        let attempts = self.attempts(worker, local);
        let outcome = match self.target.timeout {
            None => attempts.await,
            Some(limit) => match tokio::time::timeout(limit, attempts).await {
                Ok(outcome) => outcome,
                Err(_) => Err("it took too long".to_owned()),
            },
        };
        match &outcome {
            Ok(_) => stats.jwks_fetch_success().inc(),
            Err(why) => {
                tracing::warn!(
                    target: "jwt", uri = %format!("{}://{}{}", self.target.scheme, self.target.authority, self.target.path), why,
                    "cannot fetch keys"
                );
                stats.jwks_fetch_failed().inc();
            }
        }
        outcome
    }

    async fn attempts(&self, worker: &Worker, local: IpAddr) -> Result<KeySet, String> {
        let mut left = self.retries.as_ref().map_or(0, |retries| retries.count);
        let mut waits = self.retries.as_ref().map(|retries| {
            let (base, max) = retries.back_off;
            Backoff::new(base, max, Rng::from_entropy())
        });
        let mut request = Call::new("GET", &self.target.authority, &self.target.path, local);
        request.head.set(Known::Scheme, self.target.scheme.as_bytes());
        // As Envoy calls itself here.
        request.head.append_known(Known::UserAgent, b"Go-browser");
        request.answer = Wanted::All(LIMIT);
        // With a retry policy, an attempt may take as long as the first wait.
        let per_try = self.retries.as_ref().map(|retries| retries.back_off.0);
        if let Some(limit) = per_try.or(self.target.timeout) {
            request.limit(limit);
        }
        let mut again = false;
        loop {
            // Counted as one request, whatever the number of attempts.
            let answer = match (worker.cluster(&self.target.cluster), again) {
                (None, _) => Err(CallError::NoCluster),
                (Some(_), false) => call(worker, &self.target.cluster, &request).await,
                (Some(cluster), true) => send(worker, &cluster, &request).await,
            };
            again = true;
            if left > 0
                && let (Some(retries), Some(waits)) = (&self.retries, &mut waits)
                && retries.on.intersects(reasons(&answer))
            {
                left -= 1;
                tokio::time::sleep(waits.next_wait()).await;
                continue;
            }
            let answer = answer.map_err(|error| format!("{error:?}"))?;
            if answer.head.status() != 200 {
                return Err(format!("status {}", answer.head.status()));
            }
            return KeySet::parse(&answer.body).map_err(str::to_owned);
        }
    }

    /// Fetches again and again, as long as the filter is there.
    async fn keep_fresh(
        keys: Weak<Self>,
        worker: Rc<Worker>,
        prefix: String,
        mut ready: Option<Box<dyn FnOnce() + Send>>,
    ) {
        loop {
            let wait = {
                let Some(keys) = keys.upgrade() else { return };
                let Some(ahead) = &keys.ahead else { return };
                let stats = JwtStats::kept(worker.stats(), &prefix);
                let outcome = keys.fetch_set(&worker, &stats, IpAddr::V4(Ipv4Addr::LOCALHOST)).await;
                let wait = match &outcome {
                    Ok(_) if keys.lifetime > AHEAD => keys.lifetime - AHEAD,
                    Ok(_) => keys.lifetime,
                    Err(_) => ahead.after_failure,
                };
                keys.published.settle(outcome, None);
                wait
            };
            if let Some(ready) = ready.take() {
                ready();
            }
            tokio::time::sleep(wait).await;
        }
    }
}

impl Background for RemoteKeys {
    fn claim(&self) -> bool {
        self.ahead.is_some() && !self.begun.swap(true, Ordering::AcqRel)
    }

    fn is_ready(&self) -> bool {
        self.ahead.as_ref().is_none_or(|ahead| ahead.fast_listener)
            || self.published.state.borrow().attempts > 0
    }

    fn start(self: Arc<Self>, worker: &Rc<Worker>, stat_prefix: &str, ready: Box<dyn FnOnce() + Send>) {
        let prefix = format!("http.{stat_prefix}.jwt_authn.{}", self.stat_prefix);
        // The task holds nothing of the filter while it sleeps.
        let task = Self::keep_fresh(Arc::downgrade(&self), Rc::clone(worker), prefix, Some(ready));
        tokio::task::spawn_local(task);
    }
}

/// What a retry policy may react to in an answer, or in its absence.
fn reasons(answer: &Result<Answer, CallError>) -> RetryOn {
    match answer {
        Ok(answer) => match answer.head.status() {
            502..=504 => RetryOn::GATEWAY_ERROR.union(RetryOn::SERVER_ERROR),
            500..600 => RetryOn::SERVER_ERROR,
            409 => RetryOn::RETRIABLE_4XX,
            _ => RetryOn::default(),
        },
        Err(CallError::Failed(
            ResetReason::LocalConnectionFailure | ResetReason::RemoteConnectionFailure,
        )) => RetryOn::CONNECT_FAILURE.union(RetryOn::SERVER_ERROR).union(RetryOn::GATEWAY_ERROR),
        Err(CallError::Failed(_) | CallError::BrokenOff(_)) => {
            RetryOn::RESET.union(RetryOn::SERVER_ERROR).union(RetryOn::GATEWAY_ERROR)
        }
        Err(CallError::NoHost | CallError::Timeout) => RetryOn::SERVER_ERROR.union(RetryOn::GATEWAY_ERROR),
        Err(CallError::NoCluster | CallError::TooLong) => RetryOn::default(),
    }
}

//! What binds a request to endpoints: its hash, the metadata that it asks for, the host that its
//! session sticks to; and what balancers learn from the answer.

use std::rc::Rc;
use std::time::Instant;

use serde_json::{Map, Value};
use smallvec::SmallVec;

use crate::cluster::lb::metadata::{MetadataMatch, NAMESPACE};
use crate::cluster::worker_cluster::{Host, WorkerCluster};
use crate::cluster::{OverrideHost, PickContext};
use crate::http::headers::{HeaderMap, Known};
use crate::http::route::{Forward, Selected};
use crate::http::stream::{Stream, now};
use crate::telemetry::stream_info::StreamInfo;

/// What was found out once for all attempts.
///
/// Deviation: Envoy hashes anew for a retry, when the route has rewritten the request already; so
/// a policy may read another value then.
#[derive(Default)]
pub(super) struct Affinity {
    hash: Option<u64>,
    /// Values of `set-cookie` for the response.
    cookies: SmallVec<[Box<str>; 1]>,
    /// The route's criteria with the request's own, if it has some.
    merged: Option<Box<MetadataMatch>>,
    /// The endpoint has said how busy it is.
    load_noted: bool,
}

impl Affinity {
    /// For a request as it came, before the route rewrites it.
    pub(super) fn new(
        cluster: &Rc<WorkerCluster>,
        selected: &Selected,
        route: &Forward,
        stream: &Stream,
    ) -> Self {
        let mut affinity = Self::default();
        let hashed = stream.worker.with_hashing(cluster, |hashing| {
            let own = cluster.config.extras.as_ref().and_then(|extras| extras.hashing.as_deref());
            let policies = hashing.policy.as_ref().or(own).or(route.hash.as_ref())?;
            Some(policies.hash(Some(&stream.request), &stream.info))
        });
        if let Some(hashed) = hashed {
            affinity.hash = hashed.hash;
            affinity.cookies = hashed.cookies;
        }
        if let Some(own) = stream.info.metadata.get(NAMESPACE) {
            let merged = match selected.metadata_match() {
                Some(route) => route.merged(own),
                None => MetadataMatch::from_object(own),
            };
            affinity.merged = Some(Box::new(merged));
        }
        affinity
    }

    /// What a balancer may know of the request.
    #[inline]
    pub(super) fn context<'a>(&'a self, selected: &'a Selected, stream: &'a Stream) -> PickContext<'a> {
        let info = &stream.info;
        let override_host = info.upstream.override_host.as_ref();
        PickContext {
            original_dst: info.connection.local_restored.then_some(info.connection.local),
            headers: Some(&stream.request),
            metadata: Some(&info.metadata),
            hash: self.hash,
            metadata_match: self.merged.as_deref().or_else(|| selected.metadata_match()),
            override_host: override_host
                .map(|host| OverrideHost { address: &host.address, strict: host.strict }),
            earlier_picks: info.upstream.attempts.saturating_sub(1),
            ..PickContext::default()
        }
    }

    /// An endpoint was chosen: the request is told, if the policy says so.
    #[inline]
    pub(super) fn chosen(cluster: &WorkerCluster, host: &Host, info: &mut StreamInfo) {
        if let Some((namespace, path)) = cluster.config.balancing.selected_key()
            && let Some((first, rest)) = path.split_first()
        {
            let values = info.metadata.values_mut(namespace);
            values.insert(first.clone(), chosen_value(host, rest));
        }
    }

    /// A response's head came: what it says of the endpoint.
    pub(super) fn answered(
        &mut self,
        cluster: &WorkerCluster,
        host: &Host,
        head: &HeaderMap,
        since: Instant,
    ) {
        self.note_load(cluster, host, head);
        if cluster.config.balancing.latencies().is_some() {
            cluster.note_latency(host, now().saturating_duration_since(since));
        }
    }

    /// Trailers came: they count if the head said nothing.
    pub(super) fn trailers(
        &mut self,
        cluster: &WorkerCluster,
        host: Option<&Rc<Host>>,
        trailers: &HeaderMap,
    ) {
        if let Some(host) = host.filter(|_| !self.load_noted) {
            self.note_load(cluster, host, trailers);
        }
    }

    fn note_load(&mut self, cluster: &WorkerCluster, host: &Host, headers: &HeaderMap) {
        self.load_noted = cluster.wants_load_reports() && cluster.note_load(host, headers);
    }

    /// Gives the client the cookies that keep it at its endpoint.
    pub(super) fn set_cookies(&mut self, head: &mut HeaderMap) {
        if self.cookies.is_empty() {
            return;
        }
        for cookie in std::mem::take(&mut self.cookies) {
            head.append_known(Known::SetCookie, cookie.as_bytes());
        }
    }
}

/// An endpoint's address, below these keys.
fn chosen_value(host: &Host, keys: &[String]) -> Value {
    let address = Value::String(host.config.address.to_string());
    keys.iter().rev().fold(address, |value, key| Value::Object(Map::from_iter([(key.clone(), value)])))
}

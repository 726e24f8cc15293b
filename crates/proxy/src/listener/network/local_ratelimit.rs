//! envoy.filters.network.local_ratelimit: connections at a rate; what is beyond it is closed.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use leno_api::proto::envoy::extensions::filters::network::local_ratelimit::v3 as proto;
use prost_types::Any;

use super::{NetworkFilter, NetworkFilterConfig, NetworkStep};
use crate::config::lower::Lower;
use crate::config::{runtime, token_bucket};
use crate::telemetry::per_thread::PerThread;
use crate::telemetry::stats::stats_scope;
use crate::telemetry::stream_info::ConnectionInfo;
use crate::token_bucket::TokenBucket;
use crate::worker::Worker;

stats_scope! {
    /// `local_rate_limit.STAT_PREFIX.`
    struct LocalRateLimitStats {
        counter rate_limited;
    }
}

/// LocalRateLimit.
#[derive(Debug)]
struct LocalRateLimit {
    prefix: Box<str>,
    /// Over all workers.
    bucket: TokenBucket,
    /// `runtime_enabled`.
    enabled: bool,
    stats: PerThread<LocalRateLimitStats>,
}

impl NetworkFilterConfig for LocalRateLimit {
    fn open(&self, worker: &Rc<Worker>) -> Option<Box<dyn NetworkFilter>> {
        if !self.enabled || self.bucket.take(Instant::now()) {
            return None;
        }
        let thread = worker.stats();
        self.stats.of(thread, || LocalRateLimitStats::kept(thread, &self.prefix)).rate_limited().inc();
        Some(Box::new(Refused))
    }
}

/// A connection beyond the rate.
struct Refused;

impl NetworkFilter for Refused {
    fn on_new_connection(&mut self, _: &mut ConnectionInfo) -> NetworkStep {
        NetworkStep::Close("".into())
    }
}

/// Lowers a LocalRateLimit.
pub(super) fn lower(any: &Any, at: &mut Lower) -> Option<Arc<dyn NetworkFilterConfig>> {
    let proto::LocalRateLimit { stat_prefix, token_bucket, runtime_enabled, share_key } = at.unpack(any)?;
    if stat_prefix.is_empty() {
        at.error_at("stat_prefix", "value length must be at least 1 characters");
    }
    // Buckets that several filters share.
    at.unsupported("share_key", !share_key.is_empty());
    Some(Arc::new(LocalRateLimit {
        prefix: format!("local_rate_limit.{stat_prefix}.").into(),
        bucket: at.required("token_bucket", token_bucket, token_bucket::lower)?,
        enabled: runtime::flag(runtime_enabled, at),
        stats: PerThread::default(),
    }))
}

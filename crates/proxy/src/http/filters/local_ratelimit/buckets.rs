//! The buckets of one limit: the default one, and those of descriptors.
//!
//! All workers take from the same buckets. Those of descriptors with wildcards are made as requests
//! come, and the one that was used least recently goes when there are too many.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::http::route::rate_limit::Descriptor;
use crate::token_bucket::TokenBucket;

/// How a bucket fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) max: u32,
    pub(super) per_fill: u32,
    pub(super) interval: Duration,
}

impl Rate {
    fn bucket(self) -> Arc<TokenBucket> {
        Arc::new(TokenBucket::new(self.max, self.per_fill, self.interval, Instant::now()))
    }

    /// Tokens per second.
    fn per_second(self) -> f64 {
        f64::from(self.per_fill) / self.interval.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// A LocalRateLimitDescriptor.
#[derive(Debug)]
pub(super) struct Limit {
    /// Keys, and values; an empty one stands for any.
    pub(super) entries: Vec<(String, String)>,
    pub(super) rate: Rate,
}

impl Limit {
    fn has_wildcard(&self) -> bool {
        self.entries.iter().any(|(_, value)| value.is_empty())
    }

    fn matches(&self, descriptor: &Descriptor) -> bool {
        self.entries.len() == descriptor.entries.len()
            && self.entries.iter().zip(&descriptor.entries).all(|((key, value), (other, other_value))| {
                key == other && (value.is_empty() || value == other_value)
            })
    }
}

/// What is configured: how many buckets there are, and how they fill.
#[derive(Debug)]
pub(super) struct Plan {
    /// `token_bucket`
    pub(super) default: Option<Rate>,
    pub(super) limits: Vec<Limit>,
    /// `always_consume_default_token_bucket`
    pub(super) always_default: bool,
    /// `max_dynamic_descriptors`
    pub(super) max_dynamic: usize,
}

/// The buckets.
#[derive(Debug)]
pub(super) struct Buckets {
    default: Option<Arc<TokenBucket>>,
    /// By limit; those with wildcards have none of their own.
    fixed: Vec<Option<Arc<TokenBucket>>>,
    /// Of those with wildcards, by limit and values.
    dynamic: Mutex<Dynamic>,
}

#[derive(Debug, Default)]
struct Dynamic {
    buckets: HashMap<(usize, Vec<String>), (Arc<TokenBucket>, u64)>,
    uses: u64,
}

/// Whether a request may go on, and the bucket that decided, for headers that tell of it.
#[derive(Debug)]
pub(super) struct Decision {
    pub(super) allowed: bool,
    pub(super) bucket: Option<Arc<TokenBucket>>,
}

impl Plan {
    /// Its buckets, all full.
    pub(super) fn buckets(&self) -> Buckets {
        let fixed = |limit: &Limit| (!limit.has_wildcard()).then(|| limit.rate.bucket());
        Buckets {
            default: self.default.map(Rate::bucket),
            fixed: self.limits.iter().map(fixed).collect(),
            dynamic: Mutex::default(),
        }
    }
}

impl Buckets {
    /// Takes the tokens of a request, if they are there.
    pub(super) fn take(&self, plan: &Plan, descriptors: &[Descriptor], now: Instant) -> Decision {
        let mut found: Vec<(f64, Arc<TokenBucket>, u64)> = Vec::new();
        for descriptor in descriptors {
            if let Some((rate, bucket)) = self.find(plan, descriptor) {
                found.push((rate.per_second(), bucket, descriptor.hits));
            }
        }
        // The slowest first, as in Envoy.
        found.sort_by(|(a, ..), (b, ..)| a.total_cmp(b));
        for (_, bucket, hits) in &found {
            if !bucket.take_many(*hits, now) {
                return Decision { allowed: false, bucket: Some(Arc::clone(bucket)) };
            }
        }
        let first = found.into_iter().next().map(|(_, bucket, _)| bucket);
        if (first.is_none() || plan.always_default)
            && let Some(default) = &self.default
        {
            if !default.take_many(1, now) {
                return Decision { allowed: false, bucket: Some(Arc::clone(default)) };
            }
            return Decision { allowed: true, bucket: Some(first.unwrap_or_else(|| Arc::clone(default))) };
        }
        Decision { allowed: true, bucket: first }
    }

    /// Whether all of them are full, so that new ones would do as well.
    pub(super) fn are_full(&self, now: Instant) -> bool {
        let fixed = self.default.iter().chain(self.fixed.iter().flatten());
        let dynamic = self.dynamic.lock().unwrap_or_else(PoisonError::into_inner);
        fixed.chain(dynamic.buckets.values().map(|(bucket, _)| bucket)).all(|bucket| bucket.is_full(now))
    }

    fn find(&self, plan: &Plan, descriptor: &Descriptor) -> Option<(Rate, Arc<TokenBucket>)> {
        // What is named in full goes before what has wildcards.
        let matching = || plan.limits.iter().enumerate().filter(|(_, limit)| limit.matches(descriptor));
        let exact = matching()
            .find_map(|(index, limit)| Some((limit.rate, Arc::clone(self.fixed.get(index)?.as_ref()?))));
        exact.or_else(|| {
            let (index, limit) = matching().find(|(_, limit)| limit.has_wildcard())?;
            Some((limit.rate, self.dynamic(index, limit, descriptor, plan.max_dynamic)))
        })
    }

    fn dynamic(&self, index: usize, limit: &Limit, descriptor: &Descriptor, max: usize) -> Arc<TokenBucket> {
        let values = descriptor.entries.iter().map(|(_, value)| value.clone()).collect();
        // For the time of a look-up; only requests that match a wildcard come here.
        let mut dynamic = self.dynamic.lock().unwrap_or_else(PoisonError::into_inner);
        dynamic.uses += 1;
        let Dynamic { buckets, uses } = &mut *dynamic;
        let key = (index, values);
        if let Some((bucket, used)) = buckets.get_mut(&key) {
            *used = *uses;
            return Arc::clone(bucket);
        }
        if buckets.len() >= max.max(1)
            && let Some(oldest) =
                buckets.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone())
        {
            buckets.remove(&oldest);
        }
        let bucket = limit.rate.bucket();
        buckets.insert(key, (Arc::clone(&bucket), *uses));
        bucket
    }
}

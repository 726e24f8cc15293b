//! Lowering of envoy.type.v3.TokenBucket.

use std::time::{Duration, Instant};

use leno_api::proto::envoy::r#type::v3 as proto;

use crate::config::lower::Lower;
use crate::token_bucket::TokenBucket;

/// The finest interval that Envoy allows.
const FINEST: Duration = Duration::from_millis(50);

/// Lowers a token bucket; it is full.
pub(crate) fn lower(proto: proto::TokenBucket, at: &mut Lower) -> Option<TokenBucket> {
    let (max, per_fill, interval) = rate(proto, at)?;
    Some(TokenBucket::new(max, per_fill, interval, Instant::now()))
}

/// Lowers what a token bucket says: how many tokens it holds, and how many come in which time.
pub(crate) fn rate(proto: proto::TokenBucket, at: &mut Lower) -> Option<(u32, u32, Duration)> {
    let proto::TokenBucket { max_tokens, tokens_per_fill, fill_interval } = proto;
    if tokens_per_fill == Some(0) {
        at.error_at("tokens_per_fill", "value must be greater than 0");
    }
    if fill_interval.is_none() {
        at.error_at("fill_interval", "value is required");
    }
    let interval = at.duration("fill_interval", fill_interval)?;
    if interval < FINEST {
        at.error_at("fill_interval", "local rate limit token bucket fill timer must be >= 50ms");
    }
    Some((max_tokens, tokens_per_fill.unwrap_or(1), interval))
}

//! What is known and told of traffic: stats, access logs, the facts of a stream.

pub(crate) mod access_log;
pub(crate) mod collector;
pub(crate) mod istio;
pub(crate) mod metadata;
pub(crate) mod per_thread;
pub(crate) mod scrape;
pub(crate) mod server_stats;
pub(crate) mod sinks;
pub(crate) mod stats;
pub(crate) mod stream_info;
pub(crate) mod tags;
pub(crate) mod trace;
pub(crate) mod workload;

//! What is known and told of traffic: stats, access logs, the facts of a stream.

pub(crate) mod access_log;
pub(crate) mod stats;
pub(crate) mod stream_info;

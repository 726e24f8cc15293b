//! The data plane of Leno: a proxy that reads Envoy v3 configuration, static or by xDS.
//!
//! Start reading in `worker` (how a request flows) or `server` (the main thread).

mod admin;
mod allocator;
#[doc(hidden)]
pub mod bench;
mod cluster;
mod compression;
mod config;
mod drain;
#[cfg(test)]
mod fixtures;
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod io;
mod listener;
mod logging;
mod matching;
mod memory;
mod options;
mod overload;
mod proxy_protocol;
mod rbac;
mod server;
mod snapshot;
mod splice;
mod tcp;
mod telemetry;
mod text;
mod tls;
mod token_bucket;
mod turn;
mod worker;

pub use allocator::Allocator;
pub use config::validate::{Summary, validate};
pub use options::Options;
pub use server::{RunError, run, start_log};

//! Fakes and harness for Leno's tests. A development dependency only.
//!
//! - [`envoy`]: the real Envoy, to compare with.

pub mod envoy;

pub mod http;

//! xDS v3 as a protocol, apart from what the resources mean.
//!
//! Two state machines without I/O, each driven by calls and asked for what to send:
//! [`client::Client`], the proxy's side, and [`server::Stream`], the control plane's side of one
//! stream. Both speak the state-of-the-world (SotW) and the incremental (delta) variant over the
//! aggregated service (ADS). Around each lies a thin gRPC shell: [`client::grpc`] and
//! [`server::grpc`].
//!
//! A resource travels as its encoded bytes ([`Resource`]): the control plane encodes it once for
//! all proxies, and the proxy decodes it where it is lowered. [`wire`] writes and reads the
//! messages around it without copying more than the transport demands.
//!
//! Read next: [`types`] for the vocabulary, then [`client`] or [`server`].

pub mod client;
mod messages;
pub mod server;
pub mod types;
pub mod wire;

pub use types::{Mode, Resource, TypeUrl};

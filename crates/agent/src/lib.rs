//! The agent: what runs beside a proxy for it. So far that is its identity.
//!
//! A workload's certificate comes from an authority that speaks Istio's certificate service, be it
//! `leno pilot` or istiod ([`authority`]); it is renewed long before it expires, and kept while the
//! authority is away ([`identity`]); the proxy gets it by SDS on a Unix socket, under the names and on
//! the path that Istio's agent has, so that Envoy can be the proxy as well ([`sds`]).

pub mod authority;
pub mod identity;
pub mod sds;

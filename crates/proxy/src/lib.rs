//! The data plane of Leno: an Envoy-compatible proxy.

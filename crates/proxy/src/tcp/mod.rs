//! Network filters on plain byte streams, one folder each, named as Envoy names them.

pub(crate) mod copy;
pub(crate) mod simple;
pub(crate) mod tcp_proxy;

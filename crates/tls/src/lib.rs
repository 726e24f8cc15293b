//! TLS: keys, certificates, verification of peers, and the `rustls` configurations made of them.
//!
//! Knows nothing of Envoy's messages, sockets or runtimes: the proxy lowers its configuration
//! into this crate's types and drives the sessions that come out.

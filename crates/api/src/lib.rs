//! Envoy v3, xDS and Istio messages as Rust types, generated at build time (see build.rs).
pub mod proto {
    #![allow(missing_docs, clippy::all, rustdoc::all, unreachable_pub, unused_qualifications)]
    include!(concat!(env!("OUT_DIR"), "/protos.rs"));
}

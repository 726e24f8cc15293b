//! Envoy v3, xDS and Istio messages as Rust types, and the codec between them and YAML or JSON.
//!
//! - [`proto`]: prost types, generated at build time (see build.rs);
//! - [`schema`]: every message and enum of the protos as static tables, also those without a Rust
//!   type: names, numbers, kinds, constraints. The rest of the crate is driven by it;
//! - [`yaml`]: text to a tree of nodes that know their place, and serde from there;
//! - [`decode`]: nodes to messages, by the proto3 JSON mapping, with every error and its place;
//! - [`validate`]: `validate.rules` constraints, unknown and deprecated fields, on wire bytes;
//! - [`encode`]: messages to JSON or YAML text;
//! - [`merge`]: one message into another of its type;
//! - [`any`], [`duration`], [`typed_struct`]: small conveniences around well-known types.
//!
//! Read `decode.rs` first.

pub mod any;
pub mod decode;
pub mod duration;
pub mod encode;
mod error;
pub mod merge;
#[cfg(test)]
mod oracle;
pub mod schema;
pub mod typed_struct;
pub mod validate;
mod wire;
pub mod yaml;

pub use decode::decode_text;
pub use error::{Error, Errors};

/// The generated types, in modules named after the proto packages.
pub mod proto {
    #![allow(missing_docs, clippy::all, rustdoc::all, unreachable_pub, unused_qualifications)]
    include!(concat!(env!("OUT_DIR"), "/protos.rs"));
}

//! End to end: `leno up` on the samples, asked from outside as a user would.
//!
//! One table of requests and expected answers is driven against our proxy and against the real
//! Envoy (`--proxy envoy=...`): the same YAML, the same answers. Tests that need network
//! namespaces or Envoy say what they skip where they cannot have them.
//!
//! `mesh` starts and ends a mesh, `load` makes requests; the cases are in the other files.

mod bad_input;
mod bookinfo;
mod grpc;
mod lifecycle;
mod load;
mod mesh;
mod shift;

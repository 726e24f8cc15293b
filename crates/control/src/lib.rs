//! The control plane of Leno: from Istio's resources to xDS, for Leno's proxies and for Envoy.
//!
//! The way of a change, folder by folder:
//!
//! 1. `source`: where configuration comes from (folders of YAML, a Kubernetes cluster), as changes to
//!    objects;
//! 2. `model`: the objects, typed and validated;
//! 3. `registry`: what exists: services, their endpoints, the workloads behind them;
//! 4. `scope`: who sees what: which rules and policies apply to which proxies;
//! 5. `translate`: listeners, routes, clusters and endpoints, encoded;
//! 6. `push`: telling each connected proxy, in an order that loses no request.
//!
//! Steps 3 to 5 are pure derivations on a `leno_derive::Graph`: only what a change reaches is
//! computed again. `access` knows who may connect, and `ca` signs who workloads are; `analyze` derives faults from the same facts, and
//! `debug` shows it all; `metrics` counts. `inject` adds what Pods need to be in the mesh,
//! `deploy` makes gateways for Gateways.
//!
//! START HERE: [`server`], which joins them in one loop.

mod access;
mod analyze;
mod ca;
mod debug;
mod deploy;
pub mod inject;
mod metrics;
mod model;
mod push;
mod registry;
mod scope;
pub mod server;
mod source;
mod translate;
mod validate;

pub use analyze::message::{CODES, Code, Level};
pub use analyze::run as analysis;
pub use model::diagnostic::{Diagnostic, Severity};
pub use validate::validate;

/// Requests to API servers, for programs that are no control planes.
pub mod kubernetes {
    pub use crate::source::kube::client::{Api, Fault, Kubernetes, Lines};
}

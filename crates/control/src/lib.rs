//! The control plane of Leno: from Istio's resources to xDS.
mod model;
mod registry;
mod scope;
mod translate;

//! The control plane of Leno: from Istio's resources to xDS.

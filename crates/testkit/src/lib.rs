//! Fakes and harness for Leno's tests. A development dependency only.
//!
//! - [`envoy`]: the real Envoy, to compare with;
//! - [`http`]: raw HTTP/1 peers;
//! - `kube` (feature `kube`): a Kubernetes API server in memory;
//! - `kubelet` (feature `kubelet`): a cluster whose pods run, as processes in namespaces;
//! - `mesh` (feature `mesh`): a control plane and agents as processes, without a cluster;
//! - [`ports`]: ports that nobody else gets;
//! - [`process`]: processes, and waiting for what they do;
//! - [`wheels`]: other people's programs that come as Python wheels.

pub mod envoy;
pub mod http;
#[cfg(feature = "kube")]
pub mod kube;
#[cfg(all(feature = "kubelet", target_os = "linux"))]
pub mod kubelet;
#[cfg(feature = "mesh")]
pub mod mesh;
pub mod ports;
pub mod process;
#[cfg(feature = "tls")]
pub mod tls;
pub mod wheels;

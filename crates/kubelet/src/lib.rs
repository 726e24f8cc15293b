//! Kubernetes' pods as processes of this machine: what a kubelet does with a Pod once it is there. It knows
//! Kubernetes' objects, and nothing of meshes, xDS or where objects come from.
//!
//! ```text
//!  Pod ─► sandbox.rs ─► pod.rs (a task) ─► container.rs (a task each) ─► leno_node: processes
//!         namespaces     │ volume.rs         │ environment.rs, image.rs
//!         hosts, DNS     │ check.rs          │ probe.rs, http.rs
//!                        └► PodState ─► status.rs: the object's status
//! ```
//!
//! Whoever uses it implements [`Sources`] (ConfigMaps, Secrets, Services, tokens), makes a place by
//! [`sandbox::create`] or in its own way, and calls [`start`]. `leno up` and the cluster of the tests do.
//!
//! START HERE, then `pod.rs`.
//!
//! An image is a command of this machine ([`Images`]); a container sees the machine's files with its volumes
//! over them, and what it writes elsewhere is its own. What a pod asks for that is not done is refused by name:
//! `check.rs`, which also lists what has no effect.
//!
//! On other systems than Linux the crate is empty.

#![cfg(target_os = "linux")]

mod check;
mod container;
mod environment;
pub mod http;
mod image;
mod place;
mod pod;
mod probe;
mod quantity;
pub mod sandbox;
mod sources;
mod status;
mod volume;

pub use container::{Ended, State, Status};
pub use environment::{Environment, Facts, Fault, capacity};
pub use image::{Image, Images, repository, split};
pub use place::Place;
pub use pod::{Handle, PodState, Settings, Start, host_name, start};
pub use probe::{Check, Probe, Target, hook};
pub use quantity::Quantity;
pub use sources::{ServiceAddress, Sources, Token, TokenRequest};
pub use status::status;

//! Leaf vocabulary of Leno: what both halves of the mesh say before they know what a mesh is.
//!
//! No I/O and no async runtime here, so that everything that uses these types can be driven by
//! a test: time comes from a [`clock::Clock`], randomness from a seeded [`rng::Rng`].
//!
//! Start with [`name::Name`] (every resource has one) and [`clock`]; the rest is independent.

pub mod backoff;
pub mod base64;
pub mod cidr;
pub mod clock;
pub mod drain;
pub mod duration;
pub mod hash;
pub mod name;
pub mod origin;
pub mod quote;
pub mod rng;

pub use backoff::Backoff;
pub use cidr::{Cidr, CidrMap, CidrSet};
pub use clock::Clock;
pub use hash::FastHash;
pub use name::Name;
pub use rng::Rng;

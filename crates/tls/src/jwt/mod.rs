//! JSON web tokens: taken apart (`token`), and verified with sets of keys (`keys`).
//!
//! The proxy's filter and the control plane's port read them alike. Verdicts have Envoy's words.

mod keys;
mod token;

pub use keys::KeySet;
pub use token::{Algorithm, Status, Token};

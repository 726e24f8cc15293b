//! Configuration: bootstrap and files, xDS, lowering, the store that diffs, warms and publishes.

pub(crate) mod bootstrap;
pub(crate) mod discovery;
pub(crate) mod file;
pub(crate) mod lower;
pub(crate) mod store;

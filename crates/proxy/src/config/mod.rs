//! Configuration: bootstrap and files, xDS, lowering, the store that diffs, warms and publishes.

pub(crate) mod address;
pub(crate) mod bootstrap;
pub(crate) mod discovery;
pub(crate) mod extensions;
pub(crate) mod file;
pub(crate) mod filter_id;
pub(crate) mod lower;
pub(crate) mod metadata;
pub(crate) mod re2;
pub(crate) mod runtime;
pub(crate) mod shared;
pub(crate) mod source;
pub(crate) mod store;
pub(crate) mod token_bucket;
pub(crate) mod validate;
pub(crate) mod watch;
pub(crate) mod wire;

//! One file per verb. Each is a clap struct with `run`; `../cli.rs` lists them.

pub(crate) mod agent;
pub(crate) mod analyze;
pub(crate) mod completion;
pub(crate) mod crd;
pub(crate) mod logs;
pub(crate) mod pilot;
pub(crate) mod proxy;
pub(crate) mod ps;
pub(crate) mod sample;
pub(crate) mod stop;
pub(crate) mod token;
pub(crate) mod up;
pub(crate) mod validate;
pub(crate) mod version;

//! One file per verb. Each is a clap struct with `run`; `../cli.rs` lists them. `log_levels` is what some of
//! them share.

pub(crate) mod agent;
pub(crate) mod analyze;
pub(crate) mod cni;
pub(crate) mod completion;
pub(crate) mod crd;
pub(crate) mod install;
pub(crate) mod iptables;
pub(crate) mod kube_inject;
mod log_levels;
pub(crate) mod logs;
pub(crate) mod manifest;
pub(crate) mod pilot;
pub(crate) mod profile;
pub(crate) mod proxy;
pub(crate) mod ps;
pub(crate) mod sample;
pub(crate) mod stop;
pub(crate) mod tag;
pub(crate) mod token;
pub(crate) mod uninstall;
pub(crate) mod up;
pub(crate) mod validate;
pub(crate) mod verify_install;
pub(crate) mod version;

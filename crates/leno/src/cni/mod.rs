//! The CNI plugin (`leno cni`, called `istio-cni`), by which pods are redirected before their containers start,
//! without an init container that has rights; and the program of the DaemonSet that brings it to a node.
//!
//! - `protocol`: the specification of CNI: what comes in, what goes out, versions, errors
//! - `config`: the plugin's part of the network's configuration
//! - `pod`: which pods are redirected, and how
//! - `plugin`: the verbs ADD, CHECK, DEL, ...          START HERE
//! - `install`: program, configuration and kubeconfig on a node; `chain`: one configuration in another
//! - `repair`: pods that were there before the plugin; `node`: the network namespaces of a node's pods
//! - `serve`: health and metrics of the DaemonSet

pub(crate) mod chain;
pub(crate) mod config;
pub(crate) mod install;
pub(crate) mod node;
pub(crate) mod plugin;
pub(crate) mod pod;
pub(crate) mod protocol;
pub(crate) mod repair;
pub(crate) mod serve;

//! Derivations that end in protobuf bytes: listeners, routes, clusters and endpoints.
//!
//! Everything here is pure: functions of a [`leno_derive::Cx`] and a key, without I/O, clock,
//! randomness or async. Names are Istio's, see `name.rs`.
//!
//! The roots, which `crate::push` asks for: what a proxy has as a client and shares with its like,
//! [`cluster::SharedClusters`] (or [`cluster::lazy`]'s), [`endpoint::Endpoints`], [`listener::SharedListeners`] and
//! [`route::Route`], and [`name_table::NameTable`] and [`credential::GivenTo`], each for the proxy as [`crate::scope::client::ClientOf`] sees it; and what is its
//! own, [`cluster::OwnClusters`] and [`listener::OwnListeners`].

pub(crate) mod any_name;
pub(crate) mod cluster;
pub(crate) mod credential;
pub(crate) mod endpoint;
pub(crate) mod listener;
pub(crate) mod name;
pub(crate) mod name_table;
pub(crate) mod needs;
pub(crate) mod patch;
pub(crate) mod provider;
pub(crate) mod resource;
pub(crate) mod route;
pub(crate) mod secret;
pub(crate) mod security;
pub(crate) mod telemetry;
#[cfg(test)]
mod tests;
pub(crate) mod trust_bundle;

/// The generated modules that translation speaks, under short names.
pub(crate) mod proto {
    pub(crate) use leno_api::proto::envoy::config::accesslog::v3 as accesslog;
    pub(crate) use leno_api::proto::envoy::config::cluster::v3 as cluster;
    pub(crate) use leno_api::proto::envoy::config::core::v3 as core;
    pub(crate) use leno_api::proto::envoy::config::endpoint::v3 as endpoint;
    pub(crate) use leno_api::proto::envoy::config::listener::v3 as listener;
    pub(crate) use leno_api::proto::envoy::config::route::v3 as route;
    pub(crate) use leno_api::proto::envoy::r#type as ty;
}

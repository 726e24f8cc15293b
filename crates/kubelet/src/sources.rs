//! What a pod's containers ask of the cluster: ConfigMaps, Secrets, Services, tokens.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1 as core;
use tokio::sync::watch;

/// The objects that pods may read, as whoever runs pods knows them.
pub trait Sources: Send + Sync {
    /// The values of a ConfigMap, text and binary.
    fn config_map(&self, namespace: &str, name: &str) -> Option<BTreeMap<String, Vec<u8>>>;

    /// The values of a Secret.
    fn secret(&self, namespace: &str, name: &str) -> Option<BTreeMap<String, Vec<u8>>>;

    /// The Services of a namespace that have an address.
    fn services(&self, namespace: &str) -> Vec<ServiceAddress>;

    /// A token for a service account; in words why there is none.
    fn token(&self, request: TokenRequest) -> BoxFuture<'_, Result<Token, String>>;

    /// Counts the changes of what the others return.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// A Service, as the variables of environments tell of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceAddress {
    /// Its name.
    pub name: String,
    /// Its virtual address.
    pub address: Ipv4Addr,
    /// Its ports.
    pub ports: Vec<core::ServicePort>,
}

/// What a token is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRequest {
    /// The namespace of the account and the pod.
    pub namespace: String,
    /// The service account.
    pub account: String,
    /// Whom it is for; empty: the API server.
    pub audience: String,
    /// How long it is to last, in seconds.
    pub seconds: i64,
    /// The pod that it is bound to: name and uid.
    pub pod: (String, String),
}

/// A token of a service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The token.
    pub text: String,
    /// When it is no longer good.
    pub end: SystemTime,
}

//! HTTP: connections, streams, routes, filters, forwarding.
//! Reading order: `connection`, `stream` (the story of one request), `route`, `filters`, `forward`; `client` makes
//! requests of the proxy's own.

pub(crate) mod client;
pub(crate) mod client_cert;
pub(crate) mod codec;
pub(crate) mod config;
pub(crate) mod connection;
pub(crate) mod filters;
pub(crate) mod forward;
pub(crate) mod headers;
pub(crate) mod normalize;
pub(crate) mod redirect;
pub(crate) mod reply;
pub(crate) mod route;
pub(crate) mod stats;
pub(crate) mod stream;
pub(crate) mod timer;
pub(crate) mod upgrade;

#[cfg(test)]
mod tests;

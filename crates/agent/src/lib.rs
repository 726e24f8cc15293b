//! The agent: what runs beside a proxy for it, under the names and on the paths that Istio's has.
//!
//! START HERE, then [`agent`], which puts everything together.
//!
//! - [`environment`], [`proxy_config`], [`interfaces`]: what it is told; [`bootstrap`]: what the proxy is started with;
//! - [`authority`], [`identity`]: the workload's certificate comes from an authority that speaks Istio's
//!   certificate service, be it `leno pilot` or istiod, is renewed long before it expires, and kept while
//!   the authority is away; [`files`]: those that others renew, or read; [`sds`]: the proxy gets it on a
//!   Unix socket, so that Envoy can be the proxy as well, and other programs there too ([`workload_api`]);
//! - [`control_plane`]: how the control plane is spoken to; [`xds_proxy`]: the proxy's streams are passed
//!   on to it, which brings the table of names as well;
//! - [`dns`]: names of the mesh, and all others;
//! - [`status`]: readiness, probes of the application, [`metrics`]; [`lifecycle`]: how it ends.

pub mod agent;
pub mod authority;
pub mod bootstrap;
pub mod control_plane;
pub mod dns;
pub mod environment;
pub mod files;
pub mod http;
pub mod identity;
pub mod interfaces;
pub mod lifecycle;
pub mod metrics;
pub mod proxy_config;
pub mod sds;
pub mod status;
pub mod workload_api;
pub mod xds_proxy;

//! What a proxy was started with, as far as its configuration depends on it: MeshConfig's
//! `defaultConfig`, and over it what the proxy says itself (`PROXY_CONFIG` of its node's metadata) or
//! its Pod's annotation `proxy.istio.io/config`.
//!
//! As in Istio a field that is given replaces that of the mesh as a whole, but for `proxyHeaders`, of
//! which some parts stay if they are not given.

use std::collections::BTreeMap;
use std::sync::Arc;

use leno_derive::{Cx, Query};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::model::mesh::MeshConfig;
use crate::model::mesh::proxy::{
    ConnectionSettings, ForwardClientCertDetails, ProxyHeaders, Topology, Tracing,
};
use crate::registry::Mesh;

/// The annotation of a Pod.
pub(crate) const ANNOTATION: &str = "proxy.istio.io/config";

/// What a proxy was started with other than all others are, as text that is the same for the same
/// settings: proxies with equal settings share what is derived.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Overrides(Option<Arc<str>>);

/// The settings that matter to what a proxy is sent. All others are the bootstrap's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Settings {
    tracing: Option<Tracing>,
    gateway_topology: Option<Topology>,
    proxy_headers: Option<ProxyHeaders>,
    connection_settings: Option<ConnectionSettings>,
}

/// The names of these fields.
const FIELDS: [&str; 4] = ["tracing", "gatewayTopology", "proxyHeaders", "connectionSettings"];

impl Overrides {
    /// Takes what matters from settings, each of which counts before those in front of it.
    ///
    /// # Errors
    /// If they are not as they should be.
    pub(crate) fn read(all: impl IntoIterator<Item = Map<String, Value>>) -> Result<Overrides, String> {
        let mut found = BTreeMap::new();
        for settings in all {
            found.extend(settings.into_iter().filter(|(name, _)| FIELDS.contains(&name.as_str())));
        }
        if found.is_empty() {
            return Ok(Overrides::default());
        }
        let found = Value::Object(found.into_iter().collect());
        Settings::deserialize(&found).map_err(|error| error.to_string())?;
        Ok(Overrides(Some(found.to_string().into())))
    }
}

/// The mesh's settings with those that a proxy was started with in the place of `defaultConfig`.
pub(crate) struct MeshOf;

impl Query for MeshOf {
    type Key = Overrides;
    type Value = MeshConfig;
    const NAME: &'static str = "mesh-of";

    fn derive(cx: &Cx<'_>, Overrides(overrides): &Overrides) -> MeshConfig {
        let mut mesh = cx.get::<Mesh>(&()).as_ref().clone();
        // They have been read before.
        let settings: Settings =
            overrides.as_ref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let Settings { tracing, gateway_topology, proxy_headers, connection_settings } = settings;
        let config = &mut mesh.default_config;
        config.tracing = tracing.or(config.tracing.take());
        config.gateway_topology = gateway_topology.or(config.gateway_topology.take());
        config.connection_settings = connection_settings.or(config.connection_settings.take());
        config.proxy_headers = match (config.proxy_headers.take(), proxy_headers) {
            (Some(general), Some(own)) => Some(headers(general, own)),
            (general, own) => own.or(general),
        };
        mesh
    }
}

/// A proxy's own headers, with what stays of the mesh's.
fn headers(general: ProxyHeaders, own: ProxyHeaders) -> ProxyHeaders {
    let forwarded = match own.forwarded_client_cert {
        ForwardClientCertDetails::Undefined => general.forwarded_client_cert,
        given => given,
    };
    ProxyHeaders {
        forwarded_client_cert: forwarded,
        request_id: own.request_id.or(general.request_id),
        attempt_count: own.attempt_count.or(general.attempt_count),
        server: own.server.or(general.server),
        envoy_debug_headers: own.envoy_debug_headers.or(general.envoy_debug_headers),
        ..own
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Overrides;

    #[test]
    fn only_what_matters_tells_proxies_apart() {
        let read = |values: &[serde_json::Value]| {
            Overrides::read(values.iter().map(|value| value.as_object().expect("an object").clone()))
        };
        assert_eq!(read(&[json!({ "concurrency": 2, "statusPort": 15020 })]), Ok(Overrides::default()));
        let one = read(&[json!({ "tracing": { "sampling": 5 }, "concurrency": 2 })]);
        assert_eq!(one, read(&[json!({ "tracing": {} }), json!({ "tracing": { "sampling": 5 } })]));
        assert_ne!(one, Ok(Overrides::default()));
        assert!(read(&[json!({ "tracing": { "sampling": "much" } })]).is_err());
    }
}

//! `MeshNetworks`: which endpoints belong to which network, and the gateways between them.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::model::check::Check;
use crate::model::diagnostic::Finding;

/// A network: endpoints that reach each other directly.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Network {
    /// Endpoint sources.
    pub(crate) endpoints: Vec<NetworkEndpoints>,
    /// East-west gateways.
    pub(crate) gateways: Vec<NetworkGateway>,
}

/// Which endpoints are in a network.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct NetworkEndpoints {
    /// CIDR belongs to network.
    pub(crate) from_cidr: Option<String>,
    /// Cluster name belongs to network.
    pub(crate) from_registry: Option<String>,
}

/// How a network is entered from others.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct NetworkGateway {
    /// Gateway Service FQDN.
    pub(crate) registry_service_name: Option<String>,
    /// IP or DNS of gateway.
    pub(crate) address: Option<String>,
    /// Gateway port (15443/15008).
    pub(crate) port: u32,
    /// Gateway locality.
    pub(crate) locality: String,
}

/// The networks of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct MeshNetworks {
    /// Networks by id.
    pub(crate) networks: BTreeMap<String, Network>,
}

impl MeshNetworks {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::default();
        check.at("networks", |check| {
            for (name, network) in &self.networks {
                check.key(name, |check| {
                    check.each("endpoints", &network.endpoints, |check, endpoints| {
                        let given = [
                            ("fromCidr", endpoints.from_cidr.is_some()),
                            ("fromRegistry", endpoints.from_registry.is_some()),
                        ];
                        check.exactly_one(&given);
                    });
                    check.each("gateways", &network.gateways, |check, gateway| {
                        check.exactly_one(&[
                            ("registryServiceName", gateway.registry_service_name.is_some()),
                            ("address", gateway.address.is_some()),
                        ]);
                        check.at("port", |check| check.port(gateway.port));
                    });
                });
            }
        });
        check.into_findings()
    }
}

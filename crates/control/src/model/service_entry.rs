//! `ServiceEntry`: a service that Kubernetes does not know, in or outside the mesh.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;
use serde_json::Value;

use super::check::{Check, is_cidr_or_address};
use super::diagnostic::Finding;

/// The `spec` of a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServiceEntry {
    pub(crate) hosts: Vec<String>,
    pub(crate) addresses: Vec<String>,
    pub(crate) ports: Vec<ServicePort>,
    pub(crate) location: Location,
    pub(crate) resolution: Resolution,
    pub(crate) endpoints: Vec<WorkloadEntry>,
    pub(crate) workload_selector: Option<LabelSelector>,
    pub(crate) export_to: Vec<String>,
    pub(crate) subject_alt_names: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServicePort {
    pub(crate) number: u32,
    pub(crate) protocol: String,
    pub(crate) name: String,
    pub(crate) target_port: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Location {
    #[default]
    MeshExternal,
    MeshInternal,
}

/// How the addresses of the service are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Resolution {
    /// Where the caller wanted to go.
    #[default]
    None,
    /// The endpoints given.
    Static,
    /// All addresses that DNS gives.
    Dns,
    /// One address of those that DNS gives.
    DnsRoundRobin,
    DynamicDns,
}

/// An endpoint; also the `spec` of the kind of the same name.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct WorkloadEntry {
    pub(crate) address: String,
    pub(crate) ports: BTreeMap<String, u32>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) network: String,
    pub(crate) locality: String,
    pub(crate) weight: u32,
    pub(crate) service_account: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct LabelSelector {
    pub(crate) labels: BTreeMap<String, String>,
}

/// What the control plane writes into `status`; read so that it is not taken for a mistake, and
/// for addresses that were allocated before.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Status {
    pub(crate) conditions: Vec<Value>,
    pub(crate) validation_messages: Vec<Value>,
    pub(crate) observed_generation: Value,
    pub(crate) addresses: Vec<StatusAddress>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct StatusAddress {
    pub(crate) value: String,
    pub(crate) host: String,
}

impl ServiceEntry {
    /// Everything that is wrong or has no effect.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        if self.hosts.is_empty() {
            check.at("hosts", |check| check.invalid("at least one host is needed"));
        }
        check.each("hosts", &self.hosts, |check, host| {
            check.host(host);
            if host == "*" {
                check.invalid("a full wildcard * is not allowed");
            } else if host.starts_with('*')
                && !matches!(self.resolution, Resolution::None | Resolution::Static)
            {
                check.invalid("a wildcard host cannot be resolved by DNS");
            }
        });
        check.each("addresses", &self.addresses, |check, address| {
            if !is_cidr_or_address(address) {
                check.invalid(format!("{address:?} is neither an address nor a CIDR range"));
            }
        });
        self.validate_ports(&mut check);
        if self.resolution == Resolution::DynamicDns {
            check.at("resolution", |check| {
                check.error("unsupported-field", "DYNAMIC_DNS is not supported yet");
            });
        }
        if self.resolution == Resolution::None && !self.endpoints.is_empty() {
            check.at("endpoints", |check| check.invalid("endpoints need resolution STATIC or DNS"));
        }
        if self.resolution == Resolution::DnsRoundRobin && self.endpoints.len() > 1 {
            check.at("endpoints", |check| check.invalid("DNS_ROUND_ROBIN can have one endpoint only"));
        }
        if self.workload_selector.is_some() && !self.endpoints.is_empty() {
            check.at("workloadSelector", |check| {
                check.invalid("only one of endpoints and workloadSelector may be given");
            });
        }
        check.each("endpoints", &self.endpoints, |check, endpoint| self.validate_endpoint(check, endpoint));
        if let Some(selector) = &self.workload_selector {
            check.at("workloadSelector", |check| check.at("labels", |check| check.labels(&selector.labels)));
        }
        check.export_to(&self.export_to);
        // Harmless while nothing is encrypted: there is no certificate to compare with.
        check.unsupported("subjectAltNames", !self.subject_alt_names.is_empty());
        check.into_findings()
    }

    fn validate_ports(&self, check: &mut Check) {
        if self.ports.is_empty() {
            check.at("ports", |check| check.invalid("at least one port is needed"));
        }
        let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
        check.each("ports", &self.ports, |check, port| {
            check.at("number", |check| {
                check.port(port.number);
                if !numbers.insert(port.number) {
                    check.invalid(format!("there is another port {}", port.number));
                }
            });
            check.at("name", |check| {
                if port.name.is_empty() {
                    check.invalid("must not be empty");
                } else if !names.insert(port.name.clone()) {
                    check.invalid(format!("there is another port {:?}", port.name));
                }
            });
            if port.target_port != 0 {
                check.at("targetPort", |check| check.port(port.target_port));
            }
        });
    }

    fn validate_endpoint(&self, check: &mut Check, endpoint: &WorkloadEntry) {
        let is_address = endpoint.address.parse::<std::net::IpAddr>().is_ok();
        check.at("address", |check| {
            if endpoint.address.starts_with("unix://") {
                check.error("unsupported-field", "unix sockets are not supported yet");
            } else if endpoint.address.is_empty() {
                check.invalid("must not be empty");
            } else if self.resolution == Resolution::Static && !is_address {
                check.invalid(format!("{:?} is no address, which resolution STATIC needs", endpoint.address));
            } else {
                check.host(&endpoint.address);
            }
        });
        check.at("ports", |check| {
            for (name, number) in &endpoint.ports {
                check.key(name, |check| {
                    check.port(*number);
                    if !self.ports.iter().any(|port| port.name == *name) {
                        check.invalid(format!("the service has no port {name:?}"));
                    }
                });
            }
        });
        check.at("labels", |check| check.labels(&endpoint.labels));
        check.unsupported("network", !endpoint.network.is_empty());
    }
}

//! `ServiceEntry`: a service that Kubernetes does not know, in or outside the mesh.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::Value;

use super::check::{Check, is_cidr_or_address};
use super::diagnostic::Finding;
use super::selector::WorkloadLabels;
use super::workload_entry::WorkloadEntry;

/// The `spec` of a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServiceEntry {
    /// DNS names added to the registry.
    pub(crate) hosts: Vec<String>,
    /// VIPs or CIDRs.
    pub(crate) addresses: Vec<String>,
    /// Service ports.
    pub(crate) ports: Vec<ServicePort>,
    /// MESH_EXTERNAL / MESH_INTERNAL.
    pub(crate) location: Location,
    /// NONE/STATIC/DNS/DNS_ROUND_ROBIN/DYNAMIC_DNS.
    pub(crate) resolution: Resolution,
    /// Inline endpoints.
    pub(crate) endpoints: Vec<WorkloadEntry>,
    /// Select WorkloadEntries and Pods.
    pub(crate) workload_selector: Option<WorkloadLabels>,
    /// Visibility.
    pub(crate) export_to: Vec<String>,
    /// SANs expected of the service.
    pub(crate) subject_alt_names: Vec<String>,
    /// The addresses that the object's status says were given before, which `read.rs` notes here.
    #[serde(skip)]
    pub(crate) allocated: Vec<StatusAddress>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServicePort {
    /// Port.
    pub(crate) number: u32,
    /// Protocol name.
    pub(crate) protocol: String,
    /// Port name.
    pub(crate) name: String,
    /// Endpoint port.
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

/// What the control plane writes into `status`; read so that it is not taken for a mistake, and
/// for addresses that were allocated before.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Status {
    /// Conditions.
    pub(crate) conditions: Vec<Value>,
    /// Analysis messages.
    pub(crate) validation_messages: Vec<Value>,
    /// Generation seen.
    pub(crate) observed_generation: Value,
    /// Auto-allocated IPs.
    pub(crate) addresses: Vec<StatusAddress>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct StatusAddress {
    /// Allocated IP.
    pub(crate) value: String,
    /// Host it belongs to.
    pub(crate) host: String,
}

impl ServiceEntry {
    /// Everything that is wrong with it.
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
                && matches!(self.resolution, Resolution::Dns | Resolution::DnsRoundRobin)
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
                // A path, about which nothing can be said here.
            } else if endpoint.address.is_empty() {
                // It may be reached by the gateway of its network.
                if endpoint.network.is_empty() {
                    check.invalid("must not be empty, unless there is a network");
                }
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
    }
}

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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Location {
    #[default]
    MeshExternal,
    MeshInternal,
}

/// How the addresses of the service are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
        let resolved = matches!(self.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
        check.each("hosts", &self.hosts, |check, host| {
            check.host(host);
            if host == "*" {
                check.invalid("a full wildcard * is not allowed");
            } else if host.starts_with('*') && resolved && self.endpoints.is_empty() {
                check.invalid("a wildcard host cannot be resolved by DNS");
            } else if host.starts_with("*-") {
                check.warn("partial-wildcard", "a wildcard should be the whole first part");
            }
        });
        check.each("addresses", &self.addresses, |check, address| {
            if !is_cidr_or_address(address) {
                check.invalid(format!("{address:?} is neither an address nor a CIDR range"));
            } else if address.contains('/')
                && !matches!(self.resolution, Resolution::None | Resolution::Static)
            {
                check.invalid("CIDR ranges need resolution NONE or STATIC");
            }
        });
        self.validate_ports(&mut check);
        self.validate_resolution(&mut check);
        if self.workload_selector.is_some() && !self.endpoints.is_empty() {
            check.at("workloadSelector", |check| {
                check.invalid("only one of endpoints and workloadSelector may be given");
            });
        }
        let ports: Vec<&str> = self.ports.iter().map(|port| port.name.as_str()).collect();
        check.each("endpoints", &self.endpoints, |check, endpoint| {
            endpoint.check(check, Some(&ports), self.resolution != Resolution::Static);
        });
        check.selector("workloadSelector", self.workload_selector.as_ref().map(|selector| &selector.labels));
        check.export_to(&self.export_to);
        check.into_findings()
    }

    /// What goes with which resolution.
    fn validate_resolution(&self, check: &mut Check) {
        let by_name = |port: &ServicePort| {
            let protocol = port.protocol.to_ascii_uppercase();
            matches!(
                protocol.as_str(),
                "HTTP" | "HTTP_PROXY" | "HTTP2" | "GRPC" | "GRPC-WEB" | "HTTPS" | "TLS"
            )
        };
        if self.resolution != Resolution::None && self.hosts.len() > 1 && !self.ports.iter().all(by_name) {
            check.invalid_at(
                "hosts",
                "several hosts cannot be told apart on ports that are neither HTTP nor TLS",
            );
        }
        match self.resolution {
            Resolution::None => {
                if !self.endpoints.is_empty() {
                    check.invalid_at("endpoints", "endpoints need resolution STATIC or DNS");
                }
                if self.workload_selector.is_some() {
                    check.warn_at("workloadSelector", "no-effect", "has no effect with resolution NONE");
                }
            }
            Resolution::Static | Resolution::Dns => {}
            Resolution::DnsRoundRobin => {
                if self.endpoints.len() > 1 {
                    check.invalid_at("endpoints", "DNS_ROUND_ROBIN can have one endpoint only");
                }
            }
            Resolution::DynamicDns => {
                if self.hosts.iter().any(|host| !host.starts_with('*')) {
                    check.invalid_at("hosts", "DYNAMIC_DNS is for wildcard hosts");
                }
                if !self.addresses.is_empty() {
                    check.invalid_at("addresses", "DYNAMIC_DNS goes by host names only");
                }
                if !self.endpoints.is_empty() {
                    check.invalid_at("endpoints", "DYNAMIC_DNS goes by host names only");
                }
                check.each("ports", &self.ports, |check, port| {
                    let protocol = port.protocol.to_ascii_uppercase();
                    if !matches!(protocol.as_str(), "HTTP" | "HTTP2" | "GRPC" | "TLS") {
                        check.invalid_at("protocol", "DYNAMIC_DNS is for HTTP, HTTP2, GRPC and TLS");
                    }
                });
            }
        }
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
                check.port_name(&port.name);
                if !port.name.is_empty() && !names.insert(port.name.clone()) {
                    check.invalid(format!("there is another port {:?}", port.name));
                }
            });
            check.at("protocol", |check| check.protocol(&port.protocol));
            if port.target_port != 0 {
                check.at("targetPort", |check| check.port(port.target_port));
            }
        });
    }
}

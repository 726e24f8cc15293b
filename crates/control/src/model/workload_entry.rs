//! `WorkloadEntry`: one workload outside Kubernetes, such as a virtual machine; also the form of a
//! ServiceEntry's endpoints.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::check::Check;
use super::diagnostic::Finding;

/// The `spec` of a WorkloadEntry, or an endpoint of a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct WorkloadEntry {
    /// IP, DNS or unix path (or empty + network).
    pub(crate) address: String,
    /// Port name.
    pub(crate) ports: BTreeMap<String, u32>,
    /// Workload labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Network id.
    pub(crate) network: String,
    /// Region/zone/subzone.
    pub(crate) locality: String,
    /// LB weight.
    pub(crate) weight: u32,
    /// Identity of the workload.
    pub(crate) service_account: String,
    /// Whether its probe, if it has one, has succeeded: the condition `Healthy` of the object's
    /// status, which `read.rs` notes here.
    #[serde(skip)]
    pub(crate) healthy: bool,
}

/// The `status` of a WorkloadEntry.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Status {
    /// What has been found out.
    pub(crate) conditions: Vec<Condition>,
    /// Analysis messages.
    pub(crate) validation_messages: Vec<Value>,
    /// Generation seen.
    pub(crate) observed_generation: Value,
}

/// One thing that has been found out.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Condition {
    /// What.
    pub(crate) r#type: String,
    /// `True`, `False` or `Unknown`.
    pub(crate) status: String,
    /// Why, in one word.
    pub(crate) reason: String,
    /// Why, in words.
    pub(crate) message: String,
    /// When it was last looked at.
    pub(crate) last_probe_time: Value,
    /// When it changed.
    pub(crate) last_transition_time: Value,
    /// Generation seen.
    pub(crate) observed_generation: Value,
}

impl Status {
    /// Whether the workload has been found well.
    pub(crate) fn is_healthy(&self) -> bool {
        self.conditions.iter().any(|condition| condition.r#type == "Healthy" && condition.status == "True")
    }
}

impl WorkloadEntry {
    /// Everything that is wrong with one that stands alone.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        self.check(&mut check, None, true);
        check.into_findings()
    }

    /// Checks one; `ports` are the names of the ports of the service that it belongs to, if it is
    /// the endpoint of one. Only where DNS resolves addresses may they be names.
    pub(crate) fn check(&self, check: &mut Check, ports: Option<&[&str]>, may_be_name: bool) {
        check.at("address", |check| {
            if let Some(path) = self.address.strip_prefix("unix://") {
                check.unix_path(path);
                if !self.ports.is_empty() {
                    check.invalid("a socket of the file system has no ports");
                }
                if ports.is_some_and(|ports| ports.len() != 1) {
                    check.invalid("a socket of the file system needs a service with exactly one port");
                }
            } else if self.address.is_empty() && self.network.is_empty() {
                check.invalid("must not be empty");
            } else if self.address.is_empty() {
                check.warn("no-address", "is empty: the workload is reached by the gateway of its network");
            } else if self.address.parse::<std::net::IpAddr>().is_err() {
                if !may_be_name {
                    check.invalid(format!("{:?} is no address, which resolution STATIC needs", self.address));
                } else if self.address.contains('*') {
                    check.invalid(format!("{:?} is neither an address nor a DNS name", self.address));
                } else {
                    check.host(&self.address);
                }
            }
        });
        check.at("ports", |check| {
            for (name, number) in &self.ports {
                check.key(name, |check| {
                    check.port_name(name);
                    check.port(*number);
                    if ports.is_some_and(|ports| !ports.contains(&name.as_str())) {
                        check.invalid(format!("the service has no port {name:?}"));
                    }
                });
            }
        });
        check.at("labels", |check| check.labels(&self.labels));
    }
}

//! Faults that show only when objects are seen together: a route to a subset that no rule defines,
//! a gateway that does not exist, two gateways on one port.
//!
//! Three sorts of faults come together in `leno analyze` (`run.rs`): those that the readers find in single
//! objects, those that are derived here from what translation sees, and those of istioctl's analyzers
//! (`istio/`), which look at objects as they were written. `message.rs` has the codes of all.
//!
//! Everything in this file is a warning: translation has an answer in each case (usually Istio's), and the
//! author should know what it is.

mod gateway;
mod gateway_api;
mod istio;
pub(crate) mod message;
mod raw;
mod rule;
pub mod run;
mod security;
mod telemetry;
pub(crate) mod validity;

use std::sync::Arc;

use leno_derive::{Cx, Query};

use crate::model::destination_rule::DestinationRule;
use crate::model::diagnostic::{Finding, Severity};
use crate::model::inputs::{
    AuthorizationPolicies, DestinationRules, Gateways, Ingresses, PeerAuthentications, ServiceEntries,
    Telemetries, VirtualServices,
};
use crate::model::{Config, Key, Kind, ObjectRef};
use crate::registry::{Resolution, ServicesOf, Visible, VisibleOnPort, full_name};
use crate::scope::gateway_api::status::objects;
use crate::scope::policy::RulesByHost;
use crate::scope::{fit, ingress};

/// All faults of the mesh, by object.
pub(crate) struct Analysis;

impl Query for Analysis {
    type Key = ();
    type Value = Vec<(ObjectRef, Finding)>;
    const NAME: &'static str = "analysis";

    fn derive(cx: &Cx<'_>, (): &()) -> Vec<(ObjectRef, Finding)> {
        let mut all = Vec::new();
        let mut add = |object: ObjectRef, findings: &[Finding]| {
            all.extend(findings.iter().map(|finding| (object.clone(), finding.clone())));
        };
        for key in cx.all::<VirtualServices>() {
            add(key.of(Kind::VirtualService), &cx.get::<rule::RuleFindings>(&key));
        }
        for key in cx.all::<Gateways>() {
            add(key.of(Kind::Gateway), &cx.get::<gateway::GatewayFindings>(&key));
        }
        for key in cx.all::<DestinationRules>() {
            add(key.of(Kind::DestinationRule), &cx.get::<PolicyFindings>(&key));
        }
        for key in cx.all::<ServiceEntries>() {
            add(key.of(Kind::ServiceEntry), &cx.get::<EntryFindings>(&key));
        }
        for object in objects(cx) {
            let findings = cx.get::<gateway_api::GatewayApiFindings>(&object);
            add(object, &findings);
        }
        for key in cx.all::<Ingresses>() {
            add(key.of(Kind::Ingress), &cx.get::<IngressFindings>(&key));
        }
        for key in cx.all::<AuthorizationPolicies>() {
            add(key.of(Kind::AuthorizationPolicy), &cx.get::<security::ProviderFindings>(&key));
        }
        for key in cx.all::<PeerAuthentications>() {
            add(key.of(Kind::PeerAuthentication), &cx.get::<security::PeerFindings>(&key));
        }
        for key in cx.all::<Telemetries>() {
            add(key.of(Kind::Telemetry), &cx.get::<telemetry::TelemetryFindings>(&key));
        }
        all
    }
}

/// Faults of an Ingress.
struct IngressFindings;

impl Query for IngressFindings {
    type Key = Key;
    type Value = Vec<Finding>;
    const NAME: &'static str = "ingress-findings";

    fn derive(cx: &Cx<'_>, key: &Key) -> Vec<Finding> {
        let Some(problems) = ingress::problems(cx, key) else {
            if !ingress::is_classless(cx, key) {
                // It is another controller's.
                return Vec::new();
            }
            let message = "names no class, and the mesh's ingressControllerMode does not take such, so it is not served";
            return vec![warning("no-class", "spec.ingressClassName", message.to_owned())];
        };
        problems.into_iter().map(|(path, message)| warning("unknown-backend", path, message)).collect()
    }
}

/// Faults of a DestinationRule.
struct PolicyFindings;

impl Query for PolicyFindings {
    type Key = Key;
    type Value = Vec<Finding>;
    const NAME: &'static str = "policy-findings";

    fn derive(cx: &Cx<'_>, key: &Key) -> Vec<Finding> {
        let Some(policy) = cx.input::<DestinationRules>(key) else { return Vec::new() };
        let host = full_name(&policy.spec.host, &key.namespace);
        let mut findings = duplicate_subsets(cx, &policy, &host);
        let visible = cx.get::<Visible>(&key.namespace);
        if !visible.keys().any(|known| fit(&host, known).is_some()) {
            let message = format!("there is no service {host}, so the rule has no effect");
            findings.push(warning("unknown-host", "spec.host", message));
        }
        findings
    }
}

/// Of rules for one host that are merged the oldest defines a subset.
fn duplicate_subsets(cx: &Cx<'_>, policy: &Config<DestinationRule>, host: &str) -> Vec<Finding> {
    if policy.spec.subsets.is_empty() {
        return Vec::new();
    }
    // Rules whose hosts are wildcards are all in one bucket.
    let bucket = if host.starts_with('*') { "*" } else { host };
    let mut older = cx.bucket::<RulesByHost>(&bucket.to_owned());
    older.retain(|other| other.namespace == policy.meta.namespace);
    let mut older: Vec<Arc<Config<DestinationRule>>> =
        older.iter().filter_map(|other| cx.input::<DestinationRules>(other)).collect();
    older.retain(|other| {
        full_name(&other.spec.host, &other.meta.namespace) == *host
            && other.meta.age() < policy.meta.age()
            && other.spec.workload_selector == policy.spec.workload_selector
            && other.spec.export_to == policy.spec.export_to
    });
    let mut findings = Vec::new();
    for (index, subset) in policy.spec.subsets.iter().enumerate() {
        let has = |other: &&Arc<Config<DestinationRule>>| {
            other.spec.subsets.iter().any(|known| known.name == subset.name)
        };
        if let Some(other) = older.iter().find(has) {
            let (name, key) = (&subset.name, other.meta.key());
            let message =
                format!("{key} has a subset {name} of {host} already, which counts in place of this");
            findings.push(warning("duplicate-subset", format!("spec.subsets[{index}].name"), message));
        }
    }
    findings
}

/// Faults of a ServiceEntry.
struct EntryFindings;

impl Query for EntryFindings {
    type Key = Key;
    type Value = Vec<Finding>;
    const NAME: &'static str = "entry-findings";

    fn derive(cx: &Cx<'_>, key: &Key) -> Vec<Finding> {
        let mut findings = Vec::new();
        for service in cx.get::<ServicesOf>(&key.of(Kind::ServiceEntry)).iter() {
            if service.resolution != Resolution::OriginalDst || !service.addresses.is_empty() {
                continue;
            }
            for (index, port) in service.ports.iter().enumerate() {
                if !port.protocol.is_tcp() {
                    continue;
                }
                let others = cx.get::<VisibleOnPort>(&(key.namespace.clone(), port.number));
                let rival = others.iter().find(|other| {
                    other.id != service.id
                        && other.port(port.number).is_some_and(|other| other.protocol.is_http())
                });
                if let Some(rival) = rival {
                    let message = format!(
                        "port {} carries HTTP for {}, so without addresses nothing tells this service apart",
                        port.number, rival.id.host
                    );
                    findings.push(warning("port-conflict", format!("spec.ports[{index}].number"), message));
                }
            }
        }
        findings
    }
}

fn warning(code: &'static str, path: impl Into<String>, message: String) -> Finding {
    Finding { severity: Severity::Warning, code, path: path.into(), message }
}

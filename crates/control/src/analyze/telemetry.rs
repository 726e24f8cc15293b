//! Faults of Telemetries: providers that cannot do what is asked of them.

use leno_derive::{Cx, Query};

use super::warning;
use crate::model::Key;
use crate::model::diagnostic::Finding;
use crate::model::inputs::Telemetries;
use crate::model::mesh::provider::Use;
use crate::model::telemetry::ProviderRef;
use crate::registry::Mesh;
use crate::scope::sidecar::Sight;
use crate::scope::telemetry::{is_general, of_namespace};
use crate::translate::provider;

/// Faults of a Telemetry.
pub(super) struct TelemetryFindings;

impl Query for TelemetryFindings {
    type Key = Key;
    type Value = Vec<Finding>;
    const NAME: &'static str = "telemetry-findings";

    fn derive(cx: &Cx<'_>, key: &Key) -> Vec<Finding> {
        let Some(telemetry) = cx.input::<Telemetries>(key) else { return Vec::new() };
        let spec = &telemetry.spec;
        if is_general(spec) {
            let all = of_namespace(cx, &key.namespace);
            let first = all.iter().find(|other| is_general(&other.spec));
            if let Some(first) = first.filter(|first| first.meta.name != key.name) {
                return vec![warning(
                    "policy-conflict",
                    "",
                    format!("{} is older and for the same workloads, so this has no effect", first.meta.name),
                )];
            }
        }
        let mut findings = Vec::new();
        let mut check = |part: &str, wanted: Use, lists: Vec<&[ProviderRef]>| {
            for (index, list) in lists.into_iter().enumerate() {
                for (place, named) in list.iter().enumerate() {
                    if let Err(why) = usable(cx, &key.namespace, &named.name, wanted) {
                        let path = format!("spec.{part}[{index}].providers[{place}].name");
                        findings.push(warning("bad-provider", path, format!("{why}, so it has no effect")));
                    }
                }
            }
        };
        check("tracing", Use::Tracing, spec.tracing.iter().map(|one| one.providers.as_slice()).collect());
        check("metrics", Use::Metrics, spec.metrics.iter().map(|one| one.providers.as_slice()).collect());
        let logs = spec.access_logging.iter().map(|one| one.providers.as_slice());
        check("accessLogging", Use::Logs, logs.collect());
        findings
    }
}

/// Whether the mesh has a provider that can be used so, by workloads of a namespace; or why not.
fn usable(cx: &Cx<'_>, namespace: &str, name: &str, wanted: Use) -> Result<(), String> {
    let mesh = cx.get::<Mesh>(&());
    let found = mesh.provider(name);
    let found = found.ok_or_else(|| format!("the mesh has no extension provider {name:?}"))?;
    if !found.is_for(wanted) {
        return Err(format!("the extension provider {name:?} is not for {wanted}"));
    }
    match found.service() {
        Some((service, port)) => provider::find(cx, &Sight::whole(namespace), service, port).map(|_| ()),
        None => Ok(()),
    }
}

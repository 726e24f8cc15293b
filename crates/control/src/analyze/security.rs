//! Faults of security policies.

use leno_derive::{Cx, Query};

use super::warning;
use crate::model::Key;
use crate::model::authorization_policy::{Action, DRY_RUN, dry_run};
use crate::model::diagnostic::Finding;
use crate::model::inputs::{AuthorizationPolicies, PeerAuthentications};
use crate::registry::Mesh;
use crate::scope::security::{is_general, peer_policies};
use crate::scope::sidecar::Sight;
use crate::translate::security::authorizer::AuthorizerOf;

/// Faults of the provider that an AuthorizationPolicy names, and of the annotation by which it is only
/// tried.
pub(super) struct ProviderFindings;

impl Query for ProviderFindings {
    type Key = Key;
    type Value = Vec<Finding>;
    const NAME: &'static str = "provider-findings";

    fn derive(cx: &Cx<'_>, key: &Key) -> Vec<Finding> {
        let Some(policy) = cx.input::<AuthorizationPolicies>(key) else { return Vec::new() };
        let annotated = |message: String| {
            vec![warning("invalid-value", format!("metadata.annotations[{DRY_RUN:?}]"), message)]
        };
        match (policy.meta.annotations.get(DRY_RUN), dry_run(&policy.meta)) {
            (Some(text), None) => {
                return annotated(format!("{text:?} is neither true nor false, so the policy is enforced"));
            }
            (_, Some(true)) if policy.spec.action == Action::Custom => {
                return annotated(
                    "a policy with the action CUSTOM that is only tried has no effect".to_owned(),
                );
            }
            _ => {}
        }
        let named = policy.spec.provider.as_ref().filter(|_| policy.spec.action == Action::Custom);
        let Some(provider) = named else { return Vec::new() };
        match cx.get::<AuthorizerOf>(&(Sight::whole(&key.namespace), provider.name.clone())).as_ref() {
            Ok(_) => Vec::new(),
            Err(why) => vec![warning(
                "bad-provider",
                "spec.provider.name",
                format!("{why}, so what the rules fit is refused"),
            )],
        }
    }
}

/// Faults of a PeerAuthentication.
pub(super) struct PeerFindings;

impl Query for PeerFindings {
    type Key = Key;
    type Value = Vec<Finding>;
    const NAME: &'static str = "peer-findings";

    fn derive(cx: &Cx<'_>, key: &Key) -> Vec<Finding> {
        let Some(policy) = cx.input::<PeerAuthentications>(key) else { return Vec::new() };
        if !is_general(&policy.spec) {
            if key.namespace != cx.get::<Mesh>(&()).root_namespace {
                return Vec::new();
            }
            let message =
                "in the root namespace policies are for the whole mesh, so one with a selector has no effect";
            return vec![warning("selector-in-root-namespace", "spec.selector", message.to_owned())];
        }
        let others = peer_policies(cx, &key.namespace);
        match others.iter().find(|other| is_general(&other.spec)) {
            Some(first) if first.meta.name != policy.meta.name => vec![warning(
                "policy-conflict",
                "",
                format!("{} is older and for the same workloads, so this has no effect", first.meta.name),
            )],
            _ => Vec::new(),
        }
    }
}

//! Faults of the Gateway API's kinds.

use leno_derive::{Cx, Query};

use super::warning;
use crate::model::diagnostic::Finding;
use crate::model::inputs::{KubernetesGateways, ListenerSets};
use crate::model::{Kind, ObjectRef};
use crate::scope::gateway_api::listeners::{Listeners, ListenersOf, gateway_of_set};
use crate::scope::gateway_api::problems;

/// Faults of a Gateway, a ListenerSet or a route.
pub(super) struct GatewayApiFindings;

impl Query for GatewayApiFindings {
    type Key = ObjectRef;
    type Value = Vec<Finding>;
    const NAME: &'static str = "gateway-api-findings";

    fn derive(cx: &Cx<'_>, object: &ObjectRef) -> Vec<Finding> {
        let left_out = |listeners: &Listeners| {
            let left_out = listeners.left_out_of(object);
            left_out
                .map(|found| warning("listener-left-out", found.path.clone(), found.message.clone()))
                .collect()
        };
        if object.kind == Kind::KubernetesGateway {
            return left_out(&cx.get::<ListenersOf>(&object.key()));
        }
        if object.kind == Kind::ListenerSet {
            let set = cx.input::<ListenerSets>(&object.key());
            let Some(gateway) = set.and_then(|set| gateway_of_set(&set)) else {
                let message = "is no Gateway, so the listeners are not served".to_owned();
                return vec![warning("unknown-gateway", "spec.parentRef", message)];
            };
            if cx.input::<KubernetesGateways>(&gateway).is_none() {
                let message = format!("there is no Gateway {gateway}");
                return vec![warning("unknown-gateway", "spec.parentRef.name", message)];
            }
            let listeners = cx.get::<ListenersOf>(&gateway);
            if listeners.is_ours && !listeners.sets.contains(&object.key()) {
                let message = format!("the Gateway {gateway} takes no ListenerSets of this namespace");
                return vec![warning("listener-left-out", "spec.parentRef", message)];
            }
            return left_out(&listeners);
        }
        let problems = problems(cx, object).into_iter();
        problems.map(|(path, message)| warning("not-routed", path, message)).collect()
    }
}

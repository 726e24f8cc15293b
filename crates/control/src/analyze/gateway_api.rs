//! Faults of the Gateway API's kinds.

use leno_derive::{Cx, Query};

use super::warning;
use crate::model::diagnostic::Finding;
use crate::model::{Kind, ObjectRef};
use crate::scope::gateway_api::listeners::ListenersOf;
use crate::scope::gateway_api::problems;

/// Faults of a Gateway or of a route.
pub(super) struct GatewayApiFindings;

impl Query for GatewayApiFindings {
    type Key = ObjectRef;
    type Value = Vec<Finding>;
    const NAME: &'static str = "gateway-api-findings";

    fn derive(cx: &Cx<'_>, object: &ObjectRef) -> Vec<Finding> {
        if object.kind == Kind::KubernetesGateway {
            let listeners = cx.get::<ListenersOf>(&object.key());
            let left_out = listeners.left_out.iter();
            return left_out
                .map(|found| warning("listener-left-out", found.path.clone(), found.message.clone()))
                .collect();
        }
        let problems = problems(cx, object).into_iter();
        problems.map(|(path, message)| warning("not-routed", path, message)).collect()
    }
}

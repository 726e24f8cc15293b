//! Faults of the Gateway API's kinds.

use leno_derive::{Cx, Query};

use super::warning;
use crate::model::diagnostic::Finding;
use crate::model::inputs::{GrpcRoutes, HttpRoutes, KubernetesGateways, TcpRoutes, TlsRoutes};
use crate::model::{Kind, ObjectRef};
use crate::scope::gateway_api::listeners::ListenersOf;
use crate::scope::gateway_api::problems;

/// All objects of the Gateway API that can have faults.
pub(super) fn objects(cx: &Cx<'_>) -> Vec<ObjectRef> {
    let gateways = cx.all::<KubernetesGateways>().into_iter().map(|key| key.of(Kind::KubernetesGateway));
    let http = cx.all::<HttpRoutes>().into_iter().map(|key| key.of(Kind::HttpRoute));
    let grpc = cx.all::<GrpcRoutes>().into_iter().map(|key| key.of(Kind::GrpcRoute));
    let tls = cx.all::<TlsRoutes>().into_iter().map(|key| key.of(Kind::TlsRoute));
    let tcp = cx.all::<TcpRoutes>().into_iter().map(|key| key.of(Kind::TcpRoute));
    gateways.chain(http).chain(grpc).chain(tls).chain(tcp).collect()
}

/// Faults of a Gateway or of a route.
pub(super) struct GatewayApiFindings;

impl Query for GatewayApiFindings {
    type Key = ObjectRef;
    type Value = Vec<Finding>;
    const NAME: &'static str = "gateway-api-findings";

    fn derive(cx: &Cx<'_>, object: &ObjectRef) -> Vec<Finding> {
        let (code, problems) = match object.kind {
            Kind::KubernetesGateway => {
                ("listener-left-out", cx.get::<ListenersOf>(&object.key()).problems.clone())
            }
            _ => ("not-routed", problems(cx, object)),
        };
        problems.into_iter().map(|(path, message)| warning(code, path, message)).collect()
    }
}

//! Route configurations for gRPC clients that do without a proxy, by the names of clusters:
//! `outbound|9080||reviews.default.svc.cluster.local`.

use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::{Hosts, sidecar};
use crate::registry::Mesh;
use crate::scope::ProxyKey;
use crate::translate::name;
use crate::translate::proto::route;
use crate::translate::resource::Resource;

/// The route configuration of a service's port; `None` if there is none. A root.
pub(crate) struct GrpcRoute;

impl Query for GrpcRoute {
    type Key = (ProxyKey, String);
    type Value = Option<Arc<Resource>>;
    const NAME: &'static str = "grpc-route";

    fn derive(cx: &Cx<'_>, (proxy, name): &(ProxyKey, String)) -> Option<Arc<Resource>> {
        let parsed = name::parse_outbound(name).filter(|parsed| parsed.subset.is_empty())?;
        let viewer = proxy.as_client(cx).viewer(cx);
        let (service, found) = sidecar::of_service(cx, &viewer, parsed.host, parsed.port)?;
        let mut routes = found.routes.clone();
        routes.iter_mut().for_each(limit);
        let mut hosts = Hosts::new(&cx.get::<Mesh>(&()));
        hosts.origins.extend(found.origins.iter().cloned().chain([service.id.object.clone()]));
        // Deviation: istiod lists the names of the service; as the configuration is its own and a
        // client may know it under any of them, there is nothing to tell apart.
        hosts.add(name::virtual_host(parsed.host, parsed.port), vec!["*".to_owned()], routes);
        Some(hosts.finish(name, false))
    }
}

/// gRPC knows a limit for a call's time under another name (gRFC A31).
fn limit(route: &mut route::Route) {
    if let Some(route::route::Action::Route(action)) = &mut route.action {
        action.max_stream_duration = Some(route::route_action::MaxStreamDuration {
            max_stream_duration: action.timeout,
            ..route::route_action::MaxStreamDuration::default()
        });
    }
}

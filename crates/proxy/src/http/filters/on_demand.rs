//! `envoy.filters.http.on_demand`: a request to a cluster that is not known waits until discovery has
//! brought it, or says that there is none; then it goes on, and the router finds the cluster or
//! answers 503.
//!
//! Virtual hosts on demand, which Envoy's filter asks for too where a route configuration has `vhds`,
//! are not there, as such route configurations are refused.
//!
//! Deviation: Envoy runs the whole chain again for a request without a body once its cluster is there;
//! here the filters in front have seen it once.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use leno_api::proto::envoy::extensions::filters::http::on_demand::v3 as proto;

use super::{FilterConfig, Opening, Outcome, Registration, RouteSettings, Step};
use crate::cluster::on_demand::OnDemand;
use crate::config::lower::Lower;
use crate::http::headers::HeaderMap;
use crate::http::stream::Stream;

/// How long a cluster is waited for unless something else is said.
const TIMEOUT: Duration = Duration::from_secs(5);

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: "envoy.filters.http.on_demand",
    config_type: "envoy.extensions.filters.http.on_demand.v3.OnDemand",
    lower,
    route_type: Some("envoy.extensions.filters.http.on_demand.v3.PerRouteConfig"),
    lower_route: Some(lower_route),
};

/// OnDemand, and PerRouteConfig, which takes its place.
#[derive(Debug)]
struct Filter {
    /// `odcds`; `None`: nothing is asked for.
    odcds: Option<OnDemand>,
}

impl FilterConfig for Filter {
    fn on_request(
        &self,
        stream: &mut Stream,
        settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        _end: bool,
    ) -> Opening {
        let settings = settings.and_then(RouteSettings::first::<Filter>).unwrap_or(self);
        let Some(on_demand) = &settings.odcds else { return Opening::PASS };
        let cluster = stream.selected.as_ref().and_then(|selected| selected.cluster(head));
        let Some(name) = cluster.filter(|name| !name.is_empty()) else { return Opening::PASS };
        if stream.worker.cluster(name).is_some() {
            return Opening::PASS;
        }
        let arrival = stream.worker.awaited().cluster(on_demand, name);
        Opening::Done(Step::wait(async move {
            // However it ended: the router sees whether there is a cluster.
            arrival.await;
            Outcome::Continue
        }))
    }
}

fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    let proto::OnDemand { odcds } = at.unpack(any)?;
    Some(Arc::new(Filter { odcds: at.optional("odcds", odcds, lower_odcds) }))
}

fn lower_route(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn Any + Send + Sync>> {
    let proto::PerRouteConfig { odcds } = at.unpack(any)?;
    Some(Arc::new(Filter { odcds: at.optional("odcds", odcds, lower_odcds) }))
}

fn lower_odcds(proto: proto::OnDemandCds, at: &mut Lower) -> Option<OnDemand> {
    let proto::OnDemandCds { source, resources_locator, timeout } = proto;
    OnDemand::lower("source", source, &resources_locator, timeout, TIMEOUT, at)
}

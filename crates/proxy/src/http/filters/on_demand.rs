//! `envoy.filters.http.on_demand`: a request to a cluster that is not known waits until discovery has
//! brought it, or says that there is none; then it goes on, and the router finds the cluster or
//! answers 503.
//!
//! A request without a route whose route table may get further virtual hosts (VHDS) waits for that of
//! its host, or for the answer that there is none. Then the route is looked up again, and the request
//! goes on from here, as Envoy has it since it does not run the whole chain again; without a route the
//! router answers 404.
//!
//! Deviation: Envoy runs the whole chain again for a request without a body once its cluster is there;
//! here the filters in front have seen it once.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use leno_api::proto::envoy::extensions::filters::http::on_demand::v3 as proto;

use leno_base::Name;

use super::{FilterConfig, HttpStreamFilter, Opening, Outcome, Registration, RouteSettings, Step};
use crate::cluster::on_demand::OnDemand;
use crate::config::filter_id::FilterId;
use crate::config::lower::Lower;
use crate::config::source::ResourceKey;
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
    /// Its name in the chain; in PerRouteConfig of no interest.
    id: FilterId,
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
        if let Some(unknown) = stream.unknown_host(head) {
            return Opening::Open(Box::new(Asking {
                unknown: Some(unknown),
                id: self.id,
                odcds: self.odcds.clone(),
            }));
        }
        match &settings.odcds {
            Some(on_demand) => Opening::Done(await_cluster(on_demand, stream, head)),
            None => Opening::PASS,
        }
    }
}

/// Waits for the cluster of a request's route, if it is not known.
fn await_cluster(on_demand: &OnDemand, stream: &Stream, head: &HeaderMap) -> Step {
    let cluster = stream.selected.as_ref().and_then(|selected| selected.cluster(head));
    let Some(name) = cluster.filter(|name| !name.is_empty()) else { return Step::Continue };
    if stream.worker.cluster(name).is_some() {
        return Step::Continue;
    }
    let arrival = stream.worker.awaited().cluster(on_demand, name);
    Step::wait(async move {
        // However it ended: the router sees whether there is a cluster.
        arrival.await;
        Outcome::Continue
    })
}

/// A request that asks for a virtual host.
struct Asking {
    /// What is to be asked for still.
    unknown: Option<(ResourceKey, Name)>,
    /// The filter's name in the chain.
    id: FilterId,
    /// `odcds` of the chain, unless the route that is found has settings.
    odcds: Option<OnDemand>,
}

impl HttpStreamFilter for Asking {
    fn on_request(&mut self, stream: &mut Stream, head: &mut HeaderMap, _end: bool) -> Step {
        if let Some((table, host)) = self.unknown.take() {
            let answer = stream.worker.awaited().host(&table, &host);
            return Step::wait(async move {
                answer.await;
                Outcome::Again
            });
        }
        stream.refresh_route(head);
        let settings =
            stream.selected.as_ref().and_then(|selected| selected.overrides().find(self.id).cloned());
        let of_route = settings.as_ref().and_then(|settings| settings.first::<Filter>());
        match of_route.map_or(&self.odcds, |of_route| &of_route.odcds) {
            Some(on_demand) => await_cluster(on_demand, stream, head),
            None => Step::Continue,
        }
    }
}

fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    let proto::OnDemand { odcds } = at.unpack(any)?;
    Some(Arc::new(Filter {
        id: FilterId::of(&at.scope().filter_name),
        odcds: at.optional("odcds", odcds, lower_odcds),
    }))
}

fn lower_route(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn Any + Send + Sync>> {
    let proto::PerRouteConfig { odcds } = at.unpack(any)?;
    Some(Arc::new(Filter {
        id: FilterId::of(&at.scope().filter_name),
        odcds: at.optional("odcds", odcds, lower_odcds),
    }))
}

fn lower_odcds(proto: proto::OnDemandCds, at: &mut Lower) -> Option<OnDemand> {
    let proto::OnDemandCds { source, resources_locator, timeout } = proto;
    OnDemand::lower("source", source, &resources_locator, timeout, TIMEOUT, at)
}

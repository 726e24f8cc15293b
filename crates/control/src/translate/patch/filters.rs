//! What patches do to listener filters, network filters and HTTP filters.

use leno_api::any::{is, pack, unpack};
use leno_api::merge::merge_any;
use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use prost::{Message, Name};
use prost_types::Any;

use super::run::{Run, Step};
use super::{route, sound};
use crate::model::envoy_filter::{ApplyTo, FilterClass, Operation};
use crate::translate::proto::listener;

/// The filter whose HTTP filters are patched.
const CONNECTION_MANAGER: &str = "envoy.filters.network.http_connection_manager";

/// Filters that find out who calls.
const AUTHENTICATION: [&str; 2] = ["envoy.filters.http.jwt_authn", "istio_authn"];

/// Filters that say who may call.
const AUTHORIZATION: [&str; 4] = [
    "envoy.filters.http.rbac",
    "envoy.filters.http.ext_authz",
    "envoy.filters.network.rbac",
    "envoy.filters.network.ext_authz",
];

/// The filter that counts by Istio's labels.
const STATS: &str = "istio.stats";

/// A filter with a name and a configuration.
trait Filter: Message + Name + Default + Clone {
    fn name(&self) -> &str;
    fn config(&mut self) -> Option<&mut Any>;
    fn take_config(&mut self) -> Option<Any>;
}

macro_rules! filter {
    ($type:ty, $config:path) => {
        impl Filter for $type {
            fn name(&self) -> &str {
                &self.name
            }

            fn config(&mut self) -> Option<&mut Any> {
                match &mut self.config_type {
                    Some($config(config)) => Some(config),
                    _ => None,
                }
            }

            fn take_config(&mut self) -> Option<Any> {
                match self.config_type.take() {
                    Some($config(config)) => Some(config),
                    other => {
                        self.config_type = other;
                        None
                    }
                }
            }
        }
    };
}

filter!(listener::ListenerFilter, listener::listener_filter::ConfigType::TypedConfig);
filter!(listener::Filter, listener::filter::ConfigType::TypedConfig);
filter!(hcm::HttpFilter, hcm::http_filter::ConfigType::TypedConfig);

/// Merges a patch into a filter: its configuration inside, if it is of the same type. `named` says
/// whether the patch names the filter, and so must fit it.
fn merge_filter<T: Filter>(run: &mut Run<'_>, step: &Step<'_>, filter: &mut T, named: bool) {
    // As in Istio, a filter whose configuration is found elsewhere stays as it is.
    let Some(config) = filter.config() else { return };
    let Some(mut value) = run.value::<T>(step) else { return };
    if let Some(more) = value.take_config() {
        match merge_any(config, &more, step.lists()) {
            Ok(merged) => *config = merged,
            Err(error) => {
                if named {
                    run.fail(step, &error);
                }
                return;
            }
        }
        run.touch(step);
    }
    run.merge_part(step, filter, &value);
}

/// Patches the filters that look at connections before a chain is chosen.
pub(super) fn listener_filters(run: &mut Run<'_>, message: &mut listener::Listener) {
    let mut filters = std::mem::take(&mut message.listener_filters);
    for step in run.steps(ApplyTo::ListenerFilter) {
        if !step.meets_listener(message, false) {
            continue;
        }
        let wanted = step.listener_filter();
        if step.is_merge() {
            // As in Istio, nothing is merged into all of them.
            for filter in filters.iter_mut().filter(|filter| wanted == Some(filter.name())) {
                merge_filter(run, &step, filter, true);
            }
            continue;
        }
        let names = |filter: &listener::ListenerFilter| wanted == Some(filter.name());
        let end = filters.len();
        run.arrange(&step, &mut filters, wanted.is_some().then_some(&names), end);
    }
    message.listener_filters = filters;
}

/// Patches the filters of a chain, and those inside them.
pub(super) fn network_filters(
    run: &mut Run<'_>,
    message: &listener::Listener,
    chain: &mut listener::FilterChain,
) {
    let meets = |step: &Step<'_>, chain: &listener::FilterChain| {
        step.meets_listener(message, false) && step.meets_chain(message, chain)
    };
    let mut filters = std::mem::take(&mut chain.filters);
    let mut merges = Vec::new();
    for step in run.steps(ApplyTo::NetworkFilter) {
        if !meets(&step, chain) {
            continue;
        }
        if step.is_merge() {
            merges.push(step);
            continue;
        }
        let names = |filter: &listener::Filter| step.meets_filter(filter);
        let is_named = step.network_filter().is_some();
        let end = place(&step, &filters, sound::is_terminal);
        run.arrange(&step, &mut filters, is_named.then_some(&names), end);
    }
    let http = run.steps(ApplyTo::HttpFilter);
    let http: Vec<Step<'_>> = http.into_iter().filter(|step| meets(step, chain)).collect();
    for filter in &mut filters {
        for step in &merges {
            if step.meets_filter(filter) {
                merge_filter(run, step, filter, step.network_filter().is_some());
            }
        }
        let inner: Vec<Step<'_>> = http.iter().filter(|step| step.meets_filter(filter)).copied().collect();
        if filter.name == CONNECTION_MANAGER && !inner.is_empty() {
            with_manager(filter, |manager| http_filters(run, &inner, &mut manager.http_filters));
        }
    }
    chain.filters = filters;
}

/// Does something to the connection manager that a filter configures.
fn with_manager(filter: &mut listener::Filter, work: impl FnOnce(&mut hcm::HttpConnectionManager)) {
    let Some(config) = filter.config().filter(|config| is::<hcm::HttpConnectionManager>(config)) else {
        return;
    };
    if let Ok(mut manager) = unpack::<hcm::HttpConnectionManager>(config) {
        let before = manager.clone();
        work(&mut manager);
        if manager != before {
            *config = pack(&manager);
        }
    }
}

fn http_filters(run: &mut Run<'_>, steps: &[Step<'_>], filters: &mut Vec<hcm::HttpFilter>) {
    for step in steps.iter().filter(|step| !step.is_merge()) {
        let wanted = step.http_filter();
        let names = |filter: &hcm::HttpFilter| wanted == Some(filter.name());
        let end = place(step, filters, sound::is_router);
        run.arrange(step, filters, wanted.is_some().then_some(&names), end);
    }
    for filter in filters {
        for step in steps.iter().filter(|step| step.is_merge()) {
            let wanted = step.http_filter();
            if wanted.is_none_or(|wanted| wanted == filter.name()) {
                merge_filter(run, step, filter, wanted.is_some());
            }
        }
    }
}

/// Where a filter goes that is added: at the end, or where its class belongs.
///
/// Deviation: Istio has no code for classes, so that what is added with one is after the router, which
/// Envoy refuses; here they mean what Istio's API says.
fn place<T: Filter>(step: &Step<'_>, filters: &[T], ends: impl Fn(&T) -> bool) -> usize {
    let after = |names: &[&str]| {
        filters.iter().rposition(|filter| names.contains(&filter.name())).map(|last| last + 1)
    };
    if step.change.operation != Operation::Add {
        return filters.len();
    }
    match step.change.filter_class {
        FilterClass::Unspecified => filters.len(),
        FilterClass::Authn => after(&AUTHENTICATION).unwrap_or(0),
        FilterClass::Authz => after(&AUTHORIZATION).or_else(|| after(&AUTHENTICATION)).unwrap_or(0),
        FilterClass::Stats => {
            let stats = filters.iter().position(|filter| filter.name() == STATS);
            stats.or_else(|| filters.iter().position(ends)).unwrap_or(filters.len())
        }
    }
}

/// Patches the routes that a listener contains.
pub(super) fn routes(run: &mut Run<'_>, message: &mut listener::Listener) {
    use hcm::http_connection_manager::RouteSpecifier;
    if !route::is_patched(run) {
        return;
    }
    let chains = message.filter_chains.iter_mut().chain(&mut message.default_filter_chain);
    for filter in chains.flat_map(|chain| &mut chain.filters) {
        with_manager(filter, |manager| {
            if let Some(RouteSpecifier::RouteConfig(routes)) = &mut manager.route_specifier {
                route::patch(run, routes);
            }
        });
    }
}

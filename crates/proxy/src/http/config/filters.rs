//! Lowering of a chain of HTTP filters (`http_filters`, and `filters` of an upgrade).

use std::sync::Arc;
use std::time::Duration;

use leno_api::proto::envoy::extensions::filters::http::router::v3 as router;
use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use leno_base::Name;
use prost_types::Any;

use super::RouterConfig;
use super::discovered::Discovery;
use super::lower::lower_router;
use crate::config::filter_id::FilterId;
use crate::config::lower::Lower;
use crate::http::filters::{ChainedFilter, FilterConfig, REGISTRY};

/// A chain, lowered.
pub(super) struct LoweredChain {
    /// All filters but the router.
    pub(super) filters: Vec<ChainedFilter>,
    /// `None`: there is none, which is an error, or its configuration is one.
    pub(super) router: Option<RouterConfig>,
    /// Those of the filters whose configuration comes by ECDS, by their places.
    pub(super) discovered: Vec<(usize, Discovery)>,
}

/// Lowers the HTTP filters: all but the last from the registry, the last is the router.
pub(super) fn lower(field: &str, protos: Vec<hcm::HttpFilter>, at: &mut Lower) -> LoweredChain {
    let last = protos.len().checked_sub(1);
    let mut chain = LoweredChain { filters: Vec::new(), router: None, discovered: Vec::new() };
    let mut index = 0;
    at.each(field, protos, |proto, at| {
        let is_last = Some(index) == last;
        index += 1;
        let hcm::HttpFilter { name, is_optional, disabled, config_type } = proto;
        let any = match config_type {
            Some(hcm::http_filter::ConfigType::TypedConfig(any)) => any,
            Some(hcm::http_filter::ConfigType::ConfigDiscovery(source)) => {
                at.unsupported("config_discovery: of the last filter, the router", is_last);
                let discovery = at.field("config_discovery", |at| Discovery::lower(&name, source, at))?;
                let config = discovery.default_config();
                chain.discovered.push((chain.filters.len(), discovery));
                chain.filters.push(ChainedFilter { id: FilterId::of(&name), disabled, config });
                return None::<()>;
            }
            None => {
                at.error_at("typed_config", format!("filter '{name}' must have a typed config"));
                return None;
            }
        };
        let any = at.field("typed_config", |at| at.extension(any))?;
        if leno_api::any::is::<router::Router>(&any) {
            if !is_last {
                at.error(early_router(&name));
            }
            if disabled {
                at.error_at("disabled", "the terminal filter cannot be disabled by default");
            }
            chain.router = at.field("typed_config", |at| lower_router(&any, at));
            return None;
        }
        if is_optional && !is_known(&any) {
            return None;
        }
        let config = filter(&name, &any, is_last, "typed_config", at)?;
        chain.filters.push(ChainedFilter { id: FilterId::of(&name), disabled, config });
        None
    });
    if last.is_none() {
        at.error_at(field, "a chain without filters is not supported yet");
    }
    chain.filters.shrink_to_fit();
    chain
}

/// Why a router cannot be anywhere but at the end.
pub(super) fn early_router(name: &str) -> String {
    format!(
        "terminal filter named {name} of type envoy.filters.http.router must be the last filter in a http filter chain."
    )
}

/// Whether this proxy has the filter that this is the configuration of.
fn is_known(config: &Any) -> bool {
    let type_name = leno_api::any::type_name(&config.type_url);
    REGISTRY.iter().any(|filter| filter.config_type == type_name)
}

/// Lowers the configuration of a filter that is not the router, which is at `field`.
pub(super) fn filter(
    name: &str,
    any: &Any,
    is_last: bool,
    field: &str,
    at: &mut Lower,
) -> Option<Arc<dyn FilterConfig>> {
    let type_name = leno_api::any::type_name(&any.type_url);
    let Some(registration) = REGISTRY.iter().find(|filter| filter.config_type == type_name) else {
        at.unsupported_extension(name, &any.type_url);
        return None;
    };
    if is_last {
        at.error(format!(
            "non-terminal filter named {name} of type {} is the last filter in a http filter chain.",
            registration.name
        ));
    }
    at.scope_mut().filter_name = Name::new(name);
    at.field(field, |at| (registration.lower)(any, at))
}

/// The places of filters that want to be told of every request, and how often of those that go on.
pub(super) fn observers(filters: &[ChainedFilter]) -> Vec<(usize, Duration)> {
    let all = filters.iter().enumerate();
    all.filter_map(|(place, filter)| Some((place, filter.config.observes()?))).collect()
}

/// The last filter that says what connections offer by ALPN.
pub(super) fn alpn(filters: &[ChainedFilter]) -> Option<usize> {
    filters.iter().rposition(|filter| filter.config.alpn().is_some())
}

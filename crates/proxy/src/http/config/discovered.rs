//! HTTP filters whose configuration comes by ECDS (`config_discovery`, ExtensionConfigSource).
//!
//! A connection manager is lowered without it: in the filter's place stands the default
//! configuration, or a filter that answers 500. What comes is put there by
//! [`HttpConnectionManager::with_extension`], which makes another connection manager that shares
//! everything else with this one; `config::store` has the listeners use it, and connections go on
//! with it from their next request on. So a request finds the filter where all others are.

use std::sync::Arc;
use std::time::Duration;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::filters::http::router::v3 as router;
use prost::Name as _;
use prost_types::Any;

use super::{HttpConnectionManager, filters};
use crate::config::lower::{Lower, Scope};
use crate::config::source::{Origin, ResourceKey, config_source};
use crate::config::store::Extension;
use crate::config::wire::Fingerprint;
use crate::http::filters::missing::Missing;
use crate::http::filters::{ChainedFilter, FilterConfig, REGISTRY};
use crate::listener::Direction;

/// A filter of a connection manager whose configuration comes by ECDS.
#[derive(Clone, Debug)]
pub(crate) struct DiscoveredFilter {
    /// The upgrade whose own filters it is one of (`HttpConnectionManager::upgrade_filters`).
    upgrade: Option<usize>,
    /// Its place in the chain.
    place: usize,
    /// Where its configuration comes from.
    discovery: Arc<Discovery>,
    /// Which configuration was looked at last; `None`: there was none.
    seen: Option<Fingerprint>,
}

/// ExtensionConfigSource.
#[derive(Debug)]
pub(crate) struct Discovery {
    /// `config_source`, and the filter's name.
    key: ResourceKey,
    /// `initial_fetch_timeout` of the source.
    timeout: Option<Duration>,
    /// Not `apply_default_config_without_warming`.
    awaited: bool,
    /// `type_urls`, without their prefixes, in alphabetic order.
    types: Vec<Box<str>>,
    /// `default_config`.
    default: Option<Arc<dyn FilterConfig>>,
    /// `traffic_direction` of the listener.
    direction: Direction,
}

/// Why a configuration cannot be a filter's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is of a type that is not among `type_urls`.
    Conflict(String),
    /// It is wrong.
    Invalid(String),
}

impl Refusal {
    /// The reason.
    pub(crate) fn into_message(self) -> String {
        let (Refusal::Conflict(message) | Refusal::Invalid(message)) = self;
        message
    }
}

impl Discovery {
    /// Lowers an ExtensionConfigSource of the filter with this name.
    pub(super) fn lower(name: &str, proto: core::ExtensionConfigSource, at: &mut Lower) -> Option<Self> {
        let core::ExtensionConfigSource {
            config_source: source,
            default_config,
            apply_default_config_without_warming,
            type_urls,
        } = proto;
        if apply_default_config_without_warming && default_config.is_none() {
            at.error(format!(
                "Error: filter config {name} applied without warming but has no default config."
            ));
        }
        if type_urls.is_empty() {
            at.error_at("type_urls", "value must contain at least 1 item(s)");
        }
        let mut types = at.each("type_urls", type_urls, |type_url, at| {
            let type_name = leno_api::any::type_name(&type_url);
            let known = REGISTRY.iter().any(|filter| filter.config_type == type_name);
            if !known && type_name != router::Router::full_name() {
                at.unsupported_extension(name, &type_url);
            }
            Some(Box::from(type_name))
        });
        types.sort_unstable();
        types.dedup();
        let default = at.optional("default_config", default_config, |any, at| {
            let any = at.extension(any)?;
            if let Err(conflict) = check_type(&types, &any) {
                at.error(conflict);
            }
            lower_filter(name, &any, "", at)
        });
        let source = at.required("config_source", source, |source, at| {
            let source = config_source(source, at)?;
            // Envoy accepts that when it validates only, and does not start with it.
            if source.origin == Origin::Ads && at.scope().ads.is_none() {
                at.error("ADS must be configured to support an ADS config source");
            }
            if at.scope().node_id.is_empty() || at.scope().node_cluster.is_empty() {
                at.error("node 'id' and 'cluster' are required");
            }
            Some(source)
        })?;
        Some(Self {
            key: ResourceKey { name: name.into(), origin: source.origin },
            timeout: source.initial_fetch_timeout,
            awaited: !apply_default_config_without_warming,
            types,
            default,
            direction: at.scope().direction,
        })
    }

    /// What runs as long as nothing has come.
    pub(super) fn default_config(&self) -> Arc<dyn FilterConfig> {
        self.default.clone().unwrap_or_else(|| Arc::new(Missing))
    }

    /// The filter is in this place.
    pub(super) fn placed(self, upgrade: Option<usize>, place: usize) -> DiscoveredFilter {
        DiscoveredFilter { upgrade, place, discovery: Arc::new(self), seen: None }
    }

    /// Lowers a configuration that has come.
    fn configure(&self, extension: &Extension, scope: &Scope) -> Result<Arc<dyn FilterConfig>, Refusal> {
        check_type(&self.types, &extension.config).map_err(Refusal::Conflict)?;
        let scope = Scope {
            direction: self.direction,
            outbound: self.direction == Direction::Outbound,
            ..scope.clone()
        };
        let lowered = Lower::resource_in(scope, |at| {
            lower_filter(&self.key.name, &extension.config, "typed_config", at)
        });
        lowered.map_err(|rejected| Refusal::Invalid(rejected.to_string()))
    }
}

fn check_type(types: &[Box<str>], config: &Any) -> Result<(), String> {
    let type_name = leno_api::any::type_name(&config.type_url);
    if types.iter().any(|known| **known == *type_name) {
        return Ok(());
    }
    let types = types.join(", ");
    Err(format!("Error: filter config has type URL {type_name} but expect {types}."))
}

fn lower_filter(name: &str, config: &Any, field: &str, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    if leno_api::any::is::<router::Router>(config) {
        at.error(filters::early_router(name));
        return None;
    }
    filters::filter(name, config, false, field, at)
}

impl DiscoveredFilter {
    /// What to ask for, and where.
    pub(crate) fn key(&self) -> &ResourceKey {
        &self.discovery.key
    }

    /// How long to wait for the first answer before going on without; `None`: for ever.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.discovery.timeout
    }

    /// Which configuration it has; `None`: none that came.
    pub(crate) fn seen(&self) -> Option<Fingerprint> {
        self.seen
    }

    /// Whether a listener waits for it.
    pub(crate) fn is_awaited(&self) -> bool {
        self.discovery.awaited
    }
}

impl HttpConnectionManager {
    /// The same with the configuration that has come for the filters that `key` says, or without the
    /// one that is no more (`None`). With nothing to change there is none. Where `conflicts` are
    /// counted, a filter does not mind a configuration of a type that it does not take.
    ///
    /// # Errors
    /// Why a filter cannot do with it.
    pub(crate) fn with_extension(
        &self,
        key: &ResourceKey,
        extension: Option<&Extension>,
        scope: &Scope,
        mut conflicts: Option<&mut usize>,
    ) -> Result<Option<Self>, Refusal> {
        let seen = extension.map(|extension| extension.fingerprint);
        let concerned = |filter: &DiscoveredFilter| filter.key() == key && filter.seen != seen;
        let mut next: Option<Self> = None;
        for (index, filter) in self.discovered.iter().enumerate().filter(|(_, filter)| concerned(filter)) {
            let discovery = &filter.discovery;
            let config = match extension.map(|extension| discovery.configure(extension, scope)) {
                None => discovery.default_config(),
                Some(Ok(config)) => config,
                Some(Err(Refusal::Conflict(message))) => match conflicts.as_deref_mut() {
                    None => return Err(Refusal::Conflict(message)),
                    Some(conflicts) => {
                        *conflicts += 1;
                        discovery.default_config()
                    }
                },
                Some(Err(refusal)) => return Err(refusal),
            };
            if filter.upgrade.is_some() && config.observes().is_some() {
                let message = "in `filters` of an upgrade a filter that counts requests is not supported yet";
                return Err(Refusal::Invalid(message.to_owned()));
            }
            let next = next.get_or_insert_with(|| self.clone());
            if let Some(filter) = next.discovered.get_mut(index) {
                filter.seen = seen;
            }
            if let Some(place) = next.place_mut(filter) {
                place.config = config;
            }
        }
        if let Some(next) = &mut next {
            next.observers = filters::observers(&next.filters);
            next.alpn = filters::alpn(&next.filters);
        }
        Ok(next)
    }

    fn place_mut(&mut self, filter: &DiscoveredFilter) -> Option<&mut ChainedFilter> {
        let filters = match filter.upgrade {
            None => &mut self.filters,
            Some(upgrade) => &mut self.upgrade_filters.get_mut(upgrade)?.1,
        };
        filters.get_mut(filter.place)
    }
}

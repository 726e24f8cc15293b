//! Lowering of `typed_per_filter_config`, level by level.

use std::collections::BTreeMap;
use std::sync::Arc;

use leno_api::proto::envoy::config::route::v3 as proto;
use prost::Name as _;
use prost_types::Any;

use crate::config::filter_id::FilterId;
use crate::config::lower::Lower;
use crate::http::filters::{REGISTRY, RouteOverrides, RouteSettings};

/// The settings of one level on top of those of the level above.
pub(super) fn overrides(
    above: &RouteOverrides,
    protos: BTreeMap<String, Any>,
    at: &mut Lower,
) -> RouteOverrides {
    let mut merged = above.clone();
    for (name, any) in protos {
        let settings =
            at.field(&format!("typed_per_filter_config[\"{name}\"]"), |at| settings(&name, any, at));
        if let Some(mut settings) = settings {
            let id = FilterId::of(&name);
            settings.above = above.find(id).cloned();
            merged.0.retain(|(other, _)| *other != id);
            merged.0.push((id, Arc::new(settings)));
        }
    }
    merged
}

fn settings(name: &str, any: Any, at: &mut Lower) -> Option<RouteSettings> {
    let any = at.extension(any)?;
    if leno_api::any::type_name(&any.type_url) != proto::FilterConfig::full_name() {
        return Some(RouteSettings { disabled: false, settings: lower(name, &any, false, at)?, above: None });
    }
    let proto::FilterConfig { config, is_optional, disabled } = at.unpack(&any)?;
    if disabled {
        return Some(RouteSettings { disabled, settings: Arc::new(()), above: None });
    }
    match config {
        Some(config) => {
            let config = at.extension(config)?;
            let settings = at.field("config", |at| lower(name, &config, is_optional, at))?;
            Some(RouteSettings { disabled, settings, above: None })
        }
        None => {
            at.error_at("config", "is required unless the filter is disabled");
            None
        }
    }
}

fn lower(
    name: &str,
    any: &Any,
    optional: bool,
    at: &mut Lower,
) -> Option<Arc<dyn std::any::Any + Send + Sync>> {
    let type_name = leno_api::any::type_name(&any.type_url);
    let registration = REGISTRY.iter().find(|filter| filter.route_type == Some(type_name));
    match registration.and_then(|filter| filter.lower_route) {
        Some(lower) => lower(any, at),
        None => {
            if REGISTRY.iter().any(|filter| filter.config_type == type_name && filter.route_type.is_none()) {
                at.error(format!(
                    "the filter '{name}' doesn't support virtual host or route specific configurations"
                ));
            } else if !optional {
                at.unsupported_extension(name, &any.type_url);
            }
            None
        }
    }
}

//! `scoped_routes` with an inline list: which route table serves a request is read from its headers.

use std::collections::HashMap;
use std::sync::Arc;

use hcm::ScopedRoutes;
use hcm::scoped_routes::scope_key_builder::FragmentBuilder;
use hcm::scoped_routes::scope_key_builder::fragment_builder::header_value_extractor::{
    ExtractType, KvElement,
};
use hcm::scoped_routes::scope_key_builder::fragment_builder::{HeaderValueExtractor, Type as Builder};
use hcm::scoped_routes::{ConfigSpecifier, ScopeKeyBuilder};
use leno_api::proto::envoy::config::route::v3 as route;
use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use leno_base::Name;
use route::scoped_route_configuration::key::Fragment as KeyPart;
use route::scoped_route_configuration::key::fragment::Type as KeyType;

use crate::config::lower::Lower;
use crate::http::headers::HeaderMap;
use crate::http::route::RouteTable;
use crate::http::route::matcher::header_name;
use crate::http::route::table::pack;

/// Route tables by what fragments of requests say.
#[derive(Debug)]
pub(crate) struct Scopes {
    fragments: Vec<Fragment>,
    tables: HashMap<Vec<u8>, Arc<RouteTable>>,
}

/// HeaderValueExtractor: a part of a header's first value.
#[derive(Debug)]
struct Fragment {
    header: Name,
    /// Between elements; empty: the value is one element.
    separator: String,
    part: Part,
}

#[derive(Debug)]
enum Part {
    /// The element at this place.
    Index(usize),
    /// What follows this separator in the first element that begins with this key.
    Value { separator: String, key: String },
}

impl Fragment {
    fn extract<'h>(&self, head: &'h HeaderMap) -> Option<&'h str> {
        let value = std::str::from_utf8(head.find(&self.header)?).ok()?;
        // An empty separator would split between all characters.
        let whole = self.separator.is_empty().then_some(value);
        let mut elements = whole.into_iter().chain(
            value.split(if whole.is_some() { "\0" } else { &*self.separator }).filter(|_| whole.is_none()),
        );
        match &self.part {
            Part::Index(index) => elements.nth(*index),
            Part::Value { separator, key } => elements.find_map(|element| {
                let (name, value) = element.split_once(separator.as_str()).unwrap_or((element, ""));
                (name == key).then_some(value)
            }),
        }
    }
}

/// Appends a part of a key so that no two lists of parts look alike.
fn extend(key: &mut Vec<u8>, part: &str) {
    key.extend_from_slice(&(part.len() as u64).to_be_bytes());
    key.extend_from_slice(part.as_bytes());
}

impl Scopes {
    /// Lowers ScopedRoutes.
    pub(super) fn lower(proto: ScopedRoutes, at: &mut Lower) -> Option<Arc<Self>> {
        let ScopedRoutes {
            // Of stats that nobody counts.
            name: _,
            scope_key_builder,
            // Tables by name come by scoped RDS only.
            rds_config_source: _,
            config_specifier,
        } = proto;
        let builder = at.required("scope_key_builder", scope_key_builder, |builder, _| Some(builder));
        let fragments = builder.map(|ScopeKeyBuilder { fragments }| {
            at.field("scope_key_builder", |at| at.each("fragments", fragments, fragment))
        });
        let list = match config_specifier {
            Some(ConfigSpecifier::ScopedRouteConfigurationsList(list)) => list.scoped_route_configurations,
            Some(ConfigSpecifier::ScopedRds(_)) => {
                at.unsupported("scoped_rds", true);
                return None;
            }
            None => {
                at.error("one of scoped_route_configurations_list and scoped_rds is required");
                return None;
            }
        };
        let mut tables = HashMap::new();
        at.field("scoped_route_configurations_list", |at| {
            at.each("scoped_route_configurations", list, |scope, at| {
                let (key, table) = self::scope(scope, at)?;
                tables.insert(key, table);
                None::<()>
            })
        });
        Some(Arc::new(Self { fragments: fragments?, tables }))
    }

    /// The table for a request; `None`: it belongs to no scope.
    pub(crate) fn find(&self, head: &HeaderMap) -> Option<&Arc<RouteTable>> {
        let mut key = Vec::new();
        for fragment in &self.fragments {
            extend(&mut key, fragment.extract(head)?);
        }
        self.tables.get(&key)
    }
}

fn fragment(proto: FragmentBuilder, at: &mut Lower) -> Option<Fragment> {
    let Some(Builder::HeaderValueExtractor(extractor)) = proto.r#type else {
        at.error("header_value_extractor is required");
        return None;
    };
    let HeaderValueExtractor { name, element_separator, extract_type } = extractor;
    at.field("header_value_extractor", |at| {
        let part = match extract_type {
            Some(ExtractType::Index(index)) => {
                if index > 0 && element_separator.is_empty() {
                    at.error_at("index", "Index > 0 for empty string element separator.");
                }
                Part::Index(index as usize)
            }
            Some(ExtractType::Element(KvElement { separator, key })) => Part::Value { separator, key },
            None => {
                at.error("HeaderValueExtractor extract_type not set.");
                return None;
            }
        };
        Some(Fragment { header: header_name(&name), separator: element_separator, part })
    })
}

fn scope(proto: route::ScopedRouteConfiguration, at: &mut Lower) -> Option<(Vec<u8>, Arc<RouteTable>)> {
    let route::ScopedRouteConfiguration {
        // There is nothing to demand of what is there.
        on_demand: _,
        name: _,
        route_configuration_name,
        route_configuration,
        key,
    } = proto;
    if !route_configuration_name.is_empty() {
        at.error_at(
            "route_configuration_name",
            "Fetching routes via RDS (route_configuration_name) is not supported with inline scoped routes.",
        );
    }
    let Some(table) = route_configuration else {
        at.error("You must specify a route_configuration with inline scoped routes.");
        return None;
    };
    let mut parts = Vec::new();
    let key = at.required("key", key, |key, _| Some(key));
    at.field("key", |at| {
        at.each("fragments", key.map(|key| key.fragments).unwrap_or_default(), |KeyPart { r#type }, at| {
            match r#type {
                Some(KeyType::StringKey(part)) => extend(&mut parts, &part),
                None => at.error("string_key is required"),
            }
            None::<()>
        })
    });
    let table = at.field("route_configuration", |at| RouteTable::lower(&pack(&table), None, true, at))?;
    Some((parts, Arc::new(table)))
}

#[cfg(test)]
mod tests {
    use super::{Fragment, Part};
    use crate::http::headers::HeaderMap;
    use crate::http::route::matcher::header_name;

    #[test]
    fn parts_of_headers() {
        let extract = |separator: &str, part: Part, value: &str| {
            let mut head = HeaderMap::new();
            head.append(b"x-k", value.as_bytes());
            head.append(b"x-k", b"another");
            let fragment = Fragment { header: header_name("X-K"), separator: separator.to_owned(), part };
            fragment.extract(&head).map(str::to_owned)
        };
        let index = |separator, index, value| extract(separator, Part::Index(index), value);
        assert_eq!(index(";", 1, "a;b;c").as_deref(), Some("b"));
        assert_eq!(index(";", 1, "a; b").as_deref(), Some(" b"));
        assert_eq!(index(";", 1, "a"), None);
        assert_eq!(index("", 0, "a;b").as_deref(), Some("a;b"));
        let value = |value| {
            let part = Part::Value { separator: "=".to_owned(), key: "vip".to_owned() };
            extract(";", part, value)
        };
        assert_eq!(value("a=2;vip=1;vip=3").as_deref(), Some("1"));
        assert_eq!(value("vip").as_deref(), Some(""));
        assert_eq!(value("vip=1=2").as_deref(), Some("1=2"));
        assert_eq!(value("x; vip=1"), None);
    }
}

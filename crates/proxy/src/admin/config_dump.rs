//! `/config_dump`: all configuration, in the shape of envoy.admin.v3.ConfigDump.

use std::time::SystemTime;

use leno_api::proto::envoy::config::bootstrap::v3::Bootstrap;
use leno_api::proto::envoy::config::cluster::v3::Cluster as ClusterProto;
use leno_api::proto::envoy::config::listener::v3 as listener;
use leno_api::proto::envoy::config::route::v3 as route;
use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3 as manager;
use leno_api::proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use leno_base::Name;
use prost::{Message, Name as _};
use regex::bytes::Regex;
use serde_json::{Map, Value, json};

use crate::admin::json::{
    any, endpoint_address, health_status, locality, masked, object, packed, text, unpacked,
};
use crate::admin::respond::{Query, Response};
use crate::admin::{Answer, Asking, Context, DynamicResource, Endpoint, RefusedResource, ResourceKind, View};
use crate::cluster::{Assignment, Cluster, LocalityEndpoints};
use crate::config::re2;
use crate::listener::Listener;
use crate::telemetry::access_log::time::rfc3339_millis;

/// `/config_dump`
pub(super) const ENDPOINT: Endpoint = Endpoint {
    path: "/config_dump",
    help: "dump current configuration",
    parameters: &[
        ("resource", "The resource to dump"),
        ("mask", "The field mask to apply, to each element of the resource if there is one"),
        ("name_regex", "Dump only the configurations whose names match the regex"),
        ("include_eds", "Dump endpoints too"),
    ],
    mutates: false,
    answer: Answer::Asking(dump),
};

const PACKAGE: &str = "type.googleapis.com/envoy.admin.v3.";

/// One message of the dump.
struct Part {
    /// Its type in envoy.admin.v3.
    name: &'static str,
    /// Its fields in the order of the API.
    fields: Map<String, Value>,
    /// All fields that the message has.
    known: &'static [&'static str],
    /// Its repeated fields: name, type of the elements, their fields.
    lists: &'static [(&'static str, &'static str, &'static [&'static str])],
}

const STATIC: [&str; 2] = ["cluster", "last_updated"];
const DYNAMIC_CLUSTER: [&str; 5] =
    ["version_info", "cluster", "last_updated", "error_state", "client_status"];
const DYNAMIC_LISTENER: [&str; 6] =
    ["name", "active_state", "warming_state", "draining_state", "error_state", "client_status"];
const DYNAMIC_ROUTE: [&str; 5] =
    ["version_info", "route_config", "last_updated", "error_state", "client_status"];
const DYNAMIC_ENDPOINT: [&str; 5] =
    ["version_info", "endpoint_config", "last_updated", "error_state", "client_status"];
const DYNAMIC_EXTENSION: [&str; 5] =
    ["version_info", "ecds_filter", "last_updated", "error_state", "client_status"];

fn dump<'a>(context: &'a Context, query: &'a Query) -> Asking<'a> {
    Box::pin(async {
        let names = match query.find("name_regex").map(re2::compile_full).transpose() {
            Ok(names) => Names(names),
            Err(error) => return Response::bad_request(format!("Error while parsing name_regex: {error}\n")),
        };
        let Some(view) = context.view().await else { return Response::gone() };
        let mut parts = vec![bootstrap(context), clusters(context, &view, &names)];
        parts.extend(view.extensions.as_deref().map(|extensions| self::extensions(extensions, &names)));
        if query.has("include_eds") {
            parts.push(endpoints(&view, &names));
        }
        parts.extend([
            listeners(context, &view, &names),
            scoped_routes(),
            routes(context, &view, &names),
            secrets(context, &view, &names),
        ]);
        select(&parts, query)
    })
}

/// Applies `resource` and `mask`.
fn select(parts: &[Part], query: &Query) -> Response {
    let mask = query.find("mask").filter(|mask| !mask.is_empty());
    let unusable =
        |mask: &str| Response::bad_request(format!("FieldMask '{mask}' could not be successfully used.\n"));
    let Some(resource) = query.find("resource").filter(|resource| !resource.is_empty()) else {
        let typed = |part: &Part| {
            let mut fields = Map::from_iter([("@type".to_owned(), json!(format!("{PACKAGE}{}", part.name)))]);
            fields.extend(part.fields.clone());
            Value::Object(fields)
        };
        let shown: Vec<Value> = match mask {
            None => parts.iter().map(typed).collect(),
            Some(mask) => parts.iter().filter_map(|part| masked(&typed(part), mask, part.known)).collect(),
        };
        return match mask {
            Some(mask) if shown.is_empty() => unusable(mask),
            _ => Response::json(&json!({"configs": shown})),
        };
    };
    for part in parts {
        let Some((_, element, known)) = part.lists.iter().find(|(name, _, _)| *name == resource) else {
            if part.known.contains(&resource) {
                return Response::bad_request(format!(
                    "{resource} is not a repeated field. Use ?mask={resource} to get only this field"
                ));
            }
            continue;
        };
        let items =
            part.fields.get(resource).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let mut shown = Vec::with_capacity(items.len());
        for item in items {
            let mut fields = Map::from_iter([("@type".to_owned(), json!(format!("{PACKAGE}{element}")))]);
            fields.extend(item.as_object().cloned().unwrap_or_default());
            let item = Value::Object(fields);
            match mask {
                None => shown.push(item),
                Some(mask) => match masked(&item, mask, known) {
                    Some(item) => shown.push(item),
                    None => return unusable(mask),
                },
            }
        }
        return Response::json(&if shown.is_empty() { json!({}) } else { json!({"configs": shown}) });
    }
    Response { status: 404, ..Response::text(format!("{resource} not found in config dump")) }
}

/// `name_regex`.
struct Names(Option<Regex>);

impl Names {
    fn wanted(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|names| names.is_match(name.as_bytes()))
    }
}

/// Fields without those that are null or empty lists.
fn fields<const N: usize>(fields: [(&str, Value); N]) -> Map<String, Value> {
    let set = |value: &Value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty());
    fields.into_iter().filter(|(_, value)| set(value)).map(|(name, value)| (name.to_owned(), value)).collect()
}

fn date(time: SystemTime) -> Value {
    rfc3339_millis(time).into()
}

fn bootstrap(context: &Context) -> Part {
    Part {
        name: "BootstrapConfigDump",
        fields: fields([
            ("bootstrap", unpacked::<Bootstrap>(&context.server.bootstrap)),
            ("last_updated", date(context.server.started_at)),
        ]),
        known: &["bootstrap", "last_updated"],
        lists: &[],
    }
}

/// When a resource was taken; static ones came with the start.
fn updated(context: &Context, view: &View, kind: ResourceKind, name: &Name) -> Value {
    date(view.updated.get(&(kind, name.clone())).copied().unwrap_or(context.server.started_at))
}

/// envoy.admin.v3.UpdateFailureState.
fn error_state(refused: &RefusedResource) -> Value {
    object([
        ("failed_configuration", refused.source.as_ref().map_or(Value::Null, any)),
        ("last_update_attempt", date(refused.at)),
        ("details", text(&refused.details)),
        ("version_info", text(&refused.version)),
    ])
}

fn refused<'v>(view: &'v View, kind: ResourceKind, name: &str) -> Option<&'v RefusedResource> {
    view.refused.iter().find(|refused| refused.kind == kind && refused.name.as_str() == name)
}

fn clusters(context: &Context, view: &View, names: &Names) -> Part {
    let mut active: Vec<&Cluster> = view.snapshot.clusters.values().map(|cluster| &**cluster).collect();
    let mut warming: Vec<&Cluster> = view.warming_clusters.iter().map(|cluster| &**cluster).collect();
    for list in [&mut active, &mut warming] {
        list.retain(|cluster| names.wanted(&cluster.name));
        list.sort_unstable_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
    }
    let shown = |cluster: &Cluster| {
        let error = refused(view, ResourceKind::Cluster, &cluster.name).map_or(Value::Null, error_state);
        object([
            ("version_info", text(&cluster.version)),
            ("cluster", packed::<ClusterProto>(&cluster.source)),
            ("last_updated", updated(context, view, ResourceKind::Cluster, &cluster.name)),
            ("error_state", error),
        ])
    };
    // A static cluster that warms is listed as a static one, as in Envoy.
    let of = |list: &[&Cluster], dynamic: bool| {
        list.iter()
            .filter(|cluster| cluster.added_via_api == dynamic)
            .map(|cluster| shown(cluster))
            .collect::<Vec<_>>()
    };
    let mut fixed = of(&active, false);
    fixed.extend(of(&warming, false));
    Part {
        name: "ClustersConfigDump",
        fields: fields([
            ("version_info", text(&view.cds_version)),
            ("static_clusters", fixed.into()),
            ("dynamic_active_clusters", of(&active, true).into()),
            ("dynamic_warming_clusters", of(&warming, true).into()),
        ]),
        known: &["version_info", "static_clusters", "dynamic_active_clusters", "dynamic_warming_clusters"],
        lists: &[
            ("static_clusters", "ClustersConfigDump.StaticCluster", &STATIC),
            ("dynamic_active_clusters", "ClustersConfigDump.DynamicCluster", &DYNAMIC_CLUSTER),
            ("dynamic_warming_clusters", "ClustersConfigDump.DynamicCluster", &DYNAMIC_CLUSTER),
        ],
    }
}

/// Configurations of filters.
fn extensions(known: &[(Name, DynamicResource)], names: &Names) -> Part {
    let shown = known.iter().filter(|(name, _)| names.wanted(name)).map(|(_, extension)| {
        object([
            ("version_info", text(&extension.version)),
            ("ecds_filter", any(&extension.source)),
            ("last_updated", date(extension.updated)),
        ])
    });
    Part {
        name: "EcdsConfigDump",
        fields: fields([("ecds_filters", shown.collect::<Vec<_>>().into())]),
        known: &["ecds_filters"],
        lists: &[("ecds_filters", "EcdsConfigDump.EcdsFilterConfig", &DYNAMIC_EXTENSION)],
    }
}

fn listeners(context: &Context, view: &View, names: &Names) -> Part {
    let mut all: std::collections::BTreeMap<&str, [Option<&Listener>; 2]> = std::collections::BTreeMap::new();
    for listener in view.snapshot.listeners.values() {
        all.entry(listener.name.as_str()).or_default()[0] = Some(listener);
    }
    for listener in &view.warming_listeners {
        all.entry(listener.name.as_str()).or_default()[1] = Some(listener);
    }
    let failed = view.refused.iter().filter(|refused| refused.kind == ResourceKind::Listener);
    for refused in failed {
        all.entry(refused.name.as_str()).or_default();
    }
    all.retain(|name, _| names.wanted(name));
    let (mut fixed, mut dynamic) = (Vec::new(), Vec::new());
    for (name, versions) in all {
        let newest = versions.iter().rev().flatten().next();
        if let Some(listener) = newest.filter(|listener| !listener.added_via_api) {
            fixed.push(json!({
                "listener": packed::<listener::Listener>(&listener.source),
                "last_updated": updated(context, view, ResourceKind::Listener, &listener.name),
            }));
            continue;
        }
        let state = |listener: Option<&Listener>| {
            listener.map_or(Value::Null, |listener| {
                object([
                    ("version_info", text(&listener.version)),
                    ("listener", packed::<listener::Listener>(&listener.source)),
                    ("last_updated", updated(context, view, ResourceKind::Listener, &listener.name)),
                ])
            })
        };
        let [active, warming] = versions;
        dynamic.push(object([
            ("name", name.into()),
            ("active_state", state(active)),
            ("warming_state", state(warming)),
            ("error_state", refused(view, ResourceKind::Listener, name).map_or(Value::Null, error_state)),
        ]));
    }
    Part {
        name: "ListenersConfigDump",
        fields: fields([
            ("version_info", text(&view.lds_version)),
            ("static_listeners", fixed.into()),
            ("dynamic_listeners", dynamic.into()),
        ]),
        known: &["version_info", "static_listeners", "dynamic_listeners"],
        lists: &[
            ("static_listeners", "ListenersConfigDump.StaticListener", &["listener", "last_updated"]),
            ("dynamic_listeners", "ListenersConfigDump.DynamicListener", &DYNAMIC_LISTENER),
        ],
    }
}

fn routes(context: &Context, view: &View, names: &Names) -> Part {
    let mut listeners: Vec<&Listener> =
        view.snapshot.listeners.values().map(|listener| &**listener).collect();
    listeners.sort_unstable_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
    let mut fixed = Vec::new();
    for listener in listeners {
        for table in inline_routes(listener).into_iter().filter(|table| names.wanted(&table.name)) {
            let source = prost_types::Any {
                type_url: route::RouteConfiguration::type_url(),
                value: table.encode_to_vec(),
            };
            fixed.push(json!({
                "route_config": any(&source),
                "last_updated": updated(context, view, ResourceKind::Listener, &listener.name),
            }));
        }
    }
    let mut dynamic = Vec::new();
    for table in &view.routes {
        let name = route::RouteConfiguration::decode(table.source.value.as_slice()).map(|table| table.name);
        let name = name.unwrap_or_default();
        if names.wanted(&name) {
            dynamic.push(object([
                ("version_info", text(&table.version)),
                ("route_config", any(&table.source)),
                ("last_updated", date(table.updated)),
                ("error_state", refused(view, ResourceKind::Route, &name).map_or(Value::Null, error_state)),
            ]));
        }
    }
    Part {
        name: "RoutesConfigDump",
        fields: fields([("static_route_configs", fixed.into()), ("dynamic_route_configs", dynamic.into())]),
        known: &["static_route_configs", "dynamic_route_configs"],
        lists: &[
            ("static_route_configs", "RoutesConfigDump.StaticRouteConfig", &["route_config", "last_updated"]),
            ("dynamic_route_configs", "RoutesConfigDump.DynamicRouteConfig", &DYNAMIC_ROUTE),
        ],
    }
}

/// There are no scoped routes here; Envoy's dump has the message even so.
fn scoped_routes() -> Part {
    let known = &["inline_scoped_route_configs", "dynamic_scoped_route_configs"];
    Part { name: "ScopedRoutesConfigDump", fields: Map::new(), known, lists: &[] }
}

/// Secrets, those of the bootstrap too; keys are hidden.
fn secrets(context: &Context, view: &View, names: &Names) -> Part {
    let bootstrap = Bootstrap::decode(&*context.server.bootstrap);
    let fixed = bootstrap.ok().and_then(|bootstrap| bootstrap.static_resources).unwrap_or_default().secrets;
    let fixed = fixed.iter().filter(|secret| names.wanted(&secret.name)).map(|secret| {
        let source = prost_types::Any { type_url: tls::Secret::type_url(), value: secret.encode_to_vec() };
        json!({"name": secret.name, "last_updated": date(context.server.started_at), "secret": any(&source)})
    });
    let fixed: Vec<Value> = fixed.collect();
    let (mut active, mut warming) = (Vec::new(), Vec::new());
    for (name, known) in view.secrets.iter().filter(|(name, _)| names.wanted(name)) {
        match known {
            Some(known) => active.push(json!({
                "name": name.as_str(),
                "version_info": known.version,
                "last_updated": date(known.updated),
                "secret": any(&known.source),
            })),
            None => {
                let empty = tls::Secret { name: name.to_string(), r#type: None };
                let source =
                    prost_types::Any { type_url: tls::Secret::type_url(), value: empty.encode_to_vec() };
                warming.push(json!({
                    "name": name.as_str(),
                    "version_info": "uninitialized",
                    "last_updated": date(context.server.started_at),
                    "secret": any(&source),
                }));
            }
        }
    }
    const DYNAMIC: [&str; 6] =
        ["name", "version_info", "last_updated", "secret", "error_state", "client_status"];
    Part {
        name: "SecretsConfigDump",
        fields: fields([
            ("static_secrets", fixed.into()),
            ("dynamic_active_secrets", active.into()),
            ("dynamic_warming_secrets", warming.into()),
        ]),
        known: &["static_secrets", "dynamic_active_secrets", "dynamic_warming_secrets"],
        lists: &[
            ("static_secrets", "SecretsConfigDump.StaticSecret", &["name", "last_updated", "secret"]),
            ("dynamic_active_secrets", "SecretsConfigDump.DynamicSecret", &DYNAMIC),
            ("dynamic_warming_secrets", "SecretsConfigDump.DynamicSecret", &DYNAMIC),
        ],
    }
}

/// The route tables that a listener's connection managers have inline.
fn inline_routes(listener: &Listener) -> Vec<route::RouteConfiguration> {
    let Ok(message) = listener::Listener::decode(&*listener.source) else { return Vec::new() };
    let chains = message.filter_chains.into_iter().chain(message.default_filter_chain);
    let filters = chains.flat_map(|chain| chain.filters);
    let managers = filters.filter_map(|filter| {
        let Some(listener::filter::ConfigType::TypedConfig(config)) = filter.config_type else { return None };
        let config = match config.type_url.ends_with(".TypedStruct") {
            true => leno_api::typed_struct::resolve(&config).ok()?,
            false => config,
        };
        if leno_api::any::type_name(&config.type_url) != manager::HttpConnectionManager::full_name() {
            return None;
        }
        manager::HttpConnectionManager::decode(config.value.as_slice()).ok()
    });
    let tables = managers.filter_map(|manager| match manager.route_specifier {
        Some(manager::http_connection_manager::RouteSpecifier::RouteConfig(table)) => Some(table),
        _ => None,
    });
    tables.collect()
}

fn endpoints(view: &View, names: &Names) -> Part {
    let mut clusters: Vec<&Cluster> = view.snapshot.clusters.values().map(|cluster| &**cluster).collect();
    clusters.sort_unstable_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
    let (mut fixed, mut dynamic) = (Vec::new(), Vec::new());
    for cluster in clusters {
        let Some(assignment) = view.snapshot.endpoints.get(&cluster.name) else { continue };
        let name = match &cluster.discovery {
            crate::cluster::Discovery::Eds { service, .. } => &service.name,
            _ => &cluster.name,
        };
        if names.wanted(name) {
            let list = if cluster.added_via_api { &mut dynamic } else { &mut fixed };
            list.push(json!({"endpoint_config": load_assignment(name, assignment)}));
        }
    }
    Part {
        name: "EndpointsConfigDump",
        fields: fields([
            ("static_endpoint_configs", fixed.into()),
            ("dynamic_endpoint_configs", dynamic.into()),
        ]),
        known: &["static_endpoint_configs", "dynamic_endpoint_configs"],
        lists: &[
            (
                "static_endpoint_configs",
                "EndpointsConfigDump.StaticEndpointConfig",
                &["endpoint_config", "last_updated"],
            ),
            ("dynamic_endpoint_configs", "EndpointsConfigDump.DynamicEndpointConfig", &DYNAMIC_ENDPOINT),
        ],
    }
}

/// envoy.config.endpoint.v3.ClusterLoadAssignment.
fn load_assignment(name: &str, assignment: &Assignment) -> Value {
    let localities = assignment.localities.iter().map(|place| {
        let LocalityEndpoints { locality: at, priority, weight, endpoints } = place;
        let endpoints = endpoints.iter().map(|endpoint| {
            let metadata = match endpoint.metadata.is_empty() {
                true => Value::Null,
                false => json!({"filter_metadata": &*endpoint.metadata}),
            };
            object([
                (
                    "endpoint",
                    object([
                        ("address", endpoint_address(&endpoint.address)),
                        ("health_check_config", json!({})),
                        ("hostname", text(endpoint.hostname.as_deref().unwrap_or_default())),
                    ]),
                ),
                ("health_status", health_status(endpoint.health).into()),
                ("metadata", metadata),
                ("load_balancing_weight", endpoint.weight.into()),
            ])
        });
        object([
            ("locality", locality(at)),
            ("lb_endpoints", endpoints.collect::<Vec<_>>().into()),
            ("load_balancing_weight", weight.unwrap_or(0).into()),
            ("priority", if *priority == 0 { Value::Null } else { (*priority).into() }),
        ])
    });
    json!({
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": name,
        "endpoints": localities.collect::<Vec<_>>(),
        "policy": {"overprovisioning_factor": assignment.overprovisioning_factor},
    })
}

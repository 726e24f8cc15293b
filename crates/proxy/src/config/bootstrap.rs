//! Lowering of the bootstrap: what a proxy starts with.
//!
//! Order matters: the runtime first (fields with a `runtime_key` read it), then clusters (routes
//! may refer to them), then listeners.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use leno_api::proto::envoy::config::bootstrap::v3 as proto;
use leno_api::proto::envoy::config::cluster::v3::Cluster as ClusterProto;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::config::listener::v3::Listener as ListenerProto;
use leno_api::proto::envoy::config::trace::v3::Tracing as TracingProto;
use leno_api::proto::envoy::extensions::bootstrap::internal_listener::v3::InternalListener as InternalListenerProto;
use leno_base::Name;
use leno_xds::Mode;
use prost::Message;

use crate::admin::AdminConfig;
use crate::cluster::Cluster;
use crate::cluster::config::typed_resolver;
use crate::cluster::lb::settings::Here;
use crate::config::address::{self, Address};
use crate::config::lower::{Lower, Scope, UnknownFields};
use crate::config::runtime::Runtime;
use crate::config::source::{ConfigSource, XdsServer, config_source, xds_server};
use crate::config::wire::{places, split};
use crate::listener::{Direction, ListenAddress, Listener};
use crate::logging::format::LogFormat;
use crate::overload::Plan;
use crate::telemetry::sinks::{self, Sinks};
use crate::telemetry::tags::StatsConfig;

/// What a proxy starts with, lowered.
#[derive(Debug)]
pub(crate) struct Bootstrap {
    /// Who we are, as the control plane is told.
    pub(crate) node: core::Node,
    /// Static clusters.
    pub(crate) clusters: Vec<Arc<Cluster>>,
    /// Static listeners.
    pub(crate) listeners: Vec<Listener>,
    /// `dynamic_resources.ads_config`.
    pub(crate) ads: Option<XdsServer>,
    /// `dynamic_resources.cds_config`.
    pub(crate) cds: Option<ConfigSource>,
    /// `dynamic_resources.lds_config`.
    pub(crate) lds: Option<ConfigSource>,
    /// `admin`, if it has an address.
    pub(crate) admin: Option<AdminConfig>,
    /// `cluster_manager.outlier_detection.event_log_path`, if any.
    pub(crate) outlier_log: Option<Arc<str>>,
    /// `application_log_config.log_format`.
    pub(crate) log_format: Option<LogFormat>,
    /// `overload_manager`.
    pub(crate) overload: Option<Plan>,
    /// The overload manager's limit of connections, else runtime key
    /// `overload.global_downstream_max_connections`.
    pub(crate) max_connections: Option<u64>,
    /// `stats_sinks`, and what else happens when stats are flushed, if anything.
    pub(crate) sinks: Option<Sinks>,
    /// What resources that come later are lowered in.
    pub(crate) scope: Scope,
}

/// Lowers a bootstrap from its wire form; its node is complete, with what the command line says.
/// Static clusters and listeners are decoded one by one, and keep their parts of it.
pub(crate) fn lower(wire: Bytes, at: &mut Lower) -> Option<Bootstrap> {
    const STATIC_RESOURCES: u32 = 2;
    let Some((resources, rest)) = split(&wire, STATIC_RESOURCES) else {
        at.error("malformed message");
        return None;
    };
    // Several are merged, as text on the command line comes after that of a file.
    let resources: Vec<Bytes> = resources.into_iter().map(|place| wire.slice(place)).collect();
    let proto: proto::Bootstrap = decode(&rest, at)?;
    let source = wire;
    let proto::Bootstrap {
        node,
        node_context_params,
        // Read apart, see above.
        static_resources: _,
        dynamic_resources,
        cluster_manager,
        hds_config,
        flags_path,
        stats_sinks,
        // When stats are allocated is our own business.
        deferred_stat_options: _,
        stats_config,
        stats_flush_interval,
        watchdog,
        watchdogs,
        tracing,
        layered_runtime,
        admin,
        overload_manager,
        enable_dispatcher_stats,
        header_prefix,
        stats_server_version_override,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        bootstrap_extensions,
        fatal_actions,
        config_sources,
        default_config_source,
        default_socket_interface,
        certificate_provider_instances,
        // Which headers Envoy finds fast.
        inline_headers: _,
        perf_tracing_file_path,
        default_regex_engine,
        xds_delegate_extension,
        xds_config_tracker_extension,
        listener_manager,
        application_log_config,
        grpc_async_client_manager_config,
        memory_allocator_manager,
        enable_worker_cpu_affinity,
        stats_flush,
        stats_eviction,
    } = proto;
    at.unsupported("node_context_params", !node_context_params.is_empty());
    at.unsupported("hds_config", hds_config.is_some());
    at.unsupported("flags_path", !flags_path.is_empty());
    at.unsupported("watchdog", watchdog.is_some());
    at.unsupported("watchdogs", watchdogs.is_some());
    at.unsupported("enable_dispatcher_stats", enable_dispatcher_stats);
    at.unsupported("header_prefix", !header_prefix.is_empty());
    at.unsupported("stats_server_version_override", stats_server_version_override.is_some());
    at.unsupported("use_tcp_for_dns_lookups", use_tcp_for_dns_lookups);
    at.unsupported("dns_resolution_config", dns_resolution_config.is_some());
    let resolvers = typed_resolver(typed_dns_resolver_config, at);
    at.unsupported("typed_dns_resolver_config.typed_config.resolvers", !resolvers.servers.is_empty());
    at.unsupported("fatal_actions", !fatal_actions.is_empty());
    at.unsupported("config_sources", !config_sources.is_empty());
    at.unsupported("default_config_source", default_config_source.is_some());
    at.unsupported("default_socket_interface", !default_socket_interface.is_empty());
    at.unsupported("certificate_provider_instances", !certificate_provider_instances.is_empty());
    at.unsupported("perf_tracing_file_path", !perf_tracing_file_path.is_empty());
    at.unsupported("default_regex_engine", default_regex_engine.is_some());
    at.unsupported("xds_delegate_extension", xds_delegate_extension.is_some());
    at.unsupported("xds_config_tracker_extension", xds_config_tracker_extension.is_some());
    at.unsupported("listener_manager", listener_manager.is_some());
    at.unsupported("grpc_async_client_manager_config", grpc_async_client_manager_config.is_some());
    at.unsupported("memory_allocator_manager", memory_allocator_manager.is_some());
    at.unsupported("enable_worker_cpu_affinity", enable_worker_cpu_affinity);
    let log_format = at.optional("application_log_config", application_log_config, lower_log);
    let mut internal_buffer = None;
    at.each("bootstrap_extensions", bootstrap_extensions, |extension, at| {
        let any = at.field("typed_config", |at| at.extension(extension.typed_config.unwrap_or_default()))?;
        if leno_api::any::is::<InternalListenerProto>(&any) {
            let InternalListenerProto { buffer_size_kb } = at.field("typed_config", |at| at.unpack(&any))?;
            internal_buffer = Some(buffer_size_kb.unwrap_or(1024) as usize * 1024);
        } else {
            at.unsupported_extension(&extension.name, &any.type_url);
        }
        None::<()>
    });

    let node = node.unwrap_or_default();
    let runtime_layers = at.optional("layered_runtime", layered_runtime, lower_runtime).unwrap_or_default();
    let mut runtime = Runtime::default();
    for (_, values) in &runtime_layers {
        runtime.add_layer(values.clone());
    }
    let overload = at.optional("overload_manager", overload_manager, Plan::lower);
    let max_connections = overload.as_ref().and_then(|plan| plan.max_connections);
    let max_connections =
        max_connections.or_else(|| runtime.integer("overload.global_downstream_max_connections"));
    let StaticResources { listeners, clusters, rest } = StaticResources::read(&resources, at)?;
    let proto::bootstrap::StaticResources { listeners: _, clusters: _, secrets } = rest;
    let dynamic = dynamic_resources.unwrap_or_default();
    let names =
        clusters.iter().filter_map(|wire| Named::decode(&**wire).ok()).map(|named| Name::from(named.name));
    let names = names.collect::<HashSet<_>>();
    *at.scope_mut() = Scope {
        node_id: node.id.as_str().into(),
        node_cluster: node.cluster.as_str().into(),
        node_metadata: Arc::new(node.metadata.clone().map(address::object).unwrap_or_default()),
        clusters: Some(Arc::new(names)),
        runtime: Arc::new(runtime),
        here: Arc::default(),
        bind: None,
        internal_buffer,
        secrets: Arc::default(),
        xds_clusters: None,
        ads: None,
        tracer: None,
        outbound: false,
        added_via_api: false,
        version: String::new(),
        unknown_fields: UnknownFields::Ignore,
        direction: Direction::Unspecified,
        filter_name: Name::default(),
        dns_caches: Arc::default(),
        shared: Arc::default(),
    };
    let (bind, outlier_log, local_cluster) =
        at.field("cluster_manager", |at| lower_cluster_manager(cluster_manager.unwrap_or_default(), at));
    at.scope_mut().bind = bind.map(Arc::new);
    let here = Here { cluster: local_cluster, locality: address::locality(node.locality.clone()) };
    at.scope_mut().here = Arc::new(here);
    at.scope_mut().tracer = tracing.and_then(|TracingProto { http }| http).map(Arc::new);
    // Before whatever refers to them.
    let mut found = HashMap::new();
    at.each("static_resources.secrets", secrets, |secret, at| {
        let (name, secret) = crate::tls::config::secret(secret, at)?;
        found.insert(name, secret);
        None::<()>
    });
    at.scope_mut().secrets = Arc::new(found);
    let stats_config =
        at.field("stats_config", |at| StatsConfig::lower(stats_config.unwrap_or_default(), at));
    let flushing = sinks::Proto {
        sinks: stats_sinks,
        interval: stats_flush_interval,
        flush: stats_flush,
        eviction: stats_eviction,
    };
    let sinks = stats_config.as_ref().and_then(|shown| Sinks::lower(flushing, shown, at));
    let mut admin = admin.and_then(|admin| at.field("admin", |at| lower_admin(admin, at)));
    if let (Some(admin), Some(stats_config)) = (&mut admin, stats_config) {
        admin.stats_config = stats_config;
        admin.flush = sinks.as_ref().and_then(Sinks::asked);
        admin.bootstrap = source;
        admin.runtime_layers = runtime_layers;
    }
    let clusters = at.field("static_resources", |at| lower_clusters(clusters, at));
    let (ads, cds, lds) = at.field("dynamic_resources", |at| lower_dynamic(dynamic, at));
    at.scope_mut().ads = ads.as_ref().map(|ads| if ads.delta { Mode::Delta } else { Mode::Sotw });
    if (ads.is_some() || cds.is_some() || lds.is_some()) && (node.id.is_empty() || node.cluster.is_empty()) {
        at.error_at(
            "node",
            "node 'id' and 'cluster' are required. Set it either in 'node' config or via --service-node and --service-cluster options.",
        );
    }
    let listeners = at.field("static_resources", |at| lower_listeners(listeners, at));
    let mut scope = at.scope().clone();
    // Which clusters exist changes from here on.
    scope.clusters = None;
    Some(Bootstrap {
        node,
        clusters,
        listeners,
        ads,
        cds,
        lds,
        admin,
        outlier_log,
        log_format,
        overload,
        max_connections,
        sinks,
        scope,
    })
}

/// How lines of our own log look.
fn lower_log(proto: proto::bootstrap::ApplicationLogConfig, at: &mut Lower) -> Option<LogFormat> {
    use proto::bootstrap::application_log_config::LogFormat as LogFormatProto;
    use proto::bootstrap::application_log_config::log_format::LogFormat as Kind;
    let proto::bootstrap::ApplicationLogConfig { log_format } = proto;
    let LogFormatProto { log_format } = log_format?;
    let (field, format) = match log_format? {
        Kind::TextFormat(text) => ("text_format", LogFormat::parse(&text)),
        Kind::JsonFormat(object) => ("json_format", LogFormat::parse_json(&address::object(object))),
    };
    format.map_err(|error| at.error_at(&format!("log_format.{field}"), error)).ok()
}

fn decode<T: Message + prost::Name + Default>(wire: &[u8], at: &mut Lower) -> Option<T> {
    T::decode(wire).map_err(|error| at.error(format!("cannot decode {}: {error}", T::full_name()))).ok()
}

/// `static_resources`, not decoded yet where there may be thousands.
struct StaticResources {
    listeners: Vec<Bytes>,
    clusters: Vec<Bytes>,
    rest: proto::bootstrap::StaticResources,
}

impl StaticResources {
    fn read(wires: &[Bytes], at: &mut Lower) -> Option<Self> {
        const LISTENERS: u32 = 1;
        const CLUSTERS: u32 = 2;
        const SECRETS: u32 = 3;
        let values = |field| {
            let mut all = Vec::new();
            for wire in wires {
                all.extend(places(wire, field)?.into_iter().map(|place| wire.slice(place)));
            }
            Some(all)
        };
        let (Some(listeners), Some(clusters), Some(secrets)) =
            (values(LISTENERS), values(CLUSTERS), values(SECRETS))
        else {
            at.error_at("static_resources", "malformed message");
            return None;
        };
        let mut rest = proto::bootstrap::StaticResources::default();
        for secret in secrets {
            rest.secrets.push(at.field("static_resources.secrets", |at| decode(&secret, at))?);
        }
        Some(Self { listeners, clusters, rest })
    }
}

/// A cluster of which only the name is read.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

fn lower_clusters(wires: Vec<Bytes>, at: &mut Lower) -> Vec<Arc<Cluster>> {
    let mut seen = HashSet::new();
    at.each("clusters", wires, |wire, at| {
        let proto: ClusterProto = decode(&wire, at)?;
        if !seen.insert(proto.name.clone()) {
            at.error_at("name", format!("cluster manager: duplicate cluster '{}'", proto.name));
        }
        crate::cluster::config::lower_proto(proto, wire, at).map(Arc::new)
    })
}

fn lower_listeners(wires: Vec<Bytes>, at: &mut Lower) -> Vec<Listener> {
    let mut listeners: Vec<Listener> = Vec::new();
    at.each("listeners", wires, |wire, at| {
        let proto: ListenerProto = decode(&wire, at)?;
        let listener = crate::listener::config::lower_proto(proto, wire, None, at)?;
        // The same name again is an update.
        listeners.retain(|other| other.name != listener.name);
        let meant = |address: &ListenAddress| {
            !listener.bind_to_port || !matches!(address, ListenAddress::Ip(address) if address.port() == 0)
        };
        let mut taken = listeners.iter().flat_map(|other| &other.addresses);
        if let Some(address) = taken.find(|address| meant(address) && listener.addresses.contains(address)) {
            at.error_at(
                "address",
                format!(
                    "error adding listener: '{}' has duplicate address '{address}' as existing listener",
                    listener.name
                ),
            );
        }
        listeners.push(listener);
        None::<()>
    });
    listeners
}

type Dynamic = (Option<XdsServer>, Option<ConfigSource>, Option<ConfigSource>);

fn lower_dynamic(proto: proto::bootstrap::DynamicResources, at: &mut Lower) -> Dynamic {
    let proto::bootstrap::DynamicResources {
        lds_config,
        lds_resources_locator,
        cds_config,
        cds_resources_locator,
        ads_config,
    } = proto;
    at.unsupported("lds_resources_locator", !lds_resources_locator.is_empty());
    at.unsupported("cds_resources_locator", !cds_resources_locator.is_empty());
    let ads = at.optional("ads_config", ads_config, xds_server);
    let cds = at.optional("cds_config", cds_config, config_source);
    let lds = at.optional("lds_config", lds_config, config_source);
    (ads, cds, lds)
}

/// The default of upstream bind settings, where ejections are logged, and the local cluster.
fn lower_cluster_manager(
    proto: proto::ClusterManager,
    at: &mut Lower,
) -> (Option<crate::cluster::BindConfig>, Option<Arc<str>>, Option<Name>) {
    let proto::ClusterManager {
        local_cluster_name,
        outlier_detection,
        upstream_bind_config,
        load_stats_config,
        // When clusters are built is our own business.
        enable_deferred_cluster_creation: _,
    } = proto;
    let log = outlier_detection.and_then(|outlier| {
        let proto::cluster_manager::OutlierDetection { event_log_path, event_service } = outlier;
        at.unsupported("outlier_detection.event_service", event_service.is_some());
        (!event_log_path.is_empty()).then(|| event_log_path.into())
    });
    at.unsupported("load_stats_config", load_stats_config.is_some());
    let local = address::name(local_cluster_name);
    if let (Some(local), Some(known)) = (&local, &at.scope().clusters)
        && !known.contains(local)
    {
        at.error_at("local_cluster_name", format!("local cluster '{local}' must be defined"));
    }
    (at.optional("upstream_bind_config", upstream_bind_config, address::bind_config), log, local)
}

fn lower_runtime(proto: proto::LayeredRuntime, at: &mut Lower) -> Option<Vec<(String, serde_json::Value)>> {
    use proto::runtime_layer::LayerSpecifier;
    let mut seen = HashSet::new();
    let mut admin_layers = 0;
    Some(at.each("layers", proto.layers, |layer, at| {
        let proto::RuntimeLayer { name, layer_specifier } = layer;
        if !seen.insert(name.clone()) {
            at.error_at("name", format!("duplicate layer name: {name}"));
        }
        match layer_specifier {
            Some(LayerSpecifier::StaticLayer(values)) => Some((name, address::object(values))),
            Some(LayerSpecifier::AdminLayer(proto::runtime_layer::AdminLayer {})) => {
                admin_layers += 1;
                if admin_layers > 1 {
                    at.error(
                        "too many admin layers specified in LayeredRuntime, at most one may be specified",
                    );
                }
                Some((name, serde_json::Value::Object(serde_json::Map::new())))
            }
            Some(LayerSpecifier::DiskLayer(_)) => {
                at.unsupported("disk_layer", true);
                None
            }
            Some(LayerSpecifier::RtdsLayer(_)) => {
                at.unsupported("rtds_layer", true);
                None
            }
            None => {
                at.error("a layer specifier is required");
                None
            }
        }
    }))
}

fn lower_admin(proto: proto::Admin, at: &mut Lower) -> Option<AdminConfig> {
    let admin = AdminConfig::lower(proto, at)?;
    match &admin.address {
        Some(Address::Name(host, _)) => {
            at.error_at("address", format!("malformed IP address: {host}"));
            None
        }
        Some(Address::Ip(_) | Address::Pipe(..)) => Some(admin),
        // There is none then, as in Envoy.
        None => None,
    }
}

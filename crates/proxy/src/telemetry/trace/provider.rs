//! Lowering of tracing providers.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::config::trace::v3 as proto;
use leno_api::proto::envoy::extensions::tracers::opentelemetry as otel;
use leno_base::Name;
use prost_types::Any;

use crate::admin::server_info::VERSION;
use crate::config::lower::Lower;
use crate::http::client::config::grpc;
use crate::http::route::config::fraction;
use crate::http::route::mutation::{self, HeaderMutations};
use crate::telemetry::trace::export::USER_AGENT;
use crate::telemetry::trace::otlp;
use crate::telemetry::trace::sampling::Share;
use crate::telemetry::trace::tracer::{Dialect, HttpCollector, Sampler, Target, Tracer, Zipkin};
use crate::telemetry::trace::wire::{bytes, message};

/// Lowers a provider. Its type decides which it is, as in Envoy.
pub(crate) fn lower(proto: proto::tracing::Http, at: &mut Lower) -> Option<Arc<Tracer>> {
    let proto::tracing::Http { name, config_type } = proto;
    let Some(proto::tracing::http::ConfigType::TypedConfig(any)) = config_type else {
        at.error_at("typed_config", format!("tracing provider '{name}' must have a typed config"));
        return None;
    };
    at.field("typed_config", |at| {
        let any = at.extension(any)?;
        if leno_api::any::is::<proto::OpenTelemetryConfig>(&any) {
            return open_telemetry(&any, at);
        }
        if leno_api::any::is::<proto::ZipkinConfig>(&any) {
            return zipkin(&any, at);
        }
        at.unsupported_extension(&name, &any.type_url);
        None
    })
}

/// What both kinds have in common, by the runtime.
fn tracer(any: &Any, dialect: Dialect, target: Target, most: usize, at: &Lower) -> Arc<Tracer> {
    let provider = match dialect {
        Dialect::OpenTelemetry { .. } => "opentelemetry",
        Dialect::Zipkin(_) => "zipkin",
    };
    let number = |key| at.scope().runtime.integer(&format!("tracing.{provider}.{key}"));
    let batch = number("min_flush_spans").and_then(|spans| usize::try_from(spans).ok()).unwrap_or(5);
    let interval = Duration::from_millis(number("flush_interval_ms").unwrap_or(5000).max(1));
    // What the runtime and the node say are parts of what it does.
    let scope = at.scope();
    let own = format!(
        "\0{batch} {interval:?} {} {} {} {}",
        scope.identity(),
        scope.node_id,
        scope.node_cluster,
        scope.here.locality.zone
    );
    let key = [any.type_url.as_bytes(), b"\0", &any.value, own.as_bytes()].concat().into();
    Arc::new(Tracer { key, dialect, target, batch: batch.max(1), interval, most })
}

fn open_telemetry(any: &Any, at: &mut Lower) -> Option<Arc<Tracer>> {
    let proto::OpenTelemetryConfig {
        grpc_service,
        http_service,
        exporter,
        service_name,
        resource_detectors,
        sampler,
        max_cache_size,
        set_telemetry_sdk_resource_attributes,
        set_service_name_resource_attribute,
        set_instrumentation_scope,
    } = at.unpack(any)?;
    if let Some(exporter) = exporter {
        let type_url = exporter.typed_config.map(|any| any.type_url).unwrap_or_default();
        at.field("exporter", |at| at.unsupported_extension(&exporter.name, &type_url));
        return None;
    }
    let options = ResourceOptions {
        service_name: set_service_name_resource_attribute != Some(false),
        sdk: set_telemetry_sdk_resource_attributes != Some(false),
    };
    let attributes = resource(service_name, resource_detectors, options, at);
    let mut encoded = Vec::new();
    for (name, value) in &attributes {
        message(1, &mut encoded, |out| otlp::attribute(name, value, out));
    }
    let mut scope = Vec::new();
    if set_instrumentation_scope != Some(false) {
        bytes(1, b"envoy", &mut scope);
        bytes(2, VERSION.as_bytes(), &mut scope);
    }
    let sampler = match sampler {
        Some(sampler) => Some(at.field("sampler", |at| lower_sampler(sampler, at))?),
        None => None,
    };
    let target = match (grpc_service, http_service) {
        (Some(service), None) => Target::Grpc(at.field("grpc_service", |at| grpc(service, at))?),
        (None, Some(service)) => Target::Http(at.field("http_service", |at| {
            let collector = collector(service, at)?;
            let timeout = collector.timeout;
            let content_type = "application/x-protobuf";
            Some(HttpCollector { timeout, content_type, user_agent: Some(USER_AGENT), ..collector })
        })?),
        (None, None) | (Some(_), Some(_)) => {
            at.error(
                "OpenTelemetry Tracer must have exactly one of gRPC, HTTP, or custom exporter configured.",
            );
            return None;
        }
    };
    let dialect = Dialect::OpenTelemetry { sampler, resource: encoded.into(), scope: scope.into() };
    let most = max_cache_size.map_or(1024, |most| most as usize);
    Some(tracer(any, dialect, target, most, at))
}

/// Which attributes of a resource are not found by detectors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResourceOptions {
    /// `service.name`
    pub(crate) service_name: bool,
    /// `telemetry.sdk.*`
    pub(crate) sdk: bool,
}

/// What OpenTelemetry is told of who we are.
pub(crate) fn resource(
    service_name: String,
    detectors: Vec<core::TypedExtensionConfig>,
    options: ResourceOptions,
    at: &mut Lower,
) -> BTreeMap<String, String> {
    let mut attributes = BTreeMap::new();
    if options.service_name {
        let name = if service_name.is_empty() { "unknown_service:envoy".to_owned() } else { service_name };
        attributes.insert("service.name".to_owned(), name);
    }
    if options.sdk {
        // Deviation: the language is the one that this proxy is written in.
        for (name, value) in [("language", "rust"), ("name", "envoy"), ("version", VERSION)] {
            attributes.insert(format!("telemetry.sdk.{name}"), value.to_owned());
        }
    }
    let found = at.each("resource_detectors", detectors, detect);
    attributes.extend(found.into_iter().flatten());
    attributes
}

/// What a resource detector finds.
fn detect(extension: core::TypedExtensionConfig, at: &mut Lower) -> Option<Vec<(String, String)>> {
    use otel::resource_detectors::v3 as detectors;
    let any = at.required("typed_config", extension.typed_config, |any, at| at.extension(any))?;
    at.field("typed_config", |at| {
        if leno_api::any::is::<detectors::EnvironmentResourceDetectorConfig>(&any) {
            let detectors::EnvironmentResourceDetectorConfig {} = at.unpack(&any)?;
            let text = std::env::var("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
            let mut found = Vec::new();
            for pair in text.split(',').filter(|pair| !pair.is_empty()) {
                match pair.split_once('=') {
                    Some((name, value)) => found.push((name.to_owned(), value.to_owned())),
                    None => at.error("The OpenTelemetry environment resource detector is configured but the 'OTEL_RESOURCE_ATTRIBUTES' environment variable has an invalid format."),
                }
            }
            return Some(found);
        }
        if leno_api::any::is::<detectors::StaticConfigResourceDetectorConfig>(&any) {
            let detectors::StaticConfigResourceDetectorConfig { attributes } = at.unpack(&any)?;
            let named = attributes.into_iter().filter(|(name, value)| !name.is_empty() && !value.is_empty());
            return Some(named.collect());
        }
        if leno_api::any::is::<detectors::DynatraceResourceDetectorConfig>(&any) {
            let detectors::DynatraceResourceDetectorConfig {} = at.unpack(&any)?;
            return Some(dynatrace(|path| std::fs::read_to_string(path).ok()));
        }
        at.unsupported_extension(&extension.name, &any.type_url);
        None
    })
}

/// What Dynatrace's agent says of where the proxy runs: in files, of which the first names another.
/// Those that are not there say nothing.
pub(super) fn dynatrace(read: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    const NAMED: &str = "dt_metadata_e617c525669e072eebe3d0f08212e8f2.properties";
    const FILES: [&str; 2] = [
        "/var/lib/dynatrace/enrichment/dt_metadata.properties",
        "/var/lib/dynatrace/enrichment/dt_host_metadata.properties",
    ];
    let named = read(NAMED).and_then(|path| read(path.trim()));
    let texts = named.into_iter().chain(FILES.iter().filter_map(|path| read(path)));
    let mut found = Vec::new();
    for text in texts {
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        let pairs = pairs.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()));
        found.extend(pairs.filter(|(name, value)| !name.is_empty() && !value.is_empty()));
    }
    found
}

fn lower_sampler(extension: core::TypedExtensionConfig, at: &mut Lower) -> Option<Sampler> {
    use otel::samplers::v3 as samplers;
    let any = at.required("typed_config", extension.typed_config, |any, at| at.extension(any))?;
    at.field("typed_config", |at| {
        if leno_api::any::is::<samplers::AlwaysOnSamplerConfig>(&any) {
            let samplers::AlwaysOnSamplerConfig {} = at.unpack(&any)?;
            return Some(Sampler::AlwaysOn);
        }
        if leno_api::any::is::<samplers::TraceIdRatioBasedSamplerConfig>(&any) {
            let samplers::TraceIdRatioBasedSamplerConfig { sampling_percentage } = at.unpack(&any)?;
            let share = sampling_percentage.unwrap_or_default();
            let (numerator, denominator) = at.field("sampling_percentage", |at| fraction(share, at));
            return Some(Sampler::Ratio(Share(numerator, denominator)));
        }
        if leno_api::any::is::<samplers::ParentBasedSamplerConfig>(&any) {
            let samplers::ParentBasedSamplerConfig { wrapped_sampler } = at.unpack(&any)?;
            let inner = at.required("wrapped_sampler", wrapped_sampler, lower_sampler)?;
            return Some(Sampler::Parent(Box::new(inner)));
        }
        at.unsupported_extension(&extension.name, &any.type_url);
        None
    })
}

/// Lowers an HttpService. As in Envoy, what its URI says need not be much of one.
fn collector(proto: core::HttpService, at: &mut Lower) -> Option<HttpCollector> {
    let core::HttpService { http_uri, request_headers_to_add, formatters } = proto;
    at.each("formatters", formatters, |formatter, at| {
        let type_url = formatter.typed_config.map(|any| any.type_url).unwrap_or_default();
        at.unsupported_extension(&formatter.name, &type_url);
        None::<()>
    });
    let headers = mutation::lower("request", request_headers_to_add, Vec::new(), at);
    let core::HttpUri { uri, timeout, http_upstream_type } = http_uri.unwrap_or_default();
    let cluster = match http_upstream_type {
        Some(core::http_uri::HttpUpstreamType::Cluster(cluster)) => at.cluster_name(cluster),
        None => Name::default(),
    };
    let rest = uri.split_once("://").map_or(&*uri, |(_, rest)| rest);
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let timeout = at.field("http_uri", |at| at.timeout("timeout", timeout, None));
    Some(HttpCollector {
        authority: if authority.is_empty() { (*cluster).into() } else { authority.into() },
        path: if path.is_empty() { "/".into() } else { path.into() },
        cluster,
        timeout,
        headers,
        content_type: "application/json",
        user_agent: None,
    })
}

fn zipkin(any: &Any, at: &mut Lower) -> Option<Arc<Tracer>> {
    let proto::ZipkinConfig {
        collector_cluster,
        collector_endpoint,
        trace_id_128bit,
        shared_span_context,
        collector_endpoint_version,
        collector_hostname,
        split_spans_for_request,
        trace_context_option,
        collector_service,
        timestamp_trace_ids,
    } = at.unpack(any)?;
    use proto::zipkin_config::{CollectorEndpointVersion as Version, TraceContextOption};
    let proto = match at.value::<Version>("collector_endpoint_version", collector_endpoint_version)? {
        Version::HttpJson => false,
        Version::HttpProto => true,
        Version::DeprecatedAndUnavailableDoNotUse => {
            at.error_at(
                "collector_endpoint_version",
                "the default, version 1 of the API, is not available any more: set HTTP_JSON or HTTP_PROTO",
            );
            return None;
        }
        Version::Grpc => {
            at.unsupported("collector_endpoint_version", true);
            return None;
        }
    };
    let option = at.value::<TraceContextOption>("trace_context_option", trace_context_option)?;
    let mut collector = match collector_service {
        Some(service) => at.field("collector_service", |at| collector(service, at))?,
        None if collector_cluster.is_empty() || collector_endpoint.is_empty() => {
            at.error(
                "collector_cluster and collector_endpoint must be specified when not using collector_service",
            );
            return None;
        }
        None => {
            let host = if collector_hostname.is_empty() { &collector_cluster } else { &collector_hostname };
            HttpCollector {
                authority: host.as_str().into(),
                path: collector_endpoint.into(),
                cluster: at.cluster_name(collector_cluster),
                timeout: None,
                headers: HeaderMutations::default(),
                content_type: "application/json",
                user_agent: None,
            }
        }
    };
    if at.scope().clusters.as_ref().is_some_and(|known| !known.contains(&collector.cluster)) {
        at.error(format!("envoy.tracers.zipkin: unknown cluster '{}'", collector.cluster));
    }
    if proto {
        collector.content_type = "application/x-protobuf";
    }
    // Whatever the service's own says, as in Envoy.
    let timeout = at.scope().runtime.integer("tracing.zipkin.request_timeout").unwrap_or(5000);
    collector.timeout = Some(Duration::from_millis(timeout));
    let dialect = Dialect::Zipkin(Zipkin {
        wide: trace_id_128bit,
        shared: shared_span_context != Some(false),
        split: split_spans_for_request,
        w3c: option == TraceContextOption::UseB3WithW3cPropagation,
        timestamps: timestamp_trace_ids,
        proto,
        service: (*at.scope().node_cluster).into(),
    });
    Some(tracer(any, dialect, Target::Http(collector), 1024, at))
}

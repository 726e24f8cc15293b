//! The tracers that the `extensionProviders` of the mesh ask for.
//!
//! Fields are those of Envoy's newer releases: Zipkin's collector is a `collector_service`, which Envoy has
//! had since 1.36.

use leno_api::proto::envoy::config::trace::v3 as trace;
use leno_api::proto::envoy::extensions::tracers::opentelemetry::resource_detectors::v3 as detectors;
use leno_api::proto::envoy::extensions::tracers::opentelemetry::samplers::v3 as samplers;
use leno_derive::Cx;
use prost::{Message, Name};
use prost_types::{Any, Duration};

use crate::model::duration::Span;
use crate::model::mesh::provider::{
    DynatraceSampler, ExtensionProvider, HttpHeader, HttpService, OpenTelemetry, ServiceAttributeEnrichment,
    TraceContextOption, Zipkin,
};
use crate::model::switches::VariableInput;
use crate::scope::Abilities;
use crate::translate::listener::filters::FilterScope;
use crate::translate::proto::core;
use crate::translate::provider::{self, Service};
use crate::translate::resource::pack;

/// How long a collector may take that says nothing about it; Istio's for Zipkin, where it has one.
const TIMEOUT: Duration = Duration { seconds: 5, nanos: 0 };

/// Where Zipkin's collectors listen, and Dynatrace's.
const ZIPKIN_PATH: &str = "/api/v2/spans";
const DYNATRACE_PATH: &str = "api/v2/samplingConfiguration";

/// A tracer that can be used.
pub(super) struct Tracer {
    pub(super) name: &'static str,
    pub(super) config: Any,
    /// Whether the request to the server gets a span of its own.
    pub(super) spawns: bool,
    /// Whether it chooses itself which spans are kept.
    pub(super) samples: bool,
    /// How much of a path a tag has; 0 if it does not say.
    pub(super) max_path_tag_length: u32,
}

/// The tracer of a provider; `None` if it has none, or if it cannot be used.
pub(super) fn find(cx: &Cx<'_>, provider: &ExtensionProvider, scope: &FilterScope) -> Option<Tracer> {
    let service = |service: &str, port| provider::find(cx, &scope.sight(), service, port).ok();
    if let Some(settings) = &provider.zipkin {
        let service = service(&settings.service, settings.port)?;
        let config = pack(&zipkin(cx, settings, &service));
        return Some(Tracer {
            max_path_tag_length: settings.max_tag_length,
            ..tracer("envoy.tracers.zipkin", config)
        });
    }
    if let Some(settings) = &provider.opentelemetry {
        let collector = service(&settings.service, settings.port)?;
        let sampler = match &settings.dynatrace_sampler {
            Some(sampler) => Some(dynatrace(cx, settings, sampler, &collector, scope)?),
            None => None,
        };
        let samples = sampler.is_some();
        let config = pack(&opentelemetry(cx, settings, &collector, sampler, scope));
        return Some(Tracer {
            samples,
            max_path_tag_length: settings.max_tag_length,
            ..tracer("envoy.tracers.opentelemetry", config)
        });
    }
    if let Some(settings) = provider.datadog.as_ref().filter(|_| scope.abilities.has(Abilities::DATADOG)) {
        let Service { host, cluster } = service(&settings.service, settings.port)?;
        let config = trace::DatadogConfig {
            collector_cluster: cluster,
            service_name: scope.identity.cluster.clone(),
            collector_hostname: host,
            ..trace::DatadogConfig::default()
        };
        return Some(Tracer {
            max_path_tag_length: settings.max_tag_length,
            ..tracer("envoy.tracers.datadog", pack(&config))
        });
    }
    let settings = provider.skywalking.as_ref().filter(|_| scope.abilities.has(Abilities::SKYWALKING))?;
    let service = service(&settings.service, settings.port)?;
    use trace::client_config::BackendTokenSpecifier;
    let token = Some(settings.access_token.clone()).filter(|token| !token.is_empty());
    let config = trace::SkyWalkingConfig {
        grpc_service: Some(service.grpc()),
        client_config: token.map(|token| trace::ClientConfig {
            backend_token_specifier: Some(BackendTokenSpecifier::BackendToken(token)),
            ..trace::ClientConfig::default()
        }),
    };
    Some(Tracer { spawns: true, ..tracer("envoy.tracers.skywalking", pack(&config)) })
}

fn tracer(name: &'static str, config: Any) -> Tracer {
    Tracer { name, config, spawns: false, samples: false, max_path_tag_length: 0 }
}

fn zipkin(cx: &Cx<'_>, settings: &Zipkin, service: &Service) -> trace::ZipkinConfig {
    use trace::zipkin_config::{CollectorEndpointVersion, TraceContextOption as Headers};
    let path = if settings.path.is_empty() { ZIPKIN_PATH } else { &settings.path };
    let headers = match settings.trace_context_option {
        TraceContextOption::UseB3 => Headers::UseB3,
        TraceContextOption::UseB3WithW3cPropagation => Headers::UseB3WithW3cPropagation,
    };
    trace::ZipkinConfig {
        collector_endpoint_version: CollectorEndpointVersion::HttpJson as i32,
        trace_id_128bit: !settings.enable_64bit_trace_id,
        shared_span_context: Some(false),
        trace_context_option: headers as i32,
        collector_service: Some(core::HttpService {
            http_uri: Some(service.http(format!("http://{}{path}", service.host), timeout(settings.timeout))),
            request_headers_to_add: headers_of(cx, &settings.headers),
            ..core::HttpService::default()
        }),
        ..trace::ZipkinConfig::default()
    }
}

fn opentelemetry(
    cx: &Cx<'_>,
    settings: &OpenTelemetry,
    collector: &Service,
    sampler: Option<core::TypedExtensionConfig>,
    scope: &FilterScope,
) -> trace::OpenTelemetryConfig {
    let by_conventions =
        settings.service_attribute_enrichment == ServiceAttributeEnrichment::OtelSemanticConventions;
    let name = if by_conventions { &scope.identity.otel_name } else { &scope.identity.cluster };
    let wanted = settings.resource_detectors.clone().unwrap_or_default();
    let detectors = [
        // By the conventions more attributes come from the environment.
        (wanted.environment.is_some() || by_conventions).then(|| {
            extension(
                "envoy.tracers.opentelemetry.resource_detectors.environment",
                &detectors::EnvironmentResourceDetectorConfig::default(),
            )
        }),
        wanted.dynatrace.is_some().then(|| {
            extension(
                "envoy.tracers.opentelemetry.resource_detectors.dynatrace",
                &detectors::DynatraceResourceDetectorConfig::default(),
            )
        }),
    ];
    let mut config = trace::OpenTelemetryConfig {
        service_name: name.clone(),
        resource_detectors: detectors.into_iter().flatten().collect(),
        sampler,
        ..trace::OpenTelemetryConfig::default()
    };
    match &settings.http {
        Some(http) => config.http_service = Some(http_service(cx, collector, &http.path, http)),
        None => {
            let grpc = settings.grpc.clone().unwrap_or_default();
            let metadata = grpc.initial_metadata.iter().map(|header| core::HeaderValue {
                key: header.name.clone(),
                value: value(cx, header),
                ..core::HeaderValue::default()
            });
            config.grpc_service = Some(core::GrpcService {
                timeout: grpc.timeout.map(Span::to_proto),
                initial_metadata: metadata.collect(),
                ..collector.grpc()
            });
        }
    }
    config
}

/// Dynatrace's sampler, which is told how much to sample by a service of its own or by the collector;
/// `None` if there is neither.
fn dynatrace(
    cx: &Cx<'_>,
    settings: &OpenTelemetry,
    sampler: &DynatraceSampler,
    collector: &Service,
    scope: &FilterScope,
) -> Option<core::TypedExtensionConfig> {
    let service = match &sampler.http_service {
        None => http_service(cx, collector, DYNATRACE_PATH, settings.http.as_ref()?),
        Some(own) => {
            let service = provider::find(cx, &scope.sight(), &own.service, own.port).ok()?;
            let http = own.http.clone().unwrap_or_default();
            http_service(cx, &service, &http.path, &http)
        }
    };
    let config = samplers::DynatraceSamplerConfig {
        tenant: sampler.tenant.clone(),
        cluster_id: sampler.cluster_id,
        http_service: Some(service),
        root_spans_per_minute: sampler.root_spans_per_minute,
    };
    Some(extension("envoy.tracers.opentelemetry.samplers.dynatrace", &config))
}

fn http_service(cx: &Cx<'_>, service: &Service, path: &str, settings: &HttpService) -> core::HttpService {
    let path = path.trim_start_matches('/');
    let uri = if path.is_empty() { service.host.clone() } else { format!("{}/{path}", service.host) };
    core::HttpService {
        http_uri: Some(service.http(uri, timeout(settings.timeout))),
        request_headers_to_add: headers_of(cx, &settings.headers),
        ..core::HttpService::default()
    }
}

fn headers_of(cx: &Cx<'_>, headers: &[HttpHeader]) -> Vec<core::HeaderValueOption> {
    use core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd;
    let added = headers.iter().map(|header| core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: header.name.clone(),
            value: value(cx, header),
            ..core::HeaderValue::default()
        }),
        append_action: OverwriteIfExistsOrAdd as i32,
        ..core::HeaderValueOption::default()
    });
    added.collect()
}

/// The value of a header, perhaps from the control plane's environment.
fn value(cx: &Cx<'_>, header: &HttpHeader) -> String {
    match (&header.value, &header.env_name) {
        (Some(value), _) => value.clone(),
        (None, Some(name)) => {
            cx.input::<VariableInput>(name).map(|value| value.as_ref().clone()).unwrap_or_default()
        }
        (None, None) => String::new(),
    }
}

/// Envoy wants one.
fn timeout(given: Option<Span>) -> Duration {
    given.map_or(TIMEOUT, Span::to_proto)
}

fn extension<T: Message + Name>(name: &str, config: &T) -> core::TypedExtensionConfig {
    core::TypedExtensionConfig { name: name.to_owned(), typed_config: Some(pack(config)) }
}

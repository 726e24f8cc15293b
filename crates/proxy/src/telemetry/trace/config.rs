//! Lowering of `tracing` of connection managers and routes.

use std::sync::Arc;

use leno_api::proto::envoy::config::route::v3 as route;
use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use leno_api::proto::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use leno_api::proto::envoy::r#type::metadata::v3 as metadata;
use leno_api::proto::envoy::r#type::tracing::v3 as tags;
use leno_api::proto::envoy::r#type::v3 as types;

use crate::config::lower::Lower;
use crate::http::route::config::fraction;
use crate::http::route::rate_limit::metadata_key_of;
use crate::telemetry::access_log::format::Format;
use crate::telemetry::trace::sampling::{RequestIds, Sampling, Share};
use crate::telemetry::trace::tags::{CustomTag, MetadataOf, TagValue};
use crate::telemetry::trace::{Decorator, RouteTracing, Tracing, provider};

/// Lowers `tracing` of a connection manager; without a provider nothing is traced.
pub(crate) fn lower(
    proto: hcm::http_connection_manager::Tracing,
    request_ids: RequestIds,
    start_child_span: bool,
    at: &mut Lower,
) -> Option<Box<Tracing>> {
    let hcm::http_connection_manager::Tracing {
        client_sampling,
        random_sampling,
        overall_sampling,
        verbose,
        max_path_tag_length,
        custom_tags,
        provider,
        spawn_upstream_span,
        operation,
        upstream_operation,
        no_context_propagation,
    } = proto;
    let percent = |percent: Option<types::Percent>| match percent {
        // In hundredths of a percent, as Envoy counts.
        Some(types::Percent { value }) => Share((value * 100.0).round() as u32, 10_000),
        None => Share::ALL,
    };
    let sampling = Sampling {
        client: percent(client_sampling),
        random: percent(random_sampling),
        overall: percent(overall_sampling),
    };
    let custom_tags = custom_tags_of(custom_tags, at);
    let operation = format("operation", &operation, at);
    let upstream_operation = format("upstream_operation", &upstream_operation, at);
    let provider = provider.or_else(|| at.scope().tracer.as_deref().cloned());
    let tracer = at.optional("provider", provider, provider::lower);
    let scope = at.scope();
    let own_hop = spawn_upstream_span == Some(true);
    Some(Box::new(Tracing {
        tracer: tracer?,
        sampling: by_runtime(sampling, at),
        request_ids,
        verbose,
        max_path: max_path_tag_length.map_or(256, |length| length as usize),
        custom_tags,
        operation,
        upstream_operation,
        own_hop,
        attempts: own_hop || start_child_span,
        propagates: !no_context_propagation,
        outbound: scope.outbound,
        node: Arc::clone(&scope.node_id),
        zone: scope.here.locality.zone.clone(),
    }))
}

/// Lowers `request_id_extension`: request ids are UUIDs.
pub(crate) fn request_ids(proto: Option<hcm::RequestIdExtension>, at: &mut Lower) -> RequestIds {
    let Some(hcm::RequestIdExtension { typed_config: Some(any) }) = proto else {
        return RequestIds::default();
    };
    let lowered = at.field("request_id_extension.typed_config", |at| {
        if !leno_api::any::is::<UuidRequestIdConfig>(&any) {
            at.unsupported_extension("request_id_extension", &any.type_url);
            return None;
        }
        let UuidRequestIdConfig { pack_trace_reason, use_request_id_for_trace_sampling } = at.unpack(&any)?;
        let pack = pack_trace_reason != Some(false);
        Some(RequestIds { pack, decide: use_request_id_for_trace_sampling != Some(false) })
    });
    lowered.unwrap_or_default()
}

/// Lowers `Route.tracing`.
pub(crate) fn route(proto: route::Tracing, at: &mut Lower) -> Option<Box<RouteTracing>> {
    let route::Tracing {
        client_sampling,
        random_sampling,
        overall_sampling,
        custom_tags,
        operation,
        upstream_operation,
    } = proto;
    let mut share = |field, proto: Option<types::FractionalPercent>| match proto {
        Some(proto) => {
            let (numerator, denominator) = at.field(field, |at| fraction(proto, at));
            Share(numerator, denominator)
        }
        None => Share::ALL,
    };
    let sampling = Sampling {
        client: share("client_sampling", client_sampling),
        random: share("random_sampling", random_sampling),
        overall: share("overall_sampling", overall_sampling),
    };
    Some(Box::new(RouteTracing {
        sampling: by_runtime(sampling, at),
        custom_tags: custom_tags_of(custom_tags, at),
        operation: format("operation", &operation, at),
        upstream_operation: format("upstream_operation", &upstream_operation, at),
    }))
}

/// Lowers `Route.decorator`.
pub(crate) fn decorator(proto: route::Decorator) -> Option<Box<Decorator>> {
    let route::Decorator { operation, propagate } = proto;
    Some(Box::new(Decorator { operation: operation.into(), propagate: propagate != Some(false) }))
}

/// The runtime has the last word.
fn by_runtime(configured: Sampling, at: &Lower) -> Sampling {
    let share = |key, configured| {
        let fraction = at.scope().runtime.fraction(key);
        fraction.map_or(configured, |(numerator, denominator)| Share(numerator, denominator))
    };
    Sampling {
        client: share("tracing.client_enabled", configured.client),
        random: share("tracing.random_sampling", configured.random),
        overall: share("tracing.global_enabled", configured.overall),
    }
}

fn format(field: &str, text: &str, at: &mut Lower) -> Option<Format> {
    if text.is_empty() {
        return None;
    }
    Format::parse(text).map_err(|error| at.error_at(field, error)).ok()
}

/// Lowers `custom_tags`; of several with one name the last counts.
fn custom_tags_of(protos: Vec<tags::CustomTag>, at: &mut Lower) -> Vec<CustomTag> {
    let mut lowered: Vec<CustomTag> = Vec::new();
    for tag in at.each("custom_tags", protos, custom_tag) {
        lowered.retain(|other| other.name != tag.name);
        lowered.push(tag);
    }
    lowered
}

fn custom_tag(proto: tags::CustomTag, at: &mut Lower) -> Option<CustomTag> {
    use tags::custom_tag::{Environment, Header, Literal, Metadata, Type};
    let tags::CustomTag { tag, r#type } = proto;
    let value = match r#type {
        Some(Type::Literal(Literal { value })) => TagValue::Literal(value.into()),
        Some(Type::Environment(Environment { name, default_value })) => {
            TagValue::Literal(std::env::var(name).unwrap_or(default_value).into())
        }
        Some(Type::RequestHeader(Header { name, default_value })) => {
            TagValue::Header(name.to_ascii_lowercase().into(), default_value.into())
        }
        Some(Type::Metadata(Metadata { kind, metadata_key, default_value })) => {
            use metadata::metadata_kind::{Cluster, Host, Kind, Request, Route};
            let of = match kind.and_then(|kind| kind.kind) {
                None | Some(Kind::Request(Request {})) => MetadataOf::Request,
                Some(Kind::Route(Route {})) => MetadataOf::Route,
                Some(Kind::Cluster(Cluster {})) => MetadataOf::Cluster,
                Some(Kind::Host(Host {})) => MetadataOf::Host,
            };
            let (namespace, path) = at
                .field("metadata.metadata_key", |at| metadata_key_of(metadata_key.unwrap_or_default(), at))?;
            TagValue::Metadata(of, namespace, path, default_value.into())
        }
        Some(Type::Value(text)) => match Format::parse(&text) {
            Ok(format) => TagValue::Format(format),
            Err(error) => {
                at.error_at("value", error);
                return None;
            }
        },
        None => {
            at.error("one of literal, environment, request_header, metadata and value is required");
            return None;
        }
    };
    Some(CustomTag { name: tag.into(), value })
}

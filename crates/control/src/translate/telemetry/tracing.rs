//! Spans: whether requests are traced, by whom, and what each span says besides.
//!
//! Where no Telemetry and no default provider says, the mesh's older settings do: then the proxy's
//! bootstrap has the tracer.

use std::collections::BTreeMap;

use leno_api::proto::envoy::config::trace::v3 as trace;
use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use leno_derive::{Cx, Query};
use prost_types::Any;

use super::{observed, tracer};
use crate::model::mesh::MeshConfig;
use crate::model::mesh::provider::ExtensionProvider;
use crate::model::mesh::proxy::{CustomTag as OldTag, ProxyConfig};
use crate::model::telemetry::{CustomTag, EnvironmentTag, HeaderTag, LiteralTag};
use crate::scope::Identity;
use crate::scope::proxy_config::MeshOf;
use crate::scope::telemetry::{ObservedOf, Traced, traces_by_bootstrap};
use crate::translate::listener::filters::{FilterScope, Side};
use crate::translate::proto::ty;
use hcm::http_connection_manager::Tracing;
use ty::metadata::v3 as metadata;
use ty::tracing::v3::CustomTag as Tag;
use ty::tracing::v3::custom_tag as tag;

/// How much is sampled where nobody says, in percent; Istio's `PILOT_TRACE_SAMPLING`.
const SAMPLING: f64 = 1.0;

/// What dry runs of policies come to, as tags, and where the filter `rbac` notes it.
const DRY_RUNS: [(&str, &str); 4] = [
    ("istio.authorization.dry_run.allow_policy.name", "istio_dry_run_allow_shadow_effective_policy_id"),
    ("istio.authorization.dry_run.allow_policy.result", "istio_dry_run_allow_shadow_engine_result"),
    ("istio.authorization.dry_run.deny_policy.name", "istio_dry_run_deny_shadow_effective_policy_id"),
    ("istio.authorization.dry_run.deny_policy.result", "istio_dry_run_deny_shadow_engine_result"),
];

/// How a connection manager traces.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TracedRequests {
    /// `None` for not at all.
    pub(crate) tracing: Option<Tracing>,
    /// Whether the id of a request says whether it is sampled.
    pub(crate) by_request_id: bool,
}

/// How the connection managers of a scope trace.
pub(crate) struct TracingOf;

impl Query for TracingOf {
    type Key = FilterScope;
    type Value = TracedRequests;
    const NAME: &'static str = "tracing-of";

    fn derive(cx: &Cx<'_>, scope: &FilterScope) -> TracedRequests {
        let untraced = TracedRequests { tracing: None, by_request_id: true };
        let mesh = cx.get::<MeshOf>(&scope.overrides);
        let observed = cx.get::<ObservedOf>(&observed(scope));
        let Some(traced) = &observed.tracing else {
            let tracing = traces_by_bootstrap(&mesh).then(|| by_settings(&mesh.default_config, scope));
            return TracedRequests { tracing, ..untraced };
        };
        let provider = traced.provider.as_ref().and_then(|name| mesh.provider(name));
        let Some(provider) = provider.filter(|_| !traced.disabled) else { return untraced };
        match by_provider(cx, &mesh, traced, &provider, scope) {
            Some(tracing) => TracedRequests { tracing: Some(tracing), by_request_id: traced.by_request_id },
            // It cannot be used.
            None => untraced,
        }
    }
}

/// What the mesh's older settings say.
fn by_settings(config: &ProxyConfig, scope: &FilterScope) -> Tracing {
    let settings = config.tracing.clone().unwrap_or_default();
    let istio_tags = settings.enable_istio_tags != Some(false);
    Tracing {
        custom_tags: tags(istio_tags, &BTreeMap::new(), config, scope),
        max_path_tag_length: length(settings.max_path_tag_length),
        ..sampled(sampling(config))
    }
}

fn by_provider(
    cx: &Cx<'_>,
    mesh: &MeshConfig,
    traced: &Traced,
    provider: &ExtensionProvider,
    scope: &FilterScope,
) -> Option<Tracing> {
    let config = &mesh.default_config;
    let tracer = tracer::find(cx, provider, scope)?;
    // A sampler of the provider's decides about all spans.
    let percent = if tracer.samples { 100.0 } else { traced.sampling.unwrap_or_else(|| sampling(config)) };
    let own_length = config.tracing.as_ref().map_or(0, |settings| settings.max_path_tag_length);
    Some(Tracing {
        provider: Some(http(tracer.name, tracer.config)),
        spawn_upstream_span: (scope.side == Side::Gateway || tracer.spawns).then_some(true),
        max_path_tag_length: length(tracer.max_path_tag_length).or(length(own_length)),
        custom_tags: tags(traced.istio_tags, &traced.tags, config, scope),
        no_context_propagation: traced.not_propagated,
        ..sampled(percent)
    })
}

fn http(name: &str, config: Any) -> trace::tracing::Http {
    trace::tracing::Http {
        name: name.to_owned(),
        config_type: Some(trace::tracing::http::ConfigType::TypedConfig(config)),
    }
}

fn sampled(percent: f64) -> Tracing {
    let of = |value| Some(ty::v3::Percent { value });
    Tracing {
        client_sampling: of(100.0),
        overall_sampling: of(100.0),
        random_sampling: of(percent),
        ..Tracing::default()
    }
}

/// How much the mesh's older settings have sampled, in percent.
fn sampling(config: &ProxyConfig) -> f64 {
    match config.tracing.as_ref().map_or(0.0, |settings| settings.sampling) {
        0.0 => SAMPLING,
        percent if percent > 100.0 => 1.0,
        percent => percent,
    }
}

fn length(length: u32) -> Option<u32> {
    (length != 0).then_some(length)
}

/// The tags of all spans, in the order of their names: Istio's, and those of the Telemetry, or if it
/// has none of the mesh's older settings.
fn tags(
    istio: bool,
    own: &BTreeMap<String, CustomTag>,
    config: &ProxyConfig,
    scope: &FilterScope,
) -> Vec<Tag> {
    let mut all = Vec::new();
    if istio {
        all.extend(service_tags(&scope.identity, &scope.namespace));
        all.extend(DRY_RUNS.map(|(name, key)| noted(name, key)));
    }
    if own.is_empty() {
        let old = config.tracing.iter().flat_map(|settings| &settings.custom_tags);
        all.extend(old.map(|(name, given)| {
            let OldTag { literal, environment, header } = given.clone();
            custom(name, CustomTag { literal, environment, header, formatter: None })
        }));
    } else {
        all.extend(own.iter().map(|(name, given)| custom(name, given.clone())));
    }
    all.sort_by(|a, b| a.tag.cmp(&b.tag));
    all
}

/// Who makes the span.
fn service_tags(identity: &Identity, namespace: &str) -> [Tag; 5] {
    let known =
        |value: &str, default: &str| if value.is_empty() { default.to_owned() } else { value.to_owned() };
    [
        ("istio.canonical_revision", known(&identity.revision, "latest")),
        ("istio.canonical_service", known(&identity.service, "unknown")),
        ("istio.mesh_id", known(&identity.mesh, "unknown")),
        ("istio.namespace", namespace.to_owned()),
        ("istio.cluster_id", known(&identity.registry, "unknown")),
    ]
    .map(|(name, value)| typed(name, tag::Type::Literal(tag::Literal { value })))
}

/// What the filter `rbac` has noted.
fn noted(name: &str, key: &str) -> Tag {
    use metadata::metadata_key::{PathSegment, path_segment::Segment};
    use metadata::metadata_kind::{Kind, Request};
    typed(
        name,
        tag::Type::Metadata(tag::Metadata {
            kind: Some(metadata::MetadataKind { kind: Some(Kind::Request(Request {})) }),
            metadata_key: Some(metadata::MetadataKey {
                key: "envoy.filters.http.rbac".to_owned(),
                path: vec![PathSegment { segment: Some(Segment::Key(key.to_owned())) }],
            }),
            default_value: String::new(),
        }),
    )
}

fn custom(name: &str, given: CustomTag) -> Tag {
    // Validated: exactly one of them.
    let CustomTag { literal, environment, header, formatter } = given;
    let literal = literal.map(|LiteralTag { value }| tag::Type::Literal(tag::Literal { value }));
    let environment = environment.map(|EnvironmentTag { name, default_value }| {
        tag::Type::Environment(tag::Environment { name, default_value })
    });
    let header = header.map(|HeaderTag { name, default_value }| {
        tag::Type::RequestHeader(tag::Header { name, default_value })
    });
    let formatter = formatter.map(|formatter| tag::Type::Value(formatter.value));
    let found = literal.or(environment).or(header).or(formatter);
    Tag { tag: name.to_owned(), r#type: found }
}

fn typed(name: &str, of: tag::Type) -> Tag {
    Tag { tag: name.to_owned(), r#type: Some(of) }
}

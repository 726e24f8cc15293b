//! The JSON schemas of our types, for tests and what is generated from them: which fields there
//! are, and of which sort.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::mesh::network::MeshNetworks;
use super::{
    AuthorizationPolicy, DestinationRule, EnvoyFilter, Gateway, Ingress, IngressClass, Kind, MeshConfig,
    PeerAuthentication, ProxyConfig, RequestAuthentication, ServiceEntry, Sidecar, Telemetry, VirtualService,
    WorkloadEntry, WorkloadGroup, gateway_api,
};

/// The kinds whose types are our own, in the order of documents.
pub(super) const KINDS: [Kind; 27] = [
    Kind::VirtualService,
    Kind::DestinationRule,
    Kind::Gateway,
    Kind::ServiceEntry,
    Kind::WorkloadEntry,
    Kind::WorkloadGroup,
    Kind::Sidecar,
    Kind::EnvoyFilter,
    Kind::ProxyConfig,
    Kind::PeerAuthentication,
    Kind::RequestAuthentication,
    Kind::AuthorizationPolicy,
    Kind::Telemetry,
    Kind::MeshConfig,
    Kind::GatewayClass,
    Kind::KubernetesGateway,
    Kind::ListenerSet,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TlsRoute,
    Kind::TcpRoute,
    Kind::UdpRoute,
    Kind::ReferenceGrant,
    Kind::BackendTlsPolicy,
    Kind::BackendTrafficPolicy,
    Kind::Ingress,
    Kind::IngressClass,
];

/// The schema of a kind's `spec` (of the MeshConfig: of the document), without references.
pub(super) fn of(kind: Kind) -> Option<Value> {
    Some(match kind {
        Kind::VirtualService => schema::<VirtualService>(),
        Kind::DestinationRule => schema::<DestinationRule>(),
        Kind::Gateway => schema::<Gateway>(),
        Kind::ServiceEntry => schema::<ServiceEntry>(),
        Kind::WorkloadEntry => schema::<WorkloadEntry>(),
        Kind::WorkloadGroup => schema::<WorkloadGroup>(),
        Kind::Sidecar => schema::<Sidecar>(),
        Kind::EnvoyFilter => schema::<EnvoyFilter>(),
        Kind::ProxyConfig => schema::<ProxyConfig>(),
        Kind::PeerAuthentication => schema::<PeerAuthentication>(),
        Kind::RequestAuthentication => schema::<RequestAuthentication>(),
        Kind::AuthorizationPolicy => schema::<AuthorizationPolicy>(),
        Kind::Telemetry => schema::<Telemetry>(),
        Kind::MeshConfig => schema::<MeshConfig>(),
        Kind::GatewayClass => schema::<gateway_api::gateway::GatewayClass>(),
        Kind::KubernetesGateway => schema::<gateway_api::gateway::Gateway>(),
        Kind::ListenerSet => schema::<gateway_api::gateway::ListenerSet>(),
        Kind::HttpRoute => schema::<gateway_api::route::HttpRoute>(),
        Kind::GrpcRoute => schema::<gateway_api::route::GrpcRoute>(),
        Kind::TlsRoute => schema::<gateway_api::route::TlsRoute>(),
        Kind::TcpRoute => schema::<gateway_api::route::TcpRoute>(),
        Kind::UdpRoute => schema::<gateway_api::route::UdpRoute>(),
        Kind::ReferenceGrant => schema::<gateway_api::policy::ReferenceGrant>(),
        Kind::BackendTlsPolicy => schema::<gateway_api::policy::BackendTlsPolicy>(),
        Kind::BackendTrafficPolicy => schema::<gateway_api::policy::BackendTrafficPolicy>(),
        Kind::Ingress => schema::<Ingress>(),
        Kind::IngressClass => schema::<IngressClass>(),
        Kind::Service
        | Kind::EndpointSlice
        | Kind::Endpoints
        | Kind::Pod
        | Kind::Node
        | Kind::Namespace
        | Kind::Secret
        | Kind::ConfigMap => return None,
    })
}

/// The schema of the MeshNetworks document.
pub(super) fn of_networks() -> Value {
    schema::<MeshNetworks>()
}

fn schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::default().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

/// What a schema says about the values of a field.
pub(super) enum Shape<'a> {
    /// An object with these fields.
    Fields(&'a serde_json::Map<String, Value>),
    /// A list of such.
    Elements(&'a Value),
    /// A map of such.
    Values(&'a Value),
    /// A single value, or anything.
    Leaf,
}

/// The shape of a schema.
pub(super) fn shape(schema: &Value) -> Shape<'_> {
    if let Some(fields) = schema.get("properties").and_then(Value::as_object) {
        return Shape::Fields(fields);
    }
    if let Some(items) = schema.get("items") {
        return Shape::Elements(items);
    }
    if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
        return Shape::Values(values);
    }
    if let Some(values) = schema.get("patternProperties").and_then(Value::as_object)
        && let Some(values) = values.values().next()
    {
        return Shape::Values(values);
    }
    // What may be absent is a choice between it and null.
    let choices = schema.get("anyOf").and_then(Value::as_array);
    let choice = choices.into_iter().flatten().find(|choice| !matches!(shape(choice), Shape::Leaf));
    choice.map_or(Shape::Leaf, shape)
}

/// All fields below `path`, as patterns: `spec.http[].match[].uri.exact`.
pub(super) fn fields(schema: &Value, path: &str, found: &mut Vec<String>) {
    match shape(schema) {
        Shape::Fields(fields_of) => {
            for (name, schema) in fields_of {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                found.push(path.clone());
                fields(schema, &path, found);
            }
        }
        Shape::Elements(schema) => fields(schema, &format!("{path}[]"), found),
        Shape::Values(schema) => fields(schema, &format!("{path}{{}}"), found),
        Shape::Leaf => {}
    }
}

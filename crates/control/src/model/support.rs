//! What is read but not honoured yet: one table of fields per kind.
//!
//! Whoever makes a field work deletes its row here and adds a golden in which the field occurs. A
//! kind of which nothing is honoured has the row `spec`, which hides its other rows. The tables are
//! walked over every object as it was written; a field that is there is reported with its place:
//! [`warn`] if the object is merely less than its author hopes, [`error`] (which refuses the
//! object; its last good version stays) if the mesh would be less safe than its author believes, or
//! traffic would go where it must not.
//!
//! # Patterns
//!
//! A path is written as in the reports, with these additions:
//!
//! - `http[]` walks into all elements of a list, `customTags{}` into all values of a map,
//!   `headers{@request.auth.*}` into those values whose keys begin so (or are such, without `*`);
//! - `**` stands for any number of fields, elements and values: `spec.**.tls.mode`;
//! - `=VALUE` at the end means that value only, `=PREFIX*` values that begin so, `!=VALUE` all
//!   others; case does not matter.
//!
//! A field counts as not there if it is null, or an empty list, map or text.
//!
//! `docs/compatibility.md` is made from these tables and the goldens.

use leno_api::yaml::{Node, Value};

use super::Kind;
use super::diagnostic::{Finding, Severity};

/// The effect that most unsupported fields have.
pub(crate) const NO_EFFECT: &str = "has no effect";

/// What becomes of what is for the start of proxies: their bootstraps, agents, containers. Injection hands it to
/// agents, which honour it, or say what they do not; so nobody is told of it here.
pub(crate) const STARTED: &str = "honoured where proxies start, by injection and `leno agent`";

/// What becomes of what Istio no longer looks at, or never has.
const AS_IN_ISTIO: &str = "has no effect, as in Istio";

/// What becomes of tracers that are gone from Envoy.
const NO_TRACER: &str = "has no effect, as in Istio: proxies have no such tracer any more";

/// What becomes of tracers that Envoy has and Leno's own proxies have not.
const NOT_OURS: &str = "is told to those proxies only that have the tracer, which Leno's own have not";

/// A field that is not honoured yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// The pattern of its path.
    pub(crate) path: &'static str,
    pub(crate) severity: Severity,
    /// What happens instead: a clause that follows "not supported yet, ".
    pub(crate) effect: &'static str,
}

/// The object is used; the field has no effect, or the effect given.
const fn warn(path: &'static str, effect: &'static str) -> Row {
    Row { path, severity: Severity::Warning, effect }
}

/// The object is refused.
const fn error(path: &'static str, effect: &'static str) -> Row {
    Row { path, severity: Severity::Error, effect }
}

/// The rows of a kind.
pub(crate) fn rows(kind: Kind) -> &'static [Row] {
    match kind {
        Kind::Service => SERVICE,
        Kind::EndpointSlice => ENDPOINT_SLICE,
        // What the mesh reads of these has an effect, or is looked up by what refers to it.
        Kind::Endpoints | Kind::Pod | Kind::Node | Kind::Namespace | Kind::Secret | Kind::ConfigMap => &[],
        Kind::Ingress => INGRESS,
        Kind::IngressClass => INGRESS_CLASS,
        Kind::MeshConfig => MESH_CONFIG,
        Kind::ServiceEntry => SERVICE_ENTRY,
        Kind::WorkloadEntry => WORKLOAD_ENTRY,
        Kind::WorkloadGroup => WORKLOAD_GROUP,
        Kind::VirtualService => VIRTUAL_SERVICE,
        Kind::DestinationRule => DESTINATION_RULE,
        Kind::Gateway => GATEWAY,
        Kind::Sidecar => SIDECAR,
        Kind::EnvoyFilter => ENVOY_FILTER,
        Kind::ProxyConfig => PROXY_CONFIG,
        Kind::PeerAuthentication => PEER_AUTHENTICATION,
        Kind::RequestAuthentication => REQUEST_AUTHENTICATION,
        Kind::AuthorizationPolicy => AUTHORIZATION_POLICY,
        Kind::Telemetry => TELEMETRY,
        Kind::GatewayClass => GATEWAY_CLASS,
        Kind::KubernetesGateway => KUBERNETES_GATEWAY,
        Kind::ListenerSet => LISTENER_SET,
        Kind::HttpRoute => HTTP_ROUTE,
        Kind::GrpcRoute => GRPC_ROUTE,
        Kind::TlsRoute => TLS_ROUTE,
        Kind::TcpRoute => TCP_ROUTE,
        Kind::UdpRoute => UDP_ROUTE,
        Kind::ReferenceGrant => REFERENCE_GRANT,
        Kind::BackendTlsPolicy => BACKEND_TLS_POLICY,
        Kind::BackendTrafficPolicy => BACKEND_TRAFFIC_POLICY,
    }
}

const SERVICE: &[Row] = &[];

const ENDPOINT_SLICE: &[Row] = &[warn("addressType=FQDN", "the endpoints are left out")];

const INGRESS: &[Row] = &[
    warn("spec.defaultBackend.resource", "the backend is left out"),
    warn("spec.rules[].http.paths[].backend.resource", "the path is left out"),
];

const INGRESS_CLASS: &[Row] = &[warn("spec.parameters", NO_EFFECT)];

/// Fields of the MeshConfig itself: paths begin below the key `mesh`.
const MESH_CONFIG: &[Row] = &[
    warn("hboneIdleTimeout", "has no effect, as there is no ambient mode"),
    warn("defaultConfig.configPath", STARTED),
    warn("defaultConfig.binaryPath", STARTED),
    warn("defaultConfig.serviceCluster", STARTED),
    warn("defaultConfig.tracingServiceName", STARTED),
    warn("defaultConfig.drainDuration", STARTED),
    warn("defaultConfig.discoveryAddress", STARTED),
    warn("defaultConfig.discoveryRefreshDelay", AS_IN_ISTIO),
    warn("defaultConfig.zipkinAddress", AS_IN_ISTIO),
    warn("defaultConfig.statsdUdpAddress", STARTED),
    warn("defaultConfig.envoyMetricsServiceAddress", AS_IN_ISTIO),
    warn("defaultConfig.proxyAdminPort", STARTED),
    warn("defaultConfig.availabilityZone", AS_IN_ISTIO),
    warn("defaultConfig.controlPlaneAuthPolicy", STARTED),
    warn("defaultConfig.customConfigFile", STARTED),
    warn("defaultConfig.statNameLength", AS_IN_ISTIO),
    warn("defaultConfig.concurrency", STARTED),
    warn("defaultConfig.proxyBootstrapTemplatePath", STARTED),
    warn("defaultConfig.interceptionMode", STARTED),
    warn("defaultConfig.tracing.zipkin", STARTED),
    warn("defaultConfig.tracing.lightstep", NO_TRACER),
    warn("defaultConfig.tracing.datadog", STARTED),
    warn("defaultConfig.tracing.stackdriver", NO_TRACER),
    warn("defaultConfig.tracing.openCensusAgent", NO_TRACER),
    warn("defaultConfig.tracing.tlsSettings", STARTED),
    warn("defaultConfig.sds", AS_IN_ISTIO),
    warn("defaultConfig.envoyAccessLogService", STARTED),
    warn("defaultConfig.envoyMetricsService", STARTED),
    warn("defaultConfig.proxyMetadata", STARTED),
    warn("defaultConfig.runtimeValues", STARTED),
    warn("defaultConfig.statusPort", STARTED),
    warn("defaultConfig.extraStatTags", STARTED),
    warn("defaultConfig.terminationDrainDuration", STARTED),
    warn("defaultConfig.meshId", STARTED),
    warn("defaultConfig.readinessProbe", STARTED),
    warn("defaultConfig.proxyStatsMatcher", STARTED),
    warn("defaultConfig.holdApplicationUntilProxyStarts", STARTED),
    warn("defaultConfig.caCertificatesPem", NO_EFFECT),
    warn("defaultConfig.image", STARTED),
    warn("defaultConfig.privateKeyProvider", NO_EFFECT),
    warn("defaultConfig.fileFlushInterval", STARTED),
    warn("defaultConfig.fileFlushMinSizeKb", STARTED),
    warn("defaultConfig.statsCompression", STARTED),
    warn("defaultConfig.connectionSettings.clusterPerConnectionBufferLimitBytes", AS_IN_ISTIO),
    warn("defaultConfig.connectionSettings.listenerConnectionLimit", AS_IN_ISTIO),
    warn("defaultConfig.connectionSettings.globalDownstreamConnectionLimit", STARTED),
    warn("outboundTrafficPolicy.tls.mode=ISTIO_MUTUAL", "requests are sent in plain text"),
    warn("configSources", "has no effect: the control plane reads what it is started with"),
    warn("caCertificates[].spiffeBundleUrl", NO_EFFECT),
    warn("certificates", AS_IN_ISTIO),
    warn("serviceSettings", "has no effect, as there is one cluster"),
    warn("serviceScopeConfigs", "has no effect, as there is one cluster"),
    warn("enablePrometheusMerge", STARTED),
    warn("verifyCertificateAtClient", NO_EFFECT),
    warn("ca", NO_EFFECT),
    warn("extensionProviders[].lightstep", NO_TRACER),
    warn("extensionProviders[].datadog", NOT_OURS),
    warn("extensionProviders[].stackdriver", NO_TRACER),
    warn("extensionProviders[].opencensus", NO_TRACER),
    warn("extensionProviders[].skywalking", NOT_OURS),
    warn("extensionProviders[].sds", NO_EFFECT),
    warn("discoverySelectors", NO_EFFECT),
    warn("meshMTLS.ecdhCurves", NO_EFFECT),
    warn("serviceEntryVisibility", NO_EFFECT),
];

/// Fields of the MeshNetworks: paths begin below the key `meshNetworks`.
pub(crate) const MESH_NETWORKS: &[Row] = &[
    warn("networks{}.gateways[].locality", NO_EFFECT), //
];

const SERVICE_ENTRY: &[Row] = &[warn(
    "spec.resolution=DYNAMIC_DNS",
    "the clusters are there, but no route looks names up, so requests get 503",
)];

const WORKLOAD_ENTRY: &[Row] = &[];

const WORKLOAD_GROUP: &[Row] = &[warn("spec", NO_EFFECT)];

const VIRTUAL_SERVICE: &[Row] = &[warn("spec.tcp[].match[].sourceSubnet", NO_EFFECT)];

/// What proxies do that no agent gives certificates, as those of `leno up`. In a cluster all have some.
pub(crate) const WITHOUT_CERTIFICATES: &str = "proxies without certificates send plain text";

const DESTINATION_RULE: &[Row] = &[warn("spec.**.tls.mode=ISTIO_MUTUAL", WITHOUT_CERTIFICATES)];

const GATEWAY: &[Row] = &[warn("spec.servers[].defaultEndpoint", NO_EFFECT)];

/// What a sidecar has no use for, in Istio either.
const ONLY_GATEWAYS: &str = "only gateways have it";

const SIDECAR: &[Row] = &[
    error("spec.ingress[].tls.httpsRedirect", ONLY_GATEWAYS),
    error("spec.ingress[].tls.subjectAltNames", ONLY_GATEWAYS),
    error("spec.ingress[].tls.credentialName", ONLY_GATEWAYS),
    error("spec.ingress[].tls.credentialNames", ONLY_GATEWAYS),
    error("spec.ingress[].tls.caCertCredentialName", ONLY_GATEWAYS),
    error("spec.ingress[].tls.tlsCertificates", ONLY_GATEWAYS),
    // The workload decides on its protocol.
    warn("spec.inboundConnectionPool.http.h2UpgradePolicy", NO_EFFECT),
    warn("spec.ingress[].connectionPool.http.h2UpgradePolicy", NO_EFFECT),
];

/// There are no waypoints.
const ENVOY_FILTER: &[Row] = &[
    warn("spec.targetRefs[].kind!=Gateway", NO_EFFECT),
    warn("spec.configPatches[].applyTo=BOOTSTRAP", NO_EFFECT),
    warn("spec.configPatches[].match.context=WAYPOINT", NO_EFFECT),
    warn("spec.configPatches[].match.waypoint", NO_EFFECT),
];

const PROXY_CONFIG: &[Row] = &[warn("spec", STARTED)];

const PEER_AUTHENTICATION: &[Row] = &[];

/// What policies of requests may name besides Gateways is for waypoints, of which there are none.
const FOR_WAYPOINTS: &str = "nothing would be subject to the policy";

const REQUEST_AUTHENTICATION: &[Row] = &[
    error("spec.targetRef.kind!=Gateway", FOR_WAYPOINTS),
    error("spec.targetRefs[].kind!=Gateway", FOR_WAYPOINTS),
];

const AUTHORIZATION_POLICY: &[Row] = &[
    error("spec.targetRef.kind!=Gateway", FOR_WAYPOINTS),
    error("spec.targetRefs[].kind!=Gateway", FOR_WAYPOINTS),
];

const TELEMETRY: &[Row] = &[
    warn("spec.targetRef.kind!=Gateway", "nothing is subject to it"),
    warn("spec.targetRefs[].kind!=Gateway", "nothing is subject to it"),
];

const GATEWAY_CLASS: &[Row] = &[warn("spec.parametersRef", NO_EFFECT)];

const KUBERNETES_GATEWAY: &[Row] = &[
    warn("spec.tls.backend", NO_EFFECT),
    error("spec.tls.frontend", "anybody would be let in"),
    warn("spec.defaultScope", NO_EFFECT),
];

const LISTENER_SET: &[Row] = &[];

/// What becomes of routes with filters of a single backend that change more than headers.
const OF_BACKEND: &str = "the route is left out, as in Istio";

const HTTP_ROUTE: &[Row] = &[
    warn("spec.useDefaultGateways", NO_EFFECT),
    warn("spec.rules[].sessionPersistence", NO_EFFECT),
    // Requests would come through unchecked.
    error("spec.rules[].filters[].externalAuth", "the route is left out"),
    error("spec.rules[].filters[].extensionRef", "the route is left out"),
    error("spec.rules[].backendRefs[].filters[].requestMirror", OF_BACKEND),
    error("spec.rules[].backendRefs[].filters[].requestRedirect", OF_BACKEND),
    error("spec.rules[].backendRefs[].filters[].urlRewrite", OF_BACKEND),
    error("spec.rules[].backendRefs[].filters[].cors", OF_BACKEND),
    error("spec.rules[].backendRefs[].filters[].externalAuth", OF_BACKEND),
    error("spec.rules[].backendRefs[].filters[].extensionRef", OF_BACKEND),
];

const GRPC_ROUTE: &[Row] = &[
    warn("spec.useDefaultGateways", NO_EFFECT),
    warn("spec.rules[].sessionPersistence", NO_EFFECT),
    error("spec.rules[].filters[].extensionRef", "the route is left out"),
    error("spec.rules[].backendRefs[].filters[].requestMirror", OF_BACKEND),
    error("spec.rules[].backendRefs[].filters[].extensionRef", OF_BACKEND),
];

const TLS_ROUTE: &[Row] = &[warn("spec.useDefaultGateways", NO_EFFECT)];

const TCP_ROUTE: &[Row] = &[warn("spec.useDefaultGateways", NO_EFFECT)];

/// Proxies of a mesh do not carry datagrams, so this one stays.
const UDP_ROUTE: &[Row] = &[warn("spec", NO_EFFECT)];

const REFERENCE_GRANT: &[Row] = &[];

const BACKEND_TLS_POLICY: &[Row] = &[warn("spec", "traffic is sent in plain text")];

const BACKEND_TRAFFIC_POLICY: &[Row] = &[warn("spec", NO_EFFECT)];

/// Reports what of an object is not honoured yet. `node` is the whole object, or of the kind
/// MeshConfig the document inside the ConfigMap.
pub(crate) fn findings(kind: Kind, node: &Node<'_>) -> Vec<Finding> {
    let rows = rows(kind);
    if let Some(row) = rows.iter().find(|row| row.path == "spec") {
        if row.effect == STARTED {
            return Vec::new();
        }
        let message = whole(&kind.to_string(), row.effect);
        return vec![Finding {
            severity: row.severity,
            code: "unsupported-kind",
            path: String::new(),
            message,
        }];
    }
    walk_all(rows, node)
}

/// Reports what of a MeshNetworks document is not honoured yet.
pub(crate) fn networks(node: &Node<'_>) -> Vec<Finding> {
    walk_all(MESH_NETWORKS, node)
}

/// What is said of a kind of which nothing is honoured.
pub(crate) fn whole(kind: &str, effect: &str) -> String {
    format!("{kind} is not supported yet, {effect}")
}

fn walk_all(rows: &[Row], node: &Node<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for row in rows.iter().filter(|row| row.effect != STARTED) {
        let (steps, condition) = parse(row.path);
        let mut found = Vec::new();
        walk(node, &steps, condition, String::new(), &mut found);
        findings.extend(found.into_iter().map(|path| Finding {
            severity: row.severity,
            code: "unsupported-field",
            path,
            message: format!("not supported yet, {}", row.effect),
        }));
    }
    findings
}

/// One part of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step<'a> {
    /// A field.
    Field(&'a str),
    /// All elements of a list.
    Elements,
    /// The values of a map whose keys look so.
    Values(&'a str),
    /// Any number of the others.
    Any,
}

/// Which values are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition<'a> {
    Present,
    Is(&'a str),
    IsNot(&'a str),
}

/// Takes a pattern apart.
pub(crate) fn parse(pattern: &str) -> (Vec<Step<'_>>, Condition<'_>) {
    let (path, condition) = match pattern.split_once("!=") {
        Some((path, value)) => (path, Condition::IsNot(value)),
        None => match pattern.split_once('=') {
            Some((path, value)) => (path, Condition::Is(value)),
            None => (pattern, Condition::Present),
        },
    };
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
        } else if let Some(after) = rest.strip_prefix("[]") {
            steps.push(Step::Elements);
            rest = after;
        } else if let Some((keys, after)) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            steps.push(Step::Values(keys));
            rest = after;
        } else {
            let (field, after) = rest.split_at(rest.find(['.', '[', '{']).unwrap_or(rest.len()));
            steps.push(if field == "**" { Step::Any } else { Step::Field(field) });
            rest = after;
        }
    }
    (steps, condition)
}

/// Collects the paths of what a pattern means below a node.
fn walk(
    node: &Node<'_>,
    steps: &[Step<'_>],
    condition: Condition<'_>,
    path: String,
    found: &mut Vec<String>,
) {
    let Some((step, rest)) = steps.split_first() else {
        if is_there(node) && holds(node, condition) {
            found.push(path);
        }
        return;
    };
    match step {
        Step::Field(name) => {
            if let Some(value) = node.find(name) {
                walk(value, rest, condition, join(&path, name), found);
            }
        }
        Step::Elements => {
            for (index, item) in node.items().iter().enumerate() {
                walk(item, rest, condition, format!("{path}[{index}]"), found);
            }
        }
        Step::Values(keys) => {
            for entry in node.entries() {
                if keys.is_empty() || is_like(&entry.key, keys) {
                    walk(&entry.value, rest, condition, join(&path, &entry.key), found);
                }
            }
        }
        Step::Any => {
            walk(node, rest, condition, path.clone(), found);
            for entry in node.entries() {
                walk(&entry.value, steps, condition, join(&path, &entry.key), found);
            }
            for (index, item) in node.items().iter().enumerate() {
                walk(item, steps, condition, format!("{path}[{index}]"), found);
            }
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')) {
        format!("{path}[{key:?}]")
    } else if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

fn is_there(node: &Node<'_>) -> bool {
    match &node.value {
        Value::Sequence(items) => !items.is_empty(),
        Value::Mapping(entries) => !entries.is_empty(),
        Value::Scalar(scalar) => !node.is_null() && !scalar.text.is_empty(),
    }
}

fn holds(node: &Node<'_>, condition: Condition<'_>) -> bool {
    let is = |wanted| matches!(&node.value, Value::Scalar(scalar) if is_like(&scalar.text, wanted));
    match condition {
        Condition::Present => true,
        Condition::Is(value) => is(value),
        Condition::IsNot(value) => !is(value),
    }
}

/// Whether a text is another, or begins so if that ends in `*`.
fn is_like(text: &str, wanted: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(prefix) => text.get(..prefix.len()).is_some_and(|text| text.eq_ignore_ascii_case(prefix)),
        None => text.eq_ignore_ascii_case(wanted),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use leno_api::yaml::{self, Dialect};

    use super::{Row, walk_all, warn};

    #[expect(clippy::needless_pass_by_value, reason = "reads better at the many calls")]
    fn check(rows: &[Row], text: &str, expected: Expect) {
        let documents = yaml::parse(text, Dialect::Kubernetes).unwrap();
        let found: Vec<_> = walk_all(rows, &documents[0]).into_iter().map(|finding| finding.path).collect();
        expected.assert_eq(&found.join("\n"));
    }

    #[test]
    fn patterns_find_what_they_mean() {
        check(
            &[
                warn("spec.a[].b", ""),
                warn("spec.c{}.d", ""),
                warn("spec.e{@x.*}", ""),
                warn("spec.nothing", ""),
            ],
            "spec: {a: [{b: 1}, {c: 1}, {b: }, {b: 2}], c: {k: {d: x}, l: {}}, e: {'@x.y[z]': {f: 1}, g: {h: 1}}}",
            expect![[r#"
                spec.a[0].b
                spec.a[3].b
                spec.c.k.d
                spec.e["@x.y[z]"]"#]],
        );
        check(
            &[warn("spec.**.tls.mode=simple", ""), warn("spec.**.tls.n!=1", ""), warn("spec.u=unix://*", "")],
            "spec: {tls: {mode: SIMPLE, n: 1}, a: [{tls: {mode: MUTUAL, n: 2}}], b: {c: {tls: {mode: Simple}}}, u: unix:///x}",
            expect![[r#"
                spec.tls.mode
                spec.b.c.tls.mode
                spec.a[0].tls.n
                spec.u"#]],
        );
        check(
            &[warn("a", ""), warn("b", ""), warn("c", ""), warn("d", "")],
            "{a: [], b: {}, c: '', d: 0}",
            expect!["d"],
        );
    }
}

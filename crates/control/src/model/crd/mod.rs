//! `deploy/charts/base/files/crds`: the CustomResourceDefinitions of Istio's kinds, made from our own types.
//!
//! Names, versions, printer columns and limits are Istio's, so that `kubectl` feels the same and a
//! cluster may have either. The schema of a `spec` is that of its type; what a type does not say
//! (required fields, choices, limits, rules in CEL) is in the table of [`additions`].
//! `cargo xtask crds` writes the files.

mod tests;

use serde_json::{Map, Value, json};

use super::Kind;
use super::schema;
use super::support::{self, Step};

/// What a definition says besides its schema.
pub(super) struct Definition {
    kind: Kind,
    group: &'static str,
    plural: &'static str,
    short: Option<&'static str>,
    /// The versions served, all with the same schema.
    versions: &'static [&'static str],
    /// The version stored.
    storage: &'static str,
    /// Columns of `kubectl get`: name, path, type.
    columns: &'static [(&'static str, &'static str, &'static str)],
    needs_spec: bool,
}

const NETWORKING: &str = "networking.istio.io";
const SECURITY: &str = "security.istio.io";
const ALL: &[&str] = &["v1", "v1alpha3", "v1beta1"];
const STABLE: &[&str] = &["v1", "v1beta1"];
const AGE: (&str, &str, &str) = ("Age", ".metadata.creationTimestamp", "date");

#[rustfmt::skip]
pub(super) const DEFINITIONS: [Definition; 13] = [
    define(Kind::DestinationRule, NETWORKING, "destinationrules", Some("dr"), ALL, &[("Host", ".spec.host", "string"), AGE], false),
    define(Kind::EnvoyFilter, NETWORKING, "envoyfilters", None, &["v1alpha3"], &[], false),
    define(Kind::Gateway, NETWORKING, "gateways", Some("gw"), ALL, &[], false),
    define(Kind::ProxyConfig, NETWORKING, "proxyconfigs", None, &["v1beta1"], &[], false),
    define(Kind::ServiceEntry, NETWORKING, "serviceentries", Some("se"), ALL, &[
        ("Hosts", ".spec.hosts", "string"),
        ("Location", ".spec.location", "string"),
        ("Resolution", ".spec.resolution", "string"),
        AGE,
    ], true),
    define(Kind::Sidecar, NETWORKING, "sidecars", None, ALL, &[], false),
    define(Kind::VirtualService, NETWORKING, "virtualservices", Some("vs"), ALL, &[
        ("Gateways", ".spec.gateways", "string"),
        ("Hosts", ".spec.hosts", "string"),
        AGE,
    ], false),
    define(Kind::WorkloadEntry, NETWORKING, "workloadentries", Some("we"), ALL, &[AGE, ("Address", ".spec.address", "string")], true),
    define(Kind::WorkloadGroup, NETWORKING, "workloadgroups", Some("wg"), ALL, &[AGE], true),
    define(Kind::AuthorizationPolicy, SECURITY, "authorizationpolicies", Some("ap"), STABLE, &[("Action", ".spec.action", "string"), AGE], false),
    define(Kind::PeerAuthentication, SECURITY, "peerauthentications", Some("pa"), STABLE, &[("Mode", ".spec.mtls.mode", "string"), AGE], false),
    define(Kind::RequestAuthentication, SECURITY, "requestauthentications", Some("ra"), STABLE, &[], false),
    Definition { storage: "v1alpha1", ..define(Kind::Telemetry, "telemetry.istio.io", "telemetries", Some("telemetry"), &["v1", "v1alpha1"], &[AGE], false) },
];

const fn define(
    kind: Kind,
    group: &'static str,
    plural: &'static str,
    short: Option<&'static str>,
    versions: &'static [&'static str],
    columns: &'static [(&'static str, &'static str, &'static str)],
    needs_spec: bool,
) -> Definition {
    let storage = versions[0];
    Definition { kind, group, plural, short, versions, storage, columns, needs_spec }
}

impl Definition {
    /// The kind.
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// The name of its file.
    pub(super) fn file(&self) -> String {
        format!("{}.{}.yaml", self.plural, self.group)
    }

    /// The schema of its `spec`.
    pub(super) fn spec(&self) -> Value {
        let typed = schema::of(self.kind).unwrap_or_default();
        let mut spec = structural(&typed);
        for (pattern, value) in additions(self.kind) {
            let (steps, _) = support::parse(pattern);
            let found = add(&mut spec, &[Step::Field("spec")], &steps, &value);
            assert!(found > 0, "{}: {pattern} means nothing", self.kind);
        }
        spec
    }

    /// The whole definition.
    pub(super) fn render(&self) -> Value {
        let mut properties = json!({
            "spec": self.spec(),
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        });
        let mut schema = json!({"type": "object", "properties": properties.take()});
        if self.needs_spec {
            schema["required"] = json!(["spec"]);
        }
        let columns: Vec<Value> = self
            .columns
            .iter()
            .map(|(name, path, kind)| json!({"name": name, "type": kind, "jsonPath": path}))
            .collect();
        let versions: Vec<Value> = self
            .versions
            .iter()
            .map(|version| {
                let mut rendered = json!({
                    "name": version,
                    "served": true,
                    "storage": *version == self.storage,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                });
                if !columns.is_empty() {
                    rendered["additionalPrinterColumns"] = json!(columns);
                }
                rendered
            })
            .collect();
        let kind = self.kind.to_string();
        let category = self.group.replace('.', "-");
        let mut names = json!({
            "kind": kind,
            "listKind": format!("{kind}List"),
            "plural": self.plural,
            "singular": kind.to_lowercase(),
            "categories": ["istio-io", category],
        });
        if let Some(short) = self.short {
            names["shortNames"] = json!([short]);
        }
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {
                "name": format!("{}.{}", self.plural, self.group),
                "annotations": {"helm.sh/resource-policy": "keep"},
            },
            "spec": {"group": self.group, "names": names, "scope": "Namespaced", "versions": versions},
        })
    }
}

/// Brings the schema of a type into the form that Kubernetes wants: one type at each place, no
/// references, choices of texts as `enum`.
fn structural(schema: &Value) -> Value {
    let described = |mut made: Value| {
        if let (Some(made), Some(text)) = (made.as_object_mut(), schema.get("description")) {
            made.insert("description".to_owned(), text.clone());
        }
        made
    };
    let Some(object) = schema.as_object().filter(|object| !object.is_empty()) else {
        return json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    };
    if let Some(choices) = object.get("anyOf").or_else(|| object.get("oneOf")).and_then(Value::as_array) {
        let is_null = |choice: &&Value| choice.get("type") == Some(&json!("null"));
        let mut texts = Vec::new();
        for choice in choices.iter().filter(|choice| !is_null(choice)) {
            match (choice.get("const"), choice.get("enum").and_then(Value::as_array)) {
                (Some(text), _) => texts.push(text.clone()),
                (None, Some(some)) => texts.extend(some.iter().filter(|text| !text.is_null()).cloned()),
                (None, None) => return described(structural(choice)),
            }
        }
        return described(json!({"type": "string", "enum": texts}));
    }
    if let Some(texts) = object.get("enum").and_then(Value::as_array) {
        let texts: Vec<&Value> = texts.iter().filter(|text| !text.is_null()).collect();
        return described(json!({"type": "string", "enum": texts}));
    }
    let (kind, nullable) = match object.get("type") {
        Some(Value::String(kind)) => (kind.clone(), false),
        Some(Value::Array(kinds)) => {
            let kind = kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null");
            (kind.unwrap_or("object").to_owned(), true)
        }
        _ => ("object".to_owned(), false),
    };
    let mut made = json!({"type": kind});
    match kind.as_str() {
        "object" => structural_object(object, &mut made),
        "array" => made["items"] = object.get("items").map_or_else(|| json!({"type": "object"}), structural),
        "integer" | "number" => {
            // What JSON allows in protobuf's types.
            let (least, most) = match object.get("format").and_then(Value::as_str) {
                Some("uint16") => (Some(0), Some(u64::from(u16::MAX))),
                Some("uint32") => (Some(0), Some(u64::from(u32::MAX))),
                Some("uint64") => (Some(0), None),
                _ => (None, None),
            };
            for (key, limit) in [("minimum", least), ("maximum", most)] {
                if let Some(limit) = limit {
                    made[key] = json!(limit);
                }
            }
            if let Some(format @ ("int32" | "int64" | "double")) =
                object.get("format").and_then(Value::as_str)
            {
                made["format"] = json!(format);
            }
        }
        "string" if object.get("format") == Some(&json!("duration")) => {
            let rule = rule("duration(self) >= duration('1ms')", "must be a duration of 1ms or more");
            made["x-kubernetes-validations"] = rule["x-kubernetes-validations"].clone();
        }
        _ => {}
    }
    if nullable && !matches!(kind.as_str(), "object" | "array") {
        made["nullable"] = json!(true);
    }
    described(made)
}

fn structural_object(object: &Map<String, Value>, made: &mut Value) {
    if let Some(fields) = object.get("properties").and_then(Value::as_object) {
        let fields: Map<String, Value> =
            fields.iter().map(|(name, schema)| (name.clone(), structural(schema))).collect();
        made["properties"] = Value::Object(fields);
        if let Some(required) = object.get("required") {
            made["required"] = required.clone();
        }
        return;
    }
    let by_pattern = object.get("patternProperties").and_then(Value::as_object);
    let by_number = by_pattern.and_then(|patterns| patterns.values().next());
    match object.get("additionalProperties").filter(|schema| schema.is_object()).or(by_number) {
        Some(schema) => made["additionalProperties"] = structural(schema),
        None => made["x-kubernetes-preserve-unknown-fields"] = json!(true),
    }
}

/// Adds to all places that a pattern means; returns how many there were.
fn add(schema: &mut Value, path: &[Step<'_>], pattern: &[Step<'_>], value: &Value) -> usize {
    let mut found = 0;
    if is_meant(pattern, path) {
        found += 1;
        merge(schema, value);
    }
    let below = |step: Step<'static>| [path, &[step]].concat();
    if let Some(fields) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        for (name, schema) in fields {
            let path: Vec<Step<'_>> = [path, &[Step::Field(name)]].concat();
            found += add(schema, &path, pattern, value);
        }
    }
    if let Some(items) = schema.get_mut("items") {
        found += add(items, &below(Step::Elements), pattern, value);
    }
    if let Some(values) = schema.get_mut("additionalProperties") {
        found += add(values, &below(Step::Values("")), pattern, value);
    }
    found
}

fn is_meant(pattern: &[Step<'_>], path: &[Step<'_>]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((Step::Any, rest)), _) if is_meant(rest, path) => true,
        (Some((Step::Any, _)), Some((_, below))) => is_meant(pattern, below),
        (Some((wanted, rest)), Some((step, below))) => wanted == step && is_meant(rest, below),
        _ => false,
    }
}

/// Lists are joined, other values replaced, null removes.
fn merge(schema: &mut Value, value: &Value) {
    for (key, value) in value.as_object().into_iter().flatten() {
        match (schema.get_mut(key), value) {
            (_, Value::Null) => {
                schema.as_object_mut().and_then(|schema| schema.remove(key));
            }
            (Some(Value::Array(there)), Value::Array(more)) => there.extend(more.iter().cloned()),
            _ => schema[key] = value.clone(),
        }
    }
}

/// A rule in CEL.
fn rule(expression: &str, message: &str) -> Value {
    json!({"x-kubernetes-validations": [{"rule": expression, "message": message}]})
}

/// Of some fields at most one may be given.
fn at_most_one(fields: &[&str]) -> Value {
    let given: Vec<String> = fields.iter().map(|field| format!("(has(self.{field}) ? 1 : 0)")).collect();
    // A sum costs next to nothing: API servers refuse a schema whose rules may cost too much, and what
    // goes through a list is thought to.
    let expression = format!("{} <= 1", given.join(" + "));
    rule(&expression, &format!("only one of {} may be given", fields.join(", ")))
}

/// As [`at_most_one`], for the members of a protobuf `oneof`: the API server checks it without CEL.
fn one_of(fields: &[&str]) -> Value {
    let required: Vec<Value> = fields.iter().map(|field| json!({"required": [field]})).collect();
    let mut choices = vec![json!({"not": {"anyOf": required}})];
    choices.extend(required);
    json!({"oneOf": choices})
}

fn required(fields: &[&str]) -> Value {
    json!({"required": fields})
}

/// What the types of a kind do not say: patterns of paths, and what is added there.
fn additions(kind: Kind) -> Vec<(&'static str, Value)> {
    let port = || json!({"minimum": 1, "maximum": 65535});
    let own = match kind {
        Kind::VirtualService => virtual_service(),
        Kind::DestinationRule => destination_rule(),
        Kind::Gateway => vec![
            ("spec.servers[]", required(&["port", "hosts"])),
            ("spec.servers[].port", required(&["number", "protocol", "name"])),
        ],
        Kind::ServiceEntry => service_entry(port),
        Kind::WorkloadEntry => workload("spec", "spec.address", "spec.ports", "spec.ports{}", port),
        Kind::WorkloadGroup => vec![
            ("spec", required(&["template"])),
            ("spec.probe", one_of(&["httpGet", "tcpSocket", "exec", "grpc"])),
            ("spec.probe.exec", required(&["command"])),
            ("spec.probe.httpGet", required(&["port"])),
            ("spec.probe.tcpSocket", required(&["port"])),
            ("spec.probe.**.port", port()),
            ("spec.probe.httpGet.scheme", json!({"enum": ["", "HTTP", "HTTPS"]})),
            ("spec.probe.httpGet.httpHeaders[].name", json!({"pattern": "^[-_A-Za-z0-9]+$"})),
            ("spec.template.ports{}", port()),
        ],
        Kind::Sidecar => vec![
            ("spec.egress[]", required(&["hosts"])),
            ("spec.ingress[]", required(&["port"])),
            ("spec.outboundTrafficPolicy.egressProxy", required(&["host"])),
        ],
        Kind::EnvoyFilter => vec![
            ("spec", at_most_one(&["workloadSelector", "targetRefs"])),
            (
                "spec.configPatches[].match",
                one_of(&["listener", "routeConfiguration", "cluster", "waypoint"]),
            ),
            ("spec.configPatches[].match.waypoint.portNumber", port()),
        ],
        Kind::PeerAuthentication => vec![
            (
                "spec",
                rule(
                    "!has(self.portLevelMtls) || has(self.selector) && has(self.selector.matchLabels) \
                     && self.selector.matchLabels.size() > 0",
                    "portLevelMtls needs a selector",
                ),
            ),
            ("spec.portLevelMtls", json!({"minProperties": 1})),
            (
                "spec.portLevelMtls",
                rule("self.all(port, int(port) > 0 && int(port) < 65536)", "ports are 1 to 65535"),
            ),
        ],
        Kind::RequestAuthentication => request_authentication(),
        Kind::AuthorizationPolicy => vec![
            ("spec.rules", json!({"maxItems": 512})),
            ("spec.rules[].from", json!({"maxItems": 512})),
            ("spec.rules[].when[]", required(&["key"])),
            (
                "spec.rules[].from[].source",
                rule(
                    "!has(self.serviceAccounts) && !has(self.notServiceAccounts) || !has(self.principals) \
                     && !has(self.notPrincipals) && !has(self.namespaces) && !has(self.notNamespaces)",
                    "serviceAccounts cannot stand beside namespaces or principals",
                ),
            ),
            ("spec.rules[].from[].source.serviceAccounts", json!({"maxItems": 16})),
            ("spec.rules[].from[].source.notServiceAccounts", json!({"maxItems": 16})),
            ("spec.rules[].from[].source.serviceAccounts[]", json!({"maxLength": 320})),
            ("spec.rules[].from[].source.notServiceAccounts[]", json!({"maxLength": 320})),
        ],
        Kind::Telemetry => telemetry(),
        _ => Vec::new(),
    };
    let mut all = shared(kind);
    all.extend(own);
    all
}

/// What several kinds have.
fn shared(kind: Kind) -> Vec<(&'static str, Value)> {
    let mut all = Vec::new();
    let no_wildcard = || rule("!self.contains('*')", "wildcards are not possible here");
    let by_labels = matches!(
        kind,
        Kind::DestinationRule
            | Kind::ProxyConfig
            | Kind::PeerAuthentication
            | Kind::RequestAuthentication
            | Kind::AuthorizationPolicy
            | Kind::Telemetry
    );
    if by_labels {
        all.push(("spec.**.matchLabels", json!({"maxProperties": 4096})));
        all.push(("spec.**.matchLabels{}", json!({"maxLength": 63})));
        all.push(("spec.**.matchLabels{}", no_wildcard()));
        all.push((
            "spec.**.matchLabels",
            rule(
                "self.all(key, key.size() > 0 && !key.contains('*'))",
                "a label has a name, without wildcards",
            ),
        ));
    }
    if matches!(kind, Kind::EnvoyFilter | Kind::Sidecar | Kind::ServiceEntry) {
        all.push(("spec.workloadSelector.labels", json!({"maxProperties": 256})));
        all.push(("spec.workloadSelector.labels{}", json!({"maxLength": 63})));
        all.push(("spec.workloadSelector.labels{}", no_wildcard()));
    }
    let has_reference =
        matches!(kind, Kind::RequestAuthentication | Kind::AuthorizationPolicy | Kind::Telemetry);
    if has_reference {
        all.push(("spec", at_most_one(&["selector", "targetRef", "targetRefs"])));
        all.extend(reference(
            "spec.targetRef",
            "spec.targetRef.name",
            "spec.targetRef.kind",
            "spec.targetRef.namespace",
        ));
    }
    if has_reference || kind == Kind::EnvoyFilter {
        all.push(("spec.targetRefs", json!({"maxItems": 16})));
        all.extend(reference(
            "spec.targetRefs[]",
            "spec.targetRefs[].name",
            "spec.targetRefs[].kind",
            "spec.targetRefs[].namespace",
        ));
    }
    if matches!(kind, Kind::Gateway | Kind::Sidecar) {
        all.push(("spec.**.tls", at_most_one(&["credentialName", "credentialNames", "tlsCertificates"])));
        all.push(("spec.**.tls.credentialNames", json!({"minItems": 1, "maxItems": 2})));
        all.push(("spec.**.tls.tlsCertificates", json!({"minItems": 1, "maxItems": 2})));
    }
    if matches!(kind, Kind::DestinationRule | Kind::Sidecar) {
        // 0 means for ever.
        all.push(("spec.**.tcp.idleTimeout", json!({"x-kubernetes-validations": null})));
    }
    all
}

fn reference(
    whole: &'static str,
    name: &'static str,
    kind: &'static str,
    namespace: &'static str,
) -> Vec<(&'static str, Value)> {
    vec![
        (whole, required(&["kind", "name"])),
        (name, json!({"minLength": 1, "maxLength": 253})),
        (kind, json!({"minLength": 1, "maxLength": 63, "pattern": "^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$"})),
        (namespace, rule("self.size() == 0", "objects of other namespaces cannot be referred to")),
    ]
}

fn virtual_service() -> Vec<(&'static str, Value)> {
    let text = || one_of(&["exact", "prefix", "regex"]);
    vec![
        ("spec.http[].match[].uri", text()),
        ("spec.http[].match[].scheme", text()),
        ("spec.http[].match[].method", text()),
        ("spec.http[].match[].authority", text()),
        ("spec.http[].match[].headers{}", text()),
        ("spec.http[].match[].withoutHeaders{}", text()),
        ("spec.http[].match[].queryParams{}", text()),
        ("spec.http[].corsPolicy.allowOrigins[]", text()),
        ("spec.http[].directResponse", required(&["status"])),
        ("spec.http[].directResponse.body", one_of(&["string", "bytes"])),
        ("spec.http[].fault.abort", one_of(&["httpStatus", "grpcStatus", "http2Error"])),
        ("spec.http[].fault.delay", one_of(&["fixedDelay", "exponentialDelay"])),
        ("spec.http[].redirect", one_of(&["port", "derivePort"])),
        ("spec.http[].mirror", required(&["host"])),
        ("spec.http[].mirrors[]", required(&["destination"])),
        ("spec.**.route[]", required(&["destination"])),
        ("spec.**.destination", required(&["host"])),
        ("spec.tls[]", required(&["match"])),
        ("spec.tls[].match[]", required(&["sniHosts"])),
    ]
}

fn destination_rule() -> Vec<(&'static str, Value)> {
    vec![
        ("spec", required(&["host"])),
        ("spec.subsets[]", required(&["name"])),
        // As in Istio: the rules for durations in them would cost too much without a bound.
        ("spec.**.portLevelSettings", json!({"maxItems": 4096})),
        ("spec.**.loadBalancer", one_of(&["simple", "consistentHash"])),
        (
            "spec.**.consistentHash",
            json!({"allOf": [
                one_of(&["httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName"]),
                one_of(&["ringHash", "maglev"]),
            ]}),
        ),
        ("spec.**.consistentHash.httpCookie", required(&["name"])),
        // 0 is a cookie that ends with the browser.
        ("spec.**.consistentHash.httpCookie.ttl", json!({"x-kubernetes-validations": null})),
        ("spec.**.consistentHash.httpCookie.attributes[]", required(&["name"])),
        ("spec.**.warmup", required(&["duration"])),
        ("spec.**.warmup.minimumPercent", json!({"minimum": 0, "maximum": 100})),
        ("spec.**.tunnel", required(&["targetHost", "targetPort"])),
    ]
}

/// An endpoint, at the paths of its parts.
fn workload(
    whole: &'static str,
    address: &'static str,
    ports: &'static str,
    number: &'static str,
    port: impl Fn() -> Value,
) -> Vec<(&'static str, Value)> {
    vec![
        (whole, rule("has(self.address) || has(self.network)", "an address is needed")),
        (
            whole,
            rule(
                "!has(self.address) || !self.address.startsWith('unix://') || !has(self.ports)",
                "a socket of the file system has no ports",
            ),
        ),
        (address, json!({"maxLength": 256})),
        (
            address,
            rule(
                "!self.startsWith('unix://') || self.matches('^unix://[/@]') && !self.endsWith('/')",
                "a socket of the file system is an absolute path, or begins with @",
            ),
        ),
        (ports, json!({"maxProperties": 128})),
        (
            ports,
            rule(
                "self.all(name, name.size() < 63 && name.matches('^[a-zA-Z0-9](?:[-a-zA-Z0-9]*[a-zA-Z0-9])?$'))",
                "port names are letters, digits and -",
            ),
        ),
        (number, port()),
    ]
}

fn service_entry(port: impl Fn() -> Value) -> Vec<(&'static str, Value)> {
    let mut all = vec![
        ("spec", required(&["hosts"])),
        ("spec", at_most_one(&["workloadSelector", "endpoints"])),
        (
            "spec",
            rule(
                "!has(self.addresses) || !self.addresses.exists(address, address.contains('/')) \
                 || !has(self.resolution) || self.resolution in ['NONE', 'STATIC']",
                "CIDR ranges need resolution NONE or STATIC",
            ),
        ),
        (
            "spec",
            rule(
                "has(self.resolution) && self.resolution != 'NONE' || !has(self.endpoints)",
                "resolution NONE has no endpoints",
            ),
        ),
        (
            "spec",
            rule(
                "!has(self.resolution) || self.resolution != 'DNS_ROUND_ROBIN' || !has(self.endpoints) \
                 || self.endpoints.size() <= 1",
                "DNS_ROUND_ROBIN can have one endpoint only",
            ),
        ),
        ("spec.hosts", json!({"minItems": 1, "maxItems": 256})),
        ("spec.hosts[]", rule("self != '*'", "a full wildcard is not possible")),
        ("spec.addresses", json!({"maxItems": 256})),
        ("spec.addresses[]", json!({"maxLength": 64})),
        (
            "spec.ports",
            json!({"maxItems": 256, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
        ),
        (
            "spec.ports",
            rule(
                "self.all(one, self.exists_one(two, one.number == two.number))",
                "port numbers are different",
            ),
        ),
        ("spec.ports[]", required(&["number", "name"])),
        ("spec.ports[].name", json!({"maxLength": 256})),
        ("spec.ports[].protocol", json!({"maxLength": 256})),
        ("spec.ports[].number", port()),
        ("spec.ports[].targetPort", port()),
        ("spec.endpoints", json!({"maxItems": 4096})),
        ("spec.endpoints[].labels", json!({"maxProperties": 256})),
    ];
    let endpoint = "spec.endpoints[]";
    all.extend(workload(
        endpoint,
        "spec.endpoints[].address",
        "spec.endpoints[].ports",
        "spec.endpoints[].ports{}",
        port,
    ));
    all
}

fn request_authentication() -> Vec<(&'static str, Value)> {
    let not_empty = || json!({"minLength": 1});
    vec![
        ("spec.jwtRules", json!({"maxItems": 4096})),
        ("spec.jwtRules[]", at_most_one(&["jwksUri", "jwks"])),
        ("spec.jwtRules[].issuer", not_empty()),
        ("spec.jwtRules[].audiences[]", not_empty()),
        ("spec.jwtRules[].fromParams[]", not_empty()),
        ("spec.jwtRules[].fromCookies[]", not_empty()),
        ("spec.jwtRules[].fromHeaders[]", required(&["name"])),
        ("spec.jwtRules[].fromHeaders[].name", not_empty()),
        ("spec.jwtRules[].jwksUri", json!({"minLength": 1, "maxLength": 2048})),
        (
            "spec.jwtRules[].jwksUri",
            rule("url(self).getScheme() in ['http', 'https']", "the scheme is http or https"),
        ),
        ("spec.jwtRules[].outputClaimToHeaders[]", required(&["header", "claim"])),
        ("spec.jwtRules[].outputClaimToHeaders[].claim", not_empty()),
        (
            "spec.jwtRules[].outputClaimToHeaders[].header",
            json!({"minLength": 1, "pattern": "^[-_A-Za-z0-9]+$"}),
        ),
        ("spec.jwtRules[].spaceDelimitedClaims", json!({"maxItems": 64})),
        ("spec.jwtRules[].spaceDelimitedClaims[]", not_empty()),
    ]
}

fn telemetry() -> Vec<(&'static str, Value)> {
    let not_empty = || json!({"minLength": 1});
    vec![
        ("spec.**.providers[]", required(&["name"])),
        ("spec.**.providers[].name", not_empty()),
        ("spec.tracing[].customTags{}", one_of(&["literal", "environment", "header", "formatter"])),
        ("spec.tracing[].customTags{}.environment", required(&["name"])),
        ("spec.tracing[].customTags{}.environment.name", not_empty()),
        ("spec.tracing[].customTags{}.formatter", required(&["value"])),
        ("spec.tracing[].customTags{}.formatter.value", not_empty()),
        ("spec.tracing[].customTags{}.header", required(&["name"])),
        ("spec.tracing[].customTags{}.header.name", not_empty()),
        ("spec.tracing[].customTags{}.literal", required(&["value"])),
        ("spec.tracing[].customTags{}.literal.value", not_empty()),
        ("spec.tracing[].randomSamplingPercentage", json!({"minimum": 0, "maximum": 100})),
        ("spec.metrics[].overrides[].match", one_of(&["metric", "customMetric"])),
        ("spec.metrics[].overrides[].match.customMetric", not_empty()),
        (
            "spec.metrics[].overrides[].tagOverrides{}",
            rule(
                "has(self.operation) && self.operation == 'REMOVE' || has(self.value) && self.value != ''",
                "a value is needed unless the operation is REMOVE",
            ),
        ),
        (
            "spec.metrics[].overrides[].tagOverrides{}",
            rule(
                "!has(self.operation) || self.operation != 'REMOVE' || !has(self.value)",
                "a tag that is removed has no value",
            ),
        ),
    ]
}

//! `docs/compatibility.md`: what becomes of every field of every kind.
//!
//! A field is *not yet* honoured if it (or what it is in) has a row in `support.rs`; *refused* if
//! it is one of [`REFUSED`]; else it is *honoured*, and must occur in a golden's input. Until it
//! does, it stands in `tests/no_golden_yet.txt`, a list that must shrink: a line too many is as
//! much a failure as one too few. `cargo xtask compatibility` writes the document anew and takes
//! superfluous lines from the list; it adds none.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use leno_api::yaml::{self, Dialect, Node};
use serde_json::Value;

use super::Kind;
use super::read::{Read, read};
use super::schema::{self, Shape};
use super::support::{self, Condition, Row, Step};

/// Fields that no implementation has ever honoured, or that are meaningless where they stand; they
/// are refused, as Istio does, or say nothing to a mesh.
const REFUSED: &[(Kind, &str, &str)] = &[
    (Kind::VirtualService, "spec.http[].fault.delay.exponentialDelay", "Istio does not implement it"),
    (Kind::VirtualService, "spec.http[].fault.abort.http2Error", "Istio does not implement it"),
    (Kind::Gateway, "spec.servers[].port.targetPort", "has no effect in Istio"),
    (Kind::Sidecar, "spec.ingress[].port.targetPort", "has no effect in Istio"),
    (Kind::Sidecar, "spec.egress[].port.targetPort", "has no effect in Istio"),
    (Kind::AuthorizationPolicy, "spec.targetRef.namespace", "Istio does not implement it"),
    (Kind::AuthorizationPolicy, "spec.targetRefs[].namespace", "Istio does not implement it"),
    (Kind::RequestAuthentication, "spec.targetRef.namespace", "Istio does not implement it"),
    (Kind::RequestAuthentication, "spec.targetRefs[].namespace", "Istio does not implement it"),
    (Kind::Telemetry, "spec.targetRef.namespace", "Istio does not implement it"),
    (Kind::Telemetry, "spec.targetRefs[].namespace", "Istio does not implement it"),
    (Kind::EnvoyFilter, "spec.configPatches[].match.listener.portName", "has no effect in Istio"),
    (Kind::EnvoyFilter, "spec.targetRefs[].namespace", "Istio does not implement it"),
    // Its filters share a type with those of an HTTPRoute.
    (Kind::GrpcRoute, "spec.rules[].filters[].requestRedirect", "no field of a GRPCRoute"),
    (Kind::GrpcRoute, "spec.rules[].filters[].urlRewrite", "no field of a GRPCRoute"),
    (Kind::GrpcRoute, "spec.rules[].filters[].cors", "no field of a GRPCRoute"),
    (Kind::GrpcRoute, "spec.rules[].filters[].externalAuth", "no field of a GRPCRoute"),
    (Kind::GrpcRoute, "spec.rules[].backendRefs[].filters[].requestRedirect", "no field of a GRPCRoute"),
    (Kind::GrpcRoute, "spec.rules[].backendRefs[].filters[].urlRewrite", "no field of a GRPCRoute"),
    (Kind::GrpcRoute, "spec.rules[].backendRefs[].filters[].cors", "no field of a GRPCRoute"),
    (Kind::GrpcRoute, "spec.rules[].backendRefs[].filters[].externalAuth", "no field of a GRPCRoute"),
];

/// What becomes of a field.
#[derive(Clone, Copy, Debug)]
enum State {
    Honoured,
    Refused(&'static str),
    NotYet(&'static Row),
}

const DOCUMENT: &str = "docs/compatibility.md";
const LIST: &str = "crates/control/tests/no_golden_yet.txt";

const HEADER: &str = "# Compatibility\n\n\
    What becomes of every field of the kinds that Leno reads: *honoured*, with goldens\n\
    (`crates/control/tests/golden`) in which it occurs; *refused*; or *not yet*, which is reported\n\
    with file, line and path wherever the field is used. `cargo xtask compatibility` writes this\n\
    document.\n";

#[test]
fn every_field_is_honoured_refused_or_reported() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let update = std::env::var_os("UPDATE_COMPATIBILITY").is_some();
    let used = fields_of_goldens();
    let mut document = HEADER.to_owned();
    let mut wanting = BTreeSet::new();
    for kind in schema::KINDS {
        let Some(schema) = schema::of(kind) else { continue };
        let rows = support::rows(kind);
        let prefix = if kind == Kind::MeshConfig { "" } else { "spec" };
        section(&mut document, title(kind), kind, rows, &schema, prefix, &used, &mut wanting);
    }
    let networks = schema::of_networks();
    let kind = Kind::MeshConfig;
    section(&mut document, "MeshNetworks", kind, support::MESH_NETWORKS, &networks, "", &used, &mut wanting);
    document.push_str("\n## Kinds of Kubernetes\n\n");
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Endpoints] {
        for row in support::rows(kind) {
            let _ = writeln!(document, "- {kind} `{}`: not yet: {}", row.path, row.effect);
        }
    }

    let path = root.join(LIST);
    let listed: BTreeSet<String> =
        fs::read_to_string(&path).unwrap_or_default().lines().map(str::to_owned).collect();
    if update {
        let kept: Vec<&String> = listed.intersection(&wanting).collect();
        let text: String = kept.iter().map(|line| format!("{line}\n")).collect();
        fs::write(&path, text).unwrap();
        fs::write(root.join(DOCUMENT), &document).unwrap();
    }
    let missing: Vec<&String> = wanting.difference(&listed).collect();
    assert!(
        missing.is_empty(),
        "honoured, but in no golden: write one, or a row in support.rs if it is not honoured:\n{missing:#?}"
    );
    if !update {
        let superfluous: Vec<&String> = listed.difference(&wanting).collect();
        assert!(
            superfluous.is_empty(),
            "no longer wanting, run `cargo xtask compatibility`:\n{superfluous:#?}"
        );
        let current = fs::read_to_string(root.join(DOCUMENT)).unwrap_or_default();
        assert!(current == document, "{DOCUMENT} is out of date: run `cargo xtask compatibility`");
    }
}

/// Rows of `support.rs` name fields that exist.
#[test]
fn rows_mean_fields() {
    for kind in schema::KINDS {
        let Some(schema) = schema::of(kind) else { continue };
        let mut fields = Vec::new();
        schema::fields(&schema, if kind == Kind::MeshConfig { "" } else { "spec" }, &mut fields);
        fields.push("spec".to_owned());
        for row in support::rows(kind) {
            let (steps, _) = support::parse(row.path);
            let meant = fields.iter().any(|field| {
                let (field, _) = support::parse(field);
                covers(&steps, &field)
            });
            assert!(meant, "{kind}: no field is like {:?}", row.path);
        }
    }
}

fn title(kind: Kind) -> &'static str {
    match kind {
        Kind::KubernetesGateway => "Gateway (Gateway API)",
        Kind::VirtualService => "VirtualService",
        Kind::DestinationRule => "DestinationRule",
        Kind::Gateway => "Gateway",
        Kind::ServiceEntry => "ServiceEntry",
        Kind::WorkloadEntry => "WorkloadEntry",
        Kind::WorkloadGroup => "WorkloadGroup",
        Kind::Sidecar => "Sidecar",
        Kind::EnvoyFilter => "EnvoyFilter",
        Kind::ProxyConfig => "ProxyConfig",
        Kind::PeerAuthentication => "PeerAuthentication",
        Kind::RequestAuthentication => "RequestAuthentication",
        Kind::AuthorizationPolicy => "AuthorizationPolicy",
        Kind::Telemetry => "Telemetry",
        Kind::MeshConfig => "MeshConfig",
        Kind::GatewayClass => "GatewayClass",
        Kind::ListenerSet => "ListenerSet, XListenerSet",
        Kind::HttpRoute => "HTTPRoute",
        Kind::GrpcRoute => "GRPCRoute",
        Kind::TlsRoute => "TLSRoute",
        Kind::TcpRoute => "TCPRoute",
        Kind::UdpRoute => "UDPRoute",
        Kind::ReferenceGrant => "ReferenceGrant",
        Kind::BackendTlsPolicy => "BackendTLSPolicy",
        Kind::BackendTrafficPolicy => "XBackendTrafficPolicy",
        Kind::Ingress => "Ingress",
        Kind::IngressClass => "IngressClass",
        _ => "",
    }
}

/// Writes the section of a kind, and collects its honoured fields that are in no golden.
#[expect(clippy::too_many_arguments, reason = "two callers, which differ in all of them")]
fn section(
    document: &mut String,
    title: &str,
    kind: Kind,
    rows: &'static [Row],
    schema: &Value,
    prefix: &str,
    used: &BTreeMap<(String, String), BTreeSet<String>>,
    wanting: &mut BTreeSet<String>,
) {
    let _ = writeln!(document, "\n## {title}\n");
    if let Some(row) = rows.iter().find(|row| row.path == "spec") {
        let words = not_yet(row);
        let (first, rest) = words.split_at(1);
        let _ = writeln!(document, "{}{rest}.", first.to_uppercase());
        return;
    }
    for row in rows.iter().filter(|row| support::parse(row.path).1 != Condition::Present) {
        let _ = writeln!(document, "- `{}`: {}", row.path, not_yet(row));
    }
    if !document.ends_with("\n\n") {
        document.push('\n');
    }
    document.push_str("| field | |\n|---|---|\n");
    let mut fields = Vec::new();
    schema::fields(schema, prefix, &mut fields);
    let mut hidden: Option<String> = None;
    for field in fields.into_iter().filter(|field| canonical(kind, field) == *field) {
        // What is in a field that is not honoured needs no lines of its own.
        if hidden.as_ref().is_some_and(|parent| is_below(&field, parent)) {
            continue;
        }
        let text = match state(kind, rows, &field) {
            State::Honoured => {
                let goldens = used.get(&(title.to_owned(), field.clone()));
                if goldens.is_none() {
                    wanting.insert(format!("{title} {field}"));
                }
                // Two are enough to look at, and the line stays when goldens are added.
                let names: Vec<&str> = goldens.into_iter().flatten().map(String::as_str).collect();
                match names.as_slice() {
                    [] => "honoured; no golden yet".to_owned(),
                    [first, second, _, ..] => format!("honoured: {first}, {second}, ..."),
                    few => format!("honoured: {}", few.join(", ")),
                }
            }
            State::Refused(why) => {
                hidden = Some(field.clone());
                format!("refused: {why}")
            }
            State::NotYet(row) => {
                hidden = Some(field.clone());
                not_yet(row)
            }
        };
        let _ = writeln!(document, "| `{field}` | {text} |");
    }
}

fn not_yet(row: &Row) -> String {
    match row.effect {
        support::STARTED => support::STARTED.to_owned(),
        effect => format!("not yet: {effect}"),
    }
}

fn is_below(field: &str, parent: &str) -> bool {
    field.strip_prefix(parent).is_some_and(|rest| rest.starts_with(['.', '[', '{']))
}

fn state(kind: Kind, rows: &'static [Row], field: &str) -> State {
    let (steps, _) = support::parse(field);
    let row = rows.iter().find(|row| {
        let (pattern, condition) = support::parse(row.path);
        condition == Condition::Present && covers(&pattern, &steps)
    });
    if let Some(row) = row {
        return State::NotYet(row);
    }
    let refused = REFUSED.iter().find(|(of, path, _)| *of == kind && *path == field);
    refused.map_or(State::Honoured, |(_, _, why)| State::Refused(why))
}

/// Whether a pattern means a field, or something that the field is in.
fn covers(pattern: &[Step<'_>], field: &[Step<'_>]) -> bool {
    match (pattern.split_first(), field.split_first()) {
        (None, _) => true,
        (Some((Step::Any, rest)), Some((_, below))) => covers(rest, field) || covers(pattern, below),
        (Some((wanted, rest)), Some((step, below))) => wanted == step && covers(rest, below),
        (Some(_), None) => false,
    }
}

/// A DestinationRule has its policies at four places; their fields are listed once.
fn canonical(kind: Kind, field: &str) -> String {
    if kind != Kind::DestinationRule {
        return field.to_owned();
    }
    let field = match field.strip_prefix("spec.subsets[].trafficPolicy.") {
        Some(rest) => format!("spec.trafficPolicy.{rest}"),
        None => field.to_owned(),
    };
    match field.strip_prefix("spec.trafficPolicy.portLevelSettings[].") {
        Some(rest) if rest != "port" && rest != "port.number" => format!("spec.trafficPolicy.{rest}"),
        _ => field,
    }
}

/// The fields that occur in good objects of goldens: by title and field, the goldens' names.
fn fields_of_goldens() -> BTreeMap<(String, String), BTreeSet<String>> {
    let schemas: BTreeMap<Kind, Value> =
        schema::KINDS.into_iter().filter_map(|kind| Some((kind, schema::of(kind)?))).collect();
    let networks = schema::of_networks();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let cases: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let mut used: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for case in cases {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(case.join("input.yaml")).unwrap();
        for node in yaml::parse(&text, Dialect::Kubernetes).unwrap_or_default() {
            let Read::Object { reference, .. } = read(&node) else { continue };
            let kind = reference.kind;
            let mut add = |title: &str, schema: &Value, node: &Node<'_>, prefix: &str| {
                let mut found = Vec::new();
                occurring(schema, node, prefix, &mut found);
                for field in found {
                    let field = canonical(kind, &field);
                    used.entry((title.to_owned(), field)).or_default().insert(name.clone());
                }
            };
            let Some(schema) = schemas.get(&reference.kind) else { continue };
            if reference.kind != Kind::MeshConfig {
                if let Some(spec) = node.find("spec") {
                    add(title(reference.kind), schema, spec, "spec");
                }
                continue;
            }
            let inner = |key: &str| node.find("data").and_then(|data| data.find(key)).and_then(Node::as_str);
            for (key, title, schema) in
                [("mesh", "MeshConfig", schema), ("meshNetworks", "MeshNetworks", &networks)]
            {
                for document in
                    yaml::parse(inner(key).unwrap_or_default(), Dialect::Kubernetes).unwrap_or_default()
                {
                    add(title, schema, &document, "");
                }
            }
        }
    }
    used
}

/// The fields of a schema that a node has.
fn occurring(schema: &Value, node: &Node<'_>, path: &str, found: &mut Vec<String>) {
    match schema::shape(schema) {
        Shape::Fields(fields) => {
            for entry in node.entries().iter().filter(|entry| !entry.value.is_null()) {
                let Some(schema) = fields.get(entry.key.as_ref()) else { continue };
                let path =
                    if path.is_empty() { entry.key.to_string() } else { format!("{path}.{}", entry.key) };
                found.push(path.clone());
                occurring(schema, &entry.value, &path, found);
            }
        }
        Shape::Elements(schema) => {
            for item in node.items() {
                occurring(schema, item, &format!("{path}[]"), found);
            }
        }
        Shape::Values(schema) => {
            for entry in node.entries() {
                occurring(schema, &entry.value, &format!("{path}{{}}"), found);
            }
        }
        Shape::Leaf => {}
    }
}

//! Golden tests: a mesh in, the configuration of its proxies out.
//!
//! Each folder of `tests/golden` holds `input.yaml` (the mesh), `proxies.yaml` (who asks), as the case may be
//! `environment.yaml` and `issuers.yaml` (what issuers of tokens have said where their keys are), and the
//! expected `NAME.yaml` for each proxy and `diagnostics.txt`. `UPDATE_GOLDENS=1` writes these
//! anew. Where there is an Envoy, it has to accept every configuration too.
//!
//! `GOLDENS_INTO=FOLDER` writes the whole configurations there as well, as JSON, as proxies get them that
//! have certificates and all of Istio's extensions: to lay them beside what another control plane says.
//! `GOLDENS_FROM=FOLDER` reads other cases.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use leno_api::encode::{self, Style};
use leno_api::yaml::{self, Dialect};
use leno_derive::{Batch, Graph};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::analyze::Analysis;
use crate::debug;
use crate::model::diagnostic::Diagnostic;
use crate::model::duration::Span;
use crate::model::inputs;
use crate::model::switches::{SwitchInput, Switches, VariableInput};
use crate::push::patching::patch_fault;
use crate::scope::client::ClientOf;
use crate::scope::patches::Patching;
use crate::scope::proxy_config::Overrides;
use crate::scope::{
    self, Abilities, Families, Identity, Interception, ProxyFacts, ProxyKey, ProxyOptions, Role, Site,
};
use crate::source::files::{Files, Look};
use crate::translate::cluster::Clusters;
use crate::translate::endpoint::Endpoints;
use crate::translate::listener::Listeners;
use crate::translate::patch::Extensions;
use crate::translate::patch::report::{Asked, Effects, OwnEffects, SharedEffects};
use crate::translate::resource::Resource;
use crate::translate::route::Route;
use crate::translate::security::keys::KeyAddressInput;
use crate::translate::trust_bundle::TrustBundle;

/// Who asks for configuration.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Proxy {
    name: String,
    #[serde(default)]
    router: bool,
    #[serde(default = "default_namespace")]
    namespace: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    tproxy: bool,
    #[serde(default)]
    explicit: Option<String>,
    /// `v4`, `v6` or `both`.
    #[serde(default)]
    families: Option<String>,
    #[serde(default)]
    http10: bool,
    #[serde(default)]
    idle_timeout: Option<String>,
    /// Whether its agent answers for names.
    #[serde(default)]
    dns_capture: bool,
    #[serde(default)]
    locality: String,
    #[serde(default)]
    network: String,
    #[serde(default)]
    node: String,
    #[serde(default)]
    certificates: bool,
    /// What patches may ask for.
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    /// Extensions that it has: any of `stats`, `peers`, `alpn`, `datadog`, `skywalking`,
    /// `on-demand`, `files-apart`, `credentials`.
    #[serde(default)]
    extensions: Vec<String>,
    #[serde(default)]
    identity: BTreeMap<String, String>,
    /// What it was started with, over the mesh's `defaultConfig`.
    #[serde(default)]
    proxy_config: Map<String, Value>,
    /// What of its configuration the case is about: any of `clusters`, `outbound` and `inbound`
    /// (of the clusters), `endpoints`, `listeners`, `routes`, `extensions`, `roots`; all, if empty. What
    /// is left out is still checked by Envoy.
    #[serde(default)]
    only: Vec<String>,
}

fn default_namespace() -> String {
    "default".to_owned()
}

impl Proxy {
    fn key(&self) -> ProxyKey {
        let explicit = self.explicit.as_ref().map(|address| {
            let address: std::net::SocketAddr = address.parse().expect("an address");
            Interception::Explicit { address: address.ip(), port: address.port() }
        });
        let captured = if self.tproxy { Interception::Tproxy } else { Interception::Redirect };
        ProxyKey::from(ProxyFacts {
            role: if self.router { Role::Router } else { Role::Sidecar },
            namespace: self.namespace.clone(),
            labels: self.labels.clone(),
            interception: explicit.unwrap_or(captured),
            families: match self.families.as_deref() {
                None | Some("v4") => Families::V4,
                Some("v6") => Families::V6,
                Some("both") => Families::Both,
                Some(other) => panic!("{other:?} is none of v4, v6, both"),
            },
            options: ProxyOptions {
                http10: self.http10,
                idle_timeout: self.idle_timeout.as_deref().map(|text| Span::parse(text).expect("a duration")),
                dns_capture: self.dns_capture,
                abilities: abilities(&self.extensions),
                overrides: Overrides::read([self.proxy_config.clone()]).expect("a ProxyConfig"),
            },
            identity: Arc::new(self.identity()),
            site: Site {
                locality: self.locality.clone(),
                network: self.network.clone(),
                node: self.node.clone(),
                certificates: self.certificates,
            },
            sidecar: None,
            patching: Patching { metadata: self.metadata.clone(), ..Patching::default() },
        })
    }
}

impl Proxy {
    fn identity(&self) -> Identity {
        let named = |name: &str| self.identity.get(name).cloned().unwrap_or_default();
        Identity {
            cluster: named("cluster"),
            otel_name: named("otelName"),
            service: named("service"),
            revision: named("revision"),
            mesh: named("mesh"),
            registry: named("registry"),
        }
    }
}

/// What extensions with these names are.
fn abilities(extensions: &[String]) -> Abilities {
    let mut abilities = Abilities::default();
    for extension in extensions {
        let known: &[Abilities] = match extension.as_str() {
            "stats" => &[Abilities::HTTP_STATS, Abilities::TCP_STATS],
            "peers" => &[Abilities::HTTP_PEERS, Abilities::TCP_PEERS],
            "alpn" => &[Abilities::ALPN],
            "datadog" => &[Abilities::DATADOG],
            "skywalking" => &[Abilities::SKYWALKING],
            "on-demand" => &[Abilities::ON_DEMAND],
            "files-apart" => &[Abilities::FILES_APART],
            "credentials" => &[Abilities::CREDENTIALS],
            other => panic!("no extension is called {other:?}"),
        };
        known.iter().for_each(|one| abilities.insert(*one));
    }
    abilities
}

#[test]
fn goldens() {
    let folder = std::env::var_os("GOLDENS_FROM")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"), PathBuf::from);
    let mut cases: Vec<PathBuf> = fs::read_dir(&folder)
        .expect("the folder of goldens")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    cases.sort();
    assert!(cases.len() >= 60 || std::env::var_os("GOLDENS_FROM").is_some(), "only {} goldens", cases.len());
    // To work on some: those whose names begin so.
    if let Ok(prefix) = std::env::var("GOLDENS") {
        cases.retain(|case| case.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)));
    }
    let failures: Vec<String> = cases.iter().filter_map(|case| run(case).err()).collect();
    assert!(failures.is_empty(), "{}\nUPDATE_GOLDENS=1 accepts the differences", failures.join("\n"));
}

fn run(case: &Path) -> Result<(), String> {
    let (graph, mut diagnostics) = load(case);
    let mut expected =
        BTreeSet::from(["input.yaml", "proxies.yaml", "environment.yaml", "issuers.yaml"].map(str::to_owned));
    let mut failures = String::new();
    let mut compare = |name: String, found: &str| {
        let path = case.join(&name);
        expected.insert(name);
        if std::env::var_os("UPDATE_GOLDENS").is_some() {
            fs::write(&path, found).expect("writable");
        } else if fs::read_to_string(&path).unwrap_or_default() != found {
            let _ = writeln!(failures, "{} differs", path.display());
        }
    };
    let text = fs::read_to_string(case.join("proxies.yaml")).expect("proxies.yaml");
    let documents = yaml::parse(&text, Dialect::Kubernetes).expect("YAML");
    let mut refusals = Vec::new();
    let (proxies, _) = yaml::from_node::<Vec<Proxy>>(&documents[0]).expect("proxies");
    for proxy in proxies {
        if let Some(folder) = std::env::var_os("GOLDENS_INTO") {
            write_whole(&graph, &proxy, &Path::new(&folder).join(case.file_name().expect("a name")));
        }
        let configuration = configuration(&graph, &proxy.key());
        refusals.extend(validate(&proxy.name, case, &configuration));
        let effects = effects(&graph, &proxy.key(), &configuration);
        for (id, effect) in &effects.0 {
            let _ = writeln!(diagnostics, "{}: {id}: {} resources", proxy.name, effect.resources);
            if let Some((object, finding)) = patch_fault(id, effect) {
                let diagnostic = Diagnostic::about(&object, &finding);
                let _ = writeln!(diagnostics, "{:?} {diagnostic}", diagnostic.severity);
            }
        }
        let shown = shown(configuration, &proxy.only);
        compare(format!("{}.yaml", proxy.name), &encode::yaml_text(&shown));
    }
    compare("diagnostics.txt".to_owned(), &diagnostics);
    let statuses = debug::config::statuses(&graph);
    if statuses.as_array().is_some_and(|all| !all.is_empty()) {
        compare("status.yaml".to_owned(), &encode::yaml_text(&statuses));
    }
    for entry in fs::read_dir(case).expect("the case") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        if !expected.contains(&name) {
            let _ = writeln!(failures, "{}/{name} belongs to nothing", case.display());
        }
    }
    failures.extend(refusals);
    if failures.is_empty() { Ok(()) } else { Err(failures) }
}

/// Writes all that a proxy gets, if it is one of Istio's own.
fn write_whole(graph: &Graph, proxy: &Proxy, folder: &Path) {
    let mut facts = ProxyFacts::clone(&proxy.key());
    facts.site.certificates = true;
    let istios = ["stats", "peers", "alpn"];
    let extensions: Vec<String> = proxy.extensions.iter().cloned().chain(istios.map(str::to_owned)).collect();
    facts.options.abilities = abilities(&extensions);
    let key = ProxyKey::from(facts);
    fs::create_dir_all(folder).expect("writable");
    let text = configuration(graph, &key).to_string();
    fs::write(folder.join(format!("{}.json", proxy.name)), text).expect("writable");
}

/// The parts of a configuration that a case is about.
fn shown(mut configuration: Value, only: &[String]) -> Value {
    let has = |name: &str| only.iter().any(|part| part == name);
    if only.is_empty() {
        return configuration;
    }
    let known =
        ["clusters", "outbound", "inbound", "endpoints", "listeners", "routes", "extensions", "roots"];
    for part in only {
        assert!(known.contains(&part.as_str()), "no configuration has {part}");
    }
    if let Some(clusters) = configuration["clusters"].as_array_mut() {
        clusters.retain(|cluster| {
            let name = cluster["name"].as_str().unwrap_or_default();
            has("clusters")
                || (has("outbound") && name.starts_with("outbound|"))
                || (has("inbound") && name.starts_with("inbound|"))
        });
    }
    let fields = configuration.as_object_mut().expect("an object");
    fields.retain(|name, value| match name.as_str() {
        "clusters" => value.as_array().is_some_and(|clusters| !clusters.is_empty()),
        name => has(name),
    });
    configuration
}

/// Reads a mesh, and tells what is wrong with it, with places.
fn load(case: &Path) -> (Graph, String) {
    let input = &case.join("input.yaml");
    let mut files = Files::new(vec![input.to_owned()]);
    let changes = files.scan(Look::Inside, Instant::now());
    let mut graph = Graph::new();
    scope::register(&mut graph);
    let mut batch = Batch::new();
    let mut origins = BTreeMap::new();
    for change in changes {
        if let crate::model::Change::Set(object, _, origin) = &change {
            origins.insert(object.clone(), origin.clone());
        }
        inputs::apply(change, &mut batch);
    }
    let variables = variables(&case.join("environment.yaml"));
    batch.set::<SwitchInput>((), Switches::read(|name| variables.get(name).cloned()));
    for (name, value) in variables {
        batch.set::<VariableInput>(name, value);
    }
    // What issuers have answered who were asked where their keys are.
    for (issuer, uri) in self::variables(&case.join("issuers.yaml")) {
        batch.set::<KeyAddressInput>(issuer, uri);
    }
    graph.commit(batch);
    let mut all = files.diagnostics().as_ref().clone();
    for (object, finding) in graph.get::<Analysis>(&()).iter() {
        let position = origins[object].locate(&finding.path);
        all.push(Diagnostic {
            file: origins[object].file.to_string(),
            line: position.line,
            column: position.column,
            ..Diagnostic::about(object, finding)
        });
    }
    let file = input.display().to_string();
    let lines = all.iter().map(|diagnostic| format!("{:?} {diagnostic}\n", diagnostic.severity));
    (graph, lines.collect::<String>().replace(&file, "input.yaml"))
}

/// A case's environment, if it has one.
fn variables(path: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let documents = yaml::parse(&text, Dialect::Kubernetes).expect("YAML");
    let variables = documents
        .first()
        .map(|document| yaml::from_node::<BTreeMap<String, String>>(document).expect("texts by name").0);
    variables.unwrap_or_default()
}

/// All resources of a proxy, as it would ask for them.
fn configuration(graph: &Graph, key: &ProxyKey) -> Value {
    let client = graph.peek::<ClientOf>(key);
    let clusters = graph.peek::<Clusters>(key);
    let listeners = graph.peek::<Listeners>(key);
    let mut routes = BTreeSet::new();
    let listeners: Vec<Value> =
        listeners.iter().map(|listener| value("envoy.config.listener.v3.Listener", listener)).collect();
    listeners.iter().for_each(|listener| find_routes(listener, &mut routes));
    let mut endpoints = Vec::new();
    for cluster in clusters.iter().filter(|cluster| cluster.needs_endpoints) {
        let found = graph.peek::<Endpoints>(&(ProxyKey::clone(&client), cluster.name().to_owned()));
        let found = found.as_ref().as_ref().expect("every cluster has endpoints");
        endpoints.push(value("envoy.config.endpoint.v3.ClusterLoadAssignment", found));
    }
    let routes = routes.into_iter().map(|name| {
        let found = graph.peek::<Route>(&(ProxyKey::clone(&client), name));
        let found = found.as_ref().as_ref().expect("every route that a listener names exists");
        value("envoy.config.route.v3.RouteConfiguration", found)
    });
    let extensions = graph.peek::<Extensions>(&client);
    let extensions: Vec<Value> =
        extensions.iter().map(|found| value("envoy.config.core.v3.TypedExtensionConfig", found)).collect();
    let mut configuration = json!({
        "clusters": clusters.iter().map(|cluster| value("envoy.config.cluster.v3.Cluster", cluster)).collect::<Vec<_>>(),
        "endpoints": endpoints,
        "listeners": listeners,
        "routes": routes.collect::<Vec<_>>(),
    });
    if !extensions.is_empty() {
        configuration["extensions"] = Value::from(extensions);
    }
    // Agents are told of it, and only with a switch.
    if let Some(roots) = graph.peek::<TrustBundle>(&()).as_ref() {
        configuration["roots"] = json!(crate::translate::trust_bundle::roots(roots));
    }
    configuration
}

/// What patches have done to a proxy's configuration.
fn effects(graph: &Graph, key: &ProxyKey, configuration: &Value) -> Effects {
    let names = |field: &str| {
        let all = configuration[field].as_array().into_iter().flatten();
        all.filter_map(|found| found["name"].as_str()).map(str::to_owned).collect()
    };
    let client = ProxyKey::clone(&graph.peek::<ClientOf>(key));
    let asked = Asked { client, routes: names("routes"), clusters: names("clusters"), hosts: Vec::new() };
    let mut effects = graph.peek::<SharedEffects>(&asked).as_ref().clone();
    effects.absorb(&graph.peek::<OwnEffects>(key));
    effects
}

fn value(name: &str, resource: &Resource) -> Value {
    encode::to_value(name, &resource.wire.body, Style::default()).expect("it was encoded here")
}

fn find_routes(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(name) = fields.get("route_config_name").and_then(Value::as_str) {
                names.insert(name.to_owned());
            }
            fields.values().for_each(|value| find_routes(value, names));
        }
        Value::Array(items) => items.iter().for_each(|value| find_routes(value, names)),
        _ => {}
    }
}

/// Lets Envoy look at a configuration, made static so that it looks at all of it. Gives what it
/// does not like.
fn validate(name: &str, case: &Path, configuration: &Value) -> Option<String> {
    let envoy = leno_testkit::envoy::binary()?;
    let list = |field: &str| configuration[field].as_array().expect("a list").clone();
    let mut clusters = list("clusters");
    for cluster in clusters.iter_mut().filter_map(Value::as_object_mut) {
        if cluster.remove("eds_cluster_config").is_some() {
            cluster.insert("type".to_owned(), Value::from("STATIC"));
            let found =
                list("endpoints").into_iter().find(|endpoints| endpoints["cluster_name"] == cluster["name"]);
            cluster.insert("load_assignment".to_owned(), found.expect("endpoints"));
        }
    }
    let mut listeners = list("listeners");
    listeners.iter_mut().for_each(|listener| inline_routes(listener, &list("routes")));
    // Where secrets come from: the agent, which every bootstrap of Istio's knows, and the stream.
    // And where logs go.
    clusters.extend(["sds-grpc", "sds-files-grpc", "xds-grpc", "envoy_accesslog_service"].map(|name| {
        json!({
            "name": name,
            "type": "STATIC",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": { "http2_protocol_options": {} },
                },
            },
        })
    }));
    for value in clusters.iter_mut().chain(&mut listeners) {
        remove_istios(value);
    }
    let bootstrap = json!({
        "node": { "id": "golden", "cluster": "golden" },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds-grpc" } }],
            },
        },
        "static_resources": { "clusters": clusters, "listeners": listeners },
    });
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("bootstrap.json");
    fs::write(&path, bootstrap.to_string()).expect("writable");
    let output = Command::new(envoy)
        .args(["--mode", "validate", "-l", "error", "--concurrency", "1", "-c"])
        .arg(&path)
        .output()
        .expect("Envoy runs");
    let text = String::from_utf8_lossy(&output.stderr);
    (!output.status.success()).then(|| format!("{}/{name}: {text}", case.display()))
}

/// Takes out the filters that only Istio's own proxies have.
fn remove_istios(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(remove_istios),
        Value::Array(items) => {
            items.retain(|item| !item["name"].as_str().is_some_and(|name| name.starts_with("istio.")));
            items.iter_mut().for_each(remove_istios);
        }
        _ => {}
    }
}

fn inline_routes(value: &mut Value, routes: &[Value]) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::Object(rds)) = fields.remove("rds") {
                let found = routes.iter().find(|route| Some(&route["name"]) == rds.get("route_config_name"));
                fields.insert("route_config".to_owned(), found.expect("the route").clone());
            }
            fields.values_mut().for_each(|value| inline_routes(value, routes));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| inline_routes(value, routes)),
        _ => {}
    }
}

/// Whatever the order in which a mesh comes together, the result is the one of its final state.
mod incremental;
mod on_demand;

/// A whole mesh's configuration as one value, to compare with another.
pub(super) fn whole(graph: &Graph, keys: &[ProxyKey]) -> Map<String, Value> {
    keys.iter().map(|key| (format!("{key:?}"), configuration(graph, key))).collect()
}

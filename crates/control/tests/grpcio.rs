//! gRPC applications without a proxy: Python's `grpcio` with xDS channels under this control plane.
//!
//! Runs where Python and its packages can be had. `grpcio/secure.rs` has those with certificates.

#[path = "grpcio/secure.rs"]
mod secure;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use leno_control::server::{Config, Server};
use leno_testkit::wheels;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::Instant;

const REQUIREMENTS: [&str; 1] = ["grpcio==1.85.1"];

/// Nothing here takes long; what does is a bug.
const LIMIT: Duration = Duration::from_secs(60);

const TARGET: &str = "xds:///reviews.mesh:9080";

/// Who answered how often, and what went wrong.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answers {
    names: BTreeMap<String, u32>,
    errors: Vec<String>,
}

/// A Python process with servers, which calls as it is told.
struct Python {
    /// What it said first.
    ports: BTreeMap<String, u16>,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Python {
    async fn start(venv: &Path, script: &str, bootstrap: &Path, arguments: &[&str]) -> Python {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/grpcio").join(script);
        let mut child = Command::new(venv.join("bin/python"))
            .arg(script)
            .args(arguments)
            .env("GRPC_XDS_BOOTSTRAP", bootstrap)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("Python starts");
        let input = child.stdin.take().expect("a pipe");
        let mut output = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let first = tokio::time::timeout(LIMIT, output.next_line()).await.expect("in time");
        let ports = serde_json::from_str(&first.expect("readable").expect("a line")).expect("ports");
        Python { ports, input, output, _child: child }
    }

    async fn ask<A: DeserializeOwned>(&mut self, request: Value) -> A {
        self.input.write_all(format!("{request}\n").as_bytes()).await.expect("it reads");
        let line = tokio::time::timeout(LIMIT, self.output.next_line()).await.expect("in time");
        serde_json::from_str(&line.expect("readable").expect("a line")).expect("an answer")
    }

    /// Asks until the answer is as it should be.
    async fn until<A>(&mut self, what: &str, request: Value, holds: impl Fn(&A) -> bool)
    where
        A: DeserializeOwned + Debug,
    {
        let deadline = Instant::now() + LIMIT;
        loop {
            let answers: A = self.ask(request.clone()).await;
            if holds(&answers) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {answers:?}");
        }
    }

    /// A service with some of the servers, each with its name as its version.
    fn service(&self, names: &[&str]) -> String {
        let endpoints: Vec<String> = names
            .iter()
            .map(|name| {
                let port = self.ports[*name];
                format!("{{address: 127.0.0.1, ports: {{grpc: {port}}}, labels: {{version: {name}}}}}")
            })
            .collect();
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: reviews}}\n\
             spec: {{hosts: [reviews.mesh], resolution: STATIC, ports: [{{number: 9080, name: grpc, protocol: GRPC}}], \
             endpoints: [{}]}}\n---\n",
            endpoints.join(", ")
        )
    }
}

fn rule(kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: reviews}}\nspec: {spec}\n---\n"
    )
}

fn write(folder: &Path, text: &str) {
    fs::write(folder.join("draft"), text).expect("writable");
    fs::rename(folder.join("draft"), folder.join("mesh.yaml")).expect("renamable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_without_proxies() {
    let venv = match wheels::venv("grpcio-1.85.1", &REQUIREMENTS) {
        Ok(venv) => venv,
        Err(reason) => return println!("skipped: no grpcio: {reason}"),
    };
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = Config::new(vec![folder.path().to_owned()]);
    config.grpc_addr.set_port(0);
    config.http_addr.set_port(0);
    let server = Server::bind(config).await.expect("free ports");
    let pilot = server.grpc_addr().expect("an address");
    tokio::spawn(server.run(std::future::pending()));
    let own = tempfile::tempdir().expect("a folder");
    let bootstrap = own.path().join("bootstrap.json");
    let content = json!({
        "xds_servers": [{
            "server_uri": pilot.to_string(),
            "channel_creds": [{ "type": "insecure" }],
            "server_features": ["xds_v3"],
        }],
        "node": {
            "id": "sidecar~127.0.0.1~client.default~default.svc.cluster.local",
            "metadata": { "GENERATOR": "grpc", "NAMESPACE": "default" },
        },
    });
    fs::write(&bootstrap, content.to_string()).expect("writable");
    let mut python = Python::start(&venv, "echo.py", &bootstrap, &["v1", "v2", "v3"]).await;
    let calls = |count: u32| json!({ "do": "calls", "target": TARGET, "count": count });

    // From LDS to EDS; all endpoints take part.
    write(folder.path(), &python.service(&["v1", "v2"]));
    let found: Answers = python.ask(calls(20)).await;
    assert!(found.errors.is_empty() && found.names.len() == 2, "{found:?}");

    // By weight, and by header.
    let subsets = "{host: reviews.mesh, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}";
    let routes = "{hosts: [reviews.mesh], http: [\
        {match: [{headers: {x-version: {exact: v2}}}], route: [{destination: {host: reviews.mesh, subset: v2}}]}, \
        {route: [{destination: {host: reviews.mesh, subset: v1}, weight: 80}, {destination: {host: reviews.mesh, subset: v2}, weight: 20}]}]}";
    let split =
        python.service(&["v1", "v2"]) + &rule("DestinationRule", subsets) + &rule("VirtualService", routes);
    write(folder.path(), &split);
    let chosen = json!({ "do": "calls", "target": TARGET, "count": 20, "metadata": [["x-version", "v2"]] });
    python
        .until("a header chooses", chosen, |found: &Answers| {
            found.errors.is_empty() && found.names.get("v2") == Some(&20)
        })
        .await;
    let found: Answers = python.ask(calls(400)).await;
    let first = found.names.get("v1").copied().unwrap_or_default();
    // A fair coin would have to be thrown for ages to miss this.
    assert!(found.errors.is_empty() && (260..=380).contains(&first), "{found:?}");

    // Calls are tried again as a rule says.
    let retries = "{hosts: [reviews.mesh], http: [{route: [{destination: {host: reviews.mesh}}], retries: {attempts: 3, retryOn: unavailable}}]}";
    write(folder.path(), &(python.service(&["v1", "v2"]) + &rule("VirtualService", retries)));
    let failing = json!({ "do": "calls", "target": TARGET, "count": 3, "fail": 2 });
    python.until("tried again", failing, |found: &Answers| found.errors.is_empty()).await;

    // What cannot be honoured does no harm: gRPC counts failures by their share only.
    let outliers = "{host: reviews.mesh, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 3m}}}";
    write(folder.path(), &(python.service(&["v1", "v2"]) + &rule("DestinationRule", outliers)));
    let failing = json!({ "do": "calls", "target": TARGET, "count": 10, "fail": 9 });
    python.until("failures", failing, |found: &Answers| found.errors.len() == 10).await;
    python
        .until("both", calls(20), |found: &Answers| found.errors.is_empty() && found.names.len() == 2)
        .await;

    // What hashes alike goes to the same endpoint.
    let hash =
        "{host: reviews.mesh, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}}";
    write(folder.path(), &(python.service(&["v1", "v2", "v3"]) + &rule("DestinationRule", hash)));
    let same = json!({ "do": "calls", "target": TARGET, "count": 30, "metadata": [["x-user", "one"]] });
    python.until("stays", same, |found: &Answers| found.errors.is_empty() && found.names.len() == 1).await;
    let others = json!({ "do": "calls", "target": TARGET, "count": 60, "vary": "x-user" });
    python
        .until("spreads", others, |found: &Answers| found.errors.is_empty() && found.names.len() == 3)
        .await;

    // Endpoints come and go, and no call fails.
    write(folder.path(), &python.service(&["v1", "v2"]));
    python.until("two", calls(20), |found: &Answers| found.errors.is_empty() && found.names.len() == 2).await;
    python.ask::<Answers>(json!({ "do": "load", "target": TARGET })).await;
    for names in [&["v2", "v3"][..], &["v3", "v1"], &["v1"], &["v1", "v2", "v3"]] {
        write(folder.path(), &python.service(names));
        python
            .until("the endpoints", json!({ "do": "take", "count": 20 }), |found: &Answers| {
                assert!(found.errors.is_empty(), "{found:?}");
                found.names.keys().eq(names.iter().collect::<std::collections::BTreeSet<_>>())
            })
            .await;
    }
    let found: Answers = python.ask(json!({ "do": "stop" })).await;
    assert!(found.errors.is_empty(), "{found:?}");
}

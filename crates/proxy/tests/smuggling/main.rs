//! HTTP/1.1 requests that two parsers may read differently, sent through our proxy and the real
//! Envoy before a strict and a lax server (`backend`). `generate` makes some thousand of them from
//! a seed: each has a request `a` and, in its body or behind it, a request `b`.
//!
//! Every request that a proxy forwards carries a header that only the proxy adds. So:
//! - a server that reads a request without it was fooled: bytes of one request were taken for
//!   another (smuggling). So was one that reads two cases in one request. Neither may happen;
//! - the strict server must find nothing wrong with what we send;
//! - we must not forward what Envoy refuses, but for `DEVIATIONS`.
//!
//! `SMUGGLING_CASES` and `SMUGGLING_SEED` make other runs; `SMUGGLING_ONLY=N` runs one case and
//! shows it.

mod backend;
mod generate;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;

use crate::backend::{Backend, Seen};
use crate::generate::Case;
use crate::support::{PATIENCE, Proxy};

/// Conversations at once.
const AT_ONCE: usize = 96;

/// What we forward and Envoy refuses, on purpose (docs/deviations.md).
const DEVIATIONS: &[fn(&Case) -> bool] = &[
    // `http://host?query` as a target means the path `/`, where Envoy answers 404.
    |case| case.changes.iter().any(|change| change.starts_with("target: ") && change.contains(".test?")),
];

const SERVERS: [&str; 2] = ["strict", "lax"];

fn bootstrap(ports: [u16; 2]) -> String {
    let mut listeners = String::new();
    let mut clusters = String::new();
    for (name, port) in SERVERS.into_iter().zip(ports) {
        listeners += &format!(
            r#"
  - name: {name}
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {name}
          request_timeout: 0.3s
          request_headers_timeout: 0.3s
          delayed_close_timeout: 0.05s
          common_http_protocol_options: {{idle_timeout: 0.3s}}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{prefix: "/"}}
                route: {{cluster: {name}, timeout: 2s}}
                request_headers_to_add: [{{header: {{key: x-forwarded-by-proxy, value: "yes"}}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}}]
          http_filters:
          - name: router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}"#
        );
        clusters += &format!(
            r#"
  - name: {name}
    connect_timeout: 2s
    type: STATIC
    load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}"#
        );
    }
    format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\nstatic_resources:\n  \
         listeners:{listeners}\n  clusters:{clusters}\n"
    )
}

/// A proxy before its two servers.
struct Fronted {
    proxy: Proxy,
    /// By server.
    ports: [SocketAddr; 2],
    servers: [Backend; 2],
}

impl Fronted {
    async fn start(name: &'static str, folder: &Path, envoy: Option<&Path>) -> Self {
        let servers = [Backend::start(true).await, Backend::start(false).await];
        let text = bootstrap([servers[0].port, servers[1].port]);
        let proxy = tokio::task::block_in_place(|| Proxy::start(name, folder, envoy, |_| text));
        let ports = SERVERS.map(|server| proxy.port(server));
        Self { proxy, ports, servers }
    }

    /// Sends the cases to one server; what it read of each, by case and id.
    async fn run(&self, cases: &Arc<Vec<Case>>, server: usize) -> Side {
        let _ = self.servers[server].take();
        let limit = Arc::new(Semaphore::new(AT_ONCE));
        let mut running = tokio::task::JoinSet::new();
        let port = self.ports[server];
        for (index, case) in cases.iter().enumerate() {
            let permit = Arc::clone(&limit).acquire_owned().await.expect("never closed");
            let (bytes, last) = (case.bytes.clone(), format!("{}b", case.tag()));
            running.spawn(async move {
                let answers = converse(port, &bytes, &last).await;
                drop(permit);
                (index, answers)
            });
        }
        let mut answers = vec![String::new(); cases.len()];
        while let Some(done) = running.join_next().await {
            let (index, text) = done.expect("no panic");
            answers[index] = text;
        }
        Side { answers, seen: self.servers[server].take() }
    }
}

/// What came of the cases before one server.
struct Side {
    /// What the client got, by case.
    answers: Vec<String>,
    /// What the server read.
    seen: Vec<Seen>,
}

impl Side {
    /// Whether the proxy forwarded this request.
    fn forwarded(&self, id: &str) -> bool {
        self.seen.iter().any(|seen| seen.marked && seen.ids.iter().any(|other| other == id))
    }
}

/// Sends the bytes and reads until the proxy closes, or has answered the last request.
async fn converse(port: SocketAddr, bytes: &[u8], last: &str) -> String {
    let mut text = Vec::new();
    let talk = async {
        let mut stream = tokio::net::TcpStream::connect(port).await?;
        // A refusal may come, and the connection close, before all is written.
        let _ = stream.write_all(bytes).await;
        let mut buffer = [0; 4096];
        loop {
            let count = stream.read(&mut buffer).await?;
            text.extend_from_slice(&buffer[..count]);
            let answered = String::from_utf8_lossy(&text).contains(&format!("x-seen: {last}\r\n"));
            if count == 0 || answered {
                return std::io::Result::Ok(());
            }
        }
    };
    match tokio::time::timeout(PATIENCE, talk).await {
        Ok(_) => String::from_utf8_lossy(&text).into_owned(),
        Err(_) => "NO END".to_owned(),
    }
}

/// What is wrong with what a server read.
fn problems(seen: &[Seen], strict: bool) -> Vec<String> {
    let mut problems = Vec::new();
    for seen in seen {
        let mut tags: Vec<&str> = seen.ids.iter().map(|id| id.trim_end_matches(['a', 'b'])).collect();
        tags.dedup();
        if !seen.marked {
            problems.push(format!("smuggled: {}", seen.text));
        } else if tags.len() > 1 {
            problems.push(format!("several cases in one request: {}", seen.text));
        } else if let (true, Some(reason)) = (strict, &seen.malformed) {
            problems.push(format!("malformed ({reason}): {}", seen.text));
        }
    }
    problems
}

/// Requests that we forward and Envoy does not: (case, id).
fn more_than_envoy(cases: &[Case], ours: &Side, envoys: &Side) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        for id in ["a", "b"].map(|id| format!("{}{id}", case.tag())) {
            if ours.forwarded(&id) && !envoys.forwarded(&id) {
                found.push((index, id));
            }
        }
    }
    found
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn nothing_is_smuggled() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(compare());
}

async fn compare() {
    let envoy = leno_testkit::envoy::binary();
    let count = usize::try_from(number("SMUGGLING_CASES").unwrap_or(3000)).expect("a count");
    let seed = number("SMUGGLING_SEED").unwrap_or(1);
    let mut cases = generate::cases(seed, count);
    let only = number("SMUGGLING_ONLY");
    cases.retain(|case| only.is_none_or(|only| case.number as u64 == only));
    let cases = Arc::new(cases);
    let folder = tempfile::tempdir().expect("a folder");
    let ours = Fronted::start("ours", folder.path(), None).await;
    let envoy = match &envoy {
        Some(envoy) => Some(Fronted::start("envoy", folder.path(), Some(envoy)).await),
        None => None,
    };
    let mut failures = Vec::new();
    for (server, kind) in SERVERS.into_iter().enumerate() {
        let (own, envoys) = tokio::join!(ours.run(&cases, server), async {
            match &envoy {
                Some(envoy) => Some(envoy.run(&cases, server).await),
                None => None,
            }
        });
        failures
            .extend(problems(&own.seen, kind == "strict").into_iter().map(|text| format!("{kind}: {text}")));
        let hung = own.answers.iter().zip(cases.iter()).filter(|(answers, _)| *answers == "NO END");
        failures.extend(hung.map(|(_, case)| format!("{kind}: no end: {case}")));
        let Some(envoys) = envoys else { continue };
        if only.is_some() {
            for case in cases.iter() {
                println!(
                    "{case}\nours: {:?}\n{:#?}\nEnvoy: {:?}\n{:#?}",
                    own.answers, own.seen, envoys.answers, envoys.seen
                );
            }
        }
        let fooled = problems(&envoys.seen, kind == "strict");
        let forwarded = |side: &Side| {
            let ids = cases.iter().flat_map(|case| ["a", "b"].map(|id| format!("{}{id}", case.tag())));
            ids.filter(|id| side.forwarded(id)).count()
        };
        println!(
            "{kind} server: {} cases; forwarded: {} by us, {} by Envoy; found wrong by the server: {} of ours, {} of Envoy's",
            cases.len(),
            forwarded(&own),
            forwarded(&envoys),
            problems(&own.seen, kind == "strict").len(),
            fooled.len()
        );
        let mut fooled_by: BTreeMap<&str, usize> = BTreeMap::new();
        for text in &fooled {
            *fooled_by.entry(text.split(':').next().unwrap_or_default()).or_default() += 1;
        }
        println!("  Envoy's: {fooled_by:?}");
        // A timeout on a busy machine looks like a refusal: only what comes out so alone counts.
        for (index, id) in more_than_envoy(&cases, &own, &envoys) {
            let case = Arc::new(vec![cases[index].clone()]);
            let (own, envoys) = match &envoy {
                Some(envoy) => (ours.run(&case, server).await, envoy.run(&case, server).await),
                None => continue,
            };
            if more_than_envoy(&case, &own, &envoys).is_empty() {
                continue;
            }
            let case = &cases[index];
            let known = DEVIATIONS.iter().any(|deviation| deviation(case));
            if !known {
                failures.push(format!(
                    "{kind}: forwarded {id}, which Envoy refuses: {case}\n  Envoy: {:?}",
                    envoys.answers
                ));
            }
        }
    }
    ours.proxy.stop();
    if let Some(envoy) = envoy {
        envoy.proxy.stop();
    }
    let shown: Vec<String> = failures.iter().take(20).cloned().collect();
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), shown.join("\n"));
}

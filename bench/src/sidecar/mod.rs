//! What a sidecar holds in a large mesh: the memory of a proxy that our control plane configures, before its
//! workload has called anything, and after it has called some services of all that there are.
//!
//! The control plane is a process of its own, over a folder; the proxies (ours, then Envoy) have the same
//! node. What the workload sends comes to the proxy's outbound port with a PROXY protocol header in place of
//! an original destination, so that neither root nor redirection is needed. All endpoints are addresses of
//! 127.0.0.0/8, behind which this process answers.
//!
//! A JSON line for each proxy and number of called services: `rss_mb`, of it `anonymous_mb` (what is not
//! mapped from files), `peak_mb` since the start, with how many clusters and listeners it has; and
//! `first_call_ms`, the longest that the first call of a service took.

mod agent;
mod mesh;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use self::mesh::Mesh;
use crate::machine;
use crate::peers::{Peer, free_port};
use crate::push::Control;

/// How long what a proxy has must stay the same for it to have all, and how long it must do nothing then.
const STILL: Duration = Duration::from_secs(2);

/// What does not come in this time does not come.
const LIMIT: Duration = Duration::from_secs(180);

/// How often each service is called: all workers are to know it, and all of its endpoints.
const TIMES: usize = 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Services of the mesh, each with a port for HTTP and one for bytes
    #[arg(long, default_value_t = 1000, value_name = "N")]
    services: usize,
    /// Endpoints of each
    #[arg(long, default_value_t = 10, value_name = "N")]
    endpoints: usize,
    /// The endpoints are pods, of which the mesh knows who they are; those that are not called speak mutual TLS
    #[arg(long)]
    pods: bool,
    /// How many services the workload calls, one number after the other
    #[arg(long, default_value = "5,100", value_delimiter = ',', value_name = "N,N")]
    calls: Vec<usize>,
    /// Of how many services the workload's proxy is told by a Sidecar; without, of all
    #[arg(long, value_name = "N")]
    scoped: Option<usize>,
    /// The proxies are told of all virtual hosts, and ask for clusters only
    #[arg(long)]
    whole_tables: bool,
    /// Workers of the proxies
    #[arg(long, default_value_t = 2, value_name = "N")]
    concurrency: usize,
    /// The `leno` to measure; by default the proxy in this binary, which maps more than `leno`
    #[arg(long, value_name = "PATH")]
    proxy: Option<PathBuf>,
    /// How long a proxy is left alone before its memory is looked at: what only a change needed is given
    /// back when that is some seconds ago
    #[arg(long, default_value_t = 15, value_name = "SECONDS")]
    settling: u64,
    /// Measure ours alone
    #[arg(long)]
    alone: bool,
    /// Keep configurations and logs in this folder
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
    /// Write the figures to this file as a table
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// Measures; prints a JSON line for each proxy and number of called services.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    ensure!(arguments.services > 0 && arguments.concurrency > 0, "at least one of each");
    let cores = machine::cores()?;
    let temporary = tempfile::tempdir()?;
    let folder = arguments.keep.as_deref().unwrap_or(temporary.path());
    let mesh = Mesh {
        services: arguments.services,
        endpoints: arguments.endpoints,
        pods: arguments.pods,
        calls: arguments.calls.clone(),
        scoped: arguments.scoped,
        ports: [free_port()?, free_port()?],
        backend: mesh::serve()?,
    };
    std::fs::create_dir_all(folder.join("mesh"))?;
    let agent = agent::start(folder)?;
    std::fs::write(folder.join("mesh/mesh.yaml"), mesh.text())?;
    let control = Control::start(folder, &folder.join("mesh"), None, !arguments.whole_tables)?;
    let mut peers = vec![match &arguments.proxy {
        Some(path) => Peer::leno(path.clone()),
        None => Peer::leno(std::env::current_exe()?),
    }];
    if !arguments.alone {
        match leno_testkit::envoy::binary() {
            Some(path) => peers.push(Peer::envoy(path)),
            None => eprintln!("there is no Envoy to measure beside"),
        }
    }
    let mut lines = Vec::new();
    for peer in peers {
        let measured = measure(arguments, &peer, &mesh, [control.address, agent], folder, &cores, &mut lines);
        measured.with_context(|| peer.name)?;
    }
    if let Some(path) = &arguments.markdown {
        std::fs::write(path, table(&lines))?;
    }
    Ok(true)
}

fn measure(
    arguments: &Arguments,
    peer: &Peer,
    mesh: &Mesh,
    servers: [SocketAddr; 2],
    folder: &std::path::Path,
    cores: &[usize],
    lines: &mut Vec<Value>,
) -> Result<()> {
    let admin = free_port()?;
    let config = folder.join(format!("{}.yaml", peer.name));
    std::fs::write(&config, bootstrap(admin, servers))?;
    let mut running = peer.start(&config, admin, arguments.concurrency, cores)?;
    for called in std::iter::once(0).chain(arguments.calls.iter().copied()) {
        let first = (called > 0).then(|| mesh.call(called, TIMES)).transpose()?;
        let [clusters, listeners] = settle(running.address)?;
        mesh::wait_until_idle(running.pid(), STILL, LIMIT)?;
        machine::pause(Duration::from_secs(arguments.settling));
        running.check()?;
        let memory = |field| (machine::memory(running.pid(), field) * 10.0).round() / 10.0;
        let line = json!({
            "proxy": peer.name,
            "services": arguments.services,
            "endpoints": arguments.endpoints,
            "pods": arguments.pods,
            "scoped": arguments.scoped,
            "whole_tables": arguments.whole_tables,
            "concurrency": arguments.concurrency,
            "called": called,
            "clusters": clusters,
            "listeners": listeners,
            "rss_mb": memory("VmRSS"),
            "anonymous_mb": memory("RssAnon"),
            "peak_mb": memory("VmHWM"),
            "first_call_ms": first.map(|first| (first.as_secs_f64() * 10_000.0).round() / 10.0),
        });
        println!("{line}");
        lines.push(line);
    }
    Ok(())
}

/// The figures as a table.
fn table(lines: &[Value]) -> String {
    let mut text =
        "| proxy | services called | clusters | listeners | resident, MB | of it anonymous | peak | first call, ms |\n\
         |---|---|---|---|---|---|---|---|\n"
            .to_owned();
    let fields =
        ["proxy", "called", "clusters", "listeners", "rss_mb", "anonymous_mb", "peak_mb", "first_call_ms"];
    for line in lines {
        let cells = fields.map(|field| match line.get(field) {
            Some(Value::String(text)) => text.clone(),
            None | Some(Value::Null) => "–".to_owned(),
            Some(value) => value.to_string(),
        });
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

/// A sidecar of a workload of the first service.
fn bootstrap(admin: u16, [control, agent]: [SocketAddr; 2]) -> String {
    let cluster = |name: &str, address: SocketAddr| {
        let (ip, port) = (address.ip(), address.port());
        format!(
            r#"  - name: {name}
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}]}}]}}
"#
        )
    };
    let clusters = [cluster("xds-grpc", control), cluster("sds-grpc", agent)].concat();
    format!(
        r#"
node:
  id: sidecar~10.200.0.1~svc-0-1.ns-0~ns-0.svc.cluster.local
  cluster: svc-0.ns-0
  metadata:
    NAMESPACE: ns-0
    NAME: svc-0-1
    WORKLOAD_NAME: svc-0
    CLUSTER_ID: Kubernetes
    MESH_ID: cluster.local
    ISTIO_VERSION: 1.30.0
    INTERCEPTION_MODE: REDIRECT
    LABELS: {{app: svc-0, version: v1, security.istio.io/tlsMode: istio}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
dynamic_resources:
  lds_config: {{ads: {{}}, resource_api_version: V3}}
  cds_config: {{ads: {{}}, resource_api_version: V3}}
  ads_config: {{api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: xds-grpc}}}}]}}
static_resources:
  clusters:
{clusters}"#
    )
}

/// Waits until the proxy gets no more clusters and listeners; how many there are.
fn settle(admin: SocketAddr) -> Result<[u64; 2]> {
    let end = Instant::now() + LIMIT;
    let (mut last, mut since) = ([0, 0], Instant::now());
    loop {
        let now = counts(admin).unwrap_or_default();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        // Beside those of the bootstrap there must be some.
        if now[0] > 1 && now[1] > 0 && since.elapsed() >= STILL {
            return Ok(now);
        }
        if Instant::now() > end {
            bail!("has {now:?} clusters and listeners after {LIMIT:?}");
        }
        machine::pause(STILL / 4);
    }
}

fn counts(admin: SocketAddr) -> std::io::Result<[u64; 2]> {
    let filter = "^(cluster_manager.active_clusters|listener_manager.total_listeners_active)$";
    let text = mesh::admin(admin, &format!("/stats?filter={filter}"))?;
    let value = |name: &str| {
        let found = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
        found.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    Ok([value("cluster_manager.active_clusters"), value("listener_manager.total_listeners_active")])
}

//! The bookinfo sample without `leno up`: `leno pilot` over a folder, as a process, the sample's services
//! as processes, and beside each of them a proxy; in front of all a gateway. All proxies are the real
//! Envoy, or ours. Nothing is redirected (`INTERCEPTION_MODE: NONE`): each workload has a loopback address
//! of its own, its sidecar listens there, and services call each other through it as an HTTP proxy.
//!
//! Rules of the sample are put into the folder while people look at the page, and none of them ever
//! sees an error.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use leno_testkit::process::Killed;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Nothing takes that long unless it hangs; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(90);
/// Where sidecars take requests.
const INBOUND: u16 = 9080;
/// Where services do.
const APPLICATION: u16 = 9081;
/// Where sidecars are HTTP proxies.
const OUTBOUND: u16 = 15080;
/// How many looks in a row show that a rule is in force: without one all versions take turns.
const IN_A_ROW: usize = 12;

/// The workloads of the sample: name, service, variables.
#[allow(clippy::type_complexity, reason = "a table")]
const WORKLOADS: [(&str, &str, &[(&str, &str)]); 6] = [
    ("productpage-v1", "productpage", &[]),
    ("details-v1", "details", &[]),
    ("ratings-v1", "ratings", &[]),
    ("reviews-v1", "reviews", &[]),
    ("reviews-v2", "reviews", &[("ENABLE_RATINGS", "true")]),
    ("reviews-v3", "reviews", &[("ENABLE_RATINGS", "true"), ("STAR_COLOR", "red")]),
];

/// Loopback addresses that nobody uses: a network of the test's own among 65,536.
struct Network(u8, u8);

impl Network {
    fn find() -> Network {
        // Tests of one process never try the same one.
        static TRIED: AtomicU32 = AtomicU32::new(0);
        let seed = std::process::id().wrapping_mul(2_654_435_761);
        for _ in 0..256 {
            let [_, _, a, b] = seed.wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed)).to_be_bytes();
            let network = Network(a.max(1), b);
            let free = |last| std::net::TcpListener::bind((network.address(last), INBOUND)).is_ok();
            if (1..=WORKLOADS.len() + 1).all(free) {
                return network;
            }
        }
        panic!("all loopback networks are in use")
    }

    /// The address of the workload with a number.
    fn address(&self, number: usize) -> Ipv4Addr {
        Ipv4Addr::new(127, self.0, self.1, u8::try_from(number).expect("few"))
    }
}

fn free(address: Ipv4Addr) -> SocketAddr {
    (address, leno_testkit::ports::free()).into()
}

/// Whose proxies run, and by which variant of xDS.
#[derive(Clone, Debug)]
struct Kind {
    name: &'static str,
    program: Vec<String>,
    delta: bool,
}

struct Shop {
    folder: tempfile::TempDir,
    gateway: SocketAddr,
    _processes: Vec<Killed>,
}

impl Shop {
    fn start(kind: &Kind) -> Shop {
        let folder = tempfile::tempdir().expect("a folder");
        let network = Network::find();
        let gateway = free(network.address(WORKLOADS.len() + 1));
        let mut shop = Shop { folder, gateway, _processes: Vec::new() };
        std::fs::create_dir(shop.folder.path().join("mesh")).expect("a folder");
        shop.write("bookinfo.yaml", &sample("bookinfo.yaml"));
        shop.write("destination-rules.yaml", &sample("rules/destination-rules.yaml"));
        let own = format!("number: {}", gateway.port());
        let entry = sample("gateway.yaml").replacen("number: 8080", &own, 1);
        let bind = format!("servers:\n    - bind: {}\n      port:", gateway.ip());
        let entry = entry.replacen("servers:\n    - port:", &bind, 1);
        assert!(entry.contains(&own) && entry.contains(&bind), "the sample's gateway is another: {entry}");
        shop.write("gateway.yaml", &entry);
        shop.write("without-redirection.yaml", &sidecar());
        let pods = WORKLOADS.iter().enumerate().map(|(number, (name, service, _))| {
            pod(
                name,
                &json!({ "app": service, "version": &name[name.len() - 2..] }),
                network.address(number + 1),
            )
        });
        let ingress = json!({ "istio": "ingressgateway" });
        let all: Vec<String> = pods
            .chain([pod("gateway", &ingress, network.address(WORKLOADS.len() + 1))])
            .map(|pod| format!("---\n{pod}\n"))
            .collect();
        shop.write("pods.yaml", &all.concat());

        let (grpc, http) = (free(Ipv4Addr::LOCALHOST), free(Ipv4Addr::LOCALHOST));
        let mut pilot = Command::new(env!("CARGO_BIN_EXE_leno"));
        pilot.args(["pilot", "--dir"]).arg(shop.folder.path().join("mesh"));
        pilot.args(["--grpcAddr", &grpc.to_string(), "--monitoringAddr", &http.to_string()]);
        let mut processes = vec![Killed::start(&mut pilot, &shop.folder.path().join("pilot.log"))];
        for (number, (name, service, variables)) in WORKLOADS.iter().enumerate() {
            let address = network.address(number + 1);
            let proxy = SocketAddrV4::new(address, OUTBOUND);
            let mut command = Command::new(env!("CARGO_BIN_EXE_leno"));
            command.args(["sample", "bookinfo", service, &APPLICATION.to_string()]);
            command.env("LISTEN_ADDRESS", address.to_string()).env("HOSTNAME", format!("{name}-0"));
            command.env("HTTP_PROXY", format!("http://{proxy}")).env("NO_PROXY", "");
            command.envs(variables.iter().copied());
            processes.push(Killed::start(&mut command, &shop.folder.path().join(format!("{name}.log"))));
            processes.push(shop.proxy(kind, name, address, "sidecar", grpc));
        }
        processes.push(shop.proxy(kind, "gateway", network.address(WORKLOADS.len() + 1), "router", grpc));
        shop._processes = processes;
        shop
    }

    /// Starts the proxy of a workload.
    fn proxy(&self, kind: &Kind, name: &str, address: Ipv4Addr, role: &str, pilot: SocketAddr) -> Killed {
        let own = |suffix: &str| self.folder.path().join(format!("{name}-proxy.{suffix}"));
        let app = WORKLOADS.iter().find(|it| it.0 == name).map_or("ingressgateway", |it| it.1);
        let labels = match role {
            "router" => json!({ "istio": app }),
            _ => json!({ "app": app, "version": &name[name.len() - 2..] }),
        };
        let node = json!({
            "id": format!("{role}~{address}~{name}.default~default.svc.cluster.local"),
            "cluster": format!("{app}.default"),
            "metadata": { "LABELS": labels, "NAMESPACE": "default", "INTERCEPTION_MODE": "NONE" },
        });
        std::fs::write(own("json"), bootstrap(&node, pilot, kind.delta).to_string()).expect("writable");
        let (program, arguments) = kind.program.split_first().expect("a program");
        let mut command = Command::new(program);
        command.args(arguments).args(["--concurrency", "1", "-l", "warning", "--admin-address-path"]);
        command.arg(own("admin")).arg("-c").arg(own("json"));
        Killed::start(&mut command, &own("log"))
    }

    /// Puts a file into the folder of the mesh, in one step.
    fn write(&self, name: &str, text: &str) {
        let draft = self.folder.path().join("draft");
        std::fs::write(&draft, text).expect("writable");
        std::fs::rename(draft, self.folder.path().join("mesh").join(name)).expect("movable");
    }

    /// What a request to the gateway comes to: the status, and the body.
    async fn look(&self, path: &str, headers: &str) -> Result<(u16, String), std::io::Error> {
        look(self.gateway, path, headers).await
    }

    /// Looks until the page is as it should be so many times in a row.
    async fn until(&self, what: &str, headers: &str, good: impl Fn(&str) -> bool) {
        let start = Instant::now();
        let mut in_a_row = 0;
        while in_a_row < IN_A_ROW {
            let seen = self.look("/productpage", headers).await;
            let fits = matches!(&seen, Ok((200, body)) if good(body));
            in_a_row = if fits { in_a_row + 1 } else { 0 };
            if start.elapsed() > PATIENCE {
                panic!("{what}: {seen:?}\n{}", self.logs());
            }
            if !fits {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// All that was said.
    fn logs(&self) -> String {
        let files =
            std::fs::read_dir(self.folder.path()).expect("readable").flatten().map(|file| file.path());
        let logs = files.filter(|path| path.extension().is_some_and(|end| end == "log"));
        let text = |path: PathBuf| {
            format!("{}:\n{}\n", path.display(), std::fs::read_to_string(&path).unwrap_or_default())
        };
        logs.map(text).collect()
    }

    /// What proxies have refused: how often, by the proxy and the counter.
    async fn refusals(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for name in WORKLOADS.iter().map(|it| it.0).chain(["gateway"]) {
            let admin = std::fs::read_to_string(self.folder.path().join(format!("{name}-proxy.admin")));
            let admin: SocketAddr = admin.expect("it runs").trim().parse().expect("an address");
            let (status, page) = look(admin, "/stats?filter=update_rejected", "").await.expect("an answer");
            assert_eq!(status, 200, "{name}: {page}");
            let stats: Vec<_> = page.lines().filter_map(|line| line.split_once(": ")).collect();
            assert!(stats.len() >= 2, "{name}: {page}");
            for (stat, value) in stats {
                let value = value.trim().parse().expect("a number");
                if value > 0 {
                    all.insert(format!("{name} {stat}"), value);
                }
            }
        }
        all
    }
}

async fn look(to: SocketAddr, path: &str, headers: &str) -> Result<(u16, String), std::io::Error> {
    let mut stream = TcpStream::connect(to).await?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok((status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
}

fn sample(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../samples/bookinfo").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Without redirection a sidecar must be told where its workload listens.
fn sidecar() -> String {
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "Sidecar",
        "metadata": { "name": "default", "namespace": "default" },
        "spec": {
            "ingress": [{
                "port": { "number": INBOUND, "name": "http", "protocol": "HTTP" },
                "defaultEndpoint": format!("0.0.0.0:{APPLICATION}"),
            }],
            "egress": [{ "hosts": ["./*"] }],
        },
    })
    .to_string()
}

fn pod(name: &str, labels: &Value, address: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "labels": labels },
        "spec": { "containers": [{ "name": "app", "image": "app" }] },
        "status": {
            "phase": "Running",
            "podIP": address.to_string(),
            "podIPs": [{ "ip": address.to_string() }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

fn bootstrap(node: &Value, pilot: SocketAddr, delta: bool) -> Value {
    let source = json!({ "ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s" });
    let address = json!({ "socket_address": { "address": "127.0.0.1", "port_value": pilot.port() } });
    json!({
        "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } } },
        "node": node,
        "dynamic_resources": {
            "ads_config": {
                "api_type": if delta { "DELTA_GRPC" } else { "GRPC" },
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds-grpc" } }],
            },
            "cds_config": source,
            "lds_config": source,
        },
        "static_resources": { "clusters": [{
            "name": "xds-grpc",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": { "http2_protocol_options": {} },
                },
            },
            "load_assignment": {
                "cluster_name": "xds-grpc",
                "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
            },
        }] },
    })
}

async fn shop(kind: &Kind) {
    let begun = Instant::now();
    let shop = Arc::new(Shop::start(kind));
    shop.until("the page has all its parts", "", |body| {
        body.contains("Publisher") && body.contains("reviews-v")
    })
    .await;
    let ready = begun.elapsed();
    let (made, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let people = {
        let (shop, made, over) = (Arc::clone(&shop), Arc::clone(&made), Arc::clone(&over));
        tokio::spawn(async move {
            let mut failed = Vec::new();
            while !over.load(Ordering::Relaxed) {
                match shop.look("/productpage", "").await {
                    // The page says itself what it could not get.
                    Ok((200, body)) if body.contains("Publisher") && body.contains("reviews-v") => {}
                    other => failed.push(format!("{other:?}")),
                }
                made.fetch_add(1, Ordering::Relaxed);
            }
            failed
        })
    };
    let jason = "end-user: jason\r\n";
    let of = |version: &'static str| move |body: &str| body.contains(&format!("reviews-{version}-"));
    shop.write("reviews.yaml", &sample("rules/reviews-all-v1.yaml"));
    shop.until("all from v1", "", |body| of("v1")(body) && !body.contains('★')).await;
    shop.write("reviews.yaml", &sample("rules/reviews-all-v3.yaml"));
    shop.until("all from v3, with stars", "", |body| of("v3")(body) && body.contains('★')).await;
    shop.write("reviews.yaml", &sample("rules/reviews-by-header.yaml"));
    shop.until("jason gets v2", jason, of("v2")).await;
    shop.until("others get v1", "", of("v1")).await;
    assert_eq!(shop.look("/admin", "").await.expect("an answer").0, 404);
    over.store(true, Ordering::Relaxed);
    let failed = people.await.expect("no panic");
    let made = made.load(Ordering::Relaxed);
    assert!(
        failed.is_empty(),
        "{kind:?}: {} of {made} looks failed: {:?}\n{}",
        failed.len(),
        failed.first(),
        shop.logs()
    );
    let refused = shop.refusals().await;
    assert!(refused.is_empty(), "{kind:?}: {refused:?}\n{}", shop.logs());
    println!(
        "{}, delta {}: ready after {ready:.1?}, {made} looks in {:.1?}",
        kind.name,
        kind.delta,
        begun.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_real_envoy() {
    let Some(envoy) = leno_testkit::envoy::binary() else { return println!("skipped: there is no Envoy") };
    let program = vec![envoy.display().to_string(), "--disable-hot-restart".to_owned()];
    for delta in [false, true] {
        shop(&Kind { name: "Envoy", program: program.clone(), delta }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_our_proxy() {
    let program = [env!("CARGO_BIN_EXE_leno"), "proxy"].map(str::to_owned).to_vec();
    for delta in [false, true] {
        shop(&Kind { name: "Leno", program: program.clone(), delta }).await;
    }
}

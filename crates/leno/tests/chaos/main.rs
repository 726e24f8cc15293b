//! The control plane as a process that is killed and comes back while everything changes: an API
//! server that drops watches, forgets, fails and restarts; objects that cannot be used, and some that
//! cannot even be read; clients that are slow or stuck; calendars that jump by years, of the control
//! plane and of the proxies. Traffic runs through our proxy and through Envoy all the time, and not one
//! request may fail. In the end each client holds exactly what a control plane gives that knows
//! nothing but the end, and so do both proxies, by the whole of what their admin pages show.

mod client;
mod clock;
mod dump;
mod objects;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use leno_base::Rng;
use leno_control::server::{Config, Kubernetes, Server};
use leno_testkit::http::{Action, Scripted};
use leno_testkit::kube::{ApiServer, Fault};
use leno_testkit::process::Killed;
use leno_xds::{Mode, TypeUrl};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::client::{Client, Held, Identity, Pace};
use crate::clock::Calendar;
use crate::objects::{choose, definition, gateway, malformed, rule, service, slice, versions, web};

/// Nothing takes that long unless it hangs; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(90);
const ROUNDS: u64 = 90;
/// How often the control plane is killed.
const EVERY: u64 = 18;
/// Clients; of ten, two are slow and two are stuck.
const CLIENTS: usize = 20;

/// The control plane as a process.
struct Pilot {
    process: Option<Killed>,
    grpc: SocketAddr,
    http: SocketAddr,
    kubeconfig: String,
    log: PathBuf,
    calendar: Calendar,
}

impl Pilot {
    fn start(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leno"));
        command.args(["pilot", "--kubeconfig", &self.kubeconfig, "--log_output_level", "default:info"]);
        command.args(["--grpcAddr", &self.grpc.to_string(), "--monitoringAddr", &self.http.to_string()]);
        command.args(["--secureGRPCAddr", ""]);
        let log = std::fs::File::options().create(true).append(true).open(&self.log).expect("writable");
        self.calendar.rule(&mut command);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.process = Some(Killed(child.expect("it starts")));
    }

    /// kill -9
    fn kill(&mut self) {
        self.process = None;
    }
}

/// An address that nobody else has.
fn free() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, leno_testkit::ports::free()).into()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn get(gateway: SocketAddr) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(gateway).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web.example.com\r\nConnection: close\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok((status, text.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned()))
}

/// A gateway under the control plane.
fn bootstrap(name: &str, pilot: SocketAddr, delta: bool) -> Value {
    let api = if delta { "DELTA_GRPC" } else { "GRPC" };
    let source = json!({ "ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s" });
    let address = json!({ "socket_address": { "address": "127.0.0.1", "port_value": pilot.port() } });
    json!({
        "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } } },
        "node": {
            "id": format!("router~127.0.0.1~{name}.shop~shop.svc.cluster.local"),
            "cluster": name,
            "metadata": { "LABELS": { "istio": name }, "NAMESPACE": "shop" },
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": api,
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds" } }],
            },
            "cds_config": source,
            "lds_config": source,
        },
        "static_resources": { "clusters": [{
            "name": "xds",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": { "http2_protocol_options": {} },
                },
            },
            "load_assignment": {
                "cluster_name": "xds",
                "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
            },
        }] },
    })
}

/// A product under the control plane.
struct Proxy {
    name: &'static str,
    program: Vec<String>,
    delta: bool,
    /// What it serves on.
    gateway: SocketAddr,
}

impl Proxy {
    /// Starts it; its files are in a folder.
    fn start(&self, pilot: SocketAddr, folder: &Path, calendar: &Calendar) -> Killed {
        let file = folder.join(format!("{}.json", self.name));
        std::fs::write(&file, bootstrap(self.name, pilot, self.delta).to_string()).expect("writable");
        let (first, rest) = self.program.split_first().expect("a program");
        let mut command = Command::new(first);
        command.args(rest).args(["--concurrency", "1", "-l", "warning", "--admin-address-path"]);
        command.arg(self.admin(folder)).arg("-c").arg(&file);
        calendar.rule(&mut command);
        Killed::start(&mut command, &folder.join(format!("{}.log", self.name)))
    }

    /// Where it writes the address of its admin interface.
    fn admin(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.admin", self.name))
    }
}

/// Requests through a gateway, one after the other.
struct Traffic {
    made: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Traffic {
    fn start(gateway: SocketAddr) -> Traffic {
        let (made, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stop) = (Arc::clone(&made), Arc::clone(&over));
        let task = tokio::spawn(async move {
            let start = Instant::now();
            let mut failed = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match get(gateway).await {
                    Ok((200, _)) => {}
                    other => failed.push(format!("after {:?}: {other:?}", start.elapsed())),
                }
                count.fetch_add(1, Ordering::Relaxed);
                // Both processors have more to do.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            failed
        });
        Traffic { made, over, task }
    }

    async fn stop(self) -> (usize, Vec<String>) {
        self.over.store(true, Ordering::Relaxed);
        (self.made.load(Ordering::Relaxed), self.task.await.expect("no panic"))
    }
}

/// What disturbs an API server in the course of its life.
async fn disturb(server: ApiServer, calendar: &Calendar, rng: &mut Rng) -> ApiServer {
    match rng.below(10) {
        0 => server.drop_watches(),
        1 => server.drop_connections(),
        2 => server.compact(),
        3 => server.bookmark(),
        4 => {
            let status = [500, 503, 410, 429].get(rng.index(4).unwrap_or(0)).copied().unwrap_or(500);
            server.fail(Fault::next(rng.below(20) as usize, status));
        }
        5 => server.slow_down(Duration::from_millis(rng.below(20))),
        6 => {
            server.compact();
            server.drop_watches();
        }
        7 | 8 => calendar.jump(rng),
        _ => return server.restart().await.expect("its port is free"),
    }
    server
}

/// Something changes.
fn change(server: &ApiServer, rng: &mut Rng, objects: &mut BTreeMap<(u64, u64), Value>) {
    let (kind, number) = (rng.below(4), rng.below(6));
    let name = format!("s{number}");
    let (group, plural, object) = match kind {
        0 => ("", "services", service(&name, number, 80)),
        1 => ("discovery.k8s.io", "endpointslices", slice(&name, rng.below(1000))),
        2 => ("networking.istio.io", "virtualservices", rule(&name, &name, rng.below(20))),
        _ => {
            let host = if rng.chance(1, 3) { "not a host" } else { "other.example.com" };
            ("networking.istio.io", "gateways", gateway(&name, 7000 + number as u16, host))
        }
    };
    if rng.chance(1, 4) {
        server.put(malformed(rng.below(6)));
    }
    if rng.chance(1, 4) {
        server.remove(group, plural, "shop", &name);
        objects.remove(&(kind, number));
    } else {
        server.put(object.clone());
        objects.insert((kind, number), object);
    }
}

/// Half of the clients talk by delta, and half of those ask for virtual hosts.
fn identity(number: usize) -> Identity {
    Identity {
        id: format!("sidecar~10.2.0.{number}~client-{number}.shop~shop.svc.cluster.local"),
        mode: if number.is_multiple_of(2) { Mode::Delta } else { Mode::Sotw },
        lazy: number.is_multiple_of(4),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_and_all_agree_in_the_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut server = ApiServer::start().await.expect("a port");
    for (kind, plural) in [
        ("VirtualService", "virtualservices"),
        ("DestinationRule", "destinationrules"),
        ("Gateway", "gateways"),
        ("ServiceEntry", "serviceentries"),
    ] {
        server.put(definition(kind, plural));
    }
    let one = Scripted::start(|_| Action::ok("one")).await.expect("a port");
    let two = Scripted::start(|_| Action::ok("two")).await.expect("a port");
    server.put(web([one.address.port(), two.address.port()]));
    server.put(versions());
    server.put(choose("one"));
    let leno = [env!("CARGO_BIN_EXE_leno"), "proxy"].map(str::to_owned).to_vec();
    let mut proxies = vec![Proxy { name: "ours", program: leno, delta: true, gateway: free() }];
    if let Some(path) = leno_testkit::envoy::binary() {
        let program = vec![path.display().to_string(), "--disable-hot-restart".to_owned()];
        proxies.push(Proxy { name: "envoy", program, delta: false, gateway: free() });
    }
    for proxy in &proxies {
        server.put(gateway(proxy.name, proxy.gateway.port(), "*"));
    }
    let calendar = Calendar::make(folder.path());
    // One that was never of any use.
    server.put(gateway("broken", 7777, "not a host"));

    let kubeconfig = folder.path().join("kubeconfig");
    server.write_kubeconfig(&kubeconfig).expect("writable");
    let kubeconfig_text = kubeconfig.display().to_string();
    let mut pilot = Pilot {
        process: None,
        grpc: free(),
        http: free(),
        kubeconfig: kubeconfig_text,
        log: folder.path().join("pilot.log"),
        calendar: calendar.clone(),
    };
    pilot.start();
    let running: Vec<Killed> =
        proxies.iter().map(|proxy| proxy.start(pilot.grpc, folder.path(), &calendar)).collect();
    for proxy in &proxies {
        until(proxy.name, async || matches!(get(proxy.gateway).await, Ok((200, _)))).await;
    }
    let (calm, is_calm) = watch::channel(false);
    let clients: Vec<Client> = (0..CLIENTS)
        .map(|number| {
            let pace = match number % 10 {
                2 | 3 => Pace::Slow,
                6 | 7 => Pace::Stuck,
                _ => Pace::Quick,
            };
            Client::start(&identity(number), pilot.grpc, pace, is_calm.clone())
        })
        .collect();
    let traffic: Vec<Traffic> = proxies.iter().map(|proxy| Traffic::start(proxy.gateway)).collect();

    let mut rng = Rng::new(20);
    let mut objects = BTreeMap::new();
    for round in 0..ROUNDS {
        change(&server, &mut rng, &mut objects);
        if rng.chance(1, 4) {
            let version = if rng.chance(1, 2) { "one" } else { "two" };
            server.put(choose(version));
        }
        if rng.chance(1, 3) {
            server = disturb(server, &calendar, &mut rng).await;
        }
        if round % EVERY == EVERY - 1 {
            // In the midst of what has just changed; and it is away for a while.
            pilot.kill();
            change(&server, &mut rng, &mut objects);
            tokio::time::sleep(Duration::from_millis(rng.below(300))).await;
            pilot.start();
        }
        tokio::time::sleep(Duration::from_millis(rng.below(120))).await;
    }

    // In the end all is well, and no object is broken that once was good: last good versions are
    // not known to who comes new.
    server.heal();
    server.slow_down(Duration::ZERO);
    for ((kind, number), object) in &mut objects {
        let name = format!("s{number}");
        match kind {
            2 => *object = rule(&name, &name, 2),
            3 => *object = gateway(&name, 7000 + *number as u16, "end.example.com"),
            _ => continue,
        }
        server.put(object.clone());
    }
    server.put(service("last", 99, 80));
    server.put(slice("last", 99));
    server.put(choose("two"));
    calm.send_replace(true);

    let mut config = Config::new(Vec::new());
    config.grpc_addr.set_port(0);
    config.http_addr.set_port(0);
    config.kubernetes = Some(Kubernetes { kubeconfig: Some(kubeconfig), ..Kubernetes::default() });
    let fresh = Server::bind(config).await.expect("free ports");
    let fresh_address = fresh.grpc_addr().expect("an address");
    let fresh = tokio::spawn(fresh.run(std::future::pending()));
    let newcomers: Vec<Client> = (0..CLIENTS)
        .map(|number| Client::start(&identity(number), fresh_address, Pace::Quick, is_calm.clone()))
        .collect();
    let has_all = |number: usize, held: &Held| {
        let last = |(_, name): &&(TypeUrl, leno_base::Name)| name.as_str().contains("|last.");
        // A cluster and its endpoints.
        let hosts = held.keys().filter(|(type_url, _)| *type_url == TypeUrl::VirtualHost).count();
        held.keys().filter(last).count() == 2 && (hosts > 0) == identity(number).lazy
    };
    for (number, (old, new)) in clients.iter().zip(&newcomers).enumerate() {
        let start = Instant::now();
        loop {
            let (old, new) = (old.held(), new.held());
            if has_all(number, &new) && old == new {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "client {number}: {}", difference(&old, &new));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    for proxy in &proxies {
        let serves = async || matches!(get(proxy.gateway).await, Ok((200, body)) if body == "two");
        until(proxy.name, serves).await;
    }
    let mut faults = Vec::new();
    for (traffic, proxy) in traffic.into_iter().zip(&proxies) {
        let name = proxy.name;
        let (made, failed) = traffic.stop().await;
        println!("{name}: {made} requests, {} failed", failed.len());
        if let (Some(first), Some(last)) = (failed.first(), failed.last()) {
            let log = std::fs::read_to_string(folder.path().join(format!("{name}.log"))).unwrap_or_default();
            faults.push(format!("{name}: {first} ... {last}\n{log}"));
        }
        assert!(made > 100, "{name}: only {made} requests");
    }
    let said = std::fs::read_to_string(folder.path().join("pilot.log")).unwrap_or_default();
    assert!(faults.is_empty(), "{}\npilot:\n{said}", faults.join("\n"));

    // The proxies themselves, beside ones that have seen nothing but the end. Those serve the same
    // address: each has a socket of its own there.
    let anew = folder.path().join("anew");
    std::fs::create_dir(&anew).expect("a folder");
    let _newcomers: Vec<Killed> =
        proxies.iter().map(|proxy| proxy.start(fresh_address, &anew, &calendar)).collect();
    for proxy in &proxies {
        let start = Instant::now();
        loop {
            let old = dump::dump(&proxy.admin(folder.path())).await;
            let new = dump::dump(&proxy.admin(&anew)).await;
            let different = match (&old, &new) {
                (Some(old), Some(new)) => dump::difference("", old, new),
                _ => Some("no dump".to_owned()),
            };
            let counts = old.as_ref().map(dump::counts).unwrap_or_default();
            if different.is_none() && counts.iter().all(|&count| count > 0) {
                println!("{}: clusters, listeners, routes, endpoints: {counts:?}", proxy.name);
                break;
            }
            assert!(start.elapsed() < PATIENCE, "{}: {counts:?} {different:?}", proxy.name);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    drop(running);
    fresh.abort();
}

/// Names of what differs.
fn difference(old: &Held, new: &Held) -> String {
    let names: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let differ = names.into_iter().filter(|key| old.get(*key) != new.get(*key));
    let words = differ.map(|key| {
        let state = match (old.get(key), new.get(key)) {
            (None, _) => "is missing",
            (_, None) => "is too much",
            _ => "differs",
        };
        format!("{} {} {state}", key.0.short(), key.1)
    });
    words.collect::<Vec<_>>().join("; ")
}

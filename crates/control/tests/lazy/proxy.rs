//! A real Envoy as a sidecar that asks for clusters when it uses them. Runs where there is one.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use leno_testkit::http::{Action, Scripted};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{LIMIT, Pilot, SERVICES, cluster, configured, host, write};

/// Ends with the test.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn service(index: usize, backend: SocketAddr) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: s{index}}}
spec:
  hosts: [{}]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: 127.0.0.1, ports: {{http: {}}}}}]
",
        host(index),
        backend.port()
    )
}

/// Asks a service through the sidecar, which is the workload's HTTP proxy.
async fn get(proxy: u16, index: usize) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", proxy)).await?;
    let host = host(index);
    let request = format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0))
}

/// The clusters of services that the sidecar has, as the control plane knows it.
async fn held(pilot: &Pilot) -> BTreeSet<String> {
    let mut stream = TcpStream::connect(pilot.debug).await.expect("it listens");
    let request = "GET /debug/config_dump?proxyID=web.default&types=CDS HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("it answers");
    let names = |name: &String| text.contains(&format!("{name}\""));
    (0..SERVICES).map(cluster).filter(names).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_requests_wait_and_none_is_lost() {
    clusters_come(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_requests_wait_for_virtual_hosts_and_none_is_lost() {
    clusters_come(true).await;
}

/// `routes`: virtual hosts come when they are asked for, as clusters do.
async fn clusters_come(routes: bool) {
    let Some(binary) = leno_testkit::envoy::binary() else { return };
    let backend = Scripted::start(|_| Action::ok("here")).await.expect("a backend");
    let folder = tempfile::tempdir().expect("a folder");
    let put = |index| write(folder.path(), &format!("s{index}.yaml"), &service(index, backend.address));
    (0..SERVICES).for_each(put);
    let pilot = Pilot::start(folder.path()).await;
    let port = leno_testkit::ports::free();
    let own = tempfile::tempdir().expect("a folder");
    let (file, log) = (own.path().join("bootstrap.yaml"), own.path().join("proxy.log"));
    let node = format!(
        "  id: sidecar~127.0.0.1~web.default~default.svc.cluster.local
  cluster: web
  metadata: {{LABELS: {{app: web}}, INTERCEPTION_MODE: NONE, HTTP_PROXY_PORT: \"{port}\", LENO_LAZY: true, LENO_LAZY_ROUTES: {routes}}}"
    );
    fs::write(&file, configured::bootstrap(&node, "DELTA_GRPC", pilot.address)).expect("writable");
    let proxy = Command::new(binary)
        .args(["--concurrency", "1", "--disable-hot-restart", "-l", "warn", "-c"])
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).expect("writable"))
        .spawn();
    let _proxy = Proxy(proxy.expect("it starts"));
    let said = || fs::read_to_string(&log).unwrap_or_default();
    let begin = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        assert!(begin.elapsed() < LIMIT, "the proxy does not listen: {}", said());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // The very first request, and many at once.
    assert_eq!(get(port, 1).await.expect("an answer"), 200, "{}", said());
    let over = Arc::new(AtomicBool::new(false));
    let made = Arc::new(AtomicUsize::new(0));
    let traffic = {
        let (over, made) = (Arc::clone(&over), Arc::clone(&made));
        tokio::spawn(async move {
            let mut lost = Vec::new();
            while !over.load(Ordering::Relaxed) {
                match get(port, 1).await {
                    Ok(200) => {}
                    other => lost.push(format!("{other:?}")),
                }
                made.fetch_add(1, Ordering::Relaxed);
                // Not so many that ports run out.
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
            lost
        })
    };
    for index in [2, 3] {
        let all = (0..20).map(|_| tokio::spawn(get(port, index)));
        for answer in all.collect::<Vec<_>>() {
            assert_eq!(answer.await.expect("no panic").expect("an answer"), 200, "{index}: {}", said());
        }
    }
    assert_eq!(held(&pilot).await, [1, 2, 3].map(cluster).into());
    // What comes to be after it was asked for in vain.
    fs::remove_file(folder.path().join("s9.yaml")).expect("there");
    let begin = Instant::now();
    while get(port, 9).await.expect("an answer") == 200 {
        assert!(begin.elapsed() < LIMIT, "it does not go: {}", said());
    }
    put(9);
    let begin = Instant::now();
    while get(port, 9).await.expect("an answer") != 200 {
        assert!(begin.elapsed() < LIMIT, "it does not come again: {}", said());
    }
    // Without a control plane what is there is used on, and what is not fails when nobody has answered.
    let address = pilot.address;
    pilot.stop().await;
    // For a virtual host Envoy waits for as long as it takes.
    let waiting = routes.then(|| tokio::spawn(get(port, 4)));
    if !routes {
        assert_eq!(get(port, 4).await.expect("an answer"), 503, "{}", said());
    }
    let pilot = Pilot::start_at(folder.path(), address).await;
    let begin = Instant::now();
    while get(port, 4).await.expect("an answer") != 200 {
        assert!(begin.elapsed() < LIMIT, "nobody asks the new control plane: {}", said());
    }
    if let Some(waiting) = waiting {
        let waiting = tokio::time::timeout(LIMIT, waiting).await.expect("it has waited long enough");
        waiting.expect("no panic").expect("an answer");
    }
    let holds = held(&pilot).await;
    assert!([1, 2, 3, 4].map(cluster).iter().all(|name| holds.contains(name)), "{holds:?}");
    assert!(holds.len() <= 5, "{holds:?}");
    over.store(true, Ordering::Relaxed);
    let lost = traffic.await.expect("no panic");
    assert!(made.load(Ordering::Relaxed) > 0 && lost.is_empty(), "{lost:?}: {}", said());
    pilot.stop().await;
}

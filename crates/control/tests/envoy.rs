//! A real Envoy under this control plane: not one request may be lost while routes change.
//!
//! Runs where there is an Envoy.

#[path = "support/envoy.rs"]
mod configured;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use leno_control::server::{Config, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// Nothing here takes long; what does is a bug.
const LIMIT: Duration = Duration::from_secs(60);

/// A gateway.
const GATEWAY: &str = "  id: router~127.0.0.1~gw.default~default.svc.cluster.local
  cluster: gw
  metadata: {LABELS: {istio: ingressgateway}, NAMESPACE: default}";

/// Ends Envoy with the test.
struct Envoy(Child);

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server that answers every request with its name.
async fn serve(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                let mut seen = Vec::new();
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    seen.extend_from_slice(&buffer[..length]);
                    while let Some(end) = seen.windows(4).position(|window| window == b"\r\n\r\n") {
                        seen.drain(..end + 4);
                        let reply =
                            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
                        if stream.write_all(reply.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

async fn get(gateway: SocketAddr) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(gateway).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web.example.com\r\nConnection: close\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok((status, text.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned()))
}

fn mesh(gateway: SocketAddr, first: SocketAddr, second: SocketAddr) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: web}}
spec:
  selector: {{istio: ingressgateway}}
  servers: [{{port: {{number: {gateway}, name: http, protocol: HTTP}}, hosts: ['*']}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: web}}
spec:
  hosts: [web.internal]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints:
  - {{address: 127.0.0.1, ports: {{http: {first}}}, labels: {{version: one}}}}
  - {{address: 127.0.0.1, ports: {{http: {second}}}, labels: {{version: two}}}}
",
        gateway = gateway.port(),
        first = first.port(),
        second = second.port()
    )
}

/// Routes everything to one subset, and defines no other.
fn rules(subset: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: web}}
spec: {{host: web.internal, subsets: [{{name: {subset}, labels: {{version: {subset}}}}}]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: web}}
spec:
  hosts: ['*']
  gateways: [web]
  http: [{{route: [{{destination: {{host: web.internal, subset: {subset}}}}}]}}]
"
    )
}

fn write(folder: &Path, name: &str, text: &str) {
    let draft = folder.join("draft");
    fs::write(&draft, text).expect("writable");
    fs::rename(draft, folder.join(name)).expect("renamable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_by_sotw() {
    no_request_is_lost("GRPC").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_by_delta() {
    no_request_is_lost("DELTA_GRPC").await;
}

async fn no_request_is_lost(api: &str) {
    let Some(binary) = leno_testkit::envoy::binary() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (first, second) = (serve("one").await, serve("two").await);
    let gateway = SocketAddr::from((Ipv4Addr::LOCALHOST, leno_testkit::ports::free()));
    write(folder.path(), "mesh.yaml", &mesh(gateway, first, second));
    write(folder.path(), "rules.yaml", &rules("one"));
    let mut config = Config::new(vec![folder.path().to_owned()]);
    config.grpc_addr.set_port(0);
    config.http_addr.set_port(0);
    let server = Server::bind(config).await.expect("free ports");
    let pilot = server.grpc_addr().expect("an address");
    let task = tokio::spawn(server.run(std::future::pending()));
    // Not in the folder that is watched: it is no configuration of the mesh.
    let own = tempfile::tempdir().expect("a folder");
    let file = own.path().join("bootstrap.yaml");
    fs::write(&file, configured::bootstrap(GATEWAY, api, pilot)).expect("writable");
    let log = own.path().join("envoy.log");
    let envoy = Command::new(binary)
        .args(["--concurrency", "1", "--disable-hot-restart", "-l", "warn", "-c"])
        .args([&file])
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).expect("writable"))
        .spawn();
    let _envoy = Envoy(envoy.expect("Envoy starts"));
    let said = || fs::read_to_string(&log).unwrap_or_default();

    let deadline = Instant::now() + LIMIT;
    while !matches!(get(gateway).await, Ok((200, _))) {
        assert!(Instant::now() < deadline, "Envoy does not serve: {}", said());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (round, subset) in ["two", "one", "two", "one"].into_iter().enumerate() {
        write(folder.path(), "rules.yaml", &rules(subset));
        let changed = Instant::now();
        loop {
            let (status, body) = get(gateway).await.expect("the gateway answers");
            assert_eq!(status, 200, "round {round}: {body} {}", said());
            if body == subset {
                break;
            }
            assert!(changed.elapsed() < LIMIT, "round {round}: still {body}: {}", said());
        }
        println!("{api}: round {round} took {:?}", changed.elapsed());
        // What goes must not take requests with it either.
        for _ in 0..200 {
            assert_eq!(
                get(gateway).await.expect("the gateway answers"),
                (200, subset.to_owned()),
                "{}",
                said()
            );
        }
    }
    task.abort();
}

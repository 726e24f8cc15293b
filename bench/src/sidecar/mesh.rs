//! The mesh around the sidecar, as YAML, and how its services are called without any redirection.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::machine;

/// How many services share a namespace.
const PER_NAMESPACE: usize = 100;

/// How many ports of each kind the services use: so many route configurations there are.
const PORTS: usize = 20;

/// Longest time until a service answers that was never called.
const PATIENCE: Duration = Duration::from_secs(30);

/// How large it is.
#[derive(Clone, Debug)]
pub(super) struct Mesh {
    /// Each with a port for HTTP and one for bytes.
    pub(super) services: usize,
    /// Of each.
    pub(super) endpoints: usize,
    /// Whether each endpoint is a pod with labels and an identity; else it is an address.
    pub(super) pods: bool,
    /// How many services are called, one number after the other.
    pub(super) calls: Vec<usize>,
    /// A Sidecar names so many services.
    pub(super) scoped: Option<usize>,
    /// Where proxies listen: for what the workload sends, and for what comes to it.
    pub(super) ports: [u16; 2],
    /// Where all endpoints listen.
    pub(super) backend: u16,
}

/// What of a service's ports is called.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Http,
    Bytes,
}

impl Mesh {
    /// All objects.
    pub(super) fn text(&self) -> String {
        let [outbound, inbound] = self.ports;
        let backend = self.backend;
        // A PROXY protocol header says what an original destination would.
        let mut text = format!(
            "apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data:
  mesh: |
    proxyListenPort: {outbound}
    proxyInboundListenPort: {inbound}
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {{name: destination, namespace: istio-system}}
spec:
  configPatches:
  - applyTo: LISTENER_FILTER
    match: {{context: SIDECAR_OUTBOUND, listener: {{name: virtualOutbound}}}}
    patch:
      operation: ADD
      value:
        name: envoy.filters.listener.proxy_protocol
        typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol}}
"
        );
        for service in 0..self.services {
            let (name, namespace, address) = (name(service), namespace(service), address(service));
            let (http, bytes) = (port(service, Kind::Http), port(service, Kind::Bytes));
            let _ = write!(
                text,
                "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  clusterIP: {address}
  selector: {{app: {name}}}
  ports:
  - {{name: http, port: {http}, targetPort: {backend}}}
  - {{name: tcp, port: {bytes}, targetPort: {backend}}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, namespace: {namespace}, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: http, port: {backend}, protocol: TCP}}, {{name: tcp, port: {backend}, protocol: TCP}}]
endpoints:
"
            );
            for endpoint in 0..self.endpoints {
                let pod = match self.pods {
                    true => {
                        format!(", targetRef: {{kind: Pod, name: {name}-{endpoint}, namespace: {namespace}}}")
                    }
                    false => String::new(),
                };
                let ip = self.endpoint(service, endpoint);
                let _ = writeln!(text, "- {{addresses: [{ip}], conditions: {{ready: true}}{pod}}}");
            }
            // Those that answer here do not speak TLS.
            let tls = if self.is_called(service) { "" } else { ", security.istio.io/tlsMode: istio" };
            for endpoint in (0..self.endpoints).filter(|_| self.pods) {
                let ip = self.endpoint(service, endpoint);
                let _ = write!(
                    text,
                    "---
apiVersion: v1
kind: Pod
metadata:
  name: {name}-{endpoint}
  namespace: {namespace}
  labels: {{app: {name}, version: v1{tls}}}
spec: {{serviceAccountName: {name}, containers: [{{name: app, image: app}}]}}
status: {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: \"True\"}}]}}
"
                );
            }
        }
        if let Some(scoped) = self.scoped {
            let hosts = (0..scoped.min(self.services)).map(|call| {
                let service = self.called(call, scoped);
                format!("{}/{}", namespace(service), host(service))
            });
            let _ = write!(
                text,
                "---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: called, namespace: ns-0}}
spec: {{egress: [{{hosts: [{}]}}]}}
",
                hosts.collect::<Vec<_>>().join(", ")
            );
        }
        text
    }

    /// An address on this machine.
    fn endpoint(&self, service: usize, endpoint: usize) -> String {
        let number = service * self.endpoints + endpoint;
        let (first, second, third) = (1 + (number >> 16), number >> 8 & 255, number & 255);
        format!("127.{first}.{second}.{third}")
    }

    /// The service that is called as one of so many: they are spread over the mesh.
    fn called(&self, call: usize, of: usize) -> usize {
        call * (self.services / of.max(1)).max(1) % self.services
    }

    fn is_called(&self, service: usize) -> bool {
        self.calls.iter().any(|&of| (0..of).any(|call| self.called(call, of) == service))
    }

    /// Calls so many services through the proxy, both ports of each, several times over, as each worker is
    /// to know each of them. The longest time that the first call of one took.
    pub(super) fn call(&self, count: usize, times: usize) -> Result<Duration> {
        let mut longest = Duration::ZERO;
        for round in 0..times {
            for call in 0..count {
                let service = self.called(call, count);
                for kind in [Kind::Http, Kind::Bytes] {
                    let started = Instant::now();
                    self.ask(service, kind).with_context(|| format!("{} ({kind:?})", host(service)))?;
                    if round == 0 {
                        longest = longest.max(started.elapsed());
                    }
                }
            }
        }
        Ok(longest)
    }

    fn ask(&self, service: usize, kind: Kind) -> Result<()> {
        let (address, port) = (address(service), port(service, kind));
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports[0]))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let host = host(service);
        write!(
            stream,
            "PROXY TCP4 127.0.0.1 {address} 40000 {port}\r\nGET / HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "answers {answer:?}");
        Ok(())
    }
}

fn name(service: usize) -> String {
    format!("svc-{service}")
}

fn namespace(service: usize) -> String {
    format!("ns-{}", service / PER_NAMESPACE)
}

fn host(service: usize) -> String {
    format!("{}.{}.svc.cluster.local", name(service), namespace(service))
}

fn address(service: usize) -> String {
    format!("10.{}.{}.{}", 96 + (service >> 16), service >> 8 & 255, service & 255)
}

fn port(service: usize, kind: Kind) -> usize {
    service % PORTS
        + match kind {
            Kind::Http => 8000,
            Kind::Bytes => 9000,
        }
}

/// Listens for all endpoints, and answers each connection's first request, for as long as this process lives.
pub(super) fn serve() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    Ok(port)
}

fn answer(mut stream: TcpStream) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    // A connection may be kept for further requests, none of which has a body.
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        request.extend_from_slice(buffer.get(..count).unwrap_or_default());
        if !request.ends_with(b"\r\n\r\n") {
            continue;
        }
        let close = request.windows(17).any(|part| part.eq_ignore_ascii_case(b"connection: close"));
        let connection = if close { "connection: close\r\n" } else { "" };
        request.clear();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n{connection}\r\nok");
        if stream.write_all(answer.as_bytes()).is_err() || close {
            return;
        }
    }
}

/// Asks an admin interface.
pub(super) fn admin(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Waits until a process does nothing: over each `quiet` it spends less than a fiftieth of it.
pub(super) fn wait_until_idle(pid: u32, quiet: Duration, limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    let mut last = machine::processor_time(pid);
    loop {
        machine::pause(quiet);
        let now = machine::processor_time(pid);
        if now.saturating_sub(last) < quiet / 50 {
            return Ok(());
        }
        ensure!(Instant::now() < end, "still works after {limit:?}");
        last = now;
    }
}

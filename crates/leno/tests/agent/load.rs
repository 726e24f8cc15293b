//! Requests without a pause, each of which must be answered.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Error, Read as _, Result, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use leno_testkit::process::pause;
use serde_json::{Value, json};

use crate::mesh::{INBOUND, Mesh, OUTBOUND, Workload, destination};

/// What is asked for: a Service, and whether each request has a connection to the sidecar of its own.
const KINDS: [(&str, bool); 6] = [
    ("server", true),
    ("kept", false),
    ("multiplexed", false),
    ("multiplexed", false),
    ("second", true),
    ("third", true),
];

/// How the Services' connections between sidecars are used: `server`, `second` and `third` have a handshake
/// for each request; `kept` one connection for all; `multiplexed` streams of HTTP/2, and a handshake for
/// each twenty. Nothing is retried.
pub(crate) fn rules() -> Vec<Value> {
    let once = json!({ "http": { "maxRequestsPerConnection": 1 } });
    let mut objects: Vec<Value> =
        ["server", "second", "third"].iter().map(|host| destination(host, &once)).collect();
    let streams = json!({ "http": { "h2UpgradePolicy": "UPGRADE", "maxRequestsPerConnection": 20 } });
    objects.push(destination("multiplexed", &streams));
    for host in ["server", "kept", "multiplexed", "second", "third"] {
        objects.push(json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": { "name": host, "namespace": "default" },
            "spec": {
                "hosts": [host],
                "http": [{ "route": [{ "destination": { "host": host } }], "retries": { "attempts": 0 } }],
            },
        }));
    }
    objects
}

pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Outcome>>,
}

/// What came of the requests of a kind.
struct Outcome {
    service: &'static str,
    answered: usize,
    /// Of the client's certificates, those that servers have seen.
    certificates: BTreeSet<String>,
    failure: Option<String>,
}

/// What came of all.
pub(crate) struct Sum {
    pub(crate) answered: usize,
    /// Those with a handshake each.
    pub(crate) certificates: usize,
}

impl Load {
    /// Asks for some of the Services through a client's sidecar, when all of these have answered once.
    pub(crate) fn start(mesh: &Mesh, client: &Workload, services: &[&str]) -> Load {
        for service in services {
            mesh.until("they talk", || matches!(client.call(service, "/for-client", ""), Ok((200, _))));
        }
        let stop = Arc::<AtomicBool>::default();
        let kinds = KINDS.into_iter().filter(|(service, _)| services.contains(service));
        let threads = kinds.map(|(service, fresh)| {
            let (stop, address) = (Arc::clone(&stop), client.address);
            std::thread::spawn(move || run(address, service, fresh, &stop))
        });
        Load { threads: threads.collect(), stop }
    }

    /// Whether one of them was not answered.
    pub(crate) fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Ends; all must have been answered.
    pub(crate) fn finish(self, mesh: &Mesh) -> Sum {
        self.stop.store(true, Ordering::Relaxed);
        let (mut sum, mut failures) = (Sum { answered: 0, certificates: 0 }, Vec::new());
        for thread in self.threads {
            let Outcome { service, answered, certificates, failure } = thread.join().expect("no panic");
            println!("{service}: {answered} answers, {} certificates", certificates.len());
            assert!(failure.is_some() || answered > 0, "{service}: nobody has asked");
            sum.answered += answered;
            sum.certificates = sum.certificates.max(certificates.len());
            failures.extend(failure.map(|why| format!("{service}, after {answered} answers: {why}")));
        }
        assert!(failures.is_empty(), "{failures:?}\n{}", mesh.logs());
        sum
    }
}

fn run(to: Ipv4Addr, service: &'static str, fresh: bool, stop: &AtomicBool) -> Outcome {
    let mut outcome = Outcome { service, answered: 0, certificates: BTreeSet::new(), failure: None };
    let mut kept = None;
    while !stop.load(Ordering::Relaxed) {
        let answer = match kept.take() {
            Some(connection) => Ok(connection),
            None => connect(to),
        };
        let answer = answer.and_then(|mut connection| Ok((exchange(&mut connection, service)?, connection)));
        match answer {
            Ok(((200, body), connection)) => {
                outcome.answered += 1;
                let hash = body.split_once("Hash=").and_then(|(_, rest)| rest.split(';').next());
                outcome.certificates.extend(hash.map(str::to_owned));
                kept = (!fresh).then_some(connection);
            }
            Ok(((status, body), _)) => {
                outcome.failure = Some(format!("status {status}: {body}"));
                break;
            }
            Err(error) => {
                outcome.failure = Some(error.to_string());
                break;
            }
        }
        // Others want to run as well.
        pause();
    }
    outcome
}

fn connect(to: Ipv4Addr) -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect((to, OUTBOUND))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

fn exchange(connection: &mut BufReader<TcpStream>, service: &str) -> Result<(u16, String)> {
    let host = format!("{service}.default.svc.cluster.local:{INBOUND}");
    let head = format!("GET http://{host}/for-client HTTP/1.1\r\nHost: {host}\r\n\r\n");
    connection.get_mut().write_all(head.as_bytes())?;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if connection.read_line(&mut head)? == 0 {
            return Err(Error::other(format!("it ends after {head:?}")));
        }
    }
    let head = head.to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let length =
        head.split_once("content-length: ").and_then(|(_, rest)| rest.split("\r\n").next()?.parse().ok());
    let (Some(status), Some(length)) = (status, length) else {
        return Err(Error::other(format!("{head:?} is no answer")));
    };
    let mut body = vec![0; length];
    connection.read_exact(&mut body)?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

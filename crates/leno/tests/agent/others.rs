//! What others do for a workload or to its agent: another agent (SPIRE's, say) gives the certificate, somebody has
//! put one there (`PROV_CERT`), and the end comes while metrics are read.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use leno_agent::identity::Secret;
use leno_agent::sds;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::certificates::{Authority, GOOD};
use crate::mesh::{Mesh, ask, metric};

/// Another agent: SDS on a workload's socket.
struct Other {
    say: watch::Sender<Option<Secret>>,
    _ends: watch::Sender<bool>,
    _runtime: tokio::runtime::Runtime,
}

impl Other {
    /// On a socket of this name.
    fn start(workload: &Path, name: &str) -> Other {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let path = workload.join("var/run/secrets/workload-spiffe-uds").join(name);
        let socket = runtime.block_on(async { sds::bind(&path) }).expect("a socket");
        let ((say, secrets), (ends, ended)) = (watch::channel(None), watch::channel(false));
        runtime.spawn(sds::serve(socket, secrets, Vec::new(), ended));
        Other { say, _ends: ends, _runtime: runtime }
    }

    /// Gives a new certificate of an authority that the mesh does not know.
    fn give(&self, authority: &Authority, folder: &Path, account: &str) {
        let (chain, key) = authority.sign(folder, "given", account, GOOD);
        let read = |path: &Path| std::fs::read_to_string(path).expect("it was written");
        let (chain, key) = (read(&chain), read(&key));
        self.say.send_replace(Some(Secret { chain, key, roots: authority.roots(), expires: i64::MAX }));
    }
}

/// Lets a workload join, so that it has a certificate in `certs`, and end.
fn provision(mesh: &Mesh, name: &str) {
    let mut workload = mesh.workload(name, &json!({}), &[("OUTPUT_CERTS", "certs".to_owned())]);
    mesh.until_ready(&workload);
    mesh.until("it is written", || workload.folder.join("certs/root-cert.pem").exists());
    workload.agent.terminate();
    assert!(workload.agent.ended().success(), "{}", mesh.logs());
}

/// How many tokens nobody has used.
fn unused(mesh: &Mesh) -> usize {
    std::fs::read_dir(mesh.folder().join("tokens")).expect("a folder").flatten().count()
}

fn signed(mesh: &Mesh) -> u64 {
    metric(
        ([127, 0, 0, 1], mesh.monitors[0]).into(),
        "/metrics",
        "citadel_server_success_cert_issuance_count",
    )
}

#[test]
fn a_certificate_that_was_put_there_speaks_for_a_machine() {
    let mesh = Mesh::start();
    provision(&mesh, "server");
    assert_eq!((unused(&mesh), signed(&mesh)), (0, 1));
    let variables = [("PROV_CERT", "certs".to_owned()), ("OUTPUT_CERTS", "own".to_owned())];
    let server = mesh.workload("server", &json!({}), &variables);
    mesh.until_ready(&server);
    let own = server.folder.join("own/cert-chain.pem");
    mesh.until("it is written", || own.exists());
    let read = |path: &Path| std::fs::read(path).expect("it is there");
    assert_ne!(read(&own), read(&server.folder.join("certs/cert-chain.pem")));
    // The token that it has been given again is not.
    assert_eq!((unused(&mesh), signed(&mesh)), (1, 2), "{}", mesh.logs());
}

fn beside_another_agent(config: &Value) {
    let mesh = Mesh::start();
    let authority = Authority::new("another agent");
    let sockets = [("server", "socket"), ("client", "spire-agent.sock")];
    // The server was here before, the client has a join token only.
    provision(&mesh, "server");
    assert_eq!((unused(&mesh), signed(&mesh)), (0, 1), "{}", mesh.logs());
    let others = sockets.map(|(name, socket)| {
        let folder = mesh.folder().join(name);
        let other = Other::start(&folder, socket);
        other.give(&authority, &folder, &format!("default/{name}"));
        other
    });
    let workloads = sockets.map(|(name, socket)| {
        let variable = |name, value: &str| (name, value.to_owned());
        let mut variables =
            vec![variable("WORKLOAD_IDENTITY_SOCKET_FILE", socket), variable("OUTPUT_CERTS", "certs")];
        if name == "server" {
            variables.push(variable("PROV_CERT", "certs"));
        }
        mesh.workload(name, config, &variables)
    });
    workloads.iter().for_each(|workload| mesh.until_ready(workload));
    let [server, client] = &workloads;
    let call = || match client.call("server", "/for-client", "") {
        Ok((200, head)) => Some(head.to_ascii_lowercase()),
        other => {
            eprintln!("not yet: {other:?}");
            None
        }
    };
    mesh.until("they talk", || call().is_some());
    let head = call().expect("an answer");
    for words in
        ["by=spiffe://cluster.local/ns/default/sa/server", "uri=spiffe://cluster.local/ns/default/sa/client"]
    {
        assert!(head.contains(words), "{words}: {head}");
    }
    assert_eq!(client.call("server", "/for-nobody", "").expect("an answer").0, 403);
    // The mesh's authority has given each agent one for itself, by the certificate that it had and by the token;
    // the other's socket was left to it.
    mesh.until("both are known to the control plane", || (unused(&mesh), signed(&mesh)) == (1, 3));
    mesh.until("it can come again", || client.folder.join("certs/root-cert.pem").exists());
    assert!(server.folder.join("var/run/secrets/credential-uds/files-socket").exists());

    // What the other agent renews is shown.
    let hash = |head: &str| head.split("hash=").nth(1).and_then(|rest| rest.get(..64)).map(str::to_owned);
    let first = hash(&head).expect("what was shown");
    others[1].give(&authority, &client.folder, "default/client");
    mesh.until("the renewed one is shown", || {
        call().is_some_and(|head| hash(&head).is_some_and(|shown| shown != first))
    });
    // Whom it does not trust any more is not let in.
    others[0].give(&Authority::new("a third"), &server.folder, "default/server");
    mesh.until("they are strangers", || !matches!(client.call("server", "/for-client", ""), Ok((200, _))));
}

#[test]
fn our_proxies_have_identities_of_another_agent() {
    beside_another_agent(&json!({}));
}

#[test]
fn envoys_have_identities_of_another_agent() {
    let Some(envoy) = leno_testkit::envoy::binary() else { return };
    beside_another_agent(&json!({ "binaryPath": envoy }));
}

/// Metrics that are being read when the agent is told to end are read to their end, and hold it up no longer than
/// connections may last.
#[test]
fn the_end_comes_while_metrics_are_read() {
    let mesh = Mesh::start();
    let application = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = application.local_addr().expect("an address").port();
    let annotations = json!({ "scrape": "true", "port": port.to_string() }).to_string();
    let scrape = |status: SocketAddr| {
        let asking = std::thread::spawn(move || ask(status, "GET", "/stats/prometheus", ""));
        (application.accept().expect("it is scraped").0, asking)
    };
    let variables = [("ISTIO_PROMETHEUS_ANNOTATIONS", annotations)];
    let mut server = mesh.workload("server", &json!({ "terminationDrainDuration": "600s" }), &variables);
    let mut client = mesh.workload("client", &json!({}), &variables);
    mesh.until_ready(&server);
    mesh.until_ready(&client);

    let (mut scraped, asking) = scrape(server.status());
    server.agent.terminate();
    mesh.until("it drains", || mesh.logs().contains("terminated: draining"));
    let _ = scraped.read(&mut [0; 4096]).expect("what is asked for");
    scraped.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nlast 7").expect("it is read");
    let (status, body) = asking.join().expect("no panic").expect("an answer");
    assert!(status == 200 && body.contains("last 7"), "{status} {body}");
    assert_eq!(ask(server.status(), "POST", "/quitquitquit", "").expect("an answer").0, 200);
    assert!(server.agent.ended().success(), "{}", mesh.logs());

    // One that has no end.
    let (_held, asking) = scrape(client.status());
    client.agent.terminate();
    assert!(client.agent.ended().success(), "{}", mesh.logs());
    assert!(asking.join().expect("no panic").is_err(), "nobody has answered");
}

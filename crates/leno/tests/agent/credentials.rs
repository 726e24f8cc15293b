//! Credentials that somebody gives on a socket beside a gateway, as `credentialName: sds://NAME` asks for them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use leno_agent::sds;
use leno_api::proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use leno_api::proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use leno_base::Name;
use leno_testkit::ports;
use leno_xds::server::grpc::{DiscoveryService, StreamEvent};
use leno_xds::server::listen::Listen;
use leno_xds::server::{Event, Resources, Scope, Stream};
use leno_xds::{Resource, TypeUrl};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::certificates::{Authority, GOOD, has_openssl, s_client};
use crate::mesh::Mesh;

/// What is given by which name.
type Given = Vec<(&'static str, secret::Type)>;

/// A server of secrets on the socket beside a gateway.
struct Giver {
    say: watch::Sender<Given>,
    _ends: watch::Sender<bool>,
    _runtime: tokio::runtime::Runtime,
}

impl Giver {
    fn start(workload: &Path) -> Giver {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let path = workload.join("var/run/secrets/credential-uds/socket");
        let socket = runtime.block_on(async { sds::bind(&path) }).expect("a socket");
        let ((say, given), (ends, ended)) = (watch::channel(Given::new()), watch::channel(false));
        let (events, happened) = mpsc::channel(64);
        runtime.spawn(Listen::new(DiscoveryService::new(events)).run(socket, ended));
        runtime.spawn(serve(happened, given));
        Giver { say, _ends: ends, _runtime: runtime }
    }

    /// Gives a new certificate as `sds://shop`, and this authority's roots to judge clients by.
    fn give(&self, authority: &Authority, folder: &Path, account: &str) {
        let (chain, key) = authority.sign(folder, "given", account, GOOD);
        let read = |path: &Path| Some(inline(std::fs::read(path).expect("it was written")));
        let certificate = TlsCertificate {
            certificate_chain: read(&chain),
            private_key: read(&key),
            ..TlsCertificate::default()
        };
        let roots = CertificateValidationContext {
            trusted_ca: Some(inline(authority.roots().into_bytes())),
            ..CertificateValidationContext::default()
        };
        self.say.send_replace(vec![
            ("sds://shop", secret::Type::TlsCertificate(certificate)),
            ("sds://shop-cacert", secret::Type::ValidationContext(roots)),
        ]);
    }
}

fn inline(bytes: Vec<u8>) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(bytes.into())), ..DataSource::default() }
}

async fn serve(mut happened: mpsc::Receiver<StreamEvent>, mut given: watch::Receiver<Given>) {
    let mut streams = BTreeMap::new();
    let mut resources = Resources::default();
    loop {
        for (name, content) in given.borrow_and_update().iter() {
            let secret = Secret { name: (*name).to_owned(), r#type: Some(content.clone()) };
            let resource = Resource::hashed(Name::new(name), secret.encode_to_vec().into());
            let version = resource.version.clone();
            resources.insert(resource);
            resources.set_version(version);
        }
        for (stream, sender) in streams.values_mut() {
            let stream: &mut Stream = stream;
            let sender: &mut leno_xds::server::grpc::Sender = sender;
            let wanted = stream.subscription(&TypeUrl::Secret);
            if !wanted.is_some_and(|wanted| wanted.names().all(|name| resources.find(name).is_some())) {
                continue;
            }
            if sender.is_ready()
                && let Some(response) = stream.push(&TypeUrl::Secret, &resources, Scope::All)
            {
                let _ = sender.send(response);
            }
        }
        tokio::select! {
            event = happened.recv() => match event {
                None => return,
                Some(StreamEvent::Connected(connected)) => {
                    let stream = Stream::new(connected.mode, Name::new("giver"));
                    streams.insert(connected.id, (stream, connected.sender));
                }
                Some(StreamEvent::Request { id, request }) => {
                    let Some((stream, _)) = streams.get_mut(&id) else { continue };
                    for event in stream.on_request(*request) {
                        if let Event::Nack { message, .. } = event {
                            eprintln!("a gateway refuses a secret: {message}");
                        }
                    }
                }
                Some(StreamEvent::Ready { .. }) => {}
                Some(StreamEvent::Closed { id, .. }) => drop(streams.remove(&id)),
            },
            changed = given.changed() => if changed.is_err() { return },
        }
    }
}

/// A gateway whose certificate, and whose clients' roots, come from the socket, and are renewed there.
fn from_a_socket(config: &Value) {
    if !has_openssl() {
        return;
    }
    let mesh = Mesh::start();
    let port = ports::free();
    mesh.write_as(
        "secure.yaml",
        &[json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "Gateway",
            "metadata": { "name": "secure", "namespace": "default" },
            "spec": {
                "selector": { "app": "gateway" },
                "servers": [{
                    "port": { "number": port, "name": "https", "protocol": "HTTPS" },
                    "hosts": ["*"],
                    "tls": { "mode": "MUTUAL", "credentialName": "sds://shop" },
                }],
            },
        })],
    );
    let folder = mesh.folder().join("gateway");
    let giver = Giver::start(&folder);
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let certificate = |authority: &Authority, name: &str| -> (PathBuf, (PathBuf, PathBuf)) {
        let roots = mesh.folder().join(format!("{name}-roots.pem"));
        std::fs::write(&roots, authority.roots()).expect("writable");
        (roots, authority.sign(mesh.folder(), name, "default/client", GOOD))
    };
    let (first_roots, first_shown) = certificate(&first, "first");
    let (second_roots, second_shown) = certificate(&second, "second");
    giver.give(&first, &folder, "default/gateway");
    let mut gateway = mesh.start_agent("router", "gateway", config, &[]);
    mesh.until_ready(&gateway);
    let to = SocketAddr::from((gateway.address, port));
    let answers = |roots: &Path, shown| s_client(to, roots, shown).contains("HTTP/1.1 404");
    mesh.until("it has the certificate", || answers(&first_roots, Some(&first_shown)));
    assert!(!answers(&first_roots, None), "a client must show a certificate");
    assert!(!answers(&first_roots, Some(&second_shown)), "of this authority");

    giver.give(&second, &folder, "default/gateway");
    mesh.until("it has the next one", || answers(&second_roots, Some(&second_shown)));
    assert!(!answers(&first_roots, Some(&second_shown)));
    gateway.agent.terminate();
    assert!(gateway.agent.ended().success(), "{}", mesh.logs());
}

#[test]
fn our_gateway_has_credentials_of_a_socket() {
    from_a_socket(&json!({}));
}

#[test]
fn envoys_gateway_has_credentials_of_a_socket() {
    let Some(envoy) = leno_testkit::envoy::binary() else { return };
    from_a_socket(&json!({ "binaryPath": envoy }));
}

//! Secrets that come by SDS and change under connections that stay.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use leno_api::proto::envoy::config::listener::v3::Listener;
use leno_api::proto::envoy::extensions::transport_sockets::tls::v3::Secret;
use leno_xds::{Mode, Resource, TypeUrl};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::sources::Tested;
use super::{PATIENCE, Proxy, Server, proxies, rejected, resource};

/// A certificate with its key, in PEM.
#[derive(Clone)]
struct Pair {
    certificate: String,
    key: String,
}

impl Pair {
    /// As a secret.
    fn secret(&self, name: &str) -> Resource {
        secret(
            name,
            &format!(
                "tls_certificate: {{certificate_chain: {{inline_string: {:?}}}, private_key: {{inline_string: {:?}}}}}",
                self.certificate, self.key
            ),
        )
    }

    fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).expect("a certificate")
    }
}

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA")
}

fn pair(issuer: &Authority, uri: &str) -> Pair {
    let mut params = CertificateParams::default();
    params.subject_alt_names.push(SanType::URI(uri.try_into().expect("ASCII")));
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, issuer).expect("signed").pem();
    Pair { certificate, key: key.serialize_pem() }
}

fn secret(name: &str, text: &str) -> Resource {
    resource::<Secret>(name, &format!("{{name: {name}, {text}}}"))
}

fn trust(name: &str, authority: &Authority) -> Resource {
    secret(name, &format!("validation_context: {{trusted_ca: {{inline_string: {:?}}}}}", authority.pem()))
}

/// A listener that answers every request, below this DownstreamTlsContext.
fn listener(name: &str, context: &str) -> Resource {
    let text = format!(
        "{{name: {name}, stat_prefix: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, \
         filter_chains: [{{transport_socket: {{name: tls, typed_config: {{'@type': type.googleapis.com/envoy.\
         extensions.transport_sockets.tls.v3.DownstreamTlsContext, {context}}}}}, filters: [{{name: hcm, typed_config: \
         {{'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.\
         HttpConnectionManager, stat_prefix: {name}, route_config: {{virtual_hosts: [{{name: all, domains: ['*'], \
         routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: here}}}}}}]}}]}}, \
         http_filters: [{{name: router, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.\
         router.v3.Router}}}}]}}}}]}}]}}"
    );
    resource::<Listener>(name, &text)
}

fn sds(name: &str) -> String {
    format!("{{name: {name}, sds_config: {{ads: {{}}, resource_api_version: V3}}}}")
}

/// A connection; what it does blocks, so it is done beside the runtime.
struct Client(StreamOwned<ClientConnection, std::net::TcpStream>);

impl Client {
    /// Connects, asks once, and gives the connection with the certificate that it was shown.
    async fn connect(
        address: SocketAddr,
        own: Option<&Pair>,
    ) -> Result<(Self, CertificateDer<'static>), Error> {
        let own = own.map(|own| {
            (vec![own.der()], PrivateKeyDer::from_pem_slice(own.key.as_bytes()).expect("a private key"))
        });
        let connecting = tokio::task::spawn_blocking(move || {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .expect("versions")
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(leno_testkit::tls::Anybody));
            let config = match own {
                Some((chain, key)) => config.with_client_auth_cert(chain, key).expect("they fit"),
                None => config.with_no_client_auth(),
            };
            let name = ServerName::try_from("server.test").expect("a name");
            let session = ClientConnection::new(Arc::new(config), name).expect("a session");
            // What is in force listens as soon as the worker has heard of it.
            let socket = loop {
                match std::net::TcpStream::connect(address) {
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                    connected => break connected?,
                }
            };
            socket.set_read_timeout(Some(PATIENCE))?;
            let mut client = Self(StreamOwned::new(session, socket));
            client.ask()?;
            let shown = client.0.conn.peer_certificates().and_then(<[_]>::first);
            let shown = shown.expect("a certificate").clone().into_owned();
            Ok((client, shown))
        });
        connecting.await.expect("no panic")
    }

    fn ask(&mut self) -> Result<(), Error> {
        self.0.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nhere") {
            let mut part = [0; 1024];
            match self.0.read(&mut part)? {
                0 => return Err(Error::other("closed")),
                count => answer.extend_from_slice(&part[..count]),
            }
        }
        Ok(())
    }

    /// Asks again.
    async fn again(mut self) -> Self {
        let asking = tokio::task::spawn_blocking(move || {
            self.ask().expect("the connection stays");
            self
        });
        asking.await.expect("no panic")
    }
}

/// Waits until the page has this in it.
async fn until_shown(proxy: &Proxy, request: &str, wanted: &str) -> String {
    let asking = async {
        loop {
            let page = proxy.page(request).await;
            if page.contains(wanted) {
                return page;
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("never {wanted} at {request}"))
}

async fn until_stat(proxy: &Proxy, name: &str, value: &str) {
    until_shown(proxy, &format!("GET /stats?filter=^{name}$"), &format!("{name}: {value}\n")).await;
}

async fn story(mode: Mode) {
    let ca = authority("ca");
    let (one, two) = (pair(&ca, "spiffe://td.test/one"), pair(&ca, "spiffe://td.test/two"));
    let mut server = Server::start(([127, 0, 0, 1], 0).into()).await;
    let proxy = Proxy::start(mode, server.address).await;

    // A listener warms until its secret is there.
    let plain = format!("common_tls_context: {{tls_certificate_sds_secret_configs: [{}]}}", sds("server"));
    server.control.set(TypeUrl::Cluster, vec![]);
    server.control.set(TypeUrl::Listener, vec![listener("l", &plain)]);
    until_shown(&proxy, "GET /init_dump", "target SdsApi server").await;
    until_shown(&proxy, "GET /config_dump?resource=dynamic_warming_secrets", "uninitialized").await;
    assert_eq!(proxy.page("GET /listeners").await, "");
    assert_eq!(proxy.page("GET /ready").await.trim(), "INITIALIZING");
    server.control.set(TypeUrl::Secret, vec![one.secret("server")]);
    let address = proxy.listening("l").await;
    let (client, shown) = Client::connect(address, None).await.expect("a session");
    assert_eq!(shown, one.der());
    let updates = "listener.l.server_ssl_socket_factory.ssl_context_update_by_sds";
    until_stat(&proxy, updates, "1").await;

    // Rotation: who is in stays, who comes sees the new certificate.
    server.control.set(TypeUrl::Secret, vec![two.secret("server")]);
    until_stat(&proxy, updates, "2").await;
    let client = client.again().await;
    let (_, shown) = Client::connect(address, None).await.expect("a session");
    assert_eq!(shown, two.der());
    let page = proxy.page("GET /config_dump?resource=dynamic_active_secrets").await;
    assert!(page.contains("[redacted]") && !page.contains("PRIVATE"), "{page}");
    assert!(proxy.page("GET /certs").await.contains("spiffe://td.test/two"));

    // A key that is another's is refused, and the last good pair stays.
    let bad = Pair { key: one.key.clone(), ..two.clone() };
    server.control.set(TypeUrl::Secret, vec![bad.secret("server")]);
    let message = rejected(&mut server, &TypeUrl::Secret).await;
    assert!(message.starts_with("server: tls_certificate"), "{message}");
    // So is what is no certificate at all.
    server.control.set(TypeUrl::Secret, vec![trust("server", &ca)]);
    let message = rejected(&mut server, &TypeUrl::Secret).await;
    assert_eq!(message, "server: secret 'server' is not a TLS certificate");
    let (_, shown) = Client::connect(address, None).await.expect("a session");
    assert_eq!(shown, two.der());

    // Mutual TLS: rules that are configured in place, with a CA that comes and changes.
    let other = authority("other");
    let mutual = format!(
        "require_client_certificate: true, common_tls_context: {{tls_certificate_sds_secret_configs: [{}], \
         combined_validation_context: {{default_validation_context: {{match_typed_subject_alt_names: [{{san_type: URI, \
         matcher: {{prefix: 'spiffe://td.test/'}}}}]}}, validation_context_sds_secret_config: {}}}}}",
        sds("server"),
        sds("roots")
    );
    let (friend, stranger) = (pair(&ca, "spiffe://td.test/a"), pair(&ca, "spiffe://elsewhere.test/a"));
    let newcomer = pair(&other, "spiffe://td.test/b");
    server.control.set(TypeUrl::Secret, vec![two.secret("server"), trust("roots", &ca)]);
    server.control.set(TypeUrl::Listener, vec![listener("l", &plain), listener("m", &mutual)]);
    let second = proxy.listening("m").await;
    let (known, _) = Client::connect(second, Some(&friend)).await.expect("a session");
    for refused in [Some(&stranger), Some(&newcomer), None] {
        assert!(Client::connect(second, refused).await.is_err());
    }
    server.control.set(TypeUrl::Secret, vec![two.secret("server"), trust("roots", &other)]);
    let updates = "listener.m.server_ssl_socket_factory.ssl_context_update_by_sds";
    let before = proxy.stat(updates).await;
    assert!(!before.is_empty());
    let let_in = async { while Client::connect(second, Some(&newcomer)).await.is_err() {} };
    tokio::time::timeout(PATIENCE, let_in).await.expect("the new CA is trusted");
    assert!(Client::connect(second, Some(&friend)).await.is_err());
    known.again().await;
    client.again().await;

    // A secret that never comes: the listener listens, and refuses everybody.
    let absent = "common_tls_context: {tls_certificate_sds_secret_configs: [{name: absent, sds_config: {ads: {}, \
                  initial_fetch_timeout: 0.05s}}]}";
    server.control.set(TypeUrl::Listener, vec![listener("late", absent)]);
    let third = proxy.listening("late").await;
    assert!(Client::connect(third, None).await.is_err());
    until_stat(&proxy, "listener.late.server_ssl_socket_factory.downstream_context_secrets_not_ready", "1")
        .await;
    // It may still come.
    server.control.set(TypeUrl::Secret, vec![one.secret("absent")]);
    let let_in = async { while Client::connect(third, None).await.is_err() {} };
    tokio::time::timeout(PATIENCE, let_in).await.expect("the secret came");
    proxy.stop().await;
}

/// A server of secrets apart from the control plane, reached through a cluster of the bootstrap,
/// by a stream of its own.
async fn servers_of_secrets(mode: Mode) {
    let ca = authority("ca");
    let (one, two) = (pair(&ca, "spiffe://td.test/one"), pair(&ca, "spiffe://td.test/two"));
    let mut server = Server::start(([127, 0, 0, 1], 0).into()).await;
    let proxy = Proxy::start(mode, server.address).await;
    let api_type = if mode == Mode::Delta { "DELTA_GRPC" } else { "GRPC" };
    let by = |cluster: &str| {
        format!(
            "common_tls_context: {{tls_certificate_sds_secret_configs: [{{name: server, sds_config: \
             {{resource_api_version: V3, api_config_source: {{api_type: {api_type}, transport_api_version: V3, \
             grpc_services: [{{envoy_grpc: {{cluster_name: {cluster}}}}}]}}}}}}]}}"
        )
    };
    server.control.set(TypeUrl::Cluster, vec![]);
    server.control.set(TypeUrl::Secret, vec![one.secret("server")]);
    server.control.set(TypeUrl::Listener, vec![listener("l", &by("xds")), listener("m", &by("unknown"))]);
    let message = rejected(&mut server, &TypeUrl::Listener).await;
    assert!(message.ends_with("unknown gRPC client cluster 'unknown'"), "{message}");
    let address = proxy.listening("l").await;
    let (client, shown) = Client::connect(address, None).await.expect("a session");
    assert_eq!(shown, one.der());
    server.control.set(TypeUrl::Secret, vec![two.secret("server")]);
    let updates = "listener.l.server_ssl_socket_factory.ssl_context_update_by_sds";
    until_stat(&proxy, updates, "2").await;
    client.again().await;
    let (_, shown) = Client::connect(address, None).await.expect("a session");
    assert_eq!(shown, two.der());
    proxy.stop().await;
}

#[tokio::test]
async fn state_of_the_world() {
    story(Mode::Sotw).await;
    servers_of_secrets(Mode::Sotw).await;
}

#[tokio::test]
async fn delta() {
    story(Mode::Delta).await;
    servers_of_secrets(Mode::Delta).await;
}

/// Certificates in files, for a proxy in front of the control plane that asks for one.
pub(super) struct Pki(std::path::PathBuf);

/// Makes them, unless they are there.
pub(super) fn pki(folder: &Path) -> Pki {
    let folder = folder.join("pki");
    if std::fs::create_dir(&folder).is_ok() {
        let ca = authority("control");
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("written");
        write("ca.pem", &ca.pem());
        for name in ["server", "client"] {
            let pair = pair(&ca, &format!("spiffe://control.test/{name}"));
            write(&format!("{name}.pem"), &pair.certificate);
            write(&format!("{name}.key"), &pair.key);
        }
    }
    Pki(folder)
}

impl Pki {
    fn context(&self, own: &str, peer: &str) -> String {
        let path = |name: String| self.0.join(name).display().to_string();
        format!(
            "tls_certificates: [{{certificate_chain: {{filename: '{}'}}, private_key: {{filename: '{}'}}}}], \
             alpn_protocols: [h2], validation_context: {{trusted_ca: {{filename: '{}'}}, match_typed_subject_alt_names: \
             [{{san_type: URI, matcher: {{exact: 'spiffe://control.test/{peer}'}}}}]}}",
            path(format!("{own}.pem")),
            path(format!("{own}.key")),
            path("ca.pem".to_owned())
        )
    }

    /// The bootstrap of a proxy that lets nobody through to `target` without a certificate.
    pub(super) fn front(&self, target: SocketAddr) -> String {
        let (ip, port) = (target.ip(), target.port());
        format!(
            r#"
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
static_resources:
  listeners:
  - name: front
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - transport_socket: {{name: tls, typed_config: {{"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, require_client_certificate: true, common_tls_context: {{{}}}}}}}
      filters: [{{name: tcp, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: target}}}}]
  clusters:
  - name: target
    connect_timeout: 5s
    load_assignment: {{cluster_name: target, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}]}}]}}
"#,
            self.context("server", "client")
        )
    }

    /// The transport socket of a cluster that leads there.
    pub(super) fn client(&self) -> String {
        format!(
            "transport_socket: {{name: tls, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.\
             transport_sockets.tls.v3.UpstreamTlsContext, sni: control.test, common_tls_context: {{{}}}}}}}",
            self.context("client", "server")
        )
    }
}

/// A proxy with one listener, below this DownstreamTlsContext.
fn tls_bootstrap(context: &str, clusters: &str) -> String {
    format!(
        r#"
node: {{id: proxy, cluster: test}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
static_resources:
  listeners:
  - name: l
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - transport_socket: {{name: tls, typed_config: {{"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, {context}}}}}
      filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: h
          route_config: {{virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: here}}}}}}]}}]}}
          http_filters: [{{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]
  clusters: {clusters}
"#
    )
}

/// Connects until this certificate is shown.
async fn until_certificate(address: SocketAddr, own: Option<&Pair>, expected: &Pair) -> Client {
    let connecting = async {
        loop {
            match Client::connect(address, own).await {
                Ok((client, shown)) if shown == expected.der() => return client,
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, connecting).await.expect("the certificate is shown")
}

/// As Istio's agent serves it: a Unix socket, the names `default` and `ROOTCA`.
#[tokio::test(flavor = "multi_thread")]
async fn from_an_agent_on_a_unix_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let ca = authority("ca");
    let friend = pair(&ca, "spiffe://td.test/friend");
    let pairs = ["one", "two", "three"].map(|name| pair(&ca, &format!("spiffe://td.test/{name}")));
    let sds = |name: &str| {
        format!(
            "{{name: {name}, sds_config: {{initial_fetch_timeout: 20s, resource_api_version: V3, api_config_source: \
             {{api_type: GRPC, transport_api_version: V3, set_node_on_first_message_only: true, grpc_services: \
             [{{envoy_grpc: {{cluster_name: sds-grpc}}}}]}}}}}}"
        )
    };
    let context = format!(
        "require_client_certificate: true, common_tls_context: {{tls_certificate_sds_secret_configs: [{}], \
         combined_validation_context: {{default_validation_context: {{match_typed_subject_alt_names: [{{san_type: URI, \
         matcher: {{prefix: 'spiffe://td.test/'}}}}]}}, validation_context_sds_secret_config: {}}}}}",
        sds("default"),
        sds("ROOTCA")
    );
    let mut all = Vec::new();
    for (name, envoy) in Tested::kinds() {
        let socket = folder.path().join(format!("{name}.socket"));
        let mut server = Server::start_unix(&socket).await;
        let clusters = format!(
            "[{{name: sds-grpc, connect_timeout: 1s, typed_extension_protocol_options: \
             {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{'@type': type.googleapis.com/envoy.extensions.\
             upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {{http2_protocol_options: {{}}}}}}}}, \
             load_assignment: {{cluster_name: sds-grpc, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: \
             '{}'}}}}}}}}]}}]}}}}]",
            socket.display()
        );
        let set = |server: &Server, own: &Pair| {
            server.control.set(TypeUrl::Secret, vec![own.secret("default"), trust("ROOTCA", &ca)]);
        };
        set(&server, &pairs[0]);
        let (path, bootstrap) = (folder.path().to_owned(), tls_bootstrap(&context, &clusters));
        let proxy = tokio::task::spawn_blocking(move || {
            Tested(proxies::Proxy::start(name, &path, envoy.as_deref(), |_| bootstrap))
        });
        let proxy = Arc::new(proxy.await.expect("it starts"));
        let address = proxy.0.port("l");
        let first = until_certificate(address, Some(&friend), &pairs[0]).await;
        assert!(Client::connect(address, None).await.is_err());
        // Rotation.
        set(&server, &pairs[1]);
        let second = until_certificate(address, Some(&friend), &pairs[1]).await;
        // A key that is not the certificate's.
        set(&server, &Pair { key: pairs[0].key.clone(), ..pairs[2].clone() });
        rejected(&mut server, &TypeUrl::Secret).await;
        let of = Arc::clone(&proxy);
        let told =
            move |name: &'static str, value| tokio::task::spawn_blocking(move || of.until_stat(name, value));
        told("sds.default.update_rejected", 1).await.expect("counted");
        until_certificate(address, Some(&friend), &pairs[1]).await;
        // The agent ends the streams, and serves another certificate to those that follow.
        set(&server, &pairs[2]);
        server.control.close_streams();
        until_certificate(address, Some(&friend), &pairs[2]).await;
        first.again().await;
        second.again().await;
        let counts = tokio::task::spawn_blocking(move || {
            let counts = proxy.counts();
            let Ok(proxy) = Arc::try_unwrap(proxy) else { panic!("{name} is used") };
            proxy.0.stop();
            counts
        });
        all.push(counts.await.expect("it ends"));
    }
    // How often streams were opened meanwhile is a matter of time.
    let lasting = |counts: &String| {
        let lines = counts.lines().filter(|line| line.starts_with("sds."));
        let lines = lines.filter(|line| {
            !["attempt", "failure", "success", "connected"].iter().any(|stat| line.contains(stat))
        });
        lines.map(|line| format!("{line}\n")).collect::<String>()
    };
    if let [ours, theirs] = &all[..] {
        super::sources::pretty(&lasting(theirs), &lasting(ours));
    }
}

/// Secrets in a file that name other files, which a link is switched to, as kubelet does.
#[tokio::test(flavor = "multi_thread")]
async fn from_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let ca = authority("ca");
    let pairs = ["one", "two", "three"].map(|name| pair(&ca, &format!("spiffe://td.test/{name}")));
    let mut all = Vec::new();
    for (name, envoy) in Tested::kinds() {
        let own = folder.path().join(format!("{name}-secrets"));
        std::fs::create_dir(&own).expect("a folder");
        let switch = |version: u32, pair: &Pair| {
            let data = own.join(format!("..{version}"));
            std::fs::create_dir(&data).expect("a folder");
            std::fs::write(data.join("tls.crt"), &pair.certificate).expect("written");
            std::fs::write(data.join("tls.key"), &pair.key).expect("written");
            std::os::unix::fs::symlink(data, own.join("..tmp")).expect("a link");
            std::fs::rename(own.join("..tmp"), own.join("..data")).expect("moved");
        };
        switch(1, &pairs[0]);
        for file in ["tls.crt", "tls.key"] {
            std::os::unix::fs::symlink(Path::new("..data").join(file), own.join(file)).expect("a link");
        }
        let at = own.display();
        let file = own.join("sds.yaml");
        let text = |secret: &str| {
            format!(
                "version_info: '1'\nresources: [{{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.\
                 Secret, name: server, {secret}}}]\n"
            )
        };
        let by_name = format!(
            "tls_certificate: {{certificate_chain: {{filename: '{at}/tls.crt'}}, private_key: {{filename: \
             '{at}/tls.key'}}, watched_directory: {{path: '{at}'}}}}"
        );
        std::fs::write(&file, text(&by_name)).expect("written");
        let context = format!(
            "common_tls_context: {{tls_certificate_sds_secret_configs: [{{name: server, sds_config: \
             {{path_config_source: {{path: '{}'}}}}}}]}}",
            file.display()
        );
        let (path, bootstrap) = (folder.path().to_owned(), tls_bootstrap(&context, "[]"));
        let proxy = tokio::task::spawn_blocking(move || {
            Tested(proxies::Proxy::start(name, &path, envoy.as_deref(), |_| bootstrap))
        });
        let proxy = Arc::new(proxy.await.expect("it starts"));
        let told = |name: &'static str, value| {
            let of = Arc::clone(&proxy);
            tokio::task::spawn_blocking(move || of.until_stat(name, value))
        };
        let address = proxy.0.port("l");
        let first = until_certificate(address, None, &pairs[0]).await;
        switch(2, &pairs[1]);
        let second = until_certificate(address, None, &pairs[1]).await;
        // A key that is not the certificate's.
        switch(3, &Pair { key: pairs[0].key.clone(), ..pairs[2].clone() });
        told("sds.server.key_rotation_failed", 1).await.expect("counted");
        until_certificate(address, None, &pairs[1]).await;
        switch(4, &pairs[2]);
        until_certificate(address, None, &pairs[2]).await;
        // Another secret takes the file's place.
        let inline = format!(
            "tls_certificate: {{certificate_chain: {{inline_string: {:?}}}, private_key: {{inline_string: {:?}}}}}",
            pairs[0].certificate, pairs[0].key
        );
        let temporary = own.join("temporary");
        std::fs::write(&temporary, text(&inline)).expect("written");
        std::fs::rename(temporary, &file).expect("moved");
        until_certificate(address, None, &pairs[0]).await;
        first.again().await;
        second.again().await;
        let counts = tokio::task::spawn_blocking(move || {
            let counts = proxy.counts();
            let Ok(proxy) = Arc::try_unwrap(proxy) else { panic!("{name} is used") };
            proxy.0.stop();
            counts
        });
        all.push(counts.await.expect("it ends"));
    }
    if let [ours, theirs] = &all[..] {
        super::sources::pretty(theirs, ours);
    }
}

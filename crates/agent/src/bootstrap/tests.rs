use std::path::Path;

use expect_test::{ExpectFile, expect_file};
use serde_json::Value;

use super::{Inputs, Node, Role, localhost, render};
use crate::environment::Environment;
use crate::proxy_config::{Layer, ProxyConfig};
use crate::sds::Sources;

/// Renders what these variables (`NAME=VALUE`) come to.
fn bootstrap(role: Role, variables: &[(&str, &str)], labels: &str, annotations: &str) -> Value {
    let folder = tempfile::tempdir().expect("a folder");
    let pod = folder.path().join("etc/istio/pod");
    std::fs::create_dir_all(&pod).expect("a folder");
    std::fs::write(pod.join("labels"), labels).expect("writable");
    std::fs::write(pod.join("annotations"), annotations).expect("writable");
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let environment = Environment::read(variables, folder.path()).expect("good variables");
    let annotated = environment.annotation("proxy.istio.io/config").unwrap_or_default().to_owned();
    let layers =
        [("PROXY_CONFIG", Layer::Proxy(&environment.proxy_config)), ("annotation", Layer::Proxy(&annotated))];
    let config = ProxyConfig::read(&layers).expect("a good ProxyConfig");
    let node = Node::new(role, None, &config, &environment, &[], None);
    let inputs = Inputs {
        config: &config,
        environment: &environment,
        node: &node,
        outlier_log: None,
        json_log: false,
        secrets: &Sources::default(),
    };
    render(&inputs).expect("a bootstrap")
}

fn check(bootstrap: &Value, expected: &ExpectFile) {
    expected.assert_eq(&format!("{bootstrap:#}\n"));
    let Some(envoy) = leno_testkit::envoy::binary() else { return };
    let mut file = tempfile::NamedTempFile::with_suffix(".json").expect("a file");
    std::io::Write::write_all(&mut file, bootstrap.to_string().as_bytes()).expect("writable");
    let output = std::process::Command::new(envoy)
        .args([
            "--mode",
            "validate",
            "--use-dynamic-base-id",
            "--allow-unknown-static-fields",
            "-l",
            "error",
            "-c",
        ])
        .arg(file.path() as &Path)
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn sidecar(config: &str) -> Value {
    bootstrap(
        Role::Sidecar,
        &[
            ("POD_NAME", "reviews-v1-0"),
            ("POD_NAMESPACE", "default"),
            ("INSTANCE_IP", "10.0.0.7"),
            ("SERVICE_ACCOUNT", "bookinfo-reviews"),
            ("PROXY_CONFIG", config),
            ("ISTIO_META_CLUSTER_ID", "Kubernetes"),
            ("ISTIO_META_INTERCEPTION_MODE", "REDIRECT"),
            ("ISTIO_META_POD_PORTS", "[{\"containerPort\":9080,\"protocol\":\"TCP\"}]"),
            ("ISTIO_META_WORKLOAD_NAME", "reviews-v1"),
            ("ISTIO_META_OWNER", "kubernetes://apis/apps/v1/namespaces/default/deployments/reviews-v1"),
            ("ISTIO_META_MESH_ID", "cluster.local"),
            ("ISTIO_METAJSON_ANNOTATIONS", "{\"sidecar.istio.io/inject\":\"true\"}"),
        ],
        "app=\"reviews\"\nversion=\"v1\"\npod-template-hash=\"abc\"\n",
        "",
    )
}

#[test]
fn a_sidecar() {
    check(&sidecar("{}"), &expect_file!["../../tests/bootstrap/sidecar.json"]);
}

#[test]
fn a_sidecar_of_envoy() {
    let found = sidecar("{binaryPath: /opt/envoy, concurrency: 2, tracing: {datadog: {address: 'dd:8126'}}}");
    check(&found, &expect_file!["../../tests/bootstrap/sidecar-envoy.json"]);
}

#[test]
fn a_gateway_with_everything() {
    let found = bootstrap(
        Role::Router,
        &[
            ("POD_NAME", "gateway-0"),
            ("POD_NAMESPACE", "edge"),
            ("INSTANCE_IP", "2001:db8::7"),
            ("HOST_IP", "10.1.1.1"),
            ("ISTIO_DELTA_XDS", "false"),
            ("ENVOY_SECURE_METRICS_PORT", "15091"),
            ("ENVOY_SECURE_MERGED_METRICS_PORT", "15092"),
            ("ENVOY_STATUS_PORT_ENABLE_PROXY_PROTOCOL", "true"),
            ("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true"),
            ("ISTIO_META_ENABLE_SELF_DISCOVERY", "true"),
            (
                "PROXY_CONFIG",
                "
concurrency: 2
tracingServiceName: CANONICAL_NAME_AND_NAMESPACE
statsdUdpAddress: 127.0.0.1:8125
tracing: {zipkin: {address: '$(HOST_IP):9411'}, tlsSettings: {mode: ISTIO_MUTUAL}}
envoyMetricsService:
  address: metrics.edge:15000
  tlsSettings: {mode: MUTUAL, clientCertificate: /c.pem, privateKey: /k.pem, caCertificates: /r.pem, sni: m, subjectAltNames: [m]}
  tcpKeepalive: {probes: 3, time: 10s, interval: 5s}
envoyAccessLogService: {address: 'logs.edge:15000', tlsSettings: {mode: SIMPLE, caCertificates: /r.pem}}
extraStatTags: [request_host, request_host]
runtimeValues: {re2.max_program_size.error_level: '', a: 'true', b: '7'}
proxyStatsMatcher: {inclusionPrefixes: ['http.{pod_ip}_'], inclusionRegexps: ['.*circuit.*']}
connectionSettings: {globalDownstreamConnectionLimit: 500}
proxyMetadata: {METRICS_LOCALHOST_ACCESS_ONLY: 'true', ISTIO_META_X: 'y'}
",
            ),
        ],
        "istio=\"gateway\"\nistio-locality=\"eu.west.1a\"\nservice.istio.io/canonical-name=\"edge\"\n",
        "sidecar.istio.io/statsInclusionSuffixes=\"upstream_rq_1xx,upstream_rq_2xx\"
sidecar.istio.io/statsHistogramBuckets=\"{\\\"istio\\\":[1,5,10]}\"
sidecar.istio.io/statsFlushInterval=\"2s\"
sidecar.istio.io/extraStatTags=\"destination_port\"
proxy.istio.io/config=\"statsCompression: false\"
",
    );
    check(&found, &expect_file!["../../tests/bootstrap/gateway.json"]);
}

#[test]
fn who_asks_the_admin_interface_asks_where_it_is() {
    for (addresses, dual_stack, expected) in [
        (&[][..], false, "127.0.0.1"),
        (&["10.0.0.7"], false, "127.0.0.1"),
        (&["fd00::7"], false, "::1"),
        (&["fd00::7", "10.0.0.7"], false, "127.0.0.1"),
        (&["fd00::7", "10.0.0.7"], true, "::1"),
        (&["10.0.0.7", "fd00::7"], true, "127.0.0.1"),
    ] {
        let environment = Environment::read(
            [("ISTIO_DUAL_STACK".to_owned(), dual_stack.to_string())],
            Path::new("/nowhere"),
        );
        let environment = environment.expect("good variables");
        let config = ProxyConfig::default();
        let found: Vec<_> = addresses.iter().map(|address| address.parse().expect("an address")).collect();
        let mut node = Node::new(Role::Sidecar, None, &config, &environment, &found, None);
        node.addresses.clone_from(&found);
        let inputs = Inputs {
            config: &config,
            environment: &environment,
            node: &node,
            outlier_log: None,
            json_log: false,
            secrets: &Sources::default(),
        };
        let bootstrap = render(&inputs).expect("a bootstrap");
        let admin = &bootstrap["admin"]["address"]["socket_address"]["address"];
        assert_eq!(admin, expected, "{addresses:?} {dual_stack}");
        assert_eq!(localhost(&found, dual_stack), expected, "{addresses:?} {dual_stack}");
    }
}

/// Another agent gives the workload's certificate; ours gives what is in files.
#[test]
fn beside_another_agent() {
    let folder = tempfile::tempdir().expect("a folder");
    let sockets = folder.path().join("var/run/secrets");
    for (socket, name) in [("workload-spiffe-uds", "spire"), ("credential-uds", "socket")] {
        std::fs::create_dir_all(sockets.join(socket)).expect("a folder");
        let listener = std::os::unix::net::UnixListener::bind(sockets.join(socket).join(name));
        // Whoever listens goes on until the test ends.
        std::mem::forget(listener.expect("it can be bound"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let find = |name: &str| runtime.block_on(Sources::find(folder.path(), name));
    assert!(find("other").expect_err("nobody is there").contains("nobody answers"));
    let ours = find("socket").expect("ours is to be");
    assert_eq!(ours, Sources { has_credentials: true, ..Sources::default() });
    assert_eq!(ours.own(), "./var/run/secrets/workload-spiffe-uds/socket");
    let secrets = find("spire").expect("somebody is there");
    assert_eq!(secrets.own(), "./var/run/secrets/credential-uds/files-socket");

    let variables = [("WORKLOAD_IDENTITY_SOCKET_FILE".to_owned(), "spire".to_owned())];
    let environment = Environment::read(variables, folder.path()).expect("good variables");
    let config =
        "tracing: {zipkin: {address: 'z:9411'}, tlsSettings: {mode: SIMPLE, caCertificates: /r.pem}}";
    let config = ProxyConfig::read(&[("config", Layer::Proxy(config))]).expect("a good ProxyConfig");
    let node = Node::new(Role::Router, None, &config, &environment, &[], None);
    let inputs = Inputs {
        config: &config,
        environment: &environment,
        node: &node,
        outlier_log: None,
        json_log: false,
        secrets: &secrets,
    };
    let bootstrap = render(&inputs).expect("a bootstrap");
    let metadata = &bootstrap["node"]["metadata"];
    assert_eq!((&metadata["file-credential"], &metadata["credential"]), (&"true".into(), &"true".into()));
    assert_eq!(metadata["WORKLOAD_IDENTITY_SOCKET_FILE"], "spire");
    let clusters = bootstrap["static_resources"]["clusters"].as_array().expect("clusters");
    let path = |name: &str| {
        let cluster = clusters.iter().find(|cluster| cluster["name"] == name).expect(name);
        cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["pipe"]["path"]
            .clone()
    };
    assert_eq!(path("sds-grpc"), "./var/run/secrets/workload-spiffe-uds/spire");
    assert_eq!(path("sds-files-grpc"), secrets.own());
    let zipkin = clusters.iter().find(|cluster| cluster["name"] == "zipkin").expect("a tracer");
    let validation =
        &zipkin["transport_socket"]["typed_config"]["common_tls_context"]["combined_validation_context"];
    let from = &validation["validation_context_sds_secret_config"]["sds_config"]["api_config_source"];
    assert_eq!(from["grpc_services"][0]["envoy_grpc"]["cluster_name"], "sds-files-grpc");
}

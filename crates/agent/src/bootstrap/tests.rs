use std::path::Path;

use expect_test::{ExpectFile, expect_file};
use serde_json::Value;

use super::{Inputs, Node, Role, render};
use crate::environment::Environment;
use crate::proxy_config::{Layer, ProxyConfig};

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

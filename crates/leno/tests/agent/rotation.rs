//! Certificates and roots are followed by others while requests are made, none of which fails.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use leno_testkit::process::{PATIENCE, pause};
use serde_json::{Value, json};

use crate::load::{self, Load};
use crate::mesh::{Mesh, Workload, metric, mutual};

/// How many certificates are renewed, unless the variable `LENO_ROTATIONS` says otherwise.
const ROTATIONS: u64 = 200;

/// What an agent has been signed.
fn signed(workload: &Workload) -> u64 {
    let failed = workload.metric("istio_agent_num_failed_outgoing_requests");
    workload.metric("istio_agent_num_outgoing_requests").saturating_sub(failed)
}

/// Four workloads have a new key and certificate many times in a second, and use each.
fn renewed_under_load(config: &Value) {
    let wanted = std::env::var("LENO_ROTATIONS").ok().and_then(|text| text.parse().ok());
    let wanted: u64 = wanted.unwrap_or(ROTATIONS);
    let mesh = Mesh::start();
    let rules: Vec<Value> = load::rules().into_iter().chain([mutual("STRICT")]).collect();
    mesh.write_as("rules.yaml", &rules);
    // Renewed after the shortest time that an agent waits, a tenth of a second.
    let short = [
        ("SECRET_TTL", "20s".to_owned()),
        ("SECRET_GRACE_PERIOD_RATIO", "0.995".to_owned()),
        ("SECRET_GRACE_PERIOD_RATIO_JITTER", "0".to_owned()),
    ];
    let workloads = ["client", "server", "second", "third"].map(|name| mesh.workload(name, config, &short));
    workloads.iter().for_each(|workload| mesh.until_ready(workload));
    let issued = || {
        let monitor = (Ipv4Addr::LOCALHOST, mesh.monitors[0]).into();
        metric(monitor, "/metrics", "citadel_server_success_cert_issuance_count")
    };
    let all = || workloads.iter().map(signed).sum::<u64>();
    let load = Load::start(&mesh, &workloads[0], &["server", "kept", "multiplexed", "second", "third"]);
    let (begun, signed_before, issued_before) = (Instant::now(), all(), issued());
    // However many they are, some must come in good time.
    for some in (0..wanted).step_by(50).skip(1).chain([wanted]) {
        mesh.until("they are renewed", || {
            load.has_failed() || (all() >= signed_before + some && issued() >= issued_before + some)
        });
    }
    let (rotations, client) = (all() - signed_before, signed(&workloads[0]));
    let sum = load.finish(&mesh);
    println!(
        "{rotations} rotations in {:?}, {} requests; {client} certificates of the client, {} seen in handshakes",
        begun.elapsed(),
        sum.answered,
        sum.certificates,
    );
    assert!(rotations >= wanted);
    // Each that comes is used from then on: those not seen were followed by another between two requests.
    assert!(sum.certificates > 10, "{} certificates were seen", sum.certificates);
    for workload in &workloads {
        let failed = workload.metric("istio_agent_num_failed_outgoing_requests");
        assert_eq!(failed, 0, "{}", mesh.logs());
    }
}

#[test]
fn our_certificates_are_renewed_under_load() {
    renewed_under_load(&json!({}));
}

#[test]
fn envoys_certificates_are_renewed_under_load() {
    let Some(envoy) = leno_testkit::envoy::binary() else { return };
    renewed_under_load(&json!({ "binaryPath": envoy }));
}

/// Two workloads whose certificates come from a replica each go on talking, with a handshake for each
/// request and on connections that stay, while the root of the mesh is followed by another.
#[test]
fn a_root_is_followed_by_another_while_workloads_talk() {
    let mesh = Mesh::start_with(
        2,
        &[
            ("CITADEL_SELF_SIGNED_CA_CERT_TTL", "60s"),
            // Counted from two minutes before, so it is announced after 14 s, signs after 26, and is alone
            // after 38.
            ("CITADEL_SELF_SIGNED_ROOT_CERT_GRACE_PERIOD_PERCENTILE", "46"),
            ("CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL", "1s"),
            ("CITADEL_ENABLE_JITTER_FOR_ROOT_CERT_ROTATOR", "false"),
            ("MAX_WORKLOAD_CERT_TTL", "10s"),
        ],
    );
    let first = mesh.roots().lines().take_while(|line| !line.contains("END")).collect::<Vec<_>>().join("\n");
    let rules: Vec<Value> = load::rules().into_iter().chain([mutual("STRICT")]).collect();
    mesh.write_as("rules.yaml", &rules);
    let short = [("SECRET_TTL", "10s".to_owned())];
    let server = mesh.workload("server", &json!({}), &short);
    let client = mesh.workload("client", &json!({}), &short);
    mesh.until_ready(&server);
    mesh.until_ready(&client);
    let load = Load::start(&mesh, &client, &["server", "kept", "multiplexed"]);
    let (mut told, mut most, mut since) = (mesh.roots(), 0, None);
    let start = Instant::now();
    // Until the first root is gone, and whatever is left of it must have gone too.
    while since.is_none_or(|since: Instant| since.elapsed() < Duration::from_secs(4)) && !load.has_failed() {
        let roots = mesh.roots();
        most = most.max(roots.matches("BEGIN CERTIFICATE").count());
        if roots != told {
            mesh.hand_out_roots(&server.folder);
            mesh.hand_out_roots(&client.folder);
            told = roots;
        }
        if since.is_none() && !told.contains(&first) {
            since = Some(Instant::now());
        }
        assert!(start.elapsed() < PATIENCE, "the first root stays\n{}", mesh.logs());
        pause();
    }
    let sum = load.finish(&mesh);
    println!("{} requests while a root was followed by another in {:?}", sum.answered, start.elapsed());
    assert!(most > 1 && sum.answered > 100, "{most} roots at a time, {} answers", sum.answered);
}

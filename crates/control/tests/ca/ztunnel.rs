//! Istio's ztunnel, which `$ZTUNNEL_BIN` names, asks for the workloads of its node.

use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{Cluster, Pilot, metrics, page, service_account, start, until};

/// Where ztunnel's admin interface is: it takes no other address.
const ADMIN: ([u8; 4], u16) = ([127, 0, 0, 1], 15000);

/// A process that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The states of the certificates that ztunnel has or wants, by identity.
async fn certificates() -> Option<Vec<Value>> {
    let http = SocketAddr::from(ADMIN);
    TcpStream::connect(http).await.ok()?;
    let answer = page(&Pilot { secure: http, http }, "/config_dump").await;
    let body = &answer[answer.find('{')?..=answer.rfind('}')?];
    serde_json::from_str::<Value>(body).ok()?.get("certificates")?.as_array().cloned()
}

#[tokio::test]
async fn a_stock_ztunnel_gets_what_is_of_its_node() {
    let Some(program) = std::env::var_os("ZTUNNEL_BIN") else {
        println!("skipped: ZTUNNEL_BIN names no ztunnel");
        return;
    };
    let cluster = Cluster::start(&[("CA_TRUSTED_NODE_ACCOUNTS", "istio-system/ztunnel")]).await;
    cluster.fill();
    let token = cluster.bound_token(service_account("istio-system", "ztunnel"), Some(("ztunnel-1", "1")));
    let pilot = start(cluster.config.clone()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let place = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("writable");
        path
    };
    // What it is told of: a workload that is there, and one that runs on another node in truth.
    let workloads = ["reviews", "ratings"].map(|name| {
        json!({ "uid": format!("cluster1//v1/Pod/default/{name}-1"), "name": format!("{name}-1"),
            "namespace": "default", "serviceAccount": name, "workloadIps": ["127.0.0.9"], "protocol": "HBONE",
            "node": "node-1", "trustDomain": "cluster.local", "network": "", "services": {} })
    });
    let told = json!({ "workloads": workloads, "policies": [], "services": [] }).to_string();
    let mut command = Command::new(program);
    command
        .current_dir(folder.path())
        .env_clear()
        .env("PROXY_MODE", "shared")
        .env("NODE_NAME", "node-1")
        .env("INPOD_UDS", folder.path().join("inpod"))
        .env("XDS_ADDRESS", "")
        .env("LOCAL_XDS_PATH", place("told.yaml", &told))
        .env("CA_ADDRESS", format!("https://{}", pilot.secure))
        .env("CA_ROOT_CA", place("roots.pem", &cluster.roots("default").await))
        .env("AUTH_TOKEN", place("token", &token))
        .stdout(Stdio::inherit());
    let _ztunnel = Killed(command.spawn().expect("it runs"));
    let reviews = until("a certificate of reviews", async || {
        let all = certificates().await?;
        let of = |name: &str| {
            let name = format!("spiffe://cluster.local/ns/default/sa/{name}");
            all.iter().find(|one| one["identity"] == name.as_str()).cloned()
        };
        let state = |one: &Value| one["state"].as_str().unwrap_or_default().to_owned();
        // It asks again and again for what it was refused.
        let ratings = of("ratings")?;
        assert_ne!(state(&ratings), "Available", "{ratings}");
        of("reviews").filter(|one| state(one) == "Available" && state(&ratings).starts_with("Unavailable"))
    })
    .await;
    assert_eq!(reviews["certChain"].as_array().map(Vec::len), Some(1), "{reviews}");
    assert_eq!(reviews["rootCerts"].as_array().map(Vec::len), Some(1), "{reviews}");
    let counted = metrics(&pilot).await;
    assert!(counted["citadel_server_success_cert_issuance_count"] >= 1.0, "{counted:?}");
    assert!(counted["citadel_server_authentication_failure_count"] >= 1.0, "{counted:?}");
}

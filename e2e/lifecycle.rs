//! What `leno ps`, `leno logs` and `leno stop` say and do, what a crash costs, what is left
//! behind: nothing.

use crate::load::{ask, ask_until, client};
use crate::mesh::{Mesh, Proxy, namespaces};

#[tokio::test(flavor = "multi_thread")]
async fn verbs_talk_to_a_running_mesh_and_stop_leaves_nothing() {
    if !namespaces() {
        return;
    }
    let mut mesh = Mesh::up("bookinfo", &Proxy::Leno);
    let table = mesh.verb(&["ps"]);
    for pod in [
        "details-v1",
        "productpage-v1",
        "ratings-v1",
        "reviews-v1",
        "reviews-v2",
        "reviews-v3",
        "istio-ingressgateway",
    ] {
        assert!(table.contains(pod), "{pod} is missing in\n{table}");
    }
    ask(&client(), "GET", &mesh.url("/productpage"), &[]).await.unwrap();
    assert!(mesh.verb(&["logs", "productpage"]).contains("productpage"));
    mesh.verb(&["stop"]);
    assert!(mesh.stop_was_clean());
}

/// `timeout` signals the process that it has started and then the whole group: one wish, not two.
#[tokio::test(flavor = "multi_thread")]
async fn signals_to_the_whole_group_end_it_well() {
    if !namespaces() {
        return;
    }
    let mut mesh = Mesh::up("bookinfo", &Proxy::Leno);
    let inner = *mesh.processes().first().expect("an inner process");
    for pid in [mesh.pid(), inner, mesh.pid()] {
        let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }
    assert!(mesh.stop_was_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_that_is_killed_leaves_no_process() {
    if !namespaces() {
        return;
    }
    let mesh = Mesh::up("bookinfo", &Proxy::Leno);
    let children = mesh.processes();
    assert!(children.len() > 10, "{children:?}");
    let pid = rustix::process::Pid::from_raw(mesh.pid() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let start = std::time::Instant::now();
    while children.iter().any(|pid| std::path::Path::new(&format!("/proc/{pid}/exe")).exists()) {
        assert!(start.elapsed().as_secs() < 30, "some of {children:?} are still there");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mesh_serves_while_the_control_plane_restarts() {
    if !namespaces() {
        return;
    }
    let mesh = Mesh::up("bookinfo", &Proxy::Leno);
    let url = mesh.url("/productpage");
    ask_until(&url, &[], |answer| answer.status == 200).await;
    mesh.kill("pilot");
    let client = client();
    for _ in 0..50 {
        let answer = ask(&client, "GET", &url, &[]).await.unwrap();
        assert_eq!(answer.status, 200);
    }
    // The new one takes over: a rule that is applied now takes effect.
    mesh.apply("bookinfo/rules/destination-rules.yaml");
    mesh.apply("bookinfo/rules/reviews-all-v3.yaml");
    for _ in 0..5 {
        ask_until(&url, &[], |answer| answer.body.contains("reviews-v3-")).await;
    }
}

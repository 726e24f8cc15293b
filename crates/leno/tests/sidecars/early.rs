//! Nothing leaves a pod, or gets in, in plain text before its sidecar runs, and after it. That rules are missing is
//! what the validation tells. (That nothing passes while rules are replaced: crates/node/tests/interception.rs.)

use std::path::Path;

use leno_testkit::mesh::shared;

use super::net::{Addresses, EXCLUDED, NODE, NODE_V6, Namespace, Said, net, possible, v4, v6};
use super::scene::{CLIENT, KEPT, STOCK, Scene};
use super::servers;

/// A node and a pod with programs that answer anybody; without them the reason is printed.
fn pod() -> Option<Vec<Namespace>> {
    match possible().and_then(|()| net("early", &[("pod", Addresses::Both)])) {
        Ok(net) => {
            servers::accept(&net[0], 8081, servers::http);
            servers::accept(&net[1], 8080, servers::http);
            Some(net)
        }
        Err(why) => {
            println!("skipped: pods without sidecars: {why}");
            None
        }
    }
}

/// The address of the name that only the pod's name server knows; nothing if the question does not come there.
fn address_outside(pod: &Namespace) -> String {
    pod.run("env", &["RES_OPTIONS=timeout:2 attempts:1", "getent", "ahostsv4", servers::OUTSIDE]).text
}

/// The exit code by which the CNI plugin's repair knows a pod without rules.
const NOT_REDIRECTED: i32 = 126;

#[test]
fn nothing_leaves_before_the_sidecar_runs() {
    let Some(net) = pod() else { return };
    let (node, pod) = (&net[0], &net[1]);
    let program = shared([Path::new(env!("CARGO_BIN_EXE_leno"))]);
    let leno = program.path().join("leno").display().to_string();
    let iptables = |more: &[&str]| -> Said {
        let all = ["agent", "istio-iptables", "-u", "1337", "-i", "*", "-b", "*", "--dual-stack"];
        let names = ["--redirect-dns", "--capture-all-dns"];
        pod.run(&leno, &[&all[..], &names, more].concat())
    };
    // As the init container `istio-validation`, which holds up the pod, runs: as the proxy's user.
    let validate = || {
        let all = ["agent", "istio-iptables", "-u", "1337", "-i", "*", "-b", "*", "--dual-stack"];
        let more = ["--run-validation", "--skip-rule-apply", "--probe-timeout=2s"];
        pod.as_user(1337, &leno, &[&all[..], &more].concat()).code
    };
    let ways = [
        (pod, format!("http://{NODE}:8081/")),
        (pod, format!("http://[{NODE_V6}]:8081/")),
        (node, format!("http://{}:8080/", v4(1))),
        (node, format!("http://[{}]:8080/", v6(1))),
    ];
    for (from, url) in &ways {
        assert_eq!(from.curl(&["-f", url]).code, 0, "without rules everything passes: {url}");
    }
    assert_eq!(validate(), NOT_REDIRECTED);
    let said = iptables(&[]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(validate(), 0);
    for (from, url) in &ways {
        let said = from.curl(&["-f", url]);
        // Refused: there is nobody at the proxy's ports.
        assert_eq!(said.code, 7, "{url}: {said:?}");
    }
    // No name is asked of others than the agent.
    servers::names(node, &format!("{NODE}:53"), NODE, NODE_V6);
    assert_eq!(address_outside(pod), "");
    // What is the pod's own is its own.
    assert_eq!(pod.curl(&["-f", "http://127.0.0.1:8080/"]).code, 0);

    let cleaned = pod.run(&leno, &["agent", "istio-clean-iptables"]);
    assert_eq!(cleaned.code, 0, "{cleaned:?}");
    assert_eq!(validate(), NOT_REDIRECTED);
    assert!(address_outside(pod).starts_with(NODE));
}

/// A sidecar is killed: nothing passes in its place.
pub(crate) fn without_its_sidecar(scene: &Scene) {
    let killed = [CLIENT, KEPT, STOCK].into_iter().filter(|pod| scene.pods.contains(pod));
    for pod in killed.clone() {
        let sidecar = scene.sidecars[pod - 1].0.id().to_string();
        assert!(scene.net[0].run("kill", &["-9", &sidecar]).code == 0);
    }
    let client = scene.client();
    scene
        .mesh
        .until("its proxy is gone", || client.curl(&["http://127.0.0.1:15021/healthz/ready"]).code == 7);
    for url in [format!("http://{NODE}/"), format!("http://[{NODE_V6}]/"), "http://10.96.0.9/".to_owned()] {
        assert_eq!(client.curl(&[&url]).code, 7, "{url}");
    }
    assert_eq!(address_outside(client), "");
    for host in [v4(CLIENT), format!("[{}]", v6(CLIENT))] {
        assert_eq!(scene.net[0].curl(&[&format!("http://{host}:8080/")]).code, 7, "{host}");
    }
    // What is excluded does not need it.
    assert_eq!(client.curl(&["-f", &format!("http://{}:8081/", EXCLUDED)]).code, 0);
    // An Envoy goes with its agent.
    for pod in killed {
        let gone = || scene.net[pod].curl(&["http://127.0.0.1:15021/healthz/ready"]).code == 7;
        scene.mesh.until("its proxy is gone", gone);
    }
    // TPROXY has nobody to give packets to.
    for host in [v4(KEPT), format!("[{}]", v6(KEPT))] {
        let said = scene.net[0].curl(&["--connect-timeout", "2", &format!("http://{host}:8080/")]);
        assert!(said.code != 0 && said.text.is_empty(), "{host}: {said:?}");
    }
}

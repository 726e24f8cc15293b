//! The CNI plugin and its installer as processes, against an API server: a pod's network namespace has its rules when
//! ADD returns; what is installed on a node, watched there and taken away; pods that came too early.
//!
//! Network namespaces take root and `ip`; what is missing is said.

#![cfg(target_os = "linux")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use leno_node::intercept::{self, Choice};
use leno_node::{Dns, Redirect};
use leno_testkit::kube::ApiServer;
use leno_testkit::mesh::shared;
use leno_testkit::ports;
use leno_testkit::process::{Killed, until};
use serde_json::{Value, json};

const LENO: &str = env!("CARGO_BIN_EXE_leno");

struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// A pod's network namespace with an address; without one the reason is printed.
fn namespace(what: &str, address: &str) -> Option<(Namespace, PathBuf)> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: network namespaces take root");
        return None;
    }
    let name = format!("leno{}-{what}", std::process::id());
    let ip = |line: String| Command::new("ip").args(line.split(' ')).output();
    let made = Namespace(name.clone());
    for line in [
        format!("netns add {name}"),
        format!("-n {name} link set lo up"),
        format!("-n {name} link add eth0 type veth peer name eth1"),
        format!("-n {name} addr add {address}/24 dev eth0"),
    ] {
        match ip(line) {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                println!("skipped: ip: {}", String::from_utf8_lossy(&output.stderr).trim());
                return None;
            }
            Err(error) => {
                println!("skipped: ip: {error}");
                return None;
            }
        }
    }
    Some((made, Path::new("/var/run/netns").join(name)))
}

fn pod(name: &str, more: &Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "annotations": {
                "sidecar.istio.io/status": "{}",
                "traffic.sidecar.istio.io/excludeOutboundPorts": "5432",
            },
        },
        "spec": {
            "nodeName": "here",
            "containers": [
                {"name": "app", "image": "app"},
                {
                    "name": "istio-proxy",
                    "image": "leno",
                    "args": ["proxy", "sidecar"],
                    "env": [{"name": "ISTIO_META_DNS_CAPTURE", "value": "true"}],
                    "securityContext": {"runAsUser": 2000, "runAsGroup": 2001},
                },
            ],
        },
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        pod[key] = value.clone();
    }
    pod
}

/// The rules that such a pod has.
fn redirect() -> Redirect {
    Redirect {
        proxy_uids: vec![2000],
        proxy_gids: vec![2001],
        exclude_inbound_ports: vec![15020, 15021, 15090],
        exclude_outbound_ports: vec![5432],
        dns: Dns::All,
        ..Redirect::default()
    }
}

fn has_rules(namespace: &Path) -> bool {
    intercept::within(namespace, || intercept::check(&redirect(), Choice::Any)).expect("it is there").is_ok()
}

/// One call of a container runtime: what is answered, and whether it is a success.
fn call(command: &str, pod: &str, namespace: &Path, config: &Value) -> (Value, bool) {
    let mut child = Command::new(LENO)
        .arg("cni")
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "0123")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_NETNS", namespace)
        .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    child.stdin.take().expect("a pipe").write_all(config.to_string().as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8(output.stdout).expect("text");
    let answer = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect("JSON") };
    (answer, output.status.success())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

#[test]
fn a_pod_has_its_rules_before_it_starts() {
    let runtime = runtime();
    let server = runtime.block_on(ApiServer::start()).expect("a server");
    let folder = tempfile::tempdir().expect("a folder");
    server.write_kubeconfig(&folder.path().join("istio-cni-kubeconfig")).expect("written");
    server.put(pod("cart", &json!({})));
    let bare = json!({"name": "bare", "namespace": "shop"});
    server.put(pod("bare", &json!({"metadata": bare})));
    let odd = json!({
        "name": "odd",
        "namespace": "shop",
        "annotations": {
            "sidecar.istio.io/status": "{}",
            "traffic.sidecar.istio.io/excludeInboundPorts": "http",
        },
    });
    server.put(pod("odd", &json!({"metadata": odd})));
    let Some((_cart, place)) = namespace("cart", "10.78.0.2") else { return };

    let config = json!({
        "cniVersion": "1.0.0",
        "name": "k8s-pod-network",
        "type": "istio-cni",
        "cni_agent_run_dir": folder.path(),
        "exclude_namespaces": ["kube-system"],
        "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.78.0.2/24"}], "dns": {}},
    });
    // Those that are not ours are left alone, and the result is passed on all the same.
    for left in ["bare", ""] {
        let (answer, fine) = call("ADD", left, &place, &config);
        assert!(fine, "{answer}");
        assert_eq!(answer, config["prevResult"]);
    }
    let mut excluded = config.clone();
    excluded["exclude_namespaces"] = json!(["shop"]);
    assert!(call("ADD", "cart", &place, &excluded).1);
    assert!(!has_rules(&place));
    // A pod that cannot have what it asks for does not start.
    let (answer, fine) = call("ADD", "odd", &place, &config);
    assert!(!fine);
    assert_eq!(answer["code"], 101);
    assert!(answer["details"].as_str().expect("text").contains("excludeInboundPorts"), "{answer}");
    let (answer, fine) = call("CHECK", "cart", &place, &config);
    assert!(!fine && answer["code"] == 100, "{answer}");

    let (answer, fine) = call("ADD", "cart", &place, &config);
    assert!(fine, "{answer}");
    assert_eq!(answer, config["prevResult"]);
    assert!(has_rules(&place));
    // Again, as runtimes do.
    assert!(call("ADD", "cart", &place, &config).1);
    assert_eq!(call("CHECK", "cart", &place, &config), (Value::Null, true));
    assert_eq!(call("STATUS", "", &place, &config), (Value::Null, true));
    assert_eq!(call("GC", "", &place, &config), (Value::Null, true));
    assert_eq!(call("DEL", "cart", Path::new(""), &config), (Value::Null, true));

    let mut nowhere = config.clone();
    nowhere["cni_agent_run_dir"] = "/nowhere".into();
    assert_eq!(call("STATUS", "", &place, &nowhere).0["code"], 50);
    assert_eq!(call("ADD", "cart", &place, &nowhere).0["code"], 11);
    let (answer, fine) = call("ADD", "cart", Path::new("/var/run/netns/gone"), &config);
    assert!(!fine && answer["code"] == 100, "{answer}");
    drop(server);
}

#[test]
fn versions() {
    let (answer, fine) = call("VERSION", "", Path::new(""), &json!({"cniVersion": "0.4.0"}));
    assert!(fine);
    assert_eq!(answer["cniVersion"], "0.4.0");
    assert_eq!(answer["supportedVersions"], json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    let (answer, fine) = call("ADD", "", Path::new("/x"), &json!({"cniVersion": "9.9.9"}));
    assert!(!fine && answer["code"] == 1, "{answer}");
    let ambient = json!({"cniVersion": "1.0.0", "ambient_enabled": true});
    let (answer, fine) = call("ADD", "", Path::new("/x"), &ambient);
    assert!(!fine && answer["code"] == 7, "{answer}");
}

/// A node: folders as they are mounted into the DaemonSet's pod, and its program.
struct Node {
    folder: tempfile::TempDir,
    health: u16,
    metrics: u16,
    process: Killed,
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default());
        }
    }
}

impl Node {
    fn start(more: &[&str]) -> Node {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["bin", "net.d", "run", "account"] {
            std::fs::create_dir(folder.path().join(name)).expect("made");
        }
        std::fs::write(folder.path().join("account/token"), "one").expect("written");
        std::fs::write(folder.path().join("account/ca.crt"), "pem").expect("written");
        let (health, metrics) = (ports::free(), ports::free());
        let flag = |name: &str, value: &str| format!("--{name}={value}");
        let place = |name: &str| folder.path().join(name).display().to_string();
        let log = std::fs::File::create(folder.path().join("log")).expect("made");
        let process = Command::new(LENO)
            .args(["cni", "install"])
            .arg(flag("mounted-cni-net-dir", &place("net.d")))
            .arg(flag("mounted-cni-bin-dir", &place("bin")))
            .arg(flag("cni-agent-run-dir", &place("run")))
            .arg(flag("health-port", &health.to_string()))
            .arg(flag("monitoring-port", &metrics.to_string()))
            .args(more)
            .env("SERVICE_ACCOUNT_DIR", place("account"))
            .env("KUBERNETES_SERVICE_HOST", "10.96.0.1")
            .env("KUBERNETES_SERVICE_PORT", "443")
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("it starts");
        Node { folder, health, metrics, process: Killed(process) }
    }

    fn file(&self, name: &str) -> Value {
        let text = std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    fn page(port: u16, path: &str) -> String {
        let Ok(mut stream) = TcpStream::connect(("localhost", port)) else { return String::new() };
        let mut page = String::new();
        let _ = write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let _ = stream.read_to_string(&mut page);
        page
    }

    fn terminate(&mut self) {
        self.process.terminate();
        assert!(self.process.ended().success());
    }
}

#[test]
fn a_node_gets_the_plugin_and_loses_it() {
    let mut node = Node::start(&["--repair-enabled=false", "--exclude-namespaces=kube-system"]);
    until("it answers", || Node::page(node.health, "/healthz").starts_with("HTTP/1.1 200"));
    assert!(Node::page(node.health, "/readyz").starts_with("HTTP/1.1 503"), "there is no network yet");
    let list = "net.d/10-cbr0.conflist";
    let before = json!({"cniVersion": "1.0.0", "name": "cbr0", "plugins": [{"type": "bridge"}]});
    std::fs::write(node.folder.path().join(list), before.to_string()).expect("written");
    until("it is chained", || node.file(list)["plugins"][1]["type"] == "istio-cni");
    until("it is ready", || Node::page(node.health, "/readyz").starts_with("HTTP/1.1 200"));
    assert!(Node::page(node.metrics, "/metrics").contains("istio_cni_install_ready 1"));
    assert_eq!(node.file(list)["plugins"][1]["exclude_namespaces"], json!(["kube-system"]));
    assert!(node.folder.path().join("bin/istio-cni").exists());

    std::fs::write(node.folder.path().join("account/token"), "two").expect("written");
    until("the token is renewed", || {
        node.file("run/istio-cni-kubeconfig")["users"][0]["user"]["token"] == "two"
    });
    std::fs::write(node.folder.path().join(list), before.to_string()).expect("written");
    until("it is chained again", || node.file(list)["plugins"][1]["type"] == "istio-cni");

    node.terminate();
    assert_eq!(node.file(list), before);
    for gone in ["bin/istio-cni", "run/istio-cni-kubeconfig"] {
        assert!(!node.folder.path().join(gone).exists(), "{gone}");
    }
}

/// The exit code of `istio-validation`, run as the pod's proxy.
fn validated(namespace: &Path) -> Option<i32> {
    let name = namespace.file_name().and_then(|name| name.to_str()).expect("a name");
    let program = shared([Path::new(LENO)]);
    let mut command = Command::new("ip");
    command.args(["netns", "exec", name, "setpriv", "--reuid=2000", "--regid=2001", "--clear-groups"]);
    command.arg(program.path().join("leno"));
    command.args(["agent", "istio-iptables", "-u", "2000", "-g", "2001", "-i", "*", "-b", "*"]);
    command.args(["--run-validation", "--skip-rule-apply", "--probe-timeout=3s"]);
    command.status().expect("it runs").code()
}

/// A pod whose validation has failed.
fn broken(name: &str, address: &str) -> Value {
    let status = json!({
        "podIP": address,
        "initContainerStatuses": [{
            "name": "istio-validation", "image": "leno", "imageID": "", "ready": false, "restartCount": 1,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 126, "reason": "Error"}},
        }],
    });
    pod(name, &json!({"status": status}))
}

#[test]
fn pods_that_came_too_early() {
    let runtime = runtime();
    let server = runtime.block_on(ApiServer::start()).expect("a server");
    let folder = tempfile::tempdir().expect("a folder");
    let kubeconfig = folder.path().join("kubeconfig");
    server.write_kubeconfig(&kubeconfig).expect("written");
    server.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}));
    server.put(broken("early", "10.79.0.2"));
    server.put(pod("fine", &json!({})));
    let access = format!("--repair-kubeconfig={}", kubeconfig.display());
    let find = |name: &str| server.find("", "pods", "shop", name);

    let node = Node::start(&[&access, "--repair-label-pods", "--repair-node-name=here"]);
    until("it is labelled", || {
        find("early").is_some_and(|pod| pod["metadata"]["labels"]["cni.istio.io/uninitialized"] == "true")
    });
    // One that comes while it watches.
    server.put(broken("later", "10.79.0.3"));
    until("the other one too", || {
        find("later").is_some_and(|pod| pod["metadata"]["labels"]["cni.istio.io/uninitialized"] == "true")
    });
    assert!(find("fine").expect("it is there")["metadata"]["labels"].is_null());
    until("it is counted", || {
        let counted = "istio_cni_repair_pods_repaired_total{result=\"success\",type=\"label\"} 2";
        Node::page(node.metrics, "/metrics").contains(counted)
    });
    until("the pod has an event", || {
        server.take_seen().iter().any(|seen| seen.method == "POST" && seen.path.ends_with("/shop/events"))
    });
    drop(node);

    if let Some((_early, place)) = namespace("early", "10.79.0.2") {
        // What the pod's init container says until it is mended, and then: the application does not start without rules.
        assert_eq!(validated(&place), Some(126));
        // What the sandbox's process is on a node.
        let program = [
            "netns",
            "exec",
            place.file_name().and_then(|name| name.to_str()).expect("a name"),
            "sleep",
            "600",
        ];
        let sandbox = Killed(Command::new("ip").args(program).spawn().expect("it starts"));
        let node = Node::start(&[
            &access,
            "--repair-repair-pods",
            "--repair-node-name=here",
            "--repair-proc-dir=/proc",
        ]);
        until("it has rules", || {
            // Until its process is in the namespace it cannot be found; each change is another chance.
            server.put(broken("early", "10.79.0.2"));
            has_rules(&place)
        });
        assert_eq!(validated(&place), Some(0));
        drop(node);
        drop(sandbox);
    }

    let node = Node::start(&[&access, "--repair-delete-pods", "--repair-node-name=here"]);
    until("they are deleted", || find("early").is_none() && find("later").is_none());
    assert!(find("fine").is_some());
    drop(node);
}

//! The webhooks over the wire: asked by an API server and by strangers, while what they are configured
//! with, their certificate and their registration change.

#[allow(dead_code)] // each test file uses a part of it
#[path = "support/site.rs"]
mod site;

use std::fs;
use std::path::Path;

use leno_testkit::kube::{ApiServer, definition};
use serde_json::{Value, json};
use site::{LIMIT, Pilot, Site, counted, exchange, log, metric, secure, status, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Where the API server's webhooks lead.
const SERVICE: &str = "istio-system/istiod";

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "a"}},
        "spec": {"containers": [{"name": "a", "image": "a:1",
            "readinessProbe": {"httpGet": {"path": "/", "port": 80}}}]},
    })
}

fn review(version: &str, object: &Value) -> Value {
    json!({
        "apiVersion": version, "kind": "AdmissionReview",
        "request": {"uid": "u1", "namespace": "default", "operation": "CREATE", "object": object},
    })
}

/// One that injects, of a revision, as the charts make it.
fn mutating(name: &str, revision: &str) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name, "labels": {"istio.io/rev": revision}},
        "webhooks": [{
            "name": "namespace.sidecar-injector.istio.io",
            "clientConfig": {"service": {"name": "istiod", "namespace": "istio-system", "path": "/inject", "port": 443}},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
            "failurePolicy": "Fail", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "namespaceSelector": {"matchLabels": {"istio-injection": "enabled"}},
        }],
    })
}

fn validating() -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "istio-validator-istio-system", "labels": {"istio.io/rev": "default"}},
        "webhooks": [{
            "name": "rev.validation.istio.io",
            "clientConfig": {"service": {"name": "istiod", "namespace": "istio-system", "path": "/validate", "port": 443}},
            "rules": [{"operations": ["CREATE", "UPDATE"], "apiGroups": ["networking.istio.io"], "apiVersions": ["*"],
                "resources": ["*"]}],
            "failurePolicy": "Ignore", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        }],
    })
}

fn find(api: &ApiServer, kind: &str, name: &str) -> Value {
    api.find("admissionregistration.k8s.io", kind, "", name).expect("it is there")
}

fn bundle(object: &Value) -> String {
    let text = object.pointer("/webhooks/0/clientConfig/caBundle").and_then(Value::as_str);
    let bytes = leno_base::base64::decode(text.unwrap_or_default().as_bytes());
    String::from_utf8(bytes.unwrap_or_default()).unwrap_or_default()
}

/// POST of a JSON value by a connection that ends with it: the status and the answer.
async fn post(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    path: &str,
    body: &Value,
) -> (u16, Value) {
    let body = body.to_string();
    let asked = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = exchange(stream, asked.as_bytes()).await;
    let rest = answer.split_once("\r\n\r\n").map_or("", |(_, rest)| rest);
    (status(&answer), serde_json::from_str(rest).unwrap_or_else(|_| Value::from(rest)))
}

/// POST to the API server.
async fn create(api: &ApiServer, path: &str, body: &Value) -> (u16, Value) {
    post(TcpStream::connect(api.address()).await.expect("it listens"), path, body).await
}

async fn ask(pilot: &Pilot, roots: &str, path: &str, body: &Value) -> (u16, Value) {
    let stream = secure(pilot.webhooks, roots, "http/1.1").await.expect("its certificate is good");
    post(stream, path, body).await
}

/// What a patch makes of the containers' images.
async fn images(pilot: &Pilot, roots: &str) -> String {
    let (status, answer) = ask(pilot, roots, "/inject", &review("admission.k8s.io/v1", &pod("a"))).await;
    assert_eq!((status, &answer["response"]["allowed"]), (200, &json!(true)), "{answer}");
    let patch = answer["response"]["patch"].as_str().expect("a patch");
    String::from_utf8(leno_base::base64::decode(patch.as_bytes()).expect("base64")).expect("text")
}

/// An API server asks us about Pods and about Istio's objects, as soon as it knows our roots, and again
/// when somebody has taken them from it.
#[tokio::test]
async fn api_servers_ask_as_soon_as_they_are_told_our_roots() {
    let site = Site::start(&[]).await;
    let (changes, judges) = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations");
    let mut labelled = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "default" } });
    labelled["metadata"]["labels"] = json!({ "istio-injection": "enabled" });
    site.api.put(labelled);
    for (plural, kind) in [("gateways", "Gateway"), ("virtualservices", "VirtualService")] {
        site.api.put(definition("networking.istio.io", plural, kind, "Namespaced", &["v1"]));
    }
    site.api.put(mutating("istio-sidecar-injector", "default"));
    site.api.put({
        let mut canary = mutating("istio-sidecar-injector-canary", "canary");
        canary["webhooks"][0]["namespaceSelector"] = json!({ "matchLabels": { "istio.io/rev": "canary" } });
        canary
    });
    site.api.put(validating());
    let first = site.pilot().await;
    site.api.route_service(SERVICE, first.webhooks);
    let roots = site.roots().await;
    let told = async |kind: &str, name: &str| {
        until(name, async || (bundle(&find(&site.api, kind, name)) == roots).then_some(())).await;
    };
    told(changes, "istio-sidecar-injector").await;
    told(judges, "istio-validator-istio-system").await;
    // Objects are refused without us from the moment on at which we were seen to refuse.
    until("failurePolicy", async || {
        let object = find(&site.api, judges, "istio-validator-istio-system");
        (object["webhooks"][0]["failurePolicy"] == "Fail").then_some(())
    })
    .await;

    let (code, made) = create(&site.api, "/api/v1/namespaces/default/pods", &pod("one")).await;
    assert_eq!(code, 201, "{made}");
    let names: Vec<&Value> =
        made["spec"]["containers"].as_array().into_iter().flatten().map(|it| &it["name"]).collect();
    assert_eq!(names, [&json!("a"), &json!("istio-proxy")], "{made}");
    let mut bad = pod("two");
    bad["metadata"]["annotations"] = json!({ "sidecar.istio.io/proxyCPU": "much" });
    let (code, answer) = create(&site.api, "/api/v1/namespaces/default/pods", &bad).await;
    assert!(code >= 400 && answer.to_string().contains("proxyCPU"), "{code} {answer}");
    let (code, plain) = create(&site.api, "/api/v1/namespaces/other/pods", &{
        let mut pod = pod("three");
        pod["metadata"]["namespace"] = json!("other");
        pod
    })
    .await;
    assert_eq!((code, plain["spec"]["containers"].as_array().map(Vec::len)), (201, Some(1)), "{plain}");

    let rule = |host: &str| {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": "a", "namespace": "default"},
            "spec": {"hosts": ["a"], "http": [{"route": [{"destination": {"host": host}}]}]},
        })
    };
    let path = "/apis/networking.istio.io/v1/namespaces/default/virtualservices";
    let (code, answer) = create(&site.api, path, &rule("")).await;
    let words = answer["message"].as_str().unwrap_or_default();
    assert!(code >= 400 && words.contains("denied the request") && words.contains("host"), "{code} {answer}");
    assert_eq!(create(&site.api, path, &rule("a")).await.0, 201);

    // A second replica, an object of a tag, and somebody who writes over what we wrote.
    let second = site.pilot().await;
    site.api.put({
        let mut tag = mutating("istio-revision-tag-prod", "default");
        tag["metadata"]["labels"]["istio.io/tag"] = json!("prod");
        tag
    });
    told(changes, "istio-revision-tag-prod").await;
    let mut spoilt = find(&site.api, changes, "istio-sidecar-injector");
    spoilt["webhooks"][0]["clientConfig"]["caBundle"] = json!("eA==");
    site.api.put(spoilt);
    told(changes, "istio-sidecar-injector").await;
    site.api.route_service(SERVICE, second.webhooks);
    assert_eq!(create(&site.api, "/api/v1/namespaces/default/pods", &pod("four")).await.0, 201);
    assert!(metric(&second, "sidecar_injection_success_total").await >= 1.0);
    assert_eq!(bundle(&find(&site.api, changes, "istio-sidecar-injector-canary")), "", "it is another's");
    assert!(metric(&first, "webhook_patch_attempts_total").await >= 2.0);
    assert!(metric(&first, "galley_validation_failed").await >= 1.0);
    assert!(metric(&first, "sidecar_injection_failure_total").await >= 1.0);
}

#[tokio::test]
async fn the_next_pod_is_injected_by_what_the_config_map_says() {
    let site = Site::start(&[]).await;
    let map = |template: &str, image: &str| {
        let config = json!({ "policy": "enabled", "defaultTemplates": ["sidecar"], "templates": { "sidecar": template } });
        let values = json!({ "global": { "proxy": { "image": image } } });
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "istio-sidecar-injector", "namespace": "istio-system" },
            "data": { "config": config.to_string(), "values": values.to_string() },
        })
    };
    let template =
        "spec:\n  containers:\n  - name: istio-proxy\n    image: one/{{ .Values.global.proxy.image }}\n";
    site.api.put(map(template, "x"));
    log();
    let pilot = site.pilot().await;
    let roots = site.roots().await;
    let becomes = async |words: &str| {
        until(words, async || images(&pilot, &roots).await.contains(words).then_some(())).await;
    };
    becomes("one/x").await;
    // Values, then the template.
    site.api.put(map(template, "y"));
    becomes("one/y").await;
    site.api.put(map(&template.replace("one", "two"), "y"));
    becomes("two/y").await;
    // One that cannot be parsed is told, and changes nothing.
    site.api.put(map("{{ if }}", "z"));
    counted(&pilot, "leno_injection_configuration_errors_total", 1.0).await;
    assert!(images(&pilot, &roots).await.contains("two/y"));
    assert!(log().contains("the last good one stays"), "{}", log());
    // What the API server cannot say now changes nothing either.
    site.api.deny("*", "get", "", "configmaps");
    site.api.put(map(template, "w"));
    until("the fault", async || {
        log().contains("the configuration of injection cannot be read now").then_some(())
    })
    .await;
    assert!(images(&pilot, &roots).await.contains("two/y"));
    site.api.allow_all();
    becomes("one/w").await;
    // MeshConfig is followed too.
    site.api.put(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "istio", "namespace": "istio-system" },
        "data": { "mesh": "{\"defaultConfig\": {\"statusPort\": 15999}}" },
    }));
    becomes("15999").await;
    // And without a ConfigMap there is what is built in.
    site.api.remove("", "configmaps", "istio-system", "istio-sidecar-injector");
    becomes("istio-init").await;
}

/// A root and its key as files of an authority that somebody else makes; the roots last.
fn plug(folder: &Path, (certificate, key): &(String, String), roots: &str) {
    for (name, text) in [
        ("ca-cert.pem", certificate.as_str()),
        ("ca-key.pem", key),
        ("cert-chain.pem", ""),
        ("root-cert.pem", roots),
    ] {
        fs::write(folder.join("draft"), text).expect("writable");
        fs::rename(folder.join("draft"), folder.join(name)).expect("renamable");
    }
}

fn root() -> (String, String) {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    let key = rcgen::KeyPair::generate().expect("a key");
    let pem = params.self_signed(&key).expect("a root").pem();
    (pem, key.serialize_pem())
}

#[tokio::test]
async fn certificates_change_while_reviews_are_answered() {
    let folder = tempfile::tempdir().expect("a folder");
    let (old, new) = (root(), root());
    plug(folder.path(), &old, &old.0);
    let site = Site::start(&[("ROOT_CA_DIR", folder.path().to_str().expect("text"))]).await;
    site.api.put(mutating("istio-sidecar-injector", "default"));
    let pilot = site.pilot().await;
    let registered = async |roots: &str| {
        until("the roots", async || {
            let object = find(&site.api, "mutatingwebhookconfigurations", "istio-sidecar-injector");
            bundle(&object).contains(roots.trim()).then_some(())
        })
        .await;
    };
    registered(&old.0).await;
    // A connection that lasts, and reviews over it before and after.
    let mut lasting = secure(pilot.webhooks, &old.0, "http/1.1").await.expect("its certificate is good");
    let body = review("admission.k8s.io/v1beta1", &pod("a")).to_string();
    let asked = format!(
        "POST /inject HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut again = async || {
        lasting.write_all(asked.as_bytes()).await.expect("it is sent");
        let mut text = Vec::new();
        while !text.ends_with(b"}}") {
            let mut piece = [0; 4096];
            let length =
                tokio::time::timeout(LIMIT, lasting.read(&mut piece)).await.expect("in time").expect("read");
            assert_ne!(length, 0, "it ends");
            text.extend_from_slice(&piece[..length]);
        }
        String::from_utf8(text).expect("text")
    };
    let answer = again().await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("admission.k8s.io/v1beta1"), "{answer}");
    plug(folder.path(), &new, &format!("{}{}", old.0, new.0));
    // New connections are answered by the new authority, and API servers are told of its root.
    until("the new certificate", async || secure(pilot.webhooks, &new.0, "http/1.1").await.ok()).await;
    assert!(secure(pilot.webhooks, &old.0, "http/1.1").await.is_err());
    registered(&new.0).await;
    assert!(again().await.starts_with("HTTP/1.1 200"));
    assert!(images(&pilot, &new.0).await.contains("istio-proxy"));
}

/// Whatever strangers send: it is refused, said and counted, and reviews are answered meanwhile.
#[tokio::test]
async fn floods_hold_up_nobody() {
    log();
    let site = Site::start(&[]).await;
    let pilot = site.pilot().await;
    let roots = site.roots().await;
    let raw = async |text: Vec<u8>| {
        let stream = secure(pilot.webhooks, &roots, "http/1.1").await.expect("its certificate is good");
        exchange(stream, &text).await
    };
    let head = |path: &str, kind: &str, length: u64| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let with = |path: &str, kind: &str, body: &str| (head(path, kind, body.len() as u64) + body).into_bytes();
    let json = "application/json";
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep = review("admission.k8s.io/v1", &pod("a")).to_string().replacen("\"a\"", &nested, 1);
    let chunks = {
        let mut text = format!(
            "POST /inject HTTP/1.1\r\nHost: x\r\nContent-Type: {json}\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        let piece = format!("100000\r\n{}\r\n", "x".repeat(1 << 20));
        (0..8).for_each(|_| text.push_str(&piece));
        text + "0\r\n\r\n"
    };
    for (what, asked, expected) in [
        ("100 MB", head("/inject", json, 100 << 20).into_bytes(), 413),
        ("8 MB in chunks", chunks.into_bytes(), 413),
        ("garbage", with("/inject", json, "\u{0}\u{1}garbage"), 400),
        ("deep", with("/inject", json, &deep), 400),
        ("deep, to be validated", with("/validate", json, &nested), 400),
        ("nothing", with("/inject", json, ""), 400),
        ("YAML", with("/inject", "application/yaml", "{}"), 415),
        ("a form", with("/validate", "text/plain", "{}"), 415),
        ("another path", with("/injected", json, "{}"), 404),
        ("dots", with("/x/../inject", json, "{}"), 404),
        ("dots in code", with("/x/%2e%2e/inject", json, "{}"), 404),
        ("GET", b"GET /inject HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_vec(), 405),
        (
            "a long head",
            format!("GET /ready HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(1 << 20)).into_bytes(),
            431,
        ),
        ("many headers", format!("GET /ready HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(1000)).into_bytes(), 431),
        ("no HTTP", b"\x16\x03\x01\x02\x00\r\n\r\n".to_vec(), 400),
    ] {
        let answer = raw(asked).await;
        // A connection may be cut while the rest of a body is on its way.
        let found = status(&answer);
        assert!(found == expected || (found == 0 && expected == 413), "{what}: {answer}");
    }
    for (status, least) in [("400", 4.0), ("404", 3.0), ("405", 1.0), ("413", 2.0), ("415", 2.0)] {
        counted(&pilot, &format!("leno_webhook_http_errors_total{{status=\"{status}\"}}"), least).await;
        assert!(log().contains(&format!("status={status}")), "{}", log());
    }
    assert_eq!(metric(&pilot, "galley_validation_http_error{status=\"415\"}").await, 1.0);
    // Who does not speak TLS is counted too.
    let stream = TcpStream::connect(pilot.webhooks).await.expect("it listens");
    exchange(stream, b"GET /inject HTTP/1.1\r\nHost: x\r\n\r\n").await;
    counted(&pilot, "leno_refused_total{port=\"webhooks\",reason=\"handshake\"}", 1.0).await;

    // More connections than there may be: silent ones, and bodies that do not come.
    let mut held = Vec::new();
    for index in 0..300 {
        let mut stream = secure(pilot.webhooks, &roots, "http/1.1").await.expect("its certificate is good");
        if index % 2 == 0 {
            let slow = head("/inject", json, 1000) + "{";
            // It may have had to go for others.
            let _ = stream.write_all(slow.as_bytes()).await;
        }
        held.push(stream);
    }
    for version in ["admission.k8s.io/v1", "admission.k8s.io/v1beta1"] {
        let (status, answer) = ask(&pilot, &roots, "/inject", &review(version, &pod("a"))).await;
        assert_eq!((status, &answer["response"]["allowed"]), (200, &json!(true)), "{answer}");
        assert_eq!(answer["apiVersion"], version);
    }
    // Large ones that are many.
    let mut large = pod("a");
    large["metadata"]["annotations"] = json!({ "note": "x".repeat(1 << 20) });
    let asked = review("admission.k8s.io/v1", &large);
    let all = (0..24).map(|_| ask(&pilot, &roots, "/inject", &asked));
    // Each has an answer, if only that it is too much now.
    let answers = futures(all).await;
    assert!(answers.iter().all(|(status, _)| [200, 408, 503].contains(status)), "{answers:?}");
    drop(held);
    assert!(images(&pilot, &roots).await.contains("istio-proxy"));
}

/// What becomes of all, which go on at the same time.
async fn futures<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut waiting: Vec<_> = all.map(|one| (Box::pin(one), None)).collect();
    std::future::poll_fn(|context| {
        let mut is_over = true;
        for (future, answer) in &mut waiting {
            if answer.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(found) => *answer = Some(found),
                    std::task::Poll::Pending => is_over = false,
                }
            }
        }
        if is_over { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    waiting.into_iter().filter_map(|(_, answer)| answer).collect()
}

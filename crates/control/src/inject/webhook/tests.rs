//! Reviews answered, paths read, configurations patched.

use serde_json::{Value as Json, json};

use super::{Webhook, WebhookOptions, follow, register, review};
use crate::inject::patch;

fn webhook() -> Webhook {
    Webhook::new(WebhookOptions {
        address: ([127, 0, 0, 1], 0).into(),
        revision: "default".to_owned(),
        namespace: "istio-system".to_owned(),
        native: Some(false),
        registers: false,
    })
    .expect("what is built in can be used")
}

fn ask(webhook: &Webhook, path: &str, body: &Json) -> (u16, Json) {
    match review::answer(webhook, path, "application/json", body.to_string().as_bytes()) {
        Ok(text) => (200, serde_json::from_str(&text).expect("JSON")),
        Err((status, words)) => (status.as_u16(), Json::String(words)),
    }
}

fn review_of(object: &Json) -> Json {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {"uid": "u1", "namespace": "shop", "operation": "CREATE", "object": object},
    })
}

fn pod() -> Json {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"generateName": "a-", "labels": {"app": "a"}},
        "spec": {"containers": [{"name": "a", "image": "a:1"}]},
    })
}

#[test]
fn a_pod_is_answered_with_a_patch() {
    let webhook = webhook();
    for version in ["admission.k8s.io/v1", "admission.k8s.io/v1beta1"] {
        let mut body = review_of(&pod());
        body["apiVersion"] = json!(version);
        let (status, answer) = ask(&webhook, "/inject/cluster/east/net/n1", &body);
        assert_eq!((status, &answer["apiVersion"]), (200, &json!(version)), "{answer}");
        let response = &answer["response"];
        assert_eq!((&response["uid"], &response["allowed"]), (&json!("u1"), &json!(true)));
        let text = leno_base::base64::decode(response["patch"].as_str().expect("a patch").as_bytes())
            .expect("base64");
        let operations: Vec<Json> = serde_json::from_slice(&text).expect("JSON");
        let mut patched = pod();
        patch::apply(&mut patched, &operations).expect("it applies");
        let names: Vec<_> =
            crate::inject::pod::containers(&patched, "containers").iter().map(|it| &it["name"]).collect();
        assert_eq!(names, [&json!("a"), &json!("istio-proxy")]);
        assert_eq!(patched["metadata"].get("namespace"), None, "it is not ours to say");
        assert_eq!(patched["metadata"]["labels"]["topology.istio.io/network"], "n1");
        let proxy = crate::inject::pod::find(&patched, "containers", "istio-proxy").expect("the proxy");
        assert!(
            proxy["env"].as_array().is_some_and(|env| {
                env.contains(&json!({"name": "ISTIO_META_CLUSTER_ID", "value": "east"}))
            })
        );
    }
}

#[test]
fn what_is_not_wanted_is_let_in_as_it_is() {
    let webhook = webhook();
    let mut body = review_of(&pod());
    body["request"]["namespace"] = json!("kube-system");
    let (_, answer) = ask(&webhook, "/inject", &body);
    assert_eq!(answer["response"], json!({"allowed": true, "uid": "u1"}));
    let shown = webhook.counts.skips.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(shown, 1);
}

#[test]
fn what_cannot_be_injected_is_refused_and_said() {
    let webhook = webhook();
    let mut bad = pod();
    bad["metadata"]["annotations"] = json!({"sidecar.istio.io/proxyCPU": "much"});
    let (status, answer) = ask(&webhook, "/inject", &review_of(&bad));
    assert_eq!((status, &answer["response"]["allowed"]), (200, &json!(false)));
    let message = answer["response"]["status"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("sidecar.istio.io/proxyCPU"), "{message}");
    for (kind, body, wanted) in [
        ("application/json", "", 400),
        ("application/yaml", "{}", 415),
        ("application/json", "{", 400),
        ("application/json", "{}", 200),
        ("application/json", "[]", 200),
        ("application/json", "{\"apiVersion\": \"admission.k8s.io/v1\", \"kind\": \"AdmissionReview\"}", 200),
    ] {
        let answer = review::answer(&webhook, "/inject", kind, body.as_bytes());
        let status = answer.as_ref().map_or_else(|(status, _)| status.as_u16(), |_| 200);
        assert_eq!(status, wanted, "{body}: {answer:?}");
        assert!(!format!("{answer:?}").contains("allowed\\\":true"), "{body}: {answer:?}");
    }
    for (path, expected) in [
        ("/inject", true),
        ("/inject/", true),
        ("/inject/cluster/a", true),
        ("/validate", true),
        ("/validate/x", true),
        ("/other", false),
        ("/injected", false),
        ("/validated", false),
        ("//inject", false),
        ("/./inject", false),
        ("/%69nject", false),
        ("", false),
    ] {
        assert_eq!(review::is_served(path), expected, "{path}");
    }
}

#[test]
fn objects_are_validated() {
    let webhook = webhook();
    let rule = |route: Json| {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": "a", "namespace": "shop"},
            "spec": {"hosts": ["a"], "http": [route]},
        })
    };
    let good = rule(json!({"route": [{"destination": {"host": "a"}}]}));
    assert_eq!(ask(&webhook, "/validate", &review_of(&good)).1["response"]["allowed"], json!(true));
    let bad = rule(json!({"route": [{"destination": {"host": ""}}]}));
    let (_, answer) = ask(&webhook, "/validate", &review_of(&bad));
    assert_eq!(answer["response"]["allowed"], json!(false), "{answer}");
    let message = answer["response"]["status"]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("configuration is invalid: ") && message.contains("host"), "{message}");
    // Warnings are for what does not work, not for the standard rules of mutual TLS.
    let warnings = |spec: Json| {
        let rule = json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": "a", "namespace": "shop"}, "spec": spec});
        let response = &ask(&webhook, "/validate", &review_of(&rule)).1["response"];
        assert_eq!(response["allowed"], json!(true), "{response}");
        response["warnings"].clone()
    };
    let mutual = json!({"host": "a", "trafficPolicy": {"tls": {"mode": "ISTIO_MUTUAL"}}});
    assert_eq!(warnings(mutual), Json::Null);
    assert!(
        warnings(json!({"host": "a", "unheard": 1}))[0].as_str().is_some_and(|it| it.contains("unheard"))
    );
    let mut gone = review_of(&bad);
    gone["request"]["operation"] = json!("DELETE");
    assert_eq!(ask(&webhook, "/validate", &gone).1["response"]["allowed"], json!(true));
    let mut asks = good;
    asks["metadata"]["annotations"] = json!({"istio.io/always-reject": "true"});
    assert_eq!(ask(&webhook, "/validate", &review_of(&asks)).1["response"]["allowed"], json!(false));
}

#[test]
fn variables_are_read_from_the_path() {
    let of = |path: &str| {
        review::variables(path).into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(of("/inject"), "");
    assert_eq!(of("/inject/"), "");
    assert_eq!(of("/inject/cluster/c1/net/n1"), "ISTIO_META_CLUSTER_ID=c1 ISTIO_META_NETWORK=n1");
    assert_eq!(of("/inject/cluster/c1/net/n1/"), "ISTIO_META_CLUSTER_ID=c1 ISTIO_META_NETWORK=n1");
    assert_eq!(of("/inject/foo/a--slash--b"), "FOO=a/b");
    assert_eq!(of("/inject/cluster/c1/odd"), "ISTIO_META_CLUSTER_ID=c1");
    assert_eq!(
        of("/inject/:ENV:cluster=c1:ENV:net=n1:ENV:=x"),
        "ISTIO_META_CLUSTER_ID=c1 ISTIO_META_NETWORK=n1"
    );
}

#[test]
fn configurations_are_given_our_roots_once() {
    let object = json!({"webhooks": [
        {"name": "rev.namespace.sidecar-injector.istio.io", "clientConfig": {}, "failurePolicy": "Fail"},
        {"name": "other.example.com", "clientConfig": {}},
        {"name": "rev.object.sidecar-injector.istio.io", "clientConfig": {"caBundle": "ours"}},
    ]});
    assert_eq!(
        register::changes(&object, "ours", false, false),
        [json!({"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": "ours"})]
    );
    let validates = json!({"webhooks": [{"name": "rev.validation.istio.io", "clientConfig": {"caBundle": "ours"}, "failurePolicy": "Ignore"}]});
    assert!(register::changes(&validates, "ours", true, false).is_empty());
    assert_eq!(
        register::changes(&validates, "ours", true, true),
        [json!({"op": "add", "path": "/webhooks/0/failurePolicy", "value": "Fail"})]
    );
}

#[test]
fn ready_is_who_is_configured_and_known() {
    let webhook = webhook();
    // This one gives nobody its roots.
    assert!(!webhook.is_ready());
    webhook.configured.send_replace(true);
    assert!(webhook.is_ready());
    let options = WebhookOptions { registers: true, ..webhook.options };
    let webhook = Webhook::new(options).expect("what is built in can be used");
    webhook.configured.send_replace(true);
    assert!(!webhook.is_ready());
    webhook.needs_no_roots();
    assert!(webhook.is_ready());
}

#[test]
fn versions_of_kubelets() {
    assert_eq!(follow::minor("v1.33.2"), Some(33));
    assert_eq!(follow::minor("v1.34.0-gke.1"), Some(34));
    assert_eq!(follow::minor("x"), None);
}

/// Everybody can ask for as much as a body has room for: it takes no time that grows with its square.
#[test]
fn long_lists_take_no_long_time() {
    let webhook = webhook();
    let many = 30_000;
    let named = |what: &str| (0..many).map(|n| json!({"name": format!("{what}{n}")})).collect::<Vec<_>>();
    let mut of_proxy = pod();
    of_proxy["spec"]["containers"] = json!([{"name": "istio-proxy", "image": "auto", "env": named("E")}]);
    let mut injected = pod();
    let names: Vec<String> = (0..many).map(|n| format!("c{n}")).collect();
    injected["metadata"]["annotations"] = json!({
        "sidecar.istio.io/status": json!({"initContainers": names}).to_string(),
        "proxy.istio.io/overrides": json!({"initContainers": named("o")}).to_string(),
        "sidecar.istio.io/inject": "true",
    });
    injected["spec"]["initContainers"] = json!(named("c"));
    let volumes: serde_json::Map<String, Json> =
        (0..many).map(|n| (format!("v{n}"), json!({"emptyDir": {}}))).collect();
    let mut mounted = pod();
    mounted["metadata"]["annotations"] =
        json!({"sidecar.istio.io/userVolume": Json::Object(volumes).to_string()});
    for object in [of_proxy, injected, mounted] {
        let (status, answer) = ask(&webhook, "/inject", &review_of(&object));
        assert_eq!(status, 200);
        let response = &answer["response"];
        let refused = response["status"]["message"].as_str().unwrap_or_default();
        assert!(response["allowed"] == json!(true) || refused.contains("too many steps"), "{refused}");
    }
    let mut templates = pod();
    templates["metadata"]["annotations"] =
        json!({"inject.istio.io/templates": vec!["sidecar"; 100_000].join(",")});
    let (_, answer) = ask(&webhook, "/inject", &review_of(&templates));
    assert_eq!(answer["response"]["status"]["message"], "more than 32 templates are requested");
    let hosts: Vec<String> = (0..100_000).map(|n| format!("a{n}.b")).collect();
    let service = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "a", "namespace": "shop"},
        "spec": {"hosts": hosts, "gateways": ["edge"], "tls": [{
            "match": [{"sniHosts": hosts}], "route": [{"destination": {"host": "a"}}],
        }]},
    });
    let (_, answer) = ask(&webhook, "/validate", &review_of(&service));
    assert_eq!(answer["response"]["allowed"], json!(true), "{}", answer["response"]["status"]);
}

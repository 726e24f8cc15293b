//! AuthorizationPolicies about identities, as they are written: two clients of different service accounts and
//! namespaces, and one without a sidecar, call a server.

use serde_json::{Value, json};

use crate::mesh::{INBOUND, Mesh, Workload, ask, destination, mutual, policy};

const CLIENT: &str = "cluster.local/ns/default/sa/client";
const OTHER: &str = "cluster.local/ns/elsewhere/sa/other";

/// What the clients get: `default/client`, `elsewhere/other`, and who comes in plain text; 0: no answer.
type Expected = [u16; 3];

struct Case {
    name: &'static str,
    mode: &'static str,
    policies: Vec<Value>,
    expected: Expected,
}

/// One with policies of these actions and `source`s.
fn sources(name: &'static str, policies: &[(&str, Value)], expected: Expected) -> Case {
    let policies = policies.iter().enumerate().map(|(index, (action, source))| {
        policy(&format!("p{index}"), action, &json!([{ "from": [{ "source": source }] }]))
    });
    Case { name, mode: "STRICT", policies: policies.collect(), expected }
}

fn cases() -> Vec<Case> {
    let when = |name, action: &str, condition: Value, expected| Case {
        name,
        mode: "STRICT",
        policies: vec![policy("p", action, &json!([{ "when": [condition] }]))],
        expected,
    };
    let permissive = |case: Case| Case { mode: "PERMISSIVE", ..case };
    let strict = vec![
        sources("nothing is said", &[], [200, 200, 0]),
        sources("a principal", &[("ALLOW", json!({ "principals": [CLIENT] }))], [200, 403, 0]),
        sources("several", &[("ALLOW", json!({ "principals": [CLIENT, OTHER] }))], [200, 200, 0]),
        sources("by its end", &[("ALLOW", json!({ "principals": ["*/sa/other"] }))], [403, 200, 0]),
        sources(
            "by its beginning",
            &[("ALLOW", json!({ "principals": ["cluster.local/ns/def*"] }))],
            [200, 403, 0],
        ),
        sources("any", &[("ALLOW", json!({ "principals": ["*"] }))], [200, 200, 0]),
        sources(
            "a stranger",
            &[("ALLOW", json!({ "principals": ["cluster.local/ns/default/sa/clien"] }))],
            [403, 403, 0],
        ),
        sources(
            "another trust domain",
            &[("ALLOW", json!({ "principals": ["else.where/ns/default/sa/client"] }))],
            [403, 403, 0],
        ),
        sources(
            "an alias of the trust domain",
            &[("ALLOW", json!({ "principals": ["former/ns/default/sa/client"] }))],
            [200, 403, 0],
        ),
        sources("all but one", &[("ALLOW", json!({ "notPrincipals": [CLIENT] }))], [403, 200, 0]),
        sources("a namespace", &[("ALLOW", json!({ "namespaces": ["elsewhere"] }))], [403, 200, 0]),
        sources("all but a namespace", &[("ALLOW", json!({ "notNamespaces": ["else*"] }))], [200, 403, 0]),
        sources(
            "a service account",
            &[("ALLOW", json!({ "serviceAccounts": ["client", "elsewhere/nobody"] }))],
            [200, 403, 0],
        ),
        sources(
            "both must be so",
            &[("ALLOW", json!({ "principals": [CLIENT], "namespaces": ["elsewhere"] }))],
            [403, 403, 0],
        ),
        sources("denied", &[("DENY", json!({ "principals": [OTHER] }))], [200, 403, 0]),
        sources("all but one are denied", &[("DENY", json!({ "notPrincipals": [CLIENT] }))], [200, 403, 0]),
        sources(
            "denial is first",
            &[("ALLOW", json!({ "principals": ["*"] })), ("DENY", json!({ "principals": [CLIENT] }))],
            [403, 200, 0],
        ),
        sources(
            "allowed, and not denied",
            &[("ALLOW", json!({ "principals": [CLIENT] })), ("DENY", json!({ "namespaces": ["elsewhere"] }))],
            [200, 403, 0],
        ),
        sources(
            "one of two is enough",
            &[
                ("ALLOW", json!({ "principals": [CLIENT] })),
                ("ALLOW", json!({ "namespaces": ["elsewhere"] })),
            ],
            [200, 200, 0],
        ),
        Case {
            name: "no rules",
            mode: "STRICT",
            policies: vec![policy("p", "ALLOW", &json!([]))],
            expected: [403, 403, 0],
        },
        Case {
            name: "the empty rule",
            mode: "STRICT",
            policies: vec![policy("p", "DENY", &json!([{}]))],
            expected: [403, 403, 0],
        },
        when("a condition", "ALLOW", json!({ "key": "source.principal", "values": [CLIENT] }), [200, 403, 0]),
        when(
            "a condition that is not met",
            "DENY",
            json!({ "key": "source.namespace", "notValues": ["default"] }),
            [200, 403, 0],
        ),
    ];
    // Who comes in plain text is nobody.
    let open = [
        sources("nothing is said", &[], [200, 200, 200]),
        sources("a principal", &[("ALLOW", json!({ "principals": ["*"] }))], [200, 200, 403]),
        sources("a namespace", &[("ALLOW", json!({ "namespaces": ["*"] }))], [200, 200, 403]),
        sources("all but one are denied", &[("DENY", json!({ "notPrincipals": [CLIENT] }))], [200, 403, 403]),
        sources("denied", &[("DENY", json!({ "principals": ["*"] }))], [403, 403, 200]),
    ];
    strict.into_iter().chain(open.into_iter().map(permissive)).collect()
}

fn called(caller: Option<&Workload>, server: &Workload, path: &str) -> u16 {
    let answer = match caller {
        Some(caller) => caller.call("server", path, ""),
        None => ask((server.address, INBOUND).into(), "GET", path, ""),
    };
    answer.map_or(0, |(status, _)| status)
}

fn as_written(config: &Value) {
    let mesh = Mesh::start();
    let meshwide = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": "istio", "namespace": "istio-system" },
        "data": { "mesh": "trustDomainAliases: [former]\n" },
    });
    let once = destination("server", &json!({ "http": { "maxRequestsPerConnection": 1 } }));
    let base = |mode: &str| vec![meshwide.clone(), once.clone(), mutual(mode)];
    mesh.write_as("rules.yaml", &base("STRICT"));
    let server = mesh.workload("server", config, &[]);
    let (client, other) = (mesh.workload("client", config, &[]), mesh.workload("other", config, &[]));
    for workload in [&server, &client, &other] {
        mesh.until_ready(workload);
    }
    for caller in [&client, &other] {
        mesh.until("they talk", || called(Some(caller), &server, "/x") == 200);
    }
    let mut wrong = Vec::new();
    for (index, Case { name, mode, policies, expected }) in cases().into_iter().enumerate() {
        // What is there when this path is denied came along with it: before, nothing was.
        let path = format!("/case-{index}");
        let marker = policy("marker", "DENY", &json!([{ "to": [{ "operation": { "paths": [path] } }] }]));
        let all = base(mode).into_iter().chain([marker]).chain(policies);
        mesh.write_as("rules.yaml", &all.collect::<Vec<_>>());
        mesh.until(name, || called(Some(&client), &server, &path) == 403);
        let found = [Some(&client), Some(&other), None].map(|caller| called(caller, &server, "/x"));
        if found != expected {
            wrong.push(format!("{mode}, {name}: {found:?}, not {expected:?}"));
        }
        mesh.write_as("rules.yaml", &base(mode));
        mesh.until("nothing is denied", || called(Some(&client), &server, &path) == 200);
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", mesh.logs());
}

#[test]
fn our_proxies_allow_and_deny_as_written() {
    as_written(&json!({}));
}

#[test]
fn envoys_allow_and_deny_as_written() {
    let Some(envoy) = leno_testkit::envoy::binary() else { return };
    as_written(&json!({ "binaryPath": envoy }));
}

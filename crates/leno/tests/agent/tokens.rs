//! RequestAuthentications end to end: tokens of issuers that are asked where their keys are, or have them at
//! an address, over HTTP and HTTPS.

use serde_json::{Value, json};

use crate::issuer::{Issuer, Key, SKEW};
use crate::mesh::{Mesh, Workload, destination, mutual, policy};

/// A rule for a path, and who may use it: of sources and conditions those that are not empty.
fn rule(path: &str, source: &Value, when: &Value) -> Value {
    let mut rule = json!({ "to": [{ "operation": { "paths": [path] } }] });
    if source.as_object().is_some_and(|source| !source.is_empty()) {
        rule["from"] = json!([{ "source": source }]);
    }
    if when.as_array().is_some_and(|when| !when.is_empty()) {
        rule["when"] = when.clone();
    }
    rule
}

struct Issuers {
    /// Is asked where its keys are.
    asked: Issuer,
    /// Is as well, over HTTPS.
    secure: Issuer,
    /// Has its keys at an address that is given, over HTTPS.
    given: Issuer,
}

impl Issuers {
    fn objects(&self) -> Vec<Value> {
        let Issuers { asked, secure, given } = self;
        let alice = format!("{}/alice", asked.name);
        let token = json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "RequestAuthentication",
            "metadata": { "name": "server", "namespace": "default" },
            "spec": {
                "selector": { "matchLabels": { "app": "server" } },
                "jwtRules": [
                    {
                        "issuer": asked.name,
                        "audiences": ["shop", "store"],
                        "forwardOriginalToken": true,
                        "outputClaimToHeaders": [
                            { "header": "x-subject", "claim": "sub" },
                            { "header": "x-group", "claim": "about.group" },
                        ],
                    },
                    { "issuer": secure.name, "fromParams": ["token"], "outputPayloadToHeader": "x-payload" },
                    {
                        "issuer": given.name,
                        "jwksUri": given.keys_uri(),
                        "fromHeaders": [{ "name": "x-token", "prefix": "Token " }],
                    },
                ],
            },
        });
        let anybody = json!({});
        let allow = policy(
            "allow",
            "ALLOW",
            &json!([
                rule("/open*", &anybody, &json!([])),
                rule("/any", &json!({ "requestPrincipals": ["*"] }), &json!([])),
                rule("/alice", &json!({ "requestPrincipals": [alice] }), &json!([])),
                rule("/ali-end", &json!({ "requestPrincipals": ["*/alice"] }), &json!([])),
                rule("/not-alice", &json!({ "notRequestPrincipals": [alice] }), &json!([])),
                rule("/given", &json!({ "requestPrincipals": [format!("{}/*", given.name)] }), &json!([])),
                rule(
                    "/admins",
                    &json!({ "requestPrincipals": ["*"] }),
                    &json!([{ "key": "request.auth.claims[groups]", "values": ["admins"] }]),
                ),
                rule("/shop", &anybody, &json!([{ "key": "request.auth.audiences", "values": ["shop"] }]),),
            ]),
        );
        // The usual way to ask for a token, by a denial.
        let deny = policy(
            "deny",
            "DENY",
            &json!([rule("/open-not", &json!({ "notRequestPrincipals": ["*"] }), &json!([]))]),
        );
        let once = destination("server", &json!({ "http": { "maxRequestsPerConnection": 1 } }));
        vec![token, allow, deny, once, mutual("STRICT")]
    }
}

/// What somebody gets who shows a token in a header.
fn shown(client: &Workload, path: &str, token: &str) -> (u16, String) {
    let header = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    client.call("server", path, &header).unwrap_or_else(|error| (0, error.to_string()))
}

fn end_to_end(config: &Value) {
    let roots = tempfile::tempdir().expect("a folder");
    let (secure_roots, given_roots) = (roots.path().join("secure.pem"), roots.path().join("given.pem"));
    let issuers = Issuers {
        asked: Issuer::http(),
        secure: Issuer::https(&secure_roots),
        given: Issuer::https(&given_roots),
    };
    let all = roots.path().join("all.pem");
    let text = [secure_roots, given_roots].map(|file| std::fs::read_to_string(file).expect("roots")).concat();
    std::fs::write(&all, text).expect("writable");
    let trusted = all.to_str().expect("a path");
    let mesh =
        Mesh::start_with(1, &[("PILOT_JWT_PUB_KEY_REFRESH_INTERVAL", "1s"), ("SSL_CERT_FILE", trusted)]);
    let Issuers { asked, secure, given } = &issuers;
    let (rsa, elliptic) = (Key::rs256("first"), Key::es256("second"));
    // Who does not answer at first is asked again.
    mesh.write_as("rules.yaml", &issuers.objects());
    let variables = [("SSL_CERT_FILE", trusted.to_owned())];
    let server = mesh.workload("server", config, &variables);
    let client = mesh.workload("client", config, &variables);
    mesh.until_ready(&server);
    mesh.until_ready(&client);
    mesh.until("they talk", || shown(&client, "/open", "").0 == 200);
    let good = asked.claims("alice", "shop");
    let (status, words) = shown(&client, "/alice", &rsa.sign(&good));
    assert_eq!(status, 401, "without keys no token is good: {words}");

    for issuer in [asked, secure, given] {
        issuer.publish(&[&rsa, &elliptic]);
    }
    mesh.until("the keys are known", || shown(&client, "/alice", &rsa.sign(&good)).0 == 200);

    let but = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    let time = |offset: i64| good["iat"].as_i64().expect("a time") + offset;
    let skew = i64::try_from(SKEW.as_secs()).expect("short");
    let stranger = Key::rs256("first");
    let unknown = Key::es256("third");
    let forged = {
        let token = rsa.sign(&good);
        let (head, _) = token.rsplit_once('.').expect("a token");
        let other = rsa.sign(&but("sub", json!("mallory")));
        format!("{head}.{}", other.rsplit_once('.').expect("a token").1)
    };
    let unsigned = {
        let token = rsa.sign(&good);
        let claims = token.split('.').nth(1).expect("claims");
        format!("{}.{claims}.", leno_base::base64::encode_url(br#"{"alg":"none"}"#))
    };
    let groups = but("groups", json!(["users", "admins"]));
    let nobody = issuers.given.claims("alice", "shop");
    let mut wrong = Vec::new();
    let denied = (403, "RBAC: access denied");
    let refused = |words| (401, words);
    for (what, path, token, expected) in [
        ("RS256", "/alice", rsa.sign(&good), (200, "")),
        ("ES256", "/alice", elliptic.sign(&good), (200, "")),
        ("a list of audiences", "/alice", rsa.sign(&but("aud", json!(["x", "store"]))), (200, "")),
        ("no token where none is needed", "/open", String::new(), (200, "")),
        ("a token where none is needed", "/open", rsa.sign(&good), (200, "")),
        ("no token", "/alice", String::new(), denied),
        ("no token for any principal", "/any", String::new(), denied),
        ("another subject", "/alice", rsa.sign(&but("sub", json!("bob"))), denied),
        ("any principal", "/any", rsa.sign(&but("sub", json!("bob"))), (200, "")),
        ("a principal by its end", "/ali-end", rsa.sign(&good), (200, "")),
        ("not this one", "/not-alice", rsa.sign(&good), denied),
        ("not this one, but another", "/not-alice", rsa.sign(&but("sub", json!("bob"))), (200, "")),
        ("denied without a token", "/open-not", String::new(), denied),
        ("not denied with one", "/open-not", rsa.sign(&good), (200, "")),
        ("a claim", "/admins", rsa.sign(&groups), (200, "")),
        ("another claim", "/admins", rsa.sign(&but("groups", json!(["users"]))), denied),
        ("an audience by a condition", "/shop", rsa.sign(&good), (200, "")),
        ("another audience by a condition", "/shop", rsa.sign(&but("aud", json!("store"))), denied),
        (
            "another issuer",
            "/alice",
            rsa.sign(&but("iss", json!("https://elsewhere.example"))),
            refused("Jwt issuer is not configured"),
        ),
        (
            "an issuer's token in another's place",
            "/any",
            rsa.sign(&nobody),
            refused("Jwt issuer is not configured"),
        ),
        (
            "another audience",
            "/alice",
            rsa.sign(&but("aud", json!("bank"))),
            (403, "Audiences in Jwt are not allowed"),
        ),
        ("expired", "/alice", rsa.sign(&but("exp", json!(time(-skew)))), refused("Jwt is expired")),
        ("not yet", "/alice", rsa.sign(&but("nbf", json!(time(600)))), refused("Jwt not yet valid")),
        ("a stranger's signature", "/alice", stranger.sign(&good), refused("Jwt verification fails")),
        (
            "a key that is not known",
            "/alice",
            unknown.sign(&good),
            refused("Jwks doesn't have key to match kid or alg from Jwt"),
        ),
        ("another token's signature", "/alice", forged, refused("Jwt verification fails")),
        ("no signature", "/alice", unsigned, refused("")),
        (
            "no token at all",
            "/alice",
            "x".to_owned(),
            refused("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"),
        ),
        (
            "a bad one where none is needed",
            "/open",
            rsa.sign(&but("exp", json!(1))),
            refused("Jwt is expired"),
        ),
    ] {
        let (status, words) = shown(&client, path, &token);
        if status != expected.0 || (status != 200 && !words.contains(expected.1)) {
            wrong.push(format!("{what}: {status} {words:?}, not {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");

    // What applications are told.
    let claims = but("about", json!({ "group": "buyers" }));
    let (_, head) = shown(&client, "/open", &rsa.sign(&claims));
    let head = head.to_ascii_lowercase();
    for words in ["x-subject: alice\r\n", "x-group: buyers\r\n", "authorization: bearer "] {
        assert!(head.contains(words), "{words:?}: {head}");
    }
    // Nobody else says so.
    let lies = "X-Subject: root\r\nX-Group: root\r\n";
    let (_, head) = client.call("server", "/open", lies).expect("an answer");
    assert!(!head.to_ascii_lowercase().contains("root"), "{head}");

    // In other places, by keys that came over HTTPS.
    let token = elliptic.sign(&secure.claims("carol", "anybody"));
    mesh.until("keys come over HTTPS", || shown(&client, &format!("/any?token={token}"), "").0 == 200);
    let (_, head) = shown(&client, &format!("/open?token={token}"), "");
    assert!(head.to_ascii_lowercase().contains("x-payload: "), "{head}");
    let token = rsa.sign(&given.claims("dave", "anybody"));
    let call = |prefix: &str, path: &str| {
        let header = format!("X-Token: {prefix}{token}\r\n");
        client.call("server", path, &header).expect("an answer")
    };
    mesh.until("keys come from where it is said", || call("Token ", "/given").0 == 200);
    let (_, head) = call("Token ", "/open");
    assert!(!head.to_ascii_lowercase().contains("x-token"), "it is not passed on: {head}");
    assert_eq!(call("", "/given").0, 403, "without the prefix there is no token");
    assert_eq!(shown(&client, "/given", &rsa.sign(&good)).0, 403, "it is another issuer's");

    // The issuer changes its keys.
    let (old, new) = (elliptic.sign(&good), Key::es256("fourth"));
    let next = new.sign(&good);
    assert_eq!(shown(&client, "/alice", &next).0, 401);
    asked.publish(&[&rsa, &elliptic, &new]);
    mesh.until("the new key is known", || shown(&client, "/alice", &next).0 == 200);
    assert_eq!(shown(&client, "/alice", &old).0, 200, "the old one still is");
    asked.publish(&[&new]);
    mesh.until("the old one is not any more", || shown(&client, "/alice", &old).0 == 401);
    assert_eq!(shown(&client, "/alice", &next).0, 200);
}

#[test]
fn tokens_at_our_proxies() {
    end_to_end(&json!({}));
}

#[test]
fn tokens_at_envoys() {
    let Some(envoy) = leno_testkit::envoy::binary() else { return };
    end_to_end(&json!({ "binaryPath": envoy }));
}

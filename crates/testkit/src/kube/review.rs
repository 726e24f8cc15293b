//! Who somebody is and what he may do: tokens, and reviews of them.

use std::time::{Duration, UNIX_EPOCH};

use leno_base::base64;
use serde_json::{Value, json};

use super::object::text;
use super::rbac::Attributes;
use super::state::{State, User};
use super::time;

/// Who sends a request, by its `authorization` header; `None`: nobody who is known.
pub(super) fn authenticate(state: &State, header: Option<&str>) -> Option<User> {
    if let Some(token) = header.and_then(|header| header.strip_prefix("Bearer ")) {
        return state.tokens.get(token.trim()).cloned();
    }
    let anonymous =
        || User { name: "system:anonymous".to_owned(), groups: vec!["system:unauthenticated".to_owned()] };
    (!state.authenticate).then(anonymous)
}

/// A token for a service account (`TokenRequest`): a JWT in form, of which the server remembers whom
/// it is for; its signature means nothing to others.
pub(super) fn issue(state: &mut State, namespace: &str, name: &str, request: &Value) -> Value {
    let seconds = request.pointer("/spec/expirationSeconds").and_then(Value::as_u64).unwrap_or(3600);
    let default = json!(["https://kubernetes.default.svc"]);
    let audiences =
        request.pointer("/spec/audiences").filter(|it| it.as_array().is_some_and(|it| !it.is_empty()));
    let audiences = audiences.cloned().unwrap_or(default);
    let now = state.now();
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let user = format!("system:serviceaccount:{namespace}:{name}");
    let uid = state
        .find_raw("", "serviceaccounts", namespace, name)
        .map(|account| text(&account, &["metadata", "uid"]).to_owned());
    let mut claims = json!({
        "aud": audiences,
        "exp": since + seconds,
        "iat": since,
        "nbf": since,
        "iss": "https://kubernetes.default.svc",
        "jti": state.uid(),
        "kubernetes.io": { "namespace": namespace, "serviceaccount": { "name": name, "uid": uid } },
        "sub": user,
    });
    if let Some(pod) = request.pointer("/spec/boundObjectRef").filter(|it| text(it, &["kind"]) == "Pod") {
        claims["kubernetes.io"]["pod"] = json!({ "name": pod["name"], "uid": pod["uid"] });
    }
    let signature = state.random().to_be_bytes();
    let header = json!({ "alg": "RS256", "kid": "testkit" });
    let token = format!(
        "{}.{}.{}",
        base64::encode_url(header.to_string().as_bytes()),
        base64::encode_url(claims.to_string().as_bytes()),
        base64::encode_url(&signature)
    );
    let groups = [
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
        "system:authenticated".to_owned(),
    ];
    state.tokens.insert(token.clone(), User { name: user, groups: groups.to_vec() });
    json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "metadata": { "name": name, "namespace": namespace },
        "spec": { "audiences": audiences, "expirationSeconds": seconds },
        "status": { "token": token, "expirationTimestamp": time::rfc3339(now + Duration::from_secs(seconds)) },
    })
}

/// Answers a review, by adding its status.
pub(super) fn answer(state: &State, user: &User, kind: &str, mut review: Value) -> Value {
    let spec = review.get("spec").cloned().unwrap_or_default();
    let status = match kind {
        "TokenReview" => token_review(state, &spec),
        "SelfSubjectReview" => json!({ "userInfo": { "username": user.name, "groups": user.groups } }),
        "SelfSubjectRulesReview" => json!({
            "resourceRules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }],
            "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
            "incomplete": false,
        }),
        _ => {
            let groups = spec.get("groups").and_then(Value::as_array).into_iter().flatten();
            let groups = groups.filter_map(|group| group.as_str().map(str::to_owned));
            let asked = match spec.get("user").and_then(Value::as_str) {
                Some(name) => User { name: name.to_owned(), groups: groups.collect() },
                None => user.clone(),
            };
            let attribute = |name: &str| text(&spec, &["resourceAttributes", name]);
            let wanted = Attributes {
                verb: attribute("verb"),
                group: attribute("group"),
                resource: attribute("resource"),
                subresource: attribute("subresource"),
                namespace: attribute("namespace"),
                name: attribute("name"),
            };
            let denied = state.is_denied(&asked, &wanted);
            json!({ "allowed": !denied })
        }
    };
    if let Some(map) = review.as_object_mut() {
        map.entry("metadata").or_insert_with(|| json!({}));
        map.insert("status".to_owned(), status);
    }
    review
}

fn token_review(state: &State, spec: &Value) -> Value {
    let token = text(spec, &["token"]);
    let Some(user) = state.tokens.get(token) else {
        return json!({ "authenticated": false, "error": "invalid bearer token" });
    };
    let claims = token.split('.').nth(1).and_then(|claims| base64::decode_json(claims.as_bytes()));
    let claims: Value = claims.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let now = state.now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    if claims.get("exp").and_then(Value::as_u64).is_some_and(|end| end <= now) {
        return json!({ "authenticated": false, "error": "token has expired" });
    }
    let granted: Vec<Value> = claims.get("aud").and_then(Value::as_array).cloned().unwrap_or_default();
    let wanted: Vec<Value> = spec.get("audiences").and_then(Value::as_array).cloned().unwrap_or_default();
    let audiences: Vec<Value> = if wanted.is_empty() {
        granted
    } else {
        let both: Vec<Value> =
            wanted.iter().filter(|it| granted.is_empty() || granted.contains(it)).cloned().collect();
        if both.is_empty() {
            return json!({ "authenticated": false, "error": "token audiences are invalid for the target audiences" });
        }
        both
    };
    let uid = claims.pointer("/kubernetes.io/serviceaccount/uid").cloned().unwrap_or(Value::from(""));
    let mut extra = serde_json::Map::new();
    for (name, at) in [("pod-name", "/kubernetes.io/pod/name"), ("pod-uid", "/kubernetes.io/pod/uid")] {
        if let Some(value) = claims.pointer(at) {
            extra.insert(format!("authentication.kubernetes.io/{name}"), json!([value]));
        }
    }
    json!({
        "authenticated": true,
        "user": { "username": user.name, "groups": user.groups, "uid": uid, "extra": extra },
        "audiences": audiences,
    })
}

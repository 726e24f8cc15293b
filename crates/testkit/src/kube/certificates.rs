//! CertificateSigningRequests: what the server checks and keeps of them, and a controller that plays signers.
//!
//! A request says who has made it, whoever that says he is; only its conditions change by `approval`, only its
//! certificate and other conditions by `status`, nothing by anything else. Who approves must be allowed to `approve`
//! the signer, who signs to `sign` it.

use leno_base::base64;
use serde_json::{Value, json};

use super::object::{Target, text};
use super::rbac::Attributes;
use super::state::{State, User};
use super::status::Failure;
use super::store::ResourceName;
use super::time;

const GROUP: &str = "certificates.k8s.io";
const PLURAL: &str = "certificatesigningrequests";

/// The shortest life that may be asked for, in seconds.
const SHORTEST: i64 = 600;

/// A request, as signers see it.
#[derive(Clone, Debug)]
pub struct SigningRequest {
    /// The signer that is asked.
    pub signer: String,
    /// The request (PKCS #10), PEM.
    pub request: Vec<u8>,
    /// Whether it was approved.
    pub approved: bool,
    /// All that was asked for.
    pub spec: Value,
}

/// What a signer makes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The certificate and those above it, PEM.
    Signed(String),
    /// An approver says no, for this reason.
    Denied(String),
    /// It cannot be signed, for this reason.
    Failed(String),
}

/// Plays all signers; `None`: nothing happens yet.
pub(super) type Signers = Box<dyn Fn(&SigningRequest) -> Option<Verdict> + Send>;

/// Whether an object is one.
pub(super) fn is_one(target: &Target) -> bool {
    target.resource.group == GROUP && target.resource.plural == PLURAL
}

fn name() -> ResourceName {
    (GROUP.to_owned(), PLURAL.to_owned())
}

/// Says who makes a request, and what is wrong with it.
///
/// # Errors
/// What is.
pub(super) fn on_create(target: &Target, user: &User, object: &mut Value) -> Result<(), Failure> {
    let mut faults = Vec::new();
    let mut fault = |path: &str, words: &str| faults.push((path.to_owned(), words.to_owned()));
    let request = base64::decode(text(object, &["spec", "request"]).as_bytes()).unwrap_or_default();
    if !String::from_utf8_lossy(&request).trim_start().starts_with("-----BEGIN CERTIFICATE REQUEST-----") {
        fault("spec.request", "Invalid value: PEM block type must be CERTIFICATE REQUEST");
    }
    let parts: Vec<&str> = text(object, &["spec", "signerName"]).split('/').collect();
    if !matches!(parts.as_slice(), [domain, path] if domain.contains('.') && !path.is_empty()) {
        fault(
            "spec.signerName",
            "Invalid value: must be a fully qualified domain and path of the form 'example.com/signer-name'",
        );
    }
    let usages = object.pointer("/spec/usages").and_then(Value::as_array);
    if usages.is_none_or(Vec::is_empty) {
        fault("spec.usages", "Required value");
    }
    if object.pointer("/spec/expirationSeconds").and_then(Value::as_i64).is_some_and(|life| life < SHORTEST) {
        fault(
            "spec.expirationSeconds",
            "Invalid value: may not specify a duration less than 600 seconds (10 minutes)",
        );
    }
    if !faults.is_empty() {
        return Err(target.invalid(&faults));
    }
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("username".to_owned(), Value::from(user.name.as_str()));
        spec.insert("groups".to_owned(), Value::from(user.groups.clone()));
    }
    Ok(())
}

fn conditions(object: &Value) -> Vec<Value> {
    object.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default()
}

fn has(object: &Value, kind: &str) -> bool {
    conditions(object).iter().any(|condition| text(condition, &["type"]) == kind)
}

fn is_decision(condition: &Value) -> bool {
    matches!(text(condition, &["type"]), "Approved" | "Denied")
}

/// What a change makes of a request.
///
/// # Errors
/// It is not allowed.
pub(super) fn on_update(
    state: &mut State,
    user: &User,
    target: &Target,
    live: &Value,
    changed: &mut Value,
) -> Result<(), Failure> {
    let signer = text(live, &["spec", "signerName"]).to_owned();
    let mut wanted = changed["status"].clone();
    let mut status = live.get("status").cloned().unwrap_or_else(|| json!({}));
    changed["spec"] = live["spec"].clone();
    match target.subresource.as_str() {
        "approval" => {
            may(state, user, "approve", &signer)?;
            status["conditions"] = wanted["conditions"].take();
        }
        "status" => {
            may(state, user, "sign", &signer)?;
            let old = text(live, &["status", "certificate"]);
            if !old.is_empty() && old != text(&wanted, &["certificate"]) {
                let words = "Forbidden: updates may not modify or remove the certificate".to_owned();
                return Err(target.invalid(&[("status.certificate".to_owned(), words)]));
            }
            let decisions = conditions(live).into_iter().filter(is_decision);
            let others = conditions(changed).into_iter().filter(|condition| !is_decision(condition));
            let all: Vec<Value> = decisions.chain(others).collect();
            status = wanted;
            status["conditions"] = Value::from(all);
        }
        _ => {}
    }
    changed["status"] = status;
    let gone = ["Approved", "Denied", "Failed"].iter().find(|kind| has(live, kind) && !has(changed, kind));
    let words = match gone {
        Some(kind) => format!("Forbidden: updates may not remove a condition of type {kind:?}"),
        None if has(changed, "Approved") && has(changed, "Denied") => {
            "Invalid value: Approved and Denied conditions are mutually exclusive".to_owned()
        }
        None => {
            let unfit = |condition: &Value| {
                matches!(text(condition, &["type"]), "Approved" | "Denied" | "Failed")
                    && text(condition, &["status"]) != "True"
            };
            match conditions(changed).iter().any(unfit) {
                true => "Invalid value: may not be \"False\" or \"Unknown\"".to_owned(),
                false => return Ok(()),
            }
        }
    };
    Err(target.invalid(&[("status.conditions".to_owned(), words)]))
}

/// Whether somebody may do this to a signer, or to all of its domain.
fn may(state: &mut State, user: &User, verb: &str, signer: &str) -> Result<(), Failure> {
    let domain = format!("{}/*", signer.split('/').next().unwrap_or_default());
    let of = |name| Attributes { verb, group: GROUP, resource: "signers", name, ..Attributes::default() };
    if !state.is_denied(user, &of(&domain)) {
        return Ok(());
    }
    state.check(user, &of(signer)).map_err(|_| {
        let words = format!("user not permitted to {verb} requests with signerName {signer:?}");
        Failure::new(403, "Forbidden", words)
    })
}

/// Shows signers the requests that nothing has become of.
pub(super) fn look(state: &mut State) {
    let Some(signers) = state.signers.take() else { return };
    let all: Vec<Value> = state.store.list(&name(), "").map(|object| Value::clone(object)).collect();
    for mut object in all {
        let is_over = !text(&object, &["status", "certificate"]).is_empty()
            || has(&object, "Denied")
            || has(&object, "Failed");
        let seen = SigningRequest {
            signer: text(&object, &["spec", "signerName"]).to_owned(),
            request: base64::decode(text(&object, &["spec", "request"]).as_bytes()).unwrap_or_default(),
            approved: has(&object, "Approved"),
            spec: object["spec"].clone(),
        };
        let Some(verdict) = signers(&seen).filter(|_| !is_over) else { continue };
        let mut all = conditions(&object);
        let now = time::rfc3339(state.now());
        let mut add = |kind: &str, reason: String| {
            all.push(json!({ "type": kind, "status": "True", "reason": reason, "message": "by a test",
                "lastUpdateTime": now, "lastTransitionTime": now }));
        };
        match verdict {
            // Signers leave alone what was not approved, and approvers what was.
            Verdict::Signed(_) | Verdict::Failed(_) if !seen.approved => continue,
            Verdict::Denied(_) if seen.approved => continue,
            Verdict::Denied(reason) => add("Denied", reason),
            Verdict::Failed(reason) => add("Failed", reason),
            Verdict::Signed(pem) => {
                object["status"]["certificate"] = Value::from(base64::encode(pem.as_bytes()));
            }
        }
        object["status"]["conditions"] = Value::from(all);
        let key = (String::new(), text(&object, &["metadata", "name"]).to_owned());
        state.store.set(&name(), &key, object);
    }
    state.signers = Some(signers);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Target, Verdict, look, on_create, on_update};
    use crate::kube::state::{Shared, State, User, lock};

    fn user() -> User {
        User { name: "istiod".to_owned(), groups: vec!["system:masters".to_owned()] }
    }

    fn target(state: &State, subresource: &str) -> Target {
        let resource = state.resource("certificates.k8s.io", "v1", "certificatesigningrequests");
        Target {
            resource: resource.expect("it is built in"),
            version: "v1".to_owned(),
            namespace: String::new(),
            name: "a".to_owned(),
            subresource: subresource.to_owned(),
        }
    }

    fn made() -> Value {
        let pem = leno_base::base64::encode(b"-----BEGIN CERTIFICATE REQUEST-----");
        json!({ "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": { "name": "a" },
            "spec": { "request": pem, "signerName": "a.b/c", "usages": ["client auth"], "username": "admin" } })
    }

    #[test]
    fn what_is_refused() {
        let shared = Shared::new();
        let state = lock(&shared.state);
        let target = target(&state, "");
        let mut good = made();
        on_create(&target, &user(), &mut good).expect("it is good");
        assert_eq!(good["spec"]["username"], "istiod", "whatever it says");
        for (at, value, words) in [
            ("/spec/request", json!("eA=="), "spec.request"),
            ("/spec/signerName", json!("c"), "spec.signerName"),
            ("/spec/signerName", json!("a.b/c/d"), "spec.signerName"),
            ("/spec/usages", json!([]), "spec.usages"),
            ("/spec", json!({ "expirationSeconds": 599 }), "spec.expirationSeconds"),
        ] {
            let mut bad = made();
            *bad.pointer_mut(at).expect("it is there") = value;
            let failure = on_create(&target, &user(), &mut bad).expect_err("it is bad");
            assert!(failure.message.contains(words), "{at}: {}", failure.message);
        }
    }

    /// Each subresource changes what is its own, and nothing is taken back.
    #[test]
    fn who_changes_what() {
        let shared = Shared::new();
        let mut state = lock(&shared.state);
        let condition = |kind: &str, status: &str| json!({ "type": kind, "status": status });
        let with = |conditions: Value, certificate: &str| {
            let mut object = made();
            object["status"] = json!({ "conditions": conditions, "certificate": certificate });
            object
        };
        let [approved, denied, failed] = ["Approved", "Denied", "Failed"].map(|kind| condition(kind, "True"));
        let mut changed = |subresource: &str, live: &Value, wanted: Value| {
            let target = target(&state, subresource);
            let mut object = wanted;
            on_update(&mut state, &user(), &target, live, &mut object).map(|()| object["status"].clone())
        };
        let fresh = with(json!([]), "");
        let yes = changed("approval", &fresh, with(json!([approved]), "eA==")).expect("it is allowed");
        assert_eq!(yes, json!({ "conditions": [approved], "certificate": "" }), "no certificate by this");
        let live = with(json!([approved]), "");
        let signed = changed("status", &live, with(json!([denied, failed]), "eA==")).expect("it is allowed");
        assert_eq!(
            signed,
            json!({ "conditions": [approved, failed], "certificate": "eA==" }),
            "no verdict by this"
        );
        for (subresource, live, wanted) in [
            ("approval", &live, with(json!([approved, denied]), "")),
            ("approval", &live, with(json!([]), "")),
            ("approval", &fresh, with(json!([condition("Approved", "False")]), "")),
            ("status", &with(json!([approved]), "eA=="), with(json!([approved]), "eQ==")),
        ] {
            let failure = changed(subresource, live, wanted).expect_err("it is not allowed");
            assert_eq!(failure.code, 422, "{}", failure.message);
        }
        let plain = changed("", &live, with(json!([denied]), "eA==")).expect("it is allowed");
        assert_eq!(plain, live["status"], "nothing by this");
    }

    #[test]
    fn signers_wait_for_approval() {
        let shared = Shared::new();
        let mut state = lock(&shared.state);
        state.put_raw(made()).expect("it is good");
        state.signers = Some(Box::new(|seen| {
            assert_eq!((seen.signer.as_str(), &seen.spec["usages"]), ("a.b/c", &json!(["client auth"])));
            Some(Verdict::Signed("pem".to_owned()))
        }));
        let found = |state: &mut State| {
            look(state);
            let found = state.find_raw("certificates.k8s.io", "certificatesigningrequests", "", "a");
            found.expect("it is there")
        };
        assert!(found(&mut state).pointer("/status/certificate").is_none());
        let mut approved = made();
        approved["status"] = json!({ "conditions": [{ "type": "Approved", "status": "True" }] });
        state.put_raw(approved).expect("it is good");
        assert_eq!(found(&mut state)["status"]["certificate"], "cGVt");
    }
}

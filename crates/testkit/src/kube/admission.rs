//! Admission webhooks: asked over HTTPS before something is stored.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::http::Call;
use super::object::{Target, text};
use super::patch;
use super::selector::Labels;
use super::state::{Shared, lock};
use super::status::Failure;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Create,
    Update,
    Delete,
}

impl Operation {
    fn word(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
        }
    }
}

/// What admission made of an object.
#[derive(Debug, Default)]
pub(super) struct Admitted {
    pub(super) object: Option<Value>,
    pub(super) warnings: Vec<String>,
}

/// Asks all webhooks that want to be: those that change first, then those that only judge.
///
/// # Errors
/// If one of them refuses, or cannot be reached and wants that to count as refusal.
pub(super) async fn admit(
    shared: &Arc<Shared>,
    call: &Call,
    target: &Target,
    operation: Operation,
    object: Option<Value>,
    old: Option<Value>,
) -> Result<Admitted, Failure> {
    let mut admitted = Admitted { object, warnings: Vec::new() };
    // As in the real one, what configures webhooks is not subject to them.
    if target.resource.group == "admissionregistration.k8s.io" {
        return Ok(admitted);
    }
    for (plural, mutates) in
        [("mutatingwebhookconfigurations", true), ("validatingwebhookconfigurations", false)]
    {
        for hook in hooks(shared, plural) {
            let about = admitted.object.as_ref().or(old.as_ref()).cloned().unwrap_or_default();
            if !wants(shared, &hook, target, operation, &about) {
                continue;
            }
            let review = review(shared, call, target, operation, &admitted, old.as_ref());
            let name = text(&hook, &["name"]).to_owned();
            let answer = match ask(shared, &hook, &review).await {
                Ok(answer) => answer,
                Err(_) if text(&hook, &["failurePolicy"]) == "Ignore" => continue,
                Err(why) => {
                    let message =
                        format!("Internal error occurred: failed calling webhook \"{name}\": {why}");
                    return Err(Failure::new(500, "InternalError", message));
                }
            };
            let warnings = answer.get("warnings").and_then(Value::as_array).into_iter().flatten();
            admitted.warnings.extend(warnings.filter_map(Value::as_str).map(str::to_owned));
            if answer.get("allowed") != Some(&Value::Bool(true)) {
                return Err(denial(&name, &answer));
            }
            if mutates && let Some(object) = &mut admitted.object {
                *object = patched(object, &answer)?;
            }
        }
    }
    Ok(admitted)
}

/// All webhooks in the order of their configurations' names.
fn hooks(shared: &Shared, plural: &str) -> Vec<Value> {
    let state = lock(&shared.state);
    let configurations =
        state.store.list(&("admissionregistration.k8s.io".to_owned(), plural.to_owned()), "");
    configurations.filter_map(|it| it.get("webhooks")?.as_array()).flatten().cloned().collect()
}

fn wants(shared: &Shared, hook: &Value, target: &Target, operation: Operation, object: &Value) -> bool {
    let resource = match target.subresource.as_str() {
        "" => target.resource.plural.clone(),
        subresource => format!("{}/{subresource}", target.resource.plural),
    };
    let ruled = hook.get("rules").and_then(Value::as_array).into_iter().flatten().any(|rule| {
        let any = |list: &str, value: &str| {
            let list = rule.get(list).and_then(Value::as_array).into_iter().flatten();
            list.filter_map(Value::as_str)
                .any(|it| it == "*" || it == value || (it == "*/*" && value.contains('/')))
        };
        let scope = match text(rule, &["scope"]) {
            "Namespaced" => target.resource.namespaced,
            "Cluster" => !target.resource.namespaced,
            _ => true,
        };
        // "*" among resources does not mean subresources.
        let resources = rule.get("resources").and_then(Value::as_array).into_iter().flatten();
        let mut resources = resources.filter_map(Value::as_str);
        let hit = resources.any(|it| {
            it == resource
                || (it == "*" && target.subresource.is_empty())
                || it == "*/*"
                || it.strip_suffix("/*").is_some_and(|plural| plural == target.resource.plural)
        });
        scope
            && hit
            && any("operations", operation.word())
            && any("apiGroups", &target.resource.group)
            && any("apiVersions", &target.version)
    });
    let selects = |field: &str, object: &Value| {
        hook.get(field).filter(|it| it.is_object()).is_none_or(|it| Labels::from_value(it).matches(object))
    };
    let namespace = match target.resource.kind.as_str() {
        "Namespace" => Some(object.clone()),
        _ if target.resource.namespaced => {
            lock(&shared.state).find_raw("", "namespaces", "", &target.namespace)
        }
        _ => None,
    };
    ruled
        && selects("objectSelector", object)
        && namespace.is_none_or(|namespace| selects("namespaceSelector", &namespace))
}

fn review(
    shared: &Shared,
    call: &Call,
    target: &Target,
    operation: Operation,
    admitted: &Admitted,
    old: Option<&Value>,
) -> Value {
    let resource = &target.resource;
    let kind = json!({ "group": resource.group, "version": target.version, "kind": resource.kind });
    let name = json!({ "group": resource.group, "version": target.version, "resource": resource.plural });
    let mut request = json!({
        "uid": lock(&shared.state).uid(),
        "kind": kind,
        "resource": name,
        "requestKind": kind,
        "requestResource": name,
        "name": target.name,
        "operation": operation.word(),
        "userInfo": { "username": call.user.name, "groups": call.user.groups },
        "object": admitted.object,
        "oldObject": old,
        "dryRun": call.is_dry_run(),
    });
    if let Some(map) = request.as_object_mut() {
        for (key, value) in [("namespace", &target.namespace), ("subResource", &target.subresource)] {
            if !value.is_empty() {
                map.insert(key.to_owned(), Value::from(value.as_str()));
            }
        }
    }
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request })
}

/// Asks one webhook; its `response`.
async fn ask(shared: &Shared, hook: &Value, review: &Value) -> Result<Value, String> {
    let seconds = hook.get("timeoutSeconds").and_then(Value::as_u64).unwrap_or(10);
    let asking = tokio::time::timeout(Duration::from_secs(seconds), post(shared, hook, review));
    let answer = asking.await.map_err(|_| "context deadline exceeded".to_owned())??;
    let response = answer.get("response").cloned().ok_or("webhook response is not an AdmissionReview")?;
    if text(&response, &["uid"]) != text(review, &["request", "uid"]) {
        return Err("expected response.uid to be the request's".to_owned());
    }
    Ok(response)
}

async fn post(shared: &Shared, hook: &Value, review: &Value) -> Result<Value, String> {
    let config = hook.get("clientConfig").cloned().unwrap_or_default();
    let url = text(&config, &["url"]);
    let (host, address, path) = if url.is_empty() {
        let (namespace, name) =
            (text(&config, &["service", "namespace"]), text(&config, &["service", "name"]));
        let address = {
            let state = lock(&shared.state);
            let routed = state.services.get(&format!("{namespace}/{name}")).copied();
            // Where there is a network of services its own address leads there.
            routed.or_else(|| {
                let service = state.find_raw("", "services", namespace, name).filter(|_| state.kubelet)?;
                let port = config.pointer("/service/port").and_then(Value::as_u64).unwrap_or(443);
                let address = text(&service, &["spec", "clusterIP"]).parse().ok()?;
                Some(SocketAddr::new(address, u16::try_from(port).ok()?))
            })
        };
        let address = address.ok_or_else(|| format!("service {namespace}/{name} has no address"))?;
        let path = text(&config, &["service", "path"]).to_owned();
        (format!("{name}.{namespace}.svc"), address.to_string(), path)
    } else {
        let uri: http::Uri = url.parse().map_err(|_| format!("{url:?} is no URL"))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let address = format!("{}:{}", uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(443));
        (host, address, uri.path().to_owned())
    };
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let stream = TcpStream::connect(&address).await.map_err(|error| told(&error))?;
    let mut roots = rustls::RootCertStore::empty();
    let bundle = leno_base::base64::decode(text(&config, &["caBundle"]).as_bytes()).unwrap_or_default();
    for certificate in CertificateDer::pem_slice_iter(&bundle) {
        let certificate = certificate.map_err(|error| told(&error))?;
        roots.add(certificate).map_err(|error| told(&error))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let tls = tls.map_err(|error| told(&error))?.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(host.clone()).map_err(|error| told(&error))?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let stream = connector.connect(name, stream).await.map_err(|error| told(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| told(&error))?;
    let driver = tokio::spawn(connection);
    let request = Request::post(if path.is_empty() { "/".to_owned() } else { path })
        .header("host", host)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(review.to_string())))
        .map_err(|error| told(&error))?;
    let response = sender.send_request(request).await.map_err(|error| told(&error))?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| told(&error))?.to_bytes();
    driver.abort();
    if !status.is_success() {
        return Err(format!("status {status}: {}", String::from_utf8_lossy(&body)));
    }
    serde_json::from_slice(&body).map_err(|error| told(&error))
}

fn denial(name: &str, answer: &Value) -> Failure {
    let why = text(answer, &["status", "message"]);
    let code = answer.pointer("/status/code").and_then(Value::as_u64).and_then(|it| u16::try_from(it).ok());
    let tail = if why.is_empty() { " without explanation".to_owned() } else { format!(": {why}") };
    let code = code.filter(|code| *code >= 400).unwrap_or(403);
    let reason = if code == 403 { "Forbidden" } else { "BadRequest" };
    Failure::new(code, reason, format!("admission webhook \"{name}\" denied the request{tail}"))
}

fn patched(object: &Value, answer: &Value) -> Result<Value, Failure> {
    let encoded = text(answer, &["patch"]);
    if encoded.is_empty() {
        return Ok(object.clone());
    }
    let broken = || Failure::new(500, "InternalError", "the patch of a webhook cannot be read");
    let bytes = leno_base::base64::decode(encoded.as_bytes()).ok_or_else(broken)?;
    let patch: Value = serde_json::from_slice(&bytes).map_err(|_| broken())?;
    patch::json_patch(object, &patch)
}

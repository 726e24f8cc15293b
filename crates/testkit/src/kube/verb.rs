//! What is done with single objects: read, create, update, patch, delete; and with what hangs on
//! them: scale, tokens, bindings, evictions.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::admission::{self, Operation};
use super::apply::{self, Manager};
use super::http::{Call, Reply};
use super::object::{DeleteOptions, Target, conform, is_same, text};
use super::patch;
use super::state::{Shared, lock};
use super::status::Failure;
use super::store::Key;
use super::strategic;
use super::typing::Typing;

/// How often a change is tried again when another came first.
const ATTEMPTS: usize = 10;

/// GET of one object.
pub(super) fn read(shared: &Shared, call: &Call, target: &Target) -> Result<Reply, Failure> {
    let state = lock(&shared.state);
    let live = state.store.find(&target.resource.name(), &target.key()).ok_or_else(|| target.not_found())?;
    match target.subresource.as_str() {
        "" => Ok(call.show(&state, target, &target.present(live))),
        "status" if target.has_status() => Ok(Reply::json(200, &target.present(live))),
        "approval" if super::certificates::is_one(target) => Ok(Reply::json(200, &target.present(live))),
        "scale" => Ok(Reply::json(200, &scale_of(target, live)?)),
        _ => Err(Failure::no_path()),
    }
}

/// POST to a collection.
pub(super) async fn create(shared: &Arc<Shared>, call: &Call, mut target: Target) -> Result<Reply, Failure> {
    let body = call.body()?;
    let mut object = lock(&shared.state).prepare_create(&mut target, body)?;
    let mut warnings = call.validated(&conform(&target, &mut object)?)?;
    let admitted = admission::admit(shared, call, &target, Operation::Create, Some(object), None).await?;
    let mut object = admitted.object.unwrap_or_default();
    warnings.extend(admitted.warnings);
    conform(&target, &mut object)?;
    if target.resource.kind == "Pod" && target.resource.group.is_empty() && target.subresource.is_empty() {
        let faults = super::pods::pod_faults(&object);
        if !faults.is_empty() {
            return Err(target.invalid(&faults));
        }
    }
    if super::certificates::is_one(&target) {
        super::certificates::on_create(&target, &call.user, &mut object)?;
    }
    let manager = manager(shared, call, &target, false);
    apply::track(None, &mut object, Typing::root(target.schema()), &manager);
    if call.is_dry_run() {
        return Ok(Reply::json(201, &object).with_warnings(warnings));
    }
    let mut state = lock(&shared.state);
    if state.store.find(&target.resource.name(), &target.key()).is_some() {
        return Err(Failure::exists(&target.resource.group, &target.resource.plural, &target.name));
    }
    let stored = state.commit(&target.resource, &target.key(), object);
    if super::certificates::is_one(&target) {
        super::certificates::look(&mut state);
    }
    Ok(Reply::json(201, &target.present(&stored)).with_warnings(warnings))
}

/// PUT of one object.
pub(super) async fn update(shared: &Arc<Shared>, call: &Call, target: &Target) -> Result<Reply, Failure> {
    let body = call.body()?;
    if target.subresource == "scale" {
        let replicas = body.pointer("/spec/replicas").cloned().unwrap_or(Value::from(0));
        return scale(shared, call, target, replicas).await;
    }
    change(shared, call, target, false, |_| Ok(body.clone())).await
}

/// PATCH of one object, in whatever form.
pub(super) async fn patch(shared: &Arc<Shared>, call: &Call, target: &Target) -> Result<Reply, Failure> {
    let body = call.body()?;
    if target.subresource == "scale" {
        let replicas = body.pointer("/spec/replicas").cloned().unwrap_or(Value::from(0));
        return scale(shared, call, target, replicas).await;
    }
    match call.content_type() {
        "application/json-patch+json" => {
            change(shared, call, target, false, |live| patch::json_patch(live, &body)).await
        }
        "application/merge-patch+json" => {
            let merge = |live: &Value| {
                let mut object = live.clone();
                patch::merge_patch(&mut object, &body);
                Ok(object)
            };
            change(shared, call, target, false, merge).await
        }
        "application/strategic-merge-patch+json" if !target.resource.custom => {
            let merge = |live: &Value| {
                let mut object = live.clone();
                strategic::merge(&mut object, &body)?;
                Ok(object)
            };
            change(shared, call, target, false, merge).await
        }
        "application/apply-patch+yaml" | "application/apply-patch+cbor" => {
            server_side_apply(shared, call, target, &body).await
        }
        other => Err(Failure::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format: {other:?} is not supported for patches of this resource"
            ),
        )),
    }
}

async fn server_side_apply(
    shared: &Arc<Shared>,
    call: &Call,
    target: &Target,
    body: &Value,
) -> Result<Reply, Failure> {
    if call.query.text("fieldManager").is_empty() {
        return Err(Failure::bad_request("fieldManager is required for apply patch"));
    }
    let mut config = body.clone();
    let managed = config
        .pointer("/metadata/managedFields")
        .is_some_and(|it| it.as_array().is_some_and(|it| !it.is_empty()));
    if managed {
        return Err(Failure::bad_request("metadata.managedFields must be nil"));
    }
    match target.subresource.as_str() {
        "" if target.has_status() => {
            if let Some(map) = config.as_object_mut() {
                map.shift_remove("status");
            }
        }
        "" => {}
        field => config = apply::only(&config, field),
    }
    let manager = manager(shared, call, target, true);
    let exists = lock(&shared.state).store.find(&target.resource.name(), &target.key()).is_some();
    if !exists {
        if !target.subresource.is_empty() {
            return Err(target.not_found());
        }
        return create_by_apply(shared, call, target.clone(), &config, &manager).await;
    }
    let force = call.query.flag("force");
    let merge = |live: &Value| {
        let live = target.present(live);
        let given = text(&config, &["metadata", "resourceVersion"]);
        if !given.is_empty() && given != text(&live, &["metadata", "resourceVersion"]) {
            return Err(target.conflict("the object has been modified"));
        }
        apply::apply(&live, &config, Typing::root(target.schema()), &manager, force)
    };
    change(shared, call, target, true, merge).await
}

async fn create_by_apply(
    shared: &Arc<Shared>,
    call: &Call,
    mut target: Target,
    config: &Value,
    manager: &Manager,
) -> Result<Reply, Failure> {
    let name = text(config, &["metadata", "name"]);
    if !name.is_empty() && name != target.name {
        return Err(Failure::bad_request("the name of the object does not match the name on the URL"));
    }
    let mut named = config.clone();
    if let Some(metadata) = super::object::metadata(&mut named) {
        metadata.insert("name".to_owned(), Value::from(target.name.as_str()));
    }
    let empty = json!({ "apiVersion": target.api_version(), "kind": target.resource.kind, "metadata": {} });
    let applied = apply::apply(&empty, &named, Typing::root(target.schema()), manager, true)?;
    let managed = applied.pointer("/metadata/managedFields").cloned().unwrap_or_default();
    let mut object = lock(&shared.state).prepare_create(&mut target, applied)?;
    let mut warnings = call.validated(&conform(&target, &mut object)?)?;
    let admitted = admission::admit(shared, call, &target, Operation::Create, Some(object), None).await?;
    let mut object = admitted.object.unwrap_or_default();
    warnings.extend(admitted.warnings);
    conform(&target, &mut object)?;
    if let Some(metadata) = super::object::metadata(&mut object) {
        metadata.insert("managedFields".to_owned(), managed);
    }
    if call.is_dry_run() {
        return Ok(Reply::json(201, &object).with_warnings(warnings));
    }
    let mut state = lock(&shared.state);
    if state.store.find(&target.resource.name(), &target.key()).is_some() {
        return Err(target.conflict("the object was created meanwhile"));
    }
    let stored = state.commit(&target.resource, &target.key(), object);
    Ok(Reply::json(201, &target.present(&stored)).with_warnings(warnings))
}

/// Changes a live object by a function of it, as often as another comes first.
async fn change(
    shared: &Arc<Shared>,
    call: &Call,
    target: &Target,
    applies: bool,
    edit: impl Fn(&Value) -> Result<Value, Failure>,
) -> Result<Reply, Failure> {
    let known = match target.subresource.as_str() {
        "" | "ephemeralcontainers" => true,
        "status" => target.has_status(),
        "approval" => super::certificates::is_one(target),
        "finalize" => target.resource.plural == "namespaces",
        _ => false,
    };
    if !known {
        return Err(Failure::no_path());
    }
    let manager = manager(shared, call, target, applies);
    for _ in 0..ATTEMPTS {
        let (live, candidate) = {
            let mut state = lock(&shared.state);
            let live = state.store.find(&target.resource.name(), &target.key()).cloned();
            let live = live.ok_or_else(|| target.not_found())?;
            let edited = edit(&target.present(&live))?;
            let mut candidate = state.prepare_update(target, &live, edited)?;
            if super::certificates::is_one(target) {
                super::certificates::on_update(&mut state, &call.user, target, &live, &mut candidate)?;
            }
            (live, candidate)
        };
        let mut candidate = candidate;
        let mut warnings = call.validated(&conform(target, &mut candidate)?)?;
        let old = target.present(&live);
        let admitted =
            admission::admit(shared, call, target, Operation::Update, Some(candidate), Some(old.clone()))
                .await?;
        let mut object = admitted.object.unwrap_or_default();
        warnings.extend(admitted.warnings);
        conform(target, &mut object)?;
        let unchanged = if applies { object == old } else { is_same(&old, &object) };
        if unchanged {
            return Ok(Reply::json(200, &old).with_warnings(warnings));
        }
        if !applies {
            apply::track(Some(&old), &mut object, Typing::root(target.schema()), &manager);
        }
        if call.is_dry_run() {
            return Ok(Reply::json(200, &object).with_warnings(warnings));
        }
        let mut state = lock(&shared.state);
        let now = state.store.find(&target.resource.name(), &target.key());
        if now.is_some_and(|now| Arc::ptr_eq(now, &live)) {
            let stored = state.commit(&target.resource, &target.key(), object);
            if super::certificates::is_one(target) {
                super::certificates::look(&mut state);
            }
            return Ok(Reply::json(200, &target.present(&stored)).with_warnings(warnings));
        }
    }
    Err(target.conflict(
        "the object has been modified; please apply your changes to the latest version and try again",
    ))
}

/// DELETE of one object.
pub(super) async fn delete(shared: &Arc<Shared>, call: &Call, target: &Target) -> Result<Reply, Failure> {
    let options = delete_options(call)?;
    let live = lock(&shared.state).store.find(&target.resource.name(), &target.key()).cloned();
    let live = live.ok_or_else(|| target.not_found())?;
    admission::admit(shared, call, target, Operation::Delete, None, Some(target.present(&live))).await?;
    let (object, gone) = lock(&shared.state).delete(&target.resource, &target.key(), &options)?;
    if !gone || target.resource.kind == "Pod" {
        return Ok(Reply::json(200, &target.present(&object)));
    }
    let details = json!({
        "name": target.name,
        "group": target.resource.group,
        "kind": target.resource.plural,
        "uid": text(&object, &["metadata", "uid"]),
    });
    Ok(Reply::json(
        200,
        &json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details }),
    ))
}

/// DELETE of a collection.
pub(super) fn delete_collection(shared: &Shared, call: &Call, target: &Target) -> Result<Reply, Failure> {
    let options = delete_options(call)?;
    let mut state = lock(&shared.state);
    let selection = call.selection()?;
    let keys: Vec<Key> = state
        .store
        .list(&target.resource.name(), &target.namespace)
        .filter(|object| selection.matches(object))
        .map(|object| {
            (
                text(object, &["metadata", "namespace"]).to_owned(),
                text(object, &["metadata", "name"]).to_owned(),
            )
        })
        .collect();
    for key in keys {
        // What goes with another of the list is gone already.
        let _ = state.delete(&target.resource, &key, &options);
    }
    Ok(Reply::json(
        200,
        &json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" }),
    ))
}

/// POST to a subresource: tokens, bindings and evictions.
pub(super) fn act(shared: &Shared, call: &Call, target: &Target) -> Result<Reply, Failure> {
    let mut state = lock(&shared.state);
    if state.store.find(&target.resource.name(), &target.key()).is_none() {
        return Err(target.not_found());
    }
    match (target.resource.plural.as_str(), target.subresource.as_str()) {
        ("serviceaccounts", "token") => {
            let request = call.body()?;
            let token = super::review::issue(&mut state, &target.namespace, &target.name, &request);
            Ok(Reply::json(201, &token))
        }
        ("pods", "binding") => {
            let node = text(&call.body()?, &["target", "name"]).to_owned();
            let live = state.store.find(&target.resource.name(), &target.key());
            let mut pod = live.map(|it| Value::clone(it)).ok_or_else(|| target.not_found())?;
            let before = text(&pod, &["spec", "nodeName"]).to_owned();
            if !before.is_empty() {
                let words = format!("pod {} is already assigned to node \"{before}\"", target.name);
                return Err(Failure::conflict("", "pods/binding", &target.name, &words));
            }
            pod["spec"]["nodeName"] = Value::from(node);
            state.commit(&target.resource, &target.key(), pod);
            Ok(Reply::json(201, &success()))
        }
        ("pods", "eviction") => {
            state.delete(&target.resource, &target.key(), &DeleteOptions::default())?;
            Ok(Reply::json(201, &success()))
        }
        _ => Err(Failure::no_path()),
    }
}

fn success() -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" })
}

fn delete_options(call: &Call) -> Result<DeleteOptions, Failure> {
    let body = if call.has_body() { call.body()? } else { Value::Null };
    let word = |key: &str| {
        let own = body.get(key).and_then(Value::as_str).unwrap_or_default();
        if own.is_empty() { call.query.text(key).to_owned() } else { own.to_owned() }
    };
    let precondition = |key: &str| body.get("preconditions")?.get(key)?.as_str().map(str::to_owned);
    let orphans = body.get("orphanDependents").and_then(Value::as_bool) == Some(true);
    let dry = body.get("dryRun").and_then(Value::as_array).is_some_and(|it| !it.is_empty());
    let grace = body.get("gracePeriodSeconds").and_then(Value::as_u64);
    Ok(DeleteOptions {
        uid: precondition("uid"),
        resource_version: precondition("resourceVersion"),
        orphan: orphans || word("propagationPolicy") == "Orphan",
        dry_run: dry || call.is_dry_run(),
        grace: grace.or(call.query.number("gracePeriodSeconds")?),
    })
}

fn manager(shared: &Shared, call: &Call, target: &Target, applies: bool) -> Manager {
    let given = call.query.text("fieldManager");
    let agent = call.user_agent.split('/').next().unwrap_or_default();
    let name = if given.is_empty() { agent } else { given };
    Manager {
        name: if name.is_empty() { "unknown" } else { name }.to_owned(),
        applies,
        api_version: target.api_version(),
        subresource: target.subresource.clone(),
        now: lock(&shared.state).now(),
    }
}

/// The `Scale` of an object.
fn scale_of(target: &Target, object: &Value) -> Result<Value, Failure> {
    let scale = target.resource.version(&target.version).and_then(|version| version.scale.as_ref());
    let scale = scale.ok_or_else(Failure::no_path)?;
    let find = |path: &str| object.pointer(&path.replace('.', "/"));
    let selector = match scale.selector.as_deref().and_then(find) {
        Some(selector) => selector.clone(),
        None => {
            let labels = object.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
            let pairs: Vec<String> = labels
                .into_iter()
                .flatten()
                .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
                .collect();
            Value::from(pairs.join(","))
        }
    };
    let mut metadata = Map::new();
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.get("metadata").and_then(|it| it.get(key)) {
            metadata.insert(key.to_owned(), value.clone());
        }
    }
    Ok(json!({
        "apiVersion": "autoscaling/v1",
        "kind": "Scale",
        "metadata": metadata,
        "spec": { "replicas": find(&scale.spec_replicas).cloned().unwrap_or(Value::from(0)) },
        "status": { "replicas": find(&scale.status_replicas).cloned().unwrap_or(Value::from(0)), "selector": selector },
    }))
}

async fn scale(
    shared: &Arc<Shared>,
    call: &Call,
    target: &Target,
    replicas: Value,
) -> Result<Reply, Failure> {
    let scale = target.resource.version(&target.version).and_then(|version| version.scale.clone());
    let scale = scale.ok_or_else(Failure::no_path)?;
    let whole = Target { subresource: String::new(), ..target.clone() };
    let steps: Vec<&str> = scale.spec_replicas.split('.').filter(|step| !step.is_empty()).collect();
    let edit = |live: &Value| {
        let mut patch = replicas.clone();
        for step in steps.iter().rev() {
            let mut map = Map::new();
            map.insert((*step).to_owned(), patch);
            patch = Value::from(map);
        }
        let mut object = live.clone();
        patch::merge_patch(&mut object, &patch);
        Ok(object)
    };
    change(shared, call, &whole, false, edit).await?;
    let state = lock(&shared.state);
    let live = state.store.find(&target.resource.name(), &target.key()).ok_or_else(|| target.not_found())?;
    Ok(Reply::json(200, &scale_of(target, live)?))
}

//! What the author of a Pod wrote of injected containers wins over the template; it is kept in the
//! annotation `proxy.istio.io/overrides`, so that injecting again has the same result.

use std::collections::BTreeSet;

use serde_json::{Map, Value as Json, json};

use super::{INIT, PROXY, Refused, VALIDATION, merge, pod};

const OVERRIDES: &str = "proxy.istio.io/overrides";
const STATUS: &str = "sidecar.istio.io/status";
const LISTS: [&str; 2] = ["containers", "initContainers"];

/// The Pod as templates see it: without what was injected before, with what its author wrote.
pub(crate) fn strip(original: &Json, status_port: i64) -> Json {
    let mut stripped = original.clone();
    if let Some(status) =
        pod::annotation(original, STATUS).and_then(|text| serde_json::from_str::<Json>(text).ok())
    {
        for list in LISTS {
            let injected = status.get(list).and_then(Json::as_array).into_iter().flatten();
            let injected: BTreeSet<&str> = injected.filter_map(Json::as_str).collect();
            if pod::containers(&stripped, list).iter().any(|it| injected.contains(pod::name(it))) {
                pod::containers_mut(&mut stripped, list).retain(|it| !injected.contains(pod::name(it)));
            }
        }
        // Ours, from the last time; not the application's.
        if super::process::prometheus_port(&stripped) == Some(status_port.to_string()) {
            super::process::clear_prometheus(&mut stripped);
        }
        pod::remove_annotation(&mut stripped, STATUS);
    }
    let kept = kept(original).unwrap_or_else(|_| json!({}));
    for list in LISTS {
        let there = pod::containers(&stripped, list).iter();
        let mut there: BTreeSet<String> = there.map(|container| pod::name(container).to_owned()).collect();
        let kept = kept.get(list).and_then(Json::as_array).into_iter().flatten();
        let more: Vec<Json> =
            kept.filter(|container| there.insert(pod::name(container).to_owned())).cloned().collect();
        if !more.is_empty() {
            pod::containers_mut(&mut stripped, list).extend(more);
        }
    }
    stripped
}

/// The annotation of overrides, read.
fn kept(original: &Json) -> Result<Json, Refused> {
    match pod::annotation(original, OVERRIDES) {
        Some(text) => {
            serde_json::from_str(text).map_err(|error| Refused(format!("annotation {OVERRIDES}: {error}")))
        }
        None => Ok(json!({})),
    }
}

/// Merges what the author wrote over what the template made.
pub(crate) fn reapply(merged: &mut Json, original: &Json, injected: &Json) -> Result<(), Refused> {
    let kept = json!({"spec": kept(original)?});
    let status = pod::annotation(original, STATUS);
    let before: Json = status.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let mut overrides = Map::new();
    for list in LISTS {
        for container in pod::containers(injected, list) {
            let name = pod::name(container);
            let mut injected_before = before.get(list).and_then(Json::as_array).into_iter().flatten();
            let was_injected = injected_before.any(|known| known.as_str() == Some(name));
            // Deviation: what was kept counts when a Pod is injected again, too; Istio forgets it then.
            let own = pod::find(&kept, list, name).or_else(|| match list {
                _ if was_injected => None,
                "containers" => pod::find(original, list, name),
                _ => pod::find_anywhere(original, name),
            });
            let Some(own) = own else { continue };
            let mut own = own.clone();
            // `auto` stands where Kubernetes asks for an image and the author has none.
            if own.get("image").and_then(Json::as_str) == Some("auto")
                && let Some(map) = own.as_object_mut()
            {
                map.shift_remove("image");
            }
            merge::pod(merged, &json!({"spec": {list: [own.clone()]}}))?;
            if let Json::Array(items) = overrides.entry(list).or_insert_with(|| json!([])) {
                items.push(own);
            }
        }
    }
    if status.is_none() && !overrides.is_empty() {
        pod::set_annotation(merged, OVERRIDES, &Json::Object(overrides).to_string());
    }
    Ok(())
}

/// If the author gave the proxy another user, redirection must know it.
pub(crate) fn adjust_user(merged: &mut Json, original: &Json, proxy_config: &Json) {
    let kept = json!({"spec": kept(original).unwrap_or_default()});
    let Some(own) = pod::find_anywhere(&kept, PROXY).or_else(|| pod::find_anywhere(original, PROXY)) else {
        return;
    };
    let id = |name: &str| own.pointer(&format!("/securityContext/{name}")).and_then(Json::as_i64);
    let (user, group) = (id("runAsUser"), id("runAsGroup"));
    if user.is_none() && group.is_none() {
        return;
    }
    let Some(which) =
        [INIT, VALIDATION].into_iter().find(|name| pod::find(merged, "initContainers", name).is_some())
    else {
        return;
    };
    let tproxy = proxy_config.get("interceptionMode").and_then(Json::as_str) == Some("TPROXY")
        || pod::annotation(merged, "sidecar.istio.io/interceptionMode") == Some("TPROXY");
    // With TPROXY the proxy must be root.
    if tproxy
        && user.is_some()
        && let Some(proxy) = pod::find_anywhere_mut(merged, PROXY)
    {
        pod::object(proxy, "securityContext")["runAsUser"] = json!(0);
    }
    let Some(init) =
        pod::containers_mut(merged, "initContainers").iter_mut().find(|it| pod::name(it) == which)
    else {
        return;
    };
    if !tproxy && which == VALIDATION {
        for (name, id) in [("runAsUser", user), ("runAsGroup", group)] {
            if let Some(id) = id {
                pod::object(init, "securityContext")[name] = json!(id);
            }
        }
    }
    let Some(user) = user.filter(|user| *user != 0) else { return };
    if let Some(Json::Array(args)) = init.get_mut("args")
        && let Some(index) = args.iter().position(|arg| arg == "-u")
        && let Some(value) = args.get_mut(index + 1)
    {
        *value = Json::from(user.to_string());
    }
}

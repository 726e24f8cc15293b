//! Kubernetes' strategic merge of Pods, and of what is made for Gateways: lists of things with names are merged by
//! name.
//!
//! What the merged-in part names comes first, in its order; what only the Pod had follows.

use std::collections::{HashMap, VecDeque};

use serde_json::{Map, Value as Json};

use super::Refused;

/// By which field the elements of a list are merged, by the list's name and what it stands in.
fn merge_key(list: &str, within: &str) -> Option<&'static str> {
    Some(match (list, within) {
        ("containers" | "initContainers" | "ephemeralContainers" | "volumes", "spec") => "name",
        ("imagePullSecrets" | "resourceClaims" | "schedulingGates", "spec") => "name",
        // Of a ServiceAccount, and of a Service.
        ("imagePullSecrets" | "secrets", "") => "name",
        ("ports", "spec") => "port",
        ("hostAliases", "spec") => "ip",
        ("topologySpreadConstraints", "spec") => "topologyKey",
        ("env", _) => "name",
        ("ports", _) => "containerPort",
        ("volumeMounts", _) => "mountPath",
        ("volumeDevices", _) => "devicePath",
        ("ownerReferences", "metadata") => "uid",
        _ => return None,
    })
}

/// Merges a rendered template into a Pod, or what a ConfigMap says into what is made for a Gateway.
pub(crate) fn pod(pod: &mut Json, overlay: &Json) -> Result<(), Refused> {
    match overlay {
        Json::Null => Ok(()),
        Json::Object(overlay) => {
            if !pod.is_object() {
                *pod = Json::Object(Map::new());
            }
            let Json::Object(pod) = pod else { return Ok(()) };
            map(pod, overlay, "")
        }
        _ => Err(Refused("the template does not make a mapping".to_owned())),
    }
}

fn map(target: &mut Map<String, Json>, overlay: &Map<String, Json>, within: &str) -> Result<(), Refused> {
    match overlay.get("$patch").and_then(Json::as_str) {
        None | Some("merge") => {}
        Some("replace") => {
            target.clear();
            target.extend(
                overlay.iter().filter(|(key, _)| *key != "$patch").map(|(k, v)| (k.clone(), v.clone())),
            );
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        Some(other) => return Err(Refused(format!("$patch: {other:?} is not known"))),
    }
    for (key, value) in overlay {
        if key.starts_with('$') {
            if key != "$patch" {
                return Err(Refused(format!("{key}: directives but $patch are not supported")));
            }
            continue;
        }
        match (target.get_mut(key), value) {
            (_, Json::Null) => {
                target.shift_remove(key);
            }
            (Some(Json::Object(old)), Json::Object(new)) => map(old, new, key)?,
            (Some(Json::Array(old)), Json::Array(new)) => match merge_key(key, within) {
                Some(name) => list(old, new, name, key)?,
                None if key == "finalizers" && within == "metadata" => {
                    for item in new {
                        if !old.contains(item) {
                            old.push(item.clone());
                        }
                    }
                }
                None => old.clone_from(new),
            },
            (_, Json::Array(new)) if merge_key(key, within).is_some() => {
                let mut items = Vec::new();
                list(&mut items, new, merge_key(key, within).unwrap_or_default(), key)?;
                target.insert(key.clone(), Json::Array(items));
            }
            (_, new) => {
                target.insert(key.clone(), without_nulls(new));
            }
        }
    }
    Ok(())
}

/// Null takes away; what is new has nothing that it could take away.
fn without_nulls(value: &Json) -> Json {
    match value {
        Json::Object(map) => map
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), without_nulls(value)))
            .collect(),
        other => other.clone(),
    }
}

fn list(old: &mut Vec<Json>, new: &[Json], name: &str, within: &str) -> Result<(), Refused> {
    // `- $patch: replace` takes the place of the whole list.
    let directive = |item: &Json| item.get("$patch").and_then(Json::as_str).map(str::to_owned);
    if new.iter().any(|item| directive(item).as_deref() == Some("replace") && item.get(name).is_none()) {
        *old = new.iter().filter(|item| directive(item).is_none()).cloned().collect();
        return Ok(());
    }
    // What is left of the old list, where what has which key is in it, and what is merged, each with its place in the
    // old list. Lists are as long as somebody likes: nothing is looked for by going through them.
    let mut left: Vec<Option<Json>> = std::mem::take(old).into_iter().map(Some).collect();
    let mut places: HashMap<String, VecDeque<usize>> = HashMap::new();
    for (place, key) in
        left.iter().enumerate().filter_map(|(place, it)| Some((place, it.as_ref()?.get(name)?)))
    {
        places.entry(key.to_string()).or_default().push_back(place);
    }
    let mut merged: Vec<(Option<usize>, Json)> = Vec::new();
    let mut known: HashMap<String, usize> = HashMap::new();
    for item in new {
        let Some(key) = item.get(name).filter(|key| !key.is_null()).map(Json::to_string) else {
            return Err(Refused(format!("an element of {within} does not have {name:?}")));
        };
        if directive(item).as_deref() == Some("delete") {
            for place in places.remove(&key).into_iter().flatten() {
                if let Some(element) = left.get_mut(place) {
                    *element = None;
                }
            }
            continue;
        }
        let Json::Object(overlay) = item else { continue };
        // Of several with the same key the later ones are merged into the first.
        let first = known.get(&key).and_then(|index| merged.get_mut(*index));
        if let Some((_, Json::Object(first))) = first {
            map(first, overlay, within)?;
            continue;
        }
        let place = places.get_mut(&key).and_then(VecDeque::pop_front);
        let found = place.and_then(|place| left.get_mut(place)).and_then(Option::take);
        let mut element = found.unwrap_or_else(|| Json::Object(Map::new()));
        if let Json::Object(target) = &mut element {
            map(target, overlay, within)?;
        }
        known.insert(key, merged.len());
        merged.push((place, element));
    }
    // Both keep their order; what stood in front of a merged element still does.
    let mut left = left.into_iter().enumerate().peekable();
    for (place, element) in merged {
        while let Some((_, before)) = left.next_if(|(index, _)| place.is_some_and(|place| *index < place)) {
            old.extend(before);
        }
        old.push(element);
    }
    old.extend(left.filter_map(|(_, element)| element));
    Ok(())
}

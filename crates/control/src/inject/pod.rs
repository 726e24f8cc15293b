//! Pods as JSON: finding and changing what injection looks at.

use serde_json::{Map, Value as Json, json};

/// Takes away what only servers write.
pub(crate) fn tidy(pod: &mut Json) {
    if let Some(metadata) = pod.get_mut("metadata").and_then(Json::as_object_mut) {
        metadata.shift_remove("managedFields");
    }
}

pub(crate) fn label<'p>(pod: &'p Json, name: &str) -> Option<&'p str> {
    pod.get("metadata")?.get("labels")?.get(name)?.as_str()
}

pub(crate) fn annotation<'p>(pod: &'p Json, name: &str) -> Option<&'p str> {
    pod.get("metadata")?.get("annotations")?.get(name)?.as_str()
}

/// All annotations.
pub(crate) fn annotations(pod: &Json) -> impl Iterator<Item = (&str, &str)> {
    let map = pod.pointer("/metadata/annotations").and_then(Json::as_object);
    map.into_iter().flatten().filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
}

pub(crate) fn set_label(pod: &mut Json, name: &str, value: &str) {
    object(object(pod, "metadata"), "labels")[name] = Json::from(value);
}

pub(crate) fn set_annotation(pod: &mut Json, name: &str, value: &str) {
    object(object(pod, "metadata"), "annotations")[name] = Json::from(value);
}

pub(crate) fn remove_annotation(pod: &mut Json, name: &str) {
    if let Some(map) = pod.pointer_mut("/metadata/annotations").and_then(Json::as_object_mut) {
        map.shift_remove(name);
    }
}

/// The map under a key, made if there is none.
pub(crate) fn object<'j>(json: &'j mut Json, key: &str) -> &'j mut Json {
    if !json.is_object() {
        *json = json!({});
    }
    if !json.get(key).is_some_and(Json::is_object) {
        json[key] = Json::Object(Map::new());
    }
    &mut json[key]
}

/// The containers of a list (`containers`, `initContainers`).
pub(crate) fn containers<'p>(pod: &'p Json, list: &str) -> &'p [Json] {
    pod.get("spec").and_then(|spec| spec.get(list)).and_then(Json::as_array).map_or(&[], Vec::as_slice)
}

/// The same, to be changed; made if there is none.
pub(crate) fn containers_mut<'p>(pod: &'p mut Json, list: &str) -> &'p mut Vec<Json> {
    let spec = object(pod, "spec");
    if !spec.get(list).is_some_and(Json::is_array) {
        spec[list] = Json::Array(Vec::new());
    }
    match &mut spec[list] {
        Json::Array(items) => items,
        _ => unreachable!("made above"),
    }
}

pub(crate) fn name(container: &Json) -> &str {
    container.get("name").and_then(Json::as_str).unwrap_or_default()
}

pub(crate) fn find<'p>(pod: &'p Json, list: &str, wanted: &str) -> Option<&'p Json> {
    containers(pod, list).iter().find(|container| name(container) == wanted)
}

/// A container wherever it is: among the containers, else among the init containers.
pub(crate) fn find_anywhere<'p>(pod: &'p Json, wanted: &str) -> Option<&'p Json> {
    find(pod, "containers", wanted).or_else(|| find(pod, "initContainers", wanted))
}

pub(crate) fn find_anywhere_mut<'p>(pod: &'p mut Json, wanted: &str) -> Option<&'p mut Json> {
    let list = ["containers", "initContainers"].into_iter().find(|list| find(pod, list, wanted).is_some())?;
    containers_mut(pod, list).iter_mut().find(|container| name(container) == wanted)
}

/// Takes a container out of one list and puts it at the end of another.
pub(crate) fn move_container(pod: &mut Json, wanted: &str, from: &str, to: &str) {
    if find(pod, from, wanted).is_none() {
        return;
    }
    let list = containers_mut(pod, from);
    let Some(index) = list.iter().position(|container| name(container) == wanted) else { return };
    let container = list.remove(index);
    containers_mut(pod, to).push(container);
}

/// Where in its list a container is to stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    First,
    Last,
}

pub(crate) fn place(pod: &mut Json, list: &str, wanted: &str, place: Place) {
    if find(pod, list, wanted).is_none() {
        return;
    }
    let list = containers_mut(pod, list);
    let (found, mut rest): (Vec<_>, Vec<_>) =
        std::mem::take(list).into_iter().partition(|it| name(it) == wanted);
    match place {
        Place::First => *list = found.into_iter().chain(rest).collect(),
        Place::Last => {
            rest.extend(found);
            *list = rest;
        }
    }
}

/// The variables of a container.
pub(crate) fn environment(container: &mut Json) -> &mut Vec<Json> {
    if !container.get("env").is_some_and(Json::is_array) {
        container["env"] = Json::Array(Vec::new());
    }
    match &mut container["env"] {
        Json::Array(items) => items,
        _ => unreachable!("made above"),
    }
}

/// Go's strconv.ParseBool.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

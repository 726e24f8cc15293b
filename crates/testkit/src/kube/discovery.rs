//! What clients ask first: which groups, versions and resources there are, and of what form.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::http::Reply;
use super::resource::{REVIEWS, Resource, Version, api_version};
use super::state::State;

/// Groups in the order in which they were defined, with their versions, the preferred one first.
fn groups(state: &State) -> Vec<(String, Vec<String>)> {
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    let mut note = |group: &str, version: &str| {
        let place = groups.iter().position(|(name, _)| name == group).unwrap_or_else(|| {
            groups.push((group.to_owned(), Vec::new()));
            groups.len() - 1
        });
        if let Some((_, versions)) = groups.get_mut(place)
            && !versions.iter().any(|it| it == version)
        {
            versions.push(version.to_owned());
        }
    };
    for resource in &state.resources {
        resource.versions.iter().for_each(|version| note(&resource.group, &version.name));
    }
    REVIEWS.iter().for_each(|(group, ..)| note(group, "v1"));
    groups
}

/// Answers what is no request to resources; `None` if there is no such path.
pub(super) fn answer(state: &State, path: &str, accept: &str) -> Option<Reply> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let aggregated = accept.split(',').next().is_some_and(|first| first.contains("as=APIGroupDiscoveryList"));
    match parts.as_slice() {
        ["version"] => Some(Reply::json(200, &version())),
        ["api"] if aggregated => Some(aggregate(state, true)),
        ["apis"] if aggregated => Some(aggregate(state, false)),
        ["api"] => Some(Reply::json(
            200,
            &json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] }),
        )),
        ["apis"] => {
            let groups: Vec<Value> =
                groups(state).iter().filter(|(name, _)| !name.is_empty()).map(group).collect();
            Some(Reply::json(200, &json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })))
        }
        ["apis", name] => {
            let all = groups(state);
            let found = all.iter().find(|(group, _)| group == name)?;
            Some(Reply::json(200, &group(found)))
        }
        ["api", version] => resources(state, "", version),
        ["apis", group, version] => resources(state, group, version),
        ["openapi", "v3"] => Some(Reply::json(200, &open_api_index(state))),
        ["openapi", "v3", "api", version] => open_api(state, "", version),
        ["openapi", "v3", "apis", group, version] => open_api(state, group, version),
        _ => None,
    }
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": "v1.36.0+testkit", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "2025-04-23T00:00:00Z", "goVersion": "", "compiler": "", "platform": "linux/amd64",
    })
}

fn group((name, versions): &(String, Vec<String>)) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| json!({ "groupVersion": api_version(name, version), "version": version }))
        .collect();
    json!({ "kind": "APIGroup", "apiVersion": "v1", "name": name, "preferredVersion": versions.first(), "versions": versions })
}

/// The resources of a version of a group.
fn of<'s>(state: &'s State, group: &str, version: &str) -> Vec<(&'s Resource, &'s Version)> {
    let all = state.resources.iter().filter(|resource| resource.group == group);
    all.filter_map(|resource| Some((resource.as_ref(), resource.version(version)?))).collect()
}

fn verbs() -> Value {
    json!(["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"])
}

/// Names and kinds of what hangs on the objects of a resource.
fn subresources(resource: &Resource, version: &Version) -> Vec<(&'static str, &'static str, String, Value)> {
    let change = || json!(["get", "patch", "update"]);
    let mut all = Vec::new();
    if version.status {
        all.push(("status", "", resource.kind.clone(), change()));
    }
    if version.scale.is_some() {
        all.push(("scale", "autoscaling/v1", "Scale".to_owned(), change()));
    }
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "serviceaccounts") => {
            all.push(("token", "authentication.k8s.io/v1", "TokenRequest".to_owned(), json!(["create"])));
        }
        ("", "pods") => {
            all.push(("binding", "", "Binding".to_owned(), json!(["create"])));
            all.push(("eviction", "policy/v1", "Eviction".to_owned(), json!(["create"])));
        }
        ("certificates.k8s.io", _) => all.push(("approval", "", resource.kind.clone(), change())),
        _ => {}
    }
    all
}

fn resources(state: &State, group: &str, version: &str) -> Option<Reply> {
    let mut list = Vec::new();
    for (resource, own) in of(state, group, version) {
        list.push(json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": verbs(), "shortNames": resource.short, "categories": resource.categories,
        }));
        for (name, at, kind, verbs) in subresources(resource, own) {
            let (group, version) = at.split_once('/').unwrap_or((group, version));
            list.push(json!({
                "name": format!("{}/{name}", resource.plural), "singularName": "", "namespaced": resource.namespaced,
                "group": group, "version": version, "kind": kind, "verbs": verbs,
            }));
        }
    }
    for (_, plural, kind, namespaced) in REVIEWS.iter().filter(|it| it.0 == group && version == "v1") {
        list.push(json!({ "name": plural, "singularName": kind.to_lowercase(), "namespaced": namespaced, "kind": kind, "verbs": ["create"] }));
    }
    if list.is_empty() {
        return None;
    }
    let version = api_version(group, version);
    Some(Reply::json(
        200,
        &json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": list }),
    ))
}

/// All groups with all their resources in one answer.
fn aggregate(state: &State, core: bool) -> Reply {
    let kind =
        |group: &str, version: &str, kind: &str| json!({ "group": group, "version": version, "kind": kind });
    let mut items = Vec::new();
    for (group, versions) in groups(state).iter().filter(|(name, _)| name.is_empty() == core) {
        let mut list = Vec::new();
        for version in versions {
            let mut resources = Vec::new();
            for (resource, own) in of(state, group, version) {
                let below: Vec<Value> = subresources(resource, own)
                    .into_iter()
                    .map(|(name, at, below, verbs)| {
                        let (group, version) = at.split_once('/').unwrap_or((group, version));
                        json!({ "subresource": name, "responseKind": kind(group, version, &below), "verbs": verbs })
                    })
                    .collect();
                resources.push(json!({
                    "resource": resource.plural,
                    "responseKind": kind(group, version, &resource.kind),
                    "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
                    "singularResource": resource.singular,
                    "verbs": verbs(),
                    "shortNames": resource.short,
                    "categories": resource.categories,
                    "subresources": below,
                }));
            }
            for (_, plural, name, namespaced) in REVIEWS.iter().filter(|it| it.0 == group && version == "v1")
            {
                resources.push(json!({
                    "resource": plural,
                    "responseKind": kind(group, version, name),
                    "scope": if *namespaced { "Namespaced" } else { "Cluster" },
                    "singularResource": name.to_lowercase(),
                    "verbs": ["create"],
                }));
            }
            list.push(json!({ "version": version, "freshness": "Current", "resources": resources }));
        }
        let metadata = if group.is_empty() { json!({}) } else { json!({ "name": group }) };
        items.push(json!({ "metadata": metadata, "versions": list }));
    }
    let body = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    });
    Reply::typed(
        200,
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        body.to_string(),
    )
}

fn open_api_index(state: &State) -> Value {
    let mut paths = Map::new();
    for (group, versions) in groups(state) {
        for version in versions {
            let path =
                if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
            let url =
                json!({ "serverRelativeURL": format!("/openapi/v3/{path}?hash={}", state.resources.len()) });
            paths.insert(path, url);
        }
    }
    json!({ "paths": paths })
}

/// As much of OpenAPI as `kubectl` looks at: which queries a PATCH knows, and the schemas of kinds.
fn open_api(state: &State, group: &str, version: &str) -> Option<Reply> {
    let known = of(state, group, version);
    let mut paths = Map::new();
    let mut schemas: BTreeMap<String, Value> = BTreeMap::new();
    for (resource, own) in known {
        let gvk = json!({ "group": group, "version": version, "kind": resource.kind });
        let prefix =
            if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
        let parameter = |name: &str| json!({ "name": name, "in": "query", "schema": { "type": "string" } });
        let name = format!("{}.{version}.{}", if group.is_empty() { "core" } else { group }, resource.kind);
        let content =
            json!({ "application/json": { "schema": { "$ref": format!("#/components/schemas/{name}") } } });
        let operation = |action: &str| {
            json!({
                "x-kubernetes-action": action,
                "x-kubernetes-group-version-kind": gvk,
                "parameters": [parameter("fieldValidation"), parameter("dryRun"), parameter("fieldManager")],
                "responses": { "200": { "description": "OK", "content": content } },
            })
        };
        let collection = format!("{prefix}{scope}/{}", resource.plural);
        paths.insert(format!("{collection}/{{name}}"), json!({
            "get": operation("get"), "put": operation("put"), "patch": operation("patch"), "delete": operation("delete"),
        }));
        paths.insert(collection, json!({ "get": operation("list"), "post": operation("post") }));
        let mut schema = match &own.schema {
            Some(schema) => Value::clone(schema),
            None => json!({
                "description": format!("{} of Kubernetes, in short.", resource.kind),
                "type": "object",
                "properties": {
                    "apiVersion": { "type": "string", "description": "The version of the schema." },
                    "kind": { "type": "string", "description": "The kind of the object." },
                    "metadata": { "type": "object", "description": "What all objects have." },
                    "spec": { "type": "object", "description": "What is wanted.", "x-kubernetes-preserve-unknown-fields": true },
                    "status": { "type": "object", "description": "What is.", "x-kubernetes-preserve-unknown-fields": true },
                },
            }),
        };
        if let Some(map) = schema.as_object_mut() {
            map.insert("x-kubernetes-group-version-kind".to_owned(), json!([gvk]));
        }
        schemas.insert(name, schema);
    }
    if paths.is_empty() {
        return None;
    }
    let document = json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": "v1.36.0" },
        "paths": paths,
        "components": { "schemas": schemas },
    });
    Some(Reply::json(200, &document))
}

//! How the lists and maps of an object are merged: as a whole, as sets, or item by item by keys.
//!
//! For custom resources the schema says so (`x-kubernetes-list-type`, ...). Of Kubernetes' own
//! types only field names are known here, which is enough for those that tests apply.

use serde_json::Value;

/// How a list is merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ListKind {
    /// As a whole.
    Atomic,
    /// As a set of scalars.
    Set,
    /// Item by item; items are the same if these fields are.
    Map(Vec<String>),
}

/// What is known of the type at one place of an object.
#[derive(Clone, Copy, Debug)]
pub(super) enum Typing<'s> {
    /// A type of Kubernetes, at the field of this name.
    BuiltIn(&'s str),
    /// A custom resource's, at this schema.
    Custom(&'s Value),
    /// Inside of what no schema tells.
    Unknown,
}

impl<'s> Typing<'s> {
    pub(super) fn root(schema: Option<&'s Value>) -> Typing<'s> {
        schema.map_or(Typing::BuiltIn(""), Typing::Custom)
    }

    /// The type of a field.
    pub(super) fn field(self, name: &'s str) -> Typing<'s> {
        match self {
            Typing::BuiltIn(_) => Typing::BuiltIn(name),
            // The metadata is the same for all, whatever the schema says.
            Typing::Custom(schema) if name == "metadata" && schema.get("properties").is_some() => {
                Typing::BuiltIn(name)
            }
            Typing::Custom(schema) => {
                let property = schema.get("properties").and_then(|all| all.get(name));
                let additional = schema.get("additionalProperties").filter(|it| it.is_object());
                property.or(additional).map_or(Typing::Unknown, Typing::Custom)
            }
            Typing::Unknown => Typing::Unknown,
        }
    }

    /// The type of a list's items.
    pub(super) fn item(self) -> Typing<'s> {
        match self {
            Typing::Custom(schema) => schema.get("items").map_or(Typing::Unknown, Typing::Custom),
            Typing::BuiltIn(_) => Typing::BuiltIn(""),
            Typing::Unknown => Typing::Unknown,
        }
    }

    /// Whether a map is replaced as a whole.
    pub(super) fn is_atomic_map(self) -> bool {
        match self {
            Typing::Custom(schema) => {
                schema.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic")
            }
            Typing::BuiltIn(name) => {
                matches!(
                    name,
                    "selector" | "labelSelector" | "namespaceSelector" | "objectSelector" | "targetRef"
                )
            }
            Typing::Unknown => false,
        }
    }

    /// How the list at this place is merged; `items` are some of its items.
    pub(super) fn list(self, items: &[Value]) -> ListKind {
        match self {
            Typing::Custom(schema) => match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
                Some("set") => ListKind::Set,
                Some("map") => {
                    let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
                    let keys = keys.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
                    ListKind::Map(keys.collect())
                }
                _ => ListKind::Atomic,
            },
            Typing::BuiltIn(name) => built_in(name, items),
            Typing::Unknown => ListKind::Atomic,
        }
    }
}

fn built_in(name: &str, items: &[Value]) -> ListKind {
    let keys = |names: &[&str]| ListKind::Map(names.iter().map(|name| (*name).to_owned()).collect());
    let have = |key: &str| items.iter().any(|item| item.get(key).is_some());
    match name {
        "finalizers" => ListKind::Set,
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "volumes"
        | "env"
        | "imagePullSecrets"
        | "webhooks" => keys(&["name"]),
        "secrets" if have("name") => keys(&["name"]),
        "volumeMounts" => keys(&["mountPath"]),
        "volumeDevices" => keys(&["devicePath"]),
        "conditions" | "podConditions" => keys(&["type"]),
        "ownerReferences" => keys(&["uid"]),
        "hostAliases" | "podIPs" | "hostIPs" => keys(&["ip"]),
        "ports" if have("containerPort") => keys(&["containerPort", "protocol"]),
        // Of a Service; an EndpointSlice's ports have no `targetPort`, and are replaced.
        "ports" if have("targetPort") || have("nodePort") => keys(&["port", "protocol"]),
        "matchConditions" | "variables" => keys(&["name"]),
        "topologySpreadConstraints" => keys(&["topologyKey", "whenUnsatisfiable"]),
        _ => ListKind::Atomic,
    }
}

/// What tells an item of a keyed list from others: its keys and their values, as JSON. `protocol`
/// counts as TCP where it is not given, as the server would fill it in.
pub(super) fn item_key(item: &Value, keys: &[String]) -> Option<String> {
    let mut parts = serde_json::Map::new();
    let mut sorted: Vec<&String> = keys.iter().collect();
    sorted.sort();
    for key in sorted {
        match item.get(key.as_str()) {
            Some(value) => drop(parts.insert(key.clone(), value.clone())),
            None if key == "protocol" => drop(parts.insert(key.clone(), Value::from("TCP"))),
            None => return None,
        }
    }
    Some(Value::from(parts).to_string())
}

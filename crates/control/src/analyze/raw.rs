//! Objects as they were written, for analyzers that look at kinds and fields which translation does
//! not read: Deployments, webhooks, images, annotations.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use leno_derive::{Cx, Index, Input};
use serde_json::Value;

/// Names one object among all. Objects of the Gateway API's kind `Gateway` are `KubernetesGateway`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RawKey {
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl RawKey {
    /// `namespace/name`, or the name alone.
    pub(crate) fn full_name(&self) -> String {
        if self.namespace.is_empty() {
            self.name.clone()
        } else {
            format!("{}/{}", self.namespace, self.name)
        }
    }
}

impl fmt::Display for RawKey {
    /// As istioctl names the origin of a message.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == KUBERNETES_GATEWAY { "Gateway" } else { &self.kind };
        write!(f, "{kind} {}", self.full_name())
    }
}

/// The kind under which Gateways of the Gateway API are kept.
pub(crate) const KUBERNETES_GATEWAY: &str = "KubernetesGateway";

/// All objects.
pub(crate) struct Raws;

impl Input for Raws {
    type Key = RawKey;
    type Value = Value;
    const NAME: &'static str = "raw-objects";
}

/// When it is looked at, in seconds since the epoch: certificates end.
pub(crate) struct Now;

impl Input for Now {
    type Key = ();
    type Value = i64;
    const NAME: &'static str = "now";
}

/// Objects by kind.
pub(crate) struct RawsByKind;

impl Index for RawsByKind {
    type Of = Raws;
    type Bucket = String;
    const NAME: &'static str = "raw-objects-by-kind";

    fn buckets(key: &RawKey, _: &Value) -> Vec<String> {
        vec![key.kind.clone()]
    }
}

/// What an object is kept as: its kind, told apart where two groups have it. `default` is the
/// namespace of those that name none.
pub(crate) fn key_of(object: &Value, default: &str) -> Option<RawKey> {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str);
    let kind = text("/kind")?;
    let group = text("/apiVersion")?.split_once('/').map_or("", |(group, _)| group);
    let kind = match (group, kind) {
        ("gateway.networking.k8s.io", "Gateway") => KUBERNETES_GATEWAY,
        (_, kind) => kind,
    };
    let namespace = if is_cluster_scoped(kind) { "" } else { text("/metadata/namespace").unwrap_or(default) };
    Some(RawKey {
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: text("/metadata/name")?.to_owned(),
    })
}

fn is_cluster_scoped(kind: &str) -> bool {
    matches!(
        kind,
        "Namespace"
            | "Node"
            | "CustomResourceDefinition"
            | "MutatingWebhookConfiguration"
            | "ValidatingWebhookConfiguration"
            | "GatewayClass"
            | "IngressClass"
            | "ClusterRole"
            | "ClusterRoleBinding"
    )
}

/// An object and its name.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    pub(crate) key: RawKey,
    json: Arc<Value>,
}

impl Raw {
    /// A part by its JSON pointer; null if it is not there.
    pub(crate) fn at(&self, pointer: &str) -> &Value {
        at(&self.json, pointer)
    }

    /// A text by its JSON pointer; empty if there is none.
    pub(crate) fn text(&self, pointer: &str) -> &str {
        self.at(pointer).as_str().unwrap_or_default()
    }

    pub(crate) fn labels(&self) -> Labels<'_> {
        labels(self.at("/metadata/labels"))
    }

    pub(crate) fn annotations(&self) -> Labels<'_> {
        labels(self.at("/metadata/annotations"))
    }
}

/// A part of a value; null if it is not there.
pub(crate) fn at<'v>(value: &'v Value, pointer: &str) -> &'v Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

/// A text in a value; empty if there is none.
pub(crate) fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    at(value, pointer).as_str().unwrap_or_default()
}

/// The elements of a list; none if it is no list.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The texts of a list.
pub(crate) fn texts(value: &Value) -> Vec<&str> {
    list(value).iter().filter_map(Value::as_str).collect()
}

/// Labels, or a selector by labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Labels<'v>(pub(crate) BTreeMap<&'v str, &'v str>);

/// Reads a mapping of texts.
pub(crate) fn labels(value: &Value) -> Labels<'_> {
    let all = value.as_object().into_iter().flatten();
    Labels(all.filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))).collect())
}

impl<'v> Labels<'v> {
    pub(crate) fn find(&self, name: &str) -> Option<&'v str> {
        self.0.get(name).copied()
    }

    /// Whether labels have all that this selector asks for.
    pub(crate) fn selects(&self, labels: &Labels<'_>) -> bool {
        self.0.iter().all(|(name, value)| labels.find(name) == Some(value))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Labels<'_> {
    /// As Kubernetes writes a selector: `app=a,version=v1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, value)) in self.0.iter().enumerate() {
            write!(f, "{}{name}={value}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// All objects of a kind, by name.
pub(crate) fn all(cx: &Cx<'_>, kind: &str) -> Vec<Raw> {
    let mut keys = cx.bucket::<RawsByKind>(&kind.to_owned());
    keys.sort();
    keys.into_iter().filter_map(|key| Some(Raw { json: cx.input::<Raws>(&key)?, key })).collect()
}

/// One object.
pub(crate) fn find(cx: &Cx<'_>, kind: &str, namespace: &str, name: &str) -> Option<Raw> {
    let key = RawKey { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() };
    Some(Raw { json: cx.input::<Raws>(&key)?, key })
}

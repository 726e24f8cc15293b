//! What a proxy of a mesh says of its workload, and what its peers say of theirs: the facts that
//! Istio's proxies exchange (`http::filters::peer_metadata`, `listener::network::metadata_exchange`)
//! and by which requests are counted (`telemetry::istio`).
//!
//! On the wire they are a `google.protobuf.Struct` with the names of the node's metadata. Those
//! behind the filters see them in the filter state, as `downstream_peer` and `upstream_peer`, with
//! the names of [`Workload::field`].

use std::collections::BTreeMap;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use serde_json::{Map, Value as Json};

use crate::cluster::Locality;
use crate::telemetry::stream_info::FilterState;

/// The filter state that says who the client of a connection or request is.
pub(crate) const DOWNSTREAM_PEER: &str = "downstream_peer";
/// The same of the server.
pub(crate) const UPSTREAM_PEER: &str = "upstream_peer";
/// The filter state which says that the peer will not tell what it is.
pub(crate) const NO_PEER: &str = "peer_not_found";

const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
const APP: &str = "app";
const QUALIFIED_APP: &str = "app.kubernetes.io/name";
const VERSION: &str = "version";
const QUALIFIED_VERSION: &str = "app.kubernetes.io/version";
/// Bytes of a name that is taken over of a peer: names of Kubernetes are no longer.
const NAME: usize = 253;
/// The same of `OWNER` and `IDENTITY`, which are made of names.
const PATH: usize = 600;
/// Kinds of workloads that `OWNER` may name.
const KINDS: [&str; 4] = ["pod", "deployment", "job", "cronjob"];

/// The facts of one workload; what is not known is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Workload {
    /// `NAME`: the pod.
    pub(crate) instance: Box<str>,
    /// `CLUSTER_ID`.
    pub(crate) cluster: Box<str>,
    /// `NAMESPACE`.
    pub(crate) namespace: Box<str>,
    /// `WORKLOAD_NAME`.
    pub(crate) workload: Box<str>,
    /// The label `service.istio.io/canonical-name`.
    pub(crate) canonical_name: Box<str>,
    /// The label `service.istio.io/canonical-revision`.
    pub(crate) canonical_revision: Box<str>,
    /// The label `app.kubernetes.io/name`, else `app`.
    pub(crate) app: Box<str>,
    /// The label `app.kubernetes.io/version`, else `version`.
    pub(crate) version: Box<str>,
    /// Of `OWNER`: one of `KINDS`.
    pub(crate) kind: Option<&'static str>,
    /// `IDENTITY`.
    pub(crate) identity: Box<str>,
    /// `REGION`.
    pub(crate) region: Box<str>,
    /// `AVAILABILITY_ZONE`.
    pub(crate) zone: Box<str>,
    /// Further labels that are asked for (`additional_labels`), by name.
    pub(crate) labels: BTreeMap<Box<str>, Box<str>>,
}

impl Workload {
    /// What this proxy says of itself: its node's metadata, with the labels asked for.
    pub(crate) fn of_node(metadata: &Json, locality: &Locality, additional: &[Box<str>]) -> Self {
        let text = |value: &Json| value.as_str().map(Box::from).unwrap_or_default();
        let labels = metadata.get("LABELS").and_then(Json::as_object).into_iter().flatten();
        let labels = labels.map(|(name, value)| (name.as_str(), text(value)));
        let field = |name: &str| metadata.get(name).map(text).unwrap_or_default();
        let mut workload = Self::new(field, labels, additional);
        if workload.region.is_empty() {
            workload.region = (*locality.region).into();
        }
        if workload.zone.is_empty() {
            workload.zone = (*locality.zone).into();
        }
        workload
    }

    /// What a peer says of itself; what is longer than names of Kubernetes are is not taken over.
    pub(crate) fn of_struct(metadata: &Struct, additional: &[Box<str>]) -> Self {
        // Deviation: Istio's proxy takes facts of peers over at any length, into its metrics too.
        fn text(value: &Value, limit: usize) -> Box<str> {
            match &value.kind {
                Some(Kind::StringValue(text)) if text.len() <= limit => text.as_str().into(),
                _ => Box::default(),
            }
        }
        let labels = match metadata.fields.get("LABELS").and_then(|labels| labels.kind.as_ref()) {
            Some(Kind::StructValue(labels)) => Some(&labels.fields),
            _ => None,
        };
        let labels = labels.into_iter().flatten().map(|(name, value)| (name.as_str(), text(value, NAME)));
        let field = |name: &str| {
            let limit = if matches!(name, "OWNER" | "IDENTITY") { PATH } else { NAME };
            metadata.fields.get(name).map(|value| text(value, limit)).unwrap_or_default()
        };
        Self::new(field, labels, additional)
    }

    /// What the control plane says of an endpoint: `workload;namespace;canonical name;canonical
    /// revision;cluster`, the field `workload` of its metadata `istio`.
    pub(crate) fn of_endpoint(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(Box::from);
        let (workload, namespace) = (parts.next()?, parts.next()?);
        let (canonical_name, canonical_revision) = (parts.next()?, parts.next()?);
        let cluster = parts.next()?;
        Some(Self { cluster, namespace, workload, canonical_name, canonical_revision, ..Self::default() })
    }

    fn new<'l>(
        field: impl Fn(&str) -> Box<str>,
        labels: impl Iterator<Item = (&'l str, Box<str>)>,
        additional: &[Box<str>],
    ) -> Self {
        let workload = field("WORKLOAD_NAME");
        let mut new = Self {
            instance: field("NAME"),
            cluster: field("CLUSTER_ID"),
            namespace: field("NAMESPACE"),
            kind: kind_of_owner(&field("OWNER"), &workload),
            identity: field("IDENTITY"),
            region: field("REGION"),
            zone: field("AVAILABILITY_ZONE"),
            workload,
            ..Self::default()
        };
        let (mut app, mut version) = (Box::default(), Box::default());
        for (name, value) in labels {
            match name {
                CANONICAL_NAME => new.canonical_name = value,
                CANONICAL_REVISION => new.canonical_revision = value,
                QUALIFIED_APP => new.app = value,
                APP => app = value,
                QUALIFIED_VERSION => new.version = value,
                VERSION => version = value,
                _ if additional.iter().any(|wanted| **wanted == *name) => {
                    new.labels.insert(name.into(), value);
                }
                _ => {}
            }
        }
        if new.app.is_empty() {
            new.app = app;
        }
        if new.version.is_empty() {
            new.version = version;
        }
        new
    }

    /// As peers are told: maps are in order, so equal facts have equal bytes.
    pub(crate) fn to_struct(&self) -> Struct {
        let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
        let owner = self.kind.map(|kind| {
            format!("kubernetes://apis/apps/v1/namespaces/{}/{kind}s/{}", self.namespace, self.workload)
        });
        let said = |names: &[(&str, &str)]| -> BTreeMap<String, Value> {
            let said = names.iter().filter(|(_, value)| !value.is_empty());
            said.map(|(name, value)| ((*name).to_owned(), text(value))).collect()
        };
        let mut labels = said(&[
            (CANONICAL_NAME, &self.canonical_name),
            (CANONICAL_REVISION, &self.canonical_revision),
            (APP, &self.app),
            (VERSION, &self.version),
        ]);
        labels.extend(self.labels.iter().map(|(name, value)| (name.to_string(), text(value))));
        let mut fields = said(&[
            ("NAME", &self.instance),
            ("NAMESPACE", &self.namespace),
            ("WORKLOAD_NAME", &self.workload),
            ("CLUSTER_ID", &self.cluster),
            ("IDENTITY", &self.identity),
            ("OWNER", owner.as_deref().unwrap_or_default()),
            ("REGION", &self.region),
            ("AVAILABILITY_ZONE", &self.zone),
        ]);
        fields.insert("LABELS".into(), Value { kind: Some(Kind::StructValue(Struct { fields: labels })) });
        Struct { fields }
    }

    /// A fact by its name in the filter state (`%FILTER_STATE(upstream_peer:FIELD:workload)%`).
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        Some(match name {
            "namespace" => &self.namespace,
            "cluster" => &self.cluster,
            "service" => &self.canonical_name,
            "revision" => &self.canonical_revision,
            "app" => &self.app,
            "version" => &self.version,
            "workload" => &self.workload,
            "type" => self.kind.unwrap_or("unknown"),
            "name" => &self.instance,
            "region" => &self.region,
            "availability_zone" => &self.zone,
            _ => return None,
        })
    }

    /// The object for the filter state.
    pub(crate) fn into_state(self) -> FilterState {
        const SHOWN: [&str; 11] = [
            "type",
            "workload",
            "name",
            "cluster",
            "namespace",
            "service",
            "revision",
            "app",
            "version",
            "region",
            "availability_zone",
        ];
        let known = SHOWN.iter().filter(|name| **name != "type" || self.kind.is_some());
        let known = known.filter_map(|name| Some((*name, self.field(name)?)));
        let known: Vec<(&str, &str)> = known.filter(|(_, value)| !value.is_empty()).collect();
        let mut text: Vec<String> = known.iter().map(|(name, value)| format!("{name}={value}")).collect();
        text.extend(self.labels.iter().map(|(name, value)| format!("labels[]{name}={value}")));
        let mut typed: Map<String, Json> =
            known.iter().map(|(name, value)| ((*name).to_owned(), Json::from(*value))).collect();
        if !self.identity.is_empty() {
            typed.insert("identity".into(), Json::from(&*self.identity));
        }
        if !self.labels.is_empty() {
            let labels = self.labels.iter().map(|(name, value)| (name.to_string(), Json::from(&**value)));
            typed.insert("labels".into(), Json::Object(labels.collect()));
        }
        FilterState { text: text.join(","), typed: Some(Json::Object(typed)), peer: Some(Box::new(self)) }
    }
}

/// Of `kubernetes://apis/apps/v1/namespaces/NAMESPACE/deployments/WORKLOAD`: `deployment`.
fn kind_of_owner(owner: &str, workload: &str) -> Option<&'static str> {
    let owner = owner.get(..owner.len().checked_sub(workload.len() + 2)?)?;
    let (_, kind) = owner.rsplit_once('/')?;
    KINDS.into_iter().find(|known| *known == kind)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::Workload;
    use crate::cluster::Locality;

    #[test]
    fn a_node_tells_what_its_peer_understands() {
        let node = json!({
            "NAME": "shop-1", "NAMESPACE": "default", "WORKLOAD_NAME": "shop-v1", "CLUSTER_ID": "east",
            "OWNER": "kubernetes://apis/apps/v1/namespaces/default/deployments/shop-v1",
            "LABELS": {
                "app": "old", "app.kubernetes.io/name": "shop", "version": "v1", "role": "x", "other": "y",
                "service.istio.io/canonical-name": "shop", "service.istio.io/canonical-revision": "v1",
            },
        });
        let locality = Locality { region: "r".into(), zone: "z".into(), ..Locality::default() };
        let own = Workload::of_node(&node, &locality, &["role".into()]);
        let told = Workload::of_struct(&own.to_struct(), &["role".into()]);
        assert_eq!(told, own);
        // Labels that nobody asks for are not taken over.
        assert!(Workload::of_struct(&own.to_struct(), &[]).labels.is_empty());
        let state = told.into_state();
        expect!["type=deployment,workload=shop-v1,name=shop-1,cluster=east,namespace=default,service=shop,revision=v1,app=shop,version=v1,region=r,availability_zone=z,labels[]role=x"]
            .assert_eq(&state.text);
        expect![[r#"{"type":"deployment","workload":"shop-v1","name":"shop-1","cluster":"east","namespace":"default","service":"shop","revision":"v1","app":"shop","version":"v1","region":"r","availability_zone":"z","labels":{"role":"x"}}"#]]
            .assert_eq(&state.typed.map(|typed| typed.to_string()).unwrap_or_default());
        assert_eq!(state.peer.as_ref().and_then(|peer| peer.field("type")), Some("deployment"));
    }

    #[test]
    fn nothing_longer_than_a_name_is_taken_over() {
        let told = |length: usize| {
            let long = "n".repeat(length);
            let own = Workload {
                workload: long.as_str().into(),
                app: long.as_str().into(),
                identity: long.as_str().into(),
                ..Workload::default()
            };
            Workload::of_struct(&own.to_struct(), &[])
        };
        let lengths = |length| {
            let told = told(length);
            [told.workload.len(), told.app.len(), told.identity.len()]
        };
        assert_eq!(lengths(253), [253; 3]);
        assert_eq!(lengths(254), [0, 0, 254]);
        assert_eq!(lengths(601), [0; 3]);
    }

    #[test]
    fn endpoints_have_five_facts() {
        let known = Workload::of_endpoint("w;ns;c;r;cl").map(|known| known.into_state().text);
        assert_eq!(known.as_deref(), Some("workload=w,cluster=cl,namespace=ns,service=c,revision=r"));
        assert_eq!(Workload::of_endpoint("w;ns;c;r"), None);
    }
}

//! What proxies are started with: the defaults, `MeshConfig.defaultConfig`, ProxyConfig objects
//! and the annotation `proxy.istio.io/config`, merged as messages are.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::{Refused, pod};

/// MeshConfig as it is written, over Istio's defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct MeshSettings(Json);

/// What ProxyConfig objects say: of the root namespace, of a Pod's namespace, and of the Pod.
#[derive(Clone, Debug, Default)]
pub struct ProxyRules(pub Vec<ProxySelection>);

/// One ProxyConfig object.
#[derive(Clone, Debug, Default)]
pub struct ProxySelection {
    /// Where it is.
    pub namespace: String,
    /// Labels of the Pods it is for; `None`: all.
    pub labels: Option<BTreeMap<String, String>>,
    /// Its `spec`.
    pub spec: Json,
}

/// Istio's defaults of ProxyConfig.
fn default_proxy() -> Json {
    json!({
        "configPath": "./etc/istio/proxy",
        "binaryPath": "/usr/local/bin/envoy",
        "serviceCluster": "istio-proxy",
        "drainDuration": "45s",
        "terminationDrainDuration": "5s",
        "discoveryAddress": "istiod.istio-system.svc:15012",
        "proxyAdminPort": 15000,
        "controlPlaneAuthPolicy": "MUTUAL_TLS",
        "statNameLength": 189,
        "statusPort": 15020,
    })
}

impl Default for MeshSettings {
    fn default() -> MeshSettings {
        MeshSettings(json!({
            "proxyListenPort": 15001,
            "proxyInboundListenPort": 15006,
            "trustDomain": "cluster.local",
            "rootNamespace": "istio-system",
            "enablePrometheusMerge": true,
            "defaultConfig": default_proxy(),
        }))
    }
}

impl MeshSettings {
    /// Key `mesh` of the ConfigMap `istio`.
    pub fn parse(text: &str) -> Result<MeshSettings, Refused> {
        let json = leno_gotemplate::yaml::parse(text)
            .map_err(|error| Refused(format!("mesh configuration: {error}")))?;
        match json {
            Json::Null => Ok(MeshSettings::default()),
            Json::Object(_) => Ok(MeshSettings::from_json(&json)),
            _ => Err(Refused("mesh configuration: not a mapping".to_owned())),
        }
    }

    /// A MeshConfig over the defaults.
    pub fn from_json(json: &Json) -> MeshSettings {
        let mut mesh = MeshSettings::default();
        overlay(&mut mesh.0, json);
        mesh
    }

    pub(crate) fn json(&self) -> &Json {
        &self.0
    }

    /// `defaultConfig.statusPort`.
    pub(crate) fn status_port(&self) -> i64 {
        self.0.pointer("/defaultConfig/statusPort").and_then(Json::as_i64).unwrap_or(15020)
    }

    pub(crate) fn root_namespace(&self) -> &str {
        self.0.get("rootNamespace").and_then(Json::as_str).unwrap_or("istio-system")
    }

    /// The configuration of a Pod's proxy.
    pub(crate) fn effective(&self, pod: &Json, rules: &ProxyRules) -> Result<Json, Refused> {
        let mut config = self.0.get("defaultConfig").cloned().unwrap_or_else(default_proxy);
        let namespace = pod.pointer("/metadata/namespace").and_then(Json::as_str).unwrap_or_default();
        let root = self.root_namespace();
        let of = |wanted: &str| rules.0.iter().find(|rule| rule.namespace == wanted && rule.labels.is_none());
        for rule in [of(root), of(namespace).filter(|_| namespace != root)].into_iter().flatten() {
            overlay(&mut config, &rule.as_proxy_config());
        }
        if let Some(over) = annotated(pod)? {
            overlay(&mut config, &over);
        }
        let matching = rules.0.iter().find(|rule| {
            let Some(labels) = &rule.labels else { return false };
            rule.namespace == namespace
                && labels.iter().all(|(name, value)| pod::label(pod, name) == Some(value.as_str()))
        });
        if let Some(rule) = matching {
            overlay(&mut config, &rule.as_proxy_config());
        }
        Ok(config)
    }
}

impl ProxySelection {
    /// The same as a part of MeshConfig: variables are metadata there.
    fn as_proxy_config(&self) -> Json {
        let mut config = Map::new();
        for (from, to) in
            [("concurrency", "concurrency"), ("image", "image"), ("environmentVariables", "proxyMetadata")]
        {
            if let Some(value) = self.spec.get(from).filter(|value| !value.is_null()) {
                config.insert(to.to_owned(), value.clone());
            }
        }
        Json::Object(config)
    }
}

/// The annotation `proxy.istio.io/config`.
pub(crate) fn annotated(pod: &Json) -> Result<Option<Json>, Refused> {
    let Some(text) = pod::annotation(pod, "proxy.istio.io/config") else { return Ok(None) };
    match leno_gotemplate::yaml::parse(text) {
        Ok(json @ Json::Object(_)) => Ok(Some(json)),
        Ok(Json::Null) => Ok(None),
        Ok(_) => Err(Refused("could not parse proxy config: not a mapping".to_owned())),
        Err(error) => Err(Refused(format!("could not parse proxy config: {error}"))),
    }
}

/// Merges as messages are merged: maps by key, all else replaces.
fn overlay(base: &mut Json, over: &Json) {
    match (base, over) {
        (Json::Object(base), Json::Object(over)) => {
            for (key, value) in over {
                let key = camel(key);
                match base.get_mut(&key) {
                    _ if value.is_null() => {}
                    Some(old) if old.is_object() && value.is_object() && key != "image" => {
                        overlay(old, value);
                    }
                    _ => {
                        base.insert(key, value.clone());
                    }
                }
            }
        }
        (base, over) => *base = over.clone(),
    }
}

/// Names of fields may be written with underscores; names of variables keep theirs.
fn camel(key: &str) -> String {
    if key.contains(|letter: char| letter.is_uppercase()) || !key.contains('_') {
        return key.to_owned();
    }
    let mut parts = key.split('_');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut letters = part.chars();
        out.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        out.push_str(letters.as_str());
    }
    out
}

/// Without what is default: Pods shall not be larger than they need.
pub(crate) fn without_defaults(config: &Json) -> Json {
    let mut config = config.clone();
    let Json::Object(map) = &mut config else { return config };
    for (key, default) in default_proxy().as_object().into_iter().flatten() {
        if map.get(key) == Some(default) {
            map.shift_remove(key);
        }
    }
    let is_empty = |value: &Json| match value {
        Json::Null => true,
        Json::Object(map) => map.is_empty(),
        Json::Array(items) => items.is_empty(),
        Json::String(text) => text.is_empty(),
        _ => false,
    };
    let empty: Vec<_> = ["proxyMetadata", "extraStatTags"]
        .into_iter()
        .filter(|key| map.get(*key).is_some_and(is_empty))
        .collect();
    for key in empty {
        map.shift_remove(key);
    }
    if map.get("interceptionMode").and_then(Json::as_str) == Some("REDIRECT") {
        map.shift_remove("interceptionMode");
    }
    map.sort_keys();
    config
}

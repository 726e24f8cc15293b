//! The configuration of injection: key `config` and key `values` of the ConfigMap
//! `istio-sidecar-injector`, and what is built in.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::{Policy, Refused, pod};

/// How many templates a Pod may have.
const MOST_TEMPLATES: usize = 32;

/// Key `config`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Config {
    /// What happens to Pods that do not say anything.
    pub policy: Policy,
    /// The templates of Pods that do not ask for others; `sidecar` if empty.
    pub default_templates: Vec<String>,
    /// Templates by their names.
    pub templates: BTreeMap<String, String>,
    /// Names that stand for several templates.
    pub aliases: BTreeMap<String, Vec<String>>,
    /// Labels of Pods that are never injected.
    #[serde(rename = "neverInjectSelector", deserialize_with = "nullable")]
    pub never: Vec<Json>,
    /// Labels of Pods that are always injected.
    #[serde(rename = "alwaysInjectSelector", deserialize_with = "nullable")]
    pub always: Vec<Json>,
    /// Annotations that injected Pods get.
    #[serde(deserialize_with = "nullable")]
    pub injected_annotations: BTreeMap<String, String>,
}

/// What Helm leaves empty is null.
fn nullable<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// All that injection is configured with, but the mesh.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Key `config`.
    pub config: Config,
    /// Key `values`: Helm's.
    pub values: Json,
    /// The revision of the control plane; empty or `default`: the default one.
    pub revision: String,
}

/// What is built in, for where there is no ConfigMap.
pub struct BuiltIn;

const SIDECAR: &str = include_str!("../../../../deploy/charts/leno/files/injection-template.yaml");
const GATEWAY: &str = include_str!("../../../../deploy/charts/leno/files/gateway-injection-template.yaml");
const GRPC_SIMPLE: &str = include_str!("../../../../deploy/charts/leno/files/grpc-simple.yaml");
const GRPC_AGENT: &str = include_str!("../../../../deploy/charts/leno/files/grpc-agent.yaml");
const KUBE_GATEWAY: &str = include_str!("../../../../deploy/charts/leno/files/kube-gateway.yaml");
const VALUES: &str = include_str!("../../../../deploy/charts/leno/files/injection-values.yaml");

impl BuiltIn {
    /// The templates of Pods `sidecar`, `gateway`, `grpc-simple` and `grpc-agent`, and `kube-gateway`, which is of
    /// Gateways. Istio's `waypoint` is not there.
    pub fn templates() -> BTreeMap<String, String> {
        let named = [
            ("sidecar", SIDECAR),
            ("gateway", GATEWAY),
            ("grpc-simple", GRPC_SIMPLE),
            ("grpc-agent", GRPC_AGENT),
            ("kube-gateway", KUBE_GATEWAY),
        ];
        named.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect()
    }

    /// The values of a default installation.
    pub fn values() -> Json {
        leno_gotemplate::yaml::parse(VALUES).unwrap_or_else(|_| json!({}))
    }

    /// Templates and values of a default installation.
    pub fn settings(revision: &str) -> Settings {
        let config = Config { templates: BuiltIn::templates(), ..Config::default() }.normal();
        let mut values = BuiltIn::values();
        values["revision"] = Json::from(if revision == "default" { "" } else { revision });
        Settings { config, values, revision: revision.to_owned() }
    }
}

impl Config {
    /// Reads key `config`.
    pub fn parse(text: &str) -> Result<Config, Refused> {
        let json = leno_gotemplate::yaml::parse(text)
            .map_err(|error| Refused(format!("failed to unmarshal injection template: {error}")))?;
        let config: Config = serde_json::from_value(json)
            .map_err(|error| Refused(format!("failed to unmarshal injection template: {error}")))?;
        Ok(config.normal())
    }

    fn normal(mut self) -> Config {
        if self.default_templates.is_empty() {
            self.default_templates = vec!["sidecar".to_owned()];
        }
        self
    }

    /// The templates of a Pod.
    ///
    /// # Errors
    /// If they are too many.
    pub(crate) fn chosen(&self, pod: &Json) -> Result<Vec<String>, Refused> {
        let asked: Vec<String> = match pod::annotation(pod, "inject.istio.io/templates") {
            Some(list) => list.split(',').map(|name| name.trim().to_owned()).collect(),
            None => self.default_templates.clone(),
        };
        let resolved = asked.into_iter().flat_map(|name| match self.aliases.get(&name) {
            Some(names) => names.clone(),
            None => vec![name],
        });
        let all: Vec<String> = resolved.take(MOST_TEMPLATES + 1).collect();
        // Deviation: Istio has no such limit. Everybody who can make Pods can ask for work here.
        if all.len() > MOST_TEMPLATES {
            return Err(Refused(format!("more than {MOST_TEMPLATES} templates are requested")));
        }
        Ok(all)
    }
}

impl Settings {
    /// Reads both keys of the ConfigMap.
    pub fn parse(config: &str, values: &str, revision: &str) -> Result<Settings, Refused> {
        let config = Config::parse(config)?;
        let values = leno_gotemplate::yaml::parse(values)
            .map_err(|error| Refused(format!("could not parse configuration values: {error}")))?;
        if !values.is_object() {
            return Err(Refused("could not parse configuration values: not a mapping".to_owned()));
        }
        Ok(Settings { config, values, revision: revision.to_owned() })
    }
}

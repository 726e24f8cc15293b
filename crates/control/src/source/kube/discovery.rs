//! Which of the kinds that mean something to a mesh a cluster serves, and in which versions.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::client::{Api, Fault};
use crate::model::Kind;
use crate::model::read::{self, Known};

/// Where the objects of a kind are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    /// As `networking.istio.io/v1`.
    pub(crate) api_version: String,
    pub(crate) kind: &'static str,
    /// As `virtualservices`.
    pub(crate) plural: String,
    pub(crate) namespaced: bool,
}

impl Served {
    /// The path of all objects, or those of one namespace.
    pub(crate) fn path(&self, namespace: &str) -> String {
        let root = if self.api_version.contains('/') { "apis" } else { "api" };
        let place = if namespace.is_empty() { String::new() } else { format!("/namespaces/{namespace}") };
        format!("/{root}/{}{place}/{}", self.api_version, self.plural)
    }
}

/// What is served of each kind; kinds that are not served are missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Catalog(BTreeMap<(&'static str, &'static str), Served>);

impl Catalog {
    pub(crate) fn find(&self, known: &Known) -> Option<&Served> {
        self.0.get(&(known.group, known.kind))
    }

    /// Asks the server.
    ///
    /// # Errors
    /// If any answer is missing: half a catalogue would make kinds disappear that are there.
    pub(crate) async fn fetch(api: &Api) -> Result<Catalog, Fault> {
        let text = api.get("/apis", "application/json").await?;
        let groups: Groups = parse(&text)?;
        let mut catalog = Catalog::default();
        let mut fetched: BTreeMap<String, Vec<Resource>> = BTreeMap::new();
        for known in watched() {
            let offered: Vec<String> = if known.group.is_empty() {
                vec!["v1".to_owned()]
            } else {
                let group = groups.groups.iter().find(|group| group.name == known.group);
                group.into_iter().flat_map(|group| &group.versions).map(|it| it.version.clone()).collect()
            };
            for version in preferred(known.versions, &offered) {
                let api_version = match known.group {
                    "" => version.to_owned(),
                    group => format!("{group}/{version}"),
                };
                if !fetched.contains_key(&api_version) {
                    let resources = fetch_resources(api, &api_version).await?;
                    fetched.insert(api_version.clone(), resources);
                }
                let resources = fetched.get(&api_version).map(Vec::as_slice).unwrap_or_default();
                let is_it = |it: &&Resource| it.kind == known.kind && !it.name.contains('/');
                if let Some(resource) = resources.iter().find(is_it) {
                    let served = Served {
                        api_version,
                        kind: known.kind,
                        plural: resource.name.clone(),
                        namespaced: resource.namespaced,
                    };
                    catalog.0.insert((known.group, known.kind), served);
                    break;
                }
            }
        }
        Ok(catalog)
    }
}

/// The kinds that are watched in a cluster: all but `Endpoints`, which the cluster itself mirrors
/// into EndpointSlices.
pub(crate) fn watched() -> impl Iterator<Item = Known> {
    read::known().filter(|known| known.reads != Some(Kind::Endpoints))
}

/// The offered versions that can be read, the best first: in our order where we have one.
fn preferred<'o>(readable: &[&str], offered: &'o [String]) -> Vec<&'o str> {
    if readable.is_empty() {
        return offered.iter().map(String::as_str).collect();
    }
    let find = |wanted: &&str| offered.iter().find(|it| it == wanted).map(String::as_str);
    readable.iter().filter_map(find).collect()
}

async fn fetch_resources(api: &Api, api_version: &str) -> Result<Vec<Resource>, Fault> {
    let root = if api_version.contains('/') { "apis" } else { "api" };
    match api.get(&format!("/{root}/{api_version}"), "application/json").await {
        Ok(text) => Ok(parse::<Resources>(&text)?.resources),
        // A version that went away since the groups were listed.
        Err(fault) if fault.code() == 404 => Ok(Vec::new()),
        Err(fault) => Err(fault),
    }
}

fn parse<'t, T: Deserialize<'t>>(text: &'t str) -> Result<T, Fault> {
    serde_json::from_str(text).map_err(|error| Fault::broken(&error))
}

#[derive(Deserialize)]
struct Groups {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    name: String,
    versions: Vec<Version>,
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

#[derive(Deserialize)]
struct Resources {
    resources: Vec<Resource>,
}

#[derive(Clone, Deserialize)]
struct Resource {
    name: String,
    namespaced: bool,
    kind: String,
}

#[cfg(test)]
mod tests {
    use super::preferred;

    #[test]
    fn the_best_version_comes_first() {
        let offered = ["v1alpha3", "v1", "v2"].map(str::to_owned);
        assert_eq!(preferred(&["v1", "v1beta1", "v1alpha3"], &offered), ["v1", "v1alpha3"]);
        assert_eq!(preferred(&[], &offered), ["v1alpha3", "v1", "v2"]);
        assert!(preferred(&["v1beta1"], &offered).is_empty());
    }
}

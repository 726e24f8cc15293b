//! The Helm charts and profiles that are in the binary, as they are in `deploy/`.

use leno_api::yaml::{Dialect, parse};
use serde_json::Value;

/// A chart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Chart {
    /// What a cluster has once: kinds, the check of objects that name no revision.
    Base,
    /// The control plane.
    Leno,
    /// A gateway.
    Gateway,
    /// The CNI plugin.
    Cni,
}

/// A file of a chart: its path in it, and its text.
pub(crate) struct File {
    /// As `templates/service.yaml`.
    pub(crate) path: &'static str,
    /// What is in it.
    pub(crate) text: &'static str,
}

macro_rules! files {
    ($chart:literal: $($path:literal)*) => {
        &[$(File { path: $path, text: include_str!(concat!("../../../../deploy/charts/", $chart, "/", $path)) }),*]
    };
}

/// [`files`], and the profiles, which all charts that have some have alike.
macro_rules! files_and_profiles {
    ($chart:literal: $($path:literal)*) => {
        files![$chart:
            $($path)*
            "files/profile-demo.yaml"
            "files/profile-platform-gke.yaml"
            "files/profile-platform-k3d.yaml"
            "files/profile-platform-k3s.yaml"
            "files/profile-platform-microk8s.yaml"
            "files/profile-platform-minikube.yaml"
            "files/profile-platform-openshift.yaml"
            "files/profile-preview.yaml"
        ]
    };
}

const BASE: &[File] = files!["base":
    "Chart.yaml"
    "values.yaml"
    "files/crds/authorizationpolicies.security.istio.io.yaml"
    "files/crds/destinationrules.networking.istio.io.yaml"
    "files/crds/envoyfilters.networking.istio.io.yaml"
    "files/crds/gateways.networking.istio.io.yaml"
    "files/crds/peerauthentications.security.istio.io.yaml"
    "files/crds/proxyconfigs.networking.istio.io.yaml"
    "files/crds/requestauthentications.security.istio.io.yaml"
    "files/crds/serviceentries.networking.istio.io.yaml"
    "files/crds/sidecars.networking.istio.io.yaml"
    "files/crds/telemetries.telemetry.istio.io.yaml"
    "files/crds/virtualservices.networking.istio.io.yaml"
    "files/crds/workloadentries.networking.istio.io.yaml"
    "files/crds/workloadgroups.networking.istio.io.yaml"
    "templates/_labels.tpl"
    "templates/crds.yaml"
    "templates/default-validator.yaml"
];

const LENO: &[File] = files_and_profiles!["leno":
    "Chart.yaml"
    "values.yaml"
    "files/gateway-injection-template.yaml"
    "files/grpc-agent.yaml"
    "files/grpc-simple.yaml"
    "files/injection-template.yaml"
    "files/injection-values.yaml"
    "files/kube-gateway.yaml"
    "templates/_labels.tpl"
    "templates/_names.tpl"
    "templates/_profile.tpl"
    "templates/autoscale.yaml"
    "templates/clusterrole.yaml"
    "templates/configmap.yaml"
    "templates/deployment.yaml"
    "templates/gateway-class-configmap.yaml"
    "templates/injector-configmap.yaml"
    "templates/mutatingwebhook.yaml"
    "templates/networkpolicy.yaml"
    "templates/poddisruptionbudget.yaml"
    "templates/refused.yaml"
    "templates/role.yaml"
    "templates/service.yaml"
    "templates/serviceaccount.yaml"
    "templates/validatingwebhook.yaml"
];

const GATEWAY: &[File] = files!["gateway":
    "Chart.yaml"
    "values.yaml"
    "templates/_labels.tpl"
    "templates/_names.tpl"
    "templates/deployment.yaml"
    "templates/hpa.yaml"
    "templates/networkpolicy.yaml"
    "templates/poddisruptionbudget.yaml"
    "templates/role.yaml"
    "templates/service.yaml"
    "templates/serviceaccount.yaml"
];

const CNI: &[File] = files_and_profiles!["cni":
    "Chart.yaml"
    "values.yaml"
    "templates/_labels.tpl"
    "templates/_names.tpl"
    "templates/_profile.tpl"
    "templates/clusterrole.yaml"
    "templates/configmap.yaml"
    "templates/daemonset.yaml"
    "templates/network-attachment-definition.yaml"
    "templates/resourcequota.yaml"
    "templates/serviceaccount.yaml"
];

/// Under which key charts keep defaults that a profile may come over.
pub(crate) const DEFAULTS: &str = "_internal_defaults_do_not_set";

impl Chart {
    /// All charts.
    #[cfg(test)]
    pub(crate) const ALL: [Chart; 4] = [Chart::Base, Chart::Leno, Chart::Gateway, Chart::Cni];

    /// Its name, which is that of its folder.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Chart::Base => "base",
            Chart::Leno => "leno",
            Chart::Gateway => "gateway",
            Chart::Cni => "cni",
        }
    }

    /// Its files.
    pub(crate) fn files(self) -> &'static [File] {
        match self {
            Chart::Base => BASE,
            Chart::Leno => LENO,
            Chart::Gateway => GATEWAY,
            Chart::Cni => CNI,
        }
    }

    /// A YAML file of it; null if there is none.
    pub(crate) fn yaml(self, path: &str) -> Value {
        self.files().iter().find(|file| file.path == path).map_or(Value::Null, |file| document(file.text))
    }

    /// The defaults of its values, without profiles.
    pub(crate) fn defaults(self) -> Value {
        match self.yaml("values.yaml") {
            Value::Object(mut values) if values.contains_key(DEFAULTS) => {
                values.shift_remove(DEFAULTS).unwrap_or_default()
            }
            values => values,
        }
    }
}

/// The one document of a text of our own; a test reads them all.
fn document(text: &str) -> Value {
    let documents = parse(text, Dialect::Kubernetes).unwrap_or_default();
    documents.first().map(|node| node.to_json()).unwrap_or_default()
}

/// The profiles: an IstioOperator each, which is merged over that of the default profile.
const PROFILES: &[(&str, &str)] = &[
    ("default", include_str!("../../../../deploy/profiles/default.yaml")),
    ("demo", include_str!("../../../../deploy/profiles/demo.yaml")),
    ("empty", include_str!("../../../../deploy/profiles/empty.yaml")),
    ("minimal", include_str!("../../../../deploy/profiles/minimal.yaml")),
    ("openshift", include_str!("../../../../deploy/profiles/openshift.yaml")),
    ("preview", include_str!("../../../../deploy/profiles/preview.yaml")),
];

/// The names of the profiles.
pub(crate) fn profiles() -> impl Iterator<Item = &'static str> {
    PROFILES.iter().map(|(name, _)| *name)
}

/// A profile by its name.
pub(crate) fn profile(name: &str) -> Option<Value> {
    PROFILES.iter().find(|(known, _)| *known == name).map(|(_, text)| document(text))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::{Chart, document, profile, profiles};

    fn list(folder: &Path, below: &str, out: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{below}{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                list(&entry.path(), &format!("{name}/"), out);
            } else {
                out.push(name);
            }
        }
    }

    #[test]
    fn all_files_are_in_the_binary() {
        let deploy = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy"));
        for chart in Chart::ALL {
            let mut found = Vec::new();
            list(&deploy.join("charts").join(chart.name()), "", &mut found);
            found.sort();
            let mut listed: Vec<String> = chart.files().iter().map(|file| file.path.to_owned()).collect();
            listed.sort();
            assert_eq!(listed, found, "{}", chart.name());
            let is_yaml = |path: &str| {
                !path.starts_with("templates/")
                    && !path.ends_with("-template.yaml")
                    && !path.contains("/grpc-")
                    && !path.ends_with("/kube-gateway.yaml")
            };
            for file in chart.files().iter().filter(|file| is_yaml(file.path)) {
                assert!(document(file.text).is_object(), "{}/{}", chart.name(), file.path);
            }
        }
        let mut found = Vec::new();
        list(&deploy.join("profiles"), "", &mut found);
        found.sort();
        assert_eq!(profiles().map(|name| format!("{name}.yaml")).collect::<Vec<_>>(), found);
        assert!(profiles().all(|name| profile(name).is_some_and(|it| it["kind"] == "IstioOperator")));
    }

    #[test]
    fn versions_are_those_of_the_program() {
        let version = env!("CARGO_PKG_VERSION");
        for chart in Chart::ALL {
            let about = chart.yaml("Chart.yaml");
            assert_eq!((&about["version"], &about["appVersion"]), (&version.into(), &version.into()));
            let tag = &chart.defaults()["global"]["tag"];
            assert!(tag.is_null() || tag == version, "{}: {tag}", chart.name());
            let text = |path: &str| chart.files().iter().find(|it| it.path == path).map(|it| it.text);
            let labels =
                Chart::Base.files().iter().find(|it| it.path == "templates/_labels.tpl").map(|it| it.text);
            assert_eq!(text("templates/_labels.tpl"), labels, "{}", chart.name());
        }
        assert_eq!(profile("default").unwrap()["spec"]["tag"], version);
    }
}

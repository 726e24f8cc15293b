//! `leno crd`: the CustomResourceDefinitions of the kinds that the control plane reads.

use std::process::ExitCode;

use crate::cli::Failure;
use crate::out::outln;

macro_rules! definitions {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("../../../../deploy/charts/base/files/crds/", $name, ".yaml")))),*]
    };
}

/// The definitions, by name.
const DEFINITIONS: &[(&str, &str)] = definitions![
    "authorizationpolicies.security.istio.io"
    "destinationrules.networking.istio.io"
    "envoyfilters.networking.istio.io"
    "gateways.networking.istio.io"
    "peerauthentications.security.istio.io"
    "proxyconfigs.networking.istio.io"
    "requestauthentications.security.istio.io"
    "serviceentries.networking.istio.io"
    "sidecars.networking.istio.io"
    "telemetries.telemetry.istio.io"
    "virtualservices.networking.istio.io"
    "workloadentries.networking.istio.io"
    "workloadgroups.networking.istio.io"
];

/// Prints them as YAML, for `kubectl apply -f -`.
#[derive(Debug, clap::Args)]
pub(crate) struct Crd {
    /// Those whose names begin so, as `gateways`; without any, all
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

impl Crd {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let unknown: Vec<&String> = self
            .names
            .iter()
            .filter(|wanted| DEFINITIONS.iter().all(|(name, _)| !name.starts_with(*wanted)))
            .collect();
        if let Some(unknown) = unknown.first() {
            return Err(anyhow::anyhow!("there is no definition whose name begins with {unknown:?}").into());
        }
        let wanted = |name: &str| self.names.is_empty() || self.names.iter().any(|it| name.starts_with(it));
        for (_, text) in DEFINITIONS.iter().filter(|(name, _)| wanted(name)) {
            outln!("---\n{}", text.trim_start_matches("---\n").trim_end());
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::DEFINITIONS;

    #[test]
    fn all_definitions_are_there() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/charts/base/files/crds");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().trim_end_matches(".yaml").to_owned())
            .collect();
        files.sort();
        assert_eq!(DEFINITIONS.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>(), files);
    }
}

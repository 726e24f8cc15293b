//! The plugin's configuration, as istio-cni's installers write it into the list of plugins of a network.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::protocol::{CniError, check_version};

/// The kubeconfig's name in the folder that plugin and DaemonSet share.
pub(crate) const KUBECONFIG: &str = "istio-cni-kubeconfig";

/// What is configured. Fields of the specification that are for others (`ipam`, `dns`, `runtimeConfig`, ...) are
/// not looked at, as the specification wants it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    #[serde(rename = "cniVersion")]
    pub(crate) version: String,
    #[serde(rename = "prevResult")]
    pub(crate) previous: Option<Value>,
    plugin_log_level: String,
    /// The older name.
    log_level: String,
    cni_agent_run_dir: String,
    ambient_enabled: bool,
    exclude_namespaces: Option<Vec<String>>,
    /// Where the DaemonSet is.
    pub(crate) pod_namespace: String,
    pub(crate) native_nftables: bool,
    kubernetes: Kubernetes,
}

/// As in older releases.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Kubernetes {
    kubeconfig: String,
    exclude_namespaces: Option<Vec<String>>,
}

impl Config {
    /// Reads stdin.
    pub(crate) fn read(text: &str) -> Result<Config, CniError> {
        let config: Config = serde_json::from_str(text).map_err(|error| {
            let message = "the network configuration cannot be read";
            CniError::new(CniError::DECODING, message, error.to_string())
        })?;
        check_version(&config.version)?;
        if config.ambient_enabled {
            let message = "ambient_enabled: ambient mode is not supported yet";
            return Err(CniError::new(CniError::CONFIGURATION, message, ""));
        }
        Ok(config)
    }

    /// Whether nothing in a namespace is redirected.
    pub(crate) fn excludes(&self, namespace: &str) -> bool {
        let lists = [&self.exclude_namespaces, &self.kubernetes.exclude_namespaces];
        lists.into_iter().flatten().flatten().any(|excluded| excluded == namespace)
    }

    /// The folder that plugin and DaemonSet share.
    pub(crate) fn folder(&self) -> &Path {
        let folder = &self.cni_agent_run_dir;
        Path::new(if folder.is_empty() { "/var/run/istio-cni" } else { folder })
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        let kubeconfig = &self.kubernetes.kubeconfig;
        if kubeconfig.is_empty() { self.folder().join(KUBECONFIG) } else { PathBuf::from(kubeconfig) }
    }

    /// A level of `tracing`.
    pub(crate) fn level(&self) -> &str {
        let given = if self.plugin_log_level.is_empty() { &self.log_level } else { &self.plugin_log_level };
        match given.as_str() {
            "none" => "off",
            "fatal" | "error" => "error",
            "warn" => "warn",
            "debug" => "debug",
            _ => "info",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Config;

    #[test]
    fn what_installers_write() {
        let config = Config::read(
            r#"{"cniVersion": "0.3.1", "name": "istio-cni", "type": "istio-cni", "ipam": {}, "dns": {},
                "plugin_log_level": "debug", "cni_agent_run_dir": "/run/x", "ambient_enabled": false,
                "enablement_selectors": [], "exclude_namespaces": ["kube-system"], "pod_namespace": "istio-system",
                "native_nftables": false, "enable_ambient_detection_retry": false}"#,
        )
        .unwrap();
        assert_eq!(config.kubeconfig().to_str(), Some("/run/x/istio-cni-kubeconfig"));
        assert!(config.excludes("kube-system") && !config.excludes("shop"));
        assert_eq!(config.level(), "debug");

        let older = r#"{"cniVersion": "1.0.0", "log_level": "warn", "exclude_namespaces": null,
            "kubernetes": {"kubeconfig": "/etc/cni/net.d/kc", "cni_bin_dir": "/opt", "exclude_namespaces": ["a"]}}"#;
        let older = Config::read(older).unwrap();
        assert_eq!((older.kubeconfig().to_str(), older.level()), (Some("/etc/cni/net.d/kc"), "warn"));
        assert!(older.excludes("a"));
    }

    #[test]
    fn what_is_refused() {
        let code = |text: &str| Config::read(text).unwrap_err().code;
        assert_eq!(code("{"), 6);
        assert_eq!(code("{}"), 1);
        assert_eq!(code(r#"{"cniVersion": "0.2.0"}"#), 1);
        assert_eq!(code(r#"{"cniVersion": "1.0.0", "ambient_enabled": true}"#), 7);
    }
}

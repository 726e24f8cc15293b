//! The command line of the proxy, as Envoy's, without the parsing of it.

use std::path::PathBuf;
use std::time::Duration;

/// How to run one proxy. Fields have the names of Envoy's flags.
#[derive(Clone, Debug)]
pub struct Options {
    /// `--config-path`: bootstrap file, YAML or JSON.
    pub config_path: Option<PathBuf>,
    /// `--config-yaml`: merged over the file.
    pub config_yaml: Option<String>,
    /// `--concurrency`: worker threads; `None`: one per processor.
    pub concurrency: Option<usize>,
    /// `--service-cluster`: overrides `node.cluster` if that is empty.
    pub service_cluster: String,
    /// `--service-node`: overrides `node.id` if that is empty.
    pub service_node: String,
    /// `--service-zone`: overrides `node.locality.zone` if that is empty.
    pub service_zone: String,
    /// `--log-level`: trace, debug, info, warning, error, critical or off.
    pub log_level: String,
    /// `--component-log-level`: (component, level).
    pub component_log_levels: Vec<(String, String)>,
    /// `--log-path`: file for the proxy's own log instead of stderr.
    pub log_path: Option<PathBuf>,
    /// `--admin-address-path`: file to write the admin address to.
    pub admin_address_path: Option<PathBuf>,
    /// `--drain-time-s`, 600 s by default.
    pub drain_time: Duration,
    /// `--drain-strategy immediate`: ask all connections to end at once, not spread over time.
    pub drain_immediately: bool,
    /// `--file-flush-interval-msec`, 10 s by default.
    pub file_flush_interval: Duration,
    /// `--file-flush-min-size-kb` in bytes, 64 KiB by default.
    pub file_flush_min_size: usize,
    /// `--allow-unknown-static-fields`: unknown fields of the bootstrap are warnings.
    pub allow_unknown_static_fields: bool,
    /// `--reject-unknown-dynamic-fields`: unknown fields of xDS resources are refused.
    pub reject_unknown_dynamic_fields: bool,
    /// `--ignore-unknown-dynamic-fields`: unknown fields of xDS resources are not even counted.
    pub ignore_unknown_dynamic_fields: bool,
    /// Somebody else in the process follows SIGTERM and SIGINT, and ends the proxy by `/quitquitquit`.
    /// Not a flag.
    pub embedded: bool,
    /// Levels of others in the process, in the syntax of `tracing_subscriber::EnvFilter`, which stay
    /// whatever the proxy's are: `leno_agent=info`. Not a flag.
    pub other_log_levels: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            config_path: None,
            config_yaml: None,
            concurrency: None,
            service_cluster: String::new(),
            service_node: String::new(),
            service_zone: String::new(),
            log_level: "info".into(),
            component_log_levels: Vec::new(),
            log_path: None,
            admin_address_path: None,
            drain_time: Duration::from_secs(600),
            drain_immediately: false,
            file_flush_interval: Duration::from_secs(10),
            file_flush_min_size: 64 * 1024,
            allow_unknown_static_fields: false,
            reject_unknown_dynamic_fields: false,
            ignore_unknown_dynamic_fields: false,
            embedded: false,
            other_log_levels: String::new(),
        }
    }
}

//! `leno proxy`, with all of Envoy's flags. Those that make no sense here are accepted and say so.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::ValueEnum;

use crate::cli::Failure;
use crate::out::outln;

/// What to do with the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Serve traffic
    Serve,
    /// Check the configuration and exit
    Validate,
    /// Check everything up to, but without, listening
    #[value(name = "init_only", alias = "init-only")]
    InitOnly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DrainStrategy {
    /// Ask connections to end spread over the drain time
    Gradual,
    /// Ask them all at once
    Immediate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum IpVersion {
    V4,
    V6,
}

/// Flags and their meaning are Envoy's.
#[derive(Debug, clap::Args)]
pub(crate) struct Proxy {
    /// Bootstrap configuration, YAML or JSON
    #[arg(short = 'c', long, value_name = "FILE")]
    config_path: Option<PathBuf>,
    /// Bootstrap configuration as text, merged over the file
    #[arg(long, value_name = "YAML")]
    config_yaml: Option<String>,
    /// What to do with it
    #[arg(long, value_enum, default_value = "serve")]
    mode: Mode,
    /// Worker threads; by default one per processor
    #[arg(long, value_name = "N")]
    concurrency: Option<usize>,
    /// The node's name, if the bootstrap has none
    #[arg(long, default_value = "")]
    service_node: String,
    /// The node's cluster, if the bootstrap has none
    #[arg(long, default_value = "")]
    service_cluster: String,
    /// The node's zone, if the bootstrap has none
    #[arg(long, default_value = "")]
    service_zone: String,
    /// trace, debug, info, warning, error, critical or off
    #[arg(short = 'l', long, default_value = "info", value_parser = LEVELS)]
    log_level: String,
    /// Levels of single components, as `http:debug,config:trace`
    #[arg(long, default_value = "", value_name = "LIST")]
    component_log_level: String,
    /// Write the proxy's own log here instead of to standard error
    #[arg(long, value_name = "FILE")]
    log_path: Option<PathBuf>,
    /// Write the address of the admin interface to this file
    #[arg(long, value_name = "FILE")]
    admin_address_path: Option<PathBuf>,
    /// Time for connections to end when the proxy or a listener does, in seconds
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    drain_time_s: u64,
    /// How connections are asked to end meanwhile
    #[arg(long, value_enum, default_value = "gradual")]
    drain_strategy: DrainStrategy,
    /// How often access logs are written out, in milliseconds
    #[arg(long, default_value_t = 10_000, value_name = "MS")]
    file_flush_interval_msec: u64,
    /// How much an access log may gather before it is written out, in KiB
    #[arg(long, default_value_t = 64, value_name = "KIB")]
    file_flush_min_size_kb: usize,
    /// Unknown fields of the bootstrap are warnings, not errors
    #[arg(long)]
    allow_unknown_static_fields: bool,
    /// The older name of --allow-unknown-static-fields
    #[arg(long)]
    allow_unknown_fields: bool,
    /// Unknown fields of xDS resources are errors
    #[arg(long)]
    reject_unknown_dynamic_fields: bool,
    /// Unknown fields of xDS resources are not even counted
    #[arg(long)]
    ignore_unknown_dynamic_fields: bool,
    /// Print the version and exit
    #[arg(long)]
    version: bool,
    /// Print the version of the hot restart protocol (there is none) and exit
    #[arg(long)]
    hot_restart_version: bool,
    #[command(flatten)]
    without_effect: WithoutEffect,
}

/// Flags that are accepted for the sake of scripts, and have no effect.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Accepted without effect")]
struct WithoutEffect {
    /// Without effect: Leno has no hot restart
    #[arg(long, default_value_t = 0)]
    base_id: u32,
    /// Without effect: Leno has no hot restart
    #[arg(long)]
    use_dynamic_base_id: bool,
    /// Without effect: Leno has no hot restart
    #[arg(long, value_name = "FILE")]
    base_id_path: Option<PathBuf>,
    /// Must be 0: Leno has no hot restart
    #[arg(long, default_value_t = 0)]
    restart_epoch: u32,
    /// Without effect: Leno has no hot restart
    #[arg(long)]
    disable_hot_restart: bool,
    /// Without effect: Leno has no hot restart
    #[arg(long)]
    skip_hot_restart_on_no_parent: bool,
    /// Without effect: Leno has no hot restart
    #[arg(long)]
    skip_hot_restart_parent_stats: bool,
    /// Without effect: Leno has no hot restart
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    parent_shutdown_time_s: u64,
    /// Without effect: Leno has no hot restart
    #[arg(long, value_name = "PATH")]
    socket_path: Option<String>,
    /// Without effect: Leno has no hot restart
    #[arg(long, value_name = "MODE")]
    socket_mode: Option<String>,
    /// Without effect: both families are used
    #[arg(long, value_enum, default_value = "v4")]
    local_address_ip_version: IpVersion,
    /// Without effect: the log has one format
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Without effect: the log has one format
    #[arg(long)]
    log_format_escaped: bool,
    /// Without effect: components have levels of their own anyway
    #[arg(long)]
    enable_fine_grain_logging: bool,
    /// Without effect: deprecated fields are logged once
    #[arg(long)]
    skip_deprecated_logs: bool,
    /// Without effect: the kernel's limit decides
    #[arg(long)]
    enable_core_dump: bool,
    /// Without effect: --concurrency decides
    #[arg(long)]
    cpuset_threads: bool,
    /// Without effect: Leno takes locks on few paths, none of them traced
    #[arg(long)]
    enable_mutex_tracing: bool,
    /// Without effect so far: no extension can be switched off
    #[arg(long, value_name = "LIST")]
    disable_extensions: Option<String>,
    /// Without effect so far: use the bootstrap's `stats_config.stats_tags`
    #[arg(long, value_name = "TAG:VALUE")]
    stats_tag: Vec<String>,
    /// Must be 3
    #[arg(long, value_name = "N")]
    bootstrap_version: Option<u32>,
}

const LEVELS: [&str; 9] = ["trace", "debug", "info", "warning", "warn", "error", "critical", "err", "off"];

impl Proxy {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        if self.version {
            outln!("leno proxy  version: {}/Envoy v3 API", env!("CARGO_PKG_VERSION"));
            return Ok(ExitCode::SUCCESS);
        }
        if self.hot_restart_version {
            outln!("disabled");
            return Ok(ExitCode::SUCCESS);
        }
        let mode = self.mode;
        let options = self.into_options()?;
        match mode {
            Mode::Serve => leno_proxy::run(options)?,
            Mode::Validate | Mode::InitOnly => {
                let summary = leno_proxy::validate(&options).map_err(|faults| anyhow!(faults.join("\n")))?;
                outln!("{summary}");
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn into_options(self) -> anyhow::Result<leno_proxy::Options> {
        if self.without_effect.bootstrap_version.is_some_and(|version| version != 3) {
            bail!("--bootstrap-version: only version 3 of the API is supported");
        }
        if self.without_effect.restart_epoch != 0 {
            bail!("--restart-epoch: there is no hot restart; start a second proxy and end the first instead");
        }
        if self.config_path.is_none() && self.config_yaml.is_none() {
            bail!("one of --config-path and --config-yaml is needed");
        }
        if self.concurrency == Some(0) {
            bail!("--concurrency: at least 1 is needed");
        }
        Ok(leno_proxy::Options {
            component_log_levels: component_levels(&self.component_log_level)?,
            config_path: self.config_path,
            config_yaml: self.config_yaml,
            concurrency: self.concurrency,
            service_cluster: self.service_cluster,
            service_node: self.service_node,
            service_zone: self.service_zone,
            log_level: self.log_level,
            log_path: self.log_path,
            admin_address_path: self.admin_address_path,
            drain_time: Duration::from_secs(self.drain_time_s),
            drain_immediately: self.drain_strategy == DrainStrategy::Immediate,
            file_flush_interval: Duration::from_millis(self.file_flush_interval_msec),
            file_flush_min_size: self.file_flush_min_size_kb * 1024,
            allow_unknown_static_fields: self.allow_unknown_static_fields || self.allow_unknown_fields,
            reject_unknown_dynamic_fields: self.reject_unknown_dynamic_fields,
            ignore_unknown_dynamic_fields: self.ignore_unknown_dynamic_fields,
            ..leno_proxy::Options::default()
        })
    }
}

pub(super) fn component_levels(list: &str) -> anyhow::Result<Vec<(String, String)>> {
    let pairs = list.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let level = |pair: &str| match pair.split_once(':') {
        Some((component, level)) if LEVELS.contains(&level) => Ok((component.to_owned(), level.to_owned())),
        _ => bail!("--component-log-level: {pair:?} is not COMPONENT:LEVEL"),
    };
    pairs.map(level).collect()
}

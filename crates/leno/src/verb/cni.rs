//! `leno cni`: the CNI plugin (called `istio-cni`), and `leno cni install`, the DaemonSet's program that brings it to a
//! node (called `install-cni`, with that program's flags and environment).

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use leno_control::kubernetes::{Api, Kubernetes};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::iptables::boolean;
use super::log_levels;
use crate::cli::Failure;
use crate::cni::install::{Settings, State};
use crate::cni::serve::{Health, serve};
use crate::cni::{plugin, repair};

const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Events come in swarms.
const SETTLE: Duration = Duration::from_millis(100);
/// How often everything is looked at even if nothing was heard of.
const LOOK: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(2);

/// Without a verb it is the plugin: a container runtime calls it, with CNI_COMMAND and others in the environment.
#[derive(Debug, clap::Args)]
pub(crate) struct Cni {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Keep the plugin installed on this node, and repair pods that came before it
    Install(Box<Install>),
}

/// istio-cni's flags, each of which is a variable too: `--cni-conf-name`, `CNI_CONF_NAME`.
#[derive(Debug, clap::Args)]
pub(crate) struct Install {
    /// The configurations of networks
    #[arg(long, env = "MOUNTED_CNI_NET_DIR", value_name = "DIR", default_value = "/host/etc/cni/net.d")]
    mounted_cni_net_dir: PathBuf,
    /// Where plugins are
    #[arg(long, env = "MOUNTED_CNI_BIN_DIR", value_name = "DIR", default_value = "/host/opt/cni/bin")]
    mounted_cni_bin_dir: PathBuf,
    /// The folder that this program and the plugin share
    #[arg(long, env = "CNI_AGENT_RUN_DIR", value_name = "DIR", default_value = "/var/run/istio-cni")]
    cni_agent_run_dir: PathBuf,
    /// The configuration that the plugin is chained into; by default the one in use
    #[arg(long, env = "CNI_CONF_NAME", value_name = "NAME", default_value = "")]
    cni_conf_name: String,
    /// Whether the plugin is chained to others, or a network of its own
    #[arg(long, env = "CHAINED_CNI_PLUGIN", value_parser = truth, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set)]
    chained_cni_plugin: bool,
    /// Leave the configuration in use as it is, and write one of our own that comes before it
    #[arg(long, env = "ISTIO_OWNED_CNI_CONFIG", value_parser = truth, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    istio_owned_cni_config: bool,
    /// Its name (02-istio-cni.conflist)
    #[arg(long, env = "ISTIO_OWNED_CNI_CONFIG_FILENAME", value_name = "NAME", default_value = "")]
    istio_owned_cni_config_filename: String,
    /// The group may read it
    #[arg(long, env = "CNI_CONF_GROUP_READ", value_parser = truth, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    cni_conf_group_read: bool,
    /// The mode of the plugin's kubeconfig, in decimal (384)
    #[arg(long, env = "KUBECONFIG_MODE", value_name = "MODE", default_value_t = 0o600)]
    kubeconfig_mode: u32,
    /// The authority of the API server, if not that of the service account
    #[arg(long, env = "KUBE_CA_FILE", value_name = "FILE", default_value = "")]
    kube_ca_file: String,
    /// Do not look at the API server's certificate
    #[arg(long, env = "SKIP_TLS_VERIFY", value_parser = truth, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    skip_tls_verify: bool,
    /// Namespaces in which nothing is redirected
    #[arg(long, env = "EXCLUDE_NAMESPACES", value_name = "LIST", default_value = "")]
    exclude_namespaces: String,
    /// The namespace of this pod
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME", default_value = "")]
    pod_namespace: String,
    /// nf_tables only; otherwise iptables where the kernel has none
    #[arg(long, env = "NATIVE_NFTABLES", value_parser = truth, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    native_nftables: bool,
    /// Must be false: ambient mode is not supported yet
    #[arg(long, env = "AMBIENT_ENABLED", value_parser = truth, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    ambient_enabled: bool,
    /// The port of metrics
    #[arg(long, env = "MONITORING_PORT", value_name = "PORT", default_value_t = 15014)]
    monitoring_port: u16,
    /// The port of /healthz and /readyz
    #[arg(long, env = "HEALTH_PORT", value_name = "PORT", default_value_t = 8000)]
    health_port: u16,
    /// The level of the plugin's log, if --log_output_level says nothing of cni-plugin
    #[arg(long, env = "LOG_LEVEL", value_name = "LEVEL", default_value = "warn")]
    log_level: String,
    /// Levels of the log: `default:info,cni-plugin:debug`
    #[arg(
        long = "log_output_level",
        alias = "log-output-level",
        value_name = "LIST",
        default_value = "default:info"
    )]
    log_output_level: String,
    /// Without effect: the log is text
    #[arg(long = "log_as_json", alias = "log-as-json")]
    log_as_json: bool,
    #[command(flatten)]
    repair: Repair,
}

#[derive(Debug, clap::Args)]
struct Repair {
    /// Look for pods that came before the plugin
    #[arg(long, env = "REPAIR_ENABLED", value_parser = truth, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set)]
    repair_enabled: bool,
    /// Mend them
    #[arg(long, env = "REPAIR_REPAIR_PODS", value_parser = truth, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    repair_repair_pods: bool,
    /// Delete them
    #[arg(long, env = "REPAIR_DELETE_PODS", value_parser = truth, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    repair_delete_pods: bool,
    /// Label them
    #[arg(long, env = "REPAIR_LABEL_PODS", value_parser = truth, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    repair_label_pods: bool,
    /// The label's name
    #[arg(
        long,
        env = "REPAIR_BROKEN_POD_LABEL_KEY",
        value_name = "KEY",
        default_value = "cni.istio.io/uninitialized"
    )]
    repair_broken_pod_label_key: String,
    /// The label's value
    #[arg(long, env = "REPAIR_BROKEN_POD_LABEL_VALUE", value_name = "VALUE", default_value = "true")]
    repair_broken_pod_label_value: String,
    /// The node
    #[arg(long, env = "REPAIR_NODE_NAME", value_name = "NAME", default_value = "")]
    repair_node_name: String,
    /// The annotation of pods that are looked at
    #[arg(
        long,
        env = "REPAIR_SIDECAR_ANNOTATION",
        value_name = "NAME",
        default_value = "sidecar.istio.io/status"
    )]
    repair_sidecar_annotation: String,
    /// The init container that fails in them
    #[arg(long, env = "REPAIR_INIT_CONTAINER_NAME", value_name = "NAME", default_value = "istio-validation")]
    repair_init_container_name: String,
    /// What it says then
    #[arg(long, env = "REPAIR_INIT_CONTAINER_TERMINATION_MESSAGE", value_name = "TEXT", default_value = "")]
    repair_init_container_termination_message: String,
    /// The code that it ends with
    #[arg(long, env = "REPAIR_INIT_CONTAINER_EXIT_CODE", value_name = "CODE", default_value_t = 126)]
    repair_init_container_exit_code: i32,
    /// More that the pods' labels must be
    #[arg(long, env = "REPAIR_LABEL_SELECTORS", value_name = "SELECTOR", default_value = "")]
    repair_label_selectors: String,
    /// More that the pods' fields must be
    #[arg(long, env = "REPAIR_FIELD_SELECTORS", value_name = "SELECTOR", default_value = "")]
    repair_field_selectors: String,
    /// Where the processes of the node are seen
    #[arg(long, env = "REPAIR_PROC_DIR", value_name = "DIR", default_value = "/host/proc")]
    repair_proc_dir: PathBuf,
    /// A kubeconfig for what is repaired; by default the service account of this pod
    #[arg(long, env = "REPAIR_KUBECONFIG", value_name = "FILE")]
    repair_kubeconfig: Option<PathBuf>,
}

impl Cni {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        match self.verb {
            None => Ok(plugin::run()),
            Some(Verb::Install(install)) => install.run(),
        }
    }
}

impl Install {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let plugin_level = self.start_log()?;
        let settings = self.settings(plugin_level, |name| std::env::var(name).ok())?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.block_on(self.keep(settings))?;
        runtime.shutdown_background();
        Ok(ExitCode::SUCCESS)
    }

    /// Gives the level of the plugin's log.
    fn start_log(&self) -> anyhow::Result<String> {
        let mut directives = Vec::new();
        let mut plugin = self.log_level.clone();
        for scoped in log_levels::parse(&self.log_output_level)? {
            match scoped.scope {
                "default" | "all" | "cni-agent" => directives.push(format!("leno={}", scoped.level)),
                "cni-plugin" => scoped.level.clone_into(&mut plugin),
                _ => {}
            }
        }
        let filter = tracing_subscriber::EnvFilter::try_new(directives.join(","))?;
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .init();
        if self.log_as_json {
            tracing::warn!("--log_as_json has no effect: the log is text");
        }
        Ok(plugin)
    }

    fn settings(
        &self,
        log_level: String,
        variable: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<Settings> {
        if self.ambient_enabled {
            bail!("--ambient-enabled: ambient mode is not supported yet");
        }
        let needed = |name: &str| variable(name).filter(|value| !value.is_empty());
        let outside =
            || anyhow!("KUBERNETES_SERVICE_HOST or KUBERNETES_SERVICE_PORT is missing: this is no pod");
        let host = needed("KUBERNETES_SERVICE_HOST").ok_or_else(outside)?;
        let port = needed("KUBERNETES_SERVICE_PORT").ok_or_else(outside)?;
        let protocol = needed("KUBERNETES_SERVICE_PROTOCOL").unwrap_or_else(|| "https".to_owned());
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let own_name = self.istio_owned_cni_config.then(|| {
            let given = Some(self.istio_owned_cni_config_filename.clone()).filter(|name| !name.is_empty());
            // The name in the chart.
            let given = given.or_else(|| needed("ISTIO_OWNED_CNI_CONF_FILENAME"));
            given.unwrap_or_else(|| "02-istio-cni.conflist".to_owned())
        });
        let excluded = self.exclude_namespaces.split(',').map(str::trim).filter(|name| !name.is_empty());
        Ok(Settings {
            program: std::env::current_exe().context("cannot find this program")?,
            program_folder: self.mounted_cni_bin_dir.clone(),
            networks: self.mounted_cni_net_dir.clone(),
            name: self.cni_conf_name.clone(),
            chained: self.chained_cni_plugin,
            own_name,
            group_read: self.cni_conf_group_read,
            folder: self.cni_agent_run_dir.clone(),
            account: variable("SERVICE_ACCOUNT_DIR").map_or_else(|| PathBuf::from(ACCOUNT), PathBuf::from),
            authority: Some(&self.kube_ca_file).filter(|file| !file.is_empty()).map(PathBuf::from),
            skip_tls_verify: self.skip_tls_verify,
            kubeconfig_mode: self.kubeconfig_mode,
            server: format!("{protocol}://{host}:{port}"),
            log_level,
            excluded_namespaces: excluded.map(str::to_owned).collect(),
            pod_namespace: self.pod_namespace.clone(),
            native_nftables: self.native_nftables,
        })
    }

    /// Until we are told to end; then nothing is left.
    async fn keep(&self, settings: Settings) -> anyhow::Result<()> {
        let mut terminated = signal(SignalKind::terminate())?;
        let mut interrupted = signal(SignalKind::interrupt())?;
        let health = Arc::new(Health::default());
        for port in [self.health_port, self.monitoring_port] {
            let listener = listen(port).await.with_context(|| format!("port {port}"))?;
            tokio::spawn(serve(listener, Arc::clone(&health)));
        }
        let (noted, mut changes) = mpsc::channel(1);
        let _watcher = watch(&settings, noted);
        if let Some(controller) = self.repair.controller(Arc::clone(&health), self.native_nftables).await? {
            tokio::spawn(controller.run());
        }
        let mut last = None;
        loop {
            let now = settings.clone();
            let state = tokio::task::spawn_blocking(move || now.ensure()).await?;
            if last.as_ref() != Some(&state) {
                match &state {
                    Ok(State::Installed) => {
                        tracing::info!("the plugin is in place");
                        health.installed("SUCCESS");
                    }
                    Ok(State::Waiting) => {
                        tracing::warn!("there is no network in {} yet", settings.networks.display());
                    }
                    Err(failed) => {
                        tracing::error!("the plugin cannot be put in place: {}", failed.why);
                        health.installed(failed.result);
                    }
                }
            }
            health.is_ready(state == Ok(State::Installed));
            let next = if state.is_err() { AGAIN } else { LOOK };
            last = Some(state);
            tokio::select! {
                _ = changes.recv() => {
                    tokio::time::sleep(SETTLE).await;
                    let _ = changes.try_recv();
                }
                () = tokio::time::sleep(next) => {}
                _ = terminated.recv() => break,
                _ = interrupted.recv() => break,
            }
        }
        health.is_ready(false);
        let removed = tokio::task::spawn_blocking(move || settings.remove()).await?;
        removed.map_err(|why| anyhow!("not all could be removed: {why}"))?;
        tracing::info!("the plugin is removed");
        Ok(())
    }
}

impl Repair {
    async fn controller(
        &self,
        health: Arc<Health>,
        native_nftables: bool,
    ) -> anyhow::Result<Option<repair::Controller>> {
        let anything = self.repair_repair_pods || self.repair_delete_pods || self.repair_label_pods;
        if !self.repair_enabled || !anything {
            tracing::info!("pods are not repaired");
            return Ok(None);
        }
        let cluster = Kubernetes { kubeconfig: self.repair_kubeconfig.clone(), ..Kubernetes::default() };
        let api = Api::new(&cluster).await.map_err(|error| anyhow!("the API server: {error}"))?;
        let settings = repair::Settings {
            repair: self.repair_repair_pods,
            delete: self.repair_delete_pods,
            label: self.repair_label_pods,
            label_key: self.repair_broken_pod_label_key.clone(),
            label_value: self.repair_broken_pod_label_value.clone(),
            node: self.repair_node_name.clone(),
            annotation: self.repair_sidecar_annotation.clone(),
            container: self.repair_init_container_name.clone(),
            message: self.repair_init_container_termination_message.clone(),
            exit_code: self.repair_init_container_exit_code,
            label_selector: self.repair_label_selectors.clone(),
            field_selector: self.repair_field_selectors.clone(),
            native_nftables,
            procfs: self.repair_proc_dir.clone(),
        };
        Ok(Some(repair::Controller::new(api, settings, health)))
    }
}

/// On all addresses, of both families if there are.
async fn listen(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind(("::", port)).await {
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
            TcpListener::bind(("0.0.0.0", port)).await
        }
        other => other,
    }
}

/// Notes changes; without it everything is looked at now and then.
fn watch(settings: &Settings, noted: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let note = move |event: notify::Result<notify::Event>| {
        let changed = |event: &notify::Event| {
            event.kind.is_create() || event.kind.is_modify() || event.kind.is_remove()
        };
        if event.as_ref().map_or(true, changed) {
            let _ = noted.try_send(());
        }
    };
    let mut watcher = notify::recommended_watcher(note)
        .map_err(|error| tracing::warn!("changes are not noted at once: {error}"))
        .ok()?;
    for folder in settings.watched() {
        if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
            tracing::warn!("changes in {} are not noted at once: {error}", folder.display());
        }
    }
    Some(watcher)
}

fn truth(text: &str) -> Result<bool, String> {
    boolean(text).ok_or_else(|| "true or false".to_owned())
}

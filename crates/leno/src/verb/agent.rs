//! `leno agent`, with pilot-agent's flags and environment: a proxy, and what it needs beside a workload.
//!
//! The proxy is ours, in this process, unless an Envoy is named (`binaryPath` of ProxyConfig, or
//! `--binaryPath`). As with pilot-agent, flags that are not known are passed over.

use std::ffi::OsString;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, FromArgMatches as _};
use leno_agent::agent::Settings;
use leno_agent::bootstrap::{Node, Role, read_override};
use leno_agent::environment::Environment;
use leno_agent::http::ask;
use leno_agent::interfaces::addresses;
use leno_agent::lifecycle::Proxy;
use leno_agent::proxy_config::{Layer, ProxyConfig, trust_domain_aliases};
use leno_proxy::Options;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::iptables;
use super::log_levels::{self, Scoped};
use super::proxy::component_levels;
use crate::cli::Failure;
use crate::out::outln;

/// How much of an answer is read, bytes: configurations are large.
const MOST: usize = 512 << 20;

/// What `leno agent` is called with, which is looked at later.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Agent {
    /// What pilot-agent is called with: `proxy sidecar`, `wait`, `request GET /ready`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, num_args = 0.., value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

/// Run a proxy with all that it needs beside a workload; flags are pilot-agent's
#[derive(Debug, clap::Parser)]
#[command(name = "pilot-agent", disable_version_flag = true, arg_required_else_help = true)]
struct Line {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    log: Log,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Run a proxy and its agent
    Proxy(Box<Run>),
    /// Wait until a proxy is ready
    Wait(Wait),
    /// Ask the admin interface of the proxy
    Request(Request),
    /// Let the connections of this network namespace go through the proxy
    IstioIptables(Box<iptables::Flags>),
    /// The end of that
    IstioCleanIptables(Box<iptables::Flags>),
    /// Print the version
    Version,
}

#[derive(Debug, clap::Args)]
struct Log {
    /// Levels of the agent's log, as `default:info,xdsproxy:debug`
    #[arg(
        long = "log_output_level",
        alias = "log-output-level",
        value_name = "LIST",
        default_value = "default:info",
        global = true
    )]
    log_output_level: String,
    /// The proxy's log is JSON
    #[arg(long = "log_as_json", alias = "log-as-json", global = true)]
    log_as_json: bool,
}

#[derive(Debug, clap::Args)]
struct Run {
    /// What the proxy is for
    #[arg(default_value = "sidecar", value_parser = ["sidecar", "router"])]
    role: String,
    /// The DNS domain; ${POD_NAMESPACE}.svc.cluster.local by default
    #[arg(long, default_value = "")]
    domain: String,
    /// A file with a mesh configuration
    #[arg(long = "meshConfig", value_name = "FILE", default_value = "./etc/istio/config/mesh")]
    mesh_config: PathBuf,
    /// The cluster of the node
    #[arg(long = "serviceCluster", value_name = "NAME", default_value = "istio-proxy")]
    service_cluster: String,
    /// The proxy's log level, also for components: `info,misc:error`
    #[arg(long = "proxyLogLevel", value_name = "LEVEL", default_value = "warning")]
    log_level: String,
    /// Levels of the proxy's components
    #[arg(long = "proxyComponentLogLevel", value_name = "LIST", default_value = "")]
    component_log_level: String,
    /// Worker threads; ProxyConfig's `concurrency` is better
    #[arg(long, value_name = "N", default_value_t = 0)]
    concurrency: u32,
    /// Where outlier detection is logged
    #[arg(long = "outlierLogPath", value_name = "FILE", default_value = "")]
    outlier_log: String,
    /// An Envoy to be the proxy
    #[arg(long = "binaryPath", value_name = "FILE")]
    binary: Option<String>,
    /// Must be 0: there is no service for security tokens yet
    #[arg(long = "stsPort", value_name = "PORT", default_value_t = 0)]
    sts_port: u16,
    /// Must be empty: there is no service for security tokens yet
    #[arg(long = "tokenManagerPlugin", value_name = "NAME", default_value = "")]
    token_manager: String,
    /// Must be empty: templates of bootstraps are not supported yet
    #[arg(long = "templateFile", value_name = "FILE", default_value = "")]
    template: String,
    /// Without effect: there is nothing of Go's to profile
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, default_missing_value = "true")]
    profiling: String,
}

#[derive(Debug, clap::Args)]
struct Wait {
    /// How long one answer may take, in milliseconds
    #[arg(long = "requestTimeoutMillis", value_name = "MS", default_value_t = 500)]
    request_timeout: u64,
    /// How long to wait at all
    #[arg(long = "timeoutSeconds", value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// How often to ask
    #[arg(long = "periodMillis", value_name = "MS", default_value_t = 500)]
    period: u64,
    /// Where
    #[arg(long, default_value = "http://localhost:15021/healthz/ready")]
    url: String,
}

#[derive(Debug, clap::Args)]
struct Request {
    /// GET or POST
    method: String,
    /// The path
    path: String,
    /// The port of the admin interface
    #[arg(long = "debug-port", default_value_t = 15000)]
    debug_port: u16,
}

impl Agent {
    /// Called as `pilot-agent`: the first of the arguments is the program's name.
    pub(crate) fn new(arguments: Vec<OsString>) -> Agent {
        Agent { arguments: arguments.into_iter().skip(1).collect() }
    }

    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let (Line { verb, log }, unknown) = parse(self.arguments)?;
        match verb {
            Verb::Proxy(run) => run.run(&log, &unknown),
            Verb::Wait(wait) => wait.run(),
            Verb::Request(request) => request.run(),
            Verb::IstioIptables(flags) => known(&unknown).and_then(|()| flags.run(false)),
            Verb::IstioCleanIptables(flags) => known(&unknown).and_then(|()| flags.run(true)),
            Verb::Version => {
                outln!("{}", env!("CARGO_PKG_VERSION"));
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// Rules that are not as they were meant to be are worse than none.
fn known(unknown: &[String]) -> Result<(), Failure> {
    if unknown.is_empty() { Ok(()) } else { Err(anyhow!("not known: {}", unknown.join(", ")).into()) }
}

/// Reads the command line without what is not known, which is returned.
fn parse(mut arguments: Vec<OsString>) -> Result<(Line, Vec<String>), Failure> {
    let mut unknown = Vec::new();
    loop {
        let all = std::iter::once(OsString::from("pilot-agent")).chain(arguments.iter().cloned());
        let error = match Line::command().try_get_matches_from(all) {
            Ok(matches) => {
                let line = Line::from_arg_matches(&matches).map_err(|error| Failure::Usage(error, 1))?;
                return Ok((line, unknown));
            }
            Err(error) => error,
        };
        let flag = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(flag))
                if error.kind() == ErrorKind::UnknownArgument && flag.starts_with('-') =>
            {
                flag.clone()
            }
            _ => return Err(Failure::Usage(error, 1)),
        };
        let name = flag.split('=').next().unwrap_or_default().to_owned();
        let is_flag = |argument: &OsString| {
            argument.to_str().is_some_and(|text| {
                text == name || text.strip_prefix(&name).is_some_and(|rest| rest.starts_with('='))
            })
        };
        let Some(at) = arguments.iter().position(is_flag) else { return Err(Failure::Usage(error, 1)) };
        let removed = arguments.remove(at);
        // Its value, as pflag guesses it.
        let has_value = removed.to_str().is_none_or(|text| !text.contains('='));
        if has_value
            && arguments.get(at).and_then(|next| next.to_str()).is_some_and(|next| !next.starts_with('-'))
        {
            arguments.remove(at);
        }
        unknown.push(name);
    }
}

impl Run {
    fn run(self, log: &Log, unknown: &[String]) -> Result<ExitCode, Failure> {
        // For the sake of command lines that have it.
        let _ = &self.profiling;
        let mut options = self.options(log)?;
        leno_proxy::start_log(&options)?;
        for flag in unknown {
            tracing::warn!("{flag} has no effect: it is not known");
        }
        let settings = self.settings(log)?;
        let (config, environment) = (&settings.config, &settings.environment);
        options.drain_time = config.drain_duration;
        options.concurrency = workers(config);
        if let Some(interval) = config.file_flush_interval {
            options.file_flush_interval = interval;
        }
        if config.file_flush_min_size_kb > 0 {
            options.file_flush_min_size = config.file_flush_min_size_kb as usize * 1024;
        }
        if let Some(file) = &environment.bootstrap_override {
            options.config_yaml =
                Some(read_override(file, &environment.host_ip).map_err(anyhow::Error::msg)?);
        }
        let envoy = config.envoy().map(PathBuf::from);
        let addresses = settings.node.addresses.clone();
        let skips = environment.skip_deprecated_logs;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let ended = runtime.block_on(async move {
            // Before anything is up: whoever starts us may change its mind at any time.
            let terminated = terminated()?;
            let agent = leno_agent::agent::Agent::start(settings).await;
            let agent = agent.map_err(|faults| anyhow!(faults.join("\n")))?;
            options.config_path = Some(agent.bootstrap.clone());
            let proxy = match envoy {
                None => inside(options)?,
                Some(program) => child(&program, &options, &addresses, skips)?,
            };
            agent.run(proxy, terminated).await.map_err(anyhow::Error::msg)
        });
        // What still runs is of no use without a proxy.
        runtime.shutdown_background();
        ended?;
        Ok(ExitCode::SUCCESS)
    }

    fn settings(&self, log: &Log) -> anyhow::Result<Settings> {
        if self.sts_port != 0 || !self.token_manager.is_empty() {
            bail!("--stsPort, --tokenManagerPlugin: not supported yet");
        }
        if !self.template.is_empty() {
            bail!("--templateFile: not supported yet");
        }
        let words = |faults: Vec<String>| anyhow!(faults.join("\n"));
        let environment = Environment::read(std::env::vars(), Path::new(".")).map_err(words)?;
        let mesh = match std::fs::read_to_string(&self.mesh_config) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| self.mesh_config.display().to_string()),
        };
        let file = self.mesh_config.display().to_string();
        let annotation = environment.annotation("proxy.istio.io/config").unwrap_or_default();
        let layers = [
            (file.as_str(), Layer::Mesh(&mesh)),
            ("PROXY_CONFIG", Layer::Proxy(&environment.proxy_config)),
            ("proxy.istio.io/config", Layer::Proxy(annotation)),
        ];
        let mut config = ProxyConfig::read(&layers).map_err(words)?;
        let aliases = trust_domain_aliases(&file, &mesh).map_err(anyhow::Error::msg)?;
        config.annotate(|name| environment.annotation(name).map(str::to_owned)).map_err(words)?;
        if config.service_cluster.is_none() && config.tracing_service_name.is_none() {
            config.service_cluster = Some(self.service_cluster.clone());
        }
        if config.concurrency.is_none() && environment.cpu_limit > 0 {
            config.concurrency = u32::try_from(environment.cpu_limit).ok();
        }
        if self.concurrency != 0 {
            tracing::warn!("--concurrency is old: ProxyConfig's is better");
            config.concurrency = Some(self.concurrency);
        }
        if let Some(binary) = &self.binary {
            config.set_binary(binary);
        }
        let outlier_log = Some(self.outlier_log.clone()).filter(|path| !path.is_empty());
        let role = if self.role == "router" { Role::Router } else { Role::Sidecar };
        let excluded =
            environment.annotation("traffic.sidecar.istio.io/excludeInterfaces").unwrap_or_default();
        let found = addresses(&excluded.split(',').map(str::trim).collect::<Vec<_>>());
        let node = Node::new(role, Some(&self.domain), &config, &environment, &found, outlier_log.as_deref());
        Ok(Settings { environment, config, node, outlier_log, json_log: log.log_as_json, aliases })
    }

    /// How the proxy runs, as far as flags say it.
    fn options(&self, log: &Log) -> anyhow::Result<Options> {
        let (level, components) = split_level(&self.log_level);
        let components = if components.is_empty() { self.component_log_level.clone() } else { components };
        Ok(Options {
            log_level: level,
            component_log_levels: component_levels(&components)?,
            drain_immediately: true,
            file_flush_interval: Duration::from_secs(1),
            allow_unknown_static_fields: true,
            embedded: true,
            other_log_levels: agent_levels(&log.log_output_level)?,
            ..Options::default()
        })
    }
}

/// As many workers as are asked for; `None`: one for each processor.
fn workers(config: &ProxyConfig) -> Option<usize> {
    config.concurrency.and_then(|number| usize::try_from(number).ok()).filter(|number| *number > 0)
}

/// `info,misc:error`: a level, and levels of components.
fn split_level(text: &str) -> (String, String) {
    let (components, levels): (Vec<&str>, Vec<&str>) = text.split(',').partition(|part| part.contains(':'));
    let level = levels.last().filter(|level| !level.is_empty()).unwrap_or(&"warning");
    ((*level).to_owned(), components.join(","))
}

/// The agent's levels for its own log. Scopes are pilot-agent's; those that we do not have have no effect.
fn agent_levels(levels: &str) -> anyhow::Result<String> {
    let mut directives = Vec::new();
    for Scoped { scope, level } in log_levels::parse(levels)? {
        let target = match scope {
            "default" | "all" => "leno_agent",
            "xdsproxy" => "leno_agent::xds_proxy",
            "dns" => "leno_agent::dns",
            "sds" => "leno_agent::sds",
            "cache" | "ca" | "citadelclient" => "leno_agent::identity",
            "probes" => "leno_agent::status",
            _ => continue,
        };
        directives.push(format!("{target}={level}"));
        if target == "leno_agent" {
            directives.push(format!("leno={level}"));
        }
    }
    Ok(directives.join(","))
}

/// When we are told to end.
fn terminated() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Our proxy, on a thread of its own.
fn inside(options: Options) -> anyhow::Result<Proxy> {
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("proxy".to_owned()).spawn(move || {
        let _ = ended.send(leno_proxy::run(options).map_err(|error| error.to_string()));
    })?;
    let exited = async { end.await.unwrap_or_else(|_| Err("its thread has ended".to_owned())) };
    Ok(Proxy { exited: Box::pin(exited), kill: None })
}

/// Envoy, as a child.
fn child(program: &Path, options: &Options, addresses: &[IpAddr], skips: bool) -> anyhow::Result<Proxy> {
    let v6 = !addresses.is_empty() && addresses.iter().all(IpAddr::is_ipv6);
    let mut command = Command::new(program);
    command.arg("-c").args(&options.config_path);
    command.args(["--drain-time-s", &options.drain_time.as_secs().to_string()]);
    command.args(["--drain-strategy", "immediate"]);
    command.args(["--local-address-ip-version", if v6 { "v6" } else { "v4" }]);
    command.args(["--file-flush-interval-msec", &options.file_flush_interval.as_millis().to_string()]);
    command.args(["--disable-hot-restart", "--allow-unknown-static-fields"]);
    if options.file_flush_min_size != Options::default().file_flush_min_size {
        command.args(["--file-flush-min-size-kb", &(options.file_flush_min_size / 1024).to_string()]);
    }
    command.args(["-l", &options.log_level]);
    if !options.component_log_levels.is_empty() {
        let pairs: Vec<String> = options
            .component_log_levels
            .iter()
            .map(|(component, level)| format!("{component}:{level}"))
            .collect();
        command.args(["--component-log-level", &pairs.join(",")]);
    }
    if skips {
        command.arg("--skip-deprecated-logs");
    }
    if let Some(yaml) = &options.config_yaml {
        command.args(["--config-yaml", yaml]);
    }
    if let Some(concurrency) = options.concurrency {
        command.args(["--concurrency", &concurrency.to_string()]);
    }
    tracing::info!(?command, "starting Envoy");
    command.stdin(Stdio::null());
    leno_node::die_with_thread(&mut command);
    let (begun, begin) = std::sync::mpsc::channel();
    let (ended, end) = tokio::sync::oneshot::channel();
    // Not by tokio, whose workers would look for children in each of their turns. It dies with this thread: when we
    // are killed, nobody is left to end it.
    std::thread::Builder::new().name("envoy".to_owned()).spawn(move || {
        let started = command.spawn().and_then(|mut child| {
            // Names this process even when its number has gone to another one.
            let handle = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
            if handle.is_err() {
                // Nobody would end it later.
                let _ = child.kill();
                let _ = child.wait();
            }
            Ok((handle?, child))
        });
        match started {
            Ok((handle, mut child)) => {
                let _ = begun.send(Ok(handle));
                let _ = ended.send(child.wait());
            }
            Err(error) => drop(begun.send(Err(error))),
        }
    })?;
    let handle = begin.recv().context("the thread of Envoy has ended")?;
    let handle = Arc::new(handle.with_context(|| program.display().to_string())?);
    let running = Running(Arc::clone(&handle));
    let exited = async move {
        let status = end.await;
        drop(running);
        match status {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(status.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("nobody waits for it".to_owned()),
        }
    };
    Ok(Proxy { exited: Box::pin(exited), kill: Some(Box::new(move || kill(&handle))) })
}

/// A child that does not outlive who waits for it.
struct Running(Arc<OwnedFd>);

impl Drop for Running {
    fn drop(&mut self) {
        kill(&self.0);
    }
}

fn kill(process: &OwnedFd) {
    // One that has ended cannot be killed.
    let _ = pidfd_send_signal(process, Signal::KILL);
}

impl Wait {
    fn run(self) -> Result<ExitCode, Failure> {
        let rest = self.url.strip_prefix("http://");
        let rest = rest.ok_or_else(|| anyhow!("--url: {:?} is not http://...", self.url))?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = if path.is_empty() { "/" } else { path };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().context("--url: its port")?),
            _ => (authority, 80),
        };
        let each = Duration::from_millis(self.request_timeout);
        let period = Duration::from_millis(self.period);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let end = tokio::time::Instant::now() + Duration::from_secs(self.timeout);
            loop {
                let error = match ask("GET", (host, port), path, each, MOST).await {
                    Ok((200..=299, _)) => return Ok(ExitCode::SUCCESS),
                    Ok((status, _)) => format!("HTTP status code {status}"),
                    Err(error) => error,
                };
                if tokio::time::Instant::now() >= end {
                    let words = "timeout waiting for Envoy proxy to become ready. Last error";
                    return Err(anyhow!("{words}: {error}").into());
                }
                tokio::time::sleep(period).await;
            }
        })
    }
}

impl Request {
    fn run(self) -> Result<ExitCode, Failure> {
        let path = if self.path.starts_with('/') { self.path.clone() } else { format!("/{}", self.path) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let to = ("localhost", self.debug_port);
        let asked = ask(&self.method, to, &path, Duration::from_secs(60), MOST);
        let (status, body) = runtime.block_on(asked).map_err(anyhow::Error::msg)?;
        let body = String::from_utf8_lossy(&body);
        if status >= 400 {
            return Err(anyhow!("received unsuccessful status code {status}: {body}").into());
        }
        outln!("{body}");
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::{Verb, agent_levels, parse, split_level};

    #[test]
    fn command_lines_of_pilot_agent() {
        let line = "proxy sidecar --domain shop.svc.cluster.local --proxyLogLevel=warning \
             --proxyComponentLogLevel=misc:error --log_output_level=default:info --unheard of --of=it";
        let (line, unknown) =
            parse(line.split_whitespace().map(Into::into).collect()).ok().expect("it is understood");
        assert_eq!(unknown, ["--unheard", "--of"]);
        let Verb::Proxy(run) = line.verb else { panic!("it runs a proxy") };
        assert_eq!((run.role.as_str(), run.domain.as_str()), ("sidecar", "shop.svc.cluster.local"));
        assert_eq!(line.log.log_output_level, "default:info");
        for good in [
            "proxy router --log_as_json",
            "proxy",
            "wait --timeoutSeconds 5",
            "request GET /ready",
            "version",
            "istio-iptables -p 15001 -b * --log_output_level=default:info",
            "istio-clean-iptables",
        ] {
            assert!(parse(good.split_whitespace().map(Into::into).collect()).is_ok(), "{good}");
        }
        for bad in ["proxy ztunnel", "dance", "request GET"] {
            assert!(parse(bad.split_whitespace().map(Into::into).collect()).is_err(), "{bad}");
        }
    }

    #[test]
    fn levels() {
        assert_eq!(
            split_level("info,misc:error,upstream:debug"),
            ("info".to_owned(), "misc:error,upstream:debug".to_owned())
        );
        assert_eq!(split_level("misc:error").0, "warning");
        assert_eq!(
            agent_levels("default:debug,xdsproxy:warn,unknown:info").expect("fine"),
            "leno_agent=debug,leno=debug,leno_agent::xds_proxy=warn"
        );
        assert!(agent_levels("default:loud").is_err());
    }
}

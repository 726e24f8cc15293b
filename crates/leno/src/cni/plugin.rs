//! The plugin itself: one call of a container runtime, from its environment and stdin to stdout.
//!
//! ADD puts the rules into the pod's network namespace, before a container of the pod starts; if that fails, so does
//! the pod's start, and the runtime tries again. CHECK looks whether they are there. The rest has nothing to do: what
//! is in a network namespace is gone with it.

use std::io::Read as _;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use leno_control::kubernetes::{Api, Kubernetes};
use leno_node::Redirect;
use leno_node::intercept::{self, Choice, Options};
use serde_json::Value;

use super::config::Config;
use super::pod::{Decision, decide};
use super::protocol::{self, Arguments, Call, CniError, Command};
use crate::verb::iptables::families;

/// Names of the DaemonSet's own pods, which must start even if nothing is configured yet.
const OWN: &str = "istio-cni-node-";
/// How often the API server is asked for a pod, and how long we wait in between.
const ATTEMPTS: u32 = 30;
const BETWEEN: Duration = Duration::from_secs(1);
/// The log file on the node is started anew when it is as long as this, in bytes.
const LONGEST_LOG: u64 = 10 << 20;

/// Answers a call. The exit code is 1 if the answer is an error.
pub(crate) fn run() -> ExitCode {
    let mut stdin = String::new();
    let read = std::io::stdin().read_to_string(&mut stdin);
    let version = version_of(&stdin);
    let outcome = read
        .map_err(|error| CniError::new(CniError::DECODING, "stdin cannot be read", error.to_string()))
        .and_then(|_| Call::read(|name| std::env::var(name).ok()))
        .and_then(|call| answer(&call, &stdin));
    let (text, code) = match outcome {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(result)) => (result.to_string(), ExitCode::SUCCESS),
        Err(error) => {
            tracing::error!(code = error.code, details = error.details, "{}", error.message);
            (error.to_json(&version).to_string(), ExitCode::FAILURE)
        }
    };
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The version that answers are in, also if nothing else can be read.
fn version_of(stdin: &str) -> String {
    let value: Value = serde_json::from_str(stdin).unwrap_or_default();
    value["cniVersion"].as_str().unwrap_or("1.1.0").to_owned()
}

fn answer(call: &Call, stdin: &str) -> Result<Option<Value>, CniError> {
    match call.command {
        Command::Version => Ok(Some(protocol::versions(&version_of(stdin)))),
        // Whatever is configured: a container that is gone must not come back to be deleted for ever.
        Command::Delete | Command::Collect => Ok(None),
        Command::Status => {
            let config = Config::read(stdin)?;
            let kubeconfig = config.kubeconfig();
            std::fs::metadata(&kubeconfig).map(|_| None).map_err(|error| {
                let details = format!("{}: {error}", kubeconfig.display());
                CniError::new(CniError::UNAVAILABLE, "the API server cannot be asked", details)
            })
        }
        Command::Add => {
            let config = Config::read(stdin)?;
            start_log(&config);
            if let Some(target) = target(&config, call)? {
                target.apply(&call.namespace, &config)?;
            }
            protocol::result(config.previous.as_ref(), &config.version).map(Some)
        }
        Command::Check => {
            let config = Config::read(stdin)?;
            start_log(&config);
            if let Some(target) = target(&config, call)? {
                target.check(&call.namespace, &config)?;
            }
            Ok(None)
        }
    }
}

/// How a pod is redirected.
#[derive(Debug)]
pub(crate) struct Target {
    redirect: Box<Redirect>,
    dual_stack: bool,
}

impl Target {
    /// What is to be done with a pod; `None`: nothing.
    ///
    /// # Errors
    /// What is wrong with the pod.
    pub(crate) fn of(pod: &Pod) -> Result<Option<Target>, String> {
        match decide(pod)? {
            Decision::Redirect { redirect, dual_stack } => Ok(Some(Target { redirect, dual_stack })),
            Decision::Leave(why) => {
                tracing::info!("not redirected: {why}");
                Ok(None)
            }
        }
    }

    /// Puts the rules into a network namespace.
    ///
    /// # Errors
    /// What failed there.
    pub(crate) fn program(&self, namespace: &Path, backend: Choice) -> Result<(), String> {
        let options = Options { backend, reconcile: true, ..Options::default() };
        let applied = self.within(namespace, |redirect| intercept::apply(redirect, &options))?;
        tracing::info!(backend = %applied.backend, changed = applied.changed, "redirected");
        Ok(())
    }

    fn within<T: Send>(
        &self,
        namespace: &Path,
        work: impl FnOnce(&Redirect) -> Result<T, intercept::InterceptError> + Send,
    ) -> Result<T, String> {
        let inside = || {
            let addresses = intercept::addresses().map_err(|error| format!("its addresses: {error}"))?;
            let mut redirect = (*self.redirect).clone();
            (_, redirect.ipv6) = families(&addresses, self.dual_stack);
            work(&redirect).map_err(|error| error.to_string())
        };
        let place = namespace.display();
        intercept::within(namespace, inside)
            .map_err(|error| format!("network namespace {place}: {error}"))?
            .map_err(|error| format!("network namespace {place}: {error}"))
    }

    fn apply(&self, namespace: &str, config: &Config) -> Result<(), CniError> {
        let failed = |details| CniError::new(CniError::RULES, "connections cannot be redirected", details);
        self.program(Path::new(namespace), backend(config.native_nftables)).map_err(failed)
    }

    fn check(&self, namespace: &str, config: &Config) -> Result<(), CniError> {
        let choice = backend(config.native_nftables);
        self.within(Path::new(namespace), |redirect| intercept::check(redirect, choice)).map_err(|details| {
            CniError::new(CniError::RULES, "connections are not redirected as they should be", details)
        })
    }
}

/// As with `leno agent istio-iptables`.
pub(crate) fn backend(native_nftables: bool) -> Choice {
    if native_nftables { Choice::Nftables } else { Choice::Any }
}

fn target(config: &Config, call: &Call) -> Result<Option<Target>, CniError> {
    let Arguments { pod, namespace } = &call.arguments;
    if pod.is_empty() || namespace.is_empty() {
        tracing::debug!(container = call.container, "not a pod of Kubernetes");
        return Ok(None);
    }
    let _span = tracing::info_span!("pod", name = pod, namespace).entered();
    if config.excludes(namespace) {
        tracing::info!("not redirected: its namespace is excluded");
        return Ok(None);
    }
    if pod.starts_with(OWN) && *namespace == config.pod_namespace {
        tracing::info!("not redirected: it is the plugin's own DaemonSet");
        return Ok(None);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        CniError::new(CniError::TRY_AGAIN, "no runtime can be started", error.to_string())
    })?;
    let found = runtime.block_on(find(config, pod, namespace))?;
    Target::of(&found).map_err(|words| CniError::new(CniError::POD, "the pod asks for what cannot be", words))
}

/// Asks the API server for a pod, again and again: it may be away, or not know the pod yet.
async fn find(config: &Config, pod: &str, namespace: &str) -> Result<Pod, CniError> {
    let away =
        |details| CniError::new(CniError::TRY_AGAIN, "the API server cannot be asked for the pod", details);
    let kubeconfig = config.kubeconfig();
    let cluster = Kubernetes { kubeconfig: Some(kubeconfig.clone()), ..Kubernetes::default() };
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}");
    let mut attempt = 1;
    loop {
        // Read anew each time: the token in it may be.
        let answer = match Api::new(&cluster).await {
            Ok(api) => api.get(&path, "application/json").await.map_err(|fault| fault.to_string()),
            Err(error) => return Err(away(format!("{}: {error}", kubeconfig.display()))),
        };
        let why = match answer {
            Ok(text) => match serde_json::from_str(&text) {
                Ok(pod) => return Ok(pod),
                Err(error) => error.to_string(),
            },
            Err(why) => why,
        };
        if attempt == ATTEMPTS {
            return Err(away(why));
        }
        tracing::debug!(attempt, "cannot get the pod: {why}");
        attempt += 1;
        tokio::time::sleep(BETWEEN).await;
    }
}

/// To stderr, which runtimes keep, and to a file on the node. stdout is for results.
fn start_log(config: &Config) {
    use tracing_subscriber::fmt::writer::MakeWriterExt as _;
    let path = config.folder().join("istio-cni.log");
    let long = std::fs::metadata(&path).is_ok_and(|file| file.len() > LONGEST_LOG);
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(!long).write(true).truncate(long);
    let log = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(format!("leno={}", config.level())))
        .with_ansi(false);
    // Whoever embeds us may have a log already.
    let _ = match options.open(&path) {
        Ok(file) => log.with_writer(std::io::stderr.and(std::sync::Arc::new(file))).try_init(),
        Err(_) => log.with_writer(std::io::stderr).try_init(),
    };
}

//! The command line: which verb runs, also by the name that the program is called by.
//!
//! Called as `envoy` the program is `leno proxy`, as `pilot-discovery` it is `leno pilot`, as
//! `pilot-agent` it is `leno agent`, as `istio-cni` and `install-cni` it is `leno cni`, and as
//! `istioctl` it has the verbs that Leno has by the same name: scripts and manifests written for
//! those keep working. Each verb is a file in `verb/`.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::cni::plugin;
use crate::verb::{
    agent, analyze, cni, completion, crd, install, kube_inject, logs, manifest, pilot, profile, proxy, ps,
    sample, stop, tag, token, uninstall, up, validate, verify_install, version,
};

/// A service mesh in one binary: Envoy's proxy, Istio's control plane, and both on one machine
#[derive(Debug, Parser)]
#[command(name = "leno", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant)] // one exists per process
enum Verb {
    /// Run a mesh on this machine from the YAML that one would `kubectl apply`
    Up(up::Up),
    /// List what a running `leno up` runs
    Ps(ps::Ps),
    /// Print the output of what a running `leno up` runs
    Logs(logs::Logs),
    /// Stop a running `leno up`
    Stop(stop::Stop),
    /// Install the mesh into a Kubernetes cluster
    #[command(visible_alias = "apply")]
    Install(install::Install),
    /// Upgrade the mesh of a Kubernetes cluster in place
    Upgrade(install::Upgrade),
    /// Take the mesh out of a Kubernetes cluster
    Uninstall(uninstall::Uninstall),
    /// Check that what was installed is there and runs
    VerifyInstall(verify_install::VerifyInstall),
    /// Print and compare what would be installed
    Manifest(manifest::Manifest),
    /// Print and compare the profiles of installations
    Profile(profile::Profile),
    /// Give control planes other names, under which namespaces can ask for them
    Tag(tag::Tag),
    /// Say what is wrong with the configuration of a mesh, in files or in a cluster
    Analyze(analyze::Analyze),
    /// Print the CustomResourceDefinitions of the kinds that are read
    Crd(crd::Crd),
    /// Put sidecars into the Pods of Kubernetes YAML, as the webhook does it in a cluster
    KubeInject(kube_inject::KubeInject),
    /// Check Kubernetes and Istio YAML as the control plane reads it
    Validate(validate::Validate),
    /// Run the proxy, with Envoy's flags and configuration
    #[command(disable_version_flag = true)]
    Proxy(proxy::Proxy),
    /// Run the control plane
    #[command(disable_version_flag = true)]
    Pilot(pilot::Pilot),
    /// Run a proxy with all that it needs beside a workload: its identity, its configuration, its probes
    #[command(disable_version_flag = true, disable_help_subcommand = true)]
    Agent(agent::Agent),
    /// Redirect pods before their containers start: the CNI plugin, and the program that installs it
    #[command(disable_version_flag = true, disable_help_subcommand = true)]
    Cni(cni::Cni),
    /// Make tokens with which machines come into a mesh
    Token(token::Token),
    /// Run a service of the samples
    #[command(hide = true, disable_help_flag = true, disable_version_flag = true)]
    Sample(sample::Sample),
    /// Print the version
    Version(version::Version),
    /// Print a shell's completion script
    Completion(completion::Completion),
}

/// Programs that Leno stands in for, of whose verbs it has some or none yet.
const KNOWN_STRANGERS: [&str; 2] = ["istioctl", "ztunnel"];

/// Runs the verb that the arguments ask for, the first of them being the program's name.
pub(crate) fn run(arguments: Vec<OsString>) -> ExitCode {
    let name = arguments.first().map(|name| Path::new(name).file_stem().unwrap_or_default().to_owned());
    let name = name.as_ref().and_then(|name| name.to_str()).unwrap_or_default();
    let outcome = match name {
        "envoy" => parse_as::<proxy::Proxy>("envoy", arguments).and_then(proxy::Proxy::run),
        "pilot-discovery" => {
            parse_as::<pilot::Pilot>("pilot-discovery", arguments).and_then(pilot::Pilot::run)
        }
        "pilot-agent" => agent::Agent::new(arguments).run(),
        "istio-cni" => Ok(plugin::run()),
        "install-cni" => parse_as::<cni::Install>("install-cni", arguments).and_then(cni::Install::run),
        stranger if KNOWN_STRANGERS.contains(&stranger) => {
            parse_as_stranger(stranger, arguments).and_then(run_verb)
        }
        _ => parse(arguments).and_then(run_verb),
    };
    match outcome {
        Ok(code) => code,
        Err(Failure::Usage(error, code)) => {
            let _ = error.print();
            if error.use_stderr() { ExitCode::from(code) } else { ExitCode::SUCCESS }
        }
        Err(Failure::Error(error)) => {
            eprintln!("{}: {error:#}", if name.is_empty() { "leno" } else { name });
            ExitCode::FAILURE
        }
    }
}

/// Why a verb did not run to its end.
pub(crate) enum Failure {
    /// The arguments are wrong, or ask for help only; with the exit code for the former.
    Usage(clap::Error, u8),
    /// Anything else.
    Error(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::Error(error.into())
    }
}

/// The whole command line, for completion scripts.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

fn run_verb(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.verb {
        Verb::Up(verb) => verb.run(),
        Verb::Ps(verb) => verb.run(),
        Verb::Logs(verb) => verb.run(),
        Verb::Stop(verb) => verb.run(),
        Verb::Install(verb) => verb.run(),
        Verb::Upgrade(verb) => verb.run(),
        Verb::Uninstall(verb) => verb.run(),
        Verb::VerifyInstall(verb) => verb.run(),
        Verb::Manifest(verb) => verb.run(),
        Verb::Profile(verb) => verb.run(),
        Verb::Tag(verb) => verb.run(),
        Verb::Analyze(verb) => verb.run(),
        Verb::Crd(verb) => verb.run(),
        Verb::KubeInject(verb) => verb.run(),
        Verb::Validate(verb) => verb.run(),
        Verb::Proxy(verb) => verb.run(),
        Verb::Pilot(verb) => verb.run(),
        Verb::Agent(verb) => verb.run(),
        Verb::Cni(verb) => verb.run(),
        Verb::Token(verb) => verb.run(),
        Verb::Sample(verb) => verb.run(),
        Verb::Version(verb) => verb.run(),
        Verb::Completion(verb) => verb.run(),
    }
}

fn parse(arguments: Vec<OsString>) -> Result<Cli, Failure> {
    // Envoy's own exit code for a wrong usage is 1, that of everything else here is 2.
    let as_envoy = arguments.get(1).is_some_and(|verb| verb == "proxy");
    Cli::try_parse_from(arguments).map_err(|error| Failure::Usage(error, if as_envoy { 1 } else { 2 }))
}

/// Parses one verb as a whole program.
fn parse_as<T: Args + FromArgMatches>(name: &'static str, arguments: Vec<OsString>) -> Result<T, Failure> {
    let command =
        T::augment_args(clap::Command::new(name)).disable_version_flag(true).disable_help_subcommand(true);
    let usage = |error| Failure::Usage(error, 1);
    let mut matches = command.try_get_matches_from(arguments).map_err(usage)?;
    T::from_arg_matches_mut(&mut matches).map_err(usage)
}

/// `istioctl` and others: what Leno has by the same name runs, the rest is said to be missing.
fn parse_as_stranger(name: &str, arguments: Vec<OsString>) -> Result<Cli, Failure> {
    let asked = arguments.get(1).and_then(|verb| verb.to_str()).unwrap_or_default().to_owned();
    Cli::try_parse_from(arguments).map_err(|error| match error.kind() {
        ErrorKind::InvalidSubcommand | ErrorKind::UnknownArgument => Failure::Error(anyhow::anyhow!(
            "Leno {} does not do `{name} {asked}` yet; `leno --help` lists what it does",
            env!("CARGO_PKG_VERSION"),
        )),
        _ => Failure::Usage(error, 2),
    })
}

#[cfg(test)]
mod tests {
    use super::{Cli, Failure, parse, parse_as, parse_as_stranger};
    use crate::verb::{pilot, proxy};

    fn arguments(text: &str) -> Vec<std::ffi::OsString> {
        text.split_whitespace().map(Into::into).collect()
    }

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn what_parses() {
        for text in [
            "leno up samples/bookinfo rules --image shop=./shop --proxy envoy=/usr/bin/envoy",
            "leno up . --no-namespaces --address 0.0.0.0",
            "leno ps",
            "leno analyze a.yaml b -R --use-kube=false -A -o json -S IST0101=VirtualService*",
            "leno analyze -k -n default --failure-threshold warning",
            "leno crd gateways",
            "leno install --set profile=demo -y -f a.yaml -f b.yaml --revision canary --context kind -c kubeconfig",
            "leno install --set values.global.hub=x --set components.cni.enabled=true --dry-run --readiness-timeout 10s",
            "leno upgrade -y",
            "leno uninstall --purge -y",
            "leno uninstall --revision canary --skip-confirmation --verbose",
            "leno verify-install -f a.yaml",
            "leno manifest generate --set profile=minimal --component Pilot",
            "leno manifest diff a.yaml b.yaml",
            "leno manifest translate -f a.yaml -o out",
            "leno manifest install -y",
            "leno profile list",
            "leno profile dump demo -p components.pilot -o json",
            "leno profile diff default demo",
            "leno tag set prod --revision 1-2 --overwrite",
            "leno tag generate prod -r 1-2 --webhook-name x",
            "leno tag list -o json",
            "leno tag remove prod -y",
            "leno validate -",
            "leno logs -f reviews-v1",
            "leno sample bookinfo reviews 9080",
            "leno pilot --dir a --dir b --grpcAddr :15010",
            "leno token create --dir tokens -n vms --service-account legacy --ttl 30m",
            "leno cni",
            "leno cni install --cni-conf-name=10-a.conflist --repair-delete-pods --chained-cni-plugin=true",
            "leno proxy -c envoy.yaml --concurrency 1 -l warning --drain-time-s 45",
        ] {
            assert!(parse(arguments(text)).is_ok(), "{text}");
        }
        for text in
            ["leno up", "leno up . --image shop", "leno down", "leno proxy --mode dance", "leno token create"]
        {
            assert!(parse(arguments(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn other_names() {
        let agent = "envoy -c etc/istio/proxy/envoy-rev.json --drain-time-s 45 --drain-strategy immediate \
             --local-address-ip-version v4 --file-flush-interval-msec 1000 --disable-hot-restart \
             --allow-unknown-static-fields -l warning --component-log-level misc:error --skip-deprecated-logs \
             --concurrency 2";
        assert!(parse_as::<proxy::Proxy>("envoy", arguments(agent)).is_ok());
        let discovery =
            "pilot-discovery discovery --dir a --monitoringAddr=:15014 --log_output_level=default:info";
        assert!(parse_as::<pilot::Pilot>("pilot-discovery", arguments(discovery)).is_ok());
        assert!(parse_as_stranger("istioctl", arguments("istioctl validate a.yaml")).is_ok());
        let Err(Failure::Error(error)) = parse_as_stranger("istioctl", arguments("istioctl proxy-status"))
        else {
            panic!("it must be refused");
        };
        assert!(error.to_string().contains("istioctl proxy-status"), "{error}");
    }
}

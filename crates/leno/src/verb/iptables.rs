//! `leno agent istio-iptables` and `istio-clean-iptables`, with pilot-agent's flags and environment: the rules by
//! which a workload's connections go through its proxy, in the network namespace of this process.
//!
//! What flags and variables say is read here, once; the rules are [`leno_node::Redirect`]'s.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use leno_base::Cidr;
use leno_node::intercept::validate::{Probe, validate};
use leno_node::intercept::{self, Backend, Choice, Options, Variant};
use leno_node::rules::Family;
use leno_node::{Cidrs, Dns, Groups, InboundMode, Ports, Redirect};

use crate::cli::Failure;
use crate::out::{out, outln};

/// The exit code by which the repair controller knows that a workload's rules are not in place.
const NOT_REDIRECTED: u8 = 126;
const PROXY_USER: u32 = 1337;

/// pilot-agent's flags. All are texts, as each may come from the environment instead: `--proxy-uid` from
/// `PROXY_UID`, and so on.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Flags {
    /// The proxy's port for outbound connections (15001)
    #[arg(short = 'p', long, value_name = "PORT")]
    envoy_port: Option<String>,
    /// The proxy's port for inbound connections (15006)
    #[arg(short = 'z', long, value_name = "PORT")]
    inbound_capture_port: Option<String>,
    /// The port of tunnels, which are not redirected (15008)
    #[arg(short = 'e', long, value_name = "PORT")]
    inbound_tunnel_port: Option<String>,
    /// The proxy's users (that of $ENVOY_USER, or 1337)
    #[arg(short = 'u', long, value_name = "LIST")]
    proxy_uid: Option<String>,
    /// The proxy's groups (the same as the users)
    #[arg(short = 'g', long, value_name = "LIST")]
    proxy_gid: Option<String>,
    /// REDIRECT or TPROXY
    #[arg(short = 'm', long, value_name = "MODE")]
    istio_inbound_interception_mode: Option<String>,
    /// Inbound ports that are redirected, or *
    #[arg(short = 'b', long, value_name = "LIST")]
    istio_inbound_ports: Option<String>,
    /// Inbound ports that are not redirected, if all others are
    #[arg(short = 'd', long, value_name = "LIST")]
    istio_local_exclude_ports: Option<String>,
    /// Interfaces of which nothing is redirected
    #[arg(short = 'c', long, value_name = "LIST")]
    istio_exclude_interfaces: Option<String>,
    /// Ranges of outbound addresses that are redirected, or *
    #[arg(short = 'i', long, value_name = "LIST")]
    istio_service_cidr: Option<String>,
    /// Ranges of outbound addresses that are not redirected
    #[arg(short = 'x', long, value_name = "LIST")]
    istio_service_exclude_cidr: Option<String>,
    /// Outbound ports that are redirected, whatever the address
    #[arg(short = 'q', long, value_name = "LIST")]
    istio_outbound_ports: Option<String>,
    /// Outbound ports that are not redirected
    #[arg(short = 'o', long, value_name = "LIST")]
    istio_local_outbound_ports_exclude: Option<String>,
    /// Interfaces of virtual machines: what comes in there is outbound
    #[arg(short = 'k', long, alias = "reroute-virtual-interfaces", value_name = "LIST")]
    kube_virt_interfaces: Option<String>,
    /// TPROXY: the mark of packets (1337)
    #[arg(short = 't', long, value_name = "MARK")]
    istio_inbound_tproxy_mark: Option<String>,
    /// TPROXY: the table of routes (133)
    #[arg(short = 'r', long, value_name = "TABLE")]
    istio_inbound_tproxy_route_table: Option<String>,
    /// Print the rules, and do nothing
    #[arg(short = 'n', long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    dry_run: Option<String>,
    /// The port of the connection that --run-validation makes (15002)
    #[arg(long, value_name = "PORT")]
    iptables_probe_port: Option<String>,
    /// For how long it is tried (5s)
    #[arg(long, value_name = "DURATION")]
    probe_timeout: Option<String>,
    /// Change no rules
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    skip_rule_apply: Option<String>,
    /// Try whether connections are redirected; exit code 126: they are not
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    run_validation: Option<String>,
    /// Questions for names go to the agent
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    redirect_dns: Option<String>,
    /// Whichever server they are to, not only those of /etc/resolv.conf
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    capture_all_dns: Option<String>,
    /// Drop packets that belong to no connection
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    drop_invalid: Option<String>,
    /// IPv6 too if there are addresses of both families
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    dual_stack: Option<String>,
    /// The network namespace, if not that of this process
    #[arg(long, value_name = "FILE")]
    network_namespace: Option<String>,
    /// Without effect: there is no lock that is shared with the machine
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    cni_mode: Option<String>,
    /// Replace rules of Istio's that are there already (nf_tables: always)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    reconcile: Option<String>,
    /// Take all rules away
    #[arg(long, alias = "cleanup", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    cleanup_only: Option<String>,
    /// Apply the rules even if they are in place
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    force_apply: Option<String>,
    /// nf_tables only; otherwise iptables where the kernel has none
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    native_nftables: Option<String>,
    /// iptables only: legacy or nft
    #[arg(long, value_name = "VARIANT")]
    force_iptables_binary: Option<String>,
    /// Must be true: rules are printed as iptables-restore reads them
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    restore_format: Option<String>,
}

/// What it all comes to.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    redirect: Redirect,
    /// What TPROXY would be, whether or not it is asked for.
    tproxy: InboundMode,
    options: Options,
    probe: Probe,
    dry_run: bool,
    skip: bool,
    validate: bool,
    clean: bool,
}

/// What is asked of the machine, apart from the environment.
struct Machine {
    addresses: Vec<IpAddr>,
    /// The texts of /etc/resolv.conf, /etc/passwd and /etc/group.
    resolv_conf: String,
    users: String,
    groups: String,
}

impl Flags {
    /// Puts the rules in place, takes them away, or tries them.
    pub(crate) fn run(mut self, clean: bool) -> Result<ExitCode, Failure> {
        if clean {
            self.cleanup_only = Some("true".to_owned());
        }
        let namespace = self.network_namespace.clone().or_else(|| variable("NETWORK_NAMESPACE"));
        match namespace.filter(|path| !path.is_empty()).map(PathBuf::from) {
            None => self.here(),
            Some(path) => {
                let done = intercept::within(&path, || self.here());
                done.with_context(|| format!("--network-namespace {}", path.display()))?
            }
        }
    }

    fn here(&self) -> Result<ExitCode, Failure> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let machine = Machine {
            addresses: intercept::addresses().context("cannot list the addresses of this machine")?,
            resolv_conf: read("/etc/resolv.conf"),
            users: read("/etc/passwd"),
            groups: read("/etc/group"),
        };
        let settings = self.settings(&variable, &machine).map_err(|faults| anyhow!(faults.join("\n")))?;
        if settings.clean {
            if settings.dry_run {
                outln!("dry run: all rules would be removed");
            } else {
                // Whatever it was that was put there, so that the flags of then need not be known.
                let everything = Redirect {
                    mode: settings.tproxy,
                    include_inbound_ports: Ports::All,
                    ipv6: true,
                    ..settings.redirect
                };
                intercept::remove(&everything, settings.options.backend)?;
                outln!("all rules are removed");
            }
            return Ok(ExitCode::SUCCESS);
        }
        if settings.dry_run {
            let backend = match settings.options.backend {
                Choice::Any | Choice::Nftables => Backend::Nftables,
                Choice::Iptables(_) => Backend::Iptables,
            };
            out!("{}", intercept::text(&settings.redirect, backend));
        } else if !settings.skip {
            let applied = intercept::apply(&settings.redirect, &settings.options)?;
            outln!("{}", intercept::text(&settings.redirect, applied.backend));
            let what = if applied.changed { "are in place" } else { "were in place already" };
            outln!("the rules {what} ({})", applied.backend);
        }
        if settings.validate {
            if let Err(error) = validate(&settings.redirect, settings.probe) {
                eprintln!(
                    "validation failed, the workload is not ready for the mesh: {error}\n\
                     With the CNI plugin this happens to pods that came before the plugin was there. The repair \
                     controller deletes them (cni.repair.deletePods) or mends them; otherwise delete the pod."
                );
                return Ok(ExitCode::from(NOT_REDIRECTED));
            }
            outln!("validation passed: connections are redirected");
        }
        Ok(ExitCode::SUCCESS)
    }

    fn settings(
        &self,
        variable: &dyn Fn(&str) -> Option<String>,
        machine: &Machine,
    ) -> Result<Settings, Vec<String>> {
        let mut reader = Reader { variable, faults: Vec::new() };
        let r = &mut reader;
        let text =
            |r: &Reader<'_>, flag: &Option<String>, name: &str| r.text(flag, &[name]).unwrap_or_default();
        let uids = text(r, &self.proxy_uid, "PROXY_UID");
        let proxy_uids: Vec<u32> = if uids.is_empty() {
            let user = variable("ENVOY_USER").unwrap_or_else(|| "istio-proxy".to_owned());
            vec![identity(&machine.users, &user).unwrap_or(PROXY_USER)]
        } else {
            r.identities("--proxy-uid", &uids, &machine.users)
        };
        let gids = text(r, &self.proxy_gid, "PROXY_GID");
        let proxy_gids = if gids.is_empty() {
            proxy_uids.clone()
        } else {
            r.identities("--proxy-gid", &gids, &machine.groups)
        };
        let tproxy = InboundMode::Tproxy {
            mark: r.number(
                "--istio-inbound-tproxy-mark",
                &self.istio_inbound_tproxy_mark,
                &["ISTIO_INBOUND_TPROXY_MARK"],
                1337,
            ),
            table: r.number(
                "--istio-inbound-tproxy-route-table",
                &self.istio_inbound_tproxy_route_table,
                &["ISTIO_INBOUND_TPROXY_ROUTE_TABLE"],
                133,
            ),
        };
        let mode = match text(r, &self.istio_inbound_interception_mode, "ISTIO_INBOUND_INTERCEPTION_MODE")
            .as_str()
        {
            "" | "REDIRECT" => InboundMode::Redirect,
            "TPROXY" => tproxy,
            other => {
                r.fault("--istio-inbound-interception-mode", &format!("{other:?} is not REDIRECT or TPROXY"));
                InboundMode::Redirect
            }
        };
        let include = text(r, &self.istio_inbound_ports, "ISTIO_INBOUND_PORTS");
        let include_inbound_ports = match include.as_str() {
            "*" => Ports::All,
            list => Ports::Only(r.list("--istio-inbound-ports", list)),
        };
        let include = text(r, &self.istio_service_cidr, "ISTIO_SERVICE_CIDR");
        let include_outbound_cidrs = match include.as_str() {
            "*" => Cidrs::All,
            list => Cidrs::Only(r.list("--istio-service-cidr", list)),
        };
        let groups = variable("ISTIO_OUTBOUND_OWNER_GROUPS").unwrap_or_else(|| "*".to_owned());
        let owner_groups = if groups == "*" {
            let others = variable("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE").unwrap_or_default();
            Groups::AllBut(r.identities("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", &others, &machine.groups))
        } else {
            let only = r.identities("ISTIO_OUTBOUND_OWNER_GROUPS", &groups, &machine.groups);
            // More would not fit into one rule of iptables.
            if only.len() > 64 {
                r.fault("ISTIO_OUTBOUND_OWNER_GROUPS", "more than 64 groups");
            }
            Groups::Only(only)
        };
        let dual_stack = r.boolean("--dual-stack", &self.dual_stack, &["DUAL_STACK", "ISTIO_DUAL_STACK"]);
        let (first, ipv6) = families(&machine.addresses, dual_stack);
        let redirect_dns =
            r.boolean("--redirect-dns", &self.redirect_dns, &["REDIRECT_DNS", "ISTIO_META_DNS_CAPTURE"]);
        let all_dns = r.boolean("--capture-all-dns", &self.capture_all_dns, &["CAPTURE_ALL_DNS"]);
        let dns = match (redirect_dns, all_dns) {
            (false, _) => Dns::None,
            (true, true) => Dns::All,
            (true, false) => Dns::Servers(name_servers(&machine.resolv_conf)),
        };
        let excluded = text(r, &self.istio_service_exclude_cidr, "ISTIO_SERVICE_EXCLUDE_CIDR");
        let exclude_outbound_cidrs = if excluded == "*" {
            r.fault("--istio-service-exclude-cidr", "* makes no sense here");
            Vec::new()
        } else {
            r.list("--istio-service-exclude-cidr", &excluded)
        };
        let list = |r: &Reader<'_>, flag: &Option<String>, name: &str| text(r, flag, name);
        let exclude_inbound = list(r, &self.istio_local_exclude_ports, "ISTIO_LOCAL_EXCLUDE_PORTS");
        let include_outbound = list(r, &self.istio_outbound_ports, "ISTIO_OUTBOUND_PORTS");
        let exclude_outbound =
            list(r, &self.istio_local_outbound_ports_exclude, "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE");
        let exclude_links = list(r, &self.istio_exclude_interfaces, "ISTIO_EXCLUDE_INTERFACES");
        let reroute = list(r, &self.kube_virt_interfaces, "KUBE_VIRT_INTERFACES");
        let redirect = Redirect {
            inbound_port: r.number(
                "--inbound-capture-port",
                &self.inbound_capture_port,
                &["INBOUND_CAPTURE_PORT"],
                15006,
            ),
            outbound_port: r.number("--envoy-port", &self.envoy_port, &[], 15001),
            tunnel_port: r.number(
                "--inbound-tunnel-port",
                &self.inbound_tunnel_port,
                &["INBOUND_TUNNEL_PORT"],
                15008,
            ),
            proxy_uids,
            proxy_gids,
            proxy_mark: None,
            mode,
            include_inbound_ports,
            exclude_inbound_ports: r.list("--istio-local-exclude-ports", &exclude_inbound),
            include_outbound_ports: r.list("--istio-outbound-ports", &include_outbound),
            exclude_outbound_ports: r.list("--istio-local-outbound-ports-exclude", &exclude_outbound),
            include_outbound_cidrs,
            exclude_outbound_cidrs,
            exclude_interfaces: r.list("--istio-exclude-interfaces", &exclude_links),
            reroute_interfaces: r.list("--kube-virt-interfaces", &reroute),
            owner_groups,
            dns,
            drop_invalid: r.boolean("--drop-invalid", &self.drop_invalid, &["DROP_INVALID", "INVALID_DROP"]),
            loopback: r.loopback(),
            ipv6,
        };
        let clean = r.boolean("--cleanup-only", &self.cleanup_only, &["CLEANUP_ONLY"]);
        if first.is_none() && !clean {
            r.fault("addresses", "this machine has none but local ones");
        }
        if !r.boolean(
            "--restore-format",
            &Some(r.text(&self.restore_format, &[]).unwrap_or("true".into())),
            &[],
        ) {
            r.fault("--restore-format", "false is not supported yet");
        }
        let timeout = r.text(&self.probe_timeout, &["PROBE_TIMEOUT"]).unwrap_or_else(|| "5s".to_owned());
        let patience = leno_base::duration::parse_go(&timeout).unwrap_or_else(|error| {
            r.fault("--probe-timeout", &error.to_string());
            Duration::ZERO
        });
        // Nothing is locked, so that there is nothing to do otherwise.
        r.boolean("--cni-mode", &self.cni_mode, &["CNI_MODE"]);
        let settings = Settings {
            redirect,
            tproxy,
            options: Options {
                backend: self.backend(r),
                force: r.boolean("--force-apply", &self.force_apply, &["FORCE_APPLY"]),
                reconcile: r.boolean("--reconcile", &self.reconcile, &["RECONCILE"]),
            },
            probe: Probe {
                port: r.number(
                    "--iptables-probe-port",
                    &self.iptables_probe_port,
                    &["IPTABLES_PROBE_PORT"],
                    15002,
                ),
                patience,
                family: first.unwrap_or(Family::V4),
            },
            dry_run: r.boolean("--dry-run", &self.dry_run, &["DRY_RUN"]),
            skip: r.boolean("--skip-rule-apply", &self.skip_rule_apply, &["SKIP_RULE_APPLY"]),
            validate: r.boolean("--run-validation", &self.run_validation, &["RUN_VALIDATION"]),
            clean,
        };
        if reader.faults.is_empty() { Ok(settings) } else { Err(reader.faults) }
    }

    // Deviation: without --native-nftables Istio uses iptables; here it means that iptables may be used as well,
    // where the kernel has no nf_tables.
    fn backend(&self, r: &mut Reader<'_>) -> Choice {
        let nftables = r.boolean("--native-nftables", &self.native_nftables, &["NATIVE_NFTABLES"]);
        let variant = match r.text(&self.force_iptables_binary, &["FORCE_IPTABLES_BINARY"]).as_deref() {
            None | Some("") => None,
            Some("legacy") => Some(Variant::Legacy),
            Some("nft") => Some(Variant::Nft),
            Some(other) => {
                r.fault("--force-iptables-binary", &format!("{other:?} is not legacy or nft"));
                None
            }
        };
        match (nftables, variant) {
            (true, _) => Choice::Nftables,
            (false, Some(variant)) => Choice::Iptables(Some(variant)),
            (false, None) => Choice::Any,
        }
    }
}

/// Reads values, and keeps what is wrong with them.
struct Reader<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    faults: Vec<String>,
}

impl Reader<'_> {
    fn fault(&mut self, flag: &str, words: &str) {
        self.faults.push(format!("{flag}: {words}"));
    }

    /// A flag, or else the last of the variables that is set.
    fn text(&self, flag: &Option<String>, variables: &[&str]) -> Option<String> {
        flag.clone().or_else(|| variables.iter().rev().find_map(|name| (self.variable)(name)))
    }

    fn number<T: FromStr>(
        &mut self,
        flag: &str,
        value: &Option<String>,
        variables: &[&str],
        default: T,
    ) -> T {
        match self.text(value, variables) {
            None => default,
            Some(text) => text.trim().parse().unwrap_or_else(|_| {
                self.fault(flag, &format!("{text:?} is not a number that fits"));
                default
            }),
        }
    }

    /// As Go reads it.
    fn boolean(&mut self, flag: &str, value: &Option<String>, variables: &[&str]) -> bool {
        match self.text(value, variables).as_deref().map(boolean) {
            None => false,
            Some(Some(value)) => value,
            Some(None) => {
                self.fault(flag, "is not true or false");
                false
            }
        }
    }

    fn list<T: FromStr>(&mut self, flag: &str, text: &str) -> Vec<T> {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        let mut read = Vec::new();
        for item in items {
            match item.parse() {
                Ok(value) => read.push(value),
                Err(_) => self.fault(flag, &format!("{item:?} makes no sense here")),
            }
        }
        read
    }

    fn identities(&mut self, flag: &str, list: &str, names: &str) -> Vec<u32> {
        let items = list.split(',').map(str::trim).filter(|item| !item.is_empty());
        let mut read = Vec::new();
        for item in items {
            match identity(names, item) {
                Some(number) => read.push(number),
                None => self.fault(flag, &format!("{item:?} is no number, and no name that is known here")),
            }
        }
        read
    }

    /// A range of loopback addresses, of 8 bits at least.
    fn loopback(&mut self) -> Cidr {
        const NAME: &str = "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR";
        let default = Redirect::default().loopback;
        let Some(text) = (self.variable)(NAME) else { return default };
        match text.parse::<Cidr>() {
            Ok(cidr) if cidr.address().is_ipv4() && cidr.address().is_loopback() && cidr.length() >= 8 => {
                cidr
            }
            _ => {
                self.fault(NAME, &format!("{text:?} is no range of IPv4's loopback addresses"));
                default
            }
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// As Go's `strconv.ParseBool`.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// The number of a user or a group, given as it is or by its name, of a text such as /etc/passwd.
fn identity(names: &str, item: &str) -> Option<u32> {
    if let Ok(number) = item.parse() {
        return Some(number);
    }
    let table: BTreeMap<&str, &str> = names
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            Some((fields.next()?, fields.nth(1)?))
        })
        .collect();
    table.get(item)?.parse().ok()
}

/// The family of the first address that is not local, and whether rules for IPv6 are wanted, as Istio decides it.
pub(crate) fn families(addresses: &[IpAddr], dual_stack: bool) -> (Option<Family>, bool) {
    let link_local = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let mut others = addresses.iter().filter(|address| !address.is_loopback() && !link_local(address));
    let Some(first) = others.next() else { return (None, false) };
    let family = if first.is_ipv4() { Family::V4 } else { Family::V6 };
    (Some(family), first.is_ipv6() || (dual_stack && others.any(IpAddr::is_ipv6)))
}

fn name_servers(resolv_conf: &str) -> Vec<IpAddr> {
    let lines = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    // A zone (`%eth0`) is no part of a rule.
    lines.filter_map(|rest| rest.trim().split('%').next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::{Args as _, FromArgMatches as _};
    use leno_node::intercept::{Choice, Variant};
    use leno_node::{Cidrs, Dns, Groups, InboundMode, Ports, Redirect};

    use super::{Flags, Machine, Settings};

    fn read(line: &[&str], variables: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
        let command = Flags::augment_args(clap::Command::new("istio-iptables").no_binary_name(true));
        let matches = command.try_get_matches_from(line).map_err(|error| vec![error.to_string()])?;
        let flags = Flags::from_arg_matches(&matches).map_err(|error| vec![error.to_string()])?;
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        let machine = Machine {
            addresses: ["127.0.0.1", "10.1.2.3", "::1", "fe80::1", "fd00::3"]
                .map(|a| a.parse().unwrap())
                .to_vec(),
            resolv_conf: "search default\nnameserver 10.96.0.10\nnameserver fe80::1%eth0\n".to_owned(),
            users: "root:x:0:0::/:/\nistio-proxy:x:1338:1338::/:/\n".to_owned(),
            groups: "java:x:70:\n".to_owned(),
        };
        flags.settings(&|name| variables.get(name).map(|value| (*value).to_owned()), &machine)
    }

    #[test]
    fn the_line_of_the_injection_template() {
        let line = "-p 15001 -z 15006 -u 1337 -m REDIRECT -i * -x  -b * -d 15090,15021,15020 \
             --log=x --run-validation --skip-rule-apply";
        let words: Vec<&str> = line.split(' ').filter(|word| *word != "--log=x").collect();
        // `-x ""`
        let settings = read(&words, &[]).unwrap();
        let expected = Redirect { exclude_inbound_ports: vec![15090, 15021, 15020], ..Redirect::default() };
        assert_eq!(settings.redirect, expected);
        assert!(settings.validate && settings.skip && !settings.dry_run && !settings.clean);
        assert_eq!(settings.options.backend, Choice::Any);
    }

    #[test]
    fn without_flags_nothing_is_included() {
        let redirect = read(&[], &[]).unwrap().redirect;
        assert_eq!(redirect.include_inbound_ports, Ports::Only(Vec::new()));
        assert_eq!(redirect.include_outbound_cidrs, Cidrs::Only(Vec::new()));
        assert_eq!(
            (redirect.proxy_uids.as_slice(), redirect.proxy_gids.as_slice()),
            ([1338].as_slice(), [1338].as_slice())
        );
        assert!(!redirect.ipv6);
    }

    #[test]
    fn flags_win_over_variables() {
        let variables = [
            ("PROXY_UID", "5,6"),
            ("PROXY_GID", "7"),
            ("ISTIO_INBOUND_INTERCEPTION_MODE", "TPROXY"),
            ("ISTIO_META_DNS_CAPTURE", "true"),
            ("INVALID_DROP", "1"),
            ("DUAL_STACK", "true"),
            ("ISTIO_OUTBOUND_OWNER_GROUPS", "java,202"),
            ("FORCE_IPTABLES_BINARY", "legacy"),
            ("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "127.0.0.1/8"),
        ];
        let settings =
            read(&["-u", "8", "-t", "99", "-k", "tap0,eth+", "-i=10.0.0.0/8,"], &variables).unwrap();
        let redirect = settings.redirect;
        assert_eq!((redirect.proxy_uids, redirect.proxy_gids), (vec![8], vec![7]));
        assert_eq!(redirect.mode, InboundMode::Tproxy { mark: 99, table: 133 });
        let servers = ["10.96.0.10", "fe80::1"].map(|server| server.parse().unwrap());
        assert_eq!(redirect.dns, Dns::Servers(servers.to_vec()));
        assert!(redirect.drop_invalid && redirect.ipv6);
        assert_eq!(redirect.owner_groups, Groups::Only(vec![70, 202]));
        assert_eq!(redirect.reroute_interfaces.len(), 2);
        assert_eq!(redirect.loopback.to_string(), "127.0.0.0/8");
        assert_eq!(settings.options.backend, Choice::Iptables(Some(Variant::Legacy)));
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let line = ["-p", "x", "-m", "NONE", "-b", "80,http", "-x", "*", "-c", "a/b", "--redirect-dns=maybe"];
        let faults = read(&line, &[("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "nobody-knows")]).unwrap_err();
        for flag in [
            "--envoy-port",
            "--istio-inbound-interception-mode",
            "--istio-inbound-ports",
            "--istio-service-exclude-cidr",
            "--istio-exclude-interfaces",
            "--redirect-dns",
            "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE",
        ] {
            assert!(faults.iter().any(|fault| fault.starts_with(flag)), "{flag}: {faults:?}");
        }
        assert_eq!(faults.len(), 7);
        assert!(read(&["--trace"], &[]).is_err());
    }
}

//! Redirection put into a network namespace, checked there, and taken away. All of it happens in the network
//! namespace of the calling thread; [`within`] makes that another one.
//!
//! Two back ends have the same rules. nf_tables, by netlink: one transaction for both families and all tables, so
//! that at no moment there is less than before or after, and no program is needed. Or iptables' programs, for
//! kernels without nf_tables: as Istio does it, with everything dropped while rules are replaced.
//!
//! [`validate`] tries from inside whether connections are redirected.
//
// Deviation: Istio uses iptables unless told otherwise. Here nf_tables comes first, as it needs no program.

mod programs;
pub mod validate;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::io::Errno;

use self::programs::Program;
pub use self::programs::Variant;
use crate::iptables;
use crate::link::{self, Change};
use crate::netlink::{Request, Socket};
use crate::nft;
use crate::nft_check::{self, Difference, Listed};
use crate::node::LOOPBACK;
use crate::redirect::Redirect;
use crate::rules::{Family, Ruleset};
use crate::sys;

/// From where the proxy connects to an application by IPv6. Of 127.0.0.0/8 every address is there without more.
const INBOUND_SOURCE: Ipv6Addr = Ipv6Addr::from_bits(6);

/// Which back end is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// nf_tables, and where the kernel has none, iptables.
    #[default]
    Any,
    /// nf_tables.
    Nftables,
    /// iptables' programs: of this variant, or those that fit.
    Iptables(Option<Variant>),
}

/// How rules are put in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The back end.
    pub backend: Choice,
    /// Even if the same rules are there already.
    pub force: bool,
    /// Even if others are. With nf_tables they are always replaced, as nobody notices.
    pub reconcile: bool,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// By which back end.
    pub backend: Backend,
    /// Whether there was anything to do.
    pub changed: bool,
}

/// What rules are put in place with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// nf_tables, by netlink.
    Nftables,
    /// iptables' programs.
    Iptables,
}

/// Why it did not work.
#[derive(Debug, thiserror::Error)]
pub enum InterceptError {
    /// The kernel refused something.
    #[error("{0}: {1}")]
    Kernel(String, io::Error),
    /// The kernel accepted the rules, but has others.
    #[error("the rules are not those that were put in place: {0}")]
    Check(String),
    /// A program of iptables failed, or is missing.
    #[error("{0}")]
    Program(String),
}

impl InterceptError {
    fn kernel(what: &str) -> impl Fn(Errno) -> InterceptError {
        move |errno| InterceptError::Kernel(what.to_owned(), errno.into())
    }

    /// Whether it is the kernel that lacks something.
    fn is_lack(&self) -> bool {
        let InterceptError::Kernel(_, error) = self else { return false };
        let lacks = [
            Errno::OPNOTSUPP,
            Errno::PROTONOSUPPORT,
            Errno::AFNOSUPPORT,
            Errno::NOENT,
            Errno::INVAL,
            Errno::NOSYS,
        ];
        error.raw_os_error().is_some_and(|code| lacks.iter().any(|lack| lack.raw_os_error() == code))
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Nftables => "nf_tables",
            Backend::Iptables => "iptables",
        })
    }
}

/// Puts the rules in place, and looks whether they are there. What else they need comes first, so that there is no
/// moment in which rules lead nowhere.
///
/// # Errors
/// What the kernel or a program refused, or a state that is not the one that was asked for. With nf_tables the rules of
/// before then stay.
pub fn apply(redirect: &Redirect, options: &Options) -> Result<Applied, InterceptError> {
    routes(redirect, Change::Add)?;
    let changed = match options.backend {
        Choice::Any => match apply_nftables(redirect, options) {
            Err(error) if error.is_lack() => {
                let done = apply_iptables(redirect, None, options).map_err(|second| {
                    InterceptError::Program(format!("by nf_tables: {error}; by iptables: {second}"))
                })?;
                return Ok(Applied { backend: Backend::Iptables, changed: done });
            }
            other => other?,
        },
        Choice::Nftables => apply_nftables(redirect, options)?,
        Choice::Iptables(variant) => {
            let changed = apply_iptables(redirect, variant, options)?;
            return Ok(Applied { backend: Backend::Iptables, changed });
        }
    };
    Ok(Applied { backend: Backend::Nftables, changed })
}

/// Takes away what [`apply`] put there, whatever of it is there.
///
/// # Errors
/// What the kernel refused.
pub fn remove(redirect: &Redirect, choice: Choice) -> Result<(), InterceptError> {
    if !matches!(choice, Choice::Iptables(_)) {
        let all = families();
        let removed = Socket::netfilter().and_then(|socket| {
            let nothing = is_clean(&socket, all)?;
            if nothing { Ok(()) } else { socket.transact(&nft::remove(all)) }
        });
        let removed = removed.map_err(InterceptError::kernel("cannot remove rules of nf_tables"));
        match removed {
            Err(error) if error.is_lack() && choice == Choice::Any => {}
            other => other?,
        }
    }
    if !matches!(choice, Choice::Nftables) {
        let variant = if let Choice::Iptables(variant) = choice { variant } else { None };
        for &family in families() {
            let steps = redirect.steps(family);
            match Program::find(family, variant) {
                Ok(program) => program.clean(&steps)?,
                // Nobody can have put anything there.
                Err(_) if choice == Choice::Any => {}
                Err(error) => return Err(InterceptError::Program(error)),
            }
        }
    }
    routes(redirect, Change::Remove)
}

/// Whether the rules are in place, with whichever back end.
///
/// # Errors
/// The first difference.
pub fn check(redirect: &Redirect, choice: Choice) -> Result<(), InterceptError> {
    if let Choice::Iptables(variant) = choice {
        return check_iptables(redirect, variant);
    }
    let listed = Socket::netfilter().and_then(|socket| listed(&socket, &redirect.rules()));
    let found = listed
        .map_err(InterceptError::kernel("cannot list the rules of nf_tables"))
        .and_then(|found| found.map_err(|difference| InterceptError::Check(difference.to_string())));
    match (found, choice) {
        (Err(error), Choice::Any) => check_iptables(redirect, None).map_err(|_| error),
        (found, _) => found,
    }
}

fn check_iptables(redirect: &Redirect, variant: Option<Variant>) -> Result<(), InterceptError> {
    for &family in redirect.families() {
        let program = Program::find(family, variant).map_err(InterceptError::Program)?;
        if !program.has(&redirect.steps(family), &program.state()?) {
            return Err(InterceptError::Check(format!("{program} does not know all of them")));
        }
    }
    Ok(())
}

/// The rules as text: what `nft list ruleset` would show, or the input of `iptables-restore` and `ip6tables-restore`.
pub fn text(redirect: &Redirect, backend: Backend) -> String {
    match backend {
        Backend::Nftables => redirect.rules().to_string(),
        Backend::Iptables => {
            redirect.families().iter().map(|&family| iptables::restore(&redirect.steps(family))).collect()
        }
    }
}

/// Runs a closure on a thread of its own in the network namespace that a file stands for, such as
/// `/var/run/netns/NAME` or `/proc/PID/ns/net`.
///
/// # Errors
/// If the file cannot be opened, or is no network namespace that may be entered.
pub fn within<T: Send>(namespace: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let file = std::fs::File::open(namespace)?;
    sys::on_thread(|| sys::join_network(file.as_fd()).map(|()| work()))?.map_err(io::Error::from)
}

/// The addresses of all links, those of IPv4 first, in the kernel's order.
///
/// # Errors
/// The kernel's refusal to list them.
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    let entries = Socket::route()?.dump(&link::list_addresses())?;
    let mut addresses: Vec<IpAddr> = entries.iter().filter_map(|entry| link::listed_address(entry)).collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    Ok(addresses)
}

/// The families that this kernel has.
fn families() -> &'static [Family] {
    if Path::new("/proc/sys/net/ipv6").exists() { &Family::ALL } else { &[Family::V4] }
}

fn apply_nftables(redirect: &Redirect, options: &Options) -> Result<bool, InterceptError> {
    let ruleset = redirect.rules();
    let socket = Socket::netfilter().map_err(InterceptError::kernel("cannot speak with nf_tables"))?;
    let list = InterceptError::kernel("cannot list the rules of nf_tables");
    if !options.force && listed(&socket, &ruleset).map_err(&list)?.is_ok() {
        return Ok(false);
    }
    let wanted = if redirect.ipv6 { &Family::ALL } else { families() };
    let refused = InterceptError::kernel("nf_tables refuses the rules");
    socket.transact(&nft::replace(wanted, &ruleset)).map_err(refused)?;
    // A socket that had an error may have more to say; this one had none.
    listed(&socket, &ruleset)
        .map_err(&list)?
        .map_err(|difference| InterceptError::Check(difference.to_string()))?;
    Ok(true)
}

fn is_clean(socket: &Socket, families: &[Family]) -> Result<bool, Errno> {
    let listed = dump(socket, families)?;
    Ok(nft_check::check(&listed, &Ruleset::default()).is_ok())
}

fn listed(socket: &Socket, wanted: &Ruleset) -> Result<Result<(), Difference>, Errno> {
    Ok(nft_check::check(&dump(socket, families())?, wanted))
}

fn dump(socket: &Socket, families: &[Family]) -> Result<Vec<(Family, Listed)>, Errno> {
    let ask = |request: &Request| {
        // Somebody else may change rules of their own meanwhile.
        for _ in 0..10 {
            match socket.dump(request) {
                Err(Errno::INTR) => {}
                other => return other,
            }
        }
        Err(Errno::INTR)
    };
    families
        .iter()
        .map(|&family| {
            let [chains, rules] = nft::dumps(family);
            Ok((family, Listed { chains: ask(&chains)?, rules: ask(&rules)? }))
        })
        .collect()
}

fn apply_iptables(
    redirect: &Redirect,
    variant: Option<Variant>,
    options: &Options,
) -> Result<bool, InterceptError> {
    let mut programs = Vec::new();
    for &family in redirect.families() {
        let program = Program::find(family, variant).map_err(InterceptError::Program)?;
        programs.push((program, redirect.steps(family)));
    }
    let mut same = true;
    let mut residue = false;
    for (program, steps) in &programs {
        let state = program.state()?;
        residue |= state.has_istio();
        same &= program.has(steps, &state);
    }
    if same && !options.force {
        return Ok(false);
    }
    if residue && !options.reconcile && !options.force {
        let words = "there are other rules of Istio's already: --reconcile replaces them";
        return Err(InterceptError::Program(words.to_owned()));
    }
    let replaced = programs.iter().try_for_each(|(program, steps)| {
        if residue {
            program.guard()?;
            program.clean(steps)?;
        }
        program.restore(&iptables::restore(steps))
    });
    if residue {
        for (program, _) in &programs {
            program.unguard();
        }
    }
    replaced?;
    for (program, steps) in &programs {
        if !program.has(steps, &program.state()?) {
            return Err(InterceptError::Check(format!("{program} does not know all of them")));
        }
    }
    Ok(true)
}

/// Routes for what TPROXY marks, and the address by which the proxy connects to applications.
fn routes(redirect: &Redirect, change: Change) -> Result<(), InterceptError> {
    let what = match change {
        Change::Add => "cannot add",
        Change::Remove => "cannot remove",
    };
    let mut requests = Vec::new();
    for &family in redirect.families() {
        if let Some((mark, table)) = redirect.tproxy() {
            requests.push(("the route of TPROXY", link::local_route(change, family, table, LOOPBACK)));
            requests.push(("the rule of TPROXY", link::mark_rule(change, family, mark, table)));
        }
        if family == Family::V6 {
            requests.push(("::6 on loopback", link::host_address(change, LOOPBACK, INBOUND_SOURCE)));
        }
    }
    for (name, request) in requests {
        // A socket each: one that had an error may have more to say.
        let done = Socket::route().and_then(|socket| socket.transact(&request));
        match (change, done) {
            (_, Ok(()))
            | (Change::Add, Err(Errno::EXIST))
            | (
                Change::Remove,
                // The latter: a kernel without IPv6.
                Err(Errno::NOENT | Errno::SRCH | Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT | Errno::OPNOTSUPP),
            ) => {}
            (_, Err(errno)) => {
                return Err(InterceptError::Kernel(format!("{what} {name}"), errno.into()));
            }
        }
    }
    Ok(())
}

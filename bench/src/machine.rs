//! What the kernel counts: cores, processor time and memory of the proxy.

use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Which cores do what.
#[derive(Clone, Debug)]
pub(crate) struct Cores {
    /// The proxy's.
    pub(crate) proxy: Vec<usize>,
    /// Those of load generator and back end.
    pub(crate) load: Vec<usize>,
    /// There are not enough of them: both share some.
    pub(crate) shared: bool,
}

/// The cores that the calling thread may use.
pub(crate) fn cores() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    let all: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect();
    ensure!(!all.is_empty(), "no core may be used");
    Ok(all)
}

impl Cores {
    /// Gives the proxy the last `wanted` of all cores, and us the others.
    pub(crate) fn split(all: &[usize], wanted: usize) -> Self {
        if wanted < all.len() {
            let (load, proxy) = all.split_at(all.len() - wanted);
            return Self { proxy: proxy.to_vec(), load: load.to_vec(), shared: false };
        }
        Self { proxy: all.to_vec(), load: all.to_vec(), shared: true }
    }
}

/// What figures depend on, for who reads them.
pub(crate) fn facts(cores: &[usize]) -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpu.lines().find(|line| line.starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    let model = field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let guest = field("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"));
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes: Option<f64> = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|value| value.split_whitespace().next()?.parse().ok());
    format!(
        "{} cores of {model}{}, {:.0} GiB, Linux {}",
        cores.len(),
        if guest { " (a virtual machine)" } else { "" },
        kilobytes.unwrap_or(0.0) / 1024.0 / 1024.0,
        rustix::system::uname().release().to_string_lossy()
    )
}

/// Binds the calling thread, and what it starts from now on, to these cores.
pub(crate) fn pin(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core);
    }
    sched_setaffinity(None, &set).context("sched_setaffinity")
}

/// Allows as many open files as the system does, for us and for the proxies.
pub(crate) fn raise_file_limit() -> Result<u64> {
    // More than is allowed now can be had by root alone.
    let enough = Some(100_000);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: enough, maximum: enough });
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// Time on a core, user and kernel, of all threads of a process that live (schedstat): exact to
/// the nanosecond.
pub(crate) fn processor_time(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let nanoseconds = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

/// Resident memory in MB (2^20): `VmRSS` for now, `VmHWM` for the most there was.
pub(crate) fn memory(pid: u32, field: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kilobytes: Option<f64> = value.and_then(|value| value.split_whitespace().next()?.parse().ok());
    kilobytes.unwrap_or(0.0) / 1024.0
}

/// Time that cores have spent on anything since the machine started, in seconds.
pub(crate) fn busy(cores: &[usize]) -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let of = |core: &usize| -> Option<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("cpu{core} ")))?;
        let times: Vec<f64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        let idle: f64 = times.get(3..5)?.iter().sum();
        // Guest time is in user time too.
        Some((times.get(..8)?.iter().sum::<f64>() - idle) / 100.0)
    };
    cores.iter().filter_map(of).sum()
}

/// Ends a process: it is asked to, so that it can write down what it has counted (a build for `cargo
/// xtask profile` does), and made to after five seconds.
pub(crate) fn end(child: &mut Child) {
    let limit = Instant::now() + Duration::from_secs(5);
    // One that has ended already cannot be told.
    let _ = kill_process(Pid::from_child(child), Signal::TERM);
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() > limit {
            let _ = child.kill();
        }
        pause(Duration::from_millis(2));
    }
}

/// Lets time pass.
pub(crate) fn pause(duration: Duration) {
    let end = Instant::now() + duration;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

//! What a replica calls itself.

/// The pod's name: `HOSTNAME`, which Kubernetes sets, or else what the kernel calls this machine.
pub(crate) fn pod_name() -> String {
    let from_environment = std::env::var("HOSTNAME").ok();
    let from_kernel = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    from_environment
        .or_else(from_kernel)
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "unknown".to_owned())
}

//! Whether the proxy is ready: it has its configuration, it is live, and its workers run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Method;

use crate::http::{Reads, Target, call, request};

/// Stats that tell whether clusters and listeners have come.
const UPDATES: &str = "^(cluster_manager\\.cds|listener_manager\\.lds)\\.(update_success|update_rejected)$";
/// Stats that tell whether it runs.
const STATE: &str = "^(server\\.state|listener_manager\\.workers_started)";

/// Whether a proxy is ready. What has been once is not asked for again: a proxy does not go back.
#[derive(Debug)]
pub struct Readiness {
    admin: Target,
    has_updates: AtomicBool,
    was_ready: AtomicBool,
}

impl Readiness {
    /// Of the proxy with this admin interface.
    pub fn new(host: impl Into<String>, port: u16) -> Readiness {
        Readiness {
            admin: Target::new(host, port),
            has_updates: AtomicBool::new(false),
            was_ready: AtomicBool::new(false),
        }
    }

    /// # Errors
    /// Why it is not ready.
    pub async fn check(&self) -> Result<(), String> {
        if !self.has_updates.load(Ordering::Relaxed) {
            updates(&self.stats(UPDATES).await?)?;
            self.has_updates.store(true, Ordering::Relaxed);
        }
        if !self.was_ready.load(Ordering::Relaxed) {
            state(&self.stats(STATE).await?)?;
            self.was_ready.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn stats(&self, filter: &str) -> Result<String, String> {
        let mut path = "/stats?usedonly&filter=".to_owned();
        for byte in filter.bytes() {
            match byte {
                b'a'..=b'z' | b'_' | b'.' | b'$' | b'(' | b')' => path.push(char::from(byte)),
                other => path.push_str(&format!("%{other:02X}")),
            }
        }
        let asked = request(Method::GET, &path, &self.admin)?;
        let answer = call(&self.admin, asked, Duration::from_secs(3), Reads::All(1 << 20)).await?;
        if !answer.status.is_success() {
            return Err(format!("the proxy's stats: {}", answer.status));
        }
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }
}

fn value(stats: &str, name: &str) -> Option<u64> {
    let mut lines = stats.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(known, _)| *known == name).and_then(|(_, value)| value.trim().parse().ok())
}

fn updates(stats: &str) -> Result<(), String> {
    let of = |name| value(stats, name).unwrap_or(0);
    let clusters = of("cluster_manager.cds.update_success");
    let listeners = of("listener_manager.lds.update_success");
    let bad_clusters = of("cluster_manager.cds.update_rejected");
    let bad_listeners = of("listener_manager.lds.update_rejected");
    let counts = format!(
        "cds updates: {clusters} successful, {bad_clusters} rejected; \
         lds updates: {listeners} successful, {bad_listeners} rejected"
    );
    match (clusters > 0, listeners > 0) {
        (true, true) => Ok(()),
        (false, false) => Err(format!("config not received from XDS server (is Istiod running?): {counts}")),
        _ if bad_clusters + bad_listeners > 0 => {
            Err(format!("config received from XDS server, but was rejected: {counts}"))
        }
        _ => Err(format!("config not fully received from XDS server: {counts}")),
    }
}

fn state(stats: &str) -> Result<(), String> {
    let state = value(stats, "server.state").ok_or("server.state is not yet updated")?;
    let started = value(stats, "listener_manager.workers_started")
        .ok_or("listener_manager.workers_started is not yet updated")?;
    let name = match state {
        0 => "LIVE",
        1 => "DRAINING",
        2 => "PRE_INITIALIZING",
        3 => "INITIALIZING",
        _ => "UNKNOWN",
    };
    if state != 0 {
        return Err(format!("server is not live, current state is: {name}"));
    }
    if started == 1 { Ok(()) } else { Err("workers have not yet started".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::{state, updates};

    #[test]
    fn verdicts() {
        for (stats, expected) in [
            ("", "config not received"),
            ("cluster_manager.cds.update_success: 1\n", "config not fully received"),
            (
                "cluster_manager.cds.update_success: 1\nlistener_manager.lds.update_rejected: 1\n",
                "but was rejected: cds updates: 1 successful, 0 rejected; lds updates: 0 successful, 1 rejected",
            ),
        ] {
            let error = updates(stats).expect_err(stats);
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(
            updates("cluster_manager.cds.update_success: 2\nlistener_manager.lds.update_success: 1"),
            Ok(())
        );
        for (stats, expected) in [
            ("", "server.state is not yet"),
            ("server.state: 0", "workers_started is not yet"),
            ("server.state: 3\nlistener_manager.workers_started: 1", "INITIALIZING"),
            ("server.state: 0\nlistener_manager.workers_started: 0", "workers have not yet started"),
        ] {
            let error = state(stats).expect_err(stats);
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(state("listener_manager.workers_started: 1\nserver.state: 0"), Ok(()));
    }
}

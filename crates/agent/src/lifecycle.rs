//! From the proxy's start to its end: when it is asked to end, how its connections end before.
//!
//! If the proxy ends, so does the agent. When the agent is terminated the proxy drains, for a while or
//! until nobody is connected any more, unless it has drained already (`/drain`: a native sidecar, whose
//! applications end before it does) or is to end at once (`/quitquitquit`: a job is done).

use std::pin::Pin;
use std::time::Duration;

use http::Method;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::http::{Reads, Target, call, request};

/// How often connections are counted while draining.
const COUNT: Duration = Duration::from_secs(1);
/// How often they may not be countable, in a row.
const PATIENCE: u32 = 5;
/// How long the admin interface has to answer.
const ADMIN: Duration = Duration::from_secs(2);
/// How long a proxy that is told to end may take.
const LAST: Duration = Duration::from_secs(2);

/// What the agent is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Drain now, and go on; end at once when terminated.
    Drain,
    /// End at once.
    Quit,
    /// Drain, and end (SIGTERM).
    Terminate,
}

/// A proxy that runs.
pub struct Proxy {
    /// Its end.
    pub exited: Pin<Box<dyn Future<Output = Result<(), String>> + Send>>,
    /// Ends it at once; absent: the admin interface does.
    pub kill: Option<Box<dyn FnOnce() + Send>>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").finish_non_exhaustive()
    }
}

/// How connections end.
#[derive(Clone, Debug)]
pub struct Draining {
    /// How long to wait (`terminationDrainDuration`).
    pub wait: Duration,
    /// Wait until nobody is connected instead (`EXIT_ON_ZERO_ACTIVE_CONNECTIONS`), at least this long
    /// (`MINIMUM_DRAIN_DURATION`).
    pub until_idle: Option<Duration>,
    /// Only connections from outside are drained: beside a workload the others end with it.
    pub inbound_only: bool,
    /// Ports of listeners that do not count.
    pub own_ports: Vec<u16>,
}

/// Follows a proxy to its end.
///
/// # Errors
/// If it has ended by itself, and badly.
pub async fn supervise(
    mut proxy: Proxy,
    mut orders: mpsc::Receiver<Order>,
    admin: (String, u16),
    draining: &Draining,
) -> Result<(), String> {
    let admin = Target::new(admin.0, admin.1);
    let mut is_drained = false;
    loop {
        let order = tokio::select! {
            ended = &mut proxy.exited => {
                match &ended {
                    Ok(()) => tracing::info!("the proxy has ended"),
                    Err(error) => tracing::error!(error, "the proxy has ended"),
                }
                return ended;
            }
            // Nobody can give orders any more.
            order = orders.recv() => order.unwrap_or(Order::Quit),
        };
        match order {
            Order::Drain => {
                tracing::info!("draining");
                drain(&admin, draining.inbound_only, true).await;
                is_drained = true;
            }
            Order::Quit => break,
            Order::Terminate if is_drained => {
                tracing::info!("terminated, and drained already");
                break;
            }
            Order::Terminate => {
                tracing::info!(wait = ?draining.wait, until_idle = ?draining.until_idle, "terminated: draining");
                drain(&admin, draining.inbound_only, false).await;
                let waiting = wait(&admin, draining);
                tokio::select! {
                    ended = &mut proxy.exited => {
                        tracing::info!(?ended, "the proxy has ended while it drained");
                        return Ok(());
                    }
                    () = waiting => {}
                    () = told_to_quit(&mut orders) => {}
                }
                break;
            }
        }
    }
    match proxy.kill.take() {
        Some(kill) => kill(),
        None => {
            if let Ok(quit) = request(Method::POST, "/quitquitquit", &admin) {
                let _ = call(&admin, quit, ADMIN, Reads::First(0)).await;
            }
        }
    }
    if tokio::time::timeout(LAST, &mut proxy.exited).await.is_err() {
        tracing::warn!("the proxy does not end");
    }
    Ok(())
}

async fn told_to_quit(orders: &mut mpsc::Receiver<Order>) {
    while let Some(order) = orders.recv().await {
        if order == Order::Quit {
            return;
        }
    }
    std::future::pending::<()>().await;
}

async fn drain(admin: &Target, inbound_only: bool, goes_on: bool) {
    let mut path = "/drain_listeners?graceful".to_owned();
    if goes_on {
        path.push_str("&skip_exit");
    }
    if inbound_only {
        path.push_str("&inboundonly");
    }
    let answer = match request(Method::POST, &path, admin) {
        Ok(request) => call(admin, request, ADMIN, Reads::First(0)).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(answer) if answer.status.is_success() => {}
        Ok(answer) => tracing::warn!(status = %answer.status, "the proxy does not drain"),
        Err(error) => tracing::warn!(error, "the proxy does not drain"),
    }
}

/// Waits as long as connections may last.
async fn wait(admin: &Target, draining: &Draining) {
    let Some(least) = draining.until_idle else { return sleep(draining.wait).await };
    sleep_until(Instant::now() + least).await;
    let mut failures = 0;
    loop {
        match connections(admin, &draining.own_ports).await {
            Ok(None) => return tracing::info!("connections are not counted"),
            Ok(Some(0)) => return tracing::info!("nobody is connected any more"),
            Ok(Some(number)) => {
                tracing::info!(number, "somebody is still connected");
                failures = 0;
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(error, failures, "connections cannot be counted");
                if failures >= PATIENCE {
                    return;
                }
            }
        }
        sleep(COUNT).await;
    }
}

/// How many connections there are; `None` if nobody counts.
async fn connections(admin: &Target, own_ports: &[u16]) -> Result<Option<u64>, String> {
    let path = "/stats?usedonly&filter=downstream_cx_active$";
    let answer = call(admin, request(Method::GET, path, admin)?, ADMIN, Reads::All(16 << 20)).await?;
    let text = String::from_utf8_lossy(&answer.body);
    Ok(count(&text, own_ports))
}

fn count(stats: &str, own_ports: &[u16]) -> Option<u64> {
    if stats.is_empty() {
        return None;
    }
    let own = |listener: &str| {
        listener.starts_with("admin.")
            || listener.starts_with("envoy_internal_")
            || own_ports.iter().any(|port| {
                ["0.0.0.0", "[__]", "[::]", "127.0.0.1"]
                    .iter()
                    .any(|address| listener.strip_prefix(&format!("{address}_{port}.")).is_some())
            })
    };
    let listeners = stats.lines().filter_map(|line| line.strip_prefix("listener."));
    let numbers = listeners.filter(|line| !line.contains("worker_") && !own(line));
    Some(numbers.filter_map(|line| line.rsplit_once(':')?.1.trim().parse::<u64>().ok()).sum())
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn who_is_connected() {
        let stats = "http.a.downstream_cx_active: 9
listener.0.0.0.0_15021.downstream_cx_active: 1
listener.admin.downstream_cx_active: 1
listener.admin.main_thread.downstream_cx_active: 1
listener.envoy_internal_x.downstream_cx_active: 4
listener.0.0.0.0_15006.downstream_cx_active: 2
listener.0.0.0.0_15006.worker_0.downstream_cx_active: 2
listener.10.0.0.1_80.downstream_cx_active: 3
";
        assert_eq!(count(stats, &[15021, 15090]), Some(5));
        assert_eq!(count("", &[]), None);
        assert_eq!(count("http.a.downstream_cx_active: 9\n", &[]), Some(0));
    }
}

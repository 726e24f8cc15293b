//! One check of a container, as its probes and hooks declare it: HTTP, TCP, gRPC, a command, a while.
//!
//! What follows from it, and when it is made, is `container.rs`'s.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use leno_node::{Process, ProcessSpec};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::http;
use crate::place::Place;

/// A probe: what to check, and what the numbers are.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// What is checked.
    pub check: Check,
    /// `initialDelaySeconds`.
    pub delay: Duration,
    /// Between two checks; [`Duration::MAX`]: once it has succeeded nobody asks again.
    pub period: Duration,
    /// For one check.
    pub timeout: Duration,
    /// How many checks must fail in a row before it counts as failed.
    pub failures: u32,
    /// How many checks must succeed in a row before it counts as good.
    pub successes: u32,
    /// `terminationGracePeriodSeconds`: for a container that is ended for its sake.
    pub grace: Option<Duration>,
}

/// What can be checked.
#[derive(Clone, Debug, PartialEq)]
pub enum Check {
    /// A running process is enough.
    Lives,
    /// One of the ports accepts a connection.
    Accepts {
        /// The ports.
        ports: Vec<u16>,
        /// Another host than the pod.
        host: Option<String>,
    },
    /// A GET is answered with a status from 200 to 399.
    Http {
        /// The port.
        port: u16,
        /// With a slash at its beginning.
        path: String,
        /// Another host than the pod.
        host: Option<String>,
        /// Headers to send.
        headers: Vec<(String, String)>,
    },
    /// `grpc.health.v1.Health/Check` says that it serves.
    Grpc {
        /// The port.
        port: u16,
        /// The service, which may be empty.
        service: String,
    },
    /// A command ends with code 0.
    Execute(Vec<String>),
    /// It has been waited so long (hooks only).
    Sleep(Duration),
}

/// Where checks are made.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Where connections come from.
    pub from: &'a Place,
    /// Where commands run.
    pub place: &'a Place,
    /// The container's process, whose environment, user and files commands have.
    pub process: &'a ProcessSpec,
}

impl Probe {
    /// A probe as declared.
    ///
    /// # Errors
    /// What about it cannot be done, in words.
    pub fn declared(probe: &core::Probe, container: &core::Container) -> Result<Probe, String> {
        let number = |value: Option<i32>, default: u32| {
            let value = value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0);
            value.unwrap_or(default)
        };
        let seconds = |value: Option<i32>, default| Duration::from_secs(number(value, default).into());
        let grpc = probe.grpc.as_ref().map(|grpc| {
            let port = u16::try_from(grpc.port).map_err(|_| format!("{} is no port", grpc.port))?;
            Ok::<_, String>(Check::Grpc { port, service: grpc.service.clone().unwrap_or_default() })
        });
        let check = match grpc {
            Some(check) => check?,
            None => {
                let (exec, get, tcp) = (&probe.exec, &probe.http_get, &probe.tcp_socket);
                check(exec.as_ref(), get.as_ref(), tcp.as_ref(), container)?
            }
        };
        let grace = probe.termination_grace_period_seconds.and_then(|it| u64::try_from(it).ok());
        Ok(Probe {
            check,
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            failures: number(probe.failure_threshold, 3),
            successes: number(probe.success_threshold, 1),
            grace: grace.map(Duration::from_secs),
        })
    }

    /// What stands for a readiness probe that is not declared: that one of the container's ports
    /// accepts, or of `others` if it names none, or else that it lives.
    pub fn of_ports(container: &core::Container, others: &[u16]) -> Probe {
        let own = container.ports.iter().flatten();
        let mut ports: Vec<u16> = own
            .filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"))
            .filter_map(|port| u16::try_from(port.container_port).ok())
            .collect();
        if ports.is_empty() {
            ports.extend(others);
        }
        let check = if ports.is_empty() { Check::Lives } else { Check::Accepts { ports, host: None } };
        let timeout = Duration::from_secs(1);
        let (delay, period, grace) = (Duration::ZERO, Duration::MAX, None);
        Probe { check, delay, period, timeout, failures: 1, successes: 1, grace }
    }

    /// Checks once.
    ///
    /// # Errors
    /// Why it failed, in words.
    pub async fn run(&self, target: &Target<'_>) -> Result<(), String> {
        self.check.run(target, self.timeout).await
    }
}

/// What a hook does.
///
/// # Errors
/// What about it cannot be done, in words.
pub fn hook(handler: &core::LifecycleHandler, container: &core::Container) -> Result<Check, String> {
    if let Some(sleep) = &handler.sleep {
        return Ok(Check::Sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or_default())));
    }
    let (exec, get, tcp) = (&handler.exec, &handler.http_get, &handler.tcp_socket);
    check(exec.as_ref(), get.as_ref(), tcp.as_ref(), container)
}

fn check(
    exec: Option<&core::ExecAction>,
    get: Option<&core::HTTPGetAction>,
    tcp: Option<&core::TCPSocketAction>,
    container: &core::Container,
) -> Result<Check, String> {
    if let Some(get) = get {
        if get.scheme.as_deref() == Some("HTTPS") {
            return Err("HTTPS is not supported".to_owned());
        }
        let headers = get.http_headers.iter().flatten();
        return Ok(Check::Http {
            port: port(&get.port, container)?,
            path: get.path.clone().filter(|path| path.starts_with('/')).unwrap_or_else(|| "/".to_owned()),
            host: get.host.clone().filter(|host| !host.is_empty()),
            headers: headers.map(|header| (header.name.clone(), header.value.clone())).collect(),
        });
    }
    if let Some(tcp) = tcp {
        let host = tcp.host.clone().filter(|host| !host.is_empty());
        return Ok(Check::Accepts { ports: vec![port(&tcp.port, container)?], host });
    }
    match exec.and_then(|exec| exec.command.clone()) {
        Some(argv) if !argv.is_empty() => Ok(Check::Execute(argv)),
        _ => Err("it says nothing to check".to_owned()),
    }
}

/// A port by number or by the container's name for it.
fn port(port: &IntOrString, container: &core::Container) -> Result<u16, String> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).map_err(|_| format!("{number} is no port")),
        IntOrString::String(name) => {
            if let Ok(number) = name.parse() {
                return Ok(number);
            }
            let mut ports = container.ports.iter().flatten();
            let port = ports.find(|port| port.name.as_ref() == Some(name));
            port.and_then(|port| u16::try_from(port.container_port).ok())
                .ok_or_else(|| format!("the container has no port {name:?}"))
        }
    }
}

impl Check {
    /// Checks once.
    ///
    /// # Errors
    /// Why it failed, in words.
    pub async fn run(&self, target: &Target<'_>, limit: Duration) -> Result<(), String> {
        let at = |port| SocketAddr::new(IpAddr::V4(target.address), port);
        match self {
            Check::Lives => Ok(()),
            Check::Accepts { ports, host } => {
                let mut result = Err("it has no port".to_owned());
                for port in ports {
                    result = match connect(target, host.as_deref(), *port, limit).await {
                        Ok(_) => return Ok(()),
                        Err(e) => Err(e),
                    };
                }
                result
            }
            Check::Http { port, path, host, headers } => {
                let stream = connect(target, host.as_deref(), *port, limit).await?;
                let authority =
                    host.as_ref().map_or_else(|| at(*port).to_string(), |host| format!("{host}:{port}"));
                let mut headers = headers.clone();
                if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("user-agent")) {
                    headers.push(("user-agent".to_owned(), "kube-probe/1.33".to_owned()));
                }
                match http::get(stream, &authority, path, &headers, limit).await {
                    Ok((200..400, _)) => Ok(()),
                    Ok((status, _)) => Err(format!("HTTP probe failed with statuscode: {status}")),
                    Err(e) => Err(format!("{e:#}")),
                }
            }
            Check::Grpc { port, service } => {
                let stream = connect(target, None, *port, limit).await?;
                let authority = at(*port).to_string();
                match http::check_grpc_health(stream, &authority, service, limit).await {
                    Ok(true) => Ok(()),
                    Ok(false) => Err("service unhealthy".to_owned()),
                    Err(e) => Err(format!("{e:#}")),
                }
            }
            Check::Execute(argv) => execute(target, argv, limit).await,
            Check::Sleep(time) => {
                tokio::time::sleep(*time).await;
                Ok(())
            }
        }
    }
}

/// Runs a command as a process of the container would be; what it says is the reason if it fails.
async fn execute(target: &Target<'_>, argv: &[String], limit: Duration) -> Result<(), String> {
    let (lines, mut said) = mpsc::channel(16);
    let spec = ProcessSpec {
        name: format!("{} {}", target.process.name, argv.first().map_or("", String::as_str)),
        argv: argv.to_vec(),
        ..target.process.clone()
    };
    let process = Process::spawn(target.place.pod(), &spec, &lines).await.map_err(|e| e.to_string())?;
    drop(lines);
    let exit = tokio::time::timeout(limit, async {
        let mut last = String::new();
        while let Some(line) = said.recv().await {
            last = line.text;
        }
        (process.wait().await, last)
    });
    match exit.await {
        Err(_) => Err(format!("command timed out after {limit:?}")),
        Ok((exit, _)) if exit.success() => Ok(()),
        Ok((exit, last)) if last.is_empty() => Err(exit.to_string()),
        Ok((exit, last)) => Err(format!("{exit}: {last}")),
    }
}

async fn connect(
    target: &Target<'_>,
    host: Option<&str>,
    port: u16,
    limit: Duration,
) -> Result<TcpStream, String> {
    let address = match host {
        None => IpAddr::V4(target.address),
        Some("localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Some(host) => host.parse().map_err(|_| format!("{host:?} is no address"))?,
    };
    let address = SocketAddr::new(address, port);
    // The loopback address means the pod's, wherever this comes from.
    let from = if address.ip().is_loopback() { target.place } else { target.from };
    match tokio::time::timeout(limit, from.connect(address)).await {
        Ok(stream) => stream.map_err(|e| format!("{address}: {e}")),
        Err(_) => Err(format!("{address}: no connection in {limit:?}")),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use k8s_openapi::api::core::v1 as core;
    use serde_json::{Value, json};

    use super::Probe;

    fn check(probe: Value, expected: &Expect) {
        let ports = json!({ "name": "app", "ports": [{ "name": "web", "containerPort": 8080 }] });
        let container: core::Container = serde_json::from_value(ports).unwrap();
        let probe: core::Probe = serde_json::from_value(probe).unwrap();
        let found = Probe::declared(&probe, &container);
        let text = found.map_or_else(
            |message| message,
            |it| {
                format!(
                    "{:?} after {:?}, every {:?}, within {:?}, failed at {}, good at {}, grace {:?}",
                    it.check, it.delay, it.period, it.timeout, it.failures, it.successes, it.grace
                )
            },
        );
        expected.assert_eq(&text);
    }

    #[test]
    fn declared() {
        check(
            json!({ "httpGet": { "port": "web", "path": "x", "httpHeaders": [{ "name": "A", "value": "b" }] } }),
            &expect![[
                r#"Http { port: 8080, path: "/", host: None, headers: [("A", "b")] } after 0ns, every 10s, within 1s, failed at 3, good at 1, grace None"#
            ]],
        );
        check(
            json!({ "tcpSocket": { "port": 9 }, "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 30,
                "successThreshold": 2, "initialDelaySeconds": 4, "terminationGracePeriodSeconds": 7 }),
            &expect![
                "Accepts { ports: [9], host: None } after 4s, every 1s, within 3s, failed at 30, good at 2, grace Some(7s)"
            ],
        );
        check(
            json!({ "grpc": { "port": 9, "service": "s" } }),
            &expect![[
                r#"Grpc { port: 9, service: "s" } after 0ns, every 10s, within 1s, failed at 3, good at 1, grace None"#
            ]],
        );
        check(json!({ "httpGet": { "port": "no" } }), &expect![[r#"the container has no port "no""#]]);
        check(json!({ "httpGet": { "port": 1, "scheme": "HTTPS" } }), &expect!["HTTPS is not supported"]);
        check(json!({ "exec": { "command": [] } }), &expect!["it says nothing to check"]);
    }
}

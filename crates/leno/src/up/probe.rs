//! Whether a container can be called: its readiness probe, or else whether its ports accept.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use leno_node::{Process, ProcessSpec};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::http;
use super::plan::{ContainerPlan, PodPlan};
use super::site::Place;

/// How readiness is found out, and how often.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Probe {
    check: Check,
    /// Between two checks, once it has been ready.
    pub(crate) period: Duration,
    timeout: Duration,
    /// How many checks must fail in a row before it is not ready any more.
    pub(crate) failures: u32,
}

#[derive(Clone, Debug, PartialEq)]
enum Check {
    /// A running process is enough.
    Lives,
    /// One of the ports accepts a connection.
    Accepts(Vec<u16>),
    Http {
        port: u16,
        path: String,
        host: String,
        headers: Vec<(String, String)>,
    },
    Grpc {
        port: u16,
        service: String,
    },
    Execute(Vec<String>),
}

impl Probe {
    /// The probe of a container; `ports` are those that services of the pod lead to. A readiness
    /// probe that cannot be carried out comes as an error, in words.
    pub(crate) fn of(container: &ContainerPlan, ports: &[u16]) -> Result<Probe, String> {
        let Some(declared) = &container.container.readiness_probe else {
            return Ok(Probe::of_ports(container, ports));
        };
        let seconds = |value: Option<i32>, default: u32| {
            let value = value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0);
            value.unwrap_or(default)
        };
        Ok(Probe {
            check: declared_check(container, declared)?,
            period: Duration::from_secs(seconds(declared.period_seconds, 10).into()),
            timeout: Duration::from_secs(seconds(declared.timeout_seconds, 1).into()),
            failures: seconds(declared.failure_threshold, 3),
        })
    }

    /// What is checked without a readiness probe: that a port accepts, or else that it lives.
    pub(crate) fn of_ports(container: &ContainerPlan, ports: &[u16]) -> Probe {
        let own = container.container.ports.iter().flatten();
        let mut accepting: Vec<u16> = own
            .filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"))
            .filter_map(|port| u16::try_from(port.container_port).ok())
            .collect();
        if accepting.is_empty() {
            accepting.extend(ports);
        }
        let check = if accepting.is_empty() { Check::Lives } else { Check::Accepts(accepting) };
        Probe { check, period: Duration::MAX, timeout: Duration::from_secs(1), failures: 1 }
    }

    /// Carries it out, once.
    pub(crate) async fn run(&self, pod: &PodPlan, place: &Place, environment: &[(String, String)]) -> bool {
        let at = |port| SocketAddr::new(IpAddr::V4(pod.address), port);
        match &self.check {
            Check::Lives => true,
            Check::Accepts(ports) => {
                for port in ports {
                    if connect(place, at(*port), self.timeout).await.is_some() {
                        return true;
                    }
                }
                false
            }
            Check::Http { port, path, host, headers } => {
                let Some(stream) = connect(place, at(*port), self.timeout).await else { return false };
                let answer = http::get(stream, host, path, headers, self.timeout).await;
                answer.is_ok_and(|(status, _)| (200..400).contains(&status))
            }
            Check::Grpc { port, service } => {
                let Some(stream) = connect(place, at(*port), self.timeout).await else { return false };
                let authority = at(*port).to_string();
                http::check_grpc_health(stream, &authority, service, self.timeout).await.unwrap_or(false)
            }
            Check::Execute(argv) => self.execute(pod, place, argv, environment).await,
        }
    }

    async fn execute(
        &self,
        pod: &PodPlan,
        place: &Place,
        argv: &[String],
        environment: &[(String, String)],
    ) -> bool {
        let (lines, mut unheard) = mpsc::channel(16);
        let spec = ProcessSpec {
            name: format!("{}/probe", pod.key.name),
            argv: argv.to_vec(),
            environment: environment.to_vec(),
            ..ProcessSpec::default()
        };
        let Ok(process) = Process::spawn(place.pod(), &spec, &lines).await else { return false };
        drop(lines);
        let exit = tokio::time::timeout(self.timeout, async {
            while unheard.recv().await.is_some() {}
            process.wait().await
        });
        exit.await.is_ok_and(leno_node::Exit::success)
    }
}

/// Connects as an application of the pod would, past its sidecar.
async fn connect(place: &Place, address: SocketAddr, limit: Duration) -> Option<TcpStream> {
    tokio::time::timeout(limit, place.connect(address)).await.ok()?.ok()
}

fn declared_check(container: &ContainerPlan, probe: &core::Probe) -> Result<Check, String> {
    let port_of = |port: &IntOrString| match port {
        IntOrString::Int(number) => {
            u16::try_from(*number).map_err(|_| format!("readinessProbe: {number} is no port"))
        }
        IntOrString::String(name) => {
            let mut ports = container.container.ports.iter().flatten();
            let port = ports.find(|port| port.name.as_ref() == Some(name));
            port.and_then(|port| u16::try_from(port.container_port).ok())
                .ok_or_else(|| format!("readinessProbe: the container has no port {name:?}"))
        }
    };
    if let Some(get) = &probe.http_get {
        if get.scheme.as_deref() == Some("HTTPS") {
            return Err("readinessProbe: HTTPS is not supported by leno up".to_owned());
        }
        let headers = get.http_headers.iter().flatten();
        return Ok(Check::Http {
            port: port_of(&get.port)?,
            path: get.path.clone().filter(|path| path.starts_with('/')).unwrap_or_else(|| "/".to_owned()),
            host: get.host.clone().unwrap_or_else(|| "localhost".to_owned()),
            headers: headers.map(|header| (header.name.clone(), header.value.clone())).collect(),
        });
    }
    if let Some(tcp) = &probe.tcp_socket {
        return Ok(Check::Accepts(vec![port_of(&tcp.port)?]));
    }
    if let Some(grpc) = &probe.grpc {
        let port = port_of(&IntOrString::Int(grpc.port))?;
        return Ok(Check::Grpc { port, service: grpc.service.clone().unwrap_or_default() });
    }
    match probe.exec.as_ref().and_then(|exec| exec.command.clone()) {
        Some(argv) if !argv.is_empty() => Ok(Check::Execute(argv)),
        _ => Err("readinessProbe: it says nothing to check".to_owned()),
    }
}

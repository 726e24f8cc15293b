//! `WorkloadGroup`: the template of WorkloadEntries, and how their readiness is probed.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::check::{Check, is_header_name};
use super::diagnostic::Finding;
use super::workload_entry::WorkloadEntry;

/// The `spec` of a WorkloadGroup.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct WorkloadGroup {
    /// Labels/annotations of created entries.
    pub(crate) metadata: Option<TemplateMeta>,
    /// WorkloadEntry template (required).
    pub(crate) template: Option<WorkloadEntry>,
    /// Readiness probe run by agent.
    pub(crate) probe: Option<ReadinessProbe>,
}

/// What every entry made from the group carries.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TemplateMeta {
    /// Labels to attach.
    pub(crate) labels: BTreeMap<String, String>,
    /// Annotations to attach.
    pub(crate) annotations: BTreeMap<String, String>,
}

/// How it is found out whether a workload is ready.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ReadinessProbe {
    /// Delay before probing.
    pub(crate) initial_delay_seconds: i32,
    /// Probe timeout.
    pub(crate) timeout_seconds: i32,
    /// Probe period.
    pub(crate) period_seconds: i32,
    /// Successes to be healthy.
    pub(crate) success_threshold: i32,
    /// Failures to be unhealthy.
    pub(crate) failure_threshold: i32,
    /// HTTP probe.
    pub(crate) http_get: Option<HttpProbe>,
    /// TCP probe.
    pub(crate) tcp_socket: Option<TcpProbe>,
    /// Command probe.
    pub(crate) exec: Option<ExecProbe>,
    /// GRPC health probe.
    pub(crate) grpc: Option<GrpcProbe>,
}

/// A probe by an HTTP request.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpProbe {
    /// Path.
    pub(crate) path: String,
    /// Port.
    pub(crate) port: u32,
    /// Host.
    pub(crate) host: String,
    /// HTTP/HTTPS.
    pub(crate) scheme: String,
    /// Extra headers.
    pub(crate) http_headers: Vec<HttpHeader>,
}

/// A header of a probe's request.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpHeader {
    /// Header name.
    pub(crate) name: String,
    /// Header value.
    pub(crate) value: String,
}

/// A probe by a TCP connection.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TcpProbe {
    /// Host.
    pub(crate) host: String,
    /// Port.
    pub(crate) port: u32,
}

/// A probe by a command.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ExecProbe {
    /// Argv.
    pub(crate) command: Vec<String>,
}

/// A probe by `grpc.health.v1`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct GrpcProbe {
    /// Port.
    pub(crate) port: u32,
    /// Grpc.health.v1 service name.
    pub(crate) service: String,
}

impl WorkloadGroup {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        // An entry's address is not known yet, so that the template need not be a good one.
        if self.template.is_none() {
            check.invalid_at("template", "is needed");
        }
        if let Some(metadata) = &self.metadata {
            check.at("metadata", |check| check.at("labels", |check| check.labels(&metadata.labels)));
        }
        if let Some(probe) = &self.probe {
            check.at("probe", |check| probe.check(check));
        }
        check.into_findings()
    }
}

impl ReadinessProbe {
    /// Checks a probe.
    pub(crate) fn check(&self, check: &mut Check) {
        check.not_negative("initialDelaySeconds", self.initial_delay_seconds);
        check.not_negative("timeoutSeconds", self.timeout_seconds);
        check.not_negative("periodSeconds", self.period_seconds);
        check.not_negative("successThreshold", self.success_threshold);
        check.not_negative("failureThreshold", self.failure_threshold);
        check.exactly_one(&[
            ("httpGet", self.http_get.is_some()),
            ("tcpSocket", self.tcp_socket.is_some()),
            ("exec", self.exec.is_some()),
            ("grpc", self.grpc.is_some()),
        ]);
        if let Some(http) = &self.http_get {
            check.at("httpGet", |check| {
                check.at("port", |check| check.port(http.port));
                if !matches!(http.scheme.as_str(), "" | "HTTP" | "HTTPS") {
                    check.invalid_at("scheme", format!("{:?} is neither HTTP nor HTTPS", http.scheme));
                }
                check.each("httpHeaders", &http.http_headers, |check, header| {
                    if !is_header_name(&header.name) {
                        check.invalid_at("name", format!("{:?} is no header name", header.name));
                    }
                });
            });
        }
        if let Some(tcp) = &self.tcp_socket {
            check.at("tcpSocket", |check| check.at("port", |check| check.port(tcp.port)));
        }
        if let Some(grpc) = &self.grpc {
            check.at("grpc", |check| check.at("port", |check| check.port(grpc.port)));
        }
        if self.exec.as_ref().is_some_and(|exec| exec.command.is_empty()) {
            check.at("exec", |check| check.invalid_at("command", "must not be empty"));
        }
    }
}

//! Lowering of envoy.config.core.v3.HealthCheck.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use core::health_check::{HealthChecker, Payload};
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::health_check::event_sinks::file::v3::HealthCheckEventFileSink;
use leno_api::proto::envoy::r#type::v3 as types;

use crate::config::address;
use crate::config::lower::Lower;
use crate::http::route::matcher::{self, StringMatcher};
use crate::http::route::mutation::{self, HeaderMutations};
use crate::telemetry::access_log::Sink;
use crate::telemetry::access_log::sink::{LogFile, open};

/// `no_traffic_interval` where none is given.
const NO_TRAFFIC_INTERVAL: Duration = Duration::from_secs(60);
/// `response_buffer_size` where none is given.
const RESPONSE_BUFFER: u64 = 1024;

/// How a cluster's hosts are checked.
#[derive(Debug)]
pub(crate) struct Settings {
    /// What is asked, and which answer is good.
    pub(super) check: Check,
    /// `timeout` of one check.
    pub(super) timeout: Duration,
    /// `interval`
    pub(super) interval: Duration,
    /// `initial_jitter`
    pub(super) initial_jitter: Duration,
    /// `interval_jitter`
    pub(super) interval_jitter: Duration,
    /// `interval_jitter_percent`
    pub(super) interval_jitter_percent: u32,
    /// `unhealthy_threshold`
    pub(super) unhealthy_threshold: u32,
    /// `healthy_threshold`
    pub(super) healthy_threshold: u32,
    /// `reuse_connection`, true by default.
    pub(super) reuse: bool,
    /// `no_traffic_interval`, 60 s by default.
    pub(super) no_traffic_interval: Duration,
    /// `no_traffic_healthy_interval`, by default the same.
    pub(super) no_traffic_healthy_interval: Duration,
    /// `unhealthy_interval`, by default `interval`.
    pub(super) unhealthy_interval: Duration,
    /// `unhealthy_edge_interval`, by default `unhealthy_interval`.
    pub(super) unhealthy_edge_interval: Duration,
    /// `healthy_edge_interval`, by default `interval`.
    pub(super) healthy_edge_interval: Duration,
    /// `always_log_health_check_failures`
    pub(super) log_failures: bool,
    /// `always_log_health_check_success`
    pub(super) log_successes: bool,
    /// `event_log_path` and file sinks of `event_logger`.
    pub(super) logs: Vec<Arc<LogFile>>,
    /// Runtime's `health_check.min_interval` and `health_check.max_interval`, ms.
    pub(super) bounds: (u64, u64),
    /// `tls_options.alpn_protocols`; empty: those of the transport socket.
    pub(super) alpn: Vec<Vec<u8>>,
    /// `transport_socket_match_criteria`: what `transport_socket_matches` are compared with in place
    /// of the endpoint's metadata.
    pub(super) transport_criteria: Option<serde_json::Value>,
    /// `common_lb_config.ignore_new_hosts_until_first_hc`
    pub(super) ignore_new_hosts: bool,
    /// `ignore_health_on_host_removal`
    pub(super) ignore_health_on_removal: bool,
}

/// A kind of check.
#[derive(Debug)]
pub(super) enum Check {
    Http(Box<HttpCheck>),
    Grpc(GrpcCheck),
    Tcp(TcpCheck),
}

impl Check {
    /// envoy.data.core.v3.HealthCheckerType.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Check::Http(_) => "HTTP",
            Check::Grpc(_) => "GRPC",
            Check::Tcp(_) => "TCP",
        }
    }
}

/// HttpHealthCheck.
#[derive(Debug)]
pub(super) struct HttpCheck {
    /// `host`; the cluster's name if there is none.
    pub(super) host: Option<Box<str>>,
    pub(super) path: http::Uri,
    pub(super) method: http::Method,
    /// `codec_client_type` HTTP2.
    pub(super) http2: bool,
    /// `send`
    pub(super) body: Bytes,
    /// `receive`, in this order.
    pub(super) receive: Vec<Bytes>,
    /// `response_buffer_size`; 0: no limit.
    pub(super) buffer: u64,
    pub(super) headers: HeaderMutations,
    /// `expected_statuses`: from, to (not included).
    pub(super) expected: Vec<(u16, u16)>,
    pub(super) retriable: Vec<(u16, u16)>,
    /// `service_name_matcher`, with the share of answers that it is applied to, percent
    /// (runtime's `health_check.verify_cluster`).
    pub(super) service: Option<(StringMatcher, u64)>,
}

/// GrpcHealthCheck.
#[derive(Debug)]
pub(super) struct GrpcCheck {
    pub(super) service: String,
    /// `authority`; the cluster's name if there is none.
    pub(super) authority: Option<Box<str>>,
    /// `initial_metadata`
    pub(super) headers: HeaderMutations,
}

/// TcpHealthCheck.
#[derive(Debug)]
pub(super) struct TcpCheck {
    pub(super) send: Bytes,
    /// In this order; empty: a connection is enough.
    pub(super) receive: Vec<Bytes>,
    pub(super) proxy_protocol: Option<ProxyProtocol>,
}

/// `proxy_protocol_config.version`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProxyProtocol {
    V1,
    V2,
}

/// What a cluster says besides that concerns its checks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Surroundings {
    /// `common_lb_config.ignore_new_hosts_until_first_hc`
    pub(crate) ignore_new_hosts: bool,
    /// `ignore_health_on_host_removal`
    pub(crate) ignore_health_on_removal: bool,
    /// HTTP/2 is spoken to the hosts.
    pub(crate) http2: bool,
}

/// Lowers a cluster's `health_checks`; `None`: there are none, or they are refused.
pub(crate) fn lower(
    protos: Vec<core::HealthCheck>,
    cluster: &str,
    around: Surroundings,
    at: &mut Lower,
) -> Option<Settings> {
    if protos.len() > 1 {
        // Envoy tells them apart by names, which our version of the API does not have.
        at.unsupported("health_checks[1]", true);
        return None;
    }
    at.each("health_checks", protos, |proto, at| one(proto, cluster, around, at)).pop()
}

fn one(proto: core::HealthCheck, cluster: &str, around: Surroundings, at: &mut Lower) -> Option<Settings> {
    let core::HealthCheck {
        timeout,
        interval,
        initial_jitter,
        interval_jitter,
        interval_jitter_percent,
        unhealthy_threshold,
        healthy_threshold,
        // Envoy has it in the API only.
        alt_port: _,
        reuse_connection,
        no_traffic_interval,
        no_traffic_healthy_interval,
        unhealthy_interval,
        unhealthy_edge_interval,
        healthy_edge_interval,
        event_log_path,
        event_logger,
        event_service,
        always_log_health_check_failures,
        always_log_health_check_success,
        tls_options,
        transport_socket_match_criteria,
        health_checker,
    } = proto;
    at.unsupported("event_service", event_service.is_some());
    let alpn = tls_options.map(|core::health_check::TlsOptions { alpn_protocols }| alpn_protocols);
    let alpn = alpn.unwrap_or_default().into_iter().map(String::into_bytes).collect();
    let mut logs: Vec<Arc<LogFile>> = Vec::new();
    if !event_log_path.is_empty() {
        logs.push(open(&Sink::File(event_log_path.into())));
    }
    logs.extend(at.each("event_logger", event_logger, |sink, at| {
        let core::TypedExtensionConfig { name, typed_config } = sink;
        let Some(any) = typed_config else {
            at.error_at(
                "typed_config",
                format!("Didn't find a registered implementation for name: '{name}'"),
            );
            return None;
        };
        at.field("typed_config", |at| {
            let any = at.extension(any)?;
            if !leno_api::any::is::<HealthCheckEventFileSink>(&any) {
                at.unsupported_extension(&name, &any.type_url);
                return None;
            }
            let HealthCheckEventFileSink { event_log_path } = at.unpack(&any)?;
            Some(open(&Sink::File(event_log_path.into())))
        })
    }));
    let runtime = Arc::clone(&at.scope().runtime);
    let verify = runtime.integer("health_check.verify_cluster").unwrap_or(100).min(100);
    let check = match health_checker {
        Some(HealthChecker::HttpHealthCheck(check)) => {
            Check::Http(Box::new(at.field("http_health_check", |at| http(check, verify, at))?))
        }
        Some(HealthChecker::TcpHealthCheck(check)) => {
            Check::Tcp(at.field("tcp_health_check", |at| tcp(check, at))?)
        }
        Some(HealthChecker::GrpcHealthCheck(check)) => {
            if !around.http2 {
                at.error_at(
                    "grpc_health_check",
                    format!("{cluster} cluster must support HTTP/2 for gRPC healthchecking"),
                );
                return None;
            }
            Check::Grpc(at.field("grpc_health_check", |at| grpc(check, at)))
        }
        Some(HealthChecker::CustomHealthCheck(custom)) => {
            let url = match custom.config_type {
                Some(core::health_check::custom_health_check::ConfigType::TypedConfig(any)) => any.type_url,
                None => String::new(),
            };
            at.field("custom_health_check", |at| at.unsupported_extension(&custom.name, &url));
            return None;
        }
        None => {
            at.error("health_checker: is required");
            return None;
        }
    };
    let interval = at.duration("interval", interval)?;
    let no_traffic = at.duration("no_traffic_interval", no_traffic_interval).unwrap_or(NO_TRAFFIC_INTERVAL);
    let unhealthy = at.duration("unhealthy_interval", unhealthy_interval).unwrap_or(interval);
    Some(Settings {
        check,
        timeout: at.duration("timeout", timeout)?,
        interval,
        initial_jitter: at.duration("initial_jitter", initial_jitter).unwrap_or_default(),
        interval_jitter: at.duration("interval_jitter", interval_jitter).unwrap_or_default(),
        interval_jitter_percent,
        unhealthy_threshold: unhealthy_threshold?,
        healthy_threshold: healthy_threshold?,
        reuse: reuse_connection.unwrap_or(true),
        no_traffic_interval: no_traffic,
        no_traffic_healthy_interval: at
            .duration("no_traffic_healthy_interval", no_traffic_healthy_interval)
            .unwrap_or(no_traffic),
        unhealthy_interval: unhealthy,
        unhealthy_edge_interval: at
            .duration("unhealthy_edge_interval", unhealthy_edge_interval)
            .unwrap_or(unhealthy),
        healthy_edge_interval: at
            .duration("healthy_edge_interval", healthy_edge_interval)
            .unwrap_or(interval),
        log_failures: always_log_health_check_failures,
        log_successes: always_log_health_check_success,
        logs,
        bounds: (
            runtime.integer("health_check.min_interval").unwrap_or(0),
            runtime.integer("health_check.max_interval").unwrap_or(u64::MAX),
        ),
        alpn,
        transport_criteria: transport_socket_match_criteria.map(address::object),
        ignore_new_hosts: around.ignore_new_hosts,
        ignore_health_on_removal: around.ignore_health_on_removal,
    })
}

fn http(proto: core::health_check::HttpHealthCheck, verify: u64, at: &mut Lower) -> Option<HttpCheck> {
    let core::health_check::HttpHealthCheck {
        host,
        path,
        send,
        receive,
        response_buffer_size,
        request_headers_to_add,
        request_headers_to_remove,
        expected_statuses,
        retriable_statuses,
        codec_client_type,
        service_name_matcher,
        method,
    } = proto;
    let method = match at.value::<core::RequestMethod>("method", method)? {
        core::RequestMethod::MethodUnspecified => core::RequestMethod::Get,
        method => method,
    };
    let http2 = match at.value::<types::CodecClientType>("codec_client_type", codec_client_type)? {
        types::CodecClientType::Http1 => false,
        types::CodecClientType::Http2 => true,
        types::CodecClientType::Http3 => {
            at.unsupported("codec_client_type", true);
            return None;
        }
    };
    let bodiless = matches!(
        method,
        core::RequestMethod::Get
            | core::RequestMethod::Head
            | core::RequestMethod::Delete
            | core::RequestMethod::Trace
    );
    if send.is_some() && bodiless {
        at.error_at(
            "send",
            format!(
                "HTTP health check cannot specify a request payload with method '{}'. Only methods that support a request body (POST, PUT, PATCH, OPTIONS) can be used with payload.",
                method.as_str_name()
            ),
        );
    }
    let body = at.optional("send", send, payload).unwrap_or_default();
    let receive = at.each("receive", receive, payload);
    let buffer = response_buffer_size.unwrap_or(RESPONSE_BUFFER);
    let wanted: u64 = receive.iter().map(|bytes| bytes.len() as u64).sum();
    if buffer != 0 && wanted > buffer {
        at.error_at(
            "receive",
            format!("The expected response length '{wanted}' is over than http health response buffer size '{buffer}'"),
        );
    }
    let mut expected = statuses("expected", expected_statuses, at);
    if expected.is_empty() {
        expected.push((200, 201));
    }
    let retriable = statuses("retriable", retriable_statuses, at);
    let service = at.optional("service_name_matcher", service_name_matcher, matcher::string);
    let headers = mutation::lower("request", request_headers_to_add, request_headers_to_remove, at);
    let Ok(uri) = path.parse::<http::Uri>() else {
        at.unsupported("path that is no URI", true);
        return None;
    };
    at.unsupported("path without a slash at its beginning", !path.starts_with('/'));
    Some(HttpCheck {
        host: (!host.is_empty()).then(|| host.into()),
        path: uri,
        method: http::Method::from_bytes(method.as_str_name().as_bytes()).ok()?,
        http2,
        body,
        receive: receive.into_iter().filter(|bytes| !bytes.is_empty()).collect(),
        buffer,
        headers,
        expected,
        retriable,
        service: service.map(|matcher| (matcher, verify)),
    })
}

fn statuses(kind: &str, protos: Vec<types::Int64Range>, at: &mut Lower) -> Vec<(u16, u16)> {
    at.each(&format!("{kind}_statuses"), protos, |types::Int64Range { start, end }, at| {
        if start >= end {
            at.error(format!(
                "Invalid http {kind} status range: expecting start < end, but found start={start} and end={end}"
            ));
            return None;
        }
        if start < 100 {
            at.error(format!(
                "Invalid http {kind} status range: expecting start >= 100, but found start={start}"
            ));
            return None;
        }
        if end > 600 {
            at.error(format!(
                "Invalid http {kind} status range: expecting end <= 600, but found end={end}"
            ));
            return None;
        }
        Some((u16::try_from(start).ok()?, u16::try_from(end).ok()?))
    })
}

fn grpc(proto: core::health_check::GrpcHealthCheck, at: &mut Lower) -> GrpcCheck {
    let core::health_check::GrpcHealthCheck { service_name, authority, initial_metadata } = proto;
    GrpcCheck {
        service: service_name,
        authority: (!authority.is_empty()).then(|| authority.into()),
        headers: HeaderMutations::of(at.each("initial_metadata", initial_metadata, mutation::rule)),
    }
}

fn tcp(proto: core::health_check::TcpHealthCheck, at: &mut Lower) -> Option<TcpCheck> {
    let core::health_check::TcpHealthCheck { send, receive, proxy_protocol_config } = proto;
    // Deviation: Envoy does not send a payload given as `binary`; ours does.
    let send = at.optional("send", send, payload).unwrap_or_default();
    let receive = at.each("receive", receive, payload);
    let proxy_protocol = match proxy_protocol_config {
        None => None,
        Some(config) => at.field("proxy_protocol_config", |at| {
            let core::ProxyProtocolConfig { version, pass_through_tlvs, added_tlvs } = config;
            // There is no downstream connection whose TLVs could be passed on.
            let _ = pass_through_tlvs;
            at.unsupported("added_tlvs", !added_tlvs.is_empty());
            use core::proxy_protocol_config::Version;
            Some(match at.value::<Version>("version", version)? {
                Version::V1 => ProxyProtocol::V1,
                Version::V2 => ProxyProtocol::V2,
            })
        }),
    };
    let receive = receive.into_iter().filter(|bytes: &Bytes| !bytes.is_empty()).collect();
    Some(TcpCheck { send, receive, proxy_protocol })
}

/// Bytes, or text that is hexadecimal.
fn payload(proto: Payload, at: &mut Lower) -> Option<Bytes> {
    use core::health_check::payload::Payload as Kind;
    match proto.payload {
        Some(Kind::Binary(bytes)) => Some(bytes),
        Some(Kind::Text(text)) => match decode_hex(&text) {
            Some(bytes) => Some(bytes),
            None => {
                at.error_at("text", format!("invalid hex string '{text}'"));
                None
            }
        },
        None => Some(Bytes::new()),
    }
}

/// `None`: not hexadecimal, or empty.
fn decode_hex(text: &str) -> Option<Bytes> {
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => {
            let digit = |byte: &u8| (*byte as char).to_digit(16);
            u8::try_from(digit(high)? * 16 + digit(low)?).ok()
        }
        _ => None,
    });
    pairs.collect::<Option<Vec<u8>>>().filter(|bytes| !bytes.is_empty()).map(Bytes::from)
}

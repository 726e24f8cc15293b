//! Lowering of the access loggers that send to services.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::access_loggers::grpc::v3 as grpc;
use leno_api::proto::envoy::extensions::access_loggers::open_telemetry::v3 as open_telemetry;
use leno_api::proto::envoy::service::accesslog::v3 as als;
use leno_api::proto::opentelemetry::proto::common::v1 as common;
use leno_api::proto::opentelemetry::proto::resource::v1::Resource;
use prost::Message;
use tokio::sync::Notify;

use super::entry::{Shape, structure};
use super::otel::{Record, Template};
use super::{HTTP_LOGS, Sender, ServiceLog, TCP_LOGS, Target, What};
use crate::config::lower::Lower;
use crate::http::client::stream::Service;
use crate::telemetry::access_log::config::formatters;
use crate::telemetry::access_log::format::Format;
use crate::telemetry::collector::Collector;
use crate::telemetry::trace::wire::present;

/// Lowers HttpGrpcAccessLogConfig.
pub(crate) fn http_grpc(proto: grpc::HttpGrpcAccessLogConfig, at: &mut Lower) -> Option<ServiceLog> {
    let grpc::HttpGrpcAccessLogConfig {
        common_config,
        additional_request_headers_to_log,
        additional_response_headers_to_log,
        additional_response_trailers_to_log,
    } = proto;
    let lower = |names: Vec<String>| names.into_iter().map(|name| name.to_ascii_lowercase().into()).collect();
    let shape = Shape {
        tcp: false,
        objects: Vec::new(),
        request_headers: lower(additional_request_headers_to_log),
        response_headers: lower(additional_response_headers_to_log),
        response_trailers: lower(additional_response_trailers_to_log),
    };
    at.required("common_config", common_config, |common, at| entries(common, shape, at))
}

/// Lowers TcpGrpcAccessLogConfig.
pub(crate) fn tcp_grpc(proto: grpc::TcpGrpcAccessLogConfig, at: &mut Lower) -> Option<ServiceLog> {
    let grpc::TcpGrpcAccessLogConfig { common_config } = proto;
    let (request_headers, response_headers, response_trailers) = <(Vec<_>, Vec<_>, Vec<_>)>::default();
    let shape =
        Shape { tcp: true, objects: Vec::new(), request_headers, response_headers, response_trailers };
    at.required("common_config", common_config, |common, at| entries(common, shape, at))
}

/// What all loggers over gRPC have in common.
struct Common {
    log_name: String,
    service: Service,
    interval: Duration,
    limit: usize,
    objects: Vec<Box<str>>,
}

fn common(proto: grpc::CommonGrpcAccessLogConfig, at: &mut Lower) -> Option<Common> {
    let grpc::CommonGrpcAccessLogConfig {
        log_name,
        grpc_service: service,
        transport_api_version,
        buffer_flush_interval,
        buffer_size_bytes,
        filter_state_objects_to_log,
        grpc_stream_retry_policy,
        custom_tags,
    } = proto;
    if log_name.is_empty() {
        at.error_at("log_name", "value length must be at least 1 characters");
    }
    // There is no other version any more.
    at.value::<core::ApiVersion>("transport_api_version", transport_api_version)?;
    at.unsupported("custom_tags", !custom_tags.is_empty());
    at.unsupported("grpc_stream_retry_policy", grpc_stream_retry_policy.is_some());
    let interval = interval(buffer_flush_interval, at);
    const PATH: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";
    let service = at.required("grpc_service", service, |proto, at| Service::lower(proto, PATH, at))?;
    Some(Common {
        log_name,
        service,
        interval,
        limit: buffer_size_bytes.unwrap_or(16_384) as usize,
        objects: filter_state_objects_to_log.into_iter().map(Into::into).collect(),
    })
}

fn interval(proto: Option<prost_types::Duration>, at: &mut Lower) -> Duration {
    let interval = at.duration("buffer_flush_interval", proto);
    if interval.is_some_and(|interval| interval.is_zero()) {
        at.error_at("buffer_flush_interval", "value must be greater than 0s");
    }
    interval.unwrap_or(Duration::from_secs(1))
}

fn entries(proto: grpc::CommonGrpcAccessLogConfig, shape: Shape, at: &mut Lower) -> Option<ServiceLog> {
    let wire = proto.encode_to_vec();
    let Common { log_name, service, interval, limit, objects } = common(proto, at)?;
    let identifier = als::stream_access_logs_message::Identifier { node: Some(node(at)), log_name };
    let mut first = Vec::new();
    present(1, &identifier.encode_to_vec(), &mut first);
    let field = if shape.tcp { TCP_LOGS } else { HTTP_LOGS };
    let key = Key(at.scope().identity(), field, wire);
    let target = Target::Stream(service, field);
    let stats = "access_logs.grpc_access_log.".to_owned();
    let sender = shared(key, || sender(target, first, limit, interval, stats));
    Some(ServiceLog { what: What::Entry(Shape { objects, ..shape }), sender })
}

/// This proxy's node, as it is told to services.
pub(crate) fn node(at: &Lower) -> core::Node {
    let scope = at.scope();
    let locality = &scope.here.locality;
    core::Node {
        id: scope.node_id.to_string(),
        cluster: scope.node_cluster.to_string(),
        metadata: scope.node_metadata.as_object().map(structure),
        locality: Some(core::Locality {
            region: locality.region.to_string(),
            zone: locality.zone.to_string(),
            sub_zone: locality.sub_zone.to_string(),
        }),
        user_agent_name: "leno".to_owned(),
        ..core::Node::default()
    }
}

/// Lowers OpenTelemetryAccessLogConfig.
pub(crate) fn open_telemetry(
    proto: open_telemetry::OpenTelemetryAccessLogConfig,
    at: &mut Lower,
) -> Option<ServiceLog> {
    let wire = proto.encode_to_vec();
    let open_telemetry::OpenTelemetryAccessLogConfig {
        common_config,
        http_service,
        grpc_service,
        disable_builtin_labels,
        resource_attributes,
        resource_detectors,
        body,
        attributes,
        stat_prefix,
        formatters: formatter_protos,
        log_name,
        buffer_flush_interval,
        buffer_size_bytes,
        filter_state_objects_to_log,
        custom_tags,
    } = proto;
    formatters(formatter_protos, at);
    at.unsupported("resource_detectors", !resource_detectors.is_empty());
    at.unsupported("custom_tags", !custom_tags.is_empty());
    let ways = usize::from(common_config.as_ref().is_some_and(|common| common.grpc_service.is_some()))
        + usize::from(http_service.is_some())
        + usize::from(grpc_service.is_some());
    if ways != 1 {
        at.error("exactly one of grpc_service, http_service and common_config.grpc_service is required");
        return None;
    }
    let interval = interval(buffer_flush_interval, at);
    let limit = buffer_size_bytes.unwrap_or(16_384) as usize;
    let (common_name, common_service) = match common_config {
        Some(proto) => at.field("common_config", |at| name_and_service(proto, at)),
        None => (String::new(), None),
    };
    let log_name = if log_name.is_empty() { common_name } else { log_name };
    let collector = match (http_service, grpc_service, common_service) {
        (Some(http), _, _) => at.field("http_service", |at| Collector::http(http, at))?,
        (None, Some(grpc), _) => at.field("grpc_service", |at| Collector::grpc(grpc, at))?,
        (None, None, Some(grpc)) => at.field("common_config.grpc_service", |at| Collector::grpc(grpc, at))?,
        (None, None, None) => return None,
    };
    let target = Target::Export(collector);
    let mut resource = Vec::new();
    if !disable_builtin_labels {
        let scope = at.scope();
        let zone = &*scope.here.locality.zone;
        let labels = [
            ("log_name", log_name.as_str()),
            ("zone_name", zone),
            ("cluster_name", &*scope.node_cluster),
            ("node_name", &*scope.node_id),
        ];
        resource.extend(labels.map(|(key, value)| text_pair(key, value)));
    }
    resource.extend(resource_attributes.into_iter().flat_map(|list| list.values));
    let resource = Resource { attributes: resource, dropped_attributes_count: 0 };
    let mut first = Vec::new();
    present(1, &resource.encode_to_vec(), &mut first);
    let body = at.optional("body", body, template);
    let attributes = attributes.map(|list| at.field("attributes", |at| map(list, at)));
    let prefix = if stat_prefix.is_empty() { String::new() } else { format!("{stat_prefix}.") };
    let stats = format!("access_logs.open_telemetry_access_log.{prefix}");
    let key = Key(at.scope().identity(), 0, wire);
    let sender = shared(key, || sender(target, first, limit, interval, stats));
    let objects = filter_state_objects_to_log.into_iter().map(Into::into).collect();
    let record = Record { body, attributes: attributes.unwrap_or_default(), objects };
    Some(ServiceLog { what: What::Record(record), sender })
}

/// What a log of OpenTelemetry takes of `common_config`, which is deprecated there: its name and the
/// service, where the outer fields do not say so. As in Envoy, all else counts where it is said
/// outside only, of which the log warns.
fn name_and_service(
    proto: grpc::CommonGrpcAccessLogConfig,
    at: &mut Lower,
) -> (String, Option<core::GrpcService>) {
    let grpc::CommonGrpcAccessLogConfig {
        log_name,
        grpc_service,
        transport_api_version,
        buffer_flush_interval,
        buffer_size_bytes,
        filter_state_objects_to_log,
        grpc_stream_retry_policy,
        custom_tags,
    } = proto;
    if log_name.is_empty() {
        at.error_at("log_name", "value length must be at least 1 characters");
    }
    at.value::<core::ApiVersion>("transport_api_version", transport_api_version);
    // It must make sense all the same.
    interval(buffer_flush_interval, at);
    at.unsupported("grpc_stream_retry_policy", grpc_stream_retry_policy.is_some());
    let without_effect = [
        ("buffer_flush_interval", buffer_flush_interval.is_some()),
        ("buffer_size_bytes", buffer_size_bytes.is_some()),
        ("filter_state_objects_to_log", !filter_state_objects_to_log.is_empty()),
        ("custom_tags", !custom_tags.is_empty()),
    ];
    for (field, _) in without_effect.into_iter().filter(|(_, set)| *set) {
        tracing::warn!(
            target: "config",
            field,
            "an OpenTelemetry access log does not read this in common_config: say it beside it"
        );
    }
    (log_name, grpc_service)
}

fn text_pair(key: &str, value: &str) -> common::KeyValue {
    let value = common::AnyValue { value: Some(common::any_value::Value::StringValue(value.to_owned())) };
    common::KeyValue { key: key.to_owned(), value: Some(value), ..common::KeyValue::default() }
}

fn template(proto: common::AnyValue, at: &mut Lower) -> Option<Template> {
    use common::any_value::Value;
    Some(match proto.value {
        Some(Value::StringValue(text)) => match Format::parse(&text) {
            Ok(format) => Template::Format(format),
            Err(error) => {
                at.error_at("string_value", error);
                return None;
            }
        },
        Some(Value::ArrayValue(list)) => {
            Template::List(at.field("array_value", |at| at.each("values", list.values, template)))
        }
        Some(Value::KvlistValue(list)) => Template::Map(at.field("kvlist_value", |at| map(list, at))),
        _ => {
            at.error("Only string values, nested key value lists and array values are supported in OpenTelemetry access log format.");
            return None;
        }
    })
}

fn map(proto: common::KeyValueList, at: &mut Lower) -> Vec<(Box<str>, Template)> {
    at.each("values", proto.values, |pair, at| {
        let value = pair.value.unwrap_or_default();
        Some((pair.key.into(), at.field("value", |at| template(value, at))?))
    })
}

fn sender(target: Target, first: Vec<u8>, limit: usize, interval: Duration, stats: String) -> Sender {
    Sender {
        target,
        first: first.into(),
        limit,
        interval,
        stats: stats.into(),
        waiting: Mutex::default(),
        wake: Notify::new(),
        written: AtomicU64::new(0),
        dropped: AtomicU64::new(0),
        claimed: AtomicBool::new(false),
    }
}

/// Which proxy of this process, which kind of entries, which configuration.
#[derive(PartialEq, Eq, Hash)]
struct Key(usize, u32, Vec<u8>);

/// The sender of logs that are configured alike; it is made for the first of them.
fn shared(key: Key, make: impl FnOnce() -> Sender) -> Arc<Sender> {
    static SENDERS: LazyLock<Mutex<HashMap<Key, Weak<Sender>>>> = LazyLock::new(Mutex::default);
    let mut senders = SENDERS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(sender) = senders.get(&key).and_then(Weak::upgrade) {
        return sender;
    }
    senders.retain(|_, sender| sender.strong_count() > 0);
    let sender = Arc::new(make());
    senders.insert(key, Arc::downgrade(&sender));
    sender
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use leno_api::proto::opentelemetry::proto::logs::v1 as logs;
    use prost::Message as _;

    use super::super::What;
    use crate::config::lower::{Lower, Scope};

    fn lowered(config: &str) -> Result<String, String> {
        let proto =
            leno_api::decode_text(&format!("{{{config}}}"), "log").map_err(|errors| format!("{errors}"))?;
        let log = Lower::resource_in(Scope::default(), |at| super::open_telemetry(proto, at));
        let log = log.map_err(|error| error.to_string())?;
        let sender = &log.sender;
        let resource = logs::ResourceLogs::decode(&*sender.first).expect("a resource");
        let name = resource.resource.into_iter().flat_map(|resource| resource.attributes).next();
        let name =
            name.and_then(|name| name.value).map(|name| format!("{:?}", name.value)).unwrap_or_default();
        let What::Record(record) = &log.what else { panic!("no record") };
        Ok(format!("{name} {:?} {} {:?}", sender.interval, sender.limit, record.objects))
    }

    /// Which of the fields beside `common_config` and in it count, as in Envoy.
    #[test]
    fn the_outer_fields_of_open_telemetry_count() {
        let check = |config: &str, expected: Expect| {
            expected.assert_eq(&lowered(config).unwrap_or_else(|error| format!("refused: {error}")));
        };
        let service = "grpc_service: {envoy_grpc: {cluster_name: c}}";
        let common = format!(
            "common_config: {{log_name: inner, {service}, buffer_flush_interval: 7s, buffer_size_bytes: 7, \
             filter_state_objects_to_log: [inner]}}"
        );
        check(&common, expect![[r#"Some(StringValue("inner")) 1s 16384 []"#]]);
        check(
            &format!(
                "{common}, log_name: outer, buffer_flush_interval: 3s, buffer_size_bytes: 3, \
                 filter_state_objects_to_log: [outer]"
            ),
            expect![[r#"Some(StringValue("outer")) 3s 3 ["outer"]"#]],
        );
        check(
            &format!("common_config: {{log_name: inner}}, {service}, buffer_size_bytes: 3"),
            expect!["refused: log:1:2: common_config.grpc_service: value is required"],
        );
        check(
            &format!("{common}, {service}"),
            expect![
                "refused: exactly one of grpc_service, http_service and common_config.grpc_service is required"
            ],
        );
        check(
            &format!("common_config: {{log_name: inner, {service}, grpc_stream_retry_policy: {{}}}}"),
            expect!["refused: common_config.grpc_stream_retry_policy: not supported yet"],
        );
    }
}

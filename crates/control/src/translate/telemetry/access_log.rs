//! Access logs: of the providers that Telemetries and the mesh name, or as the mesh's older settings
//! say, in Istio's format if no other is given.

use leno_api::proto::envoy::extensions::access_loggers::file::v3 as file;
use leno_api::proto::envoy::extensions::access_loggers::filters::cel::v3 as cel;
use leno_api::proto::envoy::extensions::access_loggers::grpc::v3 as grpc;
use leno_api::proto::envoy::extensions::access_loggers::open_telemetry::v3 as otel;
use leno_api::proto::envoy::extensions::formatter::req_without_query::v3::ReqWithoutQuery;
use leno_api::proto::opentelemetry::proto::common::v1 as otlp;
use leno_derive::{Cx, Query};
use prost::{Message, Name};
use serde_json::{Map, Value as Json};

use super::observed;
use crate::model::mesh::provider::{
    ENVOY, ExtensionProvider, FileAccessLog, FileLogFormat, HttpAls, OtelAls,
};
use crate::model::mesh::{AccessLogEncoding, MeshConfig};
use crate::registry::Mesh;
use crate::registry::targets::Workload;
use crate::scope::sidecar::Sight;
use crate::scope::telemetry::{ObservedOf, Side};
use crate::translate::listener::filters::FilterScope;
use crate::translate::proto::{accesslog, core};
use crate::translate::provider;
use crate::translate::resource::{from_json, pack, text};
use accesslog::access_log_filter::FilterSpecifier;
use core::substitution_format_string::Format;

/// What Istio logs of each field, in the order of its text format; the name is that of the JSON
/// format. What stands between them is in [`text_format`].
const FIELDS: [(&str, &str); 23] = [
    ("start_time", "%START_TIME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
];

/// The last field, which ends the line.
const ROUTE_NAME: (&str, &str) = ("route_name", "%ROUTE_NAME%");

/// Fields that the text format puts in quotes.
const QUOTED: [&str; 6] = [
    "upstream_transport_failure_reason",
    "x_forwarded_for",
    "user_agent",
    "request_id",
    "authority",
    "upstream_host",
];

/// Where those write who name no file.
const STANDARD_OUTPUT: &str = "/dev/stdout";

/// Names of loggers, as Istio has them.
const FILE: &str = "envoy.access_loggers.file";
const HTTP_GRPC: &str = "envoy.access_loggers.http_grpc";
const TCP_GRPC: &str = "envoy.tcp_grpc_access_log";
const OPEN_TELEMETRY: &str = "envoy.access_loggers.open_telemetry";
const CEL: &str = "envoy.access_loggers.extension_filters.cel";

/// What the logs of a provider are called if it does not say.
const HTTP_LOG: &str = "http_envoy_accesslog";
const TCP_LOG: &str = "tcp_envoy_accesslog";
const LISTENER_LOG: &str = "listener_envoy_accesslog";
const OPEN_TELEMETRY_LOG: &str = "otel_envoy_accesslog";

/// The cluster of bootstraps that `enableEnvoyAccessLogService` sends logs to.
const SERVICE_CLUSTER: &str = "envoy_accesslog_service";

/// The objects of filters that services are told of, as they are called now and were before 1.24.
const PEERS: [&str; 2] = ["upstream_peer", "downstream_peer"];
const PEERS_BEFORE: [&str; 4] =
    ["wasm.upstream_peer", "wasm.upstream_peer_id", "wasm.downstream_peer", "wasm.downstream_peer_id"];

/// The operator that Envoy has in an extension.
const WITHOUT_QUERY: &str = "%REQ_WITHOUT_QUERY";

/// The loggers of a connection manager.
pub(crate) fn of_requests(cx: &Cx<'_>, scope: &FilterScope) -> Vec<accesslog::AccessLog> {
    cx.get::<Loggers>(&(observed(scope), scope.sight())).requests.clone()
}

/// The loggers of a chain that carries bytes.
pub(crate) fn of_connections(cx: &Cx<'_>, scope: &FilterScope) -> Vec<accesslog::AccessLog> {
    cx.get::<Loggers>(&(observed(scope), scope.sight())).connections.clone()
}

/// The loggers of a listener itself: connections that no chain takes are logged there alone.
pub(crate) fn of_listener(cx: &Cx<'_>, scope: &FilterScope) -> Vec<accesslog::AccessLog> {
    cx.get::<Loggers>(&(observed(scope), scope.sight())).listener.clone()
}

/// All loggers of one side of a workload.
#[derive(Clone, Debug, Default, PartialEq)]
struct Loggers {
    requests: Vec<accesslog::AccessLog>,
    connections: Vec<accesslog::AccessLog>,
    listener: Vec<accesslog::AccessLog>,
}

impl Query for Loggers {
    type Key = ((Workload, Side), Sight);
    type Value = Loggers;
    const NAME: &'static str = "loggers";

    fn derive(cx: &Cx<'_>, (key, sight): &((Workload, Side), Sight)) -> Loggers {
        let mesh = cx.get::<Mesh>(&());
        let observed = cx.get::<ObservedOf>(key);
        let wanted = observed.logs.iter().flatten().filter_map(|log| {
            let provider = mesh.provider(&log.provider)?;
            Some((log, of_provider(cx, &mesh, sight, &provider)?))
        });
        let mut wanted = wanted.peekable();
        // What cannot be used does not count, not even as something that is switched off.
        if wanted.peek().is_none() {
            return Loggers::by_settings(&mesh);
        }
        let mut loggers = Loggers::default();
        for (log, mut logger) in wanted.filter(|(log, _)| !log.disabled) {
            logger.filter = log.filter.as_deref().map(by_expression);
            loggers.requests.push(logger.clone());
            loggers.connections.push(logger.clone());
            loggers.listener.push(logger);
        }
        loggers.finish(&mesh)
    }
}

impl Loggers {
    /// Those that the mesh's older settings ask for.
    fn by_settings(mesh: &MeshConfig) -> Loggers {
        let mut loggers = Loggers::default();
        if !mesh.access_log_file.is_empty() {
            let logger = by_settings(&mesh.access_log_file, mesh);
            loggers.requests.push(logger.clone());
            loggers.connections.push(logger.clone());
            loggers.listener.push(logger);
        }
        if mesh.enable_envoy_access_log_service {
            let service = provider::grpc(SERVICE_CLUSTER, "");
            let objects: Vec<String> = owned(&PEERS).into_iter().chain(owned(&PEERS_BEFORE)).collect();
            let common = |name| common(name, service.clone(), objects.clone());
            loggers.requests.push(http_grpc(common(HTTP_LOG), &HttpAls::default()));
            loggers.connections.push(tcp_grpc(common(TCP_LOG)));
            loggers.listener.push(tcp_grpc(common(LISTENER_LOG)));
        }
        loggers.finish(mesh)
    }

    /// Restricts the listener's own to connections that no chain has taken.
    fn finish(mut self, mesh: &MeshConfig) -> Loggers {
        if mesh.disable_envoy_listener_log {
            self.listener.clear();
        }
        for logger in &mut self.listener {
            let unmatched = accesslog::ResponseFlagFilter { flags: vec!["NR".to_owned()] };
            let unmatched = filter(FilterSpecifier::ResponseFlagFilter(unmatched));
            logger.filter = Some(match logger.filter.take() {
                None => unmatched,
                Some(own) => {
                    filter(FilterSpecifier::AndFilter(accesslog::AndFilter { filters: vec![unmatched, own] }))
                }
            });
        }
        self
    }
}

/// The logger of a provider; `None` if it takes no logs, or cannot be used.
fn of_provider(
    cx: &Cx<'_>,
    mesh: &MeshConfig,
    sight: &Sight,
    provider: &ExtensionProvider,
) -> Option<accesslog::AccessLog> {
    if let Some(settings) = &provider.envoy_file_access_log {
        let plain = settings.log_format.is_none() && !settings.omit_empty_values;
        if provider.name == ENVOY && plain {
            // The one that Istio has anyway logs as the mesh's older settings say.
            return Some(by_settings(&settings.path, mesh));
        }
        return Some(to_file(settings));
    }
    let find = |service: &str, port| provider::find(cx, sight, service, port).ok();
    let objects = |given: &[String]| if given.is_empty() { owned(&PEERS) } else { given.to_vec() };
    if let Some(settings) = &provider.envoy_http_als {
        let service = find(&settings.service, settings.port)?.grpc();
        let name = or(&settings.log_name, HTTP_LOG);
        let objects = objects(&settings.filter_state_objects_to_log);
        return Some(http_grpc(common(name, service, objects), settings));
    }
    if let Some(settings) = &provider.envoy_tcp_als {
        let service = find(&settings.service, settings.port)?.grpc();
        let objects = objects(&settings.filter_state_objects_to_log);
        return Some(tcp_grpc(common(or(&settings.log_name, TCP_LOG), service, objects)));
    }
    let settings = provider.envoy_otel_als.as_ref()?;
    let service = find(&settings.service, settings.port)?.grpc();
    Some(open_telemetry(settings, service))
}

/// A file, in the format of the mesh's older settings.
fn by_settings(path: &str, mesh: &MeshConfig) -> accesslog::AccessLog {
    let format = match mesh.access_log_encoding {
        AccessLogEncoding::Text => text_line(&mesh.access_log_format),
        AccessLogEncoding::Json => {
            // Validated: a JSON object or nothing.
            let given = serde_json::from_str::<Map<String, Json>>(&mesh.access_log_format);
            json_line(given.ok().as_ref())
        }
    };
    file_log(path, format)
}

/// The file of a provider.
fn to_file(settings: &FileAccessLog) -> accesslog::AccessLog {
    let mut format = match &settings.log_format {
        None => text_line(""),
        Some(FileLogFormat { text: Some(text), .. }) => text_line(text),
        Some(FileLogFormat { labels, .. }) => json_line(labels.as_ref().filter(|labels| !labels.is_empty())),
    };
    format.omit_empty_values = settings.omit_empty_values;
    file_log(or(&settings.path, STANDARD_OUTPUT), format)
}

fn file_log(path: &str, format: core::SubstitutionFormatString) -> accesslog::AccessLog {
    let config = file::FileAccessLog {
        path: path.to_owned(),
        access_log_format: Some(file::file_access_log::AccessLogFormat::LogFormat(format)),
    };
    logger(FILE, &config)
}

/// Lines of text; Istio's if none are given.
fn text_line(given: &str) -> core::SubstitutionFormatString {
    let mut line = if given.is_empty() { text_format() } else { given.to_owned() };
    if !line.ends_with('\n') {
        line.push('\n');
    }
    core::SubstitutionFormatString {
        formatters: formatters([line.as_str()]),
        format: Some(Format::TextFormatSource(core::DataSource {
            specifier: Some(core::data_source::Specifier::InlineString(line)),
            ..core::DataSource::default()
        })),
        ..core::SubstitutionFormatString::default()
    }
}

/// Lines of JSON with these fields; with Istio's if none are given.
fn json_line(given: Option<&Map<String, Json>>) -> core::SubstitutionFormatString {
    let given_fields = given.map(|fields| {
        let fields = fields.iter().map(|(name, value)| (name.clone(), from_json(value))).collect();
        prost_types::Struct { fields }
    });
    let operators = given.into_iter().flat_map(Map::values).filter_map(Json::as_str);
    core::SubstitutionFormatString {
        formatters: formatters(operators),
        format: Some(Format::JsonFormat(given_fields.unwrap_or_else(json_format))),
        json_format_options: Some(core::JsonFormatOptions::default()),
        ..core::SubstitutionFormatString::default()
    }
}

/// The extensions that the operators of a format need.
fn formatters<'t>(texts: impl IntoIterator<Item = &'t str>) -> Vec<core::TypedExtensionConfig> {
    let wanted = texts.into_iter().any(|text| text.contains(WITHOUT_QUERY));
    let config = core::TypedExtensionConfig {
        name: "envoy.formatter.req_without_query".to_owned(),
        typed_config: Some(pack(&ReqWithoutQuery::default())),
    };
    wanted.then_some(config).into_iter().collect()
}

fn common(name: &str, service: core::GrpcService, objects: Vec<String>) -> grpc::CommonGrpcAccessLogConfig {
    grpc::CommonGrpcAccessLogConfig {
        log_name: name.to_owned(),
        grpc_service: Some(service),
        transport_api_version: core::ApiVersion::V3 as i32,
        filter_state_objects_to_log: objects,
        ..grpc::CommonGrpcAccessLogConfig::default()
    }
}

fn http_grpc(common: grpc::CommonGrpcAccessLogConfig, settings: &HttpAls) -> accesslog::AccessLog {
    let config = grpc::HttpGrpcAccessLogConfig {
        common_config: Some(common),
        additional_request_headers_to_log: settings.additional_request_headers_to_log.clone(),
        additional_response_headers_to_log: settings.additional_response_headers_to_log.clone(),
        additional_response_trailers_to_log: settings.additional_response_trailers_to_log.clone(),
    };
    logger(HTTP_GRPC, &config)
}

fn tcp_grpc(common: grpc::CommonGrpcAccessLogConfig) -> accesslog::AccessLog {
    logger(TCP_GRPC, &grpc::TcpGrpcAccessLogConfig { common_config: Some(common) })
}

fn open_telemetry(settings: &OtelAls, service: core::GrpcService) -> accesslog::AccessLog {
    let format = settings.log_format.clone().unwrap_or_default();
    let labels = format.labels.unwrap_or_default();
    let objects = owned(&PEERS).into_iter().chain(owned(&PEERS_BEFORE)).collect();
    let line = if format.text.is_empty() { text_format() + "\n" } else { format.text };
    let value =
        |text: &str| otlp::AnyValue { value: Some(otlp::any_value::Value::StringValue(text.to_owned())) };
    let attributes = labels.iter().map(|(name, text)| otlp::KeyValue {
        key: name.clone(),
        value: Some(value(text.as_str().unwrap_or_default())),
        ..otlp::KeyValue::default()
    });
    let texts = labels.values().filter_map(Json::as_str).chain([line.as_str()]);
    #[allow(deprecated)] // Istio's configuration, which people and patches read, has this field
    let config = otel::OpenTelemetryAccessLogConfig {
        common_config: Some(common(or(&settings.log_name, OPEN_TELEMETRY_LOG), service, objects)),
        disable_builtin_labels: true,
        body: Some(value(&line)),
        attributes: (!labels.is_empty()).then(|| otlp::KeyValueList { values: attributes.collect() }),
        formatters: formatters(texts),
        ..otel::OpenTelemetryAccessLogConfig::default()
    };
    logger(OPEN_TELEMETRY, &config)
}

fn logger<T: Message + Name>(name: &str, config: &T) -> accesslog::AccessLog {
    accesslog::AccessLog {
        name: name.to_owned(),
        config_type: Some(accesslog::access_log::ConfigType::TypedConfig(pack(config))),
        ..accesslog::AccessLog::default()
    }
}

fn filter(specifier: FilterSpecifier) -> accesslog::AccessLogFilter {
    accesslog::AccessLogFilter { filter_specifier: Some(specifier) }
}

/// Holds where a CEL expression does.
fn by_expression(expression: &str) -> accesslog::AccessLogFilter {
    let config =
        cel::ExpressionFilter { expression: expression.to_owned(), ..cel::ExpressionFilter::default() };
    filter(FilterSpecifier::ExtensionFilter(accesslog::ExtensionFilter {
        name: CEL.to_owned(),
        config_type: Some(accesslog::extension_filter::ConfigType::TypedConfig(pack(&config))),
    }))
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// A text, or another one if it is empty.
fn or<'t>(given: &'t str, default: &'t str) -> &'t str {
    if given.is_empty() { default } else { given }
}

fn text_format() -> String {
    let mut line = String::new();
    for (name, operator) in FIELDS.into_iter().chain([ROUTE_NAME]) {
        if !line.is_empty() {
            line.push(' ');
        }
        match name {
            "start_time" => line.push_str(&format!("[{operator}]")),
            "method" => line.push_str(&format!("\"{operator}")),
            "protocol" => line.push_str(&format!("{operator}\"")),
            _ if QUOTED.contains(&name) => line.push_str(&format!("\"{operator}\"")),
            _ => line.push_str(operator),
        }
    }
    line
}

fn json_format() -> prost_types::Struct {
    let fields = FIELDS.into_iter().chain([ROUTE_NAME]);
    prost_types::Struct { fields: fields.map(|(name, operator)| (name.to_owned(), text(operator))).collect() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn text_format_is_istios() {
        expect_test::expect![[r#"[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%"#]]
        .assert_eq(&super::text_format());
    }
}

//! The access log that the mesh's settings ask for, in Istio's format.

use leno_api::proto::envoy::extensions::access_loggers::file::v3 as file;

use crate::model::mesh::{AccessLogEncoding, MeshConfig};
use crate::translate::proto::{accesslog, core};
use crate::translate::resource::{from_json, pack, text};

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

/// The loggers of a listener itself: connections that no chain takes are logged there alone.
pub(super) fn listener_log(mesh: &MeshConfig) -> Vec<accesslog::AccessLog> {
    use accesslog::access_log_filter::FilterSpecifier;
    if mesh.disable_envoy_listener_log {
        return Vec::new();
    }
    let unmatched = accesslog::ResponseFlagFilter { flags: vec!["NR".to_owned()] };
    let filter =
        accesslog::AccessLogFilter { filter_specifier: Some(FilterSpecifier::ResponseFlagFilter(unmatched)) };
    let loggers = access_log(mesh).into_iter();
    loggers.map(|logger| accesslog::AccessLog { filter: Some(filter.clone()), ..logger }).collect()
}

/// The loggers of a proxy: one or none.
pub(super) fn access_log(mesh: &MeshConfig) -> Vec<accesslog::AccessLog> {
    use core::substitution_format_string::Format;
    if mesh.access_log_file.is_empty() {
        return Vec::new();
    }
    let format = match mesh.access_log_encoding {
        AccessLogEncoding::Text => {
            let line = if mesh.access_log_format.is_empty() {
                text_format()
            } else {
                mesh.access_log_format.clone()
            };
            let line = if line.ends_with('\n') { line } else { line + "\n" };
            Format::TextFormatSource(core::DataSource {
                specifier: Some(core::data_source::Specifier::InlineString(line)),
                ..core::DataSource::default()
            })
        }
        AccessLogEncoding::Json => Format::JsonFormat(json_format(&mesh.access_log_format)),
    };
    let config = file::FileAccessLog {
        path: mesh.access_log_file.clone(),
        access_log_format: Some(file::file_access_log::AccessLogFormat::LogFormat(
            core::SubstitutionFormatString {
                format: Some(format),
                ..core::SubstitutionFormatString::default()
            },
        )),
    };
    vec![accesslog::AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        config_type: Some(accesslog::access_log::ConfigType::TypedConfig(pack(&config))),
        ..accesslog::AccessLog::default()
    }]
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

fn json_format(given: &str) -> prost_types::Struct {
    // Validated: a JSON object or nothing.
    if let Ok(fields) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(given) {
        let fields = fields.iter().map(|(name, value)| (name.clone(), from_json(value))).collect();
        return prost_types::Struct { fields };
    }
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

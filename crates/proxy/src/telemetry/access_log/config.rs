//! Lowering of envoy.config.accesslog.v3.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::sync::Arc;

use leno_api::proto::envoy::config::accesslog::v3 as accesslog;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::access_loggers as loggers;
use leno_api::proto::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;

use crate::config::address::data_source;
use crate::config::lower::Lower;
use crate::http::route::config::fraction;
use crate::http::route::matcher;
use crate::matching::cel;
use crate::telemetry::access_log::format::Format;
use crate::telemetry::access_log::{
    AccessLog, Comparison, ComparisonOp, Filter, JsonTemplate, Lines, LogFormat, LogType, Output, Sink,
    service,
};
use crate::telemetry::stream_info::ResponseFlags;

/// Envoy's format where none is given.
const DEFAULT_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
     %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
     %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
     \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

impl AccessLog {
    /// Lowers one access log.
    pub(crate) fn lower(proto: accesslog::AccessLog, at: &mut Lower) -> Option<Arc<AccessLog>> {
        let accesslog::AccessLog { name, filter, config_type } = proto;
        let filter = match filter {
            Some(filter) => Some(at.field("filter", |at| lower_filter(filter, at))?),
            None => None,
        };
        let Some(accesslog::access_log::ConfigType::TypedConfig(any)) = config_type else {
            at.error_at("typed_config", format!("access log '{name}' must have a typed config"));
            return None;
        };
        let output = at.field("typed_config", |at| {
            let any = at.extension(any)?;
            let lines = |(sink, format): (Sink, LogFormat)| Output::Lines(Lines::new(format, sink));
            match leno_api::any::type_name(&any.type_url) {
                "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig" => {
                    service::config::http_grpc(at.unpack(&any)?, at).map(Output::Service)
                }
                "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig" => {
                    service::config::tcp_grpc(at.unpack(&any)?, at).map(Output::Service)
                }
                "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig" => {
                    service::config::open_telemetry(at.unpack(&any)?, at).map(Output::Service)
                }
                "envoy.extensions.access_loggers.file.v3.FileAccessLog" => {
                    file(at.unpack(&any)?, at).map(lines)
                }
                "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
                    let loggers::stream::v3::StdoutAccessLog { access_log_format } = at.unpack(&any)?;
                    let format = access_log_format.map(|format| match format {
                        loggers::stream::v3::stdout_access_log::AccessLogFormat::LogFormat(format) => format,
                    });
                    Some(lines((Sink::Stdout, log_format(format, at)?)))
                }
                "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
                    let loggers::stream::v3::StderrAccessLog { access_log_format } = at.unpack(&any)?;
                    let format = access_log_format.map(|format| match format {
                        loggers::stream::v3::stderr_access_log::AccessLogFormat::LogFormat(format) => format,
                    });
                    Some(lines((Sink::Stderr, log_format(format, at)?)))
                }
                _ => {
                    at.unsupported_extension(&name, &any.type_url);
                    None
                }
            }
        })?;
        Some(Arc::new(AccessLog { filter, output }))
    }
}

fn file(proto: loggers::file::v3::FileAccessLog, at: &mut Lower) -> Option<(Sink, LogFormat)> {
    let loggers::file::v3::FileAccessLog { path, access_log_format } = proto;
    use loggers::file::v3::file_access_log::AccessLogFormat;
    let format = match access_log_format {
        None => log_format(None, at)?,
        Some(AccessLogFormat::LogFormat(format)) => log_format(Some(format), at)?,
        Some(AccessLogFormat::Format(text)) => text_format("format", &text, false, at)?,
        Some(AccessLogFormat::JsonFormat(template)) => json_format("json_format", template, false, at)?,
        Some(AccessLogFormat::TypedJsonFormat(template)) => {
            json_format("typed_json_format", template, false, at)?
        }
    };
    Some((Sink::File(path.into()), format))
}

fn log_format(proto: Option<core::SubstitutionFormatString>, at: &mut Lower) -> Option<LogFormat> {
    match proto {
        Some(proto) => at.field("log_format", |at| substitution_format(proto, at)),
        None => text_format("log_format", DEFAULT_FORMAT, false, at),
    }
}

/// Lowers a SubstitutionFormatString.
pub(crate) fn substitution_format(
    proto: core::SubstitutionFormatString,
    at: &mut Lower,
) -> Option<LogFormat> {
    // The content type concerns local replies; sorted properties are how we always write them.
    let core::SubstitutionFormatString {
        omit_empty_values,
        content_type: _,
        formatters,
        json_format_options: _,
        format,
    } = proto;
    self::formatters(formatters, at);
    use core::substitution_format_string::Format as Proto;
    match format {
        Some(Proto::TextFormat(text)) => text_format("text_format", &text, omit_empty_values, at),
        Some(Proto::TextFormatSource(source)) => {
            let bytes = at.field("text_format_source", |at| data_source(source, at))?;
            match String::from_utf8(bytes.to_vec()) {
                Ok(text) => text_format("text_format_source", &text, omit_empty_values, at),
                Err(_) => {
                    at.error_at("text_format_source", "is not UTF-8");
                    None
                }
            }
        }
        Some(Proto::JsonFormat(template)) => json_format("json_format", template, omit_empty_values, at),
        None => {
            at.error("one of text_format, text_format_source and json_format is required");
            None
        }
    }
}

/// Lowers formatters.
// Deviation: their commands are known without them too (Envoy: `REQ_WITHOUT_QUERY` is not).
pub(crate) fn formatters(protos: Vec<core::TypedExtensionConfig>, at: &mut Lower) {
    const KNOWN: [&str; 3] = [
        "envoy.extensions.formatter.cel.v3.Cel",
        "envoy.extensions.formatter.metadata.v3.Metadata",
        "envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery",
    ];
    at.each("formatters", protos, |formatter, at| {
        let any = at.field("typed_config", |at| at.extension(formatter.typed_config.unwrap_or_default()))?;
        if !KNOWN.contains(&leno_api::any::type_name(&any.type_url)) {
            at.unsupported_extension(&formatter.name, &any.type_url);
        }
        None::<()>
    });
}

fn text_format(field: &str, text: &str, omit_empty: bool, at: &mut Lower) -> Option<LogFormat> {
    match Format::parse(text) {
        Ok(format) => Some(LogFormat::Text { format, omit_empty }),
        Err(error) => {
            at.error_at(field, error);
            None
        }
    }
}

fn json_format(
    field: &str,
    proto: prost_types::Struct,
    omit_empty: bool,
    at: &mut Lower,
) -> Option<LogFormat> {
    let template = at.field(field, |at| object(proto, at))?;
    Some(LogFormat::Json { template, omit_empty })
}

fn object(proto: prost_types::Struct, at: &mut Lower) -> Option<JsonTemplate> {
    let mut fields = Vec::new();
    for (key, value) in proto.fields {
        let value = at.field(&key, |at| template(value, at))?;
        fields.push((key.into_boxed_str(), value));
    }
    Some(JsonTemplate::Object(fields))
}

fn template(proto: prost_types::Value, at: &mut Lower) -> Option<JsonTemplate> {
    use prost_types::value::Kind;
    Some(match proto.kind {
        Some(Kind::StringValue(text)) => match Format::parse(&text) {
            Ok(format) => JsonTemplate::Format(format),
            Err(error) => {
                at.error(error);
                return None;
            }
        },
        Some(Kind::StructValue(fields)) => object(fields, at)?,
        Some(Kind::ListValue(list)) => {
            let mut items = Vec::new();
            for (index, item) in list.values.into_iter().enumerate() {
                items.push(at.field(&index.to_string(), |at| template(item, at))?);
            }
            JsonTemplate::List(items)
        }
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 && number.abs() < 9e15 => {
            JsonTemplate::Fixed((number as i64).into())
        }
        Some(Kind::NumberValue(number)) => JsonTemplate::Fixed(number.into()),
        Some(Kind::BoolValue(value)) => JsonTemplate::Fixed(value.into()),
        Some(Kind::NullValue(_)) | None => JsonTemplate::Fixed(serde_json::Value::Null),
    })
}

/// Lowers an AccessLogFilter.
pub(crate) fn lower_filter(proto: accesslog::AccessLogFilter, at: &mut Lower) -> Option<Filter> {
    use accesslog::access_log_filter::FilterSpecifier as Specifier;
    let Some(specifier) = proto.filter_specifier else {
        at.error("a filter is required");
        return None;
    };
    Some(match specifier {
        Specifier::StatusCodeFilter(accesslog::StatusCodeFilter { comparison: proto }) => {
            Filter::Status(at.field("status_code_filter", |at| at.required("comparison", proto, comparison))?)
        }
        Specifier::DurationFilter(accesslog::DurationFilter { comparison: proto }) => {
            Filter::Duration(at.field("duration_filter", |at| at.required("comparison", proto, comparison))?)
        }
        Specifier::NotHealthCheckFilter(accesslog::NotHealthCheckFilter {}) => Filter::NotHealthCheck,
        Specifier::TraceableFilter(accesslog::TraceableFilter {}) => Filter::Traceable,
        Specifier::RuntimeFilter(accesslog::RuntimeFilter {
            runtime_key,
            percent_sampled,
            use_independent_randomness,
        }) => {
            let configured = percent_sampled.map_or((0, 100), |percent| {
                at.field("runtime_filter.percent_sampled", |at| fraction(percent, at))
            });
            let (numerator, denominator) = at.scope().runtime.fraction(&runtime_key).unwrap_or(configured);
            Filter::Sampled { numerator, denominator, independent: use_independent_randomness }
        }
        Specifier::AndFilter(accesslog::AndFilter { filters }) => {
            Filter::And(at.field("and_filter", |at| at.each("filters", filters, lower_filter)))
        }
        Specifier::OrFilter(accesslog::OrFilter { filters }) => {
            Filter::Or(at.field("or_filter", |at| at.each("filters", filters, lower_filter)))
        }
        Specifier::HeaderFilter(accesslog::HeaderFilter { header }) => {
            Filter::Header(at.field("header_filter", |at| at.required("header", header, matcher::header))?)
        }
        Specifier::ResponseFlagFilter(accesslog::ResponseFlagFilter { flags }) => {
            let any = flags.is_empty();
            let mut set = ResponseFlags::default();
            at.field("response_flag_filter", |at| {
                at.each("flags", flags, |text, at| {
                    match ResponseFlags::ALL.iter().find(|(_, short, _)| *short == text) {
                        Some((flag, _, _)) => set.insert(*flag),
                        None => at.error(format!("unknown response flag '{text}'")),
                    }
                    None::<()>
                })
            });
            Filter::Flags((!any).then_some(set))
        }
        Specifier::GrpcStatusFilter(accesslog::GrpcStatusFilter { statuses, exclude }) => {
            Filter::GrpcStatus(statuses, exclude)
        }
        Specifier::ExtensionFilter(accesslog::ExtensionFilter { name, config_type }) => {
            let any = config_type.map(|accesslog::extension_filter::ConfigType::TypedConfig(any)| any);
            at.field("extension_filter.typed_config", |at| {
                let any = at.extension(any.unwrap_or_default())?;
                if !leno_api::any::is::<ExpressionFilter>(&any) {
                    at.unsupported_extension(&name, &any.type_url);
                    return None;
                }
                let ExpressionFilter { expression, cel_config } = at.unpack(&any)?;
                match cel::parse(&expression) {
                    Ok(proto) => {
                        let condition = at.field("expression", |at| cel::lower(proto, cel_config, at))?;
                        Some(Filter::Cel(Arc::new(condition)))
                    }
                    Err(error) => {
                        at.error_at("expression", format!("Not able to parse filter expression: {error}"));
                        None
                    }
                }
            })?
        }
        Specifier::MetadataFilter(_) => {
            at.unsupported("metadata_filter", true);
            return None;
        }
        Specifier::LogTypeFilter(accesslog::LogTypeFilter { types, exclude }) => {
            let types = at.field("log_type_filter", |at| {
                at.each("types", types, |number, at| {
                    let known = LogType::from_number(number);
                    if known.is_none() {
                        at.error("value must be one of the defined enum values");
                    }
                    known
                })
            });
            Filter::Types(types, exclude)
        }
    })
}

fn comparison(proto: accesslog::ComparisonFilter, at: &mut Lower) -> Option<Comparison> {
    let accesslog::ComparisonFilter { op, value } = proto;
    use accesslog::comparison_filter::Op;
    let op = match at.value::<Op>("op", op)? {
        Op::Eq => ComparisonOp::Equal,
        Op::Ge => ComparisonOp::AtLeast,
        Op::Le => ComparisonOp::AtMost,
        Op::Ne => ComparisonOp::NotEqual,
    };
    let core::RuntimeUInt32 { default_value, runtime_key } =
        at.required("value", value, |value, _| Some(value))?;
    let value = at.scope().runtime.integer(&runtime_key).unwrap_or(u64::from(default_value));
    Some(Comparison { op, value })
}

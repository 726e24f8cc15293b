//! Log records of OpenTelemetry (OTLP): bodies and attributes with format strings.

use std::time::SystemTime;

use bytes::Bytes;
use leno_api::proto::opentelemetry::proto::common::v1 as common;
use leno_api::proto::opentelemetry::proto::logs::v1 as logs;
use prost::Message;

use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::access_log::format::Format;

/// What a record looks like.
#[derive(Debug)]
pub(super) struct Record {
    /// `body`
    pub(super) body: Option<Template>,
    /// `attributes`
    pub(super) attributes: Vec<(Box<str>, Template)>,
    /// `filter_state_objects_to_log`: further attributes.
    pub(super) objects: Vec<Box<str>>,
}

/// A value with format strings in place of its texts.
#[derive(Debug)]
pub(super) enum Template {
    /// A text.
    Format(Format),
    /// A list.
    List(Vec<Template>),
    /// Values by key, in their order.
    Map(Vec<(Box<str>, Template)>),
}

impl Record {
    /// A record in wire form; with the request's span, if it has one.
    pub(super) fn encode(&self, cx: &FormatContext<'_>) -> Vec<u8> {
        let since = cx.info.start_time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let span = cx.info.trace.span.as_deref();
        let trace_id = span.map(|(span, _)| Bytes::copy_from_slice(&span.trace.to_be_bytes()));
        // Zipkin's spans do not say theirs, as in Envoy.
        let own = span.filter(|(_, wide)| *wide);
        let span_id = own.map(|(span, _)| Bytes::copy_from_slice(&span.span.to_be_bytes()));
        let mut attributes = pairs(&self.attributes, cx);
        attributes.extend(self.states(cx));
        let record = logs::LogRecord {
            time_unix_nano: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
            body: self.body.as_ref().map(|body| body.value(cx)),
            attributes,
            trace_id: trace_id.unwrap_or_default(),
            span_id: span_id.unwrap_or_default(),
            ..logs::LogRecord::default()
        };
        record.encode_to_vec()
    }

    /// The filter states that are asked for, of the request or else of its upstream connection, in
    /// JSON.
    fn states(&self, cx: &FormatContext<'_>) -> impl Iterator<Item = common::KeyValue> {
        let find = |key: &str| {
            let info = cx.info;
            let state = info.filter_state.get(key).or_else(|| info.upstream.filter_state.get(key))?;
            let text = match &state.typed {
                Some(typed) => typed.to_string(),
                None => serde_json::Value::from(&*state.text).to_string(),
            };
            let value = common::AnyValue { value: Some(common::any_value::Value::StringValue(text)) };
            Some(common::KeyValue { key: key.to_owned(), value: Some(value), ..common::KeyValue::default() })
        };
        self.objects.iter().filter_map(move |key| find(key))
    }
}

impl Template {
    fn value(&self, cx: &FormatContext<'_>) -> common::AnyValue {
        use common::any_value::Value;
        let value = match self {
            Template::Format(format) => {
                let mut text = Vec::new();
                format.format(cx, "-", &mut text);
                Value::StringValue(String::from_utf8_lossy(&text).into_owned())
            }
            Template::List(items) => Value::ArrayValue(common::ArrayValue {
                values: items.iter().map(|item| item.value(cx)).collect(),
            }),
            Template::Map(entries) => Value::KvlistValue(common::KeyValueList { values: pairs(entries, cx) }),
        };
        common::AnyValue { value: Some(value) }
    }
}

fn pairs(entries: &[(Box<str>, Template)], cx: &FormatContext<'_>) -> Vec<common::KeyValue> {
    let pairs = entries.iter().map(|(key, template)| common::KeyValue {
        key: key.to_string(),
        value: Some(template.value(cx)),
        ..common::KeyValue::default()
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use crate::telemetry::stream_info::FilterState;
    use crate::telemetry::trace::context::SpanContext;

    #[test]
    fn a_record_names_the_span_of_its_request() {
        let record = Record { body: None, attributes: Vec::new(), objects: Vec::new() };
        let mut info = fixtures::stream_info(fixtures::connection(([127, 0, 0, 1], 9).into()));
        let decoded = |info: &crate::telemetry::stream_info::StreamInfo| {
            let bytes = record.encode(&FormatContext::new(info));
            logs::LogRecord::decode(bytes.as_slice()).expect("a record")
        };
        assert!(decoded(&info).trace_id.is_empty() && decoded(&info).span_id.is_empty());
        let context = SpanContext { trace: 0xab, span: 0x0102, ..SpanContext::default() };
        let mut trace = vec![0; 16];
        trace[15] = 0xab;
        for (wide, span) in [(true, &[0, 0, 0, 0, 0, 0, 1, 2][..]), (false, &[])] {
            info.trace.span = Some(Box::new((context, wide)));
            // Identifiers of 64 bits are made as long as collectors want them.
            assert_eq!(decoded(&info).trace_id, trace);
            assert_eq!(*decoded(&info).span_id, *span);
        }
    }

    #[test]
    fn filter_states_are_attributes() {
        let objects = ["up", "state", "none"].map(Into::into).into();
        let record = Record { body: None, attributes: Vec::new(), objects };
        let mut info = fixtures::stream_info(fixtures::connection(([127, 0, 0, 1], 9).into()));
        let state = |text: &str, typed| FilterState { text: text.to_owned(), typed, peer: None };
        info.filter_state.insert("state", state("a \"text\"", None));
        info.upstream.filter_state.insert("up", state("", Some(serde_json::json!({"a": 1}))));
        let bytes = record.encode(&FormatContext::new(&info));
        let attributes = logs::LogRecord::decode(bytes.as_slice()).expect("a record").attributes;
        let attributes = attributes.into_iter().map(|pair| (pair.key, pair.value.and_then(|any| any.value)));
        let text = |text: &str| Some(common::any_value::Value::StringValue(text.to_owned()));
        let expected = [("up", text(r#"{"a":1}"#)), ("state", text(r#""a \"text\"""#))];
        assert_eq!(attributes.collect::<Vec<_>>(), expected.map(|(key, value)| (key.to_owned(), value)));
    }
}

//! What collectors are told, decoded.

use std::collections::BTreeMap;

use serde_json::Value;

/// A span, whoever is told of it.
#[derive(Debug)]
pub(crate) struct Span {
    pub(crate) trace: String,
    pub(crate) id: String,
    pub(crate) parent: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) tags: BTreeMap<String, String>,
    /// When it began.
    pub(crate) start: u64,
    /// What else is said: state, flags, status, events, whose endpoint.
    pub(crate) more: String,
}

/// A report in Zipkin's JSON.
pub(crate) fn zipkin(body: &[u8]) -> Vec<Span> {
    let mut spans: Vec<Value> = serde_json::from_slice(body).expect("a list");
    spans.iter_mut().for_each(Value::sort_all_objects);
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let spans = spans.iter().map(|span| {
        let events: Vec<String> = span["annotations"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|event| {
                assert!(event["timestamp"].is_u64(), "{event}");
                text(event, "value")
            })
            .collect();
        assert!(span["duration"].is_u64(), "{span}");
        let tags = span["tags"].as_object().expect("tags");
        let tags = tags.iter().map(|(name, value)| (name.clone(), value.as_str().expect("text").to_owned()));
        Span {
            trace: text(span, "traceId"),
            id: text(span, "id"),
            parent: text(span, "parentId"),
            kind: text(span, "kind"),
            name: text(span, "name"),
            tags: tags.collect(),
            start: span["timestamp"].as_u64().expect("a time"),
            more: format!("shared {} events {events:?} at {}", span["shared"], span["localEndpoint"]),
        }
    });
    spans.collect()
}

/// An ExportTraceServiceRequest: its spans, and whose they are.
pub(crate) fn otlp(body: &[u8]) -> (Vec<Span>, String) {
    let (mut spans, mut origin) = (Vec::new(), BTreeMap::new());
    for (_, of_resource) in fields(body) {
        for (number, value) in fields(of_resource.bytes()) {
            match number {
                1 => {
                    for (_, attribute) in fields(value.bytes()) {
                        let (name, value) = attribute_of(attribute.bytes());
                        // Each says in which language it is written, and which version it is.
                        let known = name == "telemetry.sdk.language" || name == "telemetry.sdk.version";
                        origin.insert(name, if known { String::new() } else { value });
                    }
                }
                2 => {
                    for (number, value) in fields(value.bytes()) {
                        match number {
                            1 => {
                                let scope = fields(value.bytes());
                                let name = scope.iter().find(|(number, _)| *number == 1);
                                let name = name.map(|(_, name)| name.text()).unwrap_or_default();
                                origin.insert("scope".to_owned(), format!("{name} {}", scope.len()));
                            }
                            2 => spans.push(span(value.bytes())),
                            other => panic!("field {other}"),
                        }
                    }
                }
                other => panic!("field {other}"),
            }
        }
    }
    (spans, format!("{origin:?}"))
}

fn span(body: &[u8]) -> Span {
    let mut span = Span {
        trace: String::new(),
        id: String::new(),
        parent: String::new(),
        kind: String::new(),
        name: String::new(),
        tags: BTreeMap::new(),
        start: 0,
        more: String::new(),
    };
    let (mut state, mut flags, mut status, mut end) = (String::new(), 0, "none".to_owned(), 0);
    let mut events = Vec::new();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    for (number, value) in fields(body) {
        match number {
            1 => span.trace = hex(value.bytes()),
            2 => span.id = hex(value.bytes()),
            3 => state = value.text(),
            4 => span.parent = hex(value.bytes()),
            5 => span.name = value.text(),
            6 => {
                span.kind = ["", "INTERNAL", "SERVER", "CLIENT"]
                    [usize::try_from(value.number()).expect("small")]
                .to_owned();
            }
            7 => span.start = value.number(),
            8 => end = value.number(),
            9 => {
                let (name, value) = attribute_of(value.bytes());
                assert!(span.tags.insert(name.clone(), value).is_none(), "{name} is there twice");
            }
            11 => {
                let event = fields(value.bytes());
                events.push(event.iter().find(|(number, _)| *number == 2).expect("a name").1.text());
            }
            15 => {
                let code = fields(value.bytes())
                    .iter()
                    .find(|(number, _)| *number == 3)
                    .map(|(_, code)| code.number());
                status = format!("{code:?}");
            }
            16 => flags = value.number(),
            other => panic!("field {other}"),
        }
    }
    assert!(span.start <= end, "{span:?} ends at {end}");
    span.more = format!("state {state:?} flags {flags:x} status {status} events {events:?}");
    span
}

fn attribute_of(body: &[u8]) -> (String, String) {
    let (mut name, mut text) = (String::new(), None);
    for (number, value) in fields(body) {
        match number {
            1 => name = value.text(),
            _ => text = fields(value.bytes()).first().map(|(_, value)| value.text()),
        }
    }
    (name, text.expect("a text"))
}

/// The value of a field.
#[derive(Debug)]
enum Field<'b> {
    Number(u64),
    Bytes(&'b [u8]),
}

impl<'b> Field<'b> {
    fn number(&self) -> u64 {
        let Field::Number(number) = self else { panic!("{self:?} is no number") };
        *number
    }

    fn bytes(&self) -> &'b [u8] {
        let Field::Bytes(bytes) = self else { panic!("{self:?} is no message") };
        bytes
    }

    fn text(&self) -> String {
        String::from_utf8(self.bytes().to_vec()).expect("UTF-8")
    }
}

/// The fields of a message on the wire.
fn fields(mut body: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut fields = Vec::new();
    while !body.is_empty() {
        let key = varint(&mut body);
        let value = match key & 7 {
            0 => Field::Number(varint(&mut body)),
            1 => Field::Number(u64::from_le_bytes(take(&mut body, 8).try_into().expect("eight bytes"))),
            2 => {
                let length = usize::try_from(varint(&mut body)).expect("a length");
                Field::Bytes(take(&mut body, length))
            }
            5 => Field::Number(u32::from_le_bytes(take(&mut body, 4).try_into().expect("four bytes")).into()),
            other => panic!("wire type {other}"),
        };
        fields.push((key >> 3, value));
    }
    fields
}

fn take<'b>(body: &mut &'b [u8], count: usize) -> &'b [u8] {
    let (taken, rest) = body.split_at(count);
    *body = rest;
    taken
}

fn varint(body: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..).step_by(7) {
        let byte = take(body, 1)[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    number
}

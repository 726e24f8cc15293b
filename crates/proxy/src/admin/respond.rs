//! Questions and answers of the admin interface: query parameters and response bodies.

use bytes::Bytes;
use serde_json::Value;

/// The parameters of a request, decoded, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads `a=1&b`; `+` is a space and `%41` an `A`, as in forms.
    pub(crate) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        });
        Self(pairs.collect())
    }

    /// The first value of a parameter; empty if it has none.
    pub(crate) fn find(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(candidate, _)| candidate == name).map(|(_, value)| value.as_str())
    }

    /// Whether a parameter is there, with or without a value.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// All parameters.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (first, escaped) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = tail;
            }
            (byte, _) => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    /// HTTP status.
    pub(crate) status: u16,
    /// `content-type`.
    pub(crate) content_type: &'static str,
    /// The body.
    pub(crate) body: Bytes,
}

impl Response {
    /// 200 with text.
    pub(crate) fn text(body: impl Into<Bytes>) -> Self {
        Self { status: 200, content_type: "text/plain; charset=UTF-8", body: body.into() }
    }

    /// 200 with JSON, indented as Envoy indents it.
    pub(crate) fn json(value: &Value) -> Self {
        let mut body = leno_api::encode::json_text(value);
        if !body.ends_with('\n') {
            body.push('\n');
        }
        Self::json_text(body)
    }

    /// 200 with JSON that is text already.
    pub(crate) fn json_text(body: impl Into<Bytes>) -> Self {
        Self { status: 200, content_type: "application/json", body: body.into() }
    }

    /// 200 with HTML.
    pub(crate) fn html(body: impl Into<Bytes>) -> Self {
        Self { status: 200, content_type: "text/html; charset=UTF-8", body: body.into() }
    }

    /// 400 with the reason.
    pub(crate) fn bad_request(reason: impl Into<Bytes>) -> Self {
        Self { status: 400, ..Self::text(reason) }
    }

    /// The main loop has ended: nobody can answer.
    pub(crate) fn gone() -> Self {
        Self { status: 503, ..Self::text("the server is shutting down\n") }
    }
}

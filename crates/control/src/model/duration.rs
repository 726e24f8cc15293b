//! Durations as Istio's YAML writes them: `5s`, `100ms`, `1h30m`; and times as Kubernetes does.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::jiff::Timestamp;
use leno_base::duration::parse_go;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// A span of time, never negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Span(pub(crate) Duration);

impl Span {
    /// The protobuf form.
    pub(crate) fn to_proto(self) -> prost_types::Duration {
        leno_api::duration::to_proto(self.0)
    }

    /// Reads Go's duration syntax, which includes that of protobuf's JSON; `None` if it is not that.
    pub(crate) fn parse(text: &str) -> Option<Span> {
        parse_go(text).ok().map(Span)
    }

    /// Whether it is zero.
    pub(crate) fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.0.as_secs_f64())
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        let text = String::deserialize(deserializer)?;
        Span::parse(&text)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is no duration such as 5s, 100ms or 1h30m")))
    }
}

#[cfg(test)]
impl schemars::JsonSchema for Span {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "format": "duration"})
    }
}

/// A time in seconds since the epoch; before it there is none.
pub(crate) fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// A time in whole seconds, as Kubernetes writes it.
pub(crate) fn rfc3339_seconds(time: SystemTime) -> String {
    Timestamp::try_from(time).map(|time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()).unwrap_or_default()
}

/// A time as Go writes it, with all that it has below a second.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    Timestamp::try_from(time).map(|time| time.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::Span;

    #[test]
    fn reads_go_durations() {
        let check = |text: &str, millis: Option<u64>| {
            let found = Span::parse(text).map(|span| u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX));
            assert_eq!(found, millis, "{text}");
        };
        check("5s", Some(5000));
        check("0.25s", Some(250));
        check("1h30m", Some(5_400_000));
        check("100ms", Some(100));
        check("0s", Some(0));
        check("0", Some(0));
        check("-1s", None);
        check("5", None);
        check("s", None);
        check("1d", None);
        check("", None);
        check("1e30h", None);
    }
}

//! `google.protobuf.Duration` to [`std::time::Duration`], with the range that protobuf allows.

use std::time::Duration;

/// Largest number of seconds that a protobuf Duration may have: about 10,000 years.
pub const MAX_SECONDS: i64 = 315_576_000_000;

/// Why a Duration cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Below zero, where only a span of time ahead makes sense.
    #[error("duration must not be negative")]
    Negative,
    /// More than [`MAX_SECONDS`], or nanoseconds outside 0..1e9 or of the other sign.
    #[error("duration is out of range")]
    OutOfRange,
}

/// Converts a duration that must not be negative; `None` stays `None`.
///
/// # Errors
/// If it is negative or outside the range of the protobuf type.
pub fn duration(value: Option<prost_types::Duration>) -> Result<Option<Duration>, DurationError> {
    let Some(prost_types::Duration { seconds, nanos }) = value else { return Ok(None) };
    if seconds.unsigned_abs() > MAX_SECONDS.unsigned_abs()
        || nanos.unsigned_abs() >= 1_000_000_000
        || (seconds > 0 && nanos < 0)
        || (seconds < 0 && nanos > 0)
    {
        return Err(DurationError::OutOfRange);
    }
    match (u64::try_from(seconds), u32::try_from(nanos)) {
        (Ok(seconds), Ok(nanos)) => Ok(Some(Duration::new(seconds, nanos))),
        _ => Err(DurationError::Negative),
    }
}

/// Converts to the protobuf type; what is beyond its range becomes its maximum.
pub fn to_proto(value: Duration) -> prost_types::Duration {
    match i64::try_from(value.as_secs()) {
        Ok(seconds) if seconds < MAX_SECONDS => {
            prost_types::Duration { seconds, nanos: i32::try_from(value.subsec_nanos()).unwrap_or(0) }
        }
        _ => prost_types::Duration { seconds: MAX_SECONDS, nanos: 0 },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{DurationError, MAX_SECONDS, duration, to_proto};

    #[test]
    fn ranges() {
        let of = |seconds, nanos| duration(Some(prost_types::Duration { seconds, nanos }));
        assert_eq!(duration(None), Ok(None));
        assert_eq!(of(1, 500), Ok(Some(Duration::new(1, 500))));
        assert_eq!(of(-1, 0), Err(DurationError::Negative));
        assert_eq!(of(0, -1), Err(DurationError::Negative));
        assert_eq!(of(1, -1), Err(DurationError::OutOfRange));
        assert_eq!(of(i64::MIN, 0), Err(DurationError::OutOfRange));
        assert_eq!(of(0, i32::MIN), Err(DurationError::OutOfRange));
        assert_eq!(of(MAX_SECONDS + 1, 0), Err(DurationError::OutOfRange));
        assert_eq!(to_proto(Duration::new(1, 500)), prost_types::Duration { seconds: 1, nanos: 500 });
        assert_eq!(to_proto(Duration::MAX).seconds, MAX_SECONDS);
    }
}

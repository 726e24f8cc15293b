//! Durations as people write them: Go's `1h5m` (Istio, Kubernetes) and the JSON form of
//! `google.protobuf.Duration`, `1.5s` (Envoy).

use std::time::Duration;

/// Why a text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// There is nothing to read.
    #[error("empty duration")]
    Empty,
    /// Neither a digit nor a point where a number must stand.
    #[error("{0:?} is not a duration: a number is missing")]
    Number(String),
    /// The number has no unit, or one that is not known.
    #[error("{0:?} is not a duration: expected {1} after the number")]
    Unit(String, &'static str),
    /// The value is below zero.
    #[error("{0:?}: a negative duration makes no sense here")]
    Negative(String),
    /// The value does not fit, or has digits below a nanosecond.
    #[error("{0:?} is out of range for a duration")]
    Range(String),
}

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// The largest `google.protobuf.Duration`, about 10,000 years, in seconds.
const PROTO_MAX_SECONDS: u64 = 315_576_000_000;

/// Go's units in nanoseconds. The longer of two that share a prefix comes first.
const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000), // U+00B5
    ("μs", 1_000), // U+03BC
    ("ms", 1_000_000),
    ("s", NANOS_PER_SECOND),
    ("m", 60 * NANOS_PER_SECOND),
    ("h", 3600 * NANOS_PER_SECOND),
];

/// Reads what Go's `time.ParseDuration` reads, apart from negative values: `10s`, `1h5m`,
/// `1.5h`, `300ms`, `0`.
pub fn parse_go(text: &str) -> Result<Duration, DurationError> {
    let unsigned = strip_sign(text)?;
    if unsigned == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = unsigned;
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (whole, fraction, behind) = split_number(rest, text)?;
        let unit = UNITS.iter().find(|(unit, _)| behind.starts_with(unit));
        let Some((unit, nanos)) = unit else {
            return Err(DurationError::Unit(text.to_owned(), "one of h, m, s, ms, us, ns"));
        };
        let range = || DurationError::Range(text.to_owned());
        let part = whole.checked_mul(*nanos).ok_or_else(range)?;
        let part = part.checked_add(scale_fraction(fraction, *nanos)).ok_or_else(range)?;
        total = total.checked_add(part).ok_or_else(range)?;
        rest = behind.get(unit.len()..).unwrap_or_default();
    }
    // Go counts in an i64 of nanoseconds, about 292 years.
    let nanos = i64::try_from(total).map_err(|_| DurationError::Range(text.to_owned()))?;
    Ok(Duration::from_nanos(nanos.unsigned_abs()))
}

/// Reads the JSON form of `google.protobuf.Duration`: seconds with up to nine decimals and `s`.
pub fn parse_proto(text: &str) -> Result<Duration, DurationError> {
    let unsigned = strip_sign(text)?;
    let (whole, fraction, unit) = split_number(unsigned, text)?;
    if unit != "s" {
        return Err(DurationError::Unit(text.to_owned(), "`s`"));
    }
    let range = || DurationError::Range(text.to_owned());
    let seconds = u64::try_from(whole).map_err(|_| range())?;
    if fraction.len() > 9 || seconds > PROTO_MAX_SECONDS {
        return Err(range());
    }
    Ok(Duration::new(seconds, u32::try_from(scale_fraction(fraction, NANOS_PER_SECOND)).unwrap_or(0)))
}

/// Writes a duration as Go prints it: `1h5m0s`, `1.5s`, `300ms`, `0s`.
pub fn format_go(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let (unit, size) = match nanos {
        0 => return "0s".to_owned(),
        1..1_000 => ("ns", 1),
        1_000..1_000_000 => ("µs", 1_000),
        1_000_000..NANOS_PER_SECOND => ("ms", 1_000_000),
        _ => ("s", NANOS_PER_SECOND),
    };
    if unit != "s" {
        return format!("{}{unit}", decimal(nanos, size));
    }
    let (hours, minutes) = (nanos / (3600 * size), nanos / (60 * size) % 60);
    let seconds = decimal(nanos % (60 * size), size);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// Writes the JSON form of `google.protobuf.Duration`: `10s`, `0.250s`, with 0, 3, 6 or 9
/// decimals.
pub fn format_proto(duration: Duration) -> String {
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    if nanos == 0 {
        format!("{seconds}s")
    } else if nanos % 1_000_000 == 0 {
        format!("{seconds}.{:03}s", nanos / 1_000_000)
    } else if nanos % 1_000 == 0 {
        format!("{seconds}.{:06}s", nanos / 1_000)
    } else {
        format!("{seconds}.{nanos:09}s")
    }
}

fn strip_sign(text: &str) -> Result<&str, DurationError> {
    if text.starts_with('-') {
        return Err(DurationError::Negative(text.to_owned()));
    }
    match text.strip_prefix('+').unwrap_or(text) {
        "" => Err(DurationError::Empty),
        unsigned => Ok(unsigned),
    }
}

/// Splits `12.5rest` into 12, the digits `5` and `rest`. One side of the point may be empty.
fn split_number<'t>(text: &'t str, all: &str) -> Result<(u128, &'t str, &'t str), DurationError> {
    let (whole, rest) = split_digits(text);
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(behind) => split_digits(behind),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(DurationError::Number(all.to_owned()));
    }
    // 30 digits are far beyond every limit, and safely inside of u128.
    if whole.len() > 30 {
        return Err(DurationError::Range(all.to_owned()));
    }
    Ok((whole.parse().unwrap_or(0), fraction, rest))
}

fn split_digits(text: &str) -> (&str, &str) {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

/// `0.<digits>` of a unit, in nanoseconds, rounded down as Go does.
fn scale_fraction(digits: &str, nanos: u128) -> u128 {
    let mut value: u128 = 0;
    let mut scale: u128 = 1;
    for digit in digits.bytes().take(18) {
        value = value * 10 + u128::from(digit - b'0');
        scale *= 10;
    }
    value * nanos / scale
}

/// `nanos / size` with as many decimals as needed and no trailing zeros.
fn decimal(nanos: u128, size: u128) -> String {
    let (whole, rest) = (nanos / size, nanos % size);
    if rest == 0 {
        return whole.to_string();
    }
    let width = size.ilog10() as usize;
    let fraction = format!("{rest:0width$}");
    format!("{whole}.{}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check_go(text: &str, expected: &Expect) {
        let shown = match parse_go(text) {
            Ok(duration) => format!("{duration:?} -> {}", format_go(duration)),
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&shown);
    }

    fn check_proto(text: &str, expected: &Expect) {
        let shown = match parse_proto(text) {
            Ok(duration) => format!("{duration:?} -> {}", format_proto(duration)),
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn go_durations() {
        check_go("10s", &expect!["10s -> 10s"]);
        check_go("1h5m", &expect!["3900s -> 1h5m0s"]);
        check_go("1.5h", &expect!["5400s -> 1h30m0s"]);
        check_go("300ms", &expect!["300ms -> 300ms"]);
        check_go(".5s", &expect!["500ms -> 500ms"]);
        check_go("1m0.25s", &expect!["60.25s -> 1m0.25s"]);
        check_go("1500us", &expect!["1.5ms -> 1.5ms"]);
        check_go("2µs", &expect!["2µs -> 2µs"]);
        check_go("7ns", &expect!["7ns -> 7ns"]);
        check_go("0", &expect!["0ns -> 0s"]);
        check_go("+3s", &expect!["3s -> 3s"]);
    }

    #[test]
    fn go_errors() {
        check_go("", &expect!["empty duration"]);
        check_go(
            "10",
            &expect![[r#""10" is not a duration: expected one of h, m, s, ms, us, ns after the number"#]],
        );
        check_go(
            "10d",
            &expect![[r#""10d" is not a duration: expected one of h, m, s, ms, us, ns after the number"#]],
        );
        check_go("s", &expect![[r#""s" is not a duration: a number is missing"#]]);
        check_go(".s", &expect![[r#"".s" is not a duration: a number is missing"#]]);
        check_go("-1s", &expect![[r#""-1s": a negative duration makes no sense here"#]]);
        check_go("9999999h", &expect![[r#""9999999h" is out of range for a duration"#]]);
        check_go(
            "1 s",
            &expect![[r#""1 s" is not a duration: expected one of h, m, s, ms, us, ns after the number"#]],
        );
    }

    #[test]
    fn proto_durations() {
        check_proto("1.5s", &expect!["1.5s -> 1.500s"]);
        check_proto("10s", &expect!["10s -> 10s"]);
        check_proto("0.000001s", &expect!["1µs -> 0.000001s"]);
        check_proto("0.000000001s", &expect!["1ns -> 0.000000001s"]);
        check_proto("315576000000s", &expect!["315576000000s -> 315576000000s"]);
        check_proto("315576000001s", &expect![[r#""315576000001s" is out of range for a duration"#]]);
        check_proto("0.0000000001s", &expect![[r#""0.0000000001s" is out of range for a duration"#]]);
        check_proto("5ms", &expect![[r#""5ms" is not a duration: expected `s` after the number"#]]);
        check_proto("-1s", &expect![[r#""-1s": a negative duration makes no sense here"#]]);
        check_proto("s", &expect![[r#""s" is not a duration: a number is missing"#]]);
    }

    #[test]
    fn what_is_written_reads_back() {
        let mut rng = crate::rng::Rng::new(11);
        for shift in 0..62 {
            let duration = Duration::from_nanos(rng.next_u64() >> (shift + 1));
            assert_eq!(parse_go(&format_go(duration)), Ok(duration));
            assert_eq!(parse_proto(&format_proto(duration)), Ok(duration));
        }
    }
}

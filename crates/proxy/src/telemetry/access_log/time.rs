//! Times in log lines: `%START_TIME(%Y-%m-%d ...)%`, strftime's letters and Envoy's fractions.
//!
//! All in UTC; a format is parsed once, so that an unknown letter is refused with the
//! configuration and not found in the log.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A parsed time format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TimeFormat(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    /// A letter of strftime.
    Letter(char),
    /// This many digits of the fraction of the second.
    Fraction(usize),
    /// Seconds with this many digits of fraction behind a point.
    Seconds(usize),
    /// Seconds with as many digits of fraction as are not zero.
    SecondsExact,
}

/// Letters of strftime that are understood, apart from `f` and `E`.
const LETTERS: &str = "YmdHMSeyjaAbBhTFDRIplkCsZztuwGVgcxXrUWN%";

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

impl TimeFormat {
    /// Envoy's default: `2024-01-31T12:34:56.789Z`.
    pub(crate) fn rfc3339_millis() -> Self {
        let text = |text: &str| Part::Text(text.into());
        Self(vec![Part::Letter('F'), text("T"), Part::Letter('T'), text("."), Part::Fraction(3), text("Z")])
    }

    /// `2024-01-31T12:34:56.789+00:00`, with as many digits as are not zero.
    pub(crate) fn rfc3339_exact() -> Self {
        let text = |text: &str| Part::Text(text.into());
        let minutes = [Part::Letter('F'), text("T"), Part::Letter('R'), text(":")];
        Self(minutes.into_iter().chain([Part::SecondsExact, text("+00:00")]).collect())
    }

    /// Parses a format.
    ///
    /// # Errors
    /// Letters that are not understood, and the one for a new line.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                plain.push(c);
                continue;
            }
            let part = match chars.next() {
                Some('f') => Part::Fraction(9),
                Some(digit @ '1'..='9') if chars.as_str().starts_with('f') => {
                    chars.next();
                    Part::Fraction(digit as usize - '0' as usize)
                }
                Some('E') => match (chars.next(), chars.next()) {
                    (Some('*'), Some('S')) => Part::SecondsExact,
                    (Some(digit @ '0'..='9'), Some('S')) => Part::Seconds(digit as usize - '0' as usize),
                    (Some('*'), Some('f')) => Part::Fraction(9),
                    (Some(digit @ '1'..='9'), Some('f')) => Part::Fraction(digit as usize - '0' as usize),
                    _ => return Err(format!("time format '{text}' is not supported")),
                },
                // What is written may become the value of a header. The words are Envoy's.
                Some('n') => {
                    return Err("Invalid header configuration. Format string contains newline.".to_owned());
                }
                Some(letter) if LETTERS.contains(letter) => Part::Letter(letter),
                Some(letter) => return Err(format!("time format '{text}': '%{letter}' is not supported")),
                None => return Err(format!("time format '{text}' ends in '%'")),
            };
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain).into()));
            }
            parts.push(part);
        }
        if !plain.is_empty() {
            parts.push(Part::Text(plain.into()));
        }
        Ok(Self(parts))
    }

    /// Writes a time.
    pub(crate) fn format(&self, time: SystemTime) -> String {
        let mut out = String::with_capacity(32);
        let civil = Civil::new(time);
        for part in &self.0 {
            // Writing to a String cannot fail.
            let _ = match part {
                Part::Text(text) => out.write_str(text),
                Part::Letter(letter) => civil.letter(*letter, &mut out),
                Part::Fraction(digits) => out.write_str(civil.fraction().get(..*digits).unwrap_or_default()),
                Part::Seconds(0) => write!(out, "{:02}", civil.second),
                Part::Seconds(digits) => {
                    write!(out, "{:02}.{}", civil.second, civil.fraction().get(..*digits).unwrap_or_default())
                }
                Part::SecondsExact => match civil.fraction().trim_end_matches('0') {
                    "" => write!(out, "{:02}", civil.second),
                    fraction => write!(out, "{:02}.{fraction}", civil.second),
                },
            };
        }
        out
    }
}

/// `2024-01-31T12:34:56.789Z`, as protobuf's JSON and Envoy's log lines have it.
pub(crate) fn rfc3339_millis(time: SystemTime) -> String {
    TimeFormat::rfc3339_millis().format(time)
}

/// A time by the proleptic Gregorian calendar, UTC.
struct Civil {
    /// Seconds since 1970.
    unix: i64,
    nanos: u32,
    year: i64,
    /// 1..=12
    month: u32,
    /// 1..=31
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
    /// 0..=365
    day_of_year: u32,
    /// Sunday is 0.
    weekday: u32,
}

impl Civil {
    fn new(time: SystemTime) -> Self {
        let (unix, nanos) = match time.duration_since(UNIX_EPOCH) {
            Ok(since) => (since.as_secs() as i64, since.subsec_nanos()),
            Err(before) => {
                let before: Duration = before.duration();
                match before.subsec_nanos() {
                    0 => (-(before.as_secs() as i64), 0),
                    nanos => (-(before.as_secs() as i64) - 1, 1_000_000_000 - nanos),
                }
            }
        };
        let days = unix.div_euclid(86_400);
        let rest = unix.rem_euclid(86_400) as u32;
        let (year, month, day) = civil_from_days(days);
        Self {
            unix,
            nanos,
            year,
            month,
            day,
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
            day_of_year: (days - days_from_civil(year, 1, 1)) as u32,
            weekday: (days + 4).rem_euclid(7) as u32,
        }
    }

    /// Nine digits.
    fn fraction(&self) -> String {
        format!("{:09}", self.nanos)
    }

    fn letter(&self, letter: char, out: &mut String) -> std::fmt::Result {
        let weekday = DAYS[self.weekday as usize % 7];
        let month = MONTHS[(self.month as usize - 1) % 12];
        let hour12 = (self.hour + 11) % 12 + 1;
        let (iso_year, iso_week) = self.iso_week();
        match letter {
            'Y' => write!(out, "{}", self.year),
            'C' => write!(out, "{:02}", self.year.div_euclid(100)),
            'y' => write!(out, "{:02}", self.year.rem_euclid(100)),
            'm' => write!(out, "{:02}", self.month),
            'd' => write!(out, "{:02}", self.day),
            'e' => write!(out, "{:2}", self.day),
            'j' => write!(out, "{:03}", self.day_of_year + 1),
            'H' => write!(out, "{:02}", self.hour),
            'k' => write!(out, "{:2}", self.hour),
            'I' => write!(out, "{hour12:02}"),
            'l' => write!(out, "{hour12:2}"),
            'M' => write!(out, "{:02}", self.minute),
            'S' => write!(out, "{:02}", self.second),
            'p' => out.write_str(if self.hour < 12 { "AM" } else { "PM" }),
            'a' => out.write_str(&weekday[..3]),
            'A' => out.write_str(weekday),
            'b' | 'h' => out.write_str(&month[..3]),
            'B' => out.write_str(month),
            'u' => write!(out, "{}", (self.weekday + 6) % 7 + 1),
            'w' => write!(out, "{}", self.weekday),
            'U' => write!(out, "{:02}", (self.day_of_year + 7 - self.weekday) / 7),
            'W' => write!(out, "{:02}", (self.day_of_year + 7 - (self.weekday + 6) % 7) / 7),
            'G' => write!(out, "{iso_year}"),
            'g' => write!(out, "{:02}", iso_year.rem_euclid(100)),
            'V' => write!(out, "{iso_week:02}"),
            'T' | 'X' => self.letters("H:M:S", out),
            'R' => self.letters("H:M", out),
            'r' => self.letters("I:M:S p", out),
            'F' => self.letters("Y-m-d", out),
            'D' | 'x' => self.letters("m/d/y", out),
            'c' => self.letters("a b e T Y", out),
            's' => write!(out, "{}", self.unix),
            'N' => write!(out, "{:09}", self.nanos),
            'z' => out.write_str("+0000"),
            'Z' => out.write_str("UTC"),
            't' => out.write_char('\t'),
            _ => out.write_char('%'),
        }
    }

    /// Letters with punctuation between them.
    fn letters(&self, format: &str, out: &mut String) -> std::fmt::Result {
        format.chars().try_for_each(|c| match c.is_ascii_alphabetic() {
            true => self.letter(c, out),
            false => out.write_char(c),
        })
    }

    /// Year and week of ISO 8601: weeks begin on Monday, week 1 has the year's first Thursday.
    fn iso_week(&self) -> (i64, i64) {
        let weekday = i64::from((self.weekday + 6) % 7);
        let thursday = days_from_civil(self.year, self.month, self.day) - weekday + 3;
        let (year, _, _) = civil_from_days(thursday);
        (year, (thursday - days_from_civil(year, 1, 1)) / 7 + 1)
    }
}

/// Days since 1970 to (year, month, day), counting years from March so that the leap day is
/// the last one.
fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = (of_year - (153 * month + 2) / 5 + 1) as u32;
    let month = if month < 10 { month + 3 } else { month - 9 } as u32;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The inverse of `civil_from_days`.
fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month = i64::from(if month > 2 { month - 3 } else { month + 9 });
    let of_year = (153 * month + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use expect_test::{Expect, expect};

    use super::TimeFormat;

    fn check(format: &str, millis: u64, expected: &Expect) {
        let time = UNIX_EPOCH + Duration::from_micros(millis * 1000 + 141);
        let shown = match TimeFormat::parse(format) {
            Ok(format) => format.format(time),
            Err(error) => error,
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn formats() {
        const MOMENT: u64 = 1_795_297_293_399;
        check("%Y/%m/%dT%H:%M:%S%z %3f %s", MOMENT, &expect!["2026/11/21T21:41:33+0000 399 1795297293"]);
        check(
            "%s.%6f|%f|%1f|%9f|%E4S|%E*S",
            MOMENT,
            &expect!["1795297293.399141|399141000|3|399141000|33.3991|33.399141"],
        );
        check(
            "%a %A %b %B %e %j %I %p %u %w %V %G %U %W",
            MOMENT,
            &expect!["Sat Saturday Nov November 21 325 09 PM 6 6 47 2026 46 46"],
        );
        check(
            "%F %T %D %R %r %c%%",
            951_782_400_000,
            &expect!["2000-02-29 00:00:00 02/29/00 00:00 12:00:00 AM Tue Feb 29 00:00:00 2000%"],
        );
        check("%G-W%V", 1_609_459_200_000, &expect!["2020-W53"]);
        check("%Q", 0, &expect!["time format '%Q': '%Q' is not supported"]);
        check("%F%n", 0, &expect!["Invalid header configuration. Format string contains newline."]);
        check("50%", 0, &expect!["time format '50%' ends in '%'"]);
        assert_eq!(super::rfc3339_millis(UNIX_EPOCH), "1970-01-01T00:00:00.000Z");
        assert_eq!(super::rfc3339_millis(UNIX_EPOCH - Duration::from_millis(1)), "1969-12-31T23:59:59.999Z");
    }
}

//! Formats of log lines: `application_log_config`, in spdlog's letters as Envoy has them.
//!
//! A format is parsed once, with the configuration; one of JSON is the text of its object. Loggers have the
//! names of components, which are targets here. Times are UTC's.

use std::fmt::Write as _;
use std::sync::OnceLock;
use std::time::SystemTime;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::telemetry::access_log::time::TimeFormat;

/// A parsed format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogFormat(Vec<(Part, Option<Pad>)>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Time(TimeFormat),
    /// The whole message (`%v`).
    Message,
    /// With its ends of lines escaped (`%_`).
    OneLine,
    /// As inside of a text in JSON (`%j`).
    Json,
    Level,
    /// Its first letter.
    Letter,
    /// The component (`%n`).
    Name,
    Thread,
    Process,
    /// The source's path (`%g`).
    Path,
    /// Its last part (`%s`).
    File,
    Line,
    /// Path and line (`%@`).
    Place,
}

/// How wide something is at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pad {
    width: usize,
    side: Side,
    /// Whether it is that wide at most, too.
    cuts: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Left,
    Right,
    Both,
}

/// What a line is about.
struct Said<'s> {
    time: SystemTime,
    level: Level,
    target: &'s str,
    file: &'s str,
    line: Option<u32>,
    message: &'s str,
}

impl LogFormat {
    /// Parses a text. A letter that is not known stands for itself, as with spdlog.
    ///
    /// # Errors
    /// Letters that are known and not supported.
    pub(crate) fn parse(text: &str) -> Result<LogFormat, String> {
        let mut parts: Vec<(Part, Option<Pad>)> = Vec::new();
        let mut rest = text.chars();
        let push_text = |parts: &mut Vec<(Part, Option<Pad>)>, more: &str| match parts.last_mut() {
            Some((Part::Text(text), None)) => text.push_str(more),
            _ => parts.push((Part::Text(more.to_owned()), None)),
        };
        while let Some(char) = rest.next() {
            if char != '%' {
                push_text(&mut parts, char.encode_utf8(&mut [0; 4]));
                continue;
            }
            let pad = pad(&mut rest);
            let Some(letter) = rest.next() else { break };
            let part = match letter {
                'v' => Part::Message,
                '_' => Part::OneLine,
                'j' => Part::Json,
                'l' => Part::Level,
                'L' => Part::Letter,
                'n' => Part::Name,
                't' => Part::Thread,
                'P' => Part::Process,
                'g' => Part::Path,
                's' => Part::File,
                '#' => Part::Line,
                '@' => Part::Place,
                // Where colours begin and end, which there are none of, and functions, which are not known.
                '^' | '$' => continue,
                '!' => Part::Text(String::new()),
                '%' => Part::Text("%".to_owned()),
                'c' | 'i' | 'o' | 'O' | 'u' => return Err(format!("'%{letter}' is not supported yet")),
                letter => match time(letter) {
                    Some(text) => Part::Time(TimeFormat::parse(text)?),
                    None => Part::Text(format!("%{letter}")),
                },
            };
            match (part, pad) {
                (Part::Text(text), None) => push_text(&mut parts, &text),
                (part, pad) => parts.push((part, pad)),
            }
        }
        Ok(LogFormat(parts))
    }

    /// Parses an object, whose text is the format.
    ///
    /// # Errors
    /// Letters that are not supported, and those of messages that are not escaped, in Envoy's words.
    pub(crate) fn parse_json(object: &serde_json::Value) -> Result<LogFormat, String> {
        let text = object.to_string();
        for letter in ["%v", "%_"] {
            if text.contains(letter) {
                let words = "setJsonLogFormat error: INVALID_ARGUMENT";
                return Err(format!("{words}: Usage of {letter} is unavailable for JSON log formats"));
            }
        }
        LogFormat::parse(&text)
    }

    fn write(&self, said: &Said<'_>, out: &mut impl std::fmt::Write) -> std::fmt::Result {
        for (part, pad) in &self.0 {
            let Some(pad) = pad else {
                part.write(said, out)?;
                continue;
            };
            let mut text = String::new();
            part.write(said, &mut text)?;
            pad.write(&text, out)?;
        }
        out.write_char('\n')
    }
}

impl Part {
    fn write(&self, said: &Said<'_>, out: &mut impl std::fmt::Write) -> std::fmt::Result {
        match self {
            Part::Text(text) => out.write_str(text),
            Part::Time(format) => out.write_str(&format.format(said.time)),
            Part::Message => out.write_str(said.message),
            Part::OneLine => out.write_str(&said.message.replace('\n', "\\n")),
            Part::Json => {
                let text = serde_json::Value::from(said.message).to_string();
                out.write_str(text.get(1..text.len().saturating_sub(1)).unwrap_or_default())
            }
            Part::Level => out.write_str(level(said.level)),
            Part::Letter => out.write_str(&level(said.level)[..1].to_ascii_uppercase()),
            Part::Name => out.write_str(said.target),
            Part::Thread => write!(out, "{}", rustix::thread::gettid().as_raw_nonzero()),
            Part::Process => write!(out, "{}", std::process::id()),
            Part::Path => out.write_str(said.file),
            Part::File => out.write_str(said.file.rsplit('/').next().unwrap_or_default()),
            Part::Line => said.line.map_or(Ok(()), |line| write!(out, "{line}")),
            Part::Place => said.line.map_or(Ok(()), |line| write!(out, "{}:{line}", said.file)),
        }
    }
}

impl Pad {
    fn write(self, text: &str, out: &mut impl std::fmt::Write) -> std::fmt::Result {
        let Pad { width, side, cuts } = self;
        let text = match text.char_indices().nth(width) {
            Some((at, _)) if cuts => text.get(..at).unwrap_or_default(),
            _ => text,
        };
        match side {
            Side::Left => write!(out, "{text:>width$}"),
            Side::Right => write!(out, "{text:<width$}"),
            Side::Both => write!(out, "{text:^width$}"),
        }
    }
}

/// `8`, `-8`, `=8`, with `!` behind it: what may be between a percent sign and its letter.
fn pad(rest: &mut std::str::Chars<'_>) -> Option<Pad> {
    const WIDEST: usize = 64;
    let mut ahead = rest.clone();
    let side = match ahead.clone().next()? {
        '-' => Side::Right,
        '=' => Side::Both,
        _ => Side::Left,
    };
    if side != Side::Left {
        ahead.next();
    }
    let digits: String = ahead.clone().take_while(char::is_ascii_digit).collect();
    let width: usize = digits.parse().ok()?;
    ahead.nth(digits.len() - 1);
    let cuts = ahead.clone().next() == Some('!') && ahead.clone().nth(1).is_some();
    if cuts {
        ahead.next();
    }
    *rest = ahead;
    Some(Pad { width: width.min(WIDEST), side, cuts })
}

/// What a letter of spdlog's is in those of strftime.
fn time(letter: char) -> Option<&'static str> {
    Some(match letter {
        'a' => "%a",
        'A' => "%A",
        'b' | 'h' => "%b",
        'B' => "%B",
        'C' => "%y",
        'd' => "%d",
        'D' | 'x' => "%m/%d/%y",
        'e' => "%3f",
        'E' => "%s",
        'f' => "%6f",
        'F' => "%9f",
        'H' => "%H",
        'I' => "%I",
        'm' => "%m",
        'M' => "%M",
        'p' => "%p",
        'r' => "%I:%M:%S %p",
        'R' => "%H:%M",
        'S' => "%S",
        'T' | 'X' => "%H:%M:%S",
        'Y' => "%Y",
        'z' => "+00:00",
        _ => return None,
    })
}

fn level(level: Level) -> &'static str {
    match level {
        Level::TRACE => "trace",
        Level::DEBUG => "debug",
        Level::INFO => "info",
        Level::WARN => "warning",
        Level::ERROR => "error",
    }
}

/// Lines in the format of the process, once there is one.
pub(super) struct Lines {
    usual: tracing_subscriber::fmt::format::Format,
}

/// There is one log in a process, and its first proxy says how it looks.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// From now on.
pub(crate) fn set(format: LogFormat) {
    let _ = FORMAT.set(format);
}

impl Lines {
    pub(super) fn new() -> Lines {
        Lines { usual: tracing_subscriber::fmt::format() }
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        cx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let Some(format) = FORMAT.get() else { return self.usual.format_event(cx, writer, event) };
        let mut message = String::new();
        // What it is part of comes first, as in the usual format.
        for span in cx.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            message.push_str(span.name());
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>().filter(|it| !it.is_empty()) {
                write!(message, "{{{fields}}}")?;
            }
            message.push_str(": ");
        }
        cx.field_format().format_fields(Writer::new(&mut message), event)?;
        let about = event.metadata();
        let said = Said {
            time: SystemTime::now(),
            level: *about.level(),
            target: about.target(),
            file: about.file().unwrap_or_default(),
            line: about.line(),
            message: &message,
        };
        format.write(&said, &mut writer)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use tracing::Level;

    use super::{LogFormat, Said};

    fn line(format: &LogFormat) -> String {
        let said = Said {
            time: UNIX_EPOCH + Duration::from_micros(1_795_380_275_395_001),
            level: Level::WARN,
            target: "config",
            file: "src/server.rs",
            line: Some(7),
            message: "a \"b\"\nc",
        };
        let mut out = String::new();
        format.write(&said, &mut out).expect("it is written");
        out
    }

    #[test]
    fn spdlogs_letters() {
        for (text, expected) in [
            // Istio's.
            (
                "%Y-%m-%dT%T.%fZ\t%l\tenvoy %n %g:%#\t%v",
                "2026-11-22T20:44:35.395001Z\twarning\tenvoy config src/server.rs:7\ta \"b\"\nc",
            ),
            (
                "%_|%E|%e|%D|%L|%s|%!|%@|%^%n%$",
                "a \"b\"\\nc|1795380275|395|11/22/26|W|server.rs||src/server.rs:7|config",
            ),
            ("%q %10l|%-10l|%=9l|%3!l|%%", "%q    warning|warning   | warning |war|%"),
            ("%j", "a \\\"b\\\"\\nc"),
            ("%I:%M %p %a %B 100%", "08:44 PM Sun November 100"),
        ] {
            let format = LogFormat::parse(text).expect(text);
            assert_eq!(line(&format), format!("{expected}\n"), "{text}");
        }
        assert!(
            line(&LogFormat::parse("%P %t").expect("known"))
                .trim()
                .split(' ')
                .all(|id| id.parse::<u32>().is_ok())
        );
        assert_eq!(LogFormat::parse("%o"), Err("'%o' is not supported yet".to_owned()));
    }

    #[test]
    fn json() {
        let object = serde_json::json!({ "time": "%Y-%m-%dT%T.%fZ", "level": "%l", "msg": "%j", "n": 7 });
        let line = line(&LogFormat::parse_json(&object).expect("fine"));
        let read: serde_json::Value = serde_json::from_str(&line).expect("it is JSON");
        let expected = serde_json::json!({
            "time": "2026-11-22T20:44:35.395001Z",
            "level": "warning",
            "msg": "a \"b\"\nc",
            "n": 7,
        });
        assert_eq!(read, expected);
        let error = LogFormat::parse_json(&serde_json::json!({ "m": "%v" })).expect_err("not escaped");
        assert!(error.contains("Usage of %v is unavailable for JSON log formats"), "{error}");
    }
}

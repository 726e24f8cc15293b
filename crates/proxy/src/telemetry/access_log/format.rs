//! Envoy's substitution format strings, parsed: `%COMMAND(ARGUMENT):LENGTH%` between plain text.
//! Access logs, header values and response bodies are written with them.
//!
//! Parsing knows which commands there are and which take an argument; what a command yields
//! for a stream is in `command`.

use std::fmt;

use crate::telemetry::access_log::command::{FormatContext, Operator, resolve};

/// A parsed format string.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Format(pub(crate) Vec<Piece>);

/// A piece of a format string.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Piece {
    /// Plain text.
    Text(Box<str>),
    /// What a command yields.
    Command(Command),
}

/// A command, e.g. `%REQ(X-FOO?:PATH):10%`.
#[derive(Clone)]
pub(crate) struct Command {
    /// Its name as in [`COMMANDS`].
    pub(crate) name: &'static str,
    /// What is in parentheses, if there are any.
    pub(crate) argument: Option<Box<str>>,
    /// At most so many bytes of the value.
    pub(crate) max_length: Option<usize>,
    /// What computes it; follows from name and argument.
    pub(crate) operator: Operator,
}

impl PartialEq for Command {
    fn eq(&self, other: &Self) -> bool {
        (self.name, &self.argument, self.max_length) == (other.name, &other.argument, other.max_length)
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.name)?;
        if let Some(argument) = &self.argument {
            write!(f, "({argument})")?;
        }
        if let Some(length) = self.max_length {
            write!(f, ":{length}")?;
        }
        f.write_str("%")
    }
}

/// Whether a command takes an argument in parentheses, and whether a length may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Nothing,
    /// Neither argument nor length are read, but a length is allowed.
    Length,
    Optional,
    Required,
}

/// All commands of Envoy that this proxy knows, in alphabetic order.
const COMMANDS: &[(&str, Takes)] = &[
    ("ACCESS_LOG_TYPE", Takes::Nothing),
    ("BYTES_RECEIVED", Takes::Nothing),
    ("BYTES_RETRANSMITTED", Takes::Nothing),
    ("BYTES_SENT", Takes::Nothing),
    ("CEL", Takes::Required),
    ("CLUSTER_METADATA", Takes::Required),
    ("COMMON_DURATION", Takes::Required),
    ("CONNECTION_ID", Takes::Nothing),
    ("CONNECTION_TERMINATION_DETAILS", Takes::Nothing),
    ("CUSTOM_FLAGS", Takes::Nothing),
    ("DOWNSTREAM_DETECTED_CLOSE_TYPE", Takes::Nothing),
    ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS", Takes::Nothing),
    ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT", Takes::Nothing),
    ("DOWNSTREAM_DIRECT_LOCAL_PORT", Takes::Nothing),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", Takes::Nothing),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", Takes::Nothing),
    ("DOWNSTREAM_DIRECT_REMOTE_PORT", Takes::Nothing),
    ("DOWNSTREAM_HEADER_BYTES_RECEIVED", Takes::Nothing),
    ("DOWNSTREAM_HEADER_BYTES_SENT", Takes::Nothing),
    ("DOWNSTREAM_LOCAL_ADDRESS", Takes::Nothing),
    ("DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID", Takes::Nothing),
    ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", Takes::Nothing),
    ("DOWNSTREAM_LOCAL_CLOSE_REASON", Takes::Nothing),
    ("DOWNSTREAM_LOCAL_DNS_SAN", Takes::Nothing),
    ("DOWNSTREAM_LOCAL_PORT", Takes::Nothing),
    ("DOWNSTREAM_LOCAL_SUBJECT", Takes::Nothing),
    ("DOWNSTREAM_LOCAL_URI_SAN", Takes::Nothing),
    ("DOWNSTREAM_PEER_CERT", Takes::Nothing),
    ("DOWNSTREAM_PEER_CERT_V_END", Takes::Optional),
    ("DOWNSTREAM_PEER_CERT_V_START", Takes::Optional),
    ("DOWNSTREAM_PEER_FINGERPRINT_1", Takes::Nothing),
    ("DOWNSTREAM_PEER_FINGERPRINT_256", Takes::Nothing),
    ("DOWNSTREAM_PEER_ISSUER", Takes::Nothing),
    ("DOWNSTREAM_PEER_SERIAL", Takes::Nothing),
    ("DOWNSTREAM_PEER_SUBJECT", Takes::Nothing),
    ("DOWNSTREAM_PEER_URI_SAN", Takes::Nothing),
    ("DOWNSTREAM_PEER_DNS_SAN", Takes::Nothing),
    ("DOWNSTREAM_LOCAL_EMAIL_SAN", Takes::Nothing),
    ("DOWNSTREAM_LOCAL_IP_SAN", Takes::Nothing),
    ("DOWNSTREAM_LOCAL_OTHERNAME_SAN", Takes::Nothing),
    ("DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1", Takes::Nothing),
    ("DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256", Takes::Nothing),
    ("DOWNSTREAM_PEER_CHAIN_SERIALS", Takes::Nothing),
    ("DOWNSTREAM_PEER_EMAIL_SAN", Takes::Nothing),
    ("DOWNSTREAM_PEER_IP_SAN", Takes::Nothing),
    ("DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256", Takes::Nothing),
    ("DOWNSTREAM_PEER_ISSUER_SERIAL", Takes::Nothing),
    ("DOWNSTREAM_PEER_OTHERNAME_SAN", Takes::Nothing),
    ("DOWNSTREAM_TLS_GROUP", Takes::Nothing),
    ("UPSTREAM_LOCAL_DNS_SAN", Takes::Nothing),
    ("UPSTREAM_LOCAL_IP_SAN", Takes::Nothing),
    ("UPSTREAM_LOCAL_URI_SAN", Takes::Nothing),
    ("UPSTREAM_PEER_DNS_SAN", Takes::Nothing),
    ("UPSTREAM_PEER_IP_SAN", Takes::Nothing),
    ("UPSTREAM_TLS_GROUP", Takes::Nothing),
    ("UPSTREAM_PEER_CERT_V_END", Takes::Optional),
    ("UPSTREAM_PEER_CERT_V_START", Takes::Optional),
    ("DOWNSTREAM_REMOTE_ADDRESS", Takes::Nothing),
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Takes::Nothing),
    ("DOWNSTREAM_REMOTE_PORT", Takes::Nothing),
    ("DOWNSTREAM_TLS_CIPHER", Takes::Nothing),
    ("DOWNSTREAM_TLS_SESSION_ID", Takes::Nothing),
    ("DOWNSTREAM_TLS_VERSION", Takes::Nothing),
    ("DOWNSTREAM_TRANSPORT_FAILURE_REASON", Takes::Nothing),
    ("DOWNSTREAM_WIRE_BYTES_RECEIVED", Takes::Nothing),
    ("DOWNSTREAM_WIRE_BYTES_SENT", Takes::Nothing),
    ("DURATION", Takes::Nothing),
    ("DYNAMIC_METADATA", Takes::Required),
    ("EMIT_TIME", Takes::Optional),
    ("ENVIRONMENT", Takes::Required),
    ("FILTER_CHAIN_NAME", Takes::Nothing),
    ("FILTER_STATE", Takes::Required),
    ("GRPC_STATUS", Takes::Optional),
    ("GRPC_STATUS_NUMBER", Takes::Nothing),
    ("HOSTNAME", Takes::Length),
    ("LOCAL_REPLY_BODY", Takes::Nothing),
    ("METADATA", Takes::Required),
    ("PATH", Takes::Optional),
    ("PROTOCOL", Takes::Nothing),
    ("QUERY_PARAM", Takes::Required),
    ("QUERY_PARAMS", Takes::Optional),
    ("REQ", Takes::Required),
    ("REQUESTED_SERVER_NAME", Takes::Optional),
    ("REQ_WITHOUT_QUERY", Takes::Required),
    ("REQUEST_DURATION", Takes::Nothing),
    ("REQUEST_HEADERS_BYTES", Takes::Nothing),
    ("REQUEST_TX_DURATION", Takes::Nothing),
    ("RESP", Takes::Required),
    ("RESPONSE_CODE", Takes::Nothing),
    ("RESPONSE_CODE_DETAILS", Takes::Optional),
    ("RESPONSE_DURATION", Takes::Nothing),
    ("RESPONSE_FLAGS", Takes::Nothing),
    ("RESPONSE_FLAGS_LONG", Takes::Nothing),
    ("RESPONSE_HEADERS_BYTES", Takes::Nothing),
    ("RESPONSE_TRAILERS_BYTES", Takes::Nothing),
    ("RESPONSE_TX_DURATION", Takes::Nothing),
    ("ROUNDTRIP_DURATION", Takes::Nothing),
    ("ROUTE_NAME", Takes::Nothing),
    ("SPAN_ID", Takes::Nothing),
    ("START_TIME", Takes::Optional),
    ("START_TIME_LOCAL", Takes::Optional),
    ("STREAM_ID", Takes::Nothing),
    ("TRACE_ID", Takes::Nothing),
    ("TRAILER", Takes::Required),
    ("UNIQUE_ID", Takes::Nothing),
    ("UPSTREAM_CLUSTER", Takes::Nothing),
    ("UPSTREAM_CLUSTER_RAW", Takes::Nothing),
    ("UPSTREAM_CONNECTION_ID", Takes::Nothing),
    ("UPSTREAM_CONNECTION_POOL_READY_DURATION", Takes::Nothing),
    ("UPSTREAM_DETECTED_CLOSE_TYPE", Takes::Nothing),
    ("UPSTREAM_FILTER_STATE", Takes::Required),
    ("UPSTREAM_HEADER_BYTES_RECEIVED", Takes::Nothing),
    ("UPSTREAM_HEADER_BYTES_SENT", Takes::Nothing),
    ("UPSTREAM_HOST", Takes::Nothing),
    ("UPSTREAM_HOSTS_ATTEMPTED", Takes::Nothing),
    ("UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT", Takes::Nothing),
    ("UPSTREAM_HOST_NAME", Takes::Nothing),
    ("UPSTREAM_HOST_NAME_WITHOUT_PORT", Takes::Nothing),
    ("UPSTREAM_LOCAL_ADDRESS", Takes::Nothing),
    ("UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", Takes::Nothing),
    ("UPSTREAM_LOCAL_CLOSE_REASON", Takes::Nothing),
    ("UPSTREAM_LOCAL_PORT", Takes::Nothing),
    ("UPSTREAM_METADATA", Takes::Required),
    ("UPSTREAM_PEER_CERT", Takes::Nothing),
    ("UPSTREAM_PEER_ISSUER", Takes::Nothing),
    ("UPSTREAM_PEER_SUBJECT", Takes::Nothing),
    ("UPSTREAM_PEER_URI_SAN", Takes::Nothing),
    ("UPSTREAM_PROTOCOL", Takes::Nothing),
    ("UPSTREAM_REMOTE_ADDRESS", Takes::Nothing),
    ("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Takes::Nothing),
    ("UPSTREAM_REMOTE_PORT", Takes::Nothing),
    ("UPSTREAM_REQUEST_ATTEMPT_COUNT", Takes::Nothing),
    ("UPSTREAM_TLS_CIPHER", Takes::Nothing),
    ("UPSTREAM_TLS_SESSION_ID", Takes::Nothing),
    ("UPSTREAM_TLS_VERSION", Takes::Nothing),
    ("UPSTREAM_TRANSPORT_FAILURE_REASON", Takes::Nothing),
    ("UPSTREAM_WIRE_BYTES_RECEIVED", Takes::Nothing),
    ("UPSTREAM_WIRE_BYTES_SENT", Takes::Nothing),
    ("VIRTUAL_CLUSTER_NAME", Takes::Nothing),
];

/// Names that Envoy has for the same command.
const ALIASES: &[(&str, &str)] =
    &[("REQUEST_HEADER", "REQ"), ("RESPONSE_HEADER", "RESP"), ("RESPONSE_TRAILER", "TRAILER")];

impl Format {
    /// Parses a format string; `%%` is a percent sign.
    ///
    /// # Errors
    /// Unknown commands, missing or excessive arguments, a percent sign that nothing closes.
    pub(crate) fn parse(text: &str) -> Result<Format, String> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(start) = rest.find('%') {
            plain.push_str(&rest[..start]);
            rest = &rest[start + 1..];
            if let Some(behind) = rest.strip_prefix('%') {
                plain.push('%');
                rest = behind;
                continue;
            }
            let (command, behind) = command(rest, text)?;
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain).into()));
            }
            pieces.push(Piece::Command(command));
            rest = behind;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain.into()));
        }
        Ok(Format(pieces))
    }

    /// Appends the text for a stream; what is absent is `absent`.
    pub(crate) fn format(&self, cx: &FormatContext<'_>, absent: &str, out: &mut Vec<u8>) {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Command(command) => {
                    if !command.operator.value(cx).append(command.max_length, out) {
                        out.extend_from_slice(absent.as_bytes());
                    }
                }
            }
        }
    }
}

/// Parses a command behind its opening percent sign.
fn command<'t>(text: &'t str, whole: &str) -> Result<(Command, &'t str), String> {
    let incorrect =
        || format!("incorrect configuration: %{}. Expected a command in '{whole}'", shortened(text));
    let end =
        text.bytes().position(|byte| !(byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_'));
    let end = end.filter(|end| *end > 0).ok_or_else(incorrect)?;
    let (written, mut rest) = text.split_at(end);
    let canonical = ALIASES.iter().find(|(alias, _)| *alias == written).map_or(written, |(_, name)| name);
    let mut argument: Option<Box<str>> = None;
    if let Some(body) = rest.strip_prefix('(') {
        // The argument ends at the last parenthesis in front of the closing percent sign or length.
        let close = argument_end(body).ok_or_else(incorrect)?;
        argument = Some(body[..close].into());
        rest = &body[close + 1..];
    }
    let mut max_length = None;
    if let Some(body) = rest.strip_prefix(':') {
        let end = body.find('%').ok_or_else(incorrect)?;
        let length = body[..end].parse();
        max_length = Some(length.map_err(|_| format!("length must be an integer, given: {}", &body[..end]))?);
        rest = &body[end..];
    }
    let rest = rest.strip_prefix('%').ok_or_else(incorrect)?;
    let found = COMMANDS.iter().find(|(name, _)| *name == canonical);
    let Some((name, takes)) = found else {
        return Err(format!("Not supported field in StreamInfo: {written}"));
    };
    match (takes, &argument) {
        (Takes::Nothing | Takes::Length, Some(_)) => return Err(format!("{written}: no parameters allowed")),
        (Takes::Required, None) => return Err(format!("{written}: parameters required")),
        (Takes::Nothing, None) if max_length.is_some() => {
            return Err(format!("{written}: no length allowed"));
        }
        _ => {}
    }
    let operator = resolve(name, argument.as_deref())?;
    Ok((Command { name, argument, max_length, operator }, rest))
}

/// Where the argument's closing parenthesis is: the first that `%` or `:DIGITS%` follows.
fn argument_end(body: &str) -> Option<usize> {
    body.match_indices(')').map(|(place, _)| place).find(|place| {
        let behind = &body[place + 1..];
        let behind = match behind.strip_prefix(':') {
            Some(length) => length.trim_start_matches(|digit: char| digit.is_ascii_digit()),
            None => behind,
        };
        behind.starts_with('%')
    })
}

fn shortened(text: &str) -> String {
    text.chars().take(20).collect()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use expect_test::{Expect, expect};

    use super::{Format, Piece};

    fn check(text: &str, expected: &Expect) {
        let shown = match Format::parse(text) {
            Ok(format) => format.0.iter().fold(String::new(), |mut out, piece| {
                match piece {
                    Piece::Text(text) => write!(out, "'{text}' "),
                    Piece::Command(command) => {
                        write!(out, "{}({:?},{:?}) ", command.name, command.argument, command.max_length)
                    }
                }
                .unwrap_or_default();
                out
            }),
            Err(error) => error,
        };
        expected.assert_eq(shown.trim_end());
    }

    #[test]
    fn formats() {
        check("", &expect![""]);
        check("plain 100%%", &expect!["'plain 100%'"]);
        check(
            "[%START_TIME%] %PROTOCOL%\n",
            &expect![[r#"
            '[' START_TIME(None,None) '] ' PROTOCOL(None,None) '
            '"#]],
        );
        check("%REQ(X-A?:PATH):10%x", &expect![[r#"REQ(Some("X-A?:PATH"),Some(10)) 'x'"#]]);
        check("%START_TIME(%Y/%m (%s))%", &expect![[r#"START_TIME(Some("%Y/%m (%s)"),None)"#]]);
        check("%REQUEST_HEADER(a)%", &expect![[r#"REQ(Some("a"),None)"#]]);
    }

    #[test]
    fn errors() {
        check("%NOPE%", &expect!["Not supported field in StreamInfo: NOPE"]);
        check("%REQ%", &expect!["REQ: parameters required"]);
        check("%PROTOCOL(x)%", &expect!["PROTOCOL: no parameters allowed"]);
        check(
            "%REQ(a):x%",
            &expect!["incorrect configuration: %REQ(a):x%. Expected a command in '%REQ(a):x%'"],
        );
        check("50%", &expect!["incorrect configuration: %. Expected a command in '50%'"]);
        check("%REQ(a", &expect!["incorrect configuration: %REQ(a. Expected a command in '%REQ(a'"]);
    }
}

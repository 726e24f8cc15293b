//! envoy.filters.listener.http_inspector: does a plain connection begin like HTTP?

use super::Verdict;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The application protocol (`http/1.0`, `http/1.1`, `h2c`) that the first bytes speak.
///
/// As Envoy decides it: any method will do, and what is no method is known before the line's end;
/// the version counts as 1.0 if it is there and not 1.1, or not there at all (HTTP/0.9).
pub(crate) fn inspect(bytes: &[u8]) -> Verdict<&'static str> {
    if bytes.starts_with(PREFACE) {
        return Verdict::Yes("h2c");
    }
    if PREFACE.starts_with(bytes) {
        return Verdict::NeedMore;
    }
    let (method, rest) = word(bytes);
    if method.is_empty() || !method.iter().all(|byte| is_token(*byte)) {
        return Verdict::No;
    }
    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { return Verdict::NeedMore };
    let Some(line) = rest.get(..end) else { return Verdict::No };
    let (target, version) = word(after_spaces(line));
    if !is_target(target, method == b"CONNECT") {
        return Verdict::No;
    }
    let version = after_spaces(version);
    let last = version.iter().rposition(|byte| *byte > b' ').map_or(0, |last| last + 1);
    match version.get(..last).unwrap_or_default() {
        b"HTTP/1.1" => Verdict::Yes("http/1.1"),
        [] => Verdict::Yes("http/1.0"),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Verdict::Yes("http/1.0")
        }
        _ => Verdict::No,
    }
}

/// What comes before the first space or control character, and the rest from there.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|byte| *byte <= b' ').unwrap_or(text.len()))
}

fn after_spaces(text: &[u8]) -> &[u8] {
    let first = text.iter().position(|byte| *byte > b' ').unwrap_or(text.len());
    text.get(first..).unwrap_or_default()
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A path, `*`, a URL, or whatever may name a host if the method is CONNECT.
fn is_target(target: &[u8], connect: bool) -> bool {
    let printable = |text: &[u8]| text.iter().all(u8::is_ascii_graphic);
    if target.starts_with(b"/") || target.starts_with(b"*") {
        return printable(target);
    }
    let mut rest = target;
    if !connect {
        let scheme =
            rest.iter().take_while(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte)).count();
        let after = rest.get(scheme..).and_then(|rest| rest.strip_prefix(b"://"));
        let (true, Some(after)) = (rest.first().is_some_and(u8::is_ascii_alphabetic), after) else {
            return false;
        };
        rest = after;
    }
    let path = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let (host, path) = rest.split_at(path);
    let in_host = |byte: &u8| byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=@[]_~".contains(byte);
    !target.is_empty()
        && host.iter().all(in_host)
        && !host.windows(2).any(|pair| pair == b"@@")
        && printable(path)
}

#[cfg(test)]
mod tests {
    use super::{PREFACE, Verdict, inspect};

    #[test]
    fn protocols_are_told_by_the_first_line() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Verdict::Yes("http/1.1")),
            (b"POST /x HTTP/1.0\n", Verdict::Yes("http/1.0")),
            (PREFACE, Verdict::Yes("h2c")),
            (b"PRI * HT", Verdict::NeedMore),
            (b"", Verdict::NeedMore),
            (b"GE", Verdict::NeedMore),
            (b"GET /long", Verdict::NeedMore),
            (b"GETX", Verdict::NeedMore),
            (b"anything else", Verdict::NeedMore),
            (b"\x16\x03\x01", Verdict::No),
            (b"\r\nGET / HTTP/1.1\r\n", Verdict::No),
            (b"{\"a\"", Verdict::No),
            (b"G@T", Verdict::No),
            (b"BREW /pot HTTP/1.1\r\n", Verdict::Yes("http/1.1")),
            (b"get\t/ \t HTTP/1.1 \r\n", Verdict::Yes("http/1.1")),
            (b"GET / HTTP/2.0\r\n", Verdict::Yes("http/1.0")),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Verdict::Yes("http/1.0")),
            (b"GET /\r\n", Verdict::Yes("http/1.0")),
            (b"GET\r\n", Verdict::No),
            (b"GET / HTTP/9\r\n", Verdict::No),
            (b"GET / HTTP/1.1 x\r\n", Verdict::No),
            (b"GET path HTTP/1.1\r\n", Verdict::No),
            (b"GET /\xff HTTP/1.1\r\n", Verdict::No),
            (b"GET http://a.test/ HTTP/1.1\r\n", Verdict::Yes("http/1.1")),
            (b"GET http://a@@b/ HTTP/1.1\r\n", Verdict::No),
            (b"GET 1x://a HTTP/1.1\r\n", Verdict::No),
            (b"CONNECT a:1 HTTP/1.1\r\n", Verdict::Yes("http/1.1")),
            (b"CONNECT a\"b:1 HTTP/1.1\r\n", Verdict::No),
        ] {
            assert_eq!(inspect(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}

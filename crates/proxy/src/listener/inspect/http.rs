//! envoy.filters.listener.http_inspector: does a plain connection begin like HTTP?

use super::Verdict;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Methods that are recognised, as Envoy's list.
const METHODS: &[&[u8]] = &[
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"CONNECT",
    b"OPTIONS",
    b"TRACE",
    b"PATCH",
    b"ACL",
    b"BIND",
    b"CHECKOUT",
    b"COPY",
    b"LINK",
    b"LOCK",
    b"M-SEARCH",
    b"MERGE",
    b"MKACTIVITY",
    b"MKCALENDAR",
    b"MKCOL",
    b"MOVE",
    b"NOTIFY",
    b"PROPFIND",
    b"PROPPATCH",
    b"PURGE",
    b"REBIND",
    b"REPORT",
    b"SEARCH",
    b"SOURCE",
    b"SUBSCRIBE",
    b"UNBIND",
    b"UNLINK",
    b"UNLOCK",
    b"UNSUBSCRIBE",
];

/// The application protocol (`http/1.0`, `http/1.1`, `h2c`) that the first bytes speak.
pub(crate) fn inspect(bytes: &[u8]) -> Verdict<&'static str> {
    if bytes.starts_with(PREFACE) {
        return Verdict::Yes("h2c");
    }
    if PREFACE.starts_with(bytes) {
        return Verdict::NeedMore;
    }
    let line_end = bytes.iter().position(|byte| *byte == b'\n');
    let Some(end) = line_end else {
        let may_become = METHODS.iter().any(|method| {
            let known = bytes.len().min(method.len());
            bytes[..known] == method[..known] && bytes.get(method.len()).is_none_or(|next| *next == b' ')
        });
        return if may_become { Verdict::NeedMore } else { Verdict::No };
    };
    let line = bytes[..end].trim_ascii_end();
    let mut words = line.split(|byte| *byte == b' ');
    let method_known = words.next().is_some_and(|method| METHODS.contains(&method));
    match (method_known, words.next_back()) {
        (true, Some(b"HTTP/1.1")) => Verdict::Yes("http/1.1"),
        (true, Some(b"HTTP/1.0")) => Verdict::Yes("http/1.0"),
        _ => Verdict::No,
    }
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
            (b"GETX", Verdict::No),
            (b"\x16\x03\x01", Verdict::No),
            (b"BREW /pot HTTP/1.1\r\n", Verdict::No),
            (b"GET / HTTP/9\r\n", Verdict::No),
        ] {
            assert_eq!(inspect(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}

//! `x-forwarded-client-cert`: the certificates that a proxy in front of us has verified.
//!
//! An element is a list of pairs, `By=...;Hash=...;Subject="...";URI=...`, in which values may be in
//! quotes; each proxy on the way may have added one.

use http::HeaderMap;

const HEADER: &str = "x-forwarded-client-cert";

/// The identities in the header; `None` if there is no header.
// Deviation: istiod takes the identities of all elements; a proxy that appends vouches only for the
// last, and what stands before it may be the client's own words.
pub(super) fn identities(headers: &HeaderMap) -> Option<Vec<String>> {
    let last = headers.get_all(HEADER).iter().next_back()?.to_str().ok()?;
    let element = split(last, ',').pop()?;
    let mut found = Vec::new();
    for pair in split(element, ';') {
        let Some((name, value)) = pair.split_once('=') else { continue };
        if name.trim().eq_ignore_ascii_case("uri") {
            found.push(unquoted(value.trim()));
        }
    }
    Some(found)
}

/// The parts between separators that are not in quotes.
fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, letter) in text.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            letter if letter == separator && !quoted => {
                parts.push(text.get(start..at).unwrap_or_default());
                start = at + letter.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(text.get(start..).unwrap_or_default());
    parts
}

fn unquoted(text: &str) -> String {
    let Some(inner) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return text.to_owned();
    };
    let mut plain = String::with_capacity(inner.len());
    let mut letters = inner.chars();
    while let Some(letter) = letters.next() {
        plain.extend(if letter == '\\' { letters.next() } else { Some(letter) });
    }
    plain
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::identities;

    #[test]
    fn the_last_element_counts() {
        for (headers, expected) in [
            (&["URI=spiffe://a"][..], Some(&["spiffe://a"][..])),
            (&["By=x;Hash=1;Subject=\"CN=a,O=\\\"b;URI=no\\\"\";URI=\"spiffe://a\""], Some(&["spiffe://a"])),
            (
                &["URI=spiffe://forged,Hash=1;uri=spiffe://a;URI=spiffe://b"],
                Some(&["spiffe://a", "spiffe://b"]),
            ),
            (&["URI=spiffe://forged", "URI=spiffe://a"], Some(&["spiffe://a"])),
            (&["Hash=1"], Some(&[])),
            (&["\"URI=spiffe://a"], Some(&[])),
            (&[""], Some(&[])),
            (&[], None),
        ] {
            let mut map = HeaderMap::new();
            for value in headers {
                map.append("x-forwarded-client-cert", value.parse().expect("a value"));
            }
            let expected = expected.map(|all| all.iter().map(|&it| it.to_owned()).collect::<Vec<_>>());
            assert_eq!(identities(&map), expected, "{headers:?}");
        }
    }
}

//! Text that Go's `strconv.Quote` has written.

/// What is meant by the text between double quotes, as Go's `strconv.Unquote` reads it; bytes, as escapes
/// can make what is no UTF-8. `None` if an escape is none of Go's.
pub fn unquote(inner: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.chars();
    let number = |rest: &mut std::str::Chars<'_>, count: usize, radix: u32| {
        let digits = rest.as_str().get(..count)?;
        // A sign is no digit.
        if !digits.chars().all(|digit| digit.is_digit(radix)) {
            return None;
        }
        *rest = rest.as_str().get(count..)?.chars();
        u32::from_str_radix(digits, radix).ok()
    };
    while let Some(letter) = rest.next() {
        let mut push = |letter: char| bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
        if letter != '\\' {
            push(letter);
            continue;
        }
        let from = rest.as_str();
        let byte = match rest.next()? {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' => b'\\',
            '\'' => b'\'',
            '"' => b'"',
            'x' => u8::try_from(number(&mut rest, 2, 16)?).ok()?,
            '0'..='7' => {
                rest = from.chars();
                u8::try_from(number(&mut rest, 3, 8)?).ok()?
            }
            kind @ ('u' | 'U') => {
                push(char::from_u32(number(&mut rest, if kind == 'u' { 4 } else { 8 }, 16)?)?);
                continue;
            }
            _ => return None,
        };
        bytes.push(byte);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::unquote;

    #[test]
    fn escapes_of_go() {
        for (quoted, expected) in [
            ("", Some(&b""[..])),
            ("plain é", Some("plain é".as_bytes())),
            (r#"\a\b\f\n\r\t\v\\\'\""#, Some(b"\x07\x08\x0c\n\r\t\x0b\\'\"")),
            (r"\x41\101\u00e9\U0001F600", Some("AA\u{e9}\u{1f600}".as_bytes())),
            (r"\xff", Some(b"\xff")),
            (r"\777", None),
            (r"\x+1", None),
            (r"\x4", None),
            (r"\12", None),
            (r"\ud800", None),
            (r"\xé", None),
            (r"\q", None),
            ("\\", None),
        ] {
            assert_eq!(unquote(quoted).as_deref(), expected, "{quoted}");
        }
    }
}

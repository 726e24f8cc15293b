//! Base64 (RFC 4648).

/// The bytes that `text` stands for in the standard alphabet (section 4), with or without
/// padding. `None`: it is no base64.
pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
    digits(text, |digit| match digit {
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    })
}

/// The same for what JSON makes of a message's bytes: the standard or the URL alphabet
/// (section 5), even mixed, as protobuf's readers take them.
pub fn decode_json(text: &[u8]) -> Option<Vec<u8>> {
    digits(text, |digit| match digit {
        b'+' | b'-' => Some(62),
        b'/' | b'_' => Some(63),
        _ => None,
    })
}

/// Decodes letters and figures, and the last two digits of an alphabet as `special` knows them.
fn digits(text: &[u8], special: fn(u8) -> Option<u8>) -> Option<Vec<u8>> {
    let end = text.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1);
    // One digit alone has not enough bits for a byte.
    if end % 4 == 1 || text.len() - end > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(end / 4 * 3 + 2);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.get(..end)? {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            _ => special(*byte)?,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::{decode, decode_json};

    #[test]
    fn vectors_of_the_rfc() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg", "foob")] {
            assert_eq!(decode(text.as_bytes()).as_deref(), Some(bytes.as_bytes()), "{text}");
            assert_eq!(decode_json(text.as_bytes()).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
    }

    #[test]
    fn alphabets() {
        assert_eq!(decode(b"+/8="), Some(vec![0xfb, 0xff]));
        assert_eq!(decode(b"-_8="), None);
        assert_eq!(decode_json(b"+/8="), Some(vec![0xfb, 0xff]));
        assert_eq!(decode_json(b"-_8"), Some(vec![0xfb, 0xff]));
    }

    #[test]
    fn what_is_none() {
        for text in ["Zm 9", "=Zg", "a", "Zg===", "Zg=a", "Zm9v====", "é"] {
            assert_eq!(decode(text.as_bytes()), None, "{text}");
            assert_eq!(decode_json(text.as_bytes()), None, "{text}");
        }
    }
}

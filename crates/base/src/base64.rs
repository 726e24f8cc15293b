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

/// The standard text of bytes, with padding (section 4).
pub fn encode(bytes: &[u8]) -> String {
    text(bytes, *b"+/", true)
}

/// The text of bytes that URLs and tokens (RFC 7515) have, without padding (section 5).
pub fn encode_url(bytes: &[u8]) -> String {
    text(bytes, *b"-_", false)
}

/// Encodes in letters and figures, and `last` as the last two digits.
fn text(bytes: &[u8], last: [u8; 2], padded: bool) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..=chunk.len() {
            let digit = (bits >> (18 - 6 * place) & 63) as u8;
            text.push(char::from(match digit {
                0..26 => b'A' + digit,
                26..52 => b'a' + digit - 26,
                52..62 => b'0' + digit - 52,
                _ => last[usize::from(digit & 1)],
            }));
        }
        if padded {
            (chunk.len()..3).for_each(|_| text.push('='));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{decode, decode_json, encode, encode_url};

    #[test]
    fn texts() {
        for (bytes, standard) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(encode(bytes.as_bytes()), standard);
            assert_eq!(encode_url(bytes.as_bytes()), standard.trim_end_matches('='));
        }
        assert_eq!((encode(&[0xfb, 0xff]), encode_url(&[0xfb, 0xff])), ("+/8=".into(), "-_8".into()));
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(encode(&all).as_bytes()), Some(all.clone()));
        assert_eq!(decode_json(encode_url(&all).as_bytes()), Some(all));
    }

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

//! The little DER that is needed beside `x509-parser`: raw pieces of signed objects, on which
//! signatures are checked, strings of any kind, and the writing of certificates (X.690).

/// Reads one tag-length-value after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

/// One element.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Element<'a> {
    /// The identifier octet.
    pub(crate) tag: u8,
    /// Its content.
    pub(crate) content: &'a [u8],
    /// All of it, identifier and length included.
    pub(crate) whole: &'a [u8],
}

pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTETS: u8 = 0x04;
pub(crate) const OBJECT: u8 = 0x06;
pub(crate) const UTF8_STRING: u8 = 0x0c;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;

/// Writes an element of a tag, with the parts of its content in a row.
pub(crate) fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut bytes = Vec::with_capacity(length + 6);
    bytes.push(tag);
    let octets = length.to_be_bytes();
    let significant = octets.iter().position(|octet| *octet != 0).and_then(|start| octets.get(start..));
    match (u8::try_from(length), significant) {
        (Ok(short), _) if short < 0x80 => bytes.push(short),
        (_, significant) => {
            let significant = significant.unwrap_or_default();
            // A length of 8 octets at most.
            bytes.push(0x80 | significant.len() as u8);
            bytes.extend_from_slice(significant);
        }
    }
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// Writes a number that is not negative, from its octets.
pub(crate) fn unsigned(octets: &[u8]) -> Vec<u8> {
    let start = octets.iter().position(|octet| *octet != 0).unwrap_or(octets.len());
    let octets = octets.get(start..).unwrap_or_default();
    let is_plain = octets.first().is_some_and(|first| first & 0x80 == 0);
    element(INTEGER, &[if is_plain { &[] } else { &[0] }, octets])
}

/// Writes a bit string of whole octets.
pub(crate) fn bit_string(octets: &[u8]) -> Vec<u8> {
    element(BIT_STRING, &[&[0], octets])
}

/// Writes a time (RFC 5280 section 4.1.2.5): seconds since the epoch, from 1970 to 9999.
pub(crate) fn time(seconds: i64) -> Vec<u8> {
    const UTC_TIME: u8 = 0x17;
    const GENERALIZED_TIME: u8 = 0x18;
    /// 9999-12-31 23:59:59: a certificate that does not expire.
    const LAST: i64 = 253_402_300_799;
    let seconds = seconds.clamp(0, LAST);
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from March on, so that a leap day is the last of its year, in eras of 400
    // years from the year 0.
    let day = day + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, turn) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + turn;
    let rest = format!("{month:02}{day:02}{:02}{:02}{:02}Z", second / 3600, second / 60 % 60, second % 60);
    match year {
        ..2050 => element(UTC_TIME, &[format!("{:02}", year % 100).as_bytes(), rest.as_bytes()]),
        _ => element(GENERALIZED_TIME, &[format!("{year:04}").as_bytes(), rest.as_bytes()]),
    }
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether all was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next element; `None` at the end or if it is malformed.
    pub(crate) fn next(&mut self) -> Option<Element<'a>> {
        let bytes = self.0;
        let (&tag, rest) = bytes.split_first()?;
        // Tags above 30 do not occur in certificates.
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            let (octets, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            if octets.is_empty() || octets.len() > 4 {
                return None;
            }
            (octets.iter().fold(0, |length, octet| length << 8 | usize::from(*octet)), rest)
        };
        let (content, rest) = rest.split_at_checked(length)?;
        let whole = bytes.get(..bytes.len() - rest.len())?;
        self.0 = rest;
        Some(Element { tag, content, whole })
    }

    /// The next element if it has this tag.
    pub(crate) fn expect(&mut self, tag: u8) -> Option<Element<'a>> {
        self.next().filter(|element| element.tag == tag)
    }

    /// What lies in the next element, a sequence.
    pub(crate) fn sequence(&mut self) -> Option<Reader<'a>> {
        self.expect(SEQUENCE).map(|element| Reader(element.content))
    }
}

/// A certificate's or CRL's three parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signed<'a> {
    /// What is signed, with its header.
    pub(crate) content: &'a [u8],
    /// The content of the AlgorithmIdentifier.
    pub(crate) algorithm: &'a [u8],
    /// The signature's bytes.
    pub(crate) signature: &'a [u8],
}

impl<'a> Signed<'a> {
    /// Takes a signed object apart.
    pub(crate) fn parse(der: &'a [u8]) -> Option<Self> {
        let mut parts = Reader::new(der).sequence()?;
        Some(Self {
            content: parts.expect(SEQUENCE)?.whole,
            algorithm: parts.expect(SEQUENCE)?.content,
            signature: bits(parts.expect(BIT_STRING)?.content)?,
        })
    }
}

/// The algorithm's identifier (content) and the key of a SubjectPublicKeyInfo.
pub(crate) fn public_key(spki: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut parts = Reader::new(spki).sequence()?;
    Some((parts.expect(SEQUENCE)?.content, bits(parts.expect(BIT_STRING)?.content)?))
}

/// The bytes of a bit string without unused bits.
fn bits(content: &[u8]) -> Option<&[u8]> {
    match content.split_first() {
        Some((0, bytes)) => Some(bytes),
        _ => None,
    }
}

/// The text of an element: as it is for the string types, decimal for small integers.
pub(crate) fn text(element: Element<'_>) -> Option<String> {
    const BMP_STRING: u8 = 30;
    const UNIVERSAL_STRING: u8 = 28;
    const STRINGS: [u8; 9] = [4, 12, 18, 19, 20, 22, 23, 24, 26];
    let wide = |width: usize| {
        element
            .content
            .chunks(width)
            .map(|unit| {
                char::from_u32(unit.iter().fold(0, |value, octet| value << 8 | u32::from(*octet)))
                    .unwrap_or('\u{fffd}')
            })
            .collect()
    };
    match element.tag {
        BOOLEAN => Some((element.content != [0]).to_string()),
        INTEGER if element.content.len() <= 8 => {
            let negative = element.content.first().is_some_and(|first| first & 0x80 != 0);
            let start = if negative { -1_i64 } else { 0 };
            let value = element.content.iter().fold(start, |value, octet| value << 8 | i64::from(*octet));
            Some(value.to_string())
        }
        BMP_STRING => Some(wide(2)),
        UNIVERSAL_STRING => Some(wide(4)),
        tag if STRINGS.contains(&tag) => Some(String::from_utf8_lossy(element.content).into_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Reader, element, time, unsigned};

    #[test]
    fn what_is_written_can_be_read() {
        for length in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x1_0000] {
            let content = vec![7; length];
            let written = element(4, &[&content]);
            let mut reader = Reader::new(&written);
            let read = reader.next().expect("an element");
            assert_eq!((read.tag, read.content, read.whole), (4, &content[..], &written[..]));
            assert!(reader.next().is_none());
        }
        for (octets, written) in [
            (&[][..], &[2, 1, 0][..]),
            (&[0, 0], &[2, 1, 0]),
            (&[0, 1], &[2, 1, 1]),
            (&[0x7f], &[2, 1, 0x7f]),
            (&[0x80, 1], &[2, 3, 0, 0x80, 1]),
        ] {
            assert_eq!(unsigned(octets), written, "{octets:?}");
        }
    }

    #[test]
    fn times() {
        for (seconds, text) in [
            (0, "700101000000Z"),
            (951_782_400, "000229000000Z"),
            (951_868_799, "000229235959Z"),
            (951_868_800, "000301000000Z"),
            (1_795_347_296, "261122113456Z"),
            (2_524_607_999, "491231235959Z"),
            (2_524_608_000, "20500101000000Z"),
            (4_107_542_400, "21000301000000Z"),
            (i64::MAX, "99991231235959Z"),
            (-1, "700101000000Z"),
        ] {
            assert_eq!(&time(seconds)[2..], text.as_bytes(), "{seconds}");
        }
    }
}

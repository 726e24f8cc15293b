//! The little DER that is needed beside `x509-parser`: raw pieces of signed objects, on which
//! signatures are checked, and strings of any kind (X.690).

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
pub(crate) const SEQUENCE: u8 = 0x30;

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
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

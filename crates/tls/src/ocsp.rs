//! OCSP responses, as far as a server that staples them must read them (RFC 6960): what they
//! are for, whether the certificate is good, until when they hold.

use crate::der::{Element, Reader};

/// When a certificate may be shown without a response (`ocsp_staple_policy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StaplePolicy {
    /// Always.
    #[default]
    Lenient,
    /// Only if none is configured: an expired one refuses the handshake.
    Strict,
    /// Never.
    Must,
}

/// What a response says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    /// Seconds since the epoch; without one it holds for ever.
    pub(crate) next_update: i64,
}

/// Reads a response that is for the certificate with this serial number.
pub(crate) fn parse(der: &[u8], serial: &[u8]) -> Result<Response, &'static str> {
    const MALFORMED: &str = "malformed OCSP response";
    const BASIC: [u8; 9] = [0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x01];
    let mut outer = Reader::new(der).sequence().ok_or(MALFORMED)?;
    if outer.expect(0x0a).ok_or(MALFORMED)?.content != [0] {
        return Err("OCSP response was unsuccessful");
    }
    let bytes = outer.expect(0xa0).ok_or(MALFORMED)?;
    let mut bytes = Reader::new(bytes.content).sequence().ok_or(MALFORMED)?;
    if bytes.expect(0x06).ok_or(MALFORMED)?.content != BASIC {
        return Err("unknown OCSP response type");
    }
    let basic = bytes.expect(0x04).ok_or(MALFORMED)?;
    let mut data =
        Reader::new(basic.content).sequence().and_then(|mut basic| basic.sequence()).ok_or(MALFORMED)?;
    // Version (optional), responder, time, then the responses.
    let mut element = data.next().ok_or(MALFORMED)?;
    if element.tag == 0xa0 {
        element = data.next().ok_or(MALFORMED)?;
    }
    let _responder = element;
    data.expect(0x18).ok_or(MALFORMED)?;
    let mut responses = data.sequence().ok_or(MALFORMED)?;
    let mut single = responses.sequence().ok_or(MALFORMED)?;
    if responses.next().is_some() {
        return Err("OCSP response must be for one certificate only");
    }
    let mut id = single.sequence().ok_or(MALFORMED)?;
    let number = (id.next(), id.next(), id.next(), id.expect(0x02)).3.ok_or(MALFORMED)?;
    let strip = |octets: &[u8]| octets.iter().copied().skip_while(|octet| *octet == 0).collect::<Vec<u8>>();
    if strip(number.content) != strip(serial) {
        return Err("OCSP response does not match its TLS certificate");
    }
    if single.next().ok_or(MALFORMED)?.tag != 0x80 {
        return Err("OCSP response says that the certificate is not good");
    }
    single.expect(0x18).ok_or(MALFORMED)?;
    let next_update = match single.next() {
        Some(Element { tag: 0xa0, content, .. }) => {
            let time = Reader::new(content).expect(0x18).ok_or(MALFORMED)?;
            generalized_time(time.content).ok_or(MALFORMED)?
        }
        _ => i64::MAX,
    };
    Ok(Response { next_update })
}

/// `YYYYMMDDHHMMSSZ` as seconds since the epoch.
fn generalized_time(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    let seconds = number(8, 10)? * 3600 + number(10, 12)? * 60 + number(12, 14)?;
    // Days since the epoch, with years that begin in March.
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + seconds)
}

#[cfg(test)]
mod tests {
    use super::{generalized_time, parse};

    #[test]
    fn times() {
        assert_eq!(generalized_time(b"19700101000000Z"), Some(0));
        assert_eq!(generalized_time(b"20260228235959Z"), Some(1_772_323_199));
        assert_eq!(generalized_time(b"20240301000000Z"), Some(1_709_251_200));
        assert_eq!(generalized_time(b"2024"), None);
    }

    #[test]
    fn nonsense_is_malformed() {
        assert_eq!(parse(b"", &[1]), Err("malformed OCSP response"));
        assert_eq!(parse(&[0x30, 3, 0x0a, 1, 1], &[1]), Err("OCSP response was unsuccessful"));
    }
}

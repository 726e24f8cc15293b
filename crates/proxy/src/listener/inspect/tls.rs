//! envoy.filters.listener.tls_inspector: server name and ALPN of a TLS ClientHello
//! (RFC 8446 section 4.1.2, RFC 6066 section 3, RFC 7301 section 3.1).

use super::Verdict;

/// What a ClientHello says of where it wants to go.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ClientHello {
    /// SNI, lower case.
    pub(crate) server_name: Option<Box<str>>,
    /// ALPN in the client's order.
    pub(crate) application_protocols: Vec<Box<str>>,
}

const RECORD_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;

/// Looks for a ClientHello at the start of the bytes, over as many records as it needs.
pub(crate) fn inspect(bytes: &[u8]) -> Verdict<ClientHello> {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        match rest.first() {
            None => return Verdict::NeedMore,
            Some(kind) if *kind != RECORD_HANDSHAKE => return Verdict::No,
            Some(_) if rest.get(1).is_some_and(|major| *major != 3) => return Verdict::No,
            Some(_) => {}
        }
        let Some((header, body)) = rest.split_at_checked(5) else { return Verdict::NeedMore };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        message.extend_from_slice(&body[..length.min(body.len())]);
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Verdict::No;
        }
        if let [_, high, middle, low, hello @ ..] = message.as_slice() {
            let wanted = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
            if let Some(hello) = hello.get(..wanted) {
                return parse(hello).map_or(Verdict::No, Verdict::Yes);
            }
        }
        match body.get(length..) {
            Some(next) if length > 0 => rest = next,
            _ => return Verdict::NeedMore,
        }
    }
}

/// A cursor that never reads past the end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<usize> {
        self.take(1).map(|bytes| usize::from(bytes[0]))
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A vector with a two-byte length.
    fn vector(&mut self) -> Option<Reader<'a>> {
        let length = self.u16()?;
        self.take(length.into()).map(Reader)
    }
}

fn parse(hello: &[u8]) -> Option<ClientHello> {
    let mut reader = Reader(hello);
    reader.take(2 + 32)?;
    let session = reader.u8()?;
    reader.take(session)?;
    reader.vector()?;
    let compression = reader.u8()?;
    reader.take(compression)?;
    let mut found = ClientHello::default();
    if reader.0.is_empty() {
        return Some(found);
    }
    let mut extensions = reader.vector()?;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let mut body = extensions.vector()?;
        match kind {
            EXTENSION_SERVER_NAME => {
                let mut names = body.vector()?;
                while !names.0.is_empty() {
                    let kind = names.u8()?;
                    let name = names.vector()?;
                    if kind == 0 && found.server_name.is_none() {
                        found.server_name =
                            std::str::from_utf8(name.0).ok().map(|name| name.to_lowercase().into());
                    }
                }
            }
            EXTENSION_ALPN => {
                let mut protocols = body.vector()?;
                while !protocols.0.is_empty() {
                    let length = protocols.u8()?;
                    let name = protocols.take(length)?;
                    found.application_protocols.push(String::from_utf8_lossy(name).into());
                }
            }
            _ => {}
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::{ClientHello, Verdict, inspect};

    /// A ClientHello in records of `record` bytes.
    fn hello(record: usize) -> Vec<u8> {
        let mut extensions = vec![0, 0, 0, 14, 0, 12, 0, 0, 9];
        extensions.extend_from_slice(b"A.Example");
        extensions.extend_from_slice(&[0, 16, 0, 5, 0, 3, 2, b'h', b'2']);
        let mut body = vec![3, 3];
        body.extend_from_slice(&[7; 32]);
        body.extend_from_slice(&[0, 0, 2, 0x13, 1, 1, 0]);
        body.extend_from_slice(&(extensions.len() as u16).to_be_bytes());
        body.extend_from_slice(&extensions);
        let mut message = vec![1, 0, 0, body.len() as u8];
        message.extend_from_slice(&body);
        let mut bytes = Vec::new();
        for chunk in message.chunks(record) {
            bytes.extend_from_slice(&[22, 3, 1]);
            bytes.extend_from_slice(&(chunk.len() as u16).to_be_bytes());
            bytes.extend_from_slice(chunk);
        }
        bytes
    }

    #[test]
    fn server_name_and_alpn_are_found_in_any_split() {
        let expected =
            ClientHello { server_name: Some("a.example".into()), application_protocols: vec!["h2".into()] };
        for record in [1, 7, 4096] {
            let bytes = hello(record);
            for end in 0..bytes.len() {
                assert_eq!(inspect(&bytes[..end]), Verdict::NeedMore, "{record} {end}");
            }
            assert_eq!(
                inspect(&bytes),
                Verdict::Yes(ClientHello {
                    server_name: expected.server_name.clone(),
                    application_protocols: expected.application_protocols.clone()
                })
            );
        }
    }

    #[test]
    fn everything_else_is_not_tls() {
        assert_eq!(inspect(b"GET / HTTP/1.1\r\n"), Verdict::No);
        assert_eq!(inspect(&[22, 2]), Verdict::No);
        assert_eq!(inspect(&[22, 3, 1, 0, 1, 2]), Verdict::No);
        let mut truncated = hello(4096);
        let length = truncated.len();
        truncated[length - 6] = 200;
        assert_eq!(inspect(&truncated), Verdict::No);
    }
}

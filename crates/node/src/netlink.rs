//! Netlink, as little of it as the node needs: building messages with (nested) attributes, and sending a
//! request until the kernel has acknowledged all of it. Encoding is pure and allocates; [`Socket`] does not
//! allocate, because the probe of [`crate::support()`] uses it between `clone` and `_exit`.
//!
//! Layout: netlink(7), `linux/netlink.h`. What the messages say: [`crate::link`] and [`crate::nft`].

use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};

const HEADER: usize = 16; // struct nlmsghdr: length u32, type u16, flags u16, sequence u32, port u32
const NESTED: u16 = 0x8000; // NLA_F_NESTED
const KIND: u16 = 0x3fff; // NLA_TYPE_MASK
const REPLY_LIMIT: Duration = Duration::from_secs(10);

/// One netlink message under construction.
#[derive(Debug)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message of a type (`RTM_*`, `NFT_MSG_*`) with `NLM_F_*` flags and the fixed header of its family.
    pub(crate) fn new(kind: u16, flags: u16, family_header: &[u8]) -> Message {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        let mut message = Message { bytes };
        message.raw(family_header);
        message
    }

    /// Lets the kernel say when the message is done, and not only if it fails.
    pub(crate) fn ask_for_acknowledgement(&mut self) {
        let flags =
            self.bytes.get(6..8).and_then(|flags| flags.try_into().ok()).map_or(0, u16::from_ne_bytes);
        if let Some(field) = self.bytes.get_mut(6..8) {
            field.copy_from_slice(&(flags | libc::NLM_F_ACK as u16).to_ne_bytes());
        }
    }

    /// What follows the headers of netlink and of the family.
    pub(crate) fn attributes(&self, family_header: usize) -> &[u8] {
        self.bytes.get(HEADER + family_header..).unwrap_or_default()
    }

    /// Appends bytes as they are, padded to four.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Message {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// Appends an attribute.
    pub(crate) fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Message {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value);
        self.close(start);
        self
    }

    /// Appends a string attribute with the terminating zero that the kernel expects.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Message {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close(start);
        self
    }

    /// Appends a 32 bit attribute in network order, as nf_tables wants its numbers.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Message {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Appends an attribute made of attributes.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) -> &mut Message {
        let start = self.open(kind | NESTED);
        fill(self);
        self.close(start);
        self
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        if let Some(field) = self.bytes.get_mut(start..start + 2) {
            field.copy_from_slice(&length.to_ne_bytes());
        }
        self.pad();
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

/// One or more messages that go out as one datagram, and the number of acknowledgements they ask for.
#[derive(Debug, Default)]
pub(crate) struct Request {
    bytes: Vec<u8>,
    acks: u32,
    sequence: u32,
}

impl Request {
    pub(crate) fn of(message: &Message) -> Request {
        let mut request = Request::default();
        request.push(message);
        request
    }

    /// Appends a message, with its length and the next sequence number filled in.
    pub(crate) fn push(&mut self, message: &Message) {
        self.sequence += 1;
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&message.bytes);
        let length = u32::try_from(message.bytes.len()).unwrap_or(u32::MAX);
        if let Some(header) = self.bytes.get_mut(start..start + HEADER) {
            header[0..4].copy_from_slice(&length.to_ne_bytes());
            header[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
            if u16::from_ne_bytes([header[6], header[7]]) & libc::NLM_F_ACK as u16 != 0 {
                self.acks += 1;
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A netlink socket. It belongs to the network namespace in which the calling thread opened it.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

impl Socket {
    /// A socket for links, addresses and routes.
    pub(crate) fn route() -> Result<Socket, Errno> {
        Socket::open(None)
    }

    /// A socket for nf_tables.
    pub(crate) fn netfilter() -> Result<Socket, Errno> {
        Socket::open(Some(netlink::NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> Result<Socket, Errno> {
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(REPLY_LIMIT))?;
        Ok(Socket(fd))
    }

    /// Sends a request and waits until the kernel has acknowledged every message that asked for it. The first
    /// error ends it; drop the socket then, as replies may be left in it.
    pub(crate) fn transact(&self, request: &Request) -> Result<(), Errno> {
        // Twice that, and more, is what a message may be; by default about 200 kB.
        if request.bytes.len() > 64 * 1024 {
            sockopt::set_socket_send_buffer_size(&self.0, request.bytes.len().saturating_mul(2))?;
        }
        rustix::net::send(&self.0, &request.bytes, SendFlags::empty())?;
        let mut missing = request.acks;
        let mut buffer = [0_u8; 8192];
        while missing > 0 {
            let (received, _) = match rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            let mut rest = buffer.get(..received).unwrap_or_default();
            while let Some((length, kind)) = header(rest) {
                if kind == libc::NLMSG_ERROR as u16 {
                    match error_code(rest) {
                        0 => missing = missing.saturating_sub(1),
                        code => return Err(Errno::from_raw_os_error(code)),
                    }
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
        Ok(())
    }

    /// Sends a request for a list, and returns its entries: what follows netlink's header of each. `EINTR`: what is
    /// listed has changed meanwhile, so that the list may be no state that ever was.
    pub(crate) fn dump(&self, request: &Request) -> Result<Vec<Vec<u8>>, Errno> {
        rustix::net::send(&self.0, &request.bytes, SendFlags::empty())?;
        let mut entries = Vec::new();
        let mut torn = false;
        // The kernel fills at most 32 KiB at once.
        let mut buffer = vec![0_u8; 64 * 1024];
        loop {
            let (received, _) = match rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            let mut rest = buffer.get(..received).unwrap_or_default();
            while let Some((length, kind)) = header(rest) {
                let flags =
                    rest.get(6..8).and_then(|flags| flags.try_into().ok()).map_or(0, u16::from_ne_bytes);
                torn |= flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                match i32::from(kind) {
                    libc::NLMSG_DONE if torn => return Err(Errno::INTR),
                    libc::NLMSG_DONE => return Ok(entries),
                    libc::NLMSG_ERROR => match error_code(rest) {
                        0 => {}
                        code => return Err(Errno::from_raw_os_error(code)),
                    },
                    _ => entries.push(rest.get(HEADER..length).unwrap_or_default().to_vec()),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// The attributes of a message, or within an attribute: kind without flags, and value. What is cut off is left out.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let &[l0, l1, k0, k1, ..] = rest else { return None };
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let kind = u16::from_ne_bytes([k0, k1]);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Attribute { kind: kind & KIND, nested: kind & NESTED != 0, value })
    })
}

/// See [`attributes`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attribute<'a> {
    pub(crate) kind: u16,
    /// Whether it is said to consist of attributes; the kernel does not always say so.
    pub(crate) nested: bool,
    pub(crate) value: &'a [u8],
}

/// Length and type of the message at the start of `bytes`.
fn header(bytes: &[u8]) -> Option<(usize, u16)> {
    let [l0, l1, l2, l3, k0, k1, ..] = *bytes else { return None };
    let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
    (length >= HEADER && bytes.len() >= HEADER).then_some((length, u16::from_ne_bytes([k0, k1])))
}

/// The (positive) errno of an `NLMSG_ERROR`; zero is an acknowledgement. A cut message counts as a bad one.
fn error_code(message: &[u8]) -> i32 {
    match message.get(HEADER..HEADER + 4) {
        Some(&[a, b, c, d]) => i32::from_ne_bytes([a, b, c, d]).saturating_neg(),
        _ => libc::EBADMSG,
    }
}

#[cfg(test)]
mod tests {
    use super::{Message, Request, error_code, header};

    #[test]
    fn attributes_are_padded_and_nests_measured() {
        let mut message = Message::new(16, 5, &[1, 2, 3, 4]);
        message.text(3, "lo").nest(18, |m| {
            m.attr(1, &[9]);
        });
        let request = Request::of(&message);
        let bytes = request.bytes();
        assert_eq!(bytes.len(), 16 + 4 + 8 + 4 + 8);
        assert_eq!(header(bytes), Some((bytes.len(), 16)));
        assert_eq!(bytes[20..28], [7, 0, 3, 0, b'l', b'o', 0, 0]);
        assert_eq!(bytes[28..], [12, 0, 18, 0x80, 5, 0, 1, 0, 9, 0, 0, 0]);
        assert_eq!(request.acks, 1);
    }

    #[test]
    fn short_replies_are_errors_not_panics() {
        assert_eq!(header(&[1, 0, 0]), None);
        assert_eq!(header(&[4, 0, 0, 0, 2, 0]), None);
        assert_eq!(error_code(&[0; 18]), libc::EBADMSG);
    }
}

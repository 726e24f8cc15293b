//! Counting of gRPC messages in a body, across the pieces that it comes in.

/// Bytes in front of each message: a flag and the length, big endian.
const PREFIX: usize = 5;

/// Counts messages as they begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Frames {
    /// Messages so far.
    pub(super) count: u64,
    /// How much of the prefix was read.
    prefix_read: usize,
    length: u32,
    /// Bytes of the message that are still to come.
    rest: u64,
    /// The body is no gRPC: it is not looked at any more.
    broken: bool,
}

impl Frames {
    /// Looks at a piece of the body; says how many messages begin in it.
    pub(super) fn inspect(&mut self, mut data: &[u8]) -> u64 {
        let before = self.count;
        while !data.is_empty() && !self.broken {
            if self.prefix_read == 0 && self.rest > 0 {
                let skipped = usize::try_from(self.rest).unwrap_or(usize::MAX).min(data.len());
                self.rest -= skipped as u64;
                data = data.get(skipped..).unwrap_or_default();
                continue;
            }
            let Some((byte, behind)) = data.split_first() else { break };
            data = behind;
            self.prefix(*byte);
        }
        self.count - before
    }

    /// Takes the next byte of a prefix.
    fn prefix(&mut self, byte: u8) {
        if self.prefix_read == 0 {
            // 1 says compressed; other bits mean nothing.
            if byte & !1 != 0 {
                self.broken = true;
                return;
            }
            self.count += 1;
            self.length = 0;
        } else {
            self.length = self.length << 8 | u32::from(byte);
        }
        self.prefix_read += 1;
        if self.prefix_read == PREFIX {
            self.prefix_read = 0;
            self.rest = u64::from(self.length);
        }
    }
}

/// Messages that begin in a body that comes in these pieces; for fuzzing.
pub(crate) fn count<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut frames = Frames::default();
    pieces.into_iter().map(|piece| frames.inspect(piece)).sum()
}

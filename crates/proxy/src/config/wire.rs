//! Taking messages apart in their wire form.
//!
//! A bootstrap with thousands of clusters is read piece by piece: decoded as a whole, its
//! messages would take many times the memory of what they are lowered to, and all at once.

use std::hash::{BuildHasher as _, RandomState};
use std::ops::Range;
use std::sync::LazyLock;

use prost::encoding::{WireType, decode_key, decode_varint};

/// Tells messages apart without keeping them: 128 bits of hash with keys that nobody outside of
/// the process knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Fingerprint([u64; 2]);

impl Fingerprint {
    /// That of a message in wire form.
    pub(crate) fn of(wire: &[u8]) -> Self {
        static KEYS: LazyLock<[RandomState; 2]> = LazyLock::new(Default::default);
        Self(KEYS.each_ref().map(|key| key.hash_one(wire)))
    }
}

/// The places of the values of one length-delimited field. `None`: the message is malformed.
pub(crate) fn places(wire: &[u8], field: u32) -> Option<Vec<Range<usize>>> {
    let mut values = Vec::new();
    walk(wire, |tag, _, value| {
        if tag == field {
            values.extend(value);
        }
    })?;
    values.shrink_to_fit();
    Some(values)
}

/// Splits a message into the places of the values of one length-delimited field, and everything
/// else. `None`: it is malformed.
pub(crate) fn split(wire: &[u8], field: u32) -> Option<(Vec<Range<usize>>, Vec<u8>)> {
    let mut values = Vec::new();
    let mut rest = Vec::new();
    walk(wire, |tag, whole, value| match value {
        Some(value) if tag == field => values.push(value),
        _ => rest.extend_from_slice(wire.get(whole).unwrap_or_default()),
    })?;
    Some((values, rest))
}

/// Shows each field of a message: its number, its place with the key, and the place of its value
/// if that is length-delimited.
fn walk(wire: &[u8], mut show: impl FnMut(u32, Range<usize>, Option<Range<usize>>)) -> Option<()> {
    let mut input = wire;
    while !input.is_empty() {
        let start = wire.len() - input.len();
        let (tag, wire_type) = decode_key(&mut input).ok()?;
        let mut value = None;
        match wire_type {
            WireType::Varint => {
                decode_varint(&mut input).ok()?;
            }
            WireType::SixtyFourBit => input = input.get(8..)?,
            WireType::ThirtyTwoBit => input = input.get(4..)?,
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(&mut input).ok()?).ok()?;
                let begin = wire.len() - input.len();
                input = input.get(length..)?;
                value = Some(begin..begin + length);
            }
            // Groups: not in proto3.
            WireType::StartGroup | WireType::EndGroup => return None,
        }
        show(tag, start..wire.len() - input.len(), value);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::{Fingerprint, places, split};

    #[test]
    fn values_of_one_field_and_the_rest() {
        // 1: varint 5; 2: "ab"; 3: fixed32; 2: ""; 4: fixed64.
        let wire = [8, 5, 18, 2, b'a', b'b', 29, 1, 2, 3, 4, 18, 0, 33, 1, 2, 3, 4, 5, 6, 7, 8];
        let (values, rest) = split(&wire, 2).expect("well-formed");
        assert_eq!(values, [4..6, 13..13]);
        assert_eq!(rest, [8, 5, 29, 1, 2, 3, 4, 33, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(places(&wire, 2), Some(values));
        assert_eq!(places(&wire, 1), Some(Vec::new()));
    }

    #[test]
    fn malformed_messages_are_refused() {
        for wire in [&[8][..], &[18, 200], &[29, 1, 2], &[33, 1], &[11], &[255; 11]] {
            assert_eq!(split(wire, 2), None, "{wire:?}");
            assert_eq!(places(wire, 2), None, "{wire:?}");
        }
    }

    #[test]
    fn fingerprints_are_of_the_bytes() {
        assert_eq!(Fingerprint::of(b"ab"), Fingerprint::of(&"ab".bytes().collect::<Vec<_>>()));
        assert_ne!(Fingerprint::of(b"ab"), Fingerprint::of(b"abc"));
        let Fingerprint([first, second]) = Fingerprint::of(b"ab");
        assert_ne!(first, second);
    }
}

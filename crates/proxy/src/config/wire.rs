//! Taking messages apart in their wire form.
//!
//! A bootstrap with thousands of clusters is read piece by piece: decoded as a whole, its
//! messages would take many times the memory of what they are lowered to, and all at once.

use std::ops::Range;

use prost::encoding::{WireType, decode_key, decode_varint};

/// Splits a message into the places of the values of one length-delimited field, and everything
/// else. `None`: it is malformed.
pub(crate) fn split(wire: &[u8], field: u32) -> Option<(Vec<Range<usize>>, Vec<u8>)> {
    let mut values = Vec::new();
    let mut rest = Vec::new();
    let mut input = wire;
    while !input.is_empty() {
        let start = wire.len() - input.len();
        let (tag, wire_type) = decode_key(&mut input).ok()?;
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
                if tag == field {
                    values.push(begin..begin + length);
                    continue;
                }
            }
            // Groups: not in proto3.
            WireType::StartGroup | WireType::EndGroup => return None,
        }
        rest.extend_from_slice(wire.get(start..wire.len() - input.len())?);
    }
    Some((values, rest))
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn values_of_one_field_and_the_rest() {
        // 1: varint 5; 2: "ab"; 3: fixed32; 2: ""; 4: fixed64.
        let wire = [8, 5, 18, 2, b'a', b'b', 29, 1, 2, 3, 4, 18, 0, 33, 1, 2, 3, 4, 5, 6, 7, 8];
        let (values, rest) = split(&wire, 2).expect("well-formed");
        assert_eq!(values, [4..6, 13..13]);
        assert_eq!(rest, [8, 5, 29, 1, 2, 3, 4, 33, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn malformed_messages_are_refused() {
        for wire in [&[8][..], &[18, 200], &[29, 1, 2], &[33, 1], &[11], &[255; 11]] {
            assert_eq!(split(wire, 2), None, "{wire:?}");
        }
    }
}

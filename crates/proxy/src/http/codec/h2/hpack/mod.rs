//! HPACK, the header compression of HTTP/2 (RFC 7541).
//!
//! The decoder hands each field to a closure while its bytes lie in the block or in the table:
//! nothing is built in between. The encoder appends to the connection's output. Reading order:
//! this file, `decoder`, `encoder`, `table`, `huffman`.

pub(crate) mod decoder;
pub(crate) mod encoder;
pub(crate) mod huffman;
mod table;

#[cfg(test)]
mod tests;

/// What an entry costs in a table beside its bytes (RFC 7541 section 4.1).
const OVERHEAD: usize = 32;

/// The size of both tables until SETTINGS say otherwise.
pub(crate) const DEFAULT_TABLE_SIZE: usize = 4096;

/// Appends an integer with a prefix of `bits` bits; `flags` are the bits in front of it (RFC 7541
/// section 5.1).
fn write_integer(out: &mut Vec<u8>, value: usize, bits: u32, flags: u8) {
    let limit = (1usize << bits) - 1;
    if value < limit {
        out.push(flags | value as u8);
        return;
    }
    out.push(flags | limit as u8);
    let mut rest = value - limit;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Reads an integer with a prefix of `bits` bits: its value and what is behind it. `None`: it is
/// cut off, or larger than anything that a block can mean.
fn read_integer(block: &[u8], bits: u32) -> Option<(usize, &[u8])> {
    let (first, mut rest) = block.split_first()?;
    let limit = (1usize << bits) - 1;
    let mut value = usize::from(*first) & limit;
    if value < limit {
        return Some((value, rest));
    }
    for shift in [0, 7, 14, 21] {
        let (byte, behind) = rest.split_first()?;
        rest = behind;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, rest));
        }
    }
    None
}

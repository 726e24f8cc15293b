//! The little of protobuf's encoding that spans need: they are written field by field, without
//! messages in between.

/// Appends a number in base 128.
pub(super) fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends a field of bytes or text; nothing if it is empty.
pub(super) fn bytes(field: u32, value: &[u8], out: &mut Vec<u8>) {
    if !value.is_empty() {
        present(field, value, out);
    }
}

/// Appends a field of bytes, text or a message, even if it is empty.
pub(crate) fn present(field: u32, value: &[u8], out: &mut Vec<u8>) {
    begin(field, value.len(), out);
    out.extend_from_slice(value);
}

/// Appends what comes before a message of this length.
pub(super) fn begin(field: u32, length: usize, out: &mut Vec<u8>) {
    varint(u64::from(field) << 3 | 2, out);
    varint(length as u64, out);
}

/// Appends a field with a number; nothing if it is zero.
pub(super) fn number(field: u32, value: u64, out: &mut Vec<u8>) {
    if value != 0 {
        varint(u64::from(field) << 3, out);
        varint(value, out);
    }
}

/// Appends a field with a number of eight bytes; nothing if it is zero.
pub(super) fn fixed64(field: u32, value: u64, out: &mut Vec<u8>) {
    if value != 0 {
        varint(u64::from(field) << 3 | 1, out);
        out.extend_from_slice(&value.to_le_bytes());
    }
}

/// Appends a field with a number of four bytes; nothing if it is zero.
pub(super) fn fixed32(field: u32, value: u32, out: &mut Vec<u8>) {
    if value != 0 {
        varint(u64::from(field) << 3 | 5, out);
        out.extend_from_slice(&value.to_le_bytes());
    }
}

/// Appends a message that is written in place: room is made for its length when that is known.
pub(super) fn message(field: u32, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    write(out);
    let length = out.len() - start;
    // What comes before goes behind first.
    begin(field, length, out);
    let prefix = out.len() - start - length;
    if let Some(place) = out.get_mut(start..) {
        place.rotate_right(prefix);
    }
}

//! Encoding header blocks (RFC 7541 section 6).
//!
//! A field enters the dynamic table when it is seen for the second time, or when its name is new:
//! so values that never come again (request ids, timestamps) do not drive those out that do.
//! Entries are found by their hashes in tables without chains: a collision costs a few bytes on
//! the wire, never a wrong field, as the bytes themselves are compared.

use std::collections::VecDeque;

use super::{DEFAULT_TABLE_SIZE, OVERHEAD, huffman, table, write_integer};
use crate::http::headers::Known;

/// Places for hashes: a table of 4 KiB holds at most 128 entries, and seldom half as many.
const PLACES: usize = 256;
/// Values below this length are short enough to be guessed one by one from sizes on the wire.
const SHORT_SECRET: usize = 20;

#[derive(Debug)]
struct Entry {
    bytes: Box<[u8]>,
    name_len: usize,
}

impl Entry {
    fn size(&self) -> usize {
        self.bytes.len() + OVERHEAD
    }
}

/// The state of one direction of a connection.
#[derive(Debug)]
pub(crate) struct Encoder {
    /// The dynamic table, the newest entry at the end.
    entries: VecDeque<Entry>,
    size: usize,
    max_size: usize,
    /// The largest table that we want.
    wanted: usize,
    /// Entries ever made: the newest one's number. It may wrap around, as what is found by it is
    /// compared.
    made: u16,
    /// Sizes to announce in front of the next block: the smallest one in between, and the last.
    announce: Option<(usize, usize)>,
    huffman: bool,
    /// By the hash of name and value: an entry's number.
    fields: Box<[u16; PLACES]>,
    /// By the hash of a name: an entry's number.
    names: Box<[u16; PLACES]>,
    /// Hashes of fields that were seen and not kept.
    seen: Box<[u16; PLACES]>,
}

impl Encoder {
    /// `wanted`: the largest dynamic table, whatever the peer allows.
    pub(crate) fn new(wanted: usize, huffman: bool) -> Self {
        let mut encoder = Self {
            entries: VecDeque::new(),
            size: 0,
            max_size: DEFAULT_TABLE_SIZE,
            wanted,
            made: 0,
            announce: None,
            huffman,
            fields: Box::new([0; PLACES]),
            names: Box::new([0; PLACES]),
            seen: Box::new([0; PLACES]),
        };
        if wanted < DEFAULT_TABLE_SIZE {
            encoder.allow(DEFAULT_TABLE_SIZE);
        }
        encoder
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE.
    pub(crate) fn allow(&mut self, size: usize) {
        let size = size.min(self.wanted);
        if size == self.max_size && self.announce.is_none() {
            return;
        }
        let least = self.announce.map_or(size, |(least, _)| least.min(size));
        self.announce = Some((least, size));
        // What the peer drops on the way to the smallest size is gone for us too.
        self.max_size = least;
        self.evict(0);
        self.max_size = size;
    }

    /// Begins a block.
    pub(crate) fn begin(&mut self, out: &mut Vec<u8>) {
        if let Some((least, last)) = self.announce.take() {
            if least < last {
                write_integer(out, least, 5, 0x20);
            }
            write_integer(out, last, 5, 0x20);
        }
    }

    /// Appends a field; its name is in lower case.
    pub(crate) fn field(&mut self, out: &mut Vec<u8>, known: Option<Known>, name: &[u8], value: &[u8]) {
        let fixed = table::find_name(known, name);
        if let Some(index) = table::find_value(fixed, value) {
            write_integer(out, index, 7, 0x80);
            return;
        }
        if is_secret(known, name, value) {
            self.literal(out, 4, 0x10, fixed, name, value);
            return;
        }
        let name_hash = hash(name, 0);
        let field_hash = hash(value, name_hash);
        let place = field_hash as usize % PLACES;
        if let Some(index) = self.find(self.fields[place], name, Some(value)) {
            write_integer(out, index, 7, 0x80);
            return;
        }
        let name_place = name_hash as usize % PLACES;
        let index = match fixed {
            0 => self.find(self.names[name_place], name, None).unwrap_or(0),
            index => index,
        };
        let tag = (field_hash >> 32) as u16 | 1;
        let size = name.len() + value.len() + OVERHEAD;
        // One that fills much of the table is not worth what it drives out.
        let keep = size <= self.max_size / 2 && (index == 0 || self.seen[place] == tag);
        if !keep {
            self.seen[place] = tag;
            self.literal(out, 4, 0, index, name, value);
            return;
        }
        self.literal(out, 6, 0x40, index, name, value);
        self.evict(size);
        self.size += size;
        self.made = self.made.wrapping_add(1);
        self.entries.push_back(Entry { bytes: [name, value].concat().into(), name_len: name.len() });
        self.fields[place] = self.made;
        if fixed == 0 {
            self.names[name_place] = self.made;
        }
    }

    /// The index of the entry with this number, if it is still there and has this name (and value).
    fn find(&self, number: u16, name: &[u8], value: Option<&[u8]>) -> Option<usize> {
        let age = usize::from(self.made.wrapping_sub(number));
        let place = self.entries.len().checked_sub(age + 1)?;
        let entry = self.entries.get(place)?;
        let (entry_name, entry_value) = entry.bytes.split_at_checked(entry.name_len)?;
        let same = entry_name == name && value.is_none_or(|value| entry_value == value);
        same.then_some(table::ENTRIES.len() + 1 + age)
    }

    fn literal(&self, out: &mut Vec<u8>, bits: u32, flags: u8, index: usize, name: &[u8], value: &[u8]) {
        write_integer(out, index, bits, flags);
        if index == 0 {
            self.text(out, name);
        }
        self.text(out, value);
    }

    fn text(&self, out: &mut Vec<u8>, text: &[u8]) {
        let length = if self.huffman { huffman::encoded_len(text) } else { text.len() };
        if length < text.len() {
            write_integer(out, length, 7, 0x80);
            huffman::encode(text, out);
        } else {
            write_integer(out, text.len(), 7, 0);
            out.extend_from_slice(text);
        }
    }

    fn evict(&mut self, room: usize) {
        while self.size + room > self.max_size
            && let Some(entry) = self.entries.pop_front()
        {
            self.size -= entry.size();
        }
    }
}

/// Whether a field must not enter any table, so that nobody finds it out by guessing (RFC 7541
/// section 7.1.3).
fn is_secret(known: Option<Known>, name: &[u8], value: &[u8]) -> bool {
    match known {
        Some(Known::Authorization) => true,
        Some(Known::Cookie) => value.len() < SHORT_SECRET,
        Some(_) => false,
        None => name == b"proxy-authorization",
    }
}

/// Mixes bytes into a seed, eight at a time.
fn hash(bytes: &[u8], seed: u64) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state = seed ^ (bytes.len() as u64).wrapping_mul(FACTOR);
    let mut mix = |word: u64| {
        state = (state.rotate_left(23) ^ word).wrapping_mul(FACTOR);
    };
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        mix(u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    mix(u64::from_le_bytes(last));
    state ^ state >> 29
}

#[cfg(test)]
impl Encoder {
    /// Entries in the dynamic table.
    pub(super) fn entries(&self) -> usize {
        self.entries.len()
    }
}

//! Decoding header blocks (RFC 7541 section 3).

use std::collections::VecDeque;

use super::{DEFAULT_TABLE_SIZE, OVERHEAD, huffman, read_integer, table};
use crate::http::headers::Known;

/// The block cannot be decoded: the connection ends with COMPRESSION_ERROR, as the tables of the
/// two sides differ from here on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CompressionError;

/// One field of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'a> {
    /// Its name, if known.
    pub(crate) known: Option<Known>,
    /// Its name.
    pub(crate) name: &'a [u8],
    /// Its value.
    pub(crate) value: &'a [u8],
    /// Whether name and value have only characters that HTTP/2 allows (RFC 9113 section 8.2.1).
    pub(crate) validity: Validity,
}

/// What is wrong with a field's characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Validity {
    /// Nothing.
    Valid,
    /// The name has an upper-case letter or no token.
    Name,
    /// The value has a NUL, a line break or the like.
    Value,
}

impl Validity {
    /// Looks at all characters.
    fn of(known: Option<Known>, name: &[u8], value: &[u8]) -> Self {
        // A known name was compared with text that is valid.
        if known.is_none() && !is_name(name) {
            Validity::Name
        } else if !is_value(value) {
            Validity::Value
        } else {
            Validity::Valid
        }
    }
}

/// A lower-case token, with a colon in front if it is a pseudo-header.
fn is_name(name: &[u8]) -> bool {
    let token = name.strip_prefix(b":").unwrap_or(name);
    !token.is_empty()
        && token.iter().all(|byte| match byte {
            b'a'..=b'z' | b'0'..=b'9' => true,
            _ => b"-_.!#$%&'*+^`|~".contains(byte),
        })
}

/// No control characters but the tab, as nghttp2 has it.
fn is_value(value: &[u8]) -> bool {
    value.iter().all(|byte| (*byte >= 0x20 && *byte != 0x7f) || *byte == b'\t')
}

#[derive(Debug)]
struct Entry {
    bytes: Box<[u8]>,
    name_len: usize,
    known: Option<Known>,
    validity: Validity,
}

impl Entry {
    fn size(&self) -> usize {
        self.bytes.len() + OVERHEAD
    }

    fn field(&self) -> Field<'_> {
        let (name, value) = self.bytes.split_at(self.name_len);
        Field { known: self.known, name, value, validity: self.validity }
    }
}

/// The state of one direction of a connection.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// The dynamic table, the newest entry in front.
    entries: VecDeque<Entry>,
    size: usize,
    /// What the peer has chosen, within `limit`.
    max_size: usize,
    /// What we allow.
    limit: usize,
    /// The limit was lowered: the next block must begin by saying that the peer obeys.
    awaits_update: bool,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            size: 0,
            max_size: DEFAULT_TABLE_SIZE,
            limit: DEFAULT_TABLE_SIZE,
            awaits_update: false,
            name: Vec::new(),
            value: Vec::new(),
        }
    }
}

impl Decoder {
    /// A table size that we offer, not yet acknowledged: the peer may use it from now on.
    pub(crate) fn offer(&mut self, size: usize) {
        self.limit = self.limit.max(size);
    }

    /// The peer has acknowledged our table size.
    pub(crate) fn acknowledged(&mut self, size: usize) {
        self.limit = size;
        self.awaits_update = self.max_size > size;
    }

    /// Decodes a whole block and hands over its fields one by one.
    pub(crate) fn decode(
        &mut self,
        mut block: &[u8],
        mut field: impl FnMut(Field<'_>),
    ) -> Result<(), CompressionError> {
        let mut may_resize = true;
        while let Some(first) = block.first() {
            if first & 0xe0 == 0x20 {
                let (size, rest) = read_integer(block, 5).ok_or(CompressionError)?;
                // Only in front of all fields (RFC 7541 section 4.2).
                if !may_resize || size > self.limit {
                    return Err(CompressionError);
                }
                self.max_size = size;
                self.awaits_update = false;
                self.evict(0);
                block = rest;
                continue;
            }
            if self.awaits_update {
                return Err(CompressionError);
            }
            may_resize = false;
            if first & 0x80 != 0 {
                let (index, rest) = read_integer(block, 7).ok_or(CompressionError)?;
                field(self.find(index)?);
                block = rest;
                continue;
            }
            let (keep, bits) = if first & 0x40 != 0 { (true, 6) } else { (false, 4) };
            let (index, rest) = read_integer(block, bits).ok_or(CompressionError)?;
            block = self.literal(index, rest, keep, &mut field)?;
        }
        Ok(())
    }

    /// A literal field; gives what is behind it.
    fn literal<'b>(
        &mut self,
        index: usize,
        block: &'b [u8],
        keep: bool,
        field: &mut impl FnMut(Field<'_>),
    ) -> Result<&'b [u8], CompressionError> {
        let mut name_buffer = std::mem::take(&mut self.name);
        let mut value_buffer = std::mem::take(&mut self.value);
        let mut block = block;
        let (known, name): (Option<Known>, &[u8]) = if index == 0 {
            let (name, rest) = read_string(block, &mut name_buffer)?;
            block = rest;
            (Known::find(name), name)
        } else {
            let named = self.find(index)?;
            (named.known, named.name)
        };
        let (value, rest) = read_string(block, &mut value_buffer)?;
        let validity = Validity::of(known, name, value);
        field(Field { known, name, value, validity });
        if keep {
            let entry = Entry {
                bytes: [name, value].concat().into_boxed_slice(),
                name_len: name.len(),
                known,
                validity,
            };
            self.insert(entry);
        }
        self.name = name_buffer;
        self.value = value_buffer;
        Ok(rest)
    }

    fn find(&self, index: usize) -> Result<Field<'_>, CompressionError> {
        let index = index.checked_sub(1).ok_or(CompressionError)?;
        match table::ENTRIES.get(index) {
            Some((name, value)) => Ok(Field {
                known: table::KNOWN.get(index).copied().flatten(),
                name: name.as_bytes(),
                value: value.as_bytes(),
                validity: Validity::Valid,
            }),
            None => {
                let entry = self.entries.get(index - table::ENTRIES.len()).ok_or(CompressionError)?;
                Ok(entry.field())
            }
        }
    }

    fn insert(&mut self, entry: Entry) {
        let size = entry.size();
        self.evict(size);
        // One that is larger than the table empties it (RFC 7541 section 4.4).
        if size <= self.max_size {
            self.size += size;
            self.entries.push_front(entry);
        }
    }

    /// Makes room for so many bytes.
    fn evict(&mut self, room: usize) {
        while self.size + room > self.max_size
            && let Some(entry) = self.entries.pop_back()
        {
            self.size -= entry.size();
        }
    }
}

/// A string literal (RFC 7541 section 5.2) and what is behind it.
fn read_string<'a, 'b: 'a>(
    block: &'b [u8],
    buffer: &'a mut Vec<u8>,
) -> Result<(&'a [u8], &'b [u8]), CompressionError> {
    let huffman = block.first().ok_or(CompressionError)? & 0x80 != 0;
    let (length, rest) = read_integer(block, 7).ok_or(CompressionError)?;
    let (text, rest) = rest.split_at_checked(length).ok_or(CompressionError)?;
    if !huffman {
        return Ok((text, rest));
    }
    buffer.clear();
    huffman::decode(text, buffer).map_err(|_| CompressionError)?;
    Ok((&buffer[..], rest))
}

#[cfg(test)]
impl Decoder {
    /// The dynamic table's size and fields, the newest first.
    pub(super) fn table(&self) -> (usize, Vec<String>) {
        let line = |entry: &Entry| {
            let field = entry.field();
            format!("{}: {}", String::from_utf8_lossy(field.name), String::from_utf8_lossy(field.value))
        };
        (self.size, self.entries.iter().map(line).collect())
    }

    /// Lets the peer use a table of this size.
    pub(super) fn with_limit(size: usize) -> Self {
        Self { max_size: size, limit: size, ..Self::default() }
    }
}

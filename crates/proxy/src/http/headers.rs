//! The header block of one message: request head, response head or trailers.
//!
//! A block is one byte buffer and a list of spans into it, so that parsing, matching, rewriting
//! and writing a message allocate nothing per header, and a block can be cleared and reused.
//! Names are lower case. Pseudo-headers (`:method`, `:path`, ...) are entries like all others,
//! as in Envoy, so that matchers, mutations and formatters need no special case; codecs write
//! them where their protocol wants them. `host` of HTTP/1 is stored as `:authority`.
//!
//! Names that the proxy itself reads are `Known` (`known`): they are recognised once, when the
//! entry is made, and found by one array look-up. Their text is not in the buffer.
//!
//! A map is a pointer: it is moved a lot, and most that are made stay empty. What it points to
//! comes from the worker's free list and goes back there. Entries that are removed stay as marks,
//! so that what is behind them need not be moved and found anew.
//!
//! HTTP/1 heads are not taken apart but kept as they came (`Lines`): the entries are spans of the
//! copy, and lines that nobody changed are written as they are, several at once. What is added to
//! such a head is stored as a line too.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

mod known;

pub(crate) use known::{Known, KnownSet};

use crate::text;

/// A run of bytes in the buffer.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    len: u32,
}

impl Span {
    #[inline]
    fn of(range: Range<usize>) -> Self {
        Self { start: range.start as u32, len: (range.end - range.start) as u32 }
    }

    #[inline]
    fn range(self) -> Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }
}

/// No known name: the value of `Entry::known` for all other headers.
const OTHER: u8 = u8::MAX;
/// The entry was removed.
const GONE: u8 = u8::MAX - 1;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Means nothing if the name is known, unless `line` is set.
    name: Span,
    value: Span,
    known: u8,
    /// In the buffer the entry is a line of HTTP/1: the lower-case name, a colon, a space, the
    /// value and CRLF.
    line: bool,
}

/// Room for an ordinary message's names and values.
const ORDINARY_BYTES: usize = 1024;
/// Room for an ordinary message's headers.
const ORDINARY_ENTRIES: usize = 32;
/// Blocks that a worker keeps for reuse.
const KEPT: usize = 128;

/// The headers of one message, in order.
#[derive(Clone, Default)]
pub(crate) struct HeaderMap(Option<Box<Block>>);

/// What a map points to. None is as good as an empty one.
#[derive(Clone)]
struct Block {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// Known names that are there.
    present: KnownSet,
    /// Those that are there more than once.
    repeated: KnownSet,
    /// For each known name that is there, the index of its first entry.
    first: [u16; Known::COUNT],
    /// How HTTP/1 is to write the names, if not as they are stored.
    case: Option<Box<OriginalCase>>,
    /// The map came as lines of HTTP/1, and so will most likely be written as such.
    lines: bool,
}

static EMPTY: Block = Block::new(Vec::new(), Vec::new());

thread_local! {
    #[allow(clippy::vec_box, reason = "the boxes are what is kept")]
    static BLOCKS: RefCell<Vec<Box<Block>>> = const { RefCell::new(Vec::new()) };
}

/// A block from the worker's free list, or a new one.
fn take_block() -> Box<Block> {
    let kept = BLOCKS.try_with(|kept| kept.borrow_mut().pop()).ok().flatten();
    kept.unwrap_or_else(|| {
        let (bytes, entries) = (Vec::with_capacity(ORDINARY_BYTES), Vec::with_capacity(ORDINARY_ENTRIES));
        Box::new(Block::new(bytes, entries))
    })
}

impl Drop for HeaderMap {
    #[inline]
    fn drop(&mut self) {
        if let Some(block) = self.0.take() {
            give_block(block);
        }
    }
}

fn give_block(mut block: Box<Block>) {
    if block.bytes.capacity() > 8 * ORDINARY_BYTES || block.entries.capacity() > 4 * ORDINARY_ENTRIES {
        return;
    }
    block.clear();
    // At the end of a thread there is no list any more.
    let _ = BLOCKS.try_with(|kept| {
        let mut kept = kept.borrow_mut();
        if kept.len() < KEPT {
            kept.push(block);
        }
    });
}

/// How the names of a message were written (`preserve_case`).
#[derive(Clone, Debug, Default)]
pub(crate) struct OriginalCase {
    names: Vec<Box<[u8]>>,
    /// `formatter_type_on_envoy_headers: PROPER_CASE`: names that the message did not have.
    pub(crate) proper_others: bool,
    /// `forward_reason_phrase`: the phrase behind the status.
    pub(crate) reason: Option<Box<str>>,
}

impl OriginalCase {
    /// A name as it was written, if the message had it.
    pub(crate) fn find(&self, name: &[u8]) -> Option<&[u8]> {
        self.names.iter().find(|written| written.eq_ignore_ascii_case(name)).map(|written| &**written)
    }

    /// Notes how a name was written, the first time that it was.
    pub(crate) fn remember(&mut self, name: &[u8]) {
        if self.find(name).is_none() {
            self.names.push(name.into());
        }
    }
}

impl Block {
    const fn new(bytes: Vec<u8>, entries: Vec<Entry>) -> Self {
        let (present, repeated) = (KnownSet::EMPTY, KnownSet::EMPTY);
        Self { bytes, entries, present, repeated, first: [0; Known::COUNT], case: None, lines: false }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
        self.present = KnownSet::EMPTY;
        self.repeated = KnownSet::EMPTY;
        self.case = None;
        self.lines = false;
    }

    #[inline]
    fn slice(&self, span: Span) -> &[u8] {
        &self.bytes[span.range()]
    }

    #[inline]
    fn name(&self, entry: &Entry) -> &[u8] {
        match Known::ALL.get(usize::from(entry.known)) {
            Some(known) => known.text().as_bytes(),
            None => self.slice(entry.name),
        }
    }

    /// Appends bytes to the buffer.
    #[inline]
    fn store(&mut self, value: &[u8]) -> Span {
        let start = self.bytes.len();
        text::append(&mut self.bytes, [value]);
        Span::of(start..start + value.len())
    }

    /// Appends a line of a known name: the spans of name and value.
    #[inline]
    fn store_line(&mut self, name: Known, value: &[u8]) -> (Span, Span) {
        let (line, length) = name.wide_line();
        let start = self.bytes.len();
        let value_at = start + length;
        text::append_line(&mut self.bytes, line, length, value);
        (Span::of(start..value_at - 2), Span::of(value_at..value_at + value.len()))
    }

    #[inline]
    fn push(&mut self, entry: Entry) {
        if let Some(known) = Known::ALL.get(usize::from(entry.known)) {
            self.index(*known, self.entries.len());
        }
        self.entries.push(entry);
    }

    /// Notes that an entry has a known name.
    #[inline]
    fn index(&mut self, known: Known, at: usize) {
        if self.present.contains(known) {
            self.repeated.insert(known);
        } else {
            self.present.insert(known);
            self.first[known as usize] = at as u16;
        }
    }

    /// The first entry of a known name.
    #[inline]
    fn place(&self, name: Known) -> Option<usize> {
        self.present.contains(name).then(|| usize::from(self.first[name as usize]))
    }

    #[inline]
    fn get(&self, name: Known) -> Option<&[u8]> {
        let entry = self.entries.get(self.place(name)?)?;
        Some(self.slice(entry.value))
    }

    /// Marks the entries of a known name as removed, from one on.
    fn forget(&mut self, name: Known, from: usize) {
        for entry in self.entries.iter_mut().skip(from) {
            if entry.known == name as u8 {
                entry.known = GONE;
            }
        }
    }

    /// Gives an entry another value: in the old one's place if there is room.
    #[inline]
    fn replace(&mut self, at: usize, value: &[u8]) {
        let Some(&Entry { value: old, known, .. }) = self.entries.get(at) else { return };
        let known = Known::ALL.get(usize::from(known)).filter(|known| self.lines && !known.is_pseudo());
        let old = old.range();
        let in_place = Span::of(old.start..old.start + value.len());
        let (name, value, line) = if value.len() == old.len() {
            self.bytes[old].copy_from_slice(value);
            return;
        } else if let Some(known) = known {
            let (name, value) = self.store_line(*known, value);
            (Some(name), value, true)
        } else if value.len() < old.len() {
            self.bytes[in_place.range()].copy_from_slice(value);
            (None, in_place, false)
        } else {
            (None, self.store(value), false)
        };
        if let Some(entry) = self.entries.get_mut(at) {
            entry.name = name.unwrap_or(entry.name);
            entry.value = value;
            entry.line = line;
        }
    }

    /// Finds the known names anew.
    fn reindex(&mut self) {
        self.present = KnownSet::EMPTY;
        self.repeated = KnownSet::EMPTY;
        for at in 0..self.entries.len() {
            if let Some(known) = Known::ALL.get(usize::from(self.entries[at].known)) {
                self.index(*known, at);
            }
        }
    }
}

impl HeaderMap {
    /// An empty block.
    pub(crate) const fn new() -> Self {
        Self(None)
    }

    #[inline]
    fn block(&self) -> &Block {
        self.0.as_deref().unwrap_or(&EMPTY)
    }

    #[inline]
    fn block_mut(&mut self) -> &mut Block {
        self.0.get_or_insert_with(take_block)
    }

    /// Removes everything and keeps the allocations.
    pub(crate) fn clear(&mut self) {
        if let Some(block) = &mut self.0 {
            block.clear();
        }
    }

    /// Begins to fill the map with a head of HTTP/1; what it had goes.
    #[inline]
    pub(crate) fn lines(&mut self) -> Lines<'_> {
        let block = self.block_mut();
        block.clear();
        Lines { block, finished: false, capitals: false }
    }

    /// How HTTP/1 is to write the names, if not as they are stored.
    pub(crate) fn case(&self) -> Option<&OriginalCase> {
        self.block().case.as_deref()
    }

    /// Sets how HTTP/1 is to write the names.
    pub(crate) fn set_case(&mut self, case: OriginalCase) {
        self.block_mut().case = Some(Box::new(case));
    }

    /// Number of entries, pseudo-headers included.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.iter().count()
    }

    /// Bytes of all names and values, as Envoy counts a header block (names, values, no separators).
    pub(crate) fn byte_size(&self) -> usize {
        self.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// Appends a header; `name` may be in any case.
    pub(crate) fn append(&mut self, name: &[u8], value: &[u8]) {
        match Known::find_in_any_case(name) {
            Some((known, _)) => self.append_known(known, value),
            None => {
                let block = self.block_mut();
                let name = block.store(name);
                block.bytes[name.range()].make_ascii_lowercase();
                let value = block.store(value);
                block.push(Entry { name, value, known: OTHER, line: false });
            }
        }
    }

    /// Appends a known header.
    #[inline]
    pub(crate) fn append_known(&mut self, name: Known, value: &[u8]) {
        let block = self.block_mut();
        let line = block.lines && !name.is_pseudo();
        let (span, value) = match line {
            true => block.store_line(name, value),
            false => (Span { start: 0, len: 0 }, block.store(value)),
        };
        block.push(Entry { name: span, value, known: name as u8, line });
    }

    /// Appends a header whose lower-case name was looked up already.
    #[inline]
    pub(crate) fn append_found(&mut self, known: Option<Known>, name: &[u8], value: &[u8]) {
        let Some(known) = known else {
            let block = self.block_mut();
            let name = block.store(name);
            let value = block.store(value);
            block.push(Entry { name, value, known: OTHER, line: false });
            return;
        };
        self.append_known(known, value);
    }

    /// The first value of a known header.
    #[inline]
    pub(crate) fn get(&self, name: Known) -> Option<&[u8]> {
        self.block().get(name)
    }

    /// The first value of a known header as text; a value that is not UTF-8 reads as absent.
    pub(crate) fn get_str(&self, name: Known) -> Option<&str> {
        self.get(name).and_then(text::from_bytes)
    }

    /// Whether a known header is present.
    #[inline]
    pub(crate) fn contains(&self, name: Known) -> bool {
        self.block().present.contains(name)
    }

    /// Which of these headers are present.
    #[inline]
    pub(crate) fn present(&self, names: KnownSet) -> KnownSet {
        self.block().present.and(names)
    }

    /// Which of these headers are present more than once.
    #[inline]
    pub(crate) fn repeated(&self, names: KnownSet) -> KnownSet {
        self.block().repeated.and(names)
    }

    /// Whether one of these headers is present.
    #[inline]
    pub(crate) fn contains_any(&self, names: KnownSet) -> bool {
        !self.present(names).is_empty()
    }

    /// The first value of the header with this lower-case name.
    pub(crate) fn find(&self, name: &str) -> Option<&[u8]> {
        self.find_all(name).next()
    }

    /// All values of the header with this lower-case name, in order.
    pub(crate) fn find_all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        let block = self.block();
        let known = Known::find(name.as_bytes());
        let range = match known {
            Some(known) => match block.place(known) {
                None => 0..0,
                Some(first) if block.repeated.contains(known) => first..block.entries.len(),
                Some(first) => first..first + 1,
            },
            None => 0..block.entries.len(),
        };
        let known = known.map_or(OTHER, |known| known as u8);
        block.entries[range].iter().filter_map(move |entry| {
            let same = entry.known == known && (known != OTHER || block.slice(entry.name) == name.as_bytes());
            same.then(|| block.slice(entry.value))
        })
    }

    /// All headers as (name, value), in order, pseudo-headers included.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.iter_known().map(|(_, name, value)| (name, value))
    }

    /// All headers with their known name, in order, pseudo-headers included.
    pub(crate) fn iter_known(&self) -> impl Iterator<Item = (Option<Known>, &[u8], &[u8])> {
        let block = self.block();
        block.entries.iter().filter(|entry| entry.known != GONE).map(|entry| {
            let known = Known::ALL.get(usize::from(entry.known)).copied();
            let name = known.map_or_else(|| block.slice(entry.name), |known| known.text().as_bytes());
            (known, name, block.slice(entry.value))
        })
    }

    /// Writes all headers but pseudo-headers and `without` as lines of HTTP/1. Lines that came as
    /// such and stand beside each other are one copy.
    pub(crate) fn write_lines(&self, out: &mut Vec<u8>, without: KnownSet) {
        let block = self.block();
        let mut run = 0..0;
        for entry in &block.entries {
            let known = Known::ALL.get(usize::from(entry.known)).copied();
            let skipped = match known {
                Some(known) => known.is_pseudo() || without.contains(known),
                None => entry.known == GONE,
            };
            if skipped {
                continue;
            }
            let start = entry.name.start as usize;
            if entry.line && start == run.end {
                run.end = entry.value.range().end + 2;
                continue;
            }
            if !run.is_empty() {
                text::append(out, [&block.bytes[run]]);
                run = 0..0;
            }
            if entry.line {
                run = start..entry.value.range().end + 2;
                continue;
            }
            let value = block.slice(entry.value);
            match known {
                Some(known) => text::append(out, [known.line(), value, b"\r\n"]),
                None => {
                    let name = block.slice(entry.name);
                    if name.first() != Some(&b':') {
                        text::append(out, [name, b": ", value, b"\r\n"]);
                    }
                }
            }
        }
        if !run.is_empty() {
            text::append(out, [&block.bytes[run]]);
        }
    }

    /// About how many bytes the map takes when it is written.
    #[inline]
    pub(crate) fn written_size(&self) -> usize {
        let block = self.block();
        block.bytes.len() + 32 * block.entries.len()
    }

    /// Sets a known header to one value: the first entry is overwritten in place, others go.
    pub(crate) fn set(&mut self, name: Known, value: &[u8]) {
        let block = self.block_mut();
        let Some(first) = block.place(name) else {
            self.append_known(name, value);
            return;
        };
        block.replace(first, value);
        if block.repeated.contains(name) {
            block.repeated.remove(name);
            block.forget(name, first + 1);
        }
    }

    /// Sets the header with this name (any case) to one value.
    pub(crate) fn set_named(&mut self, name: &str, value: &[u8]) {
        if let Some((known, _)) = Known::find_in_any_case(name.as_bytes()) {
            self.set(known, value);
            return;
        }
        let block = self.block_mut();
        let same = |block: &Block, entry: &Entry| {
            entry.known == OTHER && block.slice(entry.name).eq_ignore_ascii_case(name.as_bytes())
        };
        let Some(place) = block.entries.iter().position(|entry| same(block, entry)) else {
            self.append(name.as_bytes(), value);
            return;
        };
        block.replace(place, value);
        self.remove_others(name, place + 1);
    }

    /// Removes a known header; says whether it was there.
    pub(crate) fn remove(&mut self, name: Known) -> bool {
        if !self.contains(name) {
            return false;
        }
        let block = self.block_mut();
        let first = usize::from(block.first[name as usize]);
        block.present.remove(name);
        if block.repeated.contains(name) {
            block.repeated.remove(name);
            block.forget(name, first);
        } else if let Some(entry) = block.entries.get_mut(first) {
            entry.known = GONE;
        }
        true
    }

    /// Removes known headers.
    #[inline]
    pub(crate) fn remove_set(&mut self, names: KnownSet) {
        for name in self.present(names).iter() {
            self.remove(name);
        }
    }

    /// Removes all headers with this name (any case); says whether one was there.
    pub(crate) fn remove_named(&mut self, name: &str) -> bool {
        match Known::find_in_any_case(name.as_bytes()) {
            Some((known, _)) => self.remove(known),
            None => self.remove_others(name, 0),
        }
    }

    /// Removes the headers with this name, which is no known one, from an entry on.
    fn remove_others(&mut self, name: &str, from: usize) -> bool {
        let Some(block) = &mut self.0 else { return false };
        let mut removed = false;
        for entry in block.entries.iter_mut().skip(from) {
            let same =
                entry.known == OTHER && block.bytes[entry.name.range()].eq_ignore_ascii_case(name.as_bytes());
            if same {
                entry.known = GONE;
                removed = true;
            }
        }
        removed
    }

    /// Keeps the headers for which `keep(name, value)` holds.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let Some(block) = &mut self.0 else { return };
        for at in 0..block.entries.len() {
            let entry = &block.entries[at];
            if entry.known != GONE && !keep(block.name(entry), block.slice(entry.value)) {
                block.entries[at].known = GONE;
            }
        }
        block.reindex();
    }

    /// `:method`, empty if absent.
    #[inline]
    pub(crate) fn method(&self) -> &[u8] {
        self.get(Known::Method).unwrap_or_default()
    }

    /// `:path` with query, empty if absent.
    #[inline]
    pub(crate) fn path(&self) -> &[u8] {
        self.get(Known::Path).unwrap_or_default()
    }

    /// `:authority`, empty if absent.
    #[inline]
    pub(crate) fn authority(&self) -> &[u8] {
        self.get(Known::Authority).unwrap_or_default()
    }

    /// `:status` as a number; 0 if absent or malformed.
    #[inline]
    pub(crate) fn status(&self) -> u16 {
        match self.get(Known::Status) {
            Some([a @ b'0'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9']) => {
                u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0')
            }
            Some(text) => std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).unwrap_or(0),
            None => 0,
        }
    }

    /// Sets `:status`.
    pub(crate) fn set_status(&mut self, status: u16) {
        let digits =
            [b'0' + (status / 100 % 10) as u8, b'0' + (status / 10 % 10) as u8, b'0' + (status % 10) as u8];
        self.set(Known::Status, &digits);
    }

    /// Whether the message is gRPC: `content-type` is `application/grpc` or `application/grpc+...`.
    pub(crate) fn is_grpc(&self) -> bool {
        match self.get(Known::ContentType).and_then(|value| value.strip_prefix(b"application/grpc")) {
            Some(rest) => rest.is_empty() || rest[0] == b'+' || rest[0] == b';',
            None => false,
        }
    }
}

/// A map that is filled with the head of an HTTP/1 message while the head is read: entries are
/// spans of it. Until it is finished, and if it never is, the map is empty.
pub(crate) struct Lines<'m> {
    block: &'m mut Block,
    finished: bool,
    /// A name has capitals.
    capitals: bool,
}

impl Lines<'_> {
    /// Appends an entry of a part of the head that is no line of its own.
    #[inline]
    pub(crate) fn push(&mut self, known: Known, value: Range<usize>) {
        let (name, value) = (Span { start: 0, len: 0 }, Span::of(value));
        self.block.push(Entry { name, value, known: known as u8, line: false });
    }

    /// Appends a line's entry. `plain`: between name and value are a colon and a space, and CRLF
    /// is behind the value. `capitals`: the name has some.
    #[inline]
    pub(crate) fn push_line(
        &mut self,
        known: Option<Known>,
        name: Range<usize>,
        value: Range<usize>,
        plain: bool,
        capitals: bool,
    ) {
        self.capitals |= capitals;
        let known = known.map_or(OTHER, |known| known as u8);
        self.block.push(Entry { name: Span::of(name), value: Span::of(value), known, line: plain });
    }

    /// The head is complete: these are its bytes.
    #[inline]
    pub(crate) fn finish(&mut self, head: &[u8]) {
        self.finished = true;
        self.block.lines = true;
        text::append(&mut self.block.bytes, [head]);
        if self.capitals {
            self.lower();
        }
    }

    fn lower(&mut self) {
        let Block { bytes, entries, .. } = &mut *self.block;
        for entry in entries.iter() {
            bytes[entry.name.range()].make_ascii_lowercase();
        }
    }
}

impl Drop for Lines<'_> {
    #[inline]
    fn drop(&mut self) {
        if !self.finished {
            self.block.clear();
        }
    }
}

impl fmt::Debug for HeaderMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes| String::from_utf8_lossy(bytes);
        f.debug_map().entries(self.iter().map(|(name, value)| (text(name), text(value)))).finish()
    }
}

#[cfg(test)]
mod tests;

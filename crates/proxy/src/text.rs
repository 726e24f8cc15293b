//! Bytes appended and read as text on the way of every message, where what the standard library
//! does for each call adds up: room is made once for several runs, text that is ASCII is told by
//! looking at words, and sixteen bytes are compared at once. The only unsafe code of the HTTP path.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m128i, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_max_epu8, _mm_min_epu8, _mm_movemask_epi8, _mm_set1_epi8,
};

/// Appends runs of bytes, one behind the other; room for all of them is made at once.
///
/// # Panics
/// As `Vec::reserve`: they do not fit into memory.
#[inline]
#[allow(unsafe_code, reason = "asking for room once, not for each run, is what this is for")]
pub(crate) fn append<const N: usize>(to: &mut Vec<u8>, runs: [&[u8]; N]) {
    let more = runs.iter().fold(0usize, |sum, run| sum.saturating_add(run.len()));
    to.reserve(more);
    let mut end = to.len();
    for run in runs {
        // SAFETY: the sum did not overflow, as no vector has room for so much, so there is room
        // for all runs behind what is there. A run cannot lie in it: `to` is borrowed mutably.
        unsafe { std::ptr::copy_nonoverlapping(run.as_ptr(), to.as_mut_ptr().add(end), run.len()) };
        end += run.len();
    }
    // SAFETY: `reserve` made room up to here, and all of it was written.
    unsafe { to.set_len(end) };
}

/// Appends the first `length` bytes of a name, a value and CRLF.
///
/// # Panics
/// As `append`, and if the name is not so long.
#[inline]
#[allow(unsafe_code, reason = "a copy of a length that the compiler knows is a few moves")]
pub(crate) fn append_line<const N: usize>(to: &mut Vec<u8>, name: &[u8; N], length: usize, value: &[u8]) {
    assert!(length <= N, "a name is within its room");
    to.reserve(N.saturating_add(2).saturating_add(value.len()));
    let start = to.len();
    // SAFETY: there is room for all of the name's N bytes, the value and two more behind what is
    // there, and the value begins no later than behind those N. None of it lies in `to`, which is
    // borrowed mutably. Up to the new length everything is written.
    unsafe {
        let place = to.as_mut_ptr().add(start);
        std::ptr::copy_nonoverlapping(name.as_ptr(), place, N);
        std::ptr::copy_nonoverlapping(value.as_ptr(), place.add(length), value.len());
        let end = length + value.len();
        std::ptr::copy_nonoverlapping(b"\r\n".as_ptr(), place.add(end), 2);
        to.set_len(start + end + 2);
    }
}

/// Whether there is a letter in upper case.
#[inline]
pub(crate) fn has_capitals(text: &[u8]) -> bool {
    let capitals = |bytes: &[u8; 16]| {
        let bytes = Sixteen::of(bytes);
        bytes.from(b'A') & bytes.up_to(b'Z') != 0
    };
    let (chunks, rest) = text.as_chunks();
    if chunks.iter().any(capitals) {
        return true;
    }
    match text.last_chunk() {
        // Some are looked at twice.
        Some(last) => !rest.is_empty() && capitals(last),
        None => rest.iter().any(u8::is_ascii_uppercase),
    }
}

/// Bytes as text, if they are UTF-8; quick if they are ASCII.
#[inline]
#[allow(unsafe_code, reason = "that it is ASCII was checked")]
pub(crate) fn from_bytes(bytes: &[u8]) -> Option<&str> {
    if !bytes.is_ascii() {
        return std::str::from_utf8(bytes).ok();
    }
    // SAFETY: ASCII is UTF-8.
    Some(unsafe { std::str::from_utf8_unchecked(bytes) })
}

/// The first place of one of two bytes.
#[inline]
pub(crate) fn find_either(text: &[u8], one: u8, other: u8) -> Option<usize> {
    let mut at = 0;
    while let Some(bytes) = text.get(at..).and_then(<[u8]>::first_chunk) {
        let bytes = Sixteen::of(bytes);
        let found = bytes.equal(one) | bytes.equal(other);
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize);
        }
        at += 16;
    }
    let rest = text.get(at..).unwrap_or_default();
    rest.iter().position(|byte| *byte == one || *byte == other).map(|place| at + place)
}

/// Sixteen bytes that are compared at once: each comparison has a bit for each byte, the lowest for
/// the first one.
#[derive(Clone, Copy)]
pub(crate) struct Sixteen(
    #[cfg(target_arch = "x86_64")] __m128i,
    #[cfg(not(target_arch = "x86_64"))] [u8; 16],
);

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "SSE2 is what every x86-64 has")]
impl Sixteen {
    /// These.
    #[inline(always)]
    pub(crate) fn of(bytes: &[u8; 16]) -> Self {
        // SAFETY: it reads the sixteen bytes, wherever they lie.
        Self(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
    }

    /// Those that are this one.
    #[inline(always)]
    pub(crate) fn equal(self, byte: u8) -> u32 {
        // SAFETY: arithmetic.
        unsafe { _mm_movemask_epi8(_mm_cmpeq_epi8(self.0, _mm_set1_epi8(byte as i8))) as u32 }
    }

    /// Those that are at most this one.
    #[inline(always)]
    pub(crate) fn up_to(self, byte: u8) -> u32 {
        // SAFETY: arithmetic.
        unsafe {
            let lesser = _mm_min_epu8(self.0, _mm_set1_epi8(byte as i8));
            _mm_movemask_epi8(_mm_cmpeq_epi8(lesser, self.0)) as u32
        }
    }

    /// Those that are at least this one.
    #[inline(always)]
    pub(crate) fn from(self, byte: u8) -> u32 {
        // SAFETY: arithmetic.
        unsafe {
            let greater = _mm_max_epu8(self.0, _mm_set1_epi8(byte as i8));
            _mm_movemask_epi8(_mm_cmpeq_epi8(greater, self.0)) as u32
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Sixteen {
    /// These.
    #[inline(always)]
    pub(crate) fn of(bytes: &[u8; 16]) -> Self {
        Self(*bytes)
    }

    fn all(self, holds: impl Fn(u8) -> bool) -> u32 {
        self.0.iter().rev().fold(0, |bits, byte| bits << 1 | u32::from(holds(*byte)))
    }

    /// Those that are this one.
    #[inline(always)]
    pub(crate) fn equal(self, byte: u8) -> u32 {
        self.all(|own| own == byte)
    }

    /// Those that are at most this one.
    #[inline(always)]
    pub(crate) fn up_to(self, byte: u8) -> u32 {
        self.all(|own| own <= byte)
    }

    /// Those that are at least this one.
    #[inline(always)]
    pub(crate) fn from(self, byte: u8) -> u32 {
        self.all(|own| own >= byte)
    }
}

#[cfg(test)]
mod tests {
    use super::{Sixteen, append, append_line, find_either, from_bytes, has_capitals};

    #[test]
    fn lines_are_appended() {
        let mut to = b"a".to_vec();
        append_line(&mut to, b"name: \0\0", 6, b"value");
        append_line(&mut to, b"te: ", 4, b"");
        assert_eq!(String::from_utf8_lossy(&to), "aname: value\r\nte: \r\n");
    }

    #[test]
    fn capitals_are_found_wherever_they_are() {
        for length in 0..50 {
            let mut text = vec![b'@'; length];
            for byte in [b'[', b'`', b'a', b'z', 0xc1] {
                text.fill(byte);
                assert!(!has_capitals(&text));
            }
            for at in 0..length {
                for letter in [b'A', b'Q', b'Z'] {
                    text[at] = letter;
                    assert!(has_capitals(&text), "{at} of {length}");
                }
                text[at] = b'-';
            }
        }
    }

    #[test]
    fn either_is_found() {
        let text = b"0123456789abcdef0123456?89#?";
        for end in 0..=text.len() {
            let text = text.get(..end).unwrap_or_default();
            let check = |one, other| {
                let expected = text.iter().position(|byte| *byte == one || *byte == other);
                assert_eq!(find_either(text, one, other), expected);
            };
            check(b'?', b'#');
            check(b'#', b'9');
            check(b'#', b'#');
        }
    }

    #[test]
    fn sixteen_bytes_are_compared_as_one_is() {
        let mut bytes = [0; 16];
        for start in 0..=u8::MAX {
            for (at, byte) in bytes.iter_mut().enumerate() {
                *byte = start.wrapping_add((at * 17) as u8);
            }
            for limit in [0, 0x1f, 0x20, b':', 0x7f, 0x80, 0xff] {
                let all = |holds: &dyn Fn(u8) -> bool| {
                    bytes.iter().rev().fold(0, |bits, byte| bits << 1 | u32::from(holds(*byte)))
                };
                let wide = Sixteen::of(&bytes);
                assert_eq!(wide.equal(limit), all(&|byte| byte == limit));
                assert_eq!(wide.up_to(limit), all(&|byte| byte <= limit));
                assert_eq!(wide.from(limit), all(&|byte| byte >= limit));
            }
        }
    }

    #[test]
    fn runs_are_appended_in_order() {
        let mut to = b"a".to_vec();
        append(&mut to, [b"", b"bc", b"", b"def"]);
        append(&mut to, []);
        append(&mut to, [&[b'x'; 1000]]);
        assert_eq!(to.get(..6), Some(&b"abcdef"[..]));
        assert_eq!((to.len(), to.last()), (1006, Some(&b'x')));
        let mut empty = Vec::new();
        append(&mut empty, [b"", b""]);
        assert_eq!((empty.len(), empty.capacity()), (0, 0));
    }

    #[test]
    fn text_is_what_is_utf8() {
        for bytes in
            [&b""[..], b"plain text that is longer than a word", "grün".as_bytes(), b"\xff", b"abcdefgh\xc3"]
        {
            assert_eq!(from_bytes(bytes), std::str::from_utf8(bytes).ok());
        }
    }
}

//! Bytes appended and read as text on the way of every message, where what the standard library
//! does for each call adds up: room is made once for several runs, and text that is ASCII is told
//! by looking at words. The only unsafe code of the HTTP path.

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

/// Bytes as text, if they are UTF-8; quick if they are ASCII.
#[inline]
#[allow(unsafe_code, reason = "that it is ASCII was checked")]
pub(crate) fn from_bytes(bytes: &[u8]) -> Option<&str> {
    match bytes.is_ascii() {
        // SAFETY: ASCII is UTF-8.
        true => Some(unsafe { std::str::from_utf8_unchecked(bytes) }),
        false => std::str::from_utf8(bytes).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::{append, from_bytes};

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
        for bytes in [&b""[..], b"plain text that is longer than a word", "grün".as_bytes(), b"\xff", b"abcdefgh\xc3"] {
            assert_eq!(from_bytes(bytes), std::str::from_utf8(bytes).ok());
        }
    }
}

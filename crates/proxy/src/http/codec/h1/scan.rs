//! Finding the byte at which a part of a head ends: sixteen bytes at a time (`text::Sixteen`), and
//! eight where no sixteen are left. Everything that is not between `from` and the position that is
//! found is of the right kind, so that nothing is looked at twice.

use crate::text::Sixteen;

/// One in each byte.
const EACH: u64 = 0x0101_0101_0101_0101;
/// The top bit of each byte.
const TOP: u64 = 0x80 * EACH;

/// The top bits of the bytes below `limit` (at most 0x80). Behind the first such byte others may
/// be marked too.
#[inline]
const fn below(word: u64, limit: u8) -> u64 {
    word.wrapping_sub(limit as u64 * EACH) & !word & TOP
}

/// The top bits of the bytes that are `byte`. Behind the first such byte others may be marked too.
#[inline]
const fn equal(word: u64, byte: u8) -> u64 {
    below(word ^ (byte as u64 * EACH), 1)
}

/// Finds the first byte of a text that `stops`, of which `wide` tells for sixteen bytes and `marks`
/// for eight; the length if there is none.
#[inline]
fn find(
    text: &[u8],
    wide: impl Fn(Sixteen) -> u32,
    marks: impl Fn(u64) -> u64,
    stops: impl Fn(u8) -> bool,
) -> usize {
    let mut at = 0;
    while let Some(bytes) = text.get(at..).and_then(<[u8]>::first_chunk) {
        let found = wide(Sixteen::of(bytes));
        if found != 0 {
            return at + found.trailing_zeros() as usize;
        }
        at += 16;
    }
    let (words, rest) = text.get(at..).unwrap_or_default().as_chunks::<8>();
    for word in words {
        let found = marks(u64::from_le_bytes(*word));
        if found != 0 {
            return at + (found.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    at + rest.iter().position(|byte| stops(*byte)).unwrap_or(rest.len())
}

/// The end of what may stand in a field's value (RFC 9110 section 5.5): the next control character
/// but tab.
#[inline]
pub(super) fn value_end(input: &[u8], from: usize) -> usize {
    let mut at = from;
    loop {
        let rest = input.get(at..).unwrap_or_default();
        let wide = |bytes: Sixteen| bytes.up_to(0x1f) | bytes.equal(0x7f);
        let marks = |word| below(word, 0x20) | equal(word, 0x7f);
        at += find(rest, wide, marks, |byte| byte < 0x20 || byte == 0x7f);
        if input.get(at) != Some(&b'\t') {
            return at;
        }
        at += 1;
    }
}

/// The colon behind a field's name, or what stands there instead of one: a space or a control
/// character.
#[inline]
pub(super) fn name_end(input: &[u8], from: usize) -> usize {
    let rest = input.get(from..).unwrap_or_default();
    let wide = |bytes: Sixteen| bytes.up_to(0x20) | bytes.equal(b':');
    from + find(rest, wide, |word| below(word, 0x21) | equal(word, b':'), |byte| byte < 0x21 || byte == b':')
}

/// The end of what may stand in a request's target: visible ASCII.
#[inline]
pub(super) fn target_end(input: &[u8], from: usize) -> usize {
    let wide = |bytes: Sixteen| bytes.up_to(0x20) | bytes.from(0x7f);
    let marks = |word: u64| below(word, 0x21) | equal(word, 0x7f) | word & TOP;
    from + find(input.get(from..).unwrap_or_default(), wide, marks, |byte| !byte.is_ascii_graphic())
}

/// What a byte is in a name: nothing (0), a token character, or one in capitals.
const TOKEN: u8 = 1;
const CAPITAL: u8 = 3;

static TOKENS: [u8; 256] = {
    let mut kinds = [0; 256];
    let mut code = 0;
    while code < kinds.len() {
        let byte = code as u8;
        if byte.is_ascii_uppercase() {
            kinds[code] = CAPITAL;
        } else if byte.is_ascii_alphanumeric() {
            kinds[code] = TOKEN;
        }
        code += 1;
    }
    let others = b"!#$%&'*+-.^_`|~";
    let mut index = 0;
    while index < others.len() {
        kinds[others[index] as usize] = TOKEN;
        index += 1;
    }
    kinds
};

/// Whether a text is a token (RFC 9110 section 5.6.2), perhaps an empty one; and whether it has
/// capitals.
#[inline]
pub(super) fn token(text: &[u8]) -> (bool, bool) {
    let (mut all, mut any) = (TOKEN, 0);
    for byte in text {
        let kind = TOKENS[usize::from(*byte)];
        all &= kind;
        any |= kind;
    }
    (all != 0, any & CAPITAL == CAPITAL)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    use super::{name_end, target_end, token, value_end};

    fn is_control(byte: u8) -> bool {
        byte < 0x20 && byte != b'\t' || byte == 0x7f
    }

    fn slow(input: &[u8], from: usize, stops: impl Fn(u8) -> bool) -> usize {
        (from..input.len()).find(|at| stops(input[*at])).unwrap_or(input.len())
    }

    proptest! {
        #[test]
        fn each_finds_what_looking_at_each_byte_finds(
            mut input in prop::collection::vec(b' '..=b'~', 0..80),
            odd in prop::collection::vec((any::<usize>(), any::<u8>()), 0..4),
            from in 0usize..80,
        ) {
            for (at, byte) in odd {
                if let Some(place) = at.checked_rem(input.len()) {
                    input[place] = byte;
                }
            }
            let from = from.min(input.len());
            prop_assert_eq!(value_end(&input, from), slow(&input, from, is_control));
            prop_assert_eq!(name_end(&input, from), slow(&input, from, |byte| byte <= b' ' || byte == b':'));
            prop_assert_eq!(target_end(&input, from), slow(&input, from, |byte| !byte.is_ascii_graphic()));
        }
    }

    #[test]
    fn tokens() {
        for byte in 0..=u8::MAX {
            let is_token = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            let capital = is_token && byte.is_ascii_uppercase();
            assert_eq!(token(&[b'a', byte]), (is_token, capital), "{}", byte.escape_ascii());
        }
        assert_eq!(token(b""), (true, false));
    }
}

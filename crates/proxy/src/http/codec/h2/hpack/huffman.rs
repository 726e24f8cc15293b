//! The Huffman code of HPACK (RFC 7541 section 5.2 and appendix B).
//!
//! The code is canonical: codes of one length are consecutive, in the order of their symbols. So
//! the lengths alone are kept, and both tables are computed from them when compiling. Decoding
//! looks at ten bits at a time, which is nearly always a whole symbol; longer ones are found by
//! their length.

/// Code lengths in bits, by symbol; the last one is EOS.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

const EOS: u16 = 256;
const LONGEST: usize = 30;
/// Bits that are looked up at once.
const FAST_BITS: u32 = 10;

struct Tables {
    /// Codes, right-aligned, by symbol.
    codes: [u32; 257],
    /// By the next ten bits: length << 8 | symbol; 0: a longer code.
    fast: [u16; 1 << FAST_BITS],
    /// All symbols in the order of their codes.
    sorted: [u16; 257],
    /// By length: the first code of that length, left-aligned in 32 bits.
    first: [u32; LONGEST + 2],
    /// By length: where its symbols begin in `sorted`.
    offset: [u16; LONGEST + 2],
}

static TABLES: Tables = build();

const fn build() -> Tables {
    let mut tables = Tables {
        codes: [0; 257],
        fast: [0; 1 << FAST_BITS],
        sorted: [0; 257],
        first: [0; LONGEST + 2],
        offset: [0; LONGEST + 2],
    };
    let mut next: u64 = 0;
    let mut placed = 0;
    let mut length = 1;
    while length <= LONGEST {
        next <<= 1;
        tables.first[length] = (next << (32 - length)) as u32;
        tables.offset[length] = placed as u16;
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == length {
                tables.codes[symbol] = next as u32;
                tables.sorted[placed] = symbol as u16;
                if length as u32 <= FAST_BITS {
                    let spare = FAST_BITS - length as u32;
                    let mut fill = 0;
                    while fill < 1 << spare {
                        tables.fast[((next as usize) << spare) + fill] =
                            ((length as u16) << 8) | symbol as u16;
                        fill += 1;
                    }
                }
                placed += 1;
                next += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    tables.first[LONGEST + 1] = u32::MAX;
    tables
}

/// What was encoded is not Huffman code (RFC 7541 section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Invalid;

/// Appends the decoded text.
pub(crate) fn decode(code: &[u8], text: &mut Vec<u8>) -> Result<(), Invalid> {
    // The low `bits` bits of `window` are still to be decoded.
    let (mut window, mut bits): (u64, u32) = (0, 0);
    let mut code = code.iter();
    loop {
        while bits <= 48
            && let Some(byte) = code.next()
        {
            window = window << 8 | u64::from(*byte);
            bits += 8;
        }
        // The next 32 bits; ones behind the end, as padding is.
        let ahead = if bits >= 32 {
            (window >> (bits - 32)) as u32
        } else {
            ((window << (32 - bits)) | ((1 << (32 - bits)) - 1)) as u32
        };
        let fast = TABLES.fast[(ahead >> (32 - FAST_BITS)) as usize];
        let (length, symbol) = if fast > 0 { (u32::from(fast >> 8), fast & 0xff) } else { find_long(ahead) };
        if length > bits {
            // What is left is padding: less than a byte, all ones.
            let rest = window & ((1 << bits) - 1);
            return if bits < 8 && rest == (1 << bits) - 1 { Ok(()) } else { Err(Invalid) };
        }
        if symbol == EOS {
            return Err(Invalid);
        }
        text.push(symbol as u8);
        bits -= length;
    }
}

/// A code of more than `FAST_BITS` bits: its length and symbol.
fn find_long(ahead: u32) -> (u32, u16) {
    let mut length = FAST_BITS as usize + 1;
    while length < LONGEST && ahead >= TABLES.first[length + 1] {
        length += 1;
    }
    let rank = (ahead - TABLES.first[length]) >> (32 - length as u32);
    let symbol = TABLES.sorted.get(usize::from(TABLES.offset[length]) + rank as usize);
    (length as u32, symbol.copied().unwrap_or(EOS))
}

/// Bytes that a text takes when encoded.
pub(crate) fn encoded_len(text: &[u8]) -> usize {
    let bits: usize = text.iter().map(|byte| usize::from(LENGTHS[usize::from(*byte)])).sum();
    bits.div_ceil(8)
}

/// Appends the code of a text.
pub(crate) fn encode(text: &[u8], out: &mut Vec<u8>) {
    let (mut window, mut bits): (u64, u32) = (0, 0);
    for byte in text {
        let length = u32::from(LENGTHS[usize::from(*byte)]);
        window = window << length | u64::from(TABLES.codes[usize::from(*byte)]);
        bits += length;
        if bits >= 32 {
            bits -= 32;
            out.extend_from_slice(&((window >> bits) as u32).to_be_bytes());
        }
    }
    while bits >= 8 {
        bits -= 8;
        out.push((window >> bits) as u8);
    }
    if bits > 0 {
        // Padded with ones, the beginning of EOS.
        out.push(((window << (8 - bits)) as u8) | (0xff >> bits));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{Invalid, LENGTHS, TABLES, decode, encode, encoded_len};

    #[test]
    fn codes_are_those_of_the_rfc() {
        // RFC 7541 appendix B, some of each length.
        for (symbol, code, length) in [
            (usize::from(b'0'), 0x0, 5),
            (usize::from(b't'), 0x9, 5),
            (usize::from(b' '), 0x14, 6),
            (usize::from(b'z'), 0x7b, 7),
            (usize::from(b'&'), 0xf8, 8),
            (usize::from(b'!'), 0x3f8, 10),
            (0, 0x1ff8, 13),
            (1, 0x007f_ffd8, 23),
            (usize::from(b'\n'), 0x3fff_fffc, 30),
            (249, 0x0fff_fffe, 28),
            (256, 0x3fff_ffff, 30),
        ] {
            assert_eq!((TABLES.codes[symbol], LENGTHS[symbol]), (code, length), "{symbol}");
        }
    }

    #[test]
    fn padding_is_less_than_a_byte_of_ones_and_eos_is_refused() {
        let decoded = |code: &[u8]| {
            let mut text = Vec::new();
            decode(code, &mut text).map(|()| text)
        };
        assert_eq!(decoded(&[0x07]), Ok(b"0".to_vec()));
        assert_eq!(decoded(&[0x00]), Err(Invalid), "padded with zeros");
        assert_eq!(decoded(&[0x07, 0xff]), Err(Invalid), "a whole byte of padding");
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), Err(Invalid), "EOS");
        assert_eq!(decoded(&[]), Ok(Vec::new()));
    }

    proptest! {
        #[test]
        fn texts_survive(text: Vec<u8>) {
            let mut code = Vec::new();
            encode(&text, &mut code);
            assert_eq!(code.len(), encoded_len(&text));
            let mut back = Vec::new();
            assert_eq!(decode(&code, &mut back), Ok(()));
            assert_eq!(back, text);
        }

        #[test]
        fn what_decodes_encodes_to_the_same(code in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut text = Vec::new();
            if decode(&code, &mut text).is_ok() {
                let mut again = Vec::new();
                encode(&text, &mut again);
                assert_eq!(again, code);
            }
        }
    }
}

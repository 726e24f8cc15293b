//! Making inputs: mutations of what is in the corpus, with the target's dictionary.

use leno_base::Rng;

/// Inputs do not grow above this many bytes.
const LARGEST: usize = 4096;

/// Bytes that parsers treat specially.
const SPECIAL: &[u8] = b"\0\t\n\r \"%'(),-./0:;<=>?[\\]_{|}\x7f\x80\xff";

/// A number below `bound`, 0 for 0.
fn below(random: &mut Rng, bound: usize) -> usize {
    if bound == 0 { 0 } else { usize::try_from(random.next_u64() % bound as u64).unwrap_or(0) }
}

/// Changes `input` in one to eight places.
pub(crate) fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], dictionary: &[&str], random: &mut Rng) {
    for _ in 0..=below(random, 8) {
        let at = below(random, input.len() + 1);
        let length = below(random, (input.len() - at).min(16) + 1);
        match below(random, 10) {
            0 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << below(random, 8);
                }
            }
            1 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = SPECIAL[below(random, SPECIAL.len())];
                }
            }
            2 => input.insert(at, SPECIAL[below(random, SPECIAL.len())]),
            3 => drop(input.drain(at..at + length)),
            // Twice what is there.
            4 => {
                let copy = input[at..at + length].to_vec();
                input.splice(at..at, copy);
            }
            5 | 6 if !dictionary.is_empty() => {
                let word = dictionary[below(random, dictionary.len())];
                // In the place of as many bytes, or between them.
                let end = if below(random, 2) == 0 { at } else { (at + word.len()).min(input.len()) };
                input.splice(at..end, word.bytes());
            }
            // The end of another input behind the beginning of this one.
            7 if !corpus.is_empty() => {
                let other = &corpus[below(random, corpus.len())];
                let from = below(random, other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            8 => input.truncate(at),
            _ => {
                let byte = u8::try_from(random.next_u64() & 0xff).unwrap_or(0);
                let run = 1 + below(random, 9);
                input.splice(at..at, std::iter::repeat_n(byte, run));
            }
        }
        input.truncate(LARGEST);
    }
}

//! A fast hash for tables whose keys come from the configuration and are looked up on every
//! request. Half a dozen instructions for eight bytes, where the standard library's hash, made to
//! hold out against keys that an attacker chooses, takes some thirty. The seed differs by process
//! all the same; but tables that clients can fill stay with the standard library's.

use std::hash::{BuildHasher, Hasher};
use std::sync::OnceLock;

use crate::rng::Rng;

/// Makes hashers with the process's seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct FastHash;

/// The state of one hash.
#[derive(Debug)]
pub struct FastHasher(u64);

impl BuildHasher for FastHash {
    type Hasher = FastHasher;

    fn build_hasher(&self) -> FastHasher {
        static SEED: OnceLock<u64> = OnceLock::new();
        FastHasher(*SEED.get_or_init(|| Rng::from_entropy().next_u64()))
    }
}

impl FastHasher {
    /// Folds both halves of a product together, so that every bit of `word` reaches all of the state.
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }
}

impl Hasher for FastHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        // What is left, with what is before it if there is something: quicker than copying it.
        let last = match bytes.last_chunk() {
            Some(last) => u64::from_le_bytes(*last),
            None => rest.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)),
        };
        // The length keeps apart what differs in zeros at the end alone.
        self.mix(last ^ (bytes.len() as u64) << 56);
    }

    fn write_u8(&mut self, byte: u8) {
        // The end of a string: its length is in the hash already.
        self.0 = self.0.wrapping_add(u64::from(byte));
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    use super::FastHash;

    #[test]
    fn texts_that_differ_a_little_differ_in_hash_high_and_low() {
        let texts: Vec<String> =
            (0..10_000).map(|number| format!("svc-{number}.default.svc.cluster.local")).collect();
        let hashes: HashSet<u64> = texts.iter().map(|text| FastHash.hash_one(text)).collect();
        assert_eq!(hashes.len(), texts.len());
        // A table takes its place from the low bits and its tag from the high ones.
        for shift in [0, 52] {
            let places: HashSet<u64> = hashes.iter().map(|hash| hash >> shift & 0xfff).collect();
            assert!(places.len() > 3500, "{} of 4096 at bit {shift}", places.len());
        }
    }

    #[test]
    fn zeros_at_the_end_count() {
        assert_ne!(FastHash.hash_one("a"), FastHash.hash_one("a\0"));
        assert_eq!(FastHash.hash_one("a"), FastHash.hash_one(String::from("a")));
    }
}

//! A small seeded generator for decisions that need spread, not secrecy: load balancing,
//! jitter, sampling.
//!
//! SplitMix64 (Steele, Lea, Flood 2014): one addition and three xor-shift-multiply steps over
//! 64 bits of state, full period, any seed is good. Never use it for keys or tokens.

/// A deterministic generator: the same seed gives the same sequence on every machine.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// Starts the sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Seeded from the operating system's randomness, as the standard library's hash maps are.
    pub fn from_entropy() -> Self {
        use std::hash::{BuildHasher, RandomState};
        Self::new(RandomState::new().hash_one(0u64))
    }

    /// An independent generator, for a part that must not disturb this one's sequence.
    pub fn fork(&mut self) -> Self {
        Self::new(self.next_u64())
    }

    /// 64 uniform bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// 32 uniform bits.
    pub fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    /// Uniform in `0..bound`; 0 when `bound` is 0. The bias is below `bound / 2^64`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A uniform position in a list of `len` elements, `None` when it is empty.
    pub fn index(&mut self, len: usize) -> Option<usize> {
        (len > 0).then(|| self.below(len as u64) as usize)
    }

    /// Uniform in `0.0..1.0`, with 53 bits.
    pub fn fraction(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True in `numerator` of `denominator` cases; never when the denominator is 0.
    pub fn chance(&mut self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator && denominator > 0
    }

    /// Fills `bytes`, e.g. a request id.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next_u64().to_le_bytes();
            for (byte, random) in chunk.iter_mut().zip(word) {
                *byte = random;
            }
        }
    }

    /// Puts a list in random order (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_published_sequence_for_seed_zero() {
        let mut rng = Rng::new(0);
        assert_eq!(rng.next_u64(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(rng.next_u64(), 0x6e78_9e6a_a1b9_65f4);
        assert_eq!(rng.next_u64(), 0x06c4_5d18_8009_454f);
    }

    #[test]
    fn bounded_numbers_stay_in_bounds_and_are_even() {
        let mut rng = Rng::new(7);
        let mut counts = [0u32; 10];
        for _ in 0..100_000 {
            counts[rng.below(10) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
        assert_eq!(rng.below(0), 0);
        assert_eq!(rng.index(0), None);
        assert!((0..1000).all(|_| (0.0..1.0).contains(&rng.fraction())));
    }

    #[test]
    fn chance_has_its_limits() {
        let mut rng = Rng::new(3);
        assert!((0..1000).all(|_| rng.chance(100, 100)));
        assert!(!(0..1000).any(|_| rng.chance(0, 100)));
        assert!(!(0..1000).any(|_| rng.chance(5, 0)));
    }

    #[test]
    fn fill_and_shuffle_reach_every_element() {
        let mut rng = Rng::new(1);
        let mut bytes = [0u8; 19];
        rng.fill(&mut bytes);
        assert!(bytes.iter().filter(|byte| **byte == 0).count() < 4);
        let mut items: Vec<u32> = (0..50).collect();
        rng.shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn forks_differ_from_their_parent() {
        let mut parent = Rng::new(9);
        let mut child = parent.fork();
        assert_ne!(parent.next_u64(), child.next_u64());
    }
}

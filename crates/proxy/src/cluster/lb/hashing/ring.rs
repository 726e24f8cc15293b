//! Ketama's ring as Envoy builds it: each host is on it several times, by the hashes of `KEY_0`,
//! `KEY_1` and so on, in proportion to its part of the load; a request goes to the first one from
//! its own hash on.

use std::fmt::Write;

use twox_hash::XxHash64;

use super::Part;

#[derive(Debug)]
pub(super) struct Ring {
    /// In order.
    hashes: Box<[u64]>,
    /// The hosts at these hashes.
    hosts: Box<[u32]>,
}

impl Ring {
    /// `made_of` is not empty.
    pub(super) fn new(made_of: &[Part], min: u64, max: u64, murmur: bool) -> Self {
        let least = made_of.iter().map(|one| one.part).fold(1.0, f64::min);
        // So many that the lightest host has a whole number of them, if that is not too many.
        let scale = ((least * min as f64).ceil() / least).min(max as f64);
        let mut entries: Vec<(u64, u32)> = Vec::with_capacity(scale.ceil() as usize);
        // Running sums: parts of a place add up over the hosts, in this order.
        let (mut current, mut target) = (0.0, 0.0);
        let mut text = String::new();
        for (host, one) in made_of.iter().enumerate() {
            target += scale * one.part;
            text.clear();
            text.push_str(&one.key);
            text.push('_');
            let prefix = text.len();
            let mut number = 0u64;
            while current < target {
                text.truncate(prefix);
                // Writing to a string does not fail.
                let _ = write!(text, "{number}");
                let hash =
                    if murmur { murmur2(text.as_bytes()) } else { XxHash64::oneshot(0, text.as_bytes()) };
                entries.push((hash, host as u32));
                number += 1;
                current += 1.0;
            }
        }
        entries.sort_by_key(|(hash, _)| *hash);
        let (hashes, hosts): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
        Self { hashes: hashes.into(), hosts: hosts.into() }
    }

    /// Who is at each place.
    pub(super) fn hosts(&self) -> impl Iterator<Item = usize> {
        self.hosts.iter().map(|host| *host as usize)
    }

    pub(super) fn find(&self, hash: u64, attempt: u32) -> Option<usize> {
        let at = self.hashes.partition_point(|one| *one < hash);
        // Behind the last one the ring begins again. Another try takes a neighbour.
        let at = if at == self.hashes.len() { 0 } else { at };
        let at = (at + attempt as usize).checked_rem(self.hashes.len())?;
        self.hosts.get(at).map(|host| *host as usize)
    }
}

/// MurmurHash2 for 64 bits (Appleby), with the seed that libstdc++ has and Envoy took over.
fn murmur2(bytes: &[u8]) -> u64 {
    const SEED: u64 = 0xc70f_6907;
    const MULTIPLIER: u64 = 0xc6a4_a793_5bd1_e995;
    let mix = |value: u64| value ^ (value >> 47);
    let mut hash = SEED ^ (bytes.len() as u64).wrapping_mul(MULTIPLIER);
    let (blocks, rest) = bytes.as_chunks::<8>();
    for block in blocks {
        let block = u64::from_le_bytes(*block).wrapping_mul(MULTIPLIER);
        hash = (hash ^ mix(block).wrapping_mul(MULTIPLIER)).wrapping_mul(MULTIPLIER);
    }
    if !rest.is_empty() {
        let rest = rest.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        hash = (hash ^ rest).wrapping_mul(MULTIPLIER);
    }
    mix(mix(hash).wrapping_mul(MULTIPLIER))
}

#[cfg(test)]
mod tests {
    use super::Ring;
    use crate::cluster::lb::hashing::parts;

    #[test]
    fn the_ring_begins_again_behind_its_end() {
        let ring = Ring::new(&parts(&[("a", 0.5), ("b", 0.5)]), 4, 1024, false);
        assert_eq!(ring.hashes.len(), 4);
        let first = ring.hosts[0] as usize;
        assert_eq!([ring.find(0, 0), ring.find(u64::MAX, 0)], [Some(first); 2]);
        for (index, hash) in ring.hashes.iter().enumerate() {
            assert_eq!(ring.find(*hash, 0), Some(ring.hosts[index] as usize));
            assert_eq!(ring.find(*hash, 3), Some(ring.hosts[(index + 3) % 4] as usize));
        }
    }

    #[test]
    fn the_lightest_host_has_whole_places_unless_there_are_too_many() {
        let places = |given: &[(&str, f64)], min, max| {
            let ring = Ring::new(&parts(given), min, max, false);
            let count = |host: u32| ring.hosts.iter().filter(|one| **one == host).count();
            (0..given.len() as u32).map(count).collect::<Vec<_>>()
        };
        let quarters = [("a", 0.25), ("b", 0.25), ("c", 0.25), ("d", 0.25)];
        assert_eq!(places(&quarters, 5, 1024), [2, 2, 2, 2]);
        assert_eq!(places(&quarters, 6, 6), [2, 1, 2, 1]);
        assert_eq!(places(&[("a", 0.25), ("b", 0.75)], 5, 1024), [2, 6]);
    }
}

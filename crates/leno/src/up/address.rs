//! Addresses of pods and services: by a hash of the name, so that they stay over reloads and over
//! restarts, and kept while their owner lives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// FNV-1a, 64 bits: the same on every machine and in every release.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Letters and digits that make no words, as Kubernetes takes them for generated names.
pub(crate) fn word(mut hash: u64, length: usize) -> String {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let letter = |_| {
        let letter = LETTERS[(hash % LETTERS.len() as u64) as usize];
        hash /= LETTERS.len() as u64;
        char::from(letter)
    };
    (0..length).map(letter).collect()
}

/// A /16 of addresses, some of which are taken.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    network: [u8; 2],
    given: BTreeMap<String, Ipv4Addr>,
    taken: BTreeSet<Ipv4Addr>,
}

impl Addresses {
    /// The range `a.b.0.0/16`; its first 256 and its last addresses are never given.
    pub(crate) fn new(a: u8, b: u8) -> Addresses {
        Addresses { network: [a, b], given: BTreeMap::new(), taken: BTreeSet::new() }
    }

    /// The address of a name; the same as long as it is not released.
    pub(crate) fn give(&mut self, name: &str) -> Ipv4Addr {
        if let Some(address) = self.given.get(name) {
            return *address;
        }
        const FIRST: u64 = 1 << 8;
        const SPACE: u64 = (1 << 16) - FIRST - 1;
        let mut slot = hash(name.as_bytes()) % SPACE;
        let [a, b] = self.network;
        for _ in 0..SPACE {
            let host = FIRST + slot;
            let address = Ipv4Addr::new(a, b, (host >> 8) as u8, (host & 0xff) as u8);
            // Addresses ending in .0 and .255 are legal here, but irritate people.
            if host & 0xff != 0 && host & 0xff != 0xff && self.taken.insert(address) {
                self.given.insert(name.to_owned(), address);
                return address;
            }
            slot = (slot + 1) % SPACE;
        }
        // More than 65,000 names on one machine: they share.
        Ipv4Addr::new(a, b, 255, 254)
    }

    /// Reserves an address that somebody chose.
    pub(crate) fn reserve(&mut self, name: &str, address: Ipv4Addr) {
        if let Some(former) = self.given.insert(name.to_owned(), address)
            && former != address
        {
            self.taken.remove(&former);
        }
        self.taken.insert(address);
    }

    /// Releases the addresses of all names but these.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        let taken = &mut self.taken;
        self.given.retain(|name, address| {
            let kept = keep(name);
            if !kept {
                taken.remove(address);
            }
            kept
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{Addresses, word};

    #[test]
    fn addresses_stay_and_come_back() {
        let mut addresses = Addresses::new(10, 244);
        let a = addresses.give("default/a");
        let others: Vec<_> = (0..2000).map(|i| addresses.give(&format!("default/{i}"))).collect();
        assert_eq!(addresses.give("default/a"), a);
        let mut distinct = others.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), others.len());
        addresses.retain(|name| name != "default/a");
        assert_eq!(addresses.give("default/a"), a);
        assert!(a.octets()[..2] == [10, 244] && a.octets()[2] > 0, "{a}");
    }

    #[test]
    fn words() {
        assert_eq!(word(0, 5), "bbbbb");
        assert_eq!(word(u64::MAX, 10).len(), 10);
    }
}

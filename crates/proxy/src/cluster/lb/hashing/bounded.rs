//! Consistent hashing with bounded loads (Mirrokni and others, 2016): a host that has more than
//! its part of the requests times `hash_balance_factor` passes the next one on. To whom is a
//! random order of the hosts that depends on the hash alone (as Envoy's, to the bit), so that
//! the requests of a busy host do not all fall on one neighbour.
//!
//! Deviation: requests under way are counted per worker, as for LEAST_REQUEST.

use std::rc::Rc;

use super::Part;
use crate::cluster::worker_cluster::Host;

/// The host for a hash that leads to `first`; `all`: requests under way at the whole cluster.
pub(super) fn choose(
    first: usize,
    hash: u64,
    made_of: &[Part],
    hosts: &[Rc<Host>],
    factor: u32,
    all: u64,
) -> usize {
    let slots = ((all + 1) * u64::from(factor)).div_ceil(100) as f64;
    let overload = |index: usize| {
        let (Some(host), Some(one)) = (hosts.get(index), made_of.get(index)) else { return f64::INFINITY };
        f64::from(host.active.get()) / (slots * one.part).ceil().max(1.0)
    };
    let mut least = (overload(first), first);
    if least.0 <= 1.0 {
        return first;
    }
    let mut random = Twister::new(hash as u32);
    let mut order: Vec<usize> = (0..hosts.len()).collect();
    for place in 0..order.len() {
        let left = (order.len() - place) as u32;
        order.swap(place, place + random.below(left) as usize);
        let Some(index) = order.get(place).copied().filter(|index| *index != first) else { continue };
        let load = overload(index);
        if load <= 1.0 {
            return index;
        }
        if load < least.0 {
            least = (load, index);
        }
    }
    least.1
}

/// The Mersenne Twister with 32 bits (Matsumoto and Nishimura, 1998).
struct Twister {
    state: [u32; 624],
    next: usize,
}

impl Twister {
    fn new(seed: u32) -> Self {
        let mut state = [seed; 624];
        let mut last = seed;
        for (index, word) in state.iter_mut().enumerate().skip(1) {
            last = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(index as u32);
            *word = last;
        }
        Self { state, next: 624 }
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == 624 {
            self.next = 0;
            for index in 0..624 {
                let joined = self.state[index] & 0x8000_0000 | self.state[(index + 1) % 624] & 0x7fff_ffff;
                let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[index] = self.state[(index + 397) % 624] ^ (joined >> 1) ^ odd;
            }
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    /// Uniform below `bound`, which is not 0.
    fn below(&mut self, bound: u32) -> u32 {
        let size = (1u64 << 32) / u64::from(bound.max(1));
        loop {
            let drawn = u64::from(self.next_u32()) / size;
            if drawn < u64::from(bound.max(1)) {
                return drawn as u32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Twister, choose};
    use crate::cluster::lb::hashing::parts;
    use crate::cluster::lb::tests::hosts;

    #[test]
    fn the_twister_follows_the_published_sequence() {
        let mut twister = Twister::new(5489);
        let numbers: Vec<u32> = (0..10_000).map(|_| twister.next_u32()).collect();
        assert_eq!((numbers[0], numbers[9_999]), (3_499_211_612, 4_123_659_995));
    }

    #[test]
    fn a_busy_host_passes_requests_on() {
        let hosts = hosts(&[1, 1, 1, 1]);
        let made_of = parts(&[("a", 0.25), ("b", 0.25), ("c", 0.25), ("d", 0.25)]);
        let pick = |hash: u64| {
            choose(
                0,
                hash,
                &made_of,
                &hosts,
                120,
                hosts.iter().map(|host| u64::from(host.active.get())).sum(),
            )
        };
        assert_eq!(pick(1), 0);
        // 7 of 9 are here, 3 were its part: (9 + 1) * 1.2 / 4.
        [7, 1, 1, 0].iter().zip(&hosts).for_each(|(active, host)| host.active.set(*active));
        let others: std::collections::BTreeSet<usize> = (0..50).map(pick).collect();
        assert_eq!(others.into_iter().collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(pick(17), pick(17));
        // All have too many: the one that has least too many.
        [9, 8, 7, 8].iter().zip(&hosts).for_each(|(active, host)| host.active.set(*active));
        let crowded = |factor| choose(0, 3, &made_of, &hosts, factor, 0);
        assert_eq!(crowded(100), 2);
    }
}

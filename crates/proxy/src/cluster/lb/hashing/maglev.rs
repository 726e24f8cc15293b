//! Maglev's table as Envoy fills it (Eisenbud and others, 2016): each host has an order of its
//! own in which it would take the places, and they take turns; a lighter host sits turns out.

use twox_hash::XxHash64;

use super::Part;

/// The hosts by place.
#[derive(Debug)]
pub(super) enum Maglev {
    /// Two bytes do for most clusters.
    Narrow(Box<[u16]>),
    Wide(Box<[u32]>),
}

/// A host while the table is filled.
struct Candidate {
    host: u32,
    part: f64,
    /// What its turns have come to must reach this.
    target: f64,
    /// The place that it would take next.
    place: u64,
    skip: u64,
}

const FREE: u32 = u32::MAX;

impl Maglev {
    /// `made_of` is not empty; `size` is a prime.
    pub(super) fn new(made_of: &[Part], size: u64) -> Self {
        let greatest = made_of.iter().map(|one| one.part).fold(0.0, f64::max);
        let mut order: Vec<usize> = (0..made_of.len()).collect();
        // The order must not depend on where the hosts come from.
        order.sort_by(|a, b| made_of.get(*a).map(|one| &one.key).cmp(&made_of.get(*b).map(|one| &one.key)));
        let mut candidates: Vec<Candidate> = order
            .into_iter()
            .filter_map(|host| {
                let one = made_of.get(host)?;
                Some(Candidate {
                    host: host as u32,
                    part: one.part,
                    target: 0.0,
                    place: XxHash64::oneshot(0, one.key.as_bytes()) % size,
                    skip: XxHash64::oneshot(1, one.key.as_bytes()) % (size - 1).max(1) + 1,
                })
            })
            .collect();
        let mut table = vec![FREE; size as usize];
        let mut left = table.len();
        let mut turn = 0u32;
        'filling: loop {
            turn += 1;
            for candidate in &mut candidates {
                if f64::from(turn) * candidate.part < candidate.target {
                    continue;
                }
                candidate.target += greatest;
                // There is a free place, and the order goes through all of them.
                loop {
                    let place = table.get_mut(candidate.place as usize);
                    candidate.place = (candidate.place + candidate.skip) % size;
                    if let Some(place) = place.filter(|place| **place == FREE) {
                        *place = candidate.host;
                        break;
                    }
                }
                left -= 1;
                if left == 0 {
                    break 'filling;
                }
            }
        }
        if made_of.len() <= usize::from(u16::MAX) {
            Maglev::Narrow(table.into_iter().map(|host| host as u16).collect())
        } else {
            Maglev::Wide(table.into())
        }
    }

    /// Who is at each place.
    pub(super) fn hosts(&self) -> Box<dyn Iterator<Item = usize> + '_> {
        match self {
            Maglev::Narrow(table) => Box::new(table.iter().map(|host| usize::from(*host))),
            Maglev::Wide(table) => Box::new(table.iter().map(|host| *host as usize)),
        }
    }

    pub(super) fn find(&self, mut hash: u64, attempt: u32) -> Option<usize> {
        if attempt > 0 {
            // Another try: most bits of the hash change.
            hash ^= (!0u64).wrapping_sub(u64::from(attempt)).wrapping_add(1);
        }
        match self {
            Maglev::Narrow(table) => {
                let place = hash.checked_rem(table.len() as u64)?;
                table.get(place as usize).map(|host| usize::from(*host))
            }
            Maglev::Wide(table) => {
                let place = hash.checked_rem(table.len() as u64)?;
                table.get(place as usize).map(|host| *host as usize)
            }
        }
    }
}

/// Whether a number can be a table's size.
pub(crate) fn is_prime(number: u64) -> bool {
    number >= 2
        && (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|divisor| !number.is_multiple_of(divisor))
}

#[cfg(test)]
mod tests {
    use super::{Maglev, is_prime};
    use crate::cluster::lb::hashing::parts;

    #[test]
    fn hosts_take_turns_by_weight() {
        let places = |given: &[(&str, f64)]| {
            let Maglev::Narrow(table) = Maglev::new(&parts(given), 7) else { panic!("few hosts") };
            let count = |host: u16| table.iter().filter(|one| **one == host).count();
            (0..given.len() as u16).map(count).collect::<Vec<_>>()
        };
        assert_eq!(places(&[("a", 1.0)]), [7]);
        assert_eq!(places(&[("a", 0.5), ("b", 0.5)]), [4, 3]);
        // The order of the keys counts, not that of the hosts.
        assert_eq!(places(&[("b", 0.5), ("a", 0.5)]), [3, 4]);
        assert_eq!(places(&[("a", 0.25), ("b", 0.75)]), [2, 5]);
    }

    #[test]
    fn primes() {
        let found: Vec<u64> = (0..30).filter(|number| is_prime(*number)).collect();
        assert_eq!(found, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        assert!(is_prime(65537) && is_prime(5_000_011) && !is_prime(65536));
    }
}

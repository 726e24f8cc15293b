//! RING_HASH and MAGLEV: the request's hash finds the host in a table, so that equal requests go
//! to the same host, and few move when hosts come and go. Tables are made exactly as Envoy makes
//! them (`ring`, `maglev`), so that a mixed fleet agrees.
//!
//! A table is large (12 bytes for each of 1,024 entries of a ring by default, 2 for each of
//! 65,537 of Maglev) and the same for all workers: whoever needs it first puts it on the
//! cluster's [`Shelf`], from where the others take it. With a bound on load (`bounded`) a busy
//! host passes requests on.

use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde_json::Value;

use super::hosts::{HostList, Hosts, PriorityHosts};
use super::metadata::NAMESPACE;
use super::priority::{self, Census, Share};
use super::settings::{Hashing, TableKind};
use super::{Balancer, Surroundings, Turn};
use crate::cluster::worker_cluster::Host;

mod bounded;
pub(crate) mod maglev;
mod ring;

/// What a table is made of: the keys of its hosts with their parts of the load, which sum up
/// to 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    key: Arc<str>,
    part: f64,
}

/// A table of indexes into the list that it was made of.
#[derive(Debug)]
pub(crate) struct Table {
    kind: TableKind,
    made_of: Vec<Part>,
    entries: Entries,
    places: Places,
}

/// How the places of a table are spread over its hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Places {
    /// All of them.
    pub(crate) all: u64,
    /// Of the host that has the fewest.
    pub(crate) least: u64,
    /// Of the host that has the most.
    pub(crate) most: u64,
}

impl Places {
    /// `hosts`: who is at each place, of so many.
    fn count(hosts: impl Iterator<Item = usize>, count: usize) -> Self {
        let mut each = vec![0u64; count];
        for host in hosts {
            if let Some(places) = each.get_mut(host) {
                *places += 1;
            }
        }
        Self {
            all: each.iter().sum(),
            least: each.iter().copied().min().unwrap_or(0),
            most: each.iter().copied().max().unwrap_or(0),
        }
    }
}

#[derive(Debug)]
enum Entries {
    /// Nothing to choose from.
    None,
    Ring(ring::Ring),
    Maglev(maglev::Maglev),
}

/// The tables that are in use, for all workers to share.
#[derive(Debug, Default)]
pub(crate) struct Shelf(Mutex<Vec<Weak<Table>>>);

impl Shelf {
    /// The table made of these; made now, if nobody has it.
    pub(crate) fn table(&self, kind: TableKind, made_of: Vec<Part>) -> Arc<Table> {
        // Whoever else needs the same table waits for it rather than make it too. No request
        // that has its table ever comes here.
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tables.retain(|table| table.strong_count() > 0);
        let found = tables
            .iter()
            .filter_map(Weak::upgrade)
            .find(|table| table.kind == kind && table.made_of == made_of);
        found.unwrap_or_else(|| {
            let table = Arc::new(Table::new(kind, made_of));
            tables.push(Arc::downgrade(&table));
            table
        })
    }
}

impl Shelf {
    /// How the places of the newest table are spread.
    pub(crate) fn places(&self) -> Places {
        let tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = tables.iter().rev().find_map(Weak::upgrade);
        newest.map_or_else(Places::default, |table| table.places)
    }
}

impl Table {
    fn new(kind: TableKind, made_of: Vec<Part>) -> Self {
        let entries = match kind {
            _ if made_of.is_empty() => Entries::None,
            TableKind::Ring { min, max, murmur } => {
                Entries::Ring(ring::Ring::new(&made_of, min, max, murmur))
            }
            TableKind::Maglev(size) => Entries::Maglev(maglev::Maglev::new(&made_of, size)),
        };
        let places = match &entries {
            Entries::None => Places::default(),
            Entries::Ring(ring) => Places::count(ring.hosts(), made_of.len()),
            // Envoy needs no table for one host, and counts one entry.
            Entries::Maglev(_) if made_of.len() == 1 => Places { all: 1, least: 1, most: 1 },
            Entries::Maglev(maglev) => Places::count(maglev.hosts(), made_of.len()),
        };
        Self { kind, made_of, entries, places }
    }

    /// The index of the host for a hash; `attempt` counts from 0 where a retry wants another.
    fn find(&self, hash: u64, attempt: u32) -> Option<usize> {
        match &self.entries {
            Entries::None => None,
            Entries::Ring(ring) => ring.find(hash, attempt),
            Entries::Maglev(maglev) => maglev.find(hash, attempt),
        }
    }
}

/// A hashing balancer.
pub(super) struct HashBalancer {
    settings: Arc<Hashing>,
    census: Vec<Census>,
    shares: Vec<Share>,
    priorities: Vec<Priority>,
}

/// One priority: its table is looked for when it is first needed.
struct Priority {
    hosts: PriorityHosts,
    panic: bool,
    ready: Option<Ready>,
}

/// A table with the hosts that its indexes mean.
struct Ready {
    table: Arc<Table>,
    hosts: Vec<Rc<Host>>,
}

impl HashBalancer {
    pub(super) fn new(settings: Arc<Hashing>, hosts: Hosts, around: &Surroundings) -> Self {
        let census = hosts.census();
        let shares = priority::shares(&census, around.panic_threshold);
        let priorities = hosts.priorities.into_iter().zip(&shares);
        let priorities =
            priorities.map(|(hosts, share)| Priority { hosts, panic: share.panic, ready: None }).collect();
        Self { settings, census, shares, priorities }
    }
}

impl Balancer for HashBalancer {
    fn pick(&mut self, turn: &mut Turn<'_, '_>) -> Option<Rc<Host>> {
        let hash = turn.context.hash.unwrap_or_else(|| turn.random.next_u64());
        // The hash decides on the priority too, so that equal requests stay together.
        let point = (hash % 100) as u32;
        let excluded = turn.context.excluded_priorities;
        let (index, _) = if excluded.is_empty() {
            priority::draw(&self.shares, point)?
        } else {
            let shares = priority::shares_without(excluded, &self.census, &self.shares);
            priority::draw(&shares, point)?
        };
        let priority = self.priorities.get_mut(index)?;
        if priority.panic {
            turn.around.stats.lb_healthy_panic().inc();
        }
        let settings = &self.settings;
        let ready =
            priority.ready.get_or_insert_with(|| Ready::new(settings, &priority.hosts, priority.panic));
        turn.unless_rejected(|turn, attempt| {
            let index = ready.table.find(hash, attempt)?;
            let index = match settings.balance_factor {
                0 => index,
                factor => {
                    let all = turn.around.stats.upstream_rq_active().value();
                    bounded::choose(index, hash, &ready.table.made_of, &ready.hosts, factor, all)
                }
            };
            ready.hosts.get(index).cloned()
        })
    }
}

impl Ready {
    fn new(settings: &Hashing, priority: &PriorityHosts, panic: bool) -> Self {
        let mut hosts = Vec::new();
        let mut made_of = Vec::new();
        let mut add = |list: &HostList, part: f64| {
            let sum: u64 = list.iter().map(|host| u64::from(host.config.weight)).sum();
            for host in list.iter() {
                let part = f64::from(host.config.weight) * part / sum as f64;
                made_of.push(Part { key: key(host, settings.by_hostname), part });
                hosts.push(Rc::clone(host));
            }
        };
        if settings.locality_weighted && !priority.localities.is_empty() {
            let sum: u64 = priority.localities.iter().map(|at| u64::from(at.weight)).sum();
            for at in priority.localities.iter().filter(|at| at.weight > 0) {
                let part = f64::from(at.weight) / sum as f64;
                add(if panic { &at.hosts.all } else { &at.hosts.healthy }, part);
            }
        } else {
            add(if panic { &priority.hosts.all } else { &priority.hosts.healthy }, 1.0);
        }
        Self { table: settings.shelf.table(settings.table, made_of), hosts }
    }
}

/// What stands for a host in a table: `hash_key` of its metadata, its name, or its address.
fn key(host: &Host, by_hostname: bool) -> Arc<str> {
    let own = host.config.metadata.get(NAMESPACE).and_then(|metadata| metadata.get("hash_key"));
    if let Some(own) = own.and_then(Value::as_str).filter(|own| !own.is_empty()) {
        return own.into();
    }
    if by_hostname {
        return host.config.hostname.clone().unwrap_or_else(|| "".into());
    }
    host.config.address.to_string().into()
}

#[cfg(test)]
pub(super) fn parts(parts: &[(&str, f64)]) -> Vec<Part> {
    parts.iter().map(|(key, part)| Part { key: (*key).into(), part: *part }).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use leno_base::rng::Rng;
    use proptest::prelude::{Just, ProptestConfig, Strategy, prop_oneof, proptest};

    use super::{Part, Shelf, Table, TableKind};

    const RING: TableKind = TableKind::Ring { min: 1024, max: 8 << 20, murmur: false };
    const MAGLEV: TableKind = TableKind::Maglev(65537);

    fn made_of(weights: &[u32]) -> Vec<Part> {
        let sum: u32 = weights.iter().sum();
        let host = |(index, weight): (usize, &u32)| Part {
            key: format!("10.0.0.{index}:80").into(),
            part: f64::from(*weight) / f64::from(sum),
        };
        weights.iter().enumerate().map(host).collect()
    }

    /// Keys that hashes lead to.
    fn found(table: &Table, count: usize) -> Vec<&str> {
        let mut random = Rng::new(5);
        (0..count).map(|_| &*table.made_of[table.find(random.next_u64(), 0).unwrap()].key).collect()
    }

    #[test]
    fn workers_share_tables() {
        let shelf = Shelf::default();
        let one = shelf.table(RING, made_of(&[1, 1]));
        assert!(Arc::ptr_eq(&one, &shelf.table(RING, made_of(&[1, 1]))));
        assert!(!Arc::ptr_eq(&one, &shelf.table(RING, made_of(&[1, 2]))));
        assert!(!Arc::ptr_eq(&one, &shelf.table(MAGLEV, made_of(&[1, 1]))));
        drop(one);
        shelf.table(RING, Vec::new());
        assert_eq!(shelf.0.lock().unwrap().len(), 1, "what nobody uses is forgotten");
    }

    #[test]
    fn nobody_is_found_among_none() {
        for kind in [RING, MAGLEV] {
            assert_eq!(Table::new(kind, Vec::new()).find(7, 0), None);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        /// Maglev keeps to the weights within a few per cent, a ring roughly.
        #[test]
        fn weights_are_kept(
            weights in proptest::collection::vec(1u32..6, 2..20),
            (kind, off) in prop_oneof![Just((TableKind::Ring { min: 65536, max: 8 << 20, murmur: true }, 0.35)), Just((MAGLEV, 0.1))],
        ) {
            let table = Table::new(kind, made_of(&weights));
            let mut counts: HashMap<&str, f64> = HashMap::new();
            for key in found(&table, 50_000) {
                *counts.entry(key).or_default() += 1.0 / 50_000.0;
            }
            for Part { key, part } in &table.made_of {
                let got = counts.get(&**key).copied().unwrap_or_default();
                assert!((got - part).abs() < part * off + 0.002, "{key}: {got} instead of {part}");
            }
        }

        /// A host that goes takes its own requests with it, and few others move.
        #[test]
        fn few_move(
            weights in proptest::collection::vec(1u32..4, 4..30).prop_flat_map(|weights| {
                let len = weights.len();
                (Just(weights), 0..len)
            }),
            (kind, most) in prop_oneof![Just((RING, 0.15)), Just((MAGLEV, 0.15))],
        ) {
            let (weights, gone) = weights;
            let all = made_of(&weights);
            let mut fewer = all.clone();
            let removed = fewer.remove(gone);
            for one in &mut fewer {
                one.part /= 1.0 - removed.part;
            }
            let (before, after) = (Table::new(kind, all), Table::new(kind, fewer));
            let (before, after) = (found(&before, 5_000), found(&after, 5_000));
            let moved = before.iter().zip(&after).filter(|(from, to)| **from != &*removed.key && from != to);
            let moved = moved.count() as f64 / 5_000.0;
            assert!(moved < most, "{moved} moved");
        }
    }
}

//! Which Gateways are to be seen to, and when. No I/O.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::Key;

/// How long to wait after a failure: at first, and in the end.
const AGAIN: Duration = Duration::from_secs(1);
pub(super) const AGAIN_AT_LAST: Duration = Duration::from_secs(300);

/// Why a Gateway is seen to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    /// What is to be made may be other than before.
    Perhaps,
    /// What was made may be other than it was made.
    Changed,
}

/// What is due.
#[derive(Debug, Default)]
pub(super) struct Due {
    waiting: BTreeMap<Key, (Why, Instant)>,
    /// How often each has failed.
    failures: BTreeMap<Key, u32>,
    /// Why those were taken that have not been reported yet.
    taken: BTreeMap<Key, Why>,
    /// All that were ever due.
    known: std::collections::BTreeSet<Key>,
}

impl Due {
    /// One is to be seen to.
    pub(super) fn add(&mut self, key: &Key, why: Why, at: Instant) {
        let waiting = self.waiting.entry(key.clone()).or_insert((why, at));
        *waiting = (waiting.0.max(why), waiting.1.min(at));
        self.known.insert(key.clone());
    }

    /// All are.
    pub(super) fn all(&mut self, why: Why, at: Instant) {
        let known: Vec<Key> = self.known.iter().cloned().collect();
        known.iter().for_each(|key| self.add(key, why, at));
    }

    /// One is gone.
    pub(super) fn remove(&mut self, key: &Key) {
        self.waiting.remove(key);
        self.failures.remove(key);
        self.taken.remove(key);
        self.known.remove(key);
    }

    /// One to be seen to now.
    pub(super) fn take(&mut self, now: Instant) -> Option<(Key, Why)> {
        // Who is due for longest, so that one that changes all the time holds up no others.
        let (key, (why, _)) =
            self.waiting.iter().filter(|(_, (_, at))| *at <= now).min_by_key(|(_, (_, at))| *at)?;
        let (key, why) = (key.clone(), *why);
        self.waiting.remove(&key);
        self.taken.insert(key.clone(), why);
        Some((key, why))
    }

    /// The one that was taken is as it should be.
    pub(super) fn done(&mut self, key: &Key) {
        self.taken.remove(key);
        self.failures.remove(key);
    }

    /// It is not, and is to be tried again after a while that grows.
    pub(super) fn failed(&mut self, key: &Key, now: Instant) {
        let why = self.taken.remove(key).unwrap_or(Why::Changed);
        let failures = self.failures.entry(key.clone()).or_default();
        let wait = AGAIN.saturating_mul(1 << (*failures).min(9)).min(AGAIN_AT_LAST);
        *failures += 1;
        self.add(key, why, now + wait);
    }

    /// When the next is to be seen to.
    pub(super) fn when(&self) -> Option<Instant> {
        self.waiting.values().map(|(_, at)| *at).min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{AGAIN, AGAIN_AT_LAST, Due, Why};
    use crate::model::Key;

    #[test]
    fn failures_wait_longer_and_hold_up_no_others() {
        let key = |name: &str| Key { namespace: "n".to_owned(), name: name.to_owned() };
        let now = Instant::now();
        let mut due = Due::default();
        due.add(&key("a"), Why::Changed, now);
        due.add(&key("a"), Why::Perhaps, now);
        due.add(&key("b"), Why::Perhaps, now);
        assert_eq!(due.take(now), Some((key("a"), Why::Changed)));
        due.failed(&key("a"), now);
        assert_eq!(due.take(now), Some((key("b"), Why::Perhaps)));
        due.done(&key("b"));
        assert_eq!((due.take(now), due.when()), (None, Some(now + AGAIN)));
        assert_eq!(due.take(now + AGAIN), Some((key("a"), Why::Changed)), "why it is due stays");
        due.failed(&key("a"), now);
        assert_eq!(due.when(), Some(now + AGAIN * 2));
        for _ in 0..40 {
            let (taken, _) = due.take(now + Duration::from_secs(3600)).unwrap();
            due.failed(&taken, now);
        }
        assert_eq!(due.when(), Some(now + AGAIN_AT_LAST));
        // What changes is tried at once.
        due.add(&key("a"), Why::Perhaps, now);
        assert_eq!(due.take(now), Some((key("a"), Why::Changed)));
        due.done(&key("a"));
        due.all(Why::Perhaps, now);
        due.remove(&key("a"));
        assert_eq!(due.take(now), Some((key("b"), Why::Perhaps)));
        assert_eq!(due.take(now), None);
    }

    #[test]
    fn who_changes_all_the_time_holds_up_nobody() {
        let key = |name: &str| Key { namespace: "n".to_owned(), name: name.to_owned() };
        let mut now = Instant::now();
        let mut due = Due::default();
        due.add(&key("b"), Why::Perhaps, now);
        let mut taken = Vec::new();
        for _ in 0..3 {
            now += Duration::from_millis(1);
            due.add(&key("a"), Why::Perhaps, now);
            let (key, _) = due.take(now).unwrap();
            due.done(&key);
            taken.push(key.name);
        }
        assert_eq!(taken, ["b", "a", "a"]);
    }
}

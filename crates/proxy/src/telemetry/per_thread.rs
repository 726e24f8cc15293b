//! A value for each thread that serves, in one place that all of them share: how a filter's
//! configuration finds its stats on the calling worker without looking anything up by name.
//!
//! Reading takes no lock. A slot is filled by the first call on its thread and stays until the
//! owner goes.

use std::sync::OnceLock;

use crate::telemetry::stats::ThreadStats;

const SLOTS: usize = 8;

/// One value per thread.
#[derive(Debug)]
pub(crate) struct PerThread<T> {
    slots: [OnceLock<T>; SLOTS],
    more: OnceLock<Box<PerThread<T>>>,
}

impl<T> Default for PerThread<T> {
    fn default() -> Self {
        Self { slots: std::array::from_fn(|_| OnceLock::new()), more: OnceLock::new() }
    }
}

impl<T> PerThread<T> {
    /// The calling thread's value, which is made at the first call.
    pub(crate) fn of(&self, thread: &ThreadStats, make: impl FnOnce() -> T) -> &T {
        let mut here = self;
        let mut index = thread.index();
        loop {
            if let Some(slot) = here.slots.get(index) {
                return slot.get_or_init(make);
            }
            here = here.more.get_or_init(Box::default);
            index -= SLOTS;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::PerThread;
    use crate::telemetry::stats::StatsStore;

    #[test]
    fn each_thread_has_its_own() {
        let store = StatsStore::default();
        let threads: Vec<_> = (0..20).map(|_| store.thread()).collect();
        let values = PerThread::default();
        for (index, thread) in threads.iter().enumerate() {
            assert_eq!(*values.of(thread, || index), index);
        }
        assert_eq!(*values.of(&threads[17], || 99), 17);
    }
}

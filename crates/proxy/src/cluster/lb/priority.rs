//! Priorities: how much of the load each gets, and whether it is in panic.
//!
//! A priority's health is the share of its healthy hosts times the overprovisioning factor,
//! at most 100 %. Load goes to the first priority up to its health, the rest to the next, and
//! so on; if all together are below 100 %, the shares are scaled up. Degraded hosts come
//! after all healthy ones. In a cluster whose total health is below 100 %, a priority with a
//! smaller share of healthy and degraded hosts than the panic threshold sends to all its hosts
//! alike; where all priorities do, each gets load by its number of hosts.

/// What is known of one priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    /// All hosts.
    pub(crate) total: u32,
    /// Healthy ones.
    pub(crate) healthy: u32,
    /// Degraded ones.
    pub(crate) degraded: u32,
}

/// What one priority gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    /// Percent of the requests to its healthy hosts (to all of them in panic).
    pub(crate) healthy: u32,
    /// Percent of the requests to its degraded hosts.
    pub(crate) degraded: u32,
    /// Whether health is ignored.
    pub(crate) panic: bool,
}

/// Shares of all priorities; they sum up to 100 unless there is no priority at all.
pub(crate) fn shares(census: &[Census], overprovisioning: u32, panic_threshold: f64) -> Vec<Share> {
    let health = |hosts: u32, total: u32| {
        let percent = u64::from(overprovisioning) * u64::from(hosts) / u64::from(total.max(1));
        percent.min(100) as u32
    };
    let healthy: Vec<u32> = census.iter().map(|one| health(one.healthy, one.total)).collect();
    let degraded: Vec<u32> = census.iter().map(|one| health(one.degraded, one.total)).collect();
    let total = (healthy.iter().sum::<u32>() + degraded.iter().sum::<u32>()).min(100);

    let mut shares = vec![Share::default(); census.len()];
    for (share, one) in shares.iter_mut().zip(census) {
        let percent = 100.0 * f64::from(one.healthy + one.degraded) / f64::from(one.total.max(1));
        share.panic = total < 100 && percent < panic_threshold;
    }
    if shares.iter().all(|share| share.panic) {
        by_hosts(census, &mut shares);
        return shares;
    }
    if total == 0 {
        // Nothing is healthy and panic is switched off: nobody will be chosen.
        if let Some(first) = shares.first_mut() {
            first.healthy = 100;
        }
        return shares;
    }
    let mut left = 100;
    for (share, health) in shares.iter_mut().zip(&healthy) {
        share.healthy = (health * 100 / total).min(left);
        left -= share.healthy;
    }
    for (share, health) in shares.iter_mut().zip(&degraded) {
        share.degraded = (health * 100 / total).min(left);
        left -= share.degraded;
    }
    // What rounding left over goes to the first priority that gets anything.
    if let Some(first) = shares.iter_mut().find(|share| share.healthy > 0) {
        first.healthy += left;
    } else if let Some(first) = shares.iter_mut().find(|share| share.degraded > 0) {
        first.degraded += left;
    }
    shares
}

/// Everything is in panic: each priority gets load by its number of hosts.
fn by_hosts(census: &[Census], shares: &mut [Share]) {
    let total: u64 = census.iter().map(|one| u64::from(one.total)).sum();
    let mut left = 100;
    for (share, one) in shares.iter_mut().zip(census) {
        share.healthy = (100 * u64::from(one.total) / total.max(1)) as u32;
        left -= share.healthy;
    }
    let first = census.iter().position(|one| one.total > 0).unwrap_or(0);
    if let Some(first) = shares.get_mut(first) {
        first.healthy += left;
    }
}

#[cfg(test)]
mod tests {
    use super::{Census, Share, shares};

    fn check(hosts: &[(u32, u32, u32)], expected: &[(u32, u32, bool)]) {
        let census: Vec<Census> =
            hosts.iter().map(|&(total, healthy, degraded)| Census { total, healthy, degraded }).collect();
        let expected: Vec<Share> =
            expected.iter().map(|&(healthy, degraded, panic)| Share { healthy, degraded, panic }).collect();
        assert_eq!(shares(&census, 140, 50.0), expected, "{hosts:?}");
    }

    #[test]
    fn load_spills_over_to_the_next_priority() {
        check(&[(10, 10, 0), (10, 10, 0)], &[(100, 0, false), (0, 0, false)]);
        check(&[(10, 8, 0), (10, 10, 0)], &[(100, 0, false), (0, 0, false)]);
        check(&[(10, 7, 0), (10, 10, 0)], &[(98, 0, false), (2, 0, false)]);
        check(&[(10, 0, 0), (10, 10, 0)], &[(0, 0, false), (100, 0, false)]);
        check(&[(10, 5, 0), (10, 5, 0)], &[(70, 0, false), (30, 0, false)]);
    }

    #[test]
    fn too_little_health_everywhere_panics_and_goes_by_hosts() {
        check(&[(10, 1, 0), (10, 2, 0)], &[(50, 0, true), (50, 0, true)]);
        check(&[(10, 1, 0), (30, 2, 0)], &[(25, 0, true), (75, 0, true)]);
        check(&[(1, 0, 0), (1, 0, 0), (1, 0, 0)], &[(34, 0, true), (33, 0, true), (33, 0, true)]);
        check(&[(10, 0, 0)], &[(100, 0, true)]);
        check(&[(0, 0, 0), (4, 0, 0)], &[(0, 0, true), (100, 0, true)]);
        check(&[(0, 0, 0)], &[(100, 0, true)]);
        check(&[], &[]);
    }

    #[test]
    fn one_priority_in_panic_among_others() {
        check(&[(10, 1, 0), (10, 6, 0)], &[(15, 0, true), (85, 0, false)]);
        // The others can take it all: no panic.
        check(&[(10, 1, 0), (10, 10, 0)], &[(14, 0, false), (86, 0, false)]);
    }

    #[test]
    fn without_a_panic_threshold_nobody_is_chosen() {
        let none = shares(&[Census { total: 3, healthy: 0, degraded: 0 }], 140, 0.0);
        assert_eq!(none, [Share { healthy: 100, degraded: 0, panic: false }]);
    }

    #[test]
    fn degraded_hosts_come_after_healthy_ones() {
        check(&[(10, 5, 5)], &[(70, 30, false)]);
        check(&[(10, 0, 10), (10, 5, 0)], &[(0, 30, false), (70, 0, false)]);
    }
}

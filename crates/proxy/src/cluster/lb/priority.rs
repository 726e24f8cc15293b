//! Priorities: how much of the load each gets, and whether it is in panic.
//!
//! A priority's health is the share of its healthy hosts times the overprovisioning factor,
//! at most 100 %. Load goes to the first priority up to its health, the rest to the next, and
//! so on; if all together are below 100 %, the shares are scaled up. Degraded hosts come
//! after all healthy ones. In a cluster whose total health is below 100 %, a priority with a
//! smaller share of healthy and degraded hosts than the panic threshold sends to all its hosts
//! alike; where all priorities do, each gets load by its number of hosts.

use crate::cluster::HealthStatus;

/// What is known of one priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    /// All hosts.
    pub(crate) total: u32,
    /// Of them, those that are not counted yet.
    pub(crate) excluded: u32,
    /// Healthy ones.
    pub(crate) healthy: u32,
    /// Degraded ones.
    pub(crate) degraded: u32,
    /// The same by weight with `weighted_priority_health`, else once more: all but those that
    /// are excluded.
    pub(crate) total_weight: u64,
    /// See `total_weight`.
    pub(crate) healthy_weight: u64,
    /// See `total_weight`.
    pub(crate) degraded_weight: u64,
    /// `overprovisioning_factor`, percent.
    pub(crate) overprovisioning: u32,
}

impl Census {
    /// One more host with this weight (1 where weights do not count).
    pub(crate) fn count(&mut self, health: HealthStatus, excluded: bool, weight: u64) {
        self.total += 1;
        if excluded {
            self.excluded += 1;
        } else {
            self.total_weight += weight;
        }
        match health {
            HealthStatus::Healthy => {
                self.healthy += 1;
                self.healthy_weight += weight;
            }
            HealthStatus::Degraded => {
                self.degraded += 1;
                self.degraded_weight += weight;
            }
            HealthStatus::Unhealthy | HealthStatus::Draining => {}
        }
    }

    /// Percentage of healthy and degraded hosts.
    pub(crate) fn available_percent(&self) -> f64 {
        let counted = self.total - self.excluded;
        if counted == 0 { 0.0 } else { 100.0 * f64::from(self.healthy + self.degraded) / f64::from(counted) }
    }

    /// Health and what degraded hosts add to it, percent.
    fn health(&self) -> (u32, u32) {
        let percent = |weight: u64| {
            // Sums of 32-bit weights times a percentage: 128 bits are enough for all of them.
            let percent = u128::from(self.overprovisioning) * u128::from(weight);
            percent.checked_div(u128::from(self.total_weight)).map_or(0, |percent| percent.min(100) as u32)
        };
        if self.total == self.excluded {
            return (0, 0);
        }
        (percent(self.healthy_weight), percent(self.degraded_weight))
    }
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
pub(crate) fn shares(census: &[Census], panic_threshold: f64) -> Vec<Share> {
    let health: Vec<(u32, u32)> = census.iter().map(|one| one.health()).collect();
    let total = health.iter().map(|(healthy, degraded)| healthy + degraded).sum::<u32>().min(100);

    let mut shares = vec![Share::default(); census.len()];
    for (share, one) in shares.iter_mut().zip(census) {
        share.panic = total < 100 && one.available_percent() < panic_threshold;
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
    distribute(&health, total, &mut shares);
    shares
}

/// Shares without some priorities, for retries; where nothing else is available they are taken
/// all the same.
pub(crate) fn shares_without(excluded: &[u32], census: &[Census], usual: &[Share]) -> Vec<Share> {
    let mut health: Vec<(u32, u32)> = census.iter().map(|one| one.health()).collect();
    for priority in excluded {
        if let Some(health) = health.get_mut(*priority as usize) {
            *health = (0, 0);
        }
    }
    let total = health.iter().map(|(healthy, degraded)| healthy + degraded).sum::<u32>().min(100);
    let mut shares = usual.to_vec();
    if total > 0 {
        shares.iter_mut().for_each(|share| *share = Share { panic: share.panic, ..Share::default() });
        distribute(&health, total, &mut shares);
    }
    shares
}

fn distribute(health: &[(u32, u32)], total: u32, shares: &mut [Share]) {
    let mut left = 100;
    for (share, (healthy, _)) in shares.iter_mut().zip(health) {
        share.healthy = (healthy * 100 / total).min(left);
        left -= share.healthy;
    }
    for (share, (_, degraded)) in shares.iter_mut().zip(health) {
        share.degraded = (degraded * 100 / total).min(left);
        left -= share.degraded;
    }
    // What rounding left over goes to the first priority that can take anything.
    let first = |of: fn(&(u32, u32)) -> u32| health.iter().position(|one| of(one) > 0);
    if let Some(share) = first(|health| health.0).and_then(|index| shares.get_mut(index)) {
        share.healthy += left;
    } else if let Some(share) = first(|health| health.1).and_then(|index| shares.get_mut(index)) {
        share.degraded += left;
    }
}

/// Draws a priority with a number below 100: which, and whether its degraded hosts are meant.
pub(crate) fn draw(shares: &[Share], mut point: u32) -> Option<(usize, bool)> {
    let mut within = |percent: u32| {
        let hit = point < percent;
        point = point.saturating_sub(percent);
        hit
    };
    if let Some(index) = shares.iter().position(|share| within(share.healthy)) {
        return Some((index, false));
    }
    shares.iter().position(|share| within(share.degraded)).map(|index| (index, true))
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
    use super::{Census, Share, draw, shares, shares_without};

    fn census(total: u32, healthy: u32, degraded: u32) -> Census {
        Census {
            total,
            excluded: 0,
            healthy,
            degraded,
            total_weight: total.into(),
            healthy_weight: healthy.into(),
            degraded_weight: degraded.into(),
            overprovisioning: 140,
        }
    }

    fn check(hosts: &[(u32, u32, u32)], expected: &[(u32, u32, bool)]) {
        let census: Vec<Census> =
            hosts.iter().map(|&(total, healthy, degraded)| census(total, healthy, degraded)).collect();
        let expected: Vec<Share> =
            expected.iter().map(|&(healthy, degraded, panic)| Share { healthy, degraded, panic }).collect();
        assert_eq!(shares(&census, 50.0), expected, "{hosts:?}");
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
        let none = shares(&[census(3, 0, 0)], 0.0);
        assert_eq!(none, [Share { healthy: 100, degraded: 0, panic: false }]);
    }

    #[test]
    fn degraded_hosts_come_after_healthy_ones() {
        check(&[(10, 5, 5)], &[(70, 30, false)]);
        check(&[(10, 0, 10), (10, 5, 0)], &[(0, 30, false), (70, 0, false)]);
    }

    #[test]
    fn hosts_may_count_by_weight_or_not_at_all_yet() {
        let weighted = Census { total_weight: 10, healthy_weight: 1, ..census(2, 1, 0) };
        let next = census(2, 2, 0);
        assert_eq!(shares(&[weighted, next], 50.0)[0], Share { healthy: 14, degraded: 0, panic: false });
        let pending = Census { excluded: 3, total_weight: 1, ..census(4, 1, 0) };
        assert_eq!(shares(&[pending, next], 50.0)[0].healthy, 100);
    }

    #[test]
    fn retries_leave_priorities_out() {
        let hosts = [census(2, 2, 0), census(2, 2, 0), census(2, 1, 0)];
        let usual = shares(&hosts, 50.0);
        let healthy = |excluded: &[u32]| {
            shares_without(excluded, &hosts, &usual).iter().map(|share| share.healthy).collect::<Vec<_>>()
        };
        assert_eq!(healthy(&[]), [100, 0, 0]);
        assert_eq!(healthy(&[0]), [0, 100, 0]);
        assert_eq!(healthy(&[0, 1]), [0, 0, 100]);
        assert_eq!(healthy(&[0, 1, 2]), [100, 0, 0]);
    }

    #[test]
    fn a_draw_hits_each_priority_in_turn() {
        let share = |healthy, degraded| Share { healthy, degraded, panic: false };
        let shares = [share(30, 10), share(40, 20)];
        let drawn = [0, 29, 30, 69, 70, 79, 80, 99].map(|point| draw(&shares, point).unwrap());
        let [a, b, c, d] = [(0, false), (1, false), (0, true), (1, true)];
        assert_eq!(drawn, [a, a, b, b, c, c, d, d]);
        assert_eq!(draw(&[], 5), None);
    }
}

//! Orders places by how near they are to the client, or gives them the weights that a rule names.

use std::collections::BTreeMap;

use super::Place;
use crate::model::destination_rule::{Distribute, LocalityLb, ZoneAwareLb};
use crate::scope::locality::{LocalitySetting, NETWORK, View};
use crate::translate::proto::core;

/// Applies what holds for a service to its places. `failing_over`: whether failures are looked for,
/// without which a proxy would never leave the nearest place.
pub(super) fn apply(places: &mut Vec<Place<'_>>, setting: &LocalitySetting, view: &View, failing_over: bool) {
    let client = Client { parts: split(&view.locality), labels: &view.labels };
    match setting {
        LocalitySetting::Places { setting, forced } => {
            if !setting.distribute.is_empty() {
                distribute(places, &client, &setting.distribute);
            } else if *forced || failing_over {
                fail_over(places, &client, setting);
            }
        }
        LocalitySetting::Zones(setting) if setting.enabled == Some(false) => {}
        LocalitySetting::Zones(setting) => by_region(places, &client, setting),
    }
}

/// The client as far as it matters here.
struct Client<'v> {
    /// Region, zone, sub-zone.
    parts: [&'v str; 3],
    /// What it has for the labels that endpoints are compared by, but for those with values.
    labels: &'v [String],
}

/// Weights by the first rule for places like the client's. Places that it does not name get nothing.
fn distribute(places: &mut [Place<'_>], client: &Client<'_>, rules: &[Distribute]) {
    let Some(rule) = rules.iter().find(|rule| matches(client.parts, &rule.from)) else { return };
    let mut named = vec![false; places.len()];
    for (pattern, share) in &rule.to {
        let chosen: Vec<usize> = places
            .iter()
            .enumerate()
            .filter(|(index, place)| named.get(*index) == Some(&false) && matches(parts_of(place), pattern))
            .map(|(index, _)| index)
            .collect();
        let weight = |place: &Place<'_>| place.message.load_balancing_weight.unwrap_or(1);
        let total: u64 =
            chosen.iter().filter_map(|index| places.get(*index)).map(|place| u64::from(weight(place))).sum();
        for index in chosen {
            if let (Some(place), Some(named)) = (places.get_mut(index), named.get_mut(index)) {
                *named = true;
                // What several places share is divided by what they weigh.
                let part = u64::from(weight(place)) * u64::from(*share);
                let part = u32::try_from(part.div_ceil(total.max(1))).unwrap_or(u32::MAX);
                if part > 0 {
                    place.message.load_balancing_weight = Some(part);
                }
            }
        }
    }
    for (place, named) in places.iter_mut().zip(named) {
        if !named {
            place.message.lb_endpoints.clear();
            place.behind.clear();
        }
    }
}

/// Priorities by labels and by places.
fn fail_over(places: &mut Vec<Place<'_>>, client: &Client<'_>, setting: &LocalityLb) {
    if !setting.failover_priority.is_empty() {
        by_labels(places, client, &setting.failover_priority);
    }
    if !setting.failover.is_empty() || setting.failover_priority.is_empty() {
        let [region, ..] = client.parts;
        let target = setting.failover.iter().find(|rule| rule.from == region).map(|rule| rule.to.as_str());
        rank(places, 5, |place| {
            let near = common_parts(client.parts, parts_of(place));
            match target {
                // Another region than that which a rule sends to is the last resort.
                Some(target) if near == 0 && parts_of(place)[0] != target => 4,
                _ => 3 - near,
            }
        });
    }
}

/// All of the client's region first, among which Envoy prefers the zone itself.
fn by_region(places: &mut Vec<Place<'_>>, client: &Client<'_>, setting: &ZoneAwareLb) {
    if !setting.failover_priority.is_empty() {
        by_labels(places, client, &setting.failover_priority);
    }
    let [region, ..] = client.parts;
    let target = setting.failover.iter().find(|rule| rule.from == region).map(|rule| rule.to.as_str());
    rank(places, 3, |place| match parts_of(place)[0] {
        own if own == region => 0,
        other if Some(other) == target => 1,
        _ => 2,
    });
}

/// Splits places by how many labels, in order, endpoints share with the client: the more the better.
/// Another network, if that is the first label, is worse than anything else.
fn by_labels(places: &mut Vec<Place<'_>>, client: &Client<'_>, labels: &[String]) {
    let mut own = client.labels.iter();
    let wanted: Vec<(&str, &str)> = labels
        .iter()
        .map(|label| match label.split_once('=') {
            Some((name, value)) => (name, value),
            None => (label.as_str(), own.next().map(String::as_str).unwrap_or_default()),
        })
        .collect();
    let by_network = wanted.first().is_some_and(|(name, _)| *name == NETWORK);
    let mut split = Vec::new();
    for place in std::mem::take(places) {
        let Place { mut message, behind } = place;
        let endpoints = std::mem::take(&mut message.lb_endpoints);
        let mut groups: BTreeMap<usize, Place<'_>> = BTreeMap::new();
        for (endpoint, behind) in endpoints.into_iter().zip(behind) {
            let mut priority = 0;
            for (index, (name, value)) in wanted.iter().enumerate() {
                if behind.label(name) == *value {
                    continue;
                }
                if index == 0 && by_network {
                    priority = wanted.len();
                    continue;
                }
                priority += wanted.len() - index;
                break;
            }
            let group = groups
                .entry(priority)
                .or_insert_with(|| Place { message: message.clone(), behind: Vec::new() });
            group.message.priority = u32::try_from(priority).unwrap_or(u32::MAX);
            group.message.lb_endpoints.push(endpoint);
            group.behind.push(behind);
        }
        split.extend(groups.into_values().map(|mut place| {
            place.weigh();
            place
        }));
    }
    *places = split;
    // Numbers without gaps.
    rank(places, 1, |_| 0);
}

/// Gives places priorities without gaps, in the order of what they have already and, among those
/// with the same, of what `of` says, which is less than `most`.
fn rank(places: &mut [Place<'_>], most: u32, of: impl Fn(&Place<'_>) -> u32) {
    let priorities: Vec<u32> = places
        .iter()
        .map(|place| place.message.priority.saturating_mul(most).saturating_add(of(place)))
        .collect();
    let mut sorted = priorities.clone();
    sorted.sort_unstable();
    sorted.dedup();
    for (place, priority) in places.iter_mut().zip(priorities) {
        let found = sorted.binary_search(&priority).unwrap_or_default();
        place.message.priority = u32::try_from(found).unwrap_or(u32::MAX);
    }
}

fn parts_of<'p>(place: &'p Place<'_>) -> [&'p str; 3] {
    match &place.message.locality {
        Some(core::Locality { region, zone, sub_zone }) => [region, zone, sub_zone],
        None => [""; 3],
    }
}

fn split(locality: &str) -> [&str; 3] {
    let mut parts = locality.splitn(3, '/');
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// How many parts two places share, from the region on.
fn common_parts(a: [&str; 3], b: [&str; 3]) -> u32 {
    a.iter().zip(b).take_while(|(a, b)| **a == *b).fold(0, |count, _| count + 1)
}

/// Whether a place is of a pattern: parts that are `*`, or missing after the first, are of no matter.
fn matches(place: [&str; 3], pattern: &str) -> bool {
    let [region, zone, sub_zone] = split(pattern);
    let fits = |pattern: &str, part: &str| pattern == "*" || pattern == part;
    fits(region, place[0])
        && (zone.is_empty() || fits(zone, place[1]))
        && (sub_zone.is_empty() || fits(sub_zone, place[2]))
}

#[cfg(test)]
mod tests {
    use super::{common_parts, matches, split};

    #[test]
    fn places_fit_patterns() {
        let check = |place: &str, pattern: &str, expected: bool| {
            assert_eq!(matches(split(place), pattern), expected, "{place} {pattern}");
        };
        check("r/z/s", "r/z/s", true);
        check("r/z/s", "r/z", true);
        check("r/z/s", "r/*", true);
        check("r/z/s", "*", true);
        check("r/z/s", "r", true);
        check("r/z/s", "q", false);
        check("r/z/s", "r/y/*", false);
        check("", "*", true);
        check("", "r", false);
    }

    #[test]
    fn parts_are_shared_from_the_region_on() {
        assert_eq!(common_parts(split("a/b/c"), split("a/b/c")), 3);
        assert_eq!(common_parts(split("a/b/c"), split("a/b/d")), 2);
        assert_eq!(common_parts(split("a/b/c"), split("a/x/c")), 1);
        assert_eq!(common_parts(split("a/b/c"), split("x/b/c")), 0);
        assert_eq!(common_parts(split(""), split("")), 3);
    }
}

//! What the choice among endpoints must look like.

use std::collections::HashSet;

use super::{ConsistentHash, Failover, LoadBalancer, LocalityLb, Simple, Warmup, ZoneAwareLb};
use crate::model::check::Check;
use crate::model::duration::Span;

/// Labels that stand for places, which priorities by place know without being told.
const PLACES: [&str; 3] =
    ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];

/// The largest table of Maglev that Envoy takes.
const MOST_MAGLEV: u64 = 5_000_011;

/// A load balancer; `ejects` says whether there is outlier detection, without which nobody would
/// ever leave the nearest place.
pub(super) fn load_balancer(check: &mut Check, balancer: &LoadBalancer, ejects: bool) {
    if balancer.simple.is_some() && balancer.consistent_hash.is_some() {
        check.invalid("only one of simple and consistentHash may be given");
    }
    if let Some(hash) = &balancer.consistent_hash {
        check.at("consistentHash", |check| consistent_hash(check, hash));
    }
    if balancer.simple == Some(Simple::LeastConn) {
        check.at("simple", |check| check.warn("deprecated", "LEAST_CONN is deprecated, use LEAST_REQUEST"));
    }
    if balancer.locality_lb_setting.is_some() && balancer.zone_aware_lb_setting.is_some() {
        check.invalid("only one of localityLbSetting and zoneAwareLbSetting may be given");
    }
    if let Some(setting) = &balancer.locality_lb_setting {
        check.at("localityLbSetting", |check| locality(check, setting, ejects));
    }
    if let Some(setting) = &balancer.zone_aware_lb_setting {
        check.at("zoneAwareLbSetting", |check| zone_aware(check, setting, ejects));
    }
    if let Some(warmup) = &balancer.warmup {
        check.at("warmup", |check| slow_start(check, warmup));
    }
}

fn consistent_hash(check: &mut Check, hash: &ConsistentHash) {
    let keys = [
        hash.http_header_name.is_some(),
        hash.http_cookie.is_some(),
        hash.use_source_ip.is_some(),
        hash.http_query_parameter_name.is_some(),
    ];
    if keys.into_iter().filter(|given| *given).count() != 1 {
        check.invalid("one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName is needed");
    }
    if hash.ring_hash.is_some() && hash.maglev.is_some() {
        check.invalid("only one of ringHash and maglev may be given");
    }
    if let Some(cookie) = &hash.http_cookie {
        check.at("httpCookie", |check| {
            if cookie.name.is_empty() {
                check.at("name", |check| check.invalid("must not be empty"));
            }
            let mut names = HashSet::new();
            check.each("attributes", &cookie.attributes, |check, attribute| {
                check.at("name", |check| {
                    if attribute.name.is_empty() {
                        check.invalid("must not be empty");
                    } else if !names.insert(attribute.name.clone()) {
                        check.invalid(format!("there is another attribute {:?}", attribute.name));
                    }
                });
            });
        });
    }
    if hash.minimum_ring_size != 0 {
        check.at("minimumRingSize", |check| {
            check.warn("deprecated", "is deprecated, use ringHash.minimumRingSize");
            if hash.ring_hash.is_some() || hash.maglev.is_some() {
                check.invalid("must not be given beside ringHash or maglev");
            }
        });
    }
    // Deviation: Istio refuses a Maglev table without a size; Envoy has a default.
    if let Some(size) = hash.maglev.as_ref().map(|maglev| maglev.table_size).filter(|size| *size != 0) {
        check.at("maglev", |check| {
            check.at("tableSize", |check| {
                if size > MOST_MAGLEV || !is_prime(size) {
                    check.invalid(format!("{size} is no prime number up to {MOST_MAGLEV}"));
                }
            });
        });
    }
}

/// How places are preferred, in a rule or in the mesh.
pub(crate) fn locality(check: &mut Check, setting: &LocalityLb, ejects: bool) {
    if !setting.distribute.is_empty() && !setting.failover.is_empty() {
        check.invalid("only one of distribute and failover may be given");
    }
    if !setting.failover.is_empty()
        && let Some(label) = setting.failover_priority.iter().find(|label| PLACES.contains(&label.as_str()))
    {
        check.at("failoverPriority", |check| {
            check.invalid(format!("{label} must not be given beside failover, which goes by places already"));
        });
    }
    check.each("distribute", &setting.distribute, |check, rule| {
        check.at("from", |check| place(check, &rule.from));
        check.at("to", |check| {
            for (name, weight) in &rule.to {
                check.key(name, |check| {
                    place(check, name);
                    if !(1..=100).contains(weight) {
                        check.invalid(format!("weight {weight} is not between 1 and 100"));
                    }
                });
            }
            let total = rule.to.values().fold(0_u32, |sum, weight| sum.saturating_add(*weight));
            if total != 100 {
                check.invalid(format!("the weights add up to {total}, not to 100"));
            }
            disjoint(check, rule.to.keys());
        });
    });
    check.at("distribute", |check| disjoint(check, setting.distribute.iter().map(|rule| &rule.from)));
    failover(check, &setting.failover);
    let unused = setting.failover.is_empty() && setting.failover_priority.is_empty();
    if !ejects && !unused {
        check.warn("no-effect", "has no effect without outlierDetection");
    }
}

/// How zones are preferred, in a rule or in the mesh.
pub(crate) fn zone_aware(check: &mut Check, setting: &ZoneAwareLb, ejects: bool) {
    check.each("failoverPriority", &setting.failover_priority, |check, label| {
        if PLACES.contains(&label.as_str()) {
            check.invalid(format!("{label} must not be given: places are gone by already"));
        }
    });
    failover(check, &setting.failover);
    let unused = setting.failover.is_empty() && setting.failover_priority.is_empty();
    if !ejects && !unused {
        check.warn("no-effect", "nobody leaves a place that fails without outlierDetection");
    }
}

fn failover(check: &mut Check, rules: &[Failover]) {
    check.each("failover", rules, |check, rule| {
        if rule.from == rule.to {
            check.invalid("from and to must be different regions");
        }
        for (field, region) in [("from", &rule.from), ("to", &rule.to)] {
            if region.contains(['/', '*']) {
                check.at(field, |check| check.invalid(format!("{region:?} is no region")));
            }
        }
    });
}

/// A pattern of places: `region/zone/subzone`, the last of which may be `*`.
fn place(check: &mut Check, pattern: &str) {
    let parts: Vec<&str> = pattern.split('/').collect();
    let wild = parts.iter().position(|part| part.contains('*'));
    let misplaced = wild.is_some_and(|index| index + 1 != parts.len() || !pattern.ends_with('*'));
    if misplaced || parts.len() > 3 || parts.iter().any(|part| part.is_empty()) {
        check.invalid(format!("{pattern:?} is no place such as region/zone/subzone or region/*"));
    }
}

/// No pattern may include another.
fn disjoint<'p>(check: &mut Check, patterns: impl Iterator<Item = &'p String>) {
    let parts =
        |pattern: &'p str| -> Vec<&'p str> { pattern.split('/').take_while(|part| *part != "*").collect() };
    let mut seen: Vec<(&str, Vec<&str>)> = Vec::new();
    for pattern in patterns {
        let own = parts(pattern);
        let overlaps = |other: &Vec<&str>| own.iter().zip(other).all(|(a, b)| a == b);
        if let Some((other, _)) = seen.iter().find(|(_, other)| overlaps(other)) {
            check.invalid(format!("{pattern} and {other} overlap"));
        }
        seen.push((pattern, own));
    }
}

fn slow_start(check: &mut Check, warmup: &Warmup) {
    if warmup.duration.is_none_or(Span::is_zero) {
        check.at("duration", |check| check.invalid("must be given, and be more than 0"));
    }
    if warmup.minimum_percent.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
        check.at("minimumPercent", |check| check.invalid("must be between 0 and 100"));
    }
    if warmup.aggression.is_some_and(|aggression| aggression <= 0.0 || aggression.is_nan()) {
        check.at("aggression", |check| check.invalid("must be more than 0"));
    }
}

fn is_prime(number: u64) -> bool {
    number > 1
        && (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|divisor| !number.is_multiple_of(divisor))
}

#[cfg(test)]
mod tests {
    use super::is_prime;

    #[test]
    fn primes_are_known() {
        let primes: Vec<u64> = (0..30).filter(|number| is_prime(*number)).collect();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        assert!(is_prime(65537) && !is_prime(65536) && is_prime(5_000_011));
    }
}

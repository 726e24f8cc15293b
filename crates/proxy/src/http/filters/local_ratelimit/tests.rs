//! Which buckets a request takes from; `tests/filters` has the rest.

use std::time::{Duration, Instant};

use super::buckets::{Limit, Plan, Rate};
use crate::http::route::rate_limit::Descriptor;

fn rate(max: u32) -> Rate {
    Rate { max, per_fill: 1, interval: Duration::from_secs(1000) }
}

fn descriptor(entries: &[(&str, &str)]) -> Descriptor {
    let entries = entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Descriptor { entries: entries.collect(), hits: 1 }
}

fn limit(entries: &[(&str, &str)], max: u32) -> Limit {
    Limit { entries: descriptor(entries).entries, rate: rate(max) }
}

/// How many of ten requests with these descriptors may go on.
fn allowed(plan: &Plan, descriptors: &[Descriptor]) -> usize {
    let buckets = plan.buckets();
    let now = Instant::now();
    (0..10).filter(|_| buckets.take(plan, descriptors, now).allowed).count()
}

#[test]
fn descriptors_and_the_default() {
    let plan = |always_default| Plan {
        default: Some(rate(5)),
        limits: vec![limit(&[("a", "1")], 3), limit(&[("a", "1"), ("b", "2")], 7)],
        always_default,
        max_dynamic: 2,
    };
    let one = [descriptor(&[("a", "1")])];
    let two = [descriptor(&[("a", "1"), ("b", "2")])];
    let other = [descriptor(&[("a", "2")])];
    assert_eq!([&one[..], &two, &other, &[]].map(|d| allowed(&plan(true), d)), [3, 5, 5, 5]);
    assert_eq!([&one[..], &two, &other, &[]].map(|d| allowed(&plan(false), d)), [3, 7, 5, 5]);
    let none = Plan { default: None, ..plan(true) };
    assert_eq!(allowed(&none, &other), 10);
    let both = [one[0].clone(), two[0].clone()];
    assert_eq!(allowed(&plan(false), &both), 3);
    let double = [Descriptor { hits: 2, ..two[0].clone() }];
    assert_eq!(allowed(&plan(false), &double), 3);
}

#[test]
fn wildcards_have_buckets_by_value() {
    let plan = Plan {
        default: None,
        limits: vec![limit(&[("a", "")], 2), limit(&[("a", "exact")], 1)],
        always_default: true,
        max_dynamic: 2,
    };
    let buckets = plan.buckets();
    let now = Instant::now();
    let mut take = |value| buckets.take(&plan, &[descriptor(&[("a", value)])], now).allowed;
    assert_eq!(["x", "x", "x", "y", "y", "y"].map(&mut take), [true, true, false, true, true, false]);
    assert_eq!(["exact", "exact"].map(&mut take), [true, false]);
    assert!(take("z") && take("x"), "the bucket that was used least recently was forgotten");
    assert!(take("z") && !take("z"));
}

#[test]
fn full_buckets_need_not_be_kept() {
    let plan = Plan { default: Some(rate(2)), limits: Vec::new(), always_default: true, max_dynamic: 2 };
    let buckets = plan.buckets();
    let now = Instant::now();
    assert!(buckets.are_full(now));
    assert!(buckets.take(&plan, &[], now).allowed);
    assert!(!buckets.are_full(now));
    assert!(buckets.are_full(now + Duration::from_secs(1001)));
}

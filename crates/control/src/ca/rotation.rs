//! When a root of our own is followed by another.
//!
//! A new root with a new key is *announced* first: it is among the roots that everybody is given, and
//! signs nothing. After as long as a certificate may live every workload has asked for one since, and
//! been told; then the new one signs. The old one stays among the roots for as long again, until the
//! last certificate that it has signed has expired. All of that is decided by what is kept and the
//! time, so that replicas decide the same, and a control plane that was away goes on where it was.

use std::time::Duration;

use leno_tls::Certificate;
use leno_tls::issue::{KeyPair, KeyType, Material, Validity, certificates, certificates_to_pem, root};

use super::CLOCK_SKEW;

/// A root with its key, in PEM.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) certificate: String,
    pub(super) key: String,
}

/// What is kept of an authority of our own.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Kept {
    /// The one that signs.
    pub(super) current: Root,
    /// The one that will.
    pub(super) next: Option<Root>,
    /// All that are trusted, in PEM.
    pub(super) roots: String,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the keys.
        let next = self.next.as_ref().map(|next| &next.certificate);
        f.debug_struct("Kept")
            .field("current", &self.current.certificate)
            .field("next", &next)
            .finish_non_exhaustive()
    }
}

/// How roots follow each other.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    pub(super) organization: String,
    pub(super) key: KeyType,
    /// How long a root is valid.
    pub(super) ttl: Duration,
    /// In which last part of its life it is followed by another, in hundredths.
    pub(super) grace_percent: u8,
    /// How long what a root signs is valid at most.
    pub(super) leaf: Duration,
    /// How often replicas look at what is kept; `None`: they do not.
    pub(super) check_every: Option<Duration>,
}

impl Kept {
    /// What there is at the beginning.
    ///
    /// # Errors
    /// If no key can be made.
    pub(super) fn new(schedule: &Schedule, now: i64) -> Result<Kept, String> {
        let current = schedule.root(now)?;
        Ok(Kept { roots: current.certificate.clone(), next: None, current })
    }

    /// What the authority is made of. `more`: roots of others, in PEM.
    pub(super) fn material(&self, more: &[u8]) -> Material {
        Material {
            certificate: self.current.certificate.clone().into_bytes(),
            key: self.current.key.clone().into_bytes(),
            roots: [self.roots.as_bytes(), b"\n", more].concat(),
            ..Material::default()
        }
    }

    /// What is to be kept instead at this time; `None`: it may stay as it is.
    ///
    /// # Errors
    /// If a certificate cannot be read, or no key can be made.
    // Deviation: istiod signs a new root with the old key, at once, which does not get rid of a key that
    // has become known.
    pub(super) fn rotated(&self, schedule: &Schedule, now: i64) -> Result<Option<Kept>, String> {
        let mut kept = self.clone();
        let mut changed = false;
        let current = read(&kept.current.certificate)?;
        let is_over = current.validity().1 < now;
        if kept.next.is_none() && now > schedule.grace_begins(&current) {
            let next = schedule.root(now)?;
            kept.roots = format!("{}\n{}", kept.roots.trim_end(), next.certificate);
            kept.next = Some(next);
            changed = true;
        }
        if let Some(next) = &kept.next
            && (is_over || now >= begin(&read(&next.certificate)?) + schedule.announcement(&current))
        {
            kept.current = next.clone();
            kept.next = None;
            changed = true;
        }
        let current = read(&kept.current.certificate)?;
        let next = kept.next.as_ref().map(|next| read(&next.certificate)).transpose()?;
        let mut stay = Vec::new();
        let mut went = false;
        for der in certificates(kept.roots.as_bytes())? {
            let root = Certificate::parse(&der)?;
            let is_used =
                [Some(&current), next.as_ref()].into_iter().flatten().any(|used| used.der() == root.der());
            // Its successor was announced when it was made, and signs since the end of that; a replica
            // that has not looked since may have gone on a little.
            let succeeded =
                begin(&current) + schedule.announcement(&root) + seconds(schedule.leaf) + schedule.notice();
            let is_older = begin(&root) < begin(&current);
            if is_used || (root.validity().1 >= now && !(is_older && now >= succeeded)) {
                stay.push(der);
            } else {
                went = true;
            }
        }
        if went {
            kept.roots = certificates_to_pem(&stay);
        }
        Ok((changed || went).then_some(kept))
    }
}

impl Schedule {
    fn root(&self, now: i64) -> Result<Root, String> {
        let key = KeyPair::generate(self.key)?;
        let validity =
            Validity { not_before: now - CLOCK_SKEW, not_after: now.saturating_add(seconds(self.ttl)) };
        let certificate = root(&key, &self.organization, validity)?;
        Ok(Root { certificate: certificates_to_pem([&certificate]), key: key.to_pem()? })
    }

    /// How long before its end a root is followed by another, seconds.
    fn grace(&self, root: &Certificate) -> i64 {
        let (from, to) = root.validity();
        (to - from) / 100 * i64::from(self.grace_percent)
    }

    fn grace_begins(&self, root: &Certificate) -> i64 {
        root.validity().1 - self.grace(root)
    }

    /// How long the successor of a root is announced before it signs, seconds: until every replica has
    /// noticed and every workload has asked again, and not longer than half of the time there is.
    fn announcement(&self, root: &Certificate) -> i64 {
        (seconds(self.leaf) + self.notice()).min(self.grace(root) / 2)
    }

    /// How long it takes until all replicas have noticed a change, seconds.
    fn notice(&self) -> i64 {
        self.check_every.map_or(0, |every| 2 * seconds(every))
    }
}

/// When a certificate was made.
fn begin(certificate: &Certificate) -> i64 {
    certificate.validity().0 + CLOCK_SKEW
}

/// The first certificate of a text.
fn read(pem: &str) -> Result<Certificate, String> {
    let all = certificates(pem.as_bytes())?;
    Certificate::parse(all.first().ok_or("there is no certificate in it")?)
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expect_test::expect;
    use leno_tls::AltName;
    use leno_tls::issue::{Authority, Validity};
    use proptest::prelude::{ProptestConfig, prop_assert, proptest};

    use super::{Kept, KeyType, Schedule, certificates, read};
    use crate::ca::CLOCK_SKEW;

    const START: i64 = 1_795_347_296;
    const HOUR: i64 = 3600;

    fn schedule(ttl: i64, leaf: i64) -> Schedule {
        let time = |seconds: i64| Duration::from_secs(seconds.unsigned_abs());
        Schedule {
            organization: "cluster.local".to_owned(),
            key: KeyType::P256,
            ttl: time(ttl),
            grace_percent: 20,
            leaf: time(leaf),
            check_every: Some(time(HOUR)),
        }
    }

    #[test]
    fn roots_follow_each_other() {
        let schedule = schedule(1000 * HOUR, 24 * HOUR);
        let mut kept = Kept::new(&schedule, START).expect("a root");
        let mut seen = Vec::new();
        let mut names = Vec::new();
        let mut name = |pem: &str| {
            let at = names.iter().position(|known| known == pem).unwrap_or_else(|| {
                names.push(pem.to_owned());
                names.len() - 1
            });
            char::from(b'A' + at as u8)
        };
        for hour in 0..2500 {
            if let Some(next) = kept.rotated(&schedule, START + hour * HOUR).expect("certificates") {
                kept = next;
                let signs = name(&kept.current.certificate);
                let comes = kept.next.as_ref().map_or('-', |next| name(&next.certificate));
                let roots = certificates(kept.roots.as_bytes()).expect("certificates").len();
                seen.push(format!("hour {hour}: {signs} signs, {comes} comes, {roots} roots"));
            }
        }
        expect![[r#"
            hour 800: A signs, B comes, 2 roots
            hour 826: B signs, - comes, 2 roots
            hour 852: B signs, - comes, 1 roots
            hour 1600: B signs, C comes, 2 roots
            hour 1626: C signs, - comes, 2 roots
            hour 1652: C signs, - comes, 1 roots
            hour 2400: C signs, D comes, 2 roots
            hour 2426: D signs, - comes, 2 roots
            hour 2452: D signs, - comes, 1 roots"#]]
        .assert_eq(&seen.join("\n"));
    }

    #[test]
    fn one_that_was_away_for_too_long_begins_again() {
        let schedule = schedule(100 * HOUR, HOUR);
        let kept = Kept::new(&schedule, START).expect("a root");
        let late = START + 200 * HOUR;
        let again = kept.rotated(&schedule, late).expect("certificates").expect("a change");
        assert!(again.next.is_none() && again.current != kept.current);
        assert_eq!(certificates(again.roots.as_bytes()).expect("certificates").len(), 1);
        assert!(Authority::load(&again.material(b""), late).is_ok());
        assert_eq!(again.rotated(&schedule, late), Ok(None));
        assert!(!format!("{kept:?}").contains("PRIVATE"));
        assert!(Kept::default().rotated(&schedule, START).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

        /// Whoever asks for a certificate at least as often as they live trusts all that others show at
        /// any time, however long roots live, and however often somebody looks.
        #[test]
        fn nobody_meets_a_root_that_he_does_not_know(
            ttl in 200_i64..2000, leaf in 1_i64..200, every in 1_i64..5, seed in 0_i64..100,
        ) {
            // As long as there is room for the announcement, which real settings leave.
            let leaf = leaf.min(ttl / 10 - 10);
            let schedule = Schedule {
                check_every: Some(Duration::from_secs((every * HOUR).unsigned_abs())),
                ..schedule(ttl * HOUR, leaf * HOUR)
            };
            let mut kept = Kept::new(&schedule, START).expect("a root");
            // The workload that has asked the longest ago, and what it was given.
            let mut last = (START, kept.clone());
            let mut hour = seed;
            while hour < 3 * ttl {
                let now = START + hour * HOUR;
                if let Some(next) = kept.rotated(&schedule, now).expect("certificates") {
                    kept = next;
                }
                if now - last.0 >= leaf * HOUR {
                    last = (now, kept.clone());
                }
                let trusts = |roots: &str, signer: &str| roots.contains(signer.trim());
                prop_assert!(trusts(&last.1.roots, &kept.current.certificate), "the older knows the newer");
                let is_alive = read(&last.1.current.certificate).expect("a root").validity().1 >= now;
                prop_assert!(
                    !is_alive || trusts(&kept.roots, &last.1.current.certificate),
                    "the newer knows the older"
                );
                hour += every;
            }
        }
    }

    #[test]
    fn what_is_kept_signs() {
        let schedule = schedule(100 * HOUR, HOUR);
        let kept = Kept::new(&schedule, START).expect("a root");
        let authority = Authority::load(&kept.material(b""), START).expect("an authority");
        assert_eq!(authority.not_after(), START + 100 * HOUR);
        let name = AltName::Uri("spiffe://cluster.local/ns/a/sa/b".to_owned());
        let validity = Validity { not_before: START - CLOCK_SKEW, not_after: START + HOUR };
        assert!(authority.issue(authority.key().public(), &[name], validity).is_ok());
    }
}

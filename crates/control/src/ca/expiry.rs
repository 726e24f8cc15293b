//! When what the mesh is trusted by runs out, and what is said before it does.

use std::collections::BTreeMap;

use leno_tls::issue::certificates;
use leno_tls::{Certificate, Revocations};

use super::Ca;

const DAY: i64 = 24 * 3600;

/// From when until when something is good, seconds since the epoch.
type Life = (i64, i64);

/// What runs out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ends {
    /// The first root.
    pub(super) root: Option<Life>,
    /// The first certificate between it and what is signed, if there is any.
    pub(super) chain: Option<Life>,
    /// The first revocation list, if there is any that says when it is too old.
    pub(super) revocations: Option<Life>,
}

impl Ends {
    /// As it is at the moment.
    pub(super) fn of(ca: &Ca) -> Ends {
        let Some(authority) = ca.authority() else {
            let roots = ca.published_roots().and_then(|roots| certificates(roots.as_bytes()).ok());
            let root = roots.and_then(|roots| Certificate::parse(roots.first()?).ok());
            return Ends { root: root.map(|root| root.validity()), ..Ends::default() };
        };
        let (from, _) = authority.certificate().validity();
        let chain = (!authority.chain().is_empty()).then(|| (from, authority.not_after()));
        let revocations = Revocations::parse(authority.revocations().as_bytes()).ok();
        Ends {
            root: authority.roots().first().map(|root| root.validity()),
            chain,
            revocations: revocations.and_then(|lists| lists.first_outdated()),
        }
    }
}

/// How far something is from its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    #[default]
    Good,
    /// In the last fifth of its life, and the last 30 days.
    Soon,
    /// In the last twentieth, and the last 7 days.
    Near,
    Over,
}

impl Stage {
    fn of((from, to): Life, now: i64) -> Stage {
        let (left, life) = (to.saturating_sub(now), to.saturating_sub(from));
        match left {
            ..=0 => Stage::Over,
            _ if left < (life / 20).min(7 * DAY) => Stage::Near,
            _ if left < (life / 5).min(30 * DAY) => Stage::Soon,
            _ => Stage::Good,
        }
    }
}

/// What was said of what runs out and is not renewed by us: each stage is told once.
#[derive(Debug, Default)]
pub(super) struct Warnings(BTreeMap<&'static str, (i64, Stage)>);

impl Warnings {
    /// Says what there is to be said.
    pub(super) fn look(&mut self, ends: &Ends, now: i64) {
        for (what, life) in [
            ("the root", ends.root),
            ("the certificate authority's chain", ends.chain),
            ("a revocation list", ends.revocations),
        ] {
            let Some(life) = life else {
                self.0.remove(what);
                continue;
            };
            let stage = Stage::of(life, now);
            if self.is_new(what, life.1, stage) {
                let expires = life.1;
                match stage {
                    Stage::Good => {}
                    Stage::Soon | Stage::Near => {
                        let days = (expires - now) / DAY;
                        tracing::warn!(what, expires, days, "expires soon, and is not renewed");
                    }
                    Stage::Over => tracing::error!(what, expires, "has expired"),
                }
            }
        }
    }

    /// Whether a stage was not told yet; one that follows another of the same thing only goes up.
    fn is_new(&mut self, what: &'static str, expires: i64, stage: Stage) -> bool {
        let told = self.0.insert(what, (expires, stage));
        match told {
            Some((same, told)) if same == expires => stage > told,
            _ => stage > Stage::Good,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DAY, Stage, Warnings};

    #[test]
    fn stages() {
        let year = (0, 365 * DAY);
        let day = (0, DAY);
        for (life, left, expected) in [
            (year, 31 * DAY, Stage::Good),
            (year, 29 * DAY, Stage::Soon),
            (year, 6 * DAY, Stage::Near),
            (year, 0, Stage::Over),
            (year, -1, Stage::Over),
            (day, DAY / 4, Stage::Good),
            (day, DAY / 6, Stage::Soon),
            (day, DAY / 30, Stage::Near),
        ] {
            assert_eq!(Stage::of(life, life.1 - left), expected, "{life:?} {left}");
        }
    }

    #[test]
    fn each_stage_is_told_once() {
        let mut warnings = Warnings::default();
        let mut told = |expires, stage| warnings.is_new("a root", expires, stage);
        assert!(!told(1, Stage::Good));
        assert!(told(1, Stage::Soon));
        assert!(!told(1, Stage::Soon));
        assert!(told(1, Stage::Over), "a stage may be passed over");
        assert!(told(2, Stage::Soon), "another one");
        assert!(!told(3, Stage::Good), "it was renewed");
        assert!(told(3, Stage::Near));
    }
}

//! When the certificates begin and end that Secrets and ConfigMaps hold.
//!
//! Proxies are given those that have ended all the same, as with istiod: what connects by them fails
//! then, and somebody should be told why. What is derived has no clock: [`Validities`] are times, and
//! [`outdated`] holds them against one.

use std::time::{Duration, UNIX_EPOCH};

use leno_derive::{Cx, Query};
use leno_tls::TrustBundle;

use super::warning;
use crate::model::diagnostic::Finding;
use crate::model::duration::rfc3339;
use crate::model::inputs::{ConfigMaps, Secrets};
use crate::model::{Kind, ObjectRef};

/// From when to when something is of use, in seconds since the epoch, both included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) object: ObjectRef,
    /// The name under which the object holds it.
    pub(crate) key: &'static str,
    /// Whether it is a bundle of roots, of which one is enough.
    roots: bool,
    from: i64,
    pub(crate) to: i64,
}

/// All certificates that proxies may be given. A root.
pub(crate) struct Validities;

impl Query for Validities {
    type Key = ();
    type Value = Vec<Validity>;
    const NAME: &'static str = "validities";

    fn derive(cx: &Cx<'_>, (): &()) -> Vec<Validity> {
        let secrets = cx.all::<Secrets>().into_iter().map(|key| key.of(Kind::Secret));
        let maps = cx.all::<ConfigMaps>().into_iter().map(|key| key.of(Kind::ConfigMap));
        let mut all = Vec::new();
        for object in secrets.chain(maps) {
            all.extend(cx.get::<ValidityOf>(&object).iter().cloned());
        }
        all
    }
}

/// Those of one object.
struct ValidityOf;

impl Query for ValidityOf {
    type Key = ObjectRef;
    type Value = Vec<Validity>;
    const NAME: &'static str = "validity-of";

    fn derive(cx: &Cx<'_>, object: &ObjectRef) -> Vec<Validity> {
        let key = object.key();
        let material = match object.kind {
            Kind::Secret => cx.input::<Secrets>(&key).map(|secret| secret.material()),
            _ => cx.input::<ConfigMaps>(&key).map(|map| map.material()),
        };
        let material = material.unwrap_or_default();
        let mut all = Vec::new();
        if let Some(certificate) = &material.certificate
            && let Ok(bundle) = TrustBundle::parse(&certificate.chain)
        {
            let times = bundle.certificates().iter().map(|certificate| certificate.validity());
            // A chain is as good as its worst link.
            if let Some((from, to)) = times.reduce(|a, b| (a.0.max(b.0), a.1.min(b.1))) {
                let key = certificate.chain_name();
                all.push(Validity { object: object.clone(), key, roots: false, from, to });
            }
        }
        if let Some(roots) = &material.roots
            && let Ok(bundle) = TrustBundle::parse(&roots.certificates)
        {
            let last = bundle.certificates().iter().max_by_key(|certificate| certificate.validity().1);
            if let Some((from, to)) = last.map(|certificate| certificate.validity()) {
                let key = roots.certificates_name();
                all.push(Validity { object: object.clone(), key, roots: true, from, to });
            }
        }
        all
    }
}

/// What is not valid at a time, and when the next change of that is.
pub(crate) fn outdated(all: &[Validity], now: i64) -> (Vec<(ObjectRef, Finding)>, Option<i64>) {
    let mut findings = Vec::new();
    let mut next: Option<i64> = None;
    for one in all {
        let (what, which) = if one.roots { ("roots", "the last of them ") } else { ("certificate", "it ") };
        let when = if now > one.to {
            format!("{which}ended on {}", time(one.to))
        } else if now < one.from {
            format!("{which}is not valid before {}", time(one.from))
        } else {
            String::new()
        };
        let change = [one.from, one.to.saturating_add(1)].into_iter().find(|change| *change > now);
        next = next.into_iter().chain(change).min();
        if !when.is_empty() {
            let path = format!("data[{:?}]", one.key);
            let path = if one.key.contains('.') { path } else { format!("data.{}", one.key) };
            let message = format!("the {what} cannot be used, but is given to proxies: {when}");
            findings.push((one.object.clone(), warning("outdated-certificate", path, message)));
        }
    }
    (findings, next)
}

fn time(seconds: i64) -> String {
    rfc3339(UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use leno_derive::{Batch, Graph};

    use super::{Validities, outdated};
    use crate::model::inputs::Secrets;
    use crate::model::kube::Secret;
    use crate::model::{Key, Meta};
    use crate::scope;

    /// A certificate from the beginning of a year to that of another.
    fn certificate(from: i32, to: i32) -> String {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec!["a".to_owned()]).expect("a name");
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(to, 1, 1);
        params.self_signed(&key).expect("a certificate").pem()
    }

    #[test]
    fn chains_end_with_their_first_and_roots_with_their_last() {
        let (early, late) = (certificate(2000, 2010), certificate(2005, 2020));
        let both = format!("{early}{late}");
        let values = [("tls.crt", both.as_str()), ("tls.key", "key"), ("ca.crt", &both)];
        let data =
            values.map(|(name, value)| (name.to_owned(), Bytes::from(value.to_owned()).to_vec().into()));
        let key = Key { namespace: "n".to_owned(), name: "s".to_owned() };
        let mut graph = Graph::new();
        scope::register(&mut graph);
        let mut batch = Batch::new();
        let meta = Meta { namespace: "n".to_owned(), name: "s".to_owned(), ..Meta::default() };
        batch.set::<Secrets>(key, Secret { meta, r#type: String::new(), data: data.into() });
        graph.commit(batch);
        let all = graph.get::<Validities>(&());
        let year = |year: i64| (year - 1970) * 31_557_600 + 86_400;
        let check = |now: i64, expected: &[&str], next: Option<i64>| {
            let (found, change) = outdated(&all, now);
            let found: Vec<String> =
                found.iter().map(|(object, it)| format!("{object} {}: {}", it.path, it.message)).collect();
            assert_eq!(found, expected);
            // To the year.
            assert_eq!(change.map(|change| 1970 + change / 31_556_000), next);
        };
        let (chain, roots) = (
            "Secret n/s data[\"tls.crt\"]: the certificate cannot be used, but is given to proxies: it ",
            "Secret n/s data[\"ca.crt\"]: the roots cannot be used, but is given to proxies: the last of them ",
        );
        check(
            year(2001),
            &[
                &format!("{chain}is not valid before 2005-01-01T00:00:00Z"),
                &format!("{roots}is not valid before 2005-01-01T00:00:00Z"),
            ],
            Some(2005),
        );
        check(year(2006), &[], Some(2010));
        check(year(2011), &[&format!("{chain}ended on 2010-01-01T00:00:00Z")], Some(2020));
        check(
            year(2021),
            &[
                &format!("{chain}ended on 2010-01-01T00:00:00Z"),
                &format!("{roots}ended on 2020-01-01T00:00:00Z"),
            ],
            None,
        );
    }
}

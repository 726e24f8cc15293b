//! Who a proxy has proven to be, and which credentials it may have for it.
//!
//! A caller that was authenticated must be of the namespace (and service account) that its node says,
//! or it is given nothing at all. One that was not authenticated is given everything but credentials:
//! that is how the plaintext port of istiod works. Of the credentials those that are no secret, and
//! those that a Gateway has been granted, go to every authenticated proxy; the others only to a proxy
//! whose service account may read the Secrets of its namespace. On Kubernetes that is asked of the API
//! server, and remembered for a while; folders know no such permissions, and the namespace decides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use leno_xds::server::listen::Caller;
use tokio::sync::mpsc;

use super::node::Node;
use crate::access::Refusals;
use crate::model::identity::Account;

/// How long it is remembered that an account may read Secrets, and that it may not.
const MAY: Duration = Duration::from_secs(300);
const MAY_NOT: Duration = Duration::from_secs(60);

/// How long to wait before asking again when there was no answer.
const SILENT: Duration = Duration::from_secs(10);

/// What became of the question whether an account may read Secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    May,
    MayNot,
    /// We may not ask.
    Refused,
    /// There was none: nobody knows.
    Silence,
}

/// Which credentials a proxy may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clearance {
    /// None.
    Nothing,
    /// Those that are no secret or were granted.
    Open,
    /// It is being found out; nothing is said until then.
    Pending,
    /// All of its own namespace too.
    All,
}

/// Decides who may have what.
#[derive(Debug)]
pub(crate) struct Gate {
    /// `PILOT_ENABLE_XDS_IDENTITY_CHECK`: whether an authenticated caller must be who its node says.
    pub(crate) checks_identity: bool,
    /// Whether there is a port on which callers prove who they are.
    pub(crate) proves: bool,
    pub(crate) refusals: Arc<Refusals>,
    believes_all: bool,
    reviews: Option<mpsc::UnboundedSender<Account>>,
    /// What was answered, and until when it holds; `None` if the answer has not come yet.
    verdicts: BTreeMap<Account, (Option<bool>, Option<Instant>)>,
}

impl Default for Gate {
    /// Checks identities, and takes nobody's word.
    fn default() -> Gate {
        Gate::new(false, None)
    }
}

impl Gate {
    /// Checks identities. `believes_all`: callers that were not authenticated are believed to be who
    /// they say; `reviews`: where to ask whether an account may read Secrets, if not all may.
    pub(crate) fn new(believes_all: bool, reviews: Option<mpsc::UnboundedSender<Account>>) -> Gate {
        Gate {
            checks_identity: true,
            proves: false,
            refusals: Arc::default(),
            believes_all,
            reviews,
            verdicts: BTreeMap::new(),
        }
    }

    /// Who a proxy is, as far as that is proven; `None` if it is not.
    ///
    /// # Errors
    /// The words for a proxy that says it is somebody else.
    pub(crate) fn admit(&self, node: &Node, caller: Option<&Caller>) -> Result<Option<Account>, String> {
        let claimed =
            || Account { namespace: node.key.namespace.clone(), name: node.service_account.clone() };
        let Some(caller) = caller else { return Ok(self.believes_all.then(claimed)) };
        if !self.checks_identity {
            return Ok(None);
        }
        let mut accounts = caller.identities.iter().filter_map(|identity| Account::of_identity(identity));
        let fits = |account: &Account| {
            account.namespace == node.key.namespace
                && (node.service_account.is_empty() || account.name == node.service_account)
        };
        accounts.find(fits).map(Some).ok_or_else(|| {
            self.refusals.identities.fetch_add(1, Ordering::Relaxed);
            format!(
                "authorization failed: no identities ({}) matched {}",
                caller.identities.join(", "),
                claimed()
            )
        })
    }

    /// What a proxy may have; asks if that is not known.
    pub(crate) fn clearance(&mut self, account: Option<&Account>) -> Clearance {
        let Some(account) = account else { return Clearance::Nothing };
        let Some(reviews) = &self.reviews else { return Clearance::All };
        match self.verdicts.get(account) {
            Some((Some(true), _)) => Clearance::All,
            Some((Some(false), _)) => Clearance::Open,
            Some((None, _)) => Clearance::Pending,
            None => {
                self.verdicts.insert(account.clone(), (None, None));
                // If nobody answers any more, the control plane is ending.
                let _ = reviews.send(account.clone());
                Clearance::Pending
            }
        }
    }

    /// An answer. Only one that says so grants anything or takes it away: what was known last holds on
    /// while the API server is away. Of an account that nothing is known of nothing is said until then,
    /// so that its proxies keep what they have, unless it cannot be found out at all.
    pub(crate) fn on_reviewed(&mut self, account: &Account, verdict: Verdict, now: Instant) {
        let (known, until) = self.verdicts.entry(account.clone()).or_insert((None, None));
        let holds = match verdict {
            Verdict::May => {
                *known = Some(true);
                MAY
            }
            Verdict::MayNot => {
                *known = Some(false);
                MAY_NOT
            }
            Verdict::Refused => {
                known.get_or_insert(false);
                MAY_NOT
            }
            Verdict::Silence => SILENT,
        };
        *until = Some(now + holds);
    }

    /// Asks again about those whose answers have become old, or forgets them if nobody uses them. The
    /// old answer holds until the new one comes.
    pub(crate) fn on_tick(&mut self, now: Instant, is_used: impl Fn(&Account) -> bool) {
        let Some(reviews) = &self.reviews else { return };
        self.verdicts.retain(|account, (_, until)| {
            if until.is_none_or(|until| now < until) {
                return true;
            }
            *until = None;
            is_used(account) && reviews.send(account.clone()).is_ok()
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use leno_api::proto::envoy::config::core::v3 as core;
    use leno_derive::Graph;
    use leno_xds::server::listen::Caller;
    use tokio::sync::mpsc;

    use super::{Clearance, Gate, MAY, SILENT, Verdict};
    use crate::model::identity::Account;
    use crate::push::node::{self, Node};
    use crate::translate::resource::text;

    fn node(service_account: &str) -> Node {
        let fields = [("SERVICE_ACCOUNT".to_owned(), text(service_account))];
        let metadata = prost_types::Struct { fields: fields.into() };
        let id = "sidecar~10.0.0.5~reviews.a~a.svc.cluster.local".to_owned();
        node::parse(&Graph::new(), &core::Node { id, metadata: Some(metadata), ..core::Node::default() })
            .expect("a good node")
    }

    #[test]
    fn callers_are_who_their_nodes_say() {
        let gate = Gate::default();
        for (identities, service_account, expected) in [
            (&["spiffe://x/ns/a/sa/b"][..], "b", Ok("a/b")),
            (&["spiffe://x/ns/a/sa/b"], "", Ok("a/b")),
            (&["spiffe://x/ns/z/sa/b", "spiffe://x/ns/a/sa/b"], "b", Ok("a/b")),
            (&["spiffe://x/ns/a/sa/b"], "c", Err("(spiffe://x/ns/a/sa/b) matched a/c")),
            (&["spiffe://x/ns/z/sa/b"], "b", Err("(spiffe://x/ns/z/sa/b) matched a/b")),
            (&["a/b"], "b", Err("(a/b) matched a/b")),
            (&["spiffe://x/ns/a/sa/b/more"], "b", Err("matched a/b")),
            (&["spiffe://x/ns//sa/b"], "", Err("matched a/")),
            (&[], "b", Err("() matched a/b")),
        ] {
            let proven = identities.iter().map(|&it| it.to_owned()).collect();
            let caller = Caller { identities: proven, pod: None };
            match (gate.admit(&node(service_account), Some(&caller)), expected) {
                (Ok(account), Ok(expected)) => assert_eq!(account.expect("known").to_string(), expected),
                (Err(words), Err(expected)) => assert!(words.contains(expected), "{words}"),
                (found, expected) => panic!("{identities:?}: {found:?}, not {expected:?}"),
            }
        }
        assert_eq!(gate.admit(&node("b"), None), Ok(None));
        let trusting = Gate::new(true, None);
        let claimed = trusting.admit(&node("b"), None).expect("no error").expect("believed");
        assert_eq!(claimed.to_string(), "a/b");
    }

    #[test]
    fn who_may_read_secrets_is_asked_once_in_a_while() {
        let (reviews, mut asked) = mpsc::unbounded_channel();
        let mut gate = Gate::new(false, Some(reviews));
        let account = Account { namespace: "a".to_owned(), name: "b".to_owned() };
        let now = Instant::now();
        assert_eq!(gate.clearance(None), Clearance::Nothing);
        for _ in 0..2 {
            assert_eq!(gate.clearance(Some(&account)), Clearance::Pending);
        }
        assert_eq!(asked.try_recv(), Ok(account.clone()));
        assert!(asked.try_recv().is_err());
        gate.on_reviewed(&account, Verdict::May, now);
        assert_eq!(gate.clearance(Some(&account)), Clearance::All);
        gate.on_tick(now + MAY - Duration::from_secs(1), |_| true);
        assert!(asked.try_recv().is_err());
        for _ in 0..2 {
            gate.on_tick(now + MAY, |_| true);
        }
        assert_eq!(asked.try_recv(), Ok(account.clone()));
        assert!(asked.try_recv().is_err(), "once");
        assert_eq!(gate.clearance(Some(&account)), Clearance::All, "until the answer comes");
        gate.on_reviewed(&account, Verdict::MayNot, now + MAY);
        assert_eq!(gate.clearance(Some(&account)), Clearance::Open);
        gate.on_tick(now + MAY * 2, |_| false);
        assert!(asked.try_recv().is_err());
        assert_eq!(gate.clearance(Some(&account)), Clearance::Pending, "forgotten");
    }

    #[test]
    fn only_an_answer_grants_or_takes_away() {
        let (may, may_not) = (Clearance::All, Clearance::Open);
        for (answers, expected) in [
            (&[Verdict::May, Verdict::Silence][..], may),
            (&[Verdict::May, Verdict::Refused, Verdict::Silence], may),
            (&[Verdict::May, Verdict::Silence, Verdict::MayNot, Verdict::Silence], may_not),
            (&[Verdict::MayNot, Verdict::Silence], may_not),
            (&[Verdict::MayNot, Verdict::Refused], may_not),
            (&[Verdict::Silence, Verdict::Silence], Clearance::Pending),
            (&[Verdict::Silence, Verdict::May], may),
            (&[Verdict::Refused, Verdict::Silence], may_not),
            (&[Verdict::Refused, Verdict::May], may),
        ] {
            let (reviews, mut asked) = mpsc::unbounded_channel();
            let mut gate = Gate::new(false, Some(reviews));
            let account = Account { namespace: "a".to_owned(), name: "b".to_owned() };
            let mut now = Instant::now();
            assert_eq!(gate.clearance(Some(&account)), Clearance::Pending);
            for answer in answers {
                assert_eq!(asked.try_recv(), Ok(account.clone()), "{answers:?}");
                gate.on_reviewed(&account, *answer, now);
                // Silence is followed by the next question soon.
                now += if *answer == Verdict::Silence { SILENT } else { MAY };
                gate.on_tick(now, |_| true);
            }
            assert_eq!(gate.clearance(Some(&account)), expected, "{answers:?}");
        }
    }
}

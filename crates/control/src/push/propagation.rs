//! How far changes have come: which proxies each concerns, and which of them have taken it.
//!
//! A change that reaches a proxy opens a track there (`Tracks`, part of a session); the track ends
//! when the proxy has answered everything that the change made it get. When the last track of a change
//! has ended, the change has been *propagated*.
//!
//! A proxy that has refused what a change has led to is a straggler, until it takes something newer of
//! the same types or leaves. So is one that is so far behind that the change's track was given up.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use leno_xds::TypeUrl;
use leno_xds::server::grpc::StreamId;

use crate::metrics::Counts;
use crate::model::{Kind, ObjectRef};
use crate::translate::{name_table, trust_bundle};

/// How many changes a proxy may be behind by before the oldest is given up.
const MOST_OPEN: usize = 256;

/// After which time a change that is still under way is worth telling about.
const SLOW: Duration = Duration::from_secs(5);

/// The changes that one proxy has not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Tracks {
    open: VecDeque<Track>,
    /// What has happened since it was asked for.
    ends: Ends,
    /// Types of which a change was not sent whose track was given up.
    unsent: u16,
    /// Types of which the last answer was a refusal.
    refuses: u16,
}

/// One change on its way to one proxy. Types are bits.
#[derive(Debug)]
struct Track {
    change: u64,
    unsent: u16,
    unanswered: u16,
    refused: u16,
}

/// What has become of changes at one proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ends {
    ended: Vec<Ended>,
    /// Types of which the proxy has taken the newest, after the changes had ended.
    taken: u16,
}

/// A change that has come to an end at one proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ended {
    change: u64,
    /// Types of which the proxy has not taken what follows from it.
    lacking: u16,
}

impl Tracks {
    /// A change makes the proxy get something of a type.
    pub(crate) fn mark(&mut self, change: u64, type_url: &TypeUrl) {
        match self.open.back_mut() {
            Some(last) if last.change == change => last.unsent |= bit(type_url),
            _ => {
                self.open.push_back(Track { change, unsent: bit(type_url), unanswered: 0, refused: 0 });
                if self.open.len() > MOST_OPEN
                    && let Some(oldest) = self.open.pop_front()
                {
                    self.unsent |= oldest.unsent;
                    let lacking = oldest.unsent | oldest.unanswered | oldest.refused;
                    self.ends.ended.push(Ended { change: oldest.change, lacking });
                }
            }
        }
    }

    /// The newest of a type was sent, or is no news to the proxy.
    pub(crate) fn sent(&mut self, type_url: &TypeUrl, is_news: bool) {
        let bit = bit(type_url);
        // What is no news may be what the proxy has refused.
        let refused = if is_news { 0 } else { self.refuses & bit };
        self.unsent &= !bit;
        for track in self.open.iter_mut().filter(|track| track.unsent & bit != 0) {
            track.unsent &= !bit;
            track.refused |= refused;
            if is_news {
                track.unanswered |= bit;
            }
        }
        self.end();
        if !is_news && refused == 0 {
            self.ends.taken |= bit;
        }
    }

    /// The last response of a type was answered.
    pub(crate) fn answered(&mut self, type_url: &TypeUrl, refused: bool) {
        let bit = bit(type_url);
        for track in &mut self.open {
            if refused {
                track.refused |= track.unanswered & bit;
            } else {
                track.refused &= !bit;
            }
            track.unanswered &= !bit;
        }
        self.end();
        if refused {
            self.refuses |= bit;
            self.ends.taken &= !bit;
        } else {
            self.refuses &= !bit;
            // What was not sent yet is newer than what was taken.
            if self.unsent & bit == 0 && self.open.iter().all(|track| track.unsent & bit == 0) {
                self.ends.taken |= bit;
            }
        }
    }

    fn end(&mut self) {
        let ended = &mut self.ends.ended;
        self.open.retain(|track| {
            let is_open = track.unsent != 0 || track.unanswered != 0;
            if !is_open {
                ended.push(Ended { change: track.change, lacking: track.refused });
            }
            is_open
        });
    }

    /// Whether a change, the newest, concerns the proxy.
    fn concerned(&self, change: u64) -> bool {
        self.open.back().is_some_and(|track| track.change == change)
            || self.ends.ended.iter().any(|ended| ended.change == change)
    }

    /// What has ended since this was asked last.
    pub(crate) fn take_ends(&mut self) -> Ends {
        std::mem::take(&mut self.ends)
    }

    /// Whether everything has been taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The changes that have not ended.
    fn open(&self) -> impl Iterator<Item = u64> {
        self.open.iter().map(|track| track.change)
    }
}

fn bit(type_url: &TypeUrl) -> u16 {
    let place = match type_url {
        TypeUrl::Other(url) if *url == name_table::TYPE_URL => 14,
        TypeUrl::Other(url) if *url == trust_bundle::TYPE_URL => 13,
        // Of other types nothing is ever sent.
        known => TypeUrl::KNOWN.iter().position(|one| one == known).unwrap_or(15),
    };
    1 << place
}

/// All changes that are under way, and how the last of each object went.
#[derive(Debug, Default)]
pub(crate) struct Propagation {
    last: u64,
    changes: HashMap<u64, Progress>,
    /// The last change of each object whose status tells about it.
    objects: HashMap<ObjectRef, u64>,
    /// Objects of whose changes there is something new to tell.
    news: BTreeSet<ObjectRef>,
    flying: BTreeSet<u64>,
    /// What each proxy lacks of changes that have ended there: types by change.
    lacking: HashMap<StreamId, BTreeMap<u64, u16>>,
}

/// How far a change has come.
#[derive(Debug)]
struct Progress {
    at: Instant,
    kinds: BTreeSet<Kind>,
    objects: Vec<ObjectRef>,
    /// How many objects have this as their last change.
    current: usize,
    concerned: usize,
    waiting: BTreeSet<StreamId>,
    /// Proxies at which it has ended without their having taken all of it.
    lacking: BTreeSet<StreamId>,
    /// That it is slow was told.
    told: bool,
}

/// How far the last change of an object has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    /// How many proxies it concerns.
    pub(crate) concerned: usize,
    /// Those that have not taken it.
    pub(crate) stragglers: Vec<StreamId>,
}

impl Propagation {
    /// Changes of objects begin to be told; returns what they are called together.
    pub(crate) fn begin(&mut self, changed: &[ObjectRef], removed: &[ObjectRef], at: Instant) -> u64 {
        self.last += 1;
        let all = changed.iter().chain(removed);
        let kinds = all.map(|object| object.kind).collect();
        for object in removed {
            self.let_go(object);
        }
        let objects: Vec<ObjectRef> = changed.iter().filter(|object| tells(object.kind)).cloned().collect();
        for object in &objects {
            self.let_go(object);
            self.objects.insert(object.clone(), self.last);
        }
        let progress = Progress {
            at,
            kinds,
            current: objects.len(),
            objects,
            concerned: 0,
            waiting: BTreeSet::new(),
            lacking: BTreeSet::new(),
            told: false,
        };
        self.changes.insert(self.last, progress);
        self.flying.insert(self.last);
        self.last
    }

    fn let_go(&mut self, object: &ObjectRef) {
        self.news.remove(object);
        let Some(change) = self.objects.remove(object) else { return };
        if let Some(progress) = self.changes.get_mut(&change) {
            progress.current = progress.current.saturating_sub(1);
        }
        self.forget(change);
    }

    /// Forgets a change that is over and that no object has as its last.
    fn forget(&mut self, change: u64) {
        if !self.flying.contains(&change)
            && self.changes.get(&change).is_some_and(|progress| progress.current == 0)
            && let Some(progress) = self.changes.remove(&change)
        {
            for id in progress.lacking {
                self.has(id, change);
            }
        }
    }

    /// Notes whether a change concerns a proxy.
    pub(crate) fn concern(&mut self, change: u64, id: StreamId, tracks: &Tracks) {
        if tracks.concerned(change)
            && let Some(progress) = self.changes.get_mut(&change)
        {
            progress.concerned += 1;
            progress.waiting.insert(id);
        }
    }

    /// It is known which proxies a change concerns.
    pub(crate) fn begun(&mut self, change: u64) {
        self.check(change, None);
    }

    /// Changes have come to an end at a proxy.
    pub(crate) fn end(&mut self, id: StreamId, ends: &Ends, now: Instant, counts: &mut Counts) {
        for Ended { change, lacking } in &ends.ended {
            let Some(progress) = self.changes.get_mut(change) else { continue };
            if progress.waiting.remove(&id) && *lacking != 0 {
                progress.lacking.insert(id);
                self.lacking.entry(id).or_default().insert(*change, *lacking);
            }
            self.check(*change, Some((now, counts)));
        }
        let Some(lacking) = self.lacking.get_mut(&id).filter(|_| ends.taken != 0) else { return };
        lacking.values_mut().for_each(|types| *types &= !ends.taken);
        let mended: Vec<u64> =
            lacking.extract_if(.., |_, types| *types == 0).map(|(change, _)| change).collect();
        if lacking.is_empty() {
            self.lacking.remove(&id);
        }
        for change in mended {
            if let Some(progress) = self.changes.get_mut(&change) {
                progress.lacking.remove(&id);
            }
            self.tell(change);
        }
    }

    /// A proxy lacks nothing of a change any more.
    fn has(&mut self, id: StreamId, change: u64) {
        if let Some(lacking) = self.lacking.get_mut(&id) {
            lacking.remove(&change);
            if lacking.is_empty() {
                self.lacking.remove(&id);
            }
        }
    }

    /// A proxy has left: nobody waits for it any more, and what it has refused concerns nobody.
    pub(crate) fn leave(&mut self, id: StreamId, tracks: &Tracks, now: Instant, counts: &mut Counts) {
        for change in self.lacking.remove(&id).unwrap_or_default().into_keys() {
            if let Some(progress) = self.changes.get_mut(&change)
                && progress.lacking.remove(&id)
            {
                progress.concerned = progress.concerned.saturating_sub(1);
            }
            self.tell(change);
        }
        let open: Vec<u64> = tracks.open().collect();
        for change in open {
            if let Some(progress) = self.changes.get_mut(&change)
                && progress.waiting.remove(&id)
            {
                progress.concerned = progress.concerned.saturating_sub(1);
            }
            self.check(change, Some((now, counts)));
        }
    }

    /// Ends a change for which nobody waits.
    fn check(&mut self, change: u64, over: Option<(Instant, &mut Counts)>) {
        let Some(progress) = self.changes.get(&change) else { return };
        if !progress.waiting.is_empty() || !self.flying.remove(&change) {
            return;
        }
        if let Some((now, counts)) = over
            && progress.concerned > 0
        {
            let took = now.saturating_duration_since(progress.at);
            progress.kinds.iter().for_each(|kind| counts.on_propagated(*kind, took));
        }
        self.tell(change);
        self.forget(change);
    }

    fn tell(&mut self, change: u64) {
        let Some(progress) = self.changes.get(&change) else { return };
        for object in &progress.objects {
            if self.objects.get(object) == Some(&change) {
                self.news.insert(object.clone());
            }
        }
    }

    /// What was told of an object is forgotten: it is told again.
    pub(crate) fn retell(&mut self, object: &ObjectRef) {
        if self.objects.get(object).is_some_and(|change| !self.flying.contains(change)) {
            self.news.insert(object.clone());
        }
    }

    /// Objects of whose last change there is something new to tell, since this was asked last.
    pub(crate) fn take_news(&mut self, now: Instant) -> BTreeSet<ObjectRef> {
        let slow: Vec<u64> = self
            .flying
            .iter()
            .filter(|change| {
                let progress = self.changes.get(change);
                progress.is_some_and(|it| !it.told && now.saturating_duration_since(it.at) >= SLOW)
            })
            .copied()
            .collect();
        for change in slow {
            self.tell(change);
            if let Some(progress) = self.changes.get_mut(&change) {
                progress.told = true;
            }
        }
        std::mem::take(&mut self.news)
    }

    /// How far the last change of an object has come; `None` if its status does not tell.
    pub(crate) fn reach(&self, object: &ObjectRef) -> Option<Reach> {
        let progress = self.changes.get(self.objects.get(object)?)?;
        let stragglers = progress.waiting.iter().chain(&progress.lacking).copied().collect();
        Some(Reach { concerned: progress.concerned, stragglers })
    }

    /// How many changes are under way.
    pub(crate) fn flying(&self) -> usize {
        self.flying.len()
    }
}

/// Whether the status of objects of a kind tells how far they have come.
fn tells(kind: Kind) -> bool {
    !kind.is_registry() && !matches!(kind, Kind::MeshConfig | Kind::Ingress | Kind::IngressClass)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use leno_xds::TypeUrl;
    use leno_xds::server::grpc::StreamId;

    use super::{MOST_OPEN, Propagation, SLOW, Tracks};
    use crate::metrics::Counts;
    use crate::model::{Kind, ObjectRef};

    fn object(name: &str) -> ObjectRef {
        ObjectRef { kind: Kind::VirtualService, namespace: "n".to_owned(), name: name.to_owned() }
    }

    #[test]
    fn a_change_is_over_when_all_proxies_have_answered_all_of_it() {
        let (start, mut counts) = (Instant::now(), Counts::default());
        let mut all = Propagation::default();
        let (a, b) = (object("a"), object("b"));
        let mut proxies = [Tracks::default(), Tracks::default(), Tracks::default()];
        let change = all.begin(&[a.clone(), b.clone()], &[], start);
        for tracks in &mut proxies[..2] {
            tracks.mark(change, &TypeUrl::Cluster);
            tracks.mark(change, &TypeUrl::Route);
        }
        for (id, tracks) in proxies.iter().enumerate() {
            all.concern(change, StreamId(id as u64), tracks);
        }
        all.begun(change);
        assert_eq!(all.reach(&a).map(|reach| (reach.concerned, reach.stragglers.len())), Some((2, 2)));
        assert!(all.take_news(start).is_empty());
        for (id, tracks) in proxies.iter_mut().enumerate() {
            // The clusters are the same as before for everybody.
            tracks.sent(&TypeUrl::Cluster, false);
            tracks.sent(&TypeUrl::Route, true);
            assert_eq!(tracks.take_ends().ended, []);
            tracks.answered(&TypeUrl::Route, id == 1);
            all.end(StreamId(id as u64), &tracks.take_ends(), start, &mut counts);
        }
        assert_eq!(all.flying(), 0);
        assert_eq!(all.take_news(start).into_iter().collect::<Vec<_>>(), [a.clone(), b.clone()]);
        assert_eq!(all.reach(&b).map(|reach| reach.stragglers), Some(vec![StreamId(1)]));
        // A later change of one of them leaves the other's as it was.
        let later = all.begin(std::slice::from_ref(&a), &[], start);
        all.begun(later);
        assert_eq!(all.reach(&a).map(|reach| reach.concerned), Some(0));
        assert_eq!(all.reach(&b).map(|reach| reach.concerned), Some(2));
        all.begin(&[], &[a.clone(), b.clone()], start);
        assert_eq!((all.reach(&a), all.reach(&b)), (None, None));
        assert_eq!(all.changes.len(), 1);
    }

    #[test]
    fn a_slow_change_is_told_about_once_and_a_proxy_that_leaves_is_not_waited_for() {
        let (start, mut counts) = (Instant::now(), Counts::default());
        let mut all = Propagation::default();
        let mut tracks = Tracks::default();
        let change = all.begin(&[object("a")], &[], start);
        tracks.mark(change, &TypeUrl::Listener);
        all.concern(change, StreamId(1), &tracks);
        all.begun(change);
        assert!(all.take_news(start + SLOW - Duration::from_millis(1)).is_empty());
        assert_eq!(all.take_news(start + SLOW).len(), 1);
        assert!(all.take_news(start + SLOW).is_empty());
        all.leave(StreamId(1), &tracks, start + SLOW, &mut counts);
        assert_eq!((all.flying(), all.take_news(start + SLOW).len()), (0, 1));
    }

    /// A change of `name` concerns one proxy, which is sent it (or not) and answers (or not).
    fn change(
        all: &mut Propagation,
        tracks: &mut Tracks,
        name: &str,
        types: &[TypeUrl],
        answer: Option<bool>,
    ) -> u64 {
        let now = Instant::now();
        let change = all.begin(&[object(name)], &[], now);
        types.iter().for_each(|type_url| tracks.mark(change, type_url));
        all.concern(change, StreamId(1), tracks);
        all.begun(change);
        if let Some(refused) = answer {
            types.iter().for_each(|type_url| tracks.sent(type_url, true));
            types.iter().for_each(|type_url| tracks.answered(type_url, refused));
        }
        all.end(StreamId(1), &tracks.take_ends(), now, &mut Counts::default());
        change
    }

    fn stragglers(all: &Propagation, name: &str) -> Option<(usize, usize)> {
        all.reach(&object(name)).map(|reach| (reach.concerned, reach.stragglers.len()))
    }

    #[test]
    fn a_refusal_stands_until_something_newer_of_the_types_is_taken() {
        let (now, mut all, mut tracks) = (Instant::now(), Propagation::default(), Tracks::default());
        change(&mut all, &mut tracks, "a", &[TypeUrl::Cluster, TypeUrl::Route], Some(true));
        assert_eq!((stragglers(&all, "a"), all.take_news(now).len()), (Some((1, 1)), 1));
        // Something of another type mends nothing, and of one type only half.
        change(&mut all, &mut tracks, "b", &[TypeUrl::Endpoint], Some(false));
        change(&mut all, &mut tracks, "b", &[TypeUrl::Cluster], Some(false));
        assert_eq!((stragglers(&all, "a"), stragglers(&all, "b")), (Some((1, 1)), Some((1, 0))));
        all.take_news(now);
        change(&mut all, &mut tracks, "b", &[TypeUrl::Route], Some(false));
        assert_eq!(stragglers(&all, "a"), Some((1, 0)));
        assert!(all.take_news(now).contains(&object("a")), "that it is mended is told");
        assert!(all.lacking.is_empty());
        // What is no news to the proxy is what it has refused before.
        change(&mut all, &mut tracks, "a", &[TypeUrl::Route], Some(true));
        let again = change(&mut all, &mut tracks, "b", &[TypeUrl::Route], None);
        tracks.sent(&TypeUrl::Route, false);
        all.end(StreamId(1), &tracks.take_ends(), now, &mut Counts::default());
        assert_eq!((stragglers(&all, "b"), all.changes.contains_key(&again)), (Some((1, 1)), true));
        // Who leaves refuses nothing.
        all.leave(StreamId(1), &tracks, now, &mut Counts::default());
        assert_eq!((stragglers(&all, "a"), stragglers(&all, "b")), (Some((0, 0)), Some((0, 0))));
        assert!(all.take_news(now).contains(&object("a")) && all.lacking.is_empty());
        // Nor is anything kept of an object that is gone.
        let mut tracks = Tracks::default();
        change(&mut all, &mut tracks, "a", &[TypeUrl::Route], Some(true));
        all.begin(&[], &[object("a")], now);
        assert!(all.lacking.is_empty());
    }

    #[test]
    fn who_is_far_behind_has_not_refused_anything() {
        let (now, mut all, mut tracks) = (Instant::now(), Propagation::default(), Tracks::default());
        // An answer to this comes late.
        let first = change(&mut all, &mut tracks, "first", &[TypeUrl::Route], None);
        tracks.sent(&TypeUrl::Route, true);
        change(&mut all, &mut tracks, "second", &[TypeUrl::Route, TypeUrl::Listener], None);
        for _ in 0..MOST_OPEN {
            change(&mut all, &mut tracks, "more", &[TypeUrl::Cluster], None);
        }
        assert_eq!((stragglers(&all, "first"), stragglers(&all, "second")), (Some((1, 1)), Some((1, 1))));
        assert!(!all.flying.contains(&first));
        tracks.answered(&TypeUrl::Route, false);
        all.end(StreamId(1), &tracks.take_ends(), now, &mut Counts::default());
        // What was answered is older than the second change, which was not sent yet.
        assert_eq!(stragglers(&all, "second"), Some((1, 1)));
        for type_url in [TypeUrl::Cluster, TypeUrl::Listener, TypeUrl::Route] {
            tracks.sent(&type_url, true);
            tracks.answered(&type_url, false);
        }
        all.end(StreamId(1), &tracks.take_ends(), now, &mut Counts::default());
        for name in ["first", "second", "more"] {
            assert_eq!(stragglers(&all, name), Some((1, 0)), "{name}");
        }
        assert!(tracks.is_empty() && all.lacking.is_empty() && all.flying() == 0);
    }
}

//! How far changes have come: which proxies each concerns, and which of them have taken it.
//!
//! A change that reaches a proxy opens a track there (`Tracks`, part of a session); the track ends
//! when the proxy has answered everything that the change made it get. When the last track of a change
//! has ended, the change has been *propagated*.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use leno_xds::TypeUrl;
use leno_xds::server::grpc::StreamId;

use crate::metrics::Counts;
use crate::model::{Kind, ObjectRef};

/// How many changes a proxy may be behind by before the oldest is given up.
const MOST_OPEN: usize = 256;

/// After which time a change that is still under way is worth telling about.
const SLOW: Duration = Duration::from_secs(5);

/// The changes that one proxy has not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Tracks {
    open: VecDeque<Track>,
    ended: Vec<Ended>,
}

/// One change on its way to one proxy. Types are bits.
#[derive(Debug)]
struct Track {
    change: u64,
    unsent: u16,
    unanswered: u16,
    refused: bool,
}

/// A change that has come to an end at one proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    change: u64,
    refused: bool,
}

impl Tracks {
    /// A change makes the proxy get something of a type.
    pub(crate) fn mark(&mut self, change: u64, type_url: &TypeUrl) {
        match self.open.back_mut() {
            Some(last) if last.change == change => last.unsent |= bit(type_url),
            _ => {
                self.open.push_back(Track { change, unsent: bit(type_url), unanswered: 0, refused: false });
                if self.open.len() > MOST_OPEN
                    && let Some(oldest) = self.open.pop_front()
                {
                    self.ended.push(Ended { change: oldest.change, refused: true });
                }
            }
        }
    }

    /// The newest of a type was sent, or is no news to the proxy.
    pub(crate) fn sent(&mut self, type_url: &TypeUrl, is_news: bool) {
        let bit = bit(type_url);
        for track in self.open.iter_mut().filter(|track| track.unsent & bit != 0) {
            track.unsent &= !bit;
            if is_news {
                track.unanswered |= bit;
            }
        }
        self.end();
    }

    /// The last response of a type was answered.
    pub(crate) fn answered(&mut self, type_url: &TypeUrl, refused: bool) {
        let bit = bit(type_url);
        for track in self.open.iter_mut().filter(|track| track.unanswered & bit != 0) {
            track.unanswered &= !bit;
            track.refused |= refused;
        }
        self.end();
    }

    fn end(&mut self) {
        let ended = &mut self.ended;
        self.open.retain(|track| {
            let is_open = track.unsent != 0 || track.unanswered != 0;
            if !is_open {
                ended.push(Ended { change: track.change, refused: track.refused });
            }
            is_open
        });
    }

    /// Whether a change, the newest, concerns the proxy.
    fn concerned(&self, change: u64) -> bool {
        self.open.back().is_some_and(|track| track.change == change)
            || self.ended.iter().any(|ended| ended.change == change)
    }

    /// The changes that have ended since this was asked last.
    pub(crate) fn take_ended(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
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
    let place = TypeUrl::KNOWN.iter().position(|known| known == type_url).unwrap_or(15);
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
    refused: BTreeSet<StreamId>,
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
            refused: BTreeSet::new(),
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
        {
            self.changes.remove(&change);
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
    pub(crate) fn end(&mut self, id: StreamId, ended: &[Ended], now: Instant, counts: &mut Counts) {
        for Ended { change, refused } in ended {
            let Some(progress) = self.changes.get_mut(change) else { continue };
            if progress.waiting.remove(&id) && *refused {
                progress.refused.insert(id);
            }
            self.check(*change, Some((now, counts)));
        }
    }

    /// A proxy has left: nobody waits for it any more.
    pub(crate) fn leave(&mut self, id: StreamId, tracks: &Tracks, now: Instant, counts: &mut Counts) {
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
        let stragglers = progress.waiting.iter().chain(&progress.refused).copied().collect();
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

    use super::{Propagation, SLOW, Tracks};
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
            assert!(tracks.take_ended().is_empty());
            tracks.answered(&TypeUrl::Route, id == 1);
            all.end(StreamId(id as u64), &tracks.take_ended(), start, &mut counts);
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
}

//! The property that the engine stands on: whatever happens to the inputs, and whatever was asked in between, the
//! incremental graph says what a graph says that starts from the final inputs and remembers nothing.
//!
//! The network of queries is small and unkind: diamonds, reads that depend on what was read before, overlapping and
//! repeated index buckets, lookups of what is not there yet, early cut-offs, and references that may form any knot
//! of cycles.

use std::collections::{BTreeMap, BTreeSet};

use leno_derive::{Batch, Cx, Graph, Index, Input, Mode, Query, Revision};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use proptest::test_runner::Config;

const ITEMS: u8 = 6;
const GROUPS: u8 = 3;

struct Items;
#[derive(Clone, Debug, PartialEq)]
struct Item {
    group: u8,
    tags: Vec<u8>,
    links: Vec<u8>,
    amount: i32,
}
impl Input for Items {
    type Key = u8;
    type Value = Item;
    const NAME: &'static str = "item";
}

struct Switches;
impl Input for Switches {
    type Key = u8;
    type Value = bool;
    const NAME: &'static str = "switch";
}

struct ByGroup;
impl Index for ByGroup {
    type Of = Items;
    type Bucket = u8;
    const NAME: &'static str = "items-by-group";
    fn buckets(_: &u8, item: &Item) -> Vec<u8> {
        vec![item.group]
    }
}

struct ByTag;
impl Index for ByTag {
    type Of = Items;
    type Bucket = u8;
    const NAME: &'static str = "items-by-tag";
    fn buckets(_: &u8, item: &Item) -> Vec<u8> {
        item.tags.clone()
    }
}

struct Amount;
impl Query for Amount {
    type Key = u8;
    type Value = Option<i32>;
    const NAME: &'static str = "amount";
    fn derive(cx: &Cx<'_>, key: &u8) -> Option<i32> {
        cx.input::<Items>(key).map(|item| item.amount)
    }
}

struct GroupSum;
impl Query for GroupSum {
    type Key = u8;
    type Value = i32;
    const NAME: &'static str = "group-sum";
    fn derive(cx: &Cx<'_>, group: &u8) -> i32 {
        cx.bucket::<ByGroup>(group).iter().filter_map(|key| *cx.get::<Amount>(key)).sum()
    }
}

struct IsEven;
impl Query for IsEven {
    type Key = u8;
    type Value = bool;
    const NAME: &'static str = "is-even";
    fn derive(cx: &Cx<'_>, group: &u8) -> bool {
        *cx.get::<GroupSum>(group) % 2 == 0
    }
}

struct Tagged;
impl Query for Tagged {
    type Key = u8;
    type Value = Vec<(u8, Option<i32>)>;
    const NAME: &'static str = "tagged";
    fn derive(cx: &Cx<'_>, tag: &u8) -> Vec<(u8, Option<i32>)> {
        cx.bucket::<ByTag>(tag).into_iter().map(|key| (key, *cx.get::<Amount>(&key))).collect()
    }
}

/// Reads one thing or quite another, as a switch says.
struct Chosen;
impl Query for Chosen {
    type Key = u8;
    type Value = String;
    const NAME: &'static str = "chosen";
    fn derive(cx: &Cx<'_>, key: &u8) -> String {
        match cx.input::<Switches>(key).as_deref() {
            Some(true) => format!("sum {}", cx.get::<GroupSum>(&(key % GROUPS))),
            Some(false) => format!("tagged {:?}", cx.get::<Tagged>(&(key % GROUPS))),
            None => format!("neighbour {:?}", cx.get::<Amount>(&(key + 1))),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Reached {
    Nothing,
    Cycle,
    Items(BTreeSet<u8>),
}

/// What the links of an item lead to; does not look further once a link leads nowhere.
struct Reach;
impl Query for Reach {
    type Key = u8;
    type Value = Reached;
    const NAME: &'static str = "reach";
    fn derive(cx: &Cx<'_>, key: &u8) -> Reached {
        let Some(item) = cx.input::<Items>(key) else { return Reached::Nothing };
        let mut found = BTreeSet::from([*key]);
        for link in &item.links {
            match &*cx.get::<Reach>(link) {
                Reached::Nothing => break,
                Reached::Cycle => continue,
                Reached::Items(more) => found.extend(more),
            }
        }
        Reached::Items(found)
    }
    fn cycle(_: &u8) -> Option<Reached> {
        Some(Reached::Cycle)
    }
}

struct Report;
impl Query for Report {
    type Key = ();
    type Value = Vec<String>;
    const NAME: &'static str = "report";
    fn derive(cx: &Cx<'_>, (): &()) -> Vec<String> {
        let even = (0..GROUPS).map(|group| format!("{group} even: {}", cx.get::<IsEven>(&group)));
        let chosen = cx.all::<Switches>().into_iter().map(|key| format!("{key}: {}", cx.get::<Chosen>(&key)));
        let reach = cx.all::<Items>().into_iter().map(|key| format!("{key}: {:?}", cx.get::<Reach>(&key)));
        even.chain(chosen).chain(reach).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Root {
    Amount(u8),
    GroupSum(u8),
    IsEven(u8),
    Tagged(u8),
    Chosen(u8),
    Reach(u8),
    Report,
}

#[derive(Clone, Debug)]
enum Change {
    Item(u8, Item),
    NoItem(u8),
    Switch(u8, bool),
    NoSwitch(u8),
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<Change>),
    CommitMerged(Vec<Change>, Vec<Change>),
    Ask(Vec<Root>),
    Peek(Root),
    Release(Root),
    Collect { keep: u64 },
    RegisterByGroup,
    RegisterByTag,
}

fn all_roots() -> Vec<Root> {
    let mut roots = vec![Root::Report];
    for group in 0..GROUPS {
        roots.extend([Root::GroupSum(group), Root::IsEven(group), Root::Tagged(group)]);
    }
    for key in 0..ITEMS {
        roots.extend([Root::Amount(key), Root::Chosen(key), Root::Reach(key)]);
    }
    roots
}

fn any_root() -> impl Strategy<Value = Root> {
    (0..all_roots().len()).prop_map(|at| all_roots()[at])
}

fn any_item() -> impl Strategy<Value = Item> {
    (0..GROUPS, vec(0..GROUPS, 0..3), vec(0..ITEMS, 0..3), 0..4)
        .prop_map(|(group, tags, links, amount)| Item { group, tags, links, amount })
}

fn any_changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        4 => (0..ITEMS, any_item()).prop_map(|(key, item)| Change::Item(key, item)),
        2 => (0..ITEMS).prop_map(Change::NoItem),
        1 => (0..ITEMS, any::<bool>()).prop_map(|(key, on)| Change::Switch(key, on)),
        1 => (0..ITEMS).prop_map(Change::NoSwitch),
    ];
    vec(change, 0..4)
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => any_changes().prop_map(Step::Commit),
        1 => (any_changes(), any_changes()).prop_map(|(first, then)| Step::CommitMerged(first, then)),
        6 => vec(any_root(), 1..6).prop_map(Step::Ask),
        1 => any_root().prop_map(Step::Peek),
        2 => any_root().prop_map(Step::Release),
        1 => (0_u64..4).prop_map(|keep| Step::Collect { keep }),
        1 => Just(Step::RegisterByGroup),
        1 => Just(Step::RegisterByTag),
    ]
}

/// The inputs, kept the plain way.
#[derive(Clone, Default)]
struct Facts {
    items: BTreeMap<u8, Item>,
    switches: BTreeMap<u8, bool>,
}

impl Facts {
    fn apply(&mut self, changes: &[Change]) -> Batch {
        let mut batch = Batch::new();
        for change in changes.iter().cloned() {
            match change {
                Change::Item(key, item) => {
                    self.items.insert(key, item.clone());
                    batch.set::<Items>(key, item);
                }
                Change::NoItem(key) => {
                    self.items.remove(&key);
                    batch.remove::<Items>(&key);
                }
                Change::Switch(key, on) => {
                    self.switches.insert(key, on);
                    batch.set::<Switches>(key, on);
                }
                Change::NoSwitch(key) => {
                    self.switches.remove(&key);
                    batch.remove::<Switches>(&key);
                }
            }
        }
        batch
    }

    fn oracle(&self) -> Graph {
        let mut batch = Batch::new();
        self.items.iter().for_each(|(key, item)| batch.set::<Items>(*key, item.clone()));
        self.switches.iter().for_each(|(key, on)| batch.set::<Switches>(*key, *on));
        let mut graph = Graph::with_mode(Mode::FromScratch);
        graph.commit(batch);
        graph
    }
}

fn ask(graph: &Graph, root: Root) -> String {
    match root {
        Root::Amount(key) => format!("{:?}", graph.get::<Amount>(&key)),
        Root::GroupSum(key) => format!("{:?}", graph.get::<GroupSum>(&key)),
        Root::IsEven(key) => format!("{:?}", graph.get::<IsEven>(&key)),
        Root::Tagged(key) => format!("{:?}", graph.get::<Tagged>(&key)),
        Root::Chosen(key) => format!("{:?}", graph.get::<Chosen>(&key)),
        Root::Reach(key) => format!("{:?}", graph.get::<Reach>(&key)),
        Root::Report => format!("{:?}", graph.get::<Report>(&())),
    }
}

fn changed_at(graph: &Graph, root: Root) -> Revision {
    match root {
        Root::Amount(key) => graph.changed_at::<Amount>(&key),
        Root::GroupSum(key) => graph.changed_at::<GroupSum>(&key),
        Root::IsEven(key) => graph.changed_at::<IsEven>(&key),
        Root::Tagged(key) => graph.changed_at::<Tagged>(&key),
        Root::Chosen(key) => graph.changed_at::<Chosen>(&key),
        Root::Reach(key) => graph.changed_at::<Reach>(&key),
        Root::Report => graph.changed_at::<Report>(&()),
    }
}

fn release(graph: &mut Graph, root: Root) {
    match root {
        Root::Amount(key) => graph.release::<Amount>(&key),
        Root::GroupSum(key) => graph.release::<GroupSum>(&key),
        Root::IsEven(key) => graph.release::<IsEven>(&key),
        Root::Tagged(key) => graph.release::<Tagged>(&key),
        Root::Chosen(key) => graph.release::<Chosen>(&key),
        Root::Reach(key) => graph.release::<Reach>(&key),
        Root::Report => graph.release::<Report>(&()),
    }
}

fn dirty(graph: &Graph) -> BTreeSet<Root> {
    let mut dirty = BTreeSet::new();
    dirty.extend(graph.dirty::<Amount>().into_iter().map(Root::Amount));
    dirty.extend(graph.dirty::<GroupSum>().into_iter().map(Root::GroupSum));
    dirty.extend(graph.dirty::<IsEven>().into_iter().map(Root::IsEven));
    dirty.extend(graph.dirty::<Tagged>().into_iter().map(Root::Tagged));
    dirty.extend(graph.dirty::<Chosen>().into_iter().map(Root::Chosen));
    dirty.extend(graph.dirty::<Reach>().into_iter().map(Root::Reach));
    dirty.extend(graph.dirty::<Report>().into_iter().map(|()| Root::Report));
    dirty
}

/// The graphs under test, and what they are held against.
struct Trial {
    facts: Facts,
    incremental: Graph,
    from_scratch: Graph,
    /// The roots of `incremental`, with the value and the revision that it gave last.
    held: BTreeMap<Root, (String, Revision)>,
}

impl Trial {
    fn new() -> Self {
        Self {
            facts: Facts::default(),
            incremental: Graph::new(),
            from_scratch: Graph::with_mode(Mode::FromScratch),
            held: BTreeMap::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Commit(changes) => self.commit(changes, &[]),
            Step::CommitMerged(first, then) => self.commit(first, then),
            Step::Ask(roots) => roots.iter().for_each(|root| self.ask(*root)),
            Step::Peek(root) => {
                changed_at(&self.incremental, *root);
            }
            Step::Release(root) => {
                release(&mut self.incremental, *root);
                self.held.remove(root);
            }
            Step::Collect { keep } => {
                self.incremental.keep_unused(*keep);
                self.incremental.collect();
            }
            Step::RegisterByGroup => self.incremental.register::<ByGroup>(),
            Step::RegisterByTag => self.incremental.register::<ByTag>(),
        }
    }

    fn commit(&mut self, first: &[Change], then: &[Change]) {
        for graph in [&mut self.incremental, &mut self.from_scratch] {
            let mut facts = self.facts.clone();
            let mut batch = facts.apply(first);
            batch.merge(facts.apply(then));
            graph.commit(batch);
        }
        self.facts.apply(first);
        self.facts.apply(then);
        assert_eq!(self.incremental.revision(), self.from_scratch.revision());

        let oracle = self.facts.oracle();
        let dirty = dirty(&self.incremental);
        for (root, (value, _)) in self.held.iter().rev() {
            if ask(&oracle, *root) != *value {
                assert!(dirty.contains(root), "{root:?} has changed, but is not reported as dirty");
            }
        }
    }

    fn ask(&mut self, root: Root) {
        let value = ask(&self.incremental, root);
        assert_eq!(value, ask(&self.from_scratch, root), "{root:?}");
        assert_eq!(value, ask(&self.facts.oracle(), root), "{root:?}");
        let revision = changed_at(&self.incremental, root);
        if let Some((old, since)) = self.held.get(&root)
            && *old != value
        {
            assert!(
                revision > *since,
                "{root:?} changed at {revision} and has another value than at {since}"
            );
        }
        self.held.insert(root, (value, revision));
    }

    /// With nothing left to remember, nothing is left.
    fn tear_down(mut self) {
        let everything: Vec<Change> =
            (0..ITEMS).flat_map(|key| [Change::NoItem(key), Change::NoSwitch(key)]).collect();
        self.commit(&everything, &[]);
        all_roots().into_iter().for_each(|root| release(&mut self.incremental, root));
        self.incremental.keep_unused(0);
        self.incremental.collect();
        let stats = self.incremental.stats();
        assert_eq!((stats.memos, stats.roots, stats.inputs, stats.edges), (0, 0, 0, 0));
        assert!(stats.leaves <= 2, "only the key sets of the two inputs stay: {stats:?}");
    }
}

/// What the oracle itself must say, computed without any engine.
fn check_oracle(facts: &Facts) {
    let oracle = facts.oracle();
    for group in 0..GROUPS {
        let sum: i32 = facts.items.values().filter(|item| item.group == group).map(|item| item.amount).sum();
        assert_eq!(*oracle.get::<GroupSum>(&group), sum);
        let tagged = facts.items.iter().filter(|(_, item)| item.tags.contains(&group));
        let tagged: Vec<(u8, Option<i32>)> = tagged.map(|(key, item)| (*key, Some(item.amount))).collect();
        assert_eq!(*oracle.get::<Tagged>(&group), tagged);
    }
}

/// Knots in which a cycle is found inside another one that is still open; too rare to leave to chance.
#[test]
fn knots_of_cycles_are_one_cycle() {
    let knots: [&[&[u8]]; 3] = [
        // 1 closes a cycle with 0 first, then a smaller one with 2; 3 joins by reading 1.
        &[&[1, 3], &[0, 2], &[1], &[1]],
        // 1 and 2 are a cycle before it shows that 0 belongs to it; 3 and 4 join by way of 2.
        &[&[1, 3, 4], &[2, 0], &[1], &[2], &[3]],
        // Two cycles side by side, which both lead to 5, which is on neither.
        &[&[1, 5], &[0], &[3, 5], &[2, 0], &[2], &[]],
    ];
    for knot in knots {
        for first in (0..).zip(knot).map(|(key, _)| key) {
            let mut trial = Trial::new();
            let item = |links: &&[u8]| Item { group: 0, tags: Vec::new(), links: links.to_vec(), amount: 0 };
            let changes = (0..).zip(knot).map(|(key, links)| Change::Item(key, item(links))).collect();
            trial.step(&Step::Commit(changes));
            trial.ask(Root::Reach(first));
            (0..ITEMS).for_each(|key| trial.ask(Root::Reach(key)));
            trial.tear_down();
        }
    }
}

proptest! {
    #![proptest_config(Config { failure_persistence: None, ..Config::default() })]

    #[test]
    fn incremental_says_what_from_scratch_says(steps in vec(any_step(), 1..30)) {
        let mut trial = Trial::new();
        for step in &steps {
            trial.step(step);
        }
        for root in all_roots() {
            trial.ask(root);
        }
        check_oracle(&trial.facts);
        trial.tear_down();
    }

    /// Cycles need many links to be interesting; here every change is one.
    #[test]
    fn cycles_do_not_depend_on_who_asks_first(
        links in vec((0..ITEMS, vec(0..ITEMS, 0..4)), 1..12),
        order in vec(0..ITEMS, 1..4),
    ) {
        let mut trial = Trial::new();
        for (key, links) in links {
            let item = Item { group: 0, tags: Vec::new(), links, amount: 0 };
            trial.step(&Step::Commit(vec![Change::Item(key, item)]));
            order.iter().for_each(|key| trial.ask(Root::Reach(*key)));
        }
        (0..ITEMS).for_each(|key| trial.ask(Root::Reach(key)));
        trial.tear_down();
    }
}

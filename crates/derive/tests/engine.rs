//! What the engine promises beyond right values: the cost of a change, the early cut-off, that nothing is left behind,
//! what is dirty, explanations, and cycles.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use expect_test::{Expect, expect};
use leno_derive::{Batch, Cx, Graph, Index, Input, Mode, Query, Revision, Source, Stats};

struct Pods;
#[derive(Clone, Debug, PartialEq)]
struct Pod {
    service: u32,
    address: String,
    ready: bool,
}
impl Input for Pods {
    type Key = u32;
    type Value = Pod;
    const NAME: &'static str = "pod";
}

/// The names of services, by number.
struct Names;
impl Input for Names {
    type Key = u32;
    type Value = String;
    const NAME: &'static str = "name";
}

struct ByService;
impl Index for ByService {
    type Of = Pods;
    type Bucket = u32;
    const NAME: &'static str = "pods-by-service";
    fn buckets(_: &u32, pod: &Pod) -> Vec<u32> {
        vec![pod.service]
    }
}

/// The addresses of a service's ready pods.
struct Endpoints;
impl Query for Endpoints {
    type Key = u32;
    type Value = Vec<String>;
    const NAME: &'static str = "endpoints";
    fn derive(cx: &Cx<'_>, service: &u32) -> Vec<String> {
        let pods = cx.bucket::<ByService>(service).into_iter().filter_map(|pod| cx.input::<Pods>(&pod));
        pods.filter(|pod| pod.ready).map(|pod| pod.address.clone()).collect()
    }
}

/// Whether a service has anything to send requests to.
struct Available;
impl Query for Available {
    type Key = u32;
    type Value = bool;
    const NAME: &'static str = "available";
    fn derive(cx: &Cx<'_>, service: &u32) -> bool {
        !cx.get::<Endpoints>(service).is_empty()
    }
}

/// What a resource might say of a service.
struct Cluster;
impl Query for Cluster {
    type Key = u32;
    type Value = String;
    const NAME: &'static str = "cluster";
    fn derive(cx: &Cx<'_>, service: &u32) -> String {
        let name = cx.input::<Names>(service);
        let name = name.as_deref().map_or("unnamed", String::as_str);
        format!("{name} {}", if *cx.get::<Available>(service) { "up" } else { "down" })
    }
}

/// All services that have a name.
struct Catalogue;
impl Query for Catalogue {
    type Key = ();
    type Value = Vec<String>;
    const NAME: &'static str = "catalogue";
    fn derive(cx: &Cx<'_>, (): &()) -> Vec<String> {
        cx.all::<Names>().iter().map(|service| cx.get::<Cluster>(service).to_string()).collect()
    }
}

fn pod(service: u32, address: &str, ready: bool) -> Pod {
    Pod { service, address: address.to_owned(), ready }
}

fn commit(graph: &mut Graph, fill: impl FnOnce(&mut Batch)) -> Revision {
    let mut batch = Batch::new();
    fill(&mut batch);
    graph.commit(batch)
}

/// `services` services of ten ready pods each; pod `10 s + n` belongs to service `s`.
fn mesh(services: u32) -> Graph {
    let mut graph = Graph::new();
    graph.register::<ByService>();
    commit(&mut graph, |batch| {
        for service in 0..services {
            batch.set::<Names>(service, format!("s{service}"));
            for at in 0..10 {
                batch.set::<Pods>(10 * service + at, pod(service, &format!("10.0.{service}.{at}"), true));
            }
        }
    });
    graph
}

fn work(graph: &Graph, before: &Stats) -> (u64, u64) {
    let now = graph.stats();
    (now.recomputations - before.recomputations, now.verifications - before.verifications)
}

#[test]
fn a_graph_can_live_in_a_task() {
    fn check<T: Send>() {}
    check::<Graph>();
    check::<Batch>();
}

#[test]
fn a_change_costs_what_depends_on_it() {
    for services in [10, 400] {
        let mut graph = mesh(services);
        for service in 0..services {
            assert!(graph.get::<Cluster>(&service).ends_with("up"));
        }
        let before = graph.stats();
        commit(&mut graph, |batch| batch.set::<Pods>(35, pod(3, "10.9.9.9", true)));
        assert_eq!(graph.dirty::<Cluster>(), [3]);
        (0..services).for_each(|service| drop(graph.get::<Cluster>(&service)));
        // The endpoints and whether there are any; the cluster is found to be right as it is.
        assert_eq!(work(&graph, &before), (2, 1), "among {services} services");
    }
}

#[test]
fn from_scratch_derives_everything_again() {
    let mut graph = Graph::with_mode(Mode::FromScratch);
    commit(&mut graph, |batch| (0..5).for_each(|service| batch.set::<Names>(service, format!("s{service}"))));
    let value = graph.get::<Catalogue>(&());
    let before = graph.stats();
    let first = graph.changed_at::<Catalogue>(&());
    commit(&mut graph, |batch| batch.set::<Pods>(1, pod(99, "10.0.0.1", true)));
    assert_eq!(graph.dirty::<Catalogue>(), [()]);
    assert_eq!(graph.get::<Catalogue>(&()), value);
    assert_eq!(work(&graph, &before), (16, 0));
    assert_eq!(graph.changed_at::<Catalogue>(&()), first);
}

#[test]
fn an_equal_result_stops_the_wave() {
    let mut graph = mesh(3);
    let old = graph.get::<Catalogue>(&());
    let first = graph.revision();
    let before = graph.stats();
    let second = commit(&mut graph, |batch| batch.set::<Pods>(10, pod(1, "10.0.1.0", false)));
    let new = graph.get::<Catalogue>(&());
    assert!(Arc::ptr_eq(&old, &new), "an unchanged value is the same value");
    assert_eq!(work(&graph, &before), (2, 2));
    assert_eq!(graph.changed_at::<Endpoints>(&1), second);
    assert_eq!(graph.changed_at::<Available>(&1), first);
    assert_eq!(graph.changed_at::<Catalogue>(&()), first);
    assert_eq!(graph.recomputations::<Catalogue>(), 1);

    let third = commit(&mut graph, |batch| (10..20).for_each(|at| batch.remove::<Pods>(&at)));
    assert_eq!(*graph.get::<Catalogue>(&()), ["s0 up", "s1 down", "s2 up"]);
    assert_eq!(graph.changed_at::<Catalogue>(&()), third);
    assert_eq!(graph.recomputations::<Catalogue>(), 2);
    assert_eq!(graph.recomputations::<Cluster>(), 4);
}

#[test]
fn equal_facts_are_no_change() {
    let mut graph = mesh(2);
    let revision = graph.revision();
    graph.get::<Catalogue>(&());
    assert_eq!(commit(&mut graph, |batch| batch.set::<Names>(1, "s1".to_owned())), revision);
    assert_eq!(commit(&mut graph, |batch| batch.remove::<Names>(&77)), revision);
    assert_eq!(graph.commit(Batch::new()), revision);
    assert!(graph.dirty::<Catalogue>().is_empty());
}

#[test]
fn a_change_is_dated_by_its_commit_and_not_by_when_it_is_noticed() {
    let mut graph = mesh(2);
    graph.get::<Cluster>(&0);
    let second = commit(&mut graph, |batch| batch.set::<Names>(0, "zero".to_owned()));
    commit(&mut graph, |batch| batch.set::<Names>(1, "one".to_owned()));
    assert_eq!(graph.changed_at::<Cluster>(&0), second);
}

#[test]
fn a_change_is_dated_even_if_it_happened_while_nobody_looked() {
    let mut graph = mesh(2);
    let first = graph.revision();
    assert_eq!(graph.changed_at::<Cluster>(&1), first);
    assert_eq!(graph.changed_at::<Endpoints>(&1), first);
    graph.collect();
    let second = commit(&mut graph, |batch| batch.remove::<Names>(&1));
    assert_eq!(graph.changed_at::<Cluster>(&1), second);
    graph.collect();
    let third =
        commit(&mut graph, |batch| (10..20).for_each(|at| batch.set::<Pods>(at, pod(0, "10.0.0.1", true))));
    assert_eq!(graph.changed_at::<Endpoints>(&1), third);
}

#[test]
fn a_fact_that_was_missed_is_seen_when_it_comes() {
    let mut graph = Graph::new();
    assert_eq!(*graph.get::<Cluster>(&7), "unnamed down");
    commit(&mut graph, |batch| batch.set::<Names>(7, "seven".to_owned()));
    assert_eq!(*graph.get::<Cluster>(&7), "seven down");
    commit(&mut graph, |batch| batch.set::<Pods>(1, pod(7, "10.0.0.1", true)));
    assert_eq!(*graph.get::<Cluster>(&7), "seven up");
    commit(&mut graph, |batch| batch.set::<Pods>(1, pod(8, "10.0.0.1", true)));
    assert_eq!(*graph.get::<Cluster>(&7), "seven down");
    commit(&mut graph, |batch| batch.remove::<Names>(&7));
    assert_eq!(*graph.get::<Cluster>(&7), "unnamed down");
}

#[test]
fn a_bucket_changes_only_with_its_members() {
    let mut graph = mesh(2);
    let first = graph.revision();
    graph.get::<Endpoints>(&0);
    commit(&mut graph, |batch| batch.set::<Pods>(0, pod(0, "10.7.7.7", true)));
    let trace = graph.explain::<Endpoints>(&0);
    let bucket = trace.reads.iter().find(|read| read.source == Source::Index);
    assert_eq!(bucket.map(|bucket| (bucket.size, bucket.changed_at)), Some((10, first)));
}

/// Reads the same name again and again.
struct Twice;
impl Query for Twice {
    type Key = u32;
    type Value = String;
    const NAME: &'static str = "twice";
    fn derive(cx: &Cx<'_>, key: &u32) -> String {
        let name = || cx.input::<Names>(key).map(|name| name.to_string()).unwrap_or_default();
        name() + &name()
    }
}

#[test]
fn what_is_read_twice_is_one_dependency() {
    let mut graph = mesh(1);
    assert_eq!(*graph.get::<Twice>(&0), "s0s0");
    assert_eq!(graph.stats().edges, 1);
    commit(&mut graph, |batch| batch.set::<Names>(0, "z".to_owned()));
    assert_eq!(*graph.get::<Twice>(&0), "zz");
    assert_eq!(graph.stats().edges, 1);
}

#[test]
fn inputs_can_be_read_from_outside() {
    let graph = mesh(2);
    assert_eq!(graph.keys::<Names>(), [0, 1]);
    assert_eq!(graph.input::<Names>(&1).as_deref().map(String::as_str), Some("s1"));
    assert_eq!(graph.input::<Names>(&2), None);
    assert_eq!(Graph::new().keys::<Names>(), [0_u32; 0]);
}

#[test]
fn churn_leaves_nothing_behind() {
    let mut graph = mesh(5);
    (0..5).for_each(|service| drop(graph.get::<Cluster>(&service)));
    graph.collect();
    let baseline = graph.stats();
    for round in 0..20 {
        let service = 100 + round;
        // Asked for before it exists, and released before it goes or after, perhaps with a last look.
        graph.get::<Cluster>(&service);
        commit(&mut graph, |batch| {
            batch.set::<Names>(service, "new".to_owned());
            (0..10).for_each(|at| batch.set::<Pods>(1000 + at, pod(service, "10.1.1.1", true)));
        });
        assert_eq!(*graph.get::<Cluster>(&service), "new up");
        let more = graph.stats();
        assert!(more.memos > baseline.memos && more.edges > baseline.edges && more.leaves > baseline.leaves);
        if round % 2 == 0 {
            graph.release::<Cluster>(&service);
        }
        commit(&mut graph, |batch| {
            batch.remove::<Names>(&service);
            (0..10).for_each(|at| batch.remove::<Pods>(&(1000 + at)));
        });
        if round % 3 == 0 {
            assert_eq!(*graph.peek::<Cluster>(&service), "unnamed down");
        }
        graph.release::<Cluster>(&service);
        assert_eq!(graph.collect(), 3);
        let after = graph.stats();
        let sizes = |stats: &Stats| (stats.memos, stats.roots, stats.inputs, stats.leaves, stats.edges);
        assert_eq!(sizes(&after), sizes(&baseline), "round {round}");
    }
}

#[test]
fn what_something_reads_is_kept() {
    let mut graph = mesh(2);
    graph.get::<Catalogue>(&());
    graph.get::<Cluster>(&1);
    graph.release::<Cluster>(&1);
    assert_eq!(graph.collect(), 0);
    graph.release::<Catalogue>(&());
    assert_eq!(graph.collect(), 7);
    assert_eq!((graph.stats().memos, graph.stats().edges), (0, 0));
}

#[test]
fn unused_values_can_be_kept_for_a_while() {
    let mut graph = mesh(2);
    graph.keep_unused(2);
    graph.peek::<Available>(&1);
    assert_eq!(graph.collect(), 0);
    commit(&mut graph, |batch| batch.remove::<Names>(&0));
    assert_eq!(graph.collect(), 0);
    commit(&mut graph, |batch| batch.remove::<Names>(&1));
    assert_eq!(graph.collect(), 2);
}

#[test]
fn dirty_roots_are_reported_until_they_are_asked_for() {
    let mut graph = mesh(4);
    (0..4).for_each(|service| drop(graph.get::<Cluster>(&service)));
    assert!(graph.dirty::<Cluster>().is_empty());
    let rename = |graph: &mut Graph, service: u32, name: &str| {
        commit(graph, |batch| batch.set::<Names>(service, name.to_owned()));
    };
    rename(&mut graph, 2, "two");
    graph.get::<Cluster>(&2);
    assert_eq!(graph.dirty::<Cluster>(), [2], "also when somebody else has asked in between");
    assert!(graph.dirty::<Cluster>().is_empty());

    rename(&mut graph, 1, "one");
    assert_eq!(graph.dirty::<Cluster>(), [1]);
    assert_eq!(graph.dirty::<Cluster>(), [1], "nobody has asked for it");
    rename(&mut graph, 1, "uno");
    assert_eq!(graph.dirty::<Cluster>(), [1]);
    graph.get::<Cluster>(&1);
    assert!(graph.dirty::<Cluster>().is_empty());

    rename(&mut graph, 3, "three");
    graph.release::<Cluster>(&3);
    assert!(graph.dirty::<Cluster>().is_empty(), "a released root is of no interest");
    graph.collect();
    rename(&mut graph, 3, "tre");
    assert!(graph.dirty::<Cluster>().is_empty());
}

#[test]
fn changed_roots_are_those_with_another_value() {
    let mut graph = mesh(4);
    (0..4).for_each(|service| drop(graph.get::<Cluster>(&service)));
    commit(&mut graph, |batch| {
        batch.set::<Pods>(0, pod(0, "10.3.3.3", true));
        batch.set::<Names>(1, "one".to_owned());
    });
    let changed = |graph: &Graph| -> Vec<(u32, String)> {
        graph.changed::<Cluster>().into_iter().map(|(service, value)| (service, value.to_string())).collect()
    };
    assert_eq!(changed(&graph), [(1, "one up".to_owned())]);
    assert!(changed(&graph).is_empty());
    commit(&mut graph, |batch| batch.set::<Names>(1, "uno".to_owned()));
    graph.get::<Cluster>(&1);
    assert_eq!(changed(&graph), [(1, "uno up".to_owned())], "also when somebody else has asked in between");
}

#[test]
fn later_changes_of_a_batch_win() {
    let mut first = Batch::new();
    assert!(first.is_empty());
    first.set::<Names>(1, "one".to_owned());
    first.set::<Names>(2, "two".to_owned());
    first.remove::<Names>(&1);
    let mut later = Batch::new();
    later.set::<Names>(2, "due".to_owned());
    later.set::<Names>(3, "tre".to_owned());
    later.set::<Pods>(1, pod(2, "10.0.0.1", true));
    first.merge(later);
    assert_eq!((first.is_empty(), first.len()), (false, 4));
    expect![[r#"{"name": 3, "pod": 1}"#]].assert_eq(&format!("{first:?}"));
    let mut graph = Graph::new();
    graph.commit(first);
    assert_eq!(
        *graph.get::<Catalogue>(&()),
        ["due up", "unnamed down"].map(|line| line.replace("unnamed", "tre"))
    );
}

fn check_trace<Q: Query>(graph: &Graph, key: &Q::Key, expect: &Expect) {
    expect.assert_eq(&graph.explain::<Q>(key).to_string());
}

#[test]
fn explanations_name_what_was_read() {
    let mut graph = Graph::new();
    commit(&mut graph, |batch| {
        batch.set::<Names>(1, "one".to_owned());
        batch.set::<Pods>(5, pod(1, "10.0.0.5", true));
    });
    check_trace::<Catalogue>(
        &graph,
        &(),
        &expect![[r#"
            query catalogue (), changed in revision 1
              keys of name, 1 key, changed in revision 1
              query cluster 1, changed in revision 1
                input name 1, changed in revision 1
                query available 1, changed in revision 1
                  query endpoints 1, changed in revision 1
                    index pods-by-service 1, 1 key, changed in revision 1
                    input pod 5, changed in revision 1
        "#]],
    );
    check_trace::<Cluster>(
        &graph,
        &2,
        &expect![[r#"
            query cluster 2, never changed
              input name 2, absent, never changed
              query available 2, never changed
                query endpoints 2, never changed
                  index pods-by-service 2, 0 keys, never changed
        "#]],
    );
    let before = graph.revision();
    commit(&mut graph, |batch| {
        batch.set::<Pods>(5, pod(1, "10.0.0.5", false));
        batch.set::<Names>(2, "two".to_owned());
    });
    let why = graph.explain::<Cluster>(&1).changed_after(before).map(|trace| trace.to_string());
    expect![[r#"
        query cluster 1, changed in revision 2
          query available 1, changed in revision 2
            query endpoints 1, changed in revision 2
              input pod 5, changed in revision 2
    "#]]
    .assert_eq(&why.unwrap_or_default());
    assert_eq!(graph.explain::<Cluster>(&1).changed_after(graph.revision()), None);
    assert_eq!(graph.stats().roots, 0, "an explanation makes no roots");
}

/// A name, or the name that it stands for; users write such chains.
struct Alias;
impl Query for Alias {
    type Key = u32;
    type Value = Result<String, &'static str>;
    const NAME: &'static str = "alias";
    fn derive(cx: &Cx<'_>, key: &u32) -> Self::Value {
        let name = cx.input::<Names>(key).ok_or("no such name")?;
        match name.strip_prefix('@').and_then(|other| other.parse().ok()) {
            Some(other) => Result::clone(&cx.get::<Alias>(&other)),
            None => Ok(name.to_string()),
        }
    }
    fn cycle(_: &u32) -> Option<Self::Value> {
        Some(Err("stands for itself"))
    }
}

/// The same, by an author who did not think of cycles.
struct Careless;
impl Query for Careless {
    type Key = u32;
    type Value = String;
    const NAME: &'static str = "careless";
    fn derive(cx: &Cx<'_>, key: &u32) -> String {
        let name = cx.input::<Names>(key).map(|name| name.to_string()).unwrap_or_default();
        match name.strip_prefix('@').and_then(|other| other.parse().ok()) {
            Some(other) => cx.get::<Careless>(&other).to_string(),
            None => name,
        }
    }
}

#[test]
fn a_cycle_has_a_value_and_can_be_resolved() {
    let mut graph = Graph::new();
    let names = |graph: &mut Graph, names: &[(u32, &str)]| {
        commit(graph, |batch| {
            names.iter().for_each(|(key, name)| batch.set::<Names>(*key, (*name).to_owned()));
        });
    };
    names(&mut graph, &[(1, "@2"), (2, "@3"), (3, "@2"), (4, "@4"), (5, "five")]);
    let itself = Err("stands for itself");
    assert_eq!(
        [1, 2, 3, 4].map(|key| Result::clone(&graph.get::<Alias>(&key))),
        [const { Err("stands for itself") }; 4]
    );
    check_trace::<Alias>(
        &graph,
        &1,
        &expect![[r#"
            query alias 1, changed in revision 1
              input name 1, changed in revision 1
              query alias 2, changed in revision 1, depends on itself
                input name 2, changed in revision 1
                query alias 3, changed in revision 1, depends on itself
                  input name 3, changed in revision 1
                  query alias 2, changed in revision 1, depends on itself, see above
        "#]],
    );
    names(&mut graph, &[(3, "@5")]);
    assert_eq!(graph.dirty::<Alias>().len(), 3);
    assert_eq!(*graph.get::<Alias>(&1), Ok("five".to_owned()));
    names(&mut graph, &[(5, "@1")]);
    assert_eq!([1, 2, 3, 5].map(|key| Result::clone(&graph.get::<Alias>(&key)) == itself), [true; 4]);

    // Members of a cycle read each other, and still go when nobody wants them.
    [1, 2, 3, 5].iter().for_each(|key| graph.release::<Alias>(key));
    assert_eq!(graph.collect(), 4);
    assert_eq!(graph.stats().edges, 2, "those of the root that is left");
}

#[test]
fn a_cycle_without_a_value_is_reported_with_its_chain() {
    let mut graph = Graph::new();
    commit(&mut graph, |batch| {
        [(1, "@2"), (2, "@3"), (3, "@2")]
            .iter()
            .for_each(|(key, name)| batch.set::<Names>(*key, (*name).to_owned()));
    });
    let panic = catch_unwind(AssertUnwindSafe(|| graph.get::<Careless>(&1))).expect_err("there is no value");
    let message = panic.downcast_ref::<String>().cloned().unwrap_or_default();
    expect!["a query depends on itself: careless 2 (has no `Query::cycle` value) -> careless 3 (has no `Query::cycle` value) -> careless 2 (has no `Query::cycle` value)"]
        .assert_eq(&message);

    // Whoever catches the panic has a graph that works.
    commit(&mut graph, |batch| batch.set::<Names>(3, "three".to_owned()));
    assert_eq!(*graph.get::<Careless>(&1), "three");
    assert_eq!(*graph.get::<Careless>(&3), "three");
}

/// A derivation with a bug: it panics, after it has read what its name refers to, if the name ends in `!`.
struct Faulty;
impl Query for Faulty {
    type Key = u32;
    type Value = String;
    const NAME: &'static str = "faulty";
    fn derive(cx: &Cx<'_>, key: &u32) -> String {
        let name = cx.input::<Names>(key).map(|name| name.to_string()).unwrap_or_default();
        let other = name.strip_prefix('@').and_then(|other| other.trim_end_matches('!').parse().ok());
        let value = other.map(|other| cx.get::<Faulty>(&other).to_string());
        assert!(!name.ends_with('!'), "a bug");
        value.unwrap_or(name)
    }
    fn cycle(_: &u32) -> Option<String> {
        Some("cycle".to_owned())
    }
}

#[test]
fn a_cycle_that_a_panic_cut_short_is_not_remembered() {
    let mut graph = Graph::new();
    commit(&mut graph, |batch| {
        batch.set::<Names>(1, "@2!".to_owned());
        batch.set::<Names>(2, "@1".to_owned());
    });
    assert!(catch_unwind(AssertUnwindSafe(|| graph.get::<Faulty>(&1))).is_err());
    commit(&mut graph, |batch| batch.set::<Names>(1, "one".to_owned()));
    assert_eq!(*graph.get::<Faulty>(&2), "one");
}

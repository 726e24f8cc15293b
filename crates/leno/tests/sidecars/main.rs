//! Unmodified programs in pods, each a network namespace with the real rules of redirection and a sidecar
//! (`leno agent`), under a control plane: what they say to each other goes through both sidecars, by mTLS, although
//! they know nothing of it; what is excluded does not; nothing goes round in circles; nothing leaves in plain text
//! while rules or sidecars are missing.
//!
//! One scene ([`scene`]) is made once, as it takes long, and looked at by many checks at a time. It takes root, `ip`
//! and `curl`; what is missing is said.

#![cfg(target_os = "linux")]

mod bypass;
mod early;
mod loops;
mod names;
mod net;
mod programs;
mod protocols;
mod scene;
mod servers;
mod tproxy;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use scene::Scene;

type Check = (&'static str, fn(&Scene));

/// What is looked at while everything runs.
const CHECKS: [Check; 17] = [
    ("curl", programs::curl),
    ("python", programs::python),
    ("wget", programs::wget),
    ("netcat", programs::netcat),
    ("a C program", programs::c),
    ("a Go program", programs::go),
    ("a hundred requests", programs::many),
    ("MySQL", protocols::mysql),
    ("servers that speak first", protocols::server_first),
    ("plain text", protocols::plain_text),
    ("datagrams", protocols::datagrams),
    ("what is excluded", bypass::excluded),
    ("what is not included", bypass::not_included),
    ("a pod and itself", loops::itself),
    ("the proxy's own ports", loops::own_ports),
    ("names", names::names),
    ("TPROXY", tproxy::keeps_addresses),
];

/// Says how long something takes.
fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    println!("{:5.1} s: {what}", start.elapsed().as_secs_f32());
    done
}

#[test]
fn programs_that_know_nothing_of_it() {
    let scene = match timed("the scene", Scene::start) {
        Ok(scene) => scene,
        Err(why) => return println!("skipped: sidecars in network namespaces: {why}"),
    };
    let failed: Vec<&str> = std::thread::scope(|scope| {
        let running = CHECKS.map(|(name, check)| {
            let scene = &scene;
            // The name is what a failure is reported under.
            let thread = std::thread::Builder::new().name(name.to_owned());
            (name, thread.spawn_scoped(scope, move || timed(name, || check(scene))).expect("a thread"))
        });
        let ended = running.into_iter().map(|(name, thread)| (name, thread.join()));
        ended.filter_map(|(name, ended)| ended.is_err().then_some(name)).collect()
    });
    // These need everything to be quiet, and end it.
    let last = catch_unwind(AssertUnwindSafe(|| {
        timed("circles", || loops::nothing_goes_round(&scene));
        timed("a sidecar that is killed", || early::without_its_sidecar(&scene));
    }));
    assert!(failed.is_empty() && last.is_ok(), "failed: {failed:?}\n{}", scene.mesh.logs());
}

//! Fuzzing of every parser of bytes from the network or from configuration.
//!
//! [`targets`] lists them; `run` feeds one for a time with mutations of its corpus
//! (`corpus/<target>/`), without coverage guidance, on any toolchain: the tests do that for a few
//! seconds each. `libfuzzer.rs` runs the same targets under libFuzzer for as long as one likes.
//! Read `run`, then `mutate`; the targets themselves are in `leno_proxy::fuzzing`, `codec` and `issue`.

mod codec;
mod issue;
mod mutate;
mod run;

pub use leno_proxy::fuzzing::Target;
pub use run::{Found, corpus, run};

/// All targets, by name.
pub fn targets() -> Vec<Target> {
    let mut all: Vec<Target> =
        leno_proxy::fuzzing::TARGETS.iter().chain(codec::TARGETS).chain(issue::TARGETS).copied().collect();
    all.sort_by_key(|target| target.name);
    all
}

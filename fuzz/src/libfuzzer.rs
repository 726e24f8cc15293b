//! All targets under libFuzzer: `$FUZZ_TARGET` names one. Started by `fuzz/long`.
#![no_main]

use std::sync::OnceLock;

use leno_fuzz::Target;

static TARGET: OnceLock<Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let target = TARGET.get_or_init(|| {
        let wanted = std::env::var("FUZZ_TARGET").unwrap_or_default();
        let found = leno_fuzz::targets().into_iter().find(|target| target.name == wanted);
        found.unwrap_or_else(|| panic!("FUZZ_TARGET={wanted} is none of the targets"))
    });
    (target.run)(input);
});

//! Every target for some seconds (`FUZZ_SECONDS`, 2 by default), side by side.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

#[test]
fn no_target_panics() {
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2.0);
    let time = Duration::from_secs_f64(seconds);
    // Another seed every day, the same for all runs of a day.
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let seed = std::env::var("FUZZ_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or(since.as_secs() / 86_400);
    let targets = leno_fuzz::targets();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    // Panics are expected to be rare and are reported below; shrinking them would fill the output.
    std::panic::set_hook(Box::new(|_| {}));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match leno_fuzz::run(target, time, seed) {
                        Ok(tried) => println!("{}: {tried} inputs", target.name),
                        Err(found) => {
                            let text = format!(
                                "{} (seed {seed}): {}\n  input: b\"{}\"",
                                target.name,
                                found.message,
                                found.input.escape_ascii()
                            );
                            failures.lock().expect("no panic inside").push(text);
                        }
                    }
                }
            });
        }
    });
    let _ = std::panic::take_hook();
    let failures = failures.into_inner().expect("no panic inside");
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn every_target_has_a_corpus() {
    for target in leno_fuzz::targets() {
        assert!(!leno_fuzz::corpus(&target).is_empty(), "fuzz/corpus/{} is missing", target.name);
    }
}

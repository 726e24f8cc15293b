//! Running one target for a time.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use leno_base::Rng;
use leno_proxy::fuzzing::Target;

use crate::mutate::mutate;

/// An input on which a target panicked.
#[derive(Debug)]
pub struct Found {
    /// The input, made as short as it was quick to find.
    pub input: Vec<u8>,
    /// What the panic said.
    pub message: String,
}

/// Inputs that are kept in memory beside those of the corpus.
const KEPT: usize = 256;

/// The corpus of a target: the files of its folder, sorted by name.
pub fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().filter_map(|path| fs::read(path).ok()).collect()
}

/// Runs the corpus, then mutations of it until `time` is over. Gives the number of inputs tried,
/// or the first one that made the target panic.
///
/// # Errors
/// The input and what the panic said.
pub fn run(target: &Target, time: Duration, seed: u64) -> Result<u64, Found> {
    let start = Instant::now();
    let mut inputs = corpus(target);
    for input in &inputs {
        attempt(target, input)?;
    }
    let fixed = inputs.len();
    let mut random = Rng::new(seed);
    let mut tried = inputs.len() as u64;
    let mut input = Vec::new();
    while start.elapsed() < time {
        input.clear();
        if let Some(base) = pick(&inputs, &mut random) {
            input.extend_from_slice(base);
        }
        mutate(&mut input, &inputs, target.dictionary, &mut random);
        attempt(target, &input)?;
        tried += 1;
        // Some mutants are mutated further: without coverage nothing says which are worth it.
        if random.next_u64().is_multiple_of(16) {
            if inputs.len() < fixed + KEPT {
                inputs.push(input.clone());
            } else {
                let at = fixed + usize::try_from(random.next_u64() % KEPT as u64).unwrap_or(0);
                inputs[at].clone_from(&input);
            }
        }
    }
    Ok(tried)
}

fn pick<'a>(inputs: &'a [Vec<u8>], random: &mut Rng) -> Option<&'a Vec<u8>> {
    let count = inputs.len().max(1) as u64;
    inputs.get(usize::try_from(random.next_u64() % count).unwrap_or(0))
}

/// One input; on a panic a shorter one is looked for.
fn attempt(target: &Target, input: &[u8]) -> Result<(), Found> {
    let Err(mut message) = guarded(target, input) else { return Ok(()) };
    let mut input = input.to_vec();
    let mut step = input.len() / 2;
    while step > 0 {
        let mut at = 0;
        while at < input.len() {
            let mut shorter = input.clone();
            shorter.drain(at..(at + step).min(input.len()));
            match guarded(target, &shorter) {
                Err(again) => (input, message) = (shorter, again),
                Ok(()) => at += step,
            }
        }
        step /= 2;
    }
    Err(Found { input, message })
}

fn guarded(target: &Target, input: &[u8]) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
    })
}

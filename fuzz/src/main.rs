//! `cargo run -p leno-fuzz -- TARGET [--seconds N] [--seed N] [FILE...]`: runs one target on
//! mutations of its corpus, or on the files named. Without a target it lists them.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let targets = leno_fuzz::targets();
    let wanted = arguments.next();
    let Some(target) = targets.iter().find(|target| Some(target.name) == wanted.as_deref()) else {
        for target in &targets {
            println!("{}", target.name);
        }
        return if wanted.is_none() { ExitCode::SUCCESS } else { ExitCode::from(2) };
    };
    let mut seconds = 60;
    let mut seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |time| time.as_secs());
    let mut files = Vec::new();
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse().ok());
        match argument.as_str() {
            "--seconds" => seconds = number().unwrap_or(seconds),
            "--seed" => seed = number().unwrap_or(seed),
            _ => files.push(argument),
        }
    }
    for file in &files {
        match std::fs::read(file) {
            Ok(input) => (target.run)(&input),
            Err(error) => {
                eprintln!("{file}: {error}");
                return ExitCode::from(2);
            }
        }
    }
    if !files.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("{}: {seconds} s from seed {seed}", target.name);
    match leno_fuzz::run(target, Duration::from_secs(seconds), seed) {
        Ok(tried) => {
            println!("{tried} inputs, no panic");
            ExitCode::SUCCESS
        }
        Err(found) => {
            eprintln!("{}\ninput: b\"{}\"", found.message, found.input.escape_ascii());
            ExitCode::FAILURE
        }
    }
}

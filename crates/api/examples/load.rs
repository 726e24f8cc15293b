//! Reads an Envoy bootstrap file and says how long each step took and how much memory it cost.
//! By hand: `cargo run --release -p leno-api --example load -- FILE`.

use std::time::Instant;

use leno_api::decode::decode_with_warnings;
use leno_api::encode::{Style, json};
use leno_api::proto::envoy::config::bootstrap::v3::Bootstrap;
use leno_api::validate;
use leno_api::yaml::{Dialect, parse};

fn main() {
    let file = std::env::args().nth(1).expect("the name of a file");
    report("started", Instant::now());
    let text = std::fs::read_to_string(&file).expect("a readable file");
    let start = Instant::now();
    let dialect = if file.ends_with(".json") { Dialect::Json } else { Dialect::Envoy };
    let documents = parse(&text, dialect).unwrap_or_else(|error| panic!("{error}"));
    report("parsed", start);
    let start = Instant::now();
    let decoded = match decode_with_warnings::<Bootstrap>(&documents[0], &file) {
        Ok(decoded) => decoded,
        Err(errors) => {
            println!("{errors}");
            return;
        }
    };
    report("decoded and checked", start);
    for warning in &decoded.warnings {
        println!("warning: {warning}");
    }
    drop(documents);
    let start = Instant::now();
    validate::message(&decoded.message).unwrap_or_else(|errors| panic!("{errors}"));
    report("checked again", start);
    let start = Instant::now();
    let length = json(&decoded.message, Style::default()).len();
    report(&format!("written as {length} bytes of JSON"), start);
}

fn report(what: &str, start: Instant) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let memory: Vec<&str> =
        status.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM")).collect();
    println!("{what}: {:.1} ms {}", start.elapsed().as_secs_f64() * 1e3, memory.join(" ").replace('\t', " "));
}

//! Instruction counts of parts of the proxy, by callgrind: the same from run to run where time is
//! not. Each part runs N and 2N times in a process of its own; the difference by N is what one
//! takes, free of what starting costs. Of whole requests the proxy's worker is counted alone: what
//! client, back end and main thread do depends on time too. `--check` compares with what was
//! recorded.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use leno_proxy::bench::{PARTS, Part};

use crate::backend::{BODY, Backend};
use crate::cases::{self, Mesh, Traffic};
use crate::config::{self, Site};
use crate::machine;
use crate::peers::free_port;
use crate::verify::request_block;
use crate::wire::http1;
use crate::wire::http2::{Endpoint, Event};

/// Whole requests through a proxy in this process, one at a time; its worker is counted.
const REQUESTS: &[Part] = &[
    Part { name: "request_h1", times: 2000, run: |times| whole("h1", times) },
    Part { name: "request_h1istio", times: 2000, run: |times| whole("h1istio", times) },
    Part { name: "request_h1stats", times: 2000, run: |times| whole("h1stats", times) },
    Part { name: "request_h1peers", times: 2000, run: |times| whole("h1peers", times) },
    Part { name: "request_h2", times: 2000, run: |times| whole("h2", times) },
];

/// What to count.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only parts whose names contain this
    #[arg(default_value = "")]
    filter: String,
    /// Compare with what was recorded; the status is 1 if a part takes more
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = BASELINE)]
    check: Option<PathBuf>,
    /// Record what is counted
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = BASELINE, conflicts_with = "check")]
    update: Option<PathBuf>,
    /// How much more than recorded a part may take, percent; whole requests 2 at most
    #[arg(long, default_value_t = 5.0, value_name = "PERCENT")]
    tolerance: f64,
    /// Run one part this many times and do nothing else
    #[arg(long, hide = true)]
    times: Option<u64>,
}

/// How much more than recorded a whole request may take, percent: what a change adds to it is a small
/// part of it.
const REQUEST_TOLERANCE: f64 = 2.0;

/// Functions that no thread but the proxy's worker calls are methods of this type; the compiler has
/// two ways to write that.
const OF_WORKER: [&str; 2] = ["leno_proxy::worker::Worker::", "leno_proxy::worker::Worker>::"];

/// What a client's proxy says of itself.
const PEER: &str = concat!(
    "x-envoy-peer-metadata-id: sidecar~10.0.0.9~shop-v1-7b9f.default~default.svc.cluster.local\r\n",
    "x-envoy-peer-metadata: ",
    "ChoKCkNMVVNURVJfSUQSDBoKS3ViZXJuZXRlcwqEAQoGTEFCRUxTEnoqeAoNCgNhcHASBhoEc2hvcAopCh9zZXJ2aWNlLmlz",
    "dGlvLmlvL2Nhbm9uaWNhbC1uYW1lEgYaBHNob3AKKwojc2VydmljZS5pc3Rpby5pby9jYW5vbmljYWwtcmV2aXNpb24SBBoC",
    "djEKDwoHdmVyc2lvbhIEGgJ2MQoWCgROQU1FEg4aDHNob3AtdjEtN2I5ZgoWCglOQU1FU1BBQ0USCRoHZGVmYXVsdApLCgVP",
    "V05FUhJCGkBrdWJlcm5ldGVzOi8vYXBpcy9hcHBzL3YxL25hbWVzcGFjZXMvZGVmYXVsdC9kZXBsb3ltZW50cy9zaG9wLXYx",
    "ChoKDVdPUktMT0FEX05BTUUSCRoHc2hvcC12MQ==",
    "\r\n"
);

/// Instructions of one run by part, as recorded.
const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/micro.json");

/// Prints the table. Without valgrind it says so.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    if let Some(times) = arguments.times {
        let Some(part) = parts().find(|part| part.name == arguments.filter) else {
            bail!("no part {:?}", arguments.filter);
        };
        (part.run)(times);
        // A proxy in this process would run on.
        std::process::exit(0);
    }
    if Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("skipped: valgrind is not installed");
        return Ok(true);
    }
    let recorded = match &arguments.check {
        Some(path) => read(path)?,
        None => BTreeMap::new(),
    };
    let mut counted = match &arguments.update {
        Some(path) if path.exists() => read(path)?,
        _ => BTreeMap::new(),
    };
    match arguments.check.is_some() {
        true => println!("| part | instructions | recorded | change | |\n|---|---|---|---|---|"),
        false => println!("| part | instructions |\n|---|---|"),
    }
    let mut failed = false;
    let small = PARTS.iter().map(|part| (part, false));
    let all = small.chain(REQUESTS.iter().map(|part| (part, true)));
    for (part, whole) in all.filter(|(part, _)| part.name.contains(&arguments.filter)) {
        let times = part.times;
        let count = |times| instructions(part.name, times, whole);
        let both = count(2 * times).and_then(|more| Ok((more, count(times)?)));
        let tolerance = if whole { arguments.tolerance.min(REQUEST_TOLERANCE) } else { arguments.tolerance };
        match both {
            Ok((more, less)) => {
                #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
                let count = more.saturating_sub(less) as f64 / times as f64;
                // Less than one instruction is what the start differs by.
                let count = (count * 10.0).round() / 10.0;
                let verdict = arguments.check.is_some().then(|| {
                    let (text, fine) = judge(count, recorded.get(part.name).copied(), tolerance);
                    failed |= !fine;
                    text
                });
                println!("| {} | {} |{}", part.name, shown(count), verdict.unwrap_or_default());
                counted.insert(part.name.to_owned(), count);
            }
            Err(error) => {
                println!("| {} | {error:#} |", part.name);
                failed |= !error.to_string().starts_with("not supported yet");
            }
        }
    }
    if let Some(path) = &arguments.update {
        std::fs::write(path, format!("{:#}\n", serde_json::json!(counted)))?;
    }
    Ok(!failed)
}

fn read(path: &Path) -> Result<BTreeMap<String, f64>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let value: serde_json::Value = serde_json::from_str(&text)?;
    let parts = value.as_object().context("what was recorded is an object of parts")?;
    let number = |(part, count): (&String, &serde_json::Value)| {
        Ok((part.clone(), count.as_f64().with_context(|| format!("{part}: a number"))?))
    };
    parts.iter().map(number).collect()
}

/// The further cells of a row, and whether the part takes no more than it may.
fn judge(count: f64, recorded: Option<f64>, tolerance: f64) -> (String, bool) {
    let Some(recorded) = recorded.filter(|recorded| *recorded > 0.0) else {
        return (" - | - | **NOT RECORDED** |".to_owned(), false);
    };
    let change = (count / recorded - 1.0) * 100.0;
    // An instruction more is no growth of what takes a handful.
    let fine = change <= tolerance || count - recorded <= 1.0;
    let verdict = match change {
        _ if !fine => "**GREW**",
        change if change < -tolerance => "less: record it",
        _ => "",
    };
    (format!(" {} | {change:+.1} % | {verdict} |", shown(recorded)), fine)
}

fn shown(count: f64) -> String {
    if count < 100.0 { format!("{count:.1}") } else { format!("{count:.0}") }
}

fn parts() -> impl Iterator<Item = &'static Part> {
    PARTS.iter().chain(REQUESTS)
}

fn whole(case: &str, times: u64) {
    if let Err(error) = requests(case, times) {
        eprintln!("{error:#}");
        std::process::exit(1);
    }
}

/// Starts the proxy and asks so many times.
fn requests(name: &str, times: u64) -> Result<()> {
    let case = cases::find(name).context("a case")?;
    let backend = Backend::start(1)?;
    let folder = Path::new("/nonexistent");
    let site = Site { port: free_port()?, admin: free_port()?, backend: &backend, folder, size: 1 };
    let options = leno_proxy::Options {
        config_yaml: Some(config::bootstrap(&case, &site)),
        concurrency: Some(1),
        log_level: "error".to_owned(),
        ..leno_proxy::Options::default()
    };
    let proxy = std::thread::spawn(move || leno_proxy::run(options).map_err(|error| error.to_string()));
    let mut stream = loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, site.port)) {
            Ok(stream) => break stream,
            Err(_) if !proxy.is_finished() => machine::pause(Duration::from_millis(20)),
            Err(_) => bail!("the proxy ended: {:?}", proxy.join()),
        }
    };
    stream.set_nodelay(true)?;
    if case.traffic == Traffic::Http1 {
        let headers = if case.config.mesh == Mesh::Peers { PEER } else { "" };
        requests_http1(&mut stream, headers, times)
    } else {
        requests_http2(&mut stream, times)
    }
}

fn requests_http1(stream: &mut TcpStream, headers: &str, times: u64) -> Result<()> {
    let request = format!(
        "GET /b/{BODY} HTTP/1.1\r\nHost: svc-7.default.svc.cluster.local\r\nuser-agent: bench/1.0\r\naccept: */*\r\n{headers}\r\n"
    );
    let mut input = vec![0; 16 * 1024];
    for _ in 0..times {
        stream.write_all(request.as_bytes())?;
        let mut received = 0;
        loop {
            let count = stream.read(input.get_mut(received..).unwrap_or_default())?;
            ensure!(count > 0, "the proxy closed the connection");
            received += count;
            let answer = input.get(..received).unwrap_or_default();
            if let Some(head) = http1::head_end(answer) {
                ensure!(answer.starts_with(b"HTTP/1.1 200 "), "the status is not 200");
                if received >= head + BODY {
                    break;
                }
            }
        }
    }
    Ok(())
}

fn requests_http2(stream: &mut TcpStream, times: u64) -> Result<()> {
    let mut input = vec![0; 16 * 1024];
    let mut out = Vec::new();
    let mut endpoint = Endpoint::new(false, &mut out);
    let block = request_block("svc-7.default.svc.cluster.local", false);
    let mut pending = Vec::new();
    for _ in 0..times {
        endpoint.open(&mut out, &block, true);
        let mut ended = false;
        while !ended {
            stream.write_all(&out)?;
            out.clear();
            let count = stream.read(&mut input)?;
            ensure!(count > 0, "the proxy closed the connection");
            pending.extend_from_slice(input.get(..count).unwrap_or_default());
            let taken = endpoint.receive(&pending, &mut out, |_, _, event| {
                ended |= matches!(event, Event::Data { end: true, .. });
            });
            pending.drain(..taken.map_err(anyhow::Error::msg)?);
        }
    }
    Ok(())
}

/// Instructions of a process that runs a part so many times; `whole`: of the proxy's worker in it.
fn instructions(part: &str, times: u64, whole: bool) -> Result<u64> {
    let own = std::env::current_exe()?;
    let folder = tempfile::tempdir()?;
    let output = Command::new("valgrind")
        // Every name in full: else it is there once, and that may be where the function is called.
        .args(["--tool=callgrind", "--separate-threads=yes", "--compress-strings=no"])
        .arg("--callgrind-out-file=threads")
        .arg(own)
        .current_dir(&folder)
        .args(["micro", part, "--times", &times.to_string()])
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let reason = text.lines().find(|line| line.starts_with("not supported yet"));
        bail!("{}", reason.or(text.lines().last()).unwrap_or("callgrind failed"));
    }
    let mut counted = Vec::new();
    for file in std::fs::read_dir(&folder)? {
        let thread = String::from_utf8_lossy(&std::fs::read(file?.path())?).into_owned();
        // The file of no thread is empty.
        if let Some(total) = total(&thread).filter(|_| !whole || is_worker(&thread)) {
            counted.push(total);
        }
    }
    ensure!(!counted.is_empty(), "{part}: callgrind says no number");
    ensure!(!whole || counted.len() == 1, "{part}: {} threads look like a worker", counted.len());
    Ok(counted.iter().sum())
}

/// The instructions of a thread, by the file that callgrind writes of it.
fn total(thread: &str) -> Option<u64> {
    thread.lines().find_map(|line| line.strip_prefix("totals:"))?.trim().parse().ok()
}

/// Whether a thread is the proxy's worker, by the names of its functions.
fn is_worker(thread: &str) -> bool {
    let mut functions = thread.lines().filter(|line| line.starts_with("fn="));
    functions.any(|line| OF_WORKER.iter().any(|name| line.contains(name)))
}

#[cfg(test)]
mod tests {
    use super::{is_worker, judge, total};

    #[test]
    fn growth_is_judged() {
        let check = |count, recorded| judge(count, recorded, 5.0);
        assert_eq!(check(1049.0, Some(1000.0)), (" 1000 | +4.9 % |  |".to_owned(), true));
        assert_eq!(check(1051.0, Some(1000.0)), (" 1000 | +5.1 % | **GREW** |".to_owned(), false));
        assert_eq!(check(900.0, Some(1000.0)), (" 1000 | -10.0 % | less: record it |".to_owned(), true));
        assert_eq!(check(6.0, Some(5.0)), (" 5.0 | +20.0 % |  |".to_owned(), true));
        assert_eq!(check(6.0, None), (" - | - | **NOT RECORDED** |".to_owned(), false));
    }

    #[test]
    fn threads_are_told_apart() {
        let thread =
            |functions: &str| format!("thread: 3\nevents: Ir\nsummary: 7\n\n{functions}\ntotals: 7\n");
        let main = thread("fn=leno_proxy::worker::spawn\n+2 7\ncfn=leno_proxy::worker::Worker::run\n");
        assert_eq!((total(&main), is_worker(&main)), (Some(7), false));
        for name in ["leno_proxy::worker::Worker::adopt", "<leno_proxy::worker::Worker>::adopt'2"] {
            assert!(is_worker(&thread(&format!("fn={name}\n+2 7"))), "{name}");
        }
        assert_eq!(total(""), None);
    }
}

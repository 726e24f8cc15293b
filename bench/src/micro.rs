//! Instruction counts of parts of the proxy, by callgrind: the same from run to run where time is
//! not. Each part runs N and 2N times in a process of its own; the difference by N is what one
//! takes, free of what starting costs.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use leno_proxy::bench::{PARTS, Part};

use crate::backend::{BODY, Backend};
use crate::cases::{self, Traffic};
use crate::config::{self, Site};
use crate::machine;
use crate::peers::free_port;
use crate::verify::request_block;
use crate::wire::http1;
use crate::wire::http2::{Endpoint, Event};

/// Whole requests through a proxy in this process, one at a time. The little that client and back
/// end take is in the count.
const REQUESTS: &[Part] = &[
    Part { name: "request_h1", times: 2000, run: |times| whole("h1", times) },
    Part { name: "request_h1istio", times: 2000, run: |times| whole("h1istio", times) },
    Part { name: "request_h2", times: 2000, run: |times| whole("h2", times) },
];

/// What to count.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only parts whose names contain this
    #[arg(default_value = "")]
    filter: String,
    /// Run one part this many times and do nothing else
    #[arg(long, hide = true)]
    times: Option<u64>,
}

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
    println!("| part | instructions |\n|---|---|");
    let mut failed = false;
    for part in parts().filter(|part| part.name.contains(&arguments.filter)) {
        let times = part.times;
        let both =
            instructions(part.name, 2 * times).and_then(|more| Ok((more, instructions(part.name, times)?)));
        match both {
            Ok((more, less)) => println!("| {} | {} |", part.name, more.saturating_sub(less) / times),
            Err(error) => {
                println!("| {} | {error:#} |", part.name);
                failed |= !error.to_string().starts_with("not supported yet");
            }
        }
    }
    Ok(!failed)
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
    let wanted = cases::parse(name)?;
    let case = wanted.first().context("a case")?.case;
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
        requests_http1(&mut stream, times)
    } else {
        requests_http2(&mut stream, times)
    }
}

fn requests_http1(stream: &mut TcpStream, times: u64) -> Result<()> {
    let request = format!(
        "GET /b/{BODY} HTTP/1.1\r\nHost: svc-7.default.svc.cluster.local\r\nuser-agent: bench/1.0\r\naccept: */*\r\n\r\n"
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

/// Instructions of a process that runs a part so many times.
fn instructions(part: &str, times: u64) -> Result<u64> {
    let own = std::env::current_exe()?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(own)
        .args(["micro", part, "--times", &times.to_string()])
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let reason = text.lines().find(|line| line.starts_with("not supported yet"));
        bail!("{}", reason.or(text.lines().last()).unwrap_or("callgrind failed"));
    }
    let line = text.lines().find_map(|line| line.split_once("Collected : "));
    line.and_then(|(_, number)| number.trim().parse().ok())
        .with_context(|| format!("{part}: callgrind says no number"))
}

//! What containers run: small programs that say lines.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

/// How long to wait for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// The arguments are steps, separated by `then`.
pub(crate) fn run(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    for step in arguments.split(|it| it == "then") {
        let step: Vec<&str> = step.iter().map(String::as_str).collect();
        do_step(&step)?;
    }
    Ok(())
}

fn do_step(step: &[&str]) -> Result<(), Box<dyn Error>> {
    match *step {
        ["say", text] => println!("{text}"),
        ["exit", code] => std::process::exit(code.parse()?),
        ["env", name] => println!("{name}={}", std::env::var(name).unwrap_or_else(|_| "-".to_owned())),
        ["read", path] => println!("{}", std::fs::read_to_string(path)?.trim_end()),
        ["mode", path] => {
            use std::os::unix::fs::PermissionsExt;
            println!("{:o}", std::fs::metadata(path)?.permissions().mode() & 0o777);
        }
        ["write", path, text] => std::fs::write(path, text)?,
        ["cannot-write", path] => match std::fs::write(path, "") {
            Ok(()) => return Err(format!("{path} could be written").into()),
            Err(e) => println!("{path}: {}", e.kind()),
        },
        ["exists", path] => {
            println!("{path} {}", if Path::new(path).exists() { "is there" } else { "is not there" });
        }
        // Fails as often as the file, made longer each time, is shorter than that.
        ["fail-times", path, times] => {
            let mut count = std::fs::read(path).unwrap_or_default();
            count.push(b'x');
            std::fs::write(path, &count)?;
            if count.len() <= times.parse()? {
                println!("failing {}", count.len());
                std::process::exit(3);
            }
        }
        ["await", path] => await_that(path, || Path::new(path).exists())?,
        ["await-text", path, text] => {
            await_that(path, || std::fs::read_to_string(path).is_ok_and(|it| it.trim_end() == text))?;
        }
        ["whoami"] => {
            let status = std::fs::read_to_string("/proc/self/status")?;
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
                line.split_whitespace().next().unwrap_or_default().to_owned()
            };
            println!("uid {} gid {} with {}", field("Uid:"), field("Gid:"), field("CapEff:"));
        }
        ["resolve", name] => {
            use std::net::ToSocketAddrs;
            for address in (name, 80).to_socket_addrs()? {
                println!("{name} is {}", address.ip());
            }
        }
        // Until SIGTERM.
        ["run"] => until_term()?,
        // Takes no notice of SIGTERM.
        ["ignore-term"] => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let _context = runtime.enter();
            let mut term = signal(SignalKind::terminate())?;
            println!("deaf");
            runtime.block_on(async {
                while term.recv().await.is_some() {
                    println!("heard");
                }
            });
        }
        // An HTTP server that answers 200 while a file is there, and shows the path and a header.
        ["serve", address, file] => serve(address.parse()?, file)?,
        ["connect", address] => {
            let address: SocketAddr = address.parse()?;
            let mut answer = String::new();
            TcpStream::connect_timeout(&address, PATIENCE)?.read_to_string(&mut answer)?;
            println!("{answer}");
        }
        _ => return Err(format!("unknown step {step:?}").into()),
    }
    Ok(())
}

fn await_that(what: &str, holds: impl Fn() -> bool) -> Result<(), Box<dyn Error>> {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        if Instant::now() > end {
            return Err(format!("{what} did not come").into());
        }
        std::thread::yield_now();
    }
    Ok(())
}

fn until_term() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate())?;
        println!("running");
        term.recv().await;
        println!("asked to end");
        Ok(())
    })
}

fn serve(address: SocketAddr, file: &str) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(address)?;
    let file = file.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = Vec::new();
            let mut buffer = [0; 1024];
            while !request.windows(4).any(|it| it == b"\r\n\r\n") {
                match stream.read(&mut buffer) {
                    Ok(read) if read > 0 => request.extend_from_slice(&buffer[..read]),
                    _ => break,
                }
            }
            let request = String::from_utf8_lossy(&request).to_ascii_lowercase();
            let line = request.lines().next().unwrap_or_default().to_owned();
            if line.contains("/say") {
                let header = request.lines().find_map(|it| it.strip_prefix("x-who: ")).unwrap_or("nobody");
                println!("called by {header}");
            }
            let status = if Path::new(&file).exists() { "200 OK" } else { "503 No" };
            let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    until_term()
}

//! What the tests that compare us with the real Envoy have in common: a proxy that runs, ours in
//! a thread or Envoy as a process, and bytes of a connection.

#![allow(dead_code, reason = "not every test needs everything")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use leno_proxy::Options;

/// Nothing here takes that long, unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A proxy that runs.
pub(crate) struct Proxy {
    /// For messages.
    pub(crate) name: &'static str,
    admin: SocketAddr,
    folder: PathBuf,
    process: Process,
}

enum Process {
    Thread(JoinHandle<()>),
    Child(Killed),
}

/// A process that does not outlive a test that fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Proxy {
    /// Starts ours, or the Envoy that is given, in `folder/name`; `bootstrap` makes the file's text
    /// for the folder that it gets. One worker; returns when all of it is in force.
    pub(crate) fn start(
        name: &'static str,
        folder: &Path,
        envoy: Option<&Path>,
        bootstrap: impl FnOnce(&Path) -> String,
    ) -> Self {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        let config = folder.join("bootstrap.yaml");
        std::fs::write(&config, bootstrap(&folder)).expect("written");
        let address = folder.join("admin");
        let process = match envoy {
            Some(envoy) => {
                let output = std::fs::File::create(folder.join("output")).expect("a file");
                let mut command = Command::new(envoy);
                command.arg("-c").arg(&config).arg("--admin-address-path").arg(&address);
                command.args(["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "error"]);
                command.args(["--file-flush-interval-msec", "50"]);
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
                Process::Child(Killed(command.spawn().expect("Envoy starts")))
            }
            None => {
                let options = Options {
                    config_path: Some(config),
                    admin_address_path: Some(address.clone()),
                    concurrency: Some(1),
                    log_level: "error".into(),
                    file_flush_interval: Duration::from_millis(50),
                    ..Options::default()
                };
                Process::Thread(std::thread::spawn(move || leno_proxy::run(options).expect("it runs")))
            }
        };
        let output = || std::fs::read_to_string(folder.join("output")).unwrap_or_default();
        let admin = wait(|| std::fs::read_to_string(&address).ok()?.trim().parse().ok());
        let Some(admin) = admin else { panic!("{name} did not start: {}", output()) };
        let proxy = Self { name, admin, folder: folder.clone(), process };
        let ready = wait(|| proxy.admin("GET", "/ready").contains("LIVE").then_some(()));
        assert!(ready.is_some(), "{name} does not become ready: {}", output());
        proxy
    }

    /// Asks the admin interface; gives the whole response.
    pub(crate) fn admin(&self, method: &str, path: &str) -> String {
        exchange(self.admin, &format!("{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n"))
    }

    /// Where listeners listen, by name.
    pub(crate) fn ports(&self) -> BTreeMap<String, SocketAddr> {
        let text = self.admin("GET", "/listeners");
        let lines = text.lines().filter_map(|line| line.split_once("::"));
        lines.filter_map(|(name, address)| Some((name.to_owned(), address.trim().parse().ok()?))).collect()
    }

    /// Where a listener listens.
    pub(crate) fn port(&self, listener: &str) -> SocketAddr {
        let ports = self.ports();
        *ports.get(listener).unwrap_or_else(|| panic!("{}: no {listener} in {ports:?}", self.name))
    }

    /// Ends the proxy and waits until it is gone; its files are in the folder that this gives.
    pub(crate) fn stop(self) -> PathBuf {
        self.admin("POST", "/quitquitquit");
        match self.process {
            Process::Thread(thread) => thread.join().expect("it ends well"),
            Process::Child(mut child) => assert!(child.0.wait().expect("it ends").success()),
        }
        self.folder
    }
}

/// Sends a head and reads to the end; nothing if nobody listens.
pub(crate) fn exchange(address: SocketAddr, head: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        let _ = stream.set_read_timeout(Some(PATIENCE));
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Asks until there is an answer: another process does not tell when it is ready.
#[expect(clippy::disallowed_methods, reason = "there is no event to wait for")]
pub(crate) fn wait<T>(mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    while start.elapsed() < 2 * PATIENCE {
        if let Some(value) = condition() {
            return Some(value);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

/// A socket that is bound and does not listen: connections to it are refused.
pub(crate) fn dead_port() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a port");
    let address = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("an address");
    (socket, address)
}

/// Something that one thread says and another waits for.
#[derive(Default)]
pub(crate) struct Flag {
    raised: Mutex<bool>,
    changed: Condvar,
}

impl Flag {
    /// Says it.
    pub(crate) fn raise(&self) {
        *self.raised.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits until it is said.
    pub(crate) fn wait(&self) {
        let raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(raised, PATIENCE, |raised| !*raised);
        assert!(!waited.unwrap_or_else(PoisonError::into_inner).1.timed_out(), "nobody raised the flag");
    }
}

/// Bytes of a connection.
pub(crate) struct Wire {
    /// The socket.
    pub(crate) stream: TcpStream,
    /// What was received and not looked at.
    pub(crate) input: Vec<u8>,
}

impl Wire {
    /// Connects.
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).expect("the proxy listens"))
    }

    /// Takes over a connection.
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("an option");
        Self { stream, input: Vec::new() }
    }

    /// Reads what is there; false: it is over.
    pub(crate) fn fill(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.input.extend_from_slice(&buffer[..count]);
                true
            }
        }
    }

    /// Up to and with `end`; all there is if the peer stops before.
    pub(crate) fn until(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.input.windows(end.len()).position(|window| window == end) {
                return self.input.drain(..at + end.len()).collect();
            }
            if !self.fill() {
                return std::mem::take(&mut self.input);
            }
        }
    }

    /// The body behind a head: so many bytes as that says, or all chunks.
    #[allow(dead_code, reason = "not all tests that share this look at bodies")]
    pub(crate) fn body(&mut self, head: &str) -> Vec<u8> {
        let value = |wanted: &str| {
            head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case(wanted).then(|| value.trim().to_owned())
            })
        };
        if let Some(length) = value("content-length") {
            return self.exactly(length.parse().expect("a length"));
        }
        let mut body = Vec::new();
        if value("transfer-encoding").is_some() {
            loop {
                let size = String::from_utf8_lossy(&self.until(b"\r\n")).trim().to_owned();
                let size = usize::from_str_radix(&size, 16).unwrap_or(0);
                let data = self.exactly(size + 2);
                if size == 0 {
                    return body;
                }
                body.extend_from_slice(&data[..size]);
            }
        }
        body
    }

    /// So many bytes; fewer if the peer stops before.
    pub(crate) fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.input.len() < count && self.fill() {}
        let count = count.min(self.input.len());
        self.input.drain(..count).collect()
    }

    /// Makes closing it a reset.
    pub(crate) fn reset(self) {
        let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }
}

//! A mesh under test: `leno up` as a child, with folders and an address of its own.

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Which proxy the mesh runs.
#[derive(Clone, Debug)]
pub(crate) enum Proxy {
    /// Ours.
    Leno,
    /// The real Envoy.
    Envoy(PathBuf),
}

/// Longest wait for anything. Debug builds on a busy machine are slow; a test that waits this
/// long has failed.
const PATIENCE: Duration = Duration::from_secs(90);

/// A running mesh; dropping it stops it.
pub(crate) struct Mesh {
    child: Child,
    name: String,
    output: Arc<Output>,
    /// Where gateways are published.
    pub(crate) address: Ipv4Addr,
    /// A folder that the mesh reads beside the sample; tests put rules into it.
    pub(crate) rules: PathBuf,
    folder: tempfile::TempDir,
}

/// What the mesh has printed.
#[derive(Default)]
struct Output {
    lines: Mutex<Vec<String>>,
    more: Condvar,
}

/// The root of the repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The binary under test.
pub(crate) fn leno() -> Command {
    Command::new(env!("CARGO_BIN_EXE_leno"))
}

/// Whether this machine can have network namespaces; says so if not.
pub(crate) fn namespaces() -> bool {
    match leno_node::support() {
        leno_node::Support::Namespaces(_) => true,
        leno_node::Support::None { reason } => {
            eprintln!("skipped: no network namespaces here: {reason}");
            false
        }
    }
}

impl Mesh {
    /// Starts a mesh on `sample` (a folder below samples/) and waits until it is ready.
    pub(crate) fn up(sample: &str, proxy: &Proxy) -> Mesh {
        Mesh::up_with(&[&repository().join("samples").join(sample)], proxy, &[])
    }

    /// Starts a mesh on folders, with further arguments, and waits until it is ready.
    pub(crate) fn up_with(folders: &[&Path], proxy: &Proxy, arguments: &[&str]) -> Mesh {
        let folder = tempfile::tempdir().unwrap();
        let rules = folder.path().join("rules");
        std::fs::create_dir(&rules).unwrap();
        let address = free_address();
        let name = format!("e2e-{}-{}", std::process::id(), address.octets()[3]);
        let mut command = leno();
        command.arg("up").args(folders).arg(&rules).args([
            "--name",
            &name,
            "--address",
            &address.to_string(),
        ]);
        if let Proxy::Envoy(path) = proxy {
            command.arg("--proxy").arg(format!("envoy={}", path.display()));
        }
        command.args(arguments).env("XDG_RUNTIME_DIR", folder.path());
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = Arc::new(Output::default());
        let streams: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let output = Arc::clone(&output);
            std::thread::spawn(move || output.collect(BufReader::new(stream)));
        }
        let mesh = Mesh { child, name, output, address, rules, folder };
        mesh.wait_for_line("ready in");
        mesh
    }

    /// The URL of a path at the published gateway.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}:8080{path}", self.address)
    }

    /// Waits until a line with `text` was printed, and returns the line.
    pub(crate) fn wait_for_line(&self, text: &str) -> String {
        self.output.wait(|lines| lines.iter().find(|line| line.contains(text)).cloned()).unwrap_or_else(
            || {
                panic!("no line with {text:?} in\n{}", self.text());
            },
        )
    }

    /// Waits until a line is as hoped; `what` says so if it never is.
    pub(crate) fn wait_for(&self, what: &str, good: impl Fn(&str) -> bool) -> String {
        let found = self.output.wait(|lines| lines.iter().find(|line| good(line)).cloned());
        found.unwrap_or_else(|| panic!("no {what} in\n{}", self.text()))
    }

    /// Waits until a line that is printed from now on is as hoped.
    pub(crate) fn wait_for_next(&self, what: &str, good: impl Fn(&str) -> bool) {
        let seen = self.lines().len();
        let found = self.output.wait(|lines| lines.iter().skip(seen).find(|line| good(line)).cloned());
        assert!(found.is_some(), "no {what} in\n{}", self.text());
    }

    /// All processes of the mesh but its first, as the host sees them.
    pub(crate) fn processes(&self) -> Vec<u32> {
        descendants(self.pid())
    }

    /// Kills one of the mesh's processes that has a word in its command line.
    pub(crate) fn kill(&self, word: &str) {
        let has_word = |pid: &u32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.split(|byte| *byte == 0).any(|it| it == word.as_bytes())
        };
        let pid = self.processes().into_iter().find(has_word).expect("a process with this word");
        let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }

    /// How many lines with `text` were printed so far.
    pub(crate) fn count_lines(&self, text: &str) -> usize {
        self.output
            .lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter(|line| line.contains(text))
            .count()
    }

    /// All lines so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.output.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All lines so far, as one text.
    pub(crate) fn text(&self) -> String {
        self.lines().join("\n")
    }

    /// Waits for the mesh to end by itself; whether it ended well and left its folder empty.
    pub(crate) fn stop_was_clean(&mut self) -> bool {
        let status = self.child.wait().unwrap();
        let left: Vec<_> =
            std::fs::read_dir(self.folder.path().join("leno")).into_iter().flatten().flatten().collect();
        status.success() && left.is_empty()
    }

    /// Puts a rule file of the sample into the mesh (or takes its place).
    pub(crate) fn apply(&self, file: &str) {
        let source = repository().join("samples").join(file);
        let text =
            std::fs::read_to_string(&source).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
        self.write(source.file_name().unwrap().to_str().unwrap(), &text);
    }

    /// Writes a file into the mesh's rules as editors do: beside it, then renamed.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let beside = self.folder.path().join("edited");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(&beside, self.rules.join(name)).unwrap();
    }

    /// Another verb (`ps`, `logs`, `stop`) on this mesh; its standard output.
    pub(crate) fn verb(&self, arguments: &[&str]) -> String {
        let mut command = leno();
        let (verb, rest) = arguments.split_first().unwrap();
        command.arg(verb).args(["--name", &self.name]).args(rest).env("XDG_RUNTIME_DIR", self.folder.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "leno {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The process of the mesh.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the mesh as Ctrl-C does, and waits.
    pub(crate) fn stop(&mut self) -> std::process::ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
        }
        if std::thread::panicking() {
            eprintln!("the mesh printed:\n{}", self.text());
        }
    }
}

impl Output {
    fn collect(&self, stream: impl BufRead) {
        for line in stream.lines().map_while(Result::ok) {
            self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            self.more.notify_all();
        }
    }

    fn wait<T>(&self, look: impl Fn(&[String]) -> Option<T>) -> Option<T> {
        let end = Instant::now() + PATIENCE;
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = look(&lines) {
                return Some(found);
            }
            let left = end.checked_duration_since(Instant::now())?;
            lines = self.more.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A loopback address for one mesh: gateways are published on fixed ports, so that each mesh
/// of a test run needs its own.
fn free_address() -> Ipv4Addr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Ipv4Addr::new(127, high.max(1), low, number as u8)
}

/// All processes below one.
fn descendants(root: u32) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // pid (name) state parent ...; the name may hold anything.
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<u32>().ok());
        parents.extend(parent.map(|parent| (pid, parent)));
    }
    let mut found = vec![root];
    let mut index = 0;
    while let Some(parent) = found.get(index).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        index += 1;
    }
    found.split_off(1)
}

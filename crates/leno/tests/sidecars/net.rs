//! Network namespaces: a node, and pods on it that have addresses of both families, or of IPv6 only.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use std::io::Write as _;

use leno_node::intercept;

/// The machine that the pods are on: what is not in the mesh.
pub(crate) const NODE: &str = "10.80.0.1";
pub(crate) const NODE_V6: &str = "fd80::1";
/// Another address of it, of ranges that are excluded.
pub(crate) const EXCLUDED: &str = "10.81.0.1";
pub(crate) const EXCLUDED_V6: &str = "fd81::1";

/// A network namespace, with what `ip netns exec` gives a program in it as its /etc/resolv.conf.
pub(crate) struct Namespace(pub(crate) String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
        let _ = std::fs::remove_dir_all(self.resolver());
    }
}

/// What a program has said, and the code that it ended with.
pub(crate) struct Said {
    pub(crate) text: String,
    pub(crate) errors: String,
    pub(crate) code: i32,
}

impl Said {
    fn of(output: &Output) -> Said {
        Said {
            text: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        }
    }
}

impl std::fmt::Debug for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "code {}\n{}\n{}", self.code, self.text, self.errors)
    }
}

impl Namespace {
    fn new(what: &str) -> Result<Namespace, String> {
        let name = format!("leno{}-{what}", std::process::id());
        ip(&format!("netns add {name}"))?;
        let made = Namespace(name);
        ip(&format!("-n {} link set lo up", made.0))?;
        Ok(made)
    }

    fn resolver(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.0)
    }

    fn resolve_by(&self, server: &str) -> Result<(), String> {
        let text = format!(
            "nameserver {server}\nsearch default.svc.cluster.local svc.cluster.local cluster.local\n\
             options ndots:5 timeout:20\n"
        );
        std::fs::create_dir_all(self.resolver())
            .and_then(|()| std::fs::write(self.resolver().join("resolv.conf"), text))
            .map_err(|error| format!("{}: {error}", self.resolver().display()))
    }

    /// Runs a closure in it.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        intercept::within(&Path::new("/var/run/netns").join(&self.0), work).expect("the namespace is there")
    }

    /// A program in it, on its own machine as far as it can see.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }

    /// Runs a program to its end, or for a minute.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Said {
        self.fed(program, arguments, b"")
    }

    /// The same for one that reads.
    pub(crate) fn fed(&self, program: &str, arguments: &[&str], input: &[u8]) -> Said {
        let mut command = self.command("timeout");
        command.args(["60", program]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        // Who does not want it need not read it.
        let _ = child.stdin.take().expect("a pipe").write_all(input);
        Said::of(&child.wait_with_output().expect("it ends"))
    }

    /// The same for users of the mesh who are not the proxy, but known by a number of their own.
    pub(crate) fn as_user(&self, user: u32, program: &str, arguments: &[&str]) -> Said {
        let (user, group) = (format!("--reuid={user}"), format!("--regid={user}"));
        let all: Vec<&str> =
            [user.as_str(), &group, "--clear-groups", program].iter().chain(arguments).copied().collect();
        self.run("setpriv", &all)
    }

    /// `curl`, which says what was answered, whatever the status.
    pub(crate) fn curl(&self, arguments: &[&str]) -> Said {
        let all: Vec<&str> = ["-sS", "-g", "--max-time", "50"].iter().chain(arguments).copied().collect();
        self.run("curl", &all)
    }
}

/// A pod's number, from which its addresses come.
pub(crate) fn v4(pod: usize) -> String {
    format!("10.80.{pod}.2")
}

pub(crate) fn v6(pod: usize) -> String {
    format!("fd80:{pod}::2")
}

/// Which families a pod has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Addresses {
    Both,
    V6,
}

fn ip(line: &str) -> Result<(), String> {
    let output = Command::new("ip").args(line.split(' ')).output().map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("ip {line}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// Whether there can be namespaces.
pub(crate) fn possible() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("network namespaces take root".to_owned());
    }
    match has("curl") && has("setpriv") {
        true => Ok(()),
        false => Err("it takes curl and setpriv".to_owned()),
    }
}

/// Whether a program is there.
pub(crate) fn has(program: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(program).exists())
}

/// A node, and pods on it, numbered from 1: the machine routes between them.
pub(crate) fn net(what: &str, pods: &[(&str, Addresses)]) -> Result<Vec<Namespace>, String> {
    let node = Namespace::new(&format!("{what}node"))?;
    for line in [
        format!("addr add {NODE}/32 dev lo"),
        format!("addr add {EXCLUDED}/32 dev lo"),
        format!("addr add {NODE_V6}/128 dev lo nodad"),
        format!("addr add {EXCLUDED_V6}/128 dev lo nodad"),
    ] {
        ip(&format!("-n {} {line}", node.0))?;
    }
    // What is under /proc/sys/net is that of the thread.
    for family in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        node.within(|| std::fs::write(Path::new("/proc/sys/net").join(family), "1"))
            .map_err(|error| format!("forwarding: {error}"))?;
    }
    let mut made = vec![node];
    for (index, &(name, addresses)) in pods.iter().enumerate() {
        let number = index + 1;
        let pod = Namespace::new(&format!("{what}{name}"))?;
        let (node, name) = (&made[0].0, &pod.0);
        let mut lines = vec![format!("-n {name} link add eth0 type veth peer name pod{number} netns {node}")];
        if addresses == Addresses::Both {
            lines.push(format!("-n {name} addr add {}/24 dev eth0", v4(number)));
            lines.push(format!("-n {node} addr add 10.80.{number}.1/24 dev pod{number}"));
        }
        lines.push(format!("-n {name} addr add {}/64 dev eth0 nodad", v6(number)));
        lines.push(format!("-n {node} addr add fd80:{number}::1/64 dev pod{number} nodad"));
        lines.push(format!("-n {name} link set eth0 up"));
        lines.push(format!("-n {node} link set pod{number} up"));
        if addresses == Addresses::Both {
            lines.push(format!("-n {name} route add default via 10.80.{number}.1"));
        }
        lines.push(format!("-n {name} -6 route add default via fd80:{number}::1"));
        lines.iter().try_for_each(|line| ip(line))?;
        pod.resolve_by(if addresses == Addresses::Both { NODE } else { NODE_V6 })?;
        made.push(pod);
    }
    Ok(made)
}

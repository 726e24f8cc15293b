//! A mesh of processes without a cluster: `leno pilot` over a folder of YAML, and `leno agent` with the files and the
//! variables that a kubelet would give it. Where they listen and in which namespaces they run is the test's to say.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::process::{Killed, eventually};

/// The folder that everything is in: configuration, keys, logs.
#[derive(Debug)]
pub struct Mesh {
    program: PathBuf,
    folder: tempfile::TempDir,
}

/// The namespace of a service account that is `NAMESPACE/NAME`, or a name in `default`, and its name.
fn parts(account: &str) -> (&str, &str) {
    account.split_once('/').unwrap_or(("default", account))
}

/// A Pod with a sidecar, as an API server would show it: its addresses, its one label (`app`), its service account
/// (`NAME` or `NAMESPACE/NAME`), after which it is called.
pub fn pod(account: &str, addresses: &[String]) -> Value {
    let (namespace, name) = parts(account);
    let all: Vec<Value> = addresses.iter().map(|address| json!({ "ip": address })).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("{name}-0"),
            "namespace": namespace,
            // Injection says by it that there is a sidecar.
            "labels": { "app": name, "security.istio.io/tlsMode": "istio" },
        },
        "spec": { "serviceAccountName": name, "containers": [{ "name": "app", "image": "app" }] },
        "status": {
            "phase": "Running",
            "podIP": addresses.first(),
            "podIPs": all,
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

/// A folder with these programs, which every user may run there: the one that they are built in may be private.
///
/// # Panics
/// If there is no place for it.
pub fn shared<'a>(programs: impl IntoIterator<Item = &'a Path>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    open(folder.path());
    for from in programs {
        let to = folder.path().join(from.file_name().expect("a file"));
        std::fs::hard_link(from, &to).or_else(|_| std::fs::copy(from, &to).map(drop)).expect("copied");
    }
    folder
}

/// Everybody may look into a folder.
fn open(folder: &Path) {
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).expect("ours");
}

impl Mesh {
    /// A mesh of these objects.
    ///
    /// # Panics
    /// If there is no place for a folder.
    pub fn new(program: &Path, objects: &[Value]) -> Mesh {
        let mesh = Mesh { program: program.to_owned(), folder: tempfile::tempdir().expect("a folder") };
        // Proxies may be other users.
        open(mesh.folder());
        std::fs::create_dir(mesh.folder().join("mesh")).expect("a folder");
        mesh.write(objects);
        mesh
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Replaces its objects.
    ///
    /// # Panics
    /// If that cannot be written.
    pub fn write(&self, objects: &[Value]) {
        self.write_as("mesh.yaml", objects);
    }

    /// Replaces those of a file of theirs.
    ///
    /// # Panics
    /// If that cannot be written.
    pub fn write_as(&self, file: &str, objects: &[Value]) {
        let text: String = objects.iter().map(|object| format!("---\n{object}\n")).collect();
        let draft = self.folder().join("draft");
        std::fs::write(&draft, text).expect("writable");
        std::fs::rename(draft, self.folder().join("mesh").join(file)).expect("writable");
    }

    /// The program.
    pub fn program(&self) -> Command {
        Command::new(&self.program)
    }

    /// A control plane over the folder that has an authority and takes join tokens, for proxies at this address only.
    pub fn pilot(&self, address: &str) -> Command {
        self.monitored_pilot(address, "127.0.0.1:0")
    }

    /// One that tells of itself at a second address.
    pub fn monitored_pilot(&self, address: &str, monitoring: &str) -> Command {
        let mut command = self.program();
        command.args(["pilot", "--grpcAddr=", &format!("--monitoringAddr={monitoring}"), "--dir"]);
        command.arg(self.folder().join("mesh")).arg(format!("--secureGRPCAddr={address}"));
        command.arg("--joinTokens").arg(self.folder().join("tokens"));
        command.env("ROOT_CA_DIR", self.folder().join("ca"));
        command
    }

    /// Waits until the authority has a root.
    pub fn until_rooted(&self) {
        self.until("there are roots", || self.roots_file().exists());
    }

    /// Where the authority says what is to be trusted, or where that was given to it.
    fn roots_file(&self) -> PathBuf {
        let given = self.folder().join("ca/root-cert.pem");
        if given.exists() { given } else { self.folder().join("ca/roots.pem") }
    }

    /// What is trusted.
    ///
    /// # Panics
    /// If there are no roots yet.
    pub fn roots(&self) -> String {
        std::fs::read_to_string(self.roots_file()).expect("roots")
    }

    /// Does what a kubelet does with the roots that the control plane has written for everybody: `workload` is the
    /// folder of an agent.
    ///
    /// # Panics
    /// If that cannot be written.
    pub fn hand_out_roots(&self, workload: &Path) {
        let place = workload.join("var/run/secrets/istio");
        std::fs::create_dir_all(&place).expect("a folder");
        std::fs::copy(self.roots_file(), place.join("draft")).expect("roots");
        std::fs::rename(place.join("draft"), place.join("root-cert.pem")).expect("writable");
    }

    /// Makes the folder of an agent, which is returned: the roots, a token of the service account (`NAME` or
    /// `NAMESPACE/NAME`), the Pod's label.
    ///
    /// # Panics
    /// If that cannot be written.
    pub fn workload(&self, account: &str) -> PathBuf {
        let (namespace, name) = parts(account);
        let folder = self.folder().join(name);
        self.hand_out_roots(&folder);
        for part in ["var/run/secrets/tokens", "etc/istio/pod"] {
            std::fs::create_dir_all(folder.join(part)).expect("a folder");
        }
        let mut token = self.program();
        token
            .args(["token", "create", "-n", namespace, "--service-account", name, "--dir"])
            .arg(self.folder().join("tokens"));
        let token = token.output().expect("it runs");
        assert!(token.status.success(), "{}", String::from_utf8_lossy(&token.stderr));
        std::fs::write(folder.join("var/run/secrets/tokens/istio-token"), token.stdout).expect("writable");
        std::fs::write(folder.join("etc/istio/pod/labels"), format!("app=\"{name}\"\n")).expect("writable");
        folder
    }

    /// What an agent finds in its environment; `config` is its ProxyConfig.
    pub fn environment(&self, account: &str, address: &str, config: &Value) -> Vec<(&'static str, String)> {
        let (namespace, name) = parts(account);
        vec![
            ("POD_NAME", format!("{name}-0")),
            ("POD_NAMESPACE", namespace.to_owned()),
            ("INSTANCE_IP", address.to_owned()),
            ("SERVICE_ACCOUNT", name.to_owned()),
            ("ISTIO_META_WORKLOAD_NAME", name.to_owned()),
            ("ISTIOD_SAN", "istiod.istio-system.svc".to_owned()),
            ("PROXY_CONFIG", config.to_string()),
        ]
    }

    /// Starts a process; what it says can be found in [`Mesh::logs`].
    pub fn start(&self, command: &mut Command, name: &str) -> Killed {
        Killed::start(command, &self.folder().join(format!("{name}.log")))
    }

    /// Waits until something is so.
    ///
    /// # Panics
    /// If it does not come, or a proxy ends meanwhile, with all that was said.
    pub fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let mut ended = false;
        let come = eventually(what, || {
            let is_so = is_so();
            ended = !is_so && self.logs().contains("the proxy has ended");
            is_so || ended
        });
        match come {
            Ok(()) if ended => panic!("{what}: a proxy has ended\n{}", self.logs()),
            Ok(()) => {}
            Err(late) => panic!("{late}\n{}", self.logs()),
        }
    }

    /// All that was said.
    pub fn logs(&self) -> String {
        let entries = std::fs::read_dir(self.folder()).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|end| end == "log"));
        files.sort();
        let said = files.iter().map(|path| {
            format!("{}:\n{}\n", path.display(), std::fs::read_to_string(path).unwrap_or_default())
        });
        said.collect()
    }
}

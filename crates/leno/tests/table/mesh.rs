//! A mesh of the test: a folder of YAML with its pods, names and table.
//!
//! - `*.yaml`: what users write;
//! - `pods.txt`: a pod a line, `NAME ADDRESS LABEL=VALUE...`, and after that words: `sidecar` or
//!   `gateway` (a proxy runs beside or in it), `ns=`, `node=`, `account=`, `certificates` (its agent
//!   has some), `unready`, `other` (it runs the product that the run is not about), `ip6=`;
//! - `hosts`: addresses of names, as in /etc/hosts;
//! - `environment`: variables of the control plane, as `NAME=VALUE`;
//! - `tokens.yaml`: claims of tokens, by the name that stands for them in the table;
//! - `table.txt`: the rows;
//! - folders: YAML that takes the place of files, or comes in addition, when the table says `@ FOLDER`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::{fs, io};

use leno_api::yaml::{self, Dialect};
use serde_json::{Value, json};

use crate::row::{self, Step};
use crate::token;

/// A mesh, read.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub(crate) pods: Vec<Pod>,
    /// Addresses of services, by full name.
    services: BTreeMap<String, IpAddr>,
    /// Names outside of the mesh.
    hosts: Vec<(Ipv4Addr, String)>,
    pub(crate) steps: Vec<Step>,
    /// Variables of the control plane.
    pub(crate) environment: Vec<(String, String)>,
    files: Vec<(String, String)>,
    /// What is written later, by the names of folders.
    changes: BTreeMap<String, Vec<(String, String)>>,
}

/// A pod.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) account: String,
    pub(crate) node: String,
    pub(crate) proxy: Option<Role>,
    pub(crate) certificates: bool,
    /// Whether its proxy is of the product that the run is not about.
    pub(crate) other: bool,
    /// An address of the other family.
    pub(crate) ip6: Option<Ipv6Addr>,
    ready: bool,
}

/// What a pod's proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Sidecar,
    Gateway,
}

/// The folder of all meshes.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/table/meshes")
}

/// The names of all meshes.
pub(crate) fn all() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

impl Mesh {
    /// Reads the mesh with a name; its certificates will be in `certificates`.
    pub(crate) fn read(name: &str, certificates: &Path) -> Result<Mesh, String> {
        let folder = folder().join(name);
        let text = |file: &str| fs::read_to_string(folder.join(file));
        let pods = text("pods.txt").map_err(|error| format!("pods.txt: {error}"))?;
        let lines = pods.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        let pods = lines.map(Pod::read).collect::<Result<Vec<_>, _>>()?;
        let mut files = vec![("pods-of-the-table.yaml".to_owned(), list(&pods))];
        let mut services = BTreeMap::new();
        for (file, text) in yaml_files(&folder, certificates)? {
            for object in documents(&text).map_err(|error| format!("{file}: {error}"))? {
                find_services(&object, &mut services);
            }
            files.push((file, text));
        }
        let mut hosts = Vec::new();
        for line in text("hosts").unwrap_or_default().lines() {
            let mut words = line.split_whitespace();
            let Some(Ok(address)) = words.next().map(str::parse) else { continue };
            hosts.extend(words.map(|name| (address, name.to_owned())));
        }
        let names = match text("tokens.yaml") {
            Ok(text) => token::read(&documents(&text)?),
            Err(_) => BTreeMap::new(),
        };
        let table = text("table.txt").map_err(|error| format!("table.txt: {error}"))?;
        let steps = row::read(&table, &names).map_err(|error| format!("{name}/table.txt: {error}"))?;
        let mut changes = BTreeMap::new();
        for change in steps.iter().filter_map(|step| step.change.clone()) {
            let files = yaml_files(&folder.join(&change), certificates)?;
            changes.insert(change, files);
        }
        let environment = text("environment").unwrap_or_default();
        let environment = environment.lines().filter_map(|line| line.split_once('='));
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok(Mesh { pods, services, hosts, steps, environment, files, changes })
    }

    /// How many rows there are.
    pub(crate) fn count(&self) -> usize {
        self.steps.iter().flat_map(|step| &step.chains).map(Vec::len).sum()
    }

    /// Writes what a change brings.
    pub(crate) fn change(&self, name: &str, to: &Path) -> io::Result<()> {
        for (name, text) in self.changes.get(name).into_iter().flatten() {
            fs::write(to.join("draft"), text)?;
            fs::rename(to.join("draft"), to.join(name))?;
        }
        Ok(())
    }

    /// Writes what the control plane is to read.
    pub(crate) fn write(&self, to: &Path) -> io::Result<()> {
        self.files.iter().try_for_each(|(name, text)| fs::write(to.join(name), text))
    }

    /// Writes /etc/hosts.
    pub(crate) fn write_hosts(&self, to: &Path) -> io::Result<()> {
        let lines: String = self.hosts.iter().map(|(address, name)| format!("{address} {name}\n")).collect();
        fs::write(to, format!("127.0.0.1 localhost\n{lines}"))
    }

    /// The pod with a name.
    pub(crate) fn pod(&self, name: &str) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.name == name)
    }

    /// The address that a client in a namespace finds for a name.
    pub(crate) fn find(&self, name: &str, namespace: &str) -> Option<IpAddr> {
        if let Ok(address) = name.parse() {
            return Some(address);
        }
        let name = name.trim_end_matches('.');
        if let Some(Ok(address)) = name.strip_prefix('[').map(|rest| rest.trim_end_matches(']').parse()) {
            return Some(IpAddr::V6(address));
        }
        let suffixes = [
            String::new(),
            format!(".{namespace}.svc.cluster.local"),
            ".svc.cluster.local".to_owned(),
            ".cluster.local".to_owned(),
        ];
        let service = suffixes.iter().find_map(|suffix| self.services.get(&format!("{name}{suffix}")));
        let host = || self.hosts.iter().find(|(_, host)| host == name).map(|(address, _)| (*address).into());
        let pod = || self.pod(name).map(|pod| pod.address.into());
        service.copied().or_else(host).or_else(pod)
    }

    /// All names of an address.
    pub(crate) fn names(&self, address: IpAddr) -> Vec<&str> {
        let pods = self.pods.iter().filter(|pod| IpAddr::V4(pod.address) == address);
        let hosts = self.hosts.iter().filter(|(host, _)| IpAddr::V4(*host) == address);
        pods.map(|pod| pod.name.as_str()).chain(hosts.map(|(_, name)| name.as_str())).collect()
    }
}

/// The YAML of a folder, with its placeholders filled, in the order of the files' names.
fn yaml_files(folder: &Path, certificates: &Path) -> Result<Vec<(String, String)>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !file.ends_with(".yaml") || file == "tokens.yaml" {
            continue;
        }
        let text = fs::read_to_string(&path).map_err(|error| format!("{file}: {error}"))?;
        files.push((file, fill(&text, certificates)));
    }
    Ok(files)
}

/// Fills placeholders: the folder of certificates, what is in it (`$PEM(name)`, for blocks of YAML at
/// a depth of four), and keys of tokens.
fn fill(text: &str, certificates: &Path) -> String {
    let text = text
        .replace("$CERTIFICATES", &certificates.display().to_string())
        .replace("$KEYS", &token::keys())
        .replace("$NEXT_KEYS", &token::next_keys());
    let mut filled = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once("$PEM(") {
        let (file, after) = after.split_once(')').unwrap_or((after, ""));
        filled.push_str(before);
        // Where only the rows are counted there are none.
        let pem = fs::read_to_string(certificates.join(file)).unwrap_or_default();
        filled.push_str(&pem.trim().replace('\n', "\n    "));
        rest = after;
    }
    filled + rest
}

fn documents(text: &str) -> Result<Vec<Value>, String> {
    let nodes = yaml::parse(text, Dialect::Kubernetes).map_err(|error| format!("{error:?}"))?;
    let value = |node| yaml::from_node::<Value>(node).map(|(value, _)| value);
    nodes.iter().map(|node| value(node).map_err(|error| format!("{error:?}"))).collect()
}

fn find_services(object: &Value, services: &mut BTreeMap<String, IpAddr>) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    match text("/kind") {
        Some("Service") => {
            let name = text("/metadata/name").unwrap_or_default();
            let namespace = text("/metadata/namespace").unwrap_or("default");
            if let Some(Ok(address)) = text("/spec/clusterIP").map(str::parse) {
                services.insert(format!("{name}.{namespace}.svc.cluster.local"), address);
            }
        }
        Some("ServiceEntry") => {
            let list = |pointer: &str| object.pointer(pointer).and_then(Value::as_array);
            let address = list("/spec/addresses").and_then(|all| all.first()?.as_str()?.parse().ok());
            let Some(address) = address else { return };
            for host in list("/spec/hosts").into_iter().flatten().filter_map(Value::as_str) {
                services.insert(host.to_owned(), address);
            }
        }
        _ => {}
    }
}

/// All pods, as the source of files reads them.
fn list(pods: &[Pod]) -> String {
    let documents: Vec<String> = pods.iter().map(|pod| format!("---\n{}\n", pod.object())).collect();
    documents.concat()
}

impl Pod {
    fn read(line: &str) -> Result<Pod, String> {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default().to_owned();
        let address = words.next().and_then(|word| word.parse().ok());
        let mut pod = Pod {
            name,
            namespace: "default".to_owned(),
            address: address.ok_or_else(|| format!("{line:?}: no address"))?,
            labels: BTreeMap::new(),
            account: "default".to_owned(),
            node: String::new(),
            proxy: None,
            certificates: false,
            other: false,
            ip6: None,
            ready: true,
        };
        for word in words {
            match word.split_once('=') {
                Some(("ns", value)) => value.clone_into(&mut pod.namespace),
                Some(("node", value)) => value.clone_into(&mut pod.node),
                Some(("ip6", value)) => {
                    pod.ip6 = Some(value.parse().map_err(|_| format!("{line:?}: {value:?} is no address"))?);
                }
                Some(("account", value)) => value.clone_into(&mut pod.account),
                Some((label, value)) => drop(pod.labels.insert(label.to_owned(), value.to_owned())),
                None => match word {
                    "sidecar" => pod.proxy = Some(Role::Sidecar),
                    "gateway" => pod.proxy = Some(Role::Gateway),
                    "certificates" => pod.certificates = true,
                    "unready" => pod.ready = false,
                    "other" => pod.other = true,
                    _ => return Err(format!("{line:?}: what is {word:?}?")),
                },
            }
        }
        if pod.certificates && pod.proxy == Some(Role::Sidecar) {
            pod.labels.insert("security.istio.io/tlsMode".to_owned(), "istio".to_owned());
        }
        Ok(pod)
    }

    /// Its identity in the mesh.
    pub(crate) fn identity(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.namespace, self.account)
    }

    /// All its addresses.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let second = self.ip6.map(|address| address.to_string());
        [self.address.to_string()].into_iter().chain(second).collect()
    }

    fn object(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": self.labels},
            "spec": {
                "serviceAccountName": self.account,
                "nodeName": self.node,
                "containers": [{"name": "app", "image": "app"}],
            },
            "status": {
                "phase": "Running",
                "podIP": self.address.to_string(),
                "podIPs": self.addresses().iter().map(|ip| json!({ "ip": ip })).collect::<Vec<_>>(),
                "conditions": [{"type": "Ready", "status": if self.ready { "True" } else { "False" }}],
            },
        })
    }
}

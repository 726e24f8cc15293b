//! The plugin on a node: its program, the kubeconfig that it reads, and its place in the configuration of the node's
//! network. Each is put right whenever it is looked at and is not as it should be, and only then written, as a whole:
//! others watch these folders too.

use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::chain;
use super::config::KUBECONFIG;

/// Where everything is.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The program that is copied.
    pub(crate) program: PathBuf,
    /// Where runtimes look for plugins.
    pub(crate) program_folder: PathBuf,
    /// The configurations of networks.
    pub(crate) networks: PathBuf,
    /// The file that the plugin is chained into; empty: the one in use.
    pub(crate) name: String,
    /// Whether the plugin is part of another's list, or a network of its own.
    pub(crate) chained: bool,
    /// A file of our own into which the list goes, so that another's file stays as it is.
    pub(crate) own_name: Option<String>,
    /// Whether configuration of our own may be read by the group.
    pub(crate) group_read: bool,
    /// The folder that plugin and DaemonSet share.
    pub(crate) folder: PathBuf,
    /// The service account: `token`, `ca.crt`.
    pub(crate) account: PathBuf,
    /// The authority of the API server, if not that of the account.
    pub(crate) authority: Option<PathBuf>,
    pub(crate) skip_tls_verify: bool,
    pub(crate) kubeconfig_mode: u32,
    /// The API server's address, such as `https://10.96.0.1:443`.
    pub(crate) server: String,
    pub(crate) log_level: String,
    pub(crate) excluded_namespaces: Vec<String>,
    pub(crate) pod_namespace: String,
    pub(crate) native_nftables: bool,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// All is in place.
    Installed,
    /// There is no network to be chained into yet.
    Waiting,
}

/// Which step failed, in istio-cni's words for metrics, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) result: &'static str,
    pub(crate) why: String,
}

const MARK: &str = ".istio-cni.tmp";

impl Settings {
    /// Puts right what is not.
    ///
    /// # Errors
    /// The step that failed.
    pub(crate) fn ensure(&self) -> Result<State, Failed> {
        let failed = |result: &'static str| move |why: String| Failed { result, why };
        self.copy_program().map_err(failed("COPY_BINARIES_FAILURE"))?;
        self.write_kubeconfig().map_err(failed("CREATE_KUBECONFIG_FAILURE"))?;
        self.write_network().map_err(failed("CREATE_CNI_CONFIG_FAILURE"))
    }

    /// Takes away what [`Settings::ensure`] has put there. The configuration goes first, then what it needs.
    ///
    /// # Errors
    /// All that failed; the rest is gone.
    pub(crate) fn remove(&self) -> Result<(), String> {
        let mut faults = Vec::new();
        if let Err(why) = self.remove_network() {
            faults.push(why);
        }
        for path in [self.folder.join(KUBECONFIG), self.program_folder.join(chain::TYPE)] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    faults.push(format!("{}: {error}", path.display()));
                }
                _ => {}
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
    }

    /// The folders and files whose changes matter.
    pub(crate) fn watched(&self) -> [&Path; 3] {
        [&self.networks, &self.account, &self.program_folder]
    }

    fn copy_program(&self) -> Result<(), String> {
        let target = self.program_folder.join(chain::TYPE);
        let failed = |error: io::Error| format!("{}: {error}", target.display());
        let program =
            std::fs::read(&self.program).map_err(|error| format!("{}: {error}", self.program.display()))?;
        if std::fs::read(&target).is_ok_and(|there| there == program) {
            return Ok(());
        }
        write(&target, &program, 0o755).map_err(failed)?;
        tracing::info!("copied the plugin to {}", target.display());
        Ok(())
    }

    fn write_kubeconfig(&self) -> Result<(), String> {
        let read =
            |path: PathBuf| std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()));
        let token =
            String::from_utf8(read(self.account.join("token"))?).map_err(|_| "the token is no text")?;
        let mut cluster = json!({ "server": self.server });
        if self.skip_tls_verify {
            cluster["insecure-skip-tls-verify"] = true.into();
        } else {
            let file = self.authority.clone().unwrap_or_else(|| self.account.join("ca.crt"));
            cluster["certificate-authority-data"] = leno_base::base64::encode(&read(file)?).into();
        }
        // YAML, as JSON is part of it.
        let text = chain::write(&json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "local", "cluster": cluster }],
            "users": [{ "name": "istio-cni", "user": { "token": token.trim() } }],
            "contexts": [
                { "name": "istio-cni-context", "context": { "cluster": "local", "user": "istio-cni" } },
            ],
            "current-context": "istio-cni-context",
        }));
        let path = self.folder.join(KUBECONFIG);
        if write_if_other(&path, &text, self.kubeconfig_mode)
            .map_err(|error| format!("{}: {error}", path.display()))?
        {
            tracing::info!("wrote {}", path.display());
        }
        Ok(())
    }

    /// The plugin's own part.
    fn plugin(&self) -> Value {
        json!({
            "cniVersion": "0.3.1",
            "name": chain::TYPE,
            "type": chain::TYPE,
            "plugin_log_level": self.log_level,
            "cni_agent_run_dir": self.folder,
            "ambient_enabled": false,
            "exclude_namespaces": self.excluded_namespaces,
            "pod_namespace": self.pod_namespace,
            "native_nftables": self.native_nftables,
        })
    }

    fn write_network(&self) -> Result<State, String> {
        let own_mode = if self.group_read { 0o640 } else { 0o600 };
        if !self.chained {
            let name = if self.name.is_empty() { "YYY-istio-cni.conf" } else { &self.name };
            let path = self.networks.join(name);
            self.put(&path, &chain::write(&self.plugin()), own_mode)?;
            return Ok(State::Installed);
        }
        let Some(name) = self.primary()? else { return Ok(State::Waiting) };
        let path = self.networks.join(&name);
        let existing =
            std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let with =
            chain::insert(&existing, &self.plugin()).map_err(|why| format!("{}: {why}", path.display()))?;
        if let Some(own) = &self.own_name {
            if own.as_str() > name.as_str() {
                tracing::warn!("{own} comes after {name}: runtimes will not use it");
            }
            self.put(&self.networks.join(own), &with, own_mode)?;
            return Ok(State::Installed);
        }
        let mode = std::fs::metadata(&path).map_or(own_mode, |file| file.permissions().mode() & 0o7777);
        match name.strip_suffix(".conf") {
            None => self.put(&path, &with, mode)?,
            Some(stem) => {
                // A list must be called one.
                self.put(&self.networks.join(format!("{stem}.conflist")), &with, mode)?;
                std::fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            }
        }
        Ok(State::Installed)
    }

    /// The file that the plugin is chained into, if there is one already.
    fn primary(&self) -> Result<Option<String>, String> {
        let names =
            chain::names(&self.networks).map_err(|error| format!("{}: {error}", self.networks.display()))?;
        let mut others = names.into_iter().filter(|name| Some(name) != self.own_name.as_ref());
        if self.name.is_empty() {
            return Ok(others.next());
        }
        // With either of the two endings.
        let stem = |name: &str| name.trim_end_matches("list").to_owned();
        Ok(others.find(|name| stem(name) == stem(&self.name)))
    }

    fn put(&self, path: &Path, text: &str, mode: u32) -> Result<(), String> {
        let wrote =
            write_if_other(path, text, mode).map_err(|error| format!("{}: {error}", path.display()))?;
        if wrote {
            tracing::info!("wrote {}", path.display());
        }
        Ok(())
    }

    fn remove_network(&self) -> Result<(), String> {
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |error: io::Error| format!("{path}: {error}")
        };
        let own = match (&self.own_name, self.chained) {
            (Some(own), _) => Some(own.as_str()),
            (None, false) if self.name.is_empty() => Some("YYY-istio-cni.conf"),
            (None, false) => Some(self.name.as_str()),
            (None, true) => None,
        };
        if let Some(own) = own {
            let path = self.networks.join(own);
            return match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&path)(error)),
                _ => Ok(()),
            };
        }
        // Wherever it has got to: another file may have come first meanwhile.
        for name in chain::names(&self.networks).map_err(failed(&self.networks))? {
            let path = self.networks.join(name);
            let text = std::fs::read_to_string(&path).map_err(failed(&path))?;
            if let Some(without) = chain::remove(&text)? {
                let mode = std::fs::metadata(&path).map_or(0o600, |file| file.permissions().mode() & 0o7777);
                write(&path, without.as_bytes(), mode).map_err(failed(&path))?;
                tracing::info!("took the plugin out of {}", path.display());
            }
        }
        Ok(())
    }
}

/// Says whether it was necessary.
fn write_if_other(path: &Path, text: &str, mode: u32) -> io::Result<bool> {
    if std::fs::read(path).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(false);
    }
    write(path, text.as_bytes(), mode).map(|()| true)
}

/// Replaces a file as a whole: whoever reads it sees the one or the other.
fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Not an ending that runtimes would read.
    let temporary = path.with_file_name(format!("{name}{MARK}"));
    let _ = std::fs::remove_file(&temporary);
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .and_then(|mut file| {
            io::Write::write_all(&mut file, bytes)?;
            // Whatever the mask of this process.
            file.set_permissions(std::fs::Permissions::from_mode(mode))?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use serde_json::Value;

    use super::{Settings, State};

    fn settings(root: &Path) -> Settings {
        for folder in ["bin", "net.d", "run", "account"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::write(root.join("program"), "the program").unwrap();
        std::fs::write(root.join("account/token"), "secret\n").unwrap();
        std::fs::write(root.join("account/ca.crt"), "pem").unwrap();
        Settings {
            program: root.join("program"),
            program_folder: root.join("bin"),
            networks: root.join("net.d"),
            name: String::new(),
            chained: true,
            own_name: None,
            group_read: false,
            folder: root.join("run"),
            account: root.join("account"),
            authority: None,
            skip_tls_verify: false,
            kubeconfig_mode: 0o600,
            server: "https://10.96.0.1:443".to_owned(),
            log_level: "info".to_owned(),
            excluded_namespaces: vec!["kube-system".to_owned()],
            pod_namespace: "istio-system".to_owned(),
            native_nftables: false,
        }
    }

    fn json(path: &Path) -> Value {
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn files(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn chained_into_another_and_out_of_it() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings(root.path());
        assert_eq!(settings.ensure(), Ok(State::Waiting));
        let list = root.path().join("net.d/10-cbr0.conflist");
        let before = r#"{"cniVersion": "1.0.0", "name": "cbr0", "plugins": [{"type": "bridge"}]}"#;
        std::fs::write(&list, before).unwrap();
        std::fs::set_permissions(&list, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(settings.ensure(), Ok(State::Installed));

        let plugin = &json(&list)["plugins"][1];
        assert_eq!(plugin["type"], "istio-cni");
        assert_eq!(plugin["exclude_namespaces"][0], "kube-system");
        assert_eq!(std::fs::metadata(&list).unwrap().permissions().mode() & 0o777, 0o644);
        let program = root.path().join("bin/istio-cni");
        assert_eq!(std::fs::metadata(&program).unwrap().permissions().mode() & 0o777, 0o755);
        let kubeconfig = root.path().join("run/istio-cni-kubeconfig");
        assert_eq!(json(&kubeconfig)["users"][0]["user"]["token"], "secret");
        assert_eq!(std::fs::metadata(&kubeconfig).unwrap().permissions().mode() & 0o777, 0o600);

        // Once it is right, nothing is written; what others change is put right again.
        let written = std::fs::metadata(&list).unwrap().modified().unwrap();
        assert_eq!(settings.ensure(), Ok(State::Installed));
        assert_eq!(std::fs::metadata(&list).unwrap().modified().unwrap(), written);
        std::fs::write(&list, before).unwrap();
        std::fs::write(root.path().join("account/token"), "renewed").unwrap();
        std::fs::remove_file(&program).unwrap();
        assert_eq!(settings.ensure(), Ok(State::Installed));
        assert_eq!(json(&list)["plugins"][1]["type"], "istio-cni");
        assert_eq!(json(&kubeconfig)["users"][0]["user"]["token"], "renewed");
        assert!(program.exists());

        assert_eq!(settings.remove(), Ok(()));
        assert_eq!(json(&list), serde_json::from_str::<Value>(before).unwrap());
        assert_eq!(files(&root.path().join("net.d")), ["10-cbr0.conflist"]);
        assert!(files(&root.path().join("bin")).is_empty() && files(&root.path().join("run")).is_empty());
        assert_eq!(settings.remove(), Ok(()), "twice is fine");
    }

    #[test]
    fn one_plugin_and_a_file_of_our_own() {
        let root = tempfile::tempdir().unwrap();
        let networks = root.path().join("net.d");
        let mut settings = settings(root.path());
        std::fs::write(networks.join("10-a.conf"), r#"{"type": "bridge", "name": "a"}"#).unwrap();
        assert_eq!(settings.ensure(), Ok(State::Installed));
        assert_eq!(files(&networks), ["10-a.conflist"]);
        assert_eq!(settings.remove(), Ok(()));

        settings.own_name = Some("02-istio-cni.conflist".to_owned());
        let before = json(&networks.join("10-a.conflist"));
        assert_eq!(settings.ensure(), Ok(State::Installed));
        assert_eq!(json(&networks.join("10-a.conflist")), before);
        assert_eq!(json(&networks.join("02-istio-cni.conflist"))["plugins"][1]["type"], "istio-cni");
        // Our own is not taken for another's.
        assert_eq!(settings.ensure(), Ok(State::Installed));
        assert_eq!(json(&networks.join("02-istio-cni.conflist"))["plugins"].as_array().unwrap().len(), 2);
        assert_eq!(settings.remove(), Ok(()));
        assert_eq!(files(&networks), ["10-a.conflist"]);

        settings.own_name = None;
        settings.chained = false;
        assert_eq!(settings.ensure(), Ok(State::Installed));
        assert_eq!(json(&networks.join("YYY-istio-cni.conf"))["type"], "istio-cni");
        assert_eq!(settings.remove(), Ok(()));
        assert_eq!(files(&networks), ["10-a.conflist"]);
    }

    #[test]
    fn steps_that_fail_are_named() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings(root.path());
        std::fs::remove_file(root.path().join("account/token")).unwrap();
        assert_eq!(settings.ensure().unwrap_err().result, "CREATE_KUBECONFIG_FAILURE");
        std::fs::remove_file(root.path().join("program")).unwrap();
        assert_eq!(settings.ensure().unwrap_err().result, "COPY_BINARIES_FAILURE");
    }
}

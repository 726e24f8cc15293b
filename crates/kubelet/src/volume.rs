//! The volumes of a pod as folders of this machine, and which of them its containers see where.
//!
//! Values come and change as in a cluster: behind one link (`..data`), which is replaced as a whole, so
//! that who reads sees all of the old or all of the new.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1 as core;
use leno_node::Bind;

use crate::environment::{Environment, Facts, Fault, field_of, resource_of};
use crate::sources::{Sources, Token, TokenRequest};

/// Where programs look for the token of their service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The volume that every pod gets for it.
const ACCESS: &str = "kube-api-access";
/// How long its token lasts, in seconds: as the API server asks for it.
const ACCESS_SECONDS: i64 = 3607;
const DEFAULT_MODE: u32 = 0o644;

/// The volumes of a pod.
#[derive(Debug)]
pub(crate) struct Volumes {
    folder: PathBuf,
    declared: Vec<core::Volume>,
    written: BTreeMap<String, Files>,
    tokens: BTreeMap<TokenKey, (Token, SystemTime)>,
    generation: u64,
    group: Option<u32>,
}

/// What a volume holds, by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Files(BTreeMap<String, (Vec<u8>, u32)>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct TokenKey {
    audience: String,
    seconds: i64,
}

impl Volumes {
    /// Those of a pod, in a folder of its own; nothing is made yet.
    pub(crate) fn new(pod: &core::Pod, folder: PathBuf) -> Volumes {
        let spec = pod.spec.clone().unwrap_or_default();
        let mut declared = spec.volumes.unwrap_or_default();
        if spec.automount_service_account_token != Some(false) {
            declared.push(access());
        }
        let group = spec.security_context.and_then(|it| it.fs_group).and_then(|it| u32::try_from(it).ok());
        Volumes { folder, declared, written: BTreeMap::new(), tokens: BTreeMap::new(), generation: 0, group }
    }

    /// Makes all volumes be what they should be now. Returns when to do it again at the latest.
    ///
    /// # Errors
    /// What is missing, or cannot be written.
    pub(crate) async fn fill(
        &mut self,
        pod: &core::Pod,
        facts: &Facts,
        sources: &dyn Sources,
    ) -> Result<Option<Duration>, Fault> {
        for (index, volume) in self.declared.clone().iter().enumerate() {
            let fault = |message: String| Fault { path: format!("spec.volumes[{index}]"), message };
            let folder = self.folder.join(&volume.name);
            if volume.empty_dir.is_some() {
                if !folder.exists() {
                    make_folder(&folder, 0o777, self.group).map_err(|e| fault(e.to_string()))?;
                }
                continue;
            }
            let files = self.files(volume, pod, facts, sources).await.map_err(fault)?;
            if self.written.get(&volume.name) == Some(&files) {
                continue;
            }
            self.generation += 1;
            replace(&folder, &files, self.generation, self.group)
                .map_err(|e| fault(format!("cannot write it: {e}")))?;
            self.written.insert(volume.name.clone(), files);
        }
        let now = SystemTime::now();
        let left = |renewal: &SystemTime| renewal.duration_since(now).unwrap_or_default();
        Ok(self.tokens.values().map(|(_, renewal)| left(renewal)).min())
    }

    /// What a container sees of them.
    ///
    /// # Errors
    /// Each mount that cannot be.
    pub(crate) fn binds(
        &self,
        container: &core::Container,
        environment: &Environment,
    ) -> Result<Vec<Bind>, Vec<Fault>> {
        let mut binds = Vec::new();
        let mut faults = Vec::new();
        for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let path = format!("volumeMounts[{index}]");
            let Some(volume) = self.declared.iter().find(|volume| volume.name == mount.name) else {
                let message = format!("there is no volume {:?}", mount.name);
                faults.push(Fault { path, message });
                continue;
            };
            let expanded = mount.sub_path_expr.as_deref().map(|text| environment.expand(text));
            let part = expanded.or_else(|| mount.sub_path.clone()).unwrap_or_default();
            let source = self.folder.join(&mount.name).join(&part);
            let climbs = Path::new(&part)
                .components()
                .any(|it| matches!(it, Component::ParentDir | Component::RootDir | Component::Prefix(_)));
            if climbs {
                faults.push(Fault { path, message: format!("{part:?} leads out of the volume") });
                continue;
            }
            if volume.empty_dir.is_some() && !source.exists() {
                let made = make_folder(&source, 0o777, self.group);
                if let Err(e) = made {
                    faults.push(Fault { path, message: e.to_string() });
                    continue;
                }
            }
            binds.push(Bind {
                source,
                target: PathBuf::from(&mount.mount_path),
                read_only: mount.read_only == Some(true) || volume.empty_dir.is_none(),
            });
        }
        let has_access = self.declared.iter().any(|volume| volume.name == ACCESS);
        if has_access && !binds.iter().any(|bind| bind.target == Path::new(ACCOUNT)) {
            let (source, target) = (self.folder.join(ACCESS), PathBuf::from(ACCOUNT));
            binds.push(Bind { source, target, read_only: true });
        }
        // What lies in another comes after it.
        binds.sort_by_key(|bind| bind.target.components().count());
        for (bind, place) in nested(&binds) {
            if let Err(e) = make_place(&bind.source, &place) {
                let message = format!("cannot make {}: {e}", bind.target.display());
                faults.push(Fault { path: "volumeMounts".to_owned(), message });
            }
        }
        if faults.is_empty() { Ok(binds) } else { Err(faults) }
    }

    /// What a volume of values holds.
    async fn files(
        &mut self,
        volume: &core::Volume,
        pod: &core::Pod,
        facts: &Facts,
        sources: &dyn Sources,
    ) -> Result<Files, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let mut files = Files::default();
        if let Some(it) = &volume.config_map {
            let values = sources.config_map(namespace, &it.name);
            let (kind, mode) = ("ConfigMap", mode_of(it.default_mode));
            files.add_values(kind, &it.name, values, it.items.as_deref(), it.optional, mode)?;
        } else if let Some(it) = &volume.secret {
            let name = it.secret_name.as_deref().unwrap_or_default();
            let (values, mode) = (sources.secret(namespace, name), mode_of(it.default_mode));
            files.add_values("Secret", name, values, it.items.as_deref(), it.optional, mode)?;
        } else if let Some(it) = &volume.downward_api {
            let items = it.items.as_deref().unwrap_or_default();
            files.add_fields(items, pod, facts, mode_of(it.default_mode))?;
        } else if let Some(it) = &volume.projected {
            let mode = mode_of(it.default_mode);
            for source in it.sources.iter().flatten() {
                if let Some(it) = &source.config_map {
                    let values = sources.config_map(namespace, &it.name);
                    let items = it.items.as_deref();
                    files.add_values("ConfigMap", &it.name, values, items, it.optional, mode)?;
                } else if let Some(it) = &source.secret {
                    let values = sources.secret(namespace, &it.name);
                    files.add_values("Secret", &it.name, values, it.items.as_deref(), it.optional, mode)?;
                } else if let Some(it) = &source.downward_api {
                    files.add_fields(it.items.as_deref().unwrap_or_default(), pod, facts, mode)?;
                } else if let Some(it) = &source.service_account_token {
                    let token = self.token(it, pod, sources).await?;
                    files.add(&it.path, token.into_bytes(), mode)?;
                } else {
                    return Err("this source is not supported".to_owned());
                }
            }
        } else {
            return Err("this kind of volume is not supported".to_owned());
        }
        Ok(files)
    }

    /// A token, a new one once most of the last one's time has passed.
    async fn token(
        &mut self,
        projection: &core::ServiceAccountTokenProjection,
        pod: &core::Pod,
        sources: &dyn Sources,
    ) -> Result<String, String> {
        let seconds = projection.expiration_seconds.unwrap_or(3600);
        let audience = projection.audience.clone().unwrap_or_default();
        let key = TokenKey { audience: audience.clone(), seconds };
        let now = SystemTime::now();
        if let Some((token, renewal)) = self.tokens.get(&key)
            && now < *renewal
        {
            return Ok(token.text.clone());
        }
        let metadata = &pod.metadata;
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        let request = TokenRequest {
            namespace: metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
            account: account.filter(|it| !it.is_empty()).unwrap_or_else(|| "default".to_owned()),
            audience,
            seconds,
            pod: (metadata.name.clone().unwrap_or_default(), metadata.uid.clone().unwrap_or_default()),
        };
        let token = sources.token(request).await?;
        // As kubelet: after four fifths of its time.
        let lifetime = token.end.duration_since(now).unwrap_or_default();
        let text = token.text.clone();
        self.tokens.insert(key, (token, now + lifetime * 4 / 5));
        Ok(text)
    }
}

/// The volume by which every container reaches the API server.
fn access() -> core::Volume {
    let token = core::ServiceAccountTokenProjection {
        expiration_seconds: Some(ACCESS_SECONDS),
        path: "token".to_owned(),
        ..Default::default()
    };
    let bundle = core::ConfigMapProjection {
        name: "kube-root-ca.crt".to_owned(),
        items: Some(vec![core::KeyToPath {
            key: "ca.crt".to_owned(),
            path: "ca.crt".to_owned(),
            mode: None,
        }]),
        optional: Some(true),
    };
    let field = core::ObjectFieldSelector {
        api_version: Some("v1".to_owned()),
        field_path: "metadata.namespace".to_owned(),
    };
    let namespace = core::DownwardAPIVolumeFile {
        path: "namespace".to_owned(),
        field_ref: Some(field),
        ..Default::default()
    };
    let sources = vec![
        core::VolumeProjection { service_account_token: Some(token), ..Default::default() },
        core::VolumeProjection { config_map: Some(bundle), ..Default::default() },
        core::VolumeProjection {
            downward_api: Some(core::DownwardAPIProjection { items: Some(vec![namespace]) }),
            ..Default::default()
        },
    ];
    let projected = core::ProjectedVolumeSource { default_mode: None, sources: Some(sources) };
    core::Volume { name: ACCESS.to_owned(), projected: Some(projected), ..Default::default() }
}

fn mode_of(mode: Option<i32>) -> u32 {
    mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(DEFAULT_MODE) & 0o777
}

impl Files {
    fn add(&mut self, path: &str, content: Vec<u8>, mode: u32) -> Result<(), String> {
        let plain = !path.is_empty()
            && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
            && !path.starts_with("..");
        if !plain {
            return Err(format!("{path:?} is no path within the volume"));
        }
        self.0.insert(path.to_owned(), (content, mode));
        Ok(())
    }

    fn add_values(
        &mut self,
        kind: &str,
        name: &str,
        values: Option<BTreeMap<String, Vec<u8>>>,
        items: Option<&[core::KeyToPath]>,
        optional: Option<bool>,
        mode: u32,
    ) -> Result<(), String> {
        let Some(mut values) = values else {
            let missing = Err(format!("{} {name:?} not found", kind.to_ascii_lowercase()));
            return if optional == Some(true) { Ok(()) } else { missing };
        };
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            for (key, value) in values {
                self.add(&key, value, mode)?;
            }
            return Ok(());
        };
        for item in items {
            match values.remove(&item.key) {
                Some(value) => self.add(&item.path, value, item.mode.map_or(mode, |it| mode_of(Some(it))))?,
                None if optional == Some(true) => {}
                None => return Err(format!("there is no key {:?} in a {kind} {name:?}", item.key)),
            }
        }
        Ok(())
    }

    fn add_fields(
        &mut self,
        items: &[core::DownwardAPIVolumeFile],
        pod: &core::Pod,
        facts: &Facts,
        mode: u32,
    ) -> Result<(), String> {
        for item in items {
            let value = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => field_of(pod, &field.field_path, facts)
                    .ok_or_else(|| format!("the field {:?} is not known", field.field_path))?,
                (None, Some(selector)) => resource_of(pod, None, selector, facts)?,
                (None, None) => return Err(format!("{:?} has no source", item.path)),
            };
            self.add(&item.path, value.into_bytes(), item.mode.map_or(mode, |it| mode_of(Some(it))))?;
        }
        Ok(())
    }
}

/// The binds whose targets lie in others, and where in the sources of those: a container cannot make the place
/// to mount on in a volume that it may only read.
fn nested(binds: &[Bind]) -> Vec<(&Bind, PathBuf)> {
    let mut found = Vec::new();
    for (index, bind) in binds.iter().enumerate() {
        let around = binds.iter().take(index).rev().find(|it| bind.target.starts_with(&it.target));
        if let Some(around) = around
            && let Ok(rest) = bind.target.strip_prefix(&around.target)
            && !rest.as_os_str().is_empty()
        {
            found.push((bind, around.source.join(rest)));
        }
    }
    found
}

/// Makes what something is mounted on, if it is not there: a folder for a folder, a file for a file.
fn make_place(source: &Path, place: &Path) -> io::Result<()> {
    if place.exists() {
        return Ok(());
    }
    if source.is_dir() {
        return std::fs::create_dir_all(place);
    }
    if let Some(parent) = place.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::OpenOptions::new().create(true).append(true).open(place).map(drop)
}

/// Puts files in the place of what a volume held.
fn replace(folder: &Path, files: &Files, generation: u64, group: Option<u32>) -> io::Result<()> {
    if !folder.exists() {
        make_folder(folder, 0o755, group)?;
    }
    let before = std::fs::read_link(folder.join("..data")).ok();
    let name = format!("..{generation}");
    let next = folder.join(&name);
    make_folder(&next, 0o755, group)?;
    for (path, (content, mode)) in &files.0 {
        let file = next.join(path);
        if let Some(parent) = file.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&file, content)?;
        let mode = if group.is_some() { mode | 0o440 } else { *mode };
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode))?;
        if group.is_some() {
            chown(&file, None, group)?;
        }
    }
    let link = folder.join("..data.new");
    symlink(&name, &link)?;
    std::fs::rename(&link, folder.join("..data"))?;
    let first = |path: &String| path.split('/').next().unwrap_or_default().to_owned();
    let names: std::collections::BTreeSet<String> = files.0.keys().map(first).collect();
    for name in &names {
        let link = folder.join(name);
        if std::fs::symlink_metadata(&link).is_err() {
            symlink(Path::new("..data").join(name), link)?;
        }
    }
    for entry in std::fs::read_dir(folder)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // Others than links are places that something is mounted on.
        if !name.starts_with("..") && !names.contains(&name) && entry.file_type()?.is_symlink() {
            std::fs::remove_file(entry.path())?;
        }
    }
    match before {
        Some(before) => std::fs::remove_dir_all(folder.join(before)),
        None => Ok(()),
    }
}

/// Makes a folder with a mode, whatever the umask.
fn make_folder(path: &Path, mode: u32, group: Option<u32>) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    if group.is_some() {
        chown(path, None, group)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use leno_node::Bind;

    use super::{Files, make_place, nested, replace};

    #[test]
    fn a_volume_in_another_has_a_place_that_stays() {
        let folder = tempfile::tempdir().unwrap();
        let [outer, inner] = ["outer", "inner"].map(|name| folder.path().join(name));
        replace(&outer, &Files::default(), 1, None).unwrap();
        replace(&inner, &Files::default(), 1, None).unwrap();
        let bind = |source: &Path, target: &str| Bind {
            source: source.to_path_buf(),
            target: target.into(),
            read_only: true,
        };
        let binds =
            [bind(&outer, "/run/istio"), bind(&outer, "/run/istioctl"), bind(&inner, "/run/istio/crl")];
        let found = nested(&binds);
        assert_eq!(found.iter().map(|it| &it.1).collect::<Vec<_>>(), [&outer.join("crl")]);
        for (bind, place) in found {
            make_place(&bind.source, &place).unwrap();
        }
        replace(&outer, &Files::default(), 2, None).unwrap();
        assert!(outer.join("crl").is_dir());
    }

    #[test]
    fn values_change_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().join("v");
        let mut files = Files::default();
        files.add("a", b"1".to_vec(), 0o600).unwrap();
        files.add("deep/b", b"2".to_vec(), 0o644).unwrap();
        assert!(files.add("../x", Vec::new(), 0).is_err());
        assert!(files.add("/x", Vec::new(), 0).is_err());
        replace(&volume, &files, 1, None).unwrap();
        assert_eq!(std::fs::read(volume.join("a")).unwrap(), b"1");
        assert_eq!(std::fs::read(volume.join("deep/b")).unwrap(), b"2");
        let mut files = Files::default();
        files.add("deep/b", b"3".to_vec(), 0o644).unwrap();
        replace(&volume, &files, 2, None).unwrap();
        assert_eq!(std::fs::read(volume.join("deep/b")).unwrap(), b"3");
        let mut names: Vec<_> = std::fs::read_dir(&volume)
            .unwrap()
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["..2", "..data", "deep"]);
    }
}

//! The scenarios inside the node, one after the other, each with a pod.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use leno_kubelet::State;
use leno_node::{Exit, Node};
use serde_json::{Value, json};

use crate::world::{Running, World, run as start};

struct Scene<'a> {
    node: &'a Node,
    world: Arc<World>,
}

impl Scene<'_> {
    async fn start(&self, spec: Value) -> Result<Running, Box<dyn Error>> {
        start(self.node, &self.world, spec).await
    }
}

/// A container that does steps.
fn container(name: &str, steps: &str) -> Value {
    let args: Vec<&str> = steps.split(' ').collect();
    json!({ "name": name, "image": "test", "args": args })
}

/// The same with more.
fn with(mut container: Value, more: Value) -> Value {
    if let (Some(map), Value::Object(more)) = (container.as_object_mut(), more) {
        map.extend(more);
    }
    container
}

fn exec(steps: &str) -> Value {
    let command: Vec<&str> = ["/opt/program", "program"].into_iter().chain(steps.split(' ')).collect();
    json!({ "exec": { "command": command } })
}

fn shared() -> (Value, Value) {
    let mount = json!({ "volumeMounts": [{ "name": "shared", "mountPath": "/shared" }] });
    (mount, json!([{ "name": "shared", "emptyDir": {} }]))
}

fn same(found: &[String], expected: &[&str]) -> Result<(), Box<dyn Error>> {
    if found == expected { Ok(()) } else { Err(format!("{found:?} instead of {expected:?}").into()) }
}

pub(crate) async fn run(node: &Node) -> Result<(), Box<dyn Error>> {
    type Outcome<'a> = Pin<Box<dyn Future<Output = Result<(), Box<dyn Error>>> + 'a>>;
    let only = std::env::var("ONLY").unwrap_or_default();
    let mut number = 1;
    let mut scene = || {
        number += 1;
        Scene { node, world: Arc::new(World::new(number)) }
    };
    let scenarios: [(&str, Outcome<'_>); 13] = [
        ("order of init containers", Box::pin(order(scene()))),
        ("a failing init container", Box::pin(failing(scene()))),
        ("sidecars", Box::pin(sidecars(scene()))),
        ("postStart holds the next container", Box::pin(holding(scene()))),
        ("restarts", Box::pin(restarts(scene()))),
        ("a job", Box::pin(job(scene()))),
        ("probes", Box::pin(probes(scene()))),
        ("liveness", Box::pin(liveness(scene()))),
        ("graceful end", Box::pin(ending(scene()))),
        ("an end by force", Box::pin(force(scene()))),
        ("volumes and environment", Box::pin(volumes(scene()))),
        ("values that come and change", Box::pin(changes(scene()))),
        ("identity and refusals", Box::pin(identity(scene()))),
    ];
    for (name, outcome) in scenarios {
        if !name.contains(&only) {
            continue;
        }
        outcome.await.map_err(|e| format!("{name}: {e}"))?;
        println!("{name}: ok");
    }
    Ok(())
}

async fn order(scene: Scene<'_>) -> Result<(), Box<dyn Error>> {
    let (mount, volumes) = shared();
    let mut pod = scene
        .start(json!({
            "volumes": volumes,
            "initContainers": [
                with(container("first", "say one then write /shared/one 1"), mount.clone()),
                with(container("second", "fail-times /shared/count 2 then read /shared/one then say two"), mount.clone()),
            ],
            "containers": [with(container("app", "say three then run"), mount)],
        }))
        .await?;
    let state = pod.until(|it| it.ready).await;
    let restarts: Vec<u32> = state.all().map(|(_, it)| it.restarts).collect();
    pod.heard("app: running").await?;
    let (_, mut said) = pod.end(None).await;
    // Lines of one container are in order; that the second comes after the first, its reading shows.
    said.sort_by_key(|it| it.split(':').next().unwrap_or_default().to_owned());
    same(
        &said,
        &[
            "app: three",
            "app: running",
            "app: asked to end",
            "first: one",
            "second: failing 1",
            "second: failing 2",
            "second: 1",
            "second: two",
        ],
    )?;
    if restarts == [0, 2, 0] { Ok(()) } else { Err(format!("{restarts:?}").into()) }
}

async fn failing(scene: Scene<'_>) -> Result<(), Box<dyn Error>> {
    let mut pod = scene
        .start(json!({
            "restartPolicy": "Never",
            "initContainers": [container("init", "say no then exit 4"), container("never", "say never")],
            "containers": [container("app", "say never")],
        }))
        .await?;
    let state = pod.until(|it| it.phase == "Failed").await;
    let codes: Vec<Option<i32>> = state.all().map(|(_, it)| it.end().map(|it| it.code())).collect();
    let (_, said) = pod.end(None).await;
    same(&said, &["init: no"])?;
    if codes == [Some(4), None, None] { Ok(()) } else { Err(format!("{codes:?}").into()) }
}

/// A sidecar starts before what initialises after it, once its startup probe is good, and ends last.
async fn sidecars(scene: Scene<'_>) -> Result<(), Box<dyn Error>> {
    let (mount, volumes) = shared();
    let startup =
        json!({ "restartPolicy": "Always", "startupProbe": exec("exists /shared then await /shared/up") });
    let early = container("early", "say begins then write /shared/up 1 then run");
    let mut pod = scene
        .start(json!({
            "volumes": volumes,
            "initContainers": [
                with(with(early, mount.clone()), startup),
                with(container("init", "read /shared/up then say init"), mount.clone()),
                with(container("late", "run"), json!({ "restartPolicy": "Always" })),
            ],
            "containers": [with(container("app", "say app then run"), mount)],
        }))
        .await?;
    pod.until(|it| it.ready).await;
    for line in ["early: running", "late: running", "app: running"] {
        pod.heard(line).await?;
    }
    let (state, _) = pod.end(None).await;
    let times = |name: &str| {
        let (_, status) = state.all().find(|(it, _)| it == name)?;
        Some((status.end()?.since, status.end()?.until))
    };
    let [early, init, late, app] = ["early", "init", "late", "app"].map(times);
    let [Some(early), Some(init), Some(late), Some(app)] = [early, init, late, app] else {
        return Err(format!("{state:?}").into());
    };
    let order = [early.0, init.0, init.1, late.0, app.0, app.1, late.1, early.1];
    if !order.is_sorted() {
        return Err(format!("{order:?}").into());
    }
    let good = state.all().all(|(_, it)| it.end().is_some_and(|it| it.success()));
    if good { Ok(()) } else { Err(format!("{state:?}").into()) }
}

/// This is what holdApplicationUntilProxyStarts relies on.
async fn holding(scene: Scene<'_>) -> Result<(), Box<dyn Error>> {
    let (mount, volumes) = shared();
    let hook = json!({ "lifecycle": { "postStart": exec("await /shared/go") } });
    let mut pod = scene
        .start(json!({
            "volumes": volumes,
            "containers": [
                with(with(container("proxy", "say proxy then run"), mount.clone()), hook),
                with(container("app", "say app then run"), mount.clone()),
                with(container("third", "say third then exit 1"),
                    json!({ "lifecycle": { "postStart": exec("exit 1") } })),
            ],
        }))
        .await?;
    pod.heard("proxy: running").await?;
    let state = pod.handle.state().borrow().clone();
    if state.ready || matches!(state.containers[1].1.state, State::Running { .. }) {
        return Err(format!("it did not wait: {state:?}").into());
    }
    // From outside: by a process in the same volume.
    std::fs::write(folder_of(&pod, "shared").join("go"), "")?;
    pod.heard("app: app").await?;
    pod.until(|it| it.containers[2].1.restarts > 1).await;
    drop(pod);
    Ok(())
}

/// Where a volume of a pod is outside.
fn folder_of(pod: &Running, volume: &str) -> std::path::PathBuf {
    pod.folder.join("volumes").join(volume)
}

async fn restarts(scene: Scene<'_>) -> Result<(), Box<dyn Error>> {
    let (mount, volumes) = shared();
    let mut pod = scene
        .start(json!({
            "volumes": volumes,
            "restartPolicy": "OnFailure",
            "containers": [with(container("app", "fail-times /shared/count 3 then say done"), mount),
                container("no-such", "run")],
        }))
        .await?;
    let state = pod.until(|it| it.containers[0].1.over).await;
    if state.containers[0].1.restarts != 3 || state.phase != "Running" {
        return Err(format!("{state:?}").into());
    }
    let last = state.containers[0].1.last.as_ref().map(|it| (it.reason.as_str(), it.exit));
    if last != Some(("Error", Some(Exit::Code(3)))) {
        return Err(format!("{last:?}").into());
    }
    let (_, said) = pod.end(None).await;
    let said: Vec<String> = said.into_iter().filter(|it| it.starts_with("app")).collect();
    same(&said, &["app: failing 1", "app: failing 2", "app: failing 3", "app: done"])
}

/// What is done ends sidecars, too.
async fn job(scene: Scene<'_>) -> Result<(), Box<dyn Error>> {
    let mut pod = scene
        .start(json!({
            "restartPolicy": "Never",
            "initContainers": [with(container("proxy", "run"), json!({ "restartPolicy": "Always" }))],
            "containers": [container("work", "say work")],
        }))
        .await?;
    let state = pod.until(|it| it.phase == "Succeeded" && it.all().all(|(_, it)| it.over)).await;
    if state.ready {
        return Err("what is done is ready".into());
    }
    let (_, said) = pod.end(None).await;
    if said.contains(&"work: work".to_owned()) { Ok(()) } else { Err(format!("{said:?}").into()) }
}

async fn probes(scene: Scene<'_>) -> Result<(), Box<dyn Error>> {
    let (mount, volumes) = shared();
    let readiness = json!({ "readinessProbe": { "periodSeconds": 1, "failureThreshold": 1,
        "httpGet": { "port": "web", "path": "/say", "httpHeaders": [{ "name": "x-who", "value": "kubelet" }] } } });
    let ports = json!({ "ports": [{ "name": "web", "containerPort": 8080 }] });
    let web = with(container("web", "serve 0.0.0.0:8080 /shared/good"), mount.clone());
    let tcp = json!({ "readinessProbe": { "tcpSocket": { "port": 8080 }, "periodSeconds": 1 } });
    let mut pod = scene
        .start(json!({
            "volumes": volumes,
            "containers": [with(with(web, readiness), ports), with(container("tcp", "run"), tcp)],
        }))
        .await?;
    pod.until(|it| it.containers[1].1.ready).await;
    pod.heard("web: called by kubelet").await?;
    if pod.handle.state().borrow().ready {
        return Err("ready without success".into());
    }
    let good = folder_of(&pod, "shared").join("good");
    std::fs::write(&good, "")?;
    pod.until(|it| it.ready).await;
    std::fs::remove_file(&good)?;
    pod.until(|it| !it.ready).await;
    let state = pod.end(None).await.0;
    if state.containers[0].1.restarts == 0 { Ok(()) } else { Err("readiness restarts nothing".into()) }
}

async fn liveness(scene: Scene<'_>) -> Result<(), Box<dyn Error>> {
    let (mount, volumes) = shared();
    let probes = json!({
        "startupProbe": with(exec("await /shared/up"), json!({ "timeoutSeconds": 30, "periodSeconds": 1 })),
        "livenessProbe": with(exec("exists /shared then read /shared/up"),
            json!({ "periodSeconds": 1, "failureThreshold": 1 })),
    });
    let app = with(container("app", "say begins then write /shared/up x then run"), mount);
    let mut pod = scene.start(json!({ "volumes": volumes, "containers": [with(app, probes)] })).await?;
    pod.until(|it| it.containers[0].1.started).await;
    std::fs::remove_file(folder_of(&pod, "shared").join("up"))?;
    let state = pod.until(|it| it.containers[0].1.restarts == 1 && it.containers[0].1.started).await;
    let last = state.containers[0].1.last.clone().ok_or("no last state")?;
    let (_, said) = pod.end(None).await;
    if !last.message.starts_with("Liveness probe failed") || !said.contains(&"app: asked to end".to_owned()) {
        return Err(format!("{last:?} {said:?}").into());
    }
    Ok(())
}

async fn ending(scene: Scene<'_>) -> Result<(), Box<dyn Error>> {
    let (mount, volumes) = shared();
    let hook = json!({ "lifecycle": { "preStop": exec("write /shared/stopping 1") } });
    let mut pod = scene
        .start(json!({
            "volumes": volumes,
            "containers": [
                with(with(container("app", "run then read /shared/stopping then exit 7"), mount), hook),
            ],
        }))
        .await?;
    pod.heard("app: running").await?;
    pod.until(|it| it.ready).await;
    let (state, said) = pod.end(None).await;
    same(&said, &["app: running", "app: asked to end", "app: 1"])?;
    let code = state.containers[0].1.end().map(|it| it.code());
    if code == Some(7) { Ok(()) } else { Err(format!("{code:?}").into()) }
}

/// What does not end is killed when its time is over, also one that is given less after it was asked.
async fn force(scene: Scene<'_>) -> Result<(), Box<dyn Error>> {
    let mut pod = scene
        .start(json!({
            "terminationGracePeriodSeconds": 600,
            "containers": [with(container("app", "ignore-term"), json!({ "lifecycle": { "preStop": { "sleep": { "seconds": 0 } } } }))],
        }))
        .await?;
    pod.heard("app: deaf").await?;
    pod.handle.end(None);
    pod.heard("app: heard").await?;
    let (state, _) = pod.end(Some(Duration::from_millis(1))).await;
    let exit = state.containers[0].1.end().and_then(|it| it.exit);
    if exit == Some(Exit::Signal(9)) { Ok(()) } else { Err(format!("{exit:?}").into()) }
}

async fn volumes(scene: Scene<'_>) -> Result<(), Box<dyn Error>> {
    scene.world.set("settings", "color", "red");
    scene.world.set("keys", "key", "secret");
    scene.world.set("kube-root-ca.crt", "ca.crt", "root");
    let field = |path: &str, of: &str| json!({ "path": path, "fieldRef": { "fieldPath": of } });
    let mounts = json!({ "volumeMounts": [
        { "name": "map", "mountPath": "/etc/map" },
        { "name": "map", "mountPath": "/etc/one.conf", "subPath": "color" },
        { "name": "keys", "mountPath": "/var/run/secrets/keys" },
        { "name": "about", "mountPath": "/etc/about" },
        { "name": "all", "mountPath": "/var/run/all" },
        { "name": "space", "mountPath": "/data/$(NO)", "subPathExpr": "of-$(POD)" },
    ] });
    let env = json!({ "env": [{ "name": "POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
        { "name": "WHERE", "value": "at $(POD_IP)" }, { "name": "COLOR",
            "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "color" } } }] });
    let steps = "read /etc/map/color then read /etc/one.conf then read /var/run/secrets/keys/of/key then mode \
                 /var/run/secrets/keys/of/key then read /etc/about/labels then read /var/run/all/token then read \
                 /var/run/all/ca.crt then read /var/run/all/namespace then write /data/$(NO)/x 5 then read \
                 /data/$(NO)/x then cannot-write /etc/map/color then env COLOR then env WHERE then read \
                 /var/run/secrets/kubernetes.io/serviceaccount/token then write /opt/own mine then read \
                 /opt/own then resolve pod";
    let mut pod = scene
        .start(json!({
            "restartPolicy": "Never",
            "serviceAccountName": "shopkeeper",
            "volumes": [
                { "name": "map", "configMap": { "name": "settings" } },
                { "name": "keys", "secret": { "secretName": "keys", "defaultMode": 0o640,
                    "items": [{ "key": "key", "path": "of/key" }] } },
                { "name": "about", "downwardAPI": { "items": [field("labels", "metadata.labels")] } },
                { "name": "space", "emptyDir": {} },
                { "name": "all", "projected": { "sources": [
                    { "serviceAccountToken": { "path": "token", "audience": "istio-ca", "expirationSeconds": 43200 } },
                    { "configMap": { "name": "kube-root-ca.crt" } },
                    { "configMap": { "name": "not-there", "optional": true } },
                    { "downwardAPI": { "items": [field("namespace", "metadata.namespace")] } },
                ] } },
            ],
            "containers": [with(with(container("app", steps), mounts), env)],
        }))
        .await?;
    pod.until(|it| matches!(it.phase, "Succeeded" | "Failed")).await;
    let (state, said) = pod.end(None).await;
    same(
        &said,
        &[
            "app: red",
            "app: red",
            "app: secret",
            "app: 640",
            "app: app=\"web\"",
            "app: token 0 of shopkeeper for istio-ca",
            "app: root",
            "app: shop",
            "app: 5",
            "app: /etc/map/color: read-only filesystem or storage medium",
            "app: COLOR=red",
            "app: WHERE=at $(POD_IP)",
            "app: token 1 of shopkeeper for",
            "app: mine",
            &format!("app: pod is {}", scene.world.address),
        ],
    )?;
    if state.phase != "Succeeded" || std::path::Path::new("/opt/own").exists() {
        return Err(format!("{state:?}").into());
    }
    let requests = scene.world.requests.lock().unwrap().clone();
    let asked: Vec<_> = requests.iter().map(|it| (it.seconds, it.pod.1.as_str())).collect();
    if asked == [(43_200, "1-2"), (3607, "1-2")] { Ok(()) } else { Err(format!("{asked:?}").into()) }
}

/// A pod waits for what it refers to, and sees when it changes.
async fn changes(scene: Scene<'_>) -> Result<(), Box<dyn Error>> {
    let env = json!({ "env": [
        { "name": "KEY", "valueFrom": { "secretKeyRef": { "name": "keys", "key": "key" } } }] });
    let mounts = json!({ "volumeMounts": [{ "name": "map", "mountPath": "/map" }] });
    let steps = "env KEY then read /map/color then await-text /map/color blue then say seen then run";
    let mut pod = scene
        .start(json!({
            "volumes": [{ "name": "map", "configMap": { "name": "settings" } }],
            "containers": [with(with(container("app", steps), mounts), env)],
        }))
        .await?;
    let state = pod.until(|it| it.reason.is_some()).await;
    if state.reason.as_ref().map(|it| it.1.as_str())
        != Some("spec.volumes[0]: configmap \"settings\" not found")
    {
        return Err(format!("{state:?}").into());
    }
    scene.world.set("settings", "color", "red");
    let state = pod.until(|it| !it.containers[0].1.faults.is_empty()).await;
    let words = state.containers[0].1.faults[0].to_string();
    if words != "env[0].valueFrom: there is no key \"key\" in a Secret \"keys\"" {
        return Err(words.into());
    }
    scene.world.set("keys", "key", "k");
    pod.heard("app: red").await?;
    scene.world.set("settings", "color", "blue");
    pod.heard("app: seen").await?;
    let (_, said) = pod.end(None).await;
    same(&said[..3], &["app: KEY=k", "app: red", "app: seen"])
}

async fn identity(scene: Scene<'_>) -> Result<(), Box<dyn Error>> {
    let context = |context: Value| json!({ "securityContext": context });
    let mut pod = scene
        .start(json!({
            "restartPolicy": "Never",
            "securityContext": { "runAsGroup": 7 },
            "containers": [
                with(container("proxy", "whoami"), context(json!({ "runAsUser": 1337, "runAsGroup": 1337 }))),
                with(container("init", "whoami"), context(json!({
                    "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] } }))),
                with(container("still", "cannot-write /x"), context(json!({ "readOnlyRootFilesystem": true }))),
            ],
        }))
        .await?;
    pod.until(|it| it.phase == "Succeeded").await;
    let (_, mut said) = pod.end(None).await;
    said.sort();
    same(
        &said,
        &[
            "init: uid 0 gid 7 with 0000000000001000",
            "proxy: uid 1337 gid 1337 with 0000000000000000",
            "still: /x: read-only filesystem or storage medium",
        ],
    )?;
    let host = json!([{ "name": "a", "hostPath": { "path": "/" } }]);
    let mut pod = scene.start(json!({ "volumes": host, "containers": [container("app", "say no")] })).await?;
    let state = pod.until(|it| it.phase == "Failed").await;
    let why = state.reason.map(|it| it.1);
    if why.as_deref() != Some("spec.volumes[0].hostPath: is not supported") {
        return Err(format!("{why:?}").into());
    }
    pod.end(None).await;
    let spec =
        json!({ "containers": [with(container("app", "run"), context(json!({ "runAsNonRoot": true })))] });
    let mut pod = scene.start(spec).await?;
    let state = pod.until(|it| !it.containers[0].1.faults.is_empty()).await;
    let why = state.containers[0].1.faults[0].message.clone();
    if why == "container has runAsNonRoot and image will run as root" { Ok(()) } else { Err(why.into()) }
}

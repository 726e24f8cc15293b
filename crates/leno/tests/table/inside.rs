//! A run of a table: one mesh, one proxy, one variant of xDS, in namespaces of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leno_control::server::{Config, Server};
use leno_node::{Network, Node};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::Run;
use crate::agent::Agent;
use crate::backend::{Backend, Seen};
use crate::bootstrap::Servers;
use crate::client::{self, Answer};
use crate::keys::Keys;
use crate::mesh::Mesh;
use crate::place::Place;
use crate::row::{Expectation, Row};

/// How much less than it should a wait may take.
const COARSE: Duration = Duration::from_millis(20);

/// In namespaces of one's own every port is free.
const XDS: u16 = 15010;
const DEBUG: u16 = 15014;
const SECRETS: u16 = 16000;
/// How many rows are asked at a time.
const AT_ONCE: usize = 16;
/// A row that takes longer is worth a look.
const SLOW: Duration = Duration::from_secs(1);
/// How long a copy of a request may take to arrive.
const LATE: Duration = Duration::from_secs(5);

/// Everything that a row needs.
struct Scene {
    mesh: Mesh,
    places: BTreeMap<String, Place>,
    backend: Arc<Backend>,
    keys: Keys,
}

/// Runs in the inner process; gives what is wrong.
pub(crate) fn run(run: &Run) -> Result<Vec<String>, Box<dyn Error>> {
    let node = Node::enter(Network::default())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(table(&node, run))
}

async fn table(node: &Node, run: &Run) -> Result<Vec<String>, Box<dyn Error>> {
    let start = Instant::now();
    let folder = Path::new(&run.folder);
    let keys = Keys::make(folder)?;
    let mesh = Mesh::read(&run.mesh, folder)?;
    let written = folder.join("mesh");
    fs::create_dir(&written)?;
    mesh.write(&written)?;
    let address = node.network().address;
    let mut config = Config::new(vec![written]);
    config.grpc_addr = SocketAddr::from((address, XDS));
    config.http_addr = SocketAddr::from((address, DEBUG));
    let control = Server::bind(config).await?;
    tokio::spawn(control.run(std::future::pending()));
    while !debug(address.into(), "/ready").await.is_ok_and(|text| text.starts_with("HTTP/1.1 200")) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let backend = Backend::new(keys.server()?);
    let mut places = BTreeMap::new();
    let mut agents = Vec::new();
    for (index, pod) in mesh.pods.iter().filter(|pod| pod.proxy.is_some()).enumerate() {
        let secrets = SECRETS + u16::try_from(index)?;
        if pod.certificates {
            let listener = TcpListener::bind((address, secrets)).await?;
            agents.push(Agent::start(listener, &pod.identity(), &keys, folder)?);
        }
        let servers = Servers { address, xds: XDS, secrets, delta: run.delta };
        let place = Place::start(node, &mesh, pod, &run.product, &servers, &backend, folder).await?;
        places.insert(pod.name.clone(), place);
    }
    let mut wrong = Vec::new();
    for place in places.values() {
        wrong.extend(place.ready().await.err());
    }
    let ready = start.elapsed();
    let scene = Arc::new(Scene { mesh, places, backend, keys });
    if wrong.is_empty() {
        wrong.extend(rows(&scene, &run.only, run.verbose).await?);
    }
    if run.verbose {
        println!("{}: ready after {ready:.1?}, all rows asked after {:.1?}", run.name(), start.elapsed());
    }
    for place in scene.places.values() {
        wrong.extend(place.refusals().await);
    }
    wrong.extend(diagnostics(address.into()).await?);
    if let Some(kept) = std::env::var_os("TABLE_KEEP") {
        for (name, place) in &scene.places {
            for page in ["config_dump", "stats", "clusters", "listeners"] {
                let text = place.admin(&format!("/{page}")).await?;
                fs::write(Path::new(&kept).join(format!("{name}, {}, {page}", run.name())), text)?;
            }
        }
    }
    let Ok(scene) = Arc::try_unwrap(scene).map_err(drop) else { return Err("a row still runs".into()) };
    let mut said = Vec::new();
    for (_, place) in scene.places {
        said.extend(place.stop().await);
    }
    if !wrong.is_empty() {
        wrong.extend(said.into_iter().filter(|_| run.verbose));
    }
    Ok(wrong)
}

async fn rows(scene: &Arc<Scene>, only: &str, verbose: bool) -> Result<Vec<String>, Box<dyn Error>> {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    let chosen = scene.mesh.rows.iter().filter(|row| row.text.contains(only));
    for row in chosen.cloned() {
        let (scene, room) = (Arc::clone(scene), Arc::clone(&room));
        tasks.spawn(async move {
            let _permit = room.acquire().await;
            let start = Instant::now();
            let faults = Box::pin(scene.row(&row)).await;
            (row, faults, start.elapsed())
        });
    }
    let mut wrong = Vec::new();
    while let Some(done) = tasks.join_next().await {
        let (row, faults, took) = done?;
        if verbose && took > SLOW {
            println!("line {} took {took:.1?}: {}", row.line, row.text);
        }
        if !faults.is_empty() {
            wrong.push((
                row.line,
                format!("line {}: {}\n      {}", row.line, row.text, faults.join("\n      ")),
            ));
        }
    }
    wrong.sort();
    Ok(wrong.into_iter().map(|(_, text)| text).collect())
}

/// What the control plane has to say against the mesh, refusals of proxies among it.
async fn diagnostics(address: IpAddr) -> Result<Vec<String>, Box<dyn Error>> {
    let text = debug(address, "/debug/diagnostics").await?;
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    let all: Vec<Value> = serde_json::from_str(body)?;
    Ok(all.iter().filter(|it| it["severity"] == "error").map(ToString::to_string).collect())
}

async fn debug(address: IpAddr, path: &str) -> std::io::Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect((address, DEBUG)).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

impl Scene {
    /// Asks what a row asks; gives what is not as it says.
    async fn row(&self, row: &Row) -> Vec<String> {
        let ask = &row.ask;
        let place = self.places.get(&ask.source);
        if place.is_none() && ask.source != "outside" {
            return vec![format!("there is no proxy beside {:?}", ask.source)];
        }
        let Some(to) = self.target(row) else { return vec!["where is that?".to_owned()] };
        let pod = place.map(|place| &place.pod);
        let mut faults = BTreeSet::new();
        let mut places: BTreeMap<usize, usize> = BTreeMap::new();
        for index in 0..ask.times {
            let id = format!("{}.{index}", row.line);
            let answer = client::ask(pod, to, ask, &id, &self.keys).await;
            let seen = self.seen(&id, &row.expect).await;
            faults.extend(compare(&row.expect, &answer, &seen, self));
            if let Some(place) = self.place_of(&row.expect, &seen) {
                *places.entry(place).or_default() += 1;
            }
        }
        if row.expect.same {
            if places.len() > 1 {
                faults.insert(format!("ends at {} places", places.len()));
            }
            return faults.into_iter().collect();
        }
        for (index, (share, name)) in row.expect.places.iter().enumerate() {
            let count = places.get(&index).copied().unwrap_or(0);
            let percent = u32::try_from(count * 100 / ask.times).unwrap_or(u32::MAX);
            let fits = match share {
                Some(share) => share.abs_diff(percent) <= 18,
                None => count > 0 || ask.times < 2,
            };
            if !fits {
                faults.insert(format!("{count} of {} at {name}", ask.times));
            }
        }
        faults.into_iter().collect()
    }

    /// Where a client connects to.
    fn target(&self, row: &Row) -> Option<SocketAddr> {
        if let Some(to) = &row.ask.to {
            let (name, port) = to.rsplit_once(':')?;
            let pod = self.mesh.pod(name).map(|pod| pod.address.into());
            return Some(SocketAddr::new(
                pod.or_else(|| self.mesh.find(name, "default"))?,
                port.parse().ok()?,
            ));
        }
        let namespace = self.places.get(&row.ask.source).map_or("default", |place| place.namespace.as_str());
        Some(SocketAddr::new(self.mesh.find(&row.ask.host, namespace)?, row.ask.port))
    }

    /// What back ends have seen of a question; copies of it take their time.
    async fn seen(&self, id: &str, expect: &Expectation) -> Vec<Seen> {
        let start = Instant::now();
        loop {
            let seen = self.backend.seen(id);
            let arrived = |name: &String| seen.iter().any(|seen| self.is_at(seen.at, name));
            if expect.mirrors.iter().all(arrived) || start.elapsed() > LATE {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Whether an address is what a table calls by a name: `POD`, `POD:PORT`, `HOST:PORT`,
    /// `ADDRESS:PORT`.
    fn is_at(&self, at: SocketAddr, name: &str) -> bool {
        let names = self.mesh.names(at.ip());
        let is = |host: &str| names.contains(&host) || at.ip().to_string() == host;
        match name.rsplit_once(':') {
            Some((host, port)) => is(host) && at.port().to_string() == port,
            None => is(name),
        }
    }

    fn is_mirror(&self, expect: &Expectation, seen: &Seen) -> bool {
        expect.mirrors.iter().any(|name| self.is_at(seen.at, name))
    }

    /// Which of the places that are expected a request has ended at.
    fn place_of(&self, expect: &Expectation, seen: &[Seen]) -> Option<usize> {
        let last = seen.iter().rfind(|seen| !self.is_mirror(expect, seen))?;
        expect.places.iter().position(|(_, name)| self.is_at(last.at, name))
    }
}

fn compare(expect: &Expectation, answer: &Answer, seen: &[Seen], scene: &Scene) -> Vec<String> {
    let mut faults = Vec::new();
    if answer.end != expect.end {
        let words = format!("{:?} {} {:?}", answer.end, answer.error, answer.body.trim());
        faults.push(format!("ends with {words}"));
    }
    let own: Vec<&Seen> = seen.iter().filter(|seen| !scene.is_mirror(expect, seen)).collect();
    match (own.last(), expect.places.is_empty()) {
        (Some(last), true) => faults.push(format!("arrives at {}", describe(last, scene))),
        (None, false) => faults.push("arrives nowhere".to_owned()),
        (Some(last), false) if scene.place_of(expect, seen).is_none() => {
            faults.push(format!("arrives at {}", describe(last, scene)));
        }
        _ => {}
    }
    for name in &expect.mirrors {
        if !seen.iter().any(|seen| scene.is_at(seen.at, name)) {
            faults.push(format!("no copy at {name}"));
        }
    }
    if let Some(last) = own.last() {
        for (name, value) in &expect.facts {
            let actual = last.facts.get(name.as_str()).map_or("", String::as_str);
            if actual != value {
                faults.push(format!("{name} is {actual:?}"));
            }
        }
        faults.extend(headers(&expect.seen, &last.headers).map(|fault| format!("the back end sees {fault}")));
    }
    faults.extend(headers(&expect.headers, &answer.headers).map(|fault| format!("the client sees {fault}")));
    if let Some(body) = &expect.body
        && answer.body.trim() != body
    {
        faults.push(format!("the body is {:?}", answer.body));
    }
    if expect.attempts.is_some_and(|count| count != own.len()) {
        faults.push(format!("{} attempts", own.len()));
    }
    // Proxies count in whole milliseconds, of a clock that they read once a turn.
    if expect.after.is_some_and(|time| answer.took + COARSE < time)
        || expect.within.is_some_and(|time| answer.took > time)
    {
        faults.push(format!("took {:?}", answer.took));
    }
    if expect.certificate.is_some() && expect.certificate != answer.certificate {
        faults.push(format!("the certificate is of {:?}", answer.certificate));
    }
    faults
}

/// Headers that are not as they should be. `*` stands for anything.
fn headers<'e>(
    expected: &'e [(String, Option<String>)],
    actual: &'e http::HeaderMap,
) -> impl Iterator<Item = String> + 'e {
    expected.iter().filter_map(|(name, value)| {
        let all = actual.get_all(name.as_str()).iter();
        let all: Vec<String> =
            all.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect();
        let joined = (!all.is_empty()).then(|| all.join(","));
        let fits = match (value.as_deref(), &joined) {
            (Some("*"), joined) => joined.is_some(),
            (value, joined) => value == joined.as_deref(),
        };
        (!fits).then(|| format!("{name}: {joined:?}"))
    })
}

fn describe(seen: &Seen, scene: &Scene) -> String {
    let names = scene.mesh.names(seen.at.ip()).join(" ");
    format!("{} {names} {:?}", seen.at, seen.facts)
}

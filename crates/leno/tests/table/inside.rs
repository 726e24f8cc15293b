//! A run of a table: one mesh, one proxy, one variant of xDS, in namespaces of its own.

use std::collections::BTreeMap;
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
use crate::backend::Backend;
use crate::bootstrap::Servers;
use crate::keys::Keys;
use crate::mesh::Mesh;
use crate::place::{Place, Product};
use crate::row::{Row, Step};
use crate::scene::Scene;

/// In namespaces of one's own every port is free.
const XDS: u16 = 15010;
const DEBUG: u16 = 15014;
const SECRETS: u16 = 16000;
/// How many rows are asked at a time.
const AT_ONCE: usize = 16;
/// A row that takes longer is worth a look.
const SLOW: Duration = Duration::from_secs(1);
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
    let mut config = Config::new(vec![written.clone()]);
    // Nobody else can connect here; and agents have no tokens.
    config.access.believes_all = true;
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
        let product = if pod.other { &run.other } else { &run.product };
        let place = Place::start(node, &mesh, pod, product, &servers, &backend, folder).await?;
        places.insert(pod.name.clone(), place);
    }
    let mut wrong = Vec::new();
    for place in places.values() {
        wrong.extend(place.ready().await.err());
    }
    let ready = start.elapsed();
    let scene = Arc::new(Scene { mesh, places, backend, keys, folder: folder.to_owned() });
    for step in &scene.mesh.steps {
        if !wrong.is_empty() {
            break;
        }
        if let Some(change) = &step.change {
            scene.mesh.change(change, &written)?;
        }
        wrong.extend(rows(&scene, step, run).await?);
    }
    wrong.extend(scene.unexpected_logs());
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

async fn rows(scene: &Arc<Scene>, step: &Step, run: &Run) -> Result<Vec<String>, Box<dyn Error>> {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    let ours = matches!(run.product, Product::Ours);
    for chain in &step.chains {
        let chain = chain.iter().filter(|row| row.text.contains(&run.only) && (ours || !row.ask.ours));
        let chain: Vec<Row> = chain.cloned().collect();
        let (scene, room) = (Arc::clone(scene), Arc::clone(&room));
        tasks.spawn(async move {
            let _permit = room.acquire().await;
            let mut done = Vec::new();
            for row in chain {
                let start = Instant::now();
                let faults = Box::pin(scene.row(&row)).await;
                done.push((row, faults, start.elapsed()));
            }
            done
        });
    }
    let mut wrong = Vec::new();
    while let Some(done) = tasks.join_next().await {
        for (row, faults, took) in done? {
            if run.verbose && took > SLOW {
                println!("line {} took {took:.1?}: {}", row.line, row.text);
            }
            if !faults.is_empty() {
                let faults = faults.join("\n      ");
                wrong.push((row.line, format!("line {}: {}\n      {faults}", row.line, row.text)));
            }
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

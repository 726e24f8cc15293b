//! What pods of a scenario read, and what they say.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1 as core;
use leno_kubelet::{
    Facts, Handle, Image, Images, Place, PodState, ServiceAddress, Settings, Sources, Start, Token,
    TokenRequest, sandbox, start,
};
use leno_node::{Backoff, Bind, Line, Node};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

/// Values by name of a ConfigMap or Secret.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) values: Mutex<BTreeMap<String, BTreeMap<String, Vec<u8>>>>,
    pub(crate) requests: Mutex<Vec<TokenRequest>>,
    changes: watch::Sender<u64>,
    pub(crate) address: Ipv4Addr,
    /// How long tokens last.
    pub(crate) token_life: Duration,
}

impl World {
    pub(crate) fn new(number: u8) -> World {
        World {
            address: [10, 244, 0, number].into(),
            values: Mutex::default(),
            requests: Mutex::default(),
            changes: watch::channel(0).0,
            token_life: Duration::from_secs(3600),
        }
    }

    pub(crate) fn set(&self, name: &str, key: &str, value: &str) {
        let values = [(key.to_owned(), value.as_bytes().to_vec())].into();
        self.values.lock().unwrap().insert(name.to_owned(), values);
        self.changes.send_modify(|count| *count += 1);
    }
}

impl Sources for World {
    fn config_map(&self, _: &str, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        self.values.lock().unwrap().get(name).cloned()
    }

    fn secret(&self, _: &str, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        self.values.lock().unwrap().get(name).cloned()
    }

    fn services(&self, _: &str) -> Vec<ServiceAddress> {
        Vec::new()
    }

    fn token(&self, request: TokenRequest) -> BoxFuture<'_, Result<Token, String>> {
        let mut requests = self.requests.lock().unwrap();
        let number = requests.len();
        let text = format!("token {number} of {} for {}", request.account, request.audience);
        requests.push(request);
        let end = SystemTime::now() + self.token_life;
        Box::pin(async move { Ok(Token { text, end }) })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// A pod that runs.
pub(crate) struct Running {
    pub(crate) handle: Handle,
    lines: mpsc::Receiver<Line>,
    pub(crate) said: Vec<String>,
    place: Place,
    /// The pod's folder.
    pub(crate) folder: std::path::PathBuf,
}

impl Running {
    /// Waits for a state.
    pub(crate) async fn until(&mut self, holds: impl FnMut(&PodState) -> bool) -> PodState {
        self.handle.state().wait_for(holds).await.unwrap().clone()
    }

    /// Waits for a line.
    pub(crate) async fn heard(&mut self, text: &str) -> Result<(), Box<dyn Error>> {
        while !self.said.iter().any(|it| it == text) {
            let line =
                self.lines.recv().await.ok_or_else(|| format!("{text:?} was not said: {:?}", self.said))?;
            self.note(&line);
        }
        Ok(())
    }

    /// All that is said until it ends.
    pub(crate) async fn end(mut self, grace: Option<Duration>) -> (PodState, Vec<String>) {
        self.handle.end(grace);
        let state = self.until(|state| state.gone).await;
        let Running { handle, mut lines, mut said, place, folder: _ } = self;
        drop((handle, place));
        while let Some(line) = lines.recv().await {
            said.push(words(&line));
        }
        (state, said)
    }

    fn note(&mut self, line: &Line) {
        self.said.push(words(line));
    }
}

fn words(line: &Line) -> String {
    let name = line.source.rsplit('/').next().unwrap_or_default();
    format!("{name}: {}", line.text)
}

/// Starts a pod with this `spec`, all of whose images are the test's program.
pub(crate) async fn run(node: &Node, world: &Arc<World>, spec: Value) -> Result<Running, Box<dyn Error>> {
    let pod = json!({
        "metadata": { "name": "pod", "namespace": "shop", "uid": "1-2", "labels": { "app": "web" } },
        "spec": spec,
    });
    let pod: core::Pod = serde_json::from_value(pod)?;
    let folder = tempfile::tempdir()?.keep();
    // Of the pod before something may still be on its way out.
    let address = world.address;
    let made = sandbox::create(node, &pod, address, [10, 244, 0, 1].into(), &folder).await?;
    let mut images = Images::default();
    let program = Bind {
        source: std::fs::read_link("/proc/self/exe")?,
        target: "/opt/program".into(),
        read_only: true,
    };
    images.add(
        "test",
        Image {
            entrypoint: vec!["/opt/program".to_owned(), "program".to_owned()],
            files: vec![program],
            ..Image::default()
        },
    );
    let (sender, lines) = mpsc::channel(256);
    let place = Place::Namespace(made);
    let backoff = Backoff { first: Duration::from_millis(1), ..Backoff::default() };
    let handle = start(Start {
        pod,
        place: place.clone(),
        probes_from: Place::Here,
        facts: Facts {
            address,
            node: "node".to_owned(),
            node_address: [10, 244, 0, 1].into(),
            capacity: (4000, 8 << 30),
        },
        images: Arc::new(images),
        sources: world.clone(),
        folder: folder.clone(),
        service_ports: Vec::new(),
        settings: Settings { backoff, look: Some(Duration::from_millis(5)), ..Settings::default() },
        lines: sender,
    });
    Ok(Running { handle, lines, said: Vec::new(), place, folder })
}

//! The other end of the control socket: what `leno ps`, `logs` and `stop` use.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Context, bail};
use rustix::fs::FlockOperation;

use super::control::Request;
use super::overview::Overview;
use super::runtime_dir;

/// A connection to a running mesh.
#[derive(Debug)]
pub(crate) struct Client {
    name: String,
    stream: UnixStream,
}

impl Client {
    /// Connects to a mesh by its name, or to the only one that runs.
    pub(crate) fn connect(name: Option<&str>) -> anyhow::Result<Client> {
        let name = match name {
            Some(name) => name.to_owned(),
            None => match runtime_dir::running().as_slice() {
                [] => bail!("no mesh runs here; start one with `leno up`"),
                [name] => name.clone(),
                names => bail!("several meshes run: {}; say which with --name", names.join(", ")),
            },
        };
        let stream = UnixStream::connect(runtime_dir::socket(&name))
            .with_context(|| format!("mesh {name} does not run (or is just starting)"))?;
        Ok(Client { name, stream })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn overview(mut self) -> anyhow::Result<Overview> {
        self.ask(&Request::Ps)?;
        let mut text = String::new();
        BufReader::new(self.stream).read_line(&mut text)?;
        serde_json::from_str(&text).context("the mesh gave no answer, it may just be ending")
    }

    /// Lines of output; with `follow`, until the mesh ends.
    pub(crate) fn logs(
        mut self,
        pod: Option<&str>,
        follow: bool,
        tail: usize,
    ) -> anyhow::Result<impl Iterator<Item = std::io::Result<String>>> {
        self.ask(&Request::Logs { pod: pod.map(str::to_owned), follow, tail })?;
        Ok(BufReader::new(self.stream).lines())
    }

    /// Ends the mesh and waits until nothing is left of it.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        let lock = File::open(runtime_dir::of(&self.name).join("lock"))?;
        self.ask(&Request::Stop)?;
        // It says nothing more; what is read is its end.
        let _ = self.stream.read(&mut [0]);
        // The outer process lets go of the lock last.
        rustix::fs::flock(&lock, FlockOperation::LockShared)?;
        Ok(())
    }

    fn ask(&mut self, request: &Request) -> anyhow::Result<()> {
        self.stream.write_all((serde_json::to_string(request)? + "\n").as_bytes())?;
        Ok(())
    }
}

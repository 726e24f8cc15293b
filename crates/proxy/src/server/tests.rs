//! The main thread without its loop.

use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use super::Server;
use crate::admin::ServerState;
use crate::http::filters::Background;
use crate::options::Options;
use crate::worker::{Command, Worker};

/// What keeps a worker from doing anything else, until the other end of the channel is gone.
#[derive(Debug)]
struct Busy(Mutex<mpsc::Receiver<()>>);

impl Background for Busy {
    fn claim(&self) -> bool {
        true
    }

    fn is_ready(&self) -> bool {
        true
    }

    fn start(self: Arc<Self>, _: &Rc<Worker>, _: &str, _: Box<dyn FnOnce() + Send>) {
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).recv();
    }
}

/// Lets the worker do nothing while what this gives is held.
fn occupy(server: &Server, worker: usize) -> mpsc::Sender<()> {
    let (held, busy) = mpsc::channel();
    let work = Arc::new(Busy(Mutex::new(busy)));
    let start = Command::Start { work, stat_prefix: "".into(), ready: Box::new(|| {}) };
    server.workers.get(worker).expect("a worker").tell(start);
    held
}

#[test]
fn live_is_who_serves_what_was_configured_at_the_start() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = "{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 0}}, filter_chains: \
             [{filters: [{name: echo, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo}}]}]}";
        let options = Options {
            config_yaml: Some(format!("static_resources: {{listeners: [{listener}]}}")),
            concurrency: Some(2),
            log_level: "error".into(),
            ..Options::default()
        };
        let log = crate::logging::start(&options).expect("a log");
        let bootstrap = crate::config::file::load(&options).expect("a configuration");
        let (mut server, _events) = Server::start(options, bootstrap, log).await.expect("it starts");
        // One of the workers has not come to it yet.
        let held = occupy(&server, 1);
        server.publish();
        assert!(server.store.is_live());
        assert_eq!(server.state(), ServerState::Initializing);
        drop(held);
        let start = Instant::now();
        while server.state() != ServerState::Live {
            assert!(start.elapsed() < Duration::from_secs(60), "it never becomes {:?}", ServerState::Live);
            std::thread::yield_now();
        }
        // Changes later on take nothing back.
        let _held = occupy(&server, 0);
        assert_eq!(server.state(), ServerState::Live);
    });
}

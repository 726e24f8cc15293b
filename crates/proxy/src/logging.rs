//! The proxy's own log, on `tracing`. Levels and components by Envoy's names are in
//! `admin::logging`, which makes the filter; here it is installed and replaced. [`format`] is how lines look
//! if the configuration says so.

use std::io;
use std::sync::{Arc, OnceLock};

use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::options::Options;

pub(crate) mod format;

/// Replaces the filter while running.
#[derive(Clone)]
pub(crate) struct LogFilter {
    handle: reload::Handle<EnvFilter, Registry>,
    /// Levels of others, which stay.
    others: Arc<str>,
}

/// The log of the process.
static STARTED: OnceLock<LogFilter> = OnceLock::new();

/// Starts logging to stderr, or to a file. There is one log in a process: who starts it again (a proxy
/// beside an agent, or several in tests) shares it.
pub(crate) fn start(options: &Options) -> io::Result<LogFilter> {
    let writer = match options.log_path.as_deref() {
        None => Writer::Stderr,
        Some(path) => Writer::File(Arc::new(std::fs::File::options().create(true).append(true).open(path)?)),
    };
    let started = STARTED.get_or_init(|| {
        let others: Arc<str> = options.other_log_levels.as_str().into();
        let filter = crate::admin::logging::filter(options);
        let (layer, handle) = reload::Layer::new(with_others(&filter, &others));
        let output = tracing_subscriber::fmt::layer().with_ansi(false);
        let output = output.event_format(format::Lines::new()).with_writer(writer);
        let _ = tracing_subscriber::registry().with(layer).with(output).try_init();
        LogFilter { handle, others }
    });
    Ok(started.clone())
}

fn with_others(filter: &str, others: &str) -> EnvFilter {
    EnvFilter::new(if others.is_empty() { filter.to_owned() } else { format!("{filter},{others}") })
}

impl LogFilter {
    /// Installs another filter, in the syntax of `tracing_subscriber::EnvFilter`.
    pub(crate) fn set(&self, filter: &str) {
        let _ = self.handle.reload(with_others(filter, &self.others));
    }
}

/// Where lines go.
enum Writer {
    Stderr,
    File(Arc<std::fs::File>),
}

impl<'a> MakeWriter<'a> for Writer {
    type Writer = Box<dyn io::Write + 'a>;

    fn make_writer(&'a self) -> Self::Writer {
        match self {
            Writer::Stderr => Box::new(io::stderr().lock()),
            Writer::File(file) => Box::new(&**file),
        }
    }
}

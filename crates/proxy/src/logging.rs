//! The proxy's own log, on `tracing`. Levels and components by Envoy's names are in
//! `admin::logging`, which makes the filter; here it is installed and replaced.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// Replaces the filter while running.
#[derive(Clone)]
pub(crate) struct LogFilter(reload::Handle<EnvFilter, Registry>);

/// Starts logging to stderr, or to a file. A second proxy in one process (tests) shares the
/// log of the first.
pub(crate) fn start(filter: &str, file: Option<&Path>) -> io::Result<LogFilter> {
    let (layer, handle) = reload::Layer::new(EnvFilter::new(filter));
    let writer = match file {
        None => Writer::Stderr,
        Some(path) => Writer::File(Arc::new(std::fs::File::options().create(true).append(true).open(path)?)),
    };
    let output = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer);
    let _ = tracing_subscriber::registry().with(layer).with(output).try_init();
    Ok(LogFilter(handle))
}

impl LogFilter {
    /// Installs another filter, in the syntax of `tracing_subscriber::EnvFilter`.
    pub(crate) fn set(&self, filter: &str) {
        let _ = self.0.reload(EnvFilter::new(filter));
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

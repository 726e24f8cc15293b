//! Lowering of the bootstrap's `admin`, and how a context is made of it.

use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use leno_api::proto::envoy::config::bootstrap::v3 as bootstrap;
use tokio::sync::{Notify, mpsc};

use crate::admin::logging::Levels;
use crate::admin::{Command, Context, ServerFacts};
use crate::config::address::{self, Address};
use crate::config::lower::Lower;
use crate::options::Options;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::server_stats::Sampled;
use crate::telemetry::stats::StatsStore;
use crate::telemetry::tags::StatsConfig;

/// What the bootstrap says that the admin interface has to know.
#[derive(Debug, Default)]
pub(crate) struct AdminConfig {
    /// `admin.address`; `None`: there is no admin interface.
    pub(crate) address: Option<Address>,
    /// `admin.access_log`.
    pub(crate) access_logs: Vec<Arc<AccessLog>>,
    /// `stats_config`.
    pub(crate) stats_config: StatsConfig,
    /// The whole bootstrap as read, an envoy.config.bootstrap.v3.Bootstrap in wire form.
    pub(crate) bootstrap: bytes::Bytes,
    /// `layered_runtime`, lowest layer first: name, values.
    pub(crate) runtime_layers: Vec<(String, serde_json::Value)>,
    /// Whom to tell when somebody looks at stats (`stats_flush_on_admin`).
    pub(crate) flush: Option<Arc<Notify>>,
}

impl AdminConfig {
    /// Lowers `admin`; what the rest of the bootstrap says is left at its default.
    #[allow(deprecated, reason = "old fields are refused by name")]
    pub(crate) fn lower(proto: bootstrap::Admin, at: &mut Lower) -> Option<Self> {
        let bootstrap::Admin {
            access_log,
            access_log_path,
            // Profiles are not written: there are no profiler endpoints.
            profile_path: _,
            address: proto_address,
            socket_options,
            // There is no global limit of connections.
            ignore_global_conn_limit: _,
            allow_paths,
        } = proto;
        at.unsupported("access_log_path", !access_log_path.is_empty());
        at.unsupported("socket_options", !socket_options.is_empty());
        at.unsupported("allow_paths", !allow_paths.is_empty());
        let access_logs = at.each("access_log", access_log, AccessLog::lower);
        at.unsupported("access_log: to a service", access_logs.iter().any(|log| log.sender().is_some()));
        let address = at.optional("address", proto_address, address::address);
        Some(Self { address, access_logs, ..Self::default() })
    }
}

impl Context {
    /// What the endpoints work with.
    pub(crate) fn new(
        options: &Options,
        config: AdminConfig,
        stats: Arc<StatsStore>,
        concurrency: usize,
        commands: mpsc::UnboundedSender<Command>,
        started: Instant,
        sampled: Arc<Sampled>,
    ) -> Self {
        let AdminConfig { address, access_logs, stats_config, bootstrap, runtime_layers, flush } = config;
        let server = ServerFacts {
            started,
            started_at: SystemTime::now() - started.elapsed(),
            concurrency,
            bootstrap,
            runtime_layers,
            options: options.clone(),
        };
        let levels = Mutex::new(Levels::new(options));
        Self { stats, stats_config, commands, server, levels, access_logs, address, sampled, flush }
    }
}

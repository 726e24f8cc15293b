//! envoy.filters.network.ext_authz: asks a service whether a connection may go on.
//!
//! Deviation: the service is asked when the connection is there, not at its first byte, so that a
//! server that speaks first does not speak to those who are denied.
//!
//! Deviation: a denied connection has no response flag `UAEX` and no details; it is counted.

use std::rc::Rc;
use std::sync::Arc;

use leno_api::proto::envoy::extensions::filters::network::ext_authz::v3 as proto;
use prost_types::Any;

use super::{NetworkFilter, NetworkFilterConfig, NetworkStep, Waited};
use crate::config::lower::Lower;
use crate::http::client::config::{GrpcTarget, grpc};
use crate::http::client::grpc::{Unary, unary};
use crate::http::filters::ext_authz::{TIMEOUT, Verdict, check, check_version, decode};
use crate::http::headers::HeaderMap;
use crate::matching::value::{self, MetadataMatcher};
use crate::telemetry::per_thread::PerThread;
use crate::telemetry::stats::stats_scope;
use crate::telemetry::stream_info::{ConnectionInfo, DynamicMetadata};
use crate::worker::Worker;

/// Of dynamic metadata, whatever the filter is called.
const NAMESPACE: &str = "envoy.filters.network.ext_authz";

stats_scope! {
    /// `ext_authz.STAT_PREFIX.`
    struct AuthzStats {
        gauge active;
        counter cx_closed;
        counter denied;
        counter disabled;
        counter error;
        counter failure_mode_allowed;
        counter ok;
        counter total;
    }
}

/// ExtAuthz.
#[derive(Debug)]
struct ExtAuthz {
    settings: Arc<Settings>,
    prefix: Box<str>,
    stats: PerThread<AuthzStats>,
}

#[derive(Debug)]
struct Settings {
    target: GrpcTarget,
    failure_mode_allow: bool,
    include_certificate: bool,
    include_tls_session: bool,
    enabled_metadata: Option<MetadataMatcher>,
    labels: Vec<(Box<str>, Box<str>)>,
    namespaces: Vec<Box<str>>,
}

impl NetworkFilterConfig for ExtAuthz {
    fn open(&self, worker: &Rc<Worker>) -> Option<Box<dyn NetworkFilter>> {
        let thread = worker.stats();
        let stats = self.stats.of(thread, || AuthzStats::kept(thread, &self.prefix)).clone();
        Some(Box::new(Checking { settings: Arc::clone(&self.settings), worker: Rc::clone(worker), stats }))
    }
}

/// The filter at work on one connection.
struct Checking {
    settings: Arc<Settings>,
    worker: Rc<Worker>,
    stats: AuthzStats,
}

/// A question that is being asked counts as active until it is dropped.
struct Active(AuthzStats);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active().dec();
    }
}

impl NetworkFilter for Checking {
    fn on_new_connection(&mut self, connection: &mut ConnectionInfo) -> NetworkStep {
        let (settings, worker, stats) =
            (Arc::clone(&self.settings), Rc::clone(&self.worker), self.stats.clone());
        let enabled = settings.enabled_metadata.as_ref();
        if enabled.is_some_and(|matcher| !matcher.matches(&connection.found.metadata)) {
            stats.disabled().inc();
            return NetworkStep::Continue;
        }
        let include = [settings.include_certificate, settings.include_tls_session];
        let message = check::connection_message(connection, &settings.labels, &settings.namespaces, include);
        let local = connection.local.ip();
        stats.total().inc();
        stats.active().inc();
        let active = Active(stats.clone());
        NetworkStep::Await(Box::pin(async move {
            let _active = active;
            // What headers are made of are facts of requests, of which there are none.
            let metadata = settings.target.metadata(&HeaderMap::new(), &());
            let request = Unary {
                service: "envoy.service.auth.v3.Authorization",
                method: "Check",
                authority: settings.target.authority.as_deref(),
                metadata: &metadata,
                message,
                timeout: settings.target.timeout.or(Some(TIMEOUT)).filter(|timeout| !timeout.is_zero()),
                local,
            };
            let answer = unary(&worker, &settings.target.cluster, &request).await;
            let answer = answer.ok().and_then(|message| decode(&message).ok()).unwrap_or_default();
            let mut found = DynamicMetadata::new();
            if !answer.metadata.is_empty() {
                found.values_mut(NAMESPACE).extend(answer.metadata);
            }
            let outcome = match answer.verdict {
                Verdict::Ok => {
                    stats.ok().inc();
                    Ok(())
                }
                Verdict::Denied => {
                    stats.denied().inc();
                    Err("".into())
                }
                Verdict::Error => {
                    stats.error().inc();
                    if settings.failure_mode_allow {
                        stats.failure_mode_allowed().inc();
                        Ok(())
                    } else {
                        Err("".into())
                    }
                }
            };
            if outcome.is_err() {
                stats.cx_closed().inc();
            }
            Waited { metadata: found, outcome }
        }))
    }
}

/// Lowers an ExtAuthz.
pub(super) fn lower(any: &Any, at: &mut Lower) -> Option<Arc<dyn NetworkFilterConfig>> {
    let proto::ExtAuthz {
        stat_prefix,
        grpc_service,
        failure_mode_allow,
        include_peer_certificate,
        transport_api_version,
        filter_enabled_metadata,
        bootstrap_metadata_labels_key,
        include_tls_session,
        send_tls_alert_on_denial,
        metadata_context_namespaces,
        typed_metadata_context_namespaces,
        shadow_mode,
    } = at.unpack(any)?;
    if stat_prefix.is_empty() {
        at.error_at("stat_prefix", "value length must be at least 1 characters");
    }
    check_version(transport_api_version, at);
    at.unsupported("send_tls_alert_on_denial", send_tls_alert_on_denial);
    at.unsupported("typed_metadata_context_namespaces", !typed_metadata_context_namespaces.is_empty());
    at.unsupported("shadow_mode", shadow_mode);
    let labels = check::labels(&bootstrap_metadata_labels_key, at);
    let target = at.required("grpc_service", grpc_service, grpc);
    let enabled_metadata = match filter_enabled_metadata {
        Some(proto) => Some(at.field("filter_enabled_metadata", |at| value::metadata(proto, at))?),
        None => None,
    };
    let settings = Settings {
        target: target?,
        failure_mode_allow,
        include_certificate: include_peer_certificate,
        include_tls_session,
        enabled_metadata,
        labels,
        namespaces: metadata_context_namespaces.into_iter().map(Into::into).collect(),
    };
    Some(Arc::new(ExtAuthz {
        settings: Arc::new(settings),
        prefix: format!("ext_authz.{stat_prefix}.").into(),
        stats: PerThread::default(),
    }))
}

//! `listener.ADDRESS.ssl.` and `cluster.NAME.ssl.`

use std::sync::{Arc, Mutex, PoisonError};

use leno_tls::{Failure, Findings, Rule, cipher_name, group_name, scheme_name, version_name};
use rustls::CommonState;

use crate::telemetry::stats::{Block, ThreadStats, stats_scope};

stats_scope! {
    /// One worker's counts of the handshakes of one listener or cluster.
    pub(crate) struct SslStats {
        counter connection_error;
        counter fail_verify_cert_hash;
        counter fail_verify_error;
        counter fail_verify_no_cert;
        counter fail_verify_san;
        counter handshake;
        counter no_certificate;
        counter ocsp_staple_failed;
        counter ocsp_staple_omitted;
        counter ocsp_staple_requests;
        counter ocsp_staple_responses;
        counter session_reused;
        counter was_key_usage_invalid;
    }
}

stats_scope! {
    /// `listener.ADDRESS.server_ssl_socket_factory.`
    pub(crate) struct ServerFactoryStats {
        counter downstream_context_secrets_not_ready;
        counter ssl_context_update_by_sds;
        counter upstream_context_secrets_not_ready;
    }
}

/// The counters of one listener or cluster, those included whose names come with handshakes.
#[derive(Debug)]
pub(crate) struct TlsStats {
    counts: SslStats,
    prefix: Box<str>,
    thread: Arc<ThreadStats>,
    factory: ServerFactoryStats,
    /// Which kind and what of that kind, with the counter. Locked only because health checks run
    /// in tasks that may be moved; nobody else has it.
    named: Mutex<Vec<(&'static str, &'static str, Arc<Block>)>>,
}

impl TlsStats {
    /// Those below `scope`, e.g. `cluster.NAME.`; a server's or a client's.
    pub(crate) fn new(thread: &Arc<ThreadStats>, scope: &str, server: bool) -> Self {
        let factory = if server { "server_ssl_socket_factory." } else { "client_ssl_socket_factory." };
        Self {
            counts: SslStats::new(thread, &format!("{scope}ssl.")),
            prefix: format!("{scope}ssl.").replace(':', "_").into(),
            factory: ServerFactoryStats::new(thread, &format!("{scope}{factory}")),
            thread: Arc::clone(thread),
            named: Mutex::default(),
        }
    }

    /// The counters that have fixed names.
    pub(crate) fn counts(&self) -> &SslStats {
        &self.counts
    }

    /// Counts a session that was agreed upon.
    pub(crate) fn established(&self, session: &CommonState, findings: &Findings) {
        let counts = &self.counts;
        counts.handshake().inc();
        if session.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
            counts.session_reused().inc();
        }
        if session.peer_certificates().is_none_or(<[_]>::is_empty) {
            counts.no_certificate().inc();
        }
        if let Some(suite) = session.negotiated_cipher_suite() {
            self.count("ciphers", cipher_name(suite.suite()));
        }
        if let Some(version) = session.protocol_version() {
            self.count("versions", version_name(version));
        }
        if let Some(group) = session.negotiated_key_exchange_group() {
            self.count("curves", group_name(group.name()));
        }
        if let Some(scheme) = findings.scheme {
            self.count("sigalgs", scheme_name(scheme));
        }
        // A peer that was let pass all the same.
        if let Some(failure) = &findings.failure {
            self.refused(failure);
        }
    }

    /// Counts a failed handshake.
    pub(crate) fn failed(&self, error: &rustls::Error, findings: &Findings) {
        if leno_tls::is_missing_certificate(error) {
            self.counts.fail_verify_no_cert().inc();
        } else if let (true, Some(failure)) = (leno_tls::is_refused_certificate(error), &findings.failure) {
            self.refused(failure);
        } else {
            self.counts.connection_error().inc();
        }
    }

    fn refused(&self, failure: &Failure) {
        match failure.rule {
            Rule::Chain => self.counts.fail_verify_error().inc(),
            Rule::Names => self.counts.fail_verify_san().inc(),
            Rule::Pins => self.counts.fail_verify_cert_hash().inc(),
            Rule::KeyUsage => {
                self.counts.was_key_usage_invalid().inc();
                self.counts.connection_error().inc();
            }
        }
    }

    /// Counts a connection that was refused because a secret is missing.
    pub(crate) fn not_ready(&self, server: bool) {
        if server {
            self.factory.downstream_context_secrets_not_ready().inc();
        } else {
            self.factory.upstream_context_secrets_not_ready().inc();
        }
    }

    fn count(&self, kind: &'static str, name: &'static str) {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        let known = named.iter().position(|(other, value, _)| (*other, *value) == (kind, name));
        let index = known.unwrap_or_else(|| {
            named.push((kind, name, self.thread.counter(&format!("{}{kind}.{name}", self.prefix))));
            named.len() - 1
        });
        if let Some((_, _, block)) = named.get(index) {
            block.cell(0).inc();
        }
    }
}

/// Counts, on the main thread, that a context was made anew because a secret has come or changed;
/// `scope` as in [`TlsStats::new`].
pub(crate) fn count_refill(thread: &ThreadStats, scope: &str, server: bool) {
    let factory = if server { "server_ssl_socket_factory" } else { "client_ssl_socket_factory" };
    thread.count(&format!("{scope}{factory}.ssl_context_update_by_sds").replace(':', "_"), 1);
}

//! The webhooks: `/inject` puts sidecars into Pods, `/validate` refuses objects that could not be
//! used, over HTTPS, asked by API servers.
//!
//! `review` answers one AdmissionReview, a pure function but for the counts; `serve` is the server;
//! `follow` keeps what it is configured with (a bad ConfigMap leaves the last good one) and
//! `register` tells API servers our roots.

mod follow;
mod register;
mod review;
mod serve;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) use follow::follow;
pub(crate) use register::register;
pub(crate) use serve::serve;

use http::StatusCode;
use serde_json::{Value as Json, json};
use tokio::sync::watch;

use super::{BuiltIn, Injector, MeshSettings, ProxyRules, Refused, Settings};

/// Where webhooks are served, and for which control plane.
#[derive(Clone, Debug)]
pub struct WebhookOptions {
    /// The address, `:15017` by default.
    pub address: SocketAddr,
    /// The revision of the control plane, `default` for the default one.
    pub revision: String,
    /// The namespace of its ConfigMaps.
    pub namespace: String,
    /// Whether nodes run native sidecars; `None`: if all kubelets are of version 1.33 or later.
    pub native: Option<bool>,
    /// Whether webhook configurations are given our roots.
    pub registers: bool,
}

/// What is configured now, and what was done.
pub(crate) struct Webhook {
    pub(crate) options: WebhookOptions,
    current: watch::Sender<Current>,
    native: AtomicBool,
    /// Whether its configuration was read, and the webhook configurations have our roots; each as far as it can be.
    configured: watch::Sender<bool>,
    registered: AtomicBool,
    pub(crate) counts: Counts,
}

/// What injection is configured with.
#[derive(Clone)]
pub(crate) struct Current {
    pub(crate) injector: Arc<Injector>,
    pub(crate) rules: Arc<ProxyRules>,
}

/// Istio's counts of injection.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) requests: AtomicU64,
    pub(crate) successes: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) skips: AtomicU64,
    /// Objects that were let in, and that were not.
    pub(crate) validated: AtomicU64,
    pub(crate) rejected: AtomicU64,
    /// Times that a webhook configuration was given our roots.
    pub(crate) patched: AtomicU64,
    /// Configurations of injection that could not be used.
    pub(crate) bad_configurations: AtomicU64,
    /// Handshakes of TLS that have come to nothing.
    pub(crate) handshakes: AtomicU64,
    /// Connections that had to go for others.
    pub(crate) crowds: Arc<AtomicU64>,
    /// Requests that were no reviews, or not let in, by status of HTTP.
    pub(crate) http_errors: Mutex<BTreeMap<u16, u64>>,
    /// Those of them that were for validation.
    pub(crate) validation_errors: Mutex<BTreeMap<u16, u64>>,
}

impl Counts {
    fn on_handshake_failed(&self) {
        Counts::add(&self.handshakes);
    }

    /// A request was answered with an error of HTTP. Of injection it counts as a request that has failed.
    fn on_http_error(&self, path: &str, status: StatusCode) {
        let count = |counts: &Mutex<BTreeMap<u16, u64>>| {
            *counts.lock().unwrap_or_else(PoisonError::into_inner).entry(status.as_u16()).or_default() += 1;
        };
        count(&self.http_errors);
        if path.starts_with("/validate") {
            count(&self.validation_errors);
        } else if path.starts_with("/inject") {
            Counts::add(&self.requests);
            Counts::add(&self.failures);
        }
    }

    fn add(count: &AtomicU64) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

impl Webhook {
    /// With what is built in.
    pub(crate) fn new(options: WebhookOptions) -> Result<Webhook, Refused> {
        let injector = Injector::new(BuiltIn::settings(&options.revision), MeshSettings::default())?;
        let current = Current { injector: Arc::new(injector), rules: Arc::new(ProxyRules::default()) };
        Ok(Webhook {
            native: AtomicBool::new(options.native.unwrap_or(false)),
            configured: watch::Sender::new(false),
            registered: AtomicBool::new(!options.registers),
            options,
            current: watch::Sender::new(current),
            counts: Counts::default(),
        })
    }

    /// Whether Pods that are made now are injected as they should be. Until then nobody is to be told that the
    /// control plane is ready, as Pods are made at once when an installation has ended.
    pub(crate) fn is_ready(&self) -> bool {
        self.is_configured() && self.registered.load(Ordering::Acquire)
    }

    /// Nobody is to be given roots.
    pub(crate) fn needs_no_roots(&self) {
        self.registered.store(true, Ordering::Release);
    }

    fn current(&self) -> Current {
        self.current.borrow().clone()
    }

    /// Whether its configuration was read, as far as it can be.
    fn is_configured(&self) -> bool {
        *self.configured.borrow()
    }

    /// What is configured, as it changes, once it was read.
    pub(crate) async fn subscribe(&self) -> watch::Receiver<Current> {
        // It does not end before we do.
        let _ = self.configured.subscribe().wait_for(|configured| *configured).await;
        self.current.subscribe()
    }

    /// What it has, for `/debug/inject`.
    pub(crate) fn shown(&self) -> Json {
        let current = self.current();
        let settings = current.injector.settings();
        json!({
            "revision": self.options.revision,
            "policy": format!("{:?}", settings.config.policy).to_lowercase(),
            "defaultTemplates": settings.config.default_templates,
            "templates": settings.config.templates,
            "aliases": settings.config.aliases,
            "neverInjectSelector": settings.config.never,
            "alwaysInjectSelector": settings.config.always,
            "injectedAnnotations": settings.config.injected_annotations,
            "values": settings.values,
            "meshConfig": current.injector.mesh().json(),
            "nativeSidecars": self.native.load(Ordering::Relaxed),
        })
    }

    /// From now on Pods are injected so. What cannot be used changes nothing.
    fn install(&self, settings: Settings, mesh: MeshSettings, rules: ProxyRules) -> Result<(), Refused> {
        let injector = Arc::new(Injector::new(settings, mesh)?);
        self.current.send_replace(Current { injector, rules: Arc::new(rules) });
        Ok(())
    }
}

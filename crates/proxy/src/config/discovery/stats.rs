//! What subscriptions count: `cluster_manager.cds.`, `listener_manager.lds.`, `cluster.NAME.`,
//! `http.PREFIX.rds.NAME.`, `http.PREFIX.rds.vhds.TABLE.`, `sds.NAME.` and
//! `extension_config_discovery.http_filter.NAME.`, as Envoy does. `version`, a hash of 64 bits, and
//! `version_text` are not shown: values here have 62 bits.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use leno_base::Name;
use leno_xds::TypeUrl;

use crate::cluster::stats::UpdateStats;
use crate::config::source::{Origin, ResourceKey};
use crate::telemetry::stats::{Cell, ThreadStats, stats_scope};

stats_scope! {
    struct SubscriptionScope {
        counter init_fetch_timeout;
        counter update_rejected;
        gauge update_time;
        histogram update_duration;
    }
}

stats_scope! {
    struct AttemptScope {
        counter update_attempt;
        counter update_failure;
        counter update_success;
    }
}

stats_scope! {
    struct ReloadScope {
        counter config_reload;
        gauge config_reload_time_ms;
    }
}

stats_scope! {
    struct EmptyScope {
        counter update_empty;
    }
}

stats_scope! {
    struct SecretScope {
        counter key_rotation_failed;
    }
}

stats_scope! {
    struct ExtensionScope {
        counter config_conflict;
        counter config_fail;
        counter config_reload;
    }
}

stats_scope! {
    /// `control_plane.`
    pub(super) struct ControlPlaneScope {
        gauge connected_state;
        gauge pending_requests;
        counter rate_limit_enforced;
    }
}

/// One user of a resource.
#[derive(Debug)]
struct Subscription {
    /// The cluster's or connection manager's stat name; empty where there is but one.
    user: Name,
    counts: SubscriptionScope,
    attempts: Attempts,
    reload: Option<ReloadScope>,
    empty: Option<EmptyScope>,
    secret: Option<SecretScope>,
    extension: Option<ExtensionScope>,
    /// It is a file, which is read at once.
    of_file: bool,
    /// Of a stream of its own.
    control_plane: Option<ControlPlaneScope>,
}

/// What every cluster counts, wherever its endpoints come from, or what others count.
#[derive(Debug)]
enum Attempts {
    OfCluster(UpdateStats),
    Other(AttemptScope),
}

impl Attempts {
    fn begun(&self) -> Cell<'_> {
        match self {
            Self::OfCluster(scope) => scope.update_attempt(),
            Self::Other(scope) => scope.update_attempt(),
        }
    }

    fn failed(&self) -> Cell<'_> {
        match self {
            Self::OfCluster(scope) => scope.update_failure(),
            Self::Other(scope) => scope.update_failure(),
        }
    }

    fn succeeded(&self) -> Cell<'_> {
        match self {
            Self::OfCluster(scope) => scope.update_success(),
            Self::Other(scope) => scope.update_success(),
        }
    }
}

impl Subscription {
    /// A subscription to a stream starts with an attempt.
    fn new(thread: &ThreadStats, type_url: &TypeUrl, key: &ResourceKey, user: &Name) -> Self {
        let name = &key.name;
        let prefix = match type_url {
            // All that are asked for on demand count together.
            TypeUrl::Cluster if !name.is_empty() => "cluster_manager.odcds.".to_owned(),
            TypeUrl::Cluster => "cluster_manager.cds.".to_owned(),
            TypeUrl::Listener => "listener_manager.lds.".to_owned(),
            TypeUrl::Endpoint => format!("cluster.{user}."),
            TypeUrl::Route => format!("http.{user}.rds.{name}."),
            // The name ends with a slash.
            TypeUrl::VirtualHost => format!("http.{user}.rds.vhds.{}.", name.trim_end_matches('/')),
            TypeUrl::ExtensionConfig => format!("extension_config_discovery.http_filter.{name}."),
            _ => format!("sds.{name}."),
        };
        let prefix = prefix.replace(':', "_");
        let reloads = match type_url {
            TypeUrl::Cluster => name.is_empty(),
            _ => matches!(type_url, TypeUrl::Route | TypeUrl::VirtualHost),
        };
        let of_cluster = *type_url == TypeUrl::Endpoint;
        let own_stream = matches!(key.origin, Origin::Grpc(_));
        let subscription = Self {
            user: user.clone(),
            counts: SubscriptionScope::new(thread, &prefix),
            attempts: match of_cluster {
                true => Attempts::OfCluster(UpdateStats::new(thread, &prefix)),
                false => Attempts::Other(AttemptScope::new(thread, &prefix)),
            },
            reload: reloads.then(|| ReloadScope::new(thread, &prefix)),
            empty: matches!(type_url, TypeUrl::Route | TypeUrl::VirtualHost)
                .then(|| EmptyScope::new(thread, &prefix)),
            secret: (*type_url == TypeUrl::Secret).then(|| SecretScope::new(thread, &prefix)),
            extension: (*type_url == TypeUrl::ExtensionConfig).then(|| ExtensionScope::new(thread, &prefix)),
            of_file: matches!(key.origin, Origin::File(_)),
            control_plane: own_stream
                .then(|| ControlPlaneScope::new(thread, &format!("{prefix}control_plane."))),
        };
        // That counts then.
        if !subscription.of_file {
            subscription.attempts.begun().inc();
        }
        subscription
    }

    fn reloaded(&self) {
        if let Some(reload) = &self.reload {
            reload.config_reload().inc();
            reload.config_reload_time_ms().set(unix_millis());
        }
    }

    fn end(&self, ending: &Ending) {
        self.attempts.begun().inc();
        match ending {
            Ending::Accepted { took, changed } => {
                self.attempts.succeeded().inc();
                self.counts.update_time().set(unix_millis());
                self.counts.update_duration().record_ms(*took);
                if *changed {
                    self.reloaded();
                }
                if let Some(extension) = self.extension.as_ref().filter(|_| *changed) {
                    extension.config_reload().inc();
                }
            }
            Ending::Empty => {
                self.attempts.succeeded().inc();
                self.counts.update_time().set(unix_millis());
                match (&self.attempts, &self.empty) {
                    (Attempts::OfCluster(scope), _) => scope.update_empty().inc(),
                    (_, Some(empty)) => empty.update_empty().inc(),
                    (_, None) => {}
                }
            }
            Ending::Rejected => self.counts.update_rejected().inc(),
            Ending::Failed => self.attempts.failed().inc(),
            Ending::TimedOut => self.counts.init_fetch_timeout().inc(),
        }
        let fails = match ending {
            Ending::Rejected | Ending::TimedOut => true,
            Ending::Failed => self.of_file,
            Ending::Accepted { .. } | Ending::Empty => false,
        };
        if let Some(extension) = self.extension.as_ref().filter(|_| fails) {
            extension.config_fail().inc();
        }
    }
}

/// How an attempt to get a resource ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It is in force.
    Accepted {
        /// How long that took.
        took: Duration,
        /// It is not what was there before.
        changed: bool,
    },
    /// A file without resources.
    Empty,
    /// It was refused.
    Rejected,
    /// The stream broke, or the file could not be read.
    Failed,
    /// Nothing came within `initial_fetch_timeout`.
    TimedOut,
}

/// The subscriptions, by what they ask for; the name is empty for everything there is.
#[derive(Debug)]
pub(super) struct Counts {
    thread: Arc<ThreadStats>,
    subscriptions: HashMap<(TypeUrl, ResourceKey), Vec<Subscription>>,
}

impl Counts {
    pub(super) fn new(thread: &Arc<ThreadStats>) -> Self {
        Self { thread: Arc::clone(thread), subscriptions: HashMap::new() }
    }

    /// There are these users of a resource, and maybe others. `connected`: its stream is open.
    pub(super) fn add(
        &mut self,
        type_url: &TypeUrl,
        key: &ResourceKey,
        users: &BTreeSet<Name>,
        connected: bool,
    ) {
        if users.is_empty() {
            return;
        }
        let known = self.subscriptions.entry((type_url.clone(), key.clone())).or_default();
        let before: BTreeSet<Name> = known.iter().map(|known| known.user.clone()).collect();
        for user in users.difference(&before) {
            let subscription = Subscription::new(&self.thread, type_url, key, user);
            if let Some(control_plane) = subscription.control_plane.as_ref().filter(|_| connected) {
                control_plane.connected_state().set(1);
            }
            known.push(subscription);
        }
    }

    /// There are no others.
    pub(super) fn retain(&mut self, type_url: &TypeUrl, key: &ResourceKey, users: &BTreeSet<Name>) {
        let of = (type_url.clone(), key.clone());
        if users.is_empty() {
            self.subscriptions.remove(&of);
        } else if let Some(known) = self.subscriptions.get_mut(&of) {
            known.retain(|known| users.contains(&known.user));
        }
    }

    /// An attempt to get a part of a resource has begun.
    pub(super) fn begun(&self, type_url: &TypeUrl, key: &ResourceKey) {
        let of = (type_url.clone(), key.clone());
        let known = self.subscriptions.get(&of).into_iter().flatten();
        known.for_each(|subscription| subscription.attempts.begun().inc());
    }

    /// What came of another type has changed this resource too.
    pub(super) fn reloaded(&self, type_url: &TypeUrl, key: &ResourceKey) {
        let of = (type_url.clone(), key.clone());
        self.subscriptions.get(&of).into_iter().flatten().for_each(Subscription::reloaded);
    }

    /// An attempt ended.
    pub(super) fn end(&self, type_url: &TypeUrl, key: &ResourceKey, ending: &Ending) {
        let of = (type_url.clone(), key.clone());
        self.subscriptions.get(&of).into_iter().flatten().for_each(|subscription| subscription.end(ending));
    }

    /// Attempts of all subscriptions of a stream ended, of one type or of any.
    pub(super) fn end_all(&self, type_url: Option<&TypeUrl>, origin: &Origin, ending: &Ending) {
        self.of(type_url, origin).for_each(|subscription| subscription.end(ending));
    }

    /// A stream of their own is open, or is not.
    pub(super) fn connected(&self, type_url: Option<&TypeUrl>, origin: &Origin, connected: bool) {
        for control_plane in self.of(type_url, origin).filter_map(|known| known.control_plane.as_ref()) {
            control_plane.connected_state().set(u64::from(connected));
        }
    }

    fn of<'s>(
        &'s self,
        type_url: Option<&'s TypeUrl>,
        origin: &'s Origin,
    ) -> impl Iterator<Item = &'s Subscription> {
        let all = self.subscriptions.iter();
        all.filter(move |((of, key), _)| key.origin == *origin && type_url.is_none_or(|wanted| wanted == of))
            .flat_map(|(_, known)| known)
    }

    /// The configuration that is there is of a type that a filter does not take.
    pub(super) fn conflict(&self, key: &ResourceKey) {
        let known = self.subscriptions.get(&(TypeUrl::ExtensionConfig, key.clone()));
        for extension in known.into_iter().flatten().filter_map(|known| known.extension.as_ref()) {
            extension.config_conflict().inc();
        }
    }

    /// Files of a secret have changed and cannot be used.
    pub(super) fn rotation_failed(&self, key: &ResourceKey) {
        let known = self.subscriptions.get(&(TypeUrl::Secret, key.clone()));
        for secret in known.into_iter().flatten().filter_map(|known| known.secret.as_ref()) {
            secret.key_rotation_failed().inc();
        }
    }
}

fn unix_millis() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

//! Configurations of filters that come by ECDS: what is there, what is not waited for, and the
//! listeners that are made anew with it.
//!
//! A new configuration is tried on all filters that want it first; if one of them cannot do with it,
//! it is refused and the last good one stays. Listeners in force get it as another version of
//! themselves that differs in nothing else, which warms if the filter has something to get ready
//! first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use leno_api::proto::envoy::config::core::v3::TypedExtensionConfig;
use leno_base::Name;
use leno_xds::TypeUrl;
use prost::Message as _;
use prost_types::Any;

use super::{Reference, Store};
use crate::admin::DynamicResource;
use crate::config::lower::{Lower, Scope};
use crate::config::source::ResourceKey;
use crate::config::wire::Fingerprint;
use crate::http::config::discovered::Refusal;
use crate::listener::Listener;
use crate::listener::renew::RenewedChains;

/// A configuration that came (TypedExtensionConfig).
#[derive(Clone, Debug)]
pub(crate) struct Extension {
    /// `typed_config`.
    pub(crate) config: Any,
    /// Tells configurations apart.
    pub(crate) fingerprint: Fingerprint,
    /// The message as it came.
    source: Any,
    /// `version_info`.
    version: String,
    /// When it came.
    updated: SystemTime,
}

impl Extension {
    /// Lowers a TypedExtensionConfig that came under a name; its configuration is lowered where it is used.
    pub(crate) fn lower(name: &str, source: &Any, updated: SystemTime, at: &mut Lower) -> Option<Self> {
        let TypedExtensionConfig { name: own, typed_config } = at.decode(source)?;
        if own != name {
            at.error_at("name", format!("Unexpected resource name in ExtensionConfigDS response: {own}"));
        }
        let config = at.required("typed_config", typed_config, |any, at| at.extension(any))?;
        Some(Self {
            fingerprint: Fingerprint::of(&config.encode_to_vec()),
            config,
            source: source.clone(),
            version: at.scope().version.clone(),
            updated,
        })
    }
}

/// The configurations that came.
#[derive(Debug, Default)]
pub(super) struct ExtensionTable {
    known: BTreeMap<ResourceKey, Extension>,
    /// Those that did not come in time, or were refused or removed: nothing waits for them.
    expired: BTreeSet<ResourceKey>,
}

impl ExtensionTable {
    /// Whether all that a listener waits for is there, or not to be waited for.
    pub(super) fn has(&self, listener: &Listener) -> bool {
        let mut awaited = listener.discovered().filter(|filter| filter.is_awaited());
        awaited.all(|filter| self.is_settled(filter.key()))
    }

    fn is_settled(&self, key: &ResourceKey) -> bool {
        self.known.contains_key(key) || self.expired.contains(key)
    }

    /// Forgets a configuration that nothing refers to.
    pub(super) fn forget(&mut self, key: &ResourceKey) {
        self.known.remove(key);
        self.expired.remove(key);
    }
}

impl Store {
    /// Takes a configuration that came by ECDS, and gives it to those who refer to it; false: it is the
    /// one that there is.
    ///
    /// # Errors
    /// Why one of them cannot do with it: then all keep what they have.
    pub(crate) fn put_extension(
        &mut self,
        key: ResourceKey,
        extension: Extension,
        scope: &Scope,
    ) -> Result<bool, String> {
        let known = self.extensions.known.get(&key);
        if known.is_some_and(|known| known.fingerprint == extension.fingerprint) {
            return Ok(false);
        }
        // Deviation: a configuration that one of several filters refuses is taken by none, unless it is
        // a listener that drains, which is not asked; Envoy asks that too, and gives the configuration
        // to filters in front of the one that refuses it for another reason than its type.
        self.renew_listeners(&key, Some(&extension), scope).map_err(Refusal::into_message)?;
        self.came(Reference::extension(&key));
        self.unsettled = true;
        self.extensions.expired.remove(&key);
        self.extensions.known.insert(key, extension);
        Ok(true)
    }

    /// There is no such configuration any more: those who refer to it get their default ones. If there
    /// never was one, who waits for it goes on to, as in Envoy: what serves instead does so meanwhile.
    pub(crate) fn remove_extension(&mut self, key: &ResourceKey, scope: &Scope) {
        if self.extensions.known.remove(key).is_some() {
            // Nothing is lowered, so nothing is refused.
            let _: Result<(), Refusal> = self.renew_listeners(key, None, scope);
            self.expire_extension(key.clone());
        }
    }

    /// This configuration did not come in time, or was refused: its users start without.
    pub(crate) fn expire_extension(&mut self, key: ResourceKey) {
        if !self.extensions.known.contains_key(&key) {
            self.came(Reference::extension(&key));
            self.extensions.expired.insert(key);
            self.unsettled = true;
        }
    }

    /// Gives a new listener the configurations that are there already. Where one is of a type that a
    /// filter does not take, which is told to `conflicts`, its default one stays.
    ///
    /// # Errors
    /// Why a filter cannot do with what is there.
    pub(crate) fn extend(
        &self,
        mut listener: Listener,
        scope: &Scope,
        conflicts: &mut Vec<ResourceKey>,
    ) -> Result<Listener, String> {
        let wanted: BTreeSet<ResourceKey> =
            listener.discovered().map(|filter| filter.key().clone()).collect();
        for key in wanted {
            let Some(extension) = self.extensions.known.get(&key) else { continue };
            let mut count = 0;
            let renewed = listener.with_managers(&mut RenewedChains::default(), |manager| {
                manager.with_extension(&key, Some(extension), scope, Some(&mut count))
            });
            listener = renewed.map_err(Refusal::into_message)?.unwrap_or(listener);
            conflicts.extend(std::iter::repeat_n(key, count));
        }
        Ok(listener)
    }

    /// Makes those listeners anew that refer to a configuration, all of them or none.
    fn renew_listeners(
        &mut self,
        key: &ResourceKey,
        extension: Option<&Extension>,
        scope: &Scope,
    ) -> Result<(), Refusal> {
        let mut renewed = Vec::new();
        for name in self.listeners.users(&Reference::extension(key)) {
            let Some(slot) = self.listeners.slot(name) else { continue };
            let mut chains = RenewedChains::default();
            let mut renew = |version: &Option<Arc<Listener>>| {
                let renewed = version.as_ref().map(|version| {
                    version.with_managers(&mut chains, |manager| {
                        manager.with_extension(key, extension, scope, None)
                    })
                });
                Ok(renewed.transpose()?.flatten().map(Arc::new))
            };
            renewed.push((name.clone(), renew(&slot.active)?, renew(&slot.warming)?));
        }
        for (name, active, warming) in renewed {
            self.changed |= self.listeners.renew(&name, active, warming);
        }
        Ok(())
    }

    /// What a listener waits for, as /init_dump shows it.
    pub(super) fn missing_extensions(&self, listener: &Listener) -> impl Iterator<Item = String> {
        let awaited = listener.discovered().filter(|filter| filter.is_awaited());
        let missing = awaited.map(|filter| filter.key()).filter(|key| !self.extensions.is_settled(key));
        missing.map(|key| format!("shared target FilterConfigSubscription init {}", key.name))
    }

    /// The configurations that came, by name, if anything refers to some.
    pub(crate) fn shown_extensions(&self) -> Option<Vec<(Name, DynamicResource)>> {
        let mut wanted = self.listeners.references();
        wanted.find(|reference| reference.type_url == TypeUrl::ExtensionConfig)?;
        let known = self.extensions.known.iter().map(|(key, extension)| {
            let Extension { source, version, updated, .. } = extension.clone();
            (key.name.clone(), DynamicResource { source, version, updated })
        });
        Some(known.collect())
    }
}

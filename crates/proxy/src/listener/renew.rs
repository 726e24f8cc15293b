//! A listener of which nothing has changed but connection managers: those of filters whose
//! configuration came by ECDS.
//!
//! Everything else is shared with the listener that it takes the place of, so that its connections
//! go on (`WorkerListener::new`).

use std::collections::HashMap;
use std::sync::Arc;

use crate::http::config::{DiscoveredFilter, HttpConnectionManager};
use crate::listener::{FilterChain, Listener, NetworkFilters, config};

/// What chains were made anew, by what they were: versions of a listener share chains, and go on to.
#[derive(Default)]
pub(crate) struct RenewedChains(HashMap<*const FilterChain, Option<Arc<FilterChain>>>);

impl Listener {
    /// The filters whose configuration comes by ECDS.
    pub(crate) fn discovered(&self) -> impl Iterator<Item = &DiscoveredFilter> {
        self.chains.all().filter_map(|chain| chain.manager()).flat_map(|manager| &manager.discovered)
    }

    /// The same with other connection managers where `renew` gives some; `None`: it gives none.
    ///
    /// # Errors
    /// What `renew` says.
    pub(crate) fn with_managers<E>(
        &self,
        known: &mut RenewedChains,
        mut renew: impl FnMut(&HttpConnectionManager) -> Result<Option<HttpConnectionManager>, E>,
    ) -> Result<Option<Self>, E> {
        let chains = self.chains.renewed(|chain| {
            if let Some(known) = known.0.get(&Arc::as_ptr(chain)) {
                return Ok(known.clone());
            }
            let manager = chain.manager().map(|manager| renew(manager)).transpose()?.flatten();
            let renewed = manager.map(|manager| {
                let network = NetworkFilters::Http(Arc::new(manager));
                Arc::new(FilterChain { network, ..FilterChain::clone(chain) })
            });
            known.0.insert(Arc::as_ptr(chain), renewed.clone());
            Ok(renewed)
        })?;
        Ok(chains.map(|chains| Self {
            background: config::background(&chains, &self.access_logs),
            chains,
            ..self.clone()
        }))
    }

    /// Whether this is the version that the other one is, apart from what came by ECDS.
    pub(crate) fn is_same_version(&self, other: &Listener) -> bool {
        std::ptr::eq(self, other)
            || !self.source.is_empty() && std::ptr::eq(self.source.as_ptr(), other.source.as_ptr())
    }
}

impl FilterChain {
    fn manager(&self) -> Option<&Arc<HttpConnectionManager>> {
        match &self.network {
            NetworkFilters::Http(manager) => Some(manager),
            NetworkFilters::Tcp(_)
            | NetworkFilters::Echo
            | NetworkFilters::Direct(_)
            | NetworkFilters::Close => None,
        }
    }
}

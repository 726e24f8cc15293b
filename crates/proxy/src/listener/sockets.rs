//! The main thread's books of listening sockets: which listener holds which, and which were
//! bound for a listener that is not in force yet.

use std::collections::HashMap;

use leno_base::Name;

use crate::listener::bind::{BindError, BoundListener, BoundSocket, bind};
use crate::listener::{ListenAddress, Listener};

/// Sockets of all listeners.
pub(crate) struct Sockets {
    workers: usize,
    listeners: HashMap<Name, Entry>,
    /// Whose each address is, as it is configured: two listeners would take each other's
    /// connections (SO_REUSEPORT lets both bind).
    owners: HashMap<ListenAddress, Name>,
}

/// Why a listener does not get its sockets.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// The system refused.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Another listener has the address.
    #[error("error adding listener: '{listener}' has duplicate address '{address}' as existing listener")]
    Duplicate {
        /// The one that came later.
        listener: Name,
        /// The address.
        address: ListenAddress,
    },
}

#[derive(Default)]
struct Entry {
    /// Bound for the newest version, not handed to the workers yet.
    pending: Option<BoundListener>,
    /// What the newest version asked for, to see whether the next one asks for the same.
    wanted: Wanted,
    /// Where it listens, or will.
    addresses: Vec<ListenAddress>,
}

/// Everything of a listener that its sockets depend on.
#[derive(Clone, Debug, Default, PartialEq)]
struct Wanted {
    addresses: Vec<ListenAddress>,
    flags: [bool; 5],
    options: Vec<(i32, i32, Vec<u8>)>,
    backlog: Option<u32>,
}

impl Sockets {
    /// Books for so many workers.
    pub(crate) fn new(workers: usize) -> Self {
        Self { workers, listeners: HashMap::new(), owners: HashMap::new() }
    }

    /// Binds what a new version of a listener needs; sockets that it can go on using stay.
    pub(crate) fn bind(&mut self, listener: &Listener) -> Result<(), SocketError> {
        let wanted = Wanted {
            addresses: listener.addresses.clone(),
            flags: [
                listener.bind_to_port,
                listener.reuse_port,
                listener.transparent,
                listener.freebind,
                listener.ipv4_compatible,
            ],
            options: listener.options.clone(),
            backlog: listener.backlog,
        };
        if self.listeners.get(&*listener.name).is_some_and(|entry| entry.wanted == wanted) {
            return Ok(());
        }
        let owned =
            || listener.addresses.iter().filter(|address| !listener.bind_to_port || !is_any_port(address));
        let taken =
            |address: &&ListenAddress| self.owners.get(*address).is_some_and(|owner| *owner != listener.name);
        if let Some(address) = owned().find(taken) {
            return Err(SocketError::Duplicate { listener: listener.name.clone(), address: address.clone() });
        }
        let pending = if listener.bind_to_port { Some(bind(listener, self.workers)?) } else { None };
        let addresses = pending.as_ref().map(|bound| bound.addresses.clone()).unwrap_or_default();
        self.remove(&listener.name);
        self.owners.extend(owned().map(|address| (address.clone(), listener.name.clone())));
        self.listeners.insert(listener.name.clone(), Entry { pending, wanted, addresses });
        Ok(())
    }

    /// A listener is gone.
    pub(crate) fn remove(&mut self, name: &str) {
        if let Some(entry) = self.listeners.remove(name) {
            for address in entry.wanted.addresses {
                if self.owners.get(&address).is_some_and(|owner| **owner == *name) {
                    self.owners.remove(&address);
                }
            }
        }
    }

    /// Where a listener listens (port 0 resolved).
    pub(crate) fn addresses(&self, name: &str) -> &[ListenAddress] {
        self.listeners.get(name).map(|entry| entry.addresses.as_slice()).unwrap_or_default()
    }

    /// Takes the sockets that the workers do not have yet, of listeners in force: for each
    /// worker, by listener. They listen already, so that nobody is refused who has heard that
    /// the proxy is ready; the workers accept as soon as they have the configuration.
    pub(crate) fn take<'a>(
        &mut self,
        active: impl Iterator<Item = &'a Listener>,
    ) -> Vec<Vec<(Name, Vec<BoundSocket>)>> {
        let mut by_worker: Vec<_> = (0..self.workers).map(|_| Vec::new()).collect();
        for listener in active {
            let Some(entry) = self.listeners.get_mut(&*listener.name) else { continue };
            if entry.wanted.addresses != listener.addresses {
                continue;
            }
            let Some(bound) = entry.pending.take() else { continue };
            for (worker, sockets) in by_worker.iter_mut().zip(bound.workers) {
                for error in sockets.iter().filter_map(|socket| socket.listen().err()) {
                    tracing::error!(target: "config", listener = %listener.name, %error, "cannot listen");
                }
                worker.push((listener.name.clone(), sockets));
            }
        }
        by_worker
    }
}

/// Port 0 of a listener that binds: the system chooses, so nobody else has it.
fn is_any_port(address: &ListenAddress) -> bool {
    matches!(address, ListenAddress::Ip(address) if address.port() == 0)
}

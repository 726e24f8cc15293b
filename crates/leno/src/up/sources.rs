//! What pods may read of the folders: ConfigMaps, Secrets and the addresses of Services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use leno_kubelet::{ServiceAddress, Sources, Token, TokenRequest};
use tokio::sync::watch;

use super::objects::{Key, Objects};
use super::plan::Plan;

/// What pods may look at: replaced as a whole when something changes.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct World {
    pub(crate) objects: Objects,
    pub(crate) plan: Plan,
    /// The pods that can be called.
    pub(crate) ready: BTreeSet<Key>,
    /// Virtual addresses of ServiceEntry hosts.
    pub(crate) entries: BTreeMap<String, Ipv4Addr>,
}

/// The world as the source of a pod's containers.
#[derive(Clone, Debug)]
pub(crate) struct WorldSources {
    pub(crate) world: watch::Receiver<Arc<World>>,
    changes: watch::Receiver<u64>,
}

impl WorldSources {
    pub(crate) fn new(world: watch::Receiver<Arc<World>>, changes: watch::Receiver<u64>) -> WorldSources {
        WorldSources { world, changes }
    }
}

impl Sources for WorldSources {
    fn config_map(&self, namespace: &str, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        bytes(self.world.borrow().objects.config_maps.get(&Key::new(namespace, name)))
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        bytes(self.world.borrow().objects.secrets.get(&Key::new(namespace, name)))
    }

    fn services(&self, namespace: &str) -> Vec<ServiceAddress> {
        let world = self.world.borrow();
        let services = world.objects.services.values().filter(|service| service.key.namespace == namespace);
        let address = |service: &super::objects::Service| {
            let ports = service.object.spec.as_ref().and_then(|spec| spec.ports.clone());
            Some(ServiceAddress {
                name: service.key.name.clone(),
                address: *world.plan.services.get(&service.key)?,
                ports: ports.unwrap_or_default(),
            })
        };
        services.filter_map(address).collect()
    }

    fn token(&self, _: TokenRequest) -> BoxFuture<'_, Result<Token, String>> {
        Box::pin(async { Err("leno up has no tokens of service accounts".to_owned()) })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}

fn bytes(values: Option<&BTreeMap<String, String>>) -> Option<BTreeMap<String, Vec<u8>>> {
    let bytes = |(name, value): (&String, &String)| (name.clone(), value.clone().into_bytes());
    Some(values?.iter().map(bytes).collect())
}

//! Who serves a service: the identities that its certificates may show.

use std::collections::BTreeSet;

use leno_derive::{Cx, Query};

use super::instances::Instances;
use super::{Mesh, ServiceId, find};

/// The identities (`spiffe://...`, or what a ServiceEntry names) behind a service, in order.
pub(crate) struct ServiceAccounts;

impl Query for ServiceAccounts {
    type Key = ServiceId;
    type Value = Vec<String>;
    const NAME: &'static str = "service-accounts";

    fn derive(cx: &Cx<'_>, id: &ServiceId) -> Vec<String> {
        let mesh = cx.get::<Mesh>(&());
        let instances = cx.get::<Instances>(id);
        let own = instances.iter().map(|instance| instance.identity.clone()).filter(|name| !name.is_empty());
        let declared = find(cx, id).map(|service| service.accounts.clone()).unwrap_or_default();
        let mut names: BTreeSet<String> = own.chain(declared).collect();
        // Those whose certificates were made before the mesh got its present name count too.
        let trust_domain = &mesh.trust_domain;
        for name in names.clone() {
            let Some(path) = name.strip_prefix(&format!("spiffe://{trust_domain}/")) else { continue };
            names.extend(mesh.trust_domain_aliases.iter().map(|alias| format!("spiffe://{alias}/{path}")));
        }
        names.into_iter().collect()
    }
}

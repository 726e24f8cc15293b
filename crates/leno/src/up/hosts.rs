//! The names that a pod can resolve, as its /etc/hosts. Pure.
//!
//! A cluster's DNS would answer for all spellings of a Service's name; a hosts file must list them.
//! It is rewritten in place when services or, for headless ones, pods change.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::Ipv4Addr;

use super::objects::{Key, Objects};
use super::plan::{Plan, PodPlan, matches};

/// The hosts file of a pod. `ready` are the pods that can be called, `entries` the virtual addresses
/// of ServiceEntry hosts that have none of their own.
pub(crate) fn hosts(
    pod: &PodPlan,
    plan: &Plan,
    objects: &Objects,
    ready: &BTreeSet<Key>,
    entries: &BTreeMap<String, Ipv4Addr>,
) -> String {
    let mut text =
        String::from("# written by leno up\n127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    let own = match pod.subdomain.as_str() {
        "" => pod.key.name.clone(),
        subdomain => {
            let domain = format!("{subdomain}.{}.svc.cluster.local", pod.key.namespace);
            format!("{name}.{domain} {name}", name = pod.key.name)
        }
    };
    let _ = writeln!(text, "{} {own}", pod.address);
    for alias in pod.spec.host_aliases.iter().flatten() {
        let _ = writeln!(
            text,
            "{} {}",
            alias.ip,
            alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join(" ")
        );
    }
    for service in objects.services.values() {
        let names = spellings(&service.key, &pod.key.namespace);
        if let Some(address) = plan.services.get(&service.key) {
            let _ = writeln!(text, "{address} {names}");
            continue;
        }
        let selector = service.object.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let Some(selector) = selector.filter(|selector| !selector.is_empty()) else { continue };
        let members = plan.pods.values().filter(|member| {
            member.key.namespace == service.key.namespace
                && ready.contains(&member.key)
                && matches(selector, &member.labels)
        });
        for member in members {
            let _ = write!(text, "{} {names}", member.address);
            if member.subdomain == service.key.name {
                for name in names.split(' ') {
                    let _ = write!(text, " {}.{name}", member.key.name);
                }
            }
            text.push('\n');
        }
    }
    for entry in &objects.entries {
        for host in entry.hosts.iter().filter(|host| !host.starts_with('*')) {
            let address = entry.addresses.iter().find_map(|address| address.parse().ok());
            if let Some(address) = address.or_else(|| entries.get(host).copied()) {
                let _ = writeln!(text, "{address} {host}");
            }
        }
    }
    text
}

/// All names of a Service that a cluster's DNS answers to in a namespace.
fn spellings(service: &Key, namespace: &str) -> String {
    let qualified = format!("{}.{}", service.name, service.namespace);
    let mut names = format!("{qualified}.svc.cluster.local {qualified}.svc {qualified}");
    if service.namespace == namespace {
        let _ = write!(names, " {}", service.name);
    }
    names
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use expect_test::expect;

    use super::hosts;
    use crate::up::address::Addresses;
    use crate::up::image::Images;
    use crate::up::objects::read_text;
    use crate::up::plan::{Given, Settings, plan};

    #[test]
    fn all_spellings() {
        let objects = read_text(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: me, namespace: shop}\n\
             spec: {containers: [], hostAliases: [{ip: 10.1.1.1, hostnames: [a.test, b.test]}]}\n---\n\
             apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: db, namespace: data}\nspec:\n  replicas: 2\n  \
             serviceName: db\n  selector: {}\n  template: {metadata: {labels: {app: db}}, spec: {containers: []}}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: data}\n\
             spec: {clusterIP: None, selector: {app: db}}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.1.1}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e}\n\
             spec: {hosts: [api.example.com, b.example.com, '*.c.com'], resolution: DNS}\n",
        );
        let mut given = Given { pods: Addresses::new(10, 244), services: Addresses::new(10, 96) };
        let plan = plan(&objects, &Settings { images: Images::default(), mounts: true }, &mut given);
        let me = plan.pods.values().find(|pod| pod.key.name == "me").unwrap();
        let ready: BTreeSet<_> = plan.pods.keys().filter(|key| key.name != "db-1").cloned().collect();
        let entries = [("api.example.com".to_owned(), [240, 240, 0, 9].into())].into();
        expect![[r#"
            # written by leno up
            127.0.0.1 localhost
            ::1 localhost ip6-localhost ip6-loopback
            10.244.14.227 me
            10.1.1.1 a.test b.test
            10.244.237.36 db.data.svc.cluster.local db.data.svc db.data db-0.db.data.svc.cluster.local db-0.db.data.svc db-0.db.data
            10.96.1.1 web.shop.svc.cluster.local web.shop.svc web.shop web
            240.240.0.9 api.example.com
        "#]].assert_eq(&hosts(me, &plan, &objects, &ready, &entries));
        let member = plan.pods.values().find(|pod| pod.key.name == "db-0").unwrap();
        assert!(
            hosts(member, &plan, &objects, &ready, &entries)
                .contains("db-0.db.data.svc.cluster.local db-0\n")
        );
    }
}

//! The place of a pod, made: its namespaces with a hosts file and a resolver.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Context;
use k8s_openapi::api::core::v1 as core;
use leno_node::{Node, Pod, PodSpec};

use crate::pod::host_name;

/// Makes a pod's namespaces. `dns` answers its questions; `folder` is its own and holds the two files.
///
/// # Errors
/// The step that failed; nothing is left.
pub async fn create(
    node: &Node,
    pod: &core::Pod,
    address: Ipv4Addr,
    dns: Ipv4Addr,
    folder: &Path,
) -> anyhow::Result<Pod> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let write = |name: &str, text: String| -> anyhow::Result<_> {
        let path = folder.join(name);
        write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    };
    let spec = PodSpec {
        name: host_name(pod),
        address,
        hosts: Some(write("hosts", hosts(pod, address))?),
        resolv_conf: Some(write("resolv.conf", resolv_conf(pod, dns))?),
    };
    let node = node.clone();
    Ok(tokio::task::spawn_blocking(move || Pod::create(&node, &spec)).await??)
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text)?;
    // For all users of the pod, whatever the umask.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

/// `/etc/hosts`.
fn hosts(pod: &core::Pod, address: Ipv4Addr) -> String {
    let spec = pod.spec.as_ref();
    let name = host_name(pod);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let subdomain = spec.and_then(|it| it.subdomain.as_deref()).filter(|it| !it.is_empty());
    let own = match subdomain {
        Some(subdomain) => format!("{name}.{subdomain}.{namespace}.svc.cluster.local\t{name}"),
        None => name,
    };
    let mut text = format!(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         {address}\t{own}\n"
    );
    for alias in spec.iter().flat_map(|it| it.host_aliases.iter().flatten()) {
        let names = alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}

/// `/etc/resolv.conf`.
fn resolv_conf(pod: &core::Pod, dns: Ipv4Addr) -> String {
    let spec = pod.spec.as_ref();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let config = spec.and_then(|it| it.dns_config.as_ref());
    let mut servers = vec![dns.to_string()];
    let mut searches: Vec<String> =
        [&format!("{namespace}.svc.cluster.local"), "svc.cluster.local", "cluster.local"]
            .map(ToString::to_string)
            .to_vec();
    if spec.and_then(|it| it.dns_policy.as_deref()) == Some("None") {
        servers.clear();
        searches.clear();
    }
    if let Some(config) = config {
        servers.extend(config.nameservers.iter().flatten().cloned());
        searches.extend(config.searches.iter().flatten().cloned());
    }
    let mut text: String = servers.iter().map(|it| format!("nameserver {it}\n")).collect();
    if !searches.is_empty() {
        text.push_str(&format!("search {}\n", searches.join(" ")));
    }
    text + "options ndots:5\n"
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::{hosts, resolv_conf};

    #[test]
    fn files() {
        let pod = json!({ "metadata": { "name": "db-0", "namespace": "data" }, "spec": {
            "containers": [], "subdomain": "db", "hostAliases": [{ "ip": "10.1.1.1", "hostnames": ["a", "b"] }],
            "dnsConfig": { "searches": ["example.com"] } } });
        let pod = serde_json::from_value(pod).unwrap();
        let text = hosts(&pod, [10, 244, 0, 2].into()) + &resolv_conf(&pod, [10, 244, 0, 1].into());
        expect![[r#"
            # Kubernetes-managed hosts file.
            127.0.0.1	localhost
            ::1	localhost ip6-localhost ip6-loopback
            10.244.0.2	db-0.db.data.svc.cluster.local	db-0
            10.1.1.1	a	b
            nameserver 10.244.0.1
            search data.svc.cluster.local svc.cluster.local cluster.local example.com
            options ndots:5
        "#]]
        .assert_eq(&text);
    }
}

//! What a pod asks for that is not done here. Such a pod is refused, by the field's name, as running it
//! without would be something else.
//!
//! Without effect, as they only say how much or where: resources (but for the downward API), scheduling,
//! priorities, image pulls, seccomp, AppArmor and SELinux profiles, `sysctls`, `allowPrivilegeEscalation`,
//! the size and medium of an `emptyDir`, termination messages, terminals, and `dnsConfig` options.

use k8s_openapi::api::core::v1 as core;

use crate::environment::Fault;
use crate::probe::{self, Probe};

/// All that is refused of a pod.
pub(crate) fn refused(pod: &core::Pod) -> Vec<Fault> {
    let mut faults = Vec::new();
    let Some(spec) = &pod.spec else {
        return vec![Fault { path: "spec".to_owned(), message: "is missing".to_owned() }];
    };
    let mut refuse = |path: &str, is_there: bool| {
        if is_there {
            faults.push(Fault { path: format!("spec.{path}"), message: "is not supported".to_owned() });
        }
    };
    refuse("activeDeadlineSeconds", spec.active_deadline_seconds.is_some());
    refuse("ephemeralContainers", spec.ephemeral_containers.as_ref().is_some_and(|it| !it.is_empty()));
    refuse("hostIPC", spec.host_ipc == Some(true));
    refuse("hostNetwork", spec.host_network == Some(true));
    refuse("hostPID", spec.host_pid == Some(true));
    refuse("hostUsers", spec.host_users == Some(false));
    refuse("os", spec.os.as_ref().is_some_and(|os| os.name != "linux"));
    refuse("readinessGates", spec.readiness_gates.as_ref().is_some_and(|it| !it.is_empty()));
    refuse("resourceClaims", spec.resource_claims.as_ref().is_some_and(|it| !it.is_empty()));
    refuse("shareProcessNamespace", spec.share_process_namespace == Some(true));
    let context = spec.security_context.as_ref();
    let groups = context.and_then(|it| it.supplemental_groups.as_ref());
    refuse("securityContext.supplementalGroups", groups.is_some_and(|it| !it.is_empty()));
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let known = volume.config_map.is_some()
            || volume.downward_api.is_some()
            || volume.empty_dir.is_some()
            || volume.projected.is_some()
            || volume.secret.is_some();
        let what = if volume.host_path.is_some() { ".hostPath" } else { "" };
        refuse(&format!("volumes[{index}]{what}"), !known);
        let sources = volume.projected.iter().flat_map(|it| it.sources.iter().flatten());
        let bundles = sources.into_iter().any(|it| it.cluster_trust_bundle.is_some());
        refuse(&format!("volumes[{index}].projected.sources.clusterTrustBundle"), bundles);
    }
    let mut is_init = true;
    for (list, containers) in [
        ("initContainers", spec.init_containers.as_deref().unwrap_or_default()),
        ("containers", &spec.containers),
    ] {
        for (index, container) in containers.iter().enumerate() {
            check_container(&mut faults, container, &format!("spec.{list}[{index}]"), is_init);
        }
        is_init = false;
    }
    faults
}

fn check_container(faults: &mut Vec<Fault>, container: &core::Container, path: &str, is_init: bool) {
    let mut fault = |field: &str, message: String| {
        faults.push(Fault { path: format!("{path}.{field}"), message });
    };
    if container.volume_devices.as_ref().is_some_and(|it| !it.is_empty()) {
        fault("volumeDevices", "is not supported".to_owned());
    }
    match container.restart_policy.as_deref() {
        None => {}
        Some("Always") if is_init => {}
        Some(_) => fault("restartPolicy", "is not supported but for Always in initContainers".to_owned()),
    }
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        if mount.mount_propagation.as_deref().is_some_and(|it| it != "None") {
            fault(&format!("volumeMounts[{index}].mountPropagation"), "is not supported".to_owned());
        }
    }
    let probes = [
        ("startupProbe", &container.startup_probe),
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
    ];
    for (field, declared) in probes {
        if let Some(Err(message)) = declared.as_ref().map(|it| Probe::declared(it, container)) {
            fault(field, message);
        }
    }
    let capabilities = container.security_context.as_ref().and_then(|it| it.capabilities.as_ref());
    let names = capabilities.iter().flat_map(|it| it.add.iter().chain(&it.drop).flatten());
    for name in names.filter(|name| leno_node::Capabilities::named(name).is_none()) {
        fault("securityContext.capabilities", format!("{name:?} is not known"));
    }
    let Some(lifecycle) = &container.lifecycle else { return };
    if lifecycle.stop_signal.is_some() {
        fault("lifecycle.stopSignal", "is not supported".to_owned());
    }
    for (field, hook) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
        if let Some(Err(message)) = hook.as_ref().map(|it| probe::hook(it, container)) {
            fault(&format!("lifecycle.{field}"), message);
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::refused;

    #[test]
    fn by_name() {
        let pod = json!({ "spec": {
            "hostNetwork": true,
            "securityContext": { "supplementalGroups": [1] },
            "volumes": [{ "name": "a", "hostPath": { "path": "/" } }, { "name": "b", "emptyDir": {} },
                { "name": "c", "persistentVolumeClaim": { "claimName": "x" } }],
            "initContainers": [{ "name": "i", "restartPolicy": "Always" }],
            "containers": [{ "name": "c", "restartPolicy": "Always",
                "livenessProbe": { "httpGet": { "port": 1, "scheme": "HTTPS" } },
                "lifecycle": { "preStop": { "exec": { "command": [] } }, "stopSignal": "SIGUSR1" },
                "securityContext": { "capabilities": { "add": ["FLY"], "drop": ["ALL"] } } }],
        } });
        let faults = refused(&serde_json::from_value(pod).unwrap());
        let text: String = faults.iter().map(|it| format!("{}: {}\n", it.path, it.message)).collect();
        expect![[r#"
            spec.hostNetwork: is not supported
            spec.securityContext.supplementalGroups: is not supported
            spec.volumes[0].hostPath: is not supported
            spec.volumes[2]: is not supported
            spec.containers[0].restartPolicy: is not supported but for Always in initContainers
            spec.containers[0].livenessProbe: HTTPS is not supported
            spec.containers[0].securityContext.capabilities: "FLY" is not known
            spec.containers[0].lifecycle.stopSignal: is not supported
            spec.containers[0].lifecycle.preStop: it says nothing to check
        "#]]
        .assert_eq(&text);
    }
}

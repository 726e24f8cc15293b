//! Which pods the plugin redirects, and how: what injection wrote into them, as istio-cni reads it. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use leno_node::{Dns, Redirect};

use crate::capture;
use crate::verb::iptables::boolean;

const PROXY: &str = "istio-proxy";
const INIT: &str = "istio-init";
const INJECT: &str = "sidecar.istio.io/inject";
const STATUS: &str = "sidecar.istio.io/status";
/// These are never redirected.
const OWN_PORTS: [u16; 3] = [15020, 15021, 15090];

/// What is to be done with a pod.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Redirect it.
    Redirect {
        redirect: Box<Redirect>,
        /// Whether IPv6 is redirected if there are addresses of both families.
        dual_stack: bool,
    },
    /// Leave it as it is, for this reason.
    Leave(String),
}

/// Decides about a pod.
///
/// # Errors
/// All that is wrong with its annotations: a pod that asks for what cannot be must not run without it.
pub(crate) fn decide(pod: &Pod) -> Result<Decision, String> {
    let leave = |why: &str| Ok(Decision::Leave(why.to_owned()));
    let Some(spec) = &pod.spec else { return leave("it has no spec") };
    let nothing = BTreeMap::new();
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&nothing);
    let labels = pod.metadata.labels.as_ref().unwrap_or(&nothing);
    // As a native sidecar the proxy is an init container.
    let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    if containers.clone().any(|container| container.name == INIT) {
        return leave("it has istio-init");
    }
    let Some(proxy) = containers.find(|container| container.name == PROXY) else {
        return leave("it has no istio-proxy");
    };
    if flag(proxy, "DISABLE_ENVOY") {
        return leave("DISABLE_ENVOY is set");
    }
    if let Some([verb, role, ..]) = proxy.args.as_deref()
        && verb == "proxy"
        && role != "sidecar"
    {
        return Ok(Decision::Leave(format!("its proxy is a {role}")));
    }
    // The label is newer than the annotation.
    let inject = labels.get(INJECT).or_else(|| annotations.get(INJECT));
    if inject.and_then(|value| boolean(value)) == Some(false) {
        return leave("it is not to be injected");
    }
    if !annotations.contains_key(STATUS) {
        return leave("it was not injected");
    }
    // Deviation: istio-cni refuses a pod that asks for nothing to be redirected.
    if annotations.get(capture::MODE).is_some_and(|mode| mode == "NONE") {
        return leave("its interception mode is NONE");
    }

    let (capture, faults) = capture::of_annotations(annotations);
    if !faults.is_empty() {
        let faults = faults.iter().map(|(annotation, words)| format!("{annotation}: {words}"));
        return Err(faults.collect::<Vec<_>>().join("; "));
    }
    let security = proxy.security_context.as_ref();
    let identity = |given: Option<i64>| given.and_then(|id| u32::try_from(id).ok()).filter(|id| *id != 0);
    let defaults = Redirect {
        proxy_uids: vec![identity(security.and_then(|it| it.run_as_user)).unwrap_or(1337)],
        proxy_gids: vec![identity(security.and_then(|it| it.run_as_group)).unwrap_or(1337)],
        exclude_inbound_ports: OWN_PORTS.to_vec(),
        exclude_outbound_ports: vec![15020],
        // Which name servers the pod has cannot be seen from here.
        dns: if flag(proxy, "ISTIO_META_DNS_CAPTURE") { Dns::All } else { Dns::None },
        drop_invalid: flag(proxy, "INVALID_DROP"),
        ..Redirect::default()
    };
    Ok(Decision::Redirect {
        redirect: Box::new(capture.redirect(defaults)),
        dual_stack: flag(proxy, "ISTIO_DUAL_STACK"),
    })
}

/// A variable of the proxy. As with istio-cni, what is neither true nor false is false.
fn flag(proxy: &Container, name: &str) -> bool {
    let variable = proxy.env.iter().flatten().find(|variable| variable.name == name);
    let Some(value) = variable.and_then(|variable| variable.value.as_deref()) else { return false };
    boolean(value).unwrap_or_else(|| {
        tracing::warn!("{name} of istio-proxy is {value:?}, not true or false: it has no effect");
        false
    })
}

#[cfg(test)]
mod tests {
    use leno_node::{Cidrs, Dns, InboundMode, Ports, Redirect};
    use serde_json::{Value, json};

    use super::{Decision, decide};

    /// A pod that was injected, with more or other things in it.
    fn pod(annotations: &Value, proxy: &Value, more: &[&str]) -> Value {
        let mut container = json!({"name": "istio-proxy", "args": ["proxy", "sidecar"]});
        for (key, value) in proxy.as_object().into_iter().flatten() {
            container[key] = value.clone();
        }
        let mut all = json!({"sidecar.istio.io/status": "{}"});
        for (key, value) in annotations.as_object().into_iter().flatten() {
            all[key] = value.clone();
        }
        let init: Vec<Value> = more.iter().map(|name| json!({"name": name})).collect();
        json!({
            "metadata": {"name": "a", "namespace": "shop", "annotations": all},
            "spec": {"initContainers": init, "containers": [{"name": "app"}, container]},
        })
    }

    fn decided(pod: &Value) -> Result<Decision, String> {
        decide(&serde_json::from_value(pod.clone()).expect("a pod"))
    }

    fn left(pod: &Value) -> String {
        match decided(pod) {
            Ok(Decision::Leave(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    fn redirected(pod: &Value) -> Redirect {
        match decided(pod) {
            Ok(Decision::Redirect { redirect, .. }) => *redirect,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pods_that_are_left_alone() {
        let none = json!({});
        assert_eq!(left(&pod(&none, &none, &["istio-init"])), "it has istio-init");
        assert_eq!(left(&pod(&none, &json!({"name": "envoy"}), &[])), "it has no istio-proxy");
        assert_eq!(left(&pod(&none, &json!({"args": ["proxy", "router"]}), &[])), "its proxy is a router");
        let disabled = json!({"env": [{"name": "DISABLE_ENVOY", "value": "true"}]});
        assert_eq!(left(&pod(&none, &disabled, &[])), "DISABLE_ENVOY is set");
        let inject = json!({"sidecar.istio.io/inject": "false"});
        assert_eq!(left(&pod(&inject, &none, &[])), "it is not to be injected");
        let mut labelled = pod(&inject, &none, &[]);
        labelled["metadata"]["labels"] = json!({"sidecar.istio.io/inject": "true"});
        assert!(matches!(decided(&labelled), Ok(Decision::Redirect { .. })), "the label wins");
        let mut bare = pod(&none, &none, &[]);
        bare["metadata"]["annotations"] = json!({});
        assert_eq!(left(&bare), "it was not injected");
        let mode = json!({"sidecar.istio.io/interceptionMode": "NONE"});
        assert_eq!(left(&pod(&mode, &none, &[])), "its interception mode is NONE");
    }

    #[test]
    fn defaults() {
        let redirect = redirected(&pod(&json!({}), &json!({}), &["istio-validation"]));
        let expected = Redirect {
            exclude_inbound_ports: vec![15020, 15021, 15090],
            exclude_outbound_ports: vec![15020],
            ..Redirect::default()
        };
        assert_eq!(redirect, expected);
    }

    #[test]
    fn what_pods_ask_for() {
        let annotations = json!({
            "sidecar.istio.io/interceptionMode": "TPROXY",
            "traffic.sidecar.istio.io/includeInboundPorts": "80,443",
            "traffic.sidecar.istio.io/excludeInboundPorts": "9000,15020",
            "traffic.sidecar.istio.io/excludeOutboundPorts": "5432",
            "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8,fd00::/8",
            "traffic.sidecar.istio.io/excludeInterfaces": "net1",
            "traffic.sidecar.istio.io/kubevirtInterfaces": "old0",
            "istio.io/reroute-virtual-interfaces": "tap0,tap1",
        });
        let proxy = json!({
            "securityContext": {"runAsUser": 2000, "runAsGroup": 3000},
            "env": [
                {"name": "ISTIO_META_DNS_CAPTURE", "value": "true"},
                {"name": "INVALID_DROP", "value": "1"},
            ],
        });
        let redirect = redirected(&pod(&annotations, &proxy, &[]));
        assert_eq!(redirect.mode, InboundMode::Tproxy { mark: 1337, table: 133 });
        assert_eq!((redirect.proxy_uids, redirect.proxy_gids), (vec![2000], vec![3000]));
        assert_eq!(redirect.include_inbound_ports, Ports::Only(vec![80, 443]));
        assert_eq!(redirect.exclude_inbound_ports, [15020, 15021, 15090, 9000]);
        assert_eq!(redirect.exclude_outbound_ports, [5432]);
        assert!(matches!(redirect.include_outbound_cidrs, Cidrs::Only(ranges) if ranges.len() == 2));
        assert_eq!(redirect.dns, Dns::All);
        assert!(redirect.drop_invalid);
        let names = |list: &[leno_node::rules::Interface]| {
            list.iter().map(|link| link.name().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(&redirect.exclude_interfaces), ["net1"]);
        assert_eq!(names(&redirect.reroute_interfaces), ["tap0", "tap1"]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let annotations = json!({
            "traffic.sidecar.istio.io/excludeInboundPorts": "http",
            "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/99",
        });
        let error = decided(&pod(&annotations, &json!({}), &[])).unwrap_err();
        assert!(
            error.contains("excludeInboundPorts") && error.contains("includeOutboundIPRanges"),
            "{error}"
        );
        let proxy = json!({"env": [{"name": "ISTIO_META_DNS_CAPTURE", "value": "maybe"}]});
        assert_eq!(redirected(&pod(&json!({}), &proxy, &[])).dns, Dns::None);
    }
}

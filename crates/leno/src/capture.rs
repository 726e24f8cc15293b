//! Which connections of a pod go through its sidecar, by Istio's annotations: for `leno up` and for the CNI plugin.

use std::collections::BTreeMap;

use leno_base::Cidr;
use leno_node::rules::Interface;
use leno_node::{Cidrs, InboundMode, Ports, Redirect};

const PREFIX: &str = "traffic.sidecar.istio.io/";
/// The annotation that says how inbound connections come to the proxy.
pub(crate) const MODE: &str = "sidecar.istio.io/interceptionMode";
const REROUTE: &str = "istio.io/reroute-virtual-interfaces";
const TPROXY: InboundMode = InboundMode::Tproxy { mark: 1337, table: 133 };

/// What a pod's annotations ask for. The default is Istio's: everything but the proxy's own ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Capture {
    mode: Option<InboundMode>,
    include_inbound_ports: Option<Ports>,
    exclude_inbound_ports: Vec<u16>,
    include_outbound_ports: Vec<u16>,
    exclude_outbound_ports: Option<Vec<u16>>,
    include_outbound_cidrs: Option<Cidrs>,
    exclude_outbound_cidrs: Vec<Cidr>,
    exclude_interfaces: Vec<Interface>,
    reroute_interfaces: Vec<Interface>,
}

impl Capture {
    /// Whether the proxy must listen as for TPROXY.
    pub(crate) fn is_tproxy(&self) -> bool {
        matches!(self.mode, Some(InboundMode::Tproxy { .. }))
    }

    /// The other way than TPROXY.
    pub(crate) fn redirect_instead(&mut self) {
        self.mode = None;
    }

    /// The redirection, on top of defaults that say how the proxy is known.
    pub(crate) fn redirect(&self, defaults: Redirect) -> Redirect {
        let mut redirect = defaults;
        if let Some(ports) = &self.include_inbound_ports {
            redirect.include_inbound_ports = ports.clone();
        }
        if let Some(cidrs) = &self.include_outbound_cidrs {
            redirect.include_outbound_cidrs = cidrs.clone();
        }
        if let Some(mode) = self.mode {
            redirect.mode = mode;
        }
        for port in &self.exclude_inbound_ports {
            if !redirect.exclude_inbound_ports.contains(port) {
                redirect.exclude_inbound_ports.push(*port);
            }
        }
        if let Some(ports) = &self.exclude_outbound_ports {
            redirect.exclude_outbound_ports.clone_from(ports);
        }
        redirect.include_outbound_ports.clone_from(&self.include_outbound_ports);
        redirect.exclude_outbound_cidrs.clone_from(&self.exclude_outbound_cidrs);
        redirect.exclude_interfaces.clone_from(&self.exclude_interfaces);
        redirect.reroute_interfaces.clone_from(&self.reroute_interfaces);
        redirect
    }
}

/// Reads the annotations; those that make no sense come with the reason, and have no effect.
pub(crate) fn of_annotations(annotations: &BTreeMap<String, String>) -> (Capture, Vec<(String, String)>) {
    let mut capture = Capture::default();
    let mut faults = Vec::new();
    for (name, value) in annotations {
        let what = match name.as_str() {
            MODE | REROUTE => name,
            _ => match name.strip_prefix(PREFIX) {
                Some(what) => what,
                None => continue,
            },
        };
        let read = match what {
            MODE => match value.as_str() {
                "REDIRECT" => Ok(InboundMode::Redirect),
                "TPROXY" => Ok(TPROXY),
                other => Err(format!("{other:?} is not REDIRECT or TPROXY")),
            }
            .map(|mode| capture.mode = Some(mode)),
            REROUTE => list(value).map(|links| capture.reroute_interfaces = links),
            // The old name; the other one is better.
            "kubevirtInterfaces" if annotations.contains_key(REROUTE) => Ok(()),
            "kubevirtInterfaces" => list(value).map(|links| capture.reroute_interfaces = links),
            "excludeInterfaces" => list(value).map(|links| capture.exclude_interfaces = links),
            "includeInboundPorts" => all_or(value, Ports::All, Ports::Only)
                .map(|ports| capture.include_inbound_ports = Some(ports)),
            "excludeInboundPorts" => list(value).map(|ports| capture.exclude_inbound_ports = ports),
            "includeOutboundPorts" => list(value).map(|ports| capture.include_outbound_ports = ports),
            "excludeOutboundPorts" => list(value).map(|ports| capture.exclude_outbound_ports = Some(ports)),
            "includeOutboundIPRanges" => all_or(value, Cidrs::All, Cidrs::Only)
                .map(|cidrs| capture.include_outbound_cidrs = Some(cidrs)),
            "excludeOutboundIPRanges" => list(value).map(|cidrs| capture.exclude_outbound_cidrs = cidrs),
            _ => Err("is not supported, has no effect".to_owned()),
        };
        if let Err(message) = read {
            faults.push((name.clone(), message));
        }
    }
    (capture, faults)
}

/// `*`, or a list.
fn all_or<T: std::str::FromStr, S>(text: &str, all: S, only: impl FnOnce(Vec<T>) -> S) -> Result<S, String> {
    if text == "*" { Ok(all) } else { list(text).map(only) }
}

fn list<T: std::str::FromStr>(text: &str) -> Result<Vec<T>, String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items.map(|item| item.parse().map_err(|_| format!("{item:?} makes no sense here"))).collect()
}

#[cfg(test)]
mod tests {
    use leno_node::{Cidrs, Redirect};

    use super::of_annotations;

    #[test]
    fn annotations() {
        let annotations = [
            ("traffic.sidecar.istio.io/excludeInboundPorts", "9000, 9001"),
            ("traffic.sidecar.istio.io/includeOutboundIPRanges", "10.0.0.0/8"),
            ("traffic.sidecar.istio.io/excludeOutboundPorts", "many"),
            ("other", "x"),
        ];
        let annotations = annotations.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let (capture, faults) = of_annotations(&annotations);
        let redirect = capture.redirect(Redirect::default());
        assert_eq!(redirect.exclude_inbound_ports, [15090, 15021, 15020, 22, 9000, 9001]);
        assert_eq!(redirect.include_outbound_cidrs, Cidrs::Only(vec!["10.0.0.0/8".parse().unwrap()]));
        assert_eq!(faults.len(), 1);
        assert!(faults[0].1.contains("many"));
    }
}

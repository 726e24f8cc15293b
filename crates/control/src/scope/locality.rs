//! What the endpoints of a cluster depend on of the client that asks for them: its place, where the
//! service prefers near ones, its network, where there are several, its machine, where the service
//! stays on it. A [`View`] has only what matters for the cluster, so that all clients for which the
//! answer is the same share it.

use std::collections::BTreeSet;

use leno_derive::{Cx, Index, Query};

use super::ProxyKey;
use super::policy::{EffectiveKey, EffectivePolicy};
use crate::model::destination_rule::{DestinationRule, LoadBalancer, LocalityLb, TrafficPolicy, ZoneAwareLb};
use crate::model::inputs::DestinationRules;
use crate::model::mesh::MeshConfig;
use crate::model::{Config, Key};
use crate::registry::network::Networks;
use crate::registry::{self, AllServices, Distribution, Mesh, Service, ServiceId};

/// Labels that stand for places, on machines and, by way of them, on everything that runs there.
pub(crate) const REGION: &str = "topology.kubernetes.io/region";
pub(crate) const ZONE: &str = "topology.kubernetes.io/zone";
pub(crate) const SUBZONE: &str = "topology.istio.io/subzone";
pub(crate) const NODE: &str = "kubernetes.io/hostname";
pub(crate) const NETWORK: &str = "topology.istio.io/network";
pub(crate) const CLUSTER: &str = "topology.istio.io/cluster";

/// The name of the one cluster that there is.
pub(crate) const CLUSTER_ID: &str = "Kubernetes";

/// How a service's clients prefer places.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LocalitySetting {
    /// The control plane orders or weighs the places.
    Places {
        setting: LocalityLb,
        /// Even where no failures are looked for: readiness tells when to go elsewhere.
        forced: bool,
    },
    /// Envoy itself prefers its zone; the control plane orders regions.
    Zones(ZoneAwareLb),
}

impl LocalitySetting {
    /// What holds for a service: what its policy says, else the service itself, else the mesh;
    /// `None` if places are not told apart.
    pub(crate) fn of(
        mesh: &MeshConfig,
        balancer: Option<&LoadBalancer>,
        service: &Service,
    ) -> Option<LocalitySetting> {
        if let Some(setting) = balancer.and_then(|balancer| balancer.zone_aware_lb_setting.clone()) {
            return Some(LocalitySetting::Zones(setting));
        }
        let places = |setting: LocalityLb| {
            (setting.enabled != Some(false)).then_some(LocalitySetting::Places { setting, forced: false })
        };
        if let Some(setting) = balancer.and_then(|balancer| balancer.locality_lb_setting.clone()) {
            return places(setting);
        }
        let labels: &[&str] = match service.distribution {
            Distribution::SameZone => &[NETWORK, REGION, ZONE],
            Distribution::SameNode => &[NETWORK, REGION, ZONE, SUBZONE, NODE],
            Distribution::Any => {
                return match &mesh.zone_aware_lb_setting {
                    Some(setting) => Some(LocalitySetting::Zones(setting.clone())),
                    None => mesh.locality_lb_setting.clone().and_then(places),
                };
            }
        };
        let failover_priority = labels.iter().map(|label| (*label).to_owned()).collect();
        let setting = LocalityLb { failover_priority, ..LocalityLb::default() };
        Some(LocalitySetting::Places { setting, forced: true })
    }

    /// The labels that clients and endpoints are compared by, if they are.
    fn labels(&self, failing_over: bool) -> &[String] {
        match self {
            LocalitySetting::Places { setting, forced }
                if setting.distribute.is_empty() && (*forced || failing_over) =>
            {
                &setting.failover_priority
            }
            LocalitySetting::Places { .. } => &[],
            LocalitySetting::Zones(setting) if setting.enabled == Some(false) => &[],
            LocalitySetting::Zones(setting) => &setting.failover_priority,
        }
    }

    /// Whether the client's own place makes a difference.
    fn reads_place(&self, failing_over: bool) -> bool {
        match self {
            LocalitySetting::Places { setting, .. } if !setting.distribute.is_empty() => true,
            LocalitySetting::Places { setting, forced } => {
                (*forced || failing_over)
                    && (setting.failover_priority.is_empty() || !setting.failover.is_empty())
            }
            LocalitySetting::Zones(setting) => setting.enabled != Some(false),
        }
    }
}

/// What the endpoints of a cluster depend on of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct View {
    /// `region/zone/subzone`; empty if it does not matter.
    pub(crate) locality: String,
    /// What the client has for the labels that endpoints are compared by, in their order.
    pub(crate) labels: Vec<String>,
    /// Empty if it does not matter or is not known.
    pub(crate) network: String,
    /// Empty if it does not matter.
    pub(crate) node: String,
}

/// Names a cluster as far as its endpoints are concerned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct EndpointsOf {
    pub(crate) service: ServiceId,
    pub(crate) policy: EffectiveKey,
    /// Whether the cluster is for a gateway between networks: only endpoints that speak mutual TLS
    /// can be reached by it.
    pub(crate) sni: bool,
}

/// Which properties of clients make a difference to the endpoints of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    locality: bool,
    labels: Vec<String>,
    network: bool,
    node: bool,
}

impl Query for Needs {
    type Key = EndpointsOf;
    type Value = Needs;
    const NAME: &'static str = "endpoint-needs";

    fn derive(cx: &Cx<'_>, key: &EndpointsOf) -> Needs {
        let Some(service) = registry::find(cx, &key.service) else { return Needs::default() };
        let effective = cx.get::<EffectivePolicy>(&key.policy);
        let mesh = cx.get::<Mesh>(&());
        let setting = LocalitySetting::of(&mesh, effective.load_balancer.as_ref(), &service);
        let failing_over = effective.outlier_detection.is_some();
        let labels = setting.as_ref().map(|setting| setting.labels(failing_over)).unwrap_or_default();
        Needs {
            locality: setting.as_ref().is_some_and(|setting| setting.reads_place(failing_over)),
            // A label with a value asks for endpoints with it, whatever the client has.
            labels: labels.iter().filter(|label| !label.contains('=')).cloned().collect(),
            network: cx.get::<Networks>(&()).has_gateways(),
            node: service.node_local,
        }
    }
}

/// What anything in the mesh depends on of where clients are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SiteMatters {
    pub(crate) locality: bool,
    pub(crate) node: bool,
    pub(crate) network: bool,
    /// The labels of clients that endpoints are compared by.
    pub(crate) labels: BTreeSet<String>,
}

impl Query for SiteMatters {
    type Key = ();
    type Value = SiteMatters;
    const NAME: &'static str = "site-matters";

    fn derive(cx: &Cx<'_>, (): &()) -> SiteMatters {
        let mut matters = cx.get::<RulesMatter>(&()).as_ref().clone();
        let (by_place, by_node) = *cx.get::<ServicesMatter>(&());
        matters.locality |= by_place;
        matters.node |= by_node;
        matters.network |= by_place || cx.get::<Networks>(&()).has_gateways();
        matters
    }
}

/// Whether services prefer places, and whether they prefer machines.
struct ServicesMatter;

impl Query for ServicesMatter {
    type Key = ();
    type Value = (bool, bool);
    const NAME: &'static str = "services-matter";

    fn derive(cx: &Cx<'_>, (): &()) -> (bool, bool) {
        let services = cx.get::<AllServices>(&());
        let by_place = services.iter().any(|service| service.distribution != Distribution::Any);
        let by_node =
            |service: &Service| service.node_local || service.distribution == Distribution::SameNode;
        (by_place, services.iter().any(|service| by_node(service)))
    }
}

/// The DestinationRules by which it may matter where clients are: all others change without all that is asked
/// of clients being looked at again.
pub(crate) struct PlacingPolicies;

impl Index for PlacingPolicies {
    type Of = DestinationRules;
    type Bucket = ();
    const NAME: &'static str = "placing-destination-rules";

    fn buckets(_: &Key, rule: &Config<DestinationRule>) -> Vec<()> {
        let subsets = rule.spec.subsets.iter().filter_map(|subset| subset.traffic_policy.as_ref());
        let places = |policy: &TrafficPolicy| {
            let ports = &policy.port_level_settings;
            policy.load_balancer.is_some()
                || policy.outlier_detection.is_some()
                || ports.iter().any(|port| port.load_balancer.is_some() || port.outlier_detection.is_some())
        };
        rule.spec
            .traffic_policy
            .iter()
            .chain(subsets)
            .find(|policy| places(policy))
            .map(drop)
            .into_iter()
            .collect()
    }
}

/// What the mesh's settings and the DestinationRules depend on of where clients are.
struct RulesMatter;

impl Query for RulesMatter {
    type Key = ();
    type Value = SiteMatters;
    const NAME: &'static str = "rules-matter";

    fn derive(cx: &Cx<'_>, (): &()) -> SiteMatters {
        let mesh = cx.get::<Mesh>(&());
        let mut matters = SiteMatters::default();
        let by_mesh = mesh.locality_lb_setting.as_ref();
        let ejects =
            mesh.default_traffic_policy.as_ref().is_some_and(|policy| policy.outlier_detection.is_some());
        // Where failures are looked for, clients go to near places first.
        matters.locality = mesh.zone_aware_lb_setting.is_some()
            || by_mesh.is_some_and(|setting| ejects || !setting.distribute.is_empty());
        matters.note_setting(by_mesh, mesh.zone_aware_lb_setting.as_ref());
        for key in cx.bucket::<PlacingPolicies>(&()) {
            let Some(rule) = cx.input::<DestinationRules>(&key) else { continue };
            let subsets = rule.spec.subsets.iter().filter_map(|subset| subset.traffic_policy.as_ref());
            for policy in rule.spec.traffic_policy.iter().chain(subsets) {
                let ports = policy.port_level_settings.iter();
                let ports = ports.map(|port| (port.load_balancer.as_ref(), port.outlier_detection.is_some()));
                let whole = (policy.load_balancer.as_ref(), policy.outlier_detection.is_some());
                for (balancer, outliers) in ports.chain([whole]) {
                    let locality = balancer.and_then(|balancer| balancer.locality_lb_setting.as_ref());
                    let zones = balancer.and_then(|balancer| balancer.zone_aware_lb_setting.as_ref());
                    matters.locality |= outliers || locality.is_some() || zones.is_some();
                    matters.note_setting(locality, zones);
                }
            }
        }
        matters
    }
}

impl SiteMatters {
    /// Notes the labels of settings, and what these labels stand for.
    fn note_setting(&mut self, locality: Option<&LocalityLb>, zones: Option<&ZoneAwareLb>) {
        let of_locality = locality.into_iter().flat_map(|setting| &setting.failover_priority);
        let of_zones = zones.into_iter().flat_map(|setting| &setting.failover_priority);
        for label in of_locality.chain(of_zones) {
            match label.as_str() {
                REGION | ZONE | SUBZONE => self.locality = true,
                NODE => self.node = true,
                NETWORK => self.network = true,
                _ => {}
            }
            if !label.contains('=') {
                self.labels.insert(label.clone());
            }
        }
    }
}

impl ProxyKey {
    /// The proxy as far as the endpoints of a cluster depend on it.
    pub(crate) fn view(&self, cx: &Cx<'_>, endpoints: &EndpointsOf) -> View {
        let needs = cx.get::<Needs>(endpoints);
        let text = |needed: bool, value: &String| if needed { value.clone() } else { String::new() };
        View {
            locality: text(needs.locality, &self.site.locality),
            labels: needs.labels.iter().map(|name| self.label(name)).collect(),
            network: text(needs.network, &self.site.network),
            node: text(needs.node, &self.site.node),
        }
    }

    /// A label of the proxy, those included that follow from its place; empty if it has none.
    fn label(&self, name: &str) -> String {
        let site = &self.site;
        let part = |index: usize| site.locality.split('/').nth(index).unwrap_or_default();
        let derived = match name {
            REGION => part(0),
            ZONE => part(1),
            SUBZONE => part(2),
            NODE => &site.node,
            CLUSTER => CLUSTER_ID,
            NETWORK if !self.labels.contains_key(NETWORK) => &site.network,
            _ => "",
        };
        if derived.is_empty() {
            self.labels.get(name).cloned().unwrap_or_default()
        } else {
            derived.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use crate::scope::Families;

    #[test]
    fn families_come_from_addresses() {
        let check = |addresses: &[&str], expected| {
            let parsed = addresses.iter().map(|text| text.parse::<IpAddr>().expect("an address"));
            assert_eq!(Families::of(parsed), expected, "{addresses:?}");
        };
        check(&[], Families::V4);
        check(&["10.0.0.1"], Families::V4);
        check(&["::ffff:10.0.0.1"], Families::V4);
        check(&["2001:db8::1"], Families::V6);
        check(&["10.0.0.1", "2001:db8::1"], Families::Both);
    }
}

//! A mesh of any size as a folder of YAML, and the changes that are made to it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use leno_api::proto::envoy::config::core::v3::{Extension, Node};
use prost_types::value::Kind;
use prost_types::{Struct, Value};

/// How many services share a namespace.
const PER_NAMESPACE: usize = 100;

/// Every how many-th service has a VirtualService, and a DestinationRule.
const WITH_RULE: usize = 10;

/// The first port.
const FIRST_PORT: usize = 8000;

/// How large it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) services: usize,
    pub(super) endpoints: usize,
    pub(super) ports: usize,
    /// How many services each workload calls, whose proxies then ask for clusters when they use them; 0:
    /// proxies take everything.
    pub(super) used: usize,
    pub(super) proxies: usize,
}

/// A folder with a mesh.
#[derive(Debug)]
pub(super) struct Mesh {
    folder: PathBuf,
    size: Size,
}

/// Files to be written, as one change.
#[derive(Debug)]
pub(super) struct Files(Vec<(PathBuf, String)>);

impl Files {
    /// Writes them, each whole or not at all.
    pub(super) fn write(&self) -> io::Result<()> {
        for (path, text) in &self.0 {
            let draft = path.with_extension("draft");
            fs::write(&draft, text)?;
            fs::rename(draft, path)?;
        }
        Ok(())
    }
}

/// What tells a change from all others: names contain it.
pub(super) fn mark(number: u32) -> String {
    format!("mark{number:06}")
}

/// The same for endpoints: an address.
pub(super) fn address_mark(number: u32) -> String {
    format!("11.{}.{}.{}", 100 + number / 10_000, 100 + number / 100 % 100, 100 + number % 100)
}

impl Mesh {
    /// Writes a mesh into a folder, which must not be there yet.
    pub(super) fn write(folder: &Path, size: Size) -> io::Result<Mesh> {
        fs::create_dir_all(folder)?;
        let mesh = Mesh { folder: folder.to_owned(), size };
        for service in 0..size.services {
            let mut files =
                Files(vec![mesh.service(&name(service), service), mesh.slice(&name(service), service, None)]);
            if service % WITH_RULE == 0 {
                files.0.push(mesh.rule(service, "old"));
                files.0.push(mesh.policy(service, "old"));
            }
            files.write()?;
        }
        Ok(mesh)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The names of the route configurations of every sidecar.
    pub(super) fn route_names(&self) -> Vec<String> {
        (0..self.size.ports.min(self.size.services)).map(|port| (FIRST_PORT + port).to_string()).collect()
    }

    /// The clusters that the workload calls beside which a sidecar stands.
    pub(super) fn used(&self, proxy: usize) -> Vec<String> {
        let service = |index: usize| self.cluster((proxy + index * 211) % self.size.services);
        (0..self.size.used.min(self.size.services)).map(service).collect()
    }

    /// The hosts that it asks for virtual hosts by, as requests have them.
    pub(super) fn used_hosts(&self, proxy: usize) -> Vec<String> {
        let service = |index: usize| {
            let service = (proxy + index * 211) % self.size.services;
            self.asked(&name(service), service)
        };
        (0..self.size.used.min(self.size.services)).map(service).collect()
    }

    /// The hosts of services that [`Mesh::add_services`] will add.
    pub(super) fn coming(&self, number: u32, count: usize) -> Vec<String> {
        let (first, mark) = (self.place(number, count), mark(number));
        (0..count).map(|index| self.asked(&format!("{mark}-{index:02}"), first + index)).collect()
    }

    fn asked(&self, name: &str, service: usize) -> String {
        let (port, namespace) = (self.port(service), namespace(service));
        format!("{port}/{name}.{namespace}.svc.cluster.local:{port}")
    }

    /// The name of a service's cluster.
    fn cluster(&self, service: usize) -> String {
        format!("outbound|{}||{}.{}.svc.cluster.local", self.port(service), name(service), namespace(service))
    }

    /// The cluster of the service that a change is about, if it only concerns those who call it.
    pub(super) fn concerned(&self, number: u32, with_rule: bool) -> Option<String> {
        let service = if with_rule { self.any_with_rule(number) } else { self.any(number) };
        (self.size.used > 0).then(|| self.cluster(service))
    }

    /// Sidecars, spread over the services' workloads. `hosts`: they ask for virtual hosts too.
    pub(super) fn nodes(&self, count: usize, hosts: bool) -> Vec<Node> {
        let node = |index: usize| {
            let service = index % self.size.services;
            let namespace = namespace(service);
            let ip = format!("10.{}.{}.{}", 200 + (index >> 16), index >> 8 & 255, index & 255);
            let text = |text: String| Value { kind: Some(Kind::StringValue(text)) };
            let labels = Struct { fields: [("app".to_owned(), text(name(service)))].into() };
            let fields = [
                ("NAMESPACE".to_owned(), text(namespace.clone())),
                ("LABELS".to_owned(), Value { kind: Some(Kind::StructValue(labels)) }),
                ("LENO_LAZY".to_owned(), text((self.size.used > 0).to_string())),
                ("LENO_LAZY_ROUTES".to_owned(), text(hosts.to_string())),
            ];
            let on_demand = Extension {
                name: "envoy.filters.http.on_demand".to_owned(),
                category: "envoy.filters.http".to_owned(),
                type_urls: vec!["envoy.extensions.filters.http.on_demand.v3.OnDemand".to_owned()],
                ..Extension::default()
            };
            Node {
                id: format!(
                    "sidecar~{ip}~{}-{index}.{namespace}~{namespace}.svc.cluster.local",
                    name(service)
                ),
                metadata: Some(Struct { fields: fields.into() }),
                extensions: vec![on_demand],
                ..Node::default()
            }
        };
        (0..count).map(node).collect()
    }

    /// One endpoint of one service gets another address.
    pub(super) fn move_endpoint(&self, number: u32) -> Files {
        let service = self.any(number);
        Files(vec![self.slice(&name(service), service, Some(&address_mark(number)))])
    }

    /// A VirtualService gets another route.
    pub(super) fn change_rule(&self, number: u32) -> Files {
        Files(vec![self.rule(self.any_with_rule(number), &mark(number))])
    }

    /// A DestinationRule gets another subset in place of the last.
    pub(super) fn change_policy(&self, number: u32) -> Files {
        Files(vec![self.policy(self.any_with_rule(number), &mark(number))])
    }

    /// New services, in a namespace of their own if there are many.
    pub(super) fn add_services(&self, number: u32, count: usize) -> Files {
        let first = self.place(number, count);
        let all = (0..count).flat_map(|index| {
            let name = format!("{}-{index:02}", mark(number));
            [self.service(&name, first + index), self.slice(&name, first + index, None)]
        });
        Files(all.collect())
    }

    /// The number of the first of new services, which decides the namespace.
    fn place(&self, number: u32, count: usize) -> usize {
        if count == 1 { self.any(number) } else { self.size.services + number as usize * PER_NAMESPACE }
    }

    /// A service that some proxy uses, other ones for neighbouring numbers.
    fn any(&self, number: u32) -> usize {
        let used =
            if self.size.used > 0 { self.size.proxies.min(self.size.services) } else { self.size.services };
        (number as usize).wrapping_mul(7919) % used
    }

    /// The same of those with a VirtualService and a DestinationRule.
    fn any_with_rule(&self, number: u32) -> usize {
        self.any(number) / WITH_RULE * WITH_RULE
    }

    fn port(&self, service: usize) -> usize {
        FIRST_PORT + service % self.size.ports.min(self.size.services)
    }

    fn service(&self, name: &str, service: usize) -> (PathBuf, String) {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {}}}\n\
             spec: {{clusterIP: {}, selector: {{app: {name}}}, ports: [{{name: http, port: {}, targetPort: 8080}}]}}\n",
            namespace(service),
            address(10, 96, service),
            self.port(service),
        );
        (self.folder.join(format!("service-{name}.yaml")), text)
    }

    fn slice(&self, name: &str, service: usize, moved: Option<&str>) -> (PathBuf, String) {
        let count = (self.size.endpoints / self.size.services).max(1);
        let mut endpoints = String::new();
        for index in 0..count {
            let own = address(10, 0, service * count + index);
            let address = moved.filter(|_| index == 0).unwrap_or(&own);
            endpoints += &format!("- addresses: ['{address}']\n  conditions: {{ready: true}}\n");
        }
        let text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}-1, namespace: {}, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             addressType: IPv4\nports: [{{name: http, port: 8080, protocol: TCP}}]\nendpoints:\n{endpoints}",
            namespace(service),
        );
        (self.folder.join(format!("slice-{name}.yaml")), text)
    }

    fn rule(&self, service: usize, mark: &str) -> (PathBuf, String) {
        let name = name(service);
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{name: {name}, namespace: {}}}\nspec:\n  hosts: [{name}]\n  http:\n\
             \x20 - match: [{{uri: {{prefix: /{mark}}}}}]\n    route: [{{destination: {{host: {name}}}}}]\n    timeout: 5s\n\
             \x20 - route: [{{destination: {{host: {name}}}}}]\n",
            namespace(service),
        );
        (self.folder.join(format!("rule-{name}.yaml")), text)
    }

    fn policy(&self, service: usize, mark: &str) -> (PathBuf, String) {
        let name = name(service);
        // Nobody has the subset's cluster who does not use it: then the service's own must differ.
        let differs =
            if self.size.used > 0 { format!(", tls: {{mode: SIMPLE, sni: {mark}}}") } else { String::new() };
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{name: {name}, namespace: {}}}\nspec:\n  host: {name}\n\
             \x20 trafficPolicy: {{connectionPool: {{http: {{http2MaxRequests: 1000}}}}{differs}}}\n\
             \x20 subsets: [{{name: {mark}, labels: {{version: {mark}}}}}]\n",
            namespace(service),
        );
        (self.folder.join(format!("policy-{name}.yaml")), text)
    }
}

fn name(service: usize) -> String {
    format!("svc-{service}")
}

fn namespace(service: usize) -> String {
    format!("ns-{}", service / PER_NAMESPACE)
}

/// An address that no other number has.
fn address(first: u8, second: usize, number: usize) -> String {
    format!("{first}.{}.{}.{}", second + (number >> 16), number >> 8 & 255, number & 255)
}

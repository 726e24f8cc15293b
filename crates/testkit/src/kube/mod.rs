//! A Kubernetes API server in memory: what clients see of the real one, without what runs pods.
//!
//! START HERE: [`ApiServer`] is what a test starts and turns the knobs of. Inside:
//!
//! - `cluster.rs`: what a test over the wire starts, which may be a real cluster instead;
//! - `store.rs`: the objects, their revisions and the log that watches read; knows nothing of HTTP;
//! - `resource.rs`: which resources there are, built in and by CRD; `typing.rs`: how their lists merge;
//! - `object.rs`: what creating, changing and deleting means: metadata, conflicts, finalizers, owners;
//!   `defaults.rs`: what the server fills in; `schema.rs`: what CRDs ask for;
//! - `patch.rs`, `strategic.rs`, `apply.rs` with `fields.rs`: the four ways to patch;
//! - `http.rs`: the server; `path.rs`, `verb.rs`, `listing.rs`: what a request asks for and how it is
//!   answered; `pods.rs`: what is refused of Pods; `certificates.rs`: requests for certificates and their
//!   signers; `table.rs`, `discovery.rs`: what `kubectl` asks for; `review.rs`: tokens and
//!   permissions, `rbac.rs`: by roles; `admission.rs`: webhooks.
//!
//! It is proven with `kubectl` and the Python client in `tests/kubectl.rs`. Not there: CEL rules,
//! conversion webhooks, protobuf but for a few kinds, quotas, audit, and all that controllers and kubelets do, but for
//! namespaces, owners and default service accounts.

mod admission;
mod apply;
mod certificates;
mod cluster;
mod defaults;
mod discovery;
mod fields;
mod http;
mod listing;
mod object;
mod patch;
mod path;
mod pods;
mod protobuf;
mod rbac;
mod resource;
mod review;
mod schema;
mod selector;
mod state;
mod status;
mod store;
mod strategic;
mod table;
mod time;
mod typing;
mod verb;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub use self::certificates::{SigningRequest, Verdict};
pub use self::cluster::{Cluster, VARIABLE, definition};
pub use self::pods::pod_faults;
use self::state::{Denial, Shared, lock};
pub use self::state::{Fault, Seen, User};
pub use self::status::Failure;

/// How a server is started; `ApiServer::start` takes the default.
#[derive(Debug, Default)]
pub struct Options {
    /// Certificate chain and key, both PEM; without them plain HTTP is spoken.
    pub tls: Option<(String, String)>,
    /// Whether requests without a known bearer token are refused (401).
    pub authenticate: bool,
    /// Where to listen; `None` is a free port of the loopback address.
    pub address: Option<SocketAddr>,
}

/// A running API server; it ends when this is dropped.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    tls: Option<(String, String)>,
    token: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.task.abort();
        // Connections end with the watches and the generation.
        self.shared.hang_up();
    }
}

impl ApiServer {
    /// Starts one over plain HTTP on a free loopback port, with the namespaces every cluster has.
    ///
    /// # Errors
    /// If the system gives no port.
    pub async fn start() -> std::io::Result<ApiServer> {
        ApiServer::start_with(Options::default()).await
    }

    /// Starts one.
    ///
    /// # Errors
    /// If the system gives no port, or the certificate or key is not good.
    pub async fn start_with(options: Options) -> std::io::Result<ApiServer> {
        let address = options.address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        ApiServer::serve(TcpListener::bind(address).await?, options, Arc::new(Shared::new()))
    }

    fn serve(listener: TcpListener, options: Options, shared: Arc<Shared>) -> std::io::Result<ApiServer> {
        let address = listener.local_addr()?;
        let tls = match &options.tls {
            Some((certificate, key)) => Some(http::acceptor(certificate, key)?),
            None => None,
        };
        let token = {
            let mut state = lock(&shared.state);
            state.authenticate = options.authenticate;
            state.seed();
            state.admin_token()
        };
        let task = tokio::spawn(http::serve(listener, tls, Arc::clone(&shared)));
        Ok(ApiServer { address, tls: options.tls, token, shared, task })
    }

    /// Ends all connections and begins again at the same address with what was stored, as a restart
    /// of the process in front of its database.
    ///
    /// # Errors
    /// If the address is taken meanwhile.
    pub async fn restart(self) -> std::io::Result<ApiServer> {
        let address = self.address;
        let shared = Arc::clone(&self.shared);
        let options = Options {
            tls: self.tls.clone(),
            authenticate: lock(&shared.state).authenticate,
            address: Some(address),
        };
        drop(self);
        // The listener closes as its task is dropped, which the runtime does in its own time.
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => tokio::task::yield_now().await,
                Err(error) => return Err(error),
            }
        };
        ApiServer::serve(listener, options, shared)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT` or the same with `https`.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The bearer token of an administrator.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// A kubeconfig for it, as JSON (which is YAML too), with one context named `test`.
    pub fn kubeconfig(&self) -> String {
        let certificate = self.tls.as_ref().map(|(certificate, _)| certificate.as_str());
        self.kubeconfig_with(certificate)
    }

    /// The same for clients that trust a certificate of an authority, which is not the server's own.
    pub fn kubeconfig_for(&self, bundle: &str) -> String {
        self.kubeconfig_with(Some(bundle))
    }

    fn kubeconfig_with(&self, bundle: Option<&str>) -> String {
        kubeconfig(&self.url(), bundle, &self.token)
    }

    /// Writes [`ApiServer::kubeconfig`] into a file.
    ///
    /// # Errors
    /// As writing fails.
    pub fn write_kubeconfig(&self, path: &Path) -> std::io::Result<()> {
        std::fs::write(path, self.kubeconfig())
    }

    /// Makes an object be as given, without admission or schema: created or replaced, status and all.
    ///
    /// # Panics
    /// If it lacks `apiVersion`, `kind` or a name, or its resource is not known.
    pub fn put(&self, object: Value) {
        let mut state = lock(&self.shared.state);
        if let Err(failure) = state.put_raw(object) {
            panic!("{}", failure.message);
        }
    }

    /// [`ApiServer::put`] for all documents of a YAML text.
    ///
    /// # Panics
    /// As `put`, and if it is not YAML.
    pub fn put_yaml(&self, text: &str) {
        let documents = leno_api::yaml::parse(text, leno_api::yaml::Dialect::Kubernetes);
        let documents = documents.unwrap_or_else(|error| panic!("{error}"));
        documents
            .iter()
            .filter(|document| !document.is_null())
            .for_each(|document| self.put(document.to_json()));
    }

    /// Removes an object, finalizers or not; whether there was one.
    pub fn remove(&self, group: &str, plural: &str, namespace: &str, name: &str) -> bool {
        lock(&self.shared.state).remove_raw(group, plural, namespace, name)
    }

    /// An object as it is stored.
    pub fn find(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        lock(&self.shared.state).find_raw(group, plural, namespace, name)
    }

    /// Forgets the history: watches from before now, and lists in pages, get 410 Gone.
    pub fn compact(&self) {
        lock(&self.shared.state).store.compact();
    }

    /// Ends all watches, without a word.
    pub fn drop_watches(&self) {
        self.shared.drop_watches();
    }

    /// Sends a bookmark to every watch that wants some.
    pub fn bookmark(&self) {
        self.shared.bookmark();
    }

    /// Forbids a user something (`*` is anything): 403, and what access reviews tell.
    pub fn deny(&self, user: &str, verb: &str, group: &str, plural: &str) {
        let [user, verb, group, plural] = [user, verb, group, plural].map(str::to_owned);
        lock(&self.shared.state).denials.push(Denial { user, verb, group, plural });
    }

    /// Forbids nothing any more.
    pub fn allow_all(&self) {
        lock(&self.shared.state).denials.clear();
    }

    /// Closes every connection, whatever it is doing.
    pub fn drop_connections(&self) {
        self.shared.hang_up();
    }

    /// Lets every request wait first.
    pub fn slow_down(&self, by: Duration) {
        lock(&self.shared.state).delay = by;
    }

    /// Lets requests fail; see [`Fault`].
    pub fn fail(&self, fault: Fault) {
        lock(&self.shared.state).faults.push(fault);
    }

    /// Stops failing requests.
    pub fn heal(&self) {
        lock(&self.shared.state).faults.clear();
    }

    /// Moves the clock that objects are stamped by, forwards.
    pub fn advance(&self, by: Duration) {
        lock(&self.shared.state).clock_offset += by;
    }

    /// Lets Pods that are on a node live on, being deleted, until they are deleted with a grace
    /// period of zero: for tests that play kubelet.
    pub fn expect_kubelet(&self) {
        lock(&self.shared.state).kubelet = true;
    }

    /// From now on only who has a role for it may do something; administrators may everything.
    pub fn authorize(&self) {
        lock(&self.shared.state).authorize = true;
    }

    /// Makes a bearer token known.
    pub fn add_token(&self, token: &str, user: User) {
        lock(&self.shared.state).tokens.insert(token.to_owned(), user);
    }

    /// From now on this plays all signers of CertificateSigningRequests. It is shown each one when it is made, and again
    /// when any is changed, until something has become of it; a verdict that does not suit its state (a certificate
    /// before it was approved) waits.
    pub fn sign_requests(&self, signers: impl Fn(&SigningRequest) -> Option<Verdict> + Send + 'static) {
        lock(&self.shared.state).signers = Some(Box::new(signers));
        self.look_at_requests();
    }

    /// Shows the signers all requests again.
    pub fn look_at_requests(&self) {
        certificates::look(&mut lock(&self.shared.state));
    }

    /// How many objects of a resource there are, in all namespaces.
    pub fn count(&self, group: &str, plural: &str) -> usize {
        lock(&self.shared.state).store.list(&(group.to_owned(), plural.to_owned()), "").count()
    }

    /// Where the webhooks of a Service (`namespace/name`) are reached, as there is no network of
    /// services here.
    pub fn route_service(&self, service: &str, address: SocketAddr) {
        lock(&self.shared.state).services.insert(service.to_owned(), address);
    }

    /// How many watches are open.
    pub fn watches(&self) -> usize {
        self.shared.watches()
    }

    /// The requests since the start, or since this was asked last.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut lock(&self.shared.state).seen)
    }

    /// The requests that were forbidden, as clients were told, since the start or since this was asked last.
    pub fn take_refused(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.shared.state).refused)
    }

    /// The revision of the last change.
    pub fn revision(&self) -> u64 {
        lock(&self.shared.state).store.revision()
    }
}

/// A kubeconfig for the API server at a URL, of which a root vouches, and who shows a token.
pub(crate) fn kubeconfig(url: &str, bundle: Option<&str>, token: &str) -> String {
    let mut cluster = json!({ "server": url });
    if let (Some(bundle), Some(cluster)) = (bundle, cluster.as_object_mut()) {
        let data = leno_base::base64::encode(bundle.as_bytes());
        cluster.insert("certificate-authority-data".to_owned(), Value::from(data));
    }
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{ "name": "test", "cluster": cluster }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "admin" } }],
        "users": [{ "name": "admin", "user": { "token": token } }],
    })
    .to_string()
}

//! Who may look, and at what: the same for those who ask by HTTP and for those who ask over xDS.
//!
//! Somebody on this machine may see everything, as he could look into the process; everybody else must
//! prove who he is. Of these, workloads of the mesh's root namespace (and of those that
//! `DEBUG_ENDPOINT_AUTH_ALLOWED_NAMESPACES` names) may see everything, others a few pages about the
//! proxies of their namespace.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ::http::header::{HOST, HeaderValue, ORIGIN};
use ::http::uri::Authority;
use ::http::{HeaderMap, Request};
use leno_base::origin::is_foreign;
use leno_xds::server::listen::Caller;

use crate::model::identity::Account;

/// Where Istio's sidecars say that they come from when they pass on what came to their workload.
const SIDECAR: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6));

/// What proxies add to requests that they pass on.
const PASSED_ON: [&str; 3] = ["x-forwarded-client-cert", "x-forwarded-for", "forwarded"];

/// Who asks, as far as that limits what he is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Viewer {
    /// Somebody on this machine.
    Anyone,
    /// A workload of a namespace.
    Namespace(String),
}

impl Viewer {
    /// Who it is: who has proven who he is is that, wherever he is.
    ///
    /// # Errors
    /// The words for who may not look at all.
    pub(super) fn of(is_here: bool, caller: Option<&Caller>) -> Result<Viewer, &'static str> {
        let Some(caller) = caller else {
            return if is_here { Ok(Viewer::Anyone) } else { Err("authentication required") };
        };
        let account = caller.identities.iter().find_map(|identity| Account::of_identity(identity));
        account.map(|account| Viewer::Namespace(account.namespace)).ok_or("this is no service account")
    }
}

/// Whether a client is on this machine: it comes from the loopback address, or from the address that
/// it has connected to (if that is known), or by a Unix socket, which has no addresses.
pub(super) fn is_here(peer: Option<SocketAddr>, local: Option<SocketAddr>) -> bool {
    let Some(peer) = peer.map(|peer| peer.ip().to_canonical()) else { return true };
    peer != SIDECAR && (peer.is_loopback() || local.is_some_and(|local| local.ip().to_canonical() == peer))
}

/// Whether a proxy has passed a request on, so that who sends it need not be where it comes from.
pub(super) fn is_passed_on(headers: &HeaderMap) -> bool {
    PASSED_ON.iter().any(|name| headers.contains_key(*name))
}

/// Whether who asks need not be where a request comes from: a proxy has passed it on, or a page of the
/// web has made somebody's browser send it.
// Deviation: istiod shows its pages to what a page of the web makes a browser on the machine ask for.
pub(super) fn is_others<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or("?."));
    let host = request.uri().authority().map(Authority::as_str).or_else(|| text(HOST));
    is_passed_on(headers) || is_foreign(host, text(ORIGIN))
}

#[cfg(test)]
mod tests {
    use ::http::Request;
    use leno_xds::server::listen::Caller;

    use super::{Viewer, is_here, is_others};

    #[test]
    fn who_is_on_this_machine() {
        for (peer, local, expected) in [
            ("127.0.0.1:9", "127.0.0.1:15014", true),
            ("[::ffff:127.0.0.1]:9", "[::1]:15014", true),
            ("10.0.0.5:9", "10.0.0.5:15014", true),
            ("10.0.0.6:9", "10.0.0.5:15014", false),
            ("127.0.0.6:9", "127.0.0.1:15014", false),
            ("127.0.0.6:9", "127.0.0.6:15014", false),
        ] {
            assert_eq!(is_here(peer.parse().ok(), local.parse().ok()), expected, "{peer}");
        }
        assert!(is_here(None, None) && !is_here("10.0.0.5:9".parse().ok(), None));
        for (uri, name, value, expected) in [
            ("/", "host", "localhost:15014", false),
            ("/", "host", "127.0.0.1", false),
            ("/", "x-forwarded-for", "1.2.3.4", true),
            ("/", "host", "example.com:15014", true),
            ("/", "origin", "http://example.com", true),
            ("http://example.com/", "host", "localhost", true),
        ] {
            let request = Request::builder().uri(uri).header(name, value).body(()).expect("a request");
            assert_eq!(is_others(&request), expected, "{uri} {name}: {value}");
        }
    }

    #[test]
    fn who_looks() {
        let namespace = |name: &str| Ok(Viewer::Namespace(name.to_owned()));
        for (is_here, identities, expected) in [
            (true, None, Ok(Viewer::Anyone)),
            (false, None, Err("authentication required")),
            (false, Some(&["spiffe://x/ns/a/sa/b"][..]), namespace("a")),
            // A proxy here may speak for somebody elsewhere.
            (true, Some(&["spiffe://x/ns/a/sa/b"]), namespace("a")),
            (false, Some(&["spiffe://x/odd", "spiffe://x/ns/a/sa/b"]), namespace("a")),
            (false, Some(&["spiffe://x/odd/ns/istio-system/sa/b"]), Err("this is no service account")),
            (true, Some(&[]), Err("this is no service account")),
        ] {
            let caller = identities
                .map(|all| Caller { identities: all.iter().map(|&one| one.to_owned()).collect(), pod: None });
            assert_eq!(Viewer::of(is_here, caller.as_ref()), expected, "{is_here} {identities:?}");
        }
    }
}

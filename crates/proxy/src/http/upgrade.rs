//! Which upgrades (`upgrade: websocket`, CONNECT) pass. The bytes behind one are body to both
//! codecs; see `codec::h1::server` and `codec::h2` for how each version says it.

use crate::http::config::{HttpConnectionManager, UpgradeType};
use crate::http::headers::{HeaderMap, Known};
use crate::http::route::Forward;

/// The upgrade that a request asks for, if any; `CONNECT` counts as one.
pub(crate) fn requested(head: &HeaderMap) -> Option<&[u8]> {
    if head.method() == b"CONNECT" { Some(b"connect") } else { head.get(Known::Upgrade) }
}

/// Whether the route, else the connection manager, lets this upgrade pass.
pub(crate) fn allowed(kind: &[u8], manager: &HttpConnectionManager, route: Option<&Forward>) -> bool {
    let find = |upgrades: &[UpgradeType]| {
        let entry = upgrades.iter().find(|entry| kind.eq_ignore_ascii_case(entry.name.as_bytes()));
        entry.map(|entry| entry.enabled)
    };
    route.and_then(|route| find(&route.upgrades)).or_else(|| find(&manager.upgrades)).unwrap_or(false)
}

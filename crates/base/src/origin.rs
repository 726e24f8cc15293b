//! Whether a page of the web speaks through somebody's browser.
//!
//! A browser on a machine reaches what listens on its loopback address, and is made to by any page it
//! shows: by a form (then it says the page's `Origin`), or by a name of the page's own that is resolved
//! to 127.0.0.1 later (then that name is the `Host`; DNS rebinding). Ports that trust who is on the
//! machine ask here first.

use std::net::IpAddr;

/// Whether a request says that it was made for a public name, by its `Host` (or `:authority`), or by a
/// page of one, by its `Origin`. What says neither is no browser's.
pub fn is_foreign(host: Option<&str>, origin: Option<&str>) -> bool {
    let of_page = |origin: &str| origin.split_once("://").is_none_or(|(_, host)| is_public(host));
    host.is_some_and(is_public) || origin.is_some_and(of_page)
}

/// Whether a host, with or without a port, can be a name that somebody has registered: not an address,
/// `localhost`, a name without dots, or a Service of Kubernetes.
fn is_public(host: &str) -> bool {
    let bare = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(rest, |(address, _)| address),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    if bare.parse::<IpAddr>().is_ok() {
        return false;
    }
    let bare = bare.trim_end_matches('.').to_ascii_lowercase();
    let own = [".localhost", ".svc", ".cluster.local"];
    bare.contains('.') && !own.iter().any(|end| bare.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::is_foreign;

    #[test]
    fn pages_of_others_are_known() {
        for own in [
            "",
            "localhost",
            "localhost:15000",
            "LOCALHOST",
            "x",
            "127.0.0.1",
            "127.0.0.1:15014",
            "10.0.0.5:9",
            "[::1]",
            "[::1]:15014",
            "istiod.istio-system.svc:15014",
            "istiod.istio-system.svc.cluster.local",
            "up.localhost:80",
        ] {
            assert!(!is_foreign(Some(own), None), "{own}");
        }
        for foreign in [
            "example.com",
            "example.com:15014",
            "localhost.example.com",
            "127.0.0.1.example.com",
            "a.svc.example.com.",
            "1.2.3.4.5",
        ] {
            assert!(is_foreign(Some(foreign), None), "{foreign}");
            assert!(is_foreign(Some("localhost"), Some(&format!("http://{foreign}"))), "{foreign}");
        }
        assert!(!is_foreign(None, None));
        assert!(!is_foreign(Some("localhost:15000"), Some("http://localhost:15000")));
        assert!(is_foreign(Some("localhost:15000"), Some("null")));
    }
}

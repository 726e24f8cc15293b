//! What annotations exclude, or do not include, is not in the proxies' hands. That can be seen: a sidecar gives
//! requests an id, applications see another address than the client's, and STRICT ports refuse plain text.

use super::net::{EXCLUDED, EXCLUDED_V6, NODE, NODE_V6};
use super::scene::{CLIENT, KEPT, SERVER, Scene, by_any, says_from};

fn url(host: &str, port: u16) -> String {
    if host.contains(':') { format!("http://[{host}]:{port}/") } else { format!("http://{host}:{port}/") }
}

pub(crate) fn excluded(scene: &Scene) {
    let ask = |pod: usize, host: &str, port: u16| scene.net[pod].curl(&["-f", &url(host, port)]).text;
    for (node, range, gateway) in [(NODE, EXCLUDED, "10.80.2.2"), (NODE_V6, EXCLUDED_V6, "fd80:2::2")] {
        // An outbound port, which others do not exclude.
        let own = ask(CLIENT, node, 5432);
        assert!(own.starts_with("from") && !by_any(&own), "{own}");
        let others = ask(SERVER, node, 5432);
        assert!(says_from(&others, gateway) && by_any(&others), "{others}");
        // An outbound range, likewise; other addresses of the same machine are not of it.
        let own = ask(CLIENT, range, 80);
        assert!(own.starts_with("from") && !by_any(&own), "{own}");
        assert!(by_any(&ask(SERVER, range, 80)));
        assert!(by_any(&ask(CLIENT, node, 80)));
    }
    // An inbound port: plain text is not refused, and the application sees who it is.
    for (address, gateway) in [("10.80.2.2", "10.80.2.1"), ("fd80:2::2", "fd80:2::1")] {
        let own = ask(0, address, 9000);
        assert!(says_from(&own, gateway) && !by_any(&own), "{own}");
    }
}

pub(crate) fn not_included(scene: &Scene) {
    let ask = |pod: usize, host: &str, port: u16| scene.net[pod].curl(&["-f", &url(host, port)]).text;
    // An inbound port.
    for (address, gateway) in [("10.80.3.2", "10.80.3.1"), ("fd80:3::2", "fd80:3::1")] {
        let own = ask(0, address, 8082);
        assert!(says_from(&own, gateway) && !by_any(&own), "{own}");
    }
    // Outbound ranges: a service is of them (all checks of TPROXY), the node is not.
    for node in [NODE, NODE_V6] {
        let own = ask(KEPT, node, 80);
        assert!(own.starts_with("from") && !by_any(&own), "{own}");
    }
}

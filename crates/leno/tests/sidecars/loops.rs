//! Nothing goes round in circles: a pod that calls itself, and calls to the proxy's own ports.

use super::net::{NODE, NODE_V6, v4, v6};
use super::scene::{CLIENT, KEPT, PROXY, SIX, Scene, by_any, by_both, is_from, says_from};

pub(crate) fn itself(scene: &Scene) {
    for pod in [CLIENT, KEPT, SIX] {
        let ask = |host: &str| scene.net[pod].curl(&["-f", &format!("http://{host}/")]).text;
        let mut own = vec![v6(pod), "::1".to_owned()];
        if pod != SIX {
            own.extend([v4(pod), "127.0.0.1".to_owned()]);
        }
        // By addresses of its own a pod speaks to itself, without its proxy.
        for address in own {
            let host = if address.contains(':') { format!("[{address}]") } else { address.clone() };
            let said = ask(&format!("{host}:8080"));
            assert!(says_from(&said, &address) && !by_any(&said), "{address}: {said}");
            // Where nobody listens it is refused at once, not passed round.
            assert_eq!(scene.net[pod].curl(&[&format!("http://{host}:9/")]).code, 7, "{address}");
        }
    }
    // By its service, with itself as the only endpoint: through its proxy twice.
    let said = scene.client().curl(&["-f", "http://client/"]).text;
    assert!(by_both(&said, "client"), "{said}");
    let said = scene.net[SIX].curl(&["-f", "http://six/"]).text;
    assert!(by_both(&said, "six"), "{said}");
    let said = scene.net[KEPT].curl(&["-f", "http://kept/"]).text;
    assert!(is_from(&said, "kept"), "{said}");
    assert!(says_from(&said, &v4(KEPT)) || says_from(&said, &v6(KEPT)), "{said}");
    // What the proxy's user sends is not redirected, nor what programs in the proxy's container do.
    for node in [NODE, &format!("[{NODE_V6}]")] {
        let url = format!("http://{node}/");
        let said = scene.client().as_user(PROXY, "curl", &["-sS", "-g", "-f", "--max-time", "50", &url]);
        assert!(said.text.starts_with("from") && !by_any(&said.text), "{said:?}");
    }
}

/// From wherever they are called, they answer nothing, at once.
pub(crate) fn own_ports(scene: &Scene) {
    for port in [15001, 15006] {
        for &pod in &scene.pods {
            let mut hosts = vec![format!("[{}]", v6(pod))];
            if pod != SIX {
                hosts.push(v4(pod));
            }
            for host in hosts {
                for caller in [0, pod, CLIENT, SIX] {
                    if caller == SIX && host.contains('.') {
                        continue;
                    }
                    let said = scene.net[caller].curl(&[
                        "-f",
                        "--max-time",
                        "40",
                        &format!("http://{host}:{port}/"),
                    ]);
                    let label = format!("{caller} to {host}:{port}");
                    assert!(said.text.is_empty(), "{label}: {said:?}");
                    // 28: it took too long.
                    assert!(said.code != 0 && said.code != 28, "{label}: {said:?}");
                }
            }
            let loopback = if pod == SIX { "[::1]" } else { "127.0.0.1" };
            let said =
                scene.net[pod].curl(&["-f", "--max-time", "40", &format!("http://{loopback}:{port}/")]);
            assert!(said.code != 0 && said.code != 28 && said.text.is_empty(), "{loopback}:{port}: {said:?}");
        }
    }
}

/// What goes round makes a connection each time: there are as many as programs have made, and no more, and in the
/// end hardly one.
pub(crate) fn nothing_goes_round(scene: &Scene) {
    for &pod in &scene.pods {
        for port in ["15001", "15006"] {
            scene.mesh.until("connections end", || {
                scene.figure(pod, &format!("^listener\\..*_{port}\\.downstream_cx_active")) < 50
            });
            let total = scene.figure(pod, &format!("^listener\\..*_{port}\\.downstream_cx_total"));
            assert!(total < 3000, "{pod}, {port}: {total}");
            assert!(pod == KEPT || total > 0, "{pod}, {port}: {total}");
        }
    }
}

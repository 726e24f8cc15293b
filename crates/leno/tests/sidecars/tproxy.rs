//! TPROXY: the application sees the address of its client, through both sidecars.

use super::net::{v4, v6};
use super::scene::{CLIENT, KEPT, SERVER, SIX, STOCK, Scene, by_both, is_from, says_from};

pub(crate) fn keeps_addresses(scene: &Scene) {
    let accounts = [(CLIENT, "client"), (SERVER, "server"), (SIX, "six"), (STOCK, "stock")];
    for (pod, account) in accounts.into_iter().filter(|(pod, _)| scene.pods.contains(pod)) {
        let said = scene.net[pod].curl(&["-f", "http://kept/"]).text;
        let own = says_from(&said, &v6(pod)) || pod != SIX && says_from(&said, &v4(pod));
        assert!(own && is_from(&said, account), "{said}");
    }
    // Over and over, with connections of their own to the sidecar.
    let arguments = [&["-f", "-H", "connection: close"][..], &["http://kept/"; 50]].concat();
    let said = scene.client().curl(&arguments);
    assert_eq!(said.text.matches("sa/client").count(), 50, "{said:?}");
    let body = "x".repeat(3 << 20);
    let arguments = ["-sS", "-f", "--max-time", "50", "--data-binary", "@-", "http://kept/"];
    let said = scene.net[SIX].fed("curl", &arguments, body.as_bytes());
    assert!(said.text.contains(&format!("body {}\n", body.len())), "{said:?}");
    // The other way it is a client like all others.
    let said = scene.net[KEPT].curl(&["-f", "http://server/"]).text;
    assert!(by_both(&said, "kept"), "{said}");
}

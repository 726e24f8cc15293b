//! Names of ServiceEntries, which no name server knows but the agent, by UDP and by TCP, of both families, and where
//! connections to them lead. Others are asked of the pod's name server.

use super::net::{NODE, NODE_V6, v4};
use super::protocols::greeted;
use super::scene::{CLIENT, SIX, Scene, by_any};
use super::servers::OUTSIDE;

/// Asks a name server that there is not, over TCP: the answer's code, and how many records it has.
const BY_TCP: &str = r#"
import socket, struct, sys
name = b"".join(bytes([len(part)]) + part.encode() for part in sys.argv[1].split(".")) + b"\0"
query = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + name + struct.pack(">2H", 1, 1)
with socket.create_connection(("10.96.0.53", 53), 50) as stream:
    stream.settimeout(50)
    for _ in range(2):
        stream.sendall(struct.pack(">H", len(query)) + query)
        reader = stream.makefile("rb")
        answer = reader.read(struct.unpack(">H", reader.read(2))[0])
        number, flags, _, records = struct.unpack(">4H", answer[:8])
        assert number == 7
        print(flags & 15, records, ".".join(str(byte) for byte in answer[-4:]))
"#;

pub(crate) fn names(scene: &Scene) {
    // Addresses that it was given, and addresses that it is given: each has its own.
    let client = scene.client();
    let found = |database: &str, name: &str| client.run("getent", &[database, name]).text;
    assert!(found("ahostsv4", "legacy.example").starts_with("10.96.0.50 "));
    assert!(found("ahostsv6", "legacy.example").starts_with("fd96::50 "));
    let (one, two) = (found("ahostsv4", "one.example"), found("ahostsv4", "two.example"));
    assert!(one.starts_with("240.240.") && two.starts_with("240.240.") && one != two, "{one} {two}");
    assert!(found("ahostsv6", "one.example").starts_with("2001:2:"), "{}", found("ahostsv6", "one.example"));
    assert_eq!(found("ahostsv4", "nobody.example"), "");
    // Short forms, as in any pod.
    assert!(found("ahostsv4", "server.default").starts_with("10.96.0.9 "));
    assert!(found("ahostsv6", "six").starts_with("fd96::13 "));

    // Two on one port differ by their addresses only.
    for pod in [CLIENT, SIX] {
        let own = if pod == CLIENT { v4(pod) } else { super::net::v6(pod) };
        greeted(scene, pod, "one.example", "7000", &format!("one {own}"));
        greeted(scene, pod, "two.example", "7000", &format!("two {own}"));
    }
    for pod in [CLIENT, SIX] {
        let ask = || scene.net[pod].curl(&["-f", "http://legacy.example/out"]);
        // Through the sidecar, and no further.
        let is_so = |text: &str| {
            text.contains("GET /out") && text.to_lowercase().contains("host: legacy.example") && by_any(text)
        };
        scene.told("legacy.example", ask, is_so);
    }

    // By TCP: of the C library, and of one that sends two questions on a connection.
    let arguments = ["RES_OPTIONS=use-vc", "getent", "ahostsv4", "two.example"];
    assert_eq!(client.run("env", &arguments).text, two);
    let said = scene.python(CLIENT, BY_TCP, &["legacy.example"]);
    assert_eq!(said.text, "0 1 10.96.0.50\n0 1 10.96.0.50\n", "{said:?}");

    // Those that the mesh does not know.
    assert!(found("ahostsv4", OUTSIDE).starts_with(&format!("{NODE} ")), "{}", found("ahostsv4", OUTSIDE));
    assert!(found("ahostsv6", OUTSIDE).starts_with(&format!("{NODE_V6} ")));
    for pod in [CLIENT, SIX] {
        let said = scene.net[pod].curl(&["-f", &format!("http://{OUTSIDE}/")]);
        assert!(by_any(&said.text), "{said:?}");
    }
}

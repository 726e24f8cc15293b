//! Protocols in which the server speaks first, and those that are none of the mesh's business.

use super::net::{NODE, NODE_V6, v4, v6};
use super::scene::{CLIENT, KEPT, SERVER, SIX, STOCK, Scene};

/// A client of MySQL's: the server's greeting, a login, OK.
const MYSQL: &str = r#"
import socket, struct, sys
stream = socket.create_connection((sys.argv[1], int(sys.argv[2])), 50)
stream.settimeout(50)
def exactly(length):
    data = b""
    while len(data) < length:
        more = stream.recv(length - len(data))
        assert more, "it is closed after %r" % data
        data += more
    return data
def packet():
    header = exactly(4)
    return header[3], exactly(int.from_bytes(header[:3], "little"))
number, greeting = packet()
assert number == 0 and greeting[0] == 10, greeting
login = struct.pack("<IIB23x", 0x000FA20D, 1 << 24, 45) + b"shop\0" + b"\0" + b"mysql_native_password\0"
stream.sendall(len(login).to_bytes(3, "little") + b"\1" + login)
number, ok = packet()
assert number == 2 and ok[0] == 0, ok
print(greeting[1:greeting.index(b"\0")].decode())
"#;

/// Reads a line before it says anything, then is told what it says.
const FIRST: &str = r#"
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 50) as stream:
    stream.settimeout(50)
    lines = stream.makefile("rw")
    print(lines.readline(), end="")
    lines.write("and thanks\n")
    lines.flush()
    print(lines.readline(), end="")
"#;

/// By a port that its name declares, and by the one that is known to be MySQL's.
pub(crate) fn mysql(scene: &Scene) {
    let declared = scene.servers().map(|server| (server, "3316"));
    for (host, port) in declared.chain([("db", "3306")]) {
        let ask = || scene.python(CLIENT, MYSQL, &[host, port]);
        scene.told(host, ask, |text| text == "8.0.36-127.0.0.6\n");
    }
}

pub(crate) fn greeted(scene: &Scene, pod: usize, host: &str, port: &str, greeting: &str) {
    let ask = || scene.python(pod, FIRST, &[host, port]);
    let expected = format!("{greeting}\nand thanks\n");
    scene.told(&format!("{host}:{port} speaks first"), ask, |text| text == expected);
}

pub(crate) fn server_first(scene: &Scene) {
    std::thread::scope(|scope| {
        for (server, number) in scene.servers().zip([SERVER, STOCK]) {
            // Nobody has declared what is spoken: it is waited for, in vain, for as long as the mesh says.
            scope.spawn(move || greeted(scene, CLIENT, server, "3308", "welcome 127.0.0.6"));
            // One that takes plain text as well: what a client of the mesh says first is TLS, others say nothing.
            scope.spawn(move || {
                greeted(scene, CLIENT, server, "3309", "welcome 127.0.0.6");
                greeted(scene, 0, &v4(number), "3309", "welcome 127.0.0.6");
                greeted(scene, 0, &v6(number), "3309", "welcome ::6");
            });
            scope.spawn(move || greeted(scene, SIX, server, "3308", "welcome ::6"));
        }
    });
    // Over IPv6 on the whole way.
    greeted(scene, CLIENT, "six", "3308", "welcome ::6");
    // Nothing of the mesh's: the sidecar passes it on as it is.
    greeted(scene, CLIENT, NODE, "7001", &format!("one {}", v4(CLIENT)));
    greeted(scene, SIX, NODE_V6, "7002", &format!("two {}", v6(SIX)));
}

/// Who is not in the mesh gets nothing, whether or not the server speaks first.
pub(crate) fn plain_text(scene: &Scene) {
    let refused = |pod: usize, address: String| {
        let host = if address.contains(':') { format!("[{address}]") } else { address.clone() };
        let said = scene.net[0].curl(&[&format!("http://{host}:8080/")]);
        assert!(said.code != 0 && !said.text.contains("from"), "{host}: {said:?}");
        if pod != KEPT {
            let said = scene.python(0, FIRST, &[&address, "3308"]);
            assert!(!said.text.contains("welcome"), "{host}: {said:?}");
        }
    };
    std::thread::scope(|scope| {
        let refused = &refused;
        for &pod in &scene.pods {
            scope.spawn(move || refused(pod, v6(pod)));
            if pod != SIX {
                scope.spawn(move || refused(pod, v4(pod)));
            }
        }
    });
    // A pod by its own address is nothing that a sidecar knows: plain text.
    let said = scene.client().curl(&[&format!("http://{}:8080/", v4(SERVER))]);
    assert!(said.code != 0 && !said.text.contains("from"), "{said:?}");
}

const UDP: &str = r#"
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
stream = socket.socket(family, socket.SOCK_DGRAM)
stream.settimeout(50)
stream.sendto(b"x" * 1200, (sys.argv[1], 9999))
data, peer = stream.recvfrom(2048)
print(len(data), peer[0])
"#;

/// Datagrams are none of the mesh's business.
pub(crate) fn datagrams(scene: &Scene) {
    for (pod, address) in [(CLIENT, v4(SERVER)), (CLIENT, v6(SERVER)), (SIX, v6(SERVER)), (0, v4(SERVER))] {
        let said = scene.python(pod, UDP, &[&address]);
        assert_eq!(said.text, format!("1200 {address}\n"), "{said:?}");
    }
}

//! Ports for processes that must be told theirs before they start.
//!
//! A port that the kernel gave and that was let go may be anybody's a moment later: the next socket's, or the near end
//! of any connection. Those given here lie below the range that kernels give ports from (32768 on Linux, 49152
//! elsewhere), and no other test gets them while this process lives.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::{Mutex, PoisonError};

/// What nobody gets unasked. Istio's own ports, around 15000, lie before it.
const FIRST: u16 = 16_384;
const COUNT: u16 = 16_384;

/// A port that nobody listens on, at any IPv4 address, and that no other caller gets, in this process or another.
///
/// # Panics
/// If there is none left.
pub fn free() -> u16 {
    static TAKEN: Mutex<(u16, Vec<Claim>)> = Mutex::new((0, Vec::new()));
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    // Processes that were started one after the other begin far from one another.
    let start = std::process::id().wrapping_mul(2_654_435_769) >> 16;
    for _ in 0..COUNT {
        let place = start.wrapping_add(u32::from(taken.0)) % u32::from(COUNT);
        taken.0 = taken.0.wrapping_add(1);
        let port = FIRST + u16::try_from(place).expect("less than a port");
        let Some(claim) = claim(port) else { continue };
        let any = (Ipv4Addr::UNSPECIFIED, port);
        if TcpListener::bind(any).is_ok() && UdpSocket::bind(any).is_ok() {
            taken.1.push(claim);
            return port;
        }
    }
    panic!("all ports are in use")
}

/// What others see that a port is taken by, until it is dropped or the process ends.
#[cfg(target_os = "linux")]
type Claim = std::os::unix::net::UnixListener;

/// An abstract socket: it leaves nothing behind, however the process ends.
#[cfg(target_os = "linux")]
fn claim(port: u16) -> Option<Claim> {
    use std::os::linux::net::SocketAddrExt as _;
    let name = format!("leno-test-port-{port}");
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name).ok()?;
    std::os::unix::net::UnixListener::bind_addr(&address).ok()
}

#[cfg(not(target_os = "linux"))]
type Claim = ();

/// Processes are told apart by where they begin, and by nothing else.
#[cfg(not(target_os = "linux"))]
fn claim(_: u16) -> Option<Claim> {
    Some(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn nobody_gets_the_same() {
        let (ports, count) = (Mutex::new(BTreeSet::new()), 64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..count / 4).for_each(|_| _ = ports.lock().unwrap().insert(free())));
            }
        });
        let ports = ports.into_inner().unwrap();
        assert_eq!(ports.len(), count);
        assert!(ports.iter().all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()));
        #[cfg(target_os = "linux")]
        assert!(ports.iter().all(|port| claim(*port).is_none()));
    }
}

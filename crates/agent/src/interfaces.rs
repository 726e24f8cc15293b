//! The addresses of the machine's interfaces, as the kernel lists them in `/proc/net`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// The addresses, v4 first, without loopback and link-local ones and those of some interfaces.
pub fn addresses(excluded: &[&str]) -> Vec<IpAddr> {
    let read = |name: &str| std::fs::read_to_string(Path::new("/proc/net").join(name)).unwrap_or_default();
    let networks = connected(&read("route"), excluded);
    let v4 = local(&read("fib_trie")).into_iter();
    let v4 = v4.filter(|address| !networks.iter().any(|(base, mask)| u32::from(*address) & mask == *base));
    let v4 =
        v4.filter(|address| !address.is_loopback() && !address.is_link_local() && !address.is_unspecified());
    let v6 = v6(&read("if_inet6"), excluded).into_iter();
    let v6 = v6.filter(|address| !address.is_loopback() && !address.is_unicast_link_local());
    v4.map(IpAddr::V4).chain(v6.map(IpAddr::V6)).collect()
}

/// Of `fib_trie`: addresses that lead to this machine.
fn local(text: &str) -> BTreeSet<Ipv4Addr> {
    let mut found = BTreeSet::new();
    let mut last: Option<Ipv4Addr> = None;
    for line in text.lines() {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(last);
        }
    }
    found
}

/// Of `route`: the networks that these interfaces are in.
fn connected(text: &str, interfaces: &[&str]) -> Vec<(u32, u32)> {
    let lines = text.lines().skip(1).map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let number = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::from_be);
    lines
        .filter_map(|fields| match fields.as_slice() {
            [name, base, "00000000", _, _, _, _, mask, ..]
                if interfaces.contains(name) && *base != "00000000" =>
            {
                Some((number(base)?, number(mask)?))
            }
            _ => None,
        })
        .collect()
}

/// Of `if_inet6`: addresses, without those of some interfaces.
fn v6(text: &str, excluded: &[&str]) -> Vec<Ipv6Addr> {
    let lines = text.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    lines
        .filter_map(|fields| match fields.as_slice() {
            [address, _, _, _, _, name] if !excluded.contains(name) => {
                u128::from_str_radix(address, 16).ok().map(Ipv6Addr::from_bits)
            }
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{connected, local, v6};

    #[test]
    fn what_the_kernel_lists() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.0.0\n        /24 link UNICAST\n     |-- 10.0.0.7\n        /32 host LOCAL
Local:\n     |-- 10.0.0.255\n        /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 10.0.0.7\n        /32 host LOCAL\n";
        let found: Vec<String> = local(trie).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.7", "127.0.0.1"]);

        let route = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
            eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\n\
            eth1\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\n";
        let mask = u32::from_be_bytes([255, 255, 255, 0]);
        assert_eq!(connected(route, &["eth1"]), [(u32::from_be_bytes([10, 0, 2, 0]), mask)]);
        assert!(connected(route, &["eth0"]).is_empty());

        let six = "fd000000000000000000000000000007 02 40 00 80     eth0\n00000000000000000000000000000001 01 80 10 80       lo\n";
        assert_eq!(v6(six, &["lo"]).iter().map(ToString::to_string).collect::<Vec<_>>(), ["fd00::7"]);
    }
}

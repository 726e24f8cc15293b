//! Rules as text, for both back ends.

use expect_test::{Expect, expect};

use super::{Cidrs, Dns, Groups, InboundMode, Ports, Redirect};
use crate::intercept::{Backend, text};

fn nftables(redirect: &Redirect, expected: &Expect) {
    expected.assert_eq(&text(redirect, Backend::Nftables));
}

fn iptables(redirect: &Redirect, expected: &Expect) {
    expected.assert_eq(&text(redirect, Backend::Iptables));
}

/// As `istio-iptables` has it without flags.
fn bare() -> Redirect {
    Redirect {
        include_inbound_ports: Ports::Only(Vec::new()),
        exclude_inbound_ports: Vec::new(),
        include_outbound_cidrs: Cidrs::Only(Vec::new()),
        ..Redirect::default()
    }
}

#[test]
fn defaults_of_injection() {
    nftables(
        &Redirect::default(),
        &expect![[r#"
        table ip leno-nat {
        	chain ISTIO_INBOUND {
        		meta l4proto tcp tcp dport 15008 return
        		meta l4proto tcp tcp dport 15090 return
        		meta l4proto tcp tcp dport 15021 return
        		meta l4proto tcp tcp dport 15020 return
        		meta l4proto tcp tcp dport 22 return
        		meta l4proto tcp jump ISTIO_IN_REDIRECT
        	}
        	chain ISTIO_REDIRECT {
        		meta l4proto tcp redirect to :15001
        	}
        	chain ISTIO_IN_REDIRECT {
        		meta l4proto tcp redirect to :15006
        	}
        	chain ISTIO_OUTPUT {
        		oifname "lo" ip saddr 127.0.0.6/32 return
        		oifname "lo" ip daddr != 127.0.0.1/32 meta l4proto tcp tcp dport != 15008 meta skuid 1337 jump ISTIO_IN_REDIRECT
        		oifname "lo" meta skuid != 1337 return
        		meta skuid 1337 return
        		oifname "lo" ip daddr != 127.0.0.1/32 meta l4proto tcp tcp dport != 15008 meta skgid 1337 jump ISTIO_IN_REDIRECT
        		oifname "lo" meta skgid != 1337 return
        		meta skgid 1337 return
        		ip daddr 127.0.0.1/32 return
        		jump ISTIO_REDIRECT
        	}
        	chain PREROUTING {
        		type nat hook prerouting priority -100; policy accept;
        		meta l4proto tcp jump ISTIO_INBOUND
        	}
        	chain OUTPUT {
        		type nat hook output priority -100; policy accept;
        		jump ISTIO_OUTPUT
        	}
        }
    "#]],
    );
    iptables(
        &Redirect::default(),
        &expect![[r#"
        * nat
        -N ISTIO_INBOUND
        -N ISTIO_REDIRECT
        -N ISTIO_IN_REDIRECT
        -N ISTIO_OUTPUT
        -A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
        -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
        -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
        -A PREROUTING -p tcp -j ISTIO_INBOUND
        -A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN
        -A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
        -A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN
        -A ISTIO_INBOUND -p tcp --dport 22 -j RETURN
        -A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
        -A OUTPUT -j ISTIO_OUTPUT
        -A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN
        -A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
        -A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
        -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
        -A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT
        -A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN
        -A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
        -A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
        -A ISTIO_OUTPUT -j ISTIO_REDIRECT
        COMMIT
    "#]],
    );
}

#[test]
fn a_proxy_known_by_its_mark_and_everything_listed() {
    let redirect = Redirect {
        inbound_port: 16006,
        outbound_port: 16001,
        include_inbound_ports: Ports::Only(vec![80, 9080]),
        include_outbound_ports: vec![3306],
        exclude_outbound_ports: vec![5432],
        include_outbound_cidrs: Cidrs::Only(vec!["10.96.0.0/16".parse().unwrap()]),
        exclude_outbound_cidrs: vec!["10.96.7.9".parse().unwrap(), "10.97.1.1/12".parse().unwrap()],
        ..Redirect::by_mark()
    };
    nftables(
        &redirect,
        &expect![[r#"
        table ip leno-nat {
        	chain ISTIO_INBOUND {
        		meta l4proto tcp tcp dport 15008 return
        		meta l4proto tcp tcp dport 80 jump ISTIO_IN_REDIRECT
        		meta l4proto tcp tcp dport 9080 jump ISTIO_IN_REDIRECT
        	}
        	chain ISTIO_REDIRECT {
        		meta l4proto tcp redirect to :16001
        	}
        	chain ISTIO_IN_REDIRECT {
        		meta l4proto tcp redirect to :16006
        	}
        	chain ISTIO_OUTPUT {
        		meta l4proto tcp tcp dport 5432 return
        		meta l4proto udp udp dport 5432 return
        		oifname "lo" ip saddr 127.0.0.6/32 return
        		oifname "lo" ip daddr != 127.0.0.1/32 meta l4proto tcp tcp dport != 15008 meta mark 1337 jump ISTIO_IN_REDIRECT
        		oifname "lo" meta mark != 1337 return
        		meta mark 1337 return
        		ip daddr 127.0.0.1/32 return
        		ip daddr 10.96.7.9/32 return
        		ip daddr 10.96.0.0/12 return
        		meta l4proto tcp tcp dport 3306 jump ISTIO_REDIRECT
        		ip daddr 10.96.0.0/16 jump ISTIO_REDIRECT
        	}
        	chain PREROUTING {
        		type nat hook prerouting priority -100; policy accept;
        		meta l4proto tcp jump ISTIO_INBOUND
        	}
        	chain OUTPUT {
        		type nat hook output priority -100; policy accept;
        		jump ISTIO_OUTPUT
        	}
        }
    "#]],
    );
}

#[test]
fn nothing_is_asked_for() {
    iptables(
        &bare(),
        &expect![[r#"
        * nat
        -N ISTIO_INBOUND
        -N ISTIO_REDIRECT
        -N ISTIO_IN_REDIRECT
        -N ISTIO_OUTPUT
        -A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
        -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
        -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
        -A OUTPUT -j ISTIO_OUTPUT
        -A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN
        -A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
        -A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
        -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
        -A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT
        -A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN
        -A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
        -A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
        COMMIT
    "#]],
    );
}

#[test]
fn both_families_with_names_and_groups() {
    let redirect = Redirect {
        proxy_uids: vec![5, 6],
        proxy_gids: vec![7],
        dns: Dns::Servers(vec!["10.96.0.10".parse().unwrap()]),
        owner_groups: Groups::Only(vec![100, 101]),
        exclude_outbound_cidrs: vec!["10.1.0.0/16".parse().unwrap(), "fd00:1::/64".parse().unwrap()],
        ipv6: true,
        ..Redirect::default()
    };
    iptables(
        &redirect,
        &expect![[r#"
        * nat
        -N ISTIO_INBOUND
        -N ISTIO_REDIRECT
        -N ISTIO_IN_REDIRECT
        -N ISTIO_OUTPUT
        -N ISTIO_OUTPUT_DNS
        -A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
        -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
        -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
        -A PREROUTING -p tcp -j ISTIO_INBOUND
        -A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN
        -A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
        -A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN
        -A ISTIO_INBOUND -p tcp --dport 22 -j RETURN
        -A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
        -A OUTPUT -j ISTIO_OUTPUT
        -A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN
        -A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp -m multiport ! --dports 53,15008 -m owner --uid-owner 5 -j ISTIO_IN_REDIRECT
        -A ISTIO_OUTPUT -o lo -p tcp ! --dport 53 -m owner ! --uid-owner 5 -j RETURN
        -A ISTIO_OUTPUT -m owner --uid-owner 5 -j RETURN
        -A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp -m multiport ! --dports 53,15008 -m owner --uid-owner 6 -j ISTIO_IN_REDIRECT
        -A ISTIO_OUTPUT -o lo -p tcp ! --dport 53 -m owner ! --uid-owner 6 -j RETURN
        -A ISTIO_OUTPUT -m owner --uid-owner 6 -j RETURN
        -A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --gid-owner 7 -j ISTIO_IN_REDIRECT
        -A ISTIO_OUTPUT -o lo -p tcp ! --dport 53 -m owner ! --gid-owner 7 -j RETURN
        -A ISTIO_OUTPUT -m owner --gid-owner 7 -j RETURN
        -A ISTIO_OUTPUT -m owner ! --gid-owner 100 -m owner ! --gid-owner 101 -j RETURN
        -A ISTIO_OUTPUT -j ISTIO_OUTPUT_DNS
        -A ISTIO_OUTPUT_DNS -p tcp --dport 53 -d 10.96.0.10/32 -j REDIRECT --to-ports 15053
        -A ISTIO_OUTPUT_DNS -p udp --dport 53 -d 10.96.0.10/32 -j REDIRECT --to-port 15053
        -A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
        -A ISTIO_OUTPUT -d 10.1.0.0/16 -j RETURN
        -A ISTIO_OUTPUT -j ISTIO_REDIRECT
        COMMIT
        * raw
        -N ISTIO_OUTPUT_DNS
        -N ISTIO_INBOUND
        -A OUTPUT -j ISTIO_OUTPUT_DNS
        -A ISTIO_OUTPUT_DNS -p udp --dport 53 -m owner --uid-owner 5 -j CT --zone 1
        -A ISTIO_OUTPUT_DNS -p udp --sport 15053 -m owner --uid-owner 5 -j CT --zone 2
        -A ISTIO_OUTPUT_DNS -p udp --dport 53 -m owner --uid-owner 6 -j CT --zone 1
        -A ISTIO_OUTPUT_DNS -p udp --sport 15053 -m owner --uid-owner 6 -j CT --zone 2
        -A ISTIO_OUTPUT_DNS -p udp --dport 53 -m owner --gid-owner 7 -j CT --zone 1
        -A ISTIO_OUTPUT_DNS -p udp --sport 15053 -m owner --gid-owner 7 -j CT --zone 2
        -A PREROUTING -j ISTIO_INBOUND
        -A ISTIO_OUTPUT_DNS -p udp --dport 53 -d 10.96.0.10/32 -j CT --zone 2
        -A ISTIO_INBOUND -p udp --sport 53 -s 10.96.0.10/32 -j CT --zone 1
        COMMIT
        * nat
        -N ISTIO_INBOUND
        -N ISTIO_REDIRECT
        -N ISTIO_IN_REDIRECT
        -N ISTIO_OUTPUT
        -A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
        -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
        -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
        -A PREROUTING -p tcp -j ISTIO_INBOUND
        -A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN
        -A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
        -A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN
        -A ISTIO_INBOUND -p tcp --dport 22 -j RETURN
        -A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
        -A OUTPUT -j ISTIO_OUTPUT
        -A ISTIO_OUTPUT -o lo -s ::6/128 -j RETURN
        -A ISTIO_OUTPUT -o lo ! -d ::1/128 -p tcp -m multiport ! --dports 53,15008 -m owner --uid-owner 5 -j ISTIO_IN_REDIRECT
        -A ISTIO_OUTPUT -o lo -p tcp ! --dport 53 -m owner ! --uid-owner 5 -j RETURN
        -A ISTIO_OUTPUT -m owner --uid-owner 5 -j RETURN
        -A ISTIO_OUTPUT -o lo ! -d ::1/128 -p tcp -m multiport ! --dports 53,15008 -m owner --uid-owner 6 -j ISTIO_IN_REDIRECT
        -A ISTIO_OUTPUT -o lo -p tcp ! --dport 53 -m owner ! --uid-owner 6 -j RETURN
        -A ISTIO_OUTPUT -m owner --uid-owner 6 -j RETURN
        -A ISTIO_OUTPUT -o lo ! -d ::1/128 -p tcp ! --dport 15008 -m owner --gid-owner 7 -j ISTIO_IN_REDIRECT
        -A ISTIO_OUTPUT -o lo -p tcp ! --dport 53 -m owner ! --gid-owner 7 -j RETURN
        -A ISTIO_OUTPUT -m owner --gid-owner 7 -j RETURN
        -A ISTIO_OUTPUT -m owner ! --gid-owner 100 -m owner ! --gid-owner 101 -j RETURN
        -A ISTIO_OUTPUT -d ::1/128 -j RETURN
        -A ISTIO_OUTPUT -d fd00:1::/64 -j RETURN
        -A ISTIO_OUTPUT -j ISTIO_REDIRECT
        COMMIT
        * raw
        -N ISTIO_OUTPUT_DNS
        -A OUTPUT -j ISTIO_OUTPUT_DNS
        -A ISTIO_OUTPUT_DNS -p udp --dport 53 -m owner --uid-owner 5 -j CT --zone 1
        -A ISTIO_OUTPUT_DNS -p udp --sport 15053 -m owner --uid-owner 5 -j CT --zone 2
        -A ISTIO_OUTPUT_DNS -p udp --dport 53 -m owner --uid-owner 6 -j CT --zone 1
        -A ISTIO_OUTPUT_DNS -p udp --sport 15053 -m owner --uid-owner 6 -j CT --zone 2
        -A ISTIO_OUTPUT_DNS -p udp --dport 53 -m owner --gid-owner 7 -j CT --zone 1
        -A ISTIO_OUTPUT_DNS -p udp --sport 15053 -m owner --gid-owner 7 -j CT --zone 2
        COMMIT
    "#]],
    );
    nftables(
        &redirect,
        &expect![[r#"
        table ip leno-nat {
        	chain ISTIO_INBOUND {
        		meta l4proto tcp tcp dport 15008 return
        		meta l4proto tcp tcp dport 15090 return
        		meta l4proto tcp tcp dport 15021 return
        		meta l4proto tcp tcp dport 15020 return
        		meta l4proto tcp tcp dport 22 return
        		meta l4proto tcp jump ISTIO_IN_REDIRECT
        	}
        	chain ISTIO_REDIRECT {
        		meta l4proto tcp redirect to :15001
        	}
        	chain ISTIO_IN_REDIRECT {
        		meta l4proto tcp redirect to :15006
        	}
        	chain ISTIO_OUTPUT {
        		oifname "lo" ip saddr 127.0.0.6/32 return
        		oifname "lo" ip daddr != 127.0.0.1/32 meta l4proto tcp tcp dport != { 53, 15008 } meta skuid 5 jump ISTIO_IN_REDIRECT
        		oifname "lo" meta l4proto tcp tcp dport != 53 meta skuid != 5 return
        		meta skuid 5 return
        		oifname "lo" ip daddr != 127.0.0.1/32 meta l4proto tcp tcp dport != { 53, 15008 } meta skuid 6 jump ISTIO_IN_REDIRECT
        		oifname "lo" meta l4proto tcp tcp dport != 53 meta skuid != 6 return
        		meta skuid 6 return
        		oifname "lo" ip daddr != 127.0.0.1/32 meta l4proto tcp tcp dport != 15008 meta skgid 7 jump ISTIO_IN_REDIRECT
        		oifname "lo" meta l4proto tcp tcp dport != 53 meta skgid != 7 return
        		meta skgid 7 return
        		meta skgid != 100 meta skgid != 101 return
        		jump ISTIO_OUTPUT_DNS
        		ip daddr 127.0.0.1/32 return
        		ip daddr 10.1.0.0/16 return
        		jump ISTIO_REDIRECT
        	}
        	chain ISTIO_OUTPUT_DNS {
        		meta l4proto tcp tcp dport 53 ip daddr 10.96.0.10/32 redirect to :15053
        		meta l4proto udp udp dport 53 ip daddr 10.96.0.10/32 redirect to :15053
        	}
        	chain PREROUTING {
        		type nat hook prerouting priority -100; policy accept;
        		meta l4proto tcp jump ISTIO_INBOUND
        	}
        	chain OUTPUT {
        		type nat hook output priority -100; policy accept;
        		jump ISTIO_OUTPUT
        	}
        }
        table ip leno-raw {
        	chain ISTIO_OUTPUT_DNS {
        		meta l4proto udp udp dport 53 meta skuid 5 ct zone set 1
        		meta l4proto udp udp sport 15053 meta skuid 5 ct zone set 2
        		meta l4proto udp udp dport 53 meta skuid 6 ct zone set 1
        		meta l4proto udp udp sport 15053 meta skuid 6 ct zone set 2
        		meta l4proto udp udp dport 53 meta skgid 7 ct zone set 1
        		meta l4proto udp udp sport 15053 meta skgid 7 ct zone set 2
        		meta l4proto udp udp dport 53 ip daddr 10.96.0.10/32 ct zone set 2
        	}
        	chain ISTIO_INBOUND {
        		meta l4proto udp udp sport 53 ip saddr 10.96.0.10/32 ct zone set 1
        	}
        	chain PREROUTING {
        		type filter hook prerouting priority -300; policy accept;
        		jump ISTIO_INBOUND
        	}
        	chain OUTPUT {
        		type filter hook output priority -300; policy accept;
        		jump ISTIO_OUTPUT_DNS
        	}
        }
        table ip6 leno-nat {
        	chain ISTIO_INBOUND {
        		meta l4proto tcp tcp dport 15008 return
        		meta l4proto tcp tcp dport 15090 return
        		meta l4proto tcp tcp dport 15021 return
        		meta l4proto tcp tcp dport 15020 return
        		meta l4proto tcp tcp dport 22 return
        		meta l4proto tcp jump ISTIO_IN_REDIRECT
        	}
        	chain ISTIO_REDIRECT {
        		meta l4proto tcp redirect to :15001
        	}
        	chain ISTIO_IN_REDIRECT {
        		meta l4proto tcp redirect to :15006
        	}
        	chain ISTIO_OUTPUT {
        		oifname "lo" ip6 saddr ::6/128 return
        		oifname "lo" ip6 daddr != ::1/128 meta l4proto tcp tcp dport != { 53, 15008 } meta skuid 5 jump ISTIO_IN_REDIRECT
        		oifname "lo" meta l4proto tcp tcp dport != 53 meta skuid != 5 return
        		meta skuid 5 return
        		oifname "lo" ip6 daddr != ::1/128 meta l4proto tcp tcp dport != { 53, 15008 } meta skuid 6 jump ISTIO_IN_REDIRECT
        		oifname "lo" meta l4proto tcp tcp dport != 53 meta skuid != 6 return
        		meta skuid 6 return
        		oifname "lo" ip6 daddr != ::1/128 meta l4proto tcp tcp dport != 15008 meta skgid 7 jump ISTIO_IN_REDIRECT
        		oifname "lo" meta l4proto tcp tcp dport != 53 meta skgid != 7 return
        		meta skgid 7 return
        		meta skgid != 100 meta skgid != 101 return
        		ip6 daddr ::1/128 return
        		ip6 daddr fd00:1::/64 return
        		jump ISTIO_REDIRECT
        	}
        	chain PREROUTING {
        		type nat hook prerouting priority -100; policy accept;
        		meta l4proto tcp jump ISTIO_INBOUND
        	}
        	chain OUTPUT {
        		type nat hook output priority -100; policy accept;
        		jump ISTIO_OUTPUT
        	}
        }
        table ip6 leno-raw {
        	chain ISTIO_OUTPUT_DNS {
        		meta l4proto udp udp dport 53 meta skuid 5 ct zone set 1
        		meta l4proto udp udp sport 15053 meta skuid 5 ct zone set 2
        		meta l4proto udp udp dport 53 meta skuid 6 ct zone set 1
        		meta l4proto udp udp sport 15053 meta skuid 6 ct zone set 2
        		meta l4proto udp udp dport 53 meta skgid 7 ct zone set 1
        		meta l4proto udp udp sport 15053 meta skgid 7 ct zone set 2
        	}
        	chain OUTPUT {
        		type filter hook output priority -300; policy accept;
        		jump ISTIO_OUTPUT_DNS
        	}
        }
    "#]],
    );
}

#[test]
fn tproxy_with_interfaces_and_all_names() {
    let redirect = Redirect {
        mode: InboundMode::Tproxy { mark: 1337, table: 133 },
        dns: Dns::All,
        owner_groups: Groups::AllBut(vec![100]),
        exclude_interfaces: vec!["net1".parse().unwrap()],
        reroute_interfaces: vec!["tap0".parse().unwrap(), "vnet+".parse().unwrap()],
        drop_invalid: true,
        ..Redirect::default()
    };
    iptables(
        &redirect,
        &expect![[r#"
        * mangle
        -N ISTIO_DROP
        -N ISTIO_DIVERT
        -N ISTIO_TPROXY
        -N ISTIO_INBOUND
        -A PREROUTING -i net1 -j RETURN
        -A OUTPUT -o net1 -j RETURN
        -A PREROUTING -m conntrack --ctstate INVALID -j ISTIO_DROP
        -A ISTIO_DROP -j DROP
        -A ISTIO_DIVERT -j MARK --set-mark 1337
        -A ISTIO_DIVERT -j ACCEPT
        -A ISTIO_TPROXY ! -d 127.0.0.1/32 -p tcp -j TPROXY --tproxy-mark 1337/0xffffffff --on-port 15006
        -A PREROUTING -p tcp -j ISTIO_INBOUND
        -A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN
        -A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
        -A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN
        -A ISTIO_INBOUND -p tcp --dport 22 -j RETURN
        -A ISTIO_INBOUND -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT
        -A ISTIO_INBOUND -p tcp -j ISTIO_TPROXY
        -A PREROUTING -p tcp -m mark --mark 1337 -j CONNMARK --save-mark
        -A OUTPUT -p tcp -o lo -m mark --mark 1337 -j RETURN
        -A OUTPUT ! -d 127.0.0.1/32 -p tcp -o lo -m owner --uid-owner 1337 -j MARK --set-mark 1338
        -A OUTPUT ! -d 127.0.0.1/32 -p tcp -o lo -m owner --gid-owner 1337 -j MARK --set-mark 1338
        -A OUTPUT -p tcp -m connmark --mark 1337 -j CONNMARK --restore-mark
        -I ISTIO_INBOUND 1 -p tcp -m mark --mark 1337 -j RETURN
        -I ISTIO_INBOUND 2 -p tcp -s 127.0.0.6/32 -i lo -j RETURN
        -I ISTIO_INBOUND 3 -p tcp -i lo -m mark ! --mark 1338 -j RETURN
        COMMIT
        * nat
        -N ISTIO_INBOUND
        -N ISTIO_REDIRECT
        -N ISTIO_IN_REDIRECT
        -N ISTIO_OUTPUT
        -N ISTIO_OUTPUT_DNS
        -A PREROUTING -i net1 -j RETURN
        -A OUTPUT -o net1 -j RETURN
        -I PREROUTING 1 -i tap0 -j RETURN
        -I PREROUTING 1 -i vnet+ -j RETURN
        -A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
        -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
        -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
        -A OUTPUT -j ISTIO_OUTPUT
        -A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN
        -A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp -m multiport ! --dports 53,15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
        -A ISTIO_OUTPUT -o lo -p tcp ! --dport 53 -m owner ! --uid-owner 1337 -j RETURN
        -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
        -A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT
        -A ISTIO_OUTPUT -o lo -p tcp ! --dport 53 -m owner ! --gid-owner 1337 -j RETURN
        -A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
        -A ISTIO_OUTPUT -m owner --gid-owner 100 -j RETURN
        -A ISTIO_OUTPUT -j ISTIO_OUTPUT_DNS
        -A ISTIO_OUTPUT_DNS -p tcp --dport 53 -j REDIRECT --to-ports 15053
        -A ISTIO_OUTPUT_DNS -p udp --dport 53 -j REDIRECT --to-port 15053
        -A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
        -A ISTIO_OUTPUT -j ISTIO_REDIRECT
        -I PREROUTING 1 -i tap0 -j ISTIO_REDIRECT
        -I PREROUTING 1 -i vnet+ -j ISTIO_REDIRECT
        COMMIT
        * raw
        -N ISTIO_OUTPUT_DNS
        -N ISTIO_INBOUND
        -A OUTPUT -j ISTIO_OUTPUT_DNS
        -A ISTIO_OUTPUT_DNS -p udp --dport 53 -m owner --uid-owner 1337 -j CT --zone 1
        -A ISTIO_OUTPUT_DNS -p udp --sport 15053 -m owner --uid-owner 1337 -j CT --zone 2
        -A ISTIO_OUTPUT_DNS -p udp --dport 53 -m owner --gid-owner 1337 -j CT --zone 1
        -A ISTIO_OUTPUT_DNS -p udp --sport 15053 -m owner --gid-owner 1337 -j CT --zone 2
        -A PREROUTING -j ISTIO_INBOUND
        -A ISTIO_OUTPUT_DNS -p udp --dport 53 -j CT --zone 2
        -A ISTIO_INBOUND -p udp --sport 53 -j CT --zone 1
        COMMIT
    "#]],
    );
    nftables(
        &redirect,
        &expect![[r#"
        table ip leno-mangle {
        	chain ISTIO_DROP {
        		drop
        	}
        	chain ISTIO_DIVERT {
        		meta mark set 1337
        		accept
        	}
        	chain ISTIO_TPROXY {
        		ip daddr != 127.0.0.1/32 meta l4proto tcp tproxy to :15006 meta mark set 1337 accept
        	}
        	chain ISTIO_INBOUND {
        		meta l4proto tcp meta mark 1337 return
        		meta l4proto tcp ip saddr 127.0.0.6/32 iifname "lo" return
        		meta l4proto tcp iifname "lo" meta mark != 1338 return
        		meta l4proto tcp tcp dport 15090 return
        		meta l4proto tcp tcp dport 15021 return
        		meta l4proto tcp tcp dport 15020 return
        		meta l4proto tcp tcp dport 22 return
        		meta l4proto tcp ct state established,related jump ISTIO_DIVERT
        		meta l4proto tcp jump ISTIO_TPROXY
        	}
        	chain PREROUTING {
        		type filter hook prerouting priority -150; policy accept;
        		iifname "net1" return
        		ct state invalid jump ISTIO_DROP
        		meta l4proto tcp jump ISTIO_INBOUND
        		meta l4proto tcp meta mark 1337 ct mark set meta mark
        	}
        	chain OUTPUT {
        		type route hook output priority -150; policy accept;
        		oifname "net1" return
        		meta l4proto tcp oifname "lo" meta mark 1337 return
        		ip daddr != 127.0.0.1/32 meta l4proto tcp oifname "lo" meta skuid 1337 meta mark set 1338
        		ip daddr != 127.0.0.1/32 meta l4proto tcp oifname "lo" meta skgid 1337 meta mark set 1338
        		meta l4proto tcp ct mark 1337 meta mark set ct mark
        	}
        }
        table ip leno-nat {
        	chain ISTIO_INBOUND {
        		meta l4proto tcp tcp dport 15008 return
        	}
        	chain ISTIO_REDIRECT {
        		meta l4proto tcp redirect to :15001
        	}
        	chain ISTIO_IN_REDIRECT {
        		meta l4proto tcp redirect to :15006
        	}
        	chain ISTIO_OUTPUT {
        		oifname "lo" ip saddr 127.0.0.6/32 return
        		oifname "lo" ip daddr != 127.0.0.1/32 meta l4proto tcp tcp dport != { 53, 15008 } meta skuid 1337 jump ISTIO_IN_REDIRECT
        		oifname "lo" meta l4proto tcp tcp dport != 53 meta skuid != 1337 return
        		meta skuid 1337 return
        		oifname "lo" ip daddr != 127.0.0.1/32 meta l4proto tcp tcp dport != 15008 meta skgid 1337 jump ISTIO_IN_REDIRECT
        		oifname "lo" meta l4proto tcp tcp dport != 53 meta skgid != 1337 return
        		meta skgid 1337 return
        		meta skgid 100 return
        		jump ISTIO_OUTPUT_DNS
        		ip daddr 127.0.0.1/32 return
        		jump ISTIO_REDIRECT
        	}
        	chain ISTIO_OUTPUT_DNS {
        		meta l4proto tcp tcp dport 53 redirect to :15053
        		meta l4proto udp udp dport 53 redirect to :15053
        	}
        	chain PREROUTING {
        		type nat hook prerouting priority -100; policy accept;
        		iifname "vnet*" jump ISTIO_REDIRECT
        		iifname "tap0" jump ISTIO_REDIRECT
        		iifname "vnet*" return
        		iifname "tap0" return
        		iifname "net1" return
        	}
        	chain OUTPUT {
        		type nat hook output priority -100; policy accept;
        		oifname "net1" return
        		jump ISTIO_OUTPUT
        	}
        }
        table ip leno-raw {
        	chain ISTIO_OUTPUT_DNS {
        		meta l4proto udp udp dport 53 meta skuid 1337 ct zone set 1
        		meta l4proto udp udp sport 15053 meta skuid 1337 ct zone set 2
        		meta l4proto udp udp dport 53 meta skgid 1337 ct zone set 1
        		meta l4proto udp udp sport 15053 meta skgid 1337 ct zone set 2
        		meta l4proto udp udp dport 53 ct zone set 2
        	}
        	chain ISTIO_INBOUND {
        		meta l4proto udp udp sport 53 ct zone set 1
        	}
        	chain PREROUTING {
        		type filter hook prerouting priority -300; policy accept;
        		jump ISTIO_INBOUND
        	}
        	chain OUTPUT {
        		type filter hook output priority -300; policy accept;
        		jump ISTIO_OUTPUT_DNS
        	}
        }
    "#]],
    );
}

#[test]
fn tproxy_of_some_ports() {
    let redirect = Redirect {
        mode: InboundMode::Tproxy { mark: 1337, table: 133 },
        include_inbound_ports: Ports::Only(vec![80]),
        reroute_interfaces: vec!["tap0".parse().unwrap()],
        include_outbound_cidrs: Cidrs::Only(vec![
            "10.0.0.0/8".parse().unwrap(),
            "127.1.0.0/16".parse().unwrap(),
        ]),
        ..bare()
    };
    iptables(
        &redirect,
        &expect![[r#"
        * mangle
        -N ISTIO_DIVERT
        -N ISTIO_TPROXY
        -N ISTIO_INBOUND
        -A ISTIO_DIVERT -j MARK --set-mark 1337
        -A ISTIO_DIVERT -j ACCEPT
        -A ISTIO_TPROXY ! -d 127.0.0.1/32 -p tcp -j TPROXY --tproxy-mark 1337/0xffffffff --on-port 15006
        -A PREROUTING -p tcp -j ISTIO_INBOUND
        -A ISTIO_INBOUND -p tcp --dport 80 -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT
        -A ISTIO_INBOUND -p tcp --dport 80 -j ISTIO_TPROXY
        -A PREROUTING -p tcp -m mark --mark 1337 -j CONNMARK --save-mark
        -A OUTPUT -p tcp -o lo -m mark --mark 1337 -j RETURN
        -A OUTPUT ! -d 127.0.0.1/32 -p tcp -o lo -m owner --uid-owner 1337 -j MARK --set-mark 1338
        -A OUTPUT ! -d 127.0.0.1/32 -p tcp -o lo -m owner --gid-owner 1337 -j MARK --set-mark 1338
        -A OUTPUT -p tcp -m connmark --mark 1337 -j CONNMARK --restore-mark
        -I ISTIO_INBOUND 1 -p tcp -m mark --mark 1337 -j RETURN
        -I ISTIO_INBOUND 2 -p tcp -s 127.0.0.6/32 -i lo -j RETURN
        -I ISTIO_INBOUND 3 -p tcp -i lo -m mark ! --mark 1338 -j RETURN
        COMMIT
        * nat
        -N ISTIO_INBOUND
        -N ISTIO_REDIRECT
        -N ISTIO_IN_REDIRECT
        -N ISTIO_OUTPUT
        -I PREROUTING 1 -i tap0 -j RETURN
        -A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
        -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
        -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
        -A OUTPUT -j ISTIO_OUTPUT
        -A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN
        -A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
        -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
        -A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT
        -A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
        -A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
        -I PREROUTING 1 -i tap0 -d 10.0.0.0/8 -j ISTIO_REDIRECT
        -A ISTIO_OUTPUT -d 10.0.0.0/8 -j ISTIO_REDIRECT
        -I PREROUTING 1 -i tap0 -d 127.1.0.0/16 -j ISTIO_REDIRECT
        -A ISTIO_OUTPUT -d 127.1.0.0/16 -j ISTIO_REDIRECT
        COMMIT
    "#]],
    );
}

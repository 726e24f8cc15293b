//! The rules one by one, in the order in which Istio's `istio-iptables` adds them.
//!
//! Chains are Istio's, so that what people know of them holds: `ISTIO_INBOUND` and `ISTIO_OUTPUT` decide,
//! `ISTIO_IN_REDIRECT`, `ISTIO_REDIRECT` and `ISTIO_TPROXY` do it.

use std::net::{Ipv4Addr, Ipv6Addr};

use leno_base::Cidr;

use super::{Cidrs, Dns, Groups, InboundMode, Ports, Redirect};
use crate::rules::{Chain, Family, Hook, Interface, Kind, Match, Owner, Rule, Table, Verdict};

const INBOUND: &str = "ISTIO_INBOUND";
const IN_REDIRECT: &str = "ISTIO_IN_REDIRECT";
const OUTPUT: &str = "ISTIO_OUTPUT";
const OUTPUT_DNS: &str = "ISTIO_OUTPUT_DNS";
const REDIRECT: &str = "ISTIO_REDIRECT";
const DIVERT: &str = "ISTIO_DIVERT";
const TPROXY: &str = "ISTIO_TPROXY";
const DROP: &str = "ISTIO_DROP";

/// What the proxy sends to the application's own address, on its way to the proxy's inbound side.
const OUTBOUND_MARK: u32 = 1338;
/// The zone of questions from the agent to name servers, and that of questions to the agent: the same question
/// on its two ways would be one connection otherwise.
const UPSTREAM_ZONE: u16 = 1;
const CLIENT_ZONE: u16 = 2;
const DNS: u16 = 53;

/// One more rule at the end of a chain, or at a place in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The table.
    pub table: Kind,
    /// The chain: one of Istio's, or that of a hook.
    pub chain: &'static str,
    /// The place, from 1; `None`: the end.
    pub at: Option<usize>,
    /// The rule.
    pub rule: Rule,
}

impl Step {
    /// The chains that steps need, in the order in which they are needed: first those with rules, then those to
    /// which a rule jumps only. Without those of hooks.
    pub fn chains(steps: &[Step], table: Kind) -> Vec<&'static str> {
        let own = steps.iter().filter(|step| step.table == table);
        let targets = own.clone().filter_map(|step| match step.rule.verdict {
            Verdict::Jump(chain) => Some(chain),
            _ => None,
        });
        let mut chains = Vec::new();
        for chain in own.map(|step| step.chain).chain(targets) {
            if hook(chain).is_none() && !chains.contains(&chain) {
                chains.push(chain);
            }
        }
        chains
    }

    /// The tables that come of all steps of a family.
    pub(super) fn tables(family: Family, steps: &[Step]) -> Vec<Table> {
        let mut tables = Vec::new();
        for kind in Kind::ALL {
            let mut chains: Vec<Chain> = Step::chains(steps, kind)
                .into_iter()
                .chain(HOOKS.map(Hook::chain))
                .map(|name| Chain { name, hook: hook(name), rules: Vec::new() })
                .collect();
            for step in steps.iter().filter(|step| step.table == kind) {
                let Some(chain) = chains.iter_mut().find(|chain| chain.name == step.chain) else { continue };
                let end = chain.rules.len();
                let at = step.at.map_or(end, |at| at.saturating_sub(1).min(end));
                chain.rules.insert(at, step.rule.clone());
            }
            chains.retain(|chain| chain.hook.is_none() || !chain.rules.is_empty());
            if !chains.is_empty() {
                tables.push(Table { family, kind, chains });
            }
        }
        tables
    }
}

const HOOKS: [Hook; 2] = [Hook::Prerouting, Hook::Output];

fn hook(chain: &str) -> Option<Hook> {
    HOOKS.into_iter().find(|hook| hook.chain() == chain)
}

impl Redirect {
    /// The rules for a family, in Istio's order.
    pub fn steps(&self, family: Family) -> Vec<Step> {
        let mut steps = Steps { redirect: self, family, steps: Vec::new() };
        steps.interfaces();
        if self.drop_invalid {
            steps.prerouting(Kind::Mangle, [Match::Invalid], Verdict::Jump(DROP));
            steps.add(Kind::Mangle, DROP, [], Verdict::Drop);
        }
        steps.add(Kind::Nat, INBOUND, [Match::Tcp, Match::Port(self.tunnel_port)], Verdict::Return);
        steps.add(Kind::Nat, REDIRECT, [Match::Tcp], Verdict::Redirect(self.outbound_port));
        steps.add(Kind::Nat, IN_REDIRECT, [Match::Tcp], Verdict::Redirect(self.inbound_port));
        steps.inbound();
        steps.outbound();
        if let InboundMode::Tproxy { mark, .. } = self.mode {
            steps.marks(mark);
        }
        steps.steps
    }

    fn owners(&self) -> impl Iterator<Item = Owner> {
        let uids = self.proxy_uids.iter().map(|&uid| Owner::Uid(uid));
        let gids = self.proxy_gids.iter().map(|&gid| Owner::Gid(gid));
        uids.chain(gids).chain(self.proxy_mark.map(Owner::Mark))
    }

    /// Whether somebody wants loopback addresses to be redirected.
    fn includes_loopback(&self) -> bool {
        match &self.include_outbound_cidrs {
            Cidrs::All => false,
            Cidrs::Only(cidrs) => cidrs.iter().any(|cidr| cidr.address().is_loopback()),
        }
    }

    /// Whether questions for names are redirected at all, and whether some of this family may be.
    fn dns(&self, family: Family) -> (bool, bool) {
        match &self.dns {
            Dns::None => (false, false),
            Dns::All => (true, true),
            Dns::Servers(servers) => {
                let own = servers.iter().any(|server| server.is_ipv4() == (family == Family::V4));
                (!servers.is_empty(), own)
            }
        }
    }
}

struct Steps<'r> {
    redirect: &'r Redirect,
    family: Family,
    steps: Vec<Step>,
}

impl Steps<'_> {
    fn add<const N: usize>(
        &mut self,
        table: Kind,
        chain: &'static str,
        matches: [Match; N],
        verdict: Verdict,
    ) {
        self.place(table, chain, None, matches, verdict);
    }

    fn place<const N: usize>(
        &mut self,
        table: Kind,
        chain: &'static str,
        at: Option<usize>,
        matches: [Match; N],
        verdict: Verdict,
    ) {
        let rule = Rule { matches: Vec::from(matches), verdict };
        self.steps.push(Step { table, chain, at, rule });
    }

    fn prerouting<const N: usize>(&mut self, table: Kind, matches: [Match; N], verdict: Verdict) {
        self.add(table, Hook::Prerouting.chain(), matches, verdict);
    }

    fn output<const N: usize>(&mut self, table: Kind, matches: [Match; N], verdict: Verdict) {
        self.add(table, Hook::Output.chain(), matches, verdict);
    }

    /// Addresses of loopback that are the application's own.
    fn loopback(&self) -> Cidr {
        match self.family {
            Family::V4 => self.redirect.loopback,
            Family::V6 => Cidr::host(Ipv6Addr::LOCALHOST.into()),
        }
    }

    /// From where the proxy and its agent connect to the application.
    fn inbound_source(&self) -> Cidr {
        match self.family {
            Family::V4 => Cidr::host(Ipv4Addr::new(127, 0, 0, 6).into()),
            Family::V6 => Cidr::host(Ipv6Addr::from_bits(6).into()),
        }
    }

    fn interfaces(&mut self) {
        let redirect = self.redirect;
        let mut excluded = |table| {
            for link in &redirect.exclude_interfaces {
                self.prerouting(table, [Match::In(link.clone())], Verdict::Return);
                self.output(table, [Match::Out(link.clone())], Verdict::Return);
            }
        };
        excluded(Kind::Nat);
        if let InboundMode::Tproxy { .. } = redirect.mode {
            excluded(Kind::Mangle);
        }
        for link in &redirect.reroute_interfaces {
            let matches = [Match::In(link.clone())];
            self.place(Kind::Nat, Hook::Prerouting.chain(), Some(1), matches, Verdict::Return);
        }
    }

    fn inbound(&mut self) {
        let redirect = self.redirect;
        let ports = match &redirect.include_inbound_ports {
            Ports::Only(ports) if ports.is_empty() => return,
            Ports::Only(ports) => Some(ports),
            Ports::All => None,
        };
        let (table, to) = match redirect.mode {
            InboundMode::Redirect => (Kind::Nat, Verdict::Jump(IN_REDIRECT)),
            InboundMode::Tproxy { mark, .. } => {
                self.add(Kind::Mangle, DIVERT, [], Verdict::SetMark(mark));
                self.add(Kind::Mangle, DIVERT, [], Verdict::Accept);
                let verdict = Verdict::Tproxy { port: redirect.inbound_port, mark };
                self.add(Kind::Mangle, TPROXY, [Match::NotTo(self.loopback()), Match::Tcp], verdict);
                (Kind::Mangle, Verdict::Jump(TPROXY))
            }
        };
        self.prerouting(table, [Match::Tcp], Verdict::Jump(INBOUND));
        let Some(ports) = ports else {
            for &port in &redirect.exclude_inbound_ports {
                self.add(table, INBOUND, [Match::Tcp, Match::Port(port)], Verdict::Return);
            }
            if table == Kind::Mangle {
                let matches = [Match::Tcp, Match::Established];
                self.add(table, INBOUND, matches, Verdict::Jump(DIVERT));
            }
            self.add(table, INBOUND, [Match::Tcp], to);
            return;
        };
        for &port in ports {
            if table == Kind::Mangle {
                let matches = [Match::Tcp, Match::Port(port), Match::Established];
                self.add(table, INBOUND, matches, Verdict::Jump(DIVERT));
            }
            self.add(table, INBOUND, [Match::Tcp, Match::Port(port)], to);
        }
    }

    fn outbound(&mut self) {
        let redirect = self.redirect;
        let nat = Kind::Nat;
        // Of every protocol: names are asked for over UDP. What redirects connections is for TCP only.
        self.output(nat, [], Verdict::Jump(OUTPUT));
        for &port in &redirect.exclude_outbound_ports {
            self.add(nat, OUTPUT, [Match::Tcp, Match::Port(port)], Verdict::Return);
            self.add(nat, OUTPUT, [Match::Udp, Match::Port(port)], Verdict::Return);
        }
        // The proxy hands inbound connections to the application from this address, so that they stay as they are
        // even if the application answers on an address that would be redirected.
        let handed_over = [Match::Out(Interface::loopback()), Match::From(self.inbound_source())];
        self.add(nat, OUTPUT, handed_over, Verdict::Return);
        let (dns, dns_here) = redirect.dns(self.family);
        for owner in redirect.owners() {
            self.own(owner, dns);
        }
        match &redirect.owner_groups {
            Groups::AllBut(groups) => {
                for &group in groups {
                    self.add(nat, OUTPUT, [Match::Owner(Owner::Gid(group))], Verdict::Return);
                }
            }
            Groups::Only(groups) => {
                let matches = groups.iter().map(|&group| Match::NotOwner(Owner::Gid(group))).collect();
                let rule = Rule { matches, verdict: Verdict::Return };
                self.steps.push(Step { table: nat, chain: OUTPUT, at: None, rule });
            }
        }
        if dns {
            self.names(dns_here);
        }
        self.add(nat, OUTPUT, [Match::To(self.loopback())], Verdict::Return);
        let family = self.family;
        for &cidr in redirect.exclude_outbound_cidrs.iter().filter(|cidr| family.has(cidr)) {
            self.add(nat, OUTPUT, [Match::To(cidr)], Verdict::Return);
        }
        for &port in &redirect.include_outbound_ports {
            self.add(nat, OUTPUT, [Match::Tcp, Match::Port(port)], Verdict::Jump(REDIRECT));
        }
        let prerouting = Hook::Prerouting.chain();
        match &redirect.include_outbound_cidrs {
            Cidrs::All => {
                self.add(nat, OUTPUT, [], Verdict::Jump(REDIRECT));
                for link in &redirect.reroute_interfaces {
                    let matches = [Match::In(link.clone())];
                    self.place(nat, prerouting, Some(1), matches, Verdict::Jump(REDIRECT));
                }
            }
            Cidrs::Only(cidrs) => {
                for &cidr in cidrs.iter().filter(|cidr| family.has(cidr)) {
                    for link in &redirect.reroute_interfaces {
                        let matches = [Match::In(link.clone()), Match::To(cidr)];
                        self.place(nat, prerouting, Some(1), matches, Verdict::Jump(REDIRECT));
                    }
                    self.add(nat, OUTPUT, [Match::To(cidr)], Verdict::Jump(REDIRECT));
                }
            }
        }
    }

    /// What one of the proxy's users, groups or marks sends is never redirected to the proxy's outbound side.
    fn own(&mut self, owner: Owner, dns: bool) {
        let (nat, lo) = (Kind::Nat, Match::Out(Interface::loopback()));
        // A service that calls itself: application → proxy (outbound) → own address → proxy (inbound). But
        // application → agent → name server on this machine must not become agent → proxy (inbound) → name server.
        let elsewhere = match owner {
            Owner::Uid(_) if dns => Match::NotPorts(vec![DNS, self.redirect.tunnel_port]),
            Owner::Uid(_) | Owner::Gid(_) | Owner::Mark(_) => Match::NotPort(self.redirect.tunnel_port),
        };
        let matches = [lo.clone(), Match::NotTo(self.loopback()), Match::Tcp, elsewhere, Match::Owner(owner)];
        self.add(nat, OUTPUT, matches, Verdict::Jump(IN_REDIRECT));
        // Applications that talk to each other, or to themselves, by an address of the pod.
        if !self.redirect.includes_loopback() {
            if dns {
                // A name server may be on this machine; whether its connections are redirected is said below.
                let matches = [lo, Match::Tcp, Match::NotPort(DNS), Match::NotOwner(owner)];
                self.add(nat, OUTPUT, matches, Verdict::Return);
            } else {
                self.add(nat, OUTPUT, [lo, Match::NotOwner(owner)], Verdict::Return);
            }
        }
        self.add(nat, OUTPUT, [Match::Owner(owner)], Verdict::Return);
    }

    /// Questions for names go to the agent. Only those to the machine's own name servers, if they are known: a local
    /// forwarder (`dnsmasq`) that the agent asks would otherwise have its own questions come back to it.
    fn names(&mut self, here: bool) {
        let (nat, raw) = (Kind::Nat, Kind::Raw);
        self.output(raw, [], Verdict::Jump(OUTPUT_DNS));
        if here {
            self.add(nat, OUTPUT, [], Verdict::Jump(OUTPUT_DNS));
        }
        let to_agent = Verdict::Redirect(Redirect::DNS_PORT);
        let servers: Option<Vec<Cidr>> = match &self.redirect.dns {
            Dns::Servers(servers) => {
                let hosts = servers.iter().map(|&server| Cidr::host(server));
                Some(hosts.filter(|host| self.family.has(host)).collect())
            }
            Dns::All | Dns::None => None,
        };
        for protocol in [Match::Tcp, Match::Udp] {
            match &servers {
                None => self.add(nat, OUTPUT_DNS, [protocol, Match::Port(DNS)], to_agent),
                Some(servers) => {
                    for &server in servers {
                        let matches = [protocol.clone(), Match::Port(DNS), Match::To(server)];
                        self.add(nat, OUTPUT_DNS, matches, to_agent);
                    }
                }
            }
        }
        for owner in self.redirect.owners() {
            let asked = [Match::Udp, Match::Port(DNS), Match::Owner(owner)];
            self.add(raw, OUTPUT_DNS, asked, Verdict::Zone(UPSTREAM_ZONE));
            let answered = [Match::Udp, Match::SourcePort(Redirect::DNS_PORT), Match::Owner(owner)];
            self.add(raw, OUTPUT_DNS, answered, Verdict::Zone(CLIENT_ZONE));
        }
        if here {
            self.prerouting(raw, [], Verdict::Jump(INBOUND));
        }
        match servers {
            None => {
                let asked = [Match::Udp, Match::Port(DNS)];
                self.add(raw, OUTPUT_DNS, asked, Verdict::Zone(CLIENT_ZONE));
                let answered = [Match::Udp, Match::SourcePort(DNS)];
                self.add(raw, INBOUND, answered, Verdict::Zone(UPSTREAM_ZONE));
            }
            Some(servers) => {
                for server in servers {
                    let asked = [Match::Udp, Match::Port(DNS), Match::To(server)];
                    self.add(raw, OUTPUT_DNS, asked, Verdict::Zone(CLIENT_ZONE));
                    let answered = [Match::Udp, Match::SourcePort(DNS), Match::From(server)];
                    self.add(raw, INBOUND, answered, Verdict::Zone(UPSTREAM_ZONE));
                }
            }
        }
    }

    /// TPROXY: which packets stay on this machine although their addresses are others'.
    fn marks(&mut self, mark: u32) {
        let mangle = Kind::Mangle;
        let lo = Interface::loopback();
        // What the proxy marked when it connected to the application as the client; so are the answers.
        self.prerouting(mangle, [Match::Tcp, Match::Mark(mark)], Verdict::SaveMark);
        let marked = [Match::Tcp, Match::Out(lo.clone()), Match::Mark(mark)];
        self.output(mangle, marked, Verdict::Return);
        let owners: Vec<Owner> = self.redirect.owners().collect();
        for owner in owners {
            let matches =
                [Match::NotTo(self.loopback()), Match::Tcp, Match::Out(lo.clone()), Match::Owner(owner)];
            self.output(mangle, matches, Verdict::SetMark(OUTBOUND_MARK));
        }
        self.output(mangle, [Match::Tcp, Match::ConnectionMark(mark)], Verdict::RestoreMark);
        let first = [
            [Match::Tcp, Match::Mark(mark)].to_vec(),
            // What the proxy and its agent send from 127.0.0.6 to an address of the pod.
            [Match::Tcp, Match::From(self.inbound_source()), Match::In(lo.clone())].to_vec(),
            // What the application sends to itself by an address of the pod.
            [Match::Tcp, Match::In(lo), Match::NotMark(OUTBOUND_MARK)].to_vec(),
        ];
        for (index, matches) in first.into_iter().enumerate() {
            let rule = Rule { matches, verdict: Verdict::Return };
            self.steps.push(Step { table: mangle, chain: INBOUND, at: Some(index + 1), rule });
        }
    }
}

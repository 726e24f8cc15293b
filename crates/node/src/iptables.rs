//! Rules as arguments of `iptables`, and as input of `iptables-restore`, as Istio writes them; and what is told of
//! `iptables-save`. Pure. The programs are run by [`crate::intercept`].

use std::collections::BTreeMap;

use crate::redirect::Step;
use crate::rules::{Kind, Match, Owner, Verdict};

/// What names of Istio's chains begin with.
const ISTIO: &str = "ISTIO_";

/// The input of `iptables-restore --noflush` that adds the rules.
pub(crate) fn restore(steps: &[Step]) -> String {
    let mut text = String::new();
    for table in Kind::ALL {
        let rules: Vec<&Step> = steps.iter().filter(|step| step.table == table).collect();
        if rules.is_empty() {
            continue;
        }
        text.push_str(&format!("* {}\n", table.name()));
        for chain in Step::chains(steps, table) {
            text.push_str(&format!("-N {chain}\n"));
        }
        for step in rules {
            text.push_str(&add(step).join(" "));
            text.push('\n');
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// The arguments, without the table, that add a rule.
pub(crate) fn add(step: &Step) -> Vec<String> {
    let mut words = match step.at {
        None => vec!["-A".to_owned(), step.chain.to_owned()],
        Some(at) => vec!["-I".to_owned(), step.chain.to_owned(), at.to_string()],
    };
    words.extend(rule(step));
    words
}

/// The arguments that ask whether a rule is there (`-C`), or take it away (`-D`).
pub(crate) fn about(step: &Step, action: &str) -> Vec<String> {
    let mut words = ["-t", step.table.name(), action, step.chain].map(str::to_owned).to_vec();
    words.extend(rule(step));
    words
}

/// The calls that take away what steps have added, rules and chains, and what of Istio's is there besides. The last
/// rule goes first, so that nothing goes into a chain that is half empty.
pub(crate) fn undo(steps: &[Step], state: &State) -> Vec<Vec<String>> {
    let mut calls: Vec<Vec<String>> = Vec::new();
    for step in steps.iter().rev().filter(|step| !step.chain.starts_with(ISTIO)) {
        calls.push(about(step, "-D"));
    }
    for (table, words) in &state.jumps {
        let mut call = ["-t", table, "-D"].map(str::to_owned).to_vec();
        call.extend(words.iter().skip(1).cloned());
        calls.push(call);
    }
    let chains = |action: &str| {
        let of_state = state.chains.keys().filter(|(_, chain)| chain.starts_with(ISTIO));
        of_state
            .map(|(table, chain)| ["-t", table, action, chain].map(str::to_owned).to_vec())
            .collect::<Vec<_>>()
    };
    // All are empty before the first is gone, as they refer to each other.
    calls.extend(chains("-F"));
    calls.extend(chains("-X"));
    calls
}

/// The calls that let nothing in or out while rules are replaced, and those that end it.
pub(crate) fn guards(action: &str) -> Vec<Vec<String>> {
    let mut calls = Vec::new();
    for chain in ["INPUT", "FORWARD", "OUTPUT"] {
        for protocol in ["tcp", "udp"] {
            let mut call = ["-t", "filter", action, chain].map(str::to_owned).to_vec();
            if action == "-I" {
                call.push("1".to_owned());
            }
            call.extend(["-p", protocol, "-j", "DROP"].map(str::to_owned));
            calls.push(call);
        }
    }
    calls
}

/// What `iptables-save` tells.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// The number of rules of each chain, by table and name.
    chains: BTreeMap<(String, String), usize>,
    /// The rules of other chains that jump to Istio's: table, and words from `-A` on.
    jumps: Vec<(String, Vec<String>)>,
}

impl State {
    pub(crate) fn read(text: &str) -> State {
        let mut state = State::default();
        let mut table = String::new();
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('*') {
                name.trim().clone_into(&mut table);
                continue;
            }
            if let Some(chain) = line.strip_prefix(':').and_then(|rest| rest.split_whitespace().next()) {
                state.chains.entry((table.clone(), chain.to_owned())).or_default();
                continue;
            }
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let Some([action, chain]) = words.get(..2) else { continue };
            if action != "-A" {
                continue;
            }
            *state.chains.entry((table.clone(), chain.clone())).or_default() += 1;
            let target = words.iter().skip_while(|word| *word != "-j").nth(1);
            if !chain.starts_with(ISTIO) && target.is_some_and(|target| target.starts_with(ISTIO)) {
                state.jumps.push((table.clone(), words));
            }
        }
        state
    }

    /// Whether there is anything of Istio's.
    pub(crate) fn has_istio(&self) -> bool {
        self.chains.keys().any(|(_, chain)| chain.starts_with(ISTIO))
    }

    /// Whether Istio's chains are those that the steps make, with as many rules. Whether these are the right ones
    /// must be asked one by one.
    pub(crate) fn has_chains_of(&self, steps: &[Step]) -> bool {
        let mut wanted: BTreeMap<(String, String), usize> = BTreeMap::new();
        for table in Kind::ALL {
            for chain in Step::chains(steps, table) {
                let rules = steps.iter().filter(|step| step.table == table && step.chain == chain).count();
                wanted.insert((table.name().to_owned(), chain.to_owned()), rules);
            }
        }
        let there = self.chains.iter().filter(|((_, chain), _)| chain.starts_with(ISTIO));
        there.eq(wanted.iter())
    }
}

fn rule(step: &Step) -> Vec<String> {
    let mut words = Vec::new();
    let mut put = |list: &[&str]| words.extend(list.iter().map(|&word| word.to_owned()));
    for condition in &step.rule.matches {
        match condition {
            Match::Tcp => put(&["-p", "tcp"]),
            Match::Udp => put(&["-p", "udp"]),
            Match::Port(port) => put(&["--dport", &port.to_string()]),
            Match::NotPort(port) => put(&["!", "--dport", &port.to_string()]),
            Match::NotPorts(ports) => {
                let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                put(&["-m", "multiport", "!", "--dports", &ports.join(",")]);
            }
            Match::SourcePort(port) => put(&["--sport", &port.to_string()]),
            Match::From(net) => put(&["-s", &net.to_string()]),
            Match::To(net) => put(&["-d", &net.to_string()]),
            Match::NotTo(net) => put(&["!", "-d", &net.to_string()]),
            Match::In(link) => put(&["-i", link.name()]),
            Match::Out(link) => put(&["-o", link.name()]),
            Match::Owner(owner) => put(&refs(&owner_words(*owner, false))),
            Match::NotOwner(owner) => put(&refs(&owner_words(*owner, true))),
            Match::Mark(mark) => put(&["-m", "mark", "--mark", &mark.to_string()]),
            Match::NotMark(mark) => put(&["-m", "mark", "!", "--mark", &mark.to_string()]),
            Match::ConnectionMark(mark) => put(&["-m", "connmark", "--mark", &mark.to_string()]),
            Match::Established => put(&["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"]),
            Match::Invalid => put(&["-m", "conntrack", "--ctstate", "INVALID"]),
            Match::OneIn(many) => {
                put(&["-m", "statistic", "--mode", "nth", "--every", &many.to_string(), "--packet", "0"]);
            }
        }
    }
    let udp = step.rule.matches.contains(&Match::Udp);
    match step.rule.verdict {
        Verdict::Return => put(&["-j", "RETURN"]),
        Verdict::Accept => put(&["-j", "ACCEPT"]),
        Verdict::Drop => put(&["-j", "DROP"]),
        Verdict::Jump(chain) => put(&["-j", chain]),
        Verdict::Redirect(port) => {
            put(&["-j", "REDIRECT", if udp { "--to-port" } else { "--to-ports" }, &port.to_string()]);
        }
        Verdict::Forward(to) => put(&["-j", "DNAT", "--to-destination", &to.to_string()]),
        Verdict::Masquerade => put(&["-j", "MASQUERADE"]),
        Verdict::Tproxy { port, mark } => {
            let mark = format!("{mark}/0xffffffff");
            put(&["-j", "TPROXY", "--tproxy-mark", &mark, "--on-port", &port.to_string()]);
        }
        Verdict::SetMark(mark) => put(&["-j", "MARK", "--set-mark", &mark.to_string()]),
        Verdict::SaveMark => put(&["-j", "CONNMARK", "--save-mark"]),
        Verdict::RestoreMark => put(&["-j", "CONNMARK", "--restore-mark"]),
        Verdict::Zone(zone) => put(&["-j", "CT", "--zone", &zone.to_string()]),
    }
    words
}

fn refs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// `-m owner ! --uid-owner 1337`
fn owner_words(owner: Owner, not: bool) -> Vec<String> {
    let (module, option) = match owner {
        Owner::Uid(_) => ("owner", "--uid-owner"),
        Owner::Gid(_) => ("owner", "--gid-owner"),
        Owner::Mark(_) => ("mark", "--mark"),
    };
    let mut words = vec!["-m".to_owned(), module.to_owned()];
    if not {
        words.push("!".to_owned());
    }
    words.extend([option.to_owned(), owner.value().to_string()]);
    words
}

#[cfg(test)]
mod tests {
    use super::{State, restore, undo};
    use crate::redirect::Redirect;
    use crate::rules::Family;

    #[test]
    fn what_was_saved() {
        let steps = Redirect::default().steps(Family::V4);
        let saved = "# Generated\n*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n*nat\n:PREROUTING ACCEPT [0:0]\n\
             :ISTIO_INBOUND - [0:0]\n-A PREROUTING -p tcp -j ISTIO_INBOUND\n-A OUTPUT -o eth0 -j RETURN\n\
             -A ISTIO_INBOUND -p tcp -m tcp --dport 15008 -j RETURN\nCOMMIT\n";
        let state = State::read(saved);
        assert!(state.has_istio());
        assert!(!state.has_chains_of(&steps));
        let calls: Vec<String> = undo(&[], &state).iter().map(|call| call.join(" ")).collect();
        assert_eq!(
            calls,
            [
                "-t nat -D PREROUTING -p tcp -j ISTIO_INBOUND",
                "-t nat -F ISTIO_INBOUND",
                "-t nat -X ISTIO_INBOUND"
            ]
        );
        assert!(!State::read("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n").has_istio());
        // What we write counts as well as what is saved.
        let ours = restore(&steps).replace("-N ", ":");
        assert!(State::read(&ours).has_chains_of(&steps));
    }
}

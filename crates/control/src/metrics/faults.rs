//! The faults that istiod counts, and by which analysis knows them: for the page of metrics, and for
//! `/debug/push_status`, which has them by name.

use crate::model::diagnostic::Diagnostic;

/// A sort of fault that istiod has a metric for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) metric: &'static str,
    pub(crate) help: &'static str,
    /// Of the diagnostic, and the kind of the object.
    code: &'static str,
    kind: &'static str,
}

const fn fault(metric: &'static str, help: &'static str, code: &'static str, kind: &'static str) -> Fault {
    Fault { metric, help, code, kind }
}

/// All of them.
pub(crate) const FAULTS: &[Fault] = &[
    fault(
        "pilot_vservice_dup_domain",
        "Virtual services with dup domains.",
        "conflicting-host",
        "VirtualService",
    ),
    fault(
        "pilot_destrule_subsets",
        "Duplicate subsets across destination rules for same host",
        "duplicate-subset",
        "DestinationRule",
    ),
    fault(
        "pilot_conflict_outbound_listener_tcp_over_current_tcp",
        "Number of conflicting tcp listeners with current tcp listener.",
        "port-conflict",
        "ServiceEntry",
    ),
    fault(
        "pilot_conflict_inbound_listener",
        "Number of conflicting inbound listeners.",
        "port-conflict",
        "Gateway",
    ),
];

impl Fault {
    /// Whether a diagnostic is of this sort.
    pub(crate) fn is(&self, diagnostic: &Diagnostic) -> bool {
        diagnostic.code == self.code && diagnostic.kind == self.kind
    }
}

//! What people see while something is installed: the lines of istioctl.

use std::io::{IsTerminal, Write};

use super::manifest::Id;

/// Writes to standard error; on a terminal what goes on is in one line that changes.
pub(crate) struct Progress {
    terminal: bool,
    /// What the last line that may change says.
    last: String,
    component: String,
    verbose: bool,
}

impl Progress {
    /// On standard error.
    pub(crate) fn new(verbose: bool) -> Progress {
        let terminal = std::io::stderr().is_terminal();
        Progress { terminal, last: String::new(), component: String::new(), verbose }
    }

    /// Objects of a component are sent.
    pub(crate) fn begin(&mut self, component: &str) {
        component.clone_into(&mut self.component);
        self.current(&format!("Processing resources for {component}."));
    }

    /// Some are not ready.
    pub(crate) fn waiting(&mut self, ids: &[Id]) {
        let names: Vec<String> = ids.iter().map(Id::to_string).collect();
        let text = format!("Processing resources for {}. Waiting for {}", self.component, names.join(", "));
        self.current(&text);
    }

    /// A component runs.
    pub(crate) fn installed(&mut self, component: &str) {
        self.line(&format!("\u{2714} {component} installed"));
    }

    /// It does not.
    pub(crate) fn failed(&mut self, component: &str, error: &anyhow::Error) {
        self.line(&format!("\u{2718} {component} encountered an error: {error:#}"));
    }

    /// What is no longer wanted is looked for.
    pub(crate) fn pruning(&mut self) {
        self.current("Pruning removed resources");
    }

    /// An object was taken away.
    pub(crate) fn removed(&mut self, id: &Id) {
        if self.verbose {
            self.line(&format!("  Removed {id}."));
        }
    }

    /// Something is done.
    pub(crate) fn done(&mut self, what: &str) {
        self.line(&format!("\u{2714} {what}"));
    }

    /// Something is to be known.
    pub(crate) fn said(&mut self, what: &str) {
        self.line(what);
    }

    fn current(&mut self, text: &str) {
        if text == self.last {
            return;
        }
        let mut out = std::io::stderr().lock();
        // What cannot be shown stops nothing.
        let _ = if self.terminal {
            let short: String = text.chars().take(118).collect();
            write!(out, "\r\u{1b}[K- {short}").and_then(|()| out.flush())
        } else {
            writeln!(out, "- {text}")
        };
        text.clone_into(&mut self.last);
    }

    fn line(&mut self, text: &str) {
        let mut out = std::io::stderr().lock();
        let clear = if self.terminal && !self.last.is_empty() { "\r\u{1b}[K" } else { "" };
        let _ = writeln!(out, "{clear}{text}");
        self.last.clear();
    }
}

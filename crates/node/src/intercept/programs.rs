//! iptables' programs: which there are, and how they are called.

use std::fmt;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use super::InterceptError;
use crate::iptables::{self, State};
use crate::redirect::Step;
use crate::rules::Family;

/// One of the two sets of programs that go by the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// `iptables-legacy`
    Legacy,
    /// `iptables-nft`
    Nft,
}

/// A set of programs for one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    name: String,
    legacy: bool,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Program {
    /// The one to be used, as Istio chooses: legacy if it has rules here, else nft, else what there is.
    pub(super) fn find(family: Family, variant: Option<Variant>) -> Result<Program, String> {
        let base = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let legacy = || Program::usable(&format!("{base}-legacy"));
        let nft = || Program::usable(&format!("{base}-nft"));
        match variant {
            Some(Variant::Legacy) => return legacy(),
            Some(Variant::Nft) => return nft(),
            None => {}
        }
        if let Ok(program) = legacy()
            && program.state().is_ok_and(|state| state.has_istio())
        {
            return Ok(program);
        }
        nft().or_else(|_| Program::usable(base)).or_else(|first| legacy().map_err(|_| first))
    }

    /// A set whose programs are there, and have a kernel that knows them.
    fn usable(name: &str) -> Result<Program, String> {
        let version = output(Command::new(name).arg("--version"), name)?;
        let version = String::from_utf8_lossy(&version.stdout).into_owned();
        let program = Program { name: name.to_owned(), legacy: !version.contains("nf_tables") };
        let list = output(program.command().args(["-t", "nat", "-S"]), name)?;
        if !list.status.success() {
            return Err(format!("{name}: {}", words(&list)));
        }
        Ok(program)
    }

    /// What is there now.
    pub(super) fn state(&self) -> Result<State, InterceptError> {
        let name = format!("{}-save", self.name);
        let saved = output(&mut Command::new(&name), &name).map_err(InterceptError::Program)?;
        if !saved.status.success() {
            return Err(InterceptError::Program(format!("{name}: {}", words(&saved))));
        }
        Ok(State::read(&String::from_utf8_lossy(&saved.stdout)))
    }

    /// Whether the rules are there. As with Istio, not in which order: iptables cannot be asked that.
    pub(super) fn has(&self, steps: &[Step], state: &State) -> bool {
        state.has_chains_of(steps) && steps.iter().all(|step| self.call(&iptables::about(step, "-C")).is_ok())
    }

    /// Adds the rules, each table as a whole.
    pub(super) fn restore(&self, text: &str) -> Result<(), InterceptError> {
        let name = format!("{}-restore", self.name);
        let failed = |why: String| InterceptError::Program(format!("{name}: {why}"));
        let mut command = Command::new(&name);
        command.arg("--noflush");
        if self.legacy {
            command.arg("--wait=30");
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        // It reads all before it says anything, so writing does not wait for being read.
        let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes()));
        let ended = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
        if !ended.status.success() {
            return Err(failed(words(&ended)));
        }
        written.map_err(|error| failed(error.to_string()))
    }

    /// Takes away all that is Istio's.
    pub(super) fn clean(&self, steps: &[Step]) -> Result<(), InterceptError> {
        let state = self.state()?;
        if state.has_istio() {
            for call in iptables::undo(steps, &state) {
                // What is not there cannot be taken away.
                let _ = self.call(&call);
            }
        }
        if self.state()?.has_istio() {
            return Err(InterceptError::Program(format!("{self}: chains of Istio's cannot be removed")));
        }
        Ok(())
    }

    /// Lets nothing in or out.
    pub(super) fn guard(&self) -> Result<(), InterceptError> {
        self.unguard();
        iptables::guards("-I").iter().try_for_each(|call| self.call(call)).map_err(InterceptError::Program)
    }

    /// The end of that.
    pub(super) fn unguard(&self) {
        for call in iptables::guards("-D") {
            let _ = self.call(&call);
        }
    }

    fn call(&self, arguments: &[String]) -> Result<(), String> {
        let ended = output(self.command().args(arguments), &self.name)?;
        if ended.status.success() {
            return Ok(());
        }
        Err(format!("{} {}: {}", self.name, arguments.join(" "), words(&ended)))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.name);
        if self.legacy {
            // Others may hold the lock.
            command.arg("--wait=30");
        }
        command
    }
}

fn output(command: &mut Command, name: &str) -> Result<Output, String> {
    command.stdin(Stdio::null()).output().map_err(|error| format!("{name}: {error}"))
}

/// What a program that failed said.
fn words(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    if said.is_empty() { output.status.to_string() } else { said.replace('\n', "; ") }
}

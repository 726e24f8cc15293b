//! The last lines of output of everything that runs, for `leno logs`.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use leno_node::Line;
use tokio::sync::broadcast;

/// How many lines are kept.
const KEPT: usize = 10_000;

/// Keeps lines, and hands on new ones to those who follow.
#[derive(Debug)]
pub(crate) struct Logs {
    // Taken for the time of a push or a copy only, never over an await.
    kept: Mutex<VecDeque<Line>>,
    follow: broadcast::Sender<Line>,
}

impl Logs {
    pub(crate) fn new() -> Logs {
        Logs { kept: Mutex::default(), follow: broadcast::channel(4096).0 }
    }

    pub(crate) fn push(&self, line: Line) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(line.clone());
        // Within the lock, so that a follower gets each line either as an old one or as a new one.
        let _ = self.follow.send(line);
    }

    /// The last lines of what is asked for, and those to come.
    pub(crate) fn read(&self, wanted: Option<&str>, tail: usize) -> (Vec<Line>, broadcast::Receiver<Line>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines: Vec<Line> =
            kept.iter().rev().filter(|line| is_wanted(line, wanted)).take(tail).cloned().collect();
        lines.reverse();
        (lines, self.follow.subscribe())
    }
}

/// Whether a line is of a pod whose name begins so, or of `POD/CONTAINER`.
pub(crate) fn is_wanted(line: &Line, wanted: Option<&str>) -> bool {
    let Some(wanted) = wanted else { return true };
    match (wanted.split_once('/'), line.source.split_once('/')) {
        (Some((pod, container)), Some((of, name))) => of.starts_with(pod) && name == container,
        (Some(_), None) => false,
        (None, _) => line.source.starts_with(wanted),
    }
}

#[cfg(test)]
mod tests {
    use leno_node::{Line, Stream};

    use super::Logs;

    #[test]
    fn the_last_lines_of_what_is_wanted() {
        let logs = Logs::new();
        for (source, text) in
            [("web-1/web", "a"), ("web-1/istio-proxy", "b"), ("db-1/db", "c"), ("web-2/web", "d")]
        {
            logs.push(Line { source: source.into(), stream: Stream::Stdout, text: text.into() });
        }
        let read = |wanted, tail| {
            let (lines, _) = logs.read(wanted, tail);
            lines.iter().map(|line| line.text.as_str().to_owned()).collect::<String>()
        };
        assert_eq!(read(None, 3), "bcd");
        assert_eq!(read(Some("web"), 9), "abd");
        assert_eq!(read(Some("web/web"), 9), "ad");
        assert_eq!(read(Some("nobody"), 9), "");
    }
}

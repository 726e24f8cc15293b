//! What `leno up` prints: lines, and on a terminal a table below them that is kept up to date. A
//! thread of its own writes, so that a terminal that is stopped (Ctrl-S) stops nothing else.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use super::overview::Overview;

/// How many lines may wait for the terminal.
const WAITING: usize = 10_000;
/// The table is drawn at most this often.
const FRAME: Duration = Duration::from_millis(100);

enum Message {
    Line(String),
    Table(Box<Overview>),
    End,
}

/// The way to the terminal.
#[derive(Debug)]
pub(crate) struct Display {
    sender: SyncSender<Message>,
    /// Disconnected when the writer has ended.
    written: Receiver<()>,
    has_table: bool,
}

impl Display {
    /// Starts the thread that writes. `plain`: without a table even on a terminal.
    pub(crate) fn start(plain: bool) -> Display {
        let has_table = !plain && std::io::stdout().is_terminal();
        let (sender, receiver) = sync_channel(WAITING);
        let (writing, written) = sync_channel(0);
        // Should there be no thread, nothing is printed, and the mesh runs all the same.
        let _ = std::thread::Builder::new().name("display".into()).spawn(move || {
            let _writing: SyncSender<()> = writing;
            let screen = Screen { table: String::new(), drawn: 0, dirty: false, last: None };
            screen.run(&receiver, has_table);
        });
        Display { sender, written, has_table }
    }

    /// Prints a line. If very many wait already it is left out: nothing may stop for it.
    pub(crate) fn line(&self, text: impl Into<String>) {
        if let Err(TrySendError::Full(_)) = self.sender.try_send(Message::Line(text.into())) {
            tracing::debug!("a line of output was left out");
        }
    }

    /// Replaces the table.
    pub(crate) fn table(&self, overview: Overview) {
        if self.has_table {
            let _ = self.sender.try_send(Message::Table(Box::new(overview)));
        }
    }
}

impl Drop for Display {
    /// Waits a moment for what is to be written yet.
    fn drop(&mut self) {
        let _ = self.sender.try_send(Message::End);
        let _ = self.written.recv_timeout(Duration::from_secs(1));
    }
}

struct Screen {
    table: String,
    /// How many lines of the table are on the screen.
    drawn: usize,
    dirty: bool,
    last: Option<Instant>,
}

impl Screen {
    fn run(mut self, messages: &Receiver<Message>, has_table: bool) {
        loop {
            let mut output = String::new();
            let mut end = false;
            let mut next = match messages.recv_timeout(FRAME) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Message::End),
            };
            while let Some(message) = next {
                match message {
                    Message::Line(line) => {
                        self.erase(&mut output);
                        let _ = writeln!(output, "{line}");
                    }
                    Message::Table(overview) => {
                        let text = table(&overview, size());
                        self.dirty |= text != self.table;
                        self.table = text;
                    }
                    Message::End => end = true,
                }
                next = if output.len() < 1 << 16 { messages.try_recv().ok() } else { None };
            }
            if has_table && !end {
                self.draw(&mut output);
            } else if end {
                self.erase(&mut output);
            }
            let mut out = std::io::stdout().lock();
            // A reader that has gone away does not end the mesh.
            let _ = out.write_all(output.as_bytes()).and_then(|()| out.flush());
            if end {
                return;
            }
        }
    }

    fn erase(&mut self, output: &mut String) {
        if self.drawn > 0 {
            // Up to the first line of the table, and clear from there.
            let _ = write!(output, "\x1b[{}F\x1b[J", self.drawn);
            self.drawn = 0;
            self.dirty = true;
        }
    }

    fn draw(&mut self, output: &mut String) {
        let waited = self.last.is_none_or(|last| last.elapsed() >= FRAME);
        if self.table.is_empty() || !(self.dirty || self.drawn == 0) || (!waited && output.is_empty()) {
            return;
        }
        self.erase(output);
        output.push_str(&self.table);
        self.drawn = self.table.lines().count();
        self.dirty = false;
        self.last = Some(Instant::now());
    }
}

/// Columns and rows of the terminal.
fn size() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then(|| (usize::from(size.ws_col), usize::from(size.ws_row)))
}

/// The table of an overview; cut to the columns and rows of a terminal if there is one.
pub(crate) fn table(overview: &Overview, size: Option<(usize, usize)>) -> String {
    let mut rows = vec![["POD", "READY", "RESTARTS", "ADDRESS", "ADMIN", "STATUS"].map(str::to_owned)];
    for pod in &overview.pods {
        rows.push([
            format!("{}/{}", pod.namespace, pod.name),
            if pod.ready { "yes" } else { "no" }.to_owned(),
            pod.restarts.to_string(),
            pod.address.clone(),
            pod.admin.clone().unwrap_or_else(|| "-".to_owned()),
            pod.status.clone(),
        ]);
    }
    let widths: Vec<usize> = (0..6)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0))
        .collect();
    let mut lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}  "));
            cells.collect::<String>().trim_end().to_owned()
        })
        .collect();
    let mut about = Vec::new();
    for published in &overview.published {
        about.push(format!("{}  (gateway {})", published.url, published.gateway));
    }
    if let Some(url) = &overview.control_plane {
        about.push(format!("{url}  (control plane of mesh {}, {})", overview.mesh, overview.mode));
    }
    if let Some((columns, height)) = size {
        let room = height.saturating_sub(about.len() + 3).max(2);
        if lines.len() > room {
            let hidden = lines.len() - room;
            lines.truncate(room);
            lines.push(format!("... and {hidden} more, see leno ps"));
        }
        for line in lines.iter_mut().chain(&mut about) {
            *line = line.chars().take(columns.saturating_sub(1)).collect();
        }
    }
    lines.extend(about);
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::table;
    use crate::up::overview::{Overview, PodRow, PublishedRow};

    #[test]
    fn tables() {
        let pod = |name: &str, ready| PodRow {
            namespace: "default".into(),
            name: name.into(),
            ready,
            status: if ready { "ready" } else { "web starts" }.into(),
            address: "10.244.3.4".into(),
            admin: ready.then(|| "http://127.0.0.1:40001".into()),
            ..PodRow::default()
        };
        let overview = Overview {
            mesh: "mesh".into(),
            mode: "network namespaces".into(),
            control_plane: Some("http://127.0.0.1:40000".into()),
            pods: vec![pod("web-1", true), pod("database-1", false)],
            published: vec![PublishedRow {
                url: "http://127.0.0.1:8080".into(),
                gateway: "default/way".into(),
            }],
            ..Overview::default()
        };
        expect![[r#"
            POD                 READY  RESTARTS  ADDRESS     ADMIN                   STATUS
            default/web-1       yes    0         10.244.3.4  http://127.0.0.1:40001  ready
            default/database-1  no     0         10.244.3.4  -                       web starts
            http://127.0.0.1:8080  (gateway default/way)
            http://127.0.0.1:40000  (control plane of mesh mesh, network namespaces)
        "#]]
        .assert_eq(&table(&overview, None));
        let cut = table(&overview, Some((30, 6)));
        assert!(cut.lines().all(|line| line.len() < 30), "{cut}");
        assert!(cut.contains("... and 1 more"), "{cut}");
    }
}

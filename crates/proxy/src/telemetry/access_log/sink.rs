//! Where log lines go: files and standard streams, written by one thread of the process.
//!
//! Workers append whole lines to a buffer per file, under a lock that is never held during a
//! system call; the writer thread takes the buffers when one has grown to the minimum size and
//! at every flush interval. If the disk does not keep up, lines are dropped and counted
//! rather than kept without bound. Files are shared by path over all access logs, opened for
//! appending when first written, and opened anew after `reopen` (SIGUSR1, log rotation).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use crate::telemetry::access_log::Sink;

/// Bytes that may wait for the disk, by file.
const LIMIT: usize = 16 * 1024 * 1024;

/// One file or stream.
#[derive(Debug)]
pub(crate) struct LogFile {
    sink: Sink,
    buffer: Mutex<Vec<u8>>,
    /// Open file; only the writer holds this lock for longer.
    output: Mutex<Output>,
    reopen: AtomicBool,
}

#[derive(Debug)]
enum Output {
    /// Not opened yet, or to be opened again.
    Closed,
    Open(File),
    Stdout,
    Stderr,
}

/// What has been written since the start of the process (`filesystem.*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// `write_buffered`: lines put into a buffer.
    pub(crate) write_buffered: u64,
    /// `write_completed`: buffers written.
    pub(crate) write_completed: u64,
    /// `write_failed`: buffers that could not be written.
    pub(crate) write_failed: u64,
    /// `flushed_by_timer`: rounds of the flush interval.
    pub(crate) flushed_by_timer: u64,
    /// `reopen_failed`.
    pub(crate) reopen_failed: u64,
    /// `write_total_buffered`: bytes that wait now.
    pub(crate) write_total_buffered: u64,
    /// Lines dropped because too much was waiting.
    pub(crate) dropped: u64,
}

/// The writer thread's side.
struct Writer {
    files: Mutex<HashMap<Sink, Weak<LogFile>>>,
    /// Whether somebody wants a round before the interval is over.
    wanted: Mutex<bool>,
    wake: Condvar,
    interval_ms: AtomicU64,
    min_size: AtomicUsize,
    write_buffered: AtomicU64,
    write_completed: AtomicU64,
    write_failed: AtomicU64,
    flushed_by_timer: AtomicU64,
    reopen_failed: AtomicU64,
    dropped: AtomicU64,
    waiting: AtomicU64,
}

/// Sets `--file-flush-interval-msec` and `--file-flush-min-size-kb` (in bytes).
pub(crate) fn configure(interval: Duration, min_size: usize) {
    let writer = writer();
    writer
        .interval_ms
        .store(u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
    writer.min_size.store(min_size, Ordering::Relaxed);
    writer.wake();
}

/// Opens all files anew, so that rotated ones are let go of.
pub(crate) fn reopen() {
    let writer = writer();
    writer.living().iter().for_each(|file| file.reopen.store(true, Ordering::Relaxed));
    writer.wake();
}

/// Writes all that waits, on the calling thread. For the end of the process, and tests.
pub(crate) fn flush() {
    let writer = writer();
    writer.living().iter().for_each(|file| file.write_out(writer));
}

/// What was written so far.
pub(crate) fn counts() -> Counts {
    let writer = writer();
    let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
    Counts {
        write_buffered: read(&writer.write_buffered),
        write_completed: read(&writer.write_completed),
        write_failed: read(&writer.write_failed),
        flushed_by_timer: read(&writer.flushed_by_timer),
        reopen_failed: read(&writer.reopen_failed),
        write_total_buffered: read(&writer.waiting),
        dropped: read(&writer.dropped),
    }
}

/// The file of a sink; the same one for all that log there.
pub(crate) fn open(sink: &Sink) -> Arc<LogFile> {
    // One buffer for a stream, whichever way it is named.
    let sink = match sink {
        Sink::File(path) if **path == *"/dev/stdout" => Sink::Stdout,
        Sink::File(path) if **path == *"/dev/stderr" => Sink::Stderr,
        sink => sink.clone(),
    };
    let mut files = lock(&writer().files);
    if let Some(file) = files.get(&sink).and_then(Weak::upgrade) {
        return file;
    }
    files.retain(|_, file| file.strong_count() > 0);
    let output = match sink {
        Sink::File(_) => Output::Closed,
        Sink::Stdout => Output::Stdout,
        Sink::Stderr => Output::Stderr,
    };
    let file = Arc::new(LogFile {
        sink: sink.clone(),
        buffer: Mutex::default(),
        output: Mutex::new(output),
        reopen: AtomicBool::new(false),
    });
    files.insert(sink, Arc::downgrade(&file));
    file
}

impl LogFile {
    /// Appends a line, its line break included. Does no I/O.
    pub(crate) fn write(&self, line: &[u8]) {
        let writer = writer();
        let mut buffer = lock(&self.buffer);
        if buffer.len() + line.len() > LIMIT {
            writer.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let before = buffer.len();
        buffer.extend_from_slice(line);
        drop(buffer);
        writer.write_buffered.fetch_add(1, Ordering::Relaxed);
        writer.waiting.fetch_add(line.len() as u64, Ordering::Relaxed);
        let min_size = writer.min_size.load(Ordering::Relaxed);
        if before < min_size && before + line.len() >= min_size || min_size == 0 {
            writer.wake();
        }
    }

    /// Writes what waits.
    fn write_out(&self, writer: &Writer) {
        // Taken first: buffers reach the file in order.
        let mut output = lock(&self.output);
        let content = std::mem::take(&mut *lock(&self.buffer));
        writer.waiting.fetch_sub(content.len() as u64, Ordering::Relaxed);
        if self.reopen.swap(false, Ordering::Relaxed) && matches!(*output, Output::Open(_)) {
            match self.create() {
                Ok(file) => *output = Output::Open(file),
                Err(error) => {
                    writer.reopen_failed.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(target: "file", "cannot reopen access log {:?}: {error}", self.sink);
                }
            }
        }
        if content.is_empty() {
            return;
        }
        let counter = match self.write_to(&mut output, &content) {
            Ok(()) => &writer.write_completed,
            Err(error) => {
                tracing::warn!(target: "file", "cannot write access log {:?}: {error}", self.sink);
                &writer.write_failed
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
        // The allocation is used again, unless a burst has made it large.
        let mut buffer = lock(&self.buffer);
        if buffer.is_empty() && content.capacity() <= 1024 * 1024 {
            *buffer = content;
            buffer.clear();
        }
    }

    fn write_to(&self, output: &mut Output, content: &[u8]) -> io::Result<()> {
        if matches!(output, Output::Closed) {
            *output = Output::Open(self.create()?);
        }
        match output {
            Output::Closed => Ok(()),
            Output::Open(file) => file.write_all(content),
            Output::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(content)?;
                stdout.flush()
            }
            Output::Stderr => io::stderr().lock().write_all(content),
        }
    }

    fn create(&self) -> io::Result<File> {
        match &self.sink {
            Sink::File(path) => File::options().append(true).create(true).open(&**path),
            Sink::Stdout => File::options().append(true).open("/dev/stdout"),
            Sink::Stderr => File::options().append(true).open("/dev/stderr"),
        }
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        self.write_out(writer());
    }
}

impl Writer {
    fn wake(&self) {
        *lock(&self.wanted) = true;
        self.wake.notify_one();
    }

    fn living(&self) -> Vec<Arc<LogFile>> {
        lock(&self.files).values().filter_map(Weak::upgrade).collect()
    }

    /// The writer thread.
    fn run(&self) {
        loop {
            let interval = Duration::from_millis(self.interval_ms.load(Ordering::Relaxed));
            let wanted = lock(&self.wanted);
            let waited = self.wake.wait_timeout_while(wanted, interval, |wanted| !*wanted);
            let (mut wanted, waited) = waited.unwrap_or_else(PoisonError::into_inner);
            *wanted = false;
            drop(wanted);
            if waited.timed_out() {
                self.flushed_by_timer.fetch_add(1, Ordering::Relaxed);
            }
            self.living().iter().for_each(|file| file.write_out(self));
        }
    }
}

/// The process's writer; its thread starts with the first use.
fn writer() -> &'static Writer {
    static WRITER: OnceLock<Writer> = OnceLock::new();
    static STARTED: OnceLock<()> = OnceLock::new();
    let writer = WRITER.get_or_init(|| Writer {
        files: Mutex::default(),
        wanted: Mutex::default(),
        wake: Condvar::new(),
        interval_ms: AtomicU64::new(10_000),
        min_size: AtomicUsize::new(64 * 1024),
        write_buffered: AtomicU64::new(0),
        write_completed: AtomicU64::new(0),
        write_failed: AtomicU64::new(0),
        flushed_by_timer: AtomicU64::new(0),
        reopen_failed: AtomicU64::new(0),
        dropped: AtomicU64::new(0),
        waiting: AtomicU64::new(0),
    });
    STARTED.get_or_init(|| {
        let thread = std::thread::Builder::new().name("access_log".into()).spawn(move || writer.run());
        if let Err(error) = thread {
            tracing::error!(target: "file", "cannot start the access log writer: {error}");
        }
    });
    writer
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{LIMIT, Sink, flush, open, reopen};

    #[test]
    fn lines_are_appended_and_rotated_files_let_go_of() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let sink = Sink::File(path.to_str().unwrap().into());
        let (first, second) = (open(&sink), open(&sink));
        first.write(b"one\n");
        second.write(b"two\n");
        flush();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        let rotated = folder.path().join("access.log.1");
        std::fs::rename(&path, &rotated).unwrap();
        reopen();
        first.write(b"three\n");
        drop((first, second));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
        assert_eq!(std::fs::read_to_string(&rotated).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn what_the_disk_does_not_take_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let file = open(&Sink::File(folder.path().join("missing/access.log").to_str().unwrap().into()));
        let held = super::lock(&file.output);
        let line = vec![b'x'; LIMIT / 2];
        let before = super::counts().dropped;
        file.write(&line);
        file.write(&line);
        file.write(b"one too many");
        assert!(super::counts().dropped > before);
        drop(held);
    }
}

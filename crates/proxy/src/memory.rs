//! Gives back what only taking over a configuration needed.
//!
//! Messages and what was made of them on the way are freed by then, but the allocator keeps pages for
//! what may come. And the kernel maps code and constants in windows of 64 KiB around each page that
//! is touched, so that reading a bootstrap and lowering it leave most of a large binary resident, in
//! every sidecar. Once the proxy serves, those mappings are dropped; what is touched again is mapped
//! again from the page cache, which costs a minor fault for each window. That is done again when a later
//! configuration has come, but not each time: requests find nothing of their way mapped then.

use std::ffi::c_void;
use std::fs;

use rustix::mm::{Advice, madvise};

#[allow(unsafe_code, reason = "the allocator is C")]
unsafe extern "C" {
    /// Of mimalloc: frees what the calling thread's heap keeps for later; `force`: all of it.
    fn mi_collect(force: bool);
}

/// After how many beats the allocator gives back again what it keeps for later: answers of the admin
/// interface need some, now and then.
const COLLECTION: u32 = 10;

/// How many beats lie between two times that the binary's pages are given back.
const APART: u32 = 10;

/// When memory is given back: a beat after all of a configuration is in force, and now and then.
#[derive(Debug, Default)]
pub(crate) struct Settling {
    /// Beats since the last change.
    beats: u32,
    /// Beats since the binary's pages were given back; `None`: they never were.
    binary: Option<u32>,
    /// Something new has come in force since then.
    changed: bool,
}

/// What is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// The calling thread's free memory.
    Free,
    /// That, and the binary's pages.
    All,
}

impl Settling {
    /// Something new is in force.
    pub(crate) fn disturb(&mut self) {
        self.beats = 0;
        self.changed = true;
    }

    /// A beat has passed; `live`: all that was waited for is in force. What is to be given back.
    pub(crate) fn beat(&mut self, live: bool) -> Option<Given> {
        self.beats = if live { self.beats.saturating_add(1) } else { 0 };
        self.binary = self.binary.map(|beats| beats.saturating_add(1));
        if self.beats < 2 {
            return None;
        }
        if self.binary.is_none_or(|beats| self.changed && beats >= APART) {
            (self.binary, self.changed) = (Some(0), false);
            return Some(Given::All);
        }
        (self.beats == 2 || self.beats.is_multiple_of(COLLECTION)).then_some(Given::Free)
    }
}

/// Gives back.
pub(crate) fn give_back(what: Given) {
    collect();
    if what == Given::All {
        give_back_binary();
    }
}

/// Lets go of the calling thread's free memory.
fn collect() {
    // SAFETY: collects the calling thread's own heap, which nothing else touches meanwhile. Where
    // another allocator is used that heap is empty.
    #[allow(unsafe_code, reason = "the allocator is C")]
    unsafe {
        mi_collect(true);
    }
}

/// Unmaps the binary's code and constants. Where the system does not say where they are, nothing
/// happens.
fn give_back_binary() {
    let Ok(binary) = fs::read_link("/proc/self/exe") else { return };
    let Ok(maps) = fs::read_to_string("/proc/self/smaps") else { return };
    for (start, length) in clean_ranges(&maps, &binary.to_string_lossy()) {
        // SAFETY: the range is a private, read-only mapping of a file that is running and so
        // cannot be written to (ETXTBSY), and none of its pages differs from the file: what the
        // loader has relocated is anonymous memory, in place or swapped out, and both were looked
        // for. Dropping its pages loses nothing: they are read again.
        #[allow(unsafe_code, reason = "advice about mapped memory is unsafe in general")]
        let _ = unsafe { madvise(start as *mut c_void, length, Advice::LinuxDontNeed) };
    }
}

/// Start and length of each read-only mapping of `binary` in /proc/self/smaps that has no page of its
/// own: all that it holds is in the file. Its entry must say so, of pages in memory (`Anonymous`) and of
/// those that were swapped out (`Swap`).
fn clean_ranges(smaps: &str, binary: &str) -> Vec<(usize, usize)> {
    let mut ranges = Vec::new();
    let mut lines = smaps.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((range, flags, path)) = mapping(line) else { continue };
        let mut own = [None; 2];
        while let Some(line) = lines.next_if(|line| mapping(line).is_none()) {
            for (of, name) in own.iter_mut().zip(["Anonymous:", "Swap:"]) {
                if let Some(count) = line.strip_prefix(name) {
                    *of = Some(count.trim());
                }
            }
        }
        if matches!(flags, "r-xp" | "r--p") && path == Some(binary) && own == [Some("0 kB"); 2] {
            ranges.push(range);
        }
    }
    ranges
}

/// The first line of a mapping: where it is, its flags, its file.
fn mapping(line: &str) -> Option<((usize, usize), &str, Option<&str>)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let flags = fields.next()?;
    // Offset, device, inode; a path may have blanks in it, and is the rest of the line.
    let inode = fields.nth(2)?;
    let (_, path) = line.split_once(&format!(" {inode} ")).unzip();
    let path = path.map(str::trim_start).filter(|path| !path.is_empty());
    Some(((start, end.checked_sub(start)?), flags, path))
}

#[cfg(test)]
mod tests {
    use super::{Given, Settling, clean_ranges, give_back};

    #[test]
    fn only_what_is_in_the_file_is_given_back() {
        let part = |range: &str, flags: &str, path: &str, anonymous: u32, swap: &str| {
            format!(
                "{range} {flags} 0028d000 fe:00 5803265                    {path}\nSize: 8 kB\nRss: 8 kB\n\
                 Private_Dirty: 0 kB\nAnonymous: {anonymous} kB\n{swap}SwapPss: 0 kB\nVmFlags: rd ex\n"
            )
        };
        let none = "Swap: 0 kB\n";
        let smaps = [
            part("1000-3000", "r--p", "/opt/a leno", 0, none),
            part("3000-7000", "r-xp", "/opt/a leno", 0, none),
            // Relocated; and swapped out since then.
            part("7000-8000", "r--p", "/opt/a leno", 4, none),
            part("e000-f000", "r--p", "/opt/a leno", 0, "Swap: 4 kB\n"),
            // Nothing is said of it.
            part("f000-10000", "r--p", "/opt/a leno", 0, ""),
            part("8000-9000", "rw-p", "/opt/a leno", 0, none),
            part("a000-b000", "r-xp", "/lib/libc.so.6", 0, none),
            part("c000-d000", "r--p", "", 0, none),
            "nonsense\n".to_owned(),
        ];
        let ranges = clean_ranges(&smaps.concat(), "/opt/a leno");
        assert_eq!(ranges, [(0x1000, 0x2000), (0x3000, 0x4000)]);
    }

    #[test]
    fn the_program_goes_on_afterwards() {
        give_back(Given::All);
        assert_eq!(std::hint::black_box("still here").len(), 10);
    }

    #[test]
    fn the_binary_is_given_back_after_changes_but_not_each_time() {
        let mut settling = Settling::default();
        let beats = |settling: &mut Settling, count, live| {
            (0..count).map(|_| settling.beat(live)).collect::<Vec<_>>()
        };
        assert_eq!(beats(&mut settling, 3, false), [None; 3], "not before it serves");
        assert_eq!(beats(&mut settling, 3, true), [None, Some(Given::All), None]);
        settling.disturb();
        assert_eq!(
            beats(&mut settling, 8, true),
            [None, Some(Given::Free), None, None, None, None, None, None]
        );
        assert_eq!(beats(&mut settling, 2, true), [Some(Given::All), Some(Given::Free)]);
        let later = beats(&mut settling, 20, true);
        assert_eq!(later.iter().flatten().collect::<Vec<_>>(), [&Given::Free; 2], "nothing has changed");
        settling.disturb();
        assert_eq!(beats(&mut settling, 3, true), [None, Some(Given::All), None]);
    }
}

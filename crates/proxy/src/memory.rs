//! Gives back what only the start needed.
//!
//! The kernel maps code in windows of 64 KiB around each page that runs, so that reading a
//! bootstrap and lowering it leave most of a large binary resident, in every sidecar. Once the
//! proxy serves, those mappings are dropped; what runs again is mapped again from the page
//! cache, which costs a minor fault for each window.

use std::ffi::c_void;
use std::fs;

use rustix::mm::{Advice, madvise};

/// Unmaps the binary's code pages. Where the system does not say where they are, nothing
/// happens.
pub(crate) fn give_back_code() {
    let Ok(binary) = fs::read_link("/proc/self/exe") else { return };
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else { return };
    for (start, length) in maps.lines().filter_map(|line| code_range(line, &binary.to_string_lossy())) {
        // SAFETY: the range is a private, read-only mapping of a file that is running and so
        // cannot be written to (ETXTBSY); it holds no relocations, as it is not writable even
        // while the program is loaded. Dropping its pages loses nothing: they are read again.
        #[allow(unsafe_code, reason = "advice about mapped memory is unsafe in general")]
        let _ = unsafe { madvise(start as *mut c_void, length, Advice::LinuxDontNeed) };
    }
}

/// Start and length of a line of /proc/self/maps, if it is code of `binary`.
fn code_range(line: &str, binary: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_code = fields.next()? == "r-xp" && line.ends_with(binary);
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    is_code.then(|| (start, end.saturating_sub(start)))
}

#[cfg(test)]
mod tests {
    use super::{code_range, give_back_code};

    #[test]
    fn only_code_of_the_binary_is_given_back() {
        let line =
            |flags: &str, path: &str| format!("55e0a000-55e0c000 {flags} 0028d000 fe:00 5803265   {path}");
        assert_eq!(code_range(&line("r-xp", "/opt/leno"), "/opt/leno"), Some((0x55e0_a000, 0x2000)));
        assert_eq!(code_range(&line("r--p", "/opt/leno"), "/opt/leno"), None);
        assert_eq!(code_range(&line("r-xp", "/lib/libc.so.6"), "/opt/leno"), None);
        assert_eq!(code_range("nonsense", "/opt/leno"), None);
    }

    #[test]
    fn the_program_goes_on_afterwards() {
        give_back_code();
        assert_eq!(std::hint::black_box("still here").len(), 10);
    }
}

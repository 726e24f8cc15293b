//! A library of its own, which the test has compiled and loads in front of the C library of processes
//! (LD_PRELOAD): their calendar time is off by as many seconds as the file `$SKEW` holds, eight bytes
//! of a number that may change at any time. Their monotonic time stays as it is, as when somebody sets
//! the clock of a machine.

use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::ptr;
use std::sync::atomic::{AtomicI64, AtomicPtr, Ordering};

/// What the kernel fills in.
#[repr(C)]
pub struct Timespec {
    seconds: i64,
    nanoseconds: c_long,
}

#[cfg(target_arch = "x86_64")]
const SYS_CLOCK_GETTIME: c_long = 228;
#[cfg(target_arch = "aarch64")]
const SYS_CLOCK_GETTIME: c_long = 113;

const CLOCK_REALTIME: c_int = 0;
const CLOCK_REALTIME_COARSE: c_int = 5;
const READ_ONLY: c_int = 0;
const PROT_READ: c_int = 1;
const MAP_SHARED: c_int = 1;
const NAME: &CStr = c"SKEW";

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn getenv(name: *const c_char) -> *const c_char;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn mmap(at: *mut c_void, length: usize, access: c_int, flags: c_int, file: c_int, offset: i64)
    -> *mut c_void;
}

/// The number, once it is mapped.
static SKEW: AtomicPtr<AtomicI64> = AtomicPtr::new(ptr::null_mut());

fn skew() -> i64 {
    let mut mapped = SKEW.load(Ordering::Acquire);
    if mapped.is_null() {
        // SAFETY: all are calls of the C library with strings that end; two threads that do this at the
        // same time map the file twice, which is the same number.
        let memory = unsafe {
            let path = getenv(NAME.as_ptr());
            if path.is_null() {
                return 0;
            }
            let file = open(path, READ_ONLY);
            mmap(ptr::null_mut(), size_of::<i64>(), PROT_READ, MAP_SHARED, file, 0)
        };
        if memory.addr() == usize::MAX {
            return 0;
        }
        mapped = memory.cast();
        SKEW.store(mapped, Ordering::Release);
    }
    // SAFETY: it is mapped, aligned to a page, as long as a number, and never unmapped.
    unsafe { (*mapped).load(Ordering::Relaxed) }
}

/// In the place of the C library's.
///
/// # Safety
/// As there: `time` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int {
    // SAFETY: as the caller says.
    let result = unsafe { syscall(SYS_CLOCK_GETTIME, clock, time) };
    if result == 0 && matches!(clock, CLOCK_REALTIME | CLOCK_REALTIME_COARSE) {
        // SAFETY: the kernel has written to it.
        unsafe { (*time).seconds += skew() };
    }
    c_int::try_from(result).unwrap_or(-1)
}

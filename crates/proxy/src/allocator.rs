//! The program's allocator: mimalloc, asked in the way that is cheap for it.
//!
//! A proxy allocates and frees in the same worker thread nearly always, which mimalloc is made
//! for. Its own binding asks for an aligned block each time, even where every block is aligned
//! well enough. Such a request takes a detour above 1 KiB, and whenever the size's free list is
//! empty: it allocates `size + alignment - 1` bytes, which is often the next class of sizes, so
//! that it costs memory as well as time. Here only alignments that need it go that way.

use std::alloc::{GlobalAlloc, Layout};

use libmimalloc_sys::{mi_malloc, mi_realloc, mi_zalloc};
use mimalloc::MiMalloc;

/// mimalloc. To be named `#[global_allocator]` by a program.
#[derive(Debug)]
pub struct Allocator;

/// Every block of at least this size is aligned to it, as C has it (`max_align_t`).
const ALIGNED: usize = 16;

/// Whether a block of so many bytes is aligned without asking for that.
fn is_aligned_anyway(size: usize, alignment: usize) -> bool {
    alignment <= ALIGNED && alignment <= size
}

// SAFETY: all methods hand over to mimalloc, whose functions may be mixed: each of them takes
// pointers that any other has returned. What is not said to be aligned anyway is asked for as
// mimalloc's own binding does it.
#[allow(unsafe_code, reason = "an allocator is unsafe by nature")]
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_aligned_anyway(layout.size(), layout.align()) {
            // SAFETY: takes any size.
            unsafe { mi_malloc(layout.size()).cast() }
        } else {
            // SAFETY: the caller's promises are those that it asks for.
            unsafe { MiMalloc.alloc(layout) }
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_aligned_anyway(layout.size(), layout.align()) {
            // SAFETY: takes any size.
            unsafe { mi_zalloc(layout.size()).cast() }
        } else {
            // SAFETY: the caller's promises are those that it asks for.
            unsafe { MiMalloc.alloc_zeroed(layout) }
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are those that it asks for.
        unsafe { MiMalloc.dealloc(block, layout) };
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if is_aligned_anyway(size, layout.align()) {
            // SAFETY: the caller promises that the block is one of ours, thus mimalloc's.
            unsafe { mi_realloc(block.cast(), size).cast() }
        } else {
            // SAFETY: the caller's promises are those that it asks for.
            unsafe { MiMalloc.realloc(block, layout, size) }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::alloc::{GlobalAlloc as _, Layout};

    use super::Allocator;

    #[test]
    #[allow(unsafe_code, reason = "an allocator is unsafe by nature")]
    fn blocks_are_aligned_and_keep_what_is_in_them() {
        for align in [1, 2, 4, 8, 16, 32, 64, 4096] {
            for size in [1, 3, 8, 15, 16, 17, 24, 40, 72, 1000, 1025, 3000, 6000, 70_000] {
                let layout = Layout::from_size_align(size, align).unwrap();
                // SAFETY: each block is used within its layout, and freed once with it.
                unsafe {
                    let blocks: Vec<*mut u8> = (0..40).map(|_| Allocator.alloc(layout)).collect();
                    for block in blocks {
                        assert_eq!(block.addr() % align, 0, "{layout:?}");
                        block.write_bytes(7, size);
                        let larger = Allocator.realloc(block, layout, size * 3);
                        assert_eq!(larger.addr() % align, 0, "{layout:?}");
                        assert_eq!(larger.add(size - 1).read(), 7);
                        Allocator.dealloc(larger, Layout::from_size_align(size * 3, align).unwrap());
                    }
                    let zeros = Allocator.alloc_zeroed(layout);
                    assert_eq!(zeros.addr() % align, 0, "{layout:?}");
                    assert_eq!(zeros.add(size - 1).read(), 0);
                    Allocator.dealloc(zeros, layout);
                }
            }
        }
    }
}

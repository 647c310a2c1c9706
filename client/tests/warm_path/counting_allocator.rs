//! An allocator that counts, for the test that proves that a path does not allocate.
//!
//! It counts per thread, so that tests beside each other do not disturb each other.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counted.
#[derive(Debug)]
pub(crate) struct CountingAllocator;

impl CountingAllocator {
    /// How often this thread asked for memory so far.
    pub(crate) fn count() -> u64 {
        ALLOCATIONS.get()
    }

    fn note() {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    }
}

// SAFETY: every call goes to `System` with the caller's arguments, and its result comes back unchanged; the counter
// is a thread-local without destructor, so counting neither allocates nor panics.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::note();
        // SAFETY: the caller keeps `alloc`'s contract, which is the same for `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` or `realloc` above, which is to say from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        Self::note();
        // SAFETY: as for `dealloc`; the new size is the caller's promise.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

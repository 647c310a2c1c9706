//! One anonymous memory mapping, aligned to a huge page, unmapped when dropped.
//!
//! The mapping is private and reserves nothing: a page costs memory from its first touch on. Its bytes read
//! as zero until something is written to them, so they count as initialised from the start.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes that are made resident between two looks at the cancel flag.
const TOUCH_BYTES: usize = 32 << 20;

/// Alignment of the arena's base, so that every aligned 2 MiB of it can be one huge page.
const HUGE_PAGE: usize = 2 << 20;

pub(super) struct Arena {
    mapping: NonNull<libc::c_void>,
    mapping_bytes: usize,
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: an arena is an address range. Its own methods hand out the base and give the kernel advice about the range;
// who reads and writes the bytes is settled by `Block`, which stays on one thread.
unsafe impl Send for Arena {}
// SAFETY: as above; no method changes the arena.
unsafe impl Sync for Arena {}

/// Makes a pool's memory resident from another thread, so that its first use costs no page fault.
#[derive(Clone)]
pub struct Toucher(pub(super) Arc<Arena>);

impl std::fmt::Debug for Toucher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Toucher").field("bytes", &self.0.bytes).finish()
    }
}

impl Toucher {
    /// Makes all of it resident, or what it gets to before `cancel` is set. Contents do not change.
    ///
    /// # Errors
    /// What `madvise(2)` says: `ENOMEM` or `EFAULT` when there is not so much memory, `EINVAL` before Linux 5.14.
    pub fn touch(&self, cancel: &AtomicBool) -> io::Result<()> {
        for start in (0..self.0.bytes).step_by(TOUCH_BYTES) {
            if cancel.load(Ordering::Relaxed) {
                break;
            }
            let bytes = TOUCH_BYTES.min(self.0.bytes - start);
            // SAFETY: `start` is less than the arena's length.
            let address = unsafe { self.0.base.add(start) };
            // SAFETY: the range lies inside the mapping, which `self` keeps; populating it changes no contents.
            if unsafe { libc::madvise(address.as_ptr().cast(), bytes, libc::MADV_POPULATE_WRITE) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

impl Arena {
    /// Maps `bytes` bytes, with up to one huge page more for the alignment.
    pub(super) fn map(bytes: usize) -> io::Result<Self> {
        let mapping_bytes = bytes + HUGE_PAGE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: an anonymous mapping at an address of the kernel's choice replaces no memory that is in
        // use.
        let address = unsafe { libc::mmap(ptr::null_mut(), mapping_bytes, protection, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapping = NonNull::new(address).expect("mmap never chooses address zero");
        let padding = address.addr().next_multiple_of(HUGE_PAGE) - address.addr();
        // SAFETY: `padding` is less than HUGE_PAGE, so `bytes` bytes of the mapping lie behind the result.
        let base = unsafe { mapping.cast::<u8>().add(padding) };
        // SAFETY: the advice covers `bytes` bytes inside the mapping made above, and changes no contents.
        // Its refusal (no huge pages in this kernel) costs speed only.
        let _ = unsafe { libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        Ok(Self { mapping, mapping_bytes, base, bytes })
    }

    /// The first byte; `bytes()` readable and writable bytes lie behind it for as long as the arena lives.
    pub(super) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made by `map`. Every block holds the pool's inner alive, and the
        // reactor leaks the blocks that the kernel may still write to, so nothing points into it any more.
        let result = unsafe { libc::munmap(self.mapping.as_ptr(), self.mapping_bytes) };
        debug_assert_eq!(result, 0, "munmap of the arena");
    }
}

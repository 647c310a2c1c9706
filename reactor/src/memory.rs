//! Page-aligned memory for one shard, carved from a single mapping.
//!
//! A [`Pool`] allocates at start, bookkeeping included; from then on buffers come and go without a call into
//! the global allocator. What it hands out is written by one owner ([`Buffer`]), or appended to and read at
//! once ([`AppendBuffer`]), and in the end shared by count ([`Slice`]). All of it belongs to one thread and
//! may be dropped in any order. It knows no limit but its own size: "full" is `None`, and the caller's to
//! answer.

mod arena;
mod block;
mod buddy;
mod buffer;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use self::arena::Arena;
use self::block::Block;
use self::buddy::{BLOCK_PAGES_MAX, Buddy};

pub use self::arena::Toucher;
pub use self::buffer::{AppendBuffer, Buffer, Slice};
pub use crate::parts::{SEND_PARTS_MAX, SendParts};

/// Unit of allocation and alignment, in bytes: what direct I/O needs on every device.
pub const PAGE: usize = 4096;

/// Longest single buffer: the largest frame (16 MiB) and what is read behind it.
pub const BUFFER_BYTES_MAX: usize = 32 << 20;

const _: () = assert!(PAGE.is_power_of_two());
const _: () = assert!(BUFFER_BYTES_MAX.is_power_of_two());
const _: () = assert!(BUFFER_BYTES_MAX == BLOCK_PAGES_MAX as usize * PAGE);
// Positions in a buffer are kept in 32 bits.
const _: () = assert!(BUFFER_BYTES_MAX < u32::MAX as usize);

/// Why a pool cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Pages are numbered with 32 bits.
    #[error("a memory pool of {bytes} bytes is larger than the 16 TiB that can be addressed")]
    TooLarge {
        /// What was asked for.
        bytes: usize,
    },
    /// The address space or the memory limit does not allow it.
    #[error("cannot map {bytes} bytes of memory ({source}); lower the memory budget or raise `ulimit -v`")]
    Map {
        /// What was asked for, rounded up.
        bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A fixed amount of memory, shared by everything of one thread. Cloning is cheap and gives the same pool.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<Inner>,
}

/// What the pool and every piece of its memory keep alive together.
struct Inner {
    arena: Arc<Arena>,
    buddy: RefCell<Buddy>,
    /// References to the block that starts at this page; meaningless at other pages.
    references: Box<[Cell<u32>]>,
}

impl Pool {
    /// Maps `bytes` bytes, rounded up to a multiple of `BUFFER_BYTES_MAX`. Nothing is resident before it is
    /// used.
    ///
    /// # Errors
    /// See [`MemoryError`].
    pub fn new(bytes: usize) -> Result<Self, MemoryError> {
        let blocks = bytes.div_ceil(BUFFER_BYTES_MAX).max(1);
        if blocks > (u32::MAX / BLOCK_PAGES_MAX) as usize {
            return Err(MemoryError::TooLarge { bytes });
        }
        let bytes = blocks * BUFFER_BYTES_MAX;
        let arena = Arc::new(Arena::map(bytes).map_err(|source| MemoryError::Map { bytes, source })?);
        let references = vec![Cell::new(0); bytes / PAGE].into_boxed_slice();
        let buddy = RefCell::new(Buddy::new(blocks as u32));
        Ok(Self { inner: Rc::new(Inner { arena, buddy, references }) })
    }

    /// The smallest power of two of bytes that holds `bytes_min`, at least a page; `None` when no free block
    /// is large enough.
    ///
    /// # Panics
    /// If more than `BUFFER_BYTES_MAX` is asked for.
    pub fn buffer(&self, bytes_min: usize) -> Option<Buffer> {
        assert!(bytes_min <= BUFFER_BYTES_MAX, "a buffer of {bytes_min} bytes");
        let pages = bytes_min.div_ceil(PAGE).max(1).next_power_of_two();
        Block::allocate(&self.inner, pages.trailing_zeros()).map(Buffer::new)
    }

    /// Bytes in buffers and slices, each with its whole block.
    pub fn used_bytes(&self) -> usize {
        self.inner.buddy.borrow().pages_used() as usize * PAGE
    }

    /// For making all of it resident from another thread.
    pub fn toucher(&self) -> Toucher {
        Toucher(Arc::clone(&self.inner.arena))
    }

    /// Bytes in all.
    pub fn capacity_bytes(&self) -> usize {
        self.inner.arena.bytes()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = formatter.debug_struct("Pool");
        fields.field("used_bytes", &self.used_bytes());
        fields.field("capacity_bytes", &self.capacity_bytes()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        Pool::new(1).unwrap()
    }

    #[test]
    fn buffers_are_powers_of_two_and_page_aligned() {
        let pool = pool();
        assert_eq!(pool.capacity_bytes(), BUFFER_BYTES_MAX);
        for (asked, given) in [(0, PAGE), (1, PAGE), (PAGE, PAGE), (PAGE + 1, 2 * PAGE), (100_000, 131_072)] {
            let buffer = pool.buffer(asked).unwrap();
            assert_eq!(buffer.capacity(), given);
            assert_eq!(buffer.len(), given);
            assert_eq!(buffer.as_ptr().addr() % PAGE, 0);
            assert_eq!(pool.used_bytes(), given);
        }
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn exhausted_pool_answers_none_until_something_is_dropped() {
        let pool = pool();
        let all = pool.buffer(BUFFER_BYTES_MAX).unwrap();
        assert!(pool.buffer(1).is_none());
        drop(all);
        assert!(pool.buffer(1).is_some());
    }

    #[test]
    fn touched_memory_keeps_its_contents_and_may_outlive_the_pool() {
        let pool = pool();
        let mut buffer = pool.buffer(PAGE).unwrap();
        buffer[17] = 42;
        let toucher = pool.toucher();
        let thread = std::thread::spawn(move || toucher.touch(&std::sync::atomic::AtomicBool::new(false)));
        assert!(thread.join().unwrap().is_ok());
        assert_eq!(buffer[17], 42);
        let toucher = pool.toucher();
        drop((buffer, pool));
        assert!(toucher.touch(&std::sync::atomic::AtomicBool::new(false)).is_ok());
    }

    #[test]
    fn fresh_memory_is_zero_and_keeps_what_is_written() {
        let pool = pool();
        let mut buffer = pool.buffer(2 * PAGE).unwrap();
        assert!(buffer.iter().all(|byte| *byte == 0));
        buffer[PAGE..PAGE + 3].copy_from_slice(b"abc");
        let slice = buffer.freeze(PAGE..PAGE + 3);
        assert_eq!(&slice[..], b"abc");
    }

    #[test]
    fn appended_bytes_are_shared_while_the_buffer_grows() {
        let pool = pool();
        let mut append = pool.buffer(PAGE).unwrap().into_append(100);
        append.append(b"first");
        let first = append.slice(100..105);
        append.append(b"second");
        assert_eq!((append.start(), append.end(), append.remaining()), (100, 111, PAGE - 111));
        assert_eq!(&first[..], b"first");
        assert_eq!(append.bytes(103..108), b"stsec");
        let all = append.freeze();
        assert_eq!(&all[..], b"firstsecond");
        assert_eq!(&all.slice(5..11)[..], b"second");
        assert_eq!(&first[..], b"first");
    }

    #[test]
    fn memory_comes_back_with_the_last_reference_in_any_order() {
        let pool = pool();
        let mut append = pool.buffer(PAGE).unwrap().into_append(0);
        append.append(b"payload");
        let slice = append.slice(0..7);
        let part = slice.slice(2..4);
        drop(append);
        drop(slice);
        assert_eq!(pool.used_bytes(), PAGE);
        assert_eq!(&part[..], b"yl");
        drop(part);
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn slices_outlive_the_pool() {
        let pool = pool();
        let mut buffer = pool.buffer(1).unwrap();
        buffer[0] = 7;
        drop(pool);
        let slice = buffer.freeze(0..1);
        let copy = slice.clone();
        drop(slice);
        assert_eq!(copy[0], 7);
    }

    #[test]
    #[should_panic(expected = "2 bytes into 1")]
    fn append_behind_the_end_panics() {
        let mut append = pool().buffer(PAGE).unwrap().into_append(PAGE - 1);
        append.append(b"ab");
    }

    #[test]
    #[should_panic(expected = "ends behind")]
    fn slice_of_unwritten_bytes_panics() {
        let mut append = pool().buffer(PAGE).unwrap().into_append(0);
        append.append(b"ab");
        let _ = append.slice(0..3);
    }

    #[test]
    fn debug_output_shows_no_contents() {
        let mut buffer = pool().buffer(1).unwrap();
        buffer[..6].copy_from_slice(b"secret");
        assert_eq!(format!("{:?}", buffer.freeze(0..6)), "Slice { length: 6 }");
    }
}

//! The three views of a block: written by one, written and read at once, read by many.
//! ```text
//! Buffer        |<------------- one owner reads and writes all of it ------------->|
//! AppendBuffer  | not visible |== written: shared, fixed ==|-- free: one writer ----|
//!               0             start                        end                capacity
//! Slice                           |== any part, counted ==|
//! ```
//! Invariant: a byte that a `Slice` can see is never written again while that `Slice` lives. `Buffer` has no
//! slices; `AppendBuffer` writes only at and above `end`, through raw pointers, and slices end below it.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr;

use super::block::Block;

/// A power of two of bytes, at least a page, page-aligned, with one owner.
///
/// The contents are zero or what an earlier use left behind.
pub struct Buffer {
    block: Block,
}

impl Buffer {
    pub(super) fn new(block: Block) -> Self {
        Self { block }
    }

    /// Length in bytes.
    pub fn capacity(&self) -> usize {
        self.block.capacity()
    }

    /// Ends writing and shares `range`.
    ///
    /// # Panics
    /// If the range does not lie inside the buffer.
    pub fn freeze(self, range: Range<usize>) -> Slice {
        Slice::new(self.block, range)
    }

    /// Turns the buffer into a writer that appends from byte `start` on. What lies before is kept, unseen.
    ///
    /// # Panics
    /// If `start` lies behind the end.
    pub fn into_append(self, start: usize) -> AppendBuffer {
        assert!(start <= self.capacity(), "start {start} in a buffer of {}", self.capacity());
        AppendBuffer { block: self.block, start, end: start }
    }

    /// Address of byte `start`, for the kernel.
    pub(crate) fn pointer(&mut self, start: usize) -> *mut u8 {
        self.block.pointer(start)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: a `Buffer` holds its block's only reference, and `&self` keeps `deref_mut` away. While the
        // kernel writes, the reactor owns the buffer and nobody can call this.
        unsafe { self.block.view(0, self.block.capacity()) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: a `Buffer` holds its block's only reference: it is neither `Clone` nor made from one. While
        // the kernel uses it, the reactor owns it.
        unsafe { self.block.view_mut() }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Buffer").field("capacity", &self.capacity()).finish()
    }
}

/// An append-only writer whose written part can be shared while it grows.
pub struct AppendBuffer {
    block: Block,
    start: usize,
    end: usize,
}

impl AppendBuffer {
    /// Position of the first byte that was or will be written.
    pub fn start(&self) -> usize {
        self.start
    }

    /// Position where the next byte goes.
    pub fn end(&self) -> usize {
        self.end
    }

    /// Length of the whole buffer, in bytes.
    pub fn capacity(&self) -> usize {
        self.block.capacity()
    }

    /// Bytes that still fit.
    pub fn remaining(&self) -> usize {
        self.capacity() - self.end
    }

    /// Copies `bytes` to the end.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn append(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.remaining(), "{} bytes into {}", bytes.len(), self.remaining());
        let to = self.block.pointer(self.end);
        // SAFETY: the assert keeps the target inside the block, at and above `end`, where no slice and no
        // operation of the kernel reaches. `bytes` can only lie elsewhere: slices of this block end at `end`.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        self.end += bytes.len();
    }

    /// Shares a written range.
    ///
    /// # Panics
    /// If the range does not lie in `start()..end()`.
    pub fn slice(&self, range: Range<usize>) -> Slice {
        self.check(&range);
        Slice::new(self.block.clone(), range)
    }

    /// Reads a written range.
    ///
    /// # Panics
    /// If the range does not lie in `start()..end()`.
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.check(&range);
        // SAFETY: the check keeps the range below `end`, where `append` never writes again.
        unsafe { self.block.view(range.start, range.end - range.start) }
    }

    /// Ends writing and shares all that was written.
    pub fn freeze(self) -> Slice {
        Slice::new(self.block, self.start..self.end)
    }

    fn check(&self, range: &Range<usize>) {
        assert!(self.start <= range.start, "{range:?} begins before {}", self.start);
        assert!(range.start <= range.end, "{range:?} is no range");
        assert!(range.end <= self.end, "{range:?} ends behind {}", self.end);
    }
}

impl fmt::Debug for AppendBuffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = formatter.debug_struct("AppendBuffer");
        fields.field("start", &self.start).field("end", &self.end);
        fields.field("capacity", &self.capacity()).finish()
    }
}

/// A counted reference to bytes that do not change.
#[derive(Clone)]
pub struct Slice {
    block: Block,
    start: u32,
    length: u32,
}

impl Slice {
    fn new(block: Block, range: Range<usize>) -> Self {
        assert!(range.start <= range.end, "{range:?} is no range");
        assert!(range.end <= block.capacity(), "{range:?} in a block of {}", block.capacity());
        // Both fit: a block is at most BUFFER_BYTES_MAX long.
        let (start, length) = (range.start as u32, (range.end - range.start) as u32);
        Self { block, start, length }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// Whether it has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Shares a part; `range` counts from the beginning of this slice.
    ///
    /// # Panics
    /// If the range does not lie inside.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.end <= self.len(), "{range:?} in a slice of {}", self.length);
        let start = self.start as usize;
        Self::new(self.block.clone(), start + range.start..start + range.end)
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes were written before the slice was made (`freeze`) or lie below the `end` of an
        // `AppendBuffer`, which only writes above it.
        unsafe { self.block.view(self.start as usize, self.length as usize) }
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Slice").field("length", &self.length).finish()
    }
}

const _: () = assert!(size_of::<Option<Slice>>() == 24, "many slices are held: keep them small");

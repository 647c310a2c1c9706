//! A counted reference to one allocated block: the only place that turns pages into pointers and slices.
//!
//! The count lives in the pool's per-page array, at the block's first page, so cloning and dropping allocate
//! nothing. The block goes back to the buddy allocator with its last reference. Who may read and write which
//! bytes is decided one level up, in `buffer`: this type only guarantees that the bytes exist.

use std::rc::Rc;
use std::slice;

use super::{Inner, PAGE};

pub(super) struct Block {
    inner: Rc<Inner>,
    page: u32,
    bytes: u32,
}

impl Block {
    /// A block of `2^order` pages with one reference, or `None` when the arena has none.
    pub(super) fn allocate(inner: &Rc<Inner>, order: u32) -> Option<Self> {
        let page = inner.buddy.borrow_mut().allocate(order)?;
        let count = &inner.references[page as usize];
        assert_eq!(count.get(), 0, "a free block had references");
        count.set(1);
        Some(Self { inner: Rc::clone(inner), page, bytes: (PAGE as u32) << order })
    }

    pub(super) fn capacity(&self) -> usize {
        self.bytes as usize
    }

    /// Address of byte `start`; `capacity() - start` bytes of the block lie behind it.
    pub(super) fn pointer(&self, start: usize) -> *mut u8 {
        assert!(start <= self.capacity(), "byte {start} of a block of {}", self.bytes);
        let base = self.inner.arena.base();
        // SAFETY: the buddy allocator handed out pages inside the arena, and the assert keeps `start` inside
        // the block, so the sum stays inside the mapping, which `inner` keeps alive.
        unsafe { base.add(self.page as usize * PAGE + start) }
    }

    /// The bytes `start..start + length`.
    ///
    /// # Safety
    /// Nobody writes to these bytes while the answer lives.
    pub(super) unsafe fn view(&self, start: usize, length: usize) -> &[u8] {
        let pointer = self.pointer(start);
        assert!(length <= self.capacity() - start);
        // SAFETY: the bytes lie in the mapping, are initialised (zero from the kernel, or written before),
        // and stay allocated while `self` is borrowed; that nobody writes to them is the caller's promise.
        unsafe { slice::from_raw_parts(pointer, length) }
    }

    /// All bytes, for writing.
    ///
    /// # Safety
    /// `self` is the block's only reference, and no operation of the kernel is using the block.
    pub(super) unsafe fn view_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `view`; that nobody else reads or writes is the caller's promise.
        unsafe { slice::from_raw_parts_mut(self.pointer(0), self.capacity()) }
    }

    fn count(&self) -> &std::cell::Cell<u32> {
        &self.inner.references[self.page as usize]
    }
}

impl Clone for Block {
    fn clone(&self) -> Self {
        let count = self.count().get().checked_add(1).expect("references to a block are counted in 32 bits");
        self.count().set(count);
        Self { inner: Rc::clone(&self.inner), page: self.page, bytes: self.bytes }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let count = self.count().get();
        assert!(count > 0, "a live reference was not counted");
        self.count().set(count - 1);
        if count == 1 {
            self.inner.buddy.borrow_mut().release(self.page);
        }
    }
}

//! The pieces of one vectored send, with the storage that the kernel reads while it sends them.
//!
//! A [`SendParts`] is boxed once and travels: the caller fills it, the reactor owns it while the kernel
//! works, the event brings it back, `clear` makes it empty again. Its address is the box's and never moves,
//! so the vectors can point into it. The surface is safe; the pointers are filled in by the reactor, at
//! submission.

use std::fmt;
use std::ptr;

use crate::memory::Slice;

/// Most pieces of one send. The kernel takes 1,024; past some dozens a larger piece is better than one more.
pub const SEND_PARTS_MAX: usize = 64;

const EMPTY: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

/// Up to [`SEND_PARTS_MAX`] slices, sent one after another.
pub struct SendParts {
    slices: [Option<Slice>; SEND_PARTS_MAX],
    count: usize,
    bytes: usize,
    vectors: [libc::iovec; SEND_PARTS_MAX],
    header: libc::msghdr,
}

impl SendParts {
    /// An empty list. The only allocation of its life.
    pub fn new() -> Box<Self> {
        // SAFETY: `msghdr` is plain numbers and pointers, for all of which zero is a value: no name, no
        // vectors, no control data.
        let header = unsafe { std::mem::zeroed::<libc::msghdr>() };
        Box::new(Self {
            slices: [const { None }; SEND_PARTS_MAX],
            count: 0,
            bytes: 0,
            vectors: [EMPTY; SEND_PARTS_MAX],
            header,
        })
    }

    /// Adds a piece behind the others.
    ///
    /// # Errors
    /// Hands the slice back when the list is full.
    pub fn push(&mut self, slice: Slice) -> Result<(), Slice> {
        if self.count == SEND_PARTS_MAX {
            return Err(slice);
        }
        self.bytes += slice.len();
        self.slices[self.count] = Some(slice);
        self.count += 1;
        Ok(())
    }

    /// Number of pieces.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Bytes of all pieces together.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is no piece.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The pieces, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Slice> {
        self.slices[..self.count].iter().flatten()
    }

    /// Drops all pieces.
    pub fn clear(&mut self) {
        self.slices[..self.count].fill_with(|| None);
        self.count = 0;
        self.bytes = 0;
    }

    /// Points the vectors at the pieces and the header at the vectors.
    ///
    /// The answer is good until the parts are changed, moved out of their box, or dropped.
    pub(crate) fn prepare(&mut self) -> *const libc::msghdr {
        for (vector, slice) in self.vectors.iter_mut().zip(self.slices[..self.count].iter().flatten()) {
            // The kernel only reads what it sends.
            vector.iov_base = slice.as_ptr().cast_mut().cast();
            vector.iov_len = slice.len();
        }
        self.header.msg_iov = self.vectors.as_mut_ptr();
        self.header.msg_iovlen = self.count;
        &raw const self.header
    }
}

impl fmt::Debug for SendParts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SendParts").field("len", &self.count).field("bytes", &self.bytes).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Pool;

    #[test]
    fn full_list_hands_the_slice_back() {
        let pool = Pool::new(1).unwrap();
        let slice = pool.buffer(1).unwrap().freeze(0..10);
        let mut parts = SendParts::new();
        for _ in 0..SEND_PARTS_MAX {
            parts.push(slice.clone()).unwrap();
        }
        assert_eq!(parts.push(slice).unwrap_err().len(), 10);
        assert_eq!((parts.len(), parts.bytes()), (SEND_PARTS_MAX, SEND_PARTS_MAX * 10));
    }

    #[test]
    fn cleared_list_holds_no_memory() {
        let pool = Pool::new(1).unwrap();
        let mut parts = SendParts::new();
        parts.push(pool.buffer(1).unwrap().freeze(0..10)).unwrap();
        assert!(!parts.is_empty());
        parts.clear();
        assert!(parts.is_empty());
        assert_eq!((parts.bytes(), pool.used_bytes()), (0, 0));
    }

    #[test]
    fn vectors_follow_the_pieces() {
        let pool = Pool::new(1).unwrap();
        let slice = pool.buffer(1).unwrap().freeze(0..100);
        let mut parts = SendParts::new();
        parts.push(slice.slice(0..40)).unwrap();
        parts.push(slice.slice(40..100)).unwrap();
        let header = parts.prepare();
        assert_eq!(header, &raw const parts.header);
        assert_eq!(parts.header.msg_iovlen, 2);
        assert_eq!(parts.header.msg_iov.cast_const(), parts.vectors.as_ptr());
        assert_eq!(
            parts.vectors[1].iov_base.cast_const().cast::<u8>(),
            parts.iter().nth(1).unwrap().as_ptr()
        );
        assert_eq!((parts.vectors[0].iov_len, parts.vectors[1].iov_len), (40, 60));
    }
}

//! The records of a checked batch, as views without copies.
//!
//! `Batch::check` has found that every entry lies inside the data area; what is read here is not checked again. The
//! data is the batch's own, or what an `Inflater` made of it.

use super::{BatchHeader, IndexEntry};
use crate::ids::Offset;

/// Records of a batch in the order of their offsets; an iterator over those that are left.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    header: &'a BatchHeader,
    entries: &'a [IndexEntry],
    data: &'a [u8],
    /// Number of the next entry.
    next: usize,
}

impl<'a> Records<'a> {
    /// `entries` were checked against the length of `data`.
    pub(super) fn new(header: &'a BatchHeader, entries: &'a [IndexEntry], data: &'a [u8]) -> Self {
        assert!(data.len() == header.uncompressed_length.get() as usize);
        Self { header, entries, data, next: 0 }
    }

    /// Record `n` of the batch in O(1), whatever was taken before; `None` behind the last.
    #[must_use]
    pub fn record(&self, n: usize) -> Option<RecordView<'a>> {
        let entry = self.entries.get(n)?;
        let start = entry.position.get() as usize;
        let end = self.entries.get(n + 1).map_or(self.data.len(), |next| next.position.get() as usize);
        let (key, rest) = self.data[start..end].split_at(entry.key_length.get() as usize);
        let (headers, value) = rest.split_at(entry.headers_length.get() as usize);
        Some(RecordView {
            offset: self.offset_of(entry),
            created_ms: self
                .header
                .created_ms
                .get()
                .saturating_add_signed(i64::from(entry.time_delta_ms.get())),
            tag_hash: entry.tag_hash.get(),
            key,
            headers: Headers(headers),
            value,
        })
    }

    /// Those from this offset on, found by bisection.
    #[must_use]
    pub fn starting_at(mut self, offset: Offset) -> Self {
        let first = self.entries.partition_point(|entry| self.offset_of(entry) < offset);
        self.next = self.next.max(first);
        self
    }

    fn offset_of(&self, entry: &IndexEntry) -> Offset {
        self.header.base_offset().plus(u64::from(entry.offset_delta.get()))
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = RecordView<'a>;

    fn next(&mut self) -> Option<RecordView<'a>> {
        let record = self.record(self.next)?;
        self.next += 1;
        Some(record)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.entries.len() - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Records<'_> {}

/// One record of a batch, without a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordView<'a> {
    /// Its number in the partition (once the broker has placed the batch).
    pub offset: Offset,
    /// When its producer made it, milliseconds since 1970.
    pub created_ms: u64,
    /// Hash of its tag, 0 for none.
    pub tag_hash: u32,
    /// Key, possibly empty.
    pub key: &'a [u8],
    /// Names and values.
    pub headers: Headers<'a>,
    /// Value, possibly empty.
    pub value: &'a [u8],
}

/// The headers of a record: for each, name length `u16`, value length `u32`, name, value.
///
/// They are opaque to the broker; iteration ends at the first one that does not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers<'a>(pub &'a [u8]);

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (lengths, rest) = self.0.split_at_checked(6)?;
        let name_length = usize::from(u16::from_le_bytes([lengths[0], lengths[1]]));
        let value_length = u32::from_le_bytes([lengths[2], lengths[3], lengths[4], lengths[5]]) as usize;
        let (name, rest) = rest.split_at_checked(name_length)?;
        let (value, rest) = rest.split_at_checked(value_length)?;
        self.0 = rest;
        Some((name, value))
    }
}

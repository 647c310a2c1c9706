//! Compressing the data area of a batch, on the producer's side, and inflating it on the reader's.
//!
//! The area is one piece: an LZ4 block without a length in front, or one Zstandard frame. What it inflates to stands
//! in the batch header, was bounded by `Batch::check`, and is never exceeded: a piece that inflates to more, or to
//! less, is an error. Both hold tables and room that are reused, so one of each serves any number of batches.

use lz4_flex::block::{self, CompressTable};

use super::{BatchError, Compression};

/// Zstandard's own default: better than LZ4 by a good part, at a third of its speed.
const ZSTD_LEVEL: i32 = 3;

/// Compresses data areas. One serves many builders, because the tables of Zstandard take a megabyte.
pub struct Compressor(Method);

enum Method {
    None,
    Lz4(CompressTable),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Compressor").field(&self.compression()).finish()
    }
}

impl Compressor {
    /// A compressor of this kind. Where the system has no memory for Zstandard's tables it compresses nothing.
    #[must_use]
    pub fn new(compression: Compression) -> Self {
        Self(match compression {
            Compression::None => Method::None,
            Compression::Lz4 => Method::Lz4(CompressTable::small()),
            Compression::Zstd => zstd::bulk::Compressor::new(ZSTD_LEVEL).map_or(Method::None, Method::Zstd),
        })
    }

    /// What it compresses with.
    #[must_use]
    pub fn compression(&self) -> Compression {
        match self.0 {
            Method::None => Compression::None,
            Method::Lz4(_) => Compression::Lz4,
            Method::Zstd(_) => Compression::Zstd,
        }
    }

    /// Appends the data, compressed if that makes it shorter, and tells what it has become.
    pub(super) fn append(&mut self, data: &[u8], out: &mut Vec<u8>) -> Compression {
        let start = out.len();
        out.resize(start + self.bound(data.len()), 0);
        let compressed = match &mut self.0 {
            Method::None => None,
            Method::Lz4(table) => block::compress_into_with_table(data, &mut out[start..], table).ok(),
            Method::Zstd(context) => context.compress_to_buffer(data, &mut out[start..]).ok(),
        };
        if let Some(length) = compressed.filter(|length| *length < data.len()) {
            out.truncate(start + length);
            return self.compression();
        }
        out.truncate(start);
        out.extend_from_slice(data);
        Compression::None
    }

    /// Room that compressing so many bytes may need.
    fn bound(&self, data_length: usize) -> usize {
        match self.0 {
            Method::None => 0,
            Method::Lz4(_) => block::get_maximum_output_size(data_length),
            Method::Zstd(_) => zstd::zstd_safe::compress_bound(data_length),
        }
    }
}

/// Room for an inflated data area, and what inflating needs. It grows to the longest batch that it has seen, at most
/// `INFLATED_BATCH_BYTES_MAX`; batches that are not compressed do not touch it.
#[derive(Default)]
pub struct Inflater {
    room: Vec<u8>,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl std::fmt::Debug for Inflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflater").field("room_bytes", &self.room.len()).finish_non_exhaustive()
    }
}

impl Inflater {
    /// One without room yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The data, inflated to exactly `length` bytes, which the caller has bounded.
    ///
    /// # Errors
    /// `Inflation` for anything else than one piece that inflates to that length.
    pub(super) fn inflate(
        &mut self,
        compression: Compression,
        data: &[u8],
        length: usize,
    ) -> Result<&[u8], BatchError> {
        if self.room.len() < length {
            self.room.resize(length, 0);
        }
        let room = &mut self.room[..length];
        let inflated = match compression {
            Compression::None => return Err(BatchError::Inflation),
            Compression::Lz4 => block::decompress_into(data, room).ok(),
            Compression::Zstd => {
                let context = match &mut self.zstd {
                    Some(context) => context,
                    none => none.insert(zstd::bulk::Decompressor::new().map_err(|_| BatchError::Inflation)?),
                };
                context.decompress_to_buffer(data, room).ok()
            }
        };
        if inflated == Some(length) { Ok(room) } else { Err(BatchError::Inflation) }
    }
}

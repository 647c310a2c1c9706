//! The superblock: what recovery must know before it can believe anything else.
//!
//! ```text
//!  0 magic "FBSUPER1"  8 format version  12 shard count  16 directory id  32 epoch  36 journal files
//! 40 first sequence of the epoch  48 zeros  60 CRC | zeros up to 4 KiB
//! ```
//!
//! Two copies, in pages of their own. Both carry the new epoch, each flushed in turn, before the first write of that
//! epoch; an epoch is never used twice, also not by a recovery that crashed.

use protocol::crc::crc32c;
use zerocopy::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BlockSequence, Epoch};
use crate::limits::PAGE_BYTES;

/// Number of copies.
pub const SUPERBLOCK_COPIES: usize = 2;
/// Length of the file.
pub const SUPERBLOCK_FILE_BYTES: u64 = (SUPERBLOCK_COPIES * PAGE_BYTES) as u64;
/// Version of everything in the data directory.
pub const FORMAT_VERSION: u32 = 2;

const MAGIC: [u8; 8] = *b"FBSUPER1";
const CRC_RANGE: std::ops::Range<usize> = 0..60;

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Layout {
    magic: [u8; 8],
    format_version: U32,
    shard_count: U32,
    directory_id: U128,
    epoch: U32,
    journal_file_count: U32,
    first_sequence: U64,
    reserved: [u8; 12],
    crc: U32,
}

const _: () = assert!(size_of::<Layout>() == 64);

/// What the copies say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Random, made with the data directory: seeds every checksum of the journal.
    pub directory_id: u128,
    /// Number of shards that the directory was written with.
    pub shard_count: u32,
    /// Epoch of the last start that got as far as writing.
    pub epoch: Epoch,
    /// Journal files that were there when the epoch began: a lower number since is damage.
    pub journal_file_count: u32,
    /// Sequence of the first block of that epoch: every block before it was found good when it began.
    pub first_sequence: BlockSequence,
}

/// Why a copy cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuperblockError {
    /// Only zeros: never written.
    Empty,
    /// Not a superblock, or its checksum does not match.
    Damaged,
    /// Written by another version of the format.
    Version(u32),
}

impl Superblock {
    /// Writes one copy; `page` has `PAGE_BYTES`.
    pub fn write(&self, page: &mut [u8]) {
        assert_eq!(page.len(), PAGE_BYTES);
        let mut layout = Layout {
            magic: MAGIC,
            format_version: U32::new(FORMAT_VERSION),
            shard_count: U32::new(self.shard_count),
            directory_id: U128::new(self.directory_id),
            epoch: U32::new(self.epoch.0),
            journal_file_count: U32::new(self.journal_file_count),
            first_sequence: U64::new(self.first_sequence.0),
            ..Layout::default()
        };
        layout.crc = U32::new(crc32c(&layout.as_bytes()[CRC_RANGE]));
        page.fill(0);
        page[..size_of::<Layout>()].copy_from_slice(layout.as_bytes());
    }

    /// Reads one copy.
    ///
    /// # Errors
    /// See `SuperblockError`.
    pub fn read(page: &[u8]) -> Result<Self, SuperblockError> {
        if page.iter().all(|byte| *byte == 0) {
            return Err(SuperblockError::Empty);
        }
        let Ok((layout, _)) = Layout::read_from_prefix(page) else { return Err(SuperblockError::Damaged) };
        if layout.magic != MAGIC || layout.crc.get() != crc32c(&layout.as_bytes()[CRC_RANGE]) {
            return Err(SuperblockError::Damaged);
        }
        if layout.format_version.get() != FORMAT_VERSION {
            return Err(SuperblockError::Version(layout.format_version.get()));
        }
        Ok(Self {
            directory_id: layout.directory_id.get(),
            shard_count: layout.shard_count.get(),
            epoch: Epoch(layout.epoch.get()),
            journal_file_count: layout.journal_file_count.get(),
            first_sequence: BlockSequence(layout.first_sequence.get()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        Superblock {
            directory_id: 77 << 100,
            shard_count: 1,
            epoch: Epoch(3),
            journal_file_count: 5,
            first_sequence: BlockSequence(42),
        }
    }

    #[test]
    fn a_copy_gives_back_what_was_written() {
        let mut page = vec![0xEE; PAGE_BYTES];
        sample().write(&mut page);
        assert_eq!(Superblock::read(&page), Ok(sample()));
    }

    #[test]
    fn golden_superblock() {
        let mut page = vec![0; PAGE_BYTES];
        sample().write(&mut page);
        let hex: String = page[..64].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "46425355504552310200000001000000000000000000000000000000d0040000\
             03000000050000002a00000000000000000000000000000000000000c8e22549"
        );
    }

    #[test]
    fn any_flipped_byte_is_found_and_zeros_are_told_apart() {
        let mut page = vec![0; PAGE_BYTES];
        assert_eq!(Superblock::read(&page), Err(SuperblockError::Empty));
        sample().write(&mut page);
        for position in 0..64 {
            page[position] ^= 4;
            assert_eq!(Superblock::read(&page), Err(SuperblockError::Damaged), "byte {position}");
            page[position] ^= 4;
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut page = vec![0; PAGE_BYTES];
        sample().write(&mut page);
        page[8] = 3;
        let sum = crc32c(&page[CRC_RANGE]);
        page[60..64].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(Superblock::read(&page), Err(SuperblockError::Version(3)));
    }
}

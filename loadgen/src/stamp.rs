//! The stamp at the front of every record: who sent it, its number, and when.
//!
//! ```text
//!  0        4            6           8          16             24        32      36
//!  | run id | connection | partition | sequence | intended ns  | sent ns | crc32c |
//!    u32      u16          u16         u64        u64            u64       u32
//! ```
//!
//! Little endian. Times are of the monotonic clock of the host that sent it. The sum covers bytes 0..32.

use protocol::crc::crc32c;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of a stamp, and so of the smallest record that can be sent.
pub(crate) const STAMP_BYTES: usize = 36;

/// The bytes that the sum covers.
const SUMMED_BYTES: usize = 32;

/// What a record says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Tells the records of this run from older ones.
    pub(crate) run_id: u32,
    /// Number of the connection that sent it.
    pub(crate) connection: u16,
    /// Number of the partition that it was sent to.
    pub(crate) partition: u16,
    /// Number of the record on its connection, from 0 and dense.
    pub(crate) sequence: u64,
    /// When it should have been sent.
    pub(crate) intended_ns: u64,
    /// When it was sent.
    pub(crate) sent_ns: u64,
}

/// A stamp as it lies in a record.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct StampBytes {
    run_id: U32,
    connection: U16,
    partition: U16,
    sequence: U64,
    intended_ns: U64,
    sent_ns: U64,
    sum: U32,
}

const _: () = assert!(size_of::<StampBytes>() == STAMP_BYTES);

impl Stamp {
    /// Writes it to the front of `record`, which is at least `STAMP_BYTES` long.
    pub(crate) fn write(&self, record: &mut [u8]) {
        let mut bytes = StampBytes {
            run_id: U32::new(self.run_id),
            connection: U16::new(self.connection),
            partition: U16::new(self.partition),
            sequence: U64::new(self.sequence),
            intended_ns: U64::new(self.intended_ns),
            sent_ns: U64::new(self.sent_ns),
            sum: U32::new(0),
        };
        bytes.sum = U32::new(crc32c(&bytes.as_bytes()[..SUMMED_BYTES]));
        record[..STAMP_BYTES].copy_from_slice(bytes.as_bytes());
    }

    /// Reads the stamp at the front of `record`; `None` if it is too short or the sum does not match.
    pub(crate) fn read(record: &[u8]) -> Option<Self> {
        let (bytes, _) = StampBytes::ref_from_prefix(record).ok()?;
        if bytes.sum.get() != crc32c(&record[..SUMMED_BYTES]) {
            return None;
        }
        Some(Self {
            run_id: bytes.run_id.get(),
            connection: bytes.connection.get(),
            partition: bytes.partition.get(),
            sequence: bytes.sequence.get(),
            intended_ns: bytes.intended_ns.get(),
            sent_ns: bytes.sent_ns.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp() -> Stamp {
        Stamp {
            run_id: 0xDEAD_BEEF,
            connection: 15,
            partition: 7,
            sequence: 1 << 40,
            intended_ns: 123_456_789_012,
            sent_ns: 123_456_789_999,
        }
    }

    #[test]
    fn stamp_gives_back_what_was_written() {
        let mut record = [0xAA; 64];
        stamp().write(&mut record);
        assert_eq!(Stamp::read(&record), Some(stamp()));
        assert_eq!(record[STAMP_BYTES..], [0xAA; 64 - STAMP_BYTES]);
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let mut record = [0; STAMP_BYTES];
        stamp().write(&mut record);
        for bit in 0..STAMP_BYTES * 8 {
            record[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Stamp::read(&record), None, "bit {bit}");
            record[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn short_record_has_no_stamp() {
        let mut record = [0; STAMP_BYTES];
        stamp().write(&mut record);
        assert_eq!(Stamp::read(&record[..STAMP_BYTES - 1]), None);
        assert_eq!(Stamp::read(&[]), None);
    }
}

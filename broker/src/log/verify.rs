//! Checking batches that come from disk, before anybody sees them.
//!
//! Each must carry its producer's checksum, the broker's for this partition, and the offset that is expected here. So
//! neither a flipped bit, nor a block that was written to another place, nor another partition's batch is ever served.

use protocol::batch::{BATCH_HEADER_BYTES, BatchError, BatchHeader, producer_sum};
use protocol::ids::{Handle, Offset};
use zerocopy::FromBytes;

/// What is expected of a run of batches.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Whose they are.
    pub partition: Handle,
    /// Offset of the first one.
    pub offset: Offset,
    /// Offsets may have gaps: the segment was compacted.
    pub has_gaps: bool,
}

/// Why a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckEnd {
    /// All bytes are whole batches.
    Complete,
    /// A batch begins that needs so many bytes.
    NeedsBytes(usize),
    /// What follows is no batch, or another one.
    Damaged,
}

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Bytes of whole, good batches at the front.
    pub bytes: usize,
    /// Offset behind them.
    pub next_offset: Offset,
    /// What follows.
    pub end: CheckEnd,
}

/// Checks the batches in `bytes` from the front on.
#[must_use]
pub fn check_stored(bytes: &[u8], expected: Expected) -> Checked {
    let mut checked = Checked { bytes: 0, next_offset: expected.offset, end: CheckEnd::Complete };
    while checked.bytes < bytes.len() {
        let rest = &bytes[checked.bytes..];
        match BatchHeader::peek(rest) {
            Ok(header) => {
                let length = header.batch_bytes();
                let is_in_order = if expected.has_gaps {
                    header.base_offset() >= checked.next_offset
                } else {
                    header.base_offset() == checked.next_offset
                };
                let is_good = is_in_order
                    && header.is_placed_in(expected.partition)
                    && header.producer_crc.get() == producer_sum(&rest[..length]);
                if !is_good {
                    checked.end = CheckEnd::Damaged;
                    return checked;
                }
                checked.bytes += length;
                checked.next_offset = header.next_offset();
            }
            Err(BatchError::Truncated) => {
                let header = BatchHeader::ref_from_prefix(rest).ok();
                let needed = header.map_or(BATCH_HEADER_BYTES, |(header, _)| header.batch_bytes());
                checked.end = CheckEnd::NeedsBytes(needed);
                return checked;
            }
            Err(_) => {
                checked.end = CheckEnd::Damaged;
                return checked;
            }
        }
    }
    checked
}

#[cfg(test)]
mod tests {
    use protocol::batch::{BatchBuilder, BrokerFields, Record};

    use super::*;

    fn batches(count: u64) -> Vec<u8> {
        let mut all = Vec::new();
        for n in 0..count {
            let mut builder = BatchBuilder::new();
            builder.push(&Record { value: &[n as u8; 100], ..Record::default() }).unwrap();
            let mut bytes = Vec::new();
            builder.finish_into(&mut bytes);
            let fields = BrokerFields { base_offset: Offset(n), appended_ms: 0, log_epoch: 1 };
            BatchHeader::place(&mut bytes, Handle(1), fields);
            all.extend_from_slice(&bytes);
        }
        all
    }

    fn expected(partition: u64, offset: u64) -> Expected {
        Expected { partition: Handle(partition), offset: Offset(offset), has_gaps: false }
    }

    #[test]
    fn whole_batches_are_counted_and_the_rest_says_what_it_needs() {
        let bytes = batches(3);
        let length = bytes.len() / 3;
        let all = check_stored(&bytes, expected(1, 0));
        assert_eq!((all.bytes, all.next_offset, all.end), (3 * length, Offset(3), CheckEnd::Complete));
        let cut = check_stored(&bytes[..2 * length + 130], expected(1, 0));
        assert_eq!((cut.bytes, cut.end), (2 * length, CheckEnd::NeedsBytes(length)));
        let cut = check_stored(&bytes[..2 * length + 10], expected(1, 0));
        assert_eq!((cut.bytes, cut.end), (2 * length, CheckEnd::NeedsBytes(BATCH_HEADER_BYTES)));
    }

    #[test]
    fn nothing_that_is_not_expected_here_passes() {
        let bytes = batches(2);
        let length = bytes.len() / 2;
        assert_eq!(check_stored(&bytes, expected(2, 0)).end, CheckEnd::Damaged, "another partition's");
        assert_eq!(check_stored(&bytes[length..], expected(1, 0)).end, CheckEnd::Damaged, "a later one");
        let gaps = Expected { has_gaps: true, ..expected(1, 0) };
        assert_eq!(check_stored(&bytes[length..], gaps).end, CheckEnd::Complete);
        for at in 0..length {
            let mut flipped = bytes[..length].to_vec();
            flipped[at] ^= 0x10;
            let found = check_stored(&flipped, expected(1, 0));
            // A longer length asks for more bytes, and is found out when they are there.
            let is_longer = matches!(found.end, CheckEnd::NeedsBytes(_)) && (8..12).contains(&at);
            assert!(found.end == CheckEnd::Damaged || is_longer, "byte {at}: {found:?}");
            assert_eq!(found.bytes, 0, "byte {at}");
        }
    }
}

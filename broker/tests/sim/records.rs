//! Records whose content says which record they are.
//!
//! A record's value is made from its number alone, so whatever comes back, from whichever run of the broker, can be
//! checked byte by byte without keeping it.

use protocol::batch::{BatchBuilder, Record};

/// Bits of a record's number that count; those above say how long it is.
const CLASS_SHIFT: u32 = 56;

/// How long a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// Some dozens of bytes.
    Small,
    /// Some pages.
    Medium,
    /// So that a frame of a few does not fit into an ordinary receive buffer.
    Large,
}

impl Size {
    /// The number of the `count`-th record, which is of this size.
    pub(crate) fn number(self, count: u64) -> u64 {
        (self as u64) << CLASS_SHIFT | count
    }
}

/// The part of a record's number that grows with every record made.
pub(crate) fn count_of(record: u64) -> u64 {
    record & ((1 << CLASS_SHIFT) - 1)
}

/// The value of a record: its number, then bytes that follow from it.
pub(crate) fn content(record: u64) -> Vec<u8> {
    let mut state = mix(record);
    let length = match record >> CLASS_SHIFT {
        0 => 8 + state % 100,
        1 => 300 + state % 3_000,
        _ => 30_000 + state % 40_000,
    };
    let mut bytes = record.to_le_bytes().to_vec();
    while (bytes.len() as u64) < length {
        state = mix(state);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length as usize);
    bytes
}

/// The number of the record that a value claims to be.
pub(crate) fn record_of(value: &[u8]) -> Option<u64> {
    value.first_chunk().map(|number| u64::from_le_bytes(*number))
}

/// One batch of these records.
pub(crate) fn batch_of(records: &[u64]) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for record in records {
        let value = content(*record);
        builder.push(&Record { value: &value, ..Record::default() }).expect("test records fit into a batch");
    }
    let mut bytes = Vec::new();
    builder.finish_into(&mut bytes);
    bytes
}

/// The finaliser of SplitMix64.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ value >> 31
}

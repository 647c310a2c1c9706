//! The key hash, by which every client places a key on the same partition.
//!
//! FNV-1a with 64 bits, then the 64-bit finaliser of MurmurHash3 (so that short keys spread over the high bits),
//! then a multiply-shift onto the number of partitions. Both are in the public domain; docs/PROTOCOL.md has
//! the vectors.

const FNV_OFFSET_BASIS: u64 = 0xCBF2_9CE4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01B3;

/// Hash of a key.
#[must_use]
pub fn key_hash(key: &[u8]) -> u64 {
    let mut hash = FNV_OFFSET_BASIS;
    for byte in key {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
    }
    hash = (hash ^ hash >> 33).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    hash = (hash ^ hash >> 33).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    hash ^ hash >> 33
}

/// The partition of a key, out of `partition_count` (which must not be 0).
#[must_use]
pub fn partition_of_key(key: &[u8], partition_count: u32) -> u32 {
    assert!(partition_count > 0);
    ((u128::from(key_hash(key)) * u128::from(partition_count)) >> 64) as u32
}

/// The tag hash that the record index carries: the low half of the key hash of the tag, 0 for no tag.
#[must_use]
pub fn tag_hash(tag: &[u8]) -> u32 {
    if tag.is_empty() { 0 } else { (key_hash(tag) as u32).max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors() {
        let vectors: [(&[u8], u64); 4] = [
            (b"", 0xEFD0_1F60_BA99_2926),
            (b"a", 0x82A2_A958_A9BE_CE5B),
            (b"order-42", 0x8E47_543C_313C_6386),
            (&[0, 255], 0xACB6_4F88_D28B_68B8),
        ];
        for (key, hash) in vectors {
            assert_eq!(key_hash(key), hash, "{key:?}");
        }
    }

    #[test]
    fn keys_spread_over_partitions() {
        let mut counts = [0_u32; 8];
        for n in 0..8000_u32 {
            counts[partition_of_key(format!("key-{n}").as_bytes(), 8) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}

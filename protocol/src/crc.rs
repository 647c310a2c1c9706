//! CRC-32C (Castagnoli), as RFC 3720 defines it.
//!
//! Over one piece, or over several without joining them.

use crc_fast::{CrcAlgorithm, Digest};

/// A CRC-32C that is built up piece by piece.
#[derive(Debug)]
pub struct Crc32c(Digest);

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

impl Crc32c {
    /// The sum of no bytes.
    #[must_use]
    pub fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    /// Adds the next bytes.
    #[must_use]
    pub fn update(mut self, bytes: &[u8]) -> Self {
        self.0.update(bytes);
        self
    }

    /// The sum of all bytes so far.
    #[must_use]
    pub fn finish(self) -> u32 {
        // The digest gives a 32-bit sum in 64 bits.
        self.0.finalize() as u32
    }
}

/// CRC-32C of one piece.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_vectors_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
    }

    #[test]
    fn pieces_give_the_sum_of_the_whole() {
        let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
        for cut in [0, 1, 7, 76, 4096, 5000] {
            let sum = Crc32c::new().update(&bytes[..cut]).update(&bytes[cut..]).finish();
            assert_eq!(sum, crc32c(&bytes));
        }
    }
}

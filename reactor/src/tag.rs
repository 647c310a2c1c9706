//! What a completion belongs to, as the 64 bits that travel through the kernel.
//!
//! Operations are named by their place in the table and its generation. What the reactor wants for itself has
//! generations that no operation reaches, so one look at the upper half tells them apart.

use crate::table::Key;

/// Generations of an operation's slot stay below this, so that they never look like a reserved value.
pub(crate) const GENERATIONS: u32 = 0xffff_fff0;

const ACCEPT: u32 = 0xffff_ffff;
const WAKE: u32 = 0xffff_fffe;
const CANCEL: u32 = 0xffff_fffd;

const _: () = assert!(GENERATIONS <= CANCEL);

/// ```text
/// 63            32 31             0
/// +---------------+---------------+
/// |  generation   |     slot      |   an operation of the table; generation < GENERATIONS
/// |  0xffff_ffff  |   listener    |   a multishot accept
/// |  0xffff_fffe  |       0       |   the poll that watches for wake-ups
/// |  0xffff_fffd  |       0       |   a cancellation's own answer
/// +---------------+---------------+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    Operation(Key),
    /// With the number of the listener.
    Accept(u32),
    Wake,
    Cancel,
}

impl Tag {
    pub(crate) fn encode(self) -> u64 {
        let (high, low) = match self {
            Self::Operation(key) => {
                assert!(key.generation < GENERATIONS);
                (key.generation, key.slot)
            }
            Self::Accept(listener) => (ACCEPT, listener),
            Self::Wake => (WAKE, 0),
            Self::Cancel => (CANCEL, 0),
        };
        (u64::from(high) << 32) | u64::from(low)
    }

    pub(crate) fn decode(bits: u64) -> Self {
        let (high, low) = ((bits >> 32) as u32, bits as u32);
        match high {
            ACCEPT => Self::Accept(low),
            WAKE => Self::Wake,
            CANCEL => Self::Cancel,
            generation => Self::Operation(Key { slot: low, generation }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_survive_the_way_through_the_kernel() {
        let key = Key { slot: u32::MAX, generation: GENERATIONS - 1 };
        for tag in [Tag::Operation(key), Tag::Accept(7), Tag::Wake, Tag::Cancel] {
            assert_eq!(Tag::decode(tag.encode()), tag);
        }
    }
}

//! How the one memory budget is shared out.
//!
//! ```text
//! |<------------------------ the pool ------------------------>|
//! | tails, up to here                  | cold reads | reserve  |
//! |  relief begins here ->|                                    |
//! ```
//!
//! The reserve is left to connections, journal blocks, snapshots and answers, so that a full broker can still be asked
//! and mended.

use reactor::memory::Pool;

use crate::limits::{MEMORY_RESERVE_BYTES_MAX, MEMORY_RESERVE_PART, WRITE_BEHIND_IN_FLIGHT_BYTES};

/// Bounds in bytes of what is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemoryPlan {
    /// Appends are taken while no more than this is in use.
    pub(super) tails_bytes: usize,
    /// Tails give memory back while more than this is in use.
    pub(super) relief_bytes: usize,
    /// What cold reads may use.
    pub(super) cold_bytes: usize,
    /// Write-behind in flight when memory is short.
    pub(super) write_behind_bytes: usize,
}

impl MemoryPlan {
    /// The plan for a pool.
    pub(super) fn of(pool: &Pool) -> Self {
        let capacity = pool.capacity_bytes();
        let part = (capacity / MEMORY_RESERVE_PART).min(MEMORY_RESERVE_BYTES_MAX);
        let tails_bytes = capacity - 2 * part;
        Self {
            tails_bytes,
            relief_bytes: tails_bytes - tails_bytes / 4,
            cold_bytes: part,
            write_behind_bytes: WRITE_BEHIND_IN_FLIGHT_BYTES[1],
        }
    }
}

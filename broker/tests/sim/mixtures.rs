//! What each seed's run is made of: its faults, its memory, its journal, and what its clients do.
//!
//! Each property of a run depends on the seed by a number of its own, so that a few dozen seeds meet most pairs.

use broker::journal::{Durability, JournalLayout};
use broker::limits::JOURNAL_FILE_BYTES_MIN;

use crate::actions::Mix;
use crate::disk::DiskFaults;
use crate::harness::RunConfig;
use crate::net::NetFaults;
use crate::world::{Safety, WorldConfig};

impl RunConfig {
    /// A run in which nothing that was acknowledged may be missing.
    pub(crate) fn of_seed(seed: u64) -> Self {
        let is_heavy = seed.is_multiple_of(2);
        let world = WorldConfig {
            disk: faults_of_seed(seed),
            net: NetFaults { reset_one_in: 600, split_one_in: 3, slow_one_in: 50 },
            clock_jump_one_in: 400,
            ..calm_of_seed(seed)
        };
        Self {
            world,
            clients: 4,
            mix: if is_heavy { Mix::HEAVY } else { Mix::LIGHT },
            operations: 300,
            lives: 8,
            room_bytes: (seed % 5 == 4).then_some(3 << 20),
        }
    }

    /// A run in which bytes rot and writes go astray without a word.
    pub(crate) fn rotten_of_seed(seed: u64) -> Self {
        let disk = DiskFaults {
            misdirect_one_in: if seed.is_multiple_of(2) { 150 } else { 0 },
            rot_one_in: 1_500,
            slow_one_in: 60,
            ..DiskFaults::default()
        };
        let world = WorldConfig { safety: Safety::Rot, disk, ..calm_of_seed(seed) };
        let strict = Self::of_seed(seed);
        Self { world, mix: Mix::HEAVY, lives: 6, operations: 200, room_bytes: None, ..strict }
    }
}

/// A small journal in some runs, little memory in some, a narrow window in some.
fn calm_of_seed(seed: u64) -> WorldConfig {
    let durability = if seed % 4 == 1 { Durability::SyncedWrites } else { Durability::WriteThenFlush };
    let file_count = if seed % 5 < 3 { 4 } else { 8 };
    WorldConfig {
        layout: JournalLayout { file_bytes: JOURNAL_FILE_BYTES_MIN, file_count },
        pool_bytes: if seed % 3 == 1 { 64 << 20 } else { 32 << 20 },
        window_bytes: if seed.is_multiple_of(3) { 64 << 10 } else { 1 << 20 },
        ..WorldConfig::calm(durability)
    }
}

fn faults_of_seed(seed: u64) -> DiskFaults {
    DiskFaults {
        write_error_one_in: if seed % 3 == 1 { 250 } else { 0 },
        short_write_one_in: if seed % 6 == 1 { 400 } else { 0 },
        flush_error_one_in: if seed % 3 == 2 { 250 } else { 0 },
        segment_read_error_one_in: if seed % 4 == 2 { 60 } else { 0 },
        other_read_error_one_in: if seed % 7 == 3 { 60 } else { 0 },
        no_space_one_in: if seed % 4 == 3 { 3 } else { 0 },
        slow_one_in: 60,
        stuck_one_in: if seed % 5 == 1 { 1_500 } else { 0 },
        ..DiskFaults::default()
    }
}

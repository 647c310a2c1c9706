//! The disk alone: write a block, flush, once more. With one block in flight its p50 stands beside what `fio` says
//! of write and fdatasync together (within 10 %), which shows that the floor's disk path costs nothing of its own:
//!
//! ```text
//! fio --name=floor --filename=fio.dat --size=256m --overwrite=1 --rw=write --bs=4k --direct=1 --fdatasync=1 \
//!     --ioengine=io_uring --iodepth=1 --time_based --runtime=5 --percentile_list=50:99:99.9
//! ```
//!
//! It sleeps in the kernel while it waits, as `fio` does.

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::disk::{
    self, Ack, BLOCK_ALIGNMENT, BLOCK_BYTES_TARGET, BLOCK_HEADER_BYTES, BLOCKS_IN_FLIGHT_MAX, DATA_FILE_NAME,
    Disk, DiskPlan,
};
use crate::ring::{self, Ring, Token};
use crate::waiting::Rest;
use crate::{Durability, FloorError};

/// Operations that are timed; the run ends early when it has so many.
const SAMPLES_MAX: usize = 4 << 20;

/// Writes blocks, makes them durable, and says how long that took
#[derive(clap::Args, Clone, Debug)]
pub struct DiskOptions {
    /// Length of a block; a multiple of 4096, up to 512 KiB
    #[arg(long, default_value_t = 4096)]
    pub bytes: usize,
    /// How long to go on
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
    /// How a block is made durable: flush or sync
    #[arg(long, value_enum, default_value_t = Durability::Flush)]
    pub durability: Durability,
    /// Blocks in flight
    #[arg(long, default_value_t = 1)]
    pub depth: usize,
    /// Core to pin the thread to; unpinned if absent
    #[arg(long)]
    pub core: Option<usize>,
    /// Directory of the data file, which is removed at the end; a fresh one below the current directory if absent
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Length of the data file, written round and round; a multiple of 4096
    #[arg(long, default_value_t = 256 << 20)]
    pub file_bytes: u64,
}

impl DiskOptions {
    fn check(&self) -> Result<(), FloorError> {
        if !(BLOCK_ALIGNMENT..=BLOCK_BYTES_TARGET).contains(&self.bytes)
            || !self.bytes.is_multiple_of(BLOCK_ALIGNMENT)
        {
            return Err(FloorError::Option("--bytes must be a multiple of 4096, up to 512 KiB"));
        }
        if self.durability == Durability::None {
            return Err(FloorError::Option(
                "--durability must be flush or sync where only the disk is measured",
            ));
        }
        if !(1..=BLOCKS_IN_FLIGHT_MAX).contains(&self.depth) {
            return Err(FloorError::Option("--depth must be 1 to 64"));
        }
        let file_bytes_min = (self.depth + 1) * self.bytes;
        if self.file_bytes < file_bytes_min as u64 || !self.file_bytes.is_multiple_of(BLOCK_ALIGNMENT as u64)
        {
            let rule = "--file-bytes must be a multiple of 4096, and more than the blocks in flight";
            return Err(FloorError::Option(rule));
        }
        Ok(())
    }
}

/// What was measured. Times run from the moment a block is handed over until it is known to be durable.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DiskReport {
    /// Blocks made durable.
    pub operations: usize,
    /// Blocks made durable per second.
    pub operations_per_second: f64,
    /// Median time, in microseconds.
    pub p50_us: f64,
    /// 99th percentile, in microseconds.
    pub p99_us: f64,
    /// 99.9th percentile, in microseconds.
    pub p999_us: f64,
}

impl fmt::Display for DiskReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operations, operations_per_second, p50_us, p99_us, p999_us } = self;
        write!(
            f,
            "{operations} operations, {operations_per_second:.0}/s, \
             p50 {p50_us:.1} us, p99 {p99_us:.1} us, p99.9 {p999_us:.1} us"
        )
    }
}

/// Makes the file, measures, and removes the file.
///
/// # Errors
/// An option out of bounds, or a system call that failed.
pub fn measure(options: &DiskOptions) -> Result<DiskReport, FloorError> {
    options.check()?;
    crate::pin(options.core)?;
    let made = disk::make_data_dir(options.data_dir.as_deref());
    let directory = made.map_err(FloorError::doing("make the data directory"))?;
    let path = directory.join(DATA_FILE_NAME);
    let disk = Disk::new(&DiskPlan {
        path: &path,
        durability: options.durability,
        file_bytes: options.file_bytes,
        frame_bytes_max: options.bytes,
        blocks_in_flight: options.depth,
    })?;
    // Never dropped: where the measurement fails, writes from its blocks may still be under way.
    let report = measure_blocks(options, &mut ManuallyDrop::new(disk));
    fs::remove_file(&path).map_err(FloorError::doing("remove the data file"))?;
    if options.data_dir.is_none() {
        fs::remove_dir(&directory).map_err(FloorError::doing("remove the data directory"))?;
    }
    report
}

fn measure_blocks(options: &DiskOptions, disk: &mut Disk) -> Result<DiskReport, FloorError> {
    let mut uring = ring::build().map_err(FloorError::doing("set up the ring"))?;
    let mut ring = Ring::new(&mut uring).map_err(FloorError::doing("register the ring"))?;
    let payload = vec![0x5A; options.bytes - BLOCK_HEADER_BYTES];
    let nobody = Ack { connection: 0, correlation_id: 0, offset: 0 };
    let mut begun_at = VecDeque::with_capacity(options.depth);
    let mut samples_ns = Vec::with_capacity(SAMPLES_MAX);
    let start = Instant::now();
    let end = start + Duration::from_secs(options.seconds);
    loop {
        while disk.in_flight_count() < options.depth
            && samples_ns.len() + begun_at.len() < SAMPLES_MAX
            && Instant::now() < end
        {
            begun_at.push_back(Instant::now());
            disk.append(&payload, nobody);
            disk.submit(&mut ring);
        }
        if begun_at.is_empty() {
            break;
        }
        ring.wait(Rest::Sleep).map_err(FloorError::doing("enter the ring"))?;
        while let Some(completion) = ring.take() {
            let outcome = completion.outcome();
            match completion.token {
                Token::Write(sequence) => disk.on_written(sequence, outcome)?,
                Token::Flush => disk.on_flushed(outcome)?,
                token => unreachable!("{token:?} was not handed over here"),
            }
        }
        while let Some(block) = disk.take_durable() {
            let begun: Instant = begun_at.pop_front().expect("each block has its begin");
            samples_ns.push(begun.elapsed().as_nanos() as u64);
            disk.release(block);
        }
        disk.submit(&mut ring);
    }
    Ok(report(samples_ns, start.elapsed()))
}

fn report(mut samples_ns: Vec<u64>, elapsed: Duration) -> DiskReport {
    samples_ns.sort_unstable();
    let at = |quantile| percentile_us(&samples_ns, quantile);
    DiskReport {
        operations: samples_ns.len(),
        operations_per_second: samples_ns.len() as f64 / elapsed.as_secs_f64(),
        p50_us: at(0.5),
        p99_us: at(0.99),
        p999_us: at(0.999),
    }
}

/// The smallest sample that is not exceeded by this share of them; 0 without samples.
fn percentile_us(sorted_ns: &[u64], quantile: f64) -> f64 {
    let rank = (sorted_ns.len() as f64 * quantile).ceil() as usize;
    sorted_ns.get(rank.saturating_sub(1)).map_or(0.0, |nanoseconds| *nanoseconds as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples: Vec<u64> = (1..=1_000).map(|us| us * 1_000).collect();
        assert_eq!(percentile_us(&samples, 0.5), 500.0);
        assert_eq!(percentile_us(&samples, 0.99), 990.0);
        assert_eq!(percentile_us(&samples, 0.999), 999.0);
        assert_eq!(percentile_us(&samples[..1], 0.999), 1.0);
        assert_eq!(percentile_us(&[], 0.5), 0.0);
    }
}

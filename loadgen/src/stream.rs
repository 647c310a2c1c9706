//! What commands of phases have in common: from their arguments to a load, its contents, and a journal that holds
//! all of it.

use crate::cli::StreamArgs;
use crate::latency::journal_bytes;
use crate::load::{Load, LoadError};
use crate::pace::CatchUp;
use crate::payload::Payload;
use crate::scenario::Scenario;

/// What is sent; rate and times are the phases'.
///
/// # Errors
/// When the file of lines cannot be read.
pub(crate) fn load(stream: &StreamArgs) -> Result<Load, LoadError> {
    let lines = lines(stream)?;
    Ok(Load {
        record_bytes: lines.map_or(stream.size as usize, |lines| lines.record_bytes_max()),
        batch_records: stream.batch as usize,
        connections: stream.connections as usize,
        in_flight_max: stream.in_flight as usize,
        topics: 1,
        partitions: stream.partitions.unwrap_or(stream.connections),
        rate_records_per_s: None,
        warmup_ns: 0,
        measure_ns: 0,
        bytes_max: u64::MAX,
        end_to_end: true,
    })
}

/// The lines that are sent, if a file was given.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn lines(stream: &StreamArgs) -> Result<Option<Payload>, LoadError> {
    let Some(path) = stream.payload.as_deref() else { return Ok(None) };
    let read = Payload::read_lines(path);
    read.map(Some).map_err(|error| LoadError::Unsuitable(format!("--payload {}: {error}", path.display())))
}

/// What a connection does that has fallen behind.
pub(crate) fn catch_up(stream: &StreamArgs) -> CatchUp {
    if stream.burst_after_stall { CatchUp::Burst } else { CatchUp::Paced }
}

/// Bytes of journal that hold all that a scenario writes.
///
/// # Errors
/// When its records do not fit into a batch.
pub(crate) fn journal_for(scenario: &Scenario) -> Result<u64, LoadError> {
    let (records, seconds) = scenario.extent();
    let mean_per_s = (records / seconds.max(1e-3)).ceil() as u64;
    let mut load = scenario.load.clone();
    if let Some(lines) = &scenario.lines {
        // What is written has the mean length, not the longest.
        load.record_bytes = lines.record_bytes_mean().ceil() as usize;
    }
    load.rate_records_per_s = Some(mean_per_s.max(1));
    load.measure_ns = (seconds * 1e9) as u64;
    journal_bytes(&load)
}

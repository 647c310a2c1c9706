//! What a sound directory gives, and what a damaged one may give instead.
//!
//! Everything is read over the wire, from offset 0 of every partition on. What comes must be the very bytes that the
//! sound directory gives; what does not come must be named.

use protocol::batch::Batch;
use protocol::ids::Handle;
use protocol::status::Status;

use crate::story::Ledger;
use crate::wire;
use crate::world::World;

/// Answers that one partition may take; more means that its end is never reached.
const FETCHES_MAX: u32 = 1_000;

/// What a start over a damaged directory came to; the later ones are worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// Everything is as it was.
    Same,
    /// The start was refused, with a reason.
    Refused,
    /// What is missing was named: exactly the offsets that do not come.
    Unreadable,
    /// Records at the end of some partition are missing, and nothing was said.
    Lost,
}

/// What a sound directory gives.
#[derive(Debug)]
pub(crate) struct Reference {
    topics: Vec<String>,
    partitions: Vec<Kept>,
}

/// The batches of one partition.
#[derive(Debug)]
struct Kept {
    handle: Handle,
    bytes: Vec<u8>,
    ends: Vec<BatchEnd>,
}

#[derive(Clone, Copy, Debug)]
struct BatchEnd {
    /// Offset behind its last record.
    next_offset: u64,
    /// Where the next one begins among the partition's bytes.
    at: usize,
}

impl Reference {
    /// Reads everything, and holds it against what was acknowledged, record by record.
    pub(crate) fn read(world: &mut World<'_>, ledger: &Ledger) -> Self {
        let topics = ledger.topics.iter().cloned().collect();
        let values = ledger.values.iter();
        let partitions = values.map(|(handle, values)| Kept::read(world, *handle, values)).collect();
        Self { topics, partitions }
    }
}

/// Reads everything again, from a shard that may have found damage.
///
/// # Errors
/// What is wrong, in words: other bytes, a hole, or no answer.
pub(crate) fn read_all(world: &mut World<'_>, reference: &Reference) -> Result<Verdict, String> {
    let listed = world.ask(&wire::list_topics()).and_then(|answer| answer.listed());
    if listed.as_ref() != Some(&reference.topics) {
        return Err(format!("the topics are {listed:?}"));
    }
    let mut verdict = Verdict::Same;
    for kept in &reference.partitions {
        verdict = verdict.max(kept.read_again(world)?);
    }
    Ok(verdict)
}

impl Kept {
    fn read(world: &mut World<'_>, handle: Handle, values: &[Vec<u8>]) -> Self {
        let mut kept = Self { handle, bytes: Vec::new(), ends: Vec::new() };
        while kept.end() < values.len() as u64 {
            let answer = world.ask(&wire::fetch(handle, kept.end())).expect("an answer");
            assert_eq!(answer.status, Status::Ok);
            assert!(!answer.payload.is_empty(), "{handle} ends at {}", kept.end());
            let mut rest = answer.payload;
            while !rest.is_empty() {
                let batch = Batch::check(rest).expect("a delivered batch is one");
                assert!(batch.header().is_placed_in(handle));
                let mut next_offset = kept.end();
                for record in batch.records().expect("nothing is compressed") {
                    assert_eq!(record.offset.0, next_offset);
                    assert!(record.value == values[next_offset as usize], "record {next_offset} of {handle}");
                    next_offset += 1;
                }
                kept.bytes.extend_from_slice(batch.bytes());
                kept.ends.push(BatchEnd { next_offset, at: kept.bytes.len() });
                rest = &rest[batch.bytes().len()..];
            }
        }
        kept
    }

    /// The offset behind the last record.
    fn end(&self) -> u64 {
        self.ends.last().map_or(0, |end| end.next_offset)
    }

    /// Reads the partition from its start to its end, around what is said to be unreadable.
    fn read_again(&self, world: &mut World<'_>) -> Result<Verdict, String> {
        let (mut next, mut verdict) = (0, Verdict::Same);
        for _ in 0..FETCHES_MAX {
            let here = || format!("partition {} from {next} on", self.handle);
            let Some(answer) = world.ask(&wire::fetch(self.handle, next)) else {
                return Err(format!("{}: no answer", here()));
            };
            match answer.status {
                Status::Ok => {
                    let fetched = answer.fetched().ok_or_else(|| format!("{}: what an answer?", here()))?;
                    let reached = self.follow(next, answer.payload)?;
                    if reached != fetched.next_offset || fetched.durable_end > self.end() {
                        return Err(format!("{}: the batches end at {reached}, and {fetched:?}", here()));
                    }
                    if reached >= fetched.durable_end {
                        let is_whole = fetched.durable_end == self.end();
                        return Ok(if is_whole { verdict } else { Verdict::Lost });
                    }
                    if reached == next {
                        return Err(format!("{}: nothing comes, and {fetched:?}", here()));
                    }
                    next = reached;
                }
                Status::Corrupt => {
                    let range = answer.unreadable().ok_or_else(|| format!("{}: which range?", here()))?;
                    let is_exact = range.partition == self.handle
                        && range.first == next
                        && (next + 1..=self.end()).contains(&range.behind);
                    if !is_exact {
                        return Err(format!("{}: {range:?}", here()));
                    }
                    (next, verdict) = (range.behind, Verdict::Unreadable);
                }
                other => return Err(format!("{}: {other:?}", here())),
            }
        }
        Err(format!("partition {}: the end is never reached", self.handle))
    }

    /// Where whole batches end that were delivered for the offset `next`, if they are the right ones.
    fn follow(&self, next: u64, delivered: &[u8]) -> Result<u64, String> {
        if delivered.is_empty() {
            return Ok(next);
        }
        let number = self.ends.partition_point(|end| end.next_offset <= next);
        let from = number.checked_sub(1).map_or(0, |before| self.ends[before].at);
        let to = from + delivered.len();
        let last = self.ends.binary_search_by_key(&to, |end| end.at);
        match last {
            Ok(last) if self.bytes[from..to] == *delivered => Ok(self.ends[last].next_offset),
            _ => Err(format!("partition {}: other bytes than were written from {next} on", self.handle)),
        }
    }
}

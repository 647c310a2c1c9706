//! The check of a fetch's answer.
//!
//! It holds batches that follow one another from where they were asked for, or the reason why it does not.

use protocol::ids::Handle;
use protocol::status::Status;

use crate::frames::{Received, each_batch};
use crate::model::{Damaged, Model};
use crate::report::{Violation, violation};

/// A fetch of `partition` from `from` on was answered; a client knew of `known_end` when it asked.
pub(crate) fn on_fetched(
    partition: Handle,
    from: u64,
    known_end: u64,
    frame: &Received,
    model: &mut Model,
) -> Result<(), Violation> {
    match frame.status {
        Status::Ok => {}
        Status::StaleHandle => return model.topics.on_told_gone(partition),
        Status::OffsetOutOfRange if from > known_end => return Ok(()),
        Status::OffsetOutOfRange => return model.on_overtaken(partition, from, frame.offsets()?.first),
        Status::Corrupt => {
            let detail = frame.offsets()?;
            return model.on_damaged(Damaged { partition, first: detail.first, behind: detail.behind }, from);
        }
        other => return violation(format!("a Fetch of {partition}:{from} was answered {other:?}")),
    }
    let mut next = from;
    let mut is_first = true;
    each_batch(partition, &frame.payload, |batch| {
        let (base, behind) = (batch.header().base_offset().0, batch.header().next_offset().0);
        let follows = if is_first { base <= next && next < behind } else { base == next };
        if !follows {
            return violation(format!(
                "{partition}: fetched a batch of {base} to {behind} where {next} is next"
            ));
        }
        (next, is_first) = (behind, false);
        model.on_delivered(partition, batch)
    })?;
    let told = frame.fetched_up_to()?;
    if told == next {
        Ok(())
    } else {
        violation(format!("a Fetch up to {next} says that it goes up to {told}"))
    }
}

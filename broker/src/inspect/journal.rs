//! The journal files: every page that begins with a valid block header, and what a cut would lose.
//!
//! Files are used again and again, so blocks of earlier uses lie behind the newest one. Which block is damage and which
//! is a leftover is not judged here: that is recovery's.

use std::collections::{BTreeMap, BTreeSet};

use protocol::batch::BatchHeader;
use protocol::ids::{Handle, Offset};

use super::disk::{Disk, Reader};
use super::problem::RecordRange;
use super::report::{BadBlock, JournalFile, Loss};
use crate::io::{File, IoError};
use crate::journal::block::{Block, BlockHeader, BlockKind, Entry, JournalIdentity};
use crate::journal::entry::{EntryKind, TopicCreated};
use crate::journal::{BlockSequence, Epoch};
use crate::limits::PAGE_BYTES;
use crate::shard::offline::Offline;

/// A page that begins with a valid header, and the block if all of it is good.
pub(super) struct Found<'a> {
    pub(super) position: u64,
    pub(super) header: BlockHeader,
    pub(super) block: Option<Block<'a>>,
}

/// Shows every valid header of a journal file but those inside good blocks.
///
/// # Errors
/// When the file cannot be read, and where.
pub(super) fn walk(
    disk: &Disk,
    number: u32,
    identity: JournalIdentity,
    mut visit: impl FnMut(&Found<'_>),
) -> Result<(), (u64, IoError)> {
    let mut reader = Reader::new(disk, File::Journal(number));
    let mut position = 0;
    while position + PAGE_BYTES as u64 <= reader.file_bytes() {
        let page = reader.at(position, PAGE_BYTES).map_err(|error| (position, error))?;
        let Some(header) = BlockHeader::read(page, identity) else {
            position += PAGE_BYTES as u64;
            continue;
        };
        let length = u64::from(header.block_length.get());
        let fits = position + length <= reader.file_bytes();
        let bytes =
            if fits { reader.at(position, length as usize).map_err(|error| (position, error))? } else { &[] };
        let block = Block::check(bytes, identity);
        let step = if block.is_some() { length } else { PAGE_BYTES as u64 };
        visit(&Found { position, header, block });
        position += step;
    }
    Ok(())
}

/// Lists what lies in one file; without an identity nothing but its length is known. `Err` beside it: where reading
/// ended.
pub(super) fn look_at(
    disk: &Disk,
    number: u32,
    identity: Option<JournalIdentity>,
) -> (JournalFile, Result<(), (u64, IoError)>) {
    let bytes = disk.bytes_of(File::Journal(number)).unwrap_or(0);
    let mut file = JournalFile { number, bytes, ..JournalFile::default() };
    let Some(identity) = identity else { return (file, Ok(())) };
    let walked = walk(disk, number, identity, |found| {
        let sequence = found.header.block_sequence();
        if found.block.is_none() {
            let epoch = Epoch(found.header.epoch.get());
            file.bad_blocks.push(BadBlock { position: found.position, sequence, epoch });
            return;
        }
        match found.header.kind.get() {
            kind if kind == BlockKind::Data as u16 => file.data_blocks += 1,
            kind if kind == BlockKind::Marker as u16 => file.marker_blocks += 1,
            _ => file.other_blocks += 1,
        }
        let (lowest, highest) = file.sequences.unwrap_or((sequence, sequence));
        file.sequences = Some((lowest.min(sequence), highest.max(sequence)));
    });
    (file, walked)
}

/// What one block behind a cut holds.
#[derive(Debug, Default)]
struct Contents {
    epoch: Epoch,
    is_readable: bool,
    /// Of each partition: the offset of its first record, and the one behind its last.
    records: BTreeMap<Handle, (Offset, Offset)>,
    topics_created: Vec<String>,
    other_entries: u64,
}

/// What is lost if the journal ends before the block `first`; `durable` is the last that is known to have been durable.
/// `offline` is the state before the cut.
///
/// Of blocks with the same sequence, and behind one of a later epoch, those of the older epoch are leftovers of a tail
/// that was cut before.
pub(super) fn loss_behind(
    disk: &Disk,
    identity: JournalIdentity,
    first: BlockSequence,
    durable: BlockSequence,
    offline: &Offline,
) -> Loss {
    let mut blocks: BTreeMap<BlockSequence, Contents> = BTreeMap::new();
    for number in disk.journal_numbers() {
        // What cannot be read is lost and not known.
        let _ = walk(disk, number, identity, |found| {
            let sequence = found.header.block_sequence();
            let epoch = Epoch(found.header.epoch.get());
            let is_newest = blocks.get(&sequence).is_none_or(|known| known.epoch <= epoch);
            if sequence >= first && is_newest {
                blocks.insert(sequence, contents_of(found));
            }
        });
    }
    let mut loss = Loss { first, last: durable.max(first), ..Loss::default() };
    let (mut epoch, mut partitions) = (Epoch(0), BTreeMap::new());
    for (sequence, contents) in blocks {
        if contents.epoch < epoch {
            continue;
        }
        epoch = contents.epoch;
        loss.last = loss.last.max(sequence);
        loss.readable_blocks += u64::from(contents.is_readable);
        loss.topics_created.extend(contents.topics_created);
        loss.other_entries += contents.other_entries;
        for (handle, (from, end)) in contents.records {
            let range = partitions.entry(handle).or_insert((from, end));
            *range = (range.0.min(from), range.1.max(end));
        }
    }
    loss.partitions =
        partitions.into_iter().map(|(handle, range)| record_range(handle, range, offline)).collect();
    loss
}

/// The records of a partition that the state does not have any more.
fn record_range(handle: Handle, (from, end): (Offset, Offset), offline: &Offline) -> RecordRange {
    let kept_end = offline.partition(handle).map(|partition| partition.appended_end());
    let topic = offline.topic_name(handle).map(str::to_owned);
    RecordRange { topic, handle, from: kept_end.unwrap_or(from), end }
}

fn contents_of(found: &Found<'_>) -> Contents {
    let epoch = Epoch(found.header.epoch.get());
    let mut contents = Contents { epoch, is_readable: found.block.is_some(), ..Contents::default() };
    for entry in found.block.iter().flat_map(|block| block.entries()) {
        contents.add(&entry);
    }
    contents
}

impl Contents {
    fn add(&mut self, entry: &Entry<'_>) {
        let subject = entry.header.subject.get();
        match entry.header.kind() {
            Some(EntryKind::Append) => {
                let mut rest = entry.body;
                while let Ok(header) = BatchHeader::peek(rest) {
                    let (from, end) = (header.base_offset(), header.next_offset());
                    let range = self.records.entry(Handle(subject)).or_insert((from, end));
                    *range = (range.0.min(from), range.1.max(end));
                    rest = &rest[header.batch_bytes()..];
                }
            }
            Some(EntryKind::CreateTopic) => {
                let created = TopicCreated::read(subject, entry.body);
                self.topics_created.extend(created.map(|created| created.name.to_owned()));
            }
            _ => self.other_entries += 1,
        }
    }
}

/// Places of all valid headers with this sequence or a higher one, wherever they are but inside good blocks before it.
///
/// # Errors
/// When a file cannot be read.
pub(super) fn headers_from(
    disk: &Disk,
    identity: JournalIdentity,
    first: BlockSequence,
) -> Result<BTreeSet<(u32, u64)>, (u32, u64, IoError)> {
    let mut places = BTreeSet::new();
    for number in disk.journal_numbers() {
        let mut reader = Reader::new(disk, File::Journal(number));
        let mut position = 0;
        while position + PAGE_BYTES as u64 <= reader.file_bytes() {
            let failed = |error| (number, position, error);
            let page = reader.at(position, PAGE_BYTES).map_err(failed)?;
            let mut step = PAGE_BYTES as u64;
            if let Some(header) = BlockHeader::read(page, identity) {
                if header.block_sequence() >= first {
                    places.insert((number, position));
                } else {
                    step = good_length(&mut reader, position, &header, identity);
                }
            }
            position += step;
        }
    }
    Ok(places)
}

/// Length of a block if all of it is good, else of its first page.
fn good_length(
    reader: &mut Reader<'_>,
    position: u64,
    header: &BlockHeader,
    identity: JournalIdentity,
) -> u64 {
    let length = u64::from(header.block_length.get());
    let bytes = if position + length <= reader.file_bytes() {
        reader.at(position, length as usize).ok()
    } else {
        None
    };
    let is_good = bytes.is_some_and(|bytes| Block::check(bytes, identity).is_some());
    if is_good { length } else { PAGE_BYTES as u64 }
}

/// The highest epoch that any valid header of the journal carries.
pub(super) fn highest_epoch(disk: &Disk, identity: JournalIdentity) -> Epoch {
    let mut highest = Epoch(0);
    for number in disk.journal_numbers() {
        // A file that cannot be read is refused before an epoch is chosen.
        let _ = walk(disk, number, identity, |found| {
            highest = highest.max(Epoch(found.header.epoch.get()));
        });
    }
    highest
}

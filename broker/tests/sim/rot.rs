//! Where bits rot and misdirected writes land: damage that no error tells of.
//!
//! The choice leaves out the one window that docs/FORMAT.md names: the newest blocks of the journal, of which no later
//! block says yet that they were durable. Damage there looks like a torn tail, and nobody could tell.

use std::collections::BTreeMap;

use broker::io::File;
use broker::limits::{JOURNAL_BLOCKS_IN_FLIGHT_MAX, PAGE_BYTES};
use rand::RngExt;

use crate::blocks::header_of;
use crate::image::Image;
use crate::luck::Luck;

/// Blocks at the journal's end that do not rot: what may be in flight, and as much again that is evidence.
const SPARED_BLOCKS: u64 = 2 * JOURNAL_BLOCKS_IN_FLIGHT_MAX as u64 + 2;
/// Tries to find a page that holds something.
const TRIES_MAX: u32 = 16;

/// Bytes that are not what was written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) file: File,
    pub(crate) position: usize,
    pub(crate) bytes: usize,
}

pub(crate) fn is_segment(file: File) -> bool {
    matches!(file, File::Segment(_))
}

pub(crate) fn is_snapshot(file: File) -> bool {
    matches!(file, File::Snapshot(_))
}

/// A byte that may rot: of a segment mostly, else of a snapshot, the journal or the superblock.
pub(crate) fn place_to_rot(files: &BTreeMap<File, Image>, luck: &mut Luck) -> Option<(File, usize)> {
    match luck.faults.random_range(0..10) {
        0 => byte_of_content(files, |file| file == File::Superblock, luck),
        1 => byte_of_settled_block(files, luck),
        2 | 3 => byte_of_content(files, is_snapshot, luck),
        _ => byte_of_content(files, is_segment, luck),
    }
}

/// Where a write of so many bytes can land instead: any file but the journal.
pub(crate) fn wrong_place(
    files: &BTreeMap<File, Image>,
    bytes: usize,
    luck: &mut Luck,
) -> Option<(File, usize)> {
    let fits = |file: File, image: &Image| !matches!(file, File::Journal(_)) && image.bytes() >= bytes;
    let fitting: Vec<(File, usize)> = files
        .iter()
        .filter(|(file, image)| fits(**file, image))
        .map(|(file, image)| (*file, image.bytes()))
        .collect();
    if fitting.is_empty() {
        return None;
    }
    let (file, file_bytes) = fitting[luck.faults.random_range(0..fitting.len())];
    let pages = (file_bytes - bytes) / PAGE_BYTES;
    Some((file, PAGE_BYTES * luck.faults.random_range(0..=pages)))
}

/// A byte of a page that holds something, in one of these files.
fn byte_of_content(
    files: &BTreeMap<File, Image>,
    is_wanted: impl Fn(File) -> bool,
    luck: &mut Luck,
) -> Option<(File, usize)> {
    let wanted: Vec<(File, &Image)> = files
        .iter()
        .filter(|(file, image)| is_wanted(**file) && image.bytes() >= PAGE_BYTES)
        .map(|(file, image)| (*file, image))
        .collect();
    if wanted.is_empty() {
        return None;
    }
    let (file, image) = wanted[luck.faults.random_range(0..wanted.len())];
    let pages = image.bytes() / PAGE_BYTES;
    for _ in 0..TRIES_MAX {
        let page = PAGE_BYTES * luck.faults.random_range(0..pages);
        if image.durable()[page..page + PAGE_BYTES].iter().any(|byte| *byte != 0) {
            return Some((file, page + luck.faults.random_range(0..PAGE_BYTES)));
        }
    }
    None
}

/// A byte of a journal block that is known to have been durable by what lies behind it.
fn byte_of_settled_block(files: &BTreeMap<File, Image>, luck: &mut Luck) -> Option<(File, usize)> {
    let mut blocks = Vec::new();
    for (file, image) in files.iter().filter(|(file, _)| matches!(file, File::Journal(_))) {
        for (number, page) in image.durable().chunks(PAGE_BYTES).enumerate() {
            if let Some(header) = header_of(page) {
                let position = number * PAGE_BYTES;
                let bytes = (header.block_length.get() as usize).min(image.bytes() - position);
                blocks.push((header.sequence.get(), *file, position, bytes));
            }
        }
    }
    let newest = blocks.iter().map(|(sequence, ..)| *sequence).max()?;
    blocks.retain(|(sequence, _, _, bytes)| *bytes > 0 && *sequence + SPARED_BLOCKS <= newest);
    if blocks.is_empty() {
        return None;
    }
    let (_, file, position, bytes) = blocks[luck.faults.random_range(0..blocks.len())];
    Some((file, position + luck.faults.random_range(0..bytes)))
}

//! The durable state of a shard: what entries change.
//!
//! Live traffic and replay call the same `apply`, so recovery is the normal path.

use protocol::ids::Handle;
use reactor::memory::Pool;

use crate::catalog::Catalog;
use crate::journal::block::Entry;
use crate::journal::entry::{EntryKind, TopicCreated, topic_of_subject};
use crate::journal::recovery::RecoveryError;
use crate::partition::{PartitionTable, Subscriber};
use protocol::ids::TopicKey;

/// Topics and partitions.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) catalog: Catalog,
    pub(super) partitions: PartitionTable,
}

impl State {
    /// Applies an entry read from the journal.
    ///
    /// # Errors
    /// `OutOfMemory`, or `UnknownEntry` for what this version did not write.
    pub(super) fn replay(&mut self, pool: &Pool, entry: Entry<'_>) -> Result<(), RecoveryError> {
        let unknown = RecoveryError::UnknownEntry(entry.lsn.sequence().0);
        let subject = entry.header.subject.get();
        match entry.header.kind().ok_or(unknown)? {
            EntryKind::Append => {
                let partition = self.partitions.get_mut(Handle(subject)).ok_or(unknown)?;
                if !partition.reserve(pool, entry.body.len()) {
                    return Err(RecoveryError::OutOfMemory);
                }
                partition.apply_append(entry.body);
                let end = partition.appended_end();
                partition.on_durable(end);
            }
            EntryKind::CreateTopic => {
                let created = TopicCreated::read(subject, entry.body).ok_or(unknown)?;
                self.apply_create(&created);
            }
            EntryKind::DeleteTopic => {
                let _ = self.apply_delete(topic_of_subject(subject));
            }
        }
        Ok(())
    }

    pub(super) fn apply_create(&mut self, created: &TopicCreated<'_>) {
        self.catalog.apply_create(created);
        self.partitions.apply_create(created.key, created.partition_count);
    }

    /// Removes a topic and gives the cursors that read it.
    pub(super) fn apply_delete(&mut self, key: TopicKey) -> Vec<Subscriber> {
        self.catalog.apply_delete(key);
        self.partitions.apply_delete(key)
    }
}

//! A replay without a broker: the state that a data directory holds, for whoever only looks at it.
//!
//! It is built from the same entries by the same code as that of a start. Nothing is written behind, so the pool must
//! hold every record that the replay brings.

use std::collections::BTreeMap;

use protocol::ids::{Handle, TopicKey};
use reactor::memory::Pool;

use super::Builder;
use super::state::State;
use crate::catalog::Topic;
use crate::io::File;
use crate::journal::BlockSequence;
use crate::journal::block::Entry;
use crate::journal::recovery::{RecoveryError, Replay};
use crate::partition::Partition;

/// The state of a shard, as far as it was replayed.
#[derive(Debug)]
pub(crate) struct Offline {
    state: State,
    pool: Pool,
    files: BTreeMap<File, u64>,
}

impl Offline {
    /// An empty state over these files.
    pub(crate) fn new(files: BTreeMap<File, u64>, pool: Pool) -> Self {
        Self { state: State::new(&files), pool, files }
    }

    /// All topics, in the order of their slots.
    pub(crate) fn topics(&self) -> impl Iterator<Item = &Topic> {
        self.state.catalog.iter()
    }

    /// The partitions of a topic that is there.
    pub(crate) fn partitions_of(&self, topic: TopicKey) -> &[Partition] {
        self.state.partitions.in_slot(usize::from(topic.slot))
    }

    /// The partition, if its topic is there.
    pub(crate) fn partition(&self, handle: Handle) -> Option<&Partition> {
        self.state.partitions.get(handle)
    }

    /// The name of a partition's topic, if that is there.
    pub(crate) fn topic_name(&self, handle: Handle) -> Option<&str> {
        self.state.catalog.get(handle.topic()).map(|topic| &*topic.name)
    }

    fn builder(&mut self) -> Builder<'_> {
        Builder { state: &mut self.state, pool: &self.pool, files: &self.files }
    }
}

impl Replay for Offline {
    fn reset(&mut self) {
        self.builder().reset();
    }

    fn restore(&mut self, entry: Entry<'_>) -> Result<(), RecoveryError> {
        self.builder().restore(entry)
    }

    fn replay(&mut self, entry: Entry<'_>) -> Result<(), RecoveryError> {
        self.builder().replay(entry)
    }

    fn finish(&mut self, next: BlockSequence) -> Result<(), RecoveryError> {
        self.builder().finish(next)
    }
}

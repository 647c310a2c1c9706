//! What the model knows of topics.
//!
//! Each name has at most one change under way. An acknowledged change stands for ever; one whose answer was lost is
//! unclear until somebody asks, and what was then answered stands too, for an answer is given only when the state
//! that it tells of is durable.

use std::collections::{BTreeMap, BTreeSet};

use protocol::ids::Handle;
use protocol::status::Status;

use crate::report::{Violation, violation};
use crate::retention::Settings;

/// Whether a topic is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    Absent,
    Creating,
    Present,
    Deleting,
    /// The answer to the last change was lost.
    Unclear,
}

#[derive(Debug)]
struct Topic {
    presence: Presence,
    /// Grows with every change: an answer to a question from before the change proves nothing.
    version: u64,
    /// Of the topic that is there or may be; empty if they were never told.
    partitions: Vec<Handle>,
    /// What the last one to create it asked for.
    settings: Settings,
}

/// All names ever used.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    by_name: BTreeMap<String, Topic>,
    /// Handles of topics that were created: none is ever given to another.
    used: BTreeSet<Handle>,
    /// Handles of which a client was told that they are gone.
    told_gone: BTreeSet<Handle>,
    /// The settings of each partition's topic.
    settings: BTreeMap<Handle, Settings>,
    pub(crate) created: u64,
    pub(crate) deleted: u64,
}

impl Topics {
    pub(crate) fn presence(&self, name: &str) -> Presence {
        self.by_name.get(name).map_or(Presence::Absent, |topic| topic.presence)
    }

    pub(crate) fn version(&self, name: &str) -> u64 {
        self.by_name.get(name).map_or(0, |topic| topic.version)
    }

    /// All names ever used.
    pub(crate) fn names(&self) -> Vec<String> {
        self.by_name.keys().cloned().collect()
    }

    /// The names of topics that are certainly there.
    pub(crate) fn present(&self) -> Vec<&str> {
        let present = self.by_name.iter().filter(|(_, topic)| topic.presence == Presence::Present);
        present.map(|(name, _)| name.as_str()).collect()
    }

    /// The partitions of topics that are certainly there.
    pub(crate) fn partitions(&self) -> Vec<Handle> {
        let present = self.by_name.values().filter(|topic| topic.presence == Presence::Present);
        present.flat_map(|topic| topic.partitions.iter().copied()).collect()
    }

    /// The partitions that a topic has, as far as they were told.
    pub(crate) fn partitions_of(&self, name: &str) -> &[Handle] {
        self.by_name.get(name).map(|topic| topic.partitions.as_slice()).unwrap_or_default()
    }

    /// What a partition's topic was created with.
    pub(crate) fn settings_of(&self, partition: Handle) -> Settings {
        self.settings.get(&partition).copied().unwrap_or_default()
    }

    pub(crate) fn begin_create(&mut self, name: &str, settings: Settings) {
        self.change(name, Presence::Creating).settings = settings;
    }

    pub(crate) fn begin_delete(&mut self, name: &str) {
        self.change(name, Presence::Deleting);
    }

    /// The connection that asked for a change is gone.
    pub(crate) fn on_lost(&mut self, name: &str) {
        self.change(name, Presence::Unclear);
    }

    /// Every connection is gone.
    pub(crate) fn on_all_lost(&mut self) {
        for name in self.names() {
            if matches!(self.presence(&name), Presence::Creating | Presence::Deleting) {
                self.on_lost(&name);
            }
        }
    }

    /// A create was acknowledged.
    pub(crate) fn on_created(
        &mut self,
        name: &str,
        partitions: Vec<Handle>,
        partition_count: u32,
    ) -> Result<(), Violation> {
        if partitions.len() != partition_count as usize {
            return violation(format!(
                "{name} has {} partitions instead of {partition_count}",
                partitions.len()
            ));
        }
        self.take_handles(name, &partitions)?;
        self.created += 1;
        self.change(name, Presence::Present).partitions = partitions;
        Ok(())
    }

    /// A create was refused.
    pub(crate) fn on_create_refused(&mut self, name: &str, status: Status) -> Result<(), Violation> {
        if !status.is_retryable() {
            return violation(format!("{name} is not there, and to create it was refused: {status:?}"));
        }
        self.change(name, Presence::Absent);
        Ok(())
    }

    /// A delete was acknowledged.
    pub(crate) fn on_deleted(&mut self, name: &str) {
        self.deleted += 1;
        self.change(name, Presence::Absent).partitions.clear();
    }

    /// A delete was refused.
    pub(crate) fn on_delete_refused(&mut self, name: &str, status: Status) -> Result<(), Violation> {
        if !status.is_retryable() {
            return violation(format!("{name} is there, and to delete it was refused: {status:?}"));
        }
        self.change(name, Presence::Present);
        Ok(())
    }

    /// Somebody asked about a topic when its version was `version`, and this is the answer.
    pub(crate) fn on_described(
        &mut self,
        name: &str,
        version: u64,
        partitions: Option<Vec<Handle>>,
    ) -> Result<(), Violation> {
        if self.version(name) != version {
            return Ok(());
        }
        match (self.presence(name), partitions) {
            (Presence::Absent, Some(_)) => violation(format!("{name} is gone or never was, and is there")),
            (Presence::Present, None) => violation(format!("{name} was created, and is not there")),
            (Presence::Present, Some(found)) => self.check_same(name, &found),
            (Presence::Unclear, None) => {
                self.change(name, Presence::Absent).partitions.clear();
                Ok(())
            }
            (Presence::Unclear, Some(found)) => {
                self.check_same(name, &found)?;
                self.take_handles(name, &found)?;
                self.change(name, Presence::Present).partitions = found;
                Ok(())
            }
            (Presence::Absent, None) | (Presence::Creating | Presence::Deleting, _) => Ok(()),
        }
    }

    /// A topic's description says what its creator asked for.
    pub(crate) fn check_settings(&self, name: &str, found: Settings) -> Result<(), Violation> {
        let Some(topic) = self.by_name.get(name) else { return Ok(()) };
        if topic.settings.are_repeated_by(&found) {
            return Ok(());
        }
        violation(format!("{name} was created with {:?} and has {found:?}", topic.settings))
    }

    /// Checks a list of all topics, taken while nobody changes any.
    pub(crate) fn check_listed(&self, listed: &[String]) -> Result<(), Violation> {
        for (name, topic) in &self.by_name {
            let is_listed = listed.contains(name);
            match topic.presence {
                Presence::Present if !is_listed => {
                    return violation(format!("{name} was created, and is not listed"));
                }
                Presence::Absent if is_listed => {
                    return violation(format!("{name} was deleted, and is listed"));
                }
                _ => {}
            }
        }
        match listed.iter().find(|name| !self.by_name.contains_key(*name)) {
            Some(phantom) => violation(format!("{phantom} is listed, and nobody ever created it")),
            None => Ok(()),
        }
    }

    /// Somebody was told that a partition is not there: so it was deleted, and stays so.
    pub(crate) fn on_told_gone(&mut self, partition: Handle) -> Result<(), Violation> {
        self.told_gone.insert(partition);
        if self.partitions().contains(&partition) {
            return violation(format!(
                "partition {partition} is there, and a client was told that it is not"
            ));
        }
        Ok(())
    }

    /// The handles of a topic are its own, and no earlier topic's.
    fn take_handles(&mut self, name: &str, partitions: &[Handle]) -> Result<(), Violation> {
        let known = self.partitions_of(name) == partitions;
        let settings = self.by_name.get(name).map(|topic| topic.settings).unwrap_or_default();
        for partition in partitions {
            self.settings.insert(*partition, settings);
            if !self.used.insert(*partition) && !known {
                return violation(format!("handle {partition} of {name} was given away before"));
            }
            if self.told_gone.contains(partition) {
                return violation(format!(
                    "a client was told that {partition} of {name} is gone, and it is back"
                ));
            }
        }
        Ok(())
    }

    fn check_same(&self, name: &str, found: &[Handle]) -> Result<(), Violation> {
        let known = self.partitions_of(name);
        if known.is_empty() || known == found {
            return Ok(());
        }
        violation(format!("{name} had the partitions {known:?} and has {found:?}"))
    }

    fn change(&mut self, name: &str, presence: Presence) -> &mut Topic {
        let unused = || Topic {
            presence: Presence::Absent,
            version: 0,
            partitions: Vec::new(),
            settings: Settings::default(),
        };
        let topic = self.by_name.entry(name.to_owned()).or_insert_with(unused);
        topic.presence = presence;
        topic.version += 1;
        topic
    }
}

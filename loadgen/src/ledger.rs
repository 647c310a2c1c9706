//! What became of every record of a run, in three bits each: acknowledged, refused, seen by the consumer.
//!
//! Producers and consumer of one process write it together, so that after the drain every record is accounted for:
//! an acknowledged one must have been seen once, a refused one never, an unknown one at most once.

use crate::checker::Findings;

const BITS: u64 = u64::BITS as u64;

#[derive(Clone, Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn get(&self, index: u64) -> bool {
        self.0.get((index / BITS) as usize).is_some_and(|word| word >> (index % BITS) & 1 == 1)
    }

    /// Sets a bit; gives whether it was set before.
    fn set(&mut self, index: u64) -> bool {
        let word = (index / BITS) as usize;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let mask = 1 << (index % BITS);
        let was_set = self.0[word] & mask != 0;
        self.0[word] |= mask;
        was_set
    }
}

#[derive(Clone, Debug, Default)]
struct Sender {
    acked: Bits,
    refused: Bits,
    seen: Bits,
    sent_records: u64,
}

/// How a consumer met a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sighting {
    /// For the first time.
    First,
    /// Once more.
    Again,
    /// Nobody sent it, or it was refused.
    Phantom,
}

/// The records of all connections, by connection and sequence.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    senders: Vec<Sender>,
    /// Acknowledged, and not seen yet.
    missing_records: u64,
    seen_records: u64,
    duplicated_records: u64,
    phantom_records: u64,
}

impl Ledger {
    /// An empty one, with room for so many records of each connection before it has to grow.
    pub(crate) fn new(connections: usize, records_each: u64) -> Self {
        let words = (records_each / BITS + 1) as usize;
        let bits = || Bits(Vec::with_capacity(words));
        let sender = |_| Sender { acked: bits(), refused: bits(), seen: bits(), sent_records: 0 };
        Self { senders: (0..connections).map(sender).collect(), ..Self::default() }
    }

    /// A connection sends the next `records`.
    pub(crate) fn on_sent(&mut self, connection: usize, records: u32) {
        self.senders[connection].sent_records += u64::from(records);
    }

    /// Records from `first` on were answered.
    pub(crate) fn on_answer(&mut self, connection: usize, first: u64, records: u32, is_ok: bool) {
        let sender = &mut self.senders[connection];
        for sequence in first..first + u64::from(records) {
            if is_ok {
                sender.acked.set(sequence);
                self.missing_records += u64::from(!sender.seen.get(sequence));
            } else {
                sender.refused.set(sequence);
            }
        }
    }

    /// A consumer met a record.
    pub(crate) fn on_seen(&mut self, connection: u16, sequence: u64) -> Sighting {
        let sender = self.senders.get_mut(usize::from(connection));
        let Some(sender) = sender.filter(|sender| sequence < sender.sent_records) else {
            self.phantom_records += 1;
            return Sighting::Phantom;
        };
        if sender.seen.set(sequence) {
            self.duplicated_records += 1;
            return Sighting::Again;
        }
        self.seen_records += 1;
        self.missing_records -= u64::from(sender.acked.get(sequence));
        Sighting::First
    }

    /// Records that were acknowledged and are still to be met.
    pub(crate) fn missing_records(&self) -> u64 {
        self.missing_records
    }

    /// Records that were met, each counted once.
    #[cfg(test)]
    pub(crate) fn seen_records(&self) -> u64 {
        self.seen_records
    }

    /// Accounts for all. What was found corrupted or out of order is not known here.
    pub(crate) fn findings(&self) -> Findings {
        let mut findings = Findings {
            read_records: self.seen_records + self.duplicated_records + self.phantom_records,
            duplicated_records: self.duplicated_records,
            phantom_records: self.phantom_records,
            ..Findings::default()
        };
        for sender in &self.senders {
            findings.sent_records += sender.sent_records;
            for sequence in 0..sender.sent_records {
                let is_seen = sender.seen.get(sequence);
                if sender.acked.get(sequence) {
                    findings.acked_records += 1;
                    findings.lost_records += u64::from(!is_seen);
                } else if sender.refused.get(sequence) {
                    findings.refused_records += 1;
                    findings.phantom_records += u64::from(is_seen);
                } else {
                    findings.unknown_records += 1;
                    findings.unknown_stored_records += u64::from(is_seen);
                }
            }
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_is_accounted_for() {
        let mut ledger = Ledger::new(2, 10);
        ledger.on_sent(0, 100);
        ledger.on_sent(1, 3);
        ledger.on_answer(0, 0, 98, true);
        ledger.on_answer(1, 0, 1, false);
        for sequence in 0..97 {
            assert_eq!(ledger.on_seen(0, sequence), Sighting::First);
        }
        assert_eq!(ledger.on_seen(0, 5), Sighting::Again);
        assert_eq!(ledger.on_seen(0, 99), Sighting::First, "unknown, and stored");
        assert_eq!(ledger.on_seen(0, 100), Sighting::Phantom);
        assert_eq!(ledger.on_seen(7, 0), Sighting::Phantom);
        assert_eq!(ledger.on_seen(1, 0), Sighting::First, "refused, and stored");
        let expected = Findings {
            sent_records: 103,
            acked_records: 98,
            refused_records: 1,
            unknown_records: 4,
            unknown_stored_records: 1,
            read_records: 102,
            lost_records: 1,
            duplicated_records: 1,
            phantom_records: 3,
            ..Findings::default()
        };
        assert_eq!(ledger.findings(), expected);
        assert_eq!((ledger.seen_records(), ledger.missing_records()), (99, 1));
    }
}

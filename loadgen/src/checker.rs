//! Accounts for every record of a run by its content: what was acknowledged must be there once, where the answer
//! said, in order, and byte for byte.
//!
//! Pure: outcomes go in, then all stored records, partition by partition in the order of their offsets; findings come
//! out. A record with an unknown outcome may be there once or not at all; a refused one must not.

use protocol::ids::Offset;
use serde::{Deserialize, Serialize};

use crate::connection::RecordOutcome;
use crate::content::{ContentRules, Identity};
use crate::stamp::Stamp;

/// What was found, in records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Findings {
    /// Sent, whatever the answer.
    pub(crate) sent_records: u64,
    /// Acknowledged.
    pub(crate) acked_records: u64,
    /// Refused.
    pub(crate) refused_records: u64,
    /// Never answered.
    pub(crate) unknown_records: u64,
    /// Never answered, and stored.
    pub(crate) unknown_stored_records: u64,
    /// Read back.
    pub(crate) read_records: u64,
    /// Acknowledged, and not there.
    pub(crate) lost_records: u64,
    /// There once more.
    pub(crate) duplicated_records: u64,
    /// Behind a later one of the same connection, or at another offset than the answer said.
    pub(crate) reordered_records: u64,
    /// With other bytes than were sent; a batch that fails its check counts as one.
    pub(crate) corrupted_records: u64,
    /// Never sent, sent to another partition, or refused.
    pub(crate) phantom_records: u64,
}

impl Findings {
    /// Records that are not as they must be.
    pub(crate) fn fault_count(&self) -> u64 {
        self.lost_records
            + self.duplicated_records
            + self.reordered_records
            + self.corrupted_records
            + self.phantom_records
    }
}

#[derive(Clone, Copy)]
struct Sent {
    outcome: RecordOutcome,
    is_seen: bool,
}

/// What was sent, and what was seen of it.
pub(crate) struct Checker {
    rules: ContentRules,
    /// By connection, then by sequence.
    sent: Vec<Vec<Sent>>,
    /// Of the partition that is being read: the sequence behind the last record, by connection.
    next_sequences: Vec<u64>,
    expected: Vec<u8>,
    findings: Findings,
}

impl Checker {
    /// A check of these outcomes, by connection and sequence.
    pub(crate) fn new(rules: ContentRules, outcomes: Vec<Vec<RecordOutcome>>) -> Self {
        let not_seen = |outcome| Sent { outcome, is_seen: false };
        let sent: Vec<Vec<Sent>> =
            outcomes.into_iter().map(|records| records.into_iter().map(not_seen).collect()).collect();
        let next_sequences = vec![0; sent.len()];
        Self { rules, sent, next_sequences, expected: Vec::new(), findings: Findings::default() }
    }

    /// The records that follow are of another partition, from its first on.
    pub(crate) fn begin_partition(&mut self) {
        self.next_sequences.fill(0);
    }

    /// A batch was read that fails its check.
    pub(crate) fn on_corrupt_batch(&mut self) {
        self.findings.corrupted_records += 1;
    }

    /// A record was read.
    pub(crate) fn on_record(&mut self, partition: u16, offset: Offset, value: &[u8]) {
        self.findings.read_records += 1;
        let Some(stamp) = Stamp::read(value) else {
            self.findings.corrupted_records += 1;
            return;
        };
        let connection = usize::from(stamp.connection);
        let is_ours = stamp.run_id == self.rules.run_id && stamp.partition == partition;
        let sent = self.sent.get_mut(connection).and_then(|records| records.get_mut(stamp.sequence as usize));
        let Some(sent) = sent.filter(|sent| is_ours && sent.outcome != RecordOutcome::Refused) else {
            self.findings.phantom_records += 1;
            return;
        };
        let identity = Identity { connection: stamp.connection, partition, sequence: stamp.sequence };
        self.rules.write_value(identity, &mut self.expected);
        if std::mem::replace(&mut sent.is_seen, true) {
            self.findings.duplicated_records += 1;
            return;
        }
        self.findings.corrupted_records += u64::from(self.expected != value);
        let is_elsewhere = matches!(sent.outcome, RecordOutcome::Acked(acked) if acked != offset);
        let next = &mut self.next_sequences[connection];
        self.findings.reordered_records += u64::from(is_elsewhere || stamp.sequence < *next);
        *next = (*next).max(stamp.sequence + 1);
    }

    /// All partitions were read to their ends.
    pub(crate) fn finish(self) -> Findings {
        let mut findings = self.findings;
        for sent in self.sent.iter().flatten() {
            findings.sent_records += 1;
            match sent.outcome {
                RecordOutcome::Acked(_) => {
                    findings.acked_records += 1;
                    findings.lost_records += u64::from(!sent.is_seen);
                }
                RecordOutcome::Refused => findings.refused_records += 1,
                RecordOutcome::Unknown => {
                    findings.unknown_records += 1;
                    findings.unknown_stored_records += u64::from(sent.is_seen);
                }
            }
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: ContentRules = ContentRules { seed: 11, run_id: 5, record_bytes_max: 200 };

    fn acked(offset: u64) -> RecordOutcome {
        RecordOutcome::Acked(Offset(offset))
    }

    fn value(connection: u16, partition: u16, sequence: u64) -> Vec<u8> {
        let mut value = Vec::new();
        RULES.write_value(Identity { connection, partition, sequence }, &mut value);
        value
    }

    /// One connection, one partition; the records with these sequences are read, from offset 0 on.
    fn check(outcomes: &[RecordOutcome], sequences: &[u64]) -> Findings {
        let mut checker = Checker::new(RULES, vec![outcomes.to_vec()]);
        checker.begin_partition();
        for (offset, sequence) in (0..).zip(sequences) {
            checker.on_record(0, Offset(offset), &value(0, 0, *sequence));
        }
        checker.finish()
    }

    fn faults(findings: Findings) -> [u64; 5] {
        [
            findings.lost_records,
            findings.duplicated_records,
            findings.reordered_records,
            findings.corrupted_records,
            findings.phantom_records,
        ]
    }

    #[test]
    fn what_is_as_it_should_be_passes() {
        use RecordOutcome::{Refused, Unknown};
        let outcomes = [acked(0), Refused, Unknown, acked(1), Unknown, acked(3)];
        let findings = check(&outcomes, &[0, 3, 4, 5]);
        assert_eq!(findings.fault_count(), 0);
        assert_eq!((findings.sent_records, findings.acked_records, findings.refused_records), (6, 3, 1));
        assert_eq!((findings.unknown_records, findings.unknown_stored_records), (2, 1));
    }

    #[test]
    fn lost_record_is_found() {
        assert_eq!(faults(check(&[acked(0), acked(1), acked(2)], &[0, 1])), [1, 0, 0, 0, 0]);
    }

    #[test]
    fn duplicated_record_is_found() {
        assert_eq!(faults(check(&[acked(0), acked(1)], &[0, 1, 1])), [0, 1, 0, 0, 0]);
        let unknown = [RecordOutcome::Unknown];
        assert_eq!(faults(check(&unknown, &[0, 0])), [0, 1, 0, 0, 0]);
    }

    #[test]
    fn reordered_record_is_found() {
        let unknown = [RecordOutcome::Unknown; 3];
        assert_eq!(faults(check(&unknown, &[0, 2, 1])), [0, 0, 1, 0, 0]);
    }

    #[test]
    fn record_at_another_offset_than_acknowledged_is_found() {
        assert_eq!(faults(check(&[acked(0), acked(2)], &[0, 1])), [0, 0, 1, 0, 0]);
    }

    #[test]
    fn every_flipped_byte_is_found() {
        let value = value(0, 0, 0);
        for position in 0..value.len() {
            let mut flipped = value.clone();
            flipped[position] ^= 1;
            let mut checker = Checker::new(RULES, vec![vec![acked(0)]]);
            checker.on_record(0, Offset(0), &flipped);
            assert_eq!(checker.finish().corrupted_records, 1, "byte {position}");
        }
        let mut checker = Checker::new(RULES, vec![vec![acked(0)]]);
        checker.on_record(0, Offset(0), &value[..value.len() - 1]);
        assert_eq!(checker.finish().corrupted_records, 1, "cut short");
    }

    #[test]
    fn phantom_record_is_found() {
        assert_eq!(faults(check(&[acked(0)], &[0, 7])), [0, 0, 0, 0, 1], "never sent");
        assert_eq!(faults(check(&[acked(0), RecordOutcome::Refused], &[0, 1])), [0, 0, 0, 0, 1], "refused");
        let mut checker = Checker::new(RULES, vec![vec![RecordOutcome::Unknown]]);
        checker.on_record(1, Offset(0), &value(0, 0, 0));
        checker.on_record(0, Offset(0), &value(3, 0, 0));
        assert_eq!(faults(checker.finish()), [0, 0, 0, 0, 2], "another partition, and another connection");
    }

    #[test]
    fn order_is_kept_per_partition_and_connection() {
        let mut checker =
            Checker::new(RULES, vec![vec![RecordOutcome::Unknown; 4], vec![RecordOutcome::Unknown; 4]]);
        for (partition, sequences) in [(0, [1, 3]), (1, [0, 2])] {
            checker.begin_partition();
            for (offset, sequence) in (0..).zip(sequences) {
                checker.on_record(partition, Offset(2 * offset), &value(0, partition, sequence));
                checker.on_record(partition, Offset(2 * offset + 1), &value(1, partition, sequence));
            }
        }
        assert_eq!(checker.finish().fault_count(), 0);
    }
}

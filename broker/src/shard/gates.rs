//! Gates: after a retryable refusal, later produce frames on that connection and partition get the same answer until
//! one says `RESUMES`. So a pipelining producer keeps its order without a producer id.

use protocol::ids::Handle;
use protocol::status::Status;

use crate::limits::GATES_PER_CONNECTION_MAX;

/// The closed gates of one connection.
#[derive(Debug, Default)]
pub(super) struct Gates {
    closed: Vec<(Handle, Status)>,
    /// More gates were closed than are kept apart: the whole connection is one.
    all: Option<Status>,
}

impl Gates {
    /// Why produce frames for the partition are refused, if they are.
    pub(super) fn closed_by(&self, partition: Handle) -> Option<Status> {
        self.all.or_else(|| {
            self.closed.iter().find(|(closed, _)| *closed == partition).map(|(_, status)| *status)
        })
    }

    pub(super) fn close(&mut self, partition: Handle, status: Status) {
        debug_assert!(status.closes_gate());
        if self.closed_by(partition).is_some() {
            return;
        }
        if self.closed.len() == GATES_PER_CONNECTION_MAX {
            self.closed.clear();
            self.all = Some(status);
            return;
        }
        self.closed.push((partition, status));
    }

    pub(super) fn open(&mut self, partition: Handle) {
        self.all = None;
        self.closed.retain(|(closed, _)| *closed != partition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_stays_closed_until_its_partition_resumes() {
        let mut gates = Gates::default();
        gates.close(Handle(1), Status::Busy);
        gates.close(Handle(2), Status::DiskFull);
        gates.close(Handle(2), Status::Busy);
        assert_eq!(gates.closed_by(Handle(2)), Some(Status::DiskFull));
        gates.open(Handle(1));
        assert_eq!((gates.closed_by(Handle(1)), gates.closed_by(Handle(2))), (None, Some(Status::DiskFull)));
    }

    #[test]
    fn too_many_gates_make_the_connection_one() {
        let mut gates = Gates::default();
        for partition in 0..=GATES_PER_CONNECTION_MAX as u64 {
            gates.close(Handle(partition), Status::Busy);
        }
        assert_eq!(gates.closed_by(Handle(9999)), Some(Status::Busy));
        gates.open(Handle(7));
        assert_eq!(gates.closed_by(Handle(9999)), None);
    }
}

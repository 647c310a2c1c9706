//! A consumer that works at a fixed rate: one record after the other, each for the same time, in the order of arrival.
//!
//! Pure. Delivered records wait in a queue; a record is consumed when its service ends, and its latency counts until
//! then. What the queue may hold is bounded by the credit that was granted to the broker.

use std::collections::VecDeque;

use crate::subscriber::Delivered;

/// Records of one frame that wait for their service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch {
    /// Records that are left.
    pub(crate) records: u32,
    /// Bytes of all, given back with the last.
    pub(crate) bytes: u64,
    /// When they were sent.
    pub(crate) times: Delivered,
}

/// What was consumed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Served {
    /// Records.
    pub(crate) records: u64,
    /// Bytes of batches that are done.
    pub(crate) bytes: u64,
}

/// The server and its queue.
#[derive(Debug)]
pub(crate) struct Service {
    /// Time of one record; 0 for no limit, none for a consumer that stands still.
    record_ns: Option<f64>,
    /// Until when it is busy, with fractions, since `epoch_ns`.
    busy_until_ns: f64,
    epoch_ns: u64,
    queue: VecDeque<(u64, Batch)>,
    waiting_records: u64,
}

impl Service {
    /// One without a limit.
    pub(crate) fn new() -> Self {
        let queue = VecDeque::with_capacity(1_024);
        Self { record_ns: Some(0.0), busy_until_ns: 0.0, epoch_ns: 0, queue, waiting_records: 0 }
    }

    /// From now on it serves so many records per second: none for no limit, 0 to stand still.
    pub(crate) fn set_rate(&mut self, now_ns: u64, per_s: Option<f64>) {
        if self.epoch_ns == 0 {
            self.epoch_ns = now_ns;
        }
        self.busy_until_ns = self.busy_until_ns.max(now_ns.saturating_sub(self.epoch_ns) as f64);
        self.record_ns = match per_s {
            None => Some(0.0),
            Some(per_s) => (per_s > 0.0).then(|| 1e9 / per_s),
        };
    }

    /// Delivered records join the queue.
    pub(crate) fn push(&mut self, now_ns: u64, batch: Batch) {
        if self.epoch_ns == 0 {
            self.epoch_ns = now_ns;
        }
        self.waiting_records += u64::from(batch.records);
        self.queue.push_back((now_ns, batch));
    }

    /// Records that wait or are being served.
    pub(crate) fn waiting_records(&self) -> u64 {
        self.waiting_records
    }

    /// Serves until `now_ns`; each record and the end of its service go to `seen`.
    pub(crate) fn serve(&mut self, now_ns: u64, mut seen: impl FnMut(Delivered, u64)) -> Served {
        let mut served = Served::default();
        let Some(record_ns) = self.record_ns else { return served };
        while let Some((arrived_ns, batch)) = self.queue.front_mut() {
            let arrived = arrived_ns.saturating_sub(self.epoch_ns) as f64;
            while batch.records > 0 {
                let done = self.busy_until_ns.max(arrived) + record_ns;
                let done_ns = self.epoch_ns + done as u64;
                if done_ns > now_ns {
                    return served;
                }
                self.busy_until_ns = done;
                batch.records -= 1;
                self.waiting_records -= 1;
                served.records += 1;
                seen(batch.times, done_ns);
            }
            served.bytes += batch.bytes;
            self.queue.pop_front();
        }
        served
    }

    /// When the next `records`, or as many as wait, will be served; none while nothing will be.
    pub(crate) fn time_of(&self, records: u64) -> Option<u64> {
        let record_ns = self.record_ns?;
        let count = records.min(self.waiting_records);
        if count == 0 {
            return None;
        }
        let (arrived_ns, _) = self.queue.front()?;
        let arrived = arrived_ns.saturating_sub(self.epoch_ns) as f64;
        let done = self.busy_until_ns.max(arrived) + record_ns * count as f64;
        // Rounded up, so that at this time it is so far.
        Some(self.epoch_ns + done as u64 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const START: u64 = 5_000_000_000;

    fn batch(records: u32) -> Batch {
        Batch { records, bytes: 10 * u64::from(records), times: Delivered { intended_ns: 7, sent_ns: 8 } }
    }

    fn serve(service: &mut Service, now_ns: u64) -> (Served, Vec<u64>) {
        let mut done = Vec::new();
        let served = service.serve(now_ns, |_, done_ns| done.push(done_ns - START));
        (served, done)
    }

    #[test]
    fn records_are_served_one_by_one_at_the_rate() {
        let mut service = Service::new();
        service.set_rate(START, Some(1_000.0));
        service.push(START, batch(2));
        service.push(START, batch(2));
        assert_eq!(service.time_of(3), Some(START + 3 * MS + 1));
        let (served, done) = serve(&mut service, START + 3 * MS);
        assert_eq!((served, done), (Served { records: 3, bytes: 20 }, vec![MS, 2 * MS, 3 * MS]));
        assert_eq!(service.waiting_records(), 1);
        service.push(START + 100 * MS, batch(1));
        let (served, done) = serve(&mut service, START + 200 * MS);
        assert_eq!((served.records, done), (2, vec![4 * MS, 101 * MS]));
        assert_eq!(service.time_of(1), None);
    }

    #[test]
    fn rate_is_exact_over_a_long_time() {
        let mut service = Service::new();
        service.set_rate(START, Some(30_001.0));
        service.push(START, batch(400_000));
        let (served, _) = serve(&mut service, START + 10_000 * MS);
        assert!((300_009..=300_010).contains(&served.records), "{}", served.records);
    }

    #[test]
    fn consumer_that_stands_still_keeps_all_until_it_goes_on() {
        let mut service = Service::new();
        service.set_rate(START, Some(0.0));
        service.push(START, batch(5));
        assert_eq!(serve(&mut service, START + 1_000 * MS).0.records, 0);
        assert_eq!(service.time_of(1), None);
        service.set_rate(START + 1_000 * MS, Some(1_000.0));
        assert_eq!(serve(&mut service, START + 1_002 * MS).1, [1_001 * MS, 1_002 * MS]);
        service.set_rate(START + 1_002 * MS, None);
        assert_eq!(serve(&mut service, START + 1_002 * MS).0.records, 3);
    }
}

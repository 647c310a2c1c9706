//! Deliveries of one topic over a connection of their own, with credit granted as they are taken.
//!
//! What the broker may push ahead is bounded by the credit in `SubscribeOptions`; a caller that takes no batches
//! stops the pushing. Every batch is checked before it is given out. A lost connection is an error: subscribe again
//! from `DeliveredBatch::next_offset` of the last batch that was taken.

use std::time::Duration;

use protocol::batch::{Batch, BatchHeader, Inflater, Records};
use protocol::ids::{Handle, Offset, SubscriptionId};

use super::error::ClientError;
use super::link::{Dialer, Link};
use crate::connection::{CreditAmount, Event, RequestError, Start, SubscribeRequest, SubscribedPartition};
use crate::delivered::{DeliveredBatches, records_from};

/// The only subscription of its connection.
const ID: SubscriptionId = SubscriptionId(1);

/// What to subscribe to, and how much may be pushed ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// One partition, or all that the connection's shard owns.
    pub partition: Option<u16>,
    /// Where to start in each of them.
    pub from: Start,
    /// Records and bytes that may be pushed ahead; both at least 1.
    pub credit: CreditAmount,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self {
            partition: None,
            from: Start::Earliest,
            credit: CreditAmount { records: 100_000, bytes: 4 << 20 },
        }
    }
}

/// A running subscription.
#[derive(Debug)]
pub struct Subscription {
    link: Link,
    partitions: Vec<SubscribedPartition>,
    credit: CreditAmount,
    /// What was taken and not granted again.
    used: CreditAmount,
    /// The delivery that is being taken, and where its next batch begins.
    payload: Vec<u8>,
    taken_bytes: usize,
    from: Handle,
    inflater: Inflater,
    /// Why the broker goes away, once it said so.
    goodbye: Option<ClientError>,
}

/// One checked batch, inflated if it was compressed.
#[derive(Clone, Debug)]
pub struct DeliveredBatch<'a> {
    partition: Handle,
    batch: Batch<'a>,
    /// From the start of the subscription on.
    records: Records<'a>,
}

impl<'a> DeliveredBatch<'a> {
    /// The partition that it comes from.
    #[must_use]
    pub fn partition(&self) -> Handle {
        self.partition
    }

    /// The records that were subscribed to, in order: those before the start are left out. There may be none, where
    /// compaction left only some of the batch.
    #[must_use]
    pub fn records(&self) -> Records<'a> {
        self.records.clone()
    }

    /// The offset behind its last record.
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        self.batch.header().next_offset()
    }

    /// The whole batch, also with records before the start.
    #[must_use]
    pub fn batch(&self) -> Batch<'a> {
        self.batch
    }
}

impl Subscription {
    pub(super) fn open(dialer: &Dialer, topic: &str, options: SubscribeOptions) -> Result<Self, ClientError> {
        assert!(options.credit.records > 0);
        assert!(options.credit.bytes > 0);
        let mut link = Link::dial(dialer)?;
        let request = SubscribeRequest {
            topic,
            partition: options.partition,
            start: options.from,
            credit: options.credit,
        };
        let correlation = link.connection.subscribe(ID, &request)?;
        let until_ns = link.clock().after(dialer.options.request_timeout);
        let partitions = link.answer(correlation, until_ns, |event| {
            if let Event::Subscribed { partitions, .. } = event { Some(partitions) } else { None }
        })?;
        Ok(Self {
            link,
            partitions,
            credit: options.credit,
            used: CreditAmount { records: 0, bytes: 0 },
            payload: Vec::new(),
            taken_bytes: 0,
            from: Handle(0),
            inflater: Inflater::new(),
            goodbye: None,
        })
    }

    /// The partitions, each with the offset where delivery starts.
    #[must_use]
    pub fn partitions(&self) -> &[SubscribedPartition] {
        &self.partitions
    }

    /// The next batch, waiting for one at most so long; `None` when none came.
    ///
    /// # Errors
    /// `Io`, `GoAway` or `Protocol` when the connection ended; `Batch` when a batch is damaged, and then the rest of
    /// its delivery is dropped, or when it does not inflate (`BatchError::Inflation`), and then only that one is. `Corrupt`, `OffsetOutOfRange` or `Refused` when the broker ended the subscription: its
    /// next records cannot be read, retention has removed them, or the topic is gone; nothing comes after it.
    /// What was received before is given out first.
    pub fn next_batch(&mut self, wait: Duration) -> Result<Option<DeliveredBatch<'_>>, ClientError> {
        let until_ns = self.link.clock().after(wait);
        if !self.fill(until_ns)? {
            return Ok(None);
        }
        self.grant()?;
        self.take().map(Some)
    }

    /// Makes sure that there is a batch to take; false when none came in time.
    fn fill(&mut self, until_ns: u64) -> Result<bool, ClientError> {
        let mut lost = None;
        while self.taken_bytes == self.payload.len() {
            if self.take_event()? {
                continue;
            }
            if let Some(error) = lost.take() {
                return Err(self.goodbye.take().unwrap_or(error));
            }
            if self.link.clock().now_ns() >= until_ns {
                return Ok(false);
            }
            lost = self.link.exchange(until_ns).err();
        }
        Ok(true)
    }

    /// Takes the next event of the connection; false if there is none.
    fn take_event(&mut self) -> Result<bool, ClientError> {
        let Some(event) = self.link.connection.next_event() else { return Ok(false) };
        match event {
            Event::Delivered { partition, payload, .. } => {
                self.payload.clear();
                self.payload.extend_from_slice(payload);
                self.taken_bytes = 0;
                self.from = partition;
            }
            Event::Refused(refusal) => return Err(refusal.into()),
            Event::SubscriptionEnded { reason, .. } => {
                let only = self.only_partition();
                return Err(ClientError::from(reason).in_partition(only));
            }
            Event::GoAway { status, message } => {
                self.goodbye = Some(ClientError::GoAway { status, message });
            }
            _ => {}
        }
        Ok(true)
    }

    /// The partition, if there is only one.
    fn only_partition(&self) -> Option<Handle> {
        if let [only] = &self.partitions[..] { Some(only.handle) } else { None }
    }

    /// Checks and takes the batch that `fill` found.
    fn take(&mut self) -> Result<DeliveredBatch<'_>, ClientError> {
        let mut batches = DeliveredBatches::new(self.from, &self.payload[self.taken_bytes..]);
        let batch = match batches.next().expect("fill found a batch") {
            Ok(batch) => batch,
            Err(error) => {
                self.taken_bytes = self.payload.len();
                return Err(error.into());
            }
        };
        self.taken_bytes = self.payload.len() - batches.rest().len();
        let partition = self.from;
        let subscribed = self.partitions.iter().find(|subscribed| subscribed.handle == partition);
        let start = subscribed.map_or(Offset(0), |subscribed| subscribed.start_offset);
        let records = records_from(batch, start, &mut self.inflater)?;
        Ok(DeliveredBatch { partition, batch, records })
    }

    /// Counts the batch that is about to be taken, and grants again what was used once that is half of the credit.
    fn grant(&mut self) -> Result<(), ClientError> {
        if let Ok(header) = BatchHeader::peek(&self.payload[self.taken_bytes..]) {
            self.used.records += u64::from(header.record_count.get());
            self.used.bytes += header.batch_bytes() as u64;
        }
        let is_half_used = self.used.records >= self.credit.records.div_ceil(2)
            || self.used.bytes >= self.credit.bytes.div_ceil(2);
        if !is_half_used {
            return Ok(());
        }
        match self.link.connection.credit(ID, self.used) {
            Ok(_) => {
                self.used = CreditAmount { records: 0, bytes: 0 };
                // A broken connection is reported when what it brought is taken.
                let _ = self.link.write();
                Ok(())
            }
            // It can wait; and on a connection at its end it need not be granted.
            Err(RequestError::TooMany | RequestError::Closing) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

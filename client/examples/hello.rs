//! Produces a few records and reads them back.
//!
//! Start a broker with `forebay serve`, then run `cargo run -p client --example hello`. The address comes from
//! `FOREBAY_CONNECT`, or is 127.0.0.1:7440.

use std::time::Duration;

use client::blocking::{Client, ClientError, Options, SubscribeOptions, unix_ms};
use client::connection::Start;
use client::producer::{Outcome, Placement, ProducerOptions};
use protocol::batch::Record;
use protocol::status::Status;

const TOPIC: &str = "hello";
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<(), ClientError> {
    let address = std::env::var("FOREBAY_CONNECT").unwrap_or_else(|_| "127.0.0.1:7440".to_owned());
    let mut client = Client::connect(address.as_str(), Options::default())?;
    match client.create_topic(TOPIC, 1) {
        Ok(_) | Err(ClientError::Refused { status: Status::TopicExists, .. }) => {}
        Err(error) => return Err(error),
    }

    let mut producer = client.producer(TOPIC, ProducerOptions::default())?;
    for name in ["river", "lake", "sea"] {
        let value = format!("hello, {name}");
        let record = Record {
            key: name.as_bytes(),
            value: value.as_bytes(),
            created_ms: unix_ms(),
            ..Record::default()
        };
        producer.send(Placement::ByKey, &record)?;
    }
    producer.flush(PATIENCE)?;
    let mut first = None;
    while let Some(result) = producer.next_result() {
        println!("{} records: {:?}", result.record_count, result.outcome);
        if let Outcome::Acked { first_offset } = result.outcome {
            first = first.or(Some(first_offset));
        }
    }

    let from = first.map_or(Start::Latest, Start::Offset);
    let options = SubscribeOptions { from, ..SubscribeOptions::default() };
    let mut subscription = client.subscribe(TOPIC, options)?;
    let mut missing = 3;
    while missing > 0 {
        let Some(batch) = subscription.next_batch(PATIENCE)? else { return Err(ClientError::TimedOut) };
        for record in batch.records() {
            println!("offset {}: {}", record.offset, String::from_utf8_lossy(record.value));
            missing -= 1;
        }
    }
    Ok(())
}

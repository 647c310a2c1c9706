//! Kills the broker of a run in mid-load, starts it again on the same directory, and hands new connections to the loop.
//!
//! It works on a thread of its own, beside the load and whoever watches. What was in flight stays unknown, what was
//! due meanwhile is sent late, and its latency counts from when it should have been sent.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use client::connection::{CreditAmount, Start};
use reactor::clock;

use crate::control::Control;
use crate::load::LoadError;
use crate::result::KillResult;
use crate::target::Target;

/// How often to look at the time and at whether the run goes on.
const POLL: Duration = Duration::from_millis(2);

/// What is killed, and what is connected again.
pub(crate) struct Kill<'a> {
    /// The broker.
    pub(crate) target: &'a mut Target,
    /// When, since the start of the run.
    pub(crate) after_ns: u64,
    /// Connections that send.
    pub(crate) producers: usize,
    /// The topic of the one that consumes; none if nobody does.
    pub(crate) topic: Option<&'a str>,
    /// Where new sockets go.
    pub(crate) revival: Sender<Vec<OwnedFd>>,
    /// Set when the run is over.
    pub(crate) is_over: &'a AtomicBool,
}

impl Kill<'_> {
    /// Waits, kills, starts again, connects; none if the run was over before.
    ///
    /// # Errors
    /// When the broker does not come back.
    pub(crate) fn carry_out(self) -> Result<Option<KillResult>, LoadError> {
        let start_ns = clock::monotonic_ns();
        while clock::monotonic_ns() < start_ns + self.after_ns {
            if self.is_over.load(Ordering::Relaxed) {
                return Ok(None);
            }
            std::thread::sleep(POLL);
        }
        let Target::Child(child) = self.target else {
            return Err(LoadError::Unsuitable("--kill needs a broker that was started here".to_owned()));
        };
        let killed_ns = clock::monotonic_ns();
        child.kill();
        child.restart()?;
        let sockets = connect(self.target.address(), self.producers, self.topic)?;
        let back_ns = clock::monotonic_ns();
        // The run may be over by now.
        let _ = self.revival.send(sockets);
        Ok(Some(KillResult {
            at_s: (killed_ns - start_ns) as f64 / 1e9,
            outage_s: (back_ns - killed_ns) as f64 / 1e9,
        }))
    }
}

fn connect(address: SocketAddr, producers: usize, topic: Option<&str>) -> Result<Vec<OwnedFd>, LoadError> {
    let mut sockets = Vec::with_capacity(producers + 1);
    for _ in 0..producers {
        sockets.push(Control::open(address)?.into_socket()?);
    }
    if let Some(topic) = topic {
        let mut control = Control::open(address)?;
        // Without credit nothing is delivered before the loop has the socket.
        control.subscribe(topic, Start::Earliest, CreditAmount { records: 0, bytes: 0 })?;
        sockets.push(control.into_socket()?);
    }
    Ok(sockets)
}

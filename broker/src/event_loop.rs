//! The event loop of one shard: wait, hand in what has happened, carry out what is asked.
//!
//! One pass of it is a turn; every turn has a budget, so that no source of events starves another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reactor::{ListenerId, Reactor};

use crate::io::{Mail, Now};
use crate::limits::COMPLETIONS_PER_TURN_MAX;
use crate::metrics::ProcessGauges;
use crate::reactor_glue::Glue;
use crate::shard::{Shard, ShardFailure};
use crate::threads::Threads;
use crate::waiting::WaitPolicy;

/// How often the process is measured.
const GAUGES_INTERVAL_NS: u64 = 100_000_000;

/// One shard and the reactor that carries out what it asks for.
#[derive(Debug)]
pub struct EventLoop {
    /// The pure part.
    pub shard: Shard,
    /// The ring.
    pub reactor: Reactor,
    /// Joins the two.
    pub glue: Glue,
    /// Do what would block.
    pub threads: Threads,
    /// How long to spin.
    pub policy: WaitPolicy,
    /// Set by a signal, with a wake-up.
    pub stop: Arc<AtomicBool>,
}

impl EventLoop {
    /// Runs until `until` says so, the shard has failed, or a shutdown has ended.
    ///
    /// # Errors
    /// The shard's failure.
    pub fn run_until(&mut self, until: impl Fn(&Shard) -> bool) -> Result<(), ShardFailure> {
        let mut gauges_due_ns = 0;
        let mut stop_is_mailed = false;
        let mut work_left = false;
        self.carry_out();
        loop {
            let mut wait = self.shard.wait();
            wait.work_left |= work_left | self.glue.queue_backlog(&mut self.reactor);
            let now = self.wait(wait);
            let metrics = self.shard.metrics();

            work_left = self.hand_in_completions(now);
            if self.stop.load(Ordering::Relaxed) && !stop_is_mailed {
                stop_is_mailed = true;
                self.shard.on_mail(now, Mail::Shutdown);
            }
            self.shard.on_tick(now);
            self.carry_out();

            let after = self.shard.metrics();
            let commits = after
                .flushes
                .saturating_sub(metrics.flushes)
                .max(u64::from(after.commit_ns_total > metrics.commit_ns_total));
            if commits > 0 {
                self.policy.on_commits(commits, after.commit_ns_total - metrics.commit_ns_total);
            }
            if gauges_due_ns <= now.monotonic_ns {
                gauges_due_ns = now.monotonic_ns + GAUGES_INTERVAL_NS;
                self.shard.set_gauges(self.gauges());
            }
            if let Some(failure) = self.shard.failure() {
                return Err(failure);
            }
            if self.shard.is_stopped() || until(&self.shard) {
                return Ok(());
            }
        }
    }

    fn wait(&mut self, wait: crate::io::Wait) -> Now {
        let reactor_wait = reactor::Wait {
            deadline_ns: wait.deadline_ns,
            spin_until_ns: self.policy.spin_until_ns(wait),
            no_sleep: wait.work_left,
        };
        let now = self.reactor.submit_and_wait(reactor_wait);
        Now { monotonic_ns: now.monotonic_ns, wall_ms: now.wall_ms }
    }

    /// Hands in what has happened, up to a turn's budget; says whether something is left.
    fn hand_in_completions(&mut self, now: Now) -> bool {
        for number in 0..COMPLETIONS_PER_TURN_MAX {
            let Some(event) = self.reactor.next_event() else {
                self.hand_in_answers(now);
                return false;
            };
            if number == 0 {
                self.policy.on_completions(now.monotonic_ns);
            }
            if let Some(completion) = self.glue.completion(&mut self.reactor, event) {
                self.shard.on_completion(now, completion);
            }
        }
        self.hand_in_answers(now);
        true
    }

    /// Hands in what the threads have done. All of it: an answer costs its thread more than the shard, so they end.
    fn hand_in_answers(&mut self, now: Now) {
        while let Some(answer) = self.threads.next_answer() {
            self.glue.on_answer(&mut self.reactor, answer);
        }
        while let Some(completion) = self.glue.next_ready() {
            self.shard.on_completion(now, completion);
        }
    }

    fn carry_out(&mut self) {
        let Self { shard, reactor, glue, threads, .. } = self;
        for op in shard.ops() {
            if let Some(request) = glue.queue(reactor, op) {
                threads.request(request, reactor.waker());
            }
        }
    }

    /// Accepts connections from now on.
    pub fn listen(&mut self, listener: std::net::TcpListener) -> ListenerId {
        self.reactor.listen(listener)
    }

    fn gauges(&self) -> ProcessGauges {
        ProcessGauges {
            resident_bytes: reactor::process::resident_bytes(),
            cpu_ns: reactor::process::cpu_time_ns(),
            spin_ns: self.reactor.counters().spin_ns,
        }
    }
}

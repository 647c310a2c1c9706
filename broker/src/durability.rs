//! How blocks are made durable: chosen from what the device says of itself, and checked by a short probe.
//!
//! A device that writes through, or takes FUA, makes each write durable with the write. One with a volatile cache
//! and no FUA needs a flush of its own, and one flush can cover many writes. `RWF_DSYNC` is chosen there only if it
//! wins even when every other CPU is busy, because its flush may run in a kernel worker on any of them.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reactor::file::{WriteCache, device_of, open_direct, write_zeros};
use reactor::memory::Pool;
use reactor::{Event, FileId, Operation, Reactor, Token, Wait, WriteSync};

use crate::journal::Durability;
use crate::limits::PAGE_BYTES;

/// Pages of the probe's file; each round writes the next.
const PROBE_PAGES: u64 = 64;
/// Commits of each kind in a group; the median counts.
const PROBE_ROUNDS: u64 = 15;
/// Groups: synced writes are chosen only if they win clearly in each, so that noise does not decide.
const PROBE_GROUPS: usize = 3;

/// The operator's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DurabilityMode {
    /// From the device and a probe.
    Auto,
    /// Plain writes, then a flush.
    Flush,
    /// Each write carries its own sync.
    Sync,
}

/// The choice, and why.
#[derive(Clone, Debug)]
pub struct Choice {
    /// What blocks do.
    pub durability: Durability,
    /// In words: for the ready line, `Hello` and `Stats`.
    pub text: String,
}

/// Chooses for the device below a directory; `other_cpus` are those that the process may use and this thread does
/// not.
///
/// # Errors
/// When the probe's file cannot be made, written or read.
pub fn choose(
    directory: &Path,
    reactor: &mut Reactor,
    pool: &Pool,
    other_cpus: &[usize],
    mode: DurabilityMode,
) -> std::io::Result<Choice> {
    match mode {
        DurabilityMode::Auto => {}
        DurabilityMode::Flush => return Ok(chosen(Durability::WriteThenFlush, "as configured")),
        DurabilityMode::Sync => return Ok(chosen(Durability::SyncedWrites, "as configured")),
    }
    let device = device_of(directory).ok();
    let (cache, fua) =
        device.as_ref().map_or((WriteCache::Unknown, None), |device| (device.write_cache, device.fua));
    let name = device.map_or_else(|| "unknown device".to_owned(), |device| device.name);
    let (durability, why) = match (cache, fua) {
        (WriteCache::Through, _) => (Durability::SyncedWrites, "writes through".to_owned()),
        (WriteCache::Back, Some(true)) => (Durability::SyncedWrites, "write-back cache with FUA".to_owned()),
        (WriteCache::Back | WriteCache::Unknown, _) => {
            let groups = probe(directory, reactor, pool, other_cpus)?;
            let (flush_us, sync_us) = groups[PROBE_GROUPS / 2];
            let wins_clearly = |(flush_us, sync_us): &(u64, u64)| sync_us * 4 < flush_us * 3;
            let faster = if groups.iter().all(wins_clearly) {
                Durability::SyncedWrites
            } else {
                Durability::WriteThenFlush
            };
            let cache =
                if cache == WriteCache::Back { "write-back cache without FUA" } else { "cache unknown" };
            (faster, format!("{cache}; probe with busy CPUs: flush {flush_us} us, synced write {sync_us} us"))
        }
    };
    Ok(chosen(durability, &format!("{name}: {why}")))
}

fn chosen(durability: Durability, why: &str) -> Choice {
    let strategy = match durability {
        Durability::SyncedWrites => "synced writes",
        Durability::WriteThenFlush => "write + flush",
    };
    Choice { durability, text: format!("{strategy} ({why})") }
}

/// Median times of one commit of either kind, in microseconds, of each group, while every other CPU is busy.
fn probe(
    directory: &Path,
    reactor: &mut Reactor,
    pool: &Pool,
    other_cpus: &[usize],
) -> std::io::Result<[(u64, u64); PROBE_GROUPS]> {
    let path = directory.join("probe.tmp");
    let descriptor = open_direct(&path, true).map_err(std::io::Error::other)?;
    let outcome = probe_file(descriptor, reactor, pool, other_cpus);
    fs::remove_file(&path)?;
    outcome
}

fn probe_file(
    descriptor: OwnedFd,
    reactor: &mut Reactor,
    pool: &Pool,
    other_cpus: &[usize],
) -> std::io::Result<[(u64, u64); PROBE_GROUPS]> {
    let no_memory = || std::io::Error::other("no memory for the probe");
    let mut zeros = pool.buffer(PAGE_BYTES).ok_or_else(no_memory)?;
    let never = AtomicBool::new(false);
    write_zeros(&descriptor, PROBE_PAGES * PAGE_BYTES as u64, &mut zeros, &never)?;
    let file = reactor.add_file(descriptor);
    let busy = BusyCpus::start(other_cpus)?;
    let mut groups = [(0, 0); PROBE_GROUPS];
    for group in &mut groups {
        let mut samples = (Vec::new(), Vec::new());
        for round in 0..PROBE_ROUNDS {
            let position = round * 2 % PROBE_PAGES * PAGE_BYTES as u64;
            samples.0.push(commit(reactor, pool, file, position, WriteSync::None)?);
            samples.1.push(commit(reactor, pool, file, position + PAGE_BYTES as u64, WriteSync::Data)?);
        }
        *group = (median_us(&mut samples.0), median_us(&mut samples.1));
    }
    groups.sort_unstable();
    drop(busy);
    reactor.remove_file(file);
    Ok(groups)
}

fn median_us(samples: &mut [u64]) -> u64 {
    samples.sort_unstable();
    samples[samples.len() / 2] / 1_000
}

/// One commit of one page; its time in nanoseconds.
fn commit(
    reactor: &mut Reactor,
    pool: &Pool,
    file: FileId,
    position: u64,
    sync: WriteSync,
) -> std::io::Result<u64> {
    let page = pool.buffer(PAGE_BYTES).ok_or_else(|| std::io::Error::other("no memory for the probe"))?;
    let begun_ns = reactor::clock::monotonic_ns();
    run(reactor, Operation::Write { file, position, data: page.freeze(0..PAGE_BYTES), sync })?;
    if sync == WriteSync::None {
        run(reactor, Operation::Flush { file })?;
    }
    Ok(reactor::clock::monotonic_ns() - begun_ns)
}

fn run(reactor: &mut Reactor, operation: Operation) -> std::io::Result<()> {
    reactor.queue(Token(0), operation).map_err(|_| std::io::Error::other("the ring is full"))?;
    loop {
        reactor.submit_and_wait(Wait::default());
        while let Some(event) = reactor.next_event() {
            let result = match event {
                Event::Written { result, .. } => result.map(|_| ()),
                Event::Flushed { result, .. } => result,
                _ => continue,
            };
            return result.map_err(|errno| std::io::Error::from_raw_os_error(errno.0));
        }
    }
}

/// A thread that spins on each of the given CPUs.
struct BusyCpus {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl BusyCpus {
    #[allow(clippy::disallowed_methods, reason = "threads that live for the probe's few milliseconds")]
    fn start(cpus: &[usize]) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for cpu in cpus.iter().copied() {
            let stop = Arc::clone(&stop);
            threads.push(std::thread::Builder::new().name("probe".to_owned()).spawn(move || {
                let _ = reactor::affinity::pin_current_thread(cpu);
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })?);
        }
        Ok(Self { stop, threads })
    }
}

impl Drop for BusyCpus {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

//! The server: from a configuration to a running shard, in the order in which things can go wrong.
//!
//! Lock the directory, take the port, set up the ring, choose how to be durable, recover; only then accept connections
//! and say so. Every failure is one line that names what is wrong and how to mend it.

use std::io::{IsTerminal, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reactor::Reactor;
use reactor::memory::{Pool, Toucher};

use crate::cli::ServeArgs;
use crate::config::{Config, ConfigError, Cores};
use crate::data_dir::{DataDir, DataDirError};
use crate::durability::{self, Choice};
use crate::event_loop::EventLoop;
use crate::journal::JournalLayout;
use crate::limits::{CONNECTIONS_MAX, OPERATIONS_MAX, PAGE_BYTES};
use crate::reactor_glue::{Glue, files_open_max};
use crate::shard::{Shard, ShardConfig, ShardFailure};
use crate::threads::Threads;
use crate::waiting::{WaitPolicy, WaitingMode};

/// How long a start waits for a port that a broker which is ending still has.
const PORT_WAIT: Duration = Duration::from_secs(3);
const PORT_RETRY: Duration = Duration::from_millis(20);

/// Why the server did not start, or has stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration is refused.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The data directory cannot be used.
    #[error("{0}")]
    DataDir(#[from] DataDirError),
    /// Direct I/O or another demand on files is not met.
    #[error("{0}")]
    File(#[from] reactor::file::FileError),
    /// The file system wants larger units than ours.
    #[error(
        "the file system below {path} wants direct I/O in units of {alignment} bytes; at most 4096 are supported"
    )]
    Alignment {
        /// The directory.
        path: String,
        /// What it wants.
        alignment: u32,
    },
    /// The port is taken, or may not be used.
    #[error(
        "cannot listen on {address}: {source}; another process may have the port, or choose another --listen"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// This host cannot run the ring.
    #[error("{0}")]
    Ring(#[from] reactor::probe::SetupError),
    /// The thread cannot be pinned.
    #[error("cannot pin the shard: {0}")]
    Pin(#[from] reactor::affinity::AffinityError),
    /// No memory for the budget.
    #[error("{0}")]
    Memory(#[from] reactor::memory::MemoryError),
    /// Anything else that the system refused at start.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// Recovery refused the directory.
    #[error("recovery of {path}: {source}")]
    Recovery {
        /// The directory.
        path: String,
        /// Why.
        source: crate::journal::recovery::RecoveryError,
    },
    /// The journal failed while serving.
    #[error(
        "storage has failed: cannot {} {:?}: {}; nothing more was acknowledged, restart to recover", .0.action, .0.file, .0.error
    )]
    Storage(crate::journal::JournalFailure),
}

impl ServeError {
    /// The process's exit code: 2 for what the operator wrote, 5 for storage, 1 for the rest.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::DataDir(_)
            | Self::File(_)
            | Self::Alignment { .. }
            | Self::Recovery { .. }
            | Self::Storage(_) => 5,
            Self::Listen { .. } | Self::Ring(_) | Self::Pin(_) | Self::Memory(_) | Self::System { .. } => 1,
        }
    }
}

/// Serves until a signal says stop.
///
/// # Errors
/// See `ServeError`.
pub fn serve(args: &ServeArgs) -> Result<(), ServeError> {
    // Logs go to stderr; a program that embeds the server may have set up its own.
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init();
    let config = Config::load(args)?;
    let data_dir = DataDir::open(&config.data_dir, config.volatile)?;
    check_direct_io(&data_dir)?;
    let listener = listen(config.listen)?;
    // Our threads and the ring's workers may run where the process may: made before this thread is pinned.
    let cpus = reactor::affinity::allowed_cpus();
    let threads = Threads::start(data_dir.path()).map_err(system("start the threads beside the shard"))?;
    let core = pin(config.cores, &cpus)?;
    let mut event_loop = prepare(&config, &data_dir, threads, &cpus, core)?;
    let lock = data_dir.lock.try_clone().map_err(system("copy the lock"))?;
    event_loop.event_loop.reactor.hold(lock);

    let shard_result = run(&mut event_loop, &config, &data_dir, listener);
    // The lock outlives every write: it is released when the ring and this descriptor are gone.
    drop(event_loop);
    drop(data_dir);
    shard_result
}

struct Prepared {
    event_loop: EventLoop,
    toucher: Toucher,
    choice: Choice,
    waiting_text: String,
    core: Option<usize>,
}

fn prepare(
    config: &Config,
    data_dir: &DataDir,
    threads: Threads,
    cpus: &[usize],
    core: Option<usize>,
) -> Result<Prepared, ServeError> {
    let host = reactor::probe::probe()?;
    tracing::debug!(?host, "this host can run the ring");
    let mut reactor = Reactor::new(reactor::Config {
        operations_max: OPERATIONS_MAX as u32,
        sockets_max: CONNECTIONS_MAX as u32,
        worker_cpus: cpus.to_vec(),
        ..reactor::Config::default()
    })?;
    let pool = Pool::new(config.memory_bytes as usize)?;
    let others: Vec<usize> = cpus.iter().copied().filter(|cpu| Some(*cpu) != core).collect();
    let choice = durability::choose(data_dir.path(), &mut reactor, &pool, &others, config.durability)
        .map_err(system("probe the data directory's device"))?;
    let (mode, waiting_text) = waiting(config.waiting);

    let files = data_dir.files()?;
    let layout = JournalLayout {
        file_bytes: config.journal_file_bytes,
        file_count: (config.journal_bytes / config.journal_file_bytes) as u32,
    };
    let mut glue = Glue::new(segments_open_max(layout.file_count)?);
    for file in files.keys().copied().filter(|file| Glue::keeps_open(*file)) {
        glue.add_file(&mut reactor, file, reactor::file::open_direct(&data_dir.path_of(file), false)?);
    }
    let fresh_directory_id = random_id()?;
    let shard_config = ShardConfig {
        shard: 0,
        shard_count: 1,
        layout,
        durability: choice.durability,
        durability_text: choice.text.clone(),
        is_volatile: data_dir.is_volatile,
        waiting_text: waiting_text.clone(),
        frame_bytes_max: config.frame_bytes_max,
        window_bytes: config.window_bytes,
        heartbeat_ms: config.heartbeat_ms,
        fresh_directory_id,
    };
    let toucher = pool.toucher();
    let shard = Shard::new(shard_config, files, pool)
        .map_err(|source| ServeError::Recovery { path: config.data_dir.display().to_string(), source })?;
    let stop = stop_on_signals(reactor.waker())?;
    let policy = WaitPolicy::new(mode);
    let event_loop = EventLoop { shard, reactor, glue, threads, policy, stop };
    Ok(Prepared { event_loop, toucher, choice, waiting_text, core })
}

/// How many segments may be open at once, after asking for as many descriptors as the system grants.
fn segments_open_max(journal_files: u32) -> Result<usize, ServeError> {
    let descriptors_max =
        reactor::process::raise_open_files_limit().map_err(system("raise the limit of open files"))?;
    let open_max = files_open_max(descriptors_max, journal_files);
    if descriptors_max < (CONNECTIONS_MAX + open_max) as u64 {
        tracing::warn!(
            descriptors_max,
            "the limit of open files (ulimit -Hn) is low: connections and segments may be refused"
        );
    }
    Ok(open_max)
}

fn run(
    prepared: &mut Prepared,
    config: &Config,
    data_dir: &DataDir,
    listener: TcpListener,
) -> Result<(), ServeError> {
    let path = data_dir.path().display().to_string();
    let failure = |failure| match failure {
        ShardFailure::Recovery(source) => ServeError::Recovery { path: path.clone(), source },
        ShardFailure::Storage(failure) => ServeError::Storage(failure),
    };
    prepared.event_loop.run_until(Shard::is_ready).map_err(failure)?;
    if !prepared.event_loop.shard.is_ready() {
        return Ok(());
    }
    let address = listener.local_addr().map_err(system("read the listener's address"))?;
    prepared.event_loop.listen(listener);
    prepared.event_loop.threads.touch(prepared.toucher.clone());
    say_ready(prepared, config, data_dir, address);
    prepared.event_loop.run_until(|_| false).map_err(failure)?;
    tracing::info!("stopped");
    Ok(())
}

/// One line on stdout, for people and for whatever started the process.
fn say_ready(prepared: &Prepared, config: &Config, data_dir: &DataDir, address: SocketAddr) {
    let report = prepared.event_loop.shard.recovery_report();
    let core = prepared.core.map_or_else(|| "not pinned".to_owned(), |core| format!("core {core}"));
    let volatile = if data_dir.is_volatile { " (VOLATILE: a power cut empties it)" } else { "" };
    let recovered = if report.is_fresh {
        "new".to_owned()
    } else {
        let torn = report.torn_at.map_or_else(String::new, |place| {
            format!(", an unacknowledged tail cut at byte {} of journal file {}", place.position, place.file)
        });
        format!("{} entries recovered{torn}", report.entry_count)
    };
    let mut out = std::io::stdout().lock();
    // A closed stdout is no reason not to serve.
    let _ = writeln!(
        out,
        "forebay ready on {address}, {core}, waiting: {}, data in {}{volatile} ({recovered}), durability: {}, ring: {}",
        prepared.waiting_text,
        config.data_dir.display(),
        prepared.choice.text,
        prepared.event_loop.reactor.mode(),
    );
    let _ = out.flush();
}

/// Says before anything else whether the directory can be used at all.
fn check_direct_io(data_dir: &DataDir) -> Result<(), ServeError> {
    let path = data_dir.path().join("direct-io.tmp");
    let probe = reactor::file::open_direct(&path, true)?;
    let alignment = reactor::file::direct_alignment(&probe).map_err(system("ask for the alignment"));
    drop(probe);
    std::fs::remove_file(&path).map_err(system("remove the probe's file"))?;
    let alignment = alignment?;
    if alignment as usize > PAGE_BYTES {
        return Err(ServeError::Alignment { path: data_dir.path().display().to_string(), alignment });
    }
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "a start waits for the port of a process that is ending")]
fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let mut waited = Duration::ZERO;
    loop {
        match TcpListener::bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && waited < PORT_WAIT => {
                std::thread::sleep(PORT_RETRY);
                waited += PORT_RETRY;
            }
            Err(source) => return Err(ServeError::Listen { address, source }),
        }
    }
}

fn pin(cores: Cores, cpus: &[usize]) -> Result<Option<usize>, ServeError> {
    let wanted = match cores {
        Cores::Unpinned => None,
        Cores::First => cpus.first().copied(),
        Cores::One(cpu) => Some(cpu),
    };
    if let Some(cpu) = wanted {
        reactor::affinity::pin_current_thread(cpu)?;
    }
    Ok(wanted)
}

/// Where a CPU quota throttles the process, a spin costs the time that the work needs.
fn waiting(mode: WaitingMode) -> (WaitingMode, String) {
    match (mode, reactor::affinity::cpu_quota()) {
        (WaitingMode::Adaptive, Some(quota)) => {
            (WaitingMode::Park, format!("park (a CPU quota of {quota:.2} cores makes spinning costly)"))
        }
        (WaitingMode::Adaptive, None) => (mode, "adaptive".to_owned()),
        (WaitingMode::Park, _) => (mode, "park".to_owned()),
        (WaitingMode::Busy, _) => (mode, "busy".to_owned()),
    }
}

fn random_id() -> Result<u128, ServeError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| ServeError::System {
        action: "get random bytes",
        source: std::io::Error::other(error),
    })?;
    Ok(u128::from_le_bytes(bytes))
}

/// The first SIGTERM or SIGINT asks for a clean end; a second one ends the process as if nobody listened.
#[allow(clippy::disallowed_methods, reason = "the thread that waits for signals")]
fn stop_on_signals(waker: reactor::Waker) -> Result<Arc<AtomicBool>, ServeError> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let stop = Arc::new(AtomicBool::new(false));
    let mut signals =
        signal_hook::iterator::Signals::new([SIGTERM, SIGINT]).map_err(system("listen for signals"))?;
    let flag = Arc::clone(&stop);
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                if flag.swap(true, Ordering::Relaxed) {
                    let _ = signal_hook::low_level::emulate_default_handler(signal);
                }
                waker.wake();
            }
        })
        .map_err(system("start the signal thread"))?;
    Ok(stop)
}

fn system(action: &'static str) -> impl Fn(std::io::Error) -> ServeError {
    move |source| ServeError::System { action, source }
}

//! What is measured: a broker that runs already, or one that this program starts by executing itself again.
//!
//! A child lives in a process of its own, so that it can be killed and its memory and CPU time measured. It listens
//! on a free port, tells it in its ready line, and is gone with its directory when the value is dropped. Should this
//! program die first, the child sees the end of its standard input and dies too.

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use reactor::file::{FileSystemKind, file_system_kind};
use tempfile::TempDir;

use crate::cli::{Durability, TargetKind, Waiting};
use crate::watch::Probe;

/// This program's own file, also when it was replaced since it was started.
const OWN_EXECUTABLE: &str = "/proc/self/exe";
/// How long a child may take until it listens: the floor writes its whole file before, a broker recovers.
const READY_WAIT: Duration = Duration::from_secs(300);
/// What stands before the address in a ready line.
const READY_MARK: &str = " ready on ";

/// Why there is nothing to measure.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    /// No directory.
    #[error("no directory for the broker's data below {}: {source}", .parent.display())]
    Directory {
        /// Where it should have been.
        parent: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No process.
    #[error("the {0} cannot be started: {1}")]
    Spawn(&'static str, io::Error),
    /// It ended, or is silent.
    #[error("the {0} ended or is silent before it was ready; see its messages above")]
    NotReady(&'static str),
}

/// How to start a child.
#[derive(Clone, Debug)]
pub(crate) struct ChildOptions {
    /// What it is to be.
    pub(crate) kind: TargetKind,
    /// Its core.
    pub(crate) core: Option<usize>,
    /// How it waits.
    pub(crate) waiting: Waiting,
    /// How it makes records durable.
    pub(crate) durability: Durability,
    /// Length of its journal, or of the floor's file.
    pub(crate) journal_bytes: u64,
    /// The broker's memory budget.
    pub(crate) memory_bytes: u64,
    /// Partitions that the floor says every topic has.
    pub(crate) partitions: u32,
    /// Whether the floor answers without writing anything.
    pub(crate) has_no_disk: bool,
    /// Longest frame that the floor must take.
    pub(crate) frame_bytes_max: usize,
    /// Where its directory is made, if the user says so.
    pub(crate) parent: Option<PathBuf>,
}

/// A broker, and what is known of it.
pub(crate) enum Target {
    /// Somebody else's.
    Remote(SocketAddr),
    /// Ours.
    Child(Box<ChildBroker>),
}

impl Target {
    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Remote(address) => *address,
            Self::Child(child) => child.address,
        }
    }

    /// How it can be looked at.
    pub(crate) fn probe(&self) -> Probe {
        match self {
            Self::Remote(address) => Probe::Remote(*address),
            Self::Child(child) => Probe::Process(Arc::clone(&child.pid)),
        }
    }

    /// Where its data lie, if it is ours.
    pub(crate) fn directory(&self) -> Option<&Path> {
        match self {
            Self::Remote(_) => None,
            Self::Child(child) => Some(child.directory.path()),
        }
    }

    /// The command line that it was started with, if it is ours.
    pub(crate) fn arguments(&self) -> Vec<String> {
        match self {
            Self::Remote(_) => Vec::new(),
            Self::Child(child) => arguments(&child.options, child.address),
        }
    }

    /// Its name in reports.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Remote(_) => "remote",
            Self::Child(child) => child.options.kind.name(),
        }
    }
}

/// A child process and its directory.
pub(crate) struct ChildBroker {
    child: Child,
    /// Of the process that runs.
    pid: Arc<AtomicU32>,
    address: SocketAddr,
    options: ChildOptions,
    directory: TempDir,
}

impl ChildBroker {
    /// Starts one on a fresh directory, and waits until it listens.
    ///
    /// # Errors
    /// See `TargetError`.
    pub(crate) fn start(options: ChildOptions) -> Result<Self, TargetError> {
        let parent = options.parent.clone().map_or_else(durable_parent, Ok);
        let parent = parent.map_err(|source| TargetError::Directory { parent: ".".into(), source })?;
        let directory = tempfile::Builder::new().prefix("loadgen-").tempdir_in(&parent);
        let directory = directory.map_err(|source| TargetError::Directory { parent, source })?;
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let (child, address) = spawn(&options, directory.path(), any_port)?;
        let pid = Arc::new(AtomicU32::new(child.id()));
        Ok(Self { child, pid, address, options, directory })
    }

    /// Ends it at once, as a power cut ends a process (SIGKILL), and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        // It may have ended by itself; then there is nothing to kill, and `wait` tells.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again after `kill`, on the same directory and port.
    ///
    /// # Errors
    /// See `TargetError`.
    pub(crate) fn restart(&mut self) -> Result<(), TargetError> {
        (self.child, self.address) = spawn(&self.options, self.directory.path(), self.address)?;
        self.pid.store(self.child.id(), Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for ChildBroker {
    fn drop(&mut self) {
        // The directory is removed after this, with the field.
        self.kill();
    }
}

fn spawn(
    options: &ChildOptions,
    directory: &Path,
    listen: SocketAddr,
) -> Result<(Child, SocketAddr), TargetError> {
    let name = options.kind.name();
    let mut command = Command::new(OWN_EXECUTABLE);
    command.args(arguments(options, listen)).arg("--data-dir").arg(directory);
    // Ctrl-C is for us: the child is ended by us, when everything was read from it.
    command.process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = command.spawn().map_err(|error| TargetError::Spawn(name, error))?;
    let stdout = child.stdout.take().expect("it was asked for");
    match wait_ready(stdout) {
        Some(address) => Ok((child, address)),
        None => {
            let _ = child.kill();
            let _ = child.wait();
            Err(TargetError::NotReady(name))
        }
    }
}

/// The command line of a child, the directory excepted.
fn arguments(options: &ChildOptions, listen: SocketAddr) -> Vec<String> {
    let mut arguments = match options.kind {
        TargetKind::Broker => vec![
            "internal-broker".to_owned(),
            format!("--journal-bytes={}", options.journal_bytes),
            format!("--memory-bytes={}", options.memory_bytes),
        ],
        TargetKind::Floor => vec![
            "internal-floor".to_owned(),
            format!("--file-bytes={}", options.journal_bytes),
            format!("--partitions={}", options.partitions),
            format!("--receive-bytes={}", options.frame_bytes_max),
        ],
    };
    arguments.push(format!("--listen={listen}"));
    arguments.push(format!("--waiting={}", options.waiting.name()));
    arguments.push(match options.kind {
        TargetKind::Broker => format!("--durability={}", options.durability.name()),
        TargetKind::Floor if options.has_no_disk => "--durability=none".to_owned(),
        TargetKind::Floor => format!("--durability={}", options.durability.pinned().name()),
    });
    arguments.extend(match (options.kind, options.core) {
        (TargetKind::Broker, core) => {
            Some(format!("--cores={}", core.map_or_else(|| "none".to_owned(), |core| core.to_string())))
        }
        (TargetKind::Floor, core) => core.map(|core| format!("--core={core}")),
    });
    arguments
}

/// Reads until the ready line; what else the child prints goes to our standard error, now and later.
fn wait_ready(stdout: ChildStdout) -> Option<SocketAddr> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            match ready_address(&line) {
                Some(address) => {
                    // The other end may have given up; then nobody wants to know.
                    let _ = sender.send(address);
                }
                None => eprintln!("{line}"),
            }
        }
    });
    receiver.recv_timeout(READY_WAIT).ok()
}

/// The address of a ready line, as in `forebay ready on 127.0.0.1:7070, ...`.
fn ready_address(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once(READY_MARK)?;
    rest.split([',', ' ']).next()?.parse().ok()
}

/// The system's directory for temporary files, or the current one where that lies in memory.
fn durable_parent() -> io::Result<PathBuf> {
    let temporary = std::env::temp_dir();
    match file_system_kind(&temporary)? {
        FileSystemKind::Other { .. } => Ok(temporary),
        FileSystemKind::Volatile { .. } => std::env::current_dir(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_line_tells_the_address() {
        let address = Some(SocketAddr::from(([127, 0, 0, 1], 7_070)));
        assert_eq!(ready_address("forebay ready on 127.0.0.1:7070, epoch 3, durability flush"), address);
        assert_eq!(ready_address("floor ready on 127.0.0.1:7070"), address);
        assert_eq!(ready_address("recovering 127.0.0.1:7070"), None);
        assert_eq!(ready_address("forebay ready on the moon"), None);
    }

    #[test]
    fn children_are_told_all_that_matters() {
        let options = ChildOptions {
            kind: TargetKind::Broker,
            core: Some(3),
            waiting: Waiting::Park,
            durability: Durability::Auto,
            journal_bytes: 1 << 30,
            memory_bytes: 2 << 30,
            partitions: 4,
            has_no_disk: false,
            frame_bytes_max: 1 << 20,
            parent: None,
        };
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let broker = arguments(&options, listen).join(" ");
        assert_eq!(
            broker,
            "internal-broker --journal-bytes=1073741824 --memory-bytes=2147483648 --listen=127.0.0.1:0 \
             --waiting=park --durability=auto --cores=3"
        );
        let floor =
            arguments(&ChildOptions { kind: TargetKind::Floor, core: None, ..options.clone() }, listen)
                .join(" ");
        assert_eq!(
            floor,
            "internal-floor --file-bytes=1073741824 --partitions=4 --receive-bytes=1048576 --listen=127.0.0.1:0 \
             --waiting=park --durability=flush"
        );
        let null = ChildOptions { kind: TargetKind::Floor, has_no_disk: true, ..options };
        assert!(arguments(&null, listen).contains(&"--durability=none".to_owned()));
    }
}

//! A real broker process on a temporary directory and a free port of the loopback interface.
//!
//! It is killed by its own process id when the handle is dropped, also when the test fails, and its directory is
//! removed with it.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// Small enough that a start takes little time.
const JOURNAL_BYTES: &str = "--journal-bytes=32MiB";
const MEMORY_BYTES: &str = "--memory-bytes=192MiB";

pub(crate) struct Served {
    child: Child,
    pub(crate) address: String,
    pub(crate) ready_line: String,
}

pub(crate) fn forebay() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.env_remove("FOREBAY_CONNECT").stdin(Stdio::null());
    command
}

/// The command that serves a directory on any free port.
pub(crate) fn serve_command(data_dir: &Path) -> Command {
    serve_command_with(data_dir, &[JOURNAL_BYTES, MEMORY_BYTES])
}

/// The same, with these arguments for the sizes of journal and memory.
fn serve_command_with(data_dir: &Path, sizes: &[&str]) -> Command {
    let mut command = forebay();
    // Not pinned: tests run beside each other.
    command.args(["serve", "--listen=127.0.0.1:0", "--cores=none", "--waiting=park"]);
    command.args(sizes).arg("--data-dir").arg(data_dir);
    command
}

/// Runs a `serve` that must end by itself before it is ready; gives its exit code and what it said.
pub(crate) fn refused(command: &mut Command) -> (Option<i32>, String) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    if !line.is_empty() {
        let _ = child.kill();
        let _ = child.wait();
        panic!("served instead of refused: {line}");
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

impl Served {
    /// Starts a broker and waits until it says that it is ready.
    pub(crate) fn start(data_dir: &Path) -> Self {
        Self::start_with(data_dir, &[JOURNAL_BYTES, MEMORY_BYTES])
    }

    /// The same, with these arguments for the sizes of journal and memory.
    pub(crate) fn start_with(data_dir: &Path, sizes: &[&str]) -> Self {
        let mut command = serve_command_with(data_dir, sizes);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut ready_line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready_line).unwrap();
        let address = ready_line
            .strip_prefix("forebay ready on ")
            .and_then(|rest| rest.split(',').next())
            .map(str::to_owned);
        let Some(address) = address else {
            let mut message = String::new();
            let _ = child.wait();
            child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
            panic!("the broker is not ready: {ready_line}{message}");
        };
        Self { child, address, ready_line }
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; gives the exit code.
    pub(crate) fn terminate(mut self) -> Option<i32> {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }

    /// Runs a client command against this broker.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        forebay().args(["--connect", &self.address]).args(arguments).output().unwrap()
    }

    /// Runs a client command that must succeed; gives its stdout.
    pub(crate) fn run_well(&self, arguments: &[&str]) -> Vec<u8> {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A fresh directory on a real file system, below the build directory.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Real log lines from beside the checkout, if they are there.
pub(crate) fn shared_log() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/apache_access_10k.log");
    path.exists().then_some(path)
}

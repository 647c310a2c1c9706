//! The operator's choices: flags before the config file before defaults.
//!
//! Unknown keys and values out of bounds are errors that name the key. Sizes take `KiB`, `MiB`, `GiB`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use protocol::limits::FRAME_BYTES_MAX;
use serde::Deserialize;

use crate::cli::ServeArgs;
use crate::durability::DurabilityMode;
use crate::limits::{
    HEARTBEAT_MS_DEFAULT, JOURNAL_BYTES_DEFAULT, JOURNAL_FILE_BYTES_DEFAULT, JOURNAL_FILE_BYTES_MIN,
    JOURNAL_FILES_MAX, JOURNAL_FILES_MIN, JOURNAL_PENDING_BYTES_MAX, MEMORY_BYTES_DEFAULT, MEMORY_BYTES_MIN,
    PAGE_BYTES, WINDOW_BYTES_DEFAULT,
};
use crate::waiting::WaitingMode;

/// Smallest frame limit that may be set.
const FRAME_BYTES_MAX_LOWEST: u64 = 64 << 10;
/// Shortest heartbeat interval that may be set.
const HEARTBEAT_MS_LOWEST: u32 = 100;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read config file {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what is expected; the message has the line.
    #[error("config file {}: {source}", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: Box<toml::de::Error>,
    },
    /// A value is out of its bounds.
    #[error("{key}: {reason}")]
    Value {
        /// The key or flag.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// The keys of a config file, all optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    data_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    journal_bytes: Option<String>,
    journal_file_bytes: Option<String>,
    memory_bytes: Option<String>,
    frame_bytes_max: Option<String>,
    window_bytes: Option<String>,
    heartbeat_ms: Option<u32>,
    cores: Option<String>,
    waiting: Option<WaitingMode>,
    durability: Option<DurabilityMode>,
    volatile: Option<bool>,
}

/// Where a shard's thread runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cores {
    /// On the first CPU that the process may use.
    First,
    /// On this CPU.
    One(usize),
    /// Wherever the scheduler likes.
    Unpinned,
}

/// A configuration whose values are within their bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Everything that is stored.
    pub data_dir: PathBuf,
    /// Where connections are accepted.
    pub listen: SocketAddr,
    /// Length of all journal files.
    pub journal_bytes: u64,
    /// Length of each new journal file.
    pub journal_file_bytes: u64,
    /// The shard's memory: tails, reads, sends.
    pub memory_bytes: u64,
    /// Longest frame.
    pub frame_bytes_max: u32,
    /// Produce bytes in flight of a connection.
    pub window_bytes: u32,
    /// Heartbeat interval.
    pub heartbeat_ms: u32,
    /// Pinning.
    pub cores: Cores,
    /// How the core waits.
    pub waiting: WaitingMode,
    /// How blocks become durable.
    pub durability: DurabilityMode,
    /// Serve a directory that a power cut empties.
    pub volatile: bool,
}

impl Config {
    /// Puts flags, file and defaults together.
    ///
    /// # Errors
    /// See `ConfigError`.
    pub fn load(args: &ServeArgs) -> Result<Self, ConfigError> {
        let file = match &args.config {
            Some(path) => read_file(path)?,
            None => ConfigFile::default(),
        };
        Self::from_parts(args, file)
    }

    fn from_parts(args: &ServeArgs, file: ConfigFile) -> Result<Self, ConfigError> {
        let journal_bytes =
            size("journal_bytes", args.journal_bytes.as_deref().or(file.journal_bytes.as_deref()))?
                .unwrap_or(JOURNAL_BYTES_DEFAULT);
        let journal_file_bytes = size("journal_file_bytes", file.journal_file_bytes.as_deref())?
            .unwrap_or_else(|| default_file_bytes(journal_bytes));
        let memory_bytes =
            size("memory_bytes", args.memory_bytes.as_deref().or(file.memory_bytes.as_deref()))?
                .unwrap_or(MEMORY_BYTES_DEFAULT);
        let frame_default = (journal_file_bytes / 2).min(FRAME_BYTES_MAX as u64);
        let frame_bytes_max =
            size("frame_bytes_max", file.frame_bytes_max.as_deref())?.unwrap_or(frame_default);
        let window_bytes =
            size("window_bytes", file.window_bytes.as_deref())?.unwrap_or(u64::from(WINDOW_BYTES_DEFAULT));
        let config = Self {
            data_dir: args.data_dir.clone().or(file.data_dir).unwrap_or_else(|| "forebay-data".into()),
            listen: args.listen.or(file.listen).unwrap_or(SocketAddr::from(([127, 0, 0, 1], 7440))),
            journal_bytes,
            journal_file_bytes,
            memory_bytes,
            frame_bytes_max: u32::try_from(frame_bytes_max).unwrap_or(u32::MAX),
            window_bytes: u32::try_from(window_bytes).unwrap_or(u32::MAX),
            heartbeat_ms: file.heartbeat_ms.unwrap_or(HEARTBEAT_MS_DEFAULT),
            cores: cores(args.cores.as_deref().or(file.cores.as_deref()))?,
            waiting: waiting(args.waiting.as_deref())?.or(file.waiting).unwrap_or(WaitingMode::Adaptive),
            durability: durability(args.durability.as_deref())?
                .or(file.durability)
                .unwrap_or(DurabilityMode::Auto),
            volatile: args.volatile || file.volatile.unwrap_or(false),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let page = PAGE_BYTES as u64;
        let file = self.journal_file_bytes;
        if file < JOURNAL_FILE_BYTES_MIN || !file.is_multiple_of(page) {
            return refuse(
                "journal_file_bytes",
                format!("must be a multiple of 4 KiB, at least {JOURNAL_FILE_BYTES_MIN}"),
            );
        }
        if self.journal_bytes < u64::from(JOURNAL_FILES_MIN) * file
            || self.journal_bytes / file > JOURNAL_FILES_MAX
        {
            return refuse(
                "journal_bytes",
                format!("must be {JOURNAL_FILES_MIN} to {JOURNAL_FILES_MAX} files of {file} bytes"),
            );
        }
        let frame = u64::from(self.frame_bytes_max);
        if !(FRAME_BYTES_MAX_LOWEST..=FRAME_BYTES_MAX as u64).contains(&frame) || frame + 2 * page > file {
            let reason = format!(
                "must be {FRAME_BYTES_MAX_LOWEST} to {FRAME_BYTES_MAX}, and less than a journal file"
            );
            return refuse("frame_bytes_max", reason);
        }
        if self.window_bytes == 0 || self.window_bytes as usize > JOURNAL_PENDING_BYTES_MAX {
            return refuse("window_bytes", format!("must be 1 to {JOURNAL_PENDING_BYTES_MAX}"));
        }
        if self.heartbeat_ms < HEARTBEAT_MS_LOWEST {
            return refuse("heartbeat_ms", format!("must be at least {HEARTBEAT_MS_LOWEST}"));
        }
        if self.memory_bytes < MEMORY_BYTES_MIN {
            return refuse("memory_bytes", format!("must be at least {MEMORY_BYTES_MIN}"));
        }
        Ok(())
    }
}

/// 64 MiB files, or smaller ones where the journal is small.
fn default_file_bytes(journal_bytes: u64) -> u64 {
    let sixteenth = (journal_bytes / 16).next_multiple_of(PAGE_BYTES as u64);
    sixteenth.clamp(JOURNAL_FILE_BYTES_MIN, JOURNAL_FILE_BYTES_DEFAULT)
}

fn read_file(path: &Path) -> Result<ConfigFile, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text)
        .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
}

fn refuse<T>(key: &'static str, reason: String) -> Result<T, ConfigError> {
    Err(ConfigError::Value { key, reason })
}

/// Reads `123`, `64KiB`, `1 GiB`.
fn size(key: &'static str, text: Option<&str>) -> Result<Option<u64>, ConfigError> {
    let Some(text) = text else { return Ok(None) };
    let text = text.trim();
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let factor = match text[digits..].trim() {
        "" | "B" => Some(1_u64),
        "KiB" | "K" => Some(1 << 10),
        "MiB" | "M" => Some(1 << 20),
        "GiB" | "G" => Some(1 << 30),
        _ => None,
    };
    let number = text[..digits].parse::<u64>().ok();
    match number.zip(factor).and_then(|(number, factor)| number.checked_mul(factor)) {
        Some(bytes) => Ok(Some(bytes)),
        None => refuse(key, format!("'{text}' is not a size such as 67108864, 64MiB or 1GiB")),
    }
}

fn cores(text: Option<&str>) -> Result<Cores, ConfigError> {
    match text {
        None => Ok(Cores::First),
        Some("none") => Ok(Cores::Unpinned),
        Some(text) => match text.parse() {
            Ok(cpu) => Ok(Cores::One(cpu)),
            Err(_) => refuse(
                "cores",
                format!("'{text}' is not the number of one CPU, or 'none' (this version has one shard)"),
            ),
        },
    }
}

fn waiting(text: Option<&str>) -> Result<Option<WaitingMode>, ConfigError> {
    match text {
        None => Ok(None),
        Some("adaptive") => Ok(Some(WaitingMode::Adaptive)),
        Some("park") => Ok(Some(WaitingMode::Park)),
        Some("busy") => Ok(Some(WaitingMode::Busy)),
        Some(other) => refuse("waiting", format!("'{other}' is not adaptive, park or busy")),
    }
}

fn durability(text: Option<&str>) -> Result<Option<DurabilityMode>, ConfigError> {
    match text {
        None => Ok(None),
        Some("auto") => Ok(Some(DurabilityMode::Auto)),
        Some("flush") => Ok(Some(DurabilityMode::Flush)),
        Some("sync") => Ok(Some(DurabilityMode::Sync)),
        Some(other) => refuse("durability", format!("'{other}' is not auto, flush or sync")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        Config::from_parts(&ServeArgs::default(), toml::from_str(text).unwrap())
    }

    #[test]
    fn no_config_at_all_is_a_config() {
        let config = load("").unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:7440");
        assert_eq!(config.data_dir, PathBuf::from("forebay-data"));
        assert_eq!((config.journal_bytes, config.journal_file_bytes), (1 << 30, 64 << 20));
    }

    #[test]
    fn flags_come_before_the_file() {
        let args = ServeArgs { journal_bytes: Some("128MiB".to_owned()), ..ServeArgs::default() };
        let file = toml::from_str("journal_bytes = '512MiB'\nwaiting = 'park'").unwrap();
        let config = Config::from_parts(&args, file).unwrap();
        assert_eq!((config.journal_bytes, config.waiting), (128 << 20, WaitingMode::Park));
    }

    #[test]
    fn what_is_out_of_bounds_is_named() {
        for (text, key) in [
            ("journal_bytes = '1 MiB'", "journal_bytes"),
            ("journal_bytes = 'much'", "journal_bytes"),
            ("memory_bytes = '1MiB'", "memory_bytes"),
            ("frame_bytes_max = '1GiB'", "frame_bytes_max"),
            ("window_bytes = '0'", "window_bytes"),
            ("heartbeat_ms = 1", "heartbeat_ms"),
            ("cores = '0-3'", "cores"),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.starts_with(key), "{text}: {error}");
        }
    }

    #[test]
    fn unknown_keys_are_errors() {
        let error = toml::from_str::<ConfigFile>("journal_byte = '1GiB'").unwrap_err().to_string();
        assert!(error.contains("journal_byte") && error.contains("line 1"), "{error}");
    }
}

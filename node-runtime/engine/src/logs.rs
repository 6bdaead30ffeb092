//! Reads a container's json-file log.

use std::collections::BTreeMap;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;
use rswarm_base::Timestamp;

/// Which part of a log is wanted, and whether to wait for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on until the container stops.
    pub follow: bool,
    /// With standard output.
    pub stdout: bool,
    /// With standard error.
    pub stderr: bool,
    /// Nothing older than this.
    pub since: Option<Timestamp>,
    /// Nothing newer than this.
    pub until: Option<Timestamp>,
    /// Only the last so many lines; `None` for all.
    pub tail: Option<usize>,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions { follow: false, stdout: true, stderr: true, since: None, until: None, tail: None }
    }
}

/// One line that a container wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Where it wrote it.
    pub source: LogSource,
    /// When.
    pub at: Timestamp,
    /// The line with its newline, when it had one.
    pub line: Bytes,
    /// Attributes chosen by the log options `labels` and `env`.
    pub attributes: BTreeMap<String, String>,
}

/// A container's output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogSource {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Log lines in the order in which they were written. Ends when the container stops, if it follows at all.
pub type LogStream = Pin<Box<dyn Stream<Item = LogEntry> + Send>>;

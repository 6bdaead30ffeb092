//! Reads a container's log in either format: the last lines, all lines, and those that are still to come.

mod file;
mod format;
mod line;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use rswarm_base::Timestamp;
use rswarm_shim::LogFormat;
use tokio::sync::watch;

use crate::blocking::blocking;
use crate::container::{Container, logfile};
use crate::error::{FileError, LogsError};
use file::Files;
use line::Joiner;

/// How long a follower sleeps when there is nothing new. The log is looked at, not watched: inotify instances
/// are few (128 on a machine), followers can be many, and a look costs one `stat`.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

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

impl LogOptions {
    fn wants(&self, entry: &LogEntry) -> bool {
        let source = match entry.source {
            LogSource::Stdout => self.stdout,
            LogSource::Stderr => self.stderr,
        };
        source && self.since.is_none_or(|since| entry.at >= since)
    }

    fn is_past(&self, at: Timestamp) -> bool {
        self.until.is_some_and(|until| at > until)
    }
}

/// Opens a container's log. A log that was never written is empty.
pub(crate) async fn open(
    path: PathBuf,
    options: LogOptions,
    state: watch::Receiver<Arc<Container>>,
) -> Result<LogStream, LogsError> {
    let format = logfile::format(&state.borrow().config.log);
    let opened = blocking(move || (Reader::open(&path, format, options), path)).await;
    let reader = opened.0.map_err(FileError::read(&opened.1))?;
    let follower = options.follow.then(|| Follower::new(state));
    let batches = stream::unfold(Some((reader, follower)), move |turn| async move {
        let (reader, follower) = turn?;
        next_batch(reader, follower, options).await
    });
    Ok(batches.flat_map(stream::iter).boxed())
}

/// One turn of the stream: what is there, and how to go on.
async fn next_batch(
    reader: Reader,
    mut follower: Option<Follower>,
    options: LogOptions,
) -> Option<(Vec<LogEntry>, Option<(Reader, Option<Follower>)>)> {
    // Looked at before the read: what was written before the end is read after it was seen.
    let ended = follower.as_ref().is_none_or(Follower::ended);
    let (mut reader, batch) = blocking(move || {
        let mut reader = reader;
        let batch = reader.batch();
        (reader, batch)
    })
    .await;
    let Batch { mut entries, at_end } = batch;
    if at_end && ended {
        entries.extend(reader.joiner.finish());
    }
    let past_until = entries.iter().any(|entry| options.is_past(entry.at));
    entries.retain(|entry| options.wants(entry) && !options.is_past(entry.at));
    if past_until || (at_end && (ended || options.is_past(Timestamp::now()))) {
        return Some((entries, None));
    }
    if at_end && let Some(follower) = &mut follower {
        follower.sleep().await;
    }
    Some((entries, Some((reader, follower))))
}

/// Knows when the run that is followed has ended.
struct Follower {
    state: watch::Receiver<Arc<Container>>,
    exits: u64,
}

impl Follower {
    fn new(state: watch::Receiver<Arc<Container>>) -> Follower {
        let exits = state.borrow().exits;
        Follower { state, exits }
    }

    fn ended(&self) -> bool {
        let container = self.state.borrow();
        container.exits != self.exits || !container.state.status.is_running() || container.removed
    }

    async fn sleep(&mut self) {
        tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            changed = self.state.changed() => {
                if changed.is_err() {
                    // The actor is gone: `ended` sees its last state, or the daemon stops and so do we.
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
            }
        }
    }
}

struct Batch {
    entries: Vec<LogEntry>,
    /// Everything that is written has been read.
    at_end: bool,
}

struct Reader {
    files: Files,
    format: LogFormat,
    joiner: Joiner,
}

impl Reader {
    fn open(path: &Path, format: LogFormat, options: LogOptions) -> std::io::Result<Reader> {
        let files = match options.tail {
            None => Files::from_start(path, format)?,
            Some(lines) => Files::from_tail(path, format, lines)?,
        };
        Ok(Reader { files, format, joiner: Joiner::default() })
    }

    /// An unreadable log ends: there is nobody to tell in the middle of a stream.
    fn batch(&mut self) -> Batch {
        let mut entries = Vec::new();
        let (format, joiner) = (self.format, &mut self.joiner);
        let more = self.files.read_records(|raw| {
            entries.extend(format::parse(format, raw).and_then(|part| joiner.push(part)));
        });
        let at_end = match more {
            Ok(more) => !more,
            Err(error) => {
                tracing::warn!(%error, "a container's log could not be read on");
                true
            }
        };
        Batch { entries, at_end }
    }
}

#[cfg(test)]
mod tests;

//! The log's files: a row of segments, the last of which is appended to.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::{fs, io};

use rswarm_base::fsx;
use rswarm_base::metrics::{DISK, Histogram};
use rswarm_manager_core::peer::eraftpb::HardState;

use super::frame::{Damage, FILE_HEADER, Purpose, Reader, Record, Sealer, Writer, file_header};
use super::{WalError, push_hard_state, read_file};

/// A segment that has grown past this is closed: small enough to read at once, large enough to be rare.
const SEGMENT_BYTES: u64 = 16 << 20;
const PREFIX: &str = "log-";

/// All segments of a log.
pub(super) struct Segments {
    dir: PathBuf,
    /// Closed ones, oldest first.
    closed: VecDeque<Segment>,
    current: Segment,
    file: File,
    length: u64,
    /// How much of it is known to be durable.
    synced: u64,
    /// From which length on a segment is closed.
    pub(super) limit: u64,
    /// What the disk takes to make a write durable.
    pub(super) fsync: Histogram,
}

/// One segment.
struct Segment {
    sequence: u64,
    /// The highest index of any entry in it; zero when it has none.
    last: u64,
}

impl Segments {
    /// The first segment of a new log.
    pub(super) fn create(dir: &Path, sealer: &Sealer) -> Result<Segments, WalError> {
        let (file, length) = begin(dir, sealer, 1, &HardState::default())?;
        let current = Segment { sequence: 1, last: 0 };
        let (dir, closed, limit) = (dir.to_owned(), VecDeque::new(), SEGMENT_BYTES);
        let fsync = Histogram::new(DISK);
        Ok(Segments { dir, closed, current, file, length, synced: length, limit, fsync })
    }

    /// Reads all segments in order; each record goes to `take` with its segment's sequence number.
    pub(super) fn open(
        dir: &Path,
        sealer: &Sealer,
        mut take: impl FnMut((u64, Record)) -> Result<(), Damage>,
    ) -> Result<Segments, WalError> {
        let mut sequences = list(dir)?;
        let last = sequences.pop().ok_or_else(|| missing(dir, 1))?;
        let mut closed = VecDeque::new();
        let mut expected = sequences.first().copied().unwrap_or(last);
        for sequence in sequences {
            if sequence != expected {
                return Err(missing(dir, expected));
            }
            expected += 1;
            let (segment, read) = read(dir, sealer, sequence, &mut take)?;
            read.map_err(|damage| WalError::Damaged(damage.in_file(&path(dir, sequence))))?;
            closed.push_back(segment);
        }
        if last != expected {
            return Err(missing(dir, expected));
        }
        let (current, read) = read(dir, sealer, last, &mut take)?;
        let path = path(dir, last);
        let failed = |source| WalError::Write { path: path.clone(), source };
        let file = OpenOptions::new().append(true).open(&path).map_err(failed)?;
        match read {
            Ok(()) => {}
            Err(damage) if damage.is_torn => {
                tracing::warn!(path = %path.display(), offset = damage.offset, "an unfinished write was removed");
                file.set_len(damage.offset as u64).map_err(failed)?;
            }
            Err(damage) => return Err(WalError::Damaged(damage.in_file(&path))),
        }
        // Whoever wrote it may have been killed before it was durable; from here on it counts as acknowledged.
        file.sync_all().and_then(|()| fsx::sync_dir(dir)).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let (dir, limit) = (dir.to_owned(), SEGMENT_BYTES);
        let fsync = Histogram::new(DISK);
        Ok(Segments { dir, closed, current, file, length, synced: length, limit, fsync })
    }

    /// For the next records; begins a new segment when the current one is full.
    pub(super) fn writer<'a>(
        &mut self,
        sealer: &'a Sealer,
        hard_state: &HardState,
    ) -> Result<Writer<'a>, WalError> {
        if self.length >= self.limit {
            // Everything in the old segment must be durable before a new one makes it a closed one.
            self.file.sync_data().map_err(|source| self.give_up(source))?;
            let sequence = self.current.sequence + 1;
            (self.file, self.length) = begin(&self.dir, sealer, sequence, hard_state)?;
            self.synced = self.length;
            self.closed.push_back(std::mem::replace(&mut self.current, Segment { sequence, last: 0 }));
        }
        let offset = usize::try_from(self.length).expect("a segment fits in memory");
        Ok(Writer::new(sealer, Purpose::Log, self.current.sequence, offset))
    }

    /// Appends what the writer made.
    pub(super) fn append(&mut self, bytes: &[u8], last: Option<u64>, sync: bool) -> Result<(), WalError> {
        let mut write = || -> io::Result<()> {
            self.file.write_all(bytes)?;
            if !sync {
                return Ok(());
            }
            let timer = self.fsync.timer();
            self.file.sync_data()?;
            timer.stop();
            Ok(())
        };
        write().map_err(|source| self.give_up(source))?;
        self.length += bytes.len() as u64;
        if sync {
            self.synced = self.length;
        }
        self.current.last = self.current.last.max(last.unwrap_or(0));
        Ok(())
    }

    /// After a failed write or sync, reads may show what the disk does not have (fsync(2), `EIO`), and whoever
    /// opens the log next would believe it. So what is not known to be durable goes; nobody was told of it.
    fn give_up(&self, source: io::Error) -> WalError {
        let path = self.path(self.current.sequence);
        let cut = OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(self.synced));
        if let Err(error) = cut {
            tracing::warn!(path = %path.display(), %error, "an unfinished write could not be removed");
        }
        WalError::Write { path, source }
    }

    /// Removes the oldest closed segments, as long as they hold no entry after `index`.
    pub(super) fn drop_through(&mut self, index: u64) -> Result<(), WalError> {
        while let Some(oldest) = self.closed.front().filter(|segment| segment.last <= index) {
            let path = path(&self.dir, oldest.sequence);
            fs::remove_file(&path).map_err(|source| WalError::Write { path, source })?;
            self.closed.pop_front();
        }
        Ok(())
    }

    /// The file of a segment.
    pub(super) fn path(&self, sequence: u64) -> PathBuf {
        path(&self.dir, sequence)
    }
}

/// Makes a segment that starts with the hard state: older segments may go.
fn begin(
    dir: &Path,
    sealer: &Sealer,
    sequence: u64,
    hard_state: &HardState,
) -> Result<(File, u64), WalError> {
    let path = path(dir, sequence);
    let failed = |source| WalError::Write { path: path.clone(), source };
    let mut bytes = file_header(Purpose::Log, sequence);
    let mut writer = Writer::new(sealer, Purpose::Log, sequence, FILE_HEADER);
    push_hard_state(&mut writer, hard_state);
    bytes.extend(writer.bytes);
    fsx::write_atomic(&path, &bytes).map_err(failed)?;
    let file = OpenOptions::new().append(true).open(&path).map_err(failed)?;
    Ok((file, bytes.len() as u64))
}

type Read = (Segment, Result<(), Damage>);

fn read(
    dir: &Path,
    sealer: &Sealer,
    sequence: u64,
    take: &mut impl FnMut((u64, Record)) -> Result<(), Damage>,
) -> Result<Read, WalError> {
    let bytes = read_file(&path(dir, sequence))?;
    let mut segment = Segment { sequence, last: 0 };
    let mut all = || -> Result<(), Damage> {
        let mut reader = Reader::new(&bytes, Purpose::Log, sequence)?;
        while let Some(record) = reader.next(sealer)? {
            if record.kind == super::RecordKind::Entry {
                segment.last = segment.last.max(record.index);
            }
            take((sequence, record))?;
        }
        Ok(())
    };
    let read = all();
    Ok((segment, read))
}

fn path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{sequence:016}"))
}

fn missing(dir: &Path, sequence: u64) -> WalError {
    let source = io::Error::from(io::ErrorKind::NotFound);
    WalError::Read { path: path(dir, sequence), source }
}

/// Sequence numbers of the segments in a directory, in order.
fn list(dir: &Path) -> Result<Vec<u64>, WalError> {
    super::numbered(dir, PREFIX)
}

#[cfg(test)]
mod tests {
    use super::super::frame::Kind;
    use super::*;

    #[test]
    fn a_failed_write_leaves_what_was_durable_before_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let sealer = Sealer::new(&[1; 32]);
        let mut segments = Segments::create(dir.path(), &sealer).expect("created");
        for (index, sync) in [(1, true), (2, false), (3, true)] {
            let mut writer = segments.writer(&sealer, &HardState::default()).expect("begun");
            writer.push(Kind::Entry, index, 1, b"entry");
            let bytes = writer.bytes;
            if index == 3 {
                segments.file = OpenOptions::new().write(true).open("/dev/full").expect("opened");
                let error = segments.append(&bytes, Some(index), sync).expect_err("full");
                assert!(error.may_pass(), "{error}");
            } else {
                segments.append(&bytes, Some(index), sync).expect("written");
            }
        }
        let mut found = Vec::new();
        let take = |(_, record): (u64, Record)| {
            found.push((record.kind, record.index));
            Ok(())
        };
        Segments::open(dir.path(), &sealer, take).expect("opened");
        assert_eq!(found, [(Kind::HardState, 0), (Kind::Entry, 1)]);
    }
}

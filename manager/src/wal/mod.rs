//! The raft log on disk: sealed, append-only segments, and the latest raft snapshot beside them.
//!
//! ```text
//! keys                     the data key, sealed with the node's         member     this manager's raft id
//! log-<sequence>           records in the order they were written       snapshot-<index>
//! ```
//! A write is one `write` and one `fdatasync`, however many entries it holds. Nothing is ever changed in
//! place: an entry that replaces others is appended, and reading takes the last word. A raft snapshot is in
//! its place before the log says so (its *marker*), and segments that it covers go: entries that it covers
//! may be missing. What an interrupted write can leave, the end of the last segment cut short, is removed at
//! start. Anything else that is not as it was written stops the node with the file and the offset: a raft
//! member that forgets what it acknowledged could make the whole cluster forget it.

mod frame;
mod keys;
mod segment;
mod snapshot;

pub use frame::DamagedFile;
pub use keys::WrappingKey;
pub use snapshot::SnapshotFiles;

use std::path::{Path, PathBuf};
use std::{fs, io};

use protobuf::Message as _;
use rswarm_base::metrics::Histogram;
use rswarm_base::{Classify, Kind, fsx};
use rswarm_manager_core::peer::eraftpb::{Entry, HardState};
use rswarm_manager_core::peer::{Persist, Restored};
use serde::{Deserialize, Serialize};

use frame::{Damage, Kind as RecordKind, Purpose, Reader, Record, Sealer, Writer, file_header};
use keys::DataKey;
use segment::Segments;

const MEMBER_FILE: &str = "member";
/// A marker's body when the entries before it go on after its raft snapshot, which was made here.
const KEEPS: &[u8] = &[];
/// A marker's body when they are void: the raft snapshot was received, and raft takes only one that its log
/// disagrees with. It says so because the entry that shows it may be gone with an older segment.
const VOIDS: &[u8] = &[1];

/// The log, open for appending.
pub struct Wal {
    dir: PathBuf,
    sealer: Sealer,
    segments: Segments,
    hard_state: HardState,
}

/// Who this manager is in the raft group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its raft id.
    pub raft_id: u64,
    /// The members that let it in, until its own state names them.
    pub seeds: Vec<Seed>,
}

/// A manager's place, known before the state is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed {
    /// Raft id.
    pub raft_id: u64,
    /// Node id.
    pub node_id: String,
    /// `HOST:PORT`.
    pub addr: String,
}

/// A log as it was found.
pub struct Opened {
    /// For appending.
    pub wal: Wal,
    /// Who this manager is.
    pub member: Member,
    /// What raft starts from.
    pub restored: Restored,
    /// The data of the latest raft snapshot; empty when there is none yet.
    pub data: Vec<u8>,
}

impl Wal {
    /// Whether there is a log in this directory.
    #[must_use]
    pub fn exists(dir: &Path) -> bool {
        keys::exists(dir)
    }

    /// Makes a log that starts from `first`. What an interrupted earlier attempt left is removed.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn create(
        dir: &Path,
        wrapping: &WrappingKey,
        member: &Member,
        first: &Persist,
    ) -> Result<Wal, WalError> {
        let failed = |source| WalError::Write { path: dir.to_owned(), source };
        fsx::remove_all(dir).map_err(failed)?;
        fs::create_dir_all(dir).map_err(failed)?;
        let key = DataKey::generate();
        let sealer = key.sealer();
        write_member(dir, &sealer, member)?;
        let segments = Segments::create(dir, &sealer)?;
        let mut wal = Wal { dir: dir.to_owned(), sealer, segments, hard_state: HardState::default() };
        wal.persist(first)?;
        key.store(dir, wrapping)?;
        if let Some(parent) = dir.parent() {
            fsx::sync_dir(parent).map_err(failed)?;
        }
        Ok(wal)
    }

    /// Opens a log and reads all of it.
    ///
    /// # Errors
    /// [`WalError::Damaged`] names file and offset; [`WalError::Locked`] when the node's key is another one.
    pub fn open(dir: &Path, wrapping: &WrappingKey) -> Result<Opened, WalError> {
        let sealer = DataKey::open(dir, wrapping)?.sealer();
        remove_temporary(dir)?;
        let member = read_member(dir, &sealer)?;
        let latest = snapshot::load_latest(dir, &sealer)?;
        let (metadata, data) = latest.map_or_else(Default::default, |mut snapshot| {
            (snapshot.take_metadata(), snapshot.take_data().to_vec())
        });
        let mut replay = Replay { latest: metadata.get_index(), ..Replay::default() };
        let segments = Segments::open(dir, &sealer, |record| replay.record(record))?;
        replay.check_marked(&segments)?;
        replay.marker(metadata.get_index(), metadata.get_term());
        let is_marked = replay.is_marked();
        let hard_state = replay.hard_state;
        let mut wal = Wal { dir: dir.to_owned(), sealer, segments, hard_state: hard_state.clone() };
        let restored = Restored { hard_state, snapshot: metadata, entries: replay.entries };
        wal.check_continuous(&restored)?;
        if !is_marked {
            wal.mark(&restored)?;
        }
        Ok(Opened { wal, member, restored, data })
    }

    /// Notes the raft snapshot that was found: its writer was interrupted before the log knew. What follows
    /// must not be read as following the entries before it.
    fn mark(&mut self, restored: &Restored) -> Result<(), WalError> {
        let (index, term) = (restored.snapshot.get_index(), restored.snapshot.get_term());
        let body = if restored.entries.is_empty() { VOIDS } else { KEEPS };
        let mut writer = self.segments.writer(&self.sealer, &self.hard_state)?;
        writer.push(RecordKind::Marker, index, term, body);
        let bytes = writer.bytes;
        self.segments.append(&bytes, None, true)
    }

    /// Writes what raft wants written; it is durable afterwards when raft wants that too.
    ///
    /// # Errors
    /// When the disk fails. The log must not be used any more then: what reached the disk is unknown.
    pub fn persist(&mut self, persist: &Persist) -> Result<(), WalError> {
        if let Some(snapshot) = &persist.snapshot {
            snapshot::write(&self.dir, &self.sealer, snapshot.get_metadata(), snapshot.get_data())?;
        }
        // A segment that begins here begins with what held before: its first record is durable before the
        // entries are that the new hard state may speak of.
        let mut writer = self.segments.writer(&self.sealer, &self.hard_state)?;
        if let Some(snapshot) = &persist.snapshot {
            let metadata = snapshot.get_metadata();
            writer.push(RecordKind::Marker, metadata.get_index(), metadata.get_term(), VOIDS);
        }
        for entry in &persist.entries {
            push_entry(&mut writer, entry);
        }
        if let Some(hard_state) = &persist.hard_state {
            push_hard_state(&mut writer, hard_state);
            self.hard_state = hard_state.clone();
        }
        let bytes = writer.bytes;
        let last = persist.entries.last().map(Entry::get_index);
        self.segments.append(&bytes, last, persist.sync)?;
        if let Some(snapshot) = &persist.snapshot {
            let index = snapshot.get_metadata().get_index();
            snapshot::remove_older(&self.dir, index)?;
            self.segments.drop_through(index)?;
        }
        Ok(())
    }

    /// What the disk takes to make a write durable.
    #[must_use]
    pub fn fsync(&self) -> Histogram {
        self.segments.fsync.clone()
    }

    /// Writes raft snapshots without holding up the log: in another thread, while this one appends.
    #[must_use]
    pub fn snapshot_files(&self) -> SnapshotFiles {
        SnapshotFiles::new(self.dir.clone(), self.sealer.clone())
    }

    /// Notes that the raft snapshot at `index` is on disk, and removes what only older ones need: segments
    /// that hold nothing after `base`.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn compact(&mut self, index: u64, term: u64, base: u64) -> Result<(), WalError> {
        let mut writer = self.segments.writer(&self.sealer, &self.hard_state)?;
        writer.push(RecordKind::Marker, index, term, KEEPS);
        let bytes = writer.bytes;
        self.segments.append(&bytes, None, true)?;
        snapshot::remove_older(&self.dir, index)?;
        self.segments.drop_through(base)
    }

    /// Every entry after the snapshot must be there, up to the one known to be committed.
    fn check_continuous(&self, restored: &Restored) -> Result<(), WalError> {
        let base = restored.snapshot.get_index();
        let first = restored.entries.first().map_or(base + 1, Entry::get_index);
        let last = restored.entries.last().map_or(base, Entry::get_index);
        if first > base + 1 {
            let missing = WalError::Missing { dir: self.dir.clone(), from: base + 1, to: first - 1 };
            return Err(missing);
        }
        if restored.hard_state.get_commit() > last {
            let to = restored.hard_state.get_commit();
            return Err(WalError::Missing { dir: self.dir.clone(), from: last + 1, to });
        }
        Ok(())
    }
}

fn push_entry(writer: &mut Writer<'_>, entry: &Entry) {
    let body = entry.write_to_bytes().expect("a message in memory always encodes");
    writer.push(RecordKind::Entry, entry.get_index(), entry.get_term(), &body);
}

fn push_hard_state(writer: &mut Writer<'_>, hard_state: &HardState) {
    let body = hard_state.write_to_bytes().expect("a message in memory always encodes");
    writer.push(RecordKind::HardState, hard_state.get_commit(), hard_state.get_term(), &body);
}

/// What the records of a log add up to.
#[derive(Default)]
struct Replay {
    /// The latest raft snapshot on disk: entries up to it may be missing.
    latest: u64,
    hard_state: HardState,
    /// Without a gap.
    entries: Vec<Entry>,
    /// The raft snapshot that the log continues, as far as it was read.
    base: u64,
    /// The highest raft snapshot that the log says there is, and its record's place.
    marked: Option<(u64, u64, usize)>,
}

impl Replay {
    /// Takes the next record of the segment with this sequence number.
    fn record(&mut self, (segment, record): (u64, Record)) -> Result<(), Damage> {
        match record.kind {
            RecordKind::Entry => self.entry(&record),
            RecordKind::HardState => {
                self.hard_state = decode(&record)?;
                Ok(())
            }
            RecordKind::Marker => {
                if self.marked.is_none_or(|(index, _, _)| index < record.index) {
                    self.marked = Some((record.index, segment, record.offset));
                }
                if record.body == VOIDS {
                    self.entries.clear();
                }
                self.marker(record.index, record.term);
                Ok(())
            }
            RecordKind::SnapshotMeta
            | RecordKind::SnapshotData
            | RecordKind::SnapshotEnd
            | RecordKind::DataKey
            | RecordKind::Member => Err(Damage::new(record.offset, "a record that does not belong in a log")),
        }
    }

    fn entry(&mut self, record: &Record) -> Result<(), Damage> {
        let entry: Entry = decode(record)?;
        let index = entry.get_index();
        let next = match (self.entries.last(), self.base) {
            (Some(last), _) => last.get_index() + 1,
            // Without a raft snapshot so far, the log begins wherever its oldest segment does.
            (None, 0) => index,
            (None, base) => base + 1,
        };
        if index > next {
            // What is between was removed because a raft snapshot covers it, or voided by one that the log
            // was not told of.
            if index > self.latest + 1 {
                return Err(Damage::new(record.offset, "entries before this one are missing"));
            }
            self.entries.clear();
        }
        // An entry before all others replaces them, as one in their midst replaces those after it.
        let first = self.entries.first().map_or(index, Entry::get_index);
        self.entries.truncate(usize::try_from(index.saturating_sub(first)).unwrap_or(usize::MAX));
        self.entries.push(entry);
        Ok(())
    }

    /// The log continues a raft snapshot: entries that do not agree with it are void, and those that it covers
    /// are not needed. When the entry that would tell is gone with an older segment, the rest agrees.
    fn marker(&mut self, index: u64, term: u64) {
        if index < self.base {
            return; // a raft snapshot made here, overtaken by one that was received meanwhile
        }
        self.base = index;
        let same = self.entries.iter().find(|entry| entry.get_index() == index);
        if same.is_some_and(|entry| entry.get_term() != term) {
            self.entries.clear();
        }
        self.entries.retain(|entry| entry.get_index() > index);
    }

    /// The log must not speak of a later raft snapshot than the latest on disk.
    fn check_marked(&self, segments: &Segments) -> Result<(), DamagedFile> {
        match self.marked {
            Some((index, segment, offset)) if index > self.latest => {
                let what = "the raft snapshot that the log continues is missing";
                Err(DamagedFile { path: segments.path(segment), offset, what })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether the log speaks of the latest raft snapshot, if there is any.
    fn is_marked(&self) -> bool {
        self.latest == self.marked.map_or(0, |(index, _, _)| index)
    }
}

fn decode<T: protobuf::Message>(record: &Record) -> Result<T, Damage> {
    let mut message = T::new();
    match message.merge_from_bytes(&record.body) {
        Ok(()) => Ok(message),
        Err(_) => Err(Damage::new(record.offset, "a record is not what it says it is")),
    }
}

fn write_member(dir: &Path, sealer: &Sealer, member: &Member) -> Result<(), WalError> {
    let path = dir.join(MEMBER_FILE);
    let mut bytes = file_header(Purpose::Member, 0);
    let mut writer = Writer::new(sealer, Purpose::Member, 0, bytes.len());
    let body = serde_json::to_vec(member).expect("plain data always encodes");
    writer.push(RecordKind::Member, member.raft_id, 0, &body);
    bytes.extend(writer.bytes);
    fsx::write_atomic(&path, &bytes).map_err(|source| WalError::Write { path, source })
}

fn read_member(dir: &Path, sealer: &Sealer) -> Result<Member, WalError> {
    let path = dir.join(MEMBER_FILE);
    let bytes = read_file(&path)?;
    let read = || -> Result<Member, Damage> {
        let mut reader = Reader::new(&bytes, Purpose::Member, 0)?;
        let start = reader.offset();
        let record = reader.next(sealer)?.ok_or(Damage::new(start, "the record is missing"))?;
        serde_json::from_slice(&record.body).map_err(|_| Damage::new(start, "the record is not readable"))
    };
    read().map_err(|damage| WalError::Damaged(damage.in_file(&path)))
}

/// The numbers of the files `<prefix><number>` in a directory, in order.
fn numbered(dir: &Path, prefix: &str) -> Result<Vec<u64>, WalError> {
    let failed = |source| WalError::Read { path: dir.to_owned(), source };
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(number) = name.strip_prefix(prefix).and_then(|number| number.parse().ok()) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Removes what interrupted writes of whole files left.
fn remove_temporary(dir: &Path) -> Result<(), WalError> {
    let failed = |source| WalError::Write { path: dir.to_owned(), source };
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            fs::remove_file(&path).map_err(failed)?;
        }
    }
    Ok(())
}

fn read_file(path: &Path) -> Result<Vec<u8>, WalError> {
    fs::read(path).map_err(|source| WalError::Read { path: path.to_owned(), source })
}

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// A file is not what was written.
    #[error(transparent)]
    Damaged(#[from] DamagedFile),
    /// Entries are gone, file and all.
    #[error("the raft log in `{}` lacks the entries {from} to {to}", dir.display())]
    Missing {
        /// Where the log is.
        dir: PathBuf,
        /// The first missing entry.
        from: u64,
        /// The last one.
        to: u64,
    },
    /// The log belongs to another key.
    #[error("the raft log's key in `{}` was not sealed with this node's key", path.display())]
    Locked {
        /// The key file.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("`{}` could not be read", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("`{}` could not be written", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl WalError {
    /// Whether the log may be usable again later: a disk that is full, or fails to write, may have room or
    /// work again. Opening checks all that such a failure can leave. Damage stays.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            WalError::Write { .. } => true,
            WalError::Damaged(_)
            | WalError::Missing { .. }
            | WalError::Locked { .. }
            | WalError::Read { .. } => false,
        }
    }
}

impl Classify for WalError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }

    fn hint(&self) -> Option<String> {
        match self {
            WalError::Damaged(_) | WalError::Missing { .. } => Some(
                "check the disk; then demote and remove this node on another manager, and let it join anew"
                    .to_owned(),
            ),
            WalError::Locked { .. } => {
                Some("restore `swarm-node.key` from the same backup as the log".to_owned())
            }
            WalError::Write { path, .. } => Some(format!("check free space with `df -h {}`", path.display())),
            WalError::Read { .. } => None,
        }
    }
}

#[cfg(test)]
mod crashes;
#[cfg(test)]
mod tests;

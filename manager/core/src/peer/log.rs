//! The log in memory.

use std::cell::Cell;
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::storage::GetEntriesContext;
use raft::{RaftState, Storage, StorageError};

use super::{Refused, RestoreError, Restored};

/// The log in memory: what raft-rs reads. The log on disk follows it.
pub(super) struct Log {
    pub hard_state: HardState,
    /// Index and term that the log starts after.
    pub base: (u64, u64),
    pub entries: VecDeque<Entry>,
    /// Memberships and the index each holds from; the first is that of `base` or before.
    pub confs: Vec<(u64, ConfState)>,
    /// The last committed entry that was put out.
    pub delivered: u64,
    /// The latest raft snapshot that was made for a member that needed one.
    pub offered: Option<Snapshot>,
    /// Whether a member needs one that `offered` is not.
    pub wanted: Cell<bool>,
}

impl Log {
    pub(super) fn restore(restored: Restored) -> Result<Log, RestoreError> {
        let base = (restored.snapshot.get_index(), restored.snapshot.get_term());
        let conf = restored.snapshot.get_conf_state().clone();
        let mut entries = restored.entries;
        entries.retain(|entry| entry.get_index() > base.0);
        for (offset, entry) in entries.iter().enumerate() {
            if entry.get_index() != base.0 + 1 + offset as u64 {
                return Err(RestoreError::Gap(entry.get_index()));
            }
        }
        let mut hard_state = restored.hard_state;
        let last = entries.last().map_or(base.0, Entry::get_index);
        if hard_state.get_commit() > last {
            return Err(RestoreError::Short { last, commit: hard_state.get_commit() });
        }
        // The snapshot may have reached the disk just before the hard state that goes with it.
        let commit = hard_state.get_commit().max(base.0);
        hard_state.set_commit(commit);
        let term = hard_state.get_term().max(base.1);
        hard_state.set_term(term);
        Ok(Log {
            hard_state,
            base,
            entries: entries.into(),
            confs: vec![(base.0, conf)],
            delivered: base.0,
            offered: None,
            wanted: Cell::new(false),
        })
    }

    pub(super) fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.get_index() > self.base.0 && first.get_index() <= self.last() + 1,
            "the log has no gaps"
        );
        self.entries.truncate((first.get_index() - self.base.0 - 1) as usize);
        self.entries.extend(entries.iter().cloned());
    }

    pub(super) fn install(&mut self, metadata: &SnapshotMetadata) {
        self.base = (metadata.get_index(), metadata.get_term());
        self.entries.clear();
        self.confs = vec![(metadata.get_index(), metadata.get_conf_state().clone())];
        self.delivered = metadata.get_index();
        self.offered = None;
    }

    pub(super) fn compact(&mut self, index: u64) -> u64 {
        if index > self.base.0
            && let Ok(term) = self.term(index)
        {
            self.entries.drain(..(index - self.base.0) as usize);
            self.base = (index, term);
            let current = self.confs.iter().rposition(|(from, _)| *from <= index).unwrap_or(0);
            self.confs.drain(..current);
        }
        self.base.0
    }

    pub(super) fn metadata(&self, index: u64) -> Option<SnapshotMetadata> {
        if index > self.delivered {
            return None;
        }
        let (_, conf) = self.confs.iter().rev().find(|(from, _)| *from <= index)?;
        let mut metadata = SnapshotMetadata::default();
        metadata.set_index(index);
        metadata.set_term(self.term(index).ok()?);
        metadata.set_conf_state(conf.clone());
        Some(metadata)
    }

    pub(super) fn offer(&mut self, index: u64, data: Vec<u8>) -> Result<(), Refused> {
        let metadata = self.metadata(index).ok_or(Refused::BadSnapshot(index))?;
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(metadata);
        snapshot.set_data(data.into());
        self.offered = Some(snapshot);
        Ok(())
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let conf = self.confs.first().map_or_else(ConfState::default, |(_, conf)| conf.clone());
        Ok(RaftState::new(self.hard_state.clone(), conf))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base.0 {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let (from, to) = ((low - self.base.0 - 1) as usize, (high - self.base.0 - 1) as usize);
        let mut entries: Vec<Entry> = self.entries.range(from..to).cloned().collect();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base.0 {
            return Ok(self.base.1);
        }
        if index < self.base.0 {
            return Err(StorageError::Compacted.into());
        }
        let entry = self.entries.get((index - self.base.0 - 1) as usize);
        entry.map(Entry::get_term).ok_or_else(|| StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// A member drops a snapshot whose membership does not hold it, without a word: none taken before it was
    /// added may be sent to it.
    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let fits = |snapshot: &&Snapshot| {
            let members = snapshot.get_metadata().get_conf_state();
            let index = snapshot.get_metadata().get_index();
            let knows_it = members.get_voters().contains(&to) || members.get_learners().contains(&to);
            knows_it && index >= request_index && index >= self.base.0
        };
        self.offered.as_ref().filter(fits).cloned().ok_or_else(|| {
            self.wanted.set(true);
            StorageError::SnapshotTemporarilyUnavailable.into()
        })
    }
}

//! What a disk holds before its peer starts: a new cluster's first state, and a survivor's own group.

use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};

use super::member::{decode_change, encode_change};
use super::{BOOTSTRAP_INDEX, MemberChange, Persist, Restored};

/// What a new cluster's first manager writes to its disk before it starts its peer from it.
#[must_use]
pub fn bootstrap(id: u64, state: Vec<u8>) -> Persist {
    bootstrap_at(id, BOOTSTRAP_INDEX, state)
}

/// [`bootstrap`] with a state of this raft index, which the log goes on from.
#[must_use]
pub fn bootstrap_at(id: u64, index: u64, state: Vec<u8>) -> Persist {
    let mut snapshot = Snapshot::default();
    snapshot.set_data(state.into());
    let metadata = snapshot.mut_metadata();
    metadata.set_index(index);
    metadata.set_term(1);
    metadata.mut_conf_state().set_voters(vec![id]);
    let mut hard_state = HardState::default();
    hard_state.set_term(1);
    hard_state.set_commit(index);
    Persist { snapshot: Some(snapshot), entries: Vec::new(), hard_state: Some(hard_state), sync: true }
}

/// The raft index that the first state of a new cluster has.
#[must_use]
pub fn bootstrap_index() -> u64 {
    BOOTSTRAP_INDEX
}

impl Restored {
    /// Makes `id` the only member, for a cluster that has lost its quorum for good: the log is committed as
    /// far as this member has it, and all others are removed. Returns what must be persisted before the
    /// peer starts. The others must never come back with their old data.
    pub fn force_single(&mut self, id: u64) -> Persist {
        let members = self.final_members();
        let last = self.entries.last();
        let mut index = last.map_or(self.snapshot.get_index(), Entry::get_index);
        let term = last.map_or(self.snapshot.get_term(), Entry::get_term).max(self.hard_state.get_term());
        let mut changes = Vec::new();
        if !members.voters.contains(&id) {
            changes.push(MemberChange::Promote(id));
        }
        let others = members.voters.iter().chain(&members.learners).filter(|other| **other != id);
        changes.extend(others.map(|other| MemberChange::Remove(*other)));
        let mut appended = Vec::new();
        for change in changes {
            index += 1;
            let mut entry = Entry::default();
            entry.set_entry_type(EntryType::EntryConfChangeV2);
            entry.set_index(index);
            entry.set_term(term);
            entry.set_data(encode_change(change).into());
            appended.push(entry);
        }
        self.entries.extend(appended.iter().cloned());
        self.hard_state.set_term(term);
        self.hard_state.set_commit(index);
        let hard_state = Some(self.hard_state.clone());
        Persist { snapshot: None, entries: appended, hard_state, sync: true }
    }

    /// The membership once every entry of the log is applied.
    fn final_members(&self) -> ConfState {
        let mut members = self.snapshot.get_conf_state().clone();
        for entry in self.entries.iter().filter(|entry| entry.get_index() > self.snapshot.get_index()) {
            let Some(change) = decode_change(entry) else { continue };
            let id = change.id();
            members.voters.retain(|other| *other != id);
            members.learners.retain(|other| *other != id);
            match change {
                MemberChange::AddLearner(id) => members.learners.push(id),
                MemberChange::Promote(id) => members.voters.push(id),
                MemberChange::Remove(_) => {}
            }
        }
        members
    }
}

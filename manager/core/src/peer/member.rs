//! Changes of membership as raft entries.

use protobuf::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, Entry, EntryType};

use super::MemberChange;

pub(super) fn conf_change(change: MemberChange) -> ConfChangeV2 {
    let mut single = ConfChangeSingle::default();
    single.set_node_id(change.id());
    single.set_change_type(match change {
        MemberChange::AddLearner(_) => ConfChangeType::AddLearnerNode,
        MemberChange::Promote(_) => ConfChangeType::AddNode,
        MemberChange::Remove(_) => ConfChangeType::RemoveNode,
    });
    let mut conf_change = ConfChangeV2::default();
    conf_change.mut_changes().push(single);
    conf_change
}

pub(super) fn encode_change(change: MemberChange) -> Vec<u8> {
    conf_change(change).write_to_bytes().expect("a message in memory always encodes")
}

pub(super) fn decode_change(entry: &Entry) -> Option<MemberChange> {
    if entry.get_entry_type() != EntryType::EntryConfChangeV2 {
        return None;
    }
    let mut change = ConfChangeV2::default();
    change.merge_from_bytes(entry.get_data()).ok()?;
    let single = change.get_changes().first()?;
    Some(match single.get_change_type() {
        ConfChangeType::AddNode => MemberChange::Promote(single.node_id),
        ConfChangeType::AddLearnerNode => MemberChange::AddLearner(single.node_id),
        ConfChangeType::RemoveNode => MemberChange::Remove(single.node_id),
    })
}

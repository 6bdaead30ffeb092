//! A group of peers with disks in memory, message by message.

use std::collections::{BTreeMap, VecDeque};

use raft::eraftpb::{HardState, Snapshot};

use super::*;

/// A member with its disk.
struct Node {
    peer: Peer,
    snapshot: Snapshot,
    entries: BTreeMap<u64, Entry>,
    hard_state: HardState,
    /// What was applied: all data, in order.
    log: Vec<Vec<u8>>,
    applied: u64,
    reads: Vec<Read>,
}

impl Node {
    fn new(id: u64, persist: Option<&Persist>) -> Node {
        let mut node = Node {
            peer: Peer::join(Config::new(id, id)).expect("a new peer"),
            snapshot: Snapshot::default(),
            entries: BTreeMap::new(),
            hard_state: HardState::default(),
            log: Vec::new(),
            applied: 0,
            reads: Vec::new(),
        };
        if let Some(persist) = persist {
            node.write(persist);
            node.restart();
        }
        node
    }

    fn restored(&self) -> Restored {
        Restored {
            hard_state: self.hard_state.clone(),
            snapshot: self.snapshot.get_metadata().clone(),
            entries: self.entries.values().cloned().collect(),
        }
    }

    fn restart(&mut self) {
        self.peer =
            Peer::restore(Config::new(self.peer.id(), 77), self.restored()).expect("what was written");
        self.load();
    }

    fn load(&mut self) {
        self.log = self.snapshot.get_data().iter().map(|byte| vec![*byte]).collect();
        self.applied = self.snapshot.get_metadata().index;
    }

    fn write(&mut self, persist: &Persist) {
        if let Some(snapshot) = &persist.snapshot {
            self.snapshot = snapshot.clone();
            self.entries.retain(|index, _| *index > snapshot.get_metadata().index);
            self.load();
        }
        if let Some(first) = persist.entries.first() {
            drop(self.entries.split_off(&first.index));
        }
        self.entries.extend(persist.entries.iter().map(|entry| (entry.index, entry.clone())));
        if let Some(hard_state) = &persist.hard_state {
            self.hard_state = hard_state.clone();
        }
    }

    fn pump(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(output) = self.peer.output() {
            messages.extend(output.send_now);
            self.write(&output.persist);
            messages.extend(output.send);
            for committed in output.committed {
                assert_eq!(committed.index, self.applied + 1);
                self.applied = committed.index;
                if let Body::Data(data) = committed.body {
                    self.log.push(data);
                }
            }
            self.reads.extend(output.reads);
            self.peer.advance();
            if output.snapshot_wanted {
                let data = self.log.concat();
                self.peer.handle(Input::Snapshot { index: self.applied, data }).expect("a fresh state");
            }
        }
        messages
    }

    /// A raft snapshot on disk, and nothing kept before it.
    fn compact(&mut self) {
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(self.peer.snapshot_metadata(self.applied).expect("an applied index"));
        snapshot.set_data(self.log.concat().into());
        self.snapshot = snapshot;
        assert_eq!(self.peer.compact(self.applied), self.applied);
        let applied = self.applied;
        self.entries.retain(|index, _| *index > applied);
    }
}

#[derive(Default)]
struct Group {
    nodes: BTreeMap<u64, Node>,
    cut: Vec<u64>,
}

impl Group {
    /// A founder and `others` more, all voters.
    fn new(others: u64) -> Group {
        let mut group = Group::default();
        group.nodes.insert(1, Node::new(1, Some(&bootstrap(1, Vec::new()))));
        group.run(30);
        for id in 2..2 + others {
            group.join(id);
        }
        group
    }

    fn join(&mut self, id: u64) {
        self.nodes.insert(id, Node::new(id, None));
        self.leader().handle(Input::ChangeMember(MemberChange::AddLearner(id))).expect("added");
        self.run(10);
        assert_eq!(self.leader().promotable(), [id]);
        self.leader().handle(Input::ChangeMember(MemberChange::Promote(id))).expect("promoted");
        self.run(10);
    }

    fn run(&mut self, ticks: usize) {
        for _ in 0..ticks {
            let mut messages = VecDeque::new();
            for node in self.nodes.values_mut() {
                node.peer.handle(Input::Tick).expect("time passes");
                messages.extend(node.pump());
            }
            while let Some(message) = messages.pop_front() {
                if self.cut.contains(&message.from) || self.cut.contains(&message.to) {
                    continue;
                }
                let (from, to) = (message.from, message.to);
                let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
                if let Some(node) = self.nodes.get_mut(&to) {
                    node.peer.handle(Input::Message(Box::new(message))).expect("a message");
                    messages.extend(node.pump());
                }
                if let Some(node) = self.nodes.get_mut(&from).filter(|_| snapshot) {
                    node.peer.handle(Input::SnapshotSent { to, delivered: true }).expect("told");
                    messages.extend(node.pump());
                }
            }
        }
    }

    fn leader_id(&self) -> u64 {
        let leads = |node: &&Node| node.peer.role().is_leader && !self.cut.contains(&node.peer.id());
        self.nodes.values().find(leads).map(|node| node.peer.id()).expect("a leader")
    }

    fn leader(&mut self) -> &mut Peer {
        let id = self.leader_id();
        &mut self.nodes.get_mut(&id).expect("it leads").peer
    }

    fn propose(&mut self, byte: u8) {
        self.leader().handle(Input::Propose(vec![byte])).expect("proposed");
        self.run(4);
    }

    fn logs(&self) -> Vec<Vec<u8>> {
        self.nodes.values().map(|node| node.log.concat()).collect()
    }
}

#[test]
fn members_join_as_learners_and_all_apply_the_same() {
    let mut group = Group::new(2);
    (1..5).for_each(|byte| group.propose(byte));
    assert_eq!(group.logs(), vec![vec![1, 2, 3, 4]; 3]);
    let members = group.leader().members();
    assert!(members.iter().all(|member| !member.learner && member.active));
}

#[test]
fn a_joiner_gets_a_snapshot_that_knows_it() {
    let mut group = Group::new(1);
    (1..9).for_each(|byte| group.propose(byte));
    group.nodes.values_mut().for_each(Node::compact);
    group.join(3);
    group.propose(9);
    assert_eq!(group.nodes[&3].log.concat(), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert!(group.nodes[&3].snapshot.get_metadata().get_conf_state().get_learners().contains(&3));
}

#[test]
fn a_learner_that_hears_nobody_knows_no_leader() {
    let mut group = Group::new(1);
    group.nodes.insert(3, Node::new(3, None));
    group.leader().handle(Input::ChangeMember(MemberChange::AddLearner(3))).expect("added");
    group.run(60);
    let leader = |group: &Group| group.nodes[&3].peer.role().leader;
    assert_eq!(leader(&group), Some(1), "it hears of it all the time");
    group.cut.push(3);
    group.run(60);
    assert_eq!(leader(&group), None);
    group.cut.clear();
    group.run(10);
    assert_eq!(leader(&group), Some(1));
}

#[test]
fn a_restart_goes_on_from_disk() {
    let mut group = Group::new(2);
    (1..5).for_each(|byte| group.propose(byte));
    group.nodes.values_mut().for_each(Node::restart);
    group.run(40);
    group.propose(5);
    assert_eq!(group.logs(), vec![vec![1, 2, 3, 4, 5]; 3]);
    group.nodes.values_mut().for_each(Node::compact);
    group.nodes.values_mut().for_each(Node::restart);
    group.run(40);
    group.propose(6);
    assert_eq!(group.logs(), vec![vec![1, 2, 3, 4, 5, 6]; 3]);
}

#[test]
fn a_lost_leader_is_replaced_and_what_it_alone_had_is_gone() {
    let mut group = Group::new(2);
    group.propose(1);
    let old = group.leader_id();
    group.cut.push(old);
    group.nodes.get_mut(&old).expect("it led").peer.handle(Input::Propose(vec![66])).expect("it still leads");
    group.run(40);
    group.propose(2);
    group.cut.clear();
    group.run(20);
    assert_eq!(group.logs(), vec![vec![1, 2]; 3]);
}

#[test]
fn followers_refuse_what_leaders_do() {
    let mut group = Group::new(1);
    let follower = 3 - group.leader_id();
    let peer = &mut group.nodes.get_mut(&follower).expect("a follower").peer;
    for input in
        [Input::Propose(vec![1]), Input::ChangeMember(MemberChange::AddLearner(9)), Input::TransferLeader(1)]
    {
        assert_eq!(peer.handle(input), Err(Refused::NotLeader));
    }
}

#[test]
fn membership_changes_one_at_a_time_and_sensibly() {
    let mut group = Group::new(1);
    let leader = group.leader_id();
    let mut change = |change: MemberChange| group.leader().handle(Input::ChangeMember(change));
    assert_eq!(change(MemberChange::Promote(9)), Err(Refused::NoMember(9)));
    assert_eq!(change(MemberChange::Remove(9)), Err(Refused::NoMember(9)));
    assert_eq!(change(MemberChange::AddLearner(1)), Err(Refused::NoMember(1)));
    assert_eq!(change(MemberChange::Remove(leader)), Err(Refused::SelfRemoval));
    assert_eq!(change(MemberChange::AddLearner(3)), Ok(()));
    assert_eq!(change(MemberChange::AddLearner(4)), Err(Refused::Busy));
}

#[test]
fn leadership_is_handed_over_and_a_removed_member_knows() {
    let mut group = Group::new(2);
    let old = group.leader_id();
    let heir = (1..=3).find(|id| *id != old).expect("another");
    group.leader().handle(Input::TransferLeader(heir)).expect("a voter");
    group.run(5);
    assert_eq!(group.leader_id(), heir);
    group.leader().handle(Input::ChangeMember(MemberChange::Remove(old))).expect("a member");
    group.run(10);
    assert!(!group.leader().is_member(old));
    group.propose(7);
    assert_eq!(group.nodes[&heir].log.concat(), [7]);
}

#[test]
fn reads_are_answered_on_leaders_and_followers() {
    let mut group = Group::new(2);
    group.propose(1);
    let ids: Vec<u64> = group.nodes.keys().copied().collect();
    for id in ids {
        let node = group.nodes.get_mut(&id).expect("a node");
        let applied = node.applied;
        node.peer.handle(Input::ReadIndex(40 + id)).expect("asked");
        group.run(6);
        let reads = &group.nodes[&id].reads;
        assert_eq!(reads.iter().map(|read| read.id).collect::<Vec<_>>(), [40 + id]);
        assert!(reads[0].index >= applied);
    }
}

#[test]
fn a_leader_that_is_cut_off_answers_no_read_and_steps_down() {
    let mut group = Group::new(2);
    let old = group.leader_id();
    group.cut.push(old);
    group.nodes.get_mut(&old).expect("it leads").peer.handle(Input::ReadIndex(1)).expect("asked");
    group.run(40);
    let node = &group.nodes[&old];
    assert!(node.reads.is_empty() && !node.peer.role().is_leader);
}

#[test]
fn one_survivor_can_go_on_alone() {
    let mut group = Group::new(2);
    (1..4).for_each(|byte| group.propose(byte));
    let mut survivor = group.nodes.remove(&2).expect("a member");
    let mut restored = survivor.restored();
    let persist = restored.force_single(2);
    survivor.write(&persist);
    survivor.restart();
    let mut alone = Group { nodes: [(2, survivor)].into(), cut: Vec::new() };
    alone.run(30);
    alone.propose(4);
    assert_eq!(alone.nodes[&2].log.concat(), [1, 2, 3, 4]);
    assert_eq!(alone.leader().conf_state().get_voters(), [2]);
    alone.join(9);
    assert_eq!(alone.nodes[&9].log.concat(), [1, 2, 3, 4]);
}

#[test]
fn a_damaged_log_is_refused() {
    let entry = |index: u64| Entry { index, term: 1, ..Entry::default() };
    let gap = Restored { entries: vec![entry(1), entry(3)], ..Restored::default() };
    assert_eq!(Peer::restore(Config::new(1, 1), gap).err(), Some(RestoreError::Gap(3)));
    let mut short = Restored { entries: vec![entry(1)], ..Restored::default() };
    short.hard_state.set_commit(5);
    let refused = Peer::restore(Config::new(1, 1), short).err();
    assert_eq!(refused, Some(RestoreError::Short { last: 1, commit: 5 }));
}

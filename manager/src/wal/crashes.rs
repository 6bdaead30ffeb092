//! Random histories of a log whose machine loses power at any byte.
//!
//! Each case is a raft member's life: entries that are appended and overwritten, commits that are not waited
//! for, raft snapshots made here and received, segments that roll and go. Power fails in the middle of some
//! steps. What the disk holds then follows from what the log promises to do in order: files appear whole and
//! last once their directory was synced, bytes after the last sync may be there up to any one of them, and
//! removals may be undone from the last one back. Whatever it is, the log must open, and with everything that
//! was ever acknowledged.

use super::tests::{begun, entry, key, member, metadata};
use super::*;
use proptest::prelude::*;
use rswarm_base::Chain;
use rswarm_manager_core::peer::bootstrap;
use rswarm_manager_core::peer::eraftpb::Snapshot;
use std::collections::BTreeMap;

/// Some five records: segments roll all the time.
const LIMIT: u64 = 700;

/// One step of a member's life. Numbers are taken modulo what is possible when the step is reached.
#[derive(Debug, Clone)]
enum Op {
    /// Entries from a leader; `back` of those before, not committed, are replaced.
    Append { back: u64, count: u64, size: usize, commit: u64 },
    /// The commit index moves, which nobody waits for.
    Commit { by: u64 },
    /// The file of a raft snapshot made here, `back` entries ago.
    Save { back: u64 },
    /// The log learns of it.
    Compact { keep: u64 },
    /// A raft snapshot from a leader, and what follows it.
    Receive { ahead: u64, count: u64, same_term: bool },
    /// The node restarts in good order.
    Restart,
}

/// When power fails: during which stage of a step, at which byte of it, how many removals are undone.
#[derive(Debug, Clone)]
struct Crash {
    stage: usize,
    byte: usize,
    undone: usize,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..4u64, 1..5u64, 0..200usize, 0..8u64)
            .prop_map(|(back, count, size, commit)| Op::Append { back, count, size, commit }),
        2 => (1..4u64).prop_map(|by| Op::Commit { by }),
        3 => (0..6u64).prop_map(|back| Op::Save { back }),
        3 => (0..4u64).prop_map(|keep| Op::Compact { keep }),
        1 => (0..8u64, 0..3u64, any::<bool>())
            .prop_map(|(ahead, count, same_term)| Op::Receive { ahead, count, same_term }),
        1 => Just(Op::Restart),
    ]
}

fn crash() -> impl Strategy<Value = Option<Crash>> {
    let crash = (0..STAGES, any::<usize>(), 0..4usize).prop_map(|(stage, byte, undone)| Crash {
        stage,
        byte,
        undone,
    });
    prop_oneof![2 => Just(None), 1 => crash.prop_map(Some)]
}

/// Stages of a step: nothing done, raft snapshot there, segment begun, bytes appended, some old files gone, all.
const STAGES: usize = 6;

type Files = BTreeMap<String, Vec<u8>>;

/// What raft would find: the raft snapshot and the entries after it, as index and term.
#[derive(Debug, Clone, PartialEq)]
struct View {
    snapshot: (u64, u64),
    entries: Vec<(u64, u64)>,
}

impl View {
    fn last(&self) -> (u64, u64) {
        self.entries.last().copied().unwrap_or(self.snapshot)
    }

    fn push(&mut self, index: u64, term: u64) {
        self.entries.retain(|(other, _)| *other < index);
        self.entries.push((index, term));
    }
}

/// The member, and what of it must survive.
struct Node {
    dir: PathBuf,
    wal: Option<Wal>,
    view: View,
    term: u64,
    commit: u64,
    /// What the log on disk may start after.
    base: u64,
    /// The raft snapshot that is saved and the log does not know of.
    saved: Option<(u64, u64)>,
    /// Hard states since the last sync; the first is durable.
    hard_states: Vec<HardState>,
    /// How much of the last segment is durable.
    synced: usize,
    /// Files removed since the directory was synced, in order.
    removed: Vec<(String, Vec<u8>)>,
}

impl Node {
    fn create(dir: PathBuf) -> Node {
        let first = bootstrap(7, data(1, 1));
        drop(Wal::create(&dir, &key(), &member(), &first).expect("created"));
        let view = View { snapshot: (1, 1), entries: Vec::new() };
        let hard_states = vec![first.hard_state.expect("set")];
        let removed = Vec::new();
        let mut node = Node {
            dir,
            wal: None,
            view,
            term: 1,
            commit: 1,
            base: 1,
            saved: None,
            hard_states,
            synced: 0,
            removed,
        };
        node.start(&[node.view.clone()]);
        node
    }

    /// Opens the log, which must be one of `allowed`, and goes on from there.
    fn start(&mut self, allowed: &[View]) {
        let opened = Wal::open(&self.dir, &key());
        let opened = opened.unwrap_or_else(|error| panic!("{}; one of {allowed:?}", Chain(&error)));
        let restored = opened.restored;
        let snapshot = (restored.snapshot.get_index(), restored.snapshot.get_term());
        let entries = restored.entries.iter().map(|entry| (entry.get_index(), entry.get_term())).collect();
        self.view = View { snapshot, entries };
        assert!(allowed.contains(&self.view), "{:?} is none of {allowed:?}", self.view);
        assert_eq!(opened.data, data(snapshot.0, snapshot.1));
        let hard_state = restored.hard_state;
        assert!(self.hard_states.contains(&hard_state), "{hard_state:?}: none of {:?}", self.hard_states);
        self.term = hard_state.get_term().max(self.view.last().1);
        self.commit = hard_state.get_commit().max(snapshot.0);
        (self.base, self.saved, self.hard_states) = (snapshot.0, None, vec![hard_state]);
        let mut wal = opened.wal;
        wal.segments.limit = LIMIT;
        self.wal = Some(wal);
        self.synced = last_segment(&self.files()).1.len();
        self.removed.clear();
    }

    fn step(&mut self, op: &Op, crash: Option<&Crash>) {
        let before = self.files();
        let (views, sync) = match *op {
            Op::Append { back, count, size, commit } => self.append(back, count, size, commit),
            Op::Commit { by } => self.commit(by),
            Op::Save { back } => self.save(back),
            Op::Compact { keep } => self.compact(keep),
            Op::Receive { ahead, count, same_term } => self.receive(ahead, count, same_term),
            Op::Restart => (Vec::new(), false),
        };
        let after = self.files();
        let views = [vec![self.view.clone()], views].concat();
        match crash {
            Some(crash) => {
                drop(self.wal.take());
                self.replace_files(self.cut(crash, &before, &after, sync));
                self.start(&views);
            }
            None if matches!(op, Op::Restart) => {
                drop(self.wal.take());
                self.start(&views);
            }
            None => self.went_well(views, sync, &before, &after),
        }
    }

    fn went_well(&mut self, mut views: Vec<View>, sync: bool, before: &Files, after: &Files) {
        self.view = views.pop().expect("there is one");
        if after.keys().any(|name| !before.contains_key(name)) {
            self.removed.clear();
        }
        self.removed.extend(removed(before, after));
        let (name, bytes) = last_segment(after);
        if sync {
            self.hard_states.drain(..self.hard_states.len() - 1);
            self.synced = bytes.len();
        } else if !before.contains_key(name) {
            self.synced = begun(bytes);
        }
    }

    fn persist(&mut self, mut persist: Persist, commit: u64) -> (Vec<View>, bool) {
        let mut hard_state = HardState::default();
        hard_state.set_term(self.term);
        hard_state.set_commit(commit);
        self.commit = commit;
        self.hard_states.push(hard_state.clone());
        persist.hard_state = Some(hard_state);
        self.wal.as_mut().expect("open").persist(&persist).expect("written");
        let mut view = self.view.clone();
        let mut views = Vec::new();
        if let Some(snapshot) = &persist.snapshot {
            let metadata = snapshot.get_metadata();
            view = View { snapshot: (metadata.get_index(), metadata.get_term()), entries: Vec::new() };
            views.push(view.clone());
        }
        for entry in &persist.entries {
            view.push(entry.get_index(), entry.get_term());
            views.push(view.clone());
        }
        (views, persist.sync)
    }

    fn append(&mut self, back: u64, count: u64, size: usize, commit: u64) -> (Vec<View>, bool) {
        let back = back.min(self.view.last().0 - self.commit);
        // A leader that replaces entries is a new one.
        self.term += u64::from(back > 0);
        let first = self.view.last().0 - back + 1;
        let entries = (first..first + count).map(|index| entry(index, self.term, size)).collect();
        let commit = (self.commit + commit).min(first + count - 1);
        self.persist(Persist { entries, sync: true, ..Persist::default() }, commit)
    }

    fn commit(&mut self, by: u64) -> (Vec<View>, bool) {
        let commit = (self.commit + by).min(self.view.last().0);
        self.persist(Persist::default(), commit)
    }

    fn save(&mut self, back: u64) -> (Vec<View>, bool) {
        let index = self.commit.saturating_sub(back).max(self.view.snapshot.0 + 1).min(self.commit);
        let found = self.view.entries.iter().find(|(other, _)| *other == index).copied();
        let Some((index, term)) = found.filter(|_| self.saved.is_none()) else { return (Vec::new(), false) };
        let files = self.wal.as_ref().expect("open").snapshot_files();
        files.write(&metadata(index, term), &data(index, term)).expect("written");
        self.saved = Some((index, term));
        let mut view = View { snapshot: (index, term), ..self.view.clone() };
        view.entries.retain(|(other, _)| *other > index);
        (vec![view], false)
    }

    fn compact(&mut self, keep: u64) -> (Vec<View>, bool) {
        let Some((index, term)) = self.saved.take() else { return (Vec::new(), false) };
        self.base = self.base.max(index.saturating_sub(keep));
        self.wal.as_mut().expect("open").compact(index, term, self.base).expect("compacted");
        (Vec::new(), true)
    }

    fn receive(&mut self, ahead: u64, count: u64, same_term: bool) -> (Vec<View>, bool) {
        let index = self.commit + 1 + ahead;
        // A snapshot that agrees with the log is not taken: this one is beyond it, or of a later term.
        self.term += u64::from(!same_term || index <= self.view.last().0);
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(metadata(index, self.term));
        snapshot.set_data(data(index, self.term).into());
        let entries = (index + 1..=index + count).map(|index| entry(index, self.term, 20)).collect();
        (self.saved, self.base) = (None, index);
        self.persist(Persist { snapshot: Some(snapshot), entries, sync: true, ..Persist::default() }, index)
    }

    /// What is on the disk when power fails between `before` and `after`.
    fn cut(&self, crash: &Crash, before: &Files, after: &Files, sync: bool) -> Files {
        let mut files = before.clone();
        let is_new = |name: &str| !before.contains_key(name);
        let mut created = false;
        if crash.stage >= 1
            && let Some((name, bytes)) = after.iter().find(|(name, _)| is_new(name) && is_snapshot(name))
        {
            files.insert(name.clone(), bytes.clone());
            created = true;
        }
        let (name, bytes) = last_segment(after);
        let (mut durable, mut written) = (self.synced, last_segment(before).1.len());
        if crash.stage >= 2 && is_new(name) {
            (durable, written) = (begun(bytes), begun(bytes));
            files.insert(name.to_owned(), bytes[..written].to_vec());
            created = true;
        }
        if crash.stage >= 3 {
            files.insert(name.to_owned(), bytes.to_vec());
            written = bytes.len();
        }
        if crash.stage >= 4 && sync {
            durable = written;
        }
        let removals = removed(before, after);
        let gone = if crash.stage == 4 { crash.byte % (removals.len() + 1) } else { removals.len() };
        if crash.stage >= 4 {
            removals.iter().take(gone).for_each(|(name, _)| drop(files.remove(name)));
        }
        if !created && (crash.stage < 4 || gone == 0) {
            files.extend(self.removed.iter().rev().take(crash.undone).cloned());
        }
        let tail = files.iter_mut().rfind(|(name, _)| !is_snapshot(name)).expect("a log has segments").1;
        tail.truncate(durable + crash.byte % (written - durable + 1));
        // The next file may have been on its way.
        files.insert(".log-0000000000000099.1.tmp".to_owned(), vec![1; crash.undone]);
        files
    }

    /// The log's segments and raft snapshots.
    fn files(&self) -> Files {
        let names = fs::read_dir(&self.dir).expect("dir").map(|file| file.expect("file").file_name());
        let names = names.map(|name| name.to_string_lossy().into_owned());
        let names = names.filter(|name| name.starts_with("log-") || is_snapshot(name));
        names.map(|name| (name.clone(), fs::read(self.dir.join(name)).expect("bytes"))).collect()
    }

    fn replace_files(&self, files: Files) {
        self.files().keys().for_each(|name| fs::remove_file(self.dir.join(name)).expect("removed"));
        files.iter().for_each(|(name, bytes)| fs::write(self.dir.join(name), bytes).expect("written"));
    }
}

fn data(index: u64, term: u64) -> Vec<u8> {
    format!("the state at {index} of term {term}").into_bytes()
}

fn is_snapshot(name: &str) -> bool {
    name.starts_with("snapshot-")
}

fn last_segment(files: &Files) -> (&str, &[u8]) {
    let last = files.iter().rfind(|(name, _)| !is_snapshot(name)).expect("a log has segments");
    (last.0, last.1)
}

/// What a step removed, in its order: raft snapshots, then segments, oldest first.
fn removed(before: &Files, after: &Files) -> Vec<(String, Vec<u8>)> {
    let gone = before.iter().filter(|(name, _)| !after.contains_key(*name));
    let (snapshots, segments): (Vec<_>, Vec<_>) =
        gone.map(|(name, bytes)| (name.clone(), bytes.clone())).partition(|(name, _)| is_snapshot(name));
    [snapshots, segments].concat()
}

/// Memory where there is some: the log syncs all the time, and nobody pulls a plug here.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("tempdir")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn power_may_fail_at_any_byte(
        steps in proptest::collection::vec((op(), crash()), 1..40),
        file in any::<usize>(),
        byte in any::<usize>(),
    ) {
        let guard = directory();
        let mut node = Node::create(guard.path().join("raft"));
        for (op, crash) in &steps {
            node.step(op, crash.as_ref());
        }
        node.step(&Op::Restart, None);
        drop(node.wal.take());
        // No such history makes damage look like one: a flipped bit is still refused.
        let mut files = node.files();
        let latest = files.keys().rfind(|name| is_snapshot(name)).cloned();
        files.retain(|name, _| !is_snapshot(name) || Some(name) == latest.as_ref());
        let place = file % files.len();
        let (name, mut bytes) = files.into_iter().nth(place).expect("within its length");
        let at = byte % bytes.len();
        bytes[at] ^= 4;
        let path = node.dir.join(name);
        fs::write(&path, bytes).expect("written");
        match Wal::open(&node.dir, &key()).err() {
            Some(WalError::Damaged(damaged)) => {
                prop_assert_eq!(&damaged.path, &path);
                prop_assert!(damaged.offset <= at, "{} > {}", damaged.offset, at);
            }
            Some(error) => prop_assert!(false, "{}", Chain(&error)),
            None => prop_assert!(false, "byte {} of {} was not missed", at, path.display()),
        }
    }
}

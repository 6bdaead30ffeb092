//! The log on a disk that loses power, is cut short or rots.

use super::*;
use rswarm_base::Chain;
use rswarm_manager_core::peer::bootstrap;
use rswarm_manager_core::peer::eraftpb::SnapshotMetadata;
use std::collections::BTreeSet;
use std::fs;

pub(super) fn entry(index: u64, term: u64, size: usize) -> Entry {
    let mut entry = Entry::default();
    entry.set_index(index);
    entry.set_term(term);
    entry.set_data(vec![index as u8; size].into());
    entry
}

fn entries(indices: std::ops::RangeInclusive<u64>, term: u64) -> Persist {
    let commit = *indices.start();
    let entries: Vec<Entry> = indices.map(|index| entry(index, term, 50)).collect();
    let mut hard_state = HardState::default();
    hard_state.set_term(term);
    hard_state.set_commit(commit);
    Persist { entries, hard_state: Some(hard_state), sync: true, snapshot: None }
}

pub(super) fn key() -> WrappingKey {
    WrappingKey::derive("a node's key")
}

pub(super) fn member() -> Member {
    Member { raft_id: 7, seeds: Vec::new() }
}

fn create(dir: &Path) -> Wal {
    Wal::create(dir, &key(), &member(), &bootstrap(7, b"state".to_vec())).expect("created")
}

fn reopen(dir: &Path) -> Opened {
    Wal::open(dir, &key()).expect("opened")
}

fn fails(dir: &Path) -> String {
    Chain(&Wal::open(dir, &key()).err().expect("refused")).to_string()
}

fn seen(opened: &Opened) -> Vec<(u64, u64)> {
    opened.restored.entries.iter().map(|entry| (entry.get_index(), entry.get_term())).collect()
}

pub(super) fn metadata(index: u64, term: u64) -> SnapshotMetadata {
    let mut metadata = SnapshotMetadata::default();
    metadata.set_index(index);
    metadata.set_term(term);
    metadata
}

/// A raft snapshot from a leader.
fn received(index: u64, term: u64) -> Persist {
    let mut received = bootstrap(7, b"received".to_vec());
    *received.snapshot.as_mut().expect("set").mut_metadata() = metadata(index, term);
    received.hard_state.as_mut().expect("set").set_commit(index);
    received
}

/// A log with entries 2 to 20 in a segment that is full.
fn full_segment(dir: &Path) -> Wal {
    let mut wal = create(dir);
    wal.segments.limit = 2 << 10;
    wal.persist(&entries(2..=20, 1)).expect("written");
    wal
}

/// How long a segment is when it appears: its header and the first record.
pub(super) fn begun(bytes: &[u8]) -> usize {
    let header = frame::FILE_HEADER;
    let body = u32::from_le_bytes(bytes[header..header + 4].try_into().expect("4 bytes"));
    header + frame::FRAME_HEADER + body as usize
}

fn cut(dir: &Path, segment: u64, length: usize) {
    let path = dir.join(format!("log-{segment:016}"));
    let file = fs::OpenOptions::new().write(true).open(path).expect("segment");
    file.set_len(length as u64).expect("cut");
}

/// A log whose entries 2 to 40 fill two segments and begin a third.
fn three_segments(dir: &Path) -> Wal {
    let mut wal = create(dir);
    wal.segments.limit = 16 << 10;
    for index in 2..=40 {
        let mut persist = entries(index..=index, 1);
        persist.entries = vec![entry(index, 1, 1 << 10)];
        wal.persist(&persist).expect("written");
    }
    wal
}

fn temporary() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("tempdir");
    let raft = dir.path().join("raft");
    (dir, raft)
}

#[test]
fn what_was_written_is_there_after_a_restart() {
    let (_guard, dir) = temporary();
    assert!(!Wal::exists(&dir));
    let mut wal = create(&dir);
    wal.persist(&entries(2..=5, 1)).expect("written");
    drop(wal);
    assert!(Wal::exists(&dir));
    let mut opened = reopen(&dir);
    assert_eq!((opened.member.clone(), opened.data.as_slice()), (member(), &b"state"[..]));
    assert_eq!(seen(&opened), [(2, 1), (3, 1), (4, 1), (5, 1)]);
    assert_eq!(opened.restored.snapshot.get_index(), 1);
    assert_eq!(opened.restored.hard_state.get_commit(), 2);
    // A new leader's entries replace those that were never committed.
    opened.wal.persist(&entries(4..=4, 2)).expect("written");
    drop(opened);
    assert_eq!(seen(&reopen(&dir)), [(2, 1), (3, 1), (4, 2)]);
}

#[test]
fn nothing_of_the_state_can_be_read_without_the_key() {
    let (_guard, dir) = temporary();
    let mut wal = create(&dir);
    let secret = b"hunter2-hunter2-hunter2";
    let mut persist = entries(2..=2, 1);
    persist.entries[0].set_data(secret.to_vec().into());
    wal.persist(&persist).expect("written");
    for file in fs::read_dir(&dir).expect("dir") {
        let bytes = fs::read(file.expect("file").path()).expect("bytes");
        assert!(!bytes.windows(secret.len()).any(|window| window == secret));
        assert!(!bytes.windows(5).any(|window| window == b"state"));
    }
    let error = Wal::open(&dir, &WrappingKey::derive("another")).err().expect("locked");
    assert!(matches!(error, WalError::Locked { .. }), "{}", Chain(&error));
}

#[test]
fn a_flipped_byte_in_any_file_stops_the_node_and_is_named() {
    let (_guard, dir) = temporary();
    let mut wal = create(&dir);
    wal.persist(&entries(2..=4, 1)).expect("written");
    wal.persist(&entries(5..=6, 1)).expect("written");
    drop(wal);
    let mut files = BTreeSet::new();
    for file in fs::read_dir(&dir).expect("dir") {
        let path = file.expect("file").path();
        let intact = fs::read(&path).expect("bytes");
        for at in (0..intact.len()).step_by(3).chain([intact.len() - 1]) {
            let mut bytes = intact.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).expect("write");
            let message = fails(&dir);
            assert!(message.contains(&path.display().to_string()), "{at}: {message}");
            let offset: usize = message
                .split("damaged at offset ")
                .nth(1)
                .and_then(|rest| rest.split(':').next())
                .and_then(|offset| offset.parse().ok())
                .unwrap_or_else(|| panic!("no offset in: {message}"));
            assert!(offset <= at, "{at}: {message}");
        }
        fs::write(&path, &intact).expect("write");
        files.insert(path.file_name().expect("name").to_string_lossy().into_owned());
    }
    assert_eq!(files.len(), 4, "{files:?}");
    reopen(&dir);
}

#[test]
fn a_write_cut_short_is_removed_and_everything_before_it_stays() {
    let (_guard, dir) = temporary();
    let mut wal = create(&dir);
    wal.persist(&entries(2..=3, 1)).expect("written");
    let whole = fs::metadata(dir.join("log-0000000000000001")).expect("log").len();
    wal.persist(&entries(4..=4, 1)).expect("written");
    drop(wal);
    let path = dir.join("log-0000000000000001");
    let bytes = fs::read(&path).expect("bytes");
    for end in (whole as usize + 1)..bytes.len() {
        fs::write(&path, &bytes[..end]).expect("write");
        let mut opened = reopen(&dir);
        let kept = seen(&opened);
        assert!(kept.starts_with(&[(2, 1), (3, 1)]) && kept.len() <= 3, "{end}: {kept:?}");
        // The log goes on where it was cut.
        opened.wal.persist(&entries(4..=5, 2)).expect("written");
        drop(opened);
        assert_eq!(seen(&reopen(&dir)), [(2, 1), (3, 1), (4, 2), (5, 2)]);
    }
}

#[test]
fn a_log_shorter_than_what_was_committed_is_refused() {
    let (_guard, dir) = temporary();
    let mut wal = create(&dir);
    let mut persist = entries(2..=2, 1);
    persist.hard_state.as_mut().expect("set").set_commit(9);
    wal.persist(&persist).expect("written");
    drop(wal);
    assert!(fails(&dir).contains("lacks the entries 3 to 9"), "{}", fails(&dir));
}

#[test]
fn segments_roll_over_and_go_once_a_snapshot_covers_them() {
    let (_guard, dir) = temporary();
    drop(three_segments(&dir));
    let logs = || numbered(&dir, "log-").expect("list").len();
    assert_eq!(logs(), 3);
    let opened = reopen(&dir);
    assert_eq!((opened.restored.entries.len(), opened.restored.hard_state.get_commit()), (39, 40));
    opened.wal.snapshot_files().write(&metadata(38, 1), b"later state").expect("written");
    drop(opened);
    // Before the log knows of it, and after.
    let opened = reopen(&dir);
    assert_eq!(seen(&opened), [(39, 1), (40, 1)]);
    let mut wal = opened.wal;
    wal.compact(38, 1, 36).expect("compacted");
    drop(wal);
    assert_eq!(logs(), 1);
    let opened = reopen(&dir);
    assert_eq!(
        (seen(&opened).as_slice(), opened.data.as_slice()),
        (&[(39, 1), (40, 1)][..], &b"later state"[..])
    );
    assert_eq!(numbered(&dir, "snapshot-").expect("list"), [38]);
}

#[test]
fn a_missing_file_is_never_taken_for_an_empty_log() {
    let (_guard, dir) = temporary();
    drop(three_segments(&dir));
    let away = dir.with_extension("away");
    for name in
        ["log-0000000000000001", "log-0000000000000002", "snapshot-0000000000000001", "member", "keys"]
    {
        fs::rename(dir.join(name), &away).expect("moved");
        if name == "keys" {
            assert!(!Wal::exists(&dir));
        }
        fails(&dir);
        fs::rename(&away, dir.join(name)).expect("moved back");
    }
    reopen(&dir);
}

#[test]
fn a_received_snapshot_voids_entries_that_disagree_with_it() {
    let (_guard, dir) = temporary();
    let mut wal = create(&dir);
    wal.persist(&entries(2..=9, 1)).expect("written");
    wal.persist(&received(6, 3)).expect("written");
    drop(wal);
    let opened = reopen(&dir);
    assert_eq!((seen(&opened).as_slice(), opened.data.as_slice()), (&[][..], &b"received"[..]));
    drop(opened);
    let mut opened = reopen(&dir);
    opened.wal.persist(&entries(7..=8, 3)).expect("written");
    drop(opened);
    assert_eq!(seen(&reopen(&dir)), [(7, 3), (8, 3)]);
}

#[test]
fn a_joiner_starts_with_an_empty_log() {
    let (_guard, dir) = temporary();
    Wal::create(&dir, &key(), &member(), &Persist::default()).expect("created");
    let opened = reopen(&dir);
    assert_eq!(opened.restored, Restored::default());
    assert!(opened.data.is_empty());
}

#[test]
fn a_snapshot_may_be_noted_in_a_segment_that_begins_after_it() {
    for rolls_when_noted in [false, true] {
        let (_guard, dir) = temporary();
        let mut wal = full_segment(&dir);
        wal.snapshot_files().write(&metadata(10, 1), b"state").expect("written");
        // The log goes on meanwhile, in a new segment that either of the two begins.
        if rolls_when_noted {
            wal.compact(10, 1, 10).expect("compacted");
        }
        wal.persist(&entries(21..=24, 1)).expect("written");
        if !rolls_when_noted {
            wal.compact(10, 1, 10).expect("compacted");
        }
        wal.persist(&entries(25..=26, 1)).expect("written");
        wal.snapshot_files().write(&metadata(22, 1), b"later state").expect("written");
        wal.compact(22, 1, 20).expect("compacted");
        drop(wal);
        assert_eq!(numbered(&dir, "log-").expect("list"), [2]);
        assert_eq!(seen(&reopen(&dir)), [(23, 1), (24, 1), (25, 1), (26, 1)]);
    }
}

#[test]
fn a_received_snapshot_counts_although_the_log_was_not_told() {
    // The snapshot is beyond the log, or the log has something else in its place.
    for last in [30, 60] {
        let (_guard, dir) = temporary();
        let mut wal = create(&dir);
        wal.persist(&entries(2..=last, 1)).expect("written");
        let before = fs::metadata(dir.join("log-0000000000000001")).expect("log").len() as usize;
        wal.persist(&received(50, 3)).expect("written");
        drop(wal);
        let log = fs::read(dir.join("log-0000000000000001")).expect("bytes");
        for end in (before..log.len()).step_by(16) {
            fs::write(dir.join("log-0000000000000001"), &log).expect("write");
            cut(&dir, 1, end);
            let mut opened = reopen(&dir);
            assert_eq!((seen(&opened).as_slice(), opened.data.as_slice()), (&[][..], &b"received"[..]));
            opened.wal.persist(&entries(51..=52, 3)).expect("written");
            drop(opened);
            for _ in 0..2 {
                assert_eq!(seen(&reopen(&dir)), [(51, 3), (52, 3)], "{last}, cut at {end}");
            }
        }
    }
}

#[test]
fn void_entries_stay_void_when_what_disagreed_is_gone() {
    let (_guard, dir) = temporary();
    let mut wal = create(&dir);
    wal.segments.limit = 700;
    wal.persist(&entries(2..=6, 1)).expect("written");
    wal.persist(&entries(7..=9, 1)).expect("written");
    // Entry 6, of another term, goes with the first segment.
    wal.persist(&received(6, 3)).expect("written");
    drop(wal);
    assert_eq!(numbered(&dir, "log-").expect("list"), [2]);
    assert_eq!(seen(&reopen(&dir)), []);
}

#[test]
fn a_new_segment_begins_with_what_was_committed_before_it() {
    let (_guard, dir) = temporary();
    let mut wal = full_segment(&dir);
    let mut persist = entries(21..=24, 1);
    persist.hard_state.as_mut().expect("set").set_commit(24);
    wal.persist(&persist).expect("written");
    drop(wal);
    let second = fs::read(dir.join("log-0000000000000002")).expect("bytes");
    for end in (begun(&second)..second.len()).rev().step_by(8) {
        cut(&dir, 2, end);
        let opened = reopen(&dir);
        assert!(opened.restored.entries.len() >= 19, "cut at {end}");
        assert_eq!(opened.restored.hard_state.get_commit(), 2, "cut at {end}");
    }
}

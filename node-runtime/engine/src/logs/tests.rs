//! Whole logs, rotated and followed.

use std::fs;
use std::io::Write;

use super::*;
use crate::config::ContainerConfig;
use crate::container::Status;

fn raw(n: i64, text: &str) -> String {
    let time = Timestamp(n * 1_000_000_000 + 1).rfc3339_nano();
    let stream = if n % 2 == 0 { "stdout" } else { "stderr" };
    format!("{}\n", serde_json::json!({"log": text, "stream": stream, "time": time}))
}

fn lines(range: std::ops::Range<i64>) -> String {
    range.map(|n| raw(n, &format!("line {n}\n"))).collect()
}

fn state(status: Status) -> (watch::Sender<Arc<Container>>, watch::Receiver<Arc<Container>>) {
    let mut container = crate::spec::tests::container(ContainerConfig::default(), Vec::new());
    container.state.status = status;
    watch::channel(Arc::new(container))
}

async fn read(path: &Path, options: LogOptions) -> Vec<String> {
    let (_sender, state) = state(Status::Exited);
    let stream = open(path.to_owned(), options, state).await.expect("open");
    stream.map(|entry| String::from_utf8_lossy(&entry.line).trim_end().to_owned()).collect().await
}

fn tail(lines: usize) -> LogOptions {
    LogOptions { tail: Some(lines), ..LogOptions::default() }
}

#[tokio::test]
async fn rotated_files_are_read_from_old_to_new() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("x.log");
    fs::write(dir.path().join("x.log.2"), lines(0..3)).expect("write");
    fs::write(dir.path().join("x.log.1"), lines(3..5)).expect("write");
    fs::write(&path, lines(5..9)).expect("write");
    let all: Vec<String> = (0..9).map(|n| format!("line {n}")).collect();
    assert_eq!(read(&path, LogOptions::default()).await, all);
    for n in 0..12 {
        assert_eq!(read(&path, tail(n)).await, all[all.len().saturating_sub(n)..], "tail {n}");
    }
}

#[tokio::test]
async fn a_long_log_is_tailed_across_blocks_and_parts() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("x.log");
    let mut text = lines(0..3000);
    text.push_str(&raw(3000, &"a".repeat(16 << 10)));
    text.push_str(&raw(3000, "b\n"));
    fs::write(&path, text).expect("write");
    let last = read(&path, tail(2)).await;
    assert_eq!(last.len(), 2);
    assert_eq!(last[0], "line 2999");
    assert_eq!(last[1].len(), (16 << 10) + 1);
    assert_eq!(read(&path, tail(2500)).await.len(), 2500);
}

#[tokio::test]
async fn times_and_streams_are_filtered() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("x.log");
    fs::write(&path, lines(0..10)).expect("write");
    let at = |n: i64| Some(Timestamp(n * 1_000_000_000 + 1));
    let between = LogOptions { since: at(3), until: at(5), ..LogOptions::default() };
    assert_eq!(read(&path, between).await, ["line 3", "line 4", "line 5"]);
    let only_out = LogOptions { stderr: false, ..LogOptions::default() };
    assert_eq!(read(&path, only_out).await, ["line 0", "line 2", "line 4", "line 6", "line 8"]);
}

#[tokio::test]
async fn a_log_that_is_not_there_is_empty_and_an_unfinished_line_is_not_shown() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("x.log");
    assert!(read(&path, LogOptions::default()).await.is_empty());
    fs::write(&path, format!("{}{{\"log\":\"torn", lines(0..1))).expect("write");
    assert_eq!(read(&path, LogOptions::default()).await, ["line 0"]);
    fs::write(&path, format!("{}{}", lines(0..1), raw(1, "no newline"))).expect("write");
    assert_eq!(read(&path, LogOptions::default()).await, ["line 0", "no newline"]);
}

#[tokio::test]
async fn a_follower_goes_across_a_rotation_and_ends_with_the_container() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("x.log");
    fs::write(&path, lines(0..2)).expect("write");
    let (sender, receiver) = state(Status::Running);
    let options = LogOptions { follow: true, tail: Some(1), ..LogOptions::default() };
    let mut stream = open(path.clone(), options, receiver).await.expect("open");
    let mut next =
        async || stream.next().await.map(|entry| String::from_utf8_lossy(&entry.line).trim().to_owned());
    assert_eq!(next().await.as_deref(), Some("line 1"));
    let mut file = fs::OpenOptions::new().append(true).open(&path).expect("append");
    file.write_all(lines(2..3).as_bytes()).expect("write");
    assert_eq!(next().await.as_deref(), Some("line 2"));
    file.write_all(lines(3..4).as_bytes()).expect("write");
    fs::rename(&path, dir.path().join("x.log.1")).expect("rotate");
    fs::write(&path, lines(4..6)).expect("write");
    for n in 3..6 {
        assert_eq!(next().await, Some(format!("line {n}")));
    }
    fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .expect("append")
        .write_all(lines(6..7).as_bytes())
        .expect("write");
    sender.send_modify(|container| Arc::make_mut(container).state.status = Status::Exited);
    assert_eq!(next().await.as_deref(), Some("line 6"), "what was written before the end is not lost");
    assert_eq!(next().await, None);
}

/// A record as `rswarm_shim::log::local` says it is.
fn frame(n: i64, text: &str) -> Vec<u8> {
    let (text, partial) = text.strip_suffix('\n').map_or((text, 4), |text| (text, 0));
    let flags = if n % 2 == 0 { 1 } else { 2 } | partial;
    let mut out = vec![0xa7, flags];
    out.extend(u16::try_from(text.len()).expect("short").to_le_bytes());
    out.extend((n * 1_000_000_000 + 1).to_le_bytes());
    out.extend(text.as_bytes());
    out.extend(u16::try_from(text.len() + 14).expect("short").to_le_bytes());
    out
}

fn frames(range: std::ops::Range<i64>) -> Vec<u8> {
    let records = range.flat_map(|n| frame(n, &format!("line {n}\n")));
    b"RSWLOG\x01\n".iter().copied().chain(records).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).expect("memory");
    gzip.finish().expect("memory")
}

async fn read_local(path: &Path, options: LogOptions) -> Vec<String> {
    let mut config = ContainerConfig::default();
    config.log.name = "local".to_owned();
    let container = crate::spec::tests::container(config, Vec::new());
    let (_sender, state) = watch::channel(Arc::new(container));
    let stream = open(path.to_owned(), options, state).await.expect("open");
    stream.map(|entry| String::from_utf8_lossy(&entry.line).trim_end().to_owned()).collect().await
}

#[tokio::test]
async fn local_and_compressed_files_are_one_log() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("x.log");
    fs::write(dir.path().join("x.log.2.gz"), gzip(&frames(0..3000))).expect("write");
    fs::write(dir.path().join("x.log.1"), frames(3000..3005)).expect("write");
    fs::write(&path, frames(3005..3009)).expect("write");
    let all: Vec<String> = (0..3009).map(|n| format!("line {n}")).collect();
    assert_eq!(read_local(&path, LogOptions::default()).await, all);
    for n in [0, 1, 4, 5, 9, 10, 500, 3009, 4000] {
        assert_eq!(read_local(&path, tail(n)).await, all[all.len().saturating_sub(n)..], "tail {n}");
    }
    let since = LogOptions { since: Some(Timestamp(3006 * 1_000_000_000)), ..LogOptions::default() };
    assert_eq!(read_local(&path, since).await, all[3006..]);
}

#[tokio::test]
async fn a_damaged_log_is_read_around_the_damage() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("x.log");
    let whole = frames(0..200);
    for at in (0..whole.len()).step_by(97) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        fs::write(&path, &damaged).expect("write");
        let read = read_local(&path, LogOptions::default()).await;
        assert!(read.len() >= 198, "{} lines after damage at {at}", read.len());
        assert_eq!(read_local(&path, tail(3)).await.len(), 3, "damage at {at}");
    }
    fs::write(dir.path().join("x.log.1.gz"), &gzip(&frames(0..500))[..200]).expect("write");
    fs::write(&path, [&b"garbage\xa7"[..], &frames(0..2)].concat()).expect("write");
    let read = read_local(&path, LogOptions::default()).await;
    assert_eq!(read[read.len() - 2..], ["line 0", "line 1"]);
}

#[tokio::test]
async fn a_follower_notices_that_a_single_file_was_emptied() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("x.log");
    fs::write(&path, lines(0..9)).expect("write");
    let (_sender, receiver) = state(Status::Running);
    let options = LogOptions { follow: true, tail: Some(1), ..LogOptions::default() };
    let mut stream = open(path.clone(), options, receiver).await.expect("open");
    let mut next =
        async || stream.next().await.map(|entry| String::from_utf8_lossy(&entry.line).trim().to_owned());
    assert_eq!(next().await.as_deref(), Some("line 8"));
    let file = fs::OpenOptions::new().append(true).open(&path).expect("append");
    file.set_len(0).expect("empty");
    (&file).write_all(lines(9..10).as_bytes()).expect("write");
    assert_eq!(next().await.as_deref(), Some("line 9"));
}

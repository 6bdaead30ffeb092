//! Whole logs on a disk.

use std::fs;
use std::io::Read;
use std::path::Path;

use proptest::prelude::*;

use super::*;

const NOW: Timestamp = Timestamp(1_700_000_000_500_000_000);

fn config(dir: &Path, max_size: u64, max_files: u32) -> LogFile {
    LogFile { path: dir.join("log"), max_size, max_files, ..LogFile::default() }
}

fn log(max_size: u64, max_files: u32) -> (tempfile::TempDir, Log) {
    let dir = tempfile::tempdir().expect("tempdir");
    let log = Log::open(&config(dir.path(), max_size, max_files)).expect("open");
    (dir, log)
}

fn json_lines(text: &str) -> Vec<String> {
    let parse = |line: &str| {
        serde_json::from_str::<serde_json::Value>(line).expect("JSON")["log"].as_str().map(str::to_owned)
    };
    text.lines().filter_map(parse).collect()
}

fn lines(dir: &tempfile::TempDir, name: &str) -> Vec<String> {
    json_lines(&fs::read_to_string(dir.path().join(name)).expect("log"))
}

fn local_lines(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    loop {
        match local::decode(bytes) {
            local::Found::Record(record) => {
                let newline: &[u8] = if record.partial { b"" } else { b"\n" };
                lines.push([record.text, newline].concat());
                bytes = &bytes[record.length..];
            }
            local::Found::Garbage(length) if length > 0 => bytes = &bytes[length..],
            local::Found::Garbage(_) | local::Found::Begun => return lines,
        }
    }
}

#[test]
fn lines_are_put_together_for_each_stream() {
    let (dir, mut log) = log(0, 1);
    log.output(Stream::Stdout, b"one\ntw", NOW);
    log.output(Stream::Stderr, b"err", NOW);
    log.output(Stream::Stdout, b"o\nend", NOW);
    assert_eq!(lines(&dir, "log"), ["one\n", "two\n"]);
    log.finish(NOW);
    assert_eq!(lines(&dir, "log"), ["one\n", "two\n", "end", "err"]);
}

#[test]
fn a_long_line_is_written_in_parts() {
    let (dir, mut log) = log(0, 1);
    let mut bytes = vec![b'x'; LINE_MAX + 5];
    bytes.push(b'\n');
    log.output(Stream::Stdout, &bytes, NOW);
    let lines = lines(&dir, "log");
    assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [LINE_MAX, 6]);
    assert!(!lines[0].ends_with('\n') && lines[1].ends_with('\n'));
}

#[test]
fn a_character_is_not_cut_in_two() {
    for shift in 0..4 {
        let (dir, mut log) = log(0, 1);
        let text = format!("{}{}\n", "x".repeat(shift), "🦀".repeat(LINE_MAX / 4 + 9));
        for part in text.as_bytes().chunks(4099) {
            log.output(Stream::Stdout, part, NOW);
        }
        assert_eq!(lines(&dir, "log").concat(), text);
    }
}

#[test]
fn files_are_rotated_and_the_oldest_goes() {
    let (dir, mut log) = log(200, 3);
    for number in 0..12 {
        log.output(Stream::Stdout, format!("line {number}\n").as_bytes(), NOW);
    }
    let mut all = lines(&dir, "log.2");
    all.extend(lines(&dir, "log.1"));
    all.extend(lines(&dir, "log"));
    assert_eq!(fs::read_dir(dir.path()).expect("dir").count(), 3);
    let wanted: Vec<String> = (12 - all.len()..12).map(|number| format!("line {number}\n")).collect();
    assert_eq!(all, wanted);
    assert!(fs::metadata(dir.path().join("log.1")).expect("log.1").len() <= 200);
}

#[test]
fn many_lines_at_once_are_rotated_one_by_one() {
    let (dir, mut log) = log(200, 3);
    let text: String = (0..12).map(|number| format!("line {number}\n")).collect();
    log.output(Stream::Stdout, text.as_bytes(), NOW);
    assert_eq!(lines(&dir, "log").last().map(String::as_str), Some("line 11\n"));
    for name in ["log", "log.1", "log.2"] {
        assert!(fs::metadata(dir.path().join(name)).expect(name).len() <= 200);
    }
}

#[test]
fn a_single_file_starts_anew() {
    let (dir, mut log) = log(150, 1);
    for number in 0..5 {
        log.output(Stream::Stdout, format!("line {number}\n").as_bytes(), NOW);
    }
    assert_eq!(lines(&dir, "log"), ["line 4\n"]);
    assert_eq!(fs::read_dir(dir.path()).expect("dir").count(), 1);
}

#[test]
fn rotated_files_are_compressed_and_say_what_they_were() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().expect("tempdir");
    let config = LogFile { compress: true, ..config(dir.path(), 200, 3) };
    let mut log = Log::open(&config).expect("open");
    log.output(Stream::Stdout, b"line 0\nline 1\n", NOW);
    let inode = fs::metadata(&config.path).expect("log").ino();
    log.output(Stream::Stdout, b"line 2\n", NOW);
    let Sink::File(store) = &mut log.sink else { panic!("no file") };
    store.wait_for_compression();
    let mut gzip =
        flate2::read::GzDecoder::new(fs::File::open(dir.path().join("log.1.gz")).expect("compressed"));
    assert_eq!(gzip.header().and_then(origin), Some(inode));
    let mut text = String::new();
    gzip.read_to_string(&mut text).expect("gzip");
    assert_eq!(json_lines(&text), ["line 0\n", "line 1\n"]);
    for number in 3..9 {
        log.output(Stream::Stdout, format!("line {number}\n").as_bytes(), NOW);
    }
    let Sink::File(store) = &mut log.sink else { panic!("no file") };
    store.wait_for_compression();
    let mut names: Vec<_> =
        fs::read_dir(dir.path()).expect("dir").map(|entry| entry.expect("entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["log", "log.1.gz", "log.2.gz"]);
}

#[test]
fn a_local_log_goes_on_after_a_torn_record() {
    let dir = tempfile::tempdir().expect("tempdir");
    let config = LogFile { format: LogFormat::Local, ..config(dir.path(), 0, 1) };
    let mut log = Log::open(&config).expect("open");
    log.output(Stream::Stdout, b"one\ntwo\n", NOW);
    let whole = fs::read(&config.path).expect("log");
    for cut in 1..18 {
        fs::write(&config.path, &whole[..whole.len() - cut]).expect("cut");
        let mut log = Log::open(&config).expect("open");
        log.output(Stream::Stderr, b"three\n", NOW);
        let lines = local_lines(&fs::read(&config.path).expect("log"));
        assert_eq!(lines, [b"one\n".to_vec(), b"three\n".to_vec()], "cut by {cut}");
    }
}

#[test]
fn a_full_disk_costs_lines_which_are_counted() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut log = Log::open(&config(dir.path(), 0, 1)).expect("open");
    let Sink::File(store) = &mut log.sink else { panic!("no file") };
    *store = LogStore::open(&LogFile { path: "/dev/full".into(), max_files: 1, ..LogFile::default() })
        .expect("full");
    log.output(Stream::Stdout, b"one\ntwo\n", NOW);
    assert_eq!(log.dropped(), 2);
    log.sink = Sink::File(LogStore::open(&config(dir.path(), 0, 1)).expect("open"));
    log.output(Stream::Stdout, b"three\n", NOW);
    let text = fs::read_to_string(dir.path().join("log")).expect("log");
    assert!(text.contains("\"rswarm.dropped\":\"2\""), "{text}");
}

#[test]
fn a_writer_writes_everything_while_there_is_room() {
    for format in [LogFormat::Json, LogFormat::Local] {
        let dir = tempfile::tempdir().expect("tempdir");
        let config = LogFile { buffer: Some(8 << 20), format, ..config(dir.path(), 0, 1) };
        let mut log = Log::open(&config).expect("open");
        let text: String = (0..20_000).map(|number| format!("line {number}\n")).collect();
        log.output(Stream::Stdout, text.as_bytes(), NOW);
        log.finish(NOW);
        assert_eq!(log.dropped(), 0);
        let bytes = fs::read(&config.path).expect("log");
        let written = match format {
            LogFormat::Json => json_lines(std::str::from_utf8(&bytes).expect("text")).concat().into_bytes(),
            LogFormat::Local => local_lines(&bytes).concat(),
        };
        assert!(written == text.as_bytes());
    }
}

#[test]
fn a_writer_that_is_held_up_costs_the_newest_lines() {
    let dir = tempfile::tempdir().expect("tempdir");
    let fifo = dir.path().join("log");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    // Both ends are open and nobody reads: the writer stands still when the FIFO is full.
    let mut reader = fs::OpenOptions::new().read(true).write(true).open(&fifo).expect("open");
    let config = LogFile { buffer: Some(64 << 10), ..config(dir.path(), 0, 1) };
    let mut log = Log::open(&config).expect("open");
    let lines: Vec<String> = (0..20_000).map(|number| format!("line {number}\n")).collect();
    for line in &lines {
        log.output(Stream::Stdout, line.as_bytes(), NOW);
    }
    let dropped = log.dropped();
    assert!(dropped > 5_000 && dropped < 20_000, "{dropped} of 20000 were dropped");
    assert!(log.wanted().is_some());
    let reading = std::thread::spawn(move || {
        let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
        let is_last = |text: &[u8]| {
            let end = &text[text.len().saturating_sub(200)..];
            end.ends_with(b"}\n") && end.windows(6).any(|window| window == b"last\\n")
        };
        while !is_last(&text) {
            let length = reader.read(&mut buffer).expect("read");
            text.extend_from_slice(&buffer[..length]);
        }
        String::from_utf8(text).expect("text")
    });
    while log.wanted().is_some() {
        log.pump();
    }
    log.output(Stream::Stdout, b"last\n", NOW);
    log.finish(NOW);
    let text = reading.join().expect("reader");
    let kept = json_lines(&text);
    assert_eq!(kept.len() as u64 + dropped, 20_001);
    assert_eq!(kept[..500], lines[..500]);
    let told = |line: &str| -> Option<u64> {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        line["attrs"][DROPPED].as_str()?.parse().ok()
    };
    assert_eq!(text.lines().filter_map(told).sum::<u64>(), dropped, "every loss is told once");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_is_lost_however_it_is_cut(
        bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'x'), Just(0xe2), Just(0x80), any::<u8>()], 0..4000),
        parts in proptest::collection::vec(1..500usize, 1..20),
    ) {
        let dir = tempfile::tempdir().expect("tempdir");
        let config = LogFile { format: LogFormat::Local, ..config(dir.path(), 0, 1) };
        let mut log = Log::open(&config).expect("open");
        let (mut rest, mut sizes) = (bytes.as_slice(), parts.iter().cycle());
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*sizes.next().expect("cycle")).min(rest.len()));
            log.output(Stream::Stdout, now, NOW);
            rest = later;
        }
        log.finish(NOW);
        prop_assert_eq!(local_lines(&fs::read(&config.path).expect("log")).concat(), bytes);
    }
}

//! The container's output as Docker's json-file log: one JSON object a line, rotated by size.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rswarm_base::Timestamp;

use crate::launch::LogFile;

/// A longer line is written in parts, all but the last without a newline.
pub(crate) const LINE_MAX: usize = 16 << 10;

/// Which of a process's two outputs. The number is stdcopy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout = 1,
    Stderr = 2,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// An open log. A write that fails (a full disk) is told once and the output goes on: a container does not
/// stop because its log cannot grow.
#[derive(Debug)]
pub(crate) struct Log {
    config: LogFile,
    file: File,
    size: u64,
    unfinished: [Vec<u8>; 2],
    failing: bool,
}

impl Log {
    /// Opens it to append.
    pub(crate) fn open(config: &LogFile) -> io::Result<Log> {
        let file = append(&config.path)?;
        let size = file.metadata()?.len();
        Ok(Log { config: config.clone(), file, size, unfinished: [Vec::new(), Vec::new()], failing: false })
    }

    /// Takes output; whole lines are written at once.
    pub(crate) fn output(&mut self, stream: Stream, bytes: &[u8], now: Timestamp) {
        let mut unfinished = std::mem::take(&mut self.unfinished[stream as usize - 1]);
        let mut records = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = LINE_MAX - unfinished.len();
            let (taken, ends) = match rest.iter().take(room).position(|byte| *byte == b'\n') {
                Some(newline) => (newline + 1, true),
                None => (rest.len().min(room), rest.len() >= room),
            };
            unfinished.extend_from_slice(&rest[..taken]);
            rest = &rest[taken..];
            if ends {
                self.add(&mut records, record(stream, &unfinished, now));
                unfinished.clear();
            }
        }
        self.unfinished[stream as usize - 1] = unfinished;
        self.flush(&mut records);
    }

    /// Writes what has no newline yet: nothing comes after it.
    pub(crate) fn finish(&mut self, now: Timestamp) {
        let mut records = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let unfinished = std::mem::take(&mut self.unfinished[stream as usize - 1]);
            if !unfinished.is_empty() {
                self.add(&mut records, record(stream, &unfinished, now));
            }
        }
        self.flush(&mut records);
    }

    /// Puts a record behind others that are not written yet; a record never crosses files.
    fn add(&mut self, records: &mut Vec<u8>, record: Vec<u8>) {
        let size = self.size + (records.len() + record.len()) as u64;
        if self.config.max_size > 0 && size > self.config.max_size && size > record.len() as u64 {
            self.flush(records);
            let rotated = self.rotate();
            self.tell(rotated);
        }
        records.extend(record);
    }

    fn flush(&mut self, records: &mut Vec<u8>) {
        if records.is_empty() {
            return;
        }
        let written = self.file.write_all(records);
        if written.is_ok() {
            self.size += records.len() as u64;
        }
        self.tell(written);
        records.clear();
    }

    fn tell(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => self.failing = false,
            Err(error) if !self.failing => {
                self.failing = true;
                tracing::error!(path = %self.config.path.display(), %error, "output is not logged");
            }
            Err(_) => {}
        }
    }

    /// `log` becomes `log.1`, `log.1` becomes `log.2`, and so on; the oldest goes.
    fn rotate(&mut self) -> io::Result<()> {
        let older = |number: u32| older(&self.config.path, number);
        for number in (1..self.config.max_files.max(1)).rev() {
            let from = if number == 1 { self.config.path.clone() } else { older(number - 1) };
            match fs::rename(&from, older(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.config.max_files <= 1 {
            self.file.set_len(0)?;
        } else {
            self.file = append(&self.config.path)?;
        }
        self.size = 0;
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

fn older(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// `{"log":"…\n","stream":"stdout","time":"…"}` and a newline, escaped as Go does it.
fn record(stream: Stream, line: &[u8], now: Timestamp) -> Vec<u8> {
    let mut text = String::with_capacity(line.len() + 80);
    text.push_str("{\"log\":\"");
    for letter in String::from_utf8_lossy(line).chars() {
        match letter {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\x1f' => {
                text.push_str(&format!("\\u{:04x}", u32::from(letter)));
            }
            _ => text.push(letter),
        }
    }
    text.push_str(&format!("\",\"stream\":\"{}\",\"time\":\"{now}\"}}\n", stream.name()));
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_500_000_000);

    fn log(max_size: u64, max_files: u32) -> (tempfile::TempDir, Log) {
        let dir = tempfile::tempdir().expect("tempdir");
        let config = LogFile { path: dir.path().join("log"), max_size, max_files };
        let log = Log::open(&config).expect("open");
        (dir, log)
    }

    fn lines(dir: &tempfile::TempDir, name: &str) -> Vec<String> {
        let text = fs::read_to_string(dir.path().join(name)).expect("log");
        let parse = |line: &str| {
            serde_json::from_str::<serde_json::Value>(line).expect("JSON")["log"].as_str().map(str::to_owned)
        };
        text.lines().filter_map(parse).collect()
    }

    #[test]
    fn a_record_is_dockers() {
        let text = String::from_utf8(record(Stream::Stderr, b"a \"b\" <c>\t\x01\xff\n", NOW)).expect("text");
        let wanted = "{\"log\":\"a \\\"b\\\" \\u003cc\\u003e\\t\\u0001\u{fffd}\\n\",\"stream\":\"stderr\",\"time\":\"2023-11-14T22:13:20.5Z\"}\n";
        assert_eq!(text, wanted);
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
    fn a_single_file_starts_anew() {
        let (dir, mut log) = log(150, 1);
        for number in 0..5 {
            log.output(Stream::Stdout, format!("line {number}\n").as_bytes(), NOW);
        }
        assert_eq!(lines(&dir, "log"), ["line 4\n"]);
        assert_eq!(fs::read_dir(dir.path()).expect("dir").count(), 1);
    }
}

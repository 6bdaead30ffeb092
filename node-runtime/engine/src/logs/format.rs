//! One record of a log, in each of the formats, as an entry. Pure.

use std::collections::BTreeMap;
use std::io::BufRead;

use rswarm_base::Timestamp;
use rswarm_shim::LogFormat;
use rswarm_shim::log::local::{self, Found};
use rswarm_shim::log::{DROPPED, Stream};
use serde::Deserialize;

use super::{LogEntry, LogSource};

/// The first record in `bytes` (empty: something to pass over) and how many bytes to go on by. `None` when
/// more have to come.
pub(super) fn next(format: LogFormat, bytes: &[u8]) -> Option<(&[u8], usize)> {
    match format {
        LogFormat::Json => {
            let mut reader = bytes;
            let length = reader.skip_until(b'\n').ok()?;
            Some((bytes[..length].strip_suffix(b"\n")?, length))
        }
        LogFormat::Local => match local::decode(bytes) {
            Found::Record(record) => Some((&bytes[..record.length], record.length)),
            Found::Garbage(0) | Found::Begun => None,
            Found::Garbage(length) => Some((&[], length)),
        },
    }
}

/// Reads a record; `None` for one that is none, such as the torn last line of a shim that was killed.
pub(super) fn parse(format: LogFormat, raw: &[u8]) -> Option<LogEntry> {
    match format {
        LogFormat::Json => parse_json(raw),
        LogFormat::Local => parse_local(raw),
    }
}

/// Whether the record ends a message: it is not a part that another follows.
pub(super) fn ends_message(format: LogFormat, raw: &[u8]) -> bool {
    parse(format, raw).is_some_and(|entry| entry.line.ends_with(b"\n"))
}

// spec: docker json-file, one object a line
#[derive(Deserialize)]
struct Line {
    log: String,
    stream: String,
    time: String,
    #[serde(default)]
    attrs: BTreeMap<String, String>,
}

fn parse_json(raw: &[u8]) -> Option<LogEntry> {
    let line: Line = serde_json::from_slice(raw).ok()?;
    let source = match line.stream.as_str() {
        "stdout" => LogSource::Stdout,
        "stderr" => LogSource::Stderr,
        _ => return None,
    };
    Some(LogEntry {
        source,
        at: Timestamp::parse(&line.time)?,
        line: line.log.into(),
        attributes: line.attrs,
    })
}

fn parse_local(raw: &[u8]) -> Option<LogEntry> {
    let Found::Record(record) = local::decode(raw) else { return None };
    let mut line = record.text.to_vec();
    if !record.partial {
        line.push(b'\n');
    }
    let source = match record.stream {
        Stream::Stdout => LogSource::Stdout,
        Stream::Stderr => LogSource::Stderr,
    };
    let mut attributes = BTreeMap::new();
    if record.dropped > 0 {
        attributes.insert(DROPPED.to_owned(), record.dropped.to_string());
    }
    Some(LogEntry { source, at: record.at, line: line.into(), attributes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(log: &str, stream: &str) -> Vec<u8> {
        let time = "2024-01-02T03:04:05.000000006Z";
        serde_json::to_vec(&serde_json::json!({"log": log, "stream": stream, "time": time})).expect("json")
    }

    #[test]
    fn a_line_is_read_and_a_torn_one_is_not() {
        let entry = parse_json(&raw("hello\n", "stderr")).expect("line");
        assert_eq!((entry.source, entry.line.as_ref()), (LogSource::Stderr, &b"hello\n"[..]));
        assert_eq!(entry.at.rfc3339_nano(), "2024-01-02T03:04:05.000000006Z");
        let whole = raw("hello\n", "stdout");
        assert!(parse_json(&whole[..whole.len() - 4]).is_none());
        assert!(parse_json(&raw("x", "stdin")).is_none());
    }
}

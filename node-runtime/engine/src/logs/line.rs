//! One line of a json-file log, and how the parts of a long message come together again. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use rswarm_base::Timestamp;
use serde::Deserialize;

use super::{LogEntry, LogSource};

/// Parts of one message are joined up to this size; then it is passed on as it is.
const MESSAGE_MAX: usize = 1 << 20;

// spec: docker json-file, one object a line
#[derive(Deserialize)]
struct Line {
    log: String,
    stream: String,
    time: String,
    #[serde(default)]
    attrs: BTreeMap<String, String>,
}

/// Reads a line; `None` for one that is none, such as the torn last line of a shim that was killed.
pub(super) fn parse(raw: &[u8]) -> Option<LogEntry> {
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

/// Whether the line ends a message: it is not a part that another follows.
pub(super) fn ends_message(raw: &[u8]) -> bool {
    parse(raw).is_some_and(|entry| entry.line.ends_with(b"\n"))
}

/// Joins the parts of messages that were longer than the shim's buffer, each stream by itself.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    pending: [Option<LogEntry>; 2],
}

impl Joiner {
    /// Takes a part; gives back the message when it is whole.
    pub(super) fn push(&mut self, part: LogEntry) -> Option<LogEntry> {
        let slot = &mut self.pending[part.source as usize];
        let message = match slot.take() {
            None => part,
            Some(begun) => {
                let mut line = Vec::from(begun.line);
                line.extend_from_slice(&part.line);
                LogEntry { line: Bytes::from(line), ..begun }
            }
        };
        if message.line.ends_with(b"\n") || message.line.len() >= MESSAGE_MAX {
            return Some(message);
        }
        *slot = Some(message);
        None
    }

    /// What was written without a newline at the very end.
    pub(super) fn finish(&mut self) -> impl Iterator<Item = LogEntry> + use<> {
        std::mem::take(&mut self.pending).into_iter().flatten()
    }
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
        let entry = parse(&raw("hello\n", "stderr")).expect("line");
        assert_eq!((entry.source, entry.line.as_ref()), (LogSource::Stderr, &b"hello\n"[..]));
        assert_eq!(entry.at.rfc3339_nano(), "2024-01-02T03:04:05.000000006Z");
        let whole = raw("hello\n", "stdout");
        assert!(parse(&whole[..whole.len() - 4]).is_none());
        assert!(parse(&raw("x", "stdin")).is_none());
    }

    #[test]
    fn parts_are_joined_each_stream_by_itself() {
        let mut joiner = Joiner::default();
        let mut push = |log: &str, stream: &str| joiner.push(parse(&raw(log, stream)).expect("line"));
        assert_eq!(push("one ", "stdout"), None);
        assert_eq!(push("oops\n", "stderr").expect("whole").line, "oops\n");
        assert_eq!(push("two\n", "stdout").expect("whole").line, "one two\n");
        assert_eq!(push("rest", "stdout"), None);
        let rest: Vec<LogEntry> = joiner.finish().collect();
        assert_eq!((rest.len(), rest[0].line.as_ref()), (1, &b"rest"[..]));
    }

    #[test]
    fn a_message_without_end_is_passed_on() {
        let mut joiner = Joiner::default();
        let part = "x".repeat(64 << 10);
        let passed = (0..16).filter_map(|_| joiner.push(parse(&raw(&part, "stdout")).expect("line"))).count();
        assert_eq!(passed, 1);
    }
}

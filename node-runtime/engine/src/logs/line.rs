//! How the parts of a long message come together again. Pure.

use bytes::Bytes;

use super::LogEntry;

/// Parts of one message are joined up to this size; then it is passed on as it is.
const MESSAGE_MAX: usize = 1 << 20;

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
    use std::collections::BTreeMap;

    use rswarm_base::Timestamp;

    use super::super::LogSource;
    use super::*;

    fn part(log: &str, source: LogSource) -> LogEntry {
        LogEntry { source, at: Timestamp(5), line: log.to_owned().into(), attributes: BTreeMap::default() }
    }

    #[test]
    fn parts_are_joined_each_stream_by_itself() {
        let mut joiner = Joiner::default();
        let mut push = |log: &str, source| joiner.push(part(log, source));
        assert_eq!(push("one ", LogSource::Stdout), None);
        assert_eq!(push("oops\n", LogSource::Stderr).expect("whole").line, "oops\n");
        assert_eq!(push("two\n", LogSource::Stdout).expect("whole").line, "one two\n");
        assert_eq!(push("rest", LogSource::Stdout), None);
        let rest: Vec<LogEntry> = joiner.finish().collect();
        assert_eq!((rest.len(), rest[0].line.as_ref()), (1, &b"rest"[..]));
    }

    #[test]
    fn a_message_without_end_is_passed_on() {
        let mut joiner = Joiner::default();
        let text = "x".repeat(64 << 10);
        let passed = (0..16).filter_map(|_| joiner.push(part(&text, LogSource::Stdout))).count();
        assert_eq!(passed, 1);
    }
}

//! Where callers of runtimes look for what went wrong: the file that `--log` names, in runc's two formats.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rswarm_base::Timestamp;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::failure::{Context, Failure};

/// A log. Its file is opened for each line: nothing of it is there to be inherited.
#[derive(Debug, Clone)]
pub(super) struct Log {
    /// Standard error, when it is `None`.
    pub path: Option<PathBuf>,
    pub json: bool,
    pub debug: bool,
}

impl Log {
    /// Makes the file, or says that nothing can be written there: a caller who reads it must find one, as with runc.
    pub(super) fn open(&self) -> Result<(), Failure> {
        let Some(path) = &self.path else { return Ok(()) };
        append(path).map(drop).with_context(|| format!("open {}", path.display()))
    }

    /// Writes the reason for which a command failed, and tells the person at the terminal too.
    pub(super) fn failed(&self, failure: &Failure) {
        let _ = writeln!(io::stderr(), "error: {failure}");
        if self.path.is_some() {
            self.write("error", &failure.message);
        }
    }

    /// Makes what the library has to say along the way arrive here.
    pub(super) fn listen(&self) {
        // It fails when the process has another subscriber, which then hears it.
        let _ = tracing::subscriber::set_global_default(self.clone());
    }

    fn write(&self, level: &str, message: &str) {
        let line = self.line(level, message);
        let _ = match &self.path {
            Some(path) => append(path).and_then(|mut file| file.write_all(line.as_bytes())),
            None => io::stderr().write_all(line.as_bytes()),
        };
    }

    fn line(&self, level: &str, message: &str) -> String {
        let now = Timestamp::now();
        if self.json {
            let line = serde_json::json!({"level": level, "msg": message, "time": now.to_string()});
            format!("{line}\n")
        } else {
            format!("time=\"{now}\" level={level} msg={message:?}\n")
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= if self.debug { Level::DEBUG } else { Level::WARN }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut words = Words::default();
        event.record(&mut words);
        // logrus says "warning" where tracing says "warn".
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        self.write(level, &(words.message + &words.fields));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// An event's text.
#[derive(Default)]
struct Words {
    message: String,
    fields: String,
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_callers_parse_them() {
        let log = Log { path: None, json: true, debug: false };
        let line: serde_json::Value = serde_json::from_str(&log.line("error", "a \"b\"\n")).expect("json");
        assert_eq!((&line["level"], &line["msg"]), (&"error".into(), &"a \"b\"\n".into()));
        let text = Log { json: false, ..log }.line("warning", "a \"b\"");
        assert!(
            text.starts_with("time=\"") && text.ends_with(" level=warning msg=\"a \\\"b\\\"\"\n"),
            "{text}"
        );
    }

    #[test]
    fn what_the_library_says_arrives() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        let log = Log { path: Some(path.clone()), json: true, debug: false };
        tracing::subscriber::with_default(log, || {
            tracing::warn!(count = 3, "hook failed");
            tracing::debug!("not this");
        });
        let text = std::fs::read_to_string(path).expect("log");
        let line: serde_json::Value = serde_json::from_str(&text).expect("one line");
        assert_eq!((&line["level"], &line["msg"]), (&"warning".into(), &"hook failed count=3".into()));
    }
}

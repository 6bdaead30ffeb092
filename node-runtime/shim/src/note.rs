//! The shim's own log: lines on standard error, which is `shim.log`. No subscriber and no formatter of events:
//! a thousand shims would each keep one.

use std::fmt::{self, Write as _};
use std::io::Write;

use rswarm_base::Timestamp;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Writes a line with the time. A full disk is no reason to stop.
pub(crate) fn note(words: fmt::Arguments<'_>) {
    let line = format!("{} {words}\n", Timestamp::wall());
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Has what libraries warn of written as notes.
pub(crate) fn listen() {
    // Only a second call fails.
    let _ = tracing::subscriber::set_global_default(Warnings);
}

struct Warnings;

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn event(&self, event: &Event<'_>) {
        let mut words = Words(String::new());
        event.record(&mut words);
        note(format_args!("{}", words.0.trim_start()));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// The message, then the fields.
struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing into a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

//! The shim's own log: lines on standard error, which is `shim.log`. No subscriber and no formatter of events:
//! a thousand shims would each keep one.

use std::fmt;
use std::io::Write;

use rswarm_base::Timestamp;

/// Writes a line with the time. A full disk is no reason to stop.
pub(crate) fn note(words: fmt::Arguments<'_>) {
    let line = format!("{} {words}\n", Timestamp::now());
    let _ = std::io::stderr().write_all(line.as_bytes());
}

//! The container's output on disk: lines are taken out of what a process writes, framed by the format, and
//! handed to the file, at once or through a bounded buffer.
//!
//! * `split`: this module. A line is at most [`LINE_MAX`] bytes long; a longer one is written in parts.
//! * [`json`] and [`local`]: how a line looks on disk.
//! * [`scan`]: how the ends of lines, and what JSON escapes, are found.
//! * [`file`]: size, rotation, compression, and what happens when the disk is full.
//! * [`writer`]: the second process of `mode=non-blocking`, where a slow disk costs lines and not time.
//!
//! Lines that could not be kept are counted. The next one that is kept carries the count of those lost before
//! it (in json-file as the attribute [`DROPPED`], which `docker logs --details` shows): a line of our own
//! between the container's would be taken for the container's by whoever parses them.

mod file;
mod json;
pub mod local;
mod scan;
mod writer;

use std::io;
use std::os::fd::BorrowedFd;

use rswarm_base::Timestamp;

use self::file::LogStore;
use self::writer::Writer;
use crate::launch::{LogFile, LogFormat};

pub use self::file::{COMPRESSED, origin};

/// A longer line is written in parts, all but the last without a newline.
// spec: docker: daemon/logger/copier.go, message limit 16 KiB
pub const LINE_MAX: usize = 16 << 10;

/// The attribute of a json-file line that says how many lines were lost before it.
pub const DROPPED: &str = "rswarm.dropped";

/// Which of a process's two outputs. The number is stdcopy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout = 1,
    /// Standard error.
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
    encoder: Encoder,
    sink: Sink,
    /// What has no newline yet, of each stream.
    unfinished: [Vec<u8>; 2],
    /// Whole records that are not handed on yet; empty between calls.
    batch: Vec<u8>,
    /// Lines lost in all.
    dropped: u64,
    /// Lines lost since the last record that tells.
    untold: u64,
    /// What the batch's first record tells.
    telling: u64,
}

/// Lines that could not be kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Lost {
    lines: u64,
    /// The first of those handed on, which may have told of earlier losses, is one of them.
    first: bool,
}

#[derive(Debug)]
enum Sink {
    /// `mode=blocking`: the container waits for the disk.
    File(LogStore),
    /// `mode=non-blocking`.
    Writer(Writer),
}

/// A format with what it writes into every record.
#[derive(Debug)]
enum Encoder {
    Json(json::Encoder),
    Local,
}

impl Encoder {
    fn record(&mut self, out: &mut Vec<u8>, line: Line<'_>) {
        match self {
            Encoder::Json(encoder) => encoder.record(out, line),
            Encoder::Local => local::encode(out, line),
        }
    }

    /// The record of the line that begins `line.text`, and the line's length; nothing when no newline is there.
    fn first_line(&mut self, out: &mut Vec<u8>, line: Line<'_>) -> Option<usize> {
        match self {
            Encoder::Json(encoder) => encoder.first_line(out, line),
            Encoder::Local => {
                let text = line.text.get(..=scan::until::<scan::Newline>(line.text))?;
                local::encode(out, Line { text, ..line });
                Some(text.len())
            }
        }
    }
}

/// One line, or a part of one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line<'a> {
    pub stream: Stream,
    pub at: Timestamp,
    /// With its newline, unless it is a part that another follows.
    pub text: &'a [u8],
    /// Lines that were lost right before it.
    pub dropped: u64,
}

impl Log {
    /// Opens it to append.
    pub(crate) fn open(config: &LogFile) -> io::Result<Log> {
        let encoder = match config.format {
            LogFormat::Json => Encoder::Json(json::Encoder::new(&config.attrs)),
            LogFormat::Local => Encoder::Local,
        };
        let store = LogStore::open(config)?;
        let sink = match config.buffer {
            None => Sink::File(store),
            Some(bytes) => Sink::Writer(Writer::start(store, config.format, bytes)?),
        };
        let unfinished = [Vec::new(), Vec::new()];
        Ok(Log { encoder, sink, unfinished, batch: Vec::new(), dropped: 0, untold: 0, telling: 0 })
    }

    /// Takes output; all whole lines in it are handed on together.
    pub(crate) fn output(&mut self, stream: Stream, bytes: &[u8], at: Timestamp) {
        let mut unfinished = std::mem::take(&mut self.unfinished[stream as usize - 1]);
        let mut rest = bytes;
        while !rest.is_empty() {
            if unfinished.is_empty()
                && let Some(length) = self.add_first_line(stream, rest, at)
            {
                rest = &rest[length..];
                continue;
            }
            let piece = piece(rest, LINE_MAX - unfinished.len());
            let (text, after) = rest.split_at(piece.length);
            rest = after;
            if unfinished.is_empty() && piece.ends {
                self.add(stream, text, at);
                continue;
            }
            unfinished.extend_from_slice(text);
            if piece.ends {
                self.add(stream, &unfinished, at);
                unfinished.clear();
            }
        }
        self.unfinished[stream as usize - 1] = unfinished;
        self.flush();
    }

    /// What most output is made of: a line that is all there, looked at once.
    fn add_first_line(&mut self, stream: Stream, text: &[u8], at: Timestamp) -> Option<usize> {
        let (text, dropped) = (&text[..text.len().min(LINE_MAX)], self.untold);
        let length = self.encoder.first_line(&mut self.batch, Line { stream, at, text, dropped })?;
        self.telling += std::mem::take(&mut self.untold);
        Some(length)
    }

    fn add(&mut self, stream: Stream, text: &[u8], at: Timestamp) {
        let dropped = std::mem::take(&mut self.untold);
        self.telling += dropped;
        self.encoder.record(&mut self.batch, Line { stream, at, text, dropped });
    }

    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let lost = match &mut self.sink {
            Sink::File(store) => store.append(&self.batch),
            Sink::Writer(writer) => writer.offer(&self.batch),
        };
        self.note(lost.lines);
        let told = std::mem::take(&mut self.telling);
        self.untold += if lost.first { told } else { 0 };
        self.batch.clear();
    }

    fn note(&mut self, lost: u64) {
        self.dropped += lost;
        self.untold += lost;
    }

    /// How many lines were lost in all.
    pub(crate) fn dropped(&mut self) -> u64 {
        if let Sink::Writer(writer) = &mut self.sink {
            let lost = writer.lost();
            self.note(lost);
        }
        self.dropped
    }

    /// What to poll for room, while something waits for it.
    pub(crate) fn wanted(&self) -> Option<BorrowedFd<'_>> {
        match &self.sink {
            Sink::File(_) => None,
            Sink::Writer(writer) => writer.wanted(),
        }
    }

    /// There is room.
    pub(crate) fn pump(&mut self) {
        if let Sink::Writer(writer) = &mut self.sink {
            let lost = writer.pump();
            self.note(lost);
        }
    }

    /// Gives memory back that only a busy log needs.
    pub(crate) fn rest(&mut self) {
        self.batch = Vec::new();
        for unfinished in &mut self.unfinished {
            unfinished.shrink_to_fit();
        }
    }

    /// Writes what has no newline yet: nothing comes after it. Waits for a writer, but not for ever.
    pub(crate) fn finish(&mut self, at: Timestamp) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let unfinished = std::mem::take(&mut self.unfinished[stream as usize - 1]);
            if !unfinished.is_empty() {
                self.add(stream, &unfinished, at);
            }
        }
        self.flush();
        if let Sink::Writer(writer) = &mut self.sink {
            let lost = writer.finish();
            self.note(lost);
        }
    }
}

/// The beginning of some output.
struct Piece {
    length: usize,
    /// It ends a record: by a newline, or because the record is full.
    ends: bool,
}

/// What of `rest` belongs to a record that has room for `room` more bytes (at least one).
fn piece(rest: &[u8], room: usize) -> Piece {
    let window = &rest[..rest.len().min(room)];
    let length = scan::until::<scan::Newline>(window);
    if length < window.len() {
        return Piece { length: length + 1, ends: true };
    }
    if rest.len() < room {
        return Piece { length, ends: false };
    }
    // A character is not cut in two, unless it is none.
    let cut = (1..=3).find(|back| rest.get(room - back).is_some_and(|byte| *byte & 0xc0 == 0xc0));
    match cut {
        Some(back) if back < room && rest.get(room).is_some_and(|next| next & 0xc0 == 0x80) => {
            Piece { length: room - back, ends: true }
        }
        _ => Piece { length: room, ends: true },
    }
}

/// The length of the first record in `bytes`; `None` when not all of it is there.
fn record_length(format: LogFormat, bytes: &[u8]) -> Option<usize> {
    match format {
        LogFormat::Json => {
            let length = scan::until::<scan::Newline>(bytes) + 1;
            (length <= bytes.len()).then_some(length)
        }
        LogFormat::Local => local::length(bytes).filter(|length| *length <= bytes.len()),
    }
}

#[cfg(test)]
mod tests;

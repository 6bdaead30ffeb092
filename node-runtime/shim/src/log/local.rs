//! The `local` format: each line framed in binary, readable from both ends. Pure.
//!
//! A file begins with [`HEADER`]; then there is nothing but records, all numbers little endian:
//!
//! ```text
//!  0  u8   MAGIC
//!  1  u8   flags: 1 standard output, 2 standard error; 4 no newline follows; 8 lines were lost before
//!  2  u16  length of the text, at most 16 KiB
//!  4  i64  nanoseconds since the epoch
//! 12  u32  how many lines were lost, only with flag 8
//!     …    the text, as it was written, without its newline
//!     u16  length of the whole record: a reader that comes from the end begins here
//! ```
//!
//! The newline is implied unless flag 4 says otherwise: then this is a part of a line and the stream's next
//! record goes on with it, or the stream has ended. A line costs 14 bytes more than its text.
//! A reader that finds no record where one should begin (a torn write, a bad disk) goes on with the next byte
//! where magic, flags and both lengths agree.

use rswarm_base::Timestamp;

use super::{LINE_MAX, Line, Stream};

/// The first bytes of every file: name, version.
pub const HEADER: &[u8; 8] = b"RSWLOG\x01\n";

const MAGIC: u8 = 0xa7;
const STREAM: u8 = 3;
const PARTIAL: u8 = 4;
const DROPPED: u8 = 8;
/// Magic, flags, length, time.
const FIXED: usize = 12;
const TRAILER: usize = 2;

/// The longest record.
pub const RECORD_MAX: usize = FIXED + 4 + LINE_MAX + TRAILER;

/// A record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Who wrote it.
    pub stream: Stream,
    /// When.
    pub at: Timestamp,
    /// The text without its newline.
    pub text: &'a [u8],
    /// No newline follows.
    pub partial: bool,
    /// Lines that were lost right before it.
    pub dropped: u32,
    /// Bytes that the record takes.
    pub length: usize,
}

pub(super) fn encode(out: &mut Vec<u8>, line: Line<'_>) {
    let (text, partial) = match line.text.strip_suffix(b"\n") {
        Some(text) => (text, 0),
        None => (line.text, PARTIAL),
    };
    let dropped = u32::try_from(line.dropped).unwrap_or(u32::MAX);
    let flags = line.stream as u8 | partial | if dropped > 0 { DROPPED } else { 0 };
    let length = u16::try_from(text.len()).expect("a line was cut at 16 KiB");
    let begin = out.len();
    let mut fixed = [0; FIXED];
    (fixed[0], fixed[1]) = (MAGIC, flags);
    fixed[2..4].copy_from_slice(&length.to_le_bytes());
    fixed[4..].copy_from_slice(&line.at.0.to_le_bytes());
    out.extend_from_slice(&fixed);
    if dropped > 0 {
        out.extend_from_slice(&dropped.to_le_bytes());
    }
    out.extend_from_slice(text);
    let whole = u16::try_from(out.len() - begin + TRAILER).expect("a record is shorter than 64 KiB");
    out.extend_from_slice(&whole.to_le_bytes());
}

/// The length of the record that begins `bytes`, by its first fields; `None` when none begins there or they
/// are not all there.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    let head: &[u8; 4] = bytes.first_chunk()?;
    let text = usize::from(u16::from_le_bytes([head[2], head[3]]));
    let known = head[0] == MAGIC && matches!(head[1] & STREAM, 1 | 2) && head[1] < 16 && text <= LINE_MAX;
    known.then(|| FIXED + if head[1] & DROPPED == 0 { 0 } else { 4 } + text + TRAILER)
}

/// What is at the beginning of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'a> {
    /// A record.
    Record(Record<'a>),
    /// The beginning of one; the rest is not there yet.
    Begun,
    /// So many bytes that are part of none.
    Garbage(usize),
}

/// Reads the first record.
#[must_use]
pub fn decode(bytes: &[u8]) -> Found<'_> {
    if bytes.starts_with(HEADER) {
        return Found::Garbage(HEADER.len());
    }
    match record(bytes) {
        Some(record) => Found::Record(record),
        None if may_begin(bytes) => Found::Begun,
        None => {
            let next =
                (1..bytes.len()).find(|at| record(&bytes[*at..]).is_some() || may_begin(&bytes[*at..]));
            Found::Garbage(next.unwrap_or(bytes.len()))
        }
    }
}

/// Whether more bytes could make a record of it.
fn may_begin(bytes: &[u8]) -> bool {
    match length(bytes) {
        Some(length) => bytes.len() < length,
        None => bytes.len() < 4 && bytes.first().is_none_or(|byte| *byte == MAGIC),
    }
}

fn record(bytes: &[u8]) -> Option<Record<'_>> {
    let length = length(bytes)?;
    let whole = bytes.get(..length)?;
    let (body, trailer) = whole.split_last_chunk::<TRAILER>()?;
    if usize::from(u16::from_le_bytes(*trailer)) != length {
        return None;
    }
    let (time, rest) = body[4..].split_first_chunk::<8>()?;
    let flags = body[1];
    let (dropped, text) = match rest.split_first_chunk::<4>() {
        Some((count, text)) if flags & DROPPED != 0 => (u32::from_le_bytes(*count), text),
        _ => (0, rest),
    };
    Some(Record {
        stream: if flags & STREAM == 1 { Stream::Stdout } else { Stream::Stderr },
        at: Timestamp(i64::from_le_bytes(*time)),
        text,
        partial: flags & PARTIAL != 0,
        dropped,
        length,
    })
}

/// Reads the last record; `None` when `bytes` do not end with a whole one.
#[must_use]
pub fn decode_last(bytes: &[u8]) -> Option<Record<'_>> {
    let trailer = bytes.last_chunk::<TRAILER>()?;
    let begin = bytes.len().checked_sub(usize::from(u16::from_le_bytes(*trailer)))?;
    record(&bytes[begin..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines() -> impl Strategy<Value = Vec<(bool, Vec<u8>, u64)>> {
        proptest::collection::vec(
            (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..300), 0..3u64),
            0..20,
        )
    }

    fn encode_all(lines: &[(bool, Vec<u8>, u64)]) -> Vec<u8> {
        let mut out = HEADER.to_vec();
        for (number, (error, text, dropped)) in lines.iter().enumerate() {
            let stream = if *error { Stream::Stderr } else { Stream::Stdout };
            let at = Timestamp(i64::try_from(number).expect("small"));
            encode(&mut out, Line { stream, at, text, dropped: *dropped });
        }
        out
    }

    /// All records, and how many steps it took to find them.
    fn decode_all(mut bytes: &[u8]) -> (Vec<Record<'_>>, usize) {
        let (mut records, mut steps) = (Vec::new(), 0);
        loop {
            steps += 1;
            match decode(bytes) {
                Found::Record(record) => {
                    records.push(record);
                    bytes = &bytes[record.length..];
                }
                Found::Garbage(length) if length > 0 => bytes = &bytes[length..],
                Found::Garbage(_) | Found::Begun => return (records, steps),
            }
        }
    }

    fn as_written(record: &Record<'_>) -> (bool, Vec<u8>, u64) {
        let mut text = record.text.to_vec();
        if !record.partial {
            text.push(b'\n');
        }
        (record.stream == Stream::Stderr, text, u64::from(record.dropped))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn what_was_written_is_read_from_both_ends(lines in lines()) {
            let bytes = encode_all(&lines);
            let (records, _) = decode_all(&bytes);
            prop_assert_eq!(records.iter().map(as_written).collect::<Vec<_>>(), lines);
            let mut rest = bytes.as_slice();
            for record in records.iter().rev() {
                prop_assert_eq!(decode_last(rest), Some(*record));
                rest = &rest[..rest.len() - record.length];
            }
            prop_assert_eq!(rest, HEADER);
        }

        #[test]
        fn damage_loses_little_and_ends(lines in lines(), at in any::<prop::sample::Index>(), garbage in proptest::collection::vec(any::<u8>(), 1..40)) {
            let bytes = encode_all(&lines);
            let at = at.index(bytes.len());
            let mut damaged = bytes[..at].to_vec();
            damaged.extend_from_slice(&garbage);
            damaged.extend_from_slice(&bytes[at..]);
            let (records, steps) = decode_all(&damaged);
            prop_assert!(steps <= damaged.len() + 2);
            prop_assert!(records.iter().all(|record| record.text.len() <= LINE_MAX));
        }

        #[test]
        fn any_bytes_are_read_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let (_, steps) = decode_all(&bytes);
            prop_assert!(steps <= bytes.len() + 2);
            let _ = decode_last(&bytes);
        }
    }

    #[test]
    fn a_torn_record_is_waited_for_and_then_skipped() {
        let line = |text: &[u8]| {
            let mut out = Vec::new();
            encode(&mut out, Line { stream: Stream::Stdout, at: Timestamp(5), text, dropped: 0 });
            out
        };
        let (one, two) = (line(b"one\n"), line(b"two\n"));
        for cut in 0..one.len() {
            assert_eq!(decode(&one[..cut]), Found::Begun, "cut at {cut}");
        }
        let torn = [&one[..one.len() - 3], &two].concat();
        let (records, _) = decode_all(&torn);
        assert_eq!(records.iter().map(|record| record.text).collect::<Vec<_>>(), [b"two"]);
    }
}

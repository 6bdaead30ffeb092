//! Docker's json-file: `{"log":"…\n","stream":"stdout","attrs":{…},"time":"…"}` and a newline. Pure.

use std::collections::BTreeMap;
use std::io::Write;

use rswarm_base::Timestamp;

use super::{DROPPED, Line, Stream, scan};

const PREFIX: &[u8] = b"{\"log\":\"";

/// Writes records. What follows the text is the same for all lines of one read, and made once for them.
#[derive(Debug)]
pub(super) struct Encoder {
    attrs: BTreeMap<String, String>,
    /// For whom [`Encoder::suffix`] is.
    made_for: Option<(Stream, Timestamp)>,
    suffix: Vec<u8>,
}

impl Encoder {
    pub(super) fn new(attrs: &BTreeMap<String, String>) -> Encoder {
        Encoder { attrs: attrs.clone(), made_for: None, suffix: Vec::new() }
    }

    /// One record; its text has no newline but at its end.
    pub(super) fn record(&mut self, out: &mut Vec<u8>, line: Line<'_>) {
        out.extend_from_slice(PREFIX);
        escape(out, line.text);
        self.end(out, line);
    }

    /// The record of the line that begins `text`, and the line's length; nothing when no newline is there.
    pub(super) fn first_line(&mut self, out: &mut Vec<u8>, line: Line<'_>) -> Option<usize> {
        let begin = out.len();
        out.extend_from_slice(PREFIX);
        let length = escape(out, line.text);
        if !line.text[..length].ends_with(b"\n") {
            out.truncate(begin);
            return None;
        }
        self.end(out, line);
        Some(length)
    }

    fn end(&mut self, out: &mut Vec<u8>, line: Line<'_>) {
        if line.dropped > 0 {
            let mut attrs = self.attrs.clone();
            attrs.insert(DROPPED.to_owned(), line.dropped.to_string());
            return suffix(out, line.stream, line.at, &attrs);
        }
        if self.made_for != Some((line.stream, line.at)) {
            self.suffix.clear();
            suffix(&mut self.suffix, line.stream, line.at, &self.attrs);
            self.made_for = Some((line.stream, line.at));
        }
        out.extend_from_slice(&self.suffix);
    }
}

fn suffix(out: &mut Vec<u8>, stream: Stream, at: Timestamp, attrs: &BTreeMap<String, String>) {
    out.extend_from_slice(b"\",\"stream\":\"");
    out.extend_from_slice(stream.name().as_bytes());
    if !attrs.is_empty() {
        out.extend_from_slice(b"\",\"attrs\":{\"");
        for (number, (key, value)) in attrs.iter().enumerate() {
            out.extend_from_slice(if number == 0 { b"" } else { b",\"" });
            escape(out, key.as_bytes());
            out.extend_from_slice(b"\":\"");
            escape(out, value.as_bytes());
            out.push(b'"');
        }
        out.extend_from_slice(b"},\"time\":\"");
    } else {
        out.extend_from_slice(b"\",\"time\":\"");
    }
    writeln!(out, "{at}\"}}").expect("memory takes everything");
}

/// Up to and with the first newline, or all, as Go escapes it; returns how much that was.
fn escape(out: &mut Vec<u8>, text: &[u8]) -> usize {
    let mut rest = text;
    loop {
        let (plain, special) = rest.split_at(scan::until::<scan::Special>(rest));
        out.extend_from_slice(plain);
        rest = special;
        match rest.first() {
            None => return text.len(),
            Some(b'\n') => {
                out.extend_from_slice(b"\\n");
                return text.len() - rest.len() + 1;
            }
            Some(byte) if byte.is_ascii() => {
                escape_ascii(out, *byte);
                rest = &rest[1..];
            }
            Some(_) => {
                let length = rest.iter().take_while(|byte| !byte.is_ascii()).count();
                escape_others(out, &rest[..length]);
                rest = &rest[length..];
            }
        }
    }
}

fn escape_ascii(out: &mut Vec<u8>, byte: u8) {
    match byte {
        b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        _ => {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
        }
    }
}

/// Bytes that are no ASCII. Each that is no UTF-8 becomes U+FFFD.
fn escape_others(out: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        let mut valid = chunk.valid().as_bytes();
        // U+2028 and U+2029 end lines in JavaScript.
        while let Some(at) = valid.windows(3).position(|one| matches!(one, [0xe2, 0x80, 0xa8 | 0xa9])) {
            out.extend_from_slice(&valid[..at]);
            out.extend_from_slice(if valid[at + 2] == 0xa8 { b"\\u2028" } else { b"\\u2029" });
            valid = &valid[at + 3..];
        }
        out.extend_from_slice(valid);
        for _ in chunk.invalid() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_500_000_000);

    fn record(attrs: &[(&str, &str)], text: &[u8], dropped: u64) -> String {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut out = Vec::new();
        let line = Line { stream: Stream::Stderr, at: NOW, text, dropped };
        Encoder::new(&attrs).record(&mut out, line);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_record_is_dockers() {
        let wanted = "{\"log\":\"a \\\"b\\\" \\u003cc\\u003e\\t\\u0001\\ufffd\\n\",\"stream\":\"stderr\",\"time\":\"2023-11-14T22:13:20.5Z\"}\n";
        assert_eq!(record(&[], b"a \"b\" <c>\t\x01\xff\n", 0), wanted);
    }

    #[test]
    fn each_byte_that_is_no_utf_8_is_one_replacement() {
        // The first two bytes of a character of three, and a lone one.
        assert!(record(&[], b"a\xe2\x82b\x80", 0).starts_with("{\"log\":\"a\\ufffd\\ufffdb\\ufffd\","));
    }

    #[test]
    fn attributes_stand_before_the_time_and_tell_what_was_lost() {
        let wanted = "{\"log\":\"x\",\"stream\":\"stderr\",\"attrs\":{\"a\":\"\\\"1\\\"\",\"rswarm.dropped\":\"7\",\"tag\":\"t\"},\"time\":\"2023-11-14T22:13:20.5Z\"}\n";
        assert_eq!(record(&[("tag", "t"), ("a", "\"1\"")], b"x", 7), wanted);
    }

    #[test]
    fn every_text_comes_back_as_it_was() {
        let long = "é€\u{2028}\u{2029}\u{20ac}🦀\\\"\u{7f}\u{0}".repeat(40);
        for cut in (0..long.len()).filter(|cut| long.is_char_boundary(*cut)) {
            let json: serde_json::Value =
                serde_json::from_str(&record(&[], &long.as_bytes()[cut..], 0)).expect("JSON");
            assert_eq!(json["log"].as_str(), Some(&long[cut..]));
        }
    }
}

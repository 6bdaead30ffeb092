//! Docker's json-file: `{"log":"…\n","stream":"stdout","attrs":{…},"time":"…"}` and a newline. Pure.

use std::collections::BTreeMap;
use std::io::Write;

use rswarm_base::Timestamp;

use super::{DROPPED, Line, Stream};

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

    pub(super) fn record(&mut self, out: &mut Vec<u8>, line: Line<'_>) {
        out.extend_from_slice(PREFIX);
        escape(out, line.text);
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

/// As Go escapes it: what is no UTF-8 becomes U+FFFD.
fn escape(out: &mut Vec<u8>, bytes: &[u8]) {
    out.reserve(bytes.len());
    match std::str::from_utf8(bytes) {
        Ok(_) => escape_text(out, bytes),
        Err(_) => {
            for chunk in bytes.utf8_chunks() {
                escape_text(out, chunk.valid().as_bytes());
                if !chunk.invalid().is_empty() {
                    out.extend_from_slice(b"\\ufffd");
                }
            }
        }
    }
}

fn escape_text(out: &mut Vec<u8>, mut text: &[u8]) {
    loop {
        let plain = plain_length(text);
        out.extend_from_slice(&text[..plain]);
        text = &text[plain..];
        let Some((byte, after)) = text.split_first() else { return };
        text = after;
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            // U+2028 and U+2029 end lines in JavaScript, and nothing else that begins so is special.
            0xe2 if matches!(after, [0x80, 0xa8 | 0xa9, ..]) => {
                out.extend_from_slice(if after[1] == 0xa8 { b"\\u2028" } else { b"\\u2029" });
                text = &after[2..];
            }
            0xe2 => out.push(*byte),
            _ => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
        }
    }
}

/// How many bytes at the beginning need no escape.
fn plain_length(bytes: &[u8]) -> usize {
    let (blocks, _) = bytes.as_chunks::<32>();
    // Without a branch inside: the compiler compares a whole block at once.
    let is_plain = |block: &&[u8; 32]| !block.iter().fold(false, |seen, byte| seen | is_special(*byte));
    let plain = blocks.iter().take_while(is_plain).count() * 32;
    plain + bytes[plain..].iter().take_while(|byte| !SPECIAL[usize::from(**byte)]).count()
}

const fn is_special(byte: u8) -> bool {
    (byte < 0x20)
        | (byte == b'"')
        | (byte == b'\\')
        | (byte == b'<')
        | (byte == b'>')
        | (byte == b'&')
        | (byte == 0xe2)
}

static SPECIAL: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = is_special(byte as u8);
        byte += 1;
    }
    table
};

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

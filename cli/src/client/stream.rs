//! What replies carry when they are not one JSON value: lines of JSON, and multiplexed output.

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use super::ClientError;

/// stdcopy's frame header: stream, three zeros, length.
const HEADER_BYTES: usize = 8;

/// A body of JSON values one after the other, as progress and events come.
pub struct JsonLines {
    call: String,
    body: Incoming,
    buffer: BytesMut,
    ended: bool,
}

impl JsonLines {
    /// Reads `body`; `call` names it in errors.
    pub fn new(call: impl Into<String>, body: Incoming) -> JsonLines {
        JsonLines { call: call.into(), body, buffer: BytesMut::new(), ended: false }
    }

    /// The next value; `None` at the end.
    ///
    /// # Errors
    /// When the connection breaks or what comes is not such a value.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(value) = take_value(&mut self.buffer, self.ended) {
                return value
                    .map(Some)
                    .map_err(|source| ClientError::Decode { call: self.call.clone(), source });
            }
            if self.ended {
                return Ok(None);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend(frame.into_data().unwrap_or_default()),
                Some(Err(source)) => return Err(ClientError::Exchange { call: self.call.clone(), source }),
                None => self.ended = true,
            }
        }
    }
}

/// Takes the first whole value off the buffer. A value cut short is only an error at the end.
fn take_value<T: DeserializeOwned>(
    buffer: &mut BytesMut,
    ended: bool,
) -> Option<Result<T, serde_json::Error>> {
    let mut values = serde_json::Deserializer::from_slice(buffer).into_iter();
    let value = values.next()?;
    let used = values.byte_offset();
    match value {
        Err(problem) if problem.is_eof() && !ended => None,
        Err(problem) => {
            buffer.clear();
            Some(Err(problem))
        }
        Ok(value) => {
            buffer.advance(used);
            Some(Ok(value))
        }
    }
}

/// Where a piece of output belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The daemon's own complaint, which ends the stream.
    Daemon,
}

/// Takes multiplexed output apart, whatever pieces it arrives in.
#[derive(Debug, Default)]
pub struct Demux {
    buffer: BytesMut,
}

impl Demux {
    /// Takes in what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if it is there.
    pub fn next(&mut self) -> Option<(Output, Bytes)> {
        let header: [u8; HEADER_BYTES] = self.buffer.get(..HEADER_BYTES)?.try_into().ok()?;
        let [stream, _, _, _, length @ ..] = header;
        let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
        if self.buffer.len() < HEADER_BYTES + length {
            return None;
        }
        self.buffer.advance(HEADER_BYTES);
        let output = match stream {
            2 => Output::Stderr,
            3 => Output::Daemon,
            _ => Output::Stdout,
        };
        Some((output, self.buffer.split_to(length).freeze()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_in_any_pieces() {
        let mut wire = vec![1, 0, 0, 0, 0, 0, 0, 2, b'h', b'i', 2, 0, 0, 0, 0, 0, 0, 0];
        wire.extend([3, 0, 0, 0, 0, 0, 0, 1, b'!']);
        for piece in 1..wire.len() {
            let (mut demux, mut seen) = (Demux::default(), Vec::new());
            for bytes in wire.chunks(piece) {
                demux.push(bytes);
                while let Some((output, bytes)) = demux.next() {
                    seen.push((output, bytes.to_vec()));
                }
            }
            let expected =
                [(Output::Stdout, b"hi".to_vec()), (Output::Stderr, vec![]), (Output::Daemon, b"!".to_vec())];
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn json_values_are_found_in_any_pieces() {
        let text = br#"{"a":1}{"a":2}
{"a":3}"#;
        for piece in 1..text.len() {
            let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
            for bytes in text.chunks(piece) {
                buffer.extend_from_slice(bytes);
                while let Some(value) = take_value::<serde_json::Value>(&mut buffer, false) {
                    seen.push(value.expect("a value")["a"].clone());
                }
            }
            assert_eq!(seen, [1, 2, 3]);
        }
    }

    #[test]
    fn a_value_cut_short_at_the_end_is_an_error() {
        let mut buffer = BytesMut::from(&b"{\"a\""[..]);
        assert!(take_value::<serde_json::Value>(&mut buffer, false).is_none());
        assert!(take_value::<serde_json::Value>(&mut buffer, true).expect("an end").is_err());
        assert!(take_value::<serde_json::Value>(&mut buffer, true).is_none());
    }
}

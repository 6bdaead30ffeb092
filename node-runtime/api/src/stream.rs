//! Byte streams to clients: Docker's frames, progress lines, bodies that grow.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::version::ApiVersion;

/// Frames of both output streams in one.
pub(crate) const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";
/// A terminal's bytes, and what old clients are told for frames too.
pub(crate) const RAW: &str = "application/vnd.docker.raw-stream";

/// Length of a frame's head: stream, three zeros, length.
pub(crate) const FRAME_HEAD: usize = 8;

/// Which output a frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Output {
    Stdout = 1,
    Stderr = 2,
    /// An error of the daemon: clients stop with its text.
    System = 3,
}

/// One frame: `[stream, 0, 0, 0, length as u32 BE]` and the payload.
pub(crate) fn frame(output: Output, payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(FRAME_HEAD + payload.len());
    bytes.put_slice(&[output as u8, 0, 0, 0]);
    bytes.put_u32(u32::try_from(payload.len()).expect("a frame's payload is a log line or a read buffer"));
    bytes.put_slice(payload);
    bytes.freeze()
}

/// What an output stream is called to this client.
pub(crate) fn content_type(version: ApiVersion, tty: bool) -> &'static str {
    if !tty && version.at_least(42) { MULTIPLEXED } else { RAW }
}

/// 200 whose body is sent as it comes, ended when the daemon stops. An empty first chunk sends the head at
/// once: clients wait for it before they go on.
pub(crate) fn streaming<S>(content_type: &'static str, stop: CancellationToken, chunks: S) -> Response
where
    S: Stream<Item = Bytes> + Send + 'static,
{
    let chunks = chunks.take_until(stop.cancelled_owned()).map(Ok::<_, std::convert::Infallible>);
    let mut response = Response::new(Body::from_stream(chunks));
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// One JSON object and a line feed, as every line of a progress or event stream.
pub(crate) fn json_line<T: Serialize>(value: &T) -> Bytes {
    let mut line = serde_json::to_vec(value).expect("our own types are always JSON");
    line.extend_from_slice(b"\r\n");
    line.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_eight_bytes_and_the_payload() {
        assert_eq!(&frame(Output::Stderr, b"hi")[..], b"\x02\0\0\0\0\0\0\x02hi");
        assert_eq!(frame(Output::Stdout, b"").len(), FRAME_HEAD);
    }

    #[test]
    fn only_newer_clients_are_told_of_frames() {
        let version = |text| crate::version::check(Some(text)).expect("version");
        assert_eq!(content_type(version("1.42"), false), MULTIPLEXED);
        assert_eq!(content_type(version("1.41"), false), RAW);
        assert_eq!(content_type(version("1.51"), true), RAW);
    }
}

//! The server's side of a websocket on a connection that was taken over: a stream of bytes to whoever reads and
//! writes it.
//!
//! What is written goes out as binary messages (as text before version 1.28 of the API); what the client sends in messages of any kind comes in as one
//! stream. Pings are answered.
// spec: rfc6455

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::http::{HeaderMap, header};
use base64::Engine as _;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use crate::connection::{Raw, Socket};
use crate::error::ApiError;
use crate::version::ApiVersion;
use crate::watch::Watch;

mod sha1;

/// What a key is completed by. RFC 6455, 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The longest message that is made, and the most that is read at once.
const CHUNK: usize = 32 << 10;
/// A control frame's longest payload. RFC 6455, 5.5.
const CONTROL_MAX: u64 = 125;

const FINAL: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// A client's request for a websocket, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handshake {
    accept: String,
    protocol: Option<String>,
    /// The opcode of what is sent.
    kind: u8,
}

impl Handshake {
    /// Reads the headers of a request of API `version`.
    // spec: rfc6455 4.2.1
    pub(crate) fn of(headers: &HeaderMap, version: ApiVersion) -> Result<Handshake, ApiError> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let mut options = text(header::CONNECTION).split(',');
        let upgrades = text(header::UPGRADE).eq_ignore_ascii_case("websocket")
            && options.any(|option| option.trim().eq_ignore_ascii_case("upgrade"));
        let key = text(header::SEC_WEBSOCKET_KEY);
        if !upgrades || key.is_empty() || text(header::SEC_WEBSOCKET_VERSION) != "13" {
            return Err(ApiError::invalid("the request is no websocket handshake of version 13"));
        }
        let digest = sha1::digest(format!("{key}{GUID}").as_bytes());
        let accept = base64::engine::general_purpose::STANDARD.encode(digest);
        // One that is offered alone is spoken, as by dockerd.
        let offered = text(header::SEC_WEBSOCKET_PROTOCOL);
        let protocol = (!offered.is_empty() && !offered.contains(',')).then(|| offered.to_owned());
        // moby: wsContainersAttach
        let kind = if version.at_least(28) { BINARY } else { TEXT };
        Ok(Handshake { accept, protocol, kind })
    }

    /// Answers the request; the connection is a websocket then.
    pub(crate) async fn accept(&self, mut raw: Raw) -> io::Result<Raw> {
        let mut head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n",
            self.accept
        );
        if let Some(protocol) = &self.protocol {
            head.push_str(&format!("Sec-WebSocket-Protocol: {protocol}\r\n"));
        }
        head.push_str("\r\n");
        raw.socket.write_all(head.as_bytes()).await?;
        let messages =
            Messages { input: BytesMut::from(&raw.early[..]), ..Messages::on(raw.socket, self.kind) };
        Ok(Raw { early: Bytes::new(), socket: Box::new(messages), upgrade: true })
    }
}

/// A socket whose bytes travel in messages.
struct Messages {
    socket: Box<dyn Socket>,
    /// The opcode of what is sent.
    kind: u8,
    /// Read, and not yet understood.
    input: BytesMut,
    /// What is left of the frame that is being read.
    left: u64,
    mask: [u8; 4],
    /// Where in the mask the next byte is.
    at: usize,
    /// The client has said that it closes.
    has_ended: bool,
    /// We have.
    is_closed: bool,
    /// Made, and not yet sent.
    output: BytesMut,
    /// How much of what the writer has is in `output`.
    taken: usize,
}

/// The beginning of a frame.
struct Head {
    opcode: u8,
    length: u64,
    mask: [u8; 4],
}

impl Messages {
    fn on(socket: Box<dyn Socket>, kind: u8) -> Messages {
        Messages {
            socket,
            kind,
            input: BytesMut::new(),
            left: 0,
            mask: [0; 4],
            at: 0,
            has_ended: false,
            is_closed: false,
            output: BytesMut::new(),
            taken: 0,
        }
    }

    /// Takes payload, unmasked.
    fn take(&mut self, max: usize) -> BytesMut {
        let length = self.input.len().min(max).min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let mut payload = self.input.split_to(length);
        for byte in payload.iter_mut() {
            *byte ^= self.mask[self.at % 4];
            self.at += 1;
        }
        self.left -= length as u64;
        payload
    }

    /// Begins the next frame, when all of its head is there; of a control frame, all of it. Data is left to be
    /// taken.
    fn begin(&mut self) -> io::Result<bool> {
        let Some((head, length)) = head(&self.input)? else { return Ok(false) };
        let is_control = head.opcode >= CLOSE;
        if is_control && (self.input.len() - length) < usize::try_from(head.length).unwrap_or(usize::MAX) {
            return Ok(false);
        }
        self.input.advance(length);
        (self.left, self.mask, self.at) = (head.length, head.mask, 0);
        if is_control {
            let payload = self.take(usize::MAX);
            match head.opcode {
                CLOSE => self.has_ended = true,
                PING => put_frame(&mut self.output, PONG, &payload),
                _ => {}
            }
        }
        Ok(true)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.output))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(sent);
        }
        Pin::new(&mut self.socket).poll_flush(cx)
    }
}

/// A frame's head and its length, once all of it is there.
// spec: rfc6455 5.2
fn head(bytes: &[u8]) -> io::Result<Option<(Head, usize)>> {
    let [first, second, ..] = bytes else { return Ok(None) };
    let wrong = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, why.to_owned()));
    if second & MASKED == 0 {
        return wrong("a client's frame is not masked");
    }
    let opcode = first & 0x0f;
    // Data: a continuation, text, binary; control: close, ping, pong.
    if first & RESERVED != 0 || !matches!(opcode, 0..=BINARY | CLOSE..=PONG) {
        return wrong("a client's frame is of no known kind");
    }
    let (extra, short) = match second & !MASKED {
        126 => (2, 0),
        127 => (8, 0),
        short => (0, u64::from(short)),
    };
    let Some(rest) = bytes.get(2..2 + extra + 4) else { return Ok(None) };
    let long = rest[..extra].iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
    let length = if extra == 0 { short } else { long };
    if opcode >= CLOSE && length > CONTROL_MAX {
        return wrong("a control frame is too long");
    }
    let mask = rest[extra..].try_into().expect("four bytes are left");
    Ok(Some((Head { opcode, length, mask }, 2 + extra + 4)))
}

/// A whole message that is not masked: a server's.
fn put_frame(output: &mut BytesMut, opcode: u8, payload: &[u8]) {
    output.put_u8(FINAL | opcode);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length @ 0..=125), _) => output.put_u8(length),
        (_, Ok(length)) => {
            output.put_u8(126);
            output.put_u16(length);
        }
        _ => {
            output.put_u8(127);
            output.put_u64(payload.len() as u64);
        }
    }
    output.put_slice(payload);
}

impl Socket for Messages {
    fn watch(&self) -> Option<Watch> {
        self.socket.watch()
    }
}

impl AsyncRead for Messages {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.has_ended {
                return Poll::Ready(Ok(()));
            }
            if self.left > 0 && !self.input.is_empty() {
                let payload = self.take(buffer.remaining());
                buffer.put_slice(&payload);
                return Poll::Ready(Ok(()));
            }
            if self.left == 0 && self.begin()? {
                continue;
            }
            // A pong that is due.
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                return Poll::Ready(Err(error));
            }
            let mut chunk = [0; CHUNK];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.input.extend_from_slice(chunk.filled());
        }
    }
}

impl AsyncWrite for Messages {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.taken == 0 {
            let part = &bytes[..bytes.len().min(CHUNK)];
            let kind = self.kind;
            put_frame(&mut self.output, kind, part);
            self.taken = part.len();
        }
        // Taken only when it is sent: nobody would send what is left when the writer has no more.
        ready!(self.poll_send(cx))?;
        Poll::Ready(Ok(std::mem::take(&mut self.taken)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_closed {
            self.is_closed = true;
            // 1000: normal closure. RFC 6455, 7.4.1.
            put_frame(&mut self.output, CLOSE, &1000_u16.to_be_bytes());
        }
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [1, 2, 3, 4];
        let mut plain = BytesMut::new();
        put_frame(&mut plain, opcode, payload);
        let head = plain.len() - payload.len();
        plain[1] |= MASKED;
        let masked = payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]);
        [&plain[..head], &mask, &masked.collect::<Vec<_>>()].concat()
    }

    #[test]
    fn a_key_is_answered_as_the_standard_says() {
        let mut headers = HeaderMap::new();
        let of = |headers: &HeaderMap| Handshake::of(headers, crate::version::MAX);
        for (name, value) in [
            (header::UPGRADE, "WebSocket"),
            (header::CONNECTION, "keep-alive, Upgrade"),
            (header::SEC_WEBSOCKET_VERSION, "13"),
            (header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
        ] {
            assert!(of(&headers).is_err(), "{headers:?}");
            headers.insert(name, value.parse().expect("a value"));
        }
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, "chat".parse().expect("a value"));
        // RFC 6455, 1.3.
        let accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned();
        assert_eq!(
            of(&headers).ok(),
            Some(Handshake { accept, protocol: Some("chat".to_owned()), kind: BINARY })
        );
    }

    #[tokio::test]
    async fn messages_are_a_stream_of_bytes() {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mut messages = Messages::on(Box::new(server), BINARY);
        let long = vec![7; 70_000];
        for frame in [
            client_frame(1, b"ab"),
            client_frame(PING, b"?"),
            client_frame(0, &long),
            client_frame(CLOSE, b""),
        ] {
            client.write_all(&frame).await.expect("sent");
        }
        let mut all = Vec::new();
        messages.read_to_end(&mut all).await.expect("read");
        assert_eq!((all.len(), &all[..3]), (70_002, &b"ab\x07"[..]));
        let mut pong = [0; 3];
        client.read_exact(&mut pong).await.expect("a pong");
        assert_eq!(&pong, &[FINAL | PONG, 1, b'?']);
        messages.write_all(b"out").await.expect("written");
        let mut out = [0; 5];
        client.read_exact(&mut out).await.expect("a message");
        assert_eq!(&out, &[FINAL | BINARY, 3, b'o', b'u', b't']);
    }

    #[tokio::test]
    async fn what_is_no_clients_frame_is_an_error() {
        for wrong in [
            &[FINAL | BINARY, 1, b'x'][..],
            &[FINAL | 3, MASKED, 0, 0, 0, 0],
            &[FINAL | 0x40 | BINARY, MASKED, 0, 0, 0, 0],
            &[FINAL | PING, MASKED | 126, 1, 0, 0, 0, 0, 0],
        ] {
            let (mut client, server) = tokio::io::duplex(64);
            client.write_all(wrong).await.expect("sent");
            let error = Messages::on(Box::new(server), BINARY).read_u8().await.expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}

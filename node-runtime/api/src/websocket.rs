//! The server's side of a websocket on a connection that was taken over, as a stream of bytes to whoever reads and
//! writes it.
//!
//! What is written goes out as messages, one for each write: binary, or text before version 1.28 of the API. What
//! the client sends in messages of any kind comes in as one stream. Frames, pings and closing are `tungstenite`'s.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::http::{HeaderMap, header};
use bytes::{Buf as _, Bytes};
use futures_util::{Sink, Stream};
use rswarm_base::audit::User;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};
use tokio_tungstenite::tungstenite::protocol::{Message, Role};
use tokio_tungstenite::tungstenite::{Error, Utf8Bytes};

use crate::connection::{Raw, Socket};
use crate::error::ApiError;
use crate::version::ApiVersion;
use crate::watch::Watch;

/// The longest message that is made.
const CHUNK: usize = 32 << 10;

/// A client's request for a websocket, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handshake {
    accept: String,
    protocol: Option<String>,
    /// Of what is sent.
    kind: Data,
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
        // One that is offered alone is spoken, as by dockerd.
        let offered = text(header::SEC_WEBSOCKET_PROTOCOL);
        let protocol = (!offered.is_empty() && !offered.contains(',')).then(|| offered.to_owned());
        // moby: wsContainersAttach
        let kind = if version.at_least(28) { Data::Binary } else { Data::Text };
        Ok(Handshake { accept: derive_accept_key(key.as_bytes()), protocol, kind })
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
        let messages = Messages::on(raw.socket, raw.early.to_vec(), self.kind).await;
        Ok(Raw { early: Bytes::new(), socket: Box::new(messages), upgrade: true })
    }
}

/// A socket whose bytes travel in messages.
struct Messages {
    stream: WebSocketStream<Box<dyn Socket>>,
    /// Of what is sent.
    kind: Data,
    /// What is left of the message that is being read.
    rest: Bytes,
    /// How much of what the writer has is on its way.
    taken: usize,
    is_closed: bool,
}

impl Messages {
    async fn on(socket: Box<dyn Socket>, early: Vec<u8>, kind: Data) -> Messages {
        let stream = WebSocketStream::from_partially_read(socket, early, Role::Server, None).await;
        Messages { stream, kind, rest: Bytes::new(), taken: 0, is_closed: false }
    }

    fn poll_flush_messages(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx).map_err(io_error)
    }
}

fn io_error(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

impl Socket for Messages {
    fn watch(&self) -> Option<Watch> {
        self.stream.get_ref().watch()
    }

    fn user(&self) -> Option<User> {
        self.stream.get_ref().user()
    }
}

impl AsyncRead for Messages {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            self.rest = match ready!(Pin::new(&mut self.stream).poll_next(cx)) {
                Some(Ok(Message::Binary(payload))) => payload,
                Some(Ok(Message::Text(payload))) => payload.into(),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed)) | None => {
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
            };
        }
        let length = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest[..length]);
        self.rest.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Messages {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.taken == 0 {
            ready!(Pin::new(&mut self.stream).poll_ready(cx)).map_err(io_error)?;
            let part = &bytes[..bytes.len().min(CHUNK)];
            // A text message of Docker's is whatever the container wrote, UTF-8 or not.
            let frame = Frame::message(part.to_vec(), OpCode::Data(self.kind), true);
            Pin::new(&mut self.stream).start_send(Message::Frame(frame)).map_err(io_error)?;
            self.taken = part.len();
        }
        // Taken only when it is sent: nobody would send what is left when the writer has no more.
        ready!(self.poll_flush_messages(cx))?;
        Poll::Ready(Ok(std::mem::take(&mut self.taken)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush_messages(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_closed {
            self.is_closed = true;
            let farewell = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() };
            // A client that has closed first needs none.
            let _ = Pin::new(&mut self.stream).start_send(Message::Close(Some(farewell)));
        }
        match ready!(self.poll_flush_messages(cx)) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Poll::Ready(Err(error)),
            _ => {}
        }
        Pin::new(self.stream.get_mut()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio::io::{AsyncReadExt as _, DuplexStream};

    use super::*;

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
            Some(Handshake { accept, protocol: Some("chat".to_owned()), kind: Data::Binary })
        );
    }

    async fn both_sides(kind: Data) -> (WebSocketStream<DuplexStream>, Messages) {
        let (client, server) = tokio::io::duplex(1 << 20);
        let client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        (client, Messages::on(Box::new(server), Vec::new(), kind).await)
    }

    #[tokio::test]
    async fn messages_are_a_stream_of_bytes() {
        let (mut client, mut messages) = both_sides(Data::Binary).await;
        messages.write_all(b"out").await.expect("written");
        assert_eq!(client.next().await.expect("one").expect("whole"), Message::binary(&b"out"[..]));
        let long = vec![7; 70_000];
        for message in
            [Message::text("ab"), Message::Ping("?".into()), Message::binary(long), Message::Close(None)]
        {
            client.send(message).await.expect("sent");
        }
        let mut all = Vec::new();
        messages.read_to_end(&mut all).await.expect("read");
        assert_eq!((all.len(), &all[..3]), (70_002, &b"ab\x07"[..]));
        messages.shutdown().await.expect("ended");
        assert_eq!(client.next().await.expect("one").expect("whole"), Message::Pong("?".into()));
    }

    #[tokio::test]
    async fn an_end_is_said_and_text_need_not_be_utf_8() {
        let (mut client, mut messages) = both_sides(Data::Text).await;
        messages.write_all(b"text").await.expect("written");
        messages.shutdown().await.expect("ended");
        assert_eq!(client.next().await.expect("one").expect("whole"), Message::text("text"));
        let Some(Ok(Message::Close(Some(farewell)))) = client.next().await else { panic!("no farewell") };
        assert_eq!(farewell.code, CloseCode::Normal);
        let (_client, mut messages) = both_sides(Data::Text).await;
        messages.write_all(&[0xff, 0xfe]).await.expect("written");
    }

    #[tokio::test]
    async fn what_is_no_clients_frame_is_an_error() {
        const MASKED: u8 = 0x80;
        let long_ping = [&[0x89, MASKED | 126, 1, 0, 0, 0, 0, 0][..], &[0; 256]].concat();
        for wrong in
            [&[0x82, 1, b'x'][..], &[0x83, MASKED, 0, 0, 0, 0], &[0xc2, MASKED, 0, 0, 0, 0], &long_ping]
        {
            let (mut client, server) = tokio::io::duplex(512);
            client.write_all(wrong).await.expect("sent");
            let mut messages = Messages::on(Box::new(server), Vec::new(), Data::Binary).await;
            let error = messages.read_u8().await.expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{wrong:x?}");
        }
    }
}

//! A request whose answer takes its connection over: the bytes of both sides are handed on as they are, the head of
//! the answer among them.

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::FromRequestParts as _;
use axum::http::request::Parts;
use axum::http::{Request, Uri, header};
use axum::response::Response;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::{Way, answer, on_its_node};
use crate::connection::{Hijacker, Raw};
use crate::error::ApiError;
use crate::router::App;
use crate::types::ExecStartBody;
use crate::watch;
use crate::{attach, stream};

/// What such a request says beside its head is a few words.
const BODY_MAX: usize = 1 << 20;
/// The head of an answer of ours is a few lines.
const HEAD_MAX: usize = 16 << 10;

/// Has the task's node talk to the client.
pub(super) async fn take_over(app: &App, way: Way, request: Request<Body>) -> Result<Response, ApiError> {
    let uri = on_its_node(&request, &way.container_id)?;
    let is_exec = request.uri().path().starts_with("/exec/");
    let (mut parts, body) = request.into_parts();
    let unread = |error| ApiError::invalid(format!("the request's body cannot be read: {error}"));
    let body = to_bytes(body, BODY_MAX).await.map_err(unread)?;
    if is_exec && serde_json::from_slice(&body).is_ok_and(|start: ExecStartBody| start.detach) {
        return answer(app, way, Request::from_parts(parts, Body::from(body))).await;
    }
    let Ok(hijacker) = Hijacker::from_request_parts(&mut parts, &()).await;
    let written = written(&parts, &uri, &body);
    let then = move |raw| async move {
        // What breaks off breaks off for both.
        let _ = splice(raw, way.socket, &written).await;
    };
    Ok(hijacker.take(then).await)
}

/// The request as it goes over the wire.
fn written(parts: &Parts, uri: &Uri, body: &Bytes) -> Vec<u8> {
    let mut bytes = format!("{} {uri} HTTP/1.1\r\n", parts.method).into_bytes();
    let of_body = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::EXPECT];
    for (name, value) in parts.headers.iter().filter(|(name, _)| !of_body.contains(name)) {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(format!("{}: {}\r\n\r\n", header::CONTENT_LENGTH, body.len()).as_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Hands the request to the node, and then all that either side says to the other, until the node has said all or
/// one of them is gone. The end of the client's input alone is passed on.
async fn splice(mut raw: Raw, node: UnixStream, request: &[u8]) -> std::io::Result<()> {
    let (mut from_node, mut to_node) = node.into_split();
    to_node.write_all(request).await?;
    let mut head = read_head(&mut from_node).await?;
    let said = head.split_off(end_of_head(&head).unwrap_or(head.len()));
    let read = attach::write_head(&mut raw, &head).await?;
    let watch = raw.socket.watch();
    let (mut from_client, mut to_client) = tokio::io::split(raw.socket);
    if is_stream(&head) {
        read.await;
        to_client.write_all(&said).await?;
        to_node.write_all(&raw.early).await?;
        let input = async {
            // Whichever end it came to, the node's last words come to theirs by themselves.
            let _ = tokio::io::copy(&mut from_client, &mut to_node).await;
            let _ = to_node.shutdown().await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = tokio::io::copy(&mut from_node, &mut to_client) => drop(ended?),
            () = input => {}
            () = watch::hung_up(watch) => {}
        }
    } else {
        // A refusal, an answer like any other. The node knows one container: the client's next request is not for it.
        to_node.shutdown().await?;
        to_client.write_all(&said).await?;
        tokio::io::copy(&mut from_node, &mut to_client).await?;
    }
    to_client.shutdown().await
}

/// Reads until there is an empty line, and perhaps more.
async fn read_head(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD_MAX);
    while end_of_head(&head).is_none() {
        if head.len() >= HEAD_MAX {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        if from.read_buf(&mut head).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    const EMPTY_LINE: &[u8] = b"\r\n\r\n";
    let at = bytes.windows(EMPTY_LINE.len()).position(|window| window == EMPTY_LINE)?;
    Some(at + EMPTY_LINE.len())
}

/// Whether the connection is no HTTP after this head of an answer.
fn is_stream(head: &[u8]) -> bool {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    head.starts_with("http/1.1 101 ") || head.contains(&format!("content-type: {}\r\n", stream::RAW))
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;

    fn upgraded(socket: DuplexStream, early: &'static [u8]) -> Raw {
        Raw { early: Bytes::from_static(early), socket: Box::new(socket), upgrade: true }
    }

    #[tokio::test]
    async fn both_sides_say_what_they_have_to_say_also_after_the_end_of_the_input() {
        let (mut client, ours) = tokio::io::duplex(1024);
        let (node, mut far) = UnixStream::pair().expect("pair");
        let talk = async {
            let mut asked = [0; 7];
            far.read_exact(&mut asked).await.expect("request");
            assert_eq!(&asked, b"REQUEST");
            far.write_all(b"HTTP/1.1 101 UPGRADED\r\n\r\nhello ").await.expect("answer");
            let mut input = String::new();
            far.read_to_string(&mut input).await.expect("input, and its end");
            assert_eq!(input, "early late");
            far.write_all(b"goodbye").await.expect("answer");
            drop(far);
        };
        let typed = async {
            client.write_all(b"late").await.expect("input");
            client.shutdown().await.expect("end of the input");
            let mut seen = String::new();
            client.read_to_string(&mut seen).await.expect("output");
            assert_eq!(seen, "HTTP/1.1 101 UPGRADED\r\n\r\nhello goodbye");
        };
        let (spliced, (), ()) =
            tokio::join!(splice(upgraded(ours, b"early "), node, b"REQUEST"), talk, typed);
        spliced.expect("in good order");
    }

    #[tokio::test]
    async fn after_a_refusal_nothing_more_is_asked_of_the_node() {
        let (mut client, ours) = tokio::io::duplex(1024);
        let (node, mut far) = UnixStream::pair().expect("pair");
        const REFUSAL: &str = "HTTP/1.1 409 Conflict\r\nContent-Length: 2\r\n\r\n{}";
        let talk = async {
            far.write_all(REFUSAL.as_bytes()).await.expect("answer");
            let mut asked = String::new();
            far.read_to_string(&mut asked).await.expect("one request");
            assert_eq!(asked, "REQUEST");
            drop(far);
        };
        let typed = async {
            client.write_all(b"GET /another").await.expect("input");
            let mut seen = String::new();
            client.read_to_string(&mut seen).await.expect("output");
            assert_eq!(seen, REFUSAL);
        };
        let (spliced, (), ()) = tokio::join!(splice(upgraded(ours, b"GET"), node, b"REQUEST"), talk, typed);
        spliced.expect("in good order");
    }

    #[test]
    fn a_request_goes_on_with_its_own_headers_and_the_length_that_it_has_now() {
        let request = Request::builder().method("POST").uri("/exec/e1/start").header("Upgrade", "tcp");
        let request = request.header("Connection", "Upgrade").header("Transfer-Encoding", "chunked").body(());
        let (parts, ()) = request.expect("a request").into_parts();
        let uri = "/v1.47/exec/e1/start".parse().expect("a path");
        assert_eq!(
            String::from_utf8(written(&parts, &uri, &Bytes::from_static(b"{}"))).expect("text"),
            "POST /v1.47/exec/e1/start HTTP/1.1\r\nupgrade: tcp\r\nconnection: Upgrade\r\ncontent-length: 2\r\n\r\n{}"
        );
    }

    #[test]
    fn a_stream_is_told_from_an_answer() {
        for head in [
            "HTTP/1.1 101 UPGRADED\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n",
        ] {
            assert!(is_stream(head.as_bytes()), "{head}");
        }
        for head in
            ["HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"]
        {
            assert!(!is_stream(head.as_bytes()), "{head}");
        }
    }
}

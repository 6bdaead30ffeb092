//! A client's connection turned into a terminal or a pair of pipes: attach and exec.

use axum::http::HeaderMap;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::connection::Raw;
use crate::error::ApiError;
use crate::router::common_headers;
use crate::stream::{FRAME_HEAD, Output, frame};
use crate::watch::{self, READ_TIMEOUT};

/// Read buffer of each direction.
const CHUNK: usize = 32 << 10;

/// Answers the request: 101 to one that asked for an upgrade, else 200 and raw bytes after it. What it returns waits
/// until the client has read that. Clients that read the answer's head through a buffer and the rest past it, as
/// docker-py does, lose what arrives with the head; Docker is slow enough for them.
pub(crate) async fn accept(
    raw: &mut Raw,
    content_type: &str,
) -> std::io::Result<impl Future<Output = ()> + use<>> {
    let mut head =
        String::from(if raw.upgrade { "HTTP/1.1 101 UPGRADED\r\n" } else { "HTTP/1.1 200 OK\r\n" });
    let content_type = if raw.upgrade { content_type } else { crate::stream::RAW };
    head.push_str(&format!("Content-Type: {content_type}\r\n"));
    if raw.upgrade {
        head.push_str("Connection: Upgrade\r\nUpgrade: tcp\r\n");
    }
    let mut headers = HeaderMap::new();
    common_headers(&mut headers);
    for (name, value) in &headers {
        head.push_str(&format!("{name}: {}\r\n", value.to_str().expect("our own headers are ASCII")));
    }
    head.push_str("\r\n");
    write_head(raw, head.as_bytes()).await
}

/// The same with an answer that is written already.
pub(crate) async fn write_head(
    raw: &mut Raw,
    head: &[u8],
) -> std::io::Result<impl Future<Output = ()> + use<>> {
    let watch = raw.socket.watch();
    if let Some(watch) = &watch {
        watch.arm().await;
    }
    raw.socket.write_all(head).await?;
    Ok(async move {
        if let Some(watch) = watch {
            watch.has_read(READ_TIMEOUT).await;
        }
    })
}

/// What becomes of frames on their way to the client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Framing {
    /// A terminal's bytes stay raw, pipes' stay framed.
    #[default]
    Kept,
    /// A terminal's bytes get frames.
    Added,
    /// Pipes' bytes lose theirs.
    Removed,
}

/// Which bytes go which way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wiring {
    /// The container has a terminal: bytes are raw, and the detach keys are watched for.
    pub tty: bool,
    /// What the client wants to see of frames.
    pub framing: Framing,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// The end of the client's input closes the program's; otherwise it ends the attachment.
    pub close_stdin: bool,
    pub detach_keys: DetachKeys,
}

/// How an attachment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The program's output ended, or one side went away.
    Closed,
    /// The user typed the detach keys.
    Detached,
}

/// Copies until the output ends, the client goes away or detaches.
pub(crate) async fn pump(raw: Raw, program: impl AsyncRead + AsyncWrite + Unpin, wiring: &Wiring) -> End {
    // A client that only listens would else be noticed with the next byte of output, which may never come.
    let watch = raw.socket.watch();
    let (mut from_client, mut to_client) = tokio::io::split(raw.socket);
    let (mut from_program, mut to_program) = tokio::io::split(program);
    let output = async {
        let _ = copy_output(&mut from_program, &mut to_client, wiring).await;
        End::Closed
    };
    let input = copy_input(raw.early, &mut from_client, &mut to_program, wiring);
    let end = tokio::select! {
        end = output => end,
        end = input => end,
        () = watch::hung_up(watch) => End::Closed,
    };
    let _ = to_client.shutdown().await;
    end
}

/// Program to client. Frames of a stream that was not asked for are left out.
async fn copy_output<R, W>(from: &mut R, to: &mut W, wiring: &Wiring) -> std::io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut filter = FrameFilter::new(wiring);
    let mut chunk = BytesMut::with_capacity(CHUNK);
    loop {
        chunk.clear();
        if from.read_buf(&mut chunk).await? == 0 {
            return Ok(());
        }
        for wanted in filter.pass(&chunk) {
            to.write_all(&wanted).await?;
        }
    }
}

/// Client to program. Resolves only when that ends the attachment.
async fn copy_input<R, W>(early: Bytes, from: &mut R, to: &mut W, wiring: &Wiring) -> End
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut detach = DetachScanner::new(wiring);
    let mut chunk = BytesMut::from(&early[..]);
    loop {
        if !chunk.is_empty() && wiring.stdin {
            let (typed, detached) = detach.pass(&chunk);
            if to.write_all(&typed).await.is_err() {
                // The program does not read any more; its output still goes on.
                std::future::pending::<()>().await;
            }
            if detached {
                return End::Detached;
            }
        }
        chunk.clear();
        chunk.reserve(CHUNK);
        if !matches!(from.read_buf(&mut chunk).await, Ok(n) if n > 0) {
            break;
        }
    }
    if wiring.stdin && (wiring.tty || !wiring.close_stdin) {
        return End::Closed;
    }
    if wiring.stdin {
        let _ = to.shutdown().await;
    }
    std::future::pending().await
}

/// Lets through the frames of the wanted streams, across the borders of reads.
struct FrameFilter {
    wanted: [bool; 4],
    transparent: bool,
    framing: Framing,
    head: Vec<u8>,
    left: usize,
    passing: bool,
}

impl FrameFilter {
    fn new(wiring: &Wiring) -> FrameFilter {
        FrameFilter {
            wanted: [wiring.stdout, wiring.stdout, wiring.stderr, true],
            transparent: wiring.framing == Framing::Kept && (wiring.tty || (wiring.stdout && wiring.stderr)),
            framing: wiring.framing,
            head: Vec::with_capacity(FRAME_HEAD),
            left: 0,
            passing: false,
        }
    }

    /// The parts of `chunk` to pass on, in order.
    fn pass<'a>(&mut self, mut chunk: &'a [u8]) -> Vec<std::borrow::Cow<'a, [u8]>> {
        if self.transparent {
            return vec![chunk.into()];
        }
        if self.framing == Framing::Added {
            return vec![frame(Output::Stdout, chunk).to_vec().into()];
        }
        let mut parts = Vec::new();
        while !chunk.is_empty() {
            if self.left > 0 {
                let (payload, rest) = chunk.split_at(self.left.min(chunk.len()));
                self.left -= payload.len();
                chunk = rest;
                if self.passing {
                    parts.push(payload.into());
                }
                continue;
            }
            let (head, rest) = chunk.split_at((FRAME_HEAD - self.head.len()).min(chunk.len()));
            self.head.extend_from_slice(head);
            chunk = rest;
            if let [stream, _, _, _, a, b, c, d] = self.head[..] {
                self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                self.passing = self.wanted.get(usize::from(stream)).copied().unwrap_or(false);
                let head = std::mem::take(&mut self.head);
                if self.passing && self.framing == Framing::Kept {
                    parts.push(head.into());
                }
            }
        }
        parts
    }
}

/// The keys that end an attachment without ending the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys(Vec<u8>);

impl Default for DetachKeys {
    /// `ctrl-p,ctrl-q`.
    fn default() -> DetachKeys {
        DetachKeys(vec![0x10, 0x11])
    }
}

impl DetachKeys {
    /// Keys separated by commas: one character, or `ctrl-` and `a`–`z` or one of `@[\]^_`.
    pub fn parse(text: &str) -> Result<DetachKeys, ApiError> {
        if text.is_empty() {
            return Ok(DetachKeys::default());
        }
        let keys: Option<Vec<u8>> = text.split(',').map(parse_key).collect();
        keys.map(DetachKeys).ok_or_else(|| {
            ApiError::invalid(format!("Invalid detach keys ({text}) provided"))
                .hint("separate keys by commas; a key is a character or ctrl- and one of a-z @ [ \\ ] ^ _")
        })
    }
}

fn parse_key(key: &str) -> Option<u8> {
    match key.strip_prefix("ctrl-").map(str::as_bytes) {
        Some([letter @ b'a'..=b'z']) => Some(letter - b'a' + 1),
        Some([sign @ (b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]) => Some(sign - b'@'),
        Some(_) => None,
        None => match key.as_bytes() {
            [byte] => Some(*byte),
            _ => None,
        },
    }
}

/// Looks for the detach keys in what is typed on a terminal; keys of a beginning that came to nothing are
/// passed on.
struct DetachScanner {
    keys: Vec<u8>,
    matched: usize,
}

impl DetachScanner {
    fn new(wiring: &Wiring) -> DetachScanner {
        let keys = if wiring.tty { wiring.detach_keys.0.clone() } else { Vec::new() };
        DetachScanner { keys, matched: 0 }
    }

    fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        if self.keys.is_empty() {
            return (typed.to_vec(), false);
        }
        let mut passed = Vec::with_capacity(typed.len());
        for &byte in typed {
            if byte != self.keys[self.matched] {
                passed.extend_from_slice(&self.keys[..self.matched]);
                self.matched = 0;
            }
            if byte == self.keys[self.matched] {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return (passed, true);
                }
            } else {
                passed.push(byte);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both_frames() -> Vec<u8> {
        [frame(Output::Stdout, b"out"), frame(Output::Stderr, b"err"), frame(Output::System, b"sys")].concat()
    }

    #[test]
    fn unwanted_frames_are_left_out_wherever_reads_end() {
        let stream = both_frames();
        for size in 1..=stream.len() {
            let mut filter = FrameFilter::new(&Wiring { stderr: true, ..Wiring::default() });
            let passed: Vec<u8> = stream.chunks(size).flat_map(|chunk| filter.pass(chunk).concat()).collect();
            assert_eq!(
                passed,
                [frame(Output::Stderr, b"err"), frame(Output::System, b"sys")].concat(),
                "{size}"
            );
        }
    }

    #[test]
    fn frames_are_added_or_removed_as_the_client_wants() {
        let wiring = |tty, framing| Wiring { tty, framing, stdout: true, stderr: true, ..Wiring::default() };
        let mut filter = FrameFilter::new(&wiring(true, Framing::Added));
        assert_eq!(filter.pass(b"raw").concat(), frame(Output::Stdout, b"raw"));
        for size in 1..=both_frames().len() {
            let mut filter = FrameFilter::new(&wiring(false, Framing::Removed));
            let passed: Vec<u8> =
                both_frames().chunks(size).flat_map(|chunk| filter.pass(chunk).concat()).collect();
            assert_eq!(passed, b"outerrsys", "{size}");
        }
    }

    #[test]
    fn detach_keys_are_found_across_reads_and_false_starts_are_passed_on() {
        let wiring = Wiring { tty: true, ..Wiring::default() };
        let mut scanner = DetachScanner::new(&wiring);
        assert_eq!(scanner.pass(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(scanner.pass(b"c"), (b"\x10c".to_vec(), false));
        assert_eq!(scanner.pass(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(scanner.pass(b"\x11left"), (Vec::new(), true));
    }

    #[test]
    fn detach_keys_are_parsed_as_docker_does() {
        assert_eq!(DetachKeys::parse(""), Ok(DetachKeys(vec![16, 17])));
        assert_eq!(DetachKeys::parse("ctrl-a,b,ctrl-["), Ok(DetachKeys(vec![1, b'b', 27])));
        for wrong in ["ctrl-A", "ab", "ctrl-", ","] {
            assert!(DetachKeys::parse(wrong).is_err(), "{wrong}");
        }
    }

    async fn attach(wiring: Wiring) -> (tokio::io::DuplexStream, tokio::io::DuplexStream) {
        let (client, server) = tokio::io::duplex(1024);
        let (program, engine) = tokio::io::duplex(1024);
        let raw = Raw { early: Bytes::from_static(b"early "), socket: Box::new(server), upgrade: true };
        rswarm_base::Scope::root("test").spawn(async move {
            pump(raw, engine, &wiring).await;
        });
        (client, program)
    }

    #[tokio::test]
    async fn the_end_of_input_closes_the_programs_input_and_leaves_the_output_open() {
        let wiring =
            Wiring { stdin: true, stdout: true, stderr: true, close_stdin: true, ..Wiring::default() };
        let (mut client, mut program) = attach(wiring).await;
        client.write_all(b"late").await.expect("write");
        client.shutdown().await.expect("half-close");
        let mut read = Vec::new();
        program.read_to_end(&mut read).await.expect("read");
        assert_eq!(read, b"early late");
        program.write_all(&frame(Output::Stdout, b"answer")).await.expect("write");
        drop(program);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.expect("read");
        assert_eq!(answer, frame(Output::Stdout, b"answer"));
    }

    #[tokio::test]
    async fn without_stdin_nothing_is_typed_and_the_programs_input_stays_open() {
        let (mut client, mut program) =
            attach(Wiring { stdout: true, stderr: true, ..Wiring::default() }).await;
        client.write_all(b"late").await.expect("write");
        client.shutdown().await.expect("half-close");
        program.write_all(&frame(Output::Stdout, b"x")).await.expect("write");
        let mut answer = vec![0; 9];
        client.read_exact(&mut answer).await.expect("read");
        let mut byte = [0];
        let read = tokio::time::timeout(std::time::Duration::from_millis(50), program.read(&mut byte)).await;
        assert!(read.is_err(), "neither data nor the end");
    }
}

//! Bytes on their way: from an async source into a blocking reader, counted, hashed, decompressed.

use std::io::{self, BufRead, Read};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;

use crate::digest::Hasher;

/// Chunks between network and disk; with the usual 16 KiB each, half a MiB for each layer in flight.
const CHUNKS_MAX: usize = 32;
/// What an async source is read in.
const CHUNK_BYTES: usize = 64 << 10;

/// What goes through the channel. A channel that closes before `End` was cut off.
#[derive(Debug)]
enum Chunk {
    Bytes(Bytes),
    End,
}

/// The async end.
#[derive(Debug)]
pub struct ChunkSender(mpsc::Sender<Chunk>);

/// The blocking end.
#[derive(Debug)]
pub struct ChunkReader {
    receiver: mpsc::Receiver<Chunk>,
    current: Bytes,
    is_ended: bool,
}

/// A pipe from async code to a blocking thread.
#[must_use]
pub fn pipe() -> (ChunkSender, ChunkReader) {
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    (ChunkSender(sender), ChunkReader { receiver, current: Bytes::new(), is_ended: false })
}

impl ChunkSender {
    /// Whether the reader still wants bytes. When not, its own result says why.
    pub(crate) async fn send(&self, bytes: Bytes) -> bool {
        self.0.send(Chunk::Bytes(bytes)).await.is_ok()
    }

    /// Says that the bytes are all there.
    pub(crate) async fn end(self) {
        let _ = self.0.send(Chunk::End).await;
    }

    /// Sends everything that `source` has.
    ///
    /// # Errors
    /// The source's; the reader then sees that it was cut off.
    pub async fn send_all(self, mut source: impl AsyncRead + Unpin) -> io::Result<()> {
        loop {
            let mut buffer = bytes::BytesMut::with_capacity(CHUNK_BYTES);
            if source.read_buf(&mut buffer).await? == 0 {
                self.end().await;
                return Ok(());
            }
            if !self.send(buffer.freeze()).await {
                return Ok(());
            }
        }
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.is_ended {
            match self.receiver.blocking_recv() {
                Some(Chunk::Bytes(bytes)) => self.current = bytes,
                Some(Chunk::End) => self.is_ended = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the transfer was cut off")),
            }
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// Shows every byte that is read to an observer that may refuse it.
pub(crate) struct Tee<R, F> {
    inner: R,
    observe: F,
}

impl<R: Read, F: FnMut(&[u8]) -> io::Result<()>> Tee<R, F> {
    pub(crate) fn new(inner: R, observe: F) -> Tee<R, F> {
        Tee { inner, observe }
    }
}

impl<R: Read, F: FnMut(&[u8]) -> io::Result<()>> Read for Tee<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        (self.observe)(&buffer[..read])?;
        Ok(read)
    }
}

/// Hashes what is read.
pub(crate) struct Hashed<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Hashed<R> {
    pub(crate) fn new(inner: R) -> Hashed<R> {
        Hashed { inner, hasher: Hasher::default() }
    }

    pub(crate) fn into_hasher(self) -> Hasher {
        self.hasher
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Decompresses what `reader` holds, by its first bytes: media types and file names are often wrong.
pub(crate) fn decompress<'a>(mut reader: impl BufRead + 'a) -> io::Result<(Box<dyn Read + 'a>, Compression)> {
    let start = reader.fill_buf()?;
    let refused = |name: &str| {
        let text = format!("{name} compression is not supported; use gzip, zstd or none");
        Err(io::Error::new(io::ErrorKind::Unsupported, text))
    };
    match start {
        [0x1f, 0x8b, ..] => Ok((Box::new(flate2::bufread::MultiGzDecoder::new(reader)), Compression::Gzip)),
        // A frame, or a skippable frame before one.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Ok((Box::new(zstd::stream::read::Decoder::with_buffer(reader)?), Compression::Zstd))
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] => refused("xz"),
        [b'B', b'Z', b'h', ..] => refused("bzip2"),
        _ => Ok((Box::new(reader), Compression::None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufReader, Write as _};

    #[test]
    fn compression_is_told_by_the_first_bytes() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"hello").expect("gzip");
        let table = [
            (b"hello".to_vec(), Compression::None),
            (gzip.finish().expect("gzip"), Compression::Gzip),
            (zstd::encode_all(&b"hello"[..], 1).expect("zstd"), Compression::Zstd),
        ];
        for (bytes, wanted) in table {
            let (mut reader, found) = decompress(BufReader::new(&bytes[..])).expect("reads");
            let mut text = String::new();
            reader.read_to_string(&mut text).expect("decompresses");
            assert_eq!((text.as_str(), found), ("hello", wanted));
        }
        assert!(decompress(&b"\xfd7zXZ\0"[..]).is_err());
    }

    #[tokio::test]
    async fn a_pipe_that_is_cut_off_is_no_end() {
        let (sender, mut reader) = pipe();
        assert!(sender.send(Bytes::from_static(b"half")).await);
        drop(sender);
        let read = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all)
        });
        let error = read.await.expect("joins").expect_err("cut off");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}

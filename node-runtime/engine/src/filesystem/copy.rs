//! What `docker cp` and `docker export` do with the root of a container's file system at hand. Blocks.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use rswarm_base::Timestamp;
use rswarm_image::{ExtractRules, Packer, extract};
use rustix::fs::FileType;
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::path::{Named, follow};
use super::{CopyError, PathStat, PutOptions};
use crate::container::Container;
use crate::exec;

/// Bytes that go to the client in one piece.
const CHUNK_BYTES: usize = 64 << 10;
/// Pieces on their way to a client that is slower than we are.
pub(crate) const CHUNKS_MAX: usize = 8;

/// What is at a path.
pub(crate) fn stat(root: &OwnedFd, asked: &str, container: &str) -> Result<PathStat, CopyError> {
    let named = Named::parse(asked);
    let (_, _, stat) = named.look_up(root).map_err(|error| lookup_error(&named, asked, container, error))?;
    let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    let link_target = if is_link {
        let target = follow(root, &named.path).map_err(|error| CopyError::Path(error.to_string()))?;
        target.to_string_lossy().into_owned()
    } else {
        String::new()
    };
    Ok(PathStat {
        name: named.base,
        size: stat.st_size,
        mode: stat.st_mode,
        modified: modified(&stat),
        link_target,
    })
}

fn modified(stat: &rustix::fs::Stat) -> Timestamp {
    let nanos = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
    Timestamp(i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX }))
}

fn lookup_error(named: &Named, asked: &str, container: &str, error: Errno) -> CopyError {
    match error {
        Errno::NOENT => CopyError::NotFound { path: asked.to_owned(), container: container.to_owned() },
        // Go's words for what a path cannot be.
        Errno::NOTDIR => CopyError::Path(format!("lstat {}: not a directory", named.shown())),
        error => CopyError::Path(format!("lstat {}: {error}", named.shown())),
    }
}

/// Packs what is at a path.
pub(crate) fn get(root: &OwnedFd, asked: &str, out: impl Write) -> io::Result<()> {
    let named = Named::parse(asked);
    let (dir, name, _) = named.look_up(root)?;
    let mut packer = Packer::new(out);
    packer.add(&dir, &name, named.base.as_bytes())?;
    packer.finish()?.flush()
}

/// Packs everything, by names relative to the root.
pub(crate) fn export(root: &OwnedFd, out: impl Write) -> io::Result<()> {
    let mut packer = Packer::new(out);
    let directory = rustix::fs::openat(
        root,
        ".",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let mut names: Vec<_> = rustix::fs::Dir::read_from(&directory)?.collect::<Result<_, _>>()?;
    names.retain(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."));
    names.sort_by(|a, b| a.file_name().cmp(b.file_name()));
    for entry in names {
        let name = entry.file_name().to_bytes();
        packer.add(&directory, std::ffi::OsStr::from_bytes(name), name)?;
    }
    packer.finish()?.flush()
}

/// Unpacks an archive into the directory at a path.
pub(crate) fn put(
    root: OwnedFd,
    asked: &str,
    container: &Container,
    reference: &str,
    options: PutOptions,
    archive: impl Read,
) -> Result<(), CopyError> {
    let named = Named::parse(asked);
    let path = follow(&root, &named.path).map_err(|error| CopyError::Path(error.to_string()))?;
    let real = Named { path: path.to_string_lossy().into_owned(), ..named };
    let (_, _, stat) = real.look_up(&root).map_err(|error| lookup_error(&real, asked, reference, error))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(CopyError::Invalid("extraction point is not a directory".to_owned()));
    }
    check_writable(container, &path)?;
    let spec = &container.config.spec;
    let owner = if options.chown && !spec.user.is_empty() {
        Some(exec::user_numbers(&root, &spec.user).map_err(CopyError::Invalid)?)
    } else {
        None
    };
    let rules = ExtractRules { keeps_kinds: options.keeps_kinds, owner };
    Ok(extract(archive, root, path.strip_prefix("/").unwrap_or(&path), &rules)?)
}

/// moby: checkWritablePath
fn check_writable(container: &Container, path: &Path) -> Result<(), CopyError> {
    let mounts = container.mounts.iter().filter(|mount| path.starts_with(&mount.destination));
    let nearest = mounts.max_by_key(|mount| mount.destination.len());
    match nearest {
        Some(mount) if mount.writable => Ok(()),
        Some(_) => Err(CopyError::Invalid("mounted volume is marked read-only".to_owned())),
        None if container.config.spec.read_only => {
            Err(CopyError::Invalid("container rootfs is marked read-only".to_owned()))
        }
        None => Ok(()),
    }
}

/// Hands what is written to a client, in pieces. A client that has gone away is an error.
pub(crate) struct ChunkWriter {
    chunks: mpsc::Sender<io::Result<Bytes>>,
    buffer: BytesMut,
}

impl ChunkWriter {
    pub(crate) fn new(chunks: mpsc::Sender<io::Result<Bytes>>) -> ChunkWriter {
        ChunkWriter { chunks, buffer: BytesMut::with_capacity(CHUNK_BYTES) }
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, BytesMut::with_capacity(CHUNK_BYTES)).freeze();
        self.chunks.blocking_send(Ok(chunk)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

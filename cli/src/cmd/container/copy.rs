//! `cp`: files between a container and this machine, by docker's rules for what goes where.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Args;
use http_body_util::BodyExt as _;
use hyper::header::HeaderName;
use rswarm_api::types::PathStat;
use tokio::sync::mpsc;

use crate::client::{Call, ClientError};
use crate::cmd::image::{archive, download};
use crate::cmd::{CommandError, Context};

const STAT_HEADER: HeaderName = HeaderName::from_static("x-docker-container-path-stat");
/// Go's `os.ModeDir`.
const MODE_DIR: u32 = 1 << 31;
/// Go's `os.ModeSymlink`.
const MODE_SYMLINK: u32 = 1 << 27;
/// Pieces of an archive on their way.
const CHUNKS_MAX: usize = 8;
const CHUNK_BYTES: usize = 64 << 10;

#[derive(Debug, Args)]
#[command(
    override_usage = "rswarm cp [OPTIONS] CONTAINER:PATH PATH|-\n       rswarm cp [OPTIONS] PATH|- CONTAINER:PATH"
)]
pub struct CpArgs {
    /// Give everything to the user that the container runs as
    #[arg(short, long)]
    archive: bool,
    /// Follow a link at the end of the source
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// `CONTAINER:PATH`, a path here, or `-` for an archive on standard input
    source: String,
    /// A path here, `CONTAINER:PATH`, or `-` for an archive on standard output
    destination: String,
}

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side<'a> {
    Here(&'a str),
    Container { name: &'a str, path: &'a str },
}

impl Side<'_> {
    /// A colon makes a container, unless the text is plainly a path.
    fn parse(text: &str) -> Side<'_> {
        match text.split_once(':') {
            Some((name, path)) if !name.is_empty() && !name.starts_with(['/', '.']) => {
                Side::Container { name, path }
            }
            _ => Side::Here(text),
        }
    }
}

/// Where a copy goes: into which directory, and under which name. `None` keeps the names.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    dir: String,
    name: Option<String>,
}

/// What there is at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    Directory,
    Other,
}

impl Target {
    /// Docker's table: what `source` becomes at `path`, where `found` is already.
    fn of(path: &str, found: Found, source_is_directory: bool) -> Result<Target, CommandError> {
        let usage = |text: &str| Err(CommandError::Usage(text.to_owned()));
        let wants_directory = path.ends_with('/') || path.ends_with("/.");
        match found {
            Found::Directory => return Ok(Target { dir: path.to_owned(), name: None }),
            Found::Other if source_is_directory => return usage("cannot copy directory"),
            Found::Other if wants_directory => return usage("not a directory"),
            Found::Nothing if wants_directory && !source_is_directory => {
                return usage("no such directory");
            }
            Found::Nothing | Found::Other => {}
        }
        let trimmed = path.trim_end_matches("/.").trim_end_matches('/');
        let (dir, name) = trimmed.rsplit_once('/').unwrap_or((".", trimmed));
        let dir = if dir.is_empty() { "/" } else { dir };
        Ok(Target { dir: dir.to_owned(), name: Some(name.to_owned()) })
    }

    /// An entry's name at the target: its first part gives way to ours.
    fn rename(&self, entry: &Path) -> PathBuf {
        let Some(name) = &self.name else { return entry.to_owned() };
        let mut parts = entry.components();
        parts.next();
        // `a/b` joined with nothing would get a slash.
        let rest = parts.as_path();
        if rest.as_os_str().is_empty() { name.into() } else { Path::new(name).join(rest) }
    }
}

impl CpArgs {
    /// Copies.
    pub async fn run(self, context: &Context) -> Result<u8, CommandError> {
        match (Side::parse(&self.source), Side::parse(&self.destination)) {
            (Side::Container { name, path }, Side::Here(to)) => self.copy_out(context, name, path, to).await,
            (Side::Here(from), Side::Container { name, path }) => {
                self.copy_in(context, from, name, path).await
            }
            (Side::Container { .. }, Side::Container { .. }) => {
                Err(CommandError::Usage("copying between containers is not supported".into()))
            }
            (Side::Here(_), Side::Here(_)) => {
                Err(CommandError::Usage("must specify at least one container source".into()))
            }
        }
    }

    async fn copy_out(
        &self,
        context: &Context,
        name: &str,
        path: &str,
        to: &str,
    ) -> Result<u8, CommandError> {
        let mut path = path.to_owned();
        if self.follow_link
            && let Some(stat) = stat(context, name, &path).await?
            && stat.mode & MODE_SYMLINK != 0
        {
            path = stat.link_target;
        }
        let call = Call::get(format!("/containers/{name}/archive")).query("path", &path);
        if to == "-" {
            return download(context, call, None).await;
        }
        let reply = context.client.send(call).await?;
        let stat = read_stat(reply.headers().get(STAT_HEADER))?;
        let found = match std::fs::metadata(to) {
            Ok(meta) if meta.is_dir() => Found::Directory,
            Ok(_) => Found::Other,
            Err(_) => Found::Nothing,
        };
        let target = Target::of(to, found, stat.mode & MODE_DIR != 0)?;
        let (chunks, received) = mpsc::channel(CHUNKS_MAX);
        let unpacking = tokio::task::spawn_blocking(move || unpack(Received::new(received), &target));
        let mut body = reply.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|source| ClientError::Exchange { call: "cp".into(), source })?;
            if chunks.send(frame.into_data().unwrap_or_default()).await.is_err() {
                break; // it failed, and says why
            }
        }
        drop(chunks);
        let unpacked = unpacking.await.map_err(io::Error::other)?;
        unpacked.map_err(|source| CommandError::Write { path: to.into(), source })?;
        Ok(0)
    }

    async fn copy_in(
        &self,
        context: &Context,
        from: &str,
        name: &str,
        path: &str,
    ) -> Result<u8, CommandError> {
        let put = |dir: &str| {
            Call::put(format!("/containers/{name}/archive"))
                .query("path", dir)
                .query("noOverwriteDirNonDir", "true")
                .flag("copyUIDGID", self.archive)
        };
        if from == "-" {
            let call = put(path).stream("application/x-tar", archive(None).await?);
            context.client.done(call).await?;
            return Ok(0);
        }
        let source = PathBuf::from(from);
        let unreadable = |error| CommandError::Read { path: from.into(), source: error };
        let meta = std::fs::symlink_metadata(&source).map_err(unreadable)?;
        let follows = self.follow_link || from.ends_with('/') || from.ends_with("/.");
        let meta = if follows { std::fs::metadata(&source).map_err(unreadable)? } else { meta };
        let found = match stat(context, name, path).await? {
            Some(stat) if stat.mode & MODE_DIR != 0 => Found::Directory,
            Some(stat) if stat.mode & MODE_SYMLINK != 0 => {
                match stat_of_target(context, name, &stat).await? {
                    true => Found::Directory,
                    false => Found::Other,
                }
            }
            Some(_) => Found::Other,
            None => Found::Nothing,
        };
        let target = Target::of(path, found, meta.is_dir())?;
        let first = first_name(from, &target);
        let (sender, chunks) = mpsc::channel(CHUNKS_MAX);
        let packing = tokio::task::spawn_blocking(move || {
            pack(&source, &first, follows, Sent { chunks: sender, buffer: Vec::new() })
        });
        let stream = stream_of(chunks);
        let sent = context.client.done(put(&target.dir).stream("application/x-tar", stream)).await;
        let packed = packing.await.map_err(io::Error::other)?;
        // When the daemon refuses, that is why the packing ended.
        sent?;
        packed.map_err(unreadable)?;
        Ok(0)
    }
}

/// What the archive of a source begins with.
fn first_name(from: &str, target: &Target) -> PathBuf {
    match &target.name {
        Some(name) => name.into(),
        None if from == "." || from.ends_with("/.") => ".".into(),
        None => Path::new(from).file_name().map_or_else(|| ".".into(), PathBuf::from),
    }
}

async fn stat(context: &Context, name: &str, path: &str) -> Result<Option<PathStat>, CommandError> {
    let call = Call::head(format!("/containers/{name}/archive")).query("path", path);
    match context.client.send(call).await {
        Ok(reply) => read_stat(reply.headers().get(STAT_HEADER)).map(Some),
        // Whether the container or the path is missing, the copy itself will tell.
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether a link in a container leads to a directory.
async fn stat_of_target(context: &Context, name: &str, link: &PathStat) -> Result<bool, CommandError> {
    Ok(stat(context, name, &link.link_target).await?.is_some_and(|stat| stat.mode & MODE_DIR != 0))
}

fn read_stat(header: Option<&hyper::header::HeaderValue>) -> Result<PathStat, CommandError> {
    let missing = || CommandError::Reported("the daemon does not say what there is at the path".into());
    let json = STANDARD.decode(header.ok_or_else(missing)?).map_err(|_| missing())?;
    serde_json::from_slice(&json).map_err(|_| missing())
}

/// Puts an archive's entries below the target, never outside of it.
fn unpack(archive: impl Read, target: &Target) -> io::Result<()> {
    let mut archive = tar::Archive::new(archive);
    archive.set_preserve_permissions(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = target.rename(&entry.path()?);
        let inside = Path::new(&target.dir).join(path.strip_prefix("/").unwrap_or(&path));
        let plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
        if !plain {
            return Err(io::Error::other(format!("`{}` leads out of the target", path.display())));
        }
        if let Some(parent) = inside.parent() {
            std::fs::create_dir_all(parent)?;
        }
        entry.unpack(inside)?;
    }
    Ok(())
}

fn pack(source: &Path, name: &Path, follows: bool, out: impl Write) -> io::Result<()> {
    let mut builder = tar::Builder::new(out);
    builder.follow_symlinks(false);
    let meta = if follows { std::fs::metadata(source)? } else { std::fs::symlink_metadata(source)? };
    if meta.is_dir() {
        builder.append_dir_all(name, source)?;
    } else if meta.is_file() {
        builder.append_file(name, &mut File::open(source)?)?;
    } else {
        builder.append_path_with_name(source, name)?;
    }
    builder.into_inner()?.flush()
}

/// Bytes that come from the daemon, for a blocking reader.
struct Received {
    chunks: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Received {
    fn new(chunks: mpsc::Receiver<Bytes>) -> Received {
        Received { chunks, current: Bytes::new() }
    }
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        buffer[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}

/// Bytes that go to the daemon, from a blocking writer.
struct Sent {
    chunks: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Write for Sent {
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
        let chunk = Bytes::from(std::mem::take(&mut self.buffer));
        self.chunks.blocking_send(Ok(chunk)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

fn stream_of(
    chunks: mpsc::Receiver<io::Result<Bytes>>,
) -> impl futures_util::Stream<Item = io::Result<Bytes>> + Send {
    futures_util::stream::unfold(chunks, async |mut chunks| Some((chunks.recv().await?, chunks)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_makes_a_container_unless_it_is_plainly_a_path() {
        assert_eq!(Side::parse("web:/etc"), Side::Container { name: "web", path: "/etc" });
        assert_eq!(Side::parse("./a:b"), Side::Here("./a:b"));
        assert_eq!(Side::parse("/a:b"), Side::Here("/a:b"));
        assert_eq!(Side::parse("file"), Side::Here("file"));
    }

    #[test]
    fn what_goes_where_follows_dockers_table() {
        let of = |path, found, is_dir| Target::of(path, found, is_dir).map_err(|error| error.to_string());
        let target =
            |dir: &str, name: Option<&str>| Ok(Target { dir: dir.to_owned(), name: name.map(str::to_owned) });
        assert_eq!(of("/srv", Found::Directory, false), target("/srv", None));
        assert_eq!(of("/srv/new", Found::Nothing, true), target("/srv", Some("new")));
        assert_eq!(of("/srv/new/", Found::Nothing, true), target("/srv", Some("new")));
        assert_eq!(of("new", Found::Nothing, false), target(".", Some("new")));
        assert_eq!(of("/new", Found::Other, false), target("/", Some("new")));
        assert_eq!(of("/srv/new/", Found::Nothing, false), Err("no such directory".to_owned()));
        assert_eq!(of("/file", Found::Other, true), Err("cannot copy directory".to_owned()));
    }

    #[test]
    fn a_new_name_replaces_the_first_part() {
        let target = Target { dir: ".".to_owned(), name: Some("new".to_owned()) };
        assert_eq!(target.rename(Path::new("old")), Path::new("new"));
        assert_eq!(target.rename(Path::new("old/a/b")), Path::new("new/a/b"));
        let kept = Target { dir: ".".to_owned(), name: None };
        assert_eq!(kept.rename(Path::new("old/a")), Path::new("old/a"));
    }

    #[test]
    fn an_archive_goes_there_and_back() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir_all(from.join("sub")).expect("mkdir");
        std::fs::create_dir(&to).expect("mkdir");
        std::fs::write(from.join("sub/file"), "content").expect("file");
        let mut bytes = Vec::new();
        pack(&from, Path::new("x"), false, &mut bytes).expect("packs");
        let target = Target { dir: to.display().to_string(), name: Some("y".to_owned()) };
        unpack(&bytes[..], &target).expect("unpacks");
        assert_eq!(std::fs::read_to_string(to.join("y/sub/file")).expect("file"), "content");
    }
}
